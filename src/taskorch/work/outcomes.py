"""What a handler's function says, returns or raises, as progress and outcome of its attempt."""

import inspect
import math
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from taskorch.domain.errors import NonRetryable, RetryAfter, readable
from taskorch.domain.task import MESSAGE_CHARACTERS, RESULT_BYTES, Completed, Failed, Outcome, Progress, Reason
from taskorch.storage.rows import dumps

RESULT_DEPTH = 32
NOT_NULL = ConfigDict(ser_json_inf_nan="constants")  # NaN is a mistake to be told of


def returned(annotation: Any) -> TypeAdapter[Any] | None:
    """What checks results against a return annotation, and makes JSON of them. None: anything that is JSON will do.

    Raises pydantic's PydanticUserError for an annotation that pydantic refuses to read.
    """
    if annotation in (inspect.Signature.empty, Any):
        return None
    try:
        return TypeAdapter(annotation, config=NOT_NULL)
    except PydanticSchemaGenerationError:  # a class that pydantic knows nothing of
        return None
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a class with a configuration of its own


def completed(result: Any, returns: TypeAdapter[Any] | None = None) -> Outcome:
    """The end of an attempt that returned `result`: `Completed`, with its JSON, or why there can be none."""
    try:
        if returns is not None:
            result = returns.dump_python(returns.validate_python(result), mode="json")
        elif isinstance(result, BaseModel):
            result = result.model_dump(mode="json")
        text = dumps(result)
        size = len(text) if text.isascii() else len(text.encode())
        brackets = text.count("[") + text.count("{")
        depth = _depth(result) if brackets > RESULT_DEPTH else brackets
    except ValidationError as error:
        return _useless(f"its result is not what its annotation says: {readable(error, 'result')}")
    except (TypeError, ValueError, RecursionError) as error:
        return _useless(f"its result is not JSON: {error}")
    if size > RESULT_BYTES:
        return _useless(f"its result has {size} bytes; at most {RESULT_BYTES} are kept")
    if depth > RESULT_DEPTH:
        return _useless(f"its result is nested more than {RESULT_DEPTH} levels deep")
    return Completed(result, text)


def progress(value: float, total: float | None, message: str | None) -> Progress:
    """What a handler says of its progress. Raises ValueError for numbers that JSON cannot hold."""
    if not math.isfinite(value) or not math.isfinite(total or 0):
        raise ValueError(f"progress must be finite numbers, not {value} of {total}")
    return Progress(float(value), None if total is None else float(total), message and bounded(message))


def failed(error: BaseException) -> Failed:
    """What an exception of a handler says; a group speaks by its first."""
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseExceptionGroup[BaseException], error).exceptions[0]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    wait_ms = round(error.seconds * 1000) if isinstance(error, RetryAfter) else None
    return Failed(Reason.ERROR, bounded(text), retryable=not isinstance(error, NonRetryable), retry_after_ms=wait_ms)


def bounded(text: str) -> str:
    """A message as it can be stored and encoded, cut to size."""
    return text.encode("utf-8", "replace").decode()[:MESSAGE_CHARACTERS]


def _useless(why: str) -> Failed:
    return Failed(Reason.ERROR, bounded(why), retryable=False)


def _depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(_depth, cast(dict[Any, Any], value).values()), default=0)
        case list() | tuple():
            return 1 + max(map(_depth, cast(list[Any], value)), default=0)
        case _:
            return 0
