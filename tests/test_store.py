"""The store: who gets which task, who may end it, what is written and told, on real files and with two servers."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from fakes import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from taskorch.domain import readiness, rules
from taskorch.domain.errors import Conflict, NotFound, StoreError
from taskorch.domain.task import (
    Cancelled,
    Completed,
    Error,
    Failed,
    Interrupted,
    NewTask,
    Outcome,
    Priority,
    Progress,
    Reason,
    Retry,
    Status,
    Task,
)
from taskorch.storage import busy, claims, dependencies, finding, lapses, outside, schema, servers
from taskorch.storage import queries as queries_module
from taskorch.storage import store as module
from taskorch.storage.database import Database, Transaction, open_database
from taskorch.storage.ids import new_id
from taskorch.storage.rows import COLUMNS, SELECT, from_row, load
from taskorch.storage.store import Change, Store

ECHO = {"echo": 0}  # kinds that a server can run, and how many of each to claim ahead
LOST = Failed(Reason.WORKER_LOST, "gone")
FINAL = Failed(Reason.ERROR, "no use", retryable=False)


def new(name: str | None = None, **wishes: Any) -> NewTask:
    return NewTask(
        **{"kind": "echo", "payload": {"n": 1}, "max_attempts": 3, "timeout_seconds": 60.0, "name": name} | wishes
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where conftest's database lies."""
    return tmp_path / "state" / "taskorch.db"


@pytest.fixture
async def me(store: Store) -> int:
    return await store.register("me", 1, "1", ["echo"])


@pytest.fixture
async def other(store: Store, clock: Clock, path: Path) -> AsyncIterator[Store]:
    """Another server's store on the same file."""
    async with open_database(path) as database:
        yield Store(database, clock)


@pytest.fixture
async def peer(other: Store, me: int) -> int:
    return await other.register("peer", 2, "1", ["echo"])


async def claim(store: Store, owner: int, free: int = 1, **kinds: int) -> list[Task]:
    return await store.claim(owner, kinds or ECHO, free)


async def start(store: Store, owner: int, **wishes: Any) -> Task:
    """A new task that works."""
    await store.add(new(**wishes))
    (task,) = await claim(store, owner)
    return task


class Steps:
    """Counts what a loop does, and waits until it has done so much."""

    def __init__(self) -> None:
        self.done = 0
        self._next = anyio.Event()

    def count(self) -> None:
        self.done += 1
        self._next.set()
        self._next = anyio.Event()

    async def reach(self, done: int) -> None:
        while self.done < done:
            await self._next.wait()


def names(tasks: Sequence[Task]) -> list[str | None]:
    return [task.name for task in tasks]


async def get(database: Database, task: Task) -> Task:
    return await database.read(lambda db: load(db, task.id))


async def rows(database: Database, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    return await database.read(lambda db: db.execute(sql, values).fetchall())


async def history(database: Database, task: Task) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    attempts = "SELECT attempt, outcome, reason, message, exit_code FROM attempts WHERE task = ? ORDER BY attempt"
    # What a retry keeps of the life before it has tests of its own.
    events = "SELECT event, by, iif(event = 'retried', NULL, detail) FROM events WHERE task = ? ORDER BY id"
    return await rows(database, attempts, task.seq), await rows(database, events, task.seq)


# What the table refuses, should the rules ever be wrong


@pytest.fixture(scope="module")
def table() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    yield connection
    connection.close()


NONE = dict.fromkeys(COLUMNS)
WAITING = NONE | {
    "seq": 1,
    "id": "t0123456789abcdef",
    "kind": "echo",
    "payload": "{}",
    "status": "waiting",
    "priority": 1,
    "rank": 1,
    "ready": 0,
    "paused": 0,
    "blocked": 0,
    "held": 0,
    "attempt": 1,
    "max_attempts": 3,
    "interruptions": 0,
    "timeout_seconds": 1.0,
    "on_server_exit": "survive",
    "delete_requested": 0,
    "created_at": 1,
    "updated_at": 1,
    "version": 1,
}
WORKING = WAITING | {"status": "working", "owner": 1, "started_at": 1}
COMPLETED = WAITING | {"status": "completed", "finished_at": 1, "result": "null"}
FAILED = WAITING | {"status": "failed", "finished_at": 1, "error": "{}"}
CANCELLED = FAILED | {"status": "cancelled"}
INSERT = f"INSERT INTO tasks({', '.join(COLUMNS)}) VALUES ({', '.join(':' + name for name in COLUMNS)})"


@pytest.mark.parametrize("row", [WAITING, WORKING, COMPLETED, FAILED, CANCELLED], ids=lambda row: row["status"])
def test_the_table_takes_every_status_as_the_rules_make_it(table: sqlite3.Connection, row: dict[str, Any]) -> None:
    table.execute("BEGIN")
    table.execute(INSERT, row)
    table.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (WAITING, {"owner": 1}),
        (WAITING, {"blocked": 1, "ready": 1}),
        (WORKING, {"blocked": 1}),
        (FAILED, {"blocked": 1}),
        (WAITING, {"held": 1}),
        (WAITING, {"held": 1, "ready": 1, "concurrency_key": "k"}),
        (CANCELLED, {"held": 1, "concurrency_key": "k"}),
        (WORKING, {"schedule": "{}"}),
        (WAITING, {"schedule": "{}", "ready": 1}),
        (WAITING, {"claim_expires_at": 1}),
        (COMPLETED, {"claim_expires_at": 1}),
        (COMPLETED, {"owner": 1}),
        (FAILED, {"owner": 1}),
        (CANCELLED, {"owner": 1}),
        (WORKING, {"owner": None}),
        (COMPLETED, {"result": None}),
        (WAITING, {"result": "1"}),
        (WORKING, {"result": "1"}),
        (FAILED, {"result": "1"}),
        (CANCELLED, {"result": "1"}),
        (COMPLETED, {"finished_at": None}),
        (FAILED, {"finished_at": None}),
        (CANCELLED, {"finished_at": None}),
        (WAITING, {"finished_at": 1}),
        (WORKING, {"finished_at": 1}),
        (FAILED, {"error": None}),
        (CANCELLED, {"error": None}),
        (WORKING, {"error": "{}"}),
        (COMPLETED, {"error": "{}"}),
        (WORKING, {"ready": 1}),
        (COMPLETED, {"ready": 1}),
        (FAILED, {"ready": 1}),
        (CANCELLED, {"ready": 1}),
        (WAITING, {"ready": 1, "paused": 1}),
        (WORKING, {"paused": 1}),
        (CANCELLED, {"paused": 1}),
        (WAITING, {"ready": 2}),
        (WAITING, {"paused": -1}),
        (WAITING, {"interruptions": 6}),
        (WAITING, {"interruptions": -1}),
        (WAITING, {"attempt": -1}),
        (WAITING, {"max_attempts": 0}),
        (WORKING, {"attempt": 4}),
        (FAILED, {"attempt": 6, "interruptions": 2}),
        (WORKING, {"attempt": 0}),
        (COMPLETED, {"attempt": 0}),
        (WAITING, {"cancel_requested_at": 1}),
        (WAITING, {"status": "paused"}),
        (WAITING, {"priority": 3}),
        (WAITING, {"priority": -1}),
        (WAITING, {"priority": "high"}),
        (WAITING, {"timeout_seconds": 0}),
        (WAITING, {"on_server_exit": "ask"}),
        (WAITING, {"delete_requested": 2}),
        (WAITING, {"version": 0}),
        (WAITING, {"kind": None}),
        (WAITING, {"payload": None}),
        (WAITING, {"created_at": "now"}),
    ],
    ids=lambda row: row["status"] if "id" in row else ", ".join(f"{name}={value}" for name, value in row.items()),
)
def test_the_table_refuses_what_the_rules_never_make(
    table: sqlite3.Connection, row: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=r"CHECK|NOT NULL|cannot store"):
        table.execute(INSERT, row | wrong)


def test_two_tasks_cannot_have_one_id(table: sqlite3.Connection) -> None:
    table.execute("BEGIN")
    table.execute(INSERT, WAITING)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        table.execute(INSERT, WAITING | {"seq": 2})
    table.execute("ROLLBACK")


@pytest.mark.parametrize(
    "wrong",
    [{"ended_at": 1}, {"outcome": "failed"}, {"ended_at": 1, "outcome": "lost"}],
    ids=["no outcome", "no end", "unknown outcome"],
)
def test_an_attempt_has_an_end_and_an_outcome_or_neither(table: sqlite3.Connection, wrong: dict[str, Any]) -> None:
    row = {"task": 1, "attempt": 1, "owner": 1, "started_at": 1} | wrong
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        table.execute(f"INSERT INTO attempts({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", (*row.values(),))


# Speed: no call that is made all the time may look at every row


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (claims.READY, "tasks_ready"),
        (claims.DUE, "tasks_due"),
        (claims.EXPIRED, "tasks_expiring"),
        (module.HELD_BY, "tasks_working"),
        (claims.NEXT_DUE, "tasks_due"),
        (servers.OTHERS, "tasks_working"),
        (finding.BY_NAME, "tasks_name"),
        (dependencies.STUCK, "tasks_blocked"),
        (finding.BY_PREFIX, "tasks_id"),
        (queries_module.READY_COUNT, "tasks_ready"),
        (queries_module.NEXT_RUN, "tasks_due"),
        (lapses.LAPSED, "tasks_claim_expiring"),
        (lapses.TOO_FAR, "tasks_claim_expiring"),
        (outside.PICK, "tasks_ready"),
        (outside.KINDS, "tasks_outside"),
        (outside.DIRECTORIES, "tasks_outside"),
        (outside.WAITING, "tasks_outside"),
        (outside.WORKING, "tasks_working"),
        (outside.OPEN, "tasks_working"),
    ],
)
def test_a_frequent_question_is_answered_from_its_index(table: sqlite3.Connection, sql: str, index: str) -> None:
    steps = [step for *_, step in table.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?"))]
    assert any(index in step for step in steps)
    assert not any("tasks" in step and "INDEX" not in step for step in steps)


def test_ready_tasks_come_from_their_index_in_order_without_sorting(table: sqlite3.Connection) -> None:
    steps = [step for *_, step in table.execute(f"EXPLAIN QUERY PLAN {claims.READY}", ("echo", 1))]
    assert steps == ["SEARCH tasks USING INDEX tasks_ready (kind=?)"]


# Adding


async def test_an_added_task_is_stored_as_it_was_asked_for(store: Store, database: Database, clock: Clock) -> None:
    asked = new(
        "näme",
        payload={"deep": [1, 2.5, None, True, "ü\n"]},
        priority=Priority.HIGH,
        run_at=clock.now + 5,
        expires_at=clock.now + 9,
        on_server_exit="stop",
        labels=("a", 'quo"te'),
    )
    task = await store.add(asked)
    stored = await get(database, task)
    assert stored == task
    assert {field: getattr(stored, field) for field in NewTask.__slots__} == {
        field: getattr(asked, field) for field in NewTask.__slots__
    }
    assert (stored.status, stored.attempt, stored.version, stored.ready) == (Status.WAITING, 0, 1, False)


def test_ids_are_random_and_of_the_documented_form() -> None:
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    alphabet = set("".join(made))
    assert alphabet == set("0123456789abcdefghjkmnpqrstvwxyz")
    assert {(len(task_id), task_id[0]) for task_id in made} == {(17, "t")}


async def test_tasks_added_by_two_servers_at_once_get_places_of_their_own(
    store: Store, other: Store, database: Database
) -> None:
    async with anyio.create_task_group() as group:
        for each in (store, other):
            for _ in range(50):
                group.start_soon(each.add, new())
    assert await rows(database, "SELECT count(*), count(DISTINCT seq), count(DISTINCT id) FROM tasks") == [
        (100, 100, 100)
    ]


# Claiming


async def test_urgent_tasks_are_claimed_first_then_in_order_of_arrival(store: Store, me: int) -> None:
    for name, priority in [("a", 1), ("b", 0), ("c", 2), ("d", 1), ("e", 2)]:
        await store.add(new(name, priority=Priority(priority)))
    assert names(await claim(store, me, 3)) == ["c", "e", "a"]
    assert names(await claim(store, me, 9)) == ["d", "b"]
    assert await claim(store, me, 9) == []


async def test_the_best_of_all_kinds_is_claimed_first(store: Store, me: int) -> None:
    for name, kind, priority in [("a", "echo", 1), ("b", "sleep", 2), ("c", "sleep", 1), ("d", "echo", 2)]:
        await store.add(new(name, kind=kind, priority=Priority(priority)))
    assert names(await claim(store, me, 3, echo=0, sleep=0)) == ["b", "d", "a"]


async def test_a_retried_task_keeps_its_place_in_the_queue(store: Store, me: int, clock: Clock) -> None:
    first = await start(store, me, name="first")
    await store.add(new("second"))
    await store.settle(first, LOST)
    clock.advance(600)
    await store.promote()
    assert names(await claim(store, me, 2)) == ["first", "second"]


async def test_only_kinds_that_the_server_can_run_are_claimed(store: Store, me: int) -> None:
    await store.add(new("no", kind="unknown"))
    assert await claim(store, me, 9) == []


async def test_nothing_runs_before_its_time(store: Store, me: int, clock: Clock) -> None:
    await store.add(new("later", run_at=clock.now + 1000))
    await store.add(new("now"))
    assert names(await claim(store, me, 9)) == ["now"]
    await store.promote()
    assert await claim(store, me, 9) == []
    clock.advance(1)
    assert await store.promote() is None
    assert names(await claim(store, me, 9)) == ["later"]


async def test_a_paused_task_is_not_claimed(store: Store, me: int) -> None:
    task = await store.add(new())
    await store.edit(task.id, {"paused": True}, None, "x")
    assert await claim(store, me, 9) == []
    await store.edit(task.id, {"paused": False}, None, "x")
    assert len(await claim(store, me, 9)) == 1


async def test_a_claim_is_written_down_before_it_is_told(store: Store, me: int, path: Path, clock: Clock) -> None:
    task = await start(store, me)
    assert (task.status, task.attempt, task.owner, task.started_at) == (Status.WORKING, 1, me, clock.now)
    with sqlite3.connect(path) as elsewhere:
        assert elsewhere.execute("SELECT status, attempt, owner, ready, version FROM tasks").fetchall() == [
            ("working", 1, me, 0, 2)
        ]
        assert elsewhere.execute("SELECT task, attempt, owner, outcome FROM attempts").fetchall() == [
            (task.seq, 1, me, None)
        ]
    elsewhere.close()


async def test_a_task_that_has_expired_is_failed_and_the_one_behind_it_claimed(
    store: Store, me: int, clock: Clock, database: Database
) -> None:
    late = [await store.add(new(f"late {n}", expires_at=clock.now + 5)) for n in range(3)]
    for n in range(3):
        await store.add(new(f"good {n}"))
    clock.advance(1)
    assert names(await claim(store, me, 4)) == ["good 0", "good 1", "good 2"]
    ended = await get(database, late[0])
    assert ended.status is Status.FAILED
    assert ended.error and ended.error.reason is Reason.EXPIRED
    assert await history(database, ended) == ([], [("expired", "server", None)])


async def test_thousands_of_expired_tasks_do_not_stop_a_claim(store: Store, me: int, clock: Clock) -> None:
    """As after a laptop slept through their time."""
    async with anyio.create_task_group() as group:
        for _ in range(1500):
            group.start_soon(store.add, new(expires_at=clock.now + 5))
    await store.add(new("good"))
    clock.advance(1)
    assert names(await claim(store, me)) == ["good"]


async def test_a_clock_set_back_delays_a_task_and_does_not_lose_it(store: Store, me: int, clock: Clock) -> None:
    task = await store.add(new(run_at=clock.now + 1000))
    clock.advance(1)
    await store.promote()
    clock.advance(-1)
    assert await claim(store, me) == []
    assert await store.promote() == task.run_at
    clock.advance(1)
    await store.promote()
    assert len(await claim(store, me)) == 1


async def test_tasks_of_a_kind_may_be_claimed_ahead_of_free_slots(store: Store, me: int) -> None:
    for n in range(6):
        await store.add(new(str(n)))
    assert names(await claim(store, me, 1, echo=2)) == ["0", "1", "2"]
    assert names(await claim(store, me, 0, echo=1)) == ["3"]
    assert names(await claim(store, me, 0, echo=0)) == []


async def test_a_task_on_its_last_start_is_never_claimed_ahead(store: Store, me: int, clock: Clock) -> None:
    await store.add(new("slot"))
    await store.add(new("two starts", max_attempts=2))
    await store.add(new("only one start", max_attempts=1))
    assert names(await claim(store, me, 1, echo=5)) == ["slot", "two starts"]
    assert names(await claim(store, me, 0, echo=5)) == []
    assert names(await claim(store, me, 1, echo=5)) == ["only one start"]


async def test_only_the_kinds_that_allow_it_are_claimed_ahead(store: Store, me: int) -> None:
    for name, kind in [("a", "echo"), ("b", "echo"), ("c", "slow"), ("d", "echo")]:
        await store.add(new(name, kind=kind))
    assert names(await claim(store, me, 1, echo=9, slow=0)) == ["a", "b"]


async def test_two_servers_never_claim_the_same_task(store: Store, other: Store, me: int, peer: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(store.add, new())
    taken: list[str] = []
    claiming: set[int] = set()
    both = anyio.Event()

    async def work(server: Store, owner: int) -> None:
        while tasks := await server.claim(owner, {"echo": 1}, 3):
            taken.extend(task.id for task in tasks)
            claiming.add(owner)
            if claiming == {me, peer}:
                both.set()
            await both.wait()  # so that neither takes all while the other gets under way

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(work, store, me)
                group.start_soon(work, other, peer)
    assert len(taken) == len(set(taken)) == 200


# How many


async def test_no_more_tasks_than_the_limit_may_wait_or_work(database: Database, clock: Clock) -> None:
    store = Store(database, clock, most_live=3)
    me = await store.register("me", 1, "1", ["echo"])
    tasks = [await store.add(new()) for _ in range(3)]
    with pytest.raises(Conflict, match=r"4 tasks would wait or work; at most 3 may \(TASKORCH_MAX_LIVE_TASKS\)"):
        await store.add(new())
    assert await rows(database, "SELECT count(*) FROM tasks") == [(3,)]
    (working,) = await claim(store, me)
    assert await store.settle(working, Completed())
    assert (await store.add(new("room again"))).seq > tasks[-1].seq


# The fence


async def test_a_worker_whose_task_was_started_again_cannot_settle(
    store: Store, me: int, clock: Clock, database: Database
) -> None:
    stale = await start(store, me)
    await store.settle(stale, Interrupted())
    (again,) = await claim(store, me)
    assert (again.attempt, again.owner) == (2, stale.owner)
    assert not await store.settle(stale, Completed("stale"))
    assert await get(database, stale) == again
    assert await store.settle(again, Completed("good"))
    assert not await store.settle(again, Completed("twice"))
    assert (await get(database, stale)).result == "good"
    assert [outcome for _, outcome, *_ in (await history(database, stale))[0]] == ["interrupted", "completed"]


async def test_a_worker_whose_task_was_adopted_cannot_settle(
    store: Store, other: Store, me: int, peer: int, database: Database
) -> None:
    stale = await start(store, me)
    adopted = await other.adopt(stale, peer)
    assert adopted and (adopted.attempt, adopted.owner) == (stale.attempt, peer)
    assert not await store.settle(stale, FINAL)
    assert await get(database, stale) == adopted
    assert await other.settle(adopted, Completed("good"))


async def test_ends_that_come_together_are_each_fenced_by_themselves(
    store: Store, other: Store, me: int, peer: int, database: Database
) -> None:
    for name in ("plain", "adopted", "edited", "cancelled", "deleted", "failed", "none"):
        await store.add(new(name))
    plain, adopted, edited, cancelled, deleted, failed, none = await claim(store, me, 7)
    await other.adopt(adopted, peer)
    await other.edit(edited.id, {"labels": ("new",)}, None, "x")
    await other.cancel(cancelled.id, "", "x")
    await other.delete(deleted.id, True, "x")
    done = [(task, Completed({"of": task.name}), None) for task in (plain, adopted, edited, cancelled, deleted)]
    lost = await store.settle_all([*done, (failed, FINAL, None), (none, Completed(), None)])
    assert names(lost) == ["adopted"]
    now = [await get(database, task) for task in (plain, edited, cancelled, failed, none)]
    assert [str(task.status) for task in now] == ["completed", "completed", "completed", "failed", "completed"]
    assert [task.result for task in now] == [{"of": "plain"}, {"of": "edited"}, {"of": "cancelled"}, None, None]
    assert now[1].labels == ("new",)
    assert await rows(database, "SELECT status FROM tasks WHERE id = ?", adopted.id) == [("working",)]
    assert await rows(database, "SELECT 1 FROM tasks WHERE id = ?", deleted.id) == []
    outcomes = "SELECT outcome, count(*) FROM attempts GROUP BY outcome ORDER BY outcome"
    assert await rows(database, outcomes) == [(None, 1), ("completed", 4), ("failed", 1)]
    counts = "SELECT status, sum(tasks) FROM counts GROUP BY status HAVING sum(tasks) ORDER BY status"
    assert await rows(database, counts) == [("completed", 4), ("failed", 1), ("working", 1)]


async def test_an_end_written_in_one_statement_is_what_the_rules_say(
    store: Store, me: int, database: Database, clock: Clock
) -> None:
    task = await start(store, me, labels=("a",))
    clock.now += 5
    assert await store.settle(task, Completed([1], "[1]"), task.started_at)
    assert await get(database, task) == rules.settle(task, Completed([1]), clock.now, task.started_at)


async def test_a_task_that_has_gone_cannot_be_settled_or_adopted(store: Store, me: int, peer: int) -> None:
    task = await start(store, me)
    await store.delete(task.id, True, "x")
    assert await store.settle(task, Cancelled())
    assert not await store.settle(task, Completed())
    assert await store.adopt(task, peer) is None


async def test_a_place_used_again_lets_no_stale_worker_through(store: Store, me: int, database: Database) -> None:
    """The newest row's seq is given again once it is deleted; attempt and owner may be equal as well."""
    stale = await start(store, me)
    await store.delete(stale.id, True, "x")
    await store.settle(stale, Cancelled())
    fresh = await start(store, me, name="fresh")
    assert (fresh.seq, fresh.attempt, fresh.owner) == (stale.seq, stale.attempt, stale.owner)
    assert not await store.settle(stale, Completed("stale"))
    await store.report([(stale, Progress(9))])
    assert await get(database, fresh) == fresh
    assert await history(database, fresh) == ([(1, None, None, None, None)], [])


async def test_only_one_server_adopts(store: Store, other: Store, me: int, peer: int) -> None:
    task = await start(store, me)
    adopted: list[Task | None] = []

    async def adopt(server: Store, owner: int) -> None:
        adopted.append(await server.adopt(task, owner))

    third = await other.register("third", 3, "1", ["echo"])
    async with anyio.create_task_group() as group:
        group.start_soon(adopt, store, peer)
        group.start_soon(adopt, other, third)
    assert sorted(task is None for task in adopted) == [False, True]


async def test_progress_of_a_lost_attempt_is_dropped_and_of_the_others_kept(
    store: Store, me: int, peer: int, database: Database
) -> None:
    lost, ours = await start(store, me, name="lost"), await start(store, me, name="ours")
    await store.adopt(lost, peer)
    await store.report([(lost, Progress(1)), (ours, Progress(2, 4, "half"))])
    assert (await get(database, lost)).progress is None
    after = await get(database, ours)
    assert (after.progress, after.version) == (Progress(2, 4, "half"), ours.version)


# What is written


async def test_settling_undoes_nobodys_edit(store: Store, other: Store, me: int, database: Database) -> None:
    task = await start(store, me)
    await other.edit(task.id, {"priority": Priority.HIGH, "labels": ("new",)}, None, "x")
    assert await store.settle(task, LOST)
    after = await get(database, task)
    assert (after.priority, after.rank, after.labels, after.status) == (Priority.HIGH, 2, ("new",), Status.WAITING)


@pytest.mark.parametrize("outcome", [LOST, FINAL, Interrupted(), Cancelled()])
async def test_a_task_asked_to_stop_by_another_server_is_not_retried(
    store: Store, other: Store, me: int, database: Database, outcome: Outcome
) -> None:
    task = await start(store, me)
    await other.cancel(task.id, "enough", "bob")
    assert await store.settle(task, outcome)  # the worker's copy of the task knows of no request
    after = await get(database, task)
    assert (after.status, after.cancel_reason) == (Status.CANCELLED, "cancelled by bob: enough")


async def test_progress_undoes_no_cancel_request(store: Store, other: Store, me: int, database: Database) -> None:
    task = await start(store, me)
    asked = await other.cancel(task.id, "", "bob")
    await store.report([(task, Progress(1))])
    after = await get(database, task)
    assert (after.cancel_requested_at, after.progress) == (asked.cancel_requested_at, Progress(1))


async def test_a_move_writes_only_the_columns_that_it_changes(
    store: Store, me: int, clock: Clock, database: Database
) -> None:
    """A trigger of the test's own notes every column of an UPDATE's list, changed or not."""
    task = await start(store, me)

    def watch(tx: Transaction) -> None:
        tx.execute("CREATE TEMP TABLE written(name)")
        for name in COLUMNS:
            tx.execute(
                f"CREATE TEMP TRIGGER w_{name} AFTER UPDATE OF {name} ON main.tasks "
                f"BEGIN INSERT INTO written VALUES ('{name}'); END"
            )

    async def written(call: Awaitable[Any]) -> set[str]:
        await database.write(lambda tx: tx.execute("DELETE FROM written"))
        await call
        found = await database.write(lambda tx: tx.execute("SELECT name FROM written").fetchall())
        return {name for (name,) in found}

    await database.write(watch)
    moved = {"updated_at", "version"}
    clock.advance(1)
    assert await written(store.report([(task, Progress(1))])) == {"progress", "updated_at"}
    assert await written(store.edit(task.id, {"labels": ("a",)}, None, "x")) == {"labels"} | moved
    assert await written(store.cancel(task.id, "", "x")) == {"cancel_requested_at", "cancel_reason"} | moved
    assert await written(store.adopt(task, me + 1)) == {"owner"} | moved


@pytest.mark.parametrize(
    ("before", "after"), [({"on": 1}, {"on": True}), ({"n": 1}, {"n": 1.0}), ({"off": [0]}, {"off": [False]})]
)
async def test_an_edited_payload_is_stored_although_python_calls_both_equal(
    store: Store, database: Database, before: dict[str, Any], after: dict[str, Any]
) -> None:
    task = await store.add(new(payload=before))
    await store.edit(task.id, {"payload": after}, None, "x")
    assert repr((await get(database, task)).payload) == repr(after)


@pytest.mark.parametrize("result", [None, 0, False, "", [], {}, {"deep": [1, None, "ü"]}, "\x00", "😀"])
async def test_a_result_comes_back_as_it_was(store: Store, me: int, database: Database, result: Any) -> None:
    task = await start(store, me)
    assert await store.settle(task, Completed(result))
    after = await get(database, task)
    assert (after.status, repr(after.result), after.error) == (Status.COMPLETED, repr(result), None)


async def test_a_failure_comes_back_as_it_was(store: Store, me: int, database: Database) -> None:
    task = await start(store, me)
    await store.settle(task, Failed(Reason.EXIT_CODE, 'exit "7"\n', 7, retryable=False))
    assert (await get(database, task)).error == Error(Reason.EXIT_CODE, 'exit "7"\n', 7)


async def test_an_edit_of_an_old_version_changes_nothing(store: Store, database: Database) -> None:
    task = await store.add(new("a"))
    edited = await store.edit(task.id, {"name": "b"}, 1, "x")
    with pytest.raises(Conflict):
        await store.edit(task.id, {"name": "c"}, 1, "x")
    assert await get(database, task) == edited
    assert (await history(database, task))[1] == [("updated", "x", "name")]


async def test_progress_conflicts_with_no_edit(store: Store, me: int) -> None:
    task = await start(store, me)
    await store.report([(task, Progress(1))])
    assert (await store.edit(task.id, {"labels": ("a",)}, task.version, "x")).progress == Progress(1)


# Due and expired


async def test_promoting_tells_when_the_next_task_is_due(store: Store, clock: Clock) -> None:
    with anyio.fail_after(5):
        assert await store.promote() is None
        await store.add(new(run_at=clock.now + 5000))
        await store.add(new(run_at=clock.now + 3000))
        await store.add(new(expires_at=clock.now + 9000))
        assert await store.promote() == clock.now + 3000
        clock.advance(3)
        assert await store.promote() == clock.now + 2000
        clock.advance(2)
        assert await store.promote() == clock.now + 4000
        clock.advance(4)
        assert await store.promote() is None


async def test_a_clock_that_was_set_back_strands_no_retry(
    store: Store, other: Store, me: int, clock: Clock, database: Database
) -> None:
    task = await start(store, me)
    assert await store.settle(task, Failed(Reason.ERROR, "once"))
    wait = (await get(database, task)).run_at - clock.now  # type: ignore[operator]
    far = await store.add(new("far", run_at=clock.now + 86_400_000))
    clock.now -= 3_600_000
    assert await other.promote() == clock.now + wait  # a server that starts
    assert (await get(database, task)).run_at == clock.now + wait
    assert (await get(database, far)).run_at == far.run_at  # what a client asked for stays
    clock.now -= 3_600_000
    assert await other.promote() == clock.now + wait  # one that runs
    clock.now += wait
    await other.promote()
    assert (await get(database, task)).ready


async def test_a_clock_that_was_set_back_strands_no_retry_whose_policy_waits_for_hours(
    store: Store, other: Store, me: int, clock: Clock, database: Database
) -> None:
    hours = Retry(first_delay_seconds=7200.0, max_delay_seconds=7200.0)
    patient, usual = [await start(store, me, retry=retry) for retry in (hours, None)]
    for task in (patient, usual):
        assert await store.settle(task, Failed(Reason.ERROR, "once"))
    wait = (await get(database, patient)).run_at - clock.now  # type: ignore[operator]
    assert wait >= 3_600_000
    asked = await store.edit(usual.id, {"run_at": clock.now + 3_600_000}, None, "x")
    clock.now -= 86_400_000
    await other.promote()
    assert (await get(database, patient)).run_at == clock.now + wait
    assert (await get(database, usual)).run_at == asked.run_at  # what a client asked for stays


async def test_paused_tasks_are_not_due_but_expire(store: Store, clock: Clock, database: Database) -> None:
    task = await store.add(new(run_at=clock.now + 1000, expires_at=clock.now + 5000))
    await store.edit(task.id, {"paused": True}, None, "x")
    clock.advance(2)
    assert await store.promote() == clock.now + 3000
    assert not (await get(database, task)).ready
    clock.advance(3)
    with anyio.fail_after(5):
        assert await store.promote() is None
    assert (await get(database, task)).status is Status.FAILED


async def test_a_task_of_an_unknown_kind_expires_too(store: Store, clock: Clock, database: Database) -> None:
    task = await store.add(new(kind="unknown", expires_at=clock.now + 1000))
    clock.advance(1)
    with anyio.fail_after(5):
        await store.promote()
    after = await get(database, task)
    assert (after.status, after.finished_at) == (Status.FAILED, clock.now)


async def test_more_due_tasks_than_one_batch_are_all_let_in(
    store: Store, clock: Clock, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BATCH", 3)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(store.add, new(run_at=clock.now + 1000))
            group.start_soon(store.add, new(run_at=clock.now + 500, expires_at=clock.now + 900))
    clock.advance(1)
    with anyio.fail_after(5):
        assert await store.promote() is None
    found = dict(await rows(database, "SELECT status || ready, count(*) FROM tasks GROUP BY 1"))
    assert found == {"waiting1": 10, "failed0": 10}


# Cancelling, deleting, retrying


async def test_cancelling_a_waiting_task_ends_it_and_says_who_and_why(store: Store, database: Database) -> None:
    task = await store.add(new())
    ended = await store.cancel(task.id, "enough", "bob")
    assert (ended.status, ended.error) == (Status.CANCELLED, Error(Reason.USER, "cancelled by bob: enough"))
    assert await history(database, task) == ([], [("cancelled", "bob", "enough")])


async def test_cancelling_again_changes_nothing_and_is_not_an_error(store: Store, me: int, database: Database) -> None:
    ended = await store.cancel((await store.add(new())).id, "", "bob")
    assert await store.cancel(ended.id, "again", "eve") == ended
    asked = await store.cancel((await start(store, me)).id, "", "bob")
    assert await store.cancel(asked.id, "again", "eve") == asked
    assert (await history(database, ended))[1] == [("cancelled", "bob", None)]
    assert (await history(database, asked))[1] == [("cancel_requested", "bob", None)]


@pytest.mark.parametrize("call", ["edit", "cancel", "retry", "delete"])
async def test_a_task_that_is_not_there_is_said_to_be_gone(store: Store, call: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "edit": ({}, None, "x"),
        "cancel": ("", "x"),
        "retry": (None, "x"),
        "delete": (True, "x"),
    }
    with pytest.raises(NotFound, match="t0000000000000000 no longer exists"):
        await getattr(store, call)("t0000000000000000", *arguments[call])


async def test_deleting_a_task_that_does_not_work_removes_it_with_its_history(
    store: Store, me: int, database: Database
) -> None:
    ended = await start(store, me)
    await store.settle(ended, FINAL)
    await store.retry(ended.id, None, "x")
    await store.cancel(ended.id, "", "x")
    waiting = await store.add(new())
    for task in (ended, waiting):
        assert await store.delete(task.id, False, "x") is None
    for name in ("tasks", "attempts", "events"):
        assert await rows(database, f"SELECT * FROM {name}") == []


@pytest.mark.parametrize("outcome", [Completed(), LOST, Interrupted(), Cancelled()])
async def test_a_working_task_is_deleted_when_it_ends_but_only_with_confirm(
    store: Store, me: int, database: Database, outcome: Outcome
) -> None:
    task = await start(store, me)
    with pytest.raises(Conflict, match="confirm=true"):
        await store.delete(task.id, False, "x")
    left = await store.delete(task.id, True, "bob")
    assert left and (left.status, left.delete_requested) == (Status.WORKING, True)
    assert await get(database, task) == left
    assert (await history(database, task))[1] == [("cancel_requested", "bob", "deleted while working")]
    assert await store.settle(task, outcome)
    assert await rows(database, "SELECT * FROM tasks") == []
    assert await rows(database, "SELECT * FROM attempts") == []


async def test_a_retry_grants_one_more_start_and_keeps_the_history(store: Store, me: int, database: Database) -> None:
    task = await start(store, me, max_attempts=1)
    await store.settle(task, Failed(Reason.EXIT_CODE, "exit code 7", 7))
    with pytest.raises(Conflict):
        await store.retry((await start(store, me)).id, None, "x")
    await store.retry(task.id, None, "bob")
    (again,) = await claim(store, me)
    assert (again.id, again.attempt) == (task.id, 2)
    await store.settle(again, LOST)
    assert (await get(database, task)).status is Status.FAILED
    attempts, events = await history(database, task)
    assert attempts == [
        (1, "failed", "exit_code", "exit code 7", 7),
        (2, "failed", "worker_lost", "gone", None),
    ]
    assert events == [("retried", "bob", None)]


async def test_the_history_tells_every_start_its_end_and_every_other_change(
    store: Store, me: int, peer: int, clock: Clock, database: Database
) -> None:
    task = await start(store, me, max_attempts=9)
    outcomes: list[Outcome] = [Failed(Reason.TIMEOUT, "slow"), Interrupted("stopped"), FINAL]
    for outcome in outcomes:
        clock.advance(600)
        assert await store.settle(task, outcome, started_at=clock.now - 7)
        if outcome is FINAL:
            await store.retry(task.id, None, "ann")
        clock.advance(600)
        await store.promote()
        (task,) = await claim(store, me)
    await store.edit(task.id, {"priority": Priority.LOW, "labels": ("a",)}, None, "bob")
    task = await store.adopt(task, peer) or task
    await store.cancel(task.id, "enough", "eve")
    await store.settle(task, Cancelled("killed 2 processes"))
    attempts, events = await history(database, task)
    assert attempts == [
        (1, "failed", "timeout", "slow", None),
        (2, "interrupted", "interrupted", "stopped", None),
        (3, "failed", "error", "no use", None),
        (4, "cancelled", "user", "cancelled by eve: enough; killed 2 processes", None),
    ]
    assert events == [
        ("retried", "ann", None),
        ("updated", "bob", "labels, priority"),
        ("adopted", f"server {peer}", f"from server {me}"),
        ("cancel_requested", "eve", "enough"),
    ]
    times = await rows(database, "SELECT started_at, ended_at FROM attempts ORDER BY attempt")
    assert [ended - started for started, ended in times] == [7, 7, 7, 0]


# Servers


async def test_a_server_number_is_never_given_again(store: Store) -> None:
    first = await store.register("a", 1, "1", [])
    await store.leave(first)
    assert await store.register("b", 1, "1", []) == first + 1


async def test_a_server_that_holds_tasks_is_not_forgotten(store: Store, me: int, peer: int) -> None:
    task = await start(store, me)
    await store.leave(me)
    assert [(one.owner, one.uuid, one.pid) for one in await store.others(peer)] == [(me, "me", 1)]
    assert await store.held_by(me) == [task]
    await store.settle(task, FINAL)
    await store.leave(me)
    assert await store.others(peer) == []


async def test_a_server_whose_record_is_lost_is_no_stranger_to_itself(
    store: Store, other: Store, me: int, peer: int
) -> None:
    await start(store, me)
    await store._database.write(lambda tx: tx.execute("DELETE FROM servers WHERE id = ?", (me,)))
    assert [one.owner for one in await store.others(me)] == [peer]
    assert [one.owner for one in await other.others(peer)] == [me]


async def test_an_owner_that_nobody_noted_is_still_found(store: Store, me: int, database: Database) -> None:
    await start(store, me)
    await database.write(lambda tx: tx.execute("DELETE FROM servers"))
    assert [(one.owner, one.uuid) for one in await store.others(99)] == [(me, "")]


async def test_stored_ids_are_told_from_gone_ones(store: Store) -> None:
    task = await store.add(new())
    assert await store.stored([task.id, "t0000000000000000", "../etc"]) == {task.id}


# Listeners


async def test_listeners_hear_of_committed_rows_and_of_nothing_else(store: Store, me: int, path: Path) -> None:
    heard: list[Change] = []

    def listener(changes: Sequence[Change]) -> None:
        with sqlite3.connect(path, timeout=0) as elsewhere:  # what is told can be seen by everybody
            for task_id, task in changes:
                row = elsewhere.execute("SELECT version FROM tasks WHERE id = ?", (task_id,)).fetchone()
                assert row == (task and (task.version,))
        elsewhere.close()
        heard.extend(changes)

    with store.listening(listener):
        task = await store.add(new())
        (claimed,) = await claim(store, me)
        with pytest.raises(Conflict):
            await store.retry(task.id, None, "x")
        await store.settle(task, Completed())  # `task` was never claimed: not ours
        await store.delete(task.id, True, "x")
        await store.settle(claimed, Cancelled())
    assert [(task_id, task and task.status) for task_id, task in heard] == [
        (task.id, Status.WAITING),
        (task.id, Status.WORKING),
        (task.id, Status.WORKING),
        (task.id, None),
    ]
    assert heard[1][1] == claimed
    await store.add(new())
    assert len(heard) == 4


async def test_another_server_s_commits_are_told_and_own_ones_are_not(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.001)
    foreign_version = store._database.foreign_version
    looks, told = Steps(), Steps()

    async def look() -> int:
        version = await foreign_version()
        looks.count()
        return version

    def listener(changes: Sequence[Change]) -> None:
        if not changes:
            told.count()

    monkeypatch.setattr(store._database, "foreign_version", look)
    with store.listening(listener), anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.follow_others)
            await told.reach(1)  # what was committed before the first look is known by no other way
            await store.add(new())
            await looks.reach(looks.done + 2)
            assert told.done == 1
            await other.add(new())
            await told.reach(2)
            await looks.reach(looks.done + 2)
            assert told.done == 2
            group.cancel_scope.cancel()


async def test_a_commit_before_the_first_look_is_told(store: Store, other: Store) -> None:
    told = Steps()
    with store.listening(lambda changes: None if changes else told.count()), anyio.fail_after(5):
        await other.add(new())
        async with anyio.create_task_group() as group:
            group.start_soon(store.follow_others)
            await told.reach(1)
            group.cancel_scope.cancel()


async def test_a_store_that_fails_for_a_moment_does_not_end_the_following(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.001)
    foreign_version = store._database.foreign_version
    looks, told = Steps(), Steps()

    async def look() -> int:
        looks.count()
        if looks.done in (2, 3):
            raise StoreError("disk I/O error")
        return await foreign_version()

    monkeypatch.setattr(store._database, "foreign_version", look)
    with store.listening(lambda changes: None if changes else told.count()), anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.follow_others)
            await looks.reach(4)
            before = told.done
            await other.add(new())
            await told.reach(before + 1)
            group.cancel_scope.cancel()


async def test_a_probe_says_whether_the_store_can_be_written(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "BUSY_SECONDS", 0.01)
    await store.probe()
    elsewhere = sqlite3.connect(path, isolation_level=None)
    elsewhere.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="busy"):
        await store.probe()
    elsewhere.close()
    await store.probe()


# Any sequence of calls

picks = st.integers(0, 9)
moves = st.one_of(
    st.tuples(st.just("add"), st.none() | st.integers(0, 9), st.none() | st.integers(1, 99), st.sampled_from(Priority)),
    st.tuples(st.just("add"), st.none(), st.none(), st.just(Priority.MEDIUM)),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("settle"), picks, st.sampled_from([Completed(7), FINAL, Cancelled()])),
    st.tuples(st.just("settle"), picks, st.sampled_from([LOST, Interrupted("stop")])),
    st.tuples(st.just("settle"), st.just(0), st.sampled_from([LOST, Interrupted("stop")])),
    st.tuples(st.just("go_on"), st.integers(1, 3)),
    st.tuples(st.just("go_on"), st.integers(1, 3)),
    st.tuples(st.just("report"), picks),
    st.tuples(st.just("adopt"), st.just(0) | picks),
    st.tuples(st.just("cancel"), picks),
    st.tuples(st.just("retry"), picks, st.none() | st.integers(0, 9)),
    st.tuples(st.just("edit"), picks, st.fixed_dictionaries({"priority": st.sampled_from(Priority)})),
    st.tuples(st.just("edit"), picks, st.fixed_dictionaries({"max_attempts": st.integers(1, 4)})),
    st.tuples(st.just("edit"), picks, st.fixed_dictionaries({"paused": st.booleans()})),
    st.tuples(st.just("delete"), picks, st.booleans()),
    st.tuples(st.just("promote")),
    st.tuples(st.just("pass_time"), st.integers(-60, 600)),
)


class Twin:
    """What the table should hold: the rules applied to rows in memory. Each move is made by one of two servers."""

    def __init__(self, servers: Sequence[tuple[Store, int]], clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._rows: dict[str, Task] = {}
        self._claimed: list[Task] = []  # every fence that was ever held

    async def move(self, server: int, name: str, *arguments: Any) -> None:
        await getattr(self, name)(*self._servers[server], *arguments)

    @property
    def rows(self) -> dict[str, Task]:
        return self._rows

    async def add(self, store: Store, _: int, delay: int | None, life: int | None, priority: Priority) -> None:
        if len(self._rows) == 4:  # few, so that much happens to each
            return
        now = self._clock.now
        asked = new(
            run_at=None if delay is None else now + delay * 1000,
            expires_at=None if life is None else now + life * 1000,
            priority=priority,
            max_attempts=5,
        )
        task = await store.add(asked)
        seq = max((row.seq for row in self._rows.values()), default=0) + 1
        self._rows[task.id] = rules.create(asked, seq=seq, task_id=task.id, now=now)

    async def claim(self, store: Store, owner: int, free: int) -> None:
        ready = sorted((row for row in self._rows.values() if row.ready), key=lambda row: (-row.rank, row.seq))
        expected: list[Task] = []
        for row in ready:
            if len(expected) == free:
                break
            if readiness.may_run(row, self._clock.now):
                expected.append(rules.claim(row, owner, self._clock.now))
            else:
                self._refile(row)
        assert await store.claim(owner, ECHO, free) == expected
        self._rows |= {task.id: task for task in expected}
        self._claimed += expected

    async def settle(self, store: Store, _: int, index: int, outcome: Outcome) -> None:
        if (task := self._pick(self._claimed, index)) is None:
            return
        held = self._held(task)
        assert await store.settle(task, outcome) == (held is not None)
        if held:
            self._rows[task.id] = rules.settle(held, outcome, self._clock.now)
            if held.delete_requested:
                del self._rows[task.id]

    async def report(self, store: Store, _: int, index: int) -> None:
        if task := self._pick(self._claimed, index):
            await store.report([(task, Progress(index))])
            if held := self._held(task):
                self._rows[task.id] = rules.report(held, Progress(index), self._clock.now)

    async def adopt(self, store: Store, owner: int, index: int) -> None:
        if task := self._pick(self._claimed, index):
            held = self._held(task)
            adopted = await store.adopt(task, owner)
            assert adopted == (held and rules.adopt(held, owner, self._clock.now))
            if adopted:
                self._rows[task.id] = adopted
                self._claimed.append(adopted)

    async def cancel(self, store: Store, _: int, index: int) -> None:
        if task := self._pick([*self._rows.values()], index):
            reason = "cancelled by bob: enough"
            await self._same(
                store.cancel(task.id, "enough", "bob"), task, lambda: rules.cancel(task, reason, self._clock.now)
            )

    async def retry(self, store: Store, _: int, index: int, delay: int | None) -> None:
        if task := self._pick([*self._rows.values()], index):
            run_at = None if delay is None else self._clock.now + delay * 1000
            await self._same(
                store.retry(task.id, run_at, "bob"), task, lambda: rules.retry(task, run_at, self._clock.now)
            )

    async def edit(self, store: Store, _: int, index: int, changes: dict[str, Any]) -> None:
        if task := self._pick([*self._rows.values()], index):
            await self._same(
                store.edit(task.id, changes, None, "bob"),
                task,
                lambda: rules.edit(task, changes, None, self._clock.now),
            )

    async def delete(self, store: Store, _: int, index: int, confirm: bool) -> None:
        if task := self._pick([*self._rows.values()], index):
            await self._same(
                store.delete(task.id, confirm, "bob"),
                task,
                lambda: rules.request_delete(task, confirm, self._clock.now),
            )

    async def promote(self, store: Store, _: int) -> None:
        now = self._clock.now
        if now < store._latest:  # the clock was set back since this server looked: retries wait no longer for that
            for row in [row for row in self._rows.values() if self._is_stranded(row, now)]:
                self._rows[row.id] = readiness.restore_backoff(row, now)
        for row in list(self._rows.values()):
            if readiness.is_expired(row, now) or (row.run_at is not None and readiness.may_run(row, now)):
                self._refile(row)
        waiting = [row for row in self._rows.values() if row.status is Status.WAITING]
        due = [row.expires_at for row in waiting if row.expires_at is not None]
        due += [row.run_at for row in waiting if row.run_at is not None and not row.ready and not row.paused]
        assert await store.promote() == min(due, default=None)

    async def go_on(self, store: Store, owner: int, free: int) -> None:
        """What gets a task that has failed under way again."""
        self._clock.advance(600)
        await self.promote(store, owner)
        await self.claim(store, owner, free)

    async def pass_time(self, _: Store, __: int, seconds: int) -> None:
        self._clock.advance(seconds)

    async def _same(self, call: Awaitable[Any], before: Task, rule: Callable[[], Task | None]) -> None:
        try:
            after = rule()
        except Conflict as refused:
            with pytest.raises(Conflict) as raised:
                await call
            assert str(raised.value) == str(refused)
            return
        assert await call == after
        if after is None:
            del self._rows[before.id]
        else:
            self._rows[before.id] = after

    def _held(self, task: Task) -> Task | None:
        row = self._rows.get(task.id)
        fence = (Status.WORKING, task.attempt, task.owner)
        return row if row and (row.status, row.attempt, row.owner) == fence else None

    def _is_stranded(self, row: Task, now: int) -> bool:
        waits = row.status is Status.WAITING and not row.ready and not row.paused and row.error is not None
        return waits and row.run_at is not None and row.run_at > now and row.updated_at > now

    def _refile(self, row: Task) -> None:
        now = self._clock.now
        self._rows[row.id] = rules.expire(row, now) if readiness.is_expired(row, now) else readiness.file(row, now)

    def _pick(self, tasks: Sequence[Task], index: int) -> Task | None:
        return tasks[-1 - index % len(tasks)] if tasks else None


def everything(db: sqlite3.Connection) -> dict[str, Task]:
    return {task.id: task for task in (from_row(row) for row in db.execute(SELECT))}


def check_books(db: sqlite3.Connection) -> None:
    """What the tables say of each other."""
    counted = db.execute("SELECT status, priority, tasks FROM counts WHERE tasks > 0 ORDER BY 1, 2").fetchall()
    assert counted == db.execute("SELECT status, priority, count(*) FROM tasks GROUP BY 1, 2 ORDER BY 1, 2").fetchall()
    for task in everything(db).values():
        starts = db.execute("SELECT attempt, ended_at FROM attempts WHERE task = ? ORDER BY 1", (task.seq,)).fetchall()
        assert [attempt for attempt, _ in starts] == list(range(1, task.attempt + 1))
        open_ones = [attempt for attempt, ended_at in starts if ended_at is None]
        assert open_ones == ([task.attempt] if task.status is Status.WORKING else [])
    for name in ("attempts", "events"):
        assert db.execute(f"SELECT task FROM {name} WHERE task NOT IN (SELECT seq FROM tasks)").fetchall() == []


def test_no_sequence_of_calls_by_two_servers_breaks_the_store(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "taskorch.db"
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_database(path)) as one,
        portal.wrap_async_context_manager(open_database(path)) as two,
    ):
        stores = [Store(one, clock), Store(two, clock)]
        servers = [(store, portal.call(store.register, str(n), n, "1", ["echo"])) for n, store in enumerate(stores)]

        async def play(steps: list[tuple[int, tuple[Any, ...]]]) -> None:
            await one.write(lambda tx: tx.execute("DELETE FROM tasks"))
            await one.write(lambda tx: tx.execute("UPDATE counts SET tasks = 0"))
            twin = Twin(servers, clock)
            for server, move in steps:
                await twin.move(server, *move)
                assert await one.read(everything) == twin.rows
            await two.read(check_books)

        @settings(max_examples=80, deadline=None)
        @given(st.lists(st.tuples(st.integers(0, 1), moves), min_size=40, max_size=60))
        def any_sequence(steps: list[tuple[int, tuple[Any, ...]]]) -> None:
            portal.call(play, steps)

        any_sequence()
