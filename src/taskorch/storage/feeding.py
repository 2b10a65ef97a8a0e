"""What a pool begins is claimed in the very commit that makes it possible: no second one stands between.

A task that is created while a slot is free is working once it is on disk, and a settlement brings the slot its next.
"""

import logging
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from taskorch.domain.task import Task
from taskorch.storage import claims
from taskorch.storage.database import Transaction
from taskorch.storage.limits import Limits, refill

log = logging.getLogger(__name__)

HELD = "SELECT count(*) FROM tasks WHERE owner = ? AND status = 'working'"


@dataclass(frozen=True, slots=True)
class Pool:
    """Who begins what becomes ready: `slots` tasks at a time.

    `ahead` says how many of each kind are claimed beyond that, None while none are claimed at all; it is asked on the
    store's thread. `take` is given, in the event loop, what has been claimed and is on disk.
    """

    owner: int
    slots: int
    ahead: Callable[[], Mapping[str, int] | None]
    take: Callable[[Sequence[Task]], None]


class Pools:
    """The pools of this process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pools: tuple[Pool, ...] = ()  # replaced, never changed: the store's thread may be reading it

    @contextmanager
    def feeding(self, pool: Pool) -> Generator[None]:
        self._pools += (pool,)
        try:
            yield
        finally:
            self._pools = tuple(other for other in self._pools if other is not pool)

    def follow(self, tx: Transaction, now: int) -> bool:
        """Before the commit: claim what its changes have made possible. True: what was found expired has ended."""
        known = len(tx.moved)
        if any(_makes_work(before, after) for before, after in tx.moved):
            self.feed(tx, now)
        return any(after is not None and after.ended for _, after in tx.moved[known:])

    def feed(self, tx: Transaction, now: int) -> None:
        """Claim for each pool what it has room for beside what it holds, which is counted from its rows."""
        for pool in self._pools:
            claimed = self._claimed(tx, pool, now)
            if not claimed:
                continue
            if any(task.concurrency_key for task in claimed):
                refill(tx, self._limits, now)
            tx.changed = list({change[0]: change for change in tx.changed}.values())  # as the commit leaves them
            tx.afterwards.append(partial(pool.take, claimed))

    def _claimed(self, tx: Transaction, pool: Pool, now: int) -> list[Task]:
        """What a row that cannot be read keeps from being claimed must not be kept from being created or settled."""
        changed, moved = len(tx.changed), len(tx.moved)
        tx.execute("SAVEPOINT claims")
        try:
            claimed = self._claim(tx, pool, now)
        except (ValueError, KeyError, TypeError, sqlite3.OperationalError) as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
                raise  # the file or its disk, and not what a row says
            log.error("nothing can be claimed: a row that is ready is damaged: %s", error)
            tx.execute("ROLLBACK TO claims")
            del tx.changed[changed:], tx.moved[moved:]
            claimed = []
        tx.execute("RELEASE claims")
        return claimed

    def _claim(self, tx: Transaction, pool: Pool, now: int) -> list[Task]:
        ahead = pool.ahead()
        if ahead is None:
            return []
        free = pool.slots - tx.execute(HELD, (pool.owner,)).fetchone()[0]
        more = {kind: max(0, most + min(0, free)) for kind, most in ahead.items()}
        if free <= 0 and not any(more.values()):
            return []
        return claims.claim(tx, pool.owner, more, max(0, free), self._limits, now)


def _makes_work(before: Task | None, after: Task | None) -> bool:
    """Whether there is more to begin, or a slot that is free."""
    return (after is not None and after.ready) or (before is not None and _is_held(before) and not _is_held(after))


def _is_held(task: Task | None) -> bool:
    return task is not None and task.owner is not None
