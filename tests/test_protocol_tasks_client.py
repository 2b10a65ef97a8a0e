"""Protocol tasks with the SDK's own client over real stdio: its calls resolve handles by themselves."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import mcp_types as mt
from clients import until
from mcp import Client, StdioServerParameters
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from pydantic import Field

TASKS = "io.modelcontextprotocol/tasks"


class Handle(mt.Result):
    result_type: Literal["task"] = Field(alias="resultType")
    task_id: str = Field(alias="taskId")
    status: str
    ttl_ms: int | None = Field(alias="ttlMs")  # required, though it may be null
    poll_interval_ms: int = Field(alias="pollIntervalMs")


class Task(mt.Result):
    task_id: str = Field(alias="taskId")
    status: str
    ttl_ms: int | None = Field(alias="ttlMs")
    poll_interval_ms: int | None = Field(alias="pollIntervalMs", default=None)
    result: mt.CallToolResult | None = None


class Ack(mt.Result):
    pass


class AboutTask(mt.Request[dict[str, Any], str]):
    name_param = "taskId"


class ProtocolTasks(ClientExtension):
    """What a host does: ask until the work has ended, then give out the result of the call."""

    identifier = TASKS

    def __init__(self) -> None:
        self.asked = 0

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Handle, resolve=self.resolve)]

    async def resolve(self, handle: Handle, context: ClaimContext) -> mt.CallToolResult:
        pause = handle.poll_interval_ms
        while True:
            self.asked += 1
            task = await get(context.session, handle.task_id)
            if task.result is not None:
                return task.result
            assert task.status == "working" and task.poll_interval_ms
            pause = min(pause, task.poll_interval_ms, 100)
            await anyio.sleep(pause / 1000)


async def get(session: Any, task_id: str) -> Task:
    return await session.send_request(AboutTask(method="tasks/get", params={"taskId": task_id}), Task)


def server(folder: Path) -> StdioServerParameters:
    variables = {"TASKORCH_STATE_DIR": str(folder / "state"), "TASKORCH_ALLOW_COMMANDS": "*"}
    return StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=variables)


async def test_a_call_that_creates_and_waits_ends_with_the_result_of_its_task(tmp_path: Path) -> None:
    extension = ProtocolTasks()
    with anyio.fail_after(40):
        async with Client(server(tmp_path), mode="auto", extensions=[extension]) as client:
            capabilities = client.server_capabilities
            assert capabilities is not None and capabilities.extensions == {TASKS: {}}
            result = await client.call_tool("create_task", {"payload": {"argv": ["sleep", "0.3"]}, "wait_seconds": 20})
            assert not result.is_error and result.structured_content is not None
            assert result.structured_content["result"] == {"exit_code": 0, "output_bytes": 0}
            assert extension.asked >= 2, "by a handle"
            result = await client.call_tool("create_task", {"payload": {"argv": ["false"]}, "wait_seconds": 20})
            assert result.is_error and result.structured_content is not None
            assert result.structured_content["error"]["reason"] == "exit_code"


async def test_a_handle_outlives_the_server_that_gave_it(tmp_path: Path) -> None:
    """The command goes on without any server, and the next one tells its end."""
    extension = ProtocolTasks()
    started, flag = tmp_path / "started", tmp_path / "go"
    wait = f'touch "{started}"; until [ -e "{flag}" ]; do sleep 0.05; done'
    with anyio.fail_after(40):
        async with Client(server(tmp_path), mode="auto", extensions=[extension]) as client:
            arguments = {"payload": {"argv": ["sh", "-c", wait]}, "wait_seconds": 20}
            handle = await client.session.call_tool("create_task", arguments, allow_claimed=True)
            assert isinstance(handle, Handle) and handle.ttl_ms is None
            await until(started.exists)
            assert (await get(client.session, handle.task_id)).status == "working"
        flag.touch()
        async with Client(server(tmp_path), mode="auto", extensions=[extension]) as client:
            context = ClaimContext(session=client.session, tool_name="create_task", read_timeout_seconds=None)
            result = await extension.resolve(handle, context)
            assert not result.is_error and result.structured_content is not None
            assert (result.structured_content["status"], result.structured_content["attempt"]) == ("completed", 1)
            task = await get(client.session, handle.task_id)
            assert task.status == "completed" and task.ttl_ms and task.ttl_ms > 7 * 86_400_000
            acknowledged = AboutTask(method="tasks/cancel", params={"taskId": handle.task_id})
            await client.session.send_request(acknowledged, Ack)
            assert (await get(client.session, handle.task_id)).status == "completed"
