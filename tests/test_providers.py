"""Who observes and who does not: nothing is told where nobody records, and OTEL_ variables are enough to record."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import answer, call, connected, raw_call, settings
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from servers import Place, Server
from terminals import Terminal

from taskorch.app import running
from taskorch.telemetry import context, instruments, providers, spans
from taskorch.work.attempt import run
from taskorch.work.watched import watched

# An exporter as a package of others brings it, which never gets its spans through.
STUCK = "[opentelemetry_traces_exporter]\notlp_proto_http = stuck:Exporter\n"
EXPORTER = """
import time
from opentelemetry.sdk.trace.export import SpanExporter

class Exporter(SpanExporter):
    def export(self, spans):
        print("exporting", flush=True)
        time.sleep(600)
"""
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


# Nobody.


async def test_where_nobody_records_nothing_is_called_and_nothing_is_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though the SDK has loaded the API, and opens its spans that record nothing."""
    called: list[str] = []
    for owner, name in (
        (trace.NoOpTracer, "start_span"),
        (trace.ProxyTracer, "start_span"),
        (trace.ProxyTracerProvider, "get_tracer"),
        (context, "_extracted"),
    ):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name), called))
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        wish = {"kind": "test.flaky", "retry": {"first_delay_seconds": 0.001}}
        command = {"payload": {"argv": ["sh", "-c", 'test -z "$TRACEPARENT"']}}
        ids = (await call(client, "create_tasks", tasks=[wish, command])).facts["ids"]
        done = (await call(client, "wait_for_tasks", task_ids=ids)).facts
        assert {row["status"] for row in done["tasks"]} == {"failed", "completed"}
        assert [task.trace for task in await app.service.queries.get_many(ids)] == [None, None]
    assert called, "the SDK's own spans are seen"
    assert [one for one in called if "task.run" in one or "taskorch" in one or "_extracted" in one] == []


async def test_a_server_that_records_nothing_keeps_what_a_client_sends_for_whoever_runs_the_task(
    tmp_path: Path,
) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        task_id = answer(await raw_call(client, "create_task", {"kind": "echo"}, meta={"traceparent": sent})).facts[
            "id"
        ]
        assert (await app.service.queries.get(task_id)).trace == sent


@pytest.mark.parametrize("baggage", [7, ["a=b"], {"a": "b"}, None])
async def test_a_call_whose_baggage_is_no_text_is_answered_all_the_same(tmp_path: Path, baggage: Any) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        answer(await raw_call(client, "get_stats", {}, meta={"baggage": baggage}))


def counting(function: Callable[..., Any], called: list[str]) -> Callable[..., Any]:
    def counted(*arguments: Any, **more: Any) -> Any:
        called.append(f"{function.__name__} {arguments[1:]} {more}")
        return function(*arguments, **more)

    return counted


def test_where_nobody_records_an_attempt_is_what_it_was() -> None:
    assert spans.recorder("0") is None
    assert instruments.recorder("0", instruments.Now(lambda: None, 1, lambda: 0)) is None
    assert watched(run, None, named=False) is run


def test_a_call_that_nobody_records_is_not_asked_for_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def injected(*args: Any, **more: Any) -> None:
        raise AssertionError("a text was made for nobody")

    monkeypatch.setattr(TraceContextTextMapPropagator, "inject", injected)
    assert context.current() is None and context.variables() == {}
    monkeypatch.delitem(sys.modules, context.TRACES)
    assert context.current() is None and context.ids() is None
    assert spans.recorder("0") is None


# Somebody, by variables.


@pytest.mark.parametrize(
    ("given", "traces", "measures"),
    [
        ({}, [], []),
        (ENDPOINT, ["otlp"], ["otlp"]),
        (ENDPOINT | {"OTEL_METRICS_EXPORTER": "none"}, ["otlp"], []),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ["otlp"], []),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"], []),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, [], []),
    ],
)
def test_the_variables_of_opentelemetry_say_what_is_sent(
    given: dict[str, str], traces: list[str], measures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (providers._wanted("TRACES"), providers._wanted("METRICS")) == (traces, measures)


def test_what_is_sent_says_who_sends_it_unless_a_variable_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = providers._resource("1.2").attributes
    assert (ours["service.name"], ours["service.version"]) == ("taskorch", "1.2")
    assert ours["service.instance.id"], "several servers on one store are told apart"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,team=a")
    given = providers._resource("1.2").attributes
    assert (given["service.name"], given["service.version"], given["team"]) == ("nightly", "9", "a")


@pytest.fixture
def observed(place: Place) -> Iterator[Place]:
    """Spans and numbers go to the console, as for trying it out."""
    place.environment |= {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console"}
    yield place


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and "jsonrpc" not in line]


def check(said: str) -> None:
    """The span of an attempt that has just ended, and the numbers of the end, by who sent them."""
    found = records(said)
    attempts = [record for record in found if record.get("name") == "task.run echo"]
    [resource] = [record["resource"]["attributes"] for record in attempts]
    assert resource["service.name"] == "taskorch"
    told = [
        metric
        for record in found
        for of in record.get("resource_metrics", ())
        for s in of["scope_metrics"]
        for metric in s["metrics"]
    ]
    [completed] = [metric for metric in told if metric["name"] == "taskorch.task.completed"]
    assert [point["value"] for point in completed["data"]["data_points"]] == [1]
    assert {"taskorch.queue_size", "taskorch.slots.busy"} <= {metric["name"] for metric in told}


def test_a_server_sends_what_it_recorded_before_it_leaves_and_never_over_the_wire(observed: Place) -> None:
    server = observed.start()
    server.until_ended(server.create("echo"))
    assert server.end() == 0
    check(server.errors.read_text())
    assert {json.loads(line)["jsonrpc"] for line in server.lines} == {"2.0"}


def test_a_worker_sends_what_it_recorded_too(observed: Place) -> None:
    terminal = Terminal(observed)
    terminal.kind("echo", {})
    with terminal.worker() as worker:
        terminal.out("wait", "--timeout", "20", *observed.rows())
        code, said, errors = worker.stop()
    assert (code, said) == (0, "")
    check(errors)


def test_whoever_receives_nothing_does_not_keep_a_server_from_leaving(place: Place) -> None:
    folder = place.folder / "handlers"
    (folder / "stuck.py").write_text(EXPORTER)
    (folder / "stuck-1.dist-info").mkdir()
    (folder / "stuck-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1\n")
    (folder / "stuck-1.dist-info" / "entry_points.txt").write_text(STUCK)
    place.environment |= ENDPOINT | {"OTEL_METRICS_EXPORTER": "none"}
    server = place.start()
    server.until_ended(server.create("echo"))
    assert server.end() == 0, "within the time that every server leaves in"
    assert "exporting" in server.errors.read_text()


def test_what_is_sent_last_is_not_waited_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    received = threading.Event()

    class Stuck:
        def force_flush(self) -> None:
            received.wait(60)

    monkeypatch.setattr(providers, "_set_providers", lambda: [Stuck(), Stuck()])
    began = time.monotonic()
    providers.flush(0.01)
    assert time.monotonic() - began < 30
    received.set()


@pytest.mark.parametrize("signal", ["TRACES", "METRICS"])
def test_the_console_is_never_stdout(signal: str) -> None:
    assert providers._exporter(signal, "console").out is sys.stderr


def refused(place: Place, **variables: str) -> str:
    place.environment |= variables
    server: Server = place.start()
    server.until_ended(server.create("echo"))
    assert server.end() == 0
    [line] = [line for line in server.errors.read_text().splitlines() if "OTEL_" in line]
    return line


def test_what_is_not_installed_is_a_line_in_the_log_and_tasks_run(place: Place) -> None:
    said = refused(place, **ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL="smoke")
    assert "no exporter 'smoke' for traces" in said and "pip install 'taskorch[otel]'" in said


def test_a_propagator_that_is_not_installed_is_a_line_in_the_log_and_tasks_run(place: Place) -> None:
    said = refused(place, OTEL_PROPAGATORS="tracecontext, smoke")
    assert "the propagator smoke of OTEL_PROPAGATORS is not installed" in said


@pytest.mark.parametrize(
    ("given", "left"),
    [("", ""), ("none", "none"), ("smoke", "none"), ("baggage, smoke,tracecontext", "baggage,tracecontext")],
)
def test_propagators_that_are_installed_stay(monkeypatch: pytest.MonkeyPatch, given: str, left: str) -> None:
    monkeypatch.setenv(context.PROPAGATORS, given)
    assert context.leave_out_missing() == ["smoke"] * ("smoke" in given)
    assert os.environ[context.PROPAGATORS] == left
