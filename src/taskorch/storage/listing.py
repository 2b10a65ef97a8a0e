"""A page of the tasks that fit some filters, newest first, and how many fit of each status."""

import re
import sqlite3
from dataclasses import dataclass
from typing import Any

from taskorch.domain.task import Priority, Status, Task
from taskorch.storage.rows import SELECT, from_row

EXACT_COUNTS = 100_000  # beyond so many stored tasks, filtered counts look at the newest so many

# What a text filter looks into: the words of labels and error, not the JSON around them.
TEXT = """coalesce(name, '') || ' ' ||
  iif(labels IS NULL, '', (SELECT group_concat(value, ' ') FROM json_each(labels))) || ' ' ||
  iif(error IS NULL, '', json_extract(error, '$.reason') || ' ' || json_extract(error, '$.message'))"""
COUNTS = "SELECT status, priority, tasks FROM counts"


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


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first. `next_seq`: where the next page begins, None on the last one."""

    tasks: list[Task]
    counts: dict[str, int]
    counts_partial: bool
    next_seq: int | None


def page(db: sqlite3.Connection, filters: Filters, limit: int, before_seq: int | None) -> Page:
    where, values = conditions(filters)
    at = where + (["seq < ?"] if before_seq is not None else [])
    rows = db.execute(
        f"{SELECT}{_where(at)} ORDER BY seq DESC LIMIT ?",
        (*values, *([before_seq] if before_seq is not None else []), limit + 1),
    ).fetchall()
    tasks = [from_row(row) for row in rows[:limit]]
    counts, partial = counted(db, filters)
    return Page(tasks, counts, partial, tasks[-1].seq if len(rows) > limit else None)


def conditions(filters: Filters) -> tuple[list[str], list[Any]]:
    """What a row must fulfil, as SQL over the columns of tasks, and the values in it."""
    text = filters.text and "%" + re.sub(r"([\\%_])", r"\\\1", filters.text) + "%"
    wanted = {
        "status = ?": filters.status,
        "kind = ?": filters.kind,
        "priority = ?": filters.priority,
        "created_at > ?": filters.created_after,
        "created_at < ?": filters.created_before,
        "EXISTS (SELECT 1 FROM json_each(labels) WHERE value = ?)": filters.label,
        rf"{TEXT} LIKE ? ESCAPE '\'": text,
    }
    given = {condition: value for condition, value in wanted.items() if value is not None}
    return list(given), list(given.values())


def _where(conditions: list[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def counted(db: sqlite3.Connection, filters: Filters) -> tuple[dict[str, int], bool]:
    """Of each status, under the filters other than status; and whether only the newest tasks were looked at."""
    kept = {(status, priority): tasks for status, priority, tasks in db.execute(COUNTS)}
    others = Filters(
        None, filters.kind, filters.priority, filters.label, filters.text, filters.created_after, filters.created_before
    )
    where, values = conditions(others)
    if not where:
        return {s: sum(n for (status, _), n in kept.items() if status == s) for s in map(str, Status)}, False
    rows = db.execute(
        f"SELECT status, count(*) FROM (SELECT * FROM tasks ORDER BY seq DESC LIMIT {EXACT_COUNTS})"
        f"{_where(where)} GROUP BY status",
        values,
    )
    found = dict(rows.fetchall())
    return {status: found.get(status, 0) for status in map(str, Status)}, sum(kept.values()) > EXACT_COUNTS
