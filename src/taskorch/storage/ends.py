"""How attempts' ends are written: into their tasks and their own rows. The rules say what becomes of the task."""

from collections.abc import Callable, Sequence
from typing import Any

from taskorch.domain import rules
from taskorch.domain.task import Completed, Failed, Outcome, Reason, Status, Task
from taskorch.storage import bulk, dependencies, removed
from taskorch.storage.database import Transaction
from taskorch.storage.rows import FENCE, changed, delete, dumps, fence, held, save

# The last who asked for its end is who asked for its removal: nothing is asked of it afterwards.
WHO = "SELECT by FROM events WHERE task = ? AND event = 'cancel_requested' ORDER BY id DESC LIMIT 1"
End = tuple[Task, Outcome, int | None]  # the task as claimed, how its attempt ended, when it really began (ms)

COMPLETED = ("status", "owner", "result", "progress", "started_at", "finished_at", "updated_at", "version")
ATTEMPT_END = ("started_at", "ended_at", "outcome", "reason", "message", "exit_code")


def settle(tx: Transaction, ends: Sequence[End], clock: Callable[[], int]) -> list[Task]:
    """Record how attempts ended. Those that are no longer their owners' are left as they are, and returned."""
    now = clock()
    usual: list[tuple[Task, Task, Completed]] = []  # by far the most frequent end: the work of a claimed task returned
    others: list[End] = []
    for task, outcome, started_at in ends:
        if isinstance(outcome, Completed) and task.status is Status.WORKING and not _is_special(task):
            usual.append((task, rules.settle(task, outcome, now, started_at), outcome))
        else:
            others.append((task, outcome, started_at))
    if not _complete(tx, usual):
        usual, others = [], list(ends)
    settled: list[tuple[Task, Outcome]] = [(after, outcome) for _, after, outcome in usual]
    lost: list[Task] = []
    for task, outcome, started_at in others:
        after = _settle(tx, task, outcome, started_at, now)
        if after is None:
            lost.append(task)
        elif not after.delete_requested:
            settled.append((after, outcome))
    _end_attempts(tx, settled)
    return lost


def _is_special(task: Task) -> bool:
    """Whether its end changes more columns than COMPLETED."""
    return task.delete_requested or task.claim_expires_at is not None


def _complete(tx: Transaction, ends: Sequence[tuple[Task, Task, Completed]]) -> bool:
    """Write the most frequent ends without loading the rows. False: nothing is written, as some row is not what it was.

    Each end is the task as claimed and as completed: the fence and the version say that nothing but progress was
    written since. The attempts' rows are left to `_end_attempts`.
    """
    rows = [
        (
            *("completed", None, outcome.text or dumps(after.result), None),
            *(after.started_at, after.finished_at, after.updated_at, after.version),
            *(*fence(before), before.version),
        )
        for before, after, outcome in ends
    ]
    tx.execute("SAVEPOINT ends")
    all_are = bulk.update(tx, "tasks", COMPLETED, (*FENCE, "version"), rows) == len(rows)
    if not all_are:
        tx.execute("ROLLBACK TO ends")
    tx.execute("RELEASE ends")
    for before, after, _ in ends if all_are else ():
        changed(tx, before, after)
    return all_are


def _settle(tx: Transaction, task: Task, outcome: Outcome, started_at: int | None, now: int) -> Task | None:
    """The task that it leaves (already deleted, if that was requested); None: it is not ours."""
    before = held(tx, task)
    if before is None:
        return None
    after = rules.settle(before, outcome, now, started_at)
    if after.delete_requested:
        (by,) = tx.execute(WHO, (before.seq,)).fetchone()  # before it goes, its events with it
        save(tx, before, after)
        tx.changed.pop()  # nobody will find it so
        dependencies.follow(tx, now)  # what was retried meanwhile may wait for it again
        delete(tx, after)
        removed.note(tx, before, by, now)
        return after
    return save(tx, before, after)


def _end_attempts(tx: Transaction, ends: Sequence[tuple[Task, Outcome]]) -> None:
    """Write the ends of attempts that have just been settled, leaving those tasks, into their rows."""
    rows = [_attempt_end(after, outcome) for after, outcome in ends]
    bulk.update(tx, "attempts", ATTEMPT_END, ("task", "attempt"), rows)


def _attempt_end(after: Task, outcome: Outcome) -> tuple[Any, ...]:
    """What the attempt's row gets to say, and which one it is."""
    ended = after.finished_at or after.updated_at
    return after.started_at, ended, *_how(after, outcome), after.seq, after.attempt


def _how(after: Task, outcome: Outcome) -> tuple[str, str | None, str | None, int | None]:
    """The outcome's name, reason, message, exit code."""
    match outcome:
        case Completed():
            return "completed", None, None, None
        case _ if after.status is Status.CANCELLED:
            error = after.error
            return "cancelled", Reason.USER.value, error.message if error else None, None
        case Failed(reason, message, exit_code):
            return "failed", reason.value, message, exit_code
        case _:
            return "interrupted", Reason.INTERRUPTED.value, outcome.message, None
