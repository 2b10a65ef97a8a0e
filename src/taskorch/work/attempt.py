"""What a kind sees of the work it runs: one attempt, how it may be asked to end, and what it may leave behind."""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, IntEnum
from typing import Protocol

from taskorch.domain.kind import Kind as TaskKind
from taskorch.domain.task import COMMAND, Cancelled, Failed, Interrupted, Outcome, Progress, Reason, Task


class Ending(IntEnum):
    """Why a running attempt is asked to end before its time. The higher one decides."""

    STOP = 1  # this server stops
    CANCEL = 2  # a client asked
    LOST = 3  # it is no longer ours: let go, signal nothing


class Remains(Enum):
    """What a dead server left of an attempt."""

    NOTHING = "it was running and is gone"
    ADOPTABLE = "it runs on, or has left its end on record"
    NEVER_BEGUN = "it had not begun"
    UNKNOWN = "it may still run"  # never start it again by itself


def unbegun(why: Ending) -> Outcome | None:
    """How an attempt ends that is asked to before it begins. None: it is not ours to say."""
    match why:
        case Ending.CANCEL:
            return Cancelled("it had not begun")
        case Ending.STOP:
            return Interrupted("the server stopped before it began")
        case Ending.LOST:
            return None


def left_as(remains: Remains) -> Outcome:
    """How an attempt ended whose server died."""
    match remains:
        case Remains.NEVER_BEGUN:
            return Interrupted("its server died before it began")
        case Remains.UNKNOWN:
            return Failed(Reason.WORKER_LOST, "its server died; what it started may still run", retryable=False)
        case _:
            return Failed(Reason.WORKER_LOST, "the server that ran it died")


class Attempt:
    """One start of a task, as its kind sees it."""

    def __init__(self, task: Task, report: Callable[["Attempt"], None], adopted: bool = False) -> None:
        self.task = task
        self.adopted = adopted
        self.ending: Ending | None = None
        self.stopping = False  # whatever else was wished
        self.latest: Progress | None = None
        self._report = report
        self._on_end: Callable[[], None] | None = None

    def progress(self, progress: Progress) -> None:
        """Note how far it is; written a few times a second at most. From any thread."""
        self.latest = progress
        self._report(self)

    def end(self, why: Ending) -> None:
        """Ask it to end. Said again, it changes nothing."""
        known = self.ending is not None and why <= self.ending and (why is not Ending.STOP or self.stopping)
        self.ending = max(why, self.ending or why)
        self.stopping = self.stopping or why is Ending.STOP
        if self._on_end and not known:
            self._on_end()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` at each new wish to end, at once if there was one already."""
        self._on_end = callback
        if self.ending is not None:
            callback()


class Kind(TaskKind, Protocol):
    """A sort of work that this server can run."""

    async def run(self, attempt: Attempt) -> Outcome | None:
        """Do the work. None: it goes on without us (let go), so nothing is settled."""
        ...

    def has_ended(self, task: Task) -> bool:
        """Whether it has left its end on record, whoever owns it."""
        ...

    async def inspect(self, task: Task) -> Remains:
        """What is left of an attempt whose server died."""
        ...


Run = Callable[[Kind, Attempt], Awaitable[Outcome | None]]  # what an attempt is, from its begin to its outcome


async def run(kind: Kind, attempt: Attempt) -> Outcome | None:
    """An attempt: the kind does it, unless it was asked to end before it began."""
    return unbegun(attempt.ending) if attempt.ending and not attempt.adopted else await kind.run(attempt)


def prepared(prepare: Callable[[Attempt], Awaitable[Outcome | None]]) -> Run:
    """An attempt before which something is to be done, which may end it."""

    async def run_prepared(kind: Kind, attempt: Attempt) -> Outcome | None:
        if attempt.ending or attempt.adopted:
            return await run(kind, attempt)
        return await prepare(attempt) or await kind.run(attempt)

    return run_prepared


def kind_of(task: Task, known: Mapping[str, Kind]) -> Kind | None:
    """What can run a task, or take it over: for that, a recipe that is not known is a command like any other."""
    return known.get(task.kind) or (known.get(COMMAND) if task.is_command else None)
