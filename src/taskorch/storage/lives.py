"""A task's lives: each retry by a client begins another, and what the one before ended as stays known.

Whoever was given a task once (a protocol task's handle) goes on seeing that end. It is kept with the retry's event.
"""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from taskorch.domain.task import Task
from taskorch.storage.rows import BY_ID, COLUMNS, dumps, encoded, from_row

RETRIES = "SELECT at, detail FROM events WHERE task = ? AND event = 'retried' ORDER BY id"
COUNT = "SELECT count(*) FROM events WHERE task = ? AND event = 'retried'"
KEPT = tuple(
    name for name in COLUMNS if name not in ("seq", "id", "kind", "name", "payload", "labels", "trace", "created_at")
)


@dataclass(frozen=True, slots=True)
class Life:
    """The task as it is, or as it was when that life ended. Life 0 began with the task. Times are milliseconds.

    `task` is None when the row cannot be read: a newer taskorch wrote it, or it is damaged.
    """

    number: int
    latest: bool
    task: Task | None
    began_at: int
    updated_at: int
    ended: bool


def last_words(task: Task) -> str:
    """What a life ended as, to be kept with the retry that begins the next one."""
    return dumps(dict(zip(KEPT, encoded(task, KEPT), strict=True)))


def number(db: sqlite3.Connection, task: Task) -> int:
    """Which life the task is in: how often clients retried it."""
    return db.execute(COUNT, (task.seq,)).fetchone()[0]


def recall(db: sqlite3.Connection, task_id: str, wanted: int | None) -> Life | None:
    """That life of the task, the latest if None. None: there is no such task or life, or its end was not kept."""
    row = db.execute(BY_ID, (task_id,)).fetchone()
    if row is None:
        return None
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    retries = db.execute(RETRIES, (values["seq"],)).fetchall()
    life = len(retries) if wanted is None else wanted
    if life > len(retries):
        return None
    began_at = retries[life - 1][0] if life else values["created_at"]
    if life < len(retries):
        if retries[life][1] is None:  # by a server that kept no ends, and gave out no handles either
            return None
        kept: dict[str, Any] = json.loads(retries[life][1])
        values |= {name: value for name, value in kept.items() if name in values}
    return Life(
        number=life,
        latest=life == len(retries),
        task=_read(values),
        began_at=began_at,
        updated_at=values["updated_at"],
        ended=values["finished_at"] is not None,
    )


def _read(values: dict[str, Any]) -> Task | None:
    try:
        return from_row(list(values.values()))
    except (ValueError, KeyError, TypeError):
        return None
