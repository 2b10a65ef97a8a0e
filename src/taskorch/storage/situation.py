"""What tells why tasks wait: what the servers can run, whom blocked tasks wait for, who uses up a limit."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from taskorch.domain.task import Task
from taskorch.storage.dependencies import Waits, waits
from taskorch.storage.limits import Full, Limits, full

RUNNABLE = "SELECT DISTINCT value FROM servers, json_each(servers.kinds)"


@dataclass(frozen=True, slots=True)
class Situation:
    """`kinds`: what the noted servers can run. `waits`: what blocked and held tasks wait for, by their ids."""

    kinds: Collection[str]
    waits: Mapping[str, Waits | Full]


def runnable(db: sqlite3.Connection) -> set[str]:
    """The kinds that the noted servers can run."""
    return {row[0] for row in db.execute(RUNNABLE)}


def situation(db: sqlite3.Connection, tasks: Sequence[Task], limits: Limits) -> Situation:
    held = [(task.id, task.concurrency_key) for task in tasks if task.held]
    used_up = {task_id: full(db, key, limits) for task_id, key in held if key}
    return Situation(runnable(db), {**waits(db, tasks), **used_up})
