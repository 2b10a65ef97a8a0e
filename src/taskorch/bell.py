"""Waking other servers: a FIFO beside each server's lock file, one byte after a commit that concerns them.

A byte says that something has changed and nothing else, so lost and merged ones do no harm: who is woken looks into the
store, and looks by itself now and then anyway.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from taskorch.store import Change, Store
from taskorch.task import Status

RING_PAUSE_SECONDS = 0.005  # bursts are merged


class Bell:
    """Use as a context manager. `folder`: where the lock files lie; `name`: this server's uuid."""

    def __init__(self, folder: Path, name: str, store: Store) -> None:
        self._folder = folder
        self._path = folder / f"{name}.fifo"
        self._store = store
        self._fd = -1
        self._news = anyio.Event()

    def __enter__(self) -> "Bell":
        with suppress(OSError, AttributeError):  # a file system without FIFOs: the look now and then remains
            os.mkfifo(self._path, 0o600)
            self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # a writer too: never at its end
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)

    async def run(self) -> None:
        """Ring the others after commits of ours that they may have to act on. Until cancelled."""
        with self._store.listening(self._heard):
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                self.ring()
                await anyio.sleep(RING_PAUSE_SECONDS)

    def ring(self) -> None:
        """Wake every other server on this folder."""
        for path in self._folder.glob("*.fifo"):
            if path != self._path:
                with suppress(OSError):  # nobody reads it, or it is full: they will look anyway
                    _ring(path)

    async def rung(self) -> None:
        """Wait until another server has rung."""
        if self._fd < 0:
            await anyio.sleep_forever()
        await anyio.wait_readable(self._fd)
        with suppress(BlockingIOError):
            while os.read(self._fd, 65_536):
                pass

    def _heard(self, changes: Sequence[Change]) -> None:
        if any(task and _concerns_others(task.status, task.ready, task.cancel_requested_at) for _, task in changes):
            self._news.set()


def _concerns_others(status: Status, ready: bool, cancel_requested_at: int | None) -> bool:
    """Whether another server could start it, or may have to stop it."""
    return ready if status is Status.WAITING else status is Status.WORKING and cancel_requested_at is not None


def _ring(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, b"!")
    finally:
        os.close(fd)
