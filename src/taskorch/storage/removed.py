"""What became of tasks that are no longer stored: when they were removed and by whom, for a while."""

import sqlite3
from collections.abc import Sequence

from taskorch.domain.task import Task
from taskorch.storage import dependencies
from taskorch.storage.database import Transaction

RETENTION = ""  # who removed it, where no client did: a client's name is never empty
KEPT_MS = 30 * 86_400_000
MOST = 10_000  # notes kept

NOTE = "INSERT OR REPLACE INTO removed(id, name, at, by) VALUES (?, ?, ?, ?)"
FIND = """SELECT id, strftime('%Y-%m-%dT%H:%M:%SZ', at / 1000, 'unixepoch'), by
  FROM removed WHERE id = ? OR name = ? ORDER BY at DESC LIMIT 1"""
PRUNE = """DELETE FROM removed WHERE at < ? OR at <
  (SELECT coalesce(min(at), 0) FROM (SELECT at FROM removed ORDER BY at DESC LIMIT ?))"""


def note(tx: Transaction, task: Task, by: str, now: int) -> None:
    """Remember that the task was removed by a client of that name, or by RETENTION."""
    tx.execute(NOTE, (task.id, task.name, now, by))


def told(db: sqlite3.Connection, reference: str) -> str:
    """A sentence about the task that bore this id or name and is no longer stored; nothing if none is known."""
    row = db.execute(FIND, (reference, reference)).fetchone()
    if row is None:
        return ""
    task_id, when, by = row
    which = f" ({task_id})" if task_id != reference else ""
    how = "its retention ended" if by == RETENTION else f"deleted by {by}"
    return f" It was removed at {when}{which}: {how}."


def retire(tx: Transaction, tasks: Sequence[Task], now: int) -> int:
    """Remove ended tasks, but not what was retried since it was read, nor whose results others still wait for."""
    gone = [task for task in tasks if dependencies.delete_unneeded(tx, task)]
    for task in gone:
        note(tx, task, RETENTION, now)
    return len(gone)


def prune(tx: Transaction, now: int) -> None:
    """Forget what was removed long ago, or before the newest ones."""
    tx.execute(PRUNE, (now - KEPT_MS, MOST))
