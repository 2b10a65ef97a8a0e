"""What outside workers do to tasks: claim the best one that fits, say that they are at it, say how it ended.

One method is one transaction, like in `store`. Whoever names an attempt that is not under way any more changes nothing
and is told what became of it.
"""

import os.path
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskorch.domain import rules
from taskorch.domain.errors import Conflict, InvalidInput
from taskorch.domain.outside import OUTSIDE, OWNER, is_outside, lapses_at
from taskorch.domain.task import Completed, Error, Failed, Progress, Reason, Status, Task, with_values
from taskorch.storage import claims, ends, lapses
from taskorch.storage.database import Database, Transaction
from taskorch.storage.limits import Limits
from taskorch.storage.rows import BY_ID, SELECT, dumps, from_row, load, save

WAITS = (
    f"status = 'waiting' AND kind >= '{OUTSIDE}' AND kind < '{OUTSIDE};'"  # `;` follows `:`; the index says the same
)
DIRECTORY = "json_extract(payload, '$.work_directory')"
FITS = f"""(? IS NULL OR EXISTS (SELECT 1 FROM json_each(labels) WHERE value = ?))
  AND (? IS NULL OR {DIRECTORY} IN (SELECT value FROM json_each(?)))"""
PICK = f"{SELECT} WHERE ready = 1 AND kind = ? AND {FITS} ORDER BY rank DESC, seq LIMIT 1"
KINDS = f"SELECT DISTINCT kind FROM tasks WHERE {WAITS}"
DIRECTORIES = f"SELECT DISTINCT {DIRECTORY} FROM tasks WHERE {WAITS}"
WAITING = f"""SELECT count(*), coalesce(sum(ready), 0), coalesce(sum(blocked + held), 0),
  min(iif({claims.IN_TIME}, run_at, NULL)) FROM tasks
  WHERE {WAITS} AND kind IN (SELECT value FROM json_each(?)) AND {FITS}"""
WORKING = f"SELECT count(*) FROM tasks WHERE status = 'working' AND owner = {OWNER}"
OPEN = f"""SELECT t.id, a.worker, t.started_at, t.claim_expires_at FROM tasks t
  JOIN attempts a ON a.task = t.seq AND a.attempt = t.attempt
  WHERE t.status = 'working' AND t.owner = {OWNER} ORDER BY t.started_at LIMIT ?"""
CLAIMED_BY = "UPDATE attempts SET worker = ?, claim_ms = ? WHERE task = ? AND attempt = ?"
CLAIMED_FOR = "UPDATE attempts SET claim_ms = ? WHERE task = ? AND attempt = ?"
HOW = "SELECT worker, outcome, reason, message FROM attempts WHERE task = ? AND attempt = ?"

Fits = tuple[str | None, ...]  # the values of FITS


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which tasks a worker would take; None: whichever. Of `work_directory` the spelling does not matter."""

    kind: str | None = None
    label: str | None = None
    work_directory: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A task that is now its worker's, and what the attempt before it failed of."""

    task: Task
    last_error: Error | None


@dataclass(frozen=True, slots=True)
class Nothing:
    """Why there was nothing to claim: what waits that fits, what is ready but does not fit, what others work on.

    `ready`: what has come to fit and be ready meanwhile. `behind`: what fits and waits for other tasks or their limit.
    """

    waiting: int
    next_run_at: int | None
    others_ready: int
    working: int
    ready: int = 0
    behind: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The task after its attempt ended, None: it was to be deleted then. `again`: that had been said before."""

    task: Task | None
    again: bool = False


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """An attempt that an outside worker is at. Times are milliseconds."""

    task_id: str
    worker: str
    since: int
    until: int


class OutsideStore:
    """`limits`: as the store's."""

    def __init__(self, database: Database, clock: Callable[[], int], limits: Limits | None = None) -> None:
        self._database = database
        self._limits = limits or {}
        self._now = clock

    async def claim(self, wanted: Wanted, worker: str, claim_ms: int) -> Claimed | Nothing:
        """Give the worker the best ready task that fits, until it has been silent for `claim_ms`."""
        fits = await self._database.read(lambda db: _fits(db, wanted))  # what looks at many rows holds up no writer
        kind, limits = wanted.kind, self._limits
        found = await self._database.write(lambda tx: _claim(tx, kind, fits, worker, claim_ms, limits, self._now()))
        return found or await self._database.read(lambda db: _nothing(db, wanted.kind, fits))

    async def heartbeat(self, task_id: str, attempt: int, told: Mapping[str, Any], claim_ms: int | None) -> Task:
        """Note that the worker is at it. `claim_ms`: the silence that is allowed from now on, None: as before.

        `told`: fields of its progress; of those left out only the message goes. Raises Conflict.
        """
        return await self._database.write(lambda tx: _heartbeat(tx, task_id, attempt, told, claim_ms, self._now()))

    async def end(self, task_id: str, attempt: int, outcome: Completed | Failed) -> Ended:
        """Record how the worker's attempt ended; said again, it changes nothing. Raises Conflict."""
        return await self._database.write(lambda tx: _end(tx, task_id, attempt, outcome, self._now))

    async def open_claims(self, limit: int) -> tuple[int, list[OpenClaim]]:
        """How many attempts outside workers are at, and the oldest of them."""

        def read(db: sqlite3.Connection) -> tuple[int, list[OpenClaim]]:
            return db.execute(WORKING).fetchone()[0], [OpenClaim(*row) for row in db.execute(OPEN, (limit,))]

        return await self._database.read(read)


def _claim(
    tx: Transaction, kind: str | None, fits: Fits, worker: str, claim_ms: int, limits: Limits, now: int
) -> Claimed | None:
    kinds = _kinds(tx) if kind is None else [kind]
    errors: dict[int, Error | None] = {}

    def find() -> list[Task]:
        found = [task for kind in kinds for task in claims.runnable(tx, PICK, (kind, *fits), now)]
        errors.update({task.seq: task.error for task in found})
        return found

    taken = claims.take(tx, OWNER, find, dict.fromkeys(kinds, 0), 1, limits, now)
    if not taken:
        return None
    [task] = taken
    tx.execute(CLAIMED_BY, (worker, claim_ms, task.seq, task.attempt))
    claimed = save(tx, task, with_values(task, claim_expires_at=lapses_at(task, claim_ms, now)))
    return Claimed(claimed, errors[task.seq])


def _nothing(db: sqlite3.Connection, kind: str | None, fits: Fits) -> Nothing:
    kinds = _kinds(db)
    waiting, ready, behind, next_run_at = db.execute(
        WAITING, (dumps(kinds if kind is None else [kind]), *fits)
    ).fetchone()
    _, all_ready, *_ = db.execute(WAITING, (dumps(kinds), *[None] * len(fits))).fetchone()
    return Nothing(waiting, next_run_at, all_ready - ready, db.execute(WORKING).fetchone()[0], ready, behind)


def _kinds(db: sqlite3.Connection) -> list[str]:
    """The kinds of outside workers of which something waits."""
    return [row[0] for row in db.execute(KINDS) if is_outside(row[0])]


def _fits(db: sqlite3.Connection, wanted: Wanted) -> Fits:
    folders = None
    if wanted.work_directory is not None:
        there = _plain(wanted.work_directory)
        spelled = [row[0] for row in db.execute(DIRECTORIES) if isinstance(row[0], str)]
        folders = dumps([path for path in spelled if _plain(path) == there])
    return wanted.label, wanted.label, folders, folders


def _plain(path: str) -> str:
    """A path in its plainest spelling. Files are not looked at: links stay what they are."""
    return os.path.normpath(path).replace("//", "/", 1)


def _heartbeat(
    tx: Transaction, task_id: str, attempt: int, told: Mapping[str, Any], claim_ms: int | None, now: int
) -> Task:
    before = load(tx, task_id)
    if not _is_under_way(before, attempt):
        raise Conflict(_lost(tx, before, attempt))
    if claim_ms is None:
        _, claim_ms = lapses.claim_of(tx, before)
    else:
        tx.execute(CLAIMED_FOR, (claim_ms, before.seq, attempt))
    silent = {"message": None}
    far = replace(before.progress or Progress(0.0), **(silent | dict(told)))
    at = rules.report(before, far, now) if told else before
    return save(tx, before, with_values(at, updated_at=now, claim_expires_at=lapses_at(before, claim_ms, now)))


def _end(tx: Transaction, task_id: str, attempt: int, outcome: Completed | Failed, clock: Callable[[], int]) -> Ended:
    before = load(tx, task_id)
    if _is_under_way(before, attempt):
        ends.settle(tx, [(before, outcome, None)], clock)
        row = tx.execute(BY_ID, (task_id,)).fetchone()
        return Ended(from_row(row) if row else None)
    if _was_said(tx, before, attempt, outcome):
        return Ended(before, again=True)
    raise Conflict(_lost(tx, before, attempt))


def _is_under_way(task: Task, attempt: int) -> bool:
    """Whether the attempt is the one that an outside worker is at: the fence. Raises InvalidInput for other kinds."""
    if not is_outside(task.kind):
        raise InvalidInput(f"{task.label} is of the kind {task.kind!r}, which servers run: no worker claims it.")
    return task.status is Status.WORKING and (task.attempt, task.owner) == (attempt, OWNER)


def _was_said(tx: Transaction, task: Task, attempt: int, outcome: Completed | Failed) -> bool:
    """Whether its worker had said so of this attempt before: the reply may have been lost."""
    _, how, reason, _ = tx.execute(HOW, (task.seq, attempt)).fetchone() or (None,) * 4
    if isinstance(outcome, Completed):
        return how == "completed"
    return how == "cancelled" or (how == "failed" and reason == Reason.ERROR)


def _lost(tx: Transaction, task: Task, attempt: int) -> str:
    """The sentence for an attempt that is not under way."""
    if attempt > task.attempt:
        return f"{task.label} has had {task.attempt} attempts; there is no attempt {attempt}. Nothing was changed."
    which = f"attempt {attempt} of {task.label} is no longer yours"
    _, how, reason, message = tx.execute(HOW, (task.seq, attempt)).fetchone()
    ended = f"it has ended: {how}" + (f" ({reason}: {message})" if reason else "")
    if task.status is Status.WORKING:
        worker, _ = lapses.claim_of(tx, task)
        ended += f"; the task was claimed again by {worker} (attempt {task.attempt})"
    return f"{which}: {ended}. Nothing was changed; stop working on it, and call claim_task for other work."
