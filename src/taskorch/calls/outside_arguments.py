"""The arguments of the tools of outside workers."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from taskorch.calls.arguments import DAY_SECONDS, LARGEST, Arguments, Id, Label, Line, Version
from taskorch.calls.moments import number, seconds
from taskorch.domain.task import MESSAGE_CHARACTERS, RESULT_BYTES
from taskorch.storage.rows import dumps


def _result(value: Any) -> Any:
    try:
        size = len(dumps(value).encode())
    except ValueError:
        raise ValueError("holds NaN or an infinite number, which JSON cannot; use null or a string") from None
    if size > RESULT_BYTES:
        raise ValueError(
            f"has {size} bytes; at most {RESULT_BYTES} are kept. Put large data in a file, give its path as the result"
        )
    return value


def _amount(value: float) -> float:
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{value:g} is not allowed; it must be from 0 to {LARGEST}")
    return value


Claim = Annotated[float, Field(ge=10, le=DAY_SECONDS, allow_inf_nan=False), BeforeValidator(seconds)]
Amount = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(number), AfterValidator(_amount)]
Text = Annotated[str, Field(min_length=1, max_length=MESSAGE_CHARACTERS)]
Json = Annotated[
    Any, WithJsonSchema({"type": ["object", "array", "string", "number", "boolean"]}), AfterValidator(_result)
]


class ClaimTask(Arguments):
    kind: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    label: Label | None = None
    work_directory: Annotated[
        Annotated[str, Field(min_length=1, max_length=4096)] | None, Field(description="as in the payload")
    ] = None
    worker: Line | None = None
    claim_seconds: Claim = 300


class HeartbeatTask(Arguments):
    task_id: Id
    attempt: Version
    progress: Amount | None = None
    total: Amount | None = None
    message: Text | None = None
    claim_seconds: Claim | None = None


class CompleteTask(Arguments):
    task_id: Id
    attempt: Version
    result: Json = None


class FailTask(Arguments):
    task_id: Id
    attempt: Version
    message: Text
    retryable: bool = True
