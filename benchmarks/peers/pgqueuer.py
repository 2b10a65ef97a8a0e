"""pgqueuer on PostgreSQL through asyncpg: batches of SLOTS, a worker in this process."""

import asyncio
import contextlib
import json
import logging
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from benchmarks.peers import BULK, PAYLOAD_JSON, SLOTS, Peer, postgres_url
from benchmarks.work import run

logging.getLogger("pgqueuer").setLevel(logging.CRITICAL)

PAYLOAD = PAYLOAD_JSON.encode()


class Adapter(Peer):
    tasks = 10_000
    is_embedded = False

    async def open(self, fresh: bool) -> None:
        self.db = await asyncpg.connect(postgres_url())
        self.queries = Queries(AsyncpgDriver(self.db))
        if fresh:
            with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.DuplicateTableError):
                await self.queries.install()
            await self.db.execute("TRUNCATE pgqueuer, pgqueuer_log")

    async def close(self) -> None:
        await self.db.close()

    async def create(self, tag: float = 0.0) -> None:
        await self.queries.enqueue("noop", json.dumps(tag).encode() + PAYLOAD if tag else PAYLOAD)

    async def create_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            some = min(BULK, count - start)
            await self.queries.enqueue(["noop"] * some, [PAYLOAD] * some, [0] * some)

    async def start(self) -> None:
        self.worker_db = await asyncpg.connect(postgres_url())
        self.worker = PgQueuer(AsyncpgDriver(self.worker_db))

        @self.worker.entrypoint("noop")
        async def noop(job: Any) -> None:
            await run(float(job.payload[: job.payload.index(b"{")] or 0))

        self.running = asyncio.create_task(self.worker.run(batch_size=SLOTS, max_concurrent_tasks=None))

    async def stop(self) -> None:
        self.worker.shutdown.set()
        await asyncio.wait([self.running], timeout=10)
        await self.worker_db.close()

    async def settled(self) -> bool:
        return not await self.db.fetchval("SELECT EXISTS(SELECT 1 FROM pgqueuer)")
