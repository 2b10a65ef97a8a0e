"""The obvious code with aiosqlite: a statement at a time, a commit a step, one task a claim; taskorch's rows."""

import asyncio
import json

import aiosqlite

from benchmarks.peers import BULK, PAYLOAD_JSON, RESULT_JSON, SLOTS, Peer, payload, rows
from benchmarks.work import STARTS, run


class Adapter(Peer):
    tasks = 2_500

    async def open(self, fresh: bool) -> None:
        path = self.folder / "taskorch.db"
        if fresh:
            await rows.make(path)
        self.template = rows.template(path)
        self.db = await aiosqlite.connect(path)
        for pragma in rows.PRAGMAS:
            await self.db.execute(f"PRAGMA {pragma}")
        self.lock, self.news, self.stored = asyncio.Lock(), asyncio.Event(), 0

    async def close(self) -> None:
        await self.db.close()

    async def create(self, tag: float = 0.0) -> None:
        async with self.lock:
            text = json.dumps(payload(tag)) if tag else PAYLOAD_JSON
            await self.db.execute(rows.INSERT, self.template.row(payload=text))
            await self.db.commit()
        self.news.set()

    async def create_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            some = [self.template.row() for _ in range(min(BULK, count - start))]
            async with self.lock:
                await self.db.executemany(rows.INSERT, some)
                await self.db.commit()

    async def start(self) -> None:
        self.stored = 0
        self.workers = [asyncio.create_task(self._work()) for _ in range(SLOTS)]

    async def stop(self) -> None:
        for worker in self.workers:
            worker.cancel()
        await asyncio.wait(self.workers, timeout=5)

    async def settled(self) -> bool:
        return self.stored >= STARTS.count

    async def _work(self) -> None:
        while True:
            now = rows.now_ms()
            async with self.lock:
                async with self.db.execute(rows.CLAIM, {"now": now, "limit": 1}) as cursor:
                    found = list(await cursor.fetchall())
                for seq, attempt, _ in found:
                    await self.db.execute(rows.BEGIN_ATTEMPT, (seq, attempt, now))
                await self.db.commit()
            if not found:
                self.news.clear()
                await self.news.wait()
                continue
            [(seq, attempt, text)] = found
            await run(json.loads(text).get("tag", 0.0))
            now = rows.now_ms()
            async with self.lock:
                await self.db.execute(rows.SETTLE, (now, now, RESULT_JSON, seq, attempt))
                await self.db.execute(rows.END_ATTEMPT, (now, seq, attempt))
                await self.db.commit()
            self.stored += 1
