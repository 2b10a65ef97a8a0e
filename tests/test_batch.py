"""Many tasks in one call: all of them are stored or none."""

from typing import Any

import pytest
from clients import Answer, Facts, call, check_row, refused
from mcp import Client

from taskorch.domain.errors import Conflict
from taskorch.domain.task import NewTask
from taskorch.storage.additions import Wish
from taskorch.storage.store import Store

LATER = {"kind": "echo", "delay_seconds": 3600}


async def create(client: Client, *tasks: Facts) -> Answer:
    return await call(client, "create_tasks", tasks=list(tasks))


async def counts(client: Client) -> Facts:
    return (await call(client, "list_tasks", limit=1)).facts["counts"]


async def test_tasks_are_stored_in_their_order_with_all_that_was_said_of_each(client: Client) -> None:
    made = await create(
        client,
        LATER | {"name": "first", "priority": "high", "labels": ["a"], "payload": {"n": 1}},
        {"command": ["true"], "delay_seconds": 60, "title": "second"},
    )
    assert made.facts["count"] == 2 and len(made.facts["tasks"]) == 2
    for row in made.facts["tasks"]:
        check_row(row, made.text)
    first, second = [(await call(client, "get_task", task_id=i, detail="full")).facts for i in made.facts["ids"]]
    assert (first["name"], first["priority"], first["labels"], first["payload"]) == ("first", "high", ["a"], {"n": 1})
    assert (second["name"], second["kind"], second["payload"]) == ("second", "command", {"argv": ["true"]})
    rows = (await call(client, "list_tasks")).facts["tasks"]
    assert [row["id"] for row in rows] == made.facts["ids"][::-1]
    assert (await call(client, "wait_for_tasks", task_ids=made.facts["ids"], timeout_seconds=0)).facts["done"] is False


async def test_a_thousand_are_one_call_and_its_answer_names_them_all(client: Client) -> None:
    made = await create(client, *[LATER | {"payload": {"n": n}} for n in range(1000)])
    assert made.facts["count"] == len(set(made.facts["ids"])) == 1000 and len(made.facts["tasks"]) == 10
    assert all(task_id in made.text for task_id in made.facts["ids"])
    assert made.text_bytes < 22_000 and made.facts_bytes < 25_000
    assert (await counts(client))["waiting"] == 1000


WRONG: list[tuple[list[Any], list[str]]] = [
    ([LATER, LATER | {"kind": "ecoh"}], ["tasks[1]: Unknown kind 'ecoh'. Did you mean 'echo'?"]),
    ([LATER | {"nmae": "x"}, LATER], ["tasks[0]: Unknown argument 'nmae'. Did you mean 'name'?"]),
    ([LATER, LATER | {"cron": "0 7 * * *"}], ["tasks[1]: Unknown argument 'cron'. To repeat it write schedule="]),
    ([LATER | {"id": "a"}], ["tasks[0]: Unknown argument 'id'. The server makes the id."]),
    ([LATER, {"payload": {"argv": ["no-such-program"]}}], ["tasks[1]: payload.argv[0] 'no-such-program'"]),
    ([LATER | {"wait_seconds": 5}], ["tasks[0]: wait_seconds is for create_task alone"]),
    ([LATER | {"max_attempts": 0}] * 5, ["tasks[0]: max_attempts 0", "tasks[2]:", "2 more tasks are wrong"]),
    ([LATER, 5], ["tasks.1 5", "must be an object"]),
    ([], ["tasks []", "1 or more items"]),
    ([LATER] * 1001, ["tasks", "at most 1000 items"]),
    ([LATER | {"payload": {"a": "x" * 250_000}}] * 40, ["characters together", "Split it"]),
    ([LATER | {"payload": {"a": "\0"}}], ["tasks[0]: payload.a holds the character"]),
]


@pytest.mark.parametrize(("tasks", "said"), WRONG, ids=[words[0][:40] for _, words in WRONG])
async def test_one_wrong_task_refuses_them_all(client: Client, tasks: list[Any], said: list[str]) -> None:
    text = await refused(client, "create_tasks", tasks=tasks)
    for words in said:
        assert words in text
    assert len(text) <= 1_500 and "create_tasks again" in text
    assert set((await counts(client)).values()) == {0}


async def test_each_payload_may_be_as_deep_as_in_a_call_of_its_own(client: Client) -> None:
    payload: Any = 1
    for _ in range(32):
        payload = {"a": payload}
    await create(client, LATER | {"payload": payload})
    assert "nested more than 32" in await refused(client, "create_tasks", tasks=[LATER | {"payload": {"a": payload}}])


async def test_a_repeated_call_finds_its_tasks_by_their_keys(client: Client) -> None:
    tasks = [LATER | {"dedupe_key": f"k{n}", "payload": {"n": n}} for n in range(3)]
    made = await create(client, *tasks)
    again = await create(client, *tasks, LATER | {"dedupe_key": "k3"}, LATER)
    assert again.facts["ids"][:3] == made.facts["ids"] and again.facts["deduplicated"] == 3
    assert "3 of them already there" in again.text and (await counts(client))["waiting"] == 5
    clash = [LATER | {"name": "new"}, LATER | {"dedupe_key": "k1", "payload": {"n": 9}}]
    assert "'k1' belongs to" in await refused(client, "create_tasks", tasks=clash)
    assert (await counts(client))["waiting"] == 5


async def test_more_than_may_live_are_refused_whole(store: Store) -> None:
    small = Store(store._database, store.now, most_live=5)
    wishes = [Wish(NewTask("echo", {"n": n}, 3, 60.0)) for n in range(6)]
    with pytest.raises(Conflict, match="at most 5"):
        await small.add_all(wishes)
    assert len(await small.add_all(wishes[:5])) == 5
