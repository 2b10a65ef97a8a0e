"""The `tool` kind: a task that calls a tool of another MCP server. Which servers there are says the operator's file."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskorch.domain.errors import InvalidInput, cut, did_you_mean, readable, shown
from taskorch.domain.fields import expected, plain_schema
from taskorch.domain.task import Cancelled, Failed, Interrupted, Outcome, Reason, Task
from taskorch.work import outcomes
from taskorch.work.attempt import Attempt, Ending, Remains
from taskorch.work.connections import CONNECT_SECONDS, Connections
from taskorch.work.handlers import end_scope
from taskorch.work.mcp_servers import SETTING
from taskorch.work.policy import NotAllowed
from taskorch.work.remote_answer import Answer, Lost, NotConnected, Refused, cleaned, error_of, value_of

if TYPE_CHECKING:
    from taskorch.work.remote_session import Session

PAUSES = (1.0, 4.0)  # before another connection is tried, within one attempt
NAMED = 20  # so many names of tools a refusal lists


class ToolPayload(BaseModel):
    """What a tool task takes."""

    model_config = ConfigDict(extra="forbid")
    server: Annotated[str, Field(min_length=1)]
    tool: Annotated[str, Field(min_length=1)]
    arguments: dict[str, Any] = {}


class Call:
    """One attempt, and how far it has come."""

    def __init__(self, attempt: Attempt, payload: ToolPayload) -> None:
        self.attempt = attempt
        self.payload = payload
        self.is_sent = False
        self.is_safe = False  # the server says that the tool may be called again
        self.task_id: str | None = None  # of the protocol task that the server has made of it

    @property
    def may_repeat(self) -> bool:
        return self.is_safe or not self.is_sent

    def tell(self, value: float, total: float | None, message: str | None) -> None:
        with suppress(ValueError):  # not everything that a server calls a number is one
            self.attempt.progress(outcomes.progress(value, total, message))

    def handed(self, task_id: str) -> None:
        self.task_id = task_id


class RemoteTool:
    """The kind.

    A tool may have had its effect although its attempt failed, so there is 1 start unless the task allows more. What is
    known to have had none costs none: within an attempt a connection that could not be made is tried again, and so is
    a call that lost its connection where the server says that the tool only reads, or may be repeated.
    """

    max_attempts = 1
    in_process = False  # what was asked of another server may go on there
    timeout_seconds: float | None = None
    description = "Calls a tool of another MCP server."

    def __init__(self, connections: Connections, pauses: tuple[float, ...] = PAUSES) -> None:
        self._connections = connections
        self._pauses = pauses

    def payload_schema(self) -> dict[str, Any]:
        """JSON schema of the payload; `server` is one of those that there are."""
        schema = plain_schema(ToolPayload)
        schema["properties"]["server"]["enum"] = list(self._connections.servers)
        return schema

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput when the payload is malformed, or names a server that is not known or may not do that.

        Which tools a server has it alone knows.
        """
        self._parse(payload)

    def shown(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return payload

    async def run(self, attempt: Attempt) -> Outcome | None:
        try:
            call = Call(attempt, self._parse(attempt.task.payload))
        except NotAllowed as error:
            return Failed(Reason.NOT_ALLOWED, str(error), retryable=False)
        except InvalidInput as error:
            return Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
        with anyio.CancelScope(deadline=anyio.current_time() + attempt.task.timeout_seconds) as scope:
            attempt.on_end(lambda: end_scope(attempt, scope))
            return await self._outcome(call)
        return _cut_short(call)

    def has_ended(self, task: Task) -> bool:
        return False  # its end is nowhere but in its server

    async def inspect(self, task: Task) -> Remains:
        return Remains.NOTHING  # the server it asked went with its own server, or hears of it no more

    def _parse(self, raw: Mapping[str, Any]) -> ToolPayload:
        known = self._connections.servers
        names = ", ".join(known)
        try:
            payload = ToolPayload.model_validate(raw)
        except ValidationError as error:
            mistakes = readable(error, "payload", [*ToolPayload.model_fields])
            raise InvalidInput(f"{mistakes} The payload is {expected(self.payload_schema())}.") from None
        if payload.server not in known:
            near = did_you_mean(payload.server, known)
            raise InvalidInput(f"payload.server {shown(payload.server)} is not known here.{near} Use one of: {names}.")
        if not (entry := known[payload.server]).allows(payload.tool):
            raise NotAllowed(
                f"payload.tool {shown(payload.tool)} is not allowed: of the server {payload.server} tasks may call "
                f"{', '.join(entry.tools) or 'nothing'}. Ask the user to add it to the entry's tools in the file that "
                f"{SETTING} names, and to restart taskorch."
            )
        return payload

    async def _outcome(self, call: Call) -> Outcome:
        server, tool = call.payload.server, call.payload.tool
        try:
            answer = await self._answer(call)
        except InvalidInput as error:
            return Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
        except NotConnected as error:
            return Failed(Reason.SPAWN_ERROR, cleaned(f"{server}: {error}"), retryable=not error.final)
        except Lost as error:
            if not call.is_sent:
                return Failed(Reason.SPAWN_ERROR, cleaned(f"{server}: {error}"))
            return Failed(Reason.ERROR, cleaned(f"{server}: {error}; {tool} may have had its effect"))
        except Refused as error:
            return Failed(Reason.ERROR, cleaned(f"{server}: {error}"), retryable=not error.final)
        return Failed(Reason.ERROR, error_of(answer)) if answer.is_error else outcomes.completed(value_of(answer))

    async def _answer(self, call: Call) -> Answer:
        """Call it; where that can do no harm, again over another connection, if there is one within a minute."""
        until = anyio.current_time() + CONNECT_SECONDS
        ask = partial(_ask, call)
        for pause in self._pauses:
            try:
                return await self._connections.use(call.payload.server, ask)
            except (NotConnected, Lost) as error:
                final = isinstance(error, NotConnected) and error.final
                if isinstance(error, Lost):
                    until = anyio.current_time() + CONNECT_SECONDS
                if final or not (call.may_repeat or call.task_id) or anyio.current_time() + pause > until:
                    raise
            await anyio.sleep(pause)
        return await self._connections.use(call.payload.server, ask)


async def _ask(call: Call, session: "Session") -> Answer:
    """Raises InvalidInput when the server has no such tool."""
    if call.task_id is not None:
        return await session.follow(call.task_id, call)
    call.is_sent = False
    payload = call.payload
    tools = await session.tools(payload.tool)
    if payload.tool not in tools:
        known = sorted(tools)
        near = did_you_mean(payload.tool, known)
        more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
        raise InvalidInput(
            f"payload.tool {shown(payload.tool)}: the server {payload.server} has no such tool.{near} "
            f"It has: {', '.join(map(cut, known[:NAMED])) or 'none'}{more}."
        )
    call.is_safe = tools[payload.tool]
    call.is_sent = True
    try:
        return await session.call(payload.tool, payload.arguments, call)
    except NotConnected:
        call.is_sent = False
        raise


def _cut_short(call: Call) -> Outcome | None:
    """How it ended when its scope ended it: by a wish, else by its time limit."""
    attempt, server = call.attempt, call.payload.server
    match attempt.ending:
        case Ending.CANCEL:
            told = f"the server {server} was told to stop; what the tool had done by then stays done"
            return Cancelled(told if call.is_sent else "it had not been called")
        case Ending.STOP if call.may_repeat:
            return Interrupted("the server stopped")
        case Ending.STOP:
            return Failed(
                Reason.INTERRUPTED, f"the server stopped while {call.payload.tool} ran; it may have had its effect"
            )
        case Ending.LOST:
            return None
        case None:
            where = "had not answered" if call.is_sent else "was not connected yet"
            return Failed(
                Reason.TIMEOUT, f"it ran longer than {attempt.task.timeout_seconds:g} s; the server {server} {where}"
            )
