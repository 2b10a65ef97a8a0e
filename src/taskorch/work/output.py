"""Bounded, cleaned pieces of what a command wrote.

An attempt's folder holds `output` (the first bytes) and, when the command wrote more, tail segments named
`output.<start>`; all but the last two segments are gone, so bytes may be missing between the head and the tail.
Offsets are absolute: they count the bytes that the command wrote, kept or not. Another process writes while we read;
a missing folder reads as empty. Everything here blocks on the disk for a moment: call it in a thread.
"""

import codecs
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SMALLEST = 4  # bytes: one UTF-8 character always fits, so that reading never stands still
_CHUNK = 65_536  # bytes that a search holds at once
_LINE = 400  # characters shown of a matching line
_WIDTHS = (_LINE, 200, 100, 50, 25, 12)  # narrower ones for replies that are very small
_NAME = re.compile(r"output(?:\.([0-9]+))?")
_CONTINUATION = bytes(range(0x80, 0xC0))

_CSI = r"(?:\x1b\[|\x9b)"
_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])"  # OSC and its kin: text for the terminal itself, up to BEL or ST
_ERASE_LINE = re.compile(rf"{_CSI}2K")
_ERASE_REST = re.compile(rf"{_CSI}0?K")
_TO_LINE_START = re.compile(rf"{_CSI}[01]?G")
# Possessive, and never across another control character: linear, and an unclosed string hides nothing.
_ESCAPE = re.compile(
    rf"{_STRING}[^\x00-\x1f\x7f-\x9f]*+(?:\x07|\x1b\\|\x9c)|{_CSI}[0-?]*+[ -/]*+[@-~]?|\x1b[ -/]{{0,2}}[0-~]?"
)
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*+[ -/]*+|[ -/]{0,2})\Z")  # it shows no text, so holding it back hides none
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Bidi controls, zero width, line separators, and the tag characters that smuggle invisible text to a model.
_HIDDEN = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e01ef]"
)


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of output: `text` shows the bytes from `offset` up to, not including, `next_offset`."""

    text: str  # cleaned, safe to show
    offset: int  # absolute offset of the first byte covered
    next_offset: int  # where to go on; equals total_bytes when nothing more is there yet
    total_bytes: int  # all bytes written so far
    dropped_bytes: int  # bytes no longer kept


def attempt_folder(root: Path, task_id: str, attempt: int) -> Path:
    """Where an attempt keeps its files."""
    return root.joinpath(task_id, str(attempt))


def last_line(folder: Path) -> str:
    """The last line that is not blank, at most 200 characters; '' when there is none."""
    lines = [line for line in read(folder, max_bytes=400).text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


def read(folder: Path, *, offset: int | None = None, max_bytes: int = 2048) -> Slice:
    """At most `max_bytes` (at least 4) from `offset` on, or the last ones when `offset` is None.

    The text as JSON takes at most max_bytes * 4 // 3 + 64 bytes; fewer bytes are covered when it would take more.
    A slice never crosses dropped bytes: it ends before them, and the next one starts behind them.
    """
    max_bytes = max(max_bytes, _SMALLEST)
    with _open(folder) as kept:
        return _tail(kept, max_bytes) if offset is None else _page(kept, max(offset, 0), max_bytes)


def grep(folder: Path, needle: str, *, offset: int = 0, max_bytes: int = 2048) -> Slice:
    """The lines from `offset` on that contain `needle` in any case, until their JSON takes `max_bytes`.

    At least one line is given when one matches. `next_offset` is the start of the first line not given, or
    total_bytes when everything was searched. A line longer than a chunk is matched piece by piece.
    """
    wanted, max_bytes = needle.casefold(), max(max_bytes, _SMALLEST)
    lines: list[str] = []
    used, current, matched, carry = 0, -1, -1, ""
    with _open(folder) as kept:
        begin, _ = kept.run(max(offset, 0))
        for start, piece, ended in _lines(kept, begin, wanted):
            if start == matched:
                continue
            text = (carry if start == current else "") + piece
            current, carry = start, text[-len(wanted) - _LINE :]
            if (place := _find(text, wanted)) is None:
                continue
            text += "" if ended else "…"
            cuts = (_excerpt(text, place, len(needle), width) for width in _WIDTHS)
            line = next(cut for cut in cuts if _fits(cut, max_bytes))
            used += _json_size(line)  # the quotes of each line pay for the newline between two
            if lines and used > max_bytes:
                return Slice("\n".join(lines), begin, start, kept.total, kept.dropped)
            lines.append(line)
            matched = start
        return Slice("\n".join(lines), begin, kept.total, kept.total, kept.dropped)


def activity(folder: Path) -> tuple[int, float | None]:
    """(bytes written so far, epoch seconds of the last write or None when nothing was written)."""
    stats = _each(folder, lambda path: os.stat(path, follow_symlinks=False))
    total = max((start + stat.st_size for start, stat in stats), default=0)
    return total, max(stat.st_mtime for _, stat in stats) if total else None


def news(folder: Path, after: int, most: int = _CHUNK) -> tuple[bytes, int]:
    """What was written from the offset `after` on, as it is (of too much, the last `most` bytes), and where it ends."""
    with _open(folder) as kept:
        begin, end = kept.run(max(after, kept.total - most))
        return kept.bytes(begin, end), kept.total


def clean(data: bytes) -> str:
    """`data` as text that is safe to show: about what a terminal shows in the end, hidden characters made visible."""
    text = data.decode("utf-8", "replace").replace("\0", "")
    text = _ERASE_LINE.sub("\r\0", text)  # from here on NUL means: what older text shows right of here is erased
    text = _ERASE_REST.sub("\0", text)
    text = _TO_LINE_START.sub("\r", text)
    text = _CONTROL.sub("", _ESCAPE.sub("", text))
    if "\r" in text or "\0" in text:
        text = "\n".join(_collapse(line) for line in text.split("\n"))
    return _HIDDEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def _collapse(line: str) -> str:
    """One line after its carriage returns (what is written later covers what was there) and erasures (NUL)."""
    line = line.rstrip("\r")
    shown: list[str] = []
    width = 0
    for layer in reversed(line.split("\r")):
        text = layer.replace("\0", "")
        shown.append(text[width:])
        width = max(width, len(text))
        if "\0" in layer:
            break
    return "".join(shown).rstrip(" ") if "\r" in line else "".join(shown)


def _page(kept: "_Kept", offset: int, max_bytes: int) -> Slice:
    begin, end = kept.run(offset)
    window = kept.bytes(begin, min(end, begin + max_bytes))
    before_gap = begin + len(window) == end < kept.total  # what is unfinished there is never finished

    def make(count: int) -> Slice:
        size = count if before_gap and count == len(window) else _finished(window[:count])
        return Slice(clean(window[:size]), begin, begin + size, kept.total, kept.dropped)

    return _largest(len(window), make, max_bytes)


def _tail(kept: "_Kept", max_bytes: int) -> Slice:
    first, last = kept.runs[-1] if kept.runs else (kept.total, kept.total)
    begin = max(first, last - max_bytes)
    at = max(first, begin - 1)  # one byte more, to see whether a line starts at `begin`
    window = kept.bytes(at, last)

    def make(count: int) -> Slice:
        start = len(window) - count
        start = _good_start(window, start) if at + start else 0
        end = start + _finished(window[start:])
        return Slice(clean(window[start:end]), at + start, at + end, kept.total, kept.dropped)

    return _largest(len(window) - (begin - at), make, max_bytes)


def _good_start(window: bytes, start: int) -> int:
    """A line start in the first quarter from `start` on, or else `start` moved behind the rest of a cut character."""
    newline = window.find(b"\n", max(start - 1, 0), start + (len(window) - start) // 4)
    head = window[start : start + 3][: len(window) - start - 1]  # at least one byte stays
    return newline + 1 if newline >= 0 else start + len(head) - len(head.lstrip(_CONTINUATION))


def _finished(data: bytes) -> int:
    """How many bytes come before an unfinished character or escape sequence at the end; all when that is all."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-3:])
    size = len(data) - len(decoder.getstate()[0])
    if escape := _UNFINISHED.search(data, max(size - 64, 0), size):
        size = escape.start()
    return size or len(data)


def _largest(limit: int, make: Callable[[int], Slice], max_bytes: int) -> Slice:
    """make(count) for the largest count up to `limit` whose text fits: found by halving, as clean text may inflate."""
    best, low, high = make(limit), min(_SMALLEST, limit), limit
    if _fits(best.text, max_bytes):
        return best
    best = make(low)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits((candidate := make(middle)).text, max_bytes):
            best, low = candidate, middle
        else:
            high = middle
    return best


def _fits(text: str, max_bytes: int) -> bool:
    return _json_size(text) <= max_bytes * 4 // 3 + 64


def _json_size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _lines(kept: "_Kept", at: int, wanted: str) -> Iterator[tuple[int, str, bool]]:
    """(offset of the line's first byte, cleaned text, whether the line ends here) of all lines that may match.

    A line longer than a chunk comes in several pieces. Where bytes were dropped, a line ends and another begins.
    """
    while at < kept.total:
        at, end = kept.run(at)
        start = at
        while data := kept.bytes(at, min(end, at + _CHUNK)):
            whole = data[: data.rfind(b"\n") + 1]
            text = clean(whole)
            if not whole:
                size = len(data) if at + len(data) == end else _finished(data)
                at += size
                yield start, clean(data[:size]), at == end
            elif start == at and wanted not in text.casefold():
                start = at = at + len(whole)
            else:
                for line, shown in zip(whole.split(b"\n")[:-1], text.split("\n"), strict=False):
                    yield start, shown, True
                    start = at = at + len(line) + 1
        at = max(at, end)


def _find(text: str, wanted: str) -> int | None:
    """Where in `text` the case-folded `wanted` begins, in characters."""
    folded = text.casefold()
    place = folded.find(wanted)
    if place < 0 or len(folded) == len(text):
        return place if place >= 0 else None
    return bisect_right(list(accumulate(len(character.casefold()) for character in text)), place)


def _excerpt(text: str, place: int, length: int, width: int) -> str:
    """`text`, or when it has more than `width` characters, the part around the `length` of them from `place` on."""
    if len(text) <= width:
        return text
    inner = width - 2
    begin = max(min(place - max(inner - length, 0) // 2, len(text) - inner), 0)
    return ("…" if begin else "") + text[begin : begin + inner] + ("…" if begin + inner < len(text) else "")


class _Kept:
    """The kept files, opened: what is unlinked or appended later changes nothing here."""

    def __init__(self, files: list[tuple[int, int]]) -> None:
        self._files = [(start, start + os.fstat(fd).st_size, fd) for start, fd in files]  # sorted by start
        self.runs: list[tuple[int, int]] = []  # (begin, end) of every stretch without a hole
        for start, end, _ in self._files:
            if self.runs and start <= self.runs[-1][1]:
                begin, last = self.runs.pop()
                self.runs.append((begin, max(last, end)))
            elif start < end:
                self.runs.append((start, end))
        self.total = max((end for _, end, _ in self._files), default=0)
        self.dropped = self.total - sum(end - begin for begin, end in self.runs)

    def run(self, at: int) -> tuple[int, int]:
        """The first kept byte at or behind `at`, and the end of its run; (total, total) when there is none."""
        return next(((max(at, begin), end) for begin, end in self.runs if at < end), (self.total, self.total))

    def bytes(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end`, which must lie in one run."""
        parts: list[bytes] = []
        for start, stop, fd in self._files:
            if start <= begin < min(stop, end):
                parts.append(os.pread(fd, min(stop, end) - begin, begin - start))
                begin += len(parts[-1])
        return b"".join(parts)


@contextmanager
def _open(folder: Path) -> Generator[_Kept]:
    with ExitStack() as stack:

        def enter(path: str) -> int:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        yield _Kept(_each(folder, enter))


def _each(folder: Path, look: Callable[[str], T], tries: int = 8) -> list[tuple[int, T]]:
    """(first byte, look(path)) of every file in order; lists again when one vanishes in between."""
    try:
        return [(start, look(path)) for start, path in _listing(folder)]
    except FileNotFoundError:  # 384 KiB were written since the listing: hardly twice in a row
        if tries <= 1:
            raise
        return _each(folder, look, tries - 1)


def _listing(folder: Path) -> list[tuple[int, str]]:
    """(absolute offset of its first byte, path) of every output file, in order."""
    try:
        with os.scandir(folder) as entries:
            files = [(_NAME.fullmatch(entry.name), entry) for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted((int(name[1] or 0), entry.path) for name, entry in files if name)
