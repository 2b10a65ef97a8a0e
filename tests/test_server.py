"""What the server announces, how it fails, what it measures of itself, and the same over real stdio."""

import dataclasses
import json
import os
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import mcp_types as mt
import pytest
from clients import (
    STATUSES,
    TIME,
    VERSIONS,
    Facts,
    Gate,
    answer,
    call,
    check_task,
    connected,
    raw_call,
    refused,
    settings,
    size,
    stored,
)
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from taskorch import __version__
from taskorch.app import App, running
from taskorch.calls.arguments import schema
from taskorch.calls.service import CORE
from taskorch.domain.errors import StoreError
from taskorch.mcp.resources import Resources
from taskorch.mcp.server import INSTRUCTIONS, build_server
from taskorch.mcp.tools import TOOLS, offered
from taskorch.storage import busy

SCHEMAS = Path(__file__).with_name("schemas.json")
READ_ONLY = {"list_tasks", "get_task", "wait_for_tasks", "get_task_output", "get_stats"}
DESTRUCTIVE = {"update_task", "cancel_task", "delete_task"}
OPEN_WORLD = {"create_task", "create_tasks", "retry_task", "get_task_output"}
NOT_IDEMPOTENT = {"create_task", "create_tasks", "retry_task"}
LATER = {"kind": "echo", "delay_seconds": 3600}


# What it announces.


async def test_it_says_who_it_is_and_how_to_work_with_it(client: Client) -> None:
    assert client.server_info is not None
    assert (client.server_info.name, client.server_info.version) == ("taskorch", __version__)
    assert client.instructions == INSTRUCTIONS
    assert len(INSTRUCTIONS.encode()) <= 2_000
    assert client.server_capabilities.tools and client.server_capabilities.completions
    assert client.server_capabilities.prompts


async def test_every_tool_says_its_title_and_all_four_hints(client: Client) -> None:
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == list(offered({CORE}))
    for tool in tools:
        assert tool.title and tool.description and tool.annotations
        assert tool.annotations.read_only_hint is (tool.name in READ_ONLY)
        assert tool.annotations.destructive_hint is (tool.name in DESTRUCTIVE)
        assert tool.annotations.idempotent_hint is (tool.name not in NOT_IDEMPOTENT)
        assert tool.annotations.open_world_hint is (tool.name in OPEN_WORLD)
        assert tool.output_schema is None


async def test_schemas_are_closed_plain_and_whole(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert tool.input_schema.get("properties", {}).keys() == TOOLS[tool.name].arguments.model_fields.keys()
        text = json.dumps(tool.input_schema)
        for noise in ("$ref", "$defs", '"title"', "null", "anyOf", "allOf", "discriminator"):
            assert noise not in text, f"{tool.name}: {noise}"
        for name, part in tool.input_schema.get("properties", {}).items():
            assert "type" in part, f"{tool.name}.{name}"


async def test_the_list_of_tools_is_the_same_every_time(app: App, era: str) -> None:
    lists = []
    for server in (app.server, build_server(app.service, Resources(app.service))):
        async with connected(server, era) as client:
            lists += [(await client.list_tools()).model_dump_json() for _ in range(2)]
    assert len(set(lists)) == 1


def test_input_schemas_are_those_that_were_agreed() -> None:
    agreed = json.loads(SCHEMAS.read_text("utf-8"))
    assert schemas() == agreed, (
        "The tools' input schemas are a public contract and have changed. "
        "If that is meant, run `python tests/test_server.py` and commit tests/schemas.json."
    )


def schemas() -> Facts:
    return {name: schema(tool.arguments) for name, tool in TOOLS.items()}


# How it fails.


async def test_an_unknown_tool_is_a_protocol_error(client: Client) -> None:
    for name in ("create_taks", "", "x" * 9000, "Create_Task"):
        with pytest.raises(MCPError) as error:
            await raw_call(client, name, {})
        assert error.value.error.code == -32602
        assert "Unknown tool: '" in error.value.error.message
        assert re.search(r"Did you mean 'create_tasks?'\?$|Use one of: create_task, ", error.value.error.message)
        assert len(error.value.error.message) <= 260


class Broken:
    """A store, or its queries, in which everything fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


@asynccontextmanager
async def broken(app: App, era: str, error: Exception) -> AsyncIterator[Client]:
    service = dataclasses.replace(app.service, store=Broken(error), queries=Broken(error))
    async with connected(build_server(service, Resources(service)), era) as client:
        yield client


GOOD: dict[str, Facts] = {
    "create_task": {"kind": "echo"},
    "create_tasks": {"tasks": [{"kind": "echo"}]},
    "list_tasks": {},
    "get_task": {"task_id": "x"},
    "update_task": {"task_id": "x", "priority": "low"},
    "cancel_task": {"task_id": "x"},
    "retry_task": {"task_id": "x"},
    "delete_task": {"task_id": "x"},
    "wait_for_tasks": {"task_ids": ["x"]},
    "get_task_output": {"task_id": "x"},
    "get_stats": {},
}
URIS = ("tasks://recent", "tasks://failed", "tasks://stats", "task://t0000000000000000")
REFERENCE = ResourceTemplateReference(uri="task://{task_id}")


async def test_internal_errors_are_logged_and_never_told(app: App, era: str, caplog: pytest.LogCaptureFixture) -> None:
    assert GOOD.keys() == offered({CORE}).keys()
    async with broken(app, era, RuntimeError("secret")) as client:
        for tool, arguments in GOOD.items():
            text = await refused(client, tool, **arguments)
            assert text.startswith(f"Internal error in {tool}") and "secret" not in text
        for uri in URIS:
            with pytest.raises(MCPError) as error:
                await client.read_resource(uri)
            assert error.value.error.code == -32603 and "secret" not in str(error.value.error)
        with pytest.raises(MCPError) as error:
            await client.complete(REFERENCE, {"name": "task_id", "value": "t"})
        assert error.value.error.code == -32603 and "secret" not in str(error.value.error)
        if era == "legacy":
            with pytest.raises(MCPError) as error:
                await client.subscribe_resource(URIS[3])
        else:
            with pytest.raises(MCPError) as error:
                async with client.listen(resource_subscriptions=[URIS[3]]):
                    pass
        assert error.value.error.code == -32603 and "secret" not in str(error.value.error)
    told = [record for record in caplog.records if record.exc_info and "secret" in str(record.exc_info[1])]
    assert len(told) == len(GOOD) + len(URIS) + 2, "the log says what it was"


async def test_what_the_store_says_about_its_trouble_is_told(app: App, era: str) -> None:
    trouble = StoreError("The store is busy. Call again in a moment.")
    async with broken(app, era, trouble) as client:
        for tool, arguments in GOOD.items():
            assert await refused(client, tool, **arguments) == str(trouble)
        for uri in URIS:
            with pytest.raises(MCPError) as error:
                await client.read_resource(uri)
            assert (error.value.error.code, error.value.error.message) == (-32603, str(trouble))


# What it measures of itself.


async def stats(client: Client) -> Facts:
    reply = await call(client, "get_stats")
    facts = reply.facts
    lines = reply.text.splitlines()
    assert f"taskorch {facts['version']} is {facts['status']}" in lines[0]
    for name in ("status_distribution", "priority_distribution"):
        assert ", ".join(f"{number} {word}" for word, number in facts[name].items()) in reply.text
    for kind in facts["workers"]["kinds"]:
        assert kind in reply.text
    assert f"{facts['workers']['busy']} of {facts['workers']['slots']} slots busy" in reply.text
    assert f"{facts['queue']['ready']} ready" in reply.text
    assert reply.text_bytes <= 1_024 and reply.facts_bytes <= 2_048
    return facts


async def test_statistics_of_an_empty_store_claim_nothing(client: Client) -> None:
    facts = await stats(client)
    assert list(facts) == [
        "status",
        "timestamp",
        "version",
        "uptime_seconds",
        "overview",
        "status_distribution",
        "priority_distribution",
        "performance",
        "hours",
        "queue",
        "workers",
        "store",
        "process",
    ]
    assert (facts["status"], facts["version"]) == ("healthy", __version__)
    assert TIME.fullmatch(facts["timestamp"])
    assert facts["overview"] == {"total": 0, "active": 0, "completed": 0, "failed": 0, "cancelled": 0}
    assert facts["status_distribution"] == dict.fromkeys(STATUSES, 0)
    assert facts["priority_distribution"] == {"low": 0, "medium": 0, "high": 0}
    assert facts["performance"] == {"window_hours": 24, "ended": 0, "tasks_per_hour": 0.0}
    assert (facts["hours"], facts["queue"]) == ([], {"ready": 0})
    assert facts["workers"]["busy"] == 0 and facts["workers"]["slots"] == 2
    assert {"command", "echo", "sleep"} <= set(facts["workers"]["kinds"])
    (server,) = facts["workers"]["servers"]
    assert server["pid"] == os.getpid() and TIME.fullmatch(server["started_at"])
    assert facts["store"].keys() == {"read_ms", "healthy", "write_ms", "bytes", "free_bytes"}
    assert facts["store"]["healthy"] is True
    assert facts["process"].keys() == {"pid", "peak_memory_bytes", "cpu_percent"}
    assert facts["process"]["pid"] == os.getpid() and facts["process"]["peak_memory_bytes"] > 10_000_000


async def test_statistics_follow_what_happens(client: Client, app: App) -> None:
    before = await stats(client)
    for kind, priority in (("echo", "high"), ("echo", "low"), ("echo", "low"), ("test.fail", "medium")):
        await call(client, "create_task", kind=kind, priority=priority, wait_seconds=20)
    cancelled = (await call(client, "create_task", **LATER)).facts
    await call(client, "cancel_task", task_id=cancelled["id"])

    facts = await stats(client)

    assert facts["overview"] == {
        "total": 5,
        "active": 0,
        "completed": 3,
        "failed": 1,
        "cancelled": 1,
        "success_rate": 0.75,
    }
    assert facts["status_distribution"] == {"waiting": 0, "working": 0, "completed": 3, "failed": 1, "cancelled": 1}
    assert facts["priority_distribution"] == {"low": 2, "medium": 2, "high": 1}
    performance = facts["performance"]
    assert (performance["ended"], performance["tasks_per_hour"]) == (5, 5.0)
    assert 0 <= performance["average_seconds"] <= performance["p95_seconds"] < 20
    ended = {name: sum(hour.get(name, 0) for hour in facts["hours"]) for name in ("completed", "failed", "cancelled")}
    assert ended == {"completed": 3, "failed": 1, "cancelled": 1}
    assert all(TIME.fullmatch(hour["hour"]) for hour in facts["hours"])
    assert facts["uptime_seconds"] >= before["uptime_seconds"]
    assert "success rate 75.0%" in (await call(client, "get_stats")).text


async def test_durations_are_those_of_the_work(client: Client, app: App) -> None:
    task = (await call(client, "create_task", kind="echo", wait_seconds=20)).facts
    with sqlite3.connect(app.service.output_folder.parent / "taskorch.db", isolation_level=None) as connection:
        connection.execute("UPDATE tasks SET started_at = finished_at - 90000 WHERE id = ?", (task["id"],))
    connection.close()
    performance = (await stats(client))["performance"]
    assert (performance["average_seconds"], performance["p95_seconds"]) == (90.0, 90.0)


async def test_the_queue_and_the_workers_are_looked_at_now(client: Client, app: App) -> None:
    gates = [Gate(), Gate(), Gate()]
    tasks = [(await call(client, "create_task", kind="test.gate", payload=gate.payload)).facts["id"] for gate in gates]
    for gate in gates[:2]:
        await gate.reached()
    scheduled = (await call(client, "create_task", **LATER)).facts

    facts = await stats(client)
    assert facts["workers"]["busy"] == 2
    assert facts["overview"]["active"] == 4
    assert facts["queue"]["ready"] == 1 and facts["queue"]["oldest_ready_seconds"] >= 0
    assert facts["queue"]["next_run_at"] == scheduled["run_at"]

    for gate in gates:
        gate.opened.set()
    for task_id in tasks:
        await stored(app, task_id, lambda row: row.ended)
    facts = await stats(client)
    assert facts["workers"]["busy"] == 0
    assert facts["queue"] == {"ready": 0, "next_run_at": scheduled["run_at"]}


async def test_all_servers_on_the_store_are_counted(client: Client, tmp_path: Path) -> None:
    async with running(settings(tmp_path)):
        servers = (await stats(client))["workers"]["servers"]
        assert [server["pid"] for server in servers] == [os.getpid()] * 2
    assert len((await stats(client))["workers"]["servers"]) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be named before the server: what it writes when it starts gives up sooner, too."""
    monkeypatch.setattr(busy, "BUSY_SECONDS", 0.2)


async def test_a_store_that_cannot_be_written_is_called_degraded(
    impatient: None, client: Client, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "state" / "taskorch.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    facts = await stats(client)
    assert facts["status"] == "degraded"
    assert facts["store"]["healthy"] is False and "busy" in facts["store"]["error"]
    assert "write_ms" not in facts["store"]
    reply = await call(client, "get_stats")
    assert "is degraded" in reply.text and "busy" in reply.text
    assert "busy" in await refused(client, "create_task", **LATER), "and writes say why"
    assert (await call(client, "list_tasks")).facts["tasks"] == [], "reads go on"

    other.execute("ROLLBACK")
    other.close()
    assert (await stats(client))["status"] == "healthy"


async def test_a_slow_store_is_called_degraded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskorch.calls.health.SLOW_MS", 0.0)
    facts = await stats(client)
    assert facts["status"] == "degraded" and facts["store"]["write_ms"] >= 0


async def test_what_cannot_be_measured_is_left_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise OSError("no such folder")

    monkeypatch.setattr(os, "statvfs", fail)
    facts = await stats(client)
    assert facts["status"] == "healthy" and "free_bytes" not in facts["store"]
    answer = await call(client, "create_task", kind="echo", payload={}, wait_seconds=5)
    assert answer.facts["status"] == "completed"


# Over real stdio.


def environment(folder: Path) -> dict[str, str]:
    return {
        "TASKORCH_STATE_DIR": str(folder / "state"),
        "TASKORCH_ALLOW_COMMANDS": "*",
        "XDG_CONFIG_HOME": str(folder),
        "TASKORCH_CONCURRENCY": "2",
    }


async def test_a_client_over_stdio_gets_the_same(tmp_path: Path, era: str) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=environment(tmp_path))
    with anyio.fail_after(30):
        async with Client(server, mode=era) as client:
            assert client.protocol_version == VERSIONS[era]
            capabilities = client.server_capabilities
            assert capabilities.resources == mt.ResourcesCapability(subscribe=True, list_changed=True)
            assert [tool.name for tool in (await client.list_tools()).tools] == list(offered({CORE}))
            told: list[float] = []

            async def on_progress(value: float, total: float | None, message: str | None) -> None:
                told.append(value)

            arguments = {"payload": {"argv": ["printf", "é\\377\\033[31m"]}, "name": "夜 😀", "wait_seconds": 20}
            created = answer(await raw_call(client, "create_task", arguments, progress_callback=on_progress))
            task = check_task(created)
            assert (task["status"], task["name"]) == ("completed", "夜 😀")
            assert told
            output = await call(client, "get_task_output", task_id="夜 😀")
            assert output.facts["text"] == "é\ufffd"
            contents = (await client.read_resource(f"task://{task['id']}")).contents[0]
            assert json.loads(contents.text)["payload"] == arguments["payload"]
            assert "'taks_id'" in await refused(client, "get_task", taks_id="x")
            with pytest.raises(MCPError):
                await raw_call(client, "nothing", {})


class Wire:
    """The bytes of one server process."""

    def __init__(self, process: anyio.abc.Process, era: str) -> None:
        self._process, self._era, self._number, self._rest = process, era, 0, b""

    async def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(line + b"\n")

    async def line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            self._rest += await self._process.stdout.receive()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def open(self) -> Facts:
        if self._era == "auto":
            return await self.ask("server/discover")
        client = {
            "protocolVersion": VERSIONS["legacy"],
            "capabilities": {},
            "clientInfo": {"name": "w", "version": "0"},
        }
        reply = await self.ask("initialize", **client)
        await self.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return reply

    def request(self, method: str, **params: Any) -> bytes:
        self._number += 1
        if self._era == "auto":
            prefix = "io.modelcontextprotocol/"
            params["_meta"] = {f"{prefix}protocolVersion": VERSIONS["auto"], f"{prefix}clientCapabilities": {}}
        return json.dumps({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}).encode()

    async def answer(self) -> Facts:
        """The answer to the latest request."""
        with anyio.fail_after(20):
            while True:
                line = await self.line()
                message = json.loads(line)
                if message.get("id") == self._number:
                    return message | {"bytes": len(line)}

    async def ask(self, method: str, **params: Any) -> Facts:
        await self.send(self.request(method, **params))
        return await self.answer()

    async def call(self, tool: str, **arguments: Any) -> Facts:
        return (await self.ask("tools/call", name=tool, arguments=arguments))["result"]


@asynccontextmanager
async def wire(folder: Path, era: str) -> AsyncIterator[Wire]:
    variables = {**os.environ, **environment(folder)}
    async with await anyio.open_process([sys.executable, "-m", "taskorch"], env=variables, stderr=None) as process:
        try:
            yield Wire(process, era)
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.fail_after(10):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


async def test_on_the_wire_the_tools_take_eight_kibibytes_and_bad_lines_do_no_harm(tmp_path: Path, era: str) -> None:
    async with wire(tmp_path, era) as server:
        opened = (await server.open())["result"]
        assert len(opened["instructions"].encode()) <= 2_000

        listed = await server.ask("tools/list")
        assert [tool["name"] for tool in listed["result"]["tools"]] == list(offered({CORE}))
        assert size(listed["result"]) <= 8_192 and listed["bytes"] <= 8_192 + 64
        assert "null" not in json.dumps(listed)
        for tool in listed["result"]["tools"]:
            assert tool.keys() == {"name", "title", "description", "inputSchema", "annotations"}
            hints = {"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"}
            assert tool["annotations"].keys() == hints

        # `arguments: null` is what some clients send for none.
        assert not (await server.ask("tools/call", name="list_tasks", arguments=None))["result"].get("isError")
        assert (await server.ask("tools/call", name="nothing", arguments={}))["error"]["code"] == -32602
        assert (await server.ask("tools/call", name="list_tasks", arguments=[1]))["error"]["code"] == -32602

        # What JSON does not know, in numbers and in payloads.
        for name, value, said in (
            ("payload", b'{"a": 1e999}', "payload holds NaN or an infinite"),
            ("payload", b'{"a": NaN}', "payload holds NaN or an infinite"),
            ("delay_seconds", b"NaN", "delay_seconds nan"),
        ):
            line = server.request("tools/call", name="create_task", arguments={"kind": "echo", name: "@"})
            await server.send(line.replace(b'"@"', value))
            result = (await server.answer())["result"]
            assert result["isError"] and said in result["content"][0]["text"]

        # Half a surrogate pair, which nobody can store or send: that line is lost, the next one is answered.
        line = server.request("tools/call", name="create_task", arguments={"kind": "echo", "name": "@"})
        await server.send(line.replace(b'"@"', b'"\\ud800"'))
        await server.send(b"\xff\xfe not JSON")
        result = await server.call("list_tasks")
        assert result["structuredContent"]["tasks"] == []

        # Characters that end lines elsewhere stay inside theirs.
        payload = {"a": "\u2028\u2029\u0085\r\né😀"}
        result = await server.call("create_task", kind="echo", payload=payload, name="夜", wait_seconds=20)
        assert result["structuredContent"]["result"] == payload
        assert "夜" in result["content"][0]["text"]


if __name__ == "__main__":
    SCHEMAS.write_text(json.dumps(schemas(), indent=1, ensure_ascii=False) + "\n", "utf-8")
