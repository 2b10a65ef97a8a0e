"""Progress that a command tells by what it writes: OSC 9;4, as terminals know it, and lines `::progress 40 message`.

OSC 9;4: https://learn.microsoft.com/windows/terminal/tutorials/progress-bar-sequences
"""

import re
from collections import deque

from taskorch.domain.task import Progress

LONGEST = 1_024  # bytes of a marker; what is longer is none

_OSC = rb"\x1b\]9;4;[124];(?P<percent>\d{1,3})(?:\x07|\x1b\\)"  # states without a number say nothing of it
_NUMBER = rb"\d{1,15}(?:\.\d{1,6})?"
_LINE = rb"^::progress[ \t]+(?P<value>%b)(?:%%|/(?P<total>%b))?(?:[ \t]+(?P<text>[^\r\n]*))?\r?\n" % (_NUMBER, _NUMBER)
_MARKER = re.compile(rb"%b|%b" % (_OSC, _LINE), re.MULTILINE)


class Markers:
    """Finds the latest marker in what a command writes, whatever the pieces in which it comes."""

    def __init__(self) -> None:
        self._rest = b"\n"  # a line may begin here

    def read(self, data: bytes) -> Progress | None:
        """The last marker that ends in this piece, or None."""
        window = self._rest + data
        found = next(iter(deque(_MARKER.finditer(window), maxlen=1)), None)
        begin = max(found.end() - 1 if found else 0, len(window) - LONGEST)
        self._rest = window[begin:]
        return _progress(found) if found else None


def _progress(found: re.Match[bytes]) -> Progress:
    if found["percent"]:
        return Progress(min(100.0, float(found["percent"])), 100.0)
    text = (found["text"] or b"").decode("utf-8", "replace").strip()
    value, total = float(found["value"]), float(found["total"] or 100)
    return Progress(min(value, total), total, text[:200] or None)
