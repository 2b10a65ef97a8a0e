"""OpenTelemetry's own SDK as the observer: what this process tells of itself is kept in memory, to be looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mcp.shared import _otel as sdk
from opentelemetry import trace
from opentelemetry.metrics import _internal as metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Points = dict[tuple[str, ...], Any]


class Recorded:
    """The spans since the last `clear`, and all measurements."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.traces.get_tracer("test")
        self.reader = InMemoryMetricReader()
        self.measures = MeterProvider([self.reader], shutdown_on_exit=False)

    def clear(self) -> None:
        self.exporter.clear()

    def spans(self, name: str) -> list[ReadableSpan]:
        """Those of that name that have ended, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        [span] = self.spans(name)
        return span

    def points(self) -> dict[str, Points]:
        """What is measured now: of each instrument its values, by what they are of; of histograms count and sum."""
        data = self.reader.get_metrics_data()
        found = [metric for of in data.resource_metrics for scope in of.scope_metrics for metric in scope.metrics]
        return {
            metric.name: {
                tuple(str(value) for _, value in sorted((point.attributes or {}).items())): (
                    (point.count, round(point.sum, 3)) if hasattr(point, "bucket_counts") else point.value
                )
                for point in metric.data.data_points
            }
            for metric in found
        }


@contextmanager
def recording() -> Iterator[Recorded]:
    """This process has providers while the block lasts; afterwards it has none, as before."""
    found = Recorded()
    with pytest.MonkeyPatch.context() as patch:  # a process can set each only once, and other tests have none
        patch.setattr(sdk, "_tracer", found.traces.get_tracer("mcp-python-sdk"))  # it would keep the first for good
        patch.setattr(trace, "_TRACER_PROVIDER", found.traces)
        patch.setattr(metrics, "_METER_PROVIDER", found.measures)
        yield found
    found.traces.shutdown()
    found.measures.shutdown()
