"""Kinds written in Python: registering a handler, running it, and the two that ship."""

import asyncio
import importlib
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from taskorch.domain import references
from taskorch.domain.errors import InvalidInput, readable
from taskorch.domain.fields import expected
from taskorch.domain.outside import is_outside
from taskorch.domain.task import TOOL, Cancelled, Failed, Interrupted, Outcome, Reason, Task, is_command
from taskorch.storage.rows import dumps
from taskorch.work import outcomes
from taskorch.work.attempt import Attempt, Ending, Remains
from taskorch.work.policy import parts

MAX_ATTEMPTS = 3  # a handler is idempotent by contract, so it is run again after a failure or a crash
STOP_SECONDS = 0.5  # what an orderly stop leaves a running handler to finish by itself

Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)


class Context:
    """What a handler is told and may say. `task` is the task as it was when this attempt started."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.told = False  # that it should end

    @property
    def task(self) -> Task:
        return self._attempt.task

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants this attempt to end: for synchronous code, which cannot be interrupted.

        A function that was told so has been cut short: what it returns or raises then does not count.
        """
        self.told = self.told or self._attempt.ending is not None
        return self.told

    def progress(self, value: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far it is; from any thread, as often as you like. The latest is stored a few times a second."""
        self._attempt.progress(outcomes.progress(value, total, message))


class Handler:
    """A kind that is a Python function: `function(payload)` or `function(payload, context)`, async or not.

    If the first parameter is annotated with a pydantic model, a dataclass or a TypedDict (before Python 3.12 that of
    typing_extensions), payloads are checked against it when a task is created, and the function receives that type. Its
    result is checked against the return annotation, and becomes JSON by it. A synchronous function runs in a thread.
    """

    in_process = True
    timeout_seconds: float | None = None

    def __init__(self, function: Callable[..., Any], max_attempts: int = MAX_ATTEMPTS) -> None:
        self.description = (inspect.getdoc(function) or "").partition("\n")[0]
        self.max_attempts = max_attempts
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        signature = inspect.signature(function, eval_str=True)
        parameters = list(signature.parameters.values())
        positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        needs_more = any(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters)
        if needs_more or not 1 <= len(positional) <= 2:
            raise TypeError(f"handler {function.__qualname__} must take (payload) or (payload, context)")
        self._takes_context = len(positional) == 2
        self._returns = outcomes.returned(signature.return_annotation)
        wanted = positional[0].annotation
        plain = wanted is inspect.Parameter.empty or wanted is Any or wanted is dict
        self._payload = None if plain else TypeAdapter[Any](wanted)

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput when the function's annotation does not accept the payload.

        One that takes results of other tasks is checked when it has them.
        """
        if not references.find(payload):
            self._parse(payload)

    def shown(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return payload

    def payload_schema(self) -> dict[str, Any] | None:
        """That of the annotation; None where there is none, or none that JSON schema can say."""
        try:
            schema = self._payload.json_schema() if self._payload else None
            dumps(schema)
        except (PydanticUserError, ValueError):  # such as an infinite default
            return None
        return schema

    @property
    def hears(self) -> bool:
        """Whether it can notice that it should end: other code can only be waited for, or killed."""
        return self._is_async or self._takes_context

    async def run(self, attempt: Attempt) -> Outcome | None:
        try:
            payload = self._parse(attempt.task.payload)
        except InvalidInput as error:
            return Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
        deadline = anyio.current_time() + attempt.task.timeout_seconds
        with anyio.CancelScope() as scope:
            # Most have ended before the loop turns, and a timer for each would be a sixth of what they cost it.
            arming = asyncio.get_running_loop().call_soon(_arm, scope, deadline)
            attempt.on_end(lambda: end_scope(attempt, scope))
            try:
                return await self._outcome(attempt, payload)
            finally:
                arming.cancel()
        return cut_short(attempt)

    def has_ended(self, task: Task) -> bool:
        return False  # its end is nowhere but in its server

    async def inspect(self, task: Task) -> Remains:
        return Remains.NOTHING  # it ran inside its server, and went with it

    def _parse(self, payload: Mapping[str, Any]) -> Any:
        if self._payload is None:
            return payload
        try:
            return self._payload.validate_python(payload)
        except ValidationError as error:
            schema = self.payload_schema() or {}
            mistakes = readable(error, "payload", [*schema.get("properties", {})])
            takes = f" The payload is {expected(schema)}." if schema else ""
            raise InvalidInput(mistakes + takes) from None

    async def _outcome(self, attempt: Attempt, payload: Any) -> Outcome | None:
        context = Context(attempt)
        try:
            result = await self._call(payload, context)
            return cut_short(attempt) if context.told else outcomes.completed(result, self._returns)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -math.inf:
                raise  # a scope of ours, or one around it, was cancelled
            return Failed(Reason.ERROR, "it cancelled itself")
        except GeneratorExit:
            raise
        except BaseException as error:  # whatever it is, a handler may not end the server
            if context.told:
                return cut_short(attempt)
            failed = outcomes.failed(error)
            if failed.retryable and failed.retry_after_ms is None:  # else it was meant, and no mistake to look for
                log.warning("task %s attempt %s failed", attempt.task.id, attempt.task.attempt, exc_info=error)
            return failed

    async def _call(self, payload: Any, context: Context) -> Any:
        arguments = (payload, context) if self._takes_context else (payload,)
        if self._is_async:
            return await cast(Awaitable[Any], self._function(*arguments))
        alone = anyio.CapacityLimiter(1)  # slots are the limit; the threads that others share are not ours to fill
        result = await anyio.to_thread.run_sync(self._function, *arguments, limiter=alone)
        await anyio.lowlevel.checkpoint()  # a thread cannot be interrupted: a wish to end it takes effect now
        return result


class Registered(NamedTuple):
    function: Callable[..., Any]
    max_attempts: int | None
    isolate: bool


_REGISTERED: dict[str, Registered] = {}


def handler(name: str, *, max_attempts: int | None = None, isolate: bool = False) -> Callable[[Function], Function]:
    """Register the function below as the kind `name`; the function itself stays as it is.

    The contract: it may run again after a failure or a crash (3 starts, or `max_attempts`), so make it idempotent.
    It returns what JSON can hold, up to 64 KiB; an exception fails the attempt, `NonRetryable` the task,
    `RetryAfter` says when to try again. With `isolate` each attempt has a process of its own, which imports the modules
    of TASKORCH_HANDLERS anew: it can be killed, with all that it started, and cannot take the server with it.
    """

    def register(function: Function) -> Function:
        if name in _REGISTERED or is_command(name) or is_outside(name) or name == TOOL:
            raise ValueError(f"the kind {name!r} is taken")
        Handler(function)  # a signature that cannot be called is an error where it is written
        _REGISTERED[name] = Registered(function, max_attempts, isolate)
        return function

    return register


def load_handlers(
    modules: str, max_attempts: int = MAX_ATTEMPTS, isolated: Callable[[Callable[..., Any], int], Handler] = Handler
) -> dict[str, Handler]:
    """Import comma-separated modules, which register their handlers; all that are registered now.

    `max_attempts`: for those that name no number. `isolated` makes the kind of those that want a process of their own;
    by default they run in this one. Raises ImportError when a module is not found; what a module raises while it is
    imported passes through.
    """
    for module in parts(modules):
        importlib.import_module(module)
    return {
        name: (isolated if isolate else Handler)(function, most or max_attempts)
        for name, (function, most, isolate) in _REGISTERED.items()
    }


def _arm(scope: anyio.CancelScope, deadline: float) -> None:
    scope.deadline = min(scope.deadline, deadline)


def end_scope(attempt: Attempt, scope: anyio.CancelScope) -> None:
    """Cut short what runs in the scope, as the wish to end it says: after a moment when the server stops."""
    if attempt.ending is Ending.STOP:
        scope.deadline = min(scope.deadline, anyio.current_time() + STOP_SECONDS)
    else:
        scope.cancel()


def cut_short(attempt: Attempt) -> Outcome | None:
    """How it ended when its scope ended it: by a wish, else by its time limit."""
    match attempt.ending:
        case Ending.CANCEL:
            return Cancelled()
        case Ending.STOP:
            return Interrupted("the server stopped")
        case Ending.LOST:
            return None
        case None:
            return Failed(Reason.TIMEOUT, f"it ran longer than {attempt.task.timeout_seconds:g} s")


class Sleep(BaseModel):
    """What `sleep` takes."""

    model_config = ConfigDict(extra="forbid")
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


@handler("echo")
async def echo(payload: dict[str, Any]) -> Any:
    """Return the payload: for trying out."""
    return payload


@handler("sleep")
async def sleep(payload: Sleep, context: Context) -> Any:
    """Wait that many seconds, telling progress: for trying out."""
    began = anyio.current_time()
    while (slept := anyio.current_time() - began) < payload.seconds:
        context.progress(round(slept, 1), payload.seconds)
        await anyio.sleep(min(1.0, payload.seconds - slept))
    return {"slept_seconds": payload.seconds}
