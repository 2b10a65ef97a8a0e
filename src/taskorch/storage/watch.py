"""Whether the database has been written, seen from outside: each commit touches the `-wal`.

Such a look is three calls of `stat`, and any thread may take it. Asking SQLite itself takes the event loop and the
connection's thread, and to wake those four times a second was most of what an idle server needed.
"""

import os
from collections.abc import Callable
from pathlib import Path

from taskorch.storage import place


class Watch:
    """`written` is called, in the thread that looks, when somebody has committed or a file is gone.

    It may be called for nothing, and a commit of our own counts as well: SQLite has the last word.
    """

    def __init__(self, path: Path, written: Callable[[], None]) -> None:
        self._database, self._wal, self._shm = place.files(path)
        self._written = written
        self._seen = self._state()
        self._again = False

    def look(self) -> None:
        """Compare with what the last look saw. To be called now and then by one thread."""
        state = self._state()
        changed = state != self._seen
        if changed or self._again:  # once more: file times are coarse, and a later commit may have the same
            self._written()
        self._seen, self._again = state, changed

    def _state(self) -> tuple[int, ...]:
        database, wal, shm = (_stat(file) for file in (self._database, self._wal, self._shm))
        touched = (wal.st_mtime_ns, wal.st_size) if wal else ()
        return (*(file.st_ino if file else 0 for file in (database, wal, shm)), *touched)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return os.stat(file)
    except OSError:
        return None
