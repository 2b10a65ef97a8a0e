"""procrastinate on PostgreSQL: SLOTS tasks at once in this process, LISTEN and NOTIFY on."""

import asyncio
import logging
from typing import Any

import procrastinate
import psycopg

from benchmarks.peers import BULK, PAYLOAD, RESULT, SLOTS, Peer, postgres_url
from benchmarks.work import run

logging.getLogger("procrastinate").setLevel(logging.CRITICAL)

LEFT = "SELECT EXISTS(SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))"


class Adapter(Peer):
    tasks = 1_200
    is_embedded = False

    async def open(self, fresh: bool) -> None:
        connector = procrastinate.PsycopgConnector(conninfo=postgres_url(), max_size=10)
        self.app = procrastinate.App(connector=connector)

        @self.app.task(name="noop")
        async def noop(payload: dict[str, Any], tag: float) -> dict[str, Any]:
            await run(tag)
            return RESULT

        self.noop = noop
        await self.app.open_async()
        if fresh:
            if await self._sql("SELECT to_regclass('procrastinate_jobs')") == [(None,)]:
                await self.app.schema_manager.apply_schema_async()
            await self._sql("TRUNCATE procrastinate_jobs, procrastinate_events, procrastinate_workers CASCADE")

    async def close(self) -> None:
        await self.app.close_async()

    async def create(self, tag: float = 0.0) -> None:
        await self.noop.defer_async(payload=PAYLOAD, tag=tag)

    async def create_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            some = min(BULK, count - start)
            await self.noop.batch_defer_async(*[{"payload": PAYLOAD, "tag": 0.0}] * some)

    async def start(self) -> None:
        work = self.app.run_worker_async(concurrency=SLOTS, install_signal_handlers=False)
        self.running = asyncio.create_task(work)

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running], timeout=10)

    async def settled(self) -> bool:
        return await self._sql(LEFT) == [(False,)]

    async def _sql(self, query: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(postgres_url(), autocommit=True) as db:
            cursor = await db.execute(query)
            return await cursor.fetchall() if cursor.description else []
