"""The same key and payload give the same task, however often, through however many servers and after lost answers."""

from functools import partial
from pathlib import Path

import anyio
import pytest
from clients import Facts, Gate, call, check_task, refused
from fakes import Clock
from mcp import Client
from servers import Place

from taskorch.domain.errors import Conflict
from taskorch.domain.task import Completed, NewTask, Task
from taskorch.storage.additions import Wish
from taskorch.storage.database import Database, open_database
from taskorch.storage.dedupe import KEPT_MS
from taskorch.storage.store import Store

LATER = {"kind": "echo", "delay_seconds": 3600}


def new(**payload: object) -> NewTask:
    return NewTask("echo", payload, 3, 60.0)


async def add_once(store: Store, new: NewTask, key: str) -> tuple[Task, bool]:
    return (await store.add_all([Wish(new, key)]))[0]


async def end(store: Store) -> Task:
    (task,) = await store.claim(1, {"echo": 0}, 1)
    assert await store.settle(task, Completed(None))
    return task


async def count(database: Database) -> int:
    return await database.read(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()[0])


async def test_a_key_belongs_to_its_task_until_an_hour_after_its_end(store: Store, clock: Clock) -> None:
    task, there = await add_once(store, new(a=1), "k")
    assert not there
    clock.advance(100 * 24 * 3600)
    assert (await add_once(store, new(a=1), "k"))[0].id == task.id, "while it waits"
    await end(store)
    clock.advance(KEPT_MS / 1000 - 1)
    again, there = await add_once(store, new(a=1), "k")
    assert (again.id, again.status, there) == (task.id, "completed", True)
    clock.advance(1)
    other, there = await add_once(store, new(a=1), "k")
    assert other.id != task.id and not there
    assert (await add_once(store, new(a=1), "k"))[0].id == other.id


async def test_other_work_under_the_same_key_is_a_conflict(store: Store, database: Database) -> None:
    task, _ = await add_once(store, new(a=1), "k")
    for other in (new(a=2), new(a=1.0), new(a=True), new(), NewTask("sleep", {"a": 1}, 3, 60.0)):
        with pytest.raises(Conflict, match=rf"'k' belongs to {task.id}.*Nothing was stored.*get_task"):
            await add_once(store, other, "k")
    assert await count(database) == 1
    assert (await add_once(store, NewTask("echo", {"a": 1}, 9, 5.0, name="other"), "k"))[0].id == task.id


async def test_the_order_of_a_payload_s_names_makes_no_difference(store: Store) -> None:
    task, _ = await add_once(store, new(a=1, b={"c": 2, "d": 3}), "k")
    assert (await add_once(store, new(b={"d": 3, "c": 2}, a=1), "k"))[0].id == task.id


async def test_a_deleted_task_leaves_its_key(store: Store) -> None:
    task, _ = await add_once(store, new(), "k")
    await store.delete(task.id, False, "alice")
    other, there = await add_once(store, new(), "k")
    assert other.id != task.id and not there


async def test_many_callers_on_two_servers_get_one_task(
    store: Store, database: Database, clock: Clock, tmp_path: Path
) -> None:
    found: list[tuple[str, bool]] = []

    async def add(which: Store) -> None:
        task, there = await add_once(which, new(a=1), "k")
        found.append((task.id, there))

    path = await database.read(lambda db: db.execute("PRAGMA database_list").fetchone()[2])
    async with open_database(Path(path)) as elsewhere, anyio.create_task_group() as group:
        other = Store(elsewhere, clock)
        for n in range(64):
            group.start_soon(partial(add, (store, other)[n % 2]))
    assert len({task_id for task_id, _ in found}) == 1
    assert sorted(there for _, there in found) == [False] + [True] * 63
    assert await count(database) == 1


async def test_keys_and_plain_creates_that_come_together_do_not_disturb_each_other(
    store: Store, database: Database
) -> None:
    await add_once(store, new(a=1), "k")
    refusals: list[Conflict] = []

    async def clash() -> None:
        try:
            await add_once(store, new(a=2), "k")
        except Conflict as error:
            refusals.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(store.add, new())
            group.start_soon(clash)
    assert len(refusals) == 10 and await count(database) == 11


# As a tool.


def unmarked(facts: Facts) -> Facts:
    return {name: value for name, value in facts.items() if name != "deduplicated"}


async def test_a_repeated_call_says_that_the_task_was_there(client: Client) -> None:
    made = check_task(await call(client, "create_task", **LATER, name="n" * 200, dedupe_key="backup 2026-11-24"))
    again = await call(client, "create_task", **LATER, idempotencyKey="backup 2026-11-24")
    assert again.facts == made | {"deduplicated": True}
    assert again.text.startswith(f"Already created: {made['id']}")
    assert again.text_bytes <= 400 and again.facts_bytes <= 400
    text = await refused(client, "create_task", kind="echo", payload={"a": 1}, dedupe_key="backup 2026-11-24")
    assert "belongs to" in text and "another key" in text


async def test_a_repeated_call_may_wait_for_the_first_ones_task(client: Client) -> None:
    gate = Gate()
    wishes = {"kind": "test.gate", "payload": gate.payload, "dedupe_key": "k"}
    made = (await call(client, "create_task", **wishes)).facts
    await gate.reached()
    gate.opened.set()
    again = (await call(client, "create_task", **wishes, wait_seconds=20)).facts
    assert (again["id"], again["status"], again["deduplicated"]) == (made["id"], "completed", True)


def test_after_a_lost_answer_the_repeated_call_finds_its_task(place: Place) -> None:
    server = place.start()
    wishes = {"payload": {"argv": ["sh", "-c", "echo ran >> ran"]}, "dedupe_key": "once"}
    server.post_call("create_task", **wishes)
    for _ in range(3):
        server.kill()
        server = place.start()
        task = server.call("create_task", **wishes)
    server.until_ended(task["id"])
    assert place.row(task["id"])["status"] == "completed", place.row(task["id"])["error"]
    assert (place.work / "ran").read_text() == "ran\n" and len(place.rows()) == 1
