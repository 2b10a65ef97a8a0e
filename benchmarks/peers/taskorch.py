"""taskorch: its store, its worker and its bell, wired as the server wires them."""

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from benchmarks.peers import BULK, RESULT, SLOTS, Peer, payload, rows
from benchmarks.work import STARTS, run
from taskorch.engine import SWITCH_SECONDS, has_room
from taskorch.storage.additions import Wish
from taskorch.storage.database import open_database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Change, Store
from taskorch.storage.watch import Watch
from taskorch.work.attempt import prepared
from taskorch.work.bell import Bell
from taskorch.work.handlers import Handler
from taskorch.work.peers import Peers
from taskorch.work.results import Results
from taskorch.work.worker import Worker


async def noop(payload: dict[str, Any]) -> Any:
    await run(payload.get("tag", 0.0))
    return RESULT


class Adapter(Peer):
    async def open(self, fresh: bool) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.freeze()
        self.path = self.folder / "taskorch.db"
        if fresh:
            await rows.make(self.path)
        await self._open()

    async def close(self) -> None:
        await self.store.leave(self.owner)
        self.group.cancel_scope.cancel()
        await self.opened.aclose()

    async def create(self, tag: float = 0.0) -> None:
        await self.store.add(replace(rows.NEW, payload=payload(tag)) if tag else rows.NEW)

    async def create_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            await self.store.add_all([Wish(rows.NEW) for _ in range(min(BULK, count - start))])

    async def fill(self, count: int, state: str = "waiting") -> None:
        await self.close()
        await rows.fill(self.path, count, state)
        await self._open()

    async def start(self) -> None:
        self.ended = 0
        self.working = AsyncExitStack()
        self.working.enter_context(self.store.listening(self._heard))
        room, fill = partial(has_room, self.folder), Results(self.queries.get_many, self.folder / "output").fill
        kinds = {"noop": Handler(noop)}
        self.worker = Worker(self.store, self.peers, self.owner, kinds, SLOTS, room=room, run=prepared(fill))
        group = await self.working.enter_async_context(anyio.create_task_group())
        await group.start(self.worker.run)

    async def stop(self) -> None:
        self.worker.stop()
        await self.working.aclose()

    async def settled(self) -> bool:
        return self.ended >= STARTS.count

    async def _open(self) -> None:
        self.opened = AsyncExitStack()
        database = await self.opened.enter_async_context(open_database(self.path))
        self.store, self.queries = Store(database), Queries(database)
        self.peers = self.opened.enter_context(Peers(self.folder / "servers"))
        bell = self.opened.enter_context(Bell(self.peers.folder, self.peers.uuid, self.store))
        self.peers.at_each_beat = Watch(self.path, bell.tell).look
        self.owner = await self.store.register(self.peers.uuid, os.getpid(), "bench", ["noop"])
        self.group = await self.opened.enter_async_context(anyio.create_task_group())
        self.group.start_soon(partial(self.store.follow_others, bell.rung))
        self.group.start_soon(bell.run)
        await self.store.promote()  # looks through all that is scheduled, as a server does once when it starts

    def _heard(self, changes: Sequence[Change]) -> None:
        self.ended += sum(task is not None and task.ended for _, task in changes)
