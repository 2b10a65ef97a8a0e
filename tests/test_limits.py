"""Limits: how many tasks of a concurrency_key work at a time, who is let in next, and that nobody is left outside."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import clients
import pytest
from clients import call, connected, refused, settings
from fakes import Clock
from pools import Gate, Pool, ok, other_process

from taskorch.app import running
from taskorch.calls.replies import View, task_facts
from taskorch.domain.readiness import phase
from taskorch.domain.task import (
    BLANK,
    Cancelled,
    Completed,
    Failed,
    Interrupted,
    NewTask,
    Outcome,
    Phase,
    Priority,
    Reason,
    Status,
    Task,
)
from taskorch.mcp.protocol_tasks import _message
from taskorch.storage import limits
from taskorch.storage.additions import Wish
from taskorch.storage.database import Database, Transaction
from taskorch.storage.limits import Full, refill
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

ME = 7
DONE = Completed(1)
KINDS = {"echo": 0, "sleep": 0}


def new(key: str | None = "k", kind: str = "echo", **fields: Any) -> NewTask:
    return NewTask(kind, {}, concurrency_key=key, **({"max_attempts": 3, "timeout_seconds": 60.0} | fields))


async def add(store: Store, *keys: str | None, **fields: Any) -> list[Task]:
    return [await store.add(new(key, **fields)) for key in keys]


async def claim(store: Store, free: int = 100, **kinds: int) -> list[Task]:
    return await store.claim(ME, kinds or KINDS, free)


async def ready(database: Database) -> list[str]:
    """The ids of what is in the ready index, in the order of arrival."""
    return await database.read(lambda db: [i for (i,) in db.execute("SELECT id FROM tasks WHERE ready = 1")])


def ids(tasks: Sequence[Task]) -> list[str]:
    return [task.id for task in tasks]


# How many work.


async def test_of_one_key_one_works_at_a_time_in_the_order_of_arrival(store: Store) -> None:
    first, second, third = await add(store, "k", "k", "k")
    for task in (first, second, third):
        [claimed] = await claim(store)
        assert claimed.id == task.id
        assert await claim(store) == []
        await store.settle(claimed, DONE)
    assert await claim(store) == []


async def test_each_key_has_a_limit_of_its_own_and_tasks_without_one_have_none(store: Store) -> None:
    tasks = await add(store, "a", "b", None, "a", "b", None)
    assert ids(await claim(store)) == [tasks[n].id for n in (0, 1, 2, 5)]


@pytest.mark.parametrize(("key", "most"), [("gpu", 2), ("one", 1), ("other", 3)])
async def test_the_operator_says_how_many_and_how_many_of_the_others(
    key: str, most: int, database: Database, clock: Clock
) -> None:
    store = Store(database, clock, limits={"gpu": 2, "one": 1, "*": 3})
    await add(store, *[key] * 6)
    assert len(await claim(store)) == most


async def test_a_claim_of_several_kinds_takes_no_more_of_a_key_than_may_work(store: Store) -> None:
    await add(store, "k", kind="sleep")
    better, alone = await store.add(new(priority=Priority.HIGH)), await store.add(new(None, priority=Priority.LOW))
    assert ids(await claim(store)) == [better.id, alone.id]


async def test_another_server_takes_no_more_either(
    store: Store, database: Database, tmp_path: Path, clock: Clock
) -> None:
    await add(store, "k", "k")
    async with other_process(tmp_path, clock) as other:
        [first] = await claim(other)
        assert await claim(store) == []
        await store.settle(first, DONE)
        assert len(await claim(other)) == 1
        assert await claim(store) == []


async def test_nothing_with_a_key_is_claimed_ahead_of_a_slot(database: Database, clock: Clock) -> None:
    store = Store(database, clock, limits={"k": 9})
    tasks = await add(store, "k", None, "k", None)
    assert ids(await claim(store, 1, echo=8)) == [tasks[n].id for n in (0, 1)]


async def test_a_claim_leaves_out_what_has_no_room_and_takes_what_is_behind_it(
    store: Store, database: Database, tmp_path: Path, clock: Clock
) -> None:
    """A server that was started with other settings lets in more than this one may take."""
    first, second = await add(store, "k", "k")
    alone = await store.add(new(None))
    await database.write(lambda tx: tx.execute("UPDATE tasks SET ready = 1, held = 0"))
    assert ids(await claim(store, 2)) == [first.id, alone.id]
    assert (await Queries(database).get(second.id)).held


# Who is let in next.


@pytest.mark.parametrize(
    "outcome",
    [
        DONE,
        Failed(Reason.ERROR, "boom", retryable=False),
        Failed(Reason.ERROR, "boom"),
        Cancelled("ended"),
    ],
    ids=["completed", "failed", "backs off", "cancelled"],
)
async def test_however_one_ends_the_next_is_let_in(outcome: Outcome, store: Store, database: Database) -> None:
    _, second, third = await add(store, "k", "k", "k")
    [claimed] = await claim(store)
    await store.settle(claimed, outcome)
    assert await ready(database) == [second.id]
    assert (await Queries(database).get(third.id)).held


async def test_one_that_was_interrupted_keeps_its_turn(store: Store, database: Database) -> None:
    first, _ = await add(store, "k", "k")
    [claimed] = await claim(store)
    await store.settle(claimed, Interrupted("the server stopped"))
    assert await ready(database) == [first.id]


async def test_one_that_is_deleted_while_working_frees_its_place(store: Store, database: Database) -> None:
    first, second = await add(store, "k", "k")
    [claimed] = await claim(store)
    await store.delete(first.id, True, "me")
    assert await ready(database) == []
    await store.settle(claimed, Cancelled("ended"))
    assert await ready(database) == [second.id]


async def test_one_that_is_adopted_keeps_its_place(store: Store, database: Database) -> None:
    await add(store, "k", "k")
    [claimed] = await claim(store)
    adopted = await store.adopt(claimed, ME + 1)
    assert adopted and await ready(database) == []
    await store.settle(adopted, DONE)
    assert len(await ready(database)) == 1


async def _delete(store: Store, task: Task) -> None:
    await store.delete(task.id, False, "me")


async def _cancel(store: Store, task: Task) -> None:
    await store.cancel(task.id, "", "me")


async def _pause(store: Store, task: Task) -> None:
    await store.edit(task.id, {"paused": True}, None, "me")


async def _postpone(store: Store, task: Task) -> None:
    await store.edit(task.id, {"run_at": store.now() + 60_000}, None, "me")


@pytest.mark.parametrize("leaves", [_delete, _cancel, _pause, _postpone])
async def test_one_that_leaves_its_turn_gives_it_to_the_next(
    leaves: Callable[[Store, Task], Any], store: Store, database: Database
) -> None:
    first, second, _ = await add(store, "k", "k", "k")
    await leaves(store, first)
    assert await ready(database) == [second.id]


async def test_one_that_expires_before_its_turn_has_come_is_passed_over(
    store: Store, database: Database, clock: Clock
) -> None:
    first, last = await store.add(new()), await store.add(new())
    expiring = await store.add(new(priority=Priority.HIGH, expires_at=clock.now + 1000))
    assert await ready(database) == [expiring.id]
    clock.advance(2)
    await store.promote()
    assert await ready(database) == [first.id]
    assert ids(await claim(store)) == [first.id]
    assert (await Queries(database).get(last.id)).held


async def test_one_that_comes_due_takes_its_turn_by_rank(store: Store, database: Database, clock: Clock) -> None:
    await add(store, "k", "k")
    due = await store.add(new(priority=Priority.HIGH, run_at=clock.now + 1000))
    clock.advance(1)
    await store.promote()
    assert await ready(database) == [due.id]
    assert await store.promote() is None, "what is held waits for no time"


async def test_a_higher_priority_goes_first_whenever_it_is_given(store: Store, database: Database) -> None:
    first, second, third = await add(store, "k", "k", "k")
    assert await ready(database) == [first.id]
    await store.edit(third.id, {"priority": Priority.HIGH}, None, "me")
    assert await ready(database) == [third.id]
    await store.edit(third.id, {"priority": Priority.LOW}, None, "me")
    assert ids(await claim(store)) == [first.id]
    assert (await Queries(database).get(second.id)).held


async def test_a_retry_waits_for_its_turn(store: Store, database: Database) -> None:
    await add(store, "k", "k")
    [first] = await claim(store)
    await store.settle(first, Failed(Reason.ERROR, "boom", retryable=False))
    [second] = await claim(store)
    assert (await store.retry(first.id, None, "me")).held
    await store.settle(second, DONE)
    assert await ready(database) == [first.id]


async def test_what_depends_on_others_takes_its_turn_when_they_have_ended(store: Store, database: Database) -> None:
    parent = await store.add(new(None))
    [(child, _)] = await store.add_all([Wish(new(), None, (parent.id,))])
    assert child.blocked and not child.held
    other = await store.add(new())
    [claimed] = [task for task in await claim(store) if task.id == parent.id]
    await store.settle(claimed, DONE)
    assert (await Queries(database).get(child.id)).held
    [working] = [task for task in await store.held_by(ME) if task.id == other.id]
    await store.settle(working, DONE)
    assert ids(await claim(store)) == [child.id]


async def test_a_kind_that_nobody_runs_holds_up_no_other_kind(store: Store) -> None:
    await add(store, "k", kind="nobody", priority=Priority.HIGH)
    task = await store.add(new(kind="echo"))
    assert ids(await claim(store, 5, echo=0)) == [task.id]


async def test_a_clock_that_was_set_back_leaves_no_place_empty(store: Store, database: Database, clock: Clock) -> None:
    at = clock.now + 60_000
    await add(store, "k")
    too_early = await store.add(new(priority=Priority.HIGH, run_at=at))
    clock.advance(60)
    await store.promote()
    [working] = await claim(store)
    assert working.id == too_early.id
    again = await store.add(new(priority=Priority.HIGH, run_at=at))
    assert again.held
    clock.advance(-30)
    await store.settle(working, DONE)
    [next_one] = await claim(store)
    assert next_one.id != again.id
    assert await store.promote() == at


# What is told.


async def test_each_answer_says_where_the_commit_has_left_the_task(store: Store, clock: Clock) -> None:
    first, second = await add(store, "k", "k")
    assert (first.ready, second.ready) == (True, False)
    assert (phase(first, clock.now, KINDS), phase(second, clock.now, KINDS)) == (Phase.READY, Phase.BLOCKED)
    added = await store.add_all([Wish(new("new")), Wish(new("new")), Wish(new(None))])
    assert [task.ready for task, _ in added] == [True, False, True]
    assert (await store.edit(second.id, {"priority": Priority.HIGH}, None, "me")).ready
    await store.cancel(first.id, "", "me")
    await store.cancel(second.id, "", "me")
    assert (await store.retry(first.id, None, "me")).ready


async def test_who_listens_hears_of_what_was_let_in(store: Store) -> None:
    _, second = await add(store, "k", "k")
    [claimed] = await claim(store)
    heard: dict[str, Task | None] = {}
    with store.listening(heard.update):
        await store.settle(claimed, DONE)
    told = heard[second.id]
    assert told and told.ready and not told.held


async def test_what_uses_up_a_limit_is_told_by_name(database: Database, clock: Clock) -> None:
    most = {"k": 2}
    store, queries = Store(database, clock, limits=most), Queries(database, most)
    assert await queries.limit("k") == Full("k", 2, 0, None)
    first, _, third = await add(store, "k", "k", "k", name="n")
    assert await queries.limit("k") == Full("k", 2, 0, (first.id, "n"))
    await claim(store, 1)
    full = Full("k", 2, 1, (first.id, "n"))
    assert (await queries.situation([third])).waits == {third.id: full}
    await claim(store, 1)
    assert await queries.limit("k") == Full("k", 2, 2, (first.id, "n"))
    assert (await queries.situation([first])).waits == {}


# What it costs.


def test_a_commit_without_keys_asks_nothing() -> None:
    task = BLANK
    tx = SimpleNamespace(moved=[(None, task), (task, task), (task, None)])  # and nothing to ask
    refill(cast(Transaction, tx), {}, 0)


@pytest.mark.parametrize("query", ["WORKING", "READY", "HELD", "NEXT_KEY", "NEXT_KIND", "FIRST", "NEXT"])
async def test_every_question_about_a_key_is_answered_by_an_index_of_its_own(query: str, database: Database) -> None:
    sql = getattr(limits, query)
    plan = await database.read(
        lambda db: [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?"))]
    )
    assert any("tasks_key_" in line for line in plan), plan
    assert not any(line.startswith("SCAN tasks") for line in plan), plan


async def test_a_task_let_in_among_many_costs_as_much_as_among_few(database: Database, clock: Clock) -> None:
    """Counted in steps of SQLite's machine, at any size of the group."""
    store = Store(database, clock)

    async def steps(held: int) -> int:
        await store.add_all([Wish(new("k")) for _ in range(held)])
        [claimed] = await claim(store)
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        await database.write(lambda tx: tx.set_progress_handler(step, 10))
        await store.settle(claimed, DONE)
        await database.write(lambda tx: tx.set_progress_handler(None, 10))
        return count

    few, many = await steps(10), await steps(3000)
    assert many <= 1.5 * few, (few, many)


# Safety net.


async def test_a_group_that_is_stuck_all_the_same_is_freed(store: Store, database: Database) -> None:
    first, _ = await add(store, "k", "k")
    await database.write(lambda tx: tx.execute("UPDATE tasks SET ready = 0, held = 1"))
    assert await claim(store) == []
    await store.age()
    assert ids(await claim(store)) == [first.id]


async def test_a_limit_that_was_raised_is_made_use_of(store: Store, database: Database, clock: Clock) -> None:
    tasks = await add(store, "k", "k", "k")
    await claim(store)
    raised = Store(database, clock, limits={"k": 3})
    await raised.age()
    assert await ready(database) == ids(tasks[1:])


async def test_a_limit_that_was_lowered_holds_for_what_starts_from_now_on(database: Database, clock: Clock) -> None:
    tasks = await add(Store(database, clock, limits={"k": 2}), "k", "k", "k")
    assert await ready(database) == ids(tasks[:2])
    lowered = Store(database, clock)
    assert ids(await claim(lowered)) == [tasks[0].id]
    assert await ready(database) == []


async def test_every_key_is_looked_after_however_many_there_are(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.storage.ageing.KEYS", 2)
    await add(store, *"aabbccddee")
    await database.write(lambda tx: tx.execute("UPDATE tasks SET ready = 0, held = 1"))
    for freed in (2, 4, 5):
        await store.age()
        assert len(await ready(database)) == freed


# A pool.


async def test_a_pool_runs_those_of_one_key_one_after_the_other(pool: Pool) -> None:
    now, most = 0, 0

    async def count(payload: dict[str, Any]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.lowlevel.checkpoint()
        now -= 1

    async with pool.running(4, count=count), pool.running(4, count=count):
        tasks = [await pool.add("count", concurrency_key="k") for _ in range(40)]
        for task in tasks:
            assert (await pool.ended(task)).status is Status.COMPLETED
    assert most == 1


async def test_a_held_task_starts_as_soon_as_the_one_before_has_ended(pool: Pool) -> None:
    gate = Gate()
    async with pool.running(2, gate=gate.kind, work=ok):
        first = await pool.add("gate", concurrency_key="k")
        await gate.begun.wait()
        second = await pool.add("work", concurrency_key="k")
        assert second.held
        gate.open.set()
        await pool.ended(first)
        assert (await pool.ended(second)).status is Status.COMPLETED


# Clients.


async def test_a_client_is_told_which_limit_holds_a_task_and_who_uses_it(tmp_path: Path, era: str) -> None:
    async with running(settings(tmp_path, limits={"gpu": 1})) as app, connected(app.server, era) as client:
        gate = clients.Gate()
        wish = {"kind": "test.gate", "payload": gate.payload, "concurrency_key": "deploy", "name": "to staging"}
        first = (await call(client, "create_task", **wish)).facts
        await gate.reached()
        reply = await call(client, "create_task", kind="echo", concurrency_key="deploy")
        task_id = reply.facts["id"]
        assert reply.facts["phase"] == "blocked"
        said = f'waiting (blocked: limit 1 of "deploy" is used by {first["id"]} "to staging")'
        waits_for = {"concurrency_key": "deploy", "limit": 1, "working": [first["id"]]}
        for again in (
            await call(client, "get_task", task_id=task_id),
            await call(client, "get_task", task_id=task_id, detail="full"),
            await call(client, "update_task", task_id=task_id, priority="high"),
            await call(client, "wait_for_tasks", task_ids=[task_id], timeout_seconds=0),
        ):
            facts = again.facts["tasks"][0] if "tasks" in again.facts else again.facts
            assert said in again.text and facts["waits_for"] == waits_for
        listed = (await call(client, "list_tasks", kind="echo")).facts["tasks"][0]
        assert listed["phase"] == "blocked" and "waits_for" not in listed
        gate.opened.set()
        done = await call(client, "wait_for_tasks", task_ids=[task_id], timeout_seconds=20)
        assert done.facts["done"]


async def test_a_host_of_protocol_tasks_is_told_the_same(store: Store, clock: Clock) -> None:
    first, second = await add(store, "k", "k")
    view = View(clock.now, KINDS, 50, {second.id: Full("k", 1, 1, (first.id, None))})
    message = _message(second, task_facts(second, view, 200), view)
    assert message == f'blocked: limit 1 of "k" is used by {first.id}'


async def test_the_full_detail_names_the_key(tmp_path: Path, era: str) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, era) as client:
        created = await call(client, "create_task", kind="echo", concurrency_key="deploy", delay_seconds=60)
        full = await call(client, "get_task", task_id=created.facts["id"], detail="full")
        assert full.facts["concurrency_key"] == "deploy" and 'concurrency key "deploy"' in full.text
        assert "concurrency_key" not in created.facts


async def test_a_key_is_given_to_each_task_of_a_batch(tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        tasks = [{"kind": "echo", "concurrency_key": "k", "delay_seconds": 60}] * 2 + [{"kind": "echo"}]
        made = (await call(client, "create_tasks", tasks=tasks)).facts["ids"]
        keys = [(await app.service.queries.get(task_id)).concurrency_key for task_id in made]
        assert keys == ["k", "k", None]


async def test_the_key_of_a_task_cannot_be_changed(tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        created = await call(client, "create_task", kind="echo", concurrency_key="k", delay_seconds=60)
        text = await refused(client, "update_task", task_id=created.facts["id"], concurrency_key="l")
        assert "concurrency_key" in text and "create a new task" in text


@pytest.mark.parametrize("word", ["max_concurrent", "concurrency", "mutex", "lock", "queue", "concurrency_limit"])
async def test_who_wishes_for_a_lock_is_told_of_the_key(word: str, tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        assert 'concurrency_key="' in await refused(client, "create_task", kind="echo", **{word: 1})
