"""The tools of outside workers as a model sees them: when they are there, what they accept, what they answer."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from clients import TIME, Answer, Facts, call, check_task, connected, raw_call, refused, settings, size, stored
from mcp import Client
from mcp.shared.exceptions import MCPError
from test_server import environment, wire

from taskorch.app import App, running
from taskorch.calls.aliases import understood
from taskorch.calls.service import CORE, WORKER
from taskorch.domain.outside import PAYLOAD_BYTES
from taskorch.domain.task import RESULT_BYTES, Status
from taskorch.mcp.server import INSTRUCTIONS, WORKERS
from taskorch.mcp.tools import TOOLS, offered
from taskorch.storage.listing import Filters
from taskorch.work.handlers import handler

OURS = ["claim_task", "heartbeat_task", "complete_task", "fail_task"]


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with running(settings(tmp_path, toolsets="core,worker")) as app:
        yield app


async def create(client: Client, **arguments: Any) -> Facts:
    return check_task(await call(client, "create_task", **({"kind": "outside"} | arguments)))


async def claim(client: Client, **arguments: Any) -> Facts:
    """The facts of a claim that succeeds; both forms of the answer say them."""
    answer = await call(client, "claim_task", **arguments)
    facts = answer.facts
    assert facts["claimed"] is True
    payload = json.dumps(facts["payload"], ensure_ascii=False, separators=(",", ":"))
    said = [facts["id"], facts["kind"], payload, facts["worker"], facts["claim_expires_at"], facts["next"]]
    said += [f"{facts['claim_seconds']:g} s", f"{facts['timeout_seconds']:g} s", *facts.get("labels", [])]
    said += [f"attempt {facts['attempt']}/{facts['max_attempts']}", facts["status"], f"version {facts['version']}"]
    said += [facts["last_error"]["message"]] if "last_error" in facts else []
    for word in said:
        assert word in answer.text, f"the text does not say {word!r}:\n{answer.text}"
    assert TIME.fullmatch(facts["claim_expires_at"])
    return facts


async def nothing(client: Client, **arguments: Any) -> Facts:
    answer = await call(client, "claim_task", **arguments)
    facts = answer.facts
    assert facts["claimed"] is False
    said = [f"{facts['waiting']} waiting", f"at {facts['working']}", facts["hint"], facts.get("next_run_at", "")]
    said += [str(facts.get("others_ready", ""))]
    for word in said:
        assert word in answer.text
    return facts


def check_worker_reply(answer: Answer, **extra: Any) -> Facts:
    """An answer about one task, with what is said to its worker besides."""
    facts = answer.facts
    assert {name: facts[name] for name in extra} == extra
    plain = {name: value for name, value in facts.items() if name not in ("repeated", "claim_expires_at")}
    check_task(Answer(answer.text, plain))
    for name in ("claim_expires_at", "next"):
        assert facts.get(name, "") in answer.text
    assert answer.text_bytes <= 400 and answer.facts_bytes <= (450 if "claim_expires_at" in facts else 400)
    return facts


def fence(task: Facts) -> Facts:
    return {"task_id": task["id"], "attempt": task["attempt"]}


# When they are there.


async def test_they_are_offered_where_they_are_switched_on(client: Client) -> None:
    tools = (await client.list_tools()).tools
    assert (
        [tool.name for tool in tools]
        == list(offered({WORKER}))
        == [name for name, tool in TOOLS.items() if tool.toolset in (CORE, WORKER)]
    )
    assert [tool.name for tool in tools][-4:] == OURS
    for tool in tools[-4:]:
        assert tool.title and tool.description and tool.annotations
        hints = tool.annotations
        assert (hints.read_only_hint, hints.destructive_hint) == (False, False)
        assert hints.idempotent_hint is (tool.name != "claim_task")
        assert hints.open_world_hint is (tool.name == "claim_task")
    assert client.instructions == INSTRUCTIONS + WORKERS
    assert len((INSTRUCTIONS + WORKERS).encode()) <= 2_000


async def test_elsewhere_one_is_told_how_to_switch_them_on(tmp_path: Path, era: str) -> None:
    how = "TASKORCH_TOOLSETS=core,worker"
    async with running(settings(tmp_path)) as app, connected(app.server, era) as client:
        assert not {tool.name for tool in (await client.list_tools()).tools} & set(OURS)
        assert "claim_task" not in (client.instructions or "")
        for name in (*OURS, "acquire_task", "next_task", "ack", "nack"):
            with pytest.raises(MCPError, match=how):
                await raw_call(client, name, {})
        for kind in ("outside", "outside:x"):
            text = await refused(client, "create_task", kind=kind)
            assert f"Unknown kind '{kind}'" in text and how in text


async def test_what_waits_for_workers_is_seen_and_cancelled_where_they_are_switched_off(
    client: Client, tmp_path: Path, era: str
) -> None:
    task = await create(client)
    async with running(settings(tmp_path)) as other, connected(other.server, era) as plain:
        assert (await call(plain, "get_task", task_id=task["id"])).facts["phase"] == "ready"
        assert (await call(plain, "cancel_task", task_id=task["id"])).facts["status"] == "cancelled"


@pytest.mark.parametrize("value", ["worker", " core , worker,", "worker,core"])
def test_core_is_always_on(value: str, tmp_path: Path) -> None:
    assert settings(tmp_path, toolsets=value).toolsets == value
    names = {part.strip() for part in value.split(",")}
    assert offered(names).keys() == {name for name, tool in TOOLS.items() if tool.toolset in (CORE, WORKER)}


def test_an_unknown_toolset_is_refused_in_one_line_at_the_start(tmp_path: Path) -> None:
    given = {**os.environ, **environment(tmp_path), "TASKORCH_TOOLSETS": "core,wroker"}
    done = subprocess.run([sys.executable, "-m", "taskorch"], env=given, input="", capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "'wroker' is no toolset; use core or worker or board" in done.stderr and "TOOLSETS" in done.stderr.upper()


async def test_on_the_wire_all_tools_take_ten_kibibytes(tmp_path: Path, era: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("TASKORCH_TOOLSETS", "core,worker")
    async with wire(tmp_path, era) as server:
        await server.open()
        listed = await server.ask("tools/list")
        assert [tool["name"] for tool in listed["result"]["tools"]][-4:] == OURS
        assert size(listed["result"]) <= 10_240
        # NaN, which JSON does not know, as a result
        created = (await server.call("create_task", kind="outside"))["structuredContent"]
        assert (await server.call("claim_task"))["structuredContent"]["claimed"] is True
        line = server.request("tools/call", name="complete_task", arguments={"task_id": created["id"], "attempt": 1})
        await server.send(line.replace(b'"attempt": 1', b'"attempt": 1, "result": {"a": NaN}'))
        result = (await server.answer())["result"]
        assert result["isError"] and "result holds NaN" in result["content"][0]["text"]


def test_no_handler_takes_the_kinds_of_outside_workers() -> None:
    for kind in ("outside", "outside:x"):
        with pytest.raises(ValueError, match="is taken"):
            handler(kind)(lambda payload: None)


# Creating.


async def test_a_task_for_a_worker_waits_ready_and_may_start_three_times(client: Client, app: App) -> None:
    for kind in ("outside", "outside:review-2", "outside:a_b", "outside:" + "x" * 40):
        task = await create(client, kind=kind)
        assert (task["status"], task["phase"], task["max_attempts"]) == ("waiting", "ready", 3)
    assert (await create(client, max_attempts=1))["max_attempts"] == 1
    assert "outside" in (await call(client, "get_stats")).facts["workers"]["kinds"]


@pytest.mark.parametrize("kind", ["outside:", "outside:A", "outside:a b", "outside:é", "outside:-x", "outside:a:b"])
async def test_a_name_that_is_none_is_refused(client: Client, kind: str) -> None:
    for tool in ("create_task", "claim_task"):
        assert "after 'outside:' write a name" in await refused(client, tool, kind=kind)
    assert "after 'outside:'" in await refused(client, "create_task", kind="outside:" + "x" * 41)


async def test_a_payload_that_a_claim_could_not_show_is_refused(client: Client) -> None:
    most = {"a": "é" * ((PAYLOAD_BYTES - 8) // 2)}
    task = await create(client, payload=most)
    text = await refused(client, "create_task", kind="outside", payload={"a": most["a"] + "é"})
    assert f"at most {PAYLOAD_BYTES} are allowed" in text and "Put large data in a file" in text
    assert (await claim(client))["payload"] == most
    text = await refused(client, "update_task", task_id=task["id"], payload={"a": "x" * PAYLOAD_BYTES})
    assert "at most" in text


# Working.


async def test_a_worker_gets_what_it_needs_to_know(client: Client) -> None:
    task = await create(client, payload={"prompt": 'say "hi"\n', "n": [1]}, labels=["a", "b"], name="greet")
    got = await claim(client, worker="ann", claim_seconds=60)
    assert {name: got[name] for name in ("id", "name", "attempt", "worker")} == {
        "id": task["id"],
        "name": "greet",
        "attempt": 1,
        "worker": "ann",
    }
    assert (got["payload"], got["labels"]) == ({"prompt": 'say "hi"\n', "n": [1]}, ["a", "b"])
    assert "last_error" not in got
    await call(client, "fail_task", **fence(got), message="no network")
    waiting = await nothing(client)
    assert waiting["waiting"] == 1 and TIME.fullmatch(waiting["next_run_at"])
    await call(client, "update_task", task_id=task["id"], delay_seconds=0)
    again = await claim(client)
    assert again["attempt"] == 2 and again["last_error"] == {"reason": "error", "message": "no network"}
    assert again["worker"] == "mcp", "what the client calls itself"


async def test_whoever_finds_nothing_is_told_what_would_help(client: Client) -> None:
    assert (await nothing(client))["hint"] == "Nothing is left to do."
    await create(client, kind="outside:x", labels=["l"])
    for wanted in ({"kind": "outside"}, {"label": "m"}, {"work_directory": "/nowhere"}):
        facts = await nothing(client, **wanted)
        assert (facts["others_ready"], facts["waiting"]) == (1, 0) and "other filters, or none" in facts["hint"]
    held = await claim(client, kind="outside:x")
    facts = await nothing(client)
    assert facts["working"] == 1 and "may fail and come back" in facts["hint"]
    await call(client, "complete_task", **fence(held))
    paused = await create(client)
    await call(client, "update_task", task_id=paused["id"], paused=True)
    assert "held back" in (await nothing(client))["hint"]
    assert "servers run it" in await refused(client, "claim_task", kind="command")


async def test_a_worker_keeps_its_task_by_heartbeats_and_completes_it(client: Client) -> None:
    await create(client, name="n" * 200)
    task = await claim(client, claim_seconds=10)
    beat = await call(client, "heartbeat_task", **fence(task), progress=1, total=3, message="m" * 4000)
    facts = check_worker_reply(beat)
    assert facts["claim_expires_at"] > task["claim_expires_at"]
    assert facts["progress"]["total"] == 3 and "33%" in beat.text
    assert facts["next"] == f'complete_task(task_id="{task["id"]}", attempt=1)'
    done = await call(client, "complete_task", **fence(task), result=["é", {"a": 1}])
    assert check_worker_reply(done, next="claim_task()")["result"] == ["é", {"a": 1}]
    again = await call(client, "complete_task", **fence(task), result="another")
    assert check_worker_reply(again, repeated=True)["result"] == ["é", {"a": 1}]
    assert "known already" in again.text
    for tool, arguments in (("heartbeat_task", {}), ("fail_task", {"message": "x"})):
        text = await refused(client, tool, **fence(task), **arguments)
        assert "attempt 1" in text and "no longer yours" in text and "completed" in text and "claim_task" in text


async def test_a_failure_is_told_with_what_comes_of_it(client: Client) -> None:
    await create(client, max_attempts=2)
    task = await claim(client)
    facts = check_worker_reply(await call(client, "fail_task", **fence(task), message="no"), next="claim_task()")
    assert (facts["status"], facts["phase"], facts["error"]["message"]) == ("waiting", "backoff", "no")
    check_worker_reply(await call(client, "fail_task", **fence(task), message="no"), repeated=True)
    await call(client, "update_task", task_id=task["id"], delay_seconds=0)
    task = await claim(client)
    facts = check_worker_reply(await call(client, "fail_task", **fence(task), message="never", retryable=False))
    assert facts["status"] == "failed"


async def test_a_worker_hears_that_it_is_to_stop(client: Client) -> None:
    await create(client)
    task = await claim(client)
    await call(client, "cancel_task", task_id=task["id"], reason="too late")
    beat = await call(client, "heartbeat_task", **fence(task))
    facts = check_worker_reply(beat, phase="cancelling")
    assert "It is to be cancelled: stop." in beat.text and facts["next"].startswith("fail_task(")
    ended = check_worker_reply(await call(client, "fail_task", **fence(task), message="stopped"))
    assert ended["status"] == "cancelled" and "too late" in ended["error"]["message"]


async def test_a_task_that_is_to_be_deleted_goes_with_its_worker(client: Client, app: App, monkeypatch: Any) -> None:
    monkeypatch.setattr("taskorch.calls.actions.DELETE_SECONDS", 0.0)
    await create(client, name="gone")
    task = await claim(client)
    assert (await call(client, "delete_task", task_id="gone", confirm=True)).facts["phase"] == "cancelling"
    done = await call(client, "complete_task", **fence(task))
    assert done.facts == {"id": task["id"], "deleted": True, "next": "claim_task()"}
    assert task["id"] in done.text and "deleted" in done.text and "claim_task()" in done.text
    assert "deleted by mcp" in await refused(client, "complete_task", **fence(task))


async def test_history_and_statistics_say_who_works(client: Client, app: App) -> None:
    ids = [(await create(client))["id"] for _ in range(4)]
    for worker in ("ann\u202e", "b" * 100, "cid", "dee"):
        await call(client, "claim_task", worker=worker)
    full = await call(client, "get_task", task_id=ids[0], detail="full")
    (attempt,) = full.facts["attempts"]
    assert "server" not in attempt and attempt["by"].startswith("ann") and "\u202e" not in attempt["by"] + full.text
    assert f"attempt 1 claimed by {attempt['by']}" in full.text
    assert full.facts["claim_expires_at"] in full.text
    stats = await call(client, "get_stats")
    outside = stats.facts["workers"]["outside"]
    assert outside["working"] == 4 and [one["id"] for one in outside["oldest"]] == ids[:3]
    for one in outside["oldest"]:
        assert f"{one['worker']} {one['id']} since {one['since']}" in stats.text
        assert len(one["worker"]) <= 40
    assert stats.text_bytes <= 1_024 and stats.facts_bytes <= 2_048
    await stored(app, ids[0], lambda row: row.status is Status.WORKING)


# Beside other tasks.


async def test_a_worker_gets_the_results_that_its_payload_takes(client: Client, app: App) -> None:
    first = await create(client, name="first")
    payload = {"all": {"$result": "first"}, "part": {"$result": "first", "path": "n[1]"}, "own": 1}
    second = (await call(client, "create_task", kind="outside", payload=payload, priority="high")).facts
    assert second["phase"] == "blocked"
    task = await claim(client)
    assert task["id"] == first["id"], "the other one waits for it"
    facts = await nothing(client)
    assert facts["waiting"] == 1 and "held back" in facts["hint"] and "free what waits for it" in facts["hint"]
    await call(client, "complete_task", **fence(task), result={"n": [1, 2]})
    task = await claim(client)
    assert task["payload"] == {"all": {"n": [1, 2]}, "part": 2, "own": 1}
    program = {"argv": ["echo", {"$result": task["id"]}]}
    command = (await call(client, "create_task", payload=program)).facts
    await call(client, "complete_task", **fence(task), result="from outside")
    await stored(app, command["id"], lambda row: row.status is Status.COMPLETED)
    output = await call(client, "get_task_output", task_id=command["id"])
    assert output.facts["text"] == "from outside\n"


async def test_a_worker_is_not_sent_away_until_a_schedule_fires_while_one_is_about_to_be_free(client: Client) -> None:
    await create(client, schedule={"every_seconds": 3600})
    await create(client, concurrency_key="k")
    await claim(client)
    assert "call again then" in (facts := await nothing(client))["hint"] and "free what waits" not in facts["hint"]
    await create(client, concurrency_key="k")
    assert "free what waits for it: call again later" in (await nothing(client))["hint"]


async def test_a_claim_is_not_lost_on_a_result_that_no_text_may_hold(client: Client) -> None:
    program = {"argv": ["echo", r'{"half": "\ud800"}']}
    first = (await call(client, "create_task", payload=program, wait_seconds=10)).facts
    broken = await create(client, payload={"part": {"$result": first["id"], "path": "json.half"}})
    await nothing(client)
    facts = (await call(client, "get_task", task_id=broken["id"], detail="full")).facts
    assert (facts["status"], facts["error"]["reason"]) == ("failed", "invalid_payload")
    assert r"has the character '\ud800', which no text may hold" in facts["error"]["message"]


@pytest.mark.parametrize(
    ("path", "said"), [("nothing", "finds nothing"), ("large", f"at most {PAYLOAD_BYTES} are allowed")]
)
async def test_a_task_whose_payload_cannot_be_filled_fails_and_the_next_one_is_claimed(
    client: Client, path: str, said: str
) -> None:
    first = await create(client, name="first")
    payload = {"part": {"$result": "first", "path": path}}
    broken = (await call(client, "create_task", kind="outside", payload=payload, priority="high")).facts
    await call(client, "complete_task", **fence(await claim(client)), result={"large": "x" * PAYLOAD_BYTES})
    other = await create(client)
    assert (await claim(client))["id"] == other["id"] != first["id"]
    failed = (await call(client, "get_task", task_id=broken["id"], detail="full")).facts
    assert (failed["status"], failed["error"]["reason"]) == ("failed", "invalid_payload")
    assert said in failed["error"]["message"]


# What is refused, and what is understood.


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("claim_task", {"claim_seconds": 9}, "claim_seconds 9 is not allowed; it must be at least 10"),
        ("claim_task", {"claim_seconds": 86_401}, "at most 86400"),
        ("claim_task", {"claim_seconds": "soon"}, "claim_seconds 'soon'"),
        ("claim_task", {"worker": "a\nb"}, "control character"),
        ("claim_task", {"worker": "x" * 101}, "at most 100 characters"),
        ("claim_task", {"task_id": "x"}, "One call claims one task"),
        ("claim_task", {"limit": 5}, "One call claims one task"),
        ("claim_task", {"wait_seconds": 30}, "answers at once"),
        ("heartbeat_task", {"progress": "half"}, "progress 'half'"),
        ("heartbeat_task", {"progress": 1, "total": -1}, "total -1 is not allowed; it must be from 0"),
        ("heartbeat_task", {"progress": 1e308}, "progress 1e+308 is not allowed"),
        ("heartbeat_task", {"status": "done"}, "complete_task when it is done"),
        ("heartbeat_task", {"error": "x"}, "complete_task when it is done"),
        ("complete_task", {"result": "x" * (RESULT_BYTES - 1)}, f"at most {RESULT_BYTES} are kept"),
        ("complete_task", {"worker": "ann"}, "task_id and attempt say whose it is"),
        ("complete_task", {"success": True}, "complete_task when it is done, fail_task when it cannot"),
        ("fail_task", {}, "message is required"),
        ("fail_task", {"message": ""}, "message ''"),
        ("fail_task", {"message": "x" * 4001}, "at most 4000 characters"),
        ("fail_task", {"reason": "no"}, "Say in message why"),
        ("fail_task", {"message": "x", "delay_seconds": 5}, "reckoned by the server"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    client: Client, app: App, tool: str, arguments: Facts, said: str
) -> None:
    await create(client)
    given = {}
    if tool != "claim_task":
        given = fence(await claim(client))
    before = await app.service.queries.page(Filters(), 9, None)
    text = await refused(client, tool, **given, **arguments)
    assert said in text and "Nothing was done" in text and len(text) < 500
    assert await app.service.queries.page(Filters(), 9, None) == before


async def test_a_result_may_be_as_large_as_a_handlers(client: Client) -> None:
    await create(client)
    result = "x" * (RESULT_BYTES - 2)
    done = await call(client, "complete_task", **fence(await claim(client)), result=result)
    assert done.facts["result_bytes"] == RESULT_BYTES


@pytest.mark.parametrize("result", [None, 0, False, "", [], {}, 1.5, "text"])
async def test_a_result_is_kept_as_it_was_given(client: Client, app: App, result: Any) -> None:
    await create(client)
    task = await claim(client)
    await call(client, "complete_task", **fence(task), result=result)
    stored = await app.service.queries.get(task["id"])
    assert stored.status is Status.COMPLETED and stored.result == result and type(stored.result) is type(result)


@pytest.mark.parametrize(
    ("tool", "written", "meant"),
    [
        ("claim_task", {"worker_id": "a", "tag": "l"}, {"worker": "a", "label": "l"}),
        ("claim_task", {"cwd": "/a"}, {"work_directory": "/a"}),
        ("claim_task", {"agent": "a", "lease_seconds": 60}, {"worker": "a", "claim_seconds": 60}),
        ("claim_task", {"claimMs": 60_000, "type": "outside"}, {"claim_seconds": 60, "kind": "outside"}),
        ("claim_task", {"kind": "", "label": "", "work_directory": "", "worker": ""}, {}),
        ("heartbeat_task", {"id": "t", "attempt_number": 1, "value": 3}, {"task_id": "t", "attempt": 1, "progress": 3}),
        ("complete_task", {"taskId": "t", "attempt": 1, "output": [1]}, {"task_id": "t", "attempt": 1, "result": [1]}),
        ("complete_task", {"task_id": "t", "attempt": 1, "result": {"payload": {"id": 1}}}, None),
        ("complete_task", {"task_id": "t", "attempt": 1, "result": '{"a": 1}'}, None),
    ],
)  # fmt: skip
def test_what_models_write_instead_is_understood(tool: str, written: Facts, meant: Facts | None) -> None:
    assert understood(written, TOOLS[tool].arguments.model_fields) == (written if meant is None else meant)


async def test_other_systems_names_of_the_tools_are_answered_with_ours(client: Client) -> None:
    for name, meant in {
        **dict.fromkeys(
            ("acquire_task", "next_task", "take", "get_next_task", "dequeue", "claim", "pull_task"), OURS[0]
        ),
        **dict.fromkeys(("heartbeat", "keep_alive", "renew_task", "extend_claim"), OURS[1]),
        **dict.fromkeys(("ack_task", "ack", "finish_task", "done"), OURS[2]),
        **dict.fromkeys(("nack", "nack_task", "reject_task"), OURS[3]),
    }.items():
        with pytest.raises(MCPError, match=f"Did you mean '{meant}'"):
            await raw_call(client, name, {})
