"""A trace that leads from the call that asked for a task to each of its attempts, wherever and whenever they run."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import call, connected, settings
from fakes import Clock
from mcp import Client
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span, SpanKind, StatusCode
from pools import Pool
from recording import Recorded, recording
from remotes import Peer
from servers import Place, Server, names, wait_for

from taskorch import Context, handler
from taskorch.app import App, running
from taskorch.domain.task import Schedule
from taskorch.storage.store import Store
from taskorch.telemetry import context

# Sets up a provider as users may, and writes each span to a file that all processes share.
PROBE = """
import os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from taskorch import handler

file = open(os.environ["SPANS"], "a")
exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + chr(10))
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

@handler("apart", isolate=True)
def apart(payload):
    with trace.get_tracer("probe").start_as_current_span("work apart"):
        pass
"""

TRACER = trace.get_tracer("a handler's own")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
QUICK = {"first_delay_seconds": 0.001}


@handler("traced.flaky", max_attempts=2)
async def _flaky(payload: dict[str, Any], context: Context) -> str:
    """It fails at first, and opens a span of its own each time."""
    with TRACER.start_as_current_span("work within"):
        if context.task.attempt == 1:
            raise ValueError("a secret of the first attempt")
        return "done"


@handler("traced.thread")
def _thread(payload: dict[str, Any]) -> None:
    """Synchronous code runs in a thread of its own."""
    with TRACER.start_as_current_span("work in a thread"):
        pass


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorded]:
    with recording() as recorded:
        yield recorded


@pytest.fixture
def recorded(recorder: Recorded) -> Recorded:
    recorder.clear()
    return recorder


@pytest.fixture
async def app(recorded: Recorded, tmp_path: Path) -> AsyncIterator[App]:
    async with running(settings(tmp_path)) as app:
        yield app


@pytest.fixture
async def client(app: App) -> AsyncIterator[Client]:
    async with connected(app.server, "auto") as client:
        yield client


async def ended(client: Client, *task_ids: str) -> None:
    assert (await call(client, "wait_for_tasks", task_ids=task_ids)).facts["done"]


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def place_of(span: ReadableSpan | Span) -> tuple[int, int]:
    context = span.get_span_context()
    assert context
    return context.trace_id, context.span_id


def told(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


async def test_a_trace_leads_from_the_call_to_each_attempt_and_on_to_what_a_handler_does(
    recorded: Recorded, client: Client
) -> None:
    with recorded.tracer.start_as_current_span("the agent's work") as agent:
        reply = await call(client, "create_task", kind="traced.flaky", name="nightly", priority="high", retry=QUICK)
    task_id = reply.facts["id"]
    await ended(client, task_id)

    asked = recorded.span("tools/call create_task")
    assert asked.kind is SpanKind.SERVER and place_of(asked)[0] == place_of(agent)[0]
    first, second = recorded.spans("task.run traced.flaky")
    for number, attempt in enumerate((first, second), 1):
        assert attempt.kind is SpanKind.CONSUMER
        assert attempt.parent is None and place_of(attempt)[0] != place_of(asked)[0]
        assert links(attempt) == [place_of(asked)]
        assert attempt.attributes is not None
        assert dict(attempt.attributes) == {
            "messaging.system": "taskorch",
            "messaging.operation.name": "run",
            "messaging.operation.type": "process",
            "messaging.destination.name": "traced.flaky",
            "messaging.message.id": task_id,
            "taskorch.task.name": "nightly",
            "taskorch.task.priority": "high",
            "taskorch.task.attempt": number,
            "taskorch.task.max_attempts": 2,
            "taskorch.attempt.outcome": "failed" if number == 1 else "completed",
            **({"error.type": "error"} if number == 1 else {}),
        }
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "error")
    assert second.status.status_code is StatusCode.UNSET
    within = recorded.spans("work within")
    assert [span.parent and (span.parent.trace_id, span.parent.span_id) for span in within] == [
        place_of(first),
        place_of(second),
    ]
    assert "secret" not in first.to_json(), "what an attempt said stays in the store"


async def test_an_attempt_after_retry_task_is_linked_with_the_call_that_asked_for_it(
    recorded: Recorded, app: App, client: Client
) -> None:
    task_id = (await call(client, "create_task", kind="test.fail")).facts["id"]
    await ended(client, task_id)
    await call(client, "retry_task", task_id=task_id)
    await ended(client, task_id)
    await app.service.store.retry(task_id, None, "somebody whom nobody traces")
    await ended(client, task_id)
    created, retried = recorded.span("tools/call create_task"), recorded.span("tools/call retry_task")
    attempts = recorded.spans("task.run test.fail")
    assert [links(span) for span in attempts] == [[place_of(created)], [place_of(retried)], [place_of(retried)]]


async def test_each_of_many_tasks_is_linked_with_their_call_and_threads_go_on_with_their_attempt(
    recorded: Recorded, client: Client
) -> None:
    ids = (await call(client, "create_tasks", tasks=[{"kind": "traced.thread"}] * 2)).facts["ids"]
    await ended(client, *ids)
    asked, attempts = recorded.span("tools/call create_tasks"), recorded.spans("task.run traced.thread")
    assert [links(span) for span in attempts] == [[place_of(asked)]] * 2
    assert {told(span, "messaging.message.id") for span in attempts} == set(ids)
    parents = {span.parent and span.parent.span_id for span in recorded.spans("work in a thread")}
    assert parents == {place_of(span)[1] for span in attempts}


async def test_a_command_is_told_its_attempt_and_tells_its_exit_code(recorded: Recorded, client: Client) -> None:
    def task(argv: list[str], **env: str) -> dict[str, Any]:
        return {"payload": {"argv": argv, "env": env}}

    show = ["sh", "-c", 'echo "$TRACEPARENT"; exit 3']
    tasks = [task(show), task(show, TRACEPARENT="mine")]
    ids = (await call(client, "create_tasks", tasks=tasks)).facts["ids"]
    await ended(client, *ids)
    spans = {told(span, "messaging.message.id"): span for span in recorded.spans("task.run command")}
    first = spans[ids[0]]
    assert (told(first, "process.exit.code"), told(first, "error.type")) == (3, "exit_code")
    trace_id, span_id = place_of(first)
    said = [(await call(client, "get_task_output", task_id=task_id)).facts["text"].strip() for task_id in ids]
    assert said[0].startswith(f"00-{trace_id:032x}-{span_id:016x}-") and said[1] == "mine"


async def test_a_tool_of_another_server_is_called_within_the_attempt(recorded: Recorded, tmp_path: Path) -> None:
    """The SDK's client tells that server so, by `traceparent`."""
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"peer": Peer(tmp_path).raw}}))
    payload = {"server": "peer", "tool": "echo", "arguments": {"text": "hello"}}
    given = settings(tmp_path, mcp_servers=tmp_path / "servers.json")
    async with running(given) as app, connected(app.server, "auto") as client:
        await call(client, "create_task", kind="tool", payload=payload, wait_seconds=20)
    attempt = recorded.span("task.run tool")
    calls = [span for span in recorded.exporter.get_finished_spans() if told(span, "mcp.method.name") == "tools/call"]
    inner = [span.parent.span_id for span in calls if span.kind is SpanKind.CLIENT and span.parent]
    assert place_of(attempt)[1] in inner


async def test_a_cancelled_attempt_is_no_error(recorded: Recorded, client: Client) -> None:
    task_id = (await call(client, "create_task", kind="sleep", payload={"seconds": 60})).facts["id"]
    await call(client, "cancel_task", task_id=task_id)
    await ended(client, task_id)
    span = recorded.span("task.run sleep")
    assert told(span, "taskorch.attempt.outcome") == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


async def test_what_a_schedule_creates_is_linked_with_the_call_that_created_the_schedule(
    pool: Pool, store: Store, clock: Clock
) -> None:
    schedule = await pool.add(schedule=Schedule(None, 60.0, "UTC"), trace=TRACEPARENT)
    clock.advance(61)
    await store.promote()
    history = await pool.queries.history(await pool.get(schedule))
    assert (await pool.queries.get(history.firings[0]["task"])).trace == TRACEPARENT


async def test_a_trace_that_nobody_keeps_is_not_stored(recorded: Recorded, app: App) -> None:
    unsampled = trace.SpanContext(1, 1, False, trace.TraceFlags(0))
    long = trace.SpanContext(
        1,
        1,
        False,
        trace.TraceFlags(1),
        trace.TraceState([("a", "x" * 200)] * 1 + [("b", "x" * 250), ("c", "x" * 250)]),
    )
    with trace.use_span(trace.NonRecordingSpan(unsampled)):
        assert context.current() is None and context.variables() == {}
    with trace.use_span(trace.NonRecordingSpan(long)):
        assert context.current() == f"00-{1:032x}-{1:016x}-01", "a tracestate that is too long is left out"


@pytest.mark.parametrize("text", ["", "nonsense", TRACEPARENT.upper(), f"{TRACEPARENT} =,=", "00-0-0-01", TRACEPARENT])
def test_what_is_stored_as_a_trace_may_be_anything(text: str) -> None:
    """Other programs write to the file too; a task runs whatever they wrote."""
    found = context.read(text)
    assert (found is not None) == text.startswith(TRACEPARENT)


# Other processes.


@pytest.fixture
def spans(place: Place) -> Iterator[Path]:
    """Where all servers of the place, and what they start, write their spans."""
    (place.folder / "handlers" / "tracing.py").write_text(PROBE)
    place.environment |= {"SPANS": str(place.folder / "spans"), "TASKORCH_HANDLERS": "probe,tracing"}
    yield place.folder / "spans"


def written(spans: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in spans.read_text().splitlines()]
    return [span for span in found if span["name"] == name]


def asked(server: Server, **arguments: Any) -> str:
    """A task that is created by a call with a trace context."""
    request = server.post("tools/call", name="create_task", arguments=arguments, _meta={"traceparent": TRACEPARENT})
    return server.facts(request)["id"]


def test_a_trace_survives_the_server_that_it_came_to(place: Place, spans: Path) -> None:
    """And whoever goes on with the work says so: what was adopted, what was lost, what runs again."""
    first = place.start()
    gate = place.fifo("gate")
    later = asked(first, kind="apart", delay_seconds=3600)
    command = asked(first, payload={"argv": ["cat", gate.path]})
    lost = asked(first, kind="hold", retry=QUICK)
    first.until_working(lost)
    wait_for(lambda: "cat" in names(command))
    first.kill()
    second = place.start()
    second.call("update_task", task_id=later, delay_seconds=0)
    gate.release("go on")
    second.until_ended(later, command, lost)
    assert second.end() == 0

    calls = {span["context"]["span_id"]: span for span in written(spans, "tools/call create_task")}
    assert {span["context"]["trace_id"] for span in calls.values()} == {f"0x{TRACE}"}
    assert {span["parent_id"] for span in calls.values()} == {f"0x{PARENT}"}
    runs = {name: written(spans, f"task.run {name}") for name in ("apart", "command", "hold")}
    for span in [span for found in runs.values() for span in found]:
        assert [link["context"]["span_id"] in calls for link in span["links"]] == [True], "a link to its call"
    [adopted] = runs["command"]
    assert adopted["attributes"]["taskorch.attempt.adopted"] is True
    assert adopted["attributes"]["taskorch.attempt.outcome"] == "completed"
    taken, again = runs["hold"]
    assert taken["attributes"]["taskorch.attempt.taken_over"] is True
    assert taken["attributes"]["error.type"] == "worker_lost" and taken["status"]["status_code"] == "ERROR"
    assert (taken["attributes"]["taskorch.task.attempt"], again["attributes"]["taskorch.task.attempt"]) == (1, 2)
    [apart], [within] = runs["apart"], written(spans, "work apart")
    assert within["parent_id"] == apart["context"]["span_id"], "an isolated handler's spans are children too"


def test_what_a_person_adds_within_a_trace_is_linked_with_it(place: Place) -> None:
    place.environment |= {"TRACEPARENT": TRACEPARENT, "TRACESTATE": "vendor=1"}
    subprocess.run([sys.executable, "-m", "taskorch", "add", "-k", "echo"], env=place.environment, check=True)
    place.environment |= {"TRACEPARENT": f"00-{TRACE}-{PARENT}-00"}
    subprocess.run([sys.executable, "-m", "taskorch", "add", "-k", "echo"], env=place.environment, check=True)
    assert [row["trace"] for row in place.rows().values()] == [f"{TRACEPARENT} vendor=1", None]
