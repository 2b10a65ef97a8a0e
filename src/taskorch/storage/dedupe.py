"""Repeating a call safely: the same key and payload give the same task, until an hour after it has ended."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from taskorch.domain.errors import Conflict, shown
from taskorch.domain.task import Schedule, Task
from taskorch.storage.database import Transaction
from taskorch.storage.rows import SELECT, from_row

KEPT_MS = 3_600_000

HOLDER = f"{SELECT} WHERE seq = (SELECT task FROM dedupe_keys WHERE key = ?)"
FREE = "DELETE FROM dedupe_keys WHERE key = ?"
HOLD = "INSERT INTO dedupe_keys(key, task) VALUES (?, ?)"


def add_once(tx: Transaction, key: str, task: Task, insert: Callable[[], Task], now: int) -> tuple[Task, bool]:
    """The task that holds the key, and True; or the one that `insert` stores, which holds it from now on, and False.

    Raises Conflict when the holder was created with another kind, payload or schedule.
    """
    if row := tx.execute(HOLDER, (key,)).fetchone():
        holder = from_row(row)
        if holder.finished_at is None or now - holder.finished_at < KEPT_MS:
            _refuse_other(holder, task, key)
            return holder, True
        tx.execute(FREE, (key,))
    stored = insert()
    tx.execute(HOLD, (key, stored.seq))
    return stored, False


def _refuse_other(holder: Task, task: Task, key: str) -> None:
    other_work = holder.kind != task.kind or _canonical(holder.payload) != _canonical(task.payload)
    if other_work or _times(holder) != _times(task):
        what = "kind or payload" if other_work else "schedule, or none"
        raise Conflict(
            f"dedupe_key {shown(key)} belongs to {holder.label} ({holder.status}), which has another {what}. "
            f"Nothing was stored. Use another key for other work, or see that task: get_task(task_id={holder.id!r})."
        )


def _times(task: Task) -> Schedule | None:
    """Its schedule, whenever it was created."""
    return task.schedule and replace(task.schedule, start=None)


def _canonical(payload: Any) -> str:
    """Python calls 1, 1.0 and True equal; JSON does not."""
    return json.dumps(payload, sort_keys=True)
