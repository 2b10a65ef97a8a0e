"""A Task as a row: the one encoder, the one decoder, and loading and saving inside a transaction."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from taskorch.domain.errors import NotFound
from taskorch.domain.task import (
    BLANK,
    Error,
    Priority,
    Progress,
    Reason,
    Retry,
    Schedule,
    Status,
    Task,
    of_values,
    with_values,
)
from taskorch.storage import bulk
from taskorch.storage.database import Transaction

COLUMNS = tuple(Task.__dataclass_fields__)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM tasks"
BY_SEQ = f"{SELECT} WHERE seq = ? AND id = ?"
BY_ID = f"{SELECT} WHERE id = ?"
BY_PLACE = f"{SELECT} WHERE seq = ?"
FENCE = ("seq", "id", "status", "attempt", "owner")  # what must still be as the writer last saw it
DELETE = "DELETE FROM tasks WHERE seq = ? AND id = ? AND version = ?"
COUNT = "UPDATE counts SET tasks = tasks + ? WHERE status = ? AND priority = ?"
NOTE = "INSERT INTO events(task, at, event, by, detail) VALUES (?, ?, ?, ?, ?)"

# What the place in the ready index says of a row already, as the table's CHECKs hold: the rest is what a claim reads.
_OF_READY = (
    *("status", "ready", "paused", "blocked", "held", "owner", "claim_expires_at", "schedule", "progress", "result"),
    *("cancel_requested_at", "cancel_reason", "finished_at"),
)
READY_COLUMNS = tuple(name for name in COLUMNS if name not in _OF_READY)

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_STATUSES = {str(status): status for status in Status}
_PRIORITIES = {int(priority): priority for priority in Priority}


def dumps(value: Any) -> str:
    """Compact JSON text. Raises ValueError for NaN and what JSON cannot hold."""
    return _ENCODER.encode(value)


def from_row(row: Sequence[Any]) -> Task:
    values = dict(zip(COLUMNS, row, strict=True))
    values["payload"] = json.loads(values["payload"])
    values["status"] = _STATUSES[values["status"]]
    for flag in ("ready", "paused", "blocked", "held"):
        values[flag] = bool(values[flag])
    if values["result"] is not None:
        values["result"] = json.loads(values["result"])
    if values["progress"] is not None:
        values["progress"] = Progress(**json.loads(values["progress"]))
    if values["schedule"] is not None:
        values["schedule"] = Schedule(**json.loads(values["schedule"]))
    return _task(values)


def from_ready(row: Sequence[Any]) -> Task:
    """A row of the ready index: READY_COLUMNS, its payload decoded."""
    return _task(BLANK.__dict__ | dict(zip(READY_COLUMNS, row, strict=True)))


def _task(values: dict[str, Any]) -> Task:
    """The Task of these values, once what every row has to say is decoded."""
    values["priority"] = _PRIORITIES[values["priority"]]
    values["labels"] = tuple(json.loads(values["labels"])) if values["labels"] else ()
    values["delete_requested"] = bool(values["delete_requested"])
    if values["error"] is not None:
        error = json.loads(values["error"])
        values["error"] = Error(Reason(error["reason"]), error["message"], error.get("exit_code"))
    if values["retry"] is not None:
        values["retry"] = _retry(**json.loads(values["retry"]))
    return of_values(values)


def load(connection: sqlite3.Connection, task_id: str) -> Task:
    """The task with that full id; NotFound when it was removed meanwhile."""
    row = connection.execute(BY_ID, (task_id,)).fetchone()
    if row is None:
        raise NotFound(f"Task {task_id} no longer exists. Call list_tasks to see what there is.")
    return from_row(row)


def at_place(connection: sqlite3.Connection, seq: int) -> Task:
    """The task at that place, which must be there."""
    return from_row(connection.execute(BY_PLACE, (seq,)).fetchone())


def as_stored(connection: sqlite3.Connection, tasks: Sequence[Task]) -> list[Task]:
    """The tasks as they are now; one that was removed meanwhile as it was."""
    rows = [connection.execute(BY_ID, (task.id,)).fetchone() for task in tasks]
    return [from_row(row) if row else task for row, task in zip(rows, tasks, strict=True)]


def records(db: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """What a statement finds, each row by the names of its columns."""
    cursor = db.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def held(tx: Transaction, task: Task) -> Task | None:
    """The row of an attempt as it is now, or None when (attempt, owner) is no longer the one that holds it."""
    row = tx.execute(BY_SEQ, (task.seq, task.id)).fetchone()
    if row is None:
        return None
    now = from_row(row)
    same = now.status is Status.WORKING and now.attempt == task.attempt and now.owner == task.owner
    return now if same else None


def insert_all(tx: Transaction, new: Sequence[tuple[Task, list[Any]]]) -> list[Task]:
    """Store new tasks, each with its encoded row; those with `seq` 0 get the next places in the order of arrival."""
    places = bulk.insert(tx, "tasks", COLUMNS, [values for _, values in new])
    return [changed(tx, None, with_values(task, seq=seq)) for (task, _), seq in zip(new, places, strict=True)]


def to_values(task: Task) -> list[Any]:
    """The row of a new task: encoded outside the transaction, which others wait for."""
    values = encoded(task, COLUMNS)
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
    if names and bulk.update(tx, "tasks", names, FENCE, [(*encoded(after, names), *fence(before))]) != 1:
        raise NotFound(f"Task {before.label} was changed by another server. Read it again with get_task.")
    return changed(tx, before, after)


def save_all(tx: Transaction, moves: Sequence[tuple[Task, Task]], names: tuple[str, ...]) -> None:
    """Save many moves of one sort, whose rows this transaction has read: `names` are the columns that it changes."""
    rows = [(*encoded(after, names), *fence(before)) for before, after in moves]
    bulk.update(tx, "tasks", names, FENCE, rows)
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


def fence(before: Task) -> tuple[Any, ...]:
    return before.seq, before.id, before.status.value, before.attempt, before.owner


def encoded(task: Task, names: tuple[str, ...]) -> list[Any]:
    """The values of these columns as SQLite takes them."""
    held = task.__dict__
    values = [held[name] for name in names]
    for place, encode in _encoders(names):
        if values[place] is not None:
            values[place] = encode(values[place])
    if task.status is Status.COMPLETED and task.result is None and "result" in names:
        values[names.index("result")] = "null"  # a handler may well return None: that is a result
    return values


@cache
def _encoders(names: tuple[str, ...]) -> list[tuple[int, Callable[[Any], Any]]]:
    return [(place, _ENCODERS[name]) for place, name in enumerate(names) if name in _ENCODERS]


def _encode_error(error: Error) -> str:
    body: dict[str, Any] = {"reason": error.reason, "message": error.message}
    return dumps(body if error.exit_code is None else body | {"exit_code": error.exit_code})


def _encode_fields(value: Progress | Retry | Schedule) -> str:
    return dumps(asdict(value))


def _retry(*, on_exit: list[int] | None, fail_on_exit: list[int], **delays: float) -> Retry:
    return Retry(None if on_exit is None else tuple(on_exit), tuple(fail_on_exit), **delays)


# sqlite3 asks a value that is not exactly a str or an int how to store it, which is slow: enums become plain here.
_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "status": lambda status: status.value,
    "priority": int,
    "payload": dumps,
    "result": dumps,
    "labels": lambda labels: dumps(labels) if labels else None,
    "error": _encode_error,
    "progress": _encode_fields,
    "retry": _encode_fields,
    "schedule": _encode_fields,
}
