"""Writing a past: tasks whose whole lives are told with their times, stored by the same rules as any others."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from taskorch.domain import rules
from taskorch.domain.task import Completed, NewTask, Outcome, Task
from taskorch.storage.database import Database
from taskorch.storage.rows import insert_all, load, to_values
from taskorch.storage.store import Store
from taskorch.work.output import attempt_folder

HEAD_BYTES = 262_144  # what a supervisor keeps of long output: its first bytes,
SEGMENT_BYTES = 393_216  # and its last ones, in two files of this size at most
PAUSE_MS = 40  # between that a task may start and that it starts


def at(text: str) -> int:
    """Milliseconds since the epoch of a time in UTC, like 2026-03-02T09:00:00."""
    return round(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


@dataclass(frozen=True)
class Try:
    """One attempt: how long it took, how it ended, what it wrote, after how long a queue, on which server."""

    seconds: float
    outcome: Outcome | None = None
    output: str = ""
    queued: float = 0
    server: int = 1


class World:
    """The store under a clock that goes where the story is. Tasks must come in the order of their creation."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.now = 0
        self.store = Store(database, lambda: self.now)
        self._database = database
        self._folder = folder
        self._random = Random(42)

    async def create(self, when: int, kind: str, name: str | None, **wishes: Any) -> Task:
        """A new task with an id that is the same every time."""
        self.now = when
        usual = {"payload": {}, "max_attempts": 1 if kind == "command" else 3, "timeout_seconds": 3600.0}
        new = NewTask(kind=kind, name=name, **{**usual, **wishes})
        task_id = "t" + "".join(self._random.choices("0123456789abcdefghjkmnpqrstvwxyz", k=16))
        task = rules.create(new, seq=0, task_id=task_id, now=when)
        return (await self._database.write(lambda tx: insert_all(tx, [(task, to_values(task))])))[0]

    async def start(self, task: Task, queued: float = 0, server: int = 1) -> Task:
        """Let it begin as soon as it may, or after so many seconds in the queue."""
        self.now = max(self.now, task.run_at or 0) + PAUSE_MS + round(queued * 1000)
        await self.store.promote()
        (claimed,) = await self.store.claim(server, {task.kind: 0}, 1)
        assert claimed.id == task.id, f"{claimed.label} was ready before {task.label}"
        return claimed

    async def end(self, task: Task, seconds: float, outcome: Outcome | None = None, output: str = "") -> Task:
        """Let the attempt end after so long; without an outcome it completes."""
        if task.kind == "command":
            self._write(task, output.encode())
            outcome = outcome or Completed({"exit_code": 0, "output_bytes": len(output.encode())})
        self.now = (task.started_at or 0) + round(seconds * 1000)
        assert await self.store.settle(task, outcome or Completed({"done": True}))
        return await self.stored(task)

    async def live(self, task: Task, tries: Sequence[Try]) -> Task:
        """One attempt after the other."""
        for attempt in tries:
            working = await self.start(task, attempt.queued, attempt.server)
            task = await self.end(working, attempt.seconds, attempt.outcome, attempt.output)
        return task

    async def stored(self, task: Task) -> Task:
        return await self._database.read(lambda db: load(db, task.id))

    def _write(self, task: Task, data: bytes) -> None:
        """The output as a supervisor leaves it: of what is too long, the middle is missing."""
        folder = attempt_folder(self._folder, task.id, task.attempt)
        folder.mkdir(mode=0o700, parents=True)
        (folder / "output").write_bytes(data[:HEAD_BYTES])
        for start in list(range(HEAD_BYTES, len(data), SEGMENT_BYTES))[-2:]:
            (folder / f"output.{start}").write_bytes(data[start : start + SEGMENT_BYTES])
