"""Which trace and which attempt what happens belongs to: contexts as text, in variables, in the place where code runs.

Whoever records has loaded OpenTelemetry's API. Where it is not loaded nobody does, and it is not loaded here: that
takes a command 20 ms.
"""

import os
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

TRACES, METRICS = "opentelemetry.trace", "opentelemetry.metrics"  # the two parts of the API
PROPAGATORS = "OTEL_PROPAGATORS"
STATE_CHARACTERS = 512  # what W3C asks to pass on of a tracestate, which is left out beyond that
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]")  # of what is recorded

ATTEMPT: ContextVar[tuple[str, int] | None] = ContextVar("attempt", default=None)
"""The task's id and the attempt that what runs is part of; known only where log lines are to name it."""

_CALLER: ContextVar[str | None] = ContextVar("caller", default=None)


def leave_out_missing() -> list[str]:
    """Take what is not installed out of OTEL_PROPAGATORS, and say what: else the API refuses to be loaded."""
    given = [name.strip() for name in os.environ.get(PROPAGATORS, "").split(",")]
    if given == [""]:
        return []
    from importlib.metadata import entry_points

    known = entry_points(group="opentelemetry_propagator").names
    missing = [name for name in given if name not in known and name.lower() != "none"]
    if missing:
        os.environ[PROPAGATORS] = ",".join(name for name in given if name not in missing) or "none"
    return missing


def is_loaded(api: str = TRACES) -> bool:
    """Whether somebody has loaded OpenTelemetry in this process, and so may record."""
    return api in sys.modules


def is_set(provider: object) -> bool:
    """Whether somebody has set that provider: those of the API itself record nothing."""
    return not type(provider).__module__.startswith((TRACES, METRICS))


def current() -> str | None:
    """The trace context of the call that is being made, as tasks keep it; None where nobody records that.

    W3C: traceparent, and tracestate after a space where there is one.
    """
    return _CALLER.get() or " ".join(_injected().values()) or None


def read(trace: str) -> "SpanContext | None":
    """What `current` has written; None when it is no trace context."""
    parent, _, state = trace.partition(" ")
    return _extracted({"traceparent": parent, "tracestate": state})


def variables() -> dict[str, str]:
    """TRACEPARENT and TRACESTATE for a process that is started now; none where nobody records."""
    return {name.upper(): value for name, value in _injected().items()}


@contextmanager
def called_from(environment: Mapping[str, str]) -> Generator[None]:
    """`current` is what these variables say, where they say anything, while the block lasts."""
    parent, state = environment.get("TRACEPARENT", ""), environment.get("TRACESTATE", "")
    kept = f"{parent} {state}".strip() if len(state) <= STATE_CHARACTERS else parent
    token = _CALLER.set(kept if TRACEPARENT.fullmatch(parent) else None)
    try:
        yield
    finally:
        _CALLER.reset(token)


@contextmanager
def continued(environment: Mapping[str, str]) -> Generator[None]:
    """Spans of the block are children of the one that `variables` has told of, where there is one."""
    names = ("traceparent", "tracestate")
    parent = _extracted({name: environment.get(name.upper(), "") for name in names}) if is_loaded() else None
    if parent is None:
        yield
        return
    from opentelemetry import trace

    with trace.use_span(trace.NonRecordingSpan(parent)):
        yield


def ids() -> tuple[str, str] | None:
    """The ids of the trace and the span that this is part of, in hexadecimal; None where there is none."""
    if not is_loaded():
        return None
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else None


def on_record(task_id: str, attempt: int) -> dict[str, object]:
    """What a log record of that attempt says beside its text, as `extra`."""
    return {"task_id": task_id, "attempt": attempt}


def _injected() -> dict[str, str]:
    """The current span as W3C writes it, where one is recorded."""
    if not is_loaded():
        return {}
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    if trace.get_current_span().get_span_context().trace_flags.sampled:
        TraceContextTextMapPropagator().inject(carrier)
        if len(carrier.get("tracestate", "")) > STATE_CHARACTERS:
            del carrier["tracestate"]
    return carrier


def _extracted(carrier: Mapping[str, str]) -> "SpanContext | None":
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier, Context())).get_span_context()
    return found if found.is_valid else None
