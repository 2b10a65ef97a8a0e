"""The words: what a task is, the statuses it can have, how an attempt can end. Values only; `rules.py` moves them.

Times are milliseconds since the epoch (UTC).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Literal

OnServerExit = Literal["survive", "stop"]
OnDependencyFailure = Literal["cancel", "fail", "run"]
CatchUp = Literal["once", "skip", "all"]
Overlap = Literal["skip", "queue"]
HIDDEN = "(hidden)"  # what replies show in the place of a value of a command's environment
TOOL = "tool"  # the kind that calls a tool of another MCP server
COMMAND, RECIPE = "command", "recipe:"  # the kind that runs any allowed program, and what kinds begin with that run one


class Status(StrEnum):
    __hash__ = str.__hash__  # Enum's own is Python code, and every change is counted by status and priority

    WAITING = "waiting"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Priority(IntEnum):
    __hash__ = int.__hash__

    LOW = 0
    MEDIUM = 1
    HIGH = 2


class Phase(StrEnum):
    """Why a task waits, or that a working one was asked to stop. Computed on read, never stored."""

    READY = "ready"
    SCHEDULED = "scheduled"
    BACKOFF = "backoff"
    BLOCKED = "blocked"
    PAUSED = "paused"
    CANCELLING = "cancelling"


class Reason(StrEnum):
    """Why an attempt or a task ended other than well."""

    EXIT_CODE = "exit_code"
    ERROR = "error"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    INTERRUPTED = "interrupted"
    SPAWN_ERROR = "spawn_error"
    NOT_ALLOWED = "not_allowed"
    EXPIRED = "expired"
    DEPENDENCY_FAILED = "dependency_failed"
    POISON = "poison"
    INVALID_PAYLOAD = "invalid_payload"
    USER = "user"
    DEPENDENCY = "dependency"


@dataclass(frozen=True, slots=True)
class Error:
    reason: Reason
    message: str
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    value: float
    total: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Which failures are tried again, and when: None and the defaults are the usual policy.

    `on_exit`: only these exit codes of a command; `fail_on_exit`: never these. Exit code 75 always is, whatever they
    say. The wait before the second start is `first_delay_seconds`, each further one `factor` times as long, up to
    `max_delay_seconds`; half of it is chance. How often is no part of it: that is `max_attempts`.
    """

    on_exit: tuple[int, ...] | None = None
    fail_on_exit: tuple[int, ...] = ()
    first_delay_seconds: float = 2.0
    factor: float = 2.0
    max_delay_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a schedule creates tasks: by `cron` (5 fields, in `time_zone`) or `every_seconds`; one of them is None.

    `start`: where the grid of `every_seconds` begins, in milliseconds since the epoch; the task knows it once created.
    """

    cron: str | None
    every_seconds: float | None
    time_zone: str
    catch_up: CatchUp = "once"
    overlap: Overlap = "skip"
    start: int | None = None


@dataclass(frozen=True, slots=True)
class NewTask:
    """What a client asks for. `run_at` and `expires_at` are milliseconds since the epoch.

    `trace`: the W3C trace context of who asks, as `telemetry.context` writes it.
    """

    kind: str
    payload: Mapping[str, Any]
    max_attempts: int
    timeout_seconds: float
    name: str | None = None
    priority: Priority = Priority.MEDIUM
    run_at: int | None = None
    expires_at: int | None = None
    on_server_exit: OnServerExit = "survive"
    labels: tuple[str, ...] = ()
    concurrency_key: str | None = None
    retry: Retry | None = None
    schedule: Schedule | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Parents:
    """What has become of the tasks that a task depends on, and what it does when one of them fails.

    `failed`: in words, one that failed or was cancelled, None where none did or that stops nothing.
    """

    unfinished: bool
    failed: str | None
    on_failure: OnDependencyFailure


@dataclass(frozen=True)
class Task:
    """One row. Without slots, so that `rules` can copy it in one step: every move makes a copy."""

    seq: int
    id: str
    name: str | None
    kind: str
    payload: Mapping[str, Any]
    status: Status
    priority: Priority
    rank: int
    ready: bool
    paused: bool
    blocked: bool
    held: bool
    attempt: int
    max_attempts: int
    interruptions: int
    owner: int | None
    claim_expires_at: int | None
    timeout_seconds: float
    on_server_exit: OnServerExit
    labels: tuple[str, ...]
    concurrency_key: str | None
    retry: Retry | None
    schedule: Schedule | None
    trace: str | None
    progress: Progress | None
    result: Any
    error: Error | None
    run_at: int | None
    expires_at: int | None
    cancel_requested_at: int | None
    cancel_reason: str | None
    delete_requested: bool
    created_at: int
    updated_at: int
    started_at: int | None
    finished_at: int | None
    version: int

    @property
    def ended(self) -> bool:
        return self.finished_at is not None

    @property
    def is_command(self) -> bool:
        """Whether its attempts are programs under a supervisor, with output files."""
        return is_command(self.kind)

    @property
    def label(self) -> str:
        """How a sentence names this task."""
        return f"{self.id} '{self.name}'" if self.name else self.id


def is_command(kind: str) -> bool:
    """Whether a kind runs programs: `command`, and every recipe."""
    return kind == COMMAND or kind.startswith(RECIPE)


BLANK = Task(
    seq=0,
    id="",
    name=None,
    kind="",
    payload={},
    status=Status.WAITING,
    priority=Priority.MEDIUM,
    rank=0,
    ready=True,
    paused=False,
    blocked=False,
    held=False,
    attempt=0,
    max_attempts=1,
    interruptions=0,
    owner=None,
    claim_expires_at=None,
    timeout_seconds=1.0,
    on_server_exit="survive",
    labels=(),
    concurrency_key=None,
    retry=None,
    schedule=None,
    trace=None,
    progress=None,
    result=None,
    error=None,
    run_at=None,
    expires_at=None,
    cancel_requested_at=None,
    cancel_reason=None,
    delete_requested=False,
    created_at=0,
    updated_at=0,
    started_at=None,
    finished_at=None,
    version=1,
)  # what a new task is before anybody has said anything


def with_values(task: Task, **changes: Any) -> Task:
    """A copy with other values: dataclasses.replace at a tenth of its price, which every claim and settlement pays."""
    return of_values(task.__dict__ | changes)


def of_values(values: dict[str, Any]) -> Task:
    """The Task of these values, all of them, which become its own: filling it one by one costs twice as much."""
    task = object.__new__(Task)
    object.__setattr__(task, "__dict__", values)
    return task


# How one attempt ended.

RESULT_BYTES = 65_536  # of a result as JSON, at most
MESSAGE_CHARACTERS = 4_000  # of what is said of an attempt, at most


@dataclass(frozen=True, slots=True)
class Completed:
    """The work is done; `text` is the result as JSON, where it has been made already."""

    result: Any = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """`retry_after_ms`: how long to wait before the next start, None for the backoff."""

    reason: Reason
    message: str
    exit_code: int | None = None
    retryable: bool = True
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The work was asked to stop and is gone; `message` says what was ended."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Cut short by an orderly stop, or never begun: the start is given back."""

    message: str = ""


Outcome = Completed | Failed | Cancelled | Interrupted
