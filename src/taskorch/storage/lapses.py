"""Claims of outside workers that have run out: nobody has heard of them in time."""

import sqlite3

from taskorch.domain.outside import lapsed
from taskorch.domain.task import Failed, Task, with_values
from taskorch.storage import ends
from taskorch.storage.database import Transaction
from taskorch.storage.rows import SELECT, from_row, save

BATCH = 500  # attempts that one transaction ends at most, so that others get their turn
LAPSED = f"{SELECT} WHERE claim_expires_at IS NOT NULL AND claim_expires_at <= ? LIMIT {BATCH}"
CLAIM = "SELECT worker, claim_ms FROM attempts WHERE task = ? AND attempt = ?"
# Further ahead than they were asked for: the clock has been set back since.
TOO_FAR = f"""{SELECT} WHERE claim_expires_at IS NOT NULL AND claim_expires_at > ? + (
    SELECT claim_ms FROM attempts a WHERE a.task = tasks.seq AND a.attempt = tasks.attempt) LIMIT {BATCH}"""


def end(tx: Transaction, now: int) -> None:
    """End a batch of attempts whose workers fell silent."""
    tasks = [from_row(row) for row in tx.execute(LAPSED, (now,)).fetchall()]
    ends.settle(tx, [(task, _outcome(tx, task), None) for task in tasks], lambda: now)


def shorten(tx: Transaction, now: int) -> None:
    """Let a batch of claims that lie too far ahead last as long as they were asked for, from now on."""
    for row in tx.execute(TOO_FAR, (now,)).fetchall():
        task = from_row(row)
        _, claim_ms = claim_of(tx, task)
        save(tx, task, with_values(task, claim_expires_at=now + claim_ms))


def claim_of(db: sqlite3.Connection, task: Task) -> tuple[str, int]:
    """Who claimed the current attempt, and how long a silence is allowed (ms)."""
    return db.execute(CLAIM, (task.seq, task.attempt)).fetchone()


def _outcome(tx: Transaction, task: Task) -> Failed:
    worker, claim_ms = claim_of(tx, task)
    return lapsed(task, worker, claim_ms)
