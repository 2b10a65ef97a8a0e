"""Repeating a call safely: the same key and payload give the same task, until an hour after it has ended."""

import json
from dataclasses import replace
from typing import Any

from taskorch.domain.errors import Conflict, shown
from taskorch.domain.task import NewTask, Schedule, Task
from taskorch.storage.database import Transaction
from taskorch.storage.rows import SELECT, from_row

KEPT_MS = 3_600_000

HOLDER = f"{SELECT} WHERE seq = (SELECT task FROM dedupe_keys WHERE key = ?)"
FREE = "DELETE FROM dedupe_keys WHERE key = ?"
HOLD = "INSERT INTO dedupe_keys(key, task) VALUES (?, ?)"


def holder(tx: Transaction, key: str, new: NewTask, now: int) -> Task | None:
    """The task that holds the key; None: nobody does any more.

    Raises Conflict when the holder was created with another kind, payload or schedule.
    """
    row = tx.execute(HOLDER, (key,)).fetchone()
    if row is None:
        return None
    found = from_row(row)
    if found.finished_at is None or now - found.finished_at < KEPT_MS:
        _refuse_other(found, new, key)
        return found
    tx.execute(FREE, (key,))
    return None


def hold(tx: Transaction, key: str, task: Task) -> None:
    """Let a stored task hold a key that is free."""
    tx.execute(HOLD, (key, task.seq))


def _refuse_other(found: Task, new: NewTask, key: str) -> None:
    other_work = found.kind != new.kind or _canonical(found.payload) != _canonical(new.payload)
    if other_work or _times(found.schedule) != _times(new.schedule):
        what = "kind or payload" if other_work else "schedule, or none"
        raise Conflict(
            f"dedupe_key {shown(key)} belongs to {found.label} ({found.status}), which has another {what}. "
            f"Nothing was stored. Use another key for other work, or see that task: get_task(task_id={found.id!r})."
        )


def _times(schedule: Schedule | None) -> Schedule | None:
    """A schedule, whenever it was created."""
    return schedule and replace(schedule, start=None)


def _canonical(payload: Any) -> str:
    """Python calls 1, 1.0 and True equal; JSON does not."""
    return json.dumps(payload, sort_keys=True)
