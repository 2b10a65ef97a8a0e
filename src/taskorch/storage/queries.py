"""What can be asked of the store: finding a task, listing, counting, history, statistics. Reads only."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskorch.domain.task import Priority, Status, Task
from taskorch.storage import firings, overview
from taskorch.storage.claims import IN_TIME
from taskorch.storage.database import Database
from taskorch.storage.finding import NEWEST_NAMES, find
from taskorch.storage.limits import Full, Limits, full
from taskorch.storage.listing import COUNTS, EXACT_COUNTS, Filters, Order, Page, Window, page, window
from taskorch.storage.lives import Life, number, recall
from taskorch.storage.overview import Mark, Overview
from taskorch.storage.rows import BY_ID, SELECT, from_row, load, records
from taskorch.storage.servers import Server, noted
from taskorch.storage.situation import Situation, situation

HISTORY_ROWS = 50
WINDOW_MS = 24 * 3_600_000
HOUR_MS = 3_600_000
WALK = 500  # rows that one step of the walk for old tasks reads

FAILED_NAMES = f"""SELECT id, name FROM tasks WHERE seq > (SELECT max(seq) FROM tasks) - {EXACT_COUNTS}
  AND status = 'failed' ORDER BY seq DESC LIMIT 500"""
ATTEMPTS_OF = """SELECT attempt, owner, worker, started_at, ended_at, outcome, reason, message, exit_code
  FROM attempts WHERE task = ?"""
ATTEMPT = f"{ATTEMPTS_OF} AND attempt = ?"
ATTEMPTS = f"{ATTEMPTS_OF} ORDER BY attempt DESC LIMIT ?"
# What a retry keeps of the life that it ended is for `lives`; the attempts tell it to people.
EVENTS = """SELECT at, event, by, iif(event = 'retried', NULL, detail) AS detail
  FROM events WHERE task = ? ORDER BY id DESC LIMIT ?"""
DEPENDS_ON = """SELECT p.id, p.name, p.status, d.on_failure FROM dependencies d JOIN tasks p ON p.seq = d.parent
  WHERE d.child = ? ORDER BY p.seq LIMIT ?"""
DEPENDENTS = """SELECT c.id, c.name, c.status FROM dependencies d JOIN tasks c ON c.seq = d.child
  WHERE d.parent = ? ORDER BY c.seq LIMIT ?"""
PARENT_IDS = "SELECT p.id FROM dependencies d JOIN tasks p ON p.seq = d.parent WHERE d.child = ?"
SERVERS = "SELECT id, uuid, pid, started_at, version FROM servers ORDER BY id"
# The columns are named within, too: of `*` SQLite copies all, which takes three times as long.
RECENT_ENDS = f"""SELECT status, started_at, finished_at FROM
  (SELECT status, started_at, finished_at FROM tasks ORDER BY seq DESC LIMIT {EXACT_COUNTS}) WHERE finished_at >= ?"""
ENDED = f"""{SELECT} WHERE seq > (SELECT max(seq) FROM tasks) - {EXACT_COUNTS}
  AND finished_at >= ? AND (status = 'failed') = ? ORDER BY finished_at DESC LIMIT ?"""
OLDEST_READY = "SELECT min(created_at) FROM tasks WHERE ready = 1"
NEXT_RUN = f"SELECT min(run_at) FROM tasks WHERE {IN_TIME}"
READY_COUNT = "SELECT count(*) FROM tasks WHERE ready = 1"
OLD = f"{SELECT} WHERE seq > ? ORDER BY seq LIMIT ?"
RECENT_ATTEMPTS = f"""SELECT outcome, count(*) FROM attempts
  WHERE task > (SELECT max(seq) FROM tasks) - {EXACT_COUNTS} AND ended_at >= ? GROUP BY outcome"""
PAGES = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"


@dataclass(frozen=True, slots=True)
class History:
    """Oldest first; the newest `HISTORY_ROWS` of each. `depends_on`, `dependents`: the first so many of those tasks.

    `firings`: the tasks that a schedule created last, newest first. `schedule`: the one that created this task.
    """

    attempts: list[dict[str, Any]]
    events: list[dict[str, Any]]
    depends_on: Sequence[dict[str, Any]] = ()
    dependents: Sequence[dict[str, Any]] = ()
    firings: Sequence[dict[str, Any]] = ()
    schedule: str | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """`counts` of all stored tasks by status and priority; `ends` of the last 24 hours: status, start, end (ms)."""

    counts: Mapping[tuple[str, int], int]
    ends: list[tuple[str, int | None, int]]
    ready: int
    oldest_ready_at: int | None
    next_run_at: int | None
    servers: list[dict[str, Any]]
    database_bytes: int

    @property
    def by_status(self) -> dict[str, int]:
        return {s: sum(n for (status, _), n in self.counts.items() if status == s) for s in map(str, Status)}

    @property
    def by_priority(self) -> dict[str, int]:
        return {p.name.lower(): sum(n for (_, one), n in self.counts.items() if one == p) for p in Priority}


class Queries:
    """`limits`: as the store's."""

    def __init__(self, database: Database, limits: Limits | None = None) -> None:
        self._database = database
        self._limits = limits or {}

    async def get(self, task_id: str) -> Task:
        """The task with that full id. Raises NotFound."""
        return await self._database.read(lambda db: load(db, task_id))

    async def get_many(self, task_ids: Sequence[str]) -> list[Task]:
        """Those of them that exist, in the given order."""

        def get_many(db: sqlite3.Connection) -> list[Task]:
            rows = (db.execute(BY_ID, (task_id,)).fetchone() for task_id in task_ids)
            return [from_row(row) for row in rows if row is not None]

        return await self._database.read(get_many)

    async def life(self, task_id: str, wanted: int | None = None) -> Life | None:
        """That life of the task with that full id, the latest if None; None when there is no such one."""
        return await self._database.read(lambda db: recall(db, task_id, wanted))

    async def resolve(self, reference: str, *, prefixes: bool = True) -> Task:
        """The task that an id, a name or (with `prefixes`) the first characters of an id mean.

        A name means the one live task that bears it, else the one task at all. Raises NotFound with the nearest ones,
        InvalidInput when several match.
        """
        return await self._database.read(lambda db: find(db, reference, prefixes))

    async def seen(self, reference: str) -> tuple[Task, Situation]:
        """The task that is meant, as for `resolve`, and what tells why it waits: both of one moment."""

        def seen(db: sqlite3.Connection) -> tuple[Task, Situation]:
            task = find(db, reference, True)
            return task, situation(db, [task], self._limits)

        return await self._database.read(seen)

    async def page(self, filters: Filters, limit: int, before_seq: int | None) -> Page:
        """A page of tasks, newest first, and how many there are of each status under the other filters."""
        return await self._database.read(lambda db: page(db, filters, limit, before_seq))

    async def window(self, filters: Filters, order: Order, limit: int, offset: int) -> Window:
        """The tasks that come after the first `offset` ones, and how many fit."""
        return await self._database.read(lambda db: window(db, filters, order, limit, offset))

    async def overview(self, filters: Filters, limit: int, before_seq: int | None, now: int) -> Overview:
        """A page of tasks with what stands around them, newest first; with the first page what works, however old."""
        return await self._database.read(lambda db: overview.first(db, filters, self._limits, limit, before_seq, now))

    async def changes(self, filters: Filters, mark: Mark, now: int) -> Overview:
        """What has changed since somebody had such an overview, or a word that all is to be loaded anew."""
        return await self._database.read(lambda db: overview.since(db, filters, self._limits, mark, now))

    async def history(self, task: Task) -> History:
        def history(db: sqlite3.Connection) -> History:
            attempts, events, depends_on, dependents = (
                records(db, rows, (task.seq, HISTORY_ROWS)) for rows in (ATTEMPTS, EVENTS, DEPENDS_ON, DEPENDENTS)
            )
            fired = firings.latest(db, task) if task.schedule else ()
            return History(attempts[::-1], events[::-1], depends_on, dependents, fired, firings.creator(db, task))

        return await self._database.read(history)

    async def situation(self, tasks: Sequence[Task]) -> Situation:
        """What tells why these tasks wait."""
        return await self._database.read(lambda db: situation(db, tasks, self._limits))

    async def limit(self, concurrency_key: str) -> Full:
        """What uses up the limit of that key."""
        return await self._database.read(lambda db: full(db, concurrency_key, self._limits))

    async def parents(self, task: Task) -> Collection[str]:
        """The ids of the tasks that it depends on."""
        return await self._database.read(lambda db: {row[0] for row in db.execute(PARENT_IDS, (task.seq,))})

    async def attempt(self, task: Task, number: int) -> dict[str, Any]:
        """What its history says of one attempt, whatever has come after it; empty when there is none."""
        rows = await self._database.read(lambda db: records(db, ATTEMPT, (task.seq, number)))
        return rows[0] if rows else {}

    async def servers(self) -> list[Server]:
        """Those that have noted themselves and not signed off; some may have died."""
        return await self._database.read(noted)

    async def stats(self, now: int) -> Stats:
        return await self._database.read(lambda db: _stats(db, now))

    async def attempts(self, now: int) -> dict[str, int]:
        """How many attempts ended in the last 24 hours, by outcome; of the newest 100,000 tasks."""
        return await self._database.read(lambda db: dict(db.execute(RECENT_ATTEMPTS, (now - WINDOW_MS,))))

    async def ended(self, since: int, failed: bool, limit: int) -> list[Task]:
        """What failed since then, or what ended otherwise; the last to end first."""

        def ended(db: sqlite3.Connection) -> list[Task]:
            return [from_row(row) for row in db.execute(ENDED, (since, failed, limit))]

        return await self._database.read(ended)

    async def suggest(self, start: str, limit: int) -> list[str]:
        """Ids and names that begin with `start`, each once, those of failed tasks first, then newest first."""

        def suggest(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(FAILED_NAMES).fetchall() + db.execute(NEWEST_NAMES).fetchall()
            words = (word for row in rows for word in row if word and word.startswith(start))
            return list(dict.fromkeys(words))[:limit]

        return await self._database.read(suggest)

    async def suggest_ids(self, start: str) -> list[str]:
        """The ids of tasks whose id or name begins with `start`, newest first."""

        def suggest_ids(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(NEWEST_NAMES).fetchall()
            return [task_id for task_id, name in rows if task_id.startswith(start) or (name or "").startswith(start)]

        return await self._database.read(suggest_ids)


def _stats(db: sqlite3.Connection, now: int) -> Stats:
    def one(sql: str) -> Any:
        return db.execute(sql).fetchone()[0]

    return Stats(
        counts={(status, priority): n for status, priority, n in db.execute(COUNTS)},
        ends=db.execute(RECENT_ENDS, (now - WINDOW_MS,)).fetchall(),
        ready=one(READY_COUNT),
        oldest_ready_at=one(OLDEST_READY),
        next_run_at=one(NEXT_RUN),
        servers=records(db, SERVERS, ()),
        database_bytes=one(PAGES),
    )


def past_retention(db: sqlite3.Connection, after: int, cutoffs: tuple[int, int]) -> tuple[list[Task], int | None]:
    """The tasks past retention among the next rows in arrival order, and where to go on (None: the walk is done).

    A row made after the later cutoff cannot have ended before it, so the walk stops there.
    """
    cutoff, failed_cutoff = cutoffs
    tasks = [from_row(row) for row in db.execute(OLD, (after, WALK))]
    old = [
        task
        for task in tasks
        if task.finished_at is not None
        and task.finished_at < (failed_cutoff if task.status is Status.FAILED else cutoff)
        and (task.finished_at < failed_cutoff or not number(db, task))  # an earlier life may have failed
    ]
    more = len(tasks) == WALK and tasks[-1].created_at < max(cutoffs)
    return old, tasks[-1].seq if more else None
