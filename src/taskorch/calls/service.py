"""What calls work with, and what they share: resolving, viewing, waiting."""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from taskorch.calls.replies import View
from taskorch.calls.waits import TAIL_BYTES, TAILS, Tail
from taskorch.domain.errors import NotFound
from taskorch.domain.kind import Kind
from taskorch.domain.task import HIDDEN, OnServerExit, Status, Task
from taskorch.storage.ids import FULL_ID, undressed
from taskorch.storage.outside import OutsideStore
from taskorch.storage.queries import Queries
from taskorch.storage.situation import Situation
from taskorch.storage.store import Change, Store
from taskorch.work import output

CORE, WORKER, BOARD = "core", "worker", "board"  # toolsets; every server has the first
TELL_SECONDS = 5.0  # how often a wait says that it still waits
TELL_PAUSE_SECONDS = 1.0  # and it says so no more often, however much happens

Tell = Callable[[float, float, str], Awaitable[None]]  # progress of a call: value, total, message


@dataclass(frozen=True)
class Pool:
    """What this process runs. `busy`: attempts under way; `silent`: servers that do not respond, seconds by pid."""

    slots: int
    busy: Callable[[], int]
    silent: Callable[[], Mapping[int, float]]
    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=time.process_time)


@dataclass(frozen=True)
class Service:
    """What calls are made with. `pool`: None in a process that runs nothing, such as the command line.

    `toolsets`: what else it offers than the tools that every server has. `fill` puts the results of other tasks into a
    payload that takes them, or raises InvalidInput.
    """

    store: Store
    queries: Queries
    outside: OutsideStore
    kinds: Mapping[str, Kind]
    output_folder: Path
    version: str
    pool: Pool | None
    timeout_seconds: float
    on_server_exit: OnServerExit
    wait_cap_seconds: float
    fill: Callable[[Task], Awaitable[Task]]
    toolsets: Collection[str] = ()

    async def view(self, tasks: Sequence[Task] = ()) -> View:
        """What replies need to know of this moment, to tell of these tasks why they wait."""
        return self.view_of(await self.queries.situation([task for task in tasks if task.blocked or task.held]))

    async def seen(self, reference: str) -> tuple[Task, View]:
        """The task that is meant, and what a reply needs to tell of it. Raises NotFound, InvalidInput."""
        task, now = await self.queries.seen(reference)
        return task, self.view_of(now)

    def view_of(self, now: Situation) -> View:
        """The same of what has been read with the tasks."""
        return View(self.store.now(), now.kinds, self.wait_cap_seconds, now.waits)

    def shown(self, task: Task) -> Mapping[str, Any]:
        """The payload as replies may show it: of a recipe that this server does not know, the names alone."""
        if kind := self.kinds.get(task.kind):
            return kind.shown(task.payload)
        return dict.fromkeys(task.payload, HIDDEN) if task.is_command else task.payload

    async def stored(self, references: Sequence[str]) -> tuple[list[str], list[str]]:
        """The ids that are meant, each once, and the full ids that are no longer stored.

        Raises NotFound if nothing is left, or for a name that nothing bears.
        """
        ids: list[str] = []
        gone: list[str] = []
        for reference in dict.fromkeys(references):
            try:
                ids.append((await self.queries.resolve(reference)).id)
            except NotFound:
                task_id = undressed(reference)
                if not FULL_ID.fullmatch(task_id) or len(references) == 1:
                    raise
                gone.append(task_id)
        if not ids:
            raise NotFound(f"None of them is stored any more: {', '.join(gone[:5])}. Call list_tasks to see ids.")
        return list(dict.fromkeys(ids)), list(dict.fromkeys(gone))

    async def wait_until(
        self, done: Callable[[Sequence[Task]], bool], task_ids: Sequence[str], seconds: float, tell: Tell
    ) -> list[Task]:
        """Wait until `done` holds for the tasks as stored, `seconds` at most; those still stored, as they are then.

        A task that is deleted meanwhile is left out. Cancelling the wait changes nothing.
        """
        changed = anyio.Event()
        wanted = frozenset(task_ids)

        def heard(changes: Sequence[Change]) -> None:
            if not changes or any(task_id in wanted for task_id, _ in changes):
                changed.set()

        began = anyio.current_time()
        told = -TELL_PAUSE_SECONDS
        with self.store.listening(heard):
            while True:
                changed = anyio.Event()  # before looking: what comes in between is not missed
                tasks = await self.queries.get_many(task_ids)
                waited = anyio.current_time() - began
                if done(tasks) or waited >= seconds:
                    return tasks
                if waited - told >= TELL_PAUSE_SECONDS:
                    told = waited
                    ended = sum(task.ended for task in tasks)
                    await tell(round(waited, 2), seconds, f"{ended} of {len(tasks)} tasks have ended")
                with anyio.move_on_after(min(seconds - waited, TELL_SECONDS)):
                    await changed.wait()

    async def tails(self, tasks: Sequence[Task]) -> dict[str, Tail]:
        """The last output of commands that have started, a fair share of the reply each; the first few are enough."""
        commands = [task for task in tasks if task.is_command and task.attempt > 0][:TAILS]
        share = (TAIL_BYTES // max(1, len(commands)) - 64) * 3 // 4  # what `read` makes TAIL_BYTES of, at most
        return await anyio.to_thread.run_sync(
            lambda: {task.id: _tail(self.output_folder, task, share) for task in commands}
        )


def _tail(folder: Path, task: Task, share: int) -> Tail:
    where = output.attempt_folder(folder, task.id, task.attempt)
    _, last = output.activity(where)
    idle = round(max(0.0, time.time() - last), 1) if last is not None and task.status is Status.WORKING else None
    return Tail(output.read(where, max_bytes=share).text.rstrip("\n"), idle)


def missing(task_ids: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    stored = {task.id for task in tasks}
    return [task_id for task_id in task_ids if task_id not in stored]
