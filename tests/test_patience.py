"""How many calls a quarter of an hour costs an agent that does what replies say, word for word, and never thinks."""

import ast
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from clients import ERAS, Answer, Facts, call, connected, settings, stored
from mcp import Client

from taskorch.app import running
from taskorch.calls import service
from taskorch.domain.task import Status

QUARTER = 900.0  # seconds
BUILT = "4 packages built\n"
WORK = 'until [ -s "$0" ]; do sleep 0.02; done; cat "$0"'  # goes on for as long as there is no such file


class FastClock:
    """Stands in for anyio where the server waits: a pause passes at once, and in the last one the work ends."""

    Event = anyio.Event
    to_thread = anyio.to_thread

    def __init__(self, packages: Path) -> None:
        self._now = 0.0
        self._packages = packages

    def current_time(self) -> float:
        return self._now

    @contextmanager
    def move_on_after(self, seconds: float) -> Generator[None]:
        over = self._now < QUARTER <= self._now + seconds
        self._now = QUARTER if over else self._now + seconds
        if over:
            self._packages.write_text(BUILT)
            with anyio.fail_after(10):
                yield
        else:
            with anyio.move_on_after(0):
                yield


class Literal:
    """Follows `next` and the hint as the replies spell them, in the form that it is shown."""

    def __init__(self, client: Client, form: str, begun: Callable[[str], Awaitable[None]]) -> None:
        self._client = client
        self._form = form
        self._begun = begun
        self.waits = 0
        self.calls = 0
        self.bytes = 0

    async def call(self, tool: str, **arguments: Any) -> Answer:
        self.calls += 1
        self.waits += tool == "wait_for_tasks"
        reply = await call(self._client, tool, **arguments)
        self.bytes += reply.facts_bytes if self._form == "facts" else reply.text_bytes
        return reply

    async def see_through(self, argv: list[str]) -> Answer:
        """Create a task and wait until it is done; the last reply."""
        reply = await self.call("create_task", payload={"argv": argv}, name="build")
        await self._begun(reply.facts["id"])
        tool, arguments = spelled_out(self._next(reply))
        assert tool == "wait_for_tasks"
        reply = await self.call(tool, **arguments)
        while not self._done(reply):
            arguments["timeout_seconds"] = self._advised(reply)
            reply = await self.call(tool, **arguments)
        return reply

    def _next(self, reply: Answer) -> str:
        return reply.facts["next"] if self._form == "facts" else reply.text.rpartition("\nNext: ")[2]

    def _done(self, reply: Answer) -> bool:
        return reply.facts["done"] if self._form == "facts" else reply.text.startswith("Done.")

    def _advised(self, reply: Answer) -> float:
        hint = reply.facts["hint"] if self._form == "facts" else reply.text.splitlines()[-1]
        return float(re.search(r"Call wait_for_tasks again with timeout_seconds=([\d.]+),", hint)[1])


def spelled_out(text: str) -> tuple[str, Facts]:
    """The tool and the arguments of a call as replies write it."""
    told = ast.parse(text, mode="eval").body
    assert isinstance(told, ast.Call) and isinstance(told.func, ast.Name) and not told.args
    return told.func.id, {keyword.arg: ast.literal_eval(keyword.value) for keyword in told.keywords if keyword.arg}


@asynccontextmanager
async def literal(
    tmp_path: Path, patch: pytest.MonkeyPatch, era: str, form: str, **given: Any
) -> AsyncIterator[Literal]:
    async with running(settings(tmp_path, **given)) as app, connected(app.server, era) as client:
        begun = partial(stored, app, holds=lambda task: task.status is Status.WORKING)
        patch.setattr(service, "anyio", FastClock(tmp_path / "packages"))
        yield Literal(client, form, begun)


@pytest.mark.parametrize("form", ["text", "facts"])
@pytest.mark.parametrize("era", ERAS)
async def test_a_quarter_of_an_hour_costs_twenty_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str, form: str
) -> None:
    async with literal(tmp_path, monkeypatch, era, form) as agent:
        reply = await agent.see_through(["sh", "-c", WORK, str(tmp_path / "packages")])
        assert (await agent.call("get_task_output", task_id="build")).facts["text"] == BUILT
    assert agent.waits == 18
    assert agent.calls == 20
    assert agent.bytes <= 6_000
    assert reply.facts["counts"] == {"completed": 1}


@pytest.mark.parametrize("form", ["text", "facts"])
async def test_where_the_host_allows_longer_calls_it_costs_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    async with literal(tmp_path, monkeypatch, "auto", form, wait_cap_seconds=1000) as agent:
        reply = await agent.see_through(["sh", "-c", WORK, str(tmp_path / "packages")])
    assert (agent.waits, agent.calls) == (1, 2)
    assert reply.facts["tasks"][0]["output_tail"] == BUILT.strip()
    assert BUILT in reply.text
