"""Calling a server as an MCP client does, in both protocol eras, with what every reply must keep checked on the way."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
from mcp import Client
from mcp.server.lowlevel.server import Server
from mcp_types import CallToolResult

from taskorch.app import App
from taskorch.config import Settings
from taskorch.domain.errors import NonRetryable
from taskorch.domain.task import Task
from taskorch.work.handlers import Context, handler

ERAS = ("legacy", "auto")  # 2025-11-25 and 2026-07-28
VERSIONS = {"legacy": "2025-11-25", "auto": "2026-07-28"}
ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
STATUSES = ("waiting", "working", "completed", "failed", "cancelled")
PHASES = {"waiting": ("ready", "scheduled", "backoff", "blocked", "paused"), "working": ("cancelling",)}

Facts = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A reply in its two forms."""

    text: str
    facts: Facts

    @property
    def text_bytes(self) -> int:
        return len(self.text.encode())

    @property
    def facts_bytes(self) -> int:
        return size(self.facts)


@asynccontextmanager
async def connected(server: Server[Any], era: str, **options: Any) -> AsyncIterator[Client]:
    async with Client(server, mode=era, **options) as client:
        assert client.protocol_version == VERSIONS[era]
        yield client


async def raw_call(client: Client, tool: str, arguments: Facts | None, **options: Any) -> CallToolResult:
    with anyio.fail_after(30):
        return await client.call_tool(tool, arguments, **options)


async def call(client: Client, tool: str, **arguments: Any) -> Answer:
    """The answer of a call that must succeed."""
    return answer(await raw_call(client, tool, arguments))


def answer(result: CallToolResult) -> Answer:
    assert not result.is_error, result.content[0].text
    assert [part.type for part in result.content] == ["text"]
    assert result.structured_content is not None
    assert not list(nulls(result.structured_content)), "absent means empty"
    return Answer(result.content[0].text, result.structured_content)


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The text of a call that must be refused."""
    return refusal(await raw_call(client, tool, arguments))


def refusal(result: CallToolResult) -> str:
    assert result.is_error, result.content[0].text
    assert result.structured_content is None
    assert [part.type for part in result.content] == ["text"]
    return result.content[0].text


def check_task(reply: Answer) -> Facts:
    """Both forms of a reply about one task say what docs/reference/replies.md promises; its facts."""
    facts = reply.facts
    required = {"id", "kind", "status", "priority", "attempt", "max_attempts", "created_at", "version"}
    optional = {"name", "phase", "waits_for", "progress", "result", "result_bytes", "error", "run_at"}
    optional |= {"started_at", "finished_at", "next"}
    runs = {"next_runs", "time_zone"} if "next_runs" in facts else set[str]()
    assert required <= facts.keys() <= required | optional | runs
    assert ID.fullmatch(facts["id"])
    _check_state(facts)
    assert facts["priority"] in ("low", "medium", "high")
    assert (facts["status"] in STATUSES[2:]) == ("finished_at" in facts)
    assert (facts["attempt"] > 0 and facts["status"] != "waiting") == ("started_at" in facts)
    assert "run_at" not in facts or facts["status"] == "waiting"
    assert "result" not in facts or facts["status"] == "completed"
    for name in [name for name in facts if name.endswith("_at")]:
        assert TIME.fullmatch(facts[name]), name
    error: Facts = facts.get("error", {})
    assert not error or {"reason", "message"} <= error.keys() <= {"reason", "message", "exit_code"}
    said = [facts["id"], facts["status"], facts["priority"], facts["kind"], f"version {facts['version']}"]
    said += [f"{facts['attempt']}/{facts['max_attempts']}", facts["created_at"]]
    said += [facts[name] for name in ("name", "phase", "next") if name in facts]
    said += [*facts.get("next_runs", ()), *(facts[name] for name in runs - {"next_runs"})]
    said += [str(error["exit_code"])] if "exit_code" in error else []
    said += _durations(facts)
    said += [str(error[name]) for name in ("reason", "message") if name in error]
    for word in said:
        assert word in reply.text, f"the text does not say {word!r}:\n{reply.text}"
    return facts


def _durations(facts: Facts) -> list[str]:
    """The text says the later times as durations."""
    at = {
        name: datetime.fromisoformat(facts[f"{name}_at"])
        for name in ("created", "started", "finished")
        if f"{name}_at" in facts
    }
    said = [f"started after {seconds(at['started'] - at['created'])}"] if "started" in at else []
    if "finished" in at and "started" in at:
        said.append(f"ran {seconds(at['finished'] - at['started'])}")
    elif "finished" in at:
        said.append(f"ended after {seconds(at['finished'] - at['created'])}")
    return said


def seconds(time: timedelta) -> str:
    return f"{time.total_seconds():.3f} s"


def check_row(row: Facts, text: str) -> None:
    """A row of list_tasks, and that the text has a line about it."""
    required = {"id", "kind", "status", "priority", "attempt", "created_at"}
    assert required <= row.keys() <= required | {"name", "phase", "run_at", "finished_at", "error"}
    _check_state(row)
    assert not {"run_at", "finished_at"} <= row.keys()
    assert row.get("error", {"reason": ""}).keys() == {"reason"}
    (line,) = [line for line in text.splitlines() if line.startswith(row["id"])]
    said = [row["status"], row["priority"], *row.get("error", {}).values()]
    said += [row[name] for name in ("name", "phase") if name in row]
    for word in said:
        assert word in line, f"the line does not say {word!r}: {line}"


def size(facts: Any) -> int:
    """Bytes of compact JSON, as on the wire."""
    return len(json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode())


async def until(holds: Callable[[], Any]) -> None:
    """Wait for what no event tells."""
    with anyio.fail_after(5):
        while not holds():  # noqa: ASYNC110  (no event of ours tells of other processes)
            await anyio.sleep(0.005)


async def stored(app: App, task_id: str, holds: Callable[[Task], Any]) -> None:
    """Wait until the stored task is so."""
    changed = anyio.Event()
    with anyio.fail_after(5), app.service.store.listening(lambda _: changed.set()):
        while not holds(await app.service.queries.get(task_id)):
            await changed.wait()
            changed = anyio.Event()


def settings(folder: Path, **given: Any) -> Settings:
    return Settings(**{"state_dir": folder / "state", "allow_commands": "*", "concurrency": 2, **given})


def nulls(value: Any, path: str = "") -> list[str]:
    """Where a value holds None."""
    match value:
        case None:
            return [path]
        case dict():
            return [found for name, item in value.items() for found in nulls(item, f"{path}.{name}")]
        case list():
            return [found for index, item in enumerate(value) for found in nulls(item, f"{path}.{index}")]
        case _:
            return []


class Gate:
    """Holds the kinds `test.gate` and `test.stubborn` until the test opens it. `payload` leads them to it."""

    known: ClassVar[dict[str, "Gate"]] = {}

    def __init__(self) -> None:
        self.payload = {"gate": str(len(self.known))}
        self.known[self.payload["gate"]] = self
        self.entered = anyio.Event()
        self.opened = anyio.Event()

    async def hold(self) -> str:
        self.entered.set()
        await self.opened.wait()
        return "passed"

    async def reached(self) -> None:
        with anyio.fail_after(5):
            await self.entered.wait()


@handler("test.gate", max_attempts=2)
async def _gate(payload: dict[str, Any], context: Context) -> Any:
    context.progress(3, 4, "at the gate")
    return await Gate.known[payload["gate"]].hold()


@handler("test.stubborn")
async def _stubborn(payload: dict[str, Any]) -> Any:
    """Does not notice that it is cancelled before the gate is open."""
    with anyio.CancelScope(shield=True):
        await Gate.known[payload["gate"]].hold()
    await anyio.lowlevel.checkpoint()


@handler("test.fail")
async def _fail(payload: dict[str, Any]) -> Any:
    raise NonRetryable(payload.get("text", "boom"))


@handler("test.flaky")
async def _flaky(payload: dict[str, Any]) -> Any:
    raise ValueError("not yet")


@handler("test.value")
async def _value(payload: dict[str, Any]) -> Any:
    return payload["value"]


def _check_state(facts: Facts) -> None:
    assert facts["status"] in STATUSES
    assert facts.get("phase") in (*PHASES.get(facts["status"], ()), None)
    assert (facts["status"] == "waiting") <= ("phase" in facts)
    assert (facts["status"] in ("failed", "cancelled")) <= ("error" in facts)
