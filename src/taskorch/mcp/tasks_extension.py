"""The extension `io.modelcontextprotocol/tasks` (2026-07-28): protocol tasks, over whatever keeps the work.

A tool's call may be answered with a handle; the client then asks `tasks/get` until the work has ended, and finds the
call's result there. `Keeper` is who knows the work; `protocol_tasks` has the one over our rows. Every shape of the wire
is made here, and as a dict: the SDK's models leave out `ttlMs: null`, which is required.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import anyio
import anyio.abc
import mcp_types as mt
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.session import ServerSession
from mcp.server.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from pydantic import Field

from taskorch.calls.wording import clean_text, iso
from taskorch.domain.errors import TaskError, shown
from taskorch.mcp.server import caller, private

Ctx = ServerRequestContext[Any]
Body = dict[str, Any]
Status = Literal["working", "input_required", "completed", "failed", "cancelled"]

TASKS = "io.modelcontextprotocol/tasks"
SINCE = "2026-07-28"
HEADER_MISMATCH = -32020
LISTENED = 1_000  # tasks that one stream tells of; the acknowledgement says which
COALESCE_SECONDS = 0.1  # changes that come together are told once
AGAIN_SECONDS = 1.0  # until the next look, when the store could not be read

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProtocolTask:
    """A task as the protocol sees it. Times are milliseconds since the epoch.

    `result` is what the call would have answered: with `completed`, and then alone. `error` goes with `failed`, which
    is for faults of the server; `questions` (requests by key) with `input_required`.
    """

    id: str
    status: Status
    created_at: int
    updated_at: int
    message: str | None = None
    ttl_ms: int | None = None
    poll_ms: int | None = None
    result: mt.CallToolResult | None = None
    error: mt.ErrorData | None = None
    questions: Mapping[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


class Keeper(Protocol):
    """Who knows the work behind the ids that were handed out. What `find` returns for an ended task never changes."""

    async def find(self, task_id: str) -> ProtocolTask | None: ...

    async def cancel(self, task_id: str, by: str) -> bool:
        """Ask it to stop, leave it if it has ended; False: there is no such task."""
        ...

    async def answer(self, task_id: str, answers: Mapping[str, Any]) -> bool:
        """Take what was asked and is still open, ignore other keys; False: there is no such task."""
        ...

    def watching(self, task_ids: Collection[str], heard: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `heard` when one of them may have changed, while the block lasts."""
        ...


class TaskParams(mt.RequestParams):
    task_id: str = Field(alias="taskId")


class UpdateParams(TaskParams):
    input_responses: dict[str, Any] = Field(alias="inputResponses")


class TaskChanged(mt.Notification[dict[str, Any], Literal["notifications/tasks"]]):
    method: Literal["notifications/tasks"] = "notifications/tasks"
    params: dict[str, Any]


def extend(server: Server[Any], keeper: Keeper) -> None:
    """Serve the extension. Handles are the tools' own affair: they answer with `handle` where `declared` is true."""

    async def get(ctx: Ctx, params: TaskParams) -> Body:
        _check(ctx, params)
        return {**_wire(_found(await keeper.find(params.task_id))), "resultType": "complete"}

    async def update(ctx: Ctx, params: UpdateParams) -> Body:
        _check(ctx, params)
        return _acknowledged(await keeper.answer(params.task_id, params.input_responses))

    async def cancel(ctx: Ctx, params: TaskParams) -> Body:
        _check(ctx, params)
        return _acknowledged(await keeper.cancel(params.task_id, caller(ctx)))

    server.extensions[TASKS] = {}  # a client takes any other value for another extension
    server.add_request_handler("tasks/get", TaskParams, private(get))
    server.add_request_handler("tasks/update", UpdateParams, private(update))
    server.add_request_handler("tasks/cancel", TaskParams, private(cancel))
    if entry := server.get_request_handler("subscriptions/listen"):
        listen = _Listen(cast(Any, entry.handler), keeper)
        server.add_request_handler("subscriptions/listen", mt.SubscriptionsListenRequestParams, private(listen))


def declared(ctx: Ctx) -> bool:
    """Whether this very request may be answered with a handle."""
    capabilities = ctx.session.client_capabilities
    extensions = capabilities.extensions if capabilities is not None else None
    return ctx.protocol_version >= SINCE and extensions is not None and TASKS in extensions


def demand(ctx: Ctx) -> None:
    """Raise MCPError unless this very request declares the extension."""
    if ctx.protocol_version < SINCE:
        raise MCPError(mt.METHOD_NOT_FOUND, "Method not found", ctx.method)
    if not declared(ctx):
        wanted: Body = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        raise MCPError(mt.MISSING_REQUIRED_CLIENT_CAPABILITY, f"This request did not declare {TASKS}.", wanted)


def handle(task: ProtocolTask) -> Body:
    """What answers a tool's call in the place of its result. `tasks/get` must find the task already."""
    bare = replace(task, message=None, result=None, error=None, questions=None)
    return {**_wire(bare), "resultType": "task"}


def _wire(task: ProtocolTask) -> Body:
    body: Body = {
        "taskId": task.id,
        "status": task.status,
        "createdAt": iso(task.created_at),
        "lastUpdatedAt": iso(task.updated_at),
        "ttlMs": task.ttl_ms,
    }
    if task.message is not None:
        body["statusMessage"] = clean_text(task.message)
    if task.poll_ms is not None:
        body["pollIntervalMs"] = task.poll_ms
    if task.result is not None:
        body["result"] = {**_dumped(task.result), "resultType": "complete"}
    if task.error is not None:
        body["error"] = _dumped(task.error)
    if task.questions is not None:
        body["inputRequests"] = dict(task.questions)
    return body


def _dumped(model: mt.CallToolResult | mt.ErrorData) -> Body:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _check(ctx: Ctx, params: TaskParams) -> None:
    """Raise MCPError when the request may not ask for this task, or over HTTP when its header names another one."""
    demand(ctx)
    if ctx.request is not None and decode_header_value(ctx.request.headers.get(MCP_NAME_HEADER)) != params.task_id:
        raise MCPError(HEADER_MISMATCH, f"The header {MCP_NAME_HEADER} must name the same task as params.taskId.")


def _found(task: ProtocolTask | None) -> ProtocolTask:
    if task is None:
        raise MCPError(mt.INVALID_PARAMS, "Task not found")
    return task


def _acknowledged(there: bool) -> Body:
    if not there:
        raise MCPError(mt.INVALID_PARAMS, "Task not found")
    return {"resultType": "complete"}


class _Listen:
    """`subscriptions/listen` that also tells of tasks. The rest of the stream is the server's own handler's."""

    def __init__(self, plain: Callable[[Ctx, mt.SubscriptionsListenRequestParams], Any], keeper: Keeper) -> None:
        self._plain = plain
        self._keeper = keeper

    async def __call__(self, ctx: Ctx, params: mt.SubscriptionsListenRequestParams) -> mt.SubscriptionsListenResult:
        wanted = (params.notifications.model_extra or {}).get("taskIds")
        if wanted is None:
            return await self._plain(ctx, params)
        demand(ctx)
        task_ids = _strings(wanted)[:LISTENED]
        ring, rung = anyio.create_memory_object_stream[None](1)

        def heard() -> None:
            with suppress(anyio.WouldBlock):  # it has been told to look already
                ring.send_nowait(None)

        with ring, rung, self._keeper.watching(task_ids, heard):
            found = {task_id: await self._keeper.find(task_id) for task_id in task_ids}
            seen = {task_id: task for task_id, task in found.items() if task is not None}
            session = _Acknowledging(ctx.session, list(seen))
            trouble: MCPError | None = None
            async with anyio.create_task_group() as group:

                async def tell() -> None:
                    await session.acknowledged.wait()
                    await self._tell(ctx, seen, rung)
                    group.cancel_scope.cancel()

                group.start_soon(tell)
                try:
                    return await self._plain(replace(ctx, session=cast(ServerSession, session)), params)
                except MCPError as error:  # out of the group it would be part of another error
                    trouble = error
                finally:
                    group.cancel_scope.cancel()
        if trouble is not None:
            raise trouble
        return mt.SubscriptionsListenResult(_meta={SUBSCRIPTION_ID_META_KEY: ctx.request_id})

    async def _tell(self, ctx: Ctx, seen: dict[str, ProtocolTask], rung: anyio.abc.ObjectReceiveStream[None]) -> None:
        """Send what is new of the tasks whenever some of it may be; ends when it cannot be sent."""
        async for _ in rung:
            await anyio.sleep(COALESCE_SECONDS)
            for task_id, before in tuple(seen.items()):
                try:
                    task = await self._look(task_id)
                    if task is not None and replace(task, poll_ms=None) != replace(before, poll_ms=None):
                        await self._send(ctx, task)
                except Exception:
                    log.exception("could not tell a listener of %s: ending its stream", task_id)
                    return
                if task is None or task.ended:  # there will be no more of it
                    del seen[task_id]
                else:
                    seen[task_id] = task

    async def _look(self, task_id: str) -> ProtocolTask | None:
        while True:
            try:
                return await self._keeper.find(task_id)
            except TaskError as error:
                log.warning("could not see how %s is: %s", task_id, error)
                await anyio.sleep(AGAIN_SECONDS)

    async def _send(self, ctx: Ctx, task: ProtocolTask) -> None:
        params = {**_wire(task), "_meta": {SUBSCRIPTION_ID_META_KEY: ctx.request_id}}
        await ctx.session.send_notification(cast(Any, TaskChanged(params=params)), related_request_id=ctx.request_id)


class _Acknowledging:
    """The session of a listen request, whose acknowledgement also names the tasks that will be told of."""

    def __init__(self, session: ServerSession, task_ids: list[str]) -> None:
        self._session = session
        self._task_ids = task_ids
        self.acknowledged = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def send_notification(self, notification: Any, related_request_id: mt.RequestId | None = None) -> None:
        if not isinstance(notification, mt.SubscriptionsAcknowledgedNotification):
            return await self._session.send_notification(notification, related_request_id)
        said = notification.params
        honoured = said.notifications.model_dump(by_alias=True, exclude_none=True) | {"taskIds": self._task_ids}
        params = said.model_copy(update={"notifications": mt.SubscriptionFilter.model_validate(honoured)})
        await self._session.send_notification(notification.model_copy(update={"params": params}), related_request_id)
        self.acknowledged.set()


def _strings(value: Any) -> list[str]:
    items = cast(list[Any], value) if isinstance(value, list) else [value]
    if strange := [item for item in items if not isinstance(item, str)]:
        raise MCPError(mt.INVALID_PARAMS, f"taskIds must be an array of strings, not of {shown(strange[0])}")
    return cast(list[str], items)
