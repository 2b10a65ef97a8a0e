"""litequeue: a queue without a worker and without fsync. The loop is the least that a user would write."""

import json
import time

from litequeue import LiteQueue

from benchmarks.peers import PAYLOAD_JSON, Threaded, payload
from benchmarks.work import run_blocking

POLL_SECONDS = 0.01  # it wakes nobody


class Adapter(Threaded):
    tasks = 10_000

    async def open(self, fresh: bool) -> None:
        self.queue = LiteQueue(str(self.folder / "lite.db"))

    async def create(self, tag: float = 0.0) -> None:
        self.queue.put(json.dumps(payload(tag)) if tag else PAYLOAD_JSON)

    def work(self) -> None:
        while not self.is_stopping:
            message = self.queue.pop()
            self.is_empty = message is None
            if message is None:
                time.sleep(POLL_SECONDS)
                continue
            run_blocking(json.loads(message.data).get("tag", 0.0))
            self.queue.done(message.message_id, claim_id=message.claim_id)
