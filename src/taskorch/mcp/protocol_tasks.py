"""Our tasks as protocol tasks: what `tasks_extension` needs to know, from the same rows that the tools read.

`create_task` with `wait_seconds` is answered with a handle where the request declares the extension, and waits where it
does not. A handle names one life of the task: its id for the first, `<id>.<n>` after the nth retry by a client. On the
wire an end is final, so a later life is not seen through it.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import mcp_types as mt
from mcp.server.lowlevel.server import Server
from pydantic import TypeAdapter, ValidationError

from taskorch.calls.aliases import understood
from taskorch.calls.arguments import CreateTask, Seconds
from taskorch.calls.replies import CONCISE_BYTES, View, progress_text, task_facts, task_reply, why_blocked
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts, iso
from taskorch.domain.errors import InvalidInput, NotFound, StoreError
from taskorch.domain.task import Phase, Status, Task
from taskorch.mcp.server import result_of
from taskorch.mcp.tasks_extension import Body, Ctx, ProtocolTask, declared, extend, handle
from taskorch.storage.ids import FULL_ID
from taskorch.storage.lives import Life
from taskorch.storage.store import Change

HANDLE = re.compile(rf"({FULL_ID.pattern})(?:\.([1-9][0-9]{{0,8}}))?")
FIRST_MS, SOON_MS, WORKING_MS, HELD_MS, LONGEST_MS, SHORTEST_MS = 500, 1_000, 2_000, 5_000, 15_000, 10
SOON_FOR_MS = 10_000  # how long an attempt is asked after more often
SECONDS = TypeAdapter[float](Seconds)

CallTool = Callable[[Ctx, mt.CallToolRequestParams], Awaitable[Any]]

log = logging.getLogger(__name__)


def serve_protocol_tasks(server: Server[Any], service: Service, keep_ms: int, keep_failed_ms: int) -> None:
    """Add the extension to our server, over its own tasks. How long those are kept: ended ones, failed ones."""
    lives = Lives(service, keep_ms, keep_failed_ms)
    extend(server, lives)
    if entry := server.get_request_handler("tools/call"):
        server.add_request_handler(
            "tools/call", mt.CallToolRequestParams, _deferring(lives, service, cast(CallTool, entry.handler))
        )


@dataclass(frozen=True)
class Lives:
    """The `Keeper` of our tasks."""

    service: Service
    keep_ms: int
    keep_failed_ms: int

    async def find(self, task_id: str) -> ProtocolTask | None:
        life = await self._life(task_id)
        return (
            None
            if life is None
            else self._told(task_id, life, await self.service.view([life.task] if life.task else []))
        )

    async def cancel(self, task_id: str, by: str) -> bool:
        life = await self._life(task_id)
        if life is not None:
            with suppress(NotFound):  # deleted since
                await self.service.store.cancel(_parts(task_id)[0], "", by, life=life.number)
        return life is not None

    async def answer(self, task_id: str, answers: Mapping[str, Any]) -> bool:
        """Nothing is ever asked, so no key is open."""
        return await self._life(task_id) is not None

    @contextmanager
    def watching(self, task_ids: Collection[str], heard: Callable[[], None]) -> Generator[None]:
        wanted = {_parts(task_id)[0] for task_id in task_ids}

        def changed(changes: Sequence[Change]) -> None:
            if not changes or any(task_id in wanted for task_id, _ in changes):
                heard()

        with self.service.store.listening(changed):
            yield

    async def begun(self, task_id: str) -> ProtocolTask | None:
        """What a handle for the latest life of the task says: what it was when it was created, or since then."""
        life = await self.service.queries.life(task_id)
        if life is None:
            return None
        updated_at = life.began_at if life.ended else life.updated_at
        name = f"{task_id}.{life.number}" if life.number else task_id
        return ProtocolTask(name, "working", life.began_at, updated_at, poll_ms=FIRST_MS)

    async def _life(self, task_id: str) -> Life | None:
        stored_id, number = _parts(task_id)
        return await self.service.queries.life(stored_id, number) if stored_id else None

    def _told(self, task_id: str, life: Life, view: View) -> ProtocolTask:
        try:
            if life.task is None:
                raise ValueError("the row cannot be read")
            return self._as_is(task_id, life, life.task, view)
        except Exception:
            if not life.ended:
                raise  # what wrote the row may yet bring it to an end that can be told
            log.exception("the end of %s cannot be told", task_id)
            text = "The task has ended, but its end cannot be read; the server's log says more."
            error = mt.ErrorData(code=mt.INTERNAL_ERROR, message=text)
            return ProtocolTask(task_id, "failed", life.began_at, life.updated_at, text, error=error)

    def _as_is(self, task_id: str, life: Life, task: Task, view: View) -> ProtocolTask:
        facts = task_facts(task, view, CONCISE_BYTES)
        told = ProtocolTask(task_id, "working", life.began_at, life.updated_at, message=_message(task, facts, view))
        if not task.ended:
            return replace(told, poll_ms=_poll_ms(task, facts, view.now))
        keep_ms = self.keep_failed_ms if task.status is Status.FAILED else self.keep_ms
        ended = replace(told, ttl_ms=max(0, (task.finished_at or 0) - life.began_at) + keep_ms)
        if task.status is Status.CANCELLED:
            return replace(ended, status="cancelled")
        answer = result_of(task_reply(task, view, "Created "))  # as the wait of `create_task` would have ended
        answer = answer.model_copy(update={"is_error": task.status is Status.FAILED})
        return replace(ended, status="completed", result=answer)


def _deferring(lives: Lives, service: Service, call_tool: CallTool) -> CallTool:
    """`tools/call`, where a `create_task` that would wait answers with a handle, if this very request may get one."""

    async def call(ctx: Ctx, params: mt.CallToolRequestParams) -> Any:
        given = _given(params) if params.name == "create_task" and declared(ctx) else {}
        if not _waits(given, service.wait_cap_seconds):
            return await call_tool(ctx, params)
        result = await call_tool(ctx, params.model_copy(update={"arguments": given | {"wait_seconds": 0}}))
        return await _handle(lives, result) or result

    return call


async def _handle(lives: Lives, result: Any) -> Body | None:
    """The handle for a task that was just created, and is committed; None where the result says all there is."""
    facts = result.structured_content if isinstance(result, mt.CallToolResult) and not result.is_error else None
    if facts is None or "finished_at" in facts:
        return None
    try:
        task = await lives.begun(facts["id"])
    except StoreError as error:
        log.warning("no handle for %s: %s", facts["id"], error)
        return None
    return handle(task) if task is not None else None


def _given(params: mt.CallToolRequestParams) -> dict[str, Any]:
    """The arguments by their right names; none where the tool is going to refuse them."""
    try:
        return understood(params.arguments or {}, CreateTask.model_fields)
    except InvalidInput:
        return {}


def _waits(arguments: Mapping[str, Any], most: float) -> bool:
    """Whether the tool would accept the arguments' `wait_seconds` and wait. It refuses the others, as always."""
    if arguments.get("schedule") is not None:
        return False
    try:
        return 0 < SECONDS.validate_python(arguments.get("wait_seconds", 0)) <= most
    except ValidationError:
        return False


def _parts(task_id: str) -> tuple[str, int]:
    """The task's own id and the life that a protocol task's id names; an empty id where it is none of ours."""
    match = HANDLE.fullmatch(task_id)
    return (match[1], int(match[2] or 0)) if match else ("", 0)


def _message(task: Task, facts: Facts, view: View) -> str | None:
    """Where it stands, for a person. The same as long as nothing changes, so times are absolute."""
    error: Facts = facts.get("error", {})
    why = f"{error['reason']}: {error['message']}" if error else None
    match facts.get("phase"):
        case Phase.READY:
            return "queued"
        case Phase.SCHEDULED if task.run_at:
            return f"starts {iso(task.run_at)}"
        case Phase.BACKOFF if task.run_at:
            return f"attempt {task.attempt} failed: {why}; next start {iso(task.run_at)}"
        case Phase.BLOCKED:
            return f"blocked: {why_blocked(task, view)}"
        case None if task.status is Status.WORKING:
            progress = f": {progress_text(facts['progress'])}" if "progress" in facts else ""
            return f"attempt {task.attempt}/{task.max_attempts}{progress}"
        case None:
            return error.get("message") if task.status is Status.CANCELLED else why
        case phase:
            return str(phase)


def _poll_ms(task: Task, facts: Facts, now: int) -> int:
    """When to ask again: soon where something may happen, later where nothing can, never past the next start."""
    match facts.get("phase"):
        case Phase.READY | Phase.CANCELLING:
            return FIRST_MS
        case Phase.SCHEDULED | Phase.BACKOFF if task.run_at:
            return max(SHORTEST_MS, min(LONGEST_MS, task.run_at - now))
        case None:
            return SOON_MS if now - (task.started_at or now) < SOON_FOR_MS else WORKING_MS
        case _:
            return HELD_MS
