"""Kinds written in Python: registering a handler, running it, and the two that ship."""

import importlib
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from taskorch.attempt import Attempt, Ending, Remains
from taskorch.errors import InvalidInput, NonRetryable, readable
from taskorch.rows import dumps
from taskorch.task import Cancelled, Completed, Failed, Interrupted, Outcome, Progress, Reason, Task

MAX_ATTEMPTS = 3  # a handler is idempotent by contract, so it is run again after a failure or a crash
RESULT_BYTES = 65_536
MESSAGE_CHARACTERS = 4_000
STOP_SECONDS = 0.5  # what an orderly stop leaves a running handler to finish by itself

Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)


class Context:
    """What a handler is told and may say. `task` is the task as it was when this attempt started."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def task(self) -> Task:
        return self._attempt.task

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants this attempt to end: for synchronous code, which cannot be interrupted."""
        return self._attempt.ending is not None

    def progress(self, value: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far it is; from any thread, as often as you like. The latest is stored a few times a second."""
        text = message and message.encode("utf-8", "replace").decode()[:MESSAGE_CHARACTERS]
        self._attempt.progress(Progress(float(value), None if total is None else float(total), text))


class Handler:
    """A kind that is a Python function: `function(payload)` or `function(payload, context)`, async or not.

    If the first parameter is annotated with a pydantic model, a TypedDict or a dataclass, payloads are checked against
    it when a task is created, and the function receives that type. A synchronous function runs in a thread.
    """

    in_process = True

    def __init__(self, function: Callable[..., Any], max_attempts: int = MAX_ATTEMPTS) -> None:
        self.max_attempts = max_attempts
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        if not 1 <= len(parameters) <= 2:
            raise TypeError(f"handler {function.__qualname__} must take (payload) or (payload, context)")
        self._takes_context = len(parameters) == 2
        wanted = parameters[0].annotation
        plain = wanted is inspect.Parameter.empty or wanted is Any or wanted is dict
        self._payload = None if plain else TypeAdapter[Any](wanted)

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput when the function's annotation does not accept the payload."""
        self._parse(payload)

    async def run(self, attempt: Attempt) -> Outcome | None:
        try:
            payload = self._parse(attempt.task.payload)
        except InvalidInput as error:
            return Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
        with anyio.CancelScope(deadline=anyio.current_time() + attempt.task.timeout_seconds) as scope:
            attempt.on_end(lambda: _end(attempt, scope))
            return await self._outcome(attempt, payload)
        match attempt.ending:
            case Ending.CANCEL:
                return Cancelled()
            case Ending.STOP:
                return Interrupted("the server stopped")
            case Ending.LOST:
                return None
            case None:
                return Failed(Reason.TIMEOUT, f"it ran longer than {attempt.task.timeout_seconds:g} s")

    async def inspect(self, task: Task) -> Remains:
        return Remains.NOTHING  # it ran inside its server, and went with it

    def _parse(self, payload: Mapping[str, Any]) -> Any:
        if self._payload is None:
            return payload
        try:
            return self._payload.validate_python(payload)
        except ValidationError as error:
            known = list(self._payload.json_schema().get("properties", {}))
            raise InvalidInput(readable(error, "payload", known)) from None

    async def _outcome(self, attempt: Attempt, payload: Any) -> Outcome:
        try:
            return _completed(await self._call(payload, Context(attempt)))
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == -math.inf:
                raise  # a scope of ours, or one around it, was cancelled
            return Failed(Reason.ERROR, "it cancelled itself")
        except NonRetryable as error:
            return Failed(Reason.ERROR, _text(error), retryable=False)
        except (Exception, SystemExit) as error:  # a handler may not end the server
            log.warning("task %s attempt %s failed", attempt.task.id, attempt.task.attempt, exc_info=error)
            return Failed(Reason.ERROR, _text(error))

    async def _call(self, payload: Any, context: Context) -> Any:
        arguments = (payload, context) if self._takes_context else (payload,)
        if self._is_async:
            return await cast(Awaitable[Any], self._function(*arguments))
        result = await anyio.to_thread.run_sync(self._function, *arguments)
        await anyio.lowlevel.checkpoint()  # a thread cannot be interrupted: a wish to end it takes effect now
        return result


_REGISTERED: dict[str, tuple[Callable[..., Any], int | None]] = {}


def handler(name: str, *, max_attempts: int | None = None) -> Callable[[Function], Function]:
    """Register the function below as the kind `name`; the function itself stays as it is.

    The contract: it may run again after a failure or a crash (3 starts, or `max_attempts`), so make it idempotent.
    It returns what JSON can hold, up to 64 KiB; an exception fails the attempt, `NonRetryable` the task.
    """

    def register(function: Function) -> Function:
        if name in _REGISTERED or name == "command":
            raise ValueError(f"the kind {name!r} is taken")
        Handler(function)  # a signature that cannot be called is an error where it is written
        _REGISTERED[name] = (function, max_attempts)
        return function

    return register


def load_handlers(modules: str, max_attempts: int = MAX_ATTEMPTS) -> dict[str, Handler]:
    """Import comma-separated modules, which register their handlers; all that are registered now.

    `max_attempts`: for those that name no number. Raises ImportError when a module is not found; what a module raises
    while it is imported passes through.
    """
    for module in filter(None, (part.strip() for part in modules.split(","))):
        importlib.import_module(module)
    return {name: Handler(function, most or max_attempts) for name, (function, most) in _REGISTERED.items()}


def _end(attempt: Attempt, scope: anyio.CancelScope) -> None:
    if attempt.ending is Ending.STOP:
        scope.deadline = min(scope.deadline, anyio.current_time() + STOP_SECONDS)
    else:
        scope.cancel()


def _completed(result: Any) -> Outcome:
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    try:
        size = len(dumps(result).encode())
    except (TypeError, ValueError, RecursionError) as error:
        return Failed(Reason.ERROR, f"its result is not JSON: {error}", retryable=False)
    if size > RESULT_BYTES:
        return Failed(Reason.ERROR, f"its result has {size} bytes; at most {RESULT_BYTES} are kept", retryable=False)
    return Completed(result)


def _text(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        causes = cast(BaseExceptionGroup[BaseException], error).exceptions
        return _text(causes[0])
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text.encode("utf-8", "replace").decode()[:MESSAGE_CHARACTERS]


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
