"""Order among tasks: who waits for whom, and what a task's end or return means to those that depend on it."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskorch.domain import rules
from taskorch.domain.errors import Conflict
from taskorch.domain.task import Error, OnDependencyFailure, Parents, Reason, Status, Task
from taskorch.storage import bulk, lives
from taskorch.storage.database import Transaction
from taskorch.storage.rows import SELECT, at_place, delete, from_row, load, note, save

BY = "dependency"  # who makes the changes below, in the history
FIRST = 3  # of the tasks that one waits for, as replies name them

LINK = ("parent", "child", "on_failure")
CHILDREN = f"""{SELECT} WHERE seq IN
  (SELECT d.child FROM dependencies d WHERE d.parent IN (SELECT value FROM json_each(?))
   UNION SELECT d.child FROM dependencies d WHERE d.child IN (SELECT value FROM json_each(?))) ORDER BY seq"""
PARENTS = """SELECT max(p.finished_at IS NULL),
  min(CASE WHEN d.on_failure <> 'run' AND (p.status = 'failed' OR p.status = 'cancelled') THEN p.seq END),
  max(d.on_failure)
  FROM dependencies d JOIN tasks p ON p.seq = d.parent WHERE d.child = ?"""
LIVE_CHILDREN = """SELECT c.id, c.name FROM dependencies d JOIN tasks c ON c.seq = d.child
  WHERE d.parent = ? AND c.finished_at IS NULL ORDER BY c.seq LIMIT 4"""
UNFINISHED = """SELECT p.id, p.name, count(*) OVER () FROM dependencies d JOIN tasks p ON p.seq = d.parent
  WHERE d.child = ? AND p.finished_at IS NULL ORDER BY p.seq LIMIT ?"""
COUNT = "SELECT count(*) FROM dependencies WHERE child = ?"
STUCK = f"""{SELECT} WHERE blocked = 1 AND NOT EXISTS (
  SELECT 1 FROM dependencies d JOIN tasks p ON p.seq = d.parent WHERE d.child = tasks.seq AND p.finished_at IS NULL)"""


@dataclass(frozen=True, slots=True)
class Waits:
    """What a blocked task waits for: how many of how many tasks, and the id and name of the first of them."""

    unfinished: int
    of: int
    first: tuple[tuple[str, str | None], ...]


def parents(tx: Transaction, ids: Iterable[str], on_failure: OnDependencyFailure) -> list[Task]:
    """The stored tasks that a new one is to depend on. Raises NotFound, or Conflict if one will never let it start."""
    found = [load(tx, task_id) for task_id in ids]
    for task in found:
        if task.schedule is not None:
            raise Conflict(f"depends_on {task.label} is a schedule, which has no end. Name a task that it created.")
        if task.delete_requested:
            raise Conflict(f"depends_on {task.label} is about to be deleted. Leave it out.")
        if task.status in (Status.FAILED, Status.CANCELLED) and on_failure != "run":
            raise Conflict(
                f"depends_on {task.label} is {task.status} already. Call retry_task(task_id={task.id!r}) first, "
                'or give on_dependency_failure="run" to start all the same.'
            )
    return found


def link(tx: Transaction, child: Task, found: Sequence[Task], on_failure: OnDependencyFailure) -> None:
    """Let a stored task depend on others."""
    bulk.insert(tx, "dependencies", LINK, [(parent.seq, child.seq, on_failure) for parent in found])


def follow(tx: Transaction, now: int) -> None:
    """Before the commit: carry each end and each return to the tasks that depend on it, and on those, at any depth.

    What comes back from an attempt looks anew whether it waits: what it depends on may have been retried meanwhile.
    """
    done = 0
    while done < len(tx.moved):
        moves: Sequence[tuple[Task | None, Task | None]] = tx.moved[done:]
        done = len(tx.moved)
        turned = [(before, after) for before, after in moves if before and after and before.ended != after.ended]
        ended = {after.seq for _, after in turned if after.ended}
        returned = {after.seq for _, after in turned if not after.ended}
        back = {after.seq for before, after in moves if before and after and _is_back(before, after)}
        for child in _children(tx, ended | returned, back):
            _bring_up(tx, child, now)
        for child in _children(tx, returned):
            _bring_back(tx, child, now)


def refuse_retry(task: Task, found: Parents) -> None:
    """Raise Conflict when a task that the task depends on has failed: it would end again at once."""
    if found.failed is not None:
        cause = found.failed.split()[0]
        raise Conflict(
            f"{task.label} cannot run: {found.failed}. Call retry_task(task_id={cause!r}): "
            "what ended because of that comes back with it."
        )


def refuse_delete(tx: Transaction, task: Task) -> None:
    """Raise Conflict when unfinished tasks depend on the task."""
    found = tx.execute(LIVE_CHILDREN, (task.seq,)).fetchall()
    if found:
        names = ", ".join(f"{task_id} '{name}'" if name else task_id for task_id, name in found[:FIRST])
        more = " and more" if len(found) > FIRST else ""
        raise Conflict(
            f"{task.label} cannot be deleted: {names}{more} depend on it and have not ended. Nothing was deleted. "
            "Call cancel_task for it, or for them, first."
        )


def delete_unneeded(tx: Transaction, task: Task) -> bool:
    """Remove the row; False when it was changed since it was read, or an unfinished task depends on it."""
    return not tx.execute(LIVE_CHILDREN, (task.seq,)).fetchone() and delete(tx, task)


def repair(tx: Transaction, now: int) -> None:
    """Let tasks go on that wait for nothing any more. There are none, unless rows were changed by other programs."""
    for row in tx.execute(STUCK).fetchall():
        _bring_up(tx, from_row(row), now)


def waits(db: sqlite3.Connection, tasks: Sequence[Task]) -> Mapping[str, Waits]:
    """What those of the tasks wait for that are blocked, by their ids."""
    found: dict[str, Waits] = {}
    for task in tasks:
        if task.blocked and (rows := db.execute(UNFINISHED, (task.seq, FIRST)).fetchall()):
            (of,) = db.execute(COUNT, (task.seq,)).fetchone()
            found[task.id] = Waits(rows[0][2], of, tuple((task_id, name) for task_id, name, _ in rows))
    return found


def _children(tx: Transaction, of: Collection[int], these: Collection[int] = ()) -> list[Task]:
    """The tasks that depend on some of those, and which of `these` depend on any."""
    if not of and not these:
        return []
    places = json.dumps(sorted(of)), json.dumps(sorted(these))
    return [from_row(row) for row in tx.execute(CHILDREN, places).fetchall()]


def _is_back(before: Task, after: Task) -> bool:
    return before.status is Status.WORKING and after.status is Status.WAITING


def _bring_up(tx: Transaction, child: Task, now: int) -> None:
    """A waiting task goes on waiting, becomes ready, or ends."""
    if child.status is not Status.WAITING:
        return
    after = rules.follow(child, state(tx, child), now)
    if after is child:
        return
    save(tx, child, after)
    if after.ended:
        event = "cancelled" if after.status is Status.CANCELLED else "dependency_failed"
        note(tx, after, event, BY, after.error.message if after.error else None)


def _bring_back(tx: Transaction, child: Task, now: int) -> None:
    """A task that ended only because of what is to run again waits for it once more."""
    after = rules.bring_back(child, state(tx, child), now)
    if after is not child:
        save(tx, child, after)
        note(tx, after, "retried", BY, lives.last_words(child))


def state(tx: Transaction, child: Task) -> Parents:
    """What has become of the tasks that a task depends on, counted from their rows."""
    unfinished, failed, on_failure = tx.execute(PARENTS, (child.seq,)).fetchone()
    if failed is None:
        return Parents(bool(unfinished), None, on_failure or "cancel")
    return Parents(bool(unfinished), _cause(at_place(tx, failed)), on_failure)


def _cause(parent: Task) -> str:
    """What became of a task, in words that begin with its id; where another was the cause of that, that one's."""
    match parent.error:
        case Error(Reason.DEPENDENCY | Reason.DEPENDENCY_FAILED, message):
            return message
        case Error(reason):
            return f"{parent.label} {'failed' if parent.status is Status.FAILED else 'was cancelled'} ({reason})"
        case None:
            return f"{parent.label} {parent.status}"
