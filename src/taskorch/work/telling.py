"""What the process of an isolated handler tells its server: lines of JSON through a FIFO in the attempt's folder."""

import logging
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from pydantic import TypeAdapter

from taskorch.domain.task import RESULT_BYTES, Completed, Failed, Outcome, Progress
from taskorch.work import outcomes
from taskorch.work.attempt import Attempt

PAUSE_SECONDS = 0.1  # between two reports of progress
LINE_BYTES = 4 * RESULT_BYTES  # a longer line was not written by a teller
CHUNK = 65_536

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """One line: one of these."""

    progress: Progress | None = None
    completed: Completed | None = None
    failed: Failed | None = None


_SAID = TypeAdapter(Said)


class Teller:
    """The child's end: `note` progress from any thread and as often as you like, then tell the `end`."""

    def __init__(self, fifo: str) -> None:
        self._file = os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "wb")
        os.set_blocking(self._file.fileno(), True)
        self._latest: Progress | None = None
        self._news = threading.Event()
        self._turn = threading.Lock()
        threading.Thread(target=self._tell_progress, daemon=True).start()

    def note(self, attempt: Attempt) -> None:
        self._latest = attempt.latest
        self._news.set()

    def end(self, outcome: Completed | Failed) -> None:
        self._write_progress()
        if isinstance(outcome, Completed):
            self._write(b'{"completed":{"result":%b}}' % (outcome.text or "null").encode())
        else:
            self._write(_SAID.dump_json(Said(failed=outcome)))

    def _tell_progress(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            self._write_progress()
            time.sleep(PAUSE_SECONDS)  # in a thread of its own

    def _write_progress(self) -> None:
        latest, self._latest = self._latest, None
        if latest:
            self._write(_SAID.dump_json(Said(progress=latest)))

    def _write(self, line: bytes) -> None:
        with self._turn, suppress(OSError):  # the server is gone: nobody to tell
            self._file.write(line + b"\n")
            self._file.flush()


class Hearing:
    """The server's end of one attempt: progress goes to the attempt, `outcome` is what the child came to, if it did."""

    def __init__(self, attempt: Attempt, reader: int) -> None:
        self._attempt = attempt
        self._reader = reader
        self._rest = b""
        self.outcome: Outcome | None = None

    async def listen(self) -> None:
        """Until cancelled."""
        while True:
            await anyio.wait_readable(self._reader)
            self.take()

    def take(self) -> None:
        """Hear what is there by now."""
        with suppress(BlockingIOError):
            while data := os.read(self._reader, CHUNK):
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest if len(rest) <= LINE_BYTES else b""
                for line in lines:
                    self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            said = _SAID.validate_json(line)
            if told := said.progress:
                self._attempt.progress(outcomes.progress(told.value, told.total, told.message))
        except ValueError as error:
            log.warning("task %s attempt %s: its process said %r: %s", *self._which, line[:80], error)
            return
        if self.outcome is None:
            self.outcome = outcomes.completed(said.completed.result) if said.completed else said.failed

    @property
    def _which(self) -> tuple[str, int]:
        return self._attempt.task.id, self._attempt.task.attempt


@contextmanager
def hearing(attempt: Attempt, fifo: Path) -> Generator[Hearing]:
    """Make the FIFO and hear what comes through it, until the block ends. Raises OSError."""
    os.mkfifo(fifo, 0o600)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # without one it reads as ended
    try:
        yield Hearing(attempt, reader)
    finally:
        os.close(reader)
        os.close(writer)
        with suppress(OSError):
            fifo.unlink()
