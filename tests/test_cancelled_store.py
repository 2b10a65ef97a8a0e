"""Calls of the store that are cancelled at any moment: a change is made whole or not at all, and no lock is left."""

import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fakes import Clock

from taskorch.domain import rules
from taskorch.domain.task import Completed, Failed, NewTask, Priority, Progress, Reason, Task, with_values
from taskorch.storage.connection import hop
from taskorch.storage.database import Database
from taskorch.storage.queries import Queries
from taskorch.storage.rows import FENCE, insert_all, save_all, to_values
from taskorch.storage.store import Store

CALLS = 3_000  # of each method
CALLERS = 8
LONGEST_SECONDS = 0.012  # the latest cancel; most come much earlier
SEED = random.randrange(1 << 32)
OWNER = 1

OTHER = """
import random, sqlite3, sys, threading, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
db.execute("CREATE TABLE other(n INTEGER)")
asked = threading.Thread(target=sys.stdin.readline, daemon=True)
asked.start()
commits = 0
print("writing", flush=True)
while asked.is_alive():
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO other VALUES (1)")
    time.sleep(0.003 * random.random())
    db.execute("COMMIT")
    commits += 1
    time.sleep(0.003 * random.random())
db.execute("PRAGMA busy_timeout=0")
db.execute("BEGIN IMMEDIATE")
print(commits)
"""


class Other:
    """Another process that writes to the same file until it is asked whether it still can."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", OTHER, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "writing\n"

    def writes_at_once(self) -> bool:
        said, _ = self.process.communicate("now\n", timeout=10)
        return int(said or 0) > 0


@pytest.fixture
async def other(database: Database, tmp_path: Path) -> Any:
    started = await anyio.to_thread.run_sync(Other, tmp_path / "state" / "taskorch.db")
    yield started
    with started.process:
        started.process.kill()


@dataclass(frozen=True)
class Method:
    """`before`: the rows of one call; `after`: what each of them becomes, None for gone. `number` is the call's."""

    call: Callable[[Store, Sequence[Task], int], Awaitable[Any]]
    after: Callable[[Task, int, int], Task | None]
    before: Callable[[Task, int], Task] = lambda task, now: task
    rows: int = 1
    calls: int = CALLS


def working(task: Task, now: int) -> Task:
    return rules.claim(task, OWNER, now)


def failed(task: Task, now: int) -> Task:
    return rules.settle(working(task, now), Failed(Reason.ERROR, "boom", retryable=False), now)


CHANGES = {"priority": Priority.HIGH, "labels": ("a", "b")}
DONE = Completed({"n": 1})
HALF = Progress(1, 2, "half")
RETRIED = Failed(Reason.ERROR, "once more")

HALF_OF_THEM = CALLS // 2  # of a method that is tried in two ways
METHODS = {
    "edit": Method(
        lambda store, tasks, _: store.edit(tasks[0].id, CHANGES, 1, "client"),
        lambda task, now, _: rules.edit(task, CHANGES, 1, now),
    ),
    "cancel": Method(
        lambda store, tasks, _: store.cancel(tasks[0].id, "enough", "client"),
        lambda task, now, _: rules.cancel(task, "cancelled by client: enough", now),
        calls=HALF_OF_THEM,
    ),
    "cancel of working ones": Method(
        lambda store, tasks, _: store.cancel(tasks[0].id, "enough", "client"),
        lambda task, now, _: rules.cancel(task, "cancelled by client: enough", now),
        working,
        calls=HALF_OF_THEM,
    ),
    "retry": Method(
        lambda store, tasks, _: store.retry(tasks[0].id, None, "client"),
        lambda task, now, _: rules.retry(task, None, now),
        failed,
    ),
    "delete": Method(
        lambda store, tasks, _: store.delete(tasks[0].id, False, "client"), lambda *_: None, failed, calls=HALF_OF_THEM
    ),
    "delete of working ones": Method(
        lambda store, tasks, _: store.delete(tasks[0].id, True, "client"),
        lambda task, now, _: rules.request_delete(task, True, now),
        working,
        calls=HALF_OF_THEM,
    ),
    "claim": Method(
        lambda store, tasks, number: store.claim(number + 1, {tasks[0].kind: 1}, 2),
        lambda task, now, number: rules.claim(task, number + 1, now),
        rows=2,
    ),
    "settle_all": Method(
        lambda store, tasks, _: store.settle_all([(task, DONE, None) for task in tasks]),
        lambda task, now, _: rules.settle(task, DONE, now),
        working,
        rows=2,
        calls=HALF_OF_THEM,
    ),
    "settle_all of failures": Method(
        lambda store, tasks, _: store.settle_all([(task, RETRIED, None) for task in tasks]),
        lambda task, now, _: rules.settle(task, RETRIED, now),
        working,
        rows=2,
        calls=HALF_OF_THEM,
    ),
    "report": Method(
        lambda store, tasks, _: store.report([(task, HALF) for task in tasks]),
        lambda task, now, _: rules.report(task, HALF, now),
        working,
        rows=2,
    ),
    "adopt": Method(
        lambda store, tasks, number: store.adopt(tasks[0], number + 2),
        lambda task, now, number: rules.adopt(task, number + 2, now),
        working,
    ),
}


async def prepare(database: Database, clock: Clock, method: Method) -> list[list[Task]]:
    """The rows that the calls work on, all stored in one transaction, each call's under a kind of its own."""
    new = [NewTask(f"kind-{n // method.rows}", {}, 3, 60.0) for n in range(method.calls * method.rows)]
    tasks = [rules.create(one, seq=0, task_id=f"t{n:016}", now=clock.now) for n, one in enumerate(new)]

    def store(tx: Any) -> list[Task]:
        stored = insert_all(tx, [(task, to_values(task)) for task in tasks])
        before = [method.before(task, clock.now) for task in stored]
        names = tuple(name for name in Task.__dataclass_fields__ if name not in FENCE[:2])
        save_all(tx, [pair for pair in zip(stored, before, strict=True) if pair[0] is not pair[1]], names)
        begun = [(task.seq, task.attempt, OWNER, clock.now) for task in before if task.attempt]
        tx.executemany("INSERT INTO attempts(task, attempt, owner, started_at) VALUES (?, ?, ?, ?)", begun)
        return before

    before = await database.write(store)
    return [before[n : n + method.rows] for n in range(0, len(before), method.rows)]


async def cut_short(call: Callable[[int], Awaitable[Any]], calls: int = CALLS) -> set[int]:
    """Call it with every number, many at a time, each with a deadline at random; the numbers of those that returned."""
    chance = random.Random(SEED)
    numbers, returned = iter(range(calls)), set[int]()

    async def caller() -> None:
        for number in numbers:
            with anyio.move_on_after(LONGEST_SECONDS * chance.random() ** 3):
                await call(number)
                returned.add(number)

    async with anyio.create_task_group() as group:
        for _ in range(CALLERS):
            group.start_soon(caller)
    print(f"seed {SEED}: {calls - len(returned)} of {calls} calls cancelled")  # noqa: T201  (to repeat a run that failed)
    assert calls - len(returned) > calls // 4
    return returned


async def check_file(database: Database, other: Other) -> None:
    """Nothing is open, what belongs together agrees, and the other process can write."""
    await database.write(lambda _: None)  # behind all that the cancelled callers had queued
    assert not await hop(database._writer, lambda connection: connection.in_transaction)
    assert not await hop(database._reader, lambda connection: connection.in_transaction)
    assert await anyio.to_thread.run_sync(other.writes_at_once)
    await database.read(check_rows)


def check_rows(db: sqlite3.Connection) -> None:
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    counted = db.execute("SELECT status, priority, tasks FROM counts WHERE tasks > 0 ORDER BY 1, 2").fetchall()
    assert counted == db.execute("SELECT status, priority, count(*) FROM tasks GROUP BY 1, 2 ORDER BY 1, 2").fetchall()


@pytest.mark.parametrize("name", METHODS)
async def test_a_cancelled_call_has_changed_all_of_its_rows_or_none(
    name: str, database: Database, store: Store, queries: Queries, clock: Clock, other: Other
) -> None:
    method = METHODS[name]
    groups = await prepare(database, clock, method)
    clock.advance(1)
    returned = await cut_short(lambda number: method.call(store, groups[number], number), method.calls)
    await check_file(database, other)
    kept = {task.id: task for task in await queries.get_many([task.id for group in groups for task in group])}
    made = 0
    for number, group in enumerate(groups):
        found = [kept.get(task.id) for task in group]
        after = [method.after(task, clock.now, number) for task in group]
        assert found == after or (found == group and number not in returned), (SEED, number)
        made += found == after
    await database.read(lambda db: check_notes(db, name, made, made * method.rows))


def check_notes(db: sqlite3.Connection, name: str, calls: int, rows: int) -> None:
    """Events and attempts were written with the rows that they tell of, and with no others."""
    events = {"edit": "updated", "cancel": "cancelled", "retry": "retried", "adopt": "adopted"}
    events |= dict.fromkeys(("cancel of working ones", "delete of working ones"), "cancel_requested")
    noted = Counter(dict(db.execute("SELECT event, count(*) FROM events GROUP BY 1").fetchall()))
    assert noted == (Counter({events[name]: calls}) if name in events else Counter())
    began, ended = db.execute("SELECT count(*), count(ended_at) FROM attempts").fetchone()
    if name == "claim":
        assert (began, ended) == (rows, 0)
    elif name.startswith("settle_all"):
        assert ended == rows


async def test_a_cancelled_add_has_stored_its_task_once_or_not_at_all(
    database: Database, store: Store, other: Other
) -> None:
    def add(number: int) -> Awaitable[Any]:
        return store.add(NewTask("work", {"text": "x" * (number % 5000)}, 1, 60.0, name=str(number)))

    returned = await cut_short(add)
    await check_file(database, other)
    rows = await database.read(
        lambda db: db.execute("SELECT name, json_extract(payload, '$.text') FROM tasks").fetchall()
    )
    names = {int(name) for name, _ in rows}
    assert returned <= names
    assert len(names) == len(rows)
    assert all(len(text) == int(name) % 5000 for name, text in rows)


async def test_a_cancelled_promotion_lets_in_all_that_is_due_at_a_moment_or_nothing(
    database: Database, store: Store, clock: Clock, other: Other
) -> None:
    begin = clock.now
    task = rules.create(NewTask("work", {}, 3, 60.0, run_at=begin + 1), seq=0, task_id="", now=begin)

    def due(n: int) -> Task:
        moment = begin + 1 + n // 3
        late = {"run_at": begin + 10**9, "expires_at": moment} if n % 3 == 0 else {"run_at": moment}
        return with_values(task, id=f"t{n:016}", **late)

    calls = 1_000
    tasks = [due(n) for n in range(3 * calls)]
    await database.write(lambda tx: insert_all(tx, [(task, to_values(task)) for task in tasks]))

    async def promote(number: int) -> None:
        clock.now = begin + 1 + number
        await store.promote()

    returned = await cut_short(promote, calls)
    await check_file(database, other)
    moments = "SELECT coalesce(expires_at, run_at), sum(ready OR status = 'failed') FROM tasks GROUP BY 1"
    done = dict(await database.read(lambda db: db.execute(moments).fetchall()))
    assert set(done.values()) <= {0, 3}
    assert all(done[begin + 1 + number] == 3 for number in returned)
    clock.now = begin + 1 + calls
    await store.promote()
    done = dict(await database.read(lambda db: db.execute(moments).fetchall()))
    assert set(done.values()) == {3}


async def test_cancelled_registrations_leave_one_row_or_none(database: Database, store: Store, other: Other) -> None:
    async def come_and_go(number: int) -> None:
        owner = await store.register(str(number), number, "0", ["work"])
        await store.leave(owner)

    returned = await cut_short(come_and_go)
    await check_file(database, other)
    left = await database.read(lambda db: [int(uuid) for (uuid,) in db.execute("SELECT uuid FROM servers")])
    assert len(set(left)) == len(left)
    assert not returned & set(left)


async def test_cancelled_cleaning_takes_attempts_and_events_with_their_tasks(
    database: Database, store: Store, clock: Clock, other: Other
) -> None:
    await prepare(database, clock, METHODS["retry"])
    clock.advance(10)
    await cut_short(lambda _: store.purge(1, 1), calls=100)  # each walks through all rows
    await check_file(database, other)
    await store.purge(1, 1)
    counts = "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM attempts), (SELECT sum(tasks) FROM counts)"
    assert await database.read(lambda db: db.execute(counts).fetchone()) == (0, 0, 0)
