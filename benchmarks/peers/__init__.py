"""One file a queue that is measured: the same few methods for each, `Adapter` in each file.

These files and `phases.py` run in the environment of the queue that they measure: they need Python and it alone.
"""

import json
import os
import threading
from pathlib import Path

PAYLOAD = {"k": "x" * 191}
PAYLOAD_JSON = json.dumps(PAYLOAD)  # 200 bytes
RESULT = {"ok": 1}
RESULT_JSON = json.dumps(RESULT)
SLOTS = 8  # tasks that may run at once
BULK = 1000  # tasks in one call


class NotOffered(Exception):
    """The queue has nothing like what is measured; the message says what is missing."""


class Peer:
    """What a queue must offer to be measured. `work.start` is called in each task; a tag is a number that it gets."""

    tasks = 40_000  # of a drain: one to three seconds' worth
    is_shared = True  # other processes can open the same store
    is_embedded = True  # the store is written by this process, so its bytes can be counted

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self, fresh: bool) -> None:
        """Open the store, emptied if `fresh`; start no worker."""
        raise NotImplementedError

    async def close(self) -> None: ...

    async def create(self, tag: float = 0.0) -> None:
        """Enqueue one task, and return when it is as durable as the queue makes it."""
        raise NotImplementedError

    async def create_many(self, count: int) -> None:
        """Enqueue tasks by the queue's own bulk call, BULK at a time. Raises NotOffered."""
        raise NotOffered("no bulk call")

    async def fill(self, count: int, state: str = "waiting") -> None:
        """Have so many more tasks in the store, by any means: waiting, ended or scheduled. Raises NotOffered."""
        if state != "waiting":
            raise NotOffered(f"no way to have {state} tasks")
        try:
            await self.create_many(count)
        except NotOffered:
            for _ in range(count):
                await self.create()

    async def start(self) -> None:
        """Start a worker with SLOTS slots."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End it; tasks may be left waiting."""
        raise NotImplementedError

    async def settled(self) -> bool:
        """Whether every started task has its result stored."""
        return True


class Threaded(Peer):
    """A queue that is worked off by a loop in a thread: `work` runs until `is_stopping`, and sets `is_empty`."""

    async def start(self) -> None:
        self.is_stopping = self.is_empty = False
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    async def stop(self) -> None:
        self.is_stopping = True
        self.thread.join()

    async def settled(self) -> bool:
        return self.is_empty

    def work(self) -> None:
        raise NotImplementedError


def payload(tag: float) -> dict[str, object]:
    return {**PAYLOAD, "tag": tag} if tag else {**PAYLOAD}


def postgres_url() -> str:
    return os.environ["BENCH_POSTGRES_URL"]
