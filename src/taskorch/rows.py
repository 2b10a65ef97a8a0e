"""A Task as a row: the one encoder, the one decoder, and loading and saving inside a transaction."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from taskorch.database import Transaction
from taskorch.errors import NotFound
from taskorch.rules import with_values
from taskorch.task import Completed, Error, Failed, Outcome, Priority, Progress, Reason, Status, Task

COLUMNS = tuple(Task.__dataclass_fields__)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM tasks"
BY_SEQ = f"{SELECT} WHERE seq = ? AND id = ?"
BY_ID = f"{SELECT} WHERE id = ?"
INSERT = f"INSERT INTO tasks({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
COMPLETE = """UPDATE tasks SET status = 'completed', owner = NULL, result = ?, progress = NULL, started_at = ?,
  finished_at = ?, updated_at = ?, version = ?
  WHERE seq = ? AND id = ? AND attempt = ? AND version = ? AND owner = ? AND status = 'working'"""
DELETE = "DELETE FROM tasks WHERE seq = ? AND id = ? AND version = ?"
COUNT = "UPDATE counts SET tasks = tasks + ? WHERE status = ? AND priority = ?"
END_ATTEMPT = """UPDATE attempts SET started_at = ?, ended_at = ?, outcome = ?, reason = ?, message = ?, exit_code = ?
  WHERE task = ? AND attempt = ?"""
NOTE = "INSERT INTO events(task, at, event, by, detail) VALUES (?, ?, ?, ?, ?)"

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_STATUSES = {str(status): status for status in Status}
_PRIORITIES = {int(priority): priority for priority in Priority}


def dumps(value: Any) -> str:
    """Compact JSON text. Raises ValueError for NaN and what JSON cannot hold."""
    return _ENCODER.encode(value)


def from_row(row: tuple[Any, ...]) -> Task:
    task = object.__new__(Task)
    values = task.__dict__  # as in rules.with_values: a copy in one step
    values.update(zip(COLUMNS, row, strict=True))
    values["payload"] = json.loads(values["payload"])
    values["status"] = _STATUSES[values["status"]]
    values["priority"] = _PRIORITIES[values["priority"]]
    values["labels"] = tuple(json.loads(values["labels"])) if values["labels"] else ()
    for flag in ("ready", "paused", "delete_requested"):
        values[flag] = bool(values[flag])
    if values["result"] is not None:
        values["result"] = json.loads(values["result"])
    if values["error"] is not None:
        error = json.loads(values["error"])
        values["error"] = Error(Reason(error["reason"]), error["message"], error.get("exit_code"))
    if values["progress"] is not None:
        values["progress"] = Progress(**json.loads(values["progress"]))
    return task


def load(connection: sqlite3.Connection, task_id: str) -> Task:
    """The task with that full id; NotFound when it was removed meanwhile."""
    row = connection.execute(BY_ID, (task_id,)).fetchone()
    if row is None:
        raise NotFound(f"Task {task_id} no longer exists. Call list_tasks to see what there is.")
    return from_row(row)


def held(tx: Transaction, task: Task) -> Task | None:
    """The row of an attempt as it is now, or None when (attempt, owner) is no longer the one that holds it."""
    row = tx.execute(BY_SEQ, (task.seq, task.id)).fetchone()
    if row is None:
        return None
    now = from_row(row)
    same = now.status is Status.WORKING and now.attempt == task.attempt and now.owner == task.owner
    return now if same else None


def complete(tx: Transaction, task: Task, after: Task) -> bool:
    """Write the most frequent end without loading the row; False when anything changed since the claim (but progress).

    `task` is the row as claimed: the fence and its version say that it still is so. Its attempt's row is not written.
    """
    values = (dumps(after.result), after.started_at, after.finished_at, after.updated_at, after.version)
    fence = (task.seq, task.id, task.attempt, task.version, task.owner)
    if tx.execute(COMPLETE, (*values, *fence)).rowcount != 1:
        return False
    changed(tx, task, after)
    return True


def insert(tx: Transaction, task: Task, values: list[Any] | None = None) -> Task:
    """Store a new task; with `seq` 0 it gets the next place in the order of arrival. `values`: encoded beforehand."""
    seq = tx.execute(INSERT, to_values(task) if values is None else values).lastrowid
    return changed(tx, None, with_values(task, seq=seq))


def to_values(task: Task) -> list[Any]:
    """The row of a new task: encoded outside the transaction, which others wait for."""
    values = list(task.__dict__.values())  # in the order of COLUMNS: a dataclass's own
    for place, encode in _ENCODED:
        if values[place] is not None:
            values[place] = encode(values[place])
    values[0] = task.seq or None
    return values


def save(tx: Transaction, before: Task, after: Task) -> Task:
    """Write the columns that the move changed and no others, so that nobody else's edit is undone.

    The row must still be what `before` says: status, attempt and owner are the fence, in the statement itself.
    """
    old, new = before.__dict__, after.__dict__
    # By identity: a move leaves what it does not touch as it is, and Python calls 1, 1.0 and True equal.
    names = tuple(name for name in COLUMNS if new[name] is not old[name])
    if after.status is Status.COMPLETED and before.status is not Status.COMPLETED and "result" not in names:
        names += ("result",)  # None is a result too
    if names:
        values = [_encode(name, new[name], after.status) for name in names]
        if tx.execute(_update(names), (*values, *_fence(before))).rowcount != 1:
            raise NotFound(f"Task {before.label} was changed by another server. Read it again with get_task.")
    return changed(tx, before, after)


def save_all(tx: Transaction, moves: Sequence[tuple[Task, Task]], names: tuple[str, ...]) -> None:
    """Save many moves of one sort, whose rows this transaction has read: `names` are the columns that it changes."""
    values = [
        (*(_encode(name, after.__dict__[name], after.status) for name in names), *_fence(before))
        for before, after in moves
    ]
    tx.executemany(_update(names), values)
    for before, after in moves:
        changed(tx, before, after)


def changed(tx: Transaction, before: Task | None, after: Task) -> Task:
    """Note a change that was written, for the counts and the listeners."""
    tx.changed.append((after.id, after))
    tx.moved.append((before, after))
    return after


def delete(tx: Transaction, task: Task) -> bool:
    """Remove the row with its attempts and events; False when it was changed or removed since it was read."""
    removed = tx.execute(DELETE, (task.seq, task.id, task.version)).rowcount == 1
    if removed:
        tx.changed.append((task.id, None))
        tx.moved.append((task, None))
    return removed


def end_attempts(tx: Transaction, ends: Sequence[tuple[Task, Outcome]]) -> None:
    """Write the ends of attempts that have just been settled, leaving those tasks, into their rows."""
    tx.executemany(END_ATTEMPT, [_attempt_end(after, outcome) for after, outcome in ends])


def note(tx: Transaction, task: Task, event: str, by: str, detail: str | None = None) -> None:
    """Record a change that is neither a start nor an end: who made it and why."""
    tx.execute(NOTE, (task.seq, task.updated_at, event, by, detail))


def keep_counts(tx: Transaction) -> None:
    """Before the commit: bring the counts up to date with what the transaction did, a few statements for all of it."""
    deltas: Counter[tuple[str, int]] = Counter()
    for before, after in tx.moved:
        if before is not None:
            deltas[before.status, before.priority] -= 1
        if after is not None:
            deltas[after.status, after.priority] += 1
    tx.executemany(COUNT, [(n, status, priority) for (status, priority), n in deltas.items() if n])


def _fence(before: Task) -> tuple[Any, ...]:
    return before.seq, before.id, before.status.value, before.attempt, before.owner


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
            return "cancelled", Reason.USER, error.message if error else None, None
        case Failed(reason, message, exit_code):
            return "failed", reason, message, exit_code
        case _:
            return "interrupted", Reason.INTERRUPTED, outcome.message, None


@cache
def _update(names: tuple[str, ...]) -> str:
    # Only names of dataclass fields come in here, never a caller's text.
    sets = ", ".join(f"{name} = ?" for name in names)
    return f"UPDATE tasks SET {sets} WHERE seq = ? AND id = ? AND status = ? AND attempt = ? AND owner IS ?"


def _encode(name: str, value: Any, status: Status) -> Any:
    if name == "result":  # a handler may well return None: JSON null, not "no result"
        return dumps(value) if status is Status.COMPLETED else None
    encoder = _ENCODERS.get(name)
    return encoder(value) if encoder is not None and value is not None else value


def _encode_error(error: Error) -> str:
    body: dict[str, Any] = {"reason": error.reason, "message": error.message}
    return dumps(body if error.exit_code is None else body | {"exit_code": error.exit_code})


def _encode_progress(progress: Progress) -> str:
    return dumps({"value": progress.value, "total": progress.total, "message": progress.message})


# sqlite3 asks a value that is not exactly a str or an int how to store it, which is slow: enums become plain here.
_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "status": lambda status: status.value,
    "priority": int,
    "payload": dumps,
    "labels": lambda labels: dumps(labels) if labels else None,
    "error": _encode_error,
    "progress": _encode_progress,
}
_ENCODED = [(COLUMNS.index(name), encode) for name, encode in _ENCODERS.items()]
