"""taskorch's own rows written by plain SQL: for the raw limit, for the obvious code, and to have many of them soon."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import PAYLOAD, RESULT_JSON
from taskorch.domain.task import NewTask
from taskorch.storage.database import open_database
from taskorch.storage.ids import new_id
from taskorch.storage.rows import COLUMNS
from taskorch.storage.schema import PRAGMAS
from taskorch.storage.store import Store, now_ms

NEW = NewTask("noop", PAYLOAD, 3, 3600.0)
LATER_MS = 30 * 86_400_000
INSERT = f"INSERT INTO tasks({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
CLAIM = """UPDATE tasks SET status = 'working', ready = 0, attempt = attempt + 1, owner = 1, started_at = :now,
  updated_at = :now, version = version + 1
  WHERE seq IN (SELECT seq FROM tasks WHERE kind = 'noop' AND ready = 1 ORDER BY rank DESC, seq LIMIT :limit)
  RETURNING seq, attempt, payload"""
SETTLE = """UPDATE tasks SET status = 'completed', owner = NULL, finished_at = ?, updated_at = ?, result = ?,
  version = version + 1 WHERE seq = ? AND status = 'working' AND attempt = ? AND owner = 1"""
BEGIN_ATTEMPT = "INSERT INTO attempts(task, attempt, owner, started_at) VALUES (?, ?, 1, ?)"
END_ATTEMPT = "UPDATE attempts SET ended_at = ?, outcome = 'completed' WHERE task = ? AND attempt = ?"
ENDED_ATTEMPTS = """INSERT INTO attempts(task, attempt, owner, started_at, ended_at, outcome)
  SELECT seq, 1, 1, started_at, finished_at, 'completed' FROM tasks WHERE status = 'completed'"""
CANCEL = """UPDATE tasks SET status = 'cancelled', ready = 0, error = '{"reason":"user","message":""}',
  finished_at = created_at WHERE id = ?"""
COUNT = "UPDATE counts SET tasks = tasks + ? WHERE status = ? AND priority = 1"


class Template:
    """A row as taskorch wrote it, to be copied."""

    def __init__(self, path: Path) -> None:
        with sqlite3.connect(path) as db:
            (row,) = db.execute(f"SELECT {', '.join(COLUMNS)} FROM tasks ORDER BY seq LIMIT 1")
        db.close()
        self.values = dict(zip(COLUMNS, row, strict=True))

    def row(self, **changes: Any) -> tuple[Any, ...]:
        now = now_ms()
        fresh = {"seq": None, "id": new_id(), "created_at": now, "updated_at": now}
        return tuple((self.values | fresh | changes).values())


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


async def make(path: Path) -> None:
    """A database of the present schema with one task in it, which has ended so that nobody runs it."""
    async with open_database(path) as database:
        task = await Store(database).add(NEW)
    db = connect(path)
    db.execute("BEGIN IMMEDIATE")
    db.execute(CANCEL, (task.id,))
    for count, status in ((-1, "waiting"), (1, "cancelled")):
        db.execute(COUNT, (count, status))
    db.execute("COMMIT")
    db.close()


def template(path: Path) -> Template:
    """That of a new task."""
    found = Template(path)
    found.values |= {"status": "waiting", "ready": 1, "error": None, "finished_at": None}
    return found


async def fill(path: Path, count: int, state: str) -> None:
    """So many more tasks: waiting, ended or scheduled. Large fills are kept beside, to be copied the next time."""
    kept = path.parent.parent / "kept" / f"{count}-{state}.db"
    if count < 50_000:
        _insert(path, count, state)
        return
    if not kept.exists():
        await make(kept)
        await asyncio.to_thread(_insert, kept, count, state)
        with sqlite3.connect(kept) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(kept, path)


def _insert(path: Path, count: int, state: str) -> None:
    db = connect(path)
    db.execute("BEGIN IMMEDIATE")
    db.executemany(INSERT, _rows(template(path), count, state))
    db.execute(COUNT, (count, "completed" if state == "ended" else "waiting"))
    if state == "ended":
        db.execute(ENDED_ATTEMPTS)
    db.execute("COMMIT")
    db.close()


def _rows(base: Template, count: int, state: str) -> Iterator[tuple[Any, ...]]:
    now = now_ms()
    changes: dict[str, Any] = {
        "waiting": {},
        "scheduled": {"ready": 0, "run_at": now + LATER_MS},
        "ended": {"status": "completed", "ready": 0, "attempt": 1, "result": RESULT_JSON, "started_at": now,
                  "finished_at": now, "version": 3},
    }[state]  # fmt: skip
    return (base.row(**changes) for _ in range(count))
