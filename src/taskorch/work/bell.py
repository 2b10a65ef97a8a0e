"""Waking other servers: a FIFO beside each server's lock file, one byte after a commit that concerns them.

A byte says that something has changed and nothing else, so lost and merged ones do no harm: who is woken looks into the
store, and looks by itself now and then anyway.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from taskorch.storage.store import Change, Store

RING_PAUSE_SECONDS = 0.005  # bursts are merged
LATER_SECONDS = 0.05  # so long may news wait that others only look at, such as the end of what a client waits for


class Bell:
    """Use as a context manager, in the event loop. `folder`: where the lock files lie; `name`: this server's uuid."""

    def __init__(self, folder: Path, name: str, store: Store) -> None:
        self._folder = folder
        self._path = folder / f"{name}.fifo"
        self._store = store
        self._fd = -1
        self._loop = asyncio.get_running_loop()
        self._rung = anyio.Event()
        self._news = anyio.Event()
        self._urgent = anyio.Event()

    def __enter__(self) -> "Bell":
        with suppress(OSError, AttributeError):  # a file system without FIFOs: the look now and then remains
            os.mkfifo(self._path, 0o600)
            self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # a writer too: never at its end
            self._loop.add_reader(self._fd, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._path.unlink(missing_ok=True)
            os.close(self._fd)

    async def run(self) -> None:
        """Ring the others after commits of ours that they may have to act on. Until cancelled."""
        with self._store.listening(self._heard):
            while True:
                await self._news.wait()
                with anyio.move_on_after(LATER_SECONDS):
                    await self._urgent.wait()
                self._news, self._urgent = anyio.Event(), anyio.Event()
                self.ring()
                await anyio.sleep(RING_PAUSE_SECONDS)

    def ring(self) -> None:
        """Wake every other server on this folder."""
        for path in self._others():
            with suppress(OSError):  # nobody reads it, or it is full: they will look anyway
                _ring(path)

    async def rung(self) -> None:
        """Wait until another server has rung, or `tell` was called, since this returned last."""
        await self._rung.wait()
        self._rung = anyio.Event()

    def tell(self) -> None:
        """As if another server had rung. May be called by any thread, also after the end."""
        self._loop.call_soon_threadsafe(self._wake)

    def _others(self) -> list[Path]:
        with suppress(OSError):  # such as too many open files
            return [path for path in self._folder.glob("*.fifo") if path != self._path]
        return []

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._fd, 65_536):
                pass
        self._wake()

    def _wake(self) -> None:
        self._rung.set()

    def _heard(self, changes: Sequence[Change]) -> None:
        if self._urgent.is_set():  # it rings anyway
            return
        for _, task in changes:
            if task is None or task.ended:
                self._news.set()
            elif task.ready or task.cancel_requested_at is not None:  # another server could start it, or must stop it
                self._news.set()
                self._urgent.set()


def _ring(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, b"!")
    finally:
        os.close(fd)
