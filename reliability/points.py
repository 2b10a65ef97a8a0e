"""Named points in a server's life: wrapped functions of taskorch, where this process notes, dies or stops.

Production code has no hooks. The journal is one file that every process appends to, a line a write, so that the order
of its lines is the order of what happened.
"""

import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taskorch.domain import readiness
from taskorch.domain.task import Retry, Task
from taskorch.storage import database, schema, store
from taskorch.work import command, peers, spawner, supervised, worker

Action = Literal["kill", "stop", "lose"]  # `lose`: drop the own lock, then stop: others take over from a living server

HUNG_SECONDS = 0.75  # instead of 120: less than a stopped server stays stopped
FIRST_DELAY_SECONDS = 0.1  # of a retry, instead of 2
STRAY_SECONDS = 1.0  # instead of 60


@dataclass(frozen=True, slots=True)
class Fate:
    """What a server does to itself: at the `nth` time that it passes that point."""

    point: str
    nth: int
    action: Action


@dataclass(frozen=True, slots=True)
class Part:
    """One server's part in a run. `folder` holds the state folder, the journal and the programs."""

    folder: Path
    seed: str
    fate: Fate | None
    mutant: str
    slots: int = 4


class Journal:
    """Appends lines: seconds (CLOCK_MONOTONIC), pid, word, task, attempt, detail."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, word: str, task: str = "-", attempt: int = 0, detail: object = "-", pid: int = 0) -> None:
        line = f"{time.monotonic():.6f} {pid or os.getpid()} {word} {task} {attempt} {detail}\n"
        os.write(self._fd, line.encode())


class Victim:
    """This process: its journal, and its fate at the points that it passes."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.journal = Journal(part.folder / "journal")
        self.calm = part.folder / "calm"
        self.lock: Path | None = None  # this server's own
        self._fate = part.fate
        self._passed = 0
        self._gate = threading.Lock()  # points are passed in the loop's thread and in the database's

    def point(self, name: str) -> None:
        """Die or stop here, if that is this server's fate."""
        fate = self._fate
        if fate is None or fate.point != name:
            return
        with self._gate:
            self._passed += 1
            if self._passed < fate.nth or self._fate is None:
                return
            self._fate = None
        if self.calm.exists():
            return
        self.journal.write("point", detail=f"{name.replace(' ', '-')} {fate.action}")
        if fate.action == "lose" and self.lock is not None:
            self.journal.write("lost")
            os.close(os.open(self.lock, os.O_RDONLY))  # which drops the lock: any descriptor would do
        os.kill(os.getpid(), signal.SIGKILL if fate.action == "kill" else signal.SIGSTOP)


def wrap(owner: Any, name: str, before: Callable[..., None] | None = None, after: Any = None) -> None:
    """Call `before(*arguments)` and `after(result, *arguments)` around a function, which must exist."""
    original = getattr(owner, name)

    async def later(*args: Any, **kwargs: Any) -> Any:
        if before:
            before(*args)
        result = await original(*args, **kwargs)
        if after:
            after(result, *args)
        return result

    def now(*args: Any, **kwargs: Any) -> Any:
        if before:
            before(*args)
        result = original(*args, **kwargs)
        if after:
            after(result, *args)
        return result

    wrapped = later if inspect.iscoroutinefunction(original) else now
    setattr(owner, name, staticmethod(wrapped) if inspect.ismethod(original) else wrapped)


def watch(victim: Victim) -> None:
    """Set the points and the journal's lines, and shorten what would make a run long."""
    readiness.USUAL = Retry(first_delay_seconds=FIRST_DELAY_SECONDS)
    worker.HUNG_SECONDS = HUNG_SECONDS
    peers.STRAY_SECONDS = STRAY_SECONDS
    supervised.compiled_shim = lambda _: victim.part.folder / "shim.py"

    def at(name: str) -> Callable[..., None]:
        return lambda *_: victim.point(name)

    _watch_store(victim, at)
    wrap(schema, "migrate", at("migrate"), at("migrated"))
    statements = schema._statements
    schema._statements = lambda text: [s for s in statements(text) if at("migrating")() is None]
    wrap(spawner.Spawner, "start", at("before spawn"), at("before go"))
    wrap(supervised.Supervised, "order", None, at("after go"))
    wrap(worker.Worker, "_take_over", at("take-over"), at("taken over"))
    wrap(command.Command, "inspect", None, at("inspected"))
    wrap(worker.Worker, "_cancel", at("cancel"))
    wrap(worker.Worker, "stop", at("stop"))
    wrap(peers.Peers, "__exit__", at("leaving"), at("left"))

    def entered(server: peers.Peers, *_: object) -> None:
        victim.lock = victim.part.folder / "state" / "servers" / f"{server.uuid}.lock"
        victim.point("entered")

    wrap(peers.Peers, "__enter__", None, entered)


def _watch_store(victim: Victim, at: Callable[[str], Callable[..., None]]) -> None:
    journal = victim.journal

    def claimed(_: object, tasks: Sequence[Task]) -> None:
        for task in tasks:
            journal.write("claim", task.id, task.attempt, task.owner)
        if tasks:
            victim.point("claimed")

    def settled(lost: Sequence[Task], _: object, ends: Sequence[tuple[Task, Any, Any]]) -> None:
        dropped = {(task.id, task.attempt) for task in lost}
        for task, _outcome, _began in ends:
            done = (task.id, task.attempt) not in dropped
            journal.write("settled" if done else "refused", task.id, task.attempt, task.owner)
        victim.point("after settle")

    def adopted(task: Task | None, *_: object) -> None:
        if task:
            journal.write("adopt", task.id, task.attempt, task.owner)
            victim.point("adopted")

    wrap(worker.Worker, "_take", claimed)
    wrap(store.Store, "settle_all", at("before settle"), settled)
    wrap(store.Store, "settle", at("before take-over settle"))
    wrap(store.Store, "adopt", at("before adopt"), adopted)
    wrap(store.Store, "leave", at("leave"))
    wrap(store.Store, "register", None, lambda owner, *_: (journal.write("server", detail=owner), at("registered")()))
    database.Transaction.execute = _execute(victim)  # type: ignore[method-assign]


def _execute(victim: Victim) -> Callable[..., Any]:
    original = database.Transaction.execute

    def execute(self: Any, text: str, *values: Any) -> Any:
        if text != "COMMIT":
            return original(self, text, *values)
        victim.point("before commit")
        done = original(self, text)
        victim.point("after commit")
        return done

    return execute
