"""A session with another MCP server, by the SDK's client: its tools, calling one, following the protocol's own tasks.

This module and `program` alone of the running side know the SDK. `connections` imports it for the first session.
"""

import errno
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from math import inf
from typing import Any, Literal, cast

import anyio
import httpx2
import mcp_types as mt
from mcp import Client, ClientSession, MCPError
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from pydantic import Field, ValidationError

from taskorch.work.mcp_servers import Entry, Http, Stdio
from taskorch.work.program import Program
from taskorch.work.remote_answer import Answer, Caller, Lost, NotConnected, Refused

PAGES = 100  # of a list of tools
NEVER_MENDED = {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC}
FINAL = {mt.INVALID_REQUEST, mt.METHOD_NOT_FOUND, mt.INVALID_PARAMS}
POLL_SECONDS = 1.0  # how often a protocol task is asked for, where its server does not say
POLL_LEAST, POLL_MOST = 0.05, 15.0
CANCEL_SECONDS = 0.3  # for telling a server that its protocol task is not wanted any more
HTTP_SECONDS = 30.0  # for connecting and sending; how long a tool may take is its task's affair


class Address:
    """A server elsewhere. `ended` is set when the session there is over."""

    def __init__(self, server: Http) -> None:
        self._server = server
        self._answered = ""
        self.last_words = ""
        self.is_forgotten = False  # the last answer was that it knows of no such session
        self.ended = anyio.Event()

    @property
    def fate(self) -> str:
        return f"answered {self._answered}" if self._answered else "cannot be reached"

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[Any]:
        async def note(response: httpx2.Response) -> None:
            self.is_forgotten = response.status_code == 404
            if response.is_error:
                self._answered = f"HTTP {response.status_code} {response.reason_phrase}".strip()

        http = httpx2.AsyncClient(
            headers=self._server.headers,
            timeout=httpx2.Timeout(HTTP_SECONDS, read=None),
            event_hooks={"response": [note]},
        )
        try:
            async with http, streamable_http_client(self._server.url, http_client=http) as streams:
                yield streams
        finally:
            self.ended.set()


class Session:
    """What may be asked of a server that is connected."""

    def __init__(self, client: Client, way: Program | Address, hide: Callable[[str], str]) -> None:
        self._way = way
        self.stale = False  # it has said that its tools are others now
        self._client = client
        self._hide = hide
        self._tools: dict[str, bool] = {}

    @property
    def ended(self) -> anyio.Event:
        """Set when it will answer no more."""
        return self._way.ended

    @property
    def fate(self) -> str:
        """How it ended, in words."""
        return self._way.fate

    async def tools(self, wanted: str) -> Mapping[str, bool]:
        """Its tools by name: whether each may be repeated. Listed anew if `wanted` is not among those known."""
        if self.stale or wanted not in self._tools:
            self.stale = False
            with self._failures():
                self._tools = {tool.name: _is_safe(tool) async for tool in self._listed()}
        return self._tools

    async def call(self, tool: str, arguments: Mapping[str, Any], caller: Caller) -> Answer:
        """What the tool answers, its protocol task followed to the end. Raises Refused, Lost, NotConnected.

        Cancelled, it tells the server to stop.
        """

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            caller.tell(progress, total, message)

        with self._failures():
            _caller.set(caller)
            return _answer(await self._client.call_tool(tool, dict(arguments), progress_callback=on_progress))

    async def follow(self, task_id: str, caller: Caller) -> Answer:
        """What a call results in that was made a protocol task, over another connection maybe. Raises as `call`."""
        with self._failures():
            return _answer(await _result(self._client.session, task_id, 0, caller))

    async def _listed(self) -> AsyncGenerator[mt.Tool]:
        cursor: str | None = None
        for _ in range(PAGES):
            page = await self._client.list_tools(cursor=cursor)
            for tool in page.tools:
                yield tool
            if (cursor := page.next_cursor) is None:
                return

    @contextmanager
    def _failures(self) -> Generator[None]:
        """Say in our words what the SDK raises."""
        try:
            yield
        except MCPError as error:
            text = self._hide(error.message)
            if error.code == mt.CONNECTION_CLOSED:
                raise Lost(text) from None
            forgotten = isinstance(self._way, Address) and self._way.is_forgotten
            if forgotten and error.code == mt.INVALID_REQUEST:  # so it has begun nothing
                self.ended.set()
                raise NotConnected(text) from None
            raise Refused(text, error.code in FINAL) from None
        except (ValidationError, RuntimeError) as error:
            raise Refused(f"its answer is not what it should be: {self._hide(str(error))}", True) from None


@asynccontextmanager
async def opened(
    name: str, entry: Entry, environment: Mapping[str, str], version: str, seconds: float
) -> AsyncGenerator[Session]:
    """A session with a server, which is started for it if it is a program of ours, and ended with the block.

    Raises NotConnected, also when there is none within `seconds`; Lost when it ends before the block does.
    """
    way = Program(name, entry, {**entry.environment(), **environment}) if isinstance(entry, Stdio) else Address(entry)
    limit = anyio.CancelScope(deadline=anyio.current_time() + seconds)
    session: Session | None = None

    async def on_message(message: Any) -> None:
        if session and isinstance(message, mt.ToolListChangedNotification):
            session.stale = True

    try:
        with limit:
            async with Client(
                way.streams(),
                client_info=mt.Implementation(name="taskorch", version=version),
                message_handler=on_message,
                extensions=[ProtocolTasks()],
                cache=None,
            ) as client:
                limit.deadline = inf
                session = Session(client, way, entry.hide)
                yield session
    except Exception as error:
        if session is not None:
            raise Lost(way.fate) from error
        raise _not_connected(error, way, entry) from error
    if limit.cancelled_caught:
        raise NotConnected(f"has not answered within {seconds:g} s{way.last_words}")


class Handle(mt.Result):
    """What answers a call in the place of its result: the protocol task that will have it."""

    result_type: Literal["task"] = Field(alias="resultType")
    task_id: str = Field(alias="taskId")
    poll_ms: float | None = Field(alias="pollIntervalMs", default=None)


class ProtocolTask(mt.Result):
    status: str
    message: str | None = Field(alias="statusMessage", default=None)
    poll_ms: float | None = Field(alias="pollIntervalMs", default=None)
    result: mt.CallToolResult | None = None
    error: mt.ErrorData | None = None


class AboutTask(mt.Request[dict[str, Any], str]):
    name_param = "taskId"


class ProtocolTasks(ClientExtension):
    """The extension `io.modelcontextprotocol/tasks`, as a client: handles are followed until their tasks have ended."""

    identifier = "io.modelcontextprotocol/tasks"

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Handle, resolve=_followed)]


_caller: ContextVar[Caller] = ContextVar("caller")  # of the call that is being followed


async def _followed(handle: Handle, context: ClaimContext) -> mt.CallToolResult:
    caller = _caller.get()
    caller.handed(handle.task_id)
    return await _result(context.session, handle.task_id, handle.poll_ms, caller)


async def _result(session: ClientSession, task_id: str, poll_ms: float | None, caller: Caller) -> mt.CallToolResult:
    """What a protocol task results in. Cancelled, it cancels that task."""
    about = {"taskId": task_id}
    try:
        while True:
            await anyio.sleep(_pause(poll_ms))
            task = await session.send_request(AboutTask(method="tasks/get", params=about), ProtocolTask)
            if task.message:
                caller.tell(0, None, task.message)
            match task.status:
                case "completed" if task.result is not None:
                    return task.result
                case "working":
                    poll_ms = task.poll_ms
                case "failed" if task.error is not None:
                    raise Refused(task.error.message, task.error.code in FINAL)
                case "cancelled":
                    raise Refused(f"its task was cancelled: {task.message or 'it says no more'}", final=True)
                case _:
                    raise Refused("its task asks a person something, and there is nobody to ask", final=True)
    except (anyio.get_cancelled_exc_class(), Refused, MCPError) as reason:
        if not (isinstance(reason, MCPError) and reason.code == mt.CONNECTION_CLOSED):
            with anyio.move_on_after(CANCEL_SECONDS, shield=True), suppress(Exception):  # an ended one stays as it is
                await session.send_request(AboutTask(method="tasks/cancel", params=about), mt.Result)
        raise


def _answer(result: mt.CallToolResult) -> Answer:
    blocks = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]
    return Answer(blocks, result.structured_content, bool(result.is_error))


def _pause(poll_ms: float | None) -> float:
    return min(POLL_MOST, max(POLL_LEAST, POLL_SECONDS if poll_ms is None else poll_ms / 1000))


def _is_safe(tool: mt.Tool) -> bool:
    """Whether its server says that calling it twice does no more than calling it once."""
    hints = tool.annotations
    return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)


def _not_connected(error: Exception, way: Program | Address, entry: Entry) -> NotConnected:
    while isinstance(error, ExceptionGroup):
        error = cast(ExceptionGroup[Exception], error).exceptions[0]
    match error:
        case OSError():
            what = entry.hide(f"{error.strerror or error}: {error.filename}")
            return NotConnected(f"cannot be started: {what}", final=error.errno in NEVER_MENDED)
        case MCPError() if not way.ended.is_set():
            return NotConnected(f"refused the connection: {entry.hide(error.message)}")
        case _ if way.ended.is_set():
            return NotConnected(way.fate)
        case _:
            return NotConnected(f"cannot be spoken to: {entry.hide(f'{type(error).__name__}: {error}')}")
