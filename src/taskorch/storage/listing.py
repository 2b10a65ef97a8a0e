"""Pages of the tasks that fit some filters, and how many fit.

By arrival, each from where the one before ended; or in any order, each from a number of tasks on.
"""

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskorch.domain.task import Priority, Status, Task
from taskorch.storage.rows import SELECT, at_place, from_row

EXACT_COUNTS = 100_000  # beyond so many stored tasks, filtered counts look at the newest so many

# What a text filter looks into: the words of labels and error, not the JSON around them.
TEXT = """coalesce(name, '') || ' ' ||
  iif(labels IS NULL, '', (SELECT group_concat(value, ' ') FROM json_each(labels))) || ' ' ||
  iif(error IS NULL, '', json_extract(error, '$.reason') || ' ' || json_extract(error, '$.message'))"""
# The folder that a command runs in, or that an outside worker is told: others' payloads may hold anything there.
FOLDER = """CASE WHEN kind = 'command' THEN json_extract(payload, '$.cwd')
  WHEN kind >= 'outside' AND kind < 'outside;' THEN json_extract(payload, '$.work_directory') END"""
COUNTS = "SELECT status, priority, tasks FROM counts"
# What a page can be sorted by. Arrival is the order of creation, whatever the clock said then.
SORTS: Mapping[str, str] = {
    "created_at": "seq",
    "updated_at": "updated_at",
    "priority": "priority",
    "status": "instr('waiting working completed failed cancelled', status)",
    "name": "name",
}


@dataclass(frozen=True, slots=True)
class Filters:
    """All given ones hold together. Times are milliseconds since the epoch."""

    status: Status | None = None
    kind: str | None = None
    priority: Priority | None = None
    label: str | None = None
    text: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    work_directory: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first. `next_seq`: where the next page begins, None on the last one."""

    tasks: list[Task]
    counts: dict[str, int]
    counts_partial: bool
    next_seq: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """By one of SORTS; tasks that are alike in it by their arrival, in the same direction."""

    by: str = "created_at"
    descending: bool = True


@dataclass(frozen=True, slots=True)
class Window:
    """`total`: how many tasks fit, of all or, when it is `partial`, of the newest EXACT_COUNTS."""

    tasks: list[Task]
    total: int
    partial: bool
    has_more: bool


def page(db: sqlite3.Connection, filters: Filters, limit: int, before_seq: int | None) -> Page:
    tasks, next_seq = newest(db, filters, limit, before_seq)
    counts, partial = counted(db, filters)
    return Page(tasks, counts, partial, next_seq)


def newest(
    db: sqlite3.Connection, filters: Filters, limit: int, before_seq: int | None
) -> tuple[list[Task], int | None]:
    """The newest tasks before that place, and where the next page begins, None after the last one."""
    where, values = conditions(filters)
    at = where + (["seq < ?"] if before_seq is not None else [])
    rows = db.execute(
        f"{SELECT}{_where(at)} ORDER BY seq DESC LIMIT ?",
        (*values, *([before_seq] if before_seq is not None else []), limit + 1),
    ).fetchall()
    tasks = [from_row(row) for row in rows[:limit]]
    return tasks, tasks[-1].seq if len(rows) > limit else None


def window(db: sqlite3.Connection, filters: Filters, order: Order, limit: int, offset: int) -> Window:
    """The tasks that come after the first `offset` ones. Any order but that of arrival reads all tasks that fit."""
    where, values = conditions(filters)
    way = "DESC" if order.descending else "ASC"
    found = db.execute(
        f"SELECT seq FROM tasks{_where(where)} ORDER BY {SORTS[order.by]} {way}, seq {way} LIMIT ? OFFSET ?",
        (*values, limit + 1, offset),
    ).fetchall()
    counts, partial = counted(db, filters)
    total = sum(counts.values()) if filters.status is None else counts[filters.status]
    return Window([at_place(db, seq) for (seq,) in found[:limit]], total, partial, len(found) > limit)


def conditions(filters: Filters) -> tuple[list[str], list[Any]]:
    """What a row must fulfil, as SQL over the columns of tasks, and the values in it."""
    wanted = {
        "status = ?": filters.status,
        "kind = ?": filters.kind,
        "priority = ?": filters.priority,
        "created_at > ?": filters.created_after,
        "created_at < ?": filters.created_before,
        "EXISTS (SELECT 1 FROM json_each(labels) WHERE value = ?)": filters.label,
        rf"{TEXT} LIKE ? ESCAPE '\'": _within(filters.text),
        rf"{FOLDER} LIKE ? ESCAPE '\'": _within(filters.work_directory),
    }
    given = {condition: value for condition, value in wanted.items() if value is not None}
    return list(given), list(given.values())


def _within(text: str | None) -> str | None:
    """What LIKE finds a text by, anywhere and in any case."""
    return text and "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def _where(conditions: list[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def counted(db: sqlite3.Connection, filters: Filters) -> tuple[dict[str, int], bool]:
    """Of each status, under the filters other than status; and whether only the newest tasks were looked at."""
    kept = {(status, priority): tasks for status, priority, tasks in db.execute(COUNTS)}
    if filters == Filters(status=filters.status, priority=filters.priority):
        wanted = [p for p in Priority if filters.priority in (None, p)]
        return {status: sum(kept[status, p] for p in wanted) for status in map(str, Status)}, False
    where, values = conditions(replace(filters, status=None))
    rows = db.execute(
        f"SELECT status, count(*) FROM (SELECT * FROM tasks ORDER BY seq DESC LIMIT {EXACT_COUNTS})"
        f"{_where(where)} GROUP BY status",
        values,
    )
    found = dict(rows.fetchall())
    return {status: found.get(status, 0) for status in map(str, Status)}, sum(kept.values()) > EXACT_COUNTS
