"""Many tasks at a glance, with their attempts and what they depend on; and what has changed among them since.

The newest `WINDOW` tasks are watched, and what works, however old it is. No index says what changed last (every start
and every end would pay for it), so a look walks that window: a few milliseconds.
"""

import json
import re
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from taskorch.domain.task import Status, Task
from taskorch.storage.limits import Limits
from taskorch.storage.listing import Filters, conditions, counted, newest
from taskorch.storage.rows import SELECT, dumps, from_row, records
from taskorch.storage.situation import Situation, runnable, situation

WINDOW = 5_000
RUNS = 10  # attempts that are told of a task: the newest
MOST = 1_000  # changed rows that are told at once: who missed more begins anew
UNSETTLED = 50  # waiting rows that every look tells anew: why they wait changes without them
LATE_MS = 2_000  # so much later than its own time says a change is on disk at most
REFRESH_MS = 60_000  # so long after everything was loaded the unwatched may have changed too

MARK = re.compile(r"m(\d{1,15})\.(\d{1,15})\.(\d{1,18})\.(\d{1,10})((?:\.\d{1,18}){0,1000})", re.ASCII)
NEWEST = "SELECT coalesce(max(seq), 0) FROM tasks"
# By `+seq` the few rows that work are walked, not all that are older.
CHANGED = f"""{SELECT} WHERE seq > ? AND (updated_at >= ? OR seq > ?)
  UNION ALL {SELECT} WHERE status = 'working' AND +seq <= ?
  UNION ALL {SELECT} WHERE seq IN (SELECT value FROM json_each(?))"""
UNSETTLED_ROWS = f"{SELECT} WHERE seq > ? AND (ready = 1 OR blocked = 1 OR held = 1) ORDER BY seq DESC LIMIT ?"
BEYOND = "SELECT seq FROM tasks WHERE status = 'working' AND +seq <= ? LIMIT 1000"
REMOVED = "SELECT id FROM removed WHERE at >= ?"
ATTEMPTS = """SELECT attempt, started_at, ended_at, outcome, reason FROM attempts
  WHERE task = ? ORDER BY attempt DESC LIMIT ?"""
PARENTS = "SELECT p.id FROM dependencies d JOIN tasks p ON p.seq = d.parent WHERE d.child = ? ORDER BY p.seq LIMIT ?"
MOST_PARENTS = 100
SERVERS = "SELECT count(*) FROM servers"


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where somebody knows the tasks.

    `at`: when that was, `loaded`: when everything was loaded last (ms). `newest`: the latest place. `kinds`: a checksum
    of what servers could run. `beyond`: places before the window, of tasks that worked then.
    """

    at: int
    loaded: int
    newest: int
    kinds: int
    beyond: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"m{'.'.join(map(str, (self.at, self.loaded, self.newest, self.kinds, *self.beyond)))}"


@dataclass(frozen=True, slots=True)
class Overview:
    """`runs`: the attempts of tasks that had several, or wait after the first. `parents`: ids of what tasks depend on.

    `counts`: as for a page; None when nothing can have changed them, or counting would take long. `gone`: ids of tasks
    that are removed, or fit no more. `stale`: too much may have changed, and all is to be loaded anew.
    """

    tasks: Sequence[Task]
    runs: Mapping[str, Sequence[Mapping[str, Any]]]
    parents: Mapping[str, Sequence[str]]
    situation: Situation
    counts: Mapping[str, int] | None
    counts_partial: bool
    mark: Mark
    servers: int
    next_seq: int | None = None
    gone: Sequence[str] = ()
    stale: bool = False


def read_mark(text: str) -> Mark | None:
    """The mark of which that is the text, None if it is of none."""
    found = MARK.fullmatch(text)
    if found is None:
        return None
    at, loaded, newest, kinds = (int(found[place]) for place in range(1, 5))
    return Mark(at, loaded, newest, kinds, tuple(int(seq) for seq in found[5].split(".")[1:]))


def first(
    db: sqlite3.Connection, filters: Filters, limits: Limits, limit: int, before_seq: int | None, now: int
) -> Overview:
    """A page of tasks, newest first. To the first page belong the counts, and what works, however old it is."""
    tasks, next_seq = newest(db, filters, limit, before_seq)
    counts, partial = counted(db, filters) if before_seq is None else (None, False)
    if before_seq is None and next_seq is not None:
        tasks += _working_before(db, filters, next_seq)
    mark = _mark(db, now, now)
    return _overview(db, tasks, limits, mark, counts=counts, counts_partial=partial, next_seq=next_seq)


def since(db: sqlite3.Connection, filters: Filters, limits: Limits, mark: Mark, now: int) -> Overview:
    """The tasks that have changed since the mark, and the ids of those that are gone."""
    here = _mark(db, now, mark.loaded)
    floor, after = here.newest - WINDOW, mark.at - LATE_MS
    rows = db.execute(CHANGED, (floor, after, mark.newest, floor, json.dumps(mark.beyond))).fetchall()
    unsettled = db.execute(UNSETTLED_ROWS, (floor, UNSETTLED + 1)).fetchall()
    removed = [row[0] for row in db.execute(REMOVED, (after,))]
    unwatched = floor > 0 or len(unsettled) > UNSETTLED
    if (
        len(rows) + len(removed) > MOST
        or here.kinds != mark.kinds
        or not mark.loaded <= mark.at <= now  # the clock was put back
        or (unwatched and now - mark.loaded > REFRESH_MS)
    ):
        return _overview(db, [], limits, here, counts=None, counts_partial=False, stale=True)
    changed = {task.seq: task for task in map(from_row, rows + unsettled[:UNSETTLED])}
    fitting = _fitting(db, filters, changed)
    gone = [task.id for seq, task in changed.items() if seq not in fitting] + removed
    told = filters.text is None or (floor <= 0 and (changed or removed))  # counting words walks all that is stored
    counts, partial = counted(db, filters) if told else (None, False)
    tasks = [changed[seq] for seq in sorted(fitting, reverse=True)]
    return _overview(db, tasks, limits, here, counts=counts, counts_partial=partial, gone=gone)


def _has_past(task: Task) -> bool:
    """Whether it has had attempts of which its own times do not tell."""
    return task.attempt > 1 or (task.attempt == 1 and task.status is Status.WAITING)


def _mark(db: sqlite3.Connection, now: int, loaded: int) -> Mark:
    newest: int = db.execute(NEWEST).fetchone()[0]
    beyond = tuple(row[0] for row in db.execute(BEYOND, (newest - WINDOW,)))
    kinds = crc32(dumps(sorted(runnable(db))).encode())
    return Mark(now, loaded, newest, kinds, beyond)


def _overview(db: sqlite3.Connection, tasks: Sequence[Task], limits: Limits, mark: Mark, **more: Any) -> Overview:
    parents = {task.id: [row[0] for row in db.execute(PARENTS, (task.seq, MOST_PARENTS))] for task in tasks}
    return Overview(
        tasks,
        runs={task.id: records(db, ATTEMPTS, (task.seq, RUNS))[::-1] for task in tasks if _has_past(task)},
        parents={task_id: ids for task_id, ids in parents.items() if ids},
        situation=situation(db, [task for task in tasks if task.blocked or task.held], limits),
        mark=mark,
        servers=db.execute(SERVERS).fetchone()[0],
        **more,
    )


def _working_before(db: sqlite3.Connection, filters: Filters, seq: int) -> list[Task]:
    where, values = conditions(filters)
    older = " AND ".join(["status = 'working'", "+seq < ?", *where])
    return [
        from_row(row) for row in db.execute(f"{SELECT} WHERE {older} ORDER BY seq DESC LIMIT {MOST}", (seq, *values))
    ]


def _fitting(db: sqlite3.Connection, filters: Filters, places: Collection[int]) -> set[int]:
    """Those of the places whose tasks fit."""
    where, values = conditions(filters)
    if not where:
        return set(places)
    fits = " AND ".join(["seq IN (SELECT value FROM json_each(?))", *where])
    return {row[0] for row in db.execute(f"SELECT seq FROM tasks WHERE {fits}", (json.dumps([*places]), *values))}
