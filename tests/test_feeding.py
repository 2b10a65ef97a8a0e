"""feeding.py: what becomes ready is begun in the commit that makes it so, and never more than there is room for."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from fakes import Clock

from taskorch.domain import rules
from taskorch.domain.errors import Conflict, StoreError
from taskorch.domain.task import Completed, Failed, NewTask, Priority, Reason, Retry, Status, Task
from taskorch.storage import claims
from taskorch.storage.additions import Wish
from taskorch.storage.bulk import select
from taskorch.storage.database import Database, Transaction
from taskorch.storage.feeding import Pool
from taskorch.storage.rows import COLUMNS, READY_COLUMNS, SELECT, from_ready, from_row, load
from taskorch.storage.store import Change, Store

ME = 7
DONE = Completed("done")


class Eater:
    """A pool that only takes, and everything that was told of tasks."""

    def __init__(self, slots: int, ahead: Mapping[str, int] | None) -> None:
        self.taken: list[Task] = []
        self.commits: list[list[Change]] = []
        self.ahead = ahead
        self.pool = Pool(ME, slots, lambda: self.ahead, self.taken.extend)

    def heard(self, changes: Sequence[Change]) -> None:
        self.commits.append([*changes])

    @property
    def told(self) -> list[tuple[str | None, Status | None]]:
        return [(task and task.name, task and task.status) for changes in self.commits for _, task in changes]


@contextmanager
def fed(store: Store, slots: int = 1, ahead: int | None = 0) -> Iterator[Eater]:
    eater = Eater(slots, None if ahead is None else {"echo": ahead})
    with store.listening(eater.heard), store.feeding(eater.pool):
        yield eater


def new(name: str, **fields: Any) -> NewTask:
    return NewTask(**{"kind": "echo", "payload": {}, "max_attempts": 3, "timeout_seconds": 60.0, "name": name} | fields)


def names(tasks: Sequence[Task]) -> list[str | None]:
    return [task.name for task in tasks]


async def add(store: Store, *names: str, **fields: Any) -> None:
    await store.add_all([Wish(new(name, **fields)) for name in names])


async def test_a_task_that_is_created_while_a_slot_is_free_is_working_at_once(store: Store) -> None:
    with fed(store) as eater:
        await add(store, "a")
    assert names(eater.taken) == ["a"]
    assert eater.told == [("a", Status.WORKING)]  # nobody is told of a task that waits: no other server is rung


async def test_an_end_brings_the_slot_its_next_task_in_the_same_commit(store: Store) -> None:
    with fed(store) as eater:
        await add(store, "a", "b")
        assert names(eater.taken) == ["a"]
        await store.settle(eater.taken[0], DONE)
    assert names(eater.taken) == ["a", "b"]
    assert eater.told[-2:] == [("a", Status.COMPLETED), ("b", Status.WORKING)]
    assert len(eater.commits) == 2


async def test_no_more_are_taken_than_there_is_room_for_whoever_asks(store: Store) -> None:
    with fed(store, slots=2) as eater:
        await add(store, "a", "b", "c", "d")
        await add(store, "e")
        await store.feed()
        assert names(eater.taken) == ["a", "b"]
        await store.settle(eater.taken[1], DONE)
        await store.feed()
    assert names(eater.taken) == ["a", "b", "c"]


async def test_the_best_is_taken_though_another_made_the_room(store: Store) -> None:
    with fed(store) as eater:
        await add(store, "a", "low")
        await add(store, "high", priority=Priority.HIGH)
        await store.settle(eater.taken[0], DONE)
    assert names(eater.taken) == ["a", "high"]


async def test_what_is_taken_ahead_counts_as_taken(store: Store) -> None:
    with fed(store, slots=1, ahead=2) as eater:
        await add(store, *"abcde")
        assert names(eater.taken) == ["a", "b", "c"]
        await store.settle(eater.taken[0], DONE)
        assert names(eater.taken) == ["a", "b", "c", "d"]
        eater.ahead = {"echo": 0}
        await store.settle(eater.taken[1], DONE)
        assert len(eater.taken) == 4  # one works, one is ahead of it: nothing is free
        await store.settle(eater.taken[2], DONE)
        await store.settle(eater.taken[3], DONE)
    assert names(eater.taken)[4:] == ["e"]


@pytest.mark.parametrize("fields", [{"kind": "slow"}, {"max_attempts": 1}, {"concurrency_key": "one"}])
async def test_nothing_is_taken_ahead_of_a_better_one_that_only_a_slot_can_take(
    store: Store, fields: dict[str, Any]
) -> None:
    with fed(store, slots=1, ahead=2) as eater:
        eater.ahead = {"echo": 2, "slow": 0}
        await add(store, *"abcdef")
        await add(store, "best", priority=Priority.HIGH, **fields)
        for place in range(3):
            await store.settle(eater.taken[place], DONE)
    assert names(eater.taken) == ["a", "b", "c", "best", "d", "e"]


async def test_kinds_that_the_pool_cannot_run_are_left_alone(store: Store) -> None:
    with fed(store, slots=3) as eater:
        await add(store, "a", kind="other")
        assert eater.taken == []
        await add(store, "b")
    assert names(eater.taken) == ["b"]


async def test_a_pool_that_takes_none_is_given_none_until_it_asks(store: Store) -> None:
    with fed(store, ahead=None) as eater:
        await add(store, "a")
        assert eater.taken == []
        eater.ahead = {"echo": 0}
        await store.feed()
    assert names(eater.taken) == ["a"]


async def test_a_pool_that_has_gone_is_fed_no_more(store: Store) -> None:
    with fed(store) as eater:
        pass
    await add(store, "a")
    await store.feed()
    assert eater.taken == []


async def test_two_pools_of_a_process_share_what_there_is(store: Store) -> None:
    second: list[Task] = []
    with fed(store) as eater, store.feeding(Pool(ME + 1, 1, lambda: {"echo": 0}, second.extend)):
        await add(store, "a", "b", "c")
    assert (names(eater.taken), names(second)) == (["a"], ["b"])


async def test_the_limit_of_a_concurrency_key_holds(store: Store, database: Database) -> None:
    with fed(store, slots=5, ahead=5) as eater:
        await add(store, "a", "b", "c", concurrency_key="one")
        assert names(eater.taken) == ["a"]
        held = await database.read(
            lambda db: db.execute("SELECT name FROM tasks WHERE held = 1 ORDER BY seq").fetchall()
        )
        assert held == [("b",), ("c",)]
        await store.settle(eater.taken[0], DONE)
    assert names(eater.taken) == ["a", "b"]


async def test_what_a_claim_leaves_no_room_for_is_ready_no_longer(store: Store, database: Database) -> None:
    with fed(store) as eater:
        await add(store, "a", kind="other", concurrency_key="one")  # of each kind one may be ready
        await add(store, "b", concurrency_key="one")
        assert names(eater.taken) == ["b"]
        assert await database.read(lambda db: db.execute("SELECT ready, held FROM tasks").fetchall()) == [
            (0, 1),
            (0, 0),
        ]


async def test_a_task_that_waited_for_another_begins_in_the_commit_of_its_end(store: Store) -> None:
    first, then = Wish(new("first")), Wish(new("then"))
    then = Wish(then.new, depends_on=(first.task_id,))
    with fed(store) as eater:
        await store.add_all([first, then])
        await store.settle(eater.taken[0], DONE)
    assert names(eater.taken) == ["first", "then"]
    assert len(eater.commits) == 2


async def test_a_due_task_begins_in_the_commit_that_lets_it_in(store: Store, clock: Clock) -> None:
    with fed(store) as eater:
        await add(store, "later", run_at=clock.now + 5_000)
        assert eater.taken == []
        clock.advance(5)
        await store.promote()
    assert names(eater.taken) == ["later"]
    assert len(eater.commits) == 2


async def test_what_a_refused_neighbour_shares_a_commit_with_is_taken_once(store: Store, database: Database) -> None:
    async def refused() -> None:
        with pytest.raises(Conflict):
            await database.write(refuse)

    def refuse(tx: Transaction) -> None:
        raise Conflict("no")

    with fed(store, slots=3) as eater:
        async with anyio.create_task_group() as group:
            group.start_soon(add, store, "a")
            group.start_soon(refused)
            group.start_soon(add, store, "b")
    assert sorted(map(str, names(eater.taken))) == ["a", "b"]


async def test_what_could_not_be_committed_is_not_taken(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Transaction.execute

    def full(self: Transaction, text: str, *values: Any) -> Any:
        if text == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return original(self, text, *values)

    with fed(store) as eater:
        with monkeypatch.context() as patch:
            patch.setattr(Transaction, "execute", full)
            with pytest.raises(StoreError):
                await add(store, "a")
        assert (eater.taken, eater.commits) == ([], [])
        await add(store, "b")
    assert names(eater.taken) == ["b"]
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()) == (1,)


@pytest.mark.parametrize("damage", ["payload = '{'", "labels = '{'", """error = '{"reason": "made up"}'"""])
async def test_a_damaged_row_keeps_nothing_from_being_created_or_settled(
    damage: str, store: Store, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with fed(store) as eater:
        await add(store, "a", "damaged")
        await database.write(lambda tx: tx.execute(f"UPDATE tasks SET {damage} WHERE name = 'damaged'"))
        await store.settle(eater.taken[0], DONE)
        await add(store, "b")
    assert await _statuses(database) == {"a": "completed", "damaged": "waiting", "b": "waiting"}
    assert names(eater.taken) == ["a"]
    assert "a row that is ready is damaged" in caplog.text


async def test_what_is_taken_is_what_is_stored(store: Store, database: Database, clock: Clock) -> None:
    """The rule, the statement that does the same to many rows, and the short form in which a ready row is read."""
    wishes: dict[str, Any] = {
        "payload": {"text": 'é "\\ \u2028', "numbers": [1, 2.5, 10**20, -0.0], "none": None, "deep": [[[{}]]]},
        "labels": ("x", "ü"),
        "priority": Priority.HIGH,
        "expires_at": clock.now + 3_600_000,
        "concurrency_key": "key",
        "retry": Retry(on_exit=(1, 2), factor=3.0),
        "on_server_exit": "stop",
    }
    await add(store, "plain")
    await add(store, "full", **wishes)
    for task in await store.claim(ME, {"echo": 0}, 9):
        await store.settle(task, Failed(Reason.EXIT_CODE, 'exit "1"', 1), clock.now - 5)
    clock.advance(400)
    await store.promote()
    stored = [from_row(row) for row in await database.read(lambda db: db.execute(f"{SELECT} ORDER BY seq").fetchall())]
    assert all(task.ready and task.attempt == 1 and task.error for task in stored)

    def short(db: sqlite3.Connection) -> list[Task]:
        return [from_ready(row) for row in select(db, READY_COLUMNS, claims.READY, ("echo", 9), decoded="payload")]

    found = sorted(await database.read(short), key=lambda task: task.seq)
    assert list(map(repr, found)) == list(map(repr, stored))  # equal numbers may be of two sorts
    with fed(store, slots=2) as eater:
        await store.feed()
    assert eater.taken == [rules.claim(task, ME, clock.now) for task in sorted(stored, key=lambda one: -one.rank)]
    assert eater.taken == [await database.read(partial(load, task_id=task.id)) for task in eater.taken]


async def test_the_columns_that_a_ready_row_leaves_out_are_those_that_its_place_says(database: Database) -> None:
    left_out = [name for name in COLUMNS if name not in READY_COLUMNS]
    blank = {name: value for name, value in vars(rules.BLANK).items() if name in left_out}
    assert blank == {
        "status": Status.WAITING, "ready": True, "paused": False, "blocked": False, "held": False, "owner": None,
        "claim_expires_at": None, "schedule": None, "progress": None, "result": None, "cancel_requested_at": None,
        "cancel_reason": None, "finished_at": None,
    }  # fmt: skip


async def test_what_waits_for_a_task_that_a_claim_finds_expired_is_told_in_the_same_commit(
    store: Store, database: Database, clock: Clock
) -> None:
    late = Wish(new("late", expires_at=clock.now + 5_000))
    then = Wish(new("then"))
    then = Wish(then.new, depends_on=(late.task_id,))
    with fed(store) as eater:
        await add(store, "a")
        await store.add_all([late, then])
        clock.advance(6)
        await store.settle(eater.taken[0], DONE)
    assert await _statuses(database) == {"a": "completed", "late": "failed", "then": "cancelled"}


async def test_the_place_of_a_task_that_a_claim_finds_expired_is_given_on_in_the_same_commit(
    store: Store, database: Database, clock: Clock
) -> None:
    with fed(store) as eater:
        await add(store, "a")
        await add(store, "late", concurrency_key="one", expires_at=clock.now + 5_000)
        await add(store, "next", concurrency_key="one")
        clock.advance(6)
        await store.settle(eater.taken[0], DONE)
    assert await _statuses(database) == {"a": "completed", "late": "failed", "next": "working"}
    assert names(eater.taken) == ["a", "next"]


async def _statuses(database: Database) -> dict[str, str]:
    return await database.read(lambda db: dict(db.execute("SELECT name, status FROM tasks").fetchall()))
