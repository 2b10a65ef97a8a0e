"""What is done for tasks that wait long: about once a minute, in bounded steps, by the indexes of what waits.

Their rank is raised, so that nobody starves behind better ones; and what is held although its key has room is let in.
A look goes through the first tasks of each kind and level in the order of their arrival, however many wait behind them:
those have later turns anyway.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from taskorch.domain import readiness
from taskorch.domain.task import Priority
from taskorch.storage.database import Transaction
from taskorch.storage.limits import Limits, fill, held_keys, held_kinds, stuck_keys
from taskorch.storage.rows import SELECT, dumps, from_row, save_all

BATCH = 500  # rows that one transaction raises at most, so that others get their turn
FIRST_READY = 1_000  # tasks that a look goes through, of each kind and level
FIRST_HELD = 100  # the same of each key
KEYS = 200  # that a look goes through; the next one goes on behind them

LEVELS = range(int(Priority.HIGH))  # from which there is a level up
READY_KIND = "SELECT min(kind) FROM tasks WHERE ready = 1 AND kind > ?"
FIRST = "SELECT seq, priority, rank, updated_at, run_at FROM tasks"
READY = f"{FIRST} WHERE ready = 1 AND kind = ? AND rank = ? ORDER BY seq LIMIT {FIRST_READY}"
HELD = f"{FIRST} WHERE held = 1 AND concurrency_key = ? AND kind = ? AND rank = ? ORDER BY seq LIMIT {FIRST_HELD}"
# Those that `readiness.aged` raises, which has the last word.
DUE = f"""SELECT seq FROM ({{}})
  WHERE max(updated_at, ifnull(run_at, 0)) + {readiness.AGEING_MS} * (rank + 1 - priority) <= ?"""
READY_DUE, HELD_DUE = DUE.format(READY), DUE.format(HELD)
BY_PLACES = f"{SELECT} WHERE seq IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class Found:
    """The places of tasks whose rank is to rise, and keys that have room for what is held."""

    due: Sequence[int] = ()
    stuck: Sequence[str] = ()

    def steps(self) -> Iterator["Found"]:
        """In parts that a transaction each is right for."""
        if self.stuck:
            yield Found(stuck=self.stuck)
        for start in range(0, len(self.due), BATCH):
            yield Found(due=self.due[start : start + BATCH])


def look(db: sqlite3.Connection, after: str, limits: Limits, now: int) -> tuple[Found, str]:
    """What there is to do, of the keys behind `after`; and the last one of those, '' when there are no more."""
    due = [seq for kind in _ready_kinds(db) for level in LEVELS for (seq,) in db.execute(READY_DUE, (kind, level, now))]
    keys = held_keys(db, after, KEYS)
    for key in keys:
        for kind in held_kinds(db, key):
            due += [seq for level in LEVELS for (seq,) in db.execute(HELD_DUE, (key, kind, level, now))]
    return Found(due, stuck_keys(db, keys, limits)), keys[-1] if len(keys) == KEYS else ""


def do(tx: Transaction, found: Found, limits: Limits, now: int) -> None:
    for key in found.stuck:
        fill(tx, key, limits, now)
    tasks = [from_row(row) for row in tx.execute(BY_PLACES, (dumps(found.due),))]
    moves = [(task, after) for task in tasks if (after := readiness.aged(task, now)) is not task]
    save_all(tx, moves, ("rank",))


def _ready_kinds(db: sqlite3.Connection) -> list[str]:
    found: list[str] = []
    while (kind := db.execute(READY_KIND, (found[-1] if found else "",)).fetchone()[0]) is not None:
        found.append(kind)
    return found
