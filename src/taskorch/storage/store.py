"""The truth about tasks. One method is one transaction: it loads, asks `rules.py`, saves. It never decides.

Each change is told to the listeners after its commit, with the rows as they are now.
"""

import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

import anyio

from taskorch.domain import rules
from taskorch.domain.errors import StoreError
from taskorch.domain.task import NewTask, Outcome, Progress, Task
from taskorch.storage import additions, ageing, claims, dependencies, lives, removed, servers
from taskorch.storage.database import Database, Transaction
from taskorch.storage.ends import End, settle
from taskorch.storage.feeding import Pool, Pools
from taskorch.storage.limits import Limits, refill
from taskorch.storage.queries import past_retention
from taskorch.storage.rows import (
    SELECT,
    as_stored,
    delete,
    dumps,
    from_row,
    held,
    keep_counts,
    load,
    note,
    save,
)

Change = tuple[str, Task | None]  # a task's id, and its row after the commit; None: deleted
Listener = Callable[[Sequence[Change]], None]

FOLLOW_SECONDS = 0.25  # how often to look whether another process has committed
TOLD_SECONDS = 4.0  # the same where somebody tells of it
MOST_LIVE_TASKS = 2_000_000

HELD_BY = f"{SELECT} WHERE status = 'working' AND owner = ?"
# Not those whose results others still wait for.
OLDEST_ENDED = """SELECT id FROM tasks WHERE finished_at IS NOT NULL AND id IN (SELECT value FROM json_each(?))
  AND NOT EXISTS (SELECT 1 FROM dependencies d JOIN tasks c ON c.seq = d.child
    WHERE d.parent = tasks.seq AND c.finished_at IS NULL)
  ORDER BY finished_at, seq"""
HAS = "SELECT 1 FROM tasks WHERE id = ?"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """`limits`: how many tasks of a concurrency_key may work at a time; see `storage.limits`."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], int] = now_ms,
        most_live: int = MOST_LIVE_TASKS,
        limits: Limits | None = None,
    ) -> None:
        self.now = clock
        self._most_live = most_live
        self._limits = limits or {}
        self._looked_at = ""  # the last concurrency_key that `age` has looked at
        self._database = database
        self._listeners: list[Listener] = []
        self._pools = Pools(self._limits)
        self._latest = 1 << 62  # by the clock when due tasks were last looked for; not yet: it may have been set back
        database.before_commit = self._before_commit
        database.on_commit = self._tell

    @contextmanager
    def listening(self, listener: Listener) -> Generator[None]:
        """Call `listener` in the event loop after each commit of this process, while the block lasts."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def feeding(self, pool: Pool) -> AbstractContextManager[None]:
        """While the block lasts, what the pool can begin is claimed for it in the commit that makes it possible."""
        return self._pools.feeding(pool)

    async def feed(self) -> None:
        """Claim for the pools what others have made ready. Raises StoreError."""
        await self._database.write(lambda tx: self._pools.feed(tx, self.now()))

    async def follow_others(self, told: Callable[[], Awaitable[None]] | None = None) -> None:
        """Tell the listeners of other processes' commits: an empty list means that any row may have changed.

        It looks four times a second; with `told`, whenever that returns, and for safety's sake every four seconds.
        """
        wait, pause = (told, TOLD_SECONDS) if told else (anyio.sleep_forever, FOLLOW_SECONDS)
        seen: int | None = None
        while True:
            with suppress(StoreError):  # whoever reads or writes says so; here it must not end the server
                version = await self._database.foreign_version()
                if version != seen:  # at first too: who listened before may have missed something
                    self._tell(())
                seen = version
            with anyio.move_on_after(pause):
                await wait()

    async def probe(self) -> None:
        """Make an empty transaction, to see that one can be made. Raises StoreError."""
        await self._database.write(lambda tx: tx.execute("SELECT 1").fetchone())

    # What clients do.

    async def add(self, new: NewTask) -> Task:
        """Store a new task; on disk when this returns. Raises Conflict when too many would wait or work."""
        row = additions.Wish(new).row(self.now(), blocked=False)
        return (await self._as_left([await self._database.write_together(self._insert, row)]))[0]

    async def add_all(self, wishes: Sequence[additions.Wish]) -> list[tuple[Task, bool]]:
        """Store new tasks in one commit or none of them: each, and whether it was there already.

        Those that depend on none are stored in their order. Raises Conflict, NotFound.
        """
        now = self.now()
        rows = [wish.row(now, blocked=bool(wish.depends_on)) for wish in wishes]
        added = await self._database.write(lambda tx: additions.add_all(tx, wishes, rows, self._most_live, now))
        left = await self._as_left([task for task, _ in added])
        return [(task, there) for task, (_, there) in zip(left, added, strict=True)]

    async def edit(self, task_id: str, changes: Mapping[str, Any], expected_version: int | None, by: str) -> Task:
        def edit(tx: Transaction) -> Task:
            before = load(tx, task_id)
            after = save(tx, before, rules.edit(before, changes, expected_version, self.now()))
            note(tx, after, "updated", by, ", ".join(sorted(changes)))
            return after

        return (await self._as_left([await self._database.write(edit)]))[0]

    async def cancel(self, task_id: str, reason: str, by: str, life: int | None = None) -> Task:
        """Cancel a waiting task, ask a working one to stop, leave an ended one, or one no longer in that `life`."""

        def cancel(tx: Transaction) -> Task:
            before = load(tx, task_id)
            if life is not None and life != lives.number(tx, before):
                return before
            after = rules.cancel(before, f"cancelled by {by}: {reason}" if reason else f"cancelled by {by}", self.now())
            if after is not before:
                save(tx, before, after)
                note(tx, after, "cancelled" if after.ended else "cancel_requested", by, reason or None)
            return after

        return await self._database.write(cancel)

    async def retry(self, task_id: str, run_at: int | None, by: str, trace: str | None = None) -> Task:
        def retry(tx: Transaction) -> Task:
            before = load(tx, task_id)
            parents = dependencies.state(tx, before)
            after = rules.retry(before, run_at, self.now(), parents.unfinished, trace)
            dependencies.refuse_retry(before, parents)
            save(tx, before, after)
            note(tx, after, "retried", by, lives.last_words(before))
            return after

        return (await self._as_left([await self._database.write(retry)]))[0]

    async def delete(self, task_id: str, confirm: bool, by: str, asked: int | None = None) -> Task | None:
        """None: deleted. A task: it was working, is being cancelled, and is deleted when it has ended.

        `asked`: the attempt that the confirmation is about, None for whichever. Raises Conflict.
        """

        def remove(tx: Transaction) -> Task | None:
            before = load(tx, task_id)
            dependencies.refuse_delete(tx, before)
            after = rules.request_delete(before, confirm, self.now(), asked)
            if after is None:
                if delete(tx, before):
                    removed.note(tx, before, by, self.now())
                return None
            save(tx, before, after)
            note(tx, after, "cancel_requested", by, after.cancel_reason)
            return after

        return await self._database.write(remove)

    # What workers do.

    async def claim(self, owner: int, kinds: Mapping[str, int], free: int) -> list[Task]:
        """Take ready tasks for `owner`, best first, as `claims.claim` says, where no pool is fed."""
        return await self._database.write(lambda tx: claims.claim(tx, owner, kinds, free, self._limits, self.now()))

    async def settle(self, task: Task, outcome: Outcome, started_at: int | None = None) -> bool:
        """Record how an attempt ended; False: it is no longer ours, and nothing was written."""
        return not await self.settle_all([(task, outcome, started_at)])

    async def settle_all(self, ends: Sequence[End]) -> list[Task]:
        """Record how attempts ended, in one transaction; those no longer ours are left as they are."""
        return await self._database.write(partial(settle, ends=ends, clock=self.now))

    async def report(self, progress: Sequence[tuple[Task, Progress]]) -> None:
        """Record how far attempts are; those that are no longer ours are left out."""

        def report(tx: Transaction) -> None:
            for task, latest in progress:
                if before := held(tx, task):
                    save(tx, before, rules.report(before, latest, self.now()))

        await self._database.write(report)

    async def adopt(self, task: Task, owner: int) -> Task | None:
        """Go on with an attempt of a dead server; None when another server was first."""

        def adopt(tx: Transaction) -> Task | None:
            before = held(tx, task)
            if before is None:
                return None
            after = save(tx, before, rules.adopt(before, owner, self.now()))
            note(tx, after, "adopted", f"server {owner}", f"from server {before.owner}")
            return after

        return await self._database.write(adopt)

    async def promote(self) -> int | None:
        """Do what time brings: let due tasks in, end expired ones and silent claims, fire schedules.

        When to look again (ms), None: nothing is due. If the clock was set back, retries wait no longer for that, and
        no claim lasts longer.
        """
        now = self.now()
        if now < self._latest:
            await self._restore(now)
        self._latest = now
        due = await self._next_due()
        while due is not None and due <= self.now():
            await self._database.write(lambda tx: claims.promote(tx, self._most_live, self.now()))
            due = await self._next_due()
        return due

    async def repair(self) -> None:
        """Put right what other programs have done to the rows: let go what waits for nothing any more."""
        if await self._database.read(lambda db: db.execute(dependencies.STUCK).fetchone()):
            await self._database.write(lambda tx: dependencies.repair(tx, self.now()))

    async def age(self) -> None:
        """Raise what has waited long, and let in what is held without need. To be called about once a minute."""
        look = partial(ageing.look, after=self._looked_at, limits=self._limits, now=self.now())
        found, self._looked_at = await self._database.read(look)
        for some in found.steps():
            await self._database.write(partial(ageing.do, found=some, limits=self._limits, now=self.now()))

    async def held_by(self, owner: int) -> list[Task]:
        """What that server works on."""
        return await self._database.read(lambda db: [from_row(row) for row in db.execute(HELD_BY, (owner,))])

    # Servers and retention.

    async def register(self, uuid: str, pid: int, version: str, kinds: Sequence[str]) -> int:
        """Note a server that starts; its owner number."""
        values = (uuid, pid, self.now(), version, dumps(list(kinds)))
        return await self._database.write(lambda tx: tx.execute(servers.REGISTER, values).fetchone()[0])

    async def leave(self, owner: int) -> None:
        """Forget a server that holds no task any more; one that does is forgotten by who takes them over."""
        await self._database.write(lambda tx: tx.execute(servers.LEAVE, (owner,)))

    async def others(self, owner: int) -> list[servers.Peer]:
        """Every other server that is noted, or that rows still name."""
        return await self._database.read(lambda db: servers.others(db, owner))

    async def stored(self, task_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are stored."""
        return await self._database.read(lambda db: {i for i in task_ids if db.execute(HAS, (i,)).fetchone()})

    async def purge(self, keep_ms: int, keep_failed_ms: int) -> int:
        """Delete ended tasks older than that; how many."""
        gone, after = 0, 0
        cutoffs = (self.now() - keep_ms, self.now() - keep_failed_ms)
        while after is not None:
            old, after = await self._database.read(partial(past_retention, after=after, cutoffs=cutoffs))
            gone += await self._database.write(partial(removed.retire, tasks=old, now=self.now())) if old else 0
        await self._database.write(lambda tx: removed.prune(tx, self.now()))
        return gone

    async def oldest_ended(self, task_ids: Sequence[str]) -> list[str]:
        """Those of the ids whose tasks have ended, the longest ago first."""
        return await self._database.read(lambda db: [row[0] for row in db.execute(OLDEST_ENDED, (dumps(task_ids),))])

    # Inside transactions.

    def _insert(self, tx: Transaction, new: Sequence[additions.Row]) -> list[Task]:
        return additions.insert(tx, new, self._most_live)

    def _before_commit(self, tx: Transaction) -> None:
        """What the changes mean to other tasks belongs to the same commit."""
        expired = True
        while expired:
            dependencies.follow(tx, self.now())
            refill(tx, self._limits, self.now())
            expired = self._pools.follow(tx, self.now())
        keep_counts(tx)

    async def _as_left(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """The tasks as they are after the commit, which decides last who of a concurrency_key may start."""
        if any(task.concurrency_key for task in tasks):
            with suppress(StoreError):  # what was asked for is done
                return await self._database.read(partial(as_stored, tasks=tasks))
        return tasks

    async def _restore(self, now: int) -> None:
        while await self._database.read(lambda db: claims.is_stranded(db, now)):
            await self._database.write(lambda tx: claims.restore(tx, now))

    async def _next_due(self) -> int | None:
        return await self._database.read(lambda db: db.execute(claims.NEXT_DUE).fetchone()[0])

    def _tell(self, changed: Sequence[Change]) -> None:
        for listener in tuple(self._listeners):
            listener(changed)
