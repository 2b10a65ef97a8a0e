"""How waiting tasks come to run: due ones are let into the ready index, and the best of those in it are claimed.

And what time does to those that work: the claims of outside workers run out.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskorch.domain import readiness, rules
from taskorch.domain.task import Task
from taskorch.storage import bulk, firings, lapses
from taskorch.storage.database import Transaction
from taskorch.storage.limits import Limits, without_room
from taskorch.storage.rows import READY_COLUMNS, SELECT, changed, dumps, from_ready, from_row, note, save

BATCH = 500  # rows that one transaction promotes at most, so that others get their turn
SCHEDULES = 20  # of those, schedules: after a long sleep each takes milliseconds
# What rules.claim makes of a row, for all that are claimed together.
CLAIM = """UPDATE tasks SET status = 'working', ready = 0, attempt = attempt + 1, owner = ?, started_at = ?,
  error = NULL, progress = NULL, updated_at = ?, version = version + 1
  WHERE seq IN (SELECT value FROM json_each(?))"""
ATTEMPT_BEGIN = ("task", "attempt", "owner", "started_at")
READY = f"{SELECT} WHERE ready = 1 AND kind = ? ORDER BY rank DESC, seq LIMIT ?"
IN_TIME = "status = 'waiting' AND ready = 0 AND paused = 0 AND blocked = 0 AND held = 0 AND run_at IS NOT NULL"
DUE = f"{SELECT} WHERE {IN_TIME} AND run_at <= ? LIMIT ?"
EXPIRED = f"{SELECT} WHERE status = 'waiting' AND expires_at IS NOT NULL AND expires_at <= ? LIMIT ?"
STRANDED = f"""{SELECT} WHERE {IN_TIME} AND run_at > ? AND error IS NOT NULL AND updated_at > ?
  AND run_at - updated_at <=
    max({readiness.BACKOFF_CAP_MS}, 1000 * coalesce(json_extract(retry, '$.max_delay_seconds'), 0)) LIMIT {BATCH}"""
NEXT_DUE = f"""SELECT min(at) FROM (
  SELECT min(run_at) AS at FROM tasks WHERE {IN_TIME}
  UNION ALL SELECT min(expires_at) FROM tasks WHERE status = 'waiting' AND expires_at IS NOT NULL
  UNION ALL SELECT min(claim_expires_at) FROM tasks WHERE claim_expires_at IS NOT NULL)"""


def claim(tx: Transaction, owner: int, kinds: Mapping[str, int], free: int, limits: Limits, now: int) -> list[Task]:
    """Take ready tasks for `owner`, best first: `free` of any kind, and of each kind up to kinds[kind] ahead.

    What is taken ahead has a further start left, so that a crash cannot spend its last one, and no concurrency_key,
    whose place it would take without working; and nothing better waits for a slot. Of one key no more are taken than
    there is room for.
    """
    next_one = any(kinds.values())  # of each kind: it may be better than what others have to be taken ahead

    def find() -> list[Task]:
        most = {kind: free + more + next_one for kind, more in kinds.items()}
        return [task for kind, number in most.items() for task in runnable(tx, READY, (kind, number), now)]

    return take(tx, owner, find, kinds, free, limits, now)


def take(
    tx: Transaction,
    owner: int,
    find: Callable[[], Sequence[Task]],
    kinds: Mapping[str, int],
    free: int,
    limits: Limits,
    now: int,
) -> list[Task]:
    """Begin the best of what `find` finds in the ready index, as many of them as `claim` says."""
    chosen = _choose(find(), kinds, free)
    while over := without_room(tx, chosen, limits):
        for task in over:
            save(tx, task, readiness.hold(task))
        chosen = _choose(find(), kinds, free)
    if not chosen:
        return []
    claimed = [rules.claim(task, owner, now) for task in chosen]
    tx.execute(CLAIM, (owner, now, now, dumps([task.seq for task in chosen])))
    bulk.insert(tx, "attempts", ATTEMPT_BEGIN, [(task.seq, task.attempt, owner, now) for task in claimed])
    for before, after in zip(chosen, claimed, strict=True):
        changed(tx, before, after)
    return claimed


def _choose(found: Sequence[Task], kinds: Mapping[str, int], free: int) -> list[Task]:
    chosen: list[Task] = []
    for task in sorted(found, key=lambda task: (-task.rank, task.seq)):
        if len(chosen) >= free and (len(chosen) >= free + kinds[task.kind] or not _may_wait(task)):
            break  # else it would wait for as long as there are others to be taken ahead
        chosen.append(task)
    return chosen


def _may_wait(task: Task) -> bool:
    """Whether it may be claimed before there is a slot for it."""
    return rules.starts_left(task) > 1 and task.concurrency_key is None


def promote(tx: Transaction, most_live: int, now: int) -> None:
    """Let a batch of due tasks into the ready index, and end expired ones and attempts whose claim has run out.

    Schedules that are due create their tasks.
    """
    lapses.end(tx, now)
    fired = 0
    for query in (EXPIRED, DUE):
        for row in tx.execute(query, (now, BATCH)).fetchall():
            task = from_row(row)
            if task.schedule is None:
                _refile(tx, task, now)
            elif fired < SCHEDULES:
                firings.fire(tx, task, task.schedule, most_live, now)
                fired += 1


def is_stranded(db: sqlite3.Connection, now: int) -> bool:
    """Whether anything waits for a time that was reckoned by a clock that has been set back since."""
    asked = ((STRANDED, (now, now)), (lapses.TOO_FAR, (now,)))
    return any(db.execute(query, values).fetchone() for query, values in asked)


def restore(tx: Transaction, now: int) -> None:
    """Shorten a batch of such waits and claims to what they were meant to be."""
    lapses.shorten(tx, now)
    for row in tx.execute(STRANDED, (now, now)).fetchall():
        task = from_row(row)
        save(tx, task, readiness.restore_backoff(task, now))


def runnable(tx: Transaction, query: str, values: Sequence[Any], now: int) -> list[Task]:
    """What a query finds in the ready index. Those that may not run after all leave it, for others behind them."""
    while True:
        found = [from_ready(row) for row in bulk.select(tx, READY_COLUMNS, query, values, decoded="payload")]
        stale = [task for task in found if not readiness.may_run(task, now)]
        if not stale:
            return found
        for task in stale:
            _refile(tx, task, now)


def _refile(tx: Transaction, task: Task, now: int) -> None:
    if readiness.is_expired(task, now):
        after = save(tx, task, rules.expire(task, now))
        note(tx, after, "expired", "server")
    else:
        save(tx, task, readiness.file(task, now))
