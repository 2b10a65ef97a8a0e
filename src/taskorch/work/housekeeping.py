"""Retention: ended tasks past their time are deleted, and the output of tasks that are gone with them.

All output together has a limit: what is over it goes, the output of the tasks that ended first. And what waits long is
looked after, so that no task starves.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from taskorch.domain.errors import StoreError
from taskorch.storage.place import set_aside_files
from taskorch.storage.store import Change, Store

AGE_SECONDS = 60.0  # how often tasks that wait long are looked at
QUOTA_SECONDS = 60.0  # how often the size of all output is looked at
STRAY_SECONDS = 60.0  # a folder younger than this may belong to a task that another server creates just now

log = logging.getLogger(__name__)


class Housekeeper:
    """`run` cleans up now and then, and follows every deletion. `folder`: where tasks keep their output."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        keep_ms: int,
        keep_failed_ms: int,
        interval_seconds: float,
        most_bytes: int = 1 << 30,
    ) -> None:
        self._store = store
        self._folder = folder
        self._keep_ms = keep_ms
        self._keep_failed_ms = keep_failed_ms
        self._interval_seconds = interval_seconds
        self._most_bytes = most_bytes
        self._gone: list[str] = []
        self._bell = anyio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        with self._store.listening(self._heard):
            async with anyio.create_task_group() as group:
                group.start_soon(self._remove_output)
                group.start_soon(self._keep_quota)
                group.start_soon(self._age)
                while True:
                    await self.clean()
                    await anyio.sleep(self._interval_seconds)

    async def clean(self) -> None:
        """Delete what is past retention, and folders that no task owns (a crash may come between row and files)."""
        try:
            await self._store.repair()
            await self._store.purge(self._keep_ms, self._keep_failed_ms)
            if set_aside_files(self._folder.parent):
                return  # the output of tasks that only a damaged database knows is not ours to remove
            found = await anyio.to_thread.run_sync(_old_folders, self._folder)
            stored = await self._store.stored(found)
            await anyio.to_thread.run_sync(_remove, self._folder, [name for name in found if name not in stored])
        except (StoreError, OSError) as error:
            log.warning("cleaning up: %s", error)

    async def keep_quota(self) -> None:
        """Remove output until all that is left has no more than `most_bytes`; that of live tasks stays."""
        sizes = await anyio.to_thread.run_sync(_sizes, self._folder)
        over = sum(sizes.values()) - self._most_bytes
        if over <= 0:
            return
        removed: list[str] = []
        for task_id in await self._store.oldest_ended(list(sizes)):
            if over <= 0:
                break
            removed.append(task_id)
            over -= sizes[task_id]
        if not removed:
            return  # live tasks alone are over it
        await anyio.to_thread.run_sync(_remove, self._folder, removed)
        log.warning("output over its quota: that of %s ended task(s) was removed", len(removed))

    async def _keep_quota(self) -> None:
        while True:
            try:
                await self.keep_quota()
            except (StoreError, OSError) as error:
                log.warning("looking at the output: %s", error)
            await anyio.sleep(QUOTA_SECONDS)

    async def _age(self) -> None:
        while True:
            try:
                await self._store.age()
            except StoreError as error:
                log.warning("looking at what waits long: %s", error)
            await anyio.sleep(AGE_SECONDS)

    def _heard(self, changes: Sequence[Change]) -> None:
        gone = [task_id for task_id, task in changes if task is None]
        if gone:
            self._gone += gone
            self._bell.set()

    async def _remove_output(self) -> None:
        while True:
            await self._bell.wait()
            self._bell = anyio.Event()
            gone, self._gone = self._gone, []
            await anyio.to_thread.run_sync(_remove, self._folder, gone)


def _old_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    oldest = time.time() - STRAY_SECONDS
    found: list[str] = []
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # another server cleans up too
            if entry.stat().st_mtime < oldest:
                found.append(entry.name)
    return found


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each task's output."""
    if not folder.is_dir():
        return {}
    return {entry.name: _bytes_in(entry) for entry in folder.iterdir()}


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _remove(folder: Path, task_ids: Sequence[str]) -> None:
    for task_id in task_ids:
        shutil.rmtree(folder / task_id, ignore_errors=True)
