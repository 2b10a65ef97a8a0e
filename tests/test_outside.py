"""Outside workers and the store: who gets which task, whose word counts, what silence and the clock do."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from fakes import Clock

from taskorch.domain.errors import Conflict, InvalidInput, NotFound
from taskorch.domain.readiness import phase
from taskorch.domain.task import BLANK, Completed, Failed, NewTask, Phase, Priority, Progress, Reason, Status, Task
from taskorch.storage.additions import Wish
from taskorch.storage.database import Database, open_database
from taskorch.storage.outside import Claimed, Nothing, OutsideStore, Wanted
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

MINUTE = 60_000
FAILED = Failed(Reason.ERROR, "could not")
NO_MORE = Failed(Reason.ERROR, "never will", retryable=False)


class Desk:
    """A store of tasks, and what a worker does at it."""

    def __init__(self, store: Store, outside: OutsideStore, queries: Queries, clock: Clock) -> None:
        self.store, self.outside, self.queries, self.clock = store, outside, queries, clock

    async def add(self, name: str = "t", kind: str = "outside", **wishes: Any) -> Task:
        fields = {"payload": {}, "max_attempts": 3, "timeout_seconds": 3600.0, "name": name} | wishes
        return await self.store.add(NewTask(kind, **fields))

    async def claim(self, worker: str = "ann", seconds: float = 60, **wanted: Any) -> Task | None:
        found = await self.outside.claim(Wanted(**wanted), worker, round(1000 * seconds))
        return found.task if isinstance(found, Claimed) else None

    async def nothing(self, **wanted: Any) -> Nothing:
        found = await self.outside.claim(Wanted(**wanted), "ann", MINUTE)
        assert isinstance(found, Nothing)
        return found

    async def taken(self, **wishes: Any) -> Task:
        """A new task that Ann has claimed for a minute."""
        await self.add(**wishes)
        task = await self.claim()
        assert task
        return task

    async def beat(self, task: Task, claim_ms: int | None = None, **told: Any) -> Task:
        return await self.outside.heartbeat(task.id, task.attempt, told, claim_ms)

    async def end(self, task: Task, outcome: Completed | Failed) -> Task | None:
        return (await self.outside.end(task.id, task.attempt, outcome)).task

    async def now(self, task: Task) -> Task:
        return await self.queries.get(task.id)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.store.promote()

    async def starts(self, task: Task) -> list[tuple[Any, ...]]:
        history = await self.queries.history(task)
        return [(row["worker"], row["owner"], row["outcome"], row["reason"]) for row in history.attempts]


@pytest.fixture
def desk(store: Store, database: Database, queries: Queries, clock: Clock) -> Desk:
    return Desk(store, OutsideStore(database, clock, {}), queries, clock)


@pytest.fixture
async def other(database: Database, store: Store, clock: Clock, tmp_path: Any) -> AsyncIterator[OutsideStore]:
    """Another server on the same file."""
    async with open_database(tmp_path / "state" / "taskorch.db") as again:
        Store(again, clock)
        yield OutsideStore(again, clock, {})


# Which task a worker gets.


async def test_the_best_task_comes_first_then_the_oldest_whatever_its_kind(desk: Desk) -> None:
    for name, kind, priority in (
        ("a", "outside:x", Priority.MEDIUM),
        ("b", "outside", Priority.MEDIUM),
        ("c", "outside:y", Priority.HIGH),
        ("d", "outside", Priority.LOW),
    ):
        await desk.add(name, kind, priority=priority)
    got = [await desk.claim() for _ in range(5)]
    assert [task and task.name for task in got] == ["c", "a", "b", "d", None]


async def test_a_claimed_task_works_for_its_worker_until_its_claim_ends(desk: Desk, clock: Clock) -> None:
    task = await desk.taken(payload={"prompt": "look"})
    stored = await desk.now(task)
    assert stored == task
    assert (task.status, task.attempt, task.owner, task.payload) == (Status.WORKING, 1, 0, {"prompt": "look"})
    assert (task.started_at, task.claim_expires_at) == (clock.now, clock.now + MINUTE)
    assert await desk.starts(task) == [("ann", 0, None, None)]


async def test_a_worker_says_which_tasks_it_would_take(desk: Desk) -> None:
    folder = {"work_directory": "/srv/app/"}
    odd = [{"work_directory": value} for value in (None, 5, ["/srv/app"], {"a": 1}, "")]
    for number, payload in enumerate([{}, *odd]):
        await desk.add(f"odd{number}", priority=Priority.HIGH, payload=payload)
    await desk.add("kind", "outside:review")
    await desk.add("labels", labels=("a b", "x"))
    await desk.add("folder", payload=folder)
    await desk.add("both", "outside:review", labels=("x",), payload={"work_directory": "/srv//./lib/../app"})

    async def got(**wanted: Any) -> str | None:
        task = await desk.claim(**wanted)
        return task and task.name

    assert await got(kind="outside:revie") is None
    assert await got(label="y") is None
    assert await got(work_directory="/srv") is None
    assert await got(kind="outside:review", label="x", work_directory="/srv/app") == "both"
    assert await got(kind="outside:review") == "kind"
    assert await got(label="x") == "labels"
    assert await got(work_directory="/srv/x/../app/.") == "folder"
    assert await got(work_directory="/srv/app") is None
    assert await got(kind="outside") == "odd0"


async def test_what_servers_run_is_not_for_workers_nor_the_other_way_round(desk: Desk, store: Store) -> None:
    for kind in ("echo", "outsider", "outside1", "outside-x", "outside.y"):
        await desk.add(kind, kind)
    assert await desk.nothing() == Nothing(waiting=0, next_run_at=None, others_ready=0, working=0)
    task = await desk.add("mine")
    server = await store.register("me", 1, "1", ["echo"])
    assert [one.name for one in await store.claim(server, {"echo": 9, "sleep": 9}, 9)] == ["echo"]
    assert (await desk.now(task)).status is Status.WAITING
    [echo] = await store.held_by(server)
    with pytest.raises(InvalidInput, match="kind 'echo', which servers run"):
        await desk.end(echo, Completed())
    with pytest.raises(InvalidInput, match="which servers run"):
        await desk.beat(echo)
    assert (await desk.now(echo)).status is Status.WORKING


async def test_what_may_not_run_yet_or_any_more_is_not_claimed(desk: Desk, clock: Clock) -> None:
    await desk.add("later", run_at=clock.now + MINUTE)
    paused = await desk.add("paused")
    await desk.store.edit(paused.id, {"paused": True}, None, "me")
    await desk.add("expired", expires_at=clock.now + 5)
    clock.advance(1)  # nobody has looked at the time since
    assert await desk.nothing() == Nothing(waiting=2, next_run_at=clock.now - 1000 + MINUTE, others_ready=0, working=0)
    await desk.pass_time(60)
    task = await desk.claim()
    assert task and task.name == "later"


async def test_of_one_concurrency_key_one_is_claimed_at_a_time(desk: Desk, other: OutsideStore) -> None:
    for name, kind in (("a", "outside"), ("b", "outside:x"), ("free", "outside")):
        await desk.add(name, kind, concurrency_key=None if name == "free" else "k")
    first = await desk.claim()
    assert first and first.name == "a"
    found = await other.claim(Wanted(), "bob", MINUTE)
    assert isinstance(found, Claimed) and found.task.name == "free", "the best for which there is room"
    assert await desk.nothing() == Nothing(waiting=1, next_run_at=None, others_ready=0, working=2, behind=1)
    assert await desk.end(first, FAILED)
    second = await desk.claim(seconds=600)
    assert second and second.name == "b"
    await desk.pass_time(300)
    assert await desk.claim() is None, "the first one has become due, and waits for room"
    await desk.end(second, Completed())
    again = await desk.claim()
    assert again and (again.name, again.attempt) == ("a", 2)


async def test_who_gets_nothing_is_told_what_there_is(desk: Desk, clock: Clock) -> None:
    await desk.add("other", "outside:x")
    await desk.add("soon", run_at=clock.now + 5)
    await desk.add("sooner", "outside:x", run_at=clock.now + 3)
    assert await desk.nothing(kind="outside") == Nothing(1, clock.now + 5, 1, 0)
    assert await desk.claim()
    assert await desk.nothing(kind="outside:y") == Nothing(0, None, 0, 1)
    assert await desk.nothing() == Nothing(2, clock.now + 3, 0, 1)


async def test_what_becomes_ready_while_there_was_nothing_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.add()
    monkeypatch.setattr("taskorch.storage.outside._claim", lambda *_: None)
    assert await desk.nothing() == Nothing(1, None, 0, 0, ready=1)


async def test_many_workers_at_two_servers_get_each_task_once(desk: Desk, other: OutsideStore) -> None:
    wanted = {(await desk.add(f"n{number}")).id for number in range(60)}
    got: list[str] = []

    async def work(at: OutsideStore, name: str) -> None:
        while isinstance(found := await at.claim(Wanted(), name, MINUTE), Claimed):
            got.append(found.task.id)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(work, (desk.outside, other)[number % 2], f"w{number}")
    assert len(got) == len(wanted) and set(got) == wanted


# Whose word counts.


async def test_what_a_worker_completes_is_completed_with_its_result(desk: Desk, clock: Clock) -> None:
    task = await desk.taken()
    clock.advance(5)
    done = await desk.end(task, Completed({"n": [1]}))
    assert done == await desk.now(task)
    assert done and (done.status, done.result, done.owner) == (Status.COMPLETED, {"n": [1]}, None)
    assert (done.claim_expires_at, done.finished_at) == (None, clock.now)
    assert await desk.starts(task) == [("ann", 0, "completed", None)]


async def test_a_failure_is_tried_again_until_the_budget_is_spent(desk: Desk) -> None:
    task = await desk.taken(max_attempts=2)
    after = await desk.end(task, FAILED)
    assert after and (after.status, after.error and after.error.message) == (Status.WAITING, "could not")
    await desk.pass_time(300)
    again = await desk.outside.claim(Wanted(), "bob", MINUTE)
    assert isinstance(again, Claimed) and again.task.attempt == 2
    assert again.last_error and again.last_error.message == "could not"
    after = await desk.end(again.task, FAILED)
    assert after and after.status is Status.FAILED
    assert await desk.starts(task) == [("ann", 0, "failed", "error"), ("bob", 0, "failed", "error")]


async def test_a_failure_for_good_is_not_tried_again(desk: Desk) -> None:
    after = await desk.end(await desk.taken(), NO_MORE)
    assert after and after.status is Status.FAILED


@pytest.mark.parametrize("outcome", [Completed(1), FAILED, NO_MORE])
async def test_an_end_that_is_said_again_changes_nothing(desk: Desk, outcome: Completed | Failed) -> None:
    task = await desk.taken()
    first = await desk.end(task, outcome)
    again = await desk.outside.end(task.id, 1, outcome)
    assert again.again and again.task == first == await desk.now(task)
    if outcome is FAILED:  # also when somebody else works on it by now
        await desk.pass_time(300)
        taken = await desk.claim("bob")
        assert taken
        again = await desk.outside.end(task.id, 1, outcome)
        assert again.again and again.task == taken == await desk.now(task)


async def test_an_attempt_that_completed_cannot_fail_nor_the_other_way_round(desk: Desk) -> None:
    for name, first, second, said in (
        ("a", Completed(1), FAILED, "completed"),
        ("b", FAILED, Completed(1), r"failed \(error: could not\)"),
    ):
        task = await desk.taken(name=name)
        after = await desk.end(task, first)
        with pytest.raises(Conflict, match=f"attempt 1 of {task.id} '{name}' is no longer yours: it has ended: {said}"):
            await desk.end(task, second)
        assert await desk.now(task) == after


async def test_an_attempt_that_never_was_is_told_so(desk: Desk) -> None:
    waiting = await desk.add()
    for call in (desk.outside.end(waiting.id, 1, Completed()), desk.outside.heartbeat(waiting.id, 1, {}, None)):
        with pytest.raises(Conflict, match="has had 0 attempts; there is no attempt 1"):
            await call
    task = await desk.claim()
    assert task
    with pytest.raises(Conflict, match="there is no attempt 2"):
        await desk.outside.end(task.id, 2, Completed())
    with pytest.raises(NotFound, match="no longer exists"):
        await desk.outside.end("t" + 16 * "0", 1, Completed())
    assert await desk.now(waiting) == task


# Silence.


async def test_a_silent_worker_loses_its_task_to_another_and_is_told_so(desk: Desk, clock: Clock) -> None:
    task = await desk.taken()
    assert await desk.store.promote() == clock.now + MINUTE, "the servers look again in time"
    await desk.pass_time(59.9)
    assert (await desk.now(task)).status is Status.WORKING
    await desk.pass_time(0.1)
    waiting = await desk.now(task)
    assert waiting.status is Status.WAITING and waiting.error
    assert (waiting.error.reason, waiting.error.message) == (
        Reason.WORKER_LOST,
        "its outside worker ann fell silent for 60 s",
    )
    for outcome in (Completed(1), FAILED):
        with pytest.raises(Conflict, match=r"has ended: failed \(worker_lost: its outside worker ann fell silent"):
            await desk.end(task, outcome)
    await desk.pass_time(300)
    second = await desk.claim("bob")
    assert second and second.attempt == 2
    for call in (desk.end(task, Completed("late")), desk.end(task, FAILED), desk.beat(task, value=1.0)):
        with pytest.raises(Conflict, match=r"was claimed again by bob \(attempt 2\)"):
            await call
    assert await desk.now(task) == second, "the late one changed nothing"
    done = await desk.end(second, Completed("right"))
    assert done and done.result == "right"
    assert await desk.starts(task) == [("ann", 0, "failed", "worker_lost"), ("bob", 0, "completed", None)]


async def test_a_heartbeat_keeps_the_task_and_tells_how_far_it_is(desk: Desk, clock: Clock) -> None:
    task = await desk.taken()
    clock.advance(40)
    after = await desk.beat(task, value=2.0, total=4.0, message="half")
    assert after == await desk.now(task)
    assert (after.claim_expires_at, after.progress) == (clock.now + MINUTE, Progress(2.0, 4.0, "half"))
    assert after.version == task.version, "nobody's edit conflicts with it"
    after = await desk.beat(task, message="still")
    assert after.progress == Progress(2.0, 4.0, "still")
    after = await desk.beat(task, value=3.0)
    assert after.progress == Progress(3.0, 4.0, None)
    after = await desk.beat(task, claim_ms=2 * MINUTE)
    assert (after.claim_expires_at, after.progress) == (clock.now + 2 * MINUTE, Progress(3.0, 4.0, None))
    after = await desk.beat(task)
    assert after.claim_expires_at == clock.now + 2 * MINUTE, "as long as asked for last"
    await desk.pass_time(119)
    assert (await desk.now(task)).status is Status.WORKING
    await desk.pass_time(1)
    error = (await desk.now(task)).error
    assert error and error.message == "its outside worker ann fell silent for 120 s"


async def test_silence_spends_the_budget(desk: Desk) -> None:
    await desk.add(max_attempts=2)
    for worker in ("ann", "bob"):
        task = await desk.claim(worker)
        assert task
        await desk.pass_time(60)
        await desk.pass_time(300)
    after = await desk.now(task)
    assert (after.status, after.attempt) == (Status.FAILED, 2)
    assert after.error and after.error.message == "its outside worker bob fell silent for 60 s"


async def test_many_silent_workers_lose_their_tasks_in_one_look(desk: Desk) -> None:
    new = NewTask("outside", {}, max_attempts=1, timeout_seconds=3600.0)
    await desk.store.add_all([Wish(new) for _ in range(600)])
    async with anyio.create_task_group() as group:  # together, so that they share commits
        for _ in range(600):
            group.start_soon(desk.claim)
    await desk.pass_time(60)
    counts = (await desk.queries.stats(desk.clock.now)).by_status
    assert (counts["failed"], counts["working"]) == (600, 0)


async def test_a_task_takes_no_longer_than_its_own_limit_whatever_is_heard_of_it(desk: Desk, clock: Clock) -> None:
    task = await desk.taken(timeout_seconds=100.0)
    began = clock.now
    clock.advance(50)
    after = await desk.beat(task)
    assert after.claim_expires_at == began + 100_000
    clock.advance(49)
    await desk.beat(task)
    await desk.pass_time(1)
    error = (await desk.now(task)).error
    assert error and (error.reason, error.message) == (Reason.TIMEOUT, "its outside worker ann took longer than 100 s")


# The clock.


async def test_a_clock_set_back_neither_frees_a_claim_early_nor_keeps_it(desk: Desk, clock: Clock) -> None:
    await desk.store.promote()
    task = await desk.taken()
    clock.advance(30)
    await desk.pass_time(-3600)
    assert (await desk.now(task)).claim_expires_at == clock.now + MINUTE, "as long as it was asked for, from now on"
    await desk.pass_time(59)
    assert (await desk.now(task)).status is Status.WORKING
    await desk.pass_time(1)
    assert (await desk.now(task)).status is Status.WAITING


async def test_a_clock_set_back_a_little_keeps_what_is_left(desk: Desk, clock: Clock) -> None:
    await desk.store.promote()
    task = await desk.taken()
    clock.advance(30)
    await desk.pass_time(-10)
    assert (await desk.now(task)).claim_expires_at == task.claim_expires_at


async def test_a_server_that_starts_after_the_clock_was_set_back_looks_too(desk: Desk, clock: Clock) -> None:
    task = await desk.taken()
    clock.advance(-86_400)
    assert await desk.store.promote() == clock.now + MINUTE
    assert (await desk.now(task)).claim_expires_at == clock.now + MINUTE


async def test_an_edit_under_a_clock_set_back_does_not_keep_a_claim(desk: Desk, clock: Clock) -> None:
    await desk.store.promote()
    task = await desk.taken()
    clock.advance(-3600)
    await desk.store.edit(task.id, {"labels": ("x",)}, None, "me")
    await desk.store.promote()
    assert (await desk.now(task)).claim_expires_at == clock.now + MINUTE


# Cancelling and deleting.


async def test_a_worker_hears_of_a_cancellation_and_what_it_fails_then_is_cancelled(desk: Desk) -> None:
    task = await desk.taken()
    await desk.store.cancel(task.id, "not needed", "eve")
    heard = await desk.beat(task)
    assert phase(heard, desk.clock.now, ()) is Phase.CANCELLING
    after = await desk.end(task, FAILED)
    assert after and after.status is Status.CANCELLED and after.error
    assert after.error.message == "cancelled by eve: not needed; could not"
    assert (await desk.outside.end(task.id, 1, FAILED)).again
    with pytest.raises(Conflict, match="it has ended: cancelled"):
        await desk.end(task, Completed())


async def test_work_that_completes_in_spite_of_a_cancellation_stays_completed(desk: Desk) -> None:
    task = await desk.taken()
    await desk.store.cancel(task.id, "", "eve")
    after = await desk.end(task, Completed(7))
    assert after and (after.status, after.result) == (Status.COMPLETED, 7)


async def test_a_silent_worker_whose_task_is_to_be_cancelled_leaves_it_cancelled(desk: Desk) -> None:
    task = await desk.taken()
    await desk.store.cancel(task.id, "", "eve")
    await desk.pass_time(60)
    after = await desk.now(task)
    assert after.status is Status.CANCELLED and after.error
    assert after.error.message == "cancelled by eve; its outside worker ann fell silent for 60 s"
    assert (await desk.starts(task))[0][2] == "cancelled"


@pytest.mark.parametrize("outcome", [Completed(1), FAILED, None])
async def test_a_task_that_is_to_be_deleted_goes_when_its_worker_ends_or_falls_silent(
    desk: Desk, outcome: Completed | Failed | None
) -> None:
    task = await desk.taken()
    assert await desk.store.delete(task.id, True, "eve")
    if outcome:
        assert await desk.end(task, outcome) is None
    else:
        await desk.pass_time(60)
    with pytest.raises(NotFound):
        await desk.now(task)
    with pytest.raises(NotFound, match="deleted by eve"):
        await desk.queries.resolve(task.id)


# Beside servers.


async def test_nobody_takes_the_owner_of_outside_attempts_for_a_dead_server(desk: Desk, store: Store) -> None:
    me = await store.register("me", 1, "1", [])
    task = await desk.taken()
    assert me > 0 and await store.others(me) == []
    await store.leave(me)
    assert await desk.now(task) == task


def test_waiting_outside_work_is_blocked_by_nothing_but_its_own_gates() -> None:
    task = replace(BLANK, kind="outside:x")
    assert phase(task, 0, ()) is Phase.READY
    assert phase(replace(task, kind="outsider"), 0, ()) is Phase.BLOCKED
    assert phase(replace(task, ready=False, blocked=True), 0, ()) is Phase.BLOCKED
    assert phase(replace(task, ready=False, paused=True), 0, ()) is Phase.PAUSED


async def test_open_claims_are_told_the_oldest_first(desk: Desk, clock: Clock) -> None:
    tasks = []
    for worker in ("ann", "bob", "cid"):
        await desk.add()
        tasks.append(await desk.claim(worker))
        clock.advance(1)
    number, claims = await desk.outside.open_claims(2)
    assert number == 3
    assert [(one.task_id, one.worker) for one in claims] == [(tasks[0].id, "ann"), (tasks[1].id, "bob")]
    assert claims[0].since == clock.now - 3000 and claims[0].until == clock.now - 3000 + MINUTE
