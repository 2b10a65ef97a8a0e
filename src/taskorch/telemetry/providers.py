"""OpenTelemetry's SDK, set up as its own variables say, where it is installed: `pip install 'taskorch[otel]'`.

Nothing of it is loaded unless a variable asks for it, and what somebody else has set up stays: a module of handlers,
or `opentelemetry-instrument`.
"""

import logging
import os
import sys
import threading
import time
import uuid
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from taskorch.telemetry.context import METRICS, TRACES, is_loaded, is_set

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

FLUSH_SECONDS = 0.5  # of the 1.5 s in which a server leaves
OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}  # by what they call it in variables

log = logging.getLogger(__name__)


def start(version: str = "") -> None:
    """Have spans and measurements exported as the OTEL_ variables say, from here on. `version`: ours.

    What is missing or wrong is a line in the log: tasks are run all the same.
    """
    traces, measures = _wanted("TRACES"), _wanted("METRICS")
    if not (traces or measures):
        return
    try:
        resource = _resource(version)
        if traces:
            _trace(traces, resource)
        if measures:
            _measure(measures, resource)
    except ImportError as error:
        log.warning("OTEL_ variables ask for what is not installed (%s): pip install 'taskorch[otel]'", error)
    except Exception as error:  # whatever an exporter says to its variables
        log.warning("OpenTelemetry cannot be set up as OTEL_ variables say: %s: %s", type(error).__name__, error)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Send what was recorded, whoever has set up the providers; for so long at most. Blocks."""
    until = time.monotonic() + seconds
    flushing = [threading.Thread(target=_flush, args=(one,), daemon=True) for one in _set_providers()]
    for thread in flushing:
        thread.start()
    for thread in flushing:
        thread.join(max(0.0, until - time.monotonic()))


def _wanted(signal: str) -> list[str]:
    """The names of the exporters that variables ask for."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    given = os.environ.get(f"OTEL_{signal}_EXPORTER", "")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    default = "otlp" if any(map(os.environ.get, endpoints)) else "none"
    return [name for name in map(str.strip, (given or default).split(",")) if name not in ("", "none")]


def _trace(names: list[str], resource: "Resource") -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if is_set(trace.get_tracer_provider()):
        return
    exporters = [_exporter("TRACES", name) for name in names]
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # it would wait for seconds
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _measure(names: list[str], resource: "Resource") -> None:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    if is_set(metrics.get_meter_provider()):
        return
    readers = [PeriodicExportingMetricReader(_exporter("METRICS", name)) for name in names]
    metrics.set_meter_provider(MeterProvider(readers, resource, shutdown_on_exit=False))


def _exporter(signal: str, name: str) -> Any:
    """Raises ImportError when it is not installed."""
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or protocol
        name = OTLP.get(protocol, protocol)
    found = entry_points(group=f"opentelemetry_{signal.lower()}_exporter", name=name)
    if not found:
        raise ImportError(f"no exporter {name!r} for {signal.lower()}")
    exporter = next(iter(found)).load()
    return exporter(out=sys.stderr, formatter=_line) if name == "console" else exporter()  # stdout may be a protocol


def _line(record: Any) -> str:
    return record.to_json(indent=None) + "\n"


def _resource(version: str) -> "Resource":
    """What all of this process's telemetry is of: as variables say, else ourselves."""
    from opentelemetry.sdk.resources import Resource

    given = {name: value for name, value in Resource.create().attributes.items() if value != _UNNAMED}
    ours = {"service.name": "taskorch", "service.instance.id": uuid.uuid4().hex}
    return Resource(ours | ({"service.version": version} if version else {}) | given)


_UNNAMED = f"unknown_service:{os.path.basename(sys.executable)}"  # what the SDK calls a service that has no name


def _set_providers() -> list[Any]:
    found: list[object] = []
    if is_loaded(TRACES):
        from opentelemetry import trace

        found.append(trace.get_tracer_provider())
    if is_loaded(METRICS):
        from opentelemetry import metrics

        found.append(metrics.get_meter_provider())
    return [provider for provider in found if hasattr(provider, "force_flush")]


def _flush(provider: Any) -> None:
    try:
        provider.force_flush()
    except Exception as error:  # whatever an exporter meets: a thread that raises tells a traceback
        log.warning("what was recorded last could not be sent: %s", error)
