"""The pool: claims ready tasks, runs them in slots, settles their attempts, and takes over from dead servers."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import anyio
from anyio.abc import TaskGroup, TaskStatus

from taskorch.domain.errors import StoreError
from taskorch.domain.task import Failed, Interrupted, Outcome, Reason, Status, Task
from taskorch.storage.feeding import Pool
from taskorch.storage.servers import Peer
from taskorch.storage.store import Change, Store
from taskorch.telemetry.context import on_record
from taskorch.work.attempt import Attempt, Ending, Kind, Remains, Run, kind_of, left_as, run
from taskorch.work.pace import Pace
from taskorch.work.peers import Peers
from taskorch.work.settler import LOST, Settler

TICK_SECONDS = 0.25  # how often other servers' locks are looked at
FOREIGN_SECONDS = 0.02  # at least between two looks at what other servers have changed
PROGRESS_SECONDS = 0.25  # progress reaches the store at most this often
RETRY_SECONDS = 1.0  # pause after the store failed
LOOK_SECONDS = 60.0  # a clock set forward, or a laptop that slept, delays a due task by no more than this
SILENT_SECONDS = 5.0  # a server silent for so long is shown as not responding
HUNG_SECONDS = 120.0  # a server silent for so long may be dead in all but name: what its commands left is taken in

log = logging.getLogger(__name__)


class Worker:
    """`kinds`: what may be claimed, while the disk has `room`. `others`: kinds that are only taken over.

    `run` is what each attempt is.
    """

    def __init__(
        self,
        store: Store,
        peers: Peers,
        owner: int,
        kinds: Mapping[str, Kind],
        slots: int,
        others: Mapping[str, Kind] | None = None,
        room: Callable[[], bool] = lambda: True,
        run: Run = run,
    ) -> None:
        self._store = store
        self._peers = peers
        self._owner = owner
        self._known = {**(others or {}), **kinds}
        self._slots = slots
        self._room = room
        self._run = run
        self._queue: deque[Task] = deque()  # claimed, not begun
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._unwanted: set[tuple[str, int]] = set()  # attempts that were cancelled before they began
        self._pace = {name: Pace(slots if kind.in_process else 0) for name, kind in kinds.items()}
        self._dirty: set[Attempt] = set()
        self._settler = Settler(store, self._committed)
        self._suspects: set[str] = set()  # taken over after a crash: one of them may have caused it
        self._others: list[Peer] = []
        self._foreign = anyio.Event()  # another process has changed something
        self._foreign.set()
        self._stopping = anyio.Event()
        self._work = anyio.Event()  # something may be claimable that no commit of ours has claimed
        self._given = anyio.Event()  # the queue has something for a slot
        self._due = anyio.Event()  # something is due sooner than was known
        self._due_at = math.inf  # when the next is due (ms), as far as is known
        self._told = anyio.Event()  # an attempt has reported progress

    @property
    def busy(self) -> int:
        """Attempts under way in this server, adopted ones included."""
        return len(self._attempts)

    @property
    def silent(self) -> dict[int, float]:
        """Other servers that hold their lock but give no sign of life: seconds since the last one, by pid."""
        seconds = {peer.pid: self._peers.silent_seconds(peer.uuid) for peer in self._others}
        return {pid: silent for pid, silent in seconds.items() if silent >= SILENT_SECONDS}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop`; then end, let go or give back what is under way, and return."""
        self._loop = asyncio.get_running_loop()
        pool = Pool(self._owner, self._slots, self._ahead, self._take)
        with self._store.listening(self._heard), self._store.feeding(pool):
            try:
                async with anyio.create_task_group() as upkeep:
                    for loop in (self._promote, self._settler.run, self._write_progress):
                        upkeep.start_soon(loop)
                    async with anyio.create_task_group() as slots:
                        upkeep.start_soon(self._tend, slots)
                        slots.start_soon(self._claim)
                        for _ in range(self._slots):
                            slots.start_soon(self._serve)
                        task_status.started()
                        await self._stopping.wait()
                        self._end_all()
                    upkeep.cancel_scope.cancel()
            finally:
                await self._settler.flush()

    def stop(self) -> None:
        """Claim no more, and ask every attempt to end."""
        self._stopping.set()

    def _end_all(self) -> None:
        self._work.set()
        self._given.set()
        for attempt in list(self._attempts.values()):
            attempt.end(Ending.STOP)

    # A slot's life.

    async def _serve(self) -> None:
        while task := await self._next():
            await self._attempt(task)
            await self._settler.breathe()

    async def _next(self) -> Task | None:
        while not self._stopping.is_set():
            if self._queue:
                return self._queue.popleft()
            self._given = given = anyio.Event() if self._given.is_set() else self._given
            await given.wait()
        return None

    async def _attempt(self, task: Task, adopted: bool = False) -> None:
        kind = kind_of(task, self._known)
        assert kind
        attempt = Attempt(task, self._note_progress, adopted)
        key = task.id, task.attempt
        self._attempts[key] = attempt
        if task.cancel_requested_at is not None or key in self._unwanted:
            self._unwanted.discard(key)
            attempt.end(Ending.CANCEL)
        began, started_at = time.perf_counter(), self._store.now()
        outcome: Outcome | None = Interrupted() if kind.in_process else None  # until proven otherwise
        try:
            outcome = await self._run(kind, attempt)
        except Exception:
            log.exception("task %s attempt %s: its kind failed", *key, extra=on_record(*key))
            outcome = Failed(Reason.ERROR, "internal error while running it; the server's log says more")
        finally:
            if self._attempts.get(key) is attempt:  # and not one adopted back meanwhile
                del self._attempts[key]
            self._dirty.discard(attempt)
            if pace := self._pace.get(task.kind):
                pace.ran(time.perf_counter() - began)
            if attempt.ending is Ending.LOST:
                log.warning(LOST, *key, extra=on_record(*key))
                self._work.set()
            elif outcome is not None:
                self._settler.end(task, outcome, None if adopted else started_at)
            else:
                self._work.set()

    # Claiming.

    def _ahead(self) -> dict[str, int] | None:
        """How many of each kind to claim beyond the free slots; None: none at all. Called on the store's thread."""
        if self._stopping.is_set():
            return None
        if not self._room():
            self._loop.call_soon_threadsafe(lambda: self._work.set())
            return None
        return {name: 0 if self._suspects else pace.ahead for name, pace in self._pace.items()}

    def _take(self, claimed: Sequence[Task]) -> None:
        self._queue.extend(claimed)
        self._given.set()

    def _committed(self, seconds: float) -> None:
        for pace in self._pace.values():
            pace.committed(seconds)

    async def _claim(self) -> None:
        """Claim what no commit of ours could: at the start, and after others' changes."""
        while not self._stopping.is_set():
            self._work = work = anyio.Event()  # before looking: what comes in between is not missed
            if not self._room():
                log.error("the disk is nearly full: no task is started")
                await anyio.sleep(RETRY_SECONDS)
            elif await self._ask():
                await work.wait()
        await self._ask()  # takes none any more: what was claimed meanwhile has come when this returns
        while self._queue:
            self._settler.end(self._queue.popleft(), Interrupted("the server stopped before it began"), None)

    async def _ask(self) -> bool:
        try:
            await self._store.feed()
        except StoreError as error:
            log.error("could not claim: %s", error)
            await anyio.sleep(RETRY_SECONDS)
            return False
        return True

    # Upkeep.

    def _heard(self, changes: Sequence[Change]) -> None:
        if not changes:
            self._foreign.set()
            self._work.set()
            self._due.set()
        for task_id, task in changes:
            if task is None or task.ended:
                self._suspects.discard(task_id)
                if self._unwanted:
                    self._unwanted = {key for key in self._unwanted if key[0] != task_id}
            elif task.status is Status.WAITING or task.claim_expires_at is not None:
                begins = None if task.ready or task.held else task.run_at
                if any(at is not None and at < self._due_at for at in (begins, task.expires_at, task.claim_expires_at)):
                    self._due.set()
            elif task.cancel_requested_at is not None and task.owner == self._owner:
                self._cancel(task)

    def _cancel(self, task: Task) -> None:
        if attempt := self._attempts.get((task.id, task.attempt)):
            attempt.end(Ending.CANCEL)
        else:
            self._unwanted.add((task.id, task.attempt))

    async def _promote(self) -> None:
        """Let due tasks into the ready index and end expired ones, sleeping until the next is due."""
        while True:
            self._due, self._due_at = due, _ = anyio.Event(), math.inf  # before looking: what comes meanwhile counts
            try:
                at = await self._store.promote()
            except StoreError as error:
                log.error("could not look for due tasks: %s", error)
                at = self._store.now() + 1000
            self._due_at = math.inf if at is None else at
            wait = LOOK_SECONDS if at is None else max(0.0, (at - self._store.now()) / 1000)
            with anyio.move_on_after(min(LOOK_SECONDS, wait)):
                await due.wait()

    def _note_progress(self, attempt: Attempt) -> None:
        if attempt not in self._dirty:
            self._dirty.add(attempt)
            self._loop.call_soon_threadsafe(self._told.set)  # a synchronous handler reports from its own thread

    async def _write_progress(self) -> None:
        while True:
            await self._told.wait()
            self._told = anyio.Event()
            dirty = list(self._dirty)
            self._dirty.difference_update(dirty)  # before reading: what is reported from here on is written next time
            try:
                await self._store.report([(attempt.task, attempt.latest) for attempt in dirty if attempt.latest])
            except StoreError as error:
                log.warning("progress could not be stored: %s", error)
                self._dirty.update(set(dirty).intersection(self._attempts.values()))
                self._told.set()
            await anyio.sleep(PROGRESS_SECONDS)

    async def _tend(self, slots: TaskGroup) -> None:
        """After another process changed something: are our attempts still ours, who else is there, and who died?"""
        while not self._stopping.is_set():
            changed = self._foreign.is_set()
            try:
                if changed:
                    self._foreign = anyio.Event()
                    await self._check_held()
                    self._others = await self._store.others(self._owner)
                for peer in [p for p in self._others if self._peers.is_dead(p.uuid, p.pid, p.started_at)]:
                    await self._take_over(peer, slots)
                    self._others.remove(peer)
                for peer in [p for p in self._others if self._peers.silent_seconds(p.uuid) >= HUNG_SECONDS]:
                    await self._take_in(peer, slots)
            except (StoreError, OSError) as error:  # such as too many open files
                self._foreign.set()
                log.warning("upkeep: %s", error)
                await anyio.sleep(TICK_SECONDS)
            await anyio.sleep(FOREIGN_SECONDS if changed else 0)
            with anyio.move_on_after(TICK_SECONDS if self._others else None):
                await self._foreign.wait()

    async def _take_in(self, peer: Peer, slots: TaskGroup) -> None:
        """Settle the commands of a frozen server that have ended; it cannot. What still runs stays its own."""
        for task in await self._store.held_by(peer.owner):
            kind = kind_of(task, self._known)
            if kind and kind.has_ended(task) and (mine := await self._store.adopt(task, self._owner)):
                slots.start_soon(self._attempt, mine, True)

    async def _check_held(self) -> None:
        running = list(self._attempts.items())  # before reading: what starts meanwhile would look lost
        held = {(task.id, task.attempt): task for task in await self._store.held_by(self._owner)}
        for key, attempt in running:
            if key not in held:
                attempt.end(Ending.LOST)
        for task in held.values():
            if task.cancel_requested_at is not None:
                self._cancel(task)

    async def _take_over(self, peer: Peer, slots: TaskGroup) -> None:
        """Settle or adopt all that a dead server held, then forget it. Others may do the same: rows are fenced."""
        for task in await self._store.held_by(peer.owner):
            remains = await kind.inspect(task) if (kind := kind_of(task, self._known)) else Remains.NOTHING
            if self._stopping.is_set():
                return  # the next server does it
            if remains is Remains.ADOPTABLE:
                if (mine := await self._store.adopt(task, self._owner)) and not self._stopping.is_set():
                    slots.start_soon(self._attempt, mine, True)
                continue
            if await self._store.settle(task, left_as(remains)):
                which = task.id, peer.owner, peer.pid, remains.value
                extra = on_record(task.id, task.attempt)
                log.warning("took over task %s of server %s (pid %s), which died: %s", *which, extra=extra)
                self._suspects.add(task.id)
        await self._store.leave(peer.owner)
        self._peers.forget(peer.uuid)
