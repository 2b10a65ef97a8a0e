"""The numbers of a moment, true to the store, in the format that Prometheus reads."""

import os
import re
import signal
import time
from pathlib import Path

import httpx2
import pytest
from clients import Gate, call, connected, settings
from prometheus_client.parser import text_string_to_metric_families
from rests import URL, WITH_TOKEN, guarded
from servers import Place
from terminals import Terminal

from taskorch.app import running
from taskorch.calls import metrics
from taskorch.calls.service import Service
from taskorch.domain.errors import StoreError
from taskorch.storage.queries import Queries

DOCUMENT = Path(__file__).parents[1] / "docs" / "how-to" / "observability.md"


def parsed(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and labels, as Prometheus' own parser reads them; each family is told once, as a gauge."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert {family.type for family in families} == {"gauge"} and all(family.documentation for family in families)
    return {f.name: {tuple(sample.labels.values()): sample.value for sample in f.samples} for f in families}


async def fetched(service: Service, headers: dict[str, str]) -> httpx2.Response:
    """What Prometheus gets of `taskorch http`."""
    transport = httpx2.ASGITransport(app=guarded(service))
    async with httpx2.AsyncClient(transport=transport, base_url=URL, headers=headers) as http:
        return await http.get("/metrics")


async def told(service: Service) -> str:
    response = await fetched(service, WITH_TOKEN)
    assert (response.status_code, response.headers["content-type"]) == (200, metrics.CONTENT_TYPE)
    return response.text


async def test_the_numbers_are_those_of_the_store(tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, "auto") as client:
        empty = await told(app.service)
        gate = Gate()
        held = [{"kind": "test.gate", "payload": gate.payload, "priority": "high"}] * 2
        others = [{"kind": "sleep", "payload": {"seconds": 0}}, {"kind": "echo", "delay_seconds": 3600}]
        failed = (await call(client, "create_task", kind="test.flaky", retry={"first_delay_seconds": 0.001})).facts
        done = (await call(client, "create_task", kind="echo")).facts
        await call(client, "wait_for_tasks", task_ids=[failed["id"], done["id"]])
        await call(client, "create_tasks", tasks=held + others)
        await gate.reached()
        later = app.service.store.now() + 5000
        app.service.store.now = lambda: later
        text = await told(app.service)
        gate.opened.set()
    found = parsed(text)
    assert found["taskorch_build_info"] == {(app.service.version,): 1}
    assert {of: number for of, number in found["taskorch_tasks"].items() if number} == {
        ("waiting", "medium"): 2,
        ("working", "high"): 2,
        ("completed", "medium"): 1,
        ("failed", "medium"): 1,
    }
    assert len(found["taskorch_tasks"]) == 15, "also those of which there are none"
    assert found["taskorch_active_tasks"] == {("waiting",): 2, ("working",): 2}
    assert found["taskorch_queue_size"] == {(): 1} and 5 <= found["taskorch_queue_oldest_seconds"][()] < 10
    assert 3590 < found["taskorch_next_run_timestamp_seconds"][()] - later / 1000 < 3600
    assert found["taskorch_recent_tasks_ended"] == {("completed",): 1, ("failed",): 1, ("cancelled",): 0}
    attempts = {("completed",): 1, ("failed",): 3, ("cancelled",): 0, ("interrupted",): 0}
    assert found["taskorch_recent_attempts_ended"] == attempts
    assert set(found["taskorch_recent_run_seconds"]) == {("0.5",), ("0.9",), ("0.95",), ("0.99",)}
    assert found["taskorch_servers"] == {("responding",): 1, ("silent",): 0}
    assert (found["taskorch_slots"], found["taskorch_slots_busy"]) == ({(): 2}, {(): 2})
    assert found["taskorch_outside_claims"] == {(): 0}
    assert found["taskorch_database_bytes"][()] > 4096 and found["taskorch_disk_free_bytes"][()] > 0
    rows = re.findall(r"^\| (`taskorch_.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall("`(.*?)`", row)} == found.keys()
    names = list(found)
    assert [name for name in names if name in parsed(empty)] == list(parsed(empty)), "always in one order"
    assert found.keys() - parsed(empty).keys() == {"taskorch_next_run_timestamp_seconds", "taskorch_recent_run_seconds"}


async def test_a_collector_needs_the_token_and_hears_when_the_store_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: object) -> None:
        raise StoreError("The store is busy.")

    async with running(settings(tmp_path)) as app:
        assert (await fetched(app.service, {})).status_code == 401
        monkeypatch.setattr(Queries, "stats", busy)
        failed = await fetched(app.service, WITH_TOKEN)
    assert (failed.status_code, failed.json()["error"]["message"]) == (503, "The store is busy.")


def test_whatever_a_label_or_a_help_text_holds_is_read_as_it_was_meant() -> None:
    wild = 'a "quoted" \\ back\\nslash\nline {b="c"} 1 # é'
    samples = [({"of": wild, "and": "x"}, 1.5), ({"of": "", "and": wild}, 10**15)]
    [family] = text_string_to_metric_families(metrics.rendered([metrics.Metric("name", wild, samples)]))
    assert family.documentation == wild
    assert [(sample.labels, sample.value) for sample in family.samples] == samples


def test_the_numbers_can_be_had_at_a_terminal_while_servers_run_hang_or_are_gone(place: Place) -> None:
    terminal = Terminal(place)
    missing = terminal.run("metrics")
    assert (missing.returncode, missing.stdout) == (5, "") and "no store" in missing.stderr
    server = place.start()
    server.create("echo")

    def servers() -> dict[tuple[str, ...], float]:
        return parsed(terminal.out("metrics"))["taskorch_servers"]

    assert servers() == {("responding",): 1, ("silent",): 0}
    server.process.send_signal(signal.SIGSTOP)
    [lock] = (place.state / "servers").glob("*.lock")
    os.utime(lock, (time.time() - 60, time.time() - 60))  # as after a minute of silence
    assert servers() == {("responding",): 0, ("silent",): 1}
    server.kill()
    before = sorted(place.state.rglob("*"))
    assert servers() == {("responding",): 0, ("silent",): 0}
    facts = terminal.facts("metrics")["metrics"]
    counted = {family["name"]: len(family["samples"]) for family in facts}
    assert counted == {name: len(samples) for name, samples in parsed(terminal.out("metrics")).items()}
    assert facts[0]["type"] == "gauge" and facts[0]["samples"][0]["labels"].keys() == {"version"}
    assert sorted(place.state.rglob("*")) == before, "who only looks leaves nothing behind"
