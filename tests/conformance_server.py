"""The server that the official conformance scenarios for protocol tasks need: our extension, their tools, over HTTP.

What a tool begins is a real task in our store and runs in our pool; only what our tasks cannot do yet (asking the
client, faults of the protocol) is kept in memory here. `python conformance_server.py STATE_FOLDER` serves, and says its
port on stdout.
"""

import json
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import mcp_types as mt
import uvicorn
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler

from taskorch.app import running
from taskorch.config import Settings
from taskorch.domain.errors import NonRetryable
from taskorch.domain.task import NewTask
from taskorch.mcp.protocol_tasks import Lives
from taskorch.mcp.tasks_extension import Body, Ctx, Keeper, ProtocolTask, declared, demand, extend, handle
from taskorch.work.handlers import handler

DAY_MS = 86_400_000
SLOTS = 16  # several tasks of a minute stay behind
TOOLS = ("greet", "slow_compute", "failing_job", "protocol_error_job", "confirm_delete", "multi_input")
ASKED = ("test_tool_with_task",)


@handler("fixture.slow")
async def _slow(payload: dict[str, Any]) -> str:
    await anyio.sleep(payload["seconds"])
    return f"computed {payload['label']}"


@handler("fixture.fail")
async def _fail(payload: dict[str, Any]) -> None:
    await anyio.sleep(0.5)
    raise NonRetryable("the job failed, as it always does")


@dataclass
class Memory:
    """Protocol tasks that are no rows: their questions stay open until they are answered."""

    tasks: dict[str, ProtocolTask] = field(default_factory=dict[str, ProtocolTask])

    def add(self, **given: Any) -> ProtocolTask:
        now = time.time_ns() // 1_000_000
        task = ProtocolTask(f"m{len(self.tasks)}", created_at=now, updated_at=now, poll_ms=100, **given)
        self.tasks[task.id] = task
        return task

    async def find(self, task_id: str) -> ProtocolTask | None:
        return self.tasks.get(task_id)

    async def cancel(self, task_id: str, by: str) -> bool:
        if (task := self.tasks.get(task_id)) and not task.ended:
            self.tasks[task_id] = replace(task, status="cancelled", questions=None)
        return task is not None

    async def answer(self, task_id: str, answers: Mapping[str, Any]) -> bool:
        task = self.tasks.get(task_id)
        if task is None or task.questions is None:
            return task is not None
        left = {key: question for key, question in task.questions.items() if key not in answers}
        self.tasks[task_id] = (
            replace(task, questions=left)
            if left
            else replace(task, status="completed", questions=None, result=said("thank you"))
        )
        return True

    def watching(self, task_ids: Collection[str], heard: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Both:
    """Rows, and what is in memory."""

    lives: Lives
    memory: Memory

    def _of(self, task_id: str) -> Keeper:
        return self.memory if task_id in self.memory.tasks else self.lives

    async def find(self, task_id: str) -> ProtocolTask | None:
        return await self._of(task_id).find(task_id)

    async def cancel(self, task_id: str, by: str) -> bool:
        return await self._of(task_id).cancel(task_id, by)

    async def answer(self, task_id: str, answers: Mapping[str, Any]) -> bool:
        return await self._of(task_id).answer(task_id, answers)

    def watching(self, task_ids: Collection[str], heard: Callable[[], None]) -> AbstractContextManager[None]:
        return self.lives.watching(task_ids, heard)


def said(text: str) -> mt.CallToolResult:
    return mt.CallToolResult(content=[mt.TextContent(text=text)])


def question(message: str) -> Body:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "confirm": {"type": "boolean"}}}
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    }


def build(lives: Lives) -> Server[Any]:
    """A server with the tools of the scenarios."""
    memory = Memory()

    async def begin(kind: str, **payload: Any) -> Body:
        new = NewTask(kind=kind, payload=payload, max_attempts=1, timeout_seconds=120)
        task = await lives.begun((await lives.service.store.add(new)).id)
        assert task is not None
        return handle(task)

    async def list_tools(ctx: Ctx, params: Any) -> mt.ListToolsResult:
        schema = {"type": "object"}
        return mt.ListToolsResult(tools=[mt.Tool(name=name, input_schema=schema) for name in TOOLS + ASKED])

    async def call(ctx: Ctx, params: mt.CallToolRequestParams) -> Any:
        arguments = params.arguments or {}
        match params.name:
            case "greet":
                return said(f"Hello, {arguments['name']}!")
            case "slow_compute" if declared(ctx):
                return await begin("fixture.slow", seconds=arguments["seconds"], label=arguments.get("label", ""))
            case "slow_compute":
                return said(await _slow({"label": "", **arguments}))
            case "failing_job":
                demand(ctx)
                return await begin("fixture.fail")
            case "protocol_error_job":
                error = mt.ErrorData(code=mt.INTERNAL_ERROR, message="the work broke the protocol")
                return handle(memory.add(status="failed", message=error.message, error=error))
            case "confirm_delete":
                questions = {"q-1": question(f"Delete {arguments['filename']}?")}
                return handle(memory.add(status="input_required", questions=questions))
            case "multi_input":
                questions = {"q-1": question("First?"), "q-2": question("Second?")}
                return handle(memory.add(status="input_required", questions=questions))
            case "test_tool_with_task":
                answered = (params.input_responses or {}).get("user_name")
                if answered is None:
                    form = mt.ElicitRequestFormParams.model_validate(question("Your name?")["params"])
                    return mt.InputRequiredResult(input_requests={"user_name": mt.ElicitRequest(params=form)})
                demand(ctx)
                return await begin("echo", answer=json.loads(answered.model_dump_json())["content"])
            case name:
                raise ValueError(name)

    server = Server[Any](
        "fixture",
        version="1",
        on_list_tools=list_tools,
        on_subscriptions_listen=ListenHandler(InMemorySubscriptionBus()),
    )
    server.add_request_handler("tools/call", mt.CallToolRequestParams, call)
    extend(server, Both(lives, memory))
    return server


async def main(state: Path) -> None:
    async with running(Settings(state_dir=state, concurrency=SLOTS)) as app:
        server = build(Lives(app.service, 7 * DAY_MS, 30 * DAY_MS))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sys.stdout.write(f"{listener.getsockname()[1]}\n")
            sys.stdout.flush()
            await uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="warning")).serve([listener])


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
