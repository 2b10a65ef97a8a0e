"""The arguments of the tools: what is accepted, in closed models, and errors that say what would be.

Everything is checked before anything is stored; numbers out of range are refused, never clamped.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from taskorch.calls.moments import STRICT, moment, number, seconds
from taskorch.calls.wording import iso
from taskorch.domain.errors import InvalidInput, cut, readable, shown
from taskorch.domain.fields import Plain, plain_schema
from taskorch.domain.task import OnDependencyFailure, OnServerExit
from taskorch.storage.ids import FULL_ID
from taskorch.storage.rows import dumps

PAYLOAD_BYTES = 262_144
DEPTH = 32
DAYS = 366
DAY_SECONDS = 86_400
OUTPUT_BYTES = 2_048
LARGEST = 2**53  # what every JSON reader gets right
UNSENDABLE = re.compile("[\x00\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would break the line that a name stands in

Model = TypeVar("Model", bound="Arguments")


def _line(value: str) -> str:
    if CONTROL.search(value):
        raise ValueError(f"{shown(value)} holds a control character; write it on one line")
    return value


def _name(value: str) -> str:
    if FULL_ID.fullmatch(value):
        raise ValueError(f"{shown(value)} looks like a task id; choose another name")
    if not value.strip():
        raise ValueError(f"{shown(value)} is blank; leave name out or write something")
    return value


def _object(value: Any) -> Any:
    """Of a text that was to be an object only what is wrong with it is told: it may hold secrets."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be an object; the text that was given is no JSON: {error}") from None
    return value


def _payload(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(dumps(value).encode("utf-8", "surrogatepass"))
    except (ValueError, TypeError, RecursionError):
        raise ValueError("holds NaN or an infinite number, which JSON cannot; use null or a string") from None
    if size > PAYLOAD_BYTES:
        raise ValueError(
            f"has {size} bytes; at most {PAYLOAD_BYTES} are allowed. Put large data in a file, pass its path"
        )
    return value


def _word(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _one_status(value: Any) -> Any:
    if isinstance(value, list) or re.search("[,|/]", str(value)) or value in ("", "all", "any", "*"):
        raise ValueError(
            f"{shown(cast(Any, value))} is not one status; leave it out for all, or call once for each that is wanted: "
            "'waiting', 'working', 'completed', 'failed' and 'cancelled'"
        )
    return _word(value)


def _unique(value: list[str]) -> list[str]:
    return list(dict.fromkeys(value))


Word = BeforeValidator(_word)
Time = Annotated[int, BeforeValidator(moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Id = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_line), AfterValidator(_name)]
Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_line)]
PriorityName = Annotated[Literal["low", "medium", "high"], Word]
StatusName = Annotated[Literal["waiting", "working", "completed", "failed", "cancelled"], BeforeValidator(_one_status)]
Payload = Annotated[dict[str, Any], BeforeValidator(_object), AfterValidator(_payload)]
Line = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_line)]
Label = Line
Labels = Annotated[list[Label], Field(max_length=32), AfterValidator(_unique)]
Attempts = Annotated[int, Field(ge=1, le=100), BeforeValidator(number)]
Version = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(number)]
Offset = Annotated[int, Field(ge=0, le=LARGEST), BeforeValidator(number)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(seconds)]
Timeout = Annotated[float, Field(gt=0, le=DAY_SECONDS, allow_inf_nan=False), BeforeValidator(seconds)]
Delay = Annotated[float, Field(ge=0, le=DAYS * DAY_SECONDS, allow_inf_nan=False), BeforeValidator(seconds)]


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TaskWish(Arguments):
    """What can be said of a new task."""

    kind: Annotated[str, Field(min_length=1, max_length=100)] = "command"
    payload: Annotated[
        Payload,
        Field(
            description='command: {"argv": ["git", "fetch"], "cwd"?, "env"?, "stdin"?}. As any value: '
            '{"$result": "id or ref", "path"?: "output"} of a task before it'
        ),
    ] = {}
    name: Name | None = None
    priority: PriorityName = "medium"
    max_attempts: Annotated[Attempts | None, Field(description="starts in all; default: handlers 3, else 1")] = None
    timeout_seconds: Annotated[Timeout | None, Field(description="of one attempt")] = None
    delay_seconds: Delay | None = None
    run_at: Time | None = None
    expires_at: Annotated[Time | None, Field(description="fails if not started by then")] = None
    on_server_exit: Annotated[OnServerExit, Word] | None = None
    labels: Labels = []
    depends_on: Annotated[
        list[Id],
        Field(max_length=1000, description="ids or names: starts when they have completed"),
        AfterValidator(_unique),
    ] = []
    on_dependency_failure: Annotated[OnDependencyFailure, Word] = "cancel"
    retry: Annotated[
        dict[str, Any] | None,
        Field(description="on_exit?, fail_on_exit?: exit codes; first_delay_seconds?, factor?, max_delay_seconds?"),
    ] = None
    schedule: Annotated[
        dict[str, Any] | None,
        Field(
            description='{"cron": "0 7 * * 1-5"} or {"every_seconds": 60}; time_zone?, catch_up?: once, skip, all; '
            "overlap?: skip, queue"
        ),
    ] = None
    concurrency_key: Annotated[Key | None, Field(description="of one key, one works at a time")] = None
    dedupe_key: Annotated[Key | None, Field(description="same key and payload: the same task")] = None


class CreateTask(TaskWish):
    wait_seconds: Annotated[Seconds, Field(description="wait so long for its end")] = 0


class CreateTasks(Arguments):
    tasks: Annotated[
        list[dict[str, Any]],
        Field(
            min_length=1,
            max_length=1000,
            description="create_task's arguments but wait_seconds; ref: a name that depends_on may use in this call",
        ),
    ]


class Filtering(Arguments):
    """Which tasks to list: those for which all of it holds."""

    status: StatusName | None = None
    kind: Annotated[str, Field(max_length=100)] | None = None
    priority: PriorityName | None = None
    label: Label | None = None
    text: Annotated[
        Annotated[str, Field(min_length=1, max_length=200)] | None, Field(description="in name, labels or error")
    ] = None
    created_after: Time | None = None
    created_before: Time | None = None


class ListTasks(Filtering):
    limit: Annotated[int, Field(ge=1, le=100), BeforeValidator(number)] = 20
    cursor: Annotated[str | None, Field(description="next_cursor of the page before")] = None


class GetTask(Arguments):
    task_id: Id
    detail: Annotated[Literal["concise", "full"], Word] = "concise"


class UpdateTask(Arguments):
    task_id: Id
    name: Name | None = None
    priority: PriorityName | None = None
    payload: Payload | None = None
    max_attempts: Attempts | None = None
    timeout_seconds: Timeout | None = None
    delay_seconds: Delay | None = None
    run_at: Time | None = None
    expires_at: Time | None = None
    labels: Labels | None = None
    paused: bool | None = None
    expected_version: Version | None = None


class CancelTask(Arguments):
    task_id: Id
    reason: Annotated[str, Field(max_length=500)] = ""


class RetryTask(Arguments):
    task_id: Id
    delay_seconds: Delay = 0


class DeleteTask(Arguments):
    task_id: Annotated[Id, Field(description="full id or exact name")]
    confirm: Annotated[bool, Field(description="needed for a working task")] = False


class WaitForTasks(Arguments):
    task_ids: Annotated[list[Id], Field(min_length=1, max_length=100)]
    until: Annotated[Literal["all", "any"], Word] = "all"
    timeout_seconds: Seconds = 25


class GetTaskOutput(Arguments):
    task_id: Id
    attempt: Annotated[Version | None, Field(description="default: the latest")] = None
    tail_bytes: Annotated[int, Field(ge=1, le=OUTPUT_BYTES), BeforeValidator(number)] = OUTPUT_BYTES
    offset: Annotated[Offset | None, Field(description="read on from this byte")] = None
    grep: Annotated[
        Annotated[str, Field(min_length=1, max_length=200)] | None, Field(description="only lines with this text")
    ] = None


class GetStats(Arguments):
    pass


def start(delay_seconds: float | None, run_at: int | None, now: int) -> int | None:
    """When a task may run (ms), None when nothing was said. Raises InvalidInput for both, or over 366 days ahead."""
    if delay_seconds is not None and run_at is not None:
        raise InvalidInput("delay_seconds and run_at exclude each other; give one of them.")
    if run_at is not None and run_at > now + DAYS * DAY_SECONDS * 1000:
        raise InvalidInput(f"run_at {iso(run_at)} is more than {DAYS} days ahead; choose an earlier time.")
    return now + round(delay_seconds * 1000) if delay_seconds is not None else run_at


def parse(model: type[Model], raw: Mapping[str, Any], where: str = "", *, strict: bool = False) -> Model:
    """The arguments as a model; null means "not given". Raises InvalidInput with a sentence for each mistake.

    `where`: the name of the argument that all of them stand in. `strict`: "3" and "5m" are no numbers.
    """
    checked = {name: value for name, value in raw.items() if name != "tasks"}  # each of those comes here by itself
    if not _is_plain(checked):
        _check_text(checked, "")
    try:
        given = {name: value for name, value in raw.items() if value is not None or name not in model.model_fields}
        return model.model_validate(given, strict=strict, context=STRICT if strict else None)
    except ValidationError as error:
        raise InvalidInput(readable(error, where, list(model.model_fields))) from None


def schema(model: type[Arguments]) -> dict[str, Any]:
    """The model's JSON schema: closed, and without what a model can do without.

    That is titles, nulls, empty defaults, texts' lengths and the largest number there is; errors tell who needs to
    know. (No model nests another, so there is no `$ref`.)
    """
    return plain_schema(model, _Lean)


class _Lean(Plain):
    silent = (None, "", [], {})

    def int_schema(self, schema: Any) -> dict[str, Any]:
        made = super().int_schema(schema)
        return {name: value for name, value in made.items() if value != LARGEST}

    def str_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string"}

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "object"}

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])  # null means "not given", which needs no mention


def _is_plain(value: Mapping[str, Any]) -> bool:
    """Whether a look at the whole finds nothing that `_check_text` could object to, as nearly always."""
    try:
        text = dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return not UNSENDABLE.search(text) and "\\u0000" not in text and text.count("{") + text.count("[") <= DEPTH


def _check_text(value: Any, path: str, depth: int = 0) -> None:
    """Refuse what the store or the wire cannot carry, anywhere in the arguments (which are depth 0)."""
    if isinstance(value, str):
        if found := UNSENDABLE.search(value):
            raise InvalidInput(f"{cut(path)} holds the character {found[0]!a}, which no text may hold; leave it out.")
    elif isinstance(value, dict | list) and depth > DEPTH:
        raise InvalidInput(f"{path.split('.')[0]} is nested more than {DEPTH} levels deep; flatten it.")
    elif isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            inner = f"{path}.{key}" if path else key
            _check_text(key, f"The name {shown(inner)}")
            _check_text(item, inner, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[Any], value)):
            _check_text(item, f"{path}.{index}", depth + 1)
