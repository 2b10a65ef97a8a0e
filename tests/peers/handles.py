"""Protocol tasks for the SDK's own client, which brings none: its calls resolve handles by themselves."""

from collections.abc import Sequence
from typing import Any, Literal

import anyio
import mcp_types as mt
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
