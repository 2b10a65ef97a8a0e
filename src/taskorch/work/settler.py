"""Writes how attempts ended, all that have come together in one commit, so that slots need not wait for the disk."""

import logging
import time
from collections.abc import Callable

import anyio
import anyio.lowlevel

from taskorch.domain.errors import StoreError
from taskorch.domain.task import Failed, Outcome, Reason, Task
from taskorch.storage.ends import End
from taskorch.storage.store import Store
from taskorch.telemetry.context import on_record

LOST = "task %s attempt %s is no longer ours; its end is dropped"
MOST = 64  # so many ends may wait for their commit; the slots wait then
YIELD = 8
RETRY_SECONDS = 1.0  # pause after the store failed

log = logging.getLogger(__name__)


class Settler:
    """`run` it, hand it each end, `flush` it last; `on_written` is called after each write with how long it took (s).

    A crash may repeat what is not written yet: handlers allow it.
    """

    def __init__(self, store: Store, on_written: Callable[[float], None]) -> None:
        self._store = store
        self._on_written = on_written
        self._ends: list[End] = []
        self._ended = anyio.Event()
        self._written = anyio.Event()

    def end(self, task: Task, outcome: Outcome, started_at: int | None) -> None:
        """An attempt has ended; `started_at` is when it really began (ms), None: as the claim says."""
        self._ends.append((task, outcome, started_at))
        self._ended.set()

    async def breathe(self) -> None:
        """Between two tasks of a slot: wait if too much is unwritten, and let the loop turn now and then."""
        if len(self._ends) >= MOST:
            await self._written.wait()
        elif len(self._ends) % YIELD == 0:
            await anyio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._ended.wait()
            self._ended = anyio.Event()
            if not await self.flush():
                await anyio.sleep(RETRY_SECONDS)
                self._ended.set()

    async def flush(self) -> bool:
        """Write what has ended by now; False: the store failed, and it is kept for the next time."""
        ends, self._ends = self._ends, []
        if not ends:
            return True
        began = time.perf_counter()
        with anyio.CancelScope(shield=True):  # also when the worker is torn down
            try:
                lost = await self._store_together(ends)
            except StoreError as error:
                log.error("the ends of %s attempts could not be stored: %s", len(ends), error)
                self._ends = ends + self._ends
                return False
            for task in lost:
                log.warning(LOST, task.id, task.attempt, extra=on_record(task.id, task.attempt))
        self._written.set()
        self._written = anyio.Event()
        self._on_written(time.perf_counter() - began)
        return True

    async def _store_together(self, ends: list[End]) -> list[Task]:
        """Those no longer ours. If one end cannot be stored as it is, the others are, and that attempt failed."""
        try:
            return await self._store.settle_all(ends)
        except StoreError:
            raise
        except Exception:
            if len(ends) > 1:
                return [lost for end in ends for lost in await self._store_together([end])]
            task, _, started_at = ends[0]
            key = task.id, task.attempt
            log.exception("task %s attempt %s: its end cannot be stored", *key, extra=on_record(*key))
            failed = Failed(Reason.ERROR, "its end could not be stored; the server's log says more", retryable=False)
            return await self._store.settle_all([(task, failed, started_at)])
