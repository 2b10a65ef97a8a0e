"""Schedules that are due: the tasks that they create, one for each time however many servers look."""

import sqlite3
from typing import Any

from taskorch.domain import rules, schedules
from taskorch.domain.errors import Conflict, InvalidInput
from taskorch.domain.task import NewTask, Schedule, Task
from taskorch.storage import additions
from taskorch.storage.database import Transaction
from taskorch.storage.rows import note, save

BY = "schedule"  # who makes the changes below, in the history
KEPT_EVENTS = 50  # of what a schedule did
SHOWN = 10  # of the tasks that it created
LOOKED_AT = 100  # of them, for one that has not ended: with overlap=skip that is the newest, or one that was retried
NAME_CHARACTERS = 200

MADE = "SELECT 1 FROM firings WHERE schedule = ? AND at = ?"
MAKE = "INSERT INTO firings(schedule, at, task) VALUES (?, ?, ?)"
UNFINISHED = f"""SELECT t.id FROM (SELECT task FROM firings WHERE schedule = ? ORDER BY at DESC LIMIT {LOOKED_AT}) f
  JOIN tasks t ON t.seq = f.task WHERE t.finished_at IS NULL LIMIT 1"""
FORGET = f"""DELETE FROM events WHERE task = ? AND event IN ('fired', 'skipped') AND id <= (SELECT id FROM events
  WHERE task = ? AND event IN ('fired', 'skipped') ORDER BY id DESC LIMIT 1 OFFSET {KEPT_EVENTS})"""
LATEST = f"""SELECT f.at, t.id, t.status FROM firings f JOIN tasks t ON t.seq = f.task
  WHERE f.schedule = ? ORDER BY f.at DESC LIMIT {SHOWN}"""
CREATOR = "SELECT s.id FROM firings f JOIN tasks s ON s.seq = f.schedule WHERE f.task = ?"


def fire(tx: Transaction, task: Task, schedule: Schedule, most_live: int, now: int) -> None:
    """Create the tasks of a schedule whose `run_at` has come, and move that to its next time: all of it or nothing.

    A schedule that cannot be reckoned here, as its time zone is not known, fails and says so.
    """
    try:
        due = schedules.due(schedule, task.run_at or now, now)
    except InvalidInput as error:
        note(tx, save(tx, task, rules.never(task, str(error), now)), "skipped", BY, str(error))
        return
    after = save(tx, task, schedules.fired(task, due.following, now))
    if due.left_out:
        or_more = " or more" if due.more else ""
        note(tx, after, "skipped", BY, f"{due.left_out}{or_more} earlier times, which were missed")
    for at in due.at:
        event, what = _make(tx, after, schedule, at, most_live, now)
        note(tx, after, event, BY, f"{what} ({schedules.local(schedule, at).isoformat()})")
    tx.execute(FORGET, (task.seq, task.seq))
    if due.following is None:
        save(tx, after, rules.never(after, "it has no further time", now))


def latest(db: sqlite3.Connection, task: Task) -> list[dict[str, Any]]:
    """The newest tasks that a schedule created and that are stored: `at` (ms), `task` and `status`, newest first."""
    return [dict(zip(("at", "task", "status"), row, strict=True)) for row in db.execute(LATEST, (task.seq,))]


def creator(db: sqlite3.Connection, task: Task) -> str | None:
    """The id of the schedule that created a task."""
    row = db.execute(CREATOR, (task.seq,)).fetchone()
    return row and row[0]


def _make(tx: Transaction, task: Task, schedule: Schedule, at: int, most_live: int, now: int) -> tuple[str, str]:
    """Create the task for that time, unless something is against it: the event, and what is told of it."""
    if tx.execute(MADE, (task.seq, at)).fetchone():
        return "skipped", "this time had its task already"
    if schedule.overlap == "skip" and (row := tx.execute(UNFINISHED, (task.seq,)).fetchone()):
        return "skipped", f"{row[0]} has not ended"
    try:
        [made] = additions.insert(tx, [additions.Wish(_wanted(task, schedule, at)).row(now, blocked=False)], most_live)
    except Conflict as error:
        return "skipped", str(error).partition(".")[0]
    tx.execute(MAKE, (task.seq, at, made.seq))
    return "fired", made.id


def _wanted(task: Task, schedule: Schedule, at: int) -> NewTask:
    """The task for that time: as the schedule is, but for being one."""
    when = schedules.local_name(schedule, at)
    return NewTask(
        kind=task.kind,
        payload=task.payload,
        max_attempts=task.max_attempts,
        timeout_seconds=task.timeout_seconds,
        name=f"{task.name[: NAME_CHARACTERS - 1 - len(when)]} {when}" if task.name else None,
        priority=task.priority,
        on_server_exit=task.on_server_exit,
        labels=task.labels,
        concurrency_key=task.concurrency_key,
        retry=task.retry,
        trace=task.trace,
    )
