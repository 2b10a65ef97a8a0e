"""Protocol tasks with the SDK's own client over real stdio: its calls resolve handles by themselves."""

import sys
from pathlib import Path

import anyio
import mcp_types as mt
from clients import until
from mcp import Client, StdioServerParameters
from mcp.client.extension import ClaimContext
from peers.handles import TASKS, AboutTask, Handle, ProtocolTasks, get


class Ack(mt.Result):
    pass


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
