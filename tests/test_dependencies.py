"""Order among tasks: what may start when, what a failure does to what depends on it, and what a retry brings back."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fakes import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from taskorch.domain.errors import Conflict, NotFound
from taskorch.domain.readiness import phase
from taskorch.domain.task import (
    Completed,
    Failed,
    Interrupted,
    NewTask,
    OnDependencyFailure,
    Outcome,
    Phase,
    Reason,
    Schedule,
    Status,
    Task,
)
from taskorch.storage.additions import Wish
from taskorch.storage.database import Database, open_database
from taskorch.storage.ids import new_id
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

ME = 7
DONE = Completed(1)
BROKEN = Failed(Reason.ERROR, "boom", retryable=False)
HOUR = 3_600_000


def new(kind: str = "echo", **fields: Any) -> NewTask:
    return NewTask(kind, {}, **({"max_attempts": 1, "timeout_seconds": 60.0} | fields))


def wish(
    *parents: Task | str, on_failure: OnDependencyFailure = "cancel", key: str | None = None, **fields: Any
) -> Wish:
    ids = tuple(parent if isinstance(parent, str) else parent.id for parent in parents)
    return Wish(new(**fields), key, ids, on_failure)


async def add(store: Store, *parents: Task, **options: Any) -> Task:
    ((task, _),) = await store.add_all([wish(*parents, **options)])
    return task


async def run(store: Store, outcome: Outcome, *tasks: Task) -> None:
    """Claim these, which must be all that may start, and end them."""
    claimed = await store.claim(ME, {"echo": 0}, 1000)
    assert {task.id for task in claimed} == {task.id for task in tasks}
    await store.settle_all([(task, outcome, None) for task in claimed])


async def statuses(queries: Queries, *tasks: Task) -> list[str]:
    return [str(task.status) for task in await queries.get_many([task.id for task in tasks])]


async def test_a_task_starts_when_all_that_it_depends_on_have_completed(store: Store, queries: Queries) -> None:
    left, right = await add(store), await add(store)
    join = await add(store, left, right)
    assert join.blocked and not join.ready and phase(join, store.now(), {"echo"}) is Phase.BLOCKED
    waits = (await queries.situation([join])).waits[join.id]
    assert (waits.unfinished, waits.of, waits.first) == (2, 2, ((left.id, None), (right.id, None)))
    [first, second] = await store.claim(ME, {"echo": 0}, 10)
    await store.settle(first, DONE)
    assert await store.claim(ME, {"echo": 0}, 10) == []
    await store.settle(second, DONE)
    await run(store, DONE, join)
    assert await statuses(queries, join) == ["completed"]


async def test_what_is_let_go_is_told_to_those_who_listen(store: Store) -> None:
    """The pool claims when it hears of a ready task; nothing else wakes it."""
    first = await add(store)
    then = await add(store, first)
    [claimed] = await store.claim(ME, {"echo": 0}, 1)
    told: list[tuple[str, bool]] = []
    with store.listening(lambda changes: told.extend((i, task.ready) for i, task in changes if task)):
        await store.settle(claimed, DONE)
    assert (then.id, True) in told


@pytest.mark.parametrize(
    ("policy", "status", "reason"),
    [("cancel", "cancelled", Reason.DEPENDENCY), ("fail", "failed", Reason.DEPENDENCY_FAILED)],
)
async def test_a_failure_ends_everything_below_it_in_the_same_commit(
    store: Store, queries: Queries, policy: OnDependencyFailure, status: str, reason: Reason
) -> None:
    root = await add(store, name="build")
    chain = [root]
    for _ in range(30):
        chain.append(await add(store, chain[-1], on_failure=policy))
    seen: list[int] = []
    [claimed] = await store.claim(ME, {"echo": 0}, 1)
    with store.listening(lambda changes: seen.append(len({i for i, _ in changes}))):
        await store.settle(claimed, BROKEN)
    assert seen == [31]
    for task in await queries.get_many([task.id for task in chain[1:]]):
        assert (task.status, task.attempt, task.started_at) == (Status(status), 0, None)
        assert task.error and task.error.reason is reason
        assert task.error.message == f"{root.id} 'build' failed (error)", "the first cause, not the nearest"
    events = (await queries.history(chain[-1])).events
    assert [(e["event"], e["by"]) for e in events] == [
        ("cancelled" if policy == "cancel" else "dependency_failed", "dependency")
    ]


async def test_each_way_a_task_can_end_badly_stops_what_depends_on_it(
    store: Store, queries: Queries, clock: Clock
) -> None:
    cancelled, expiring, working = await add(store), await add(store, expires_at=clock.now + 1000), await add(store)
    children = [await add(store, parent) for parent in (cancelled, expiring, working)]
    await store.cancel(cancelled.id, "", "me")
    clock.advance(2)
    await store.promote()
    [claimed] = await store.claim(ME, {"echo": 0}, 10)
    await store.cancel(claimed.id, "", "me")
    assert await statuses(queries, *children) == ["cancelled", "cancelled", "waiting"], "not before its tree is gone"
    await store.settle(claimed, Failed(Reason.WORKER_LOST, "gone"))
    messages = [task.error and task.error.message for task in await queries.get_many([c.id for c in children])]
    assert messages == [
        f"{cancelled.id} was cancelled (user)",
        f"{expiring.id} failed (expired)",
        f"{working.id} was cancelled (user)",
    ]


async def test_a_failure_that_is_tried_again_stops_nothing(store: Store, queries: Queries) -> None:
    flaky = await add(store, max_attempts=2)
    child = await add(store, flaky)
    await run(store, Failed(Reason.ERROR, "once"), flaky)
    assert await statuses(queries, flaky, child) == ["waiting", "waiting"]


async def test_a_task_may_start_whatever_became_of_the_others(store: Store, queries: Queries) -> None:
    good, bad = await add(store), await add(store)
    report = await add(store, good, bad, on_failure="run")
    [first, second] = await store.claim(ME, {"echo": 0}, 10)
    await store.settle(second, BROKEN)
    assert (await queries.get(report.id)).blocked
    await store.settle(first, DONE)
    await run(store, DONE, report)


async def test_of_a_diamond_with_a_broken_side_only_what_minds_ends(store: Store, queries: Queries) -> None:
    top = await add(store)
    left, right = await add(store, top), await add(store, top)
    bottom = await add(store, left, right)
    clean_up = await add(store, bottom, on_failure="run")
    await run(store, DONE, top)
    [one, other] = await store.claim(ME, {"echo": 0}, 10)
    await store.settle(one, BROKEN)
    assert await statuses(queries, left, right, bottom, clean_up) == ["failed", "working", "cancelled", "waiting"]
    await run(store, DONE, clean_up)  # it minds nothing and waits for the bottom alone, which will never run
    await store.settle(other, DONE)
    assert await statuses(queries, right, bottom) == ["completed", "cancelled"]


async def test_five_hundred_wait_for_one_and_one_for_five_hundred(store: Store, queries: Queries) -> None:
    root = wish()
    middle = [wish(root.task_id) for _ in range(500)]
    last = wish(*(one.task_id for one in middle))
    stored = [task for task, _ in await store.add_all([last, *middle, root])]
    await run(store, DONE, stored[-1])
    claimed = await store.claim(ME, {"echo": 0}, 1000)
    assert len(claimed) == 500
    for some in (claimed[:100], claimed[100:499]):
        await store.settle_all([(task, DONE, None) for task in some])
        assert (await queries.get(last.task_id)).blocked
    waits = (await queries.situation([await queries.get(last.task_id)])).waits[last.task_id]
    assert (waits.unfinished, waits.of) == (1, 500)
    await store.settle(claimed[499], DONE)
    await run(store, DONE, stored[0])


# Retry.


async def test_a_retry_brings_back_what_ended_because_of_it_and_never_started(store: Store, queries: Queries) -> None:
    build = await add(store)
    test = await add(store, build)
    ship = await add(store, test, on_failure="fail")
    report = await add(store, build, on_failure="run")
    by_hand = await add(store, build)
    await store.cancel(by_hand.id, "not wanted", "me")
    await run(store, BROKEN, build)
    await run(store, DONE, report)
    assert await statuses(queries, build, test, ship) == ["failed", "cancelled", "failed"]
    await store.retry(build.id, None, "me")
    assert await statuses(queries, build, test, ship) == ["waiting"] * 3
    assert await statuses(queries, report, by_hand) == ["completed", "cancelled"]
    back = await queries.get(test.id)
    assert back.blocked and back.error is None and back.finished_at is None
    events = [(e["event"], e["by"]) for e in (await queries.history(test)).events]
    assert events == [("cancelled", "dependency"), ("retried", "dependency")]
    for task in (build, test, ship):
        await run(store, DONE, task)


async def test_what_has_another_reason_to_stay_stays(store: Store, queries: Queries) -> None:
    left, right = await add(store), await add(store)
    join = await add(store, left, right)
    await run(store, BROKEN, left, right)
    await store.retry(left.id, None, "me")
    assert await statuses(queries, join) == ["cancelled"]
    await store.retry(right.id, None, "me")
    assert await statuses(queries, join) == ["waiting"]


async def test_a_retry_that_could_only_end_again_names_the_task_to_retry(store: Store) -> None:
    build = await add(store, name="build")
    test = await add(store, build)
    await run(store, BROKEN, build)
    with pytest.raises(Conflict, match=rf"cannot run: {build.id} 'build' failed.*retry_task\(task_id='{build.id}'\)"):
        await store.retry(test.id, None, "me")


async def test_a_completed_task_is_called_so_whatever_became_of_those_before_it(store: Store) -> None:
    build = await add(store)
    report = await add(store, build, on_failure="run")
    await run(store, BROKEN, build)
    await run(store, DONE, report)
    with pytest.raises(Conflict, match=r"is completed; retry_task works on failed and cancelled tasks"):
        await store.retry(report.id, None, "me")


async def test_what_waits_for_a_task_that_is_retried_waits_again(store: Store, queries: Queries) -> None:
    """One that would have run all the same has not started yet when its parent gets another chance."""
    build = await add(store)
    later = await add(store, build, on_failure="run", run_at=store.now() + HOUR)
    await run(store, BROKEN, build)
    assert not (await queries.get(later.id)).blocked
    await store.retry(build.id, None, "me")
    assert (await queries.get(later.id)).blocked


@pytest.mark.parametrize("outcome", [Failed(Reason.ERROR, "once"), Interrupted("the server stopped")])
async def test_what_comes_back_from_an_attempt_waits_for_what_was_retried_meanwhile(
    store: Store, queries: Queries, clock: Clock, outcome: Outcome
) -> None:
    build = await add(store)
    report = await add(store, build, on_failure="run", max_attempts=2, concurrency_key="k")
    await run(store, BROKEN, build)
    [working] = await store.claim(ME, {"echo": 0}, 10)
    assert working.id == report.id
    other = await add(store, concurrency_key="k")
    await store.retry(build.id, None, "me")
    await store.settle(working, outcome)
    clock.advance(600)
    await store.promote()
    waits = (await queries.situation([await queries.get(report.id)])).waits[report.id]
    assert (waits.unfinished, waits.first) == (1, ((build.id, None),))
    await run(store, DONE, build, other)
    await run(store, DONE, report)


# Times, and what clients may do meanwhile.


async def test_a_time_of_its_own_counts_as_well(store: Store, clock: Clock) -> None:
    first = await add(store)
    early = await add(store, first, run_at=clock.now + 1000)
    late = await add(store, first, run_at=clock.now + HOUR)
    clock.advance(10)
    await store.promote()
    await run(store, DONE, first)
    await run(store, DONE, early)
    assert await store.promote() == late.run_at
    clock.advance(3600)
    await store.promote()
    await run(store, DONE, late)


async def test_a_due_time_does_not_keep_the_timer_busy_while_a_task_is_blocked(store: Store, clock: Clock) -> None:
    first = await add(store)
    await add(store, first, run_at=clock.now + 1000)
    clock.advance(10)
    assert await store.promote() is None


async def test_paused_or_edited_it_still_waits_for_the_others(store: Store, queries: Queries) -> None:
    first = await add(store)
    then = await add(store, first)
    for changes in ({"paused": True}, {"paused": False}, {"priority": 2}, {"run_at": store.now()}):
        await store.edit(then.id, changes, None, "me")
        assert not (await queries.get(then.id)).ready
    await store.edit(then.id, {"paused": True}, None, "me")
    await run(store, DONE, first)
    assert not (await queries.get(then.id)).ready
    assert (await store.edit(then.id, {"paused": False}, None, "me")).ready


async def test_what_others_need_is_not_deleted(store: Store, queries: Queries, clock: Clock) -> None:
    first = await add(store)
    then = await add(store, first, name="ship")
    with pytest.raises(Conflict, match=rf"{then.id} 'ship' depend on it.*Nothing was deleted"):
        await store.delete(first.id, True, "me")
    await run(store, DONE, first)
    clock.advance(90 * 86_400)
    assert await store.purge(HOUR, HOUR) == 0
    await run(store, DONE, then)
    assert await store.oldest_ended([first.id]) == [first.id]
    assert await store.delete(first.id, False, "me") is None
    assert (await queries.history(then)).depends_on == []


@pytest.mark.parametrize(
    ("on_failure", "outcome", "status", "ready"),
    [
        ("cancel", BROKEN, "cancelled", False),
        ("fail", BROKEN, "failed", False),
        ("run", BROKEN, "waiting", True),
        ("cancel", DONE, "waiting", True),
    ],
)
async def test_what_is_retried_while_what_it_needs_is_being_deleted_waits_for_no_ghost(
    store: Store, queries: Queries, on_failure: OnDependencyFailure, outcome: Outcome, status: str, ready: bool
) -> None:
    first = await add(store, name="build")
    then = await add(store, first, on_failure=on_failure)
    await store.cancel(then.id, "", "me")
    [working] = await store.claim(ME, {"echo": 0}, 1)
    await store.delete(first.id, True, "me")
    assert (await store.retry(then.id, None, "me")).blocked
    await store.settle(working, outcome)
    with pytest.raises(NotFound, match="deleted by me"):
        await queries.resolve(first.id)
    after = await queries.get(then.id)
    assert (after.status, after.ready, after.blocked) == (Status(status), ready, False)
    why = f"{first.id} 'build' was cancelled (user)" if after.ended else None
    assert (after.error and after.error.message) == why


async def test_output_that_others_need_is_not_removed_for_space(store: Store) -> None:
    first = await add(store)
    await add(store, first)
    await run(store, DONE, first)
    assert await store.oldest_ended([first.id]) == []


# Creating.


async def test_what_can_never_run_is_not_created(store: Store, queries: Queries) -> None:
    broken, gone, going = await add(store), await add(store), await add(store)
    await store.delete(gone.id, False, "me")
    with pytest.raises(NotFound, match=gone.id):
        await add(store, gone)
    claimed = {task.id: task for task in await store.claim(ME, {"echo": 0}, 10)}
    await store.settle(claimed[broken.id], BROKEN)
    with pytest.raises(Conflict, match=r"is failed already\. Call retry_task"):
        await add(store, broken)
    assert (await add(store, broken, on_failure="run")).ready
    await store.delete(going.id, True, "me")
    with pytest.raises(Conflict, match="is about to be deleted"):
        await add(store, going, on_failure="run")
    schedule = await store.add(new(schedule=Schedule(None, 60.0, "UTC"), run_at=store.now() + HOUR))
    with pytest.raises(Conflict, match="is a schedule, which has no end"):
        await add(store, schedule)
    assert len((await queries.situation([])).waits) == 0


async def test_one_that_cannot_be_stored_leaves_none_of_its_batch(store: Store, queries: Queries) -> None:
    root = wish()
    with pytest.raises(NotFound):
        await store.add_all([root, wish(root.task_id), wish(new_id())])
    with pytest.raises(NotFound):
        await queries.get(root.task_id)


async def test_of_a_pipeline_that_is_more_than_the_store_takes_nothing_is_stored(
    database: Database, clock: Clock, queries: Queries
) -> None:
    small = Store(database, clock, most_live=3)
    root = wish()
    with pytest.raises(Conflict, match=r"4 tasks would wait or work; at most 3 may .*Nothing was stored"):
        await small.add_all([root, *(wish(root.task_id) for _ in range(3))])
    with pytest.raises(NotFound):
        await queries.get(root.task_id)
    assert len(await small.add_all([root, wish(root.task_id, key="a"), wish(root.task_id)])) == 3
    assert (await small.add_all([wish(root.task_id, key="a")]))[0][1], "what is there already needs no room"


async def test_a_repeated_batch_finds_its_tasks_and_hangs_new_ones_on_them(store: Store, queries: Queries) -> None:
    def batch(*, more: bool) -> list[Wish]:
        build = wish(key="build")
        test = Wish(NewTask("echo", {"of": {"$result": build.task_id}}, 1, 60.0), "test", (build.task_id,))
        return [build, test, *([wish(build.task_id, test.task_id)] if more else [])]

    first = await store.add_all(batch(more=False))
    again = await store.add_all(batch(more=True))
    assert [there for _, there in again] == [True, True, False]
    assert [task.id for task, _ in again[:2]] == [task.id for task, _ in first]
    hung = again[2][0]
    assert {row["id"] for row in (await queries.history(hung)).depends_on} == {task.id for task, _ in first}


async def test_a_batch_whose_reply_was_lost_is_found_though_its_first_task_has_failed_since(store: Store) -> None:
    def batch() -> list[Wish]:
        build = wish(key="build")
        return [build, wish(build.task_id, key="test")]

    first = [task for task, _ in await store.add_all(batch())]
    await run(store, BROKEN, first[0])
    again = await store.add_all(batch())
    assert [(task.id, task.status, there) for task, there in again] == [
        (first[0].id, "failed", True),
        (first[1].id, "cancelled", True),
    ]
    with pytest.raises(Conflict, match="is failed already"):
        await store.add_all([*batch(), wish(first[0], key="another")])


async def test_what_was_missed_is_put_right(store: Store, queries: Queries, database: Database) -> None:
    """Nothing in this program misses it; another one that writes the file may."""
    first = await add(store)
    then = await add(store, first)
    done = "UPDATE tasks SET status='completed', result='1', finished_at=1, ready=0, attempt=1 WHERE id=?"
    await database.write(lambda tx: tx.execute(done, (first.id,)).rowcount)
    assert (await queries.get(then.id)).blocked
    await store.repair()
    assert (await queries.get(then.id)).ready


# Any graph.


Step = tuple[str, int]


@given(
    edges=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=2, max_size=7),
    policies=st.lists(st.sampled_from(["cancel", "fail", "run"]), min_size=7, max_size=7),
    steps=st.lists(
        st.tuples(st.sampled_from(["completes", "fails", "cancel", "retry"]), st.integers(0, 6)), max_size=14
    ),
)
@settings(max_examples=60, deadline=None)
async def test_in_any_graph_nothing_starts_too_early_and_nothing_waits_for_ever(
    edges: list[list[int]], policies: list[OnDependencyFailure], steps: list[Step]
) -> None:
    """Whatever ends how: a task starts after all that it depends on, is stopped by a failure it minds, else it runs."""
    async with _fresh_store() as (store, queries):
        parents = [[p % n for p in some] if n else [] for n, some in enumerate(edges)]
        tasks: list[Task] = []
        for n, (some, policy) in enumerate(zip(parents, policies, strict=False)):
            tasks.append(await add(store, *(tasks[p] for p in set(some)), on_failure=policy, kind=f"kind{n}"))
        for what, n in steps:
            await _step(store, queries, tasks[n % len(tasks)], what)
            _check([await queries.get(task.id) for task in tasks], parents, policies)


@asynccontextmanager
async def _fresh_store() -> AsyncIterator[tuple[Store, Queries]]:
    with TemporaryDirectory() as folder:
        async with open_database(Path(folder) / "state" / "taskorch.db") as database:
            yield Store(database, Clock()), Queries(database)


def _check(tasks: Sequence[Task], parents: Sequence[Sequence[int]], policies: Sequence[str]) -> None:
    for task, some, policy in zip(tasks, parents, policies, strict=False):
        above = [tasks[p] for p in some]
        unfinished = any(not parent.ended for parent in above)
        stopped = policy != "run" and any(parent.status in (Status.FAILED, Status.CANCELLED) for parent in above)
        if task.status is Status.WAITING:
            assert not stopped
            assert task.blocked is unfinished
            assert task.ready is not unfinished
        if task.status is Status.WORKING or (task.status is Status.COMPLETED and policy != "run"):
            assert policy == "run" or all(parent.status is Status.COMPLETED for parent in above)


async def _step(store: Store, queries: Queries, task: Task, what: str) -> None:
    now = await queries.get(task.id)
    if what == "cancel":
        await store.cancel(task.id, "", "me")
    elif what == "retry" and now.status in (Status.FAILED, Status.CANCELLED):
        try:
            await store.retry(task.id, None, "me")
        except Conflict as error:
            assert "cannot run" in str(error)
    elif now.ready:
        [claimed] = await store.claim(ME, {task.kind: 0}, 1)
        await store.settle(claimed, DONE if what == "completes" else BROKEN)
