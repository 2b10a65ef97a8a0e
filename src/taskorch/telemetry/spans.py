"""The spans of attempts: a consumer's, each a trace of its own with a link to the call that created the task.

A link and no parent: a task may start days after the call, and again after that.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskorch.domain.outside import OWNER
from taskorch.domain.task import Cancelled, Completed, Failed, Interrupted, Outcome, Reason, Status, Task
from taskorch.telemetry import context

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

NS_PER_MS = 1_000_000


def recorder(version: str) -> "Spans | None":
    """What opens spans; None where nobody records: to be asked once, when all that may record is loaded."""
    if not context.is_loaded():
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return Spans(provider.get_tracer("taskorch", version)) if context.is_set(provider) else None


class Spans:
    """What opens a span for each attempt."""

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    @contextmanager
    def attempt(self, task: Task, adopted: bool) -> Generator["AttemptSpan"]:
        """A span around an attempt: what runs in the block, and what that starts, is part of it."""
        from opentelemetry import trace

        span = self._begun(task, {"taskorch.attempt.adopted": True} if adopted else {})
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield AttemptSpan(span)

    def taken_over(self, owner: int, moves: Sequence[tuple[Task | None, Task | None]]) -> None:
        """Spans of what other servers began and `owner`, this one, ended: they died, and cannot send them any more.

        `moves`: what a commit of ours has changed, each task before (None: new) and after (None: deleted).
        """
        for before, after in moves:
            if before is None or before.status is not Status.WORKING or before.owner in (owner, OWNER):
                continue
            if after is None or after.status is Status.WORKING or after.error is None:
                continue
            span = self._begun(before, {"taskorch.attempt.taken_over": True}, (before.started_at or 0) * NS_PER_MS)
            AttemptSpan(span).ended(_left(after))
            span.end(after.updated_at * NS_PER_MS)

    def _begun(self, task: Task, more: dict[str, Any], started_at: int | None = None) -> "Span":
        """`started_at`: in nanoseconds since the epoch, None: now."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, SpanKind

        caller = context.read(task.trace) if task.trace else None
        links = [Link(caller)] if caller else []
        attributes = _attributes(task) | more
        return self._tracer.start_span(
            f"task.run {task.kind}", Context(), SpanKind.CONSUMER, attributes, links, started_at
        )


class AttemptSpan:
    """The span of an attempt under way."""

    def __init__(self, span: "Span") -> None:
        self._span = span

    def ended(self, outcome: Outcome | None, lost: bool = False) -> None:
        """How the attempt ended. None: it goes on without us. `lost`: it was no longer ours, whatever came of it.

        What it said may quote output and payloads, and stays in the store.
        """
        self._span.set_attribute("taskorch.attempt.outcome", "lost" if lost else _name(outcome))
        if isinstance(outcome, Failed) and not lost:
            self._fail(str(outcome.reason), str(outcome.reason))
            if outcome.exit_code is not None:
                self._span.set_attribute("process.exit.code", outcome.exit_code)

    def broke(self, error: Exception) -> None:
        """It ended by a mistake of ours."""
        self._span.set_attribute("taskorch.attempt.outcome", "failed")
        self._fail(type(error).__qualname__, "internal error")

    def _fail(self, error_type: str, text: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR, text)


def _attributes(task: Task) -> dict[str, Any]:
    """Those that all of an attempt's spans have. The first five are OpenTelemetry's words for messages."""
    return {
        "messaging.system": "taskorch",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": task.kind,
        "messaging.message.id": task.id,
        "taskorch.task.priority": task.priority.name.lower(),
        "taskorch.task.attempt": task.attempt,
        "taskorch.task.max_attempts": task.max_attempts,
        **({"taskorch.task.name": task.name} if task.name else {}),
    }


def _left(after: Task) -> Outcome:
    """How an attempt was ended that has left its task so."""
    error = after.error
    match error.reason if error else Reason.WORKER_LOST:
        case Reason.INTERRUPTED:
            return Interrupted()
        case Reason.USER:
            return Cancelled()
        case reason:
            return Failed(reason, "")


def _name(outcome: Outcome | None) -> str:
    match outcome:
        case Completed():
            return "completed"
        case Failed():
            return "failed"
        case Cancelled():
            return "cancelled"
        case Interrupted():
            return "interrupted"
        case None:
            return "let_go"
