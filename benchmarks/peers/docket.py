"""docket as fastmcp-tasks sets it up: in memory, 10 tasks at once, a look every 50 ms."""

import asyncio
import logging
import time
from datetime import timedelta
from typing import Any

from docket import Docket, Worker

from benchmarks.peers import BULK, PAYLOAD, RESULT, Peer
from benchmarks.work import run

logging.getLogger("docket").setLevel(logging.ERROR)

AT_ONCE = 10
LOOK = timedelta(milliseconds=50)


async def noop(payload: dict[str, Any], tag: float = 0.0) -> dict[str, Any]:
    await run(tag)
    return RESULT


class Adapter(Peer):
    tasks = 400
    is_shared = False
    is_embedded = False

    async def open(self, fresh: bool) -> None:
        self.docket = await Docket(name=f"bench{time.time_ns()}", url="memory://").__aenter__()
        self.docket.register(noop)

    async def close(self) -> None:
        await self.docket.__aexit__(None, None, None)

    async def create(self, tag: float = 0.0) -> None:
        await self.docket.add(noop)(PAYLOAD, tag)

    async def create_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            some = range(min(BULK, count - start))
            await self.docket.add_many([self.docket.call(noop)(PAYLOAD, 0.0) for _ in some])

    async def start(self) -> None:
        worker = Worker(self.docket, concurrency=AT_ONCE, minimum_check_interval=LOOK)
        self.worker = await worker.__aenter__()
        self.running = asyncio.create_task(self.worker.run_forever())

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running], timeout=10)
        await self.worker.__aexit__(None, None, None)
