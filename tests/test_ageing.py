"""Ageing: nobody starves behind an endless stream of better tasks, and looking after that stays cheap."""

import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Pool

from taskorch.domain import rules
from taskorch.domain.readiness import AGEING_MS, aged
from taskorch.domain.task import BLANK, Completed, Failed, NewTask, Priority, Reason, Task, with_values
from taskorch.storage import ageing, claims
from taskorch.storage.database import Database, Transaction
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work import housekeeping
from taskorch.work.housekeeping import Housekeeper

ME = 7
NOW = 1_800_000_000_000
MINUTE = 60_000
LOW, MEDIUM, HIGH = Priority


def new(priority: Priority = LOW, **fields: Any) -> NewTask:
    return NewTask("echo", {}, 3, 60.0, priority=priority, **fields)


async def rank(queries: Queries, task: Task) -> int:
    return (await queries.get(task.id)).rank


async def later(store: Store, clock: Clock, minutes: float) -> None:
    """Time passes, and the server looks each minute."""
    while minutes > 0:
        clock.advance(60 * min(1, minutes))
        minutes -= 1
        await store.age()


# The rule.


def waiting(priority: Priority, since: int, **changes: Any) -> Task:
    fields = {"priority": priority, "rank": int(priority), "ready": True, "created_at": NOW, "updated_at": since}
    return with_values(BLANK, **fields | changes)


@pytest.mark.parametrize(
    ("priority", "minutes", "level"),
    [
        *((LOW, 9.99, LOW), (LOW, 10, MEDIUM), (LOW, 19.99, MEDIUM), (LOW, 20, HIGH), (LOW, 10**6, HIGH)),
        *((MEDIUM, 9.99, MEDIUM), (MEDIUM, 10, HIGH), (HIGH, 10**6, HIGH)),
    ],
)
def test_a_task_rises_a_level_for_each_ten_minutes_up_to_that_of_high(
    priority: Priority, minutes: float, level: int
) -> None:
    now = NOW + round(minutes * MINUTE)
    after = aged(waiting(priority, NOW), now)
    assert after.rank == level
    assert after == with_values(waiting(priority, NOW), rank=level), "and nothing else is changed"
    assert aged(waiting(priority, NOW, ready=False, held=True), now).rank == level
    assert aged(after, now) is after


def test_what_may_not_run_does_not_age() -> None:
    for waits in ({"ready": False, "paused": True}, {"ready": False, "run_at": NOW}, {"ready": False, "blocked": True}):
        assert aged(waiting(LOW, NOW, **waits), NOW + 10 * AGEING_MS).rank == LOW


def test_the_time_before_it_could_run_does_not_count() -> None:
    assert aged(waiting(LOW, NOW, run_at=NOW + AGEING_MS), NOW + AGEING_MS).rank == LOW
    assert aged(waiting(LOW, NOW, run_at=NOW - AGEING_MS), NOW + AGEING_MS).rank == MEDIUM


def test_a_clock_that_was_set_back_lowers_nobody() -> None:
    assert aged(waiting(MEDIUM, NOW), NOW - 100 * AGEING_MS).rank == MEDIUM


# In the store.


async def test_ageing_is_no_change_that_anybody_sees_but_in_the_order(
    store: Store, queries: Queries, clock: Clock
) -> None:
    task = await store.add(new())
    await later(store, clock, 21)
    after = await queries.get(task.id)
    assert after == with_values(task, rank=2)
    assert (await queries.history(task)).events == []
    [claimed] = await store.claim(ME, {"echo": 0}, 1)
    assert claimed.priority is LOW


async def test_a_retry_begins_anew_and_an_edit_waits_anew(store: Store, queries: Queries, clock: Clock) -> None:
    failing, edited = await store.add(new()), await store.add(new())
    await later(store, clock, 10)
    assert [await rank(queries, task) for task in (failing, edited)] == [1, 1]
    await store.edit(edited.id, {"name": "n"}, None, "me")
    [claimed] = await store.claim(ME, {"echo": 0}, 1)
    await store.settle(claimed, Failed(Reason.ERROR, "boom"))
    assert await rank(queries, failing) == 0
    clock.advance(300)
    await store.promote()
    await later(store, clock, 4)
    assert [await rank(queries, task) for task in (failing, edited)] == [0, 1]
    await later(store, clock, 2)
    assert [await rank(queries, task) for task in (failing, edited)] == [1, 1]
    await later(store, clock, 10)
    assert await rank(queries, edited) == 2
    await store.edit(edited.id, {"priority": MEDIUM}, None, "me")
    assert await rank(queries, edited) == 1, "a priority that is given is what counts"


async def test_an_endless_stream_of_high_ones_starves_nobody(store: Store, clock: Clock) -> None:
    """One slot, always busy: a task of a minute each, and a new high one for each that ends."""
    low = [await store.add(new()) for _ in range(3)]
    medium = await store.add(new(MEDIUM))
    for _ in range(5):
        await store.add(new(HIGH))
    started: dict[str, int] = {}
    for minute in range(60):
        [task] = await store.claim(ME, {"echo": 0}, 1)
        started[task.id] = minute
        await store.add(new(HIGH))
        await later(store, clock, 1)
        await store.settle(task, Completed(1))
    assert started[medium.id] == 10, "behind no high one that came later"
    assert [started[task.id] for task in low] == [20, 21, 22], "and in the order of their arrival"


async def test_nobody_starves_within_a_limit(store: Store, clock: Clock) -> None:
    low = await store.add(new(concurrency_key="k"))
    await store.add(new(HIGH, concurrency_key="k"))
    waited = 0
    while True:
        [task] = await store.claim(ME, {"echo": 0}, 1)
        if task.id == low.id:
            break
        await store.add(new(HIGH, concurrency_key="k"))
        await later(store, clock, 1)
        await store.settle(task, Completed(1))
        waited += 1
        assert waited <= 21
    assert waited >= 20


async def test_a_server_looks_after_those_that_wait(
    store: Store, queries: Queries, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "AGE_SECONDS", 0.01)
    task = await store.add(new())
    clock.advance(3600)
    pool = Pool(store, queries, clock, tmp_path)
    keeper = Housekeeper(store, tmp_path / "output", keep_ms=1, keep_failed_ms=1, interval_seconds=60)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        await pool.seen(task, lambda task: task.rank == 2)
        group.cancel_scope.cancel()


# What it costs.


@settings(max_examples=200, deadline=None)
@given(
    priority=st.sampled_from(Priority),
    levels=st.integers(0, 2),
    minutes=st.sampled_from([0, 9, 10, 11, 19, 20, 21, 40]),
    run_at=st.none() | st.sampled_from([-5 * MINUTE, 15 * MINUTE]),
)
def test_what_is_looked_for_is_what_the_rule_raises(
    priority: Priority, levels: int, minutes: int, run_at: int | None
) -> None:
    rank = min(2, priority + levels)
    task = waiting(priority, NOW, rank=rank, run_at=run_at and NOW + run_at)
    now = NOW + minutes * MINUTE
    db = sqlite3.connect(":memory:")
    row = "SELECT 7 AS seq, ? AS priority, ? AS rank, ? AS updated_at, ? AS run_at"
    found = db.execute(ageing.DUE.format(row), (int(priority), rank, task.updated_at, task.run_at, now)).fetchall()
    db.close()
    if rank in ageing.LEVELS:
        assert bool(found) == (aged(task, now).rank > rank)


async def fill(database: Database, rows: int, minutes: int = 0) -> None:
    """So many tasks of each priority that could run since then."""
    at = Clock().now - minutes * MINUTE

    def insert(tx: Transaction) -> None:
        task = rules.create(new(), seq=0, task_id="", now=at)
        names = [name for name in Task.__dataclass_fields__ if name not in ("seq", "id", "priority", "rank")]
        values = {name: getattr(task, name) for name in names} | {"payload": "{}", "status": "waiting", "labels": None}
        tx.execute(
            f"""WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
            INSERT INTO tasks(id, priority, rank, {", ".join(names)})
            SELECT 't' || ? || '-' || n, n % 3, n % 3, {", ".join("?" * len(names))} FROM n""",
            (3 * rows, minutes, *(values[name] for name in names)),
        )
        tx.execute("UPDATE counts SET tasks = tasks + ? WHERE status = 'waiting'", (rows,))

    await database.write(insert)


async def steps(database: Database, sql: str, values: tuple[Any, ...]) -> int:
    """How many steps SQLite's machine takes for it."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    def run(tx: Transaction) -> None:
        tx.set_progress_handler(step, 1)
        try:
            tx.execute(sql, values).fetchall()
        finally:
            tx.set_progress_handler(None, 1)

    await database.write(run)
    return count


@pytest.mark.parametrize("query", ["READY_KIND", "READY_DUE", "HELD_DUE"])
async def test_what_waits_long_is_found_by_the_indexes_of_what_waits(query: str, database: Database) -> None:
    sql = getattr(ageing, query)
    plan = await database.read(
        lambda db: [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?"))]
    )
    index = "tasks_key_held" if query == "HELD_DUE" else "tasks_ready"
    assert any(f"SEARCH tasks USING INDEX {index}" in line for line in plan), plan
    assert not any(line.startswith("SCAN tasks") or "TEMP B-TREE" in line for line in plan), plan


async def test_a_look_and_a_claim_cost_the_same_however_many_wait(database: Database, store: Store) -> None:
    look = (ageing.READY_DUE, ("echo", 0, NOW))
    claim = (claims.READY, ("echo", 8))
    await fill(database, 2_000)
    few = [await steps(database, *query) for query in (look, claim)]
    await fill(database, 20_000, minutes=1)
    assert [await steps(database, *query) for query in (look, claim)] == few
    await store.age()
    await fill(database, 2_000, minutes=11)
    await store.age()
    assert await steps(database, *claim) == few[1]


async def test_a_step_raises_a_bounded_number_and_the_oldest_first(
    database: Database, store: Store, queries: Queries
) -> None:
    await fill(database, 1_500, minutes=11)
    at_once: list[int] = []
    with store.listening(lambda changes: at_once.append(len(changes))):
        await store.age()
    assert max(at_once) <= ageing.BATCH
    risen = await database.read(
        lambda db: db.execute("SELECT seq FROM tasks WHERE rank > priority AND priority = 0 ORDER BY seq").fetchall()
    )
    lows = await database.read(
        lambda db: db.execute("SELECT seq FROM tasks WHERE priority = 0 ORDER BY seq LIMIT 1000").fetchall()
    )
    assert risen == lows
    await store.age()
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM tasks WHERE rank = 0").fetchone()[0]) == 0
