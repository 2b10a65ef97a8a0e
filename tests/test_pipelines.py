"""Pipelines as a client makes them: in one call, by refs, with results handed on."""

import json
from typing import Any

import pytest
from clients import Answer, Facts, call, refused
from mcp import Client

from taskorch.mcp.tools import TOOLS

LATER = {"kind": "echo", "delay_seconds": 3600}


async def create(client: Client, *tasks: Facts) -> list[str]:
    return (await call(client, "create_tasks", tasks=list(tasks))).facts["ids"]


async def ended(client: Client, *ids: str) -> dict[str, Facts]:
    reply = (await call(client, "wait_for_tasks", task_ids=list(ids), timeout_seconds=20)).facts
    assert reply["done"], reply
    return {row["id"]: row for row in reply["tasks"]}


async def full(client: Client, task_id: str) -> Answer:
    return await call(client, "get_task", task_id=task_id, detail="full")


def program(*lines: str) -> Facts:
    return {"argv": ["sh", "-c", "\n".join(lines), "sh"]}


async def test_steps_run_in_order_whatever_their_order_in_the_call(client: Client) -> None:
    last, first = await create(
        client,
        {"kind": "echo", "payload": {"n": 2}, "depends_on": ["first"]},
        {"kind": "sleep", "payload": {"seconds": 0.05}, "ref": "first"},
    )
    rows = await ended(client, last, first)
    assert {row["status"] for row in rows.values()} == {"completed"}
    one, other = [(await full(client, task_id)).facts for task_id in (first, last)]
    assert other["started_at"] >= one["finished_at"]
    assert one["dependents"] == [{"id": last, "status": "completed"}]
    assert other["depends_on"] == [{"id": first, "status": "completed"}] and other["on_dependency_failure"] == "cancel"


async def test_a_task_says_what_it_waits_for(client: Client) -> None:
    first, other, last = await create(
        client, LATER | {"ref": "a", "name": "one"}, LATER | {"ref": "b"}, {"kind": "echo", "depends_on": ["a", "b"]}
    )
    for reply in (await call(client, "get_task", task_id=last), await full(client, last)):
        assert f"waiting (blocked: waits for 2 of 2 tasks: {first}, {other})" in reply.text
        assert reply.facts["phase"] == "blocked"
        assert reply.facts["waits_for"] == {"unfinished": 2, "of": 2, "tasks": [first, other]}
    waited = await call(client, "wait_for_tasks", task_ids=[last], timeout_seconds=0)
    assert "waits for 2 of 2 tasks" in waited.text and waited.facts["tasks"][0]["waits_for"]["unfinished"] == 2
    await call(client, "cancel_task", task_id=first)
    reply = await call(client, "get_task", task_id=last)
    assert reply.facts["error"] == {"reason": "dependency", "message": f"{first} 'one' was cancelled (user)"}
    assert reply.facts["next"] == f'retry_task(task_id="{first}")'
    assert (
        f'depends on: {first} "one" cancelled, {other} waiting; if one fails: cancel' in (await full(client, last)).text
    )
    assert f"{last} cannot run" in await refused(client, "retry_task", task_id=last)
    await call(client, "retry_task", task_id=first, delay_seconds=60)
    assert (await call(client, "get_task", task_id=last)).facts["phase"] == "blocked"


async def test_a_single_task_may_wait_for_others_by_name_id_or_prefix(client: Client) -> None:
    one = (await call(client, "create_task", **LATER, name="one")).facts["id"]
    two = (await call(client, "create_task", **LATER)).facts["id"]
    made = await call(client, "create_task", kind="echo", depends_on=["one", two[:10], two], dedupe_key="k")
    assert made.facts["waits_for"] == {"unfinished": 2, "of": 2, "tasks": [one, two]}
    assert f"waits for 2 of 2 tasks: {one}, {two}" in made.text
    again = await call(client, "create_task", kind="echo", depends_on=["one", two], dedupe_key="k")
    assert again.facts["id"] == made.facts["id"] and again.facts["deduplicated"] is True


@pytest.mark.parametrize("written", ["after", "dependencies", "needs", "blocked_by", "parent", "dependsOn"])
@pytest.mark.parametrize("as_list", [True, False])
async def test_what_models_write_for_depends_on_is_understood(client: Client, written: str, as_list: bool) -> None:
    one = (await call(client, "create_task", **LATER)).facts["id"]
    made = await call(client, "create_task", kind="echo", **{written: [one] if as_list else one})
    assert made.facts["waits_for"]["tasks"] == [one]


WRONG: list[tuple[list[Facts], list[str]]] = [
    ([LATER | {"ref": "a", "depends_on": ["a"]}], ["circle: a -> a"]),
    (
        [
            LATER | {"ref": "a", "depends_on": ["b"]},
            LATER | {"ref": "b", "payload": {"x": {"$result": "c"}}},
            LATER | {"ref": "c", "depends_on": ["a"]},
        ],
        ["circle: a -> b -> c -> a", "each depends on the next", "create_tasks again"],
    ),
    ([LATER | {"ref": "a"}, LATER | {"ref": "a"}], ["tasks[1]: ref 'a' is another task's"]),
    ([LATER, LATER | {"depends_on": ["none"]}], ["depends_on: No task 'none'"]),
    ([LATER | {"depends_on": [""]}], ["tasks[0]: depends_on.0", "1 or more characters"]),
    ([LATER | {"depends_on": [{"a": 1}]}], ["tasks[0]: depends_on.0"]),
    ([LATER | {"depends_on": [str(n) for n in range(1001)]}], ["tasks[0]: depends_on", "at most 1000 items"]),
    (
        [LATER | {"on_dependency_failure": "skip"}],
        ["tasks[0]: on_dependency_failure 'skip'", "or 'run'"],
    ),
    (
        [{"ref": "s", "schedule": {"cron": "@daily"}, "kind": "echo"}, LATER | {"payload": {"x": {"$result": "s"}}}],
        ["tasks[1]: depends_on 's' is a schedule, which has no end", "create_tasks again"],
    ),
    ([LATER | {"payload": {"x": [{"$result": "a"}] * 1001}}], ["payload takes more than 1000 results"]),
    ([LATER | {"payload": {"x": {"$result": "a", "path": "a..b"}}}], ["path 'a..b' is no JMESPath"]),
]


@pytest.mark.parametrize(("tasks", "said"), WRONG, ids=[words[0][:30] for _, words in WRONG])
async def test_an_order_that_cannot_be_stores_nothing(client: Client, tasks: list[Facts], said: list[str]) -> None:
    text = await refused(client, "create_tasks", tasks=tasks)
    for words in said:
        assert words in text
    assert set((await call(client, "list_tasks")).facts["counts"].values()) == {0}


async def test_a_long_circle_is_shown_in_short(client: Client) -> None:
    ring = [LATER | {"ref": f"r{n}", "depends_on": [f"r{(n + 1) % 500}"]} for n in range(500)]
    text = await refused(client, "create_tasks", tasks=ring)
    assert "r0 -> r1 -> r2" in text and "… -> r0" in text and len(text) < 500


async def test_a_thousand_steps_are_one_call(client: Client) -> None:
    steps = [{"ref": f"s{n}", **LATER, "depends_on": [f"s{n - 1}"] if n else []} for n in range(1000)]
    ids = await create(client, *steps[::-1])
    assert (await call(client, "get_task", task_id=ids[0])).facts["waits_for"]["tasks"] == [ids[1]]
    await call(client, "cancel_task", task_id=ids[-1])
    assert (await call(client, "list_tasks", limit=1)).facts["counts"]["cancelled"] == 1000


# Results.


async def test_results_flow_to_where_they_are_wanted(client: Client) -> None:
    listing = json.dumps({"version": 3, "items": [{"url": "http://x/; rm -rf $HOME"}]})
    ids = await create(
        client,
        {"ref": "list", "payload": program(f"echo '{listing}'")},
        {"ref": "value", "kind": "echo", "payload": {"deep": [{"n": 41}]}},
        {
            "ref": "print",
            "payload": {
                "argv": [
                    *("printf", "%s|", {"$result": "list", "path": "json.items[0].url"}),
                    *({"$result": "value", "path": "deep[0].n"}, {"$result": "value"}, {"$result": "list"}),
                ]
            },
        },
        {
            "ref": "all",
            "kind": "echo",
            "payload": {
                "text": {"$result": "print"},
                "same": [{"$result": "value", "path": "deep"}, {"$result": "list", "path": "json"}],
                "code": {"$result": "print", "path": "exit_code"},
            },
        },
    )
    rows = await ended(client, *ids)
    assert {row["status"] for row in rows.values()} == {"completed"}, rows
    result = (await full(client, ids[3])).facts["result"]
    assert result["text"] == f'http://x/; rm -rf $HOME|41|{{"deep":[{{"n":41}}]}}|{listing}|'
    assert result["same"] == [[{"n": 41}], json.loads(listing)] and result["code"] == 0
    shown = (await full(client, ids[3])).facts["payload"]
    assert shown["text"] == {"$result": ids[2]}, "refs have become ids"


async def test_a_result_is_a_dependency_without_saying_so(client: Client) -> None:
    one = (await call(client, "create_task", **LATER, name="one")).facts["id"]
    made = await call(client, "create_task", kind="echo", payload={"x": {"$result": "one"}})
    assert made.facts["waits_for"]["tasks"] == [one]


async def test_the_report_of_a_failure_gets_what_the_failed_step_left(client: Client) -> None:
    ids = await create(
        client,
        {"ref": "build", "payload": program("echo compiling", "echo 'no such header' >&2", "exit 2")},
        {"ref": "bad", "kind": "sleep", "payload": {"seconds": 9}, "timeout_seconds": 0.01, "max_attempts": 1},
        {
            "kind": "echo",
            "payload": {
                "log": {"$result": "build"},
                "code": {"$result": "build", "path": "exit_code"},
                "why": {"$result": "bad", "path": "error"},
            },
            "on_dependency_failure": "run",
        },
    )
    rows = await ended(client, *ids)
    assert rows[ids[0]]["status"] == rows[ids[1]]["status"] == "failed"
    told = {"log": "compiling\nno such header", "code": 2, "why": "it ran longer than 0.01 s"}
    assert (await full(client, ids[2])).facts["result"] == told


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (
            {"path": "json.version"},
            "the result of {one} finds nothing; it has status, exit_code, error, output.",
        ),
        ({"path": "output.nothing"}, "finds nothing"),
        ({"path": "length(exit_code)"}, "does not fit it"),
    ],
)
async def test_a_result_that_is_not_there_fails_the_task_at_once(client: Client, reference: Facts, said: str) -> None:
    one = (await call(client, "create_task", payload=program("echo text"), wait_seconds=10)).facts["id"]
    made = await call(client, "create_task", kind="echo", payload={"x": {"$result": one} | reference}, wait_seconds=10)
    task = (await full(client, made.facts["id"])).facts
    assert (task["status"], task["attempt"], task["error"]["reason"]) == ("failed", 1, "invalid_payload")
    assert said.format(one=one) in task["error"]["message"]


async def test_a_result_may_be_all_of_a_payload_if_it_is_an_object(client: Client) -> None:
    one, two = await create(
        client,
        {"kind": "test.value", "payload": {"value": {"value": 3}}},
        {"kind": "test.value", "payload": {"value": "text"}},
    )
    made = await call(client, "create_task", kind="test.value", payload={"$result": one}, wait_seconds=10)
    assert made.facts["result"] == 3
    made = await call(client, "create_task", kind="echo", payload={"$result": two}, wait_seconds=10)
    error = (await full(client, made.facts["id"])).facts["error"]
    assert error == {
        "reason": "invalid_payload",
        "message": "The payload must be an object, which the result 'text' is not.",
    }
    text = await refused(client, "create_task", payload={"$result": one})
    assert "The payload of a command is no result: $result stands within argv" in text


async def test_a_result_that_is_too_large_is_not_handed_on(client: Client) -> None:
    one = (await call(client, "create_task", payload=program("head -c 65537 /dev/zero"), wait_seconds=10)).facts["id"]
    two = (
        await call(client, "create_task", payload=program("head -c 65536 /dev/zero | tr '\\0' x"), wait_seconds=10)
    ).facts["id"]
    made = [
        await call(client, "create_task", kind="echo", payload=payload, wait_seconds=10)
        for payload in (
            {"x": {"$result": one}},
            {"x": [{"$result": two}] * 5},
            {"x": [{"$result": two, "path": "output | length(@)"}]},
        )
    ]
    errors = [(await full(client, reply.facts["id"])).facts.get("error", {}).get("message") for reply in made]
    assert "has 65537 bytes; at most 65536 can be handed on" in errors[0]
    assert "The payload has" in errors[1] and "at most 262144" in errors[1]
    assert errors[2] is None


async def test_a_program_is_checked_at_once_where_only_its_arguments_come_later(client: Client) -> None:
    one = (await call(client, "create_task", **LATER)).facts["id"]
    text = await refused(client, "create_task", payload={"argv": ["no-such-program", {"$result": one}]})
    assert "'no-such-program'" in text and "not found" in text
    text = await refused(client, "create_task", payload={"argv": ["true", {"$result": one}], "cwd": "relative"})
    assert "payload.cwd 'relative' is relative" in text
    text = await refused(client, "create_task", payload={"argv": ["true", {"$result": one}], "color": True})
    assert "payload.color" in text
    for payload in (
        {"argv": {"$result": one}},
        {"argv": [{"$result": one}]},
        {"argv": ["true"], "cwd": {"$result": one}},
    ):
        assert (await call(client, "create_task", payload=payload)).facts["phase"] == "blocked"


async def test_an_edited_payload_takes_results_of_what_the_task_depends_on_alone(client: Client) -> None:
    one, two, last = await create(
        client, LATER | {"ref": "a", "name": "one"}, LATER | {"name": "two"}, {"kind": "echo", "depends_on": ["a"]}
    )
    await call(client, "update_task", task_id=last, payload={"x": {"$result": "one"}})
    assert (await full(client, last)).facts["payload"] == {"x": {"$result": one}}
    text = await refused(client, "update_task", task_id=last, payload={"x": {"$result": "two"}})
    assert f"does not depend on {two}" in text and "Nothing was changed" in text


async def test_the_tools_say_how_to_order_tasks() -> None:
    schema: Any = TOOLS["create_task"].arguments.model_fields
    assert schema["depends_on"].description and "$result" in schema["payload"].description
