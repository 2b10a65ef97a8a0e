"""huey's SqliteHuey with its defaults (WAL, a synced commit per operation), worker threads in this process."""

import logging
from typing import Any

from huey import SqliteHuey

from benchmarks.peers import PAYLOAD, RESULT, SLOTS, Peer
from benchmarks.work import STARTS, run_blocking

logging.getLogger("huey").setLevel(logging.ERROR)


class Adapter(Peer):
    tasks = 4_000

    async def open(self, fresh: bool) -> None:
        self.huey = SqliteHuey(filename=str(self.folder / "huey.db"))

        @self.huey.task()
        def noop(payload: dict[str, Any], tag: float = 0.0) -> dict[str, Any]:
            run_blocking(tag)
            return RESULT

        self.noop = noop

    async def create(self, tag: float = 0.0) -> None:
        self.noop(PAYLOAD, tag)

    async def start(self) -> None:
        self.consumer = self.huey.create_consumer(workers=SLOTS, worker_type="thread")
        self.consumer.start()

    async def stop(self) -> None:
        self.consumer.stop(graceful=True)

    async def settled(self) -> bool:
        return self.huey.storage.result_store_size() >= STARTS.count
