"""The task that every queue runs, and what is noted of its starts."""

import asyncio
import os
import struct
import threading
import time
from pathlib import Path

_ENTRY = struct.Struct("dd")


class Starts:
    """Counts starts, and how long each took from its tag, which is when it was created.

    With BENCH_LOG=FILE they are written there instead, so that they outlive the process.
    """

    def __init__(self) -> None:
        self.count = 0
        self.waits: list[float] = []  # seconds
        self._lock = threading.Lock()
        self._seconds = float(os.environ.get("BENCH_TASK_SECONDS", "0"))
        path = os.environ.get("BENCH_LOG")
        self._log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) if path else -1

    def reset(self) -> None:
        self.count = 0
        self.waits = []

    def add(self, tasks: int) -> None:
        with self._lock:
            self.count += tasks

    def begin(self, tag: float) -> float:
        """Note a start. Seconds that the task takes."""
        if self._log >= 0:
            os.write(self._log, _ENTRY.pack(tag, time.monotonic()))
        elif tag:
            self.waits.append(time.monotonic() - tag)
        self.add(1)
        return self._seconds

    def end(self, tag: float) -> None:
        if self._log >= 0:
            os.write(self._log, _ENTRY.pack(-tag, time.monotonic()))


STARTS = Starts()


async def run(tag: float) -> None:
    """The task, for queues whose tasks are coroutines."""
    if seconds := STARTS.begin(tag):
        await asyncio.sleep(seconds)
        STARTS.end(tag)


def run_blocking(tag: float) -> None:
    """The task, for queues whose tasks are functions in threads."""
    if seconds := STARTS.begin(tag):
        time.sleep(seconds)
        STARTS.end(tag)


def read_log(path: Path) -> list[tuple[float, float]]:
    """What was noted, in order: (tag, time) of a start, (-tag, time) of an end."""
    data = path.read_bytes() if path.exists() else b""
    return list(_ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size]))
