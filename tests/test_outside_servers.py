"""Outside workers at real servers: many at once, servers that are killed, workers that fall silent."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import Answer, call, connected, settings, stored
from servers import MODERN, Place, Server, wait_for

from taskorch.app import App, running
from taskorch.domain.task import NewTask, Reason, Status
from taskorch.storage.database import open_database
from taskorch.storage.outside import Claimed, OutsideStore, Wanted
from taskorch.storage.store import Store

WORKER = {"toolsets": "core,worker"}
TASKS = 200
CLAIMERS = 3  # at each server
NOTHING_MS = 100  # of silence


def attempts(place: Place) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(place.state / "taskorch.db")) as connection:
        return connection.execute("SELECT task, attempt, owner, worker, outcome FROM attempts ORDER BY 1, 2").fetchall()


def refusal(server: Server, tool: str, **arguments: Any) -> str:
    result = server.answer(server.post_call(tool, **arguments))["result"]
    assert result["isError"]
    return result["content"][0]["text"]


def test_four_servers_hand_out_two_hundred_tasks_each_once(place: Place) -> None:
    servers = [
        place.start(**WORKER),
        place.start(MODERN, **WORKER),
        place.start(**WORKER),
        place.start(MODERN, **WORKER),
    ]
    tasks = [{"kind": f"outside:k{number % 3}", "payload": {"n": number}} for number in range(TASKS)]
    ids = servers[0].call("create_tasks", tasks=tasks)["ids"]
    got: dict[str, str] = {}
    names = [(server, f"{place}.{number}") for place, server in enumerate(servers) for number in range(CLAIMERS)]
    while names:  # all of them claim at the same time, then all complete
        asked = [(server, name, server.post_call("claim_task", worker=name)) for server, name in names]
        claims = [(server, name, server.facts(request)) for server, name, request in asked]
        names = [(server, name) for server, name, claim in claims if claim["claimed"]]
        done: list[tuple[Server, int]] = []
        for server, name, claim in claims:
            if claim["claimed"]:
                assert claim["id"] not in got, "it had been given to another worker"
                assert claim["attempt"] == 1
                got[claim["id"]] = name
                arguments = {"task_id": claim["id"], "attempt": 1, "result": [name, claim["payload"]["n"]]}
                done.append((server, server.post_call("complete_task", **arguments)))
        for server, request in done:
            assert server.facts(request)["status"] == "completed"
    assert got.keys() == set(ids)
    rows = place.rows()
    results = [rows[task_id]["result"] for task_id in ids]
    assert results == [f'["{got[task_id]}",{number}]' for number, task_id in enumerate(ids)]
    assert [row[1:3] + row[4:] for row in attempts(place)] == [(1, 0, "completed")] * TASKS
    assert len(set(got.values())) > 4, "more than one server had a part in it"


def test_a_claim_outlives_the_server_it_was_made_through(place: Place) -> None:
    first, second = place.start(**WORKER), place.start(MODERN, **WORKER)
    first.create("outside", n=1)
    task = first.call("claim_task", worker="ann")
    mine = {"task_id": task["id"], "attempt": 1}
    first.kill()
    wait_for(lambda: len(second.call("get_stats")["workers"]["servers"]) == 1)  # it has been taken over from
    assert second.get(task["id"])["status"] == "working"
    beat = second.call("heartbeat_task", **mine, progress=1)
    assert beat["status"] == "working" and beat["claim_expires_at"] > task["claim_expires_at"]
    third = place.start(**WORKER)
    second.kill()
    wait_for(lambda: len(third.call("get_stats")["workers"]["servers"]) == 1)
    assert third.call("complete_task", **mine, result="done")["status"] == "completed"
    again = third.call("complete_task", **mine, result="done")
    assert again["repeated"] is True and again["result"] == "done"
    assert attempts(place) == [(1, 1, 0, "ann", "completed")]


def test_all_servers_may_stop_while_a_worker_works(place: Place) -> None:
    server = place.start(**WORKER)
    server.create("outside")
    task = server.call("claim_task", worker="ann")
    assert server.end() == 0
    assert place.row(task["id"])["status"] == "working"
    server = place.start(**WORKER)
    assert server.call("complete_task", task_id=task["id"], attempt=1)["status"] == "completed"


def test_what_a_silent_worker_had_another_gets_and_the_late_one_is_refused(place: Place) -> None:
    """By the clock of real servers, of which one knows nothing of workers' tools."""
    first, plain = place.start(**WORKER), place.start()
    first.create("outside", n=1)
    task = first.call("claim_task", worker="ann", claim_seconds=10)
    first.kill()
    with contextlib.closing(sqlite3.connect(place.state / "taskorch.db", isolation_level=None)) as connection:
        soon = round(time.time() * 1000) + 300  # of the ten seconds most are over
        connection.execute("UPDATE tasks SET claim_expires_at = ?", (soon,))
    wait_for(lambda: plain.get(task["id"])["status"] == "waiting")
    assert time.time() * 1000 >= soon
    error = plain.get(task["id"])["error"]
    assert error == {"reason": "worker_lost", "message": "its outside worker ann fell silent for 10 s"}
    second = place.start(MODERN, **WORKER)
    taken = wait_for(lambda: (claim := second.call("claim_task", worker="bob"))["claimed"] and claim)
    assert isinstance(taken, dict)
    assert (taken["id"], taken["attempt"], taken["last_error"]) == (task["id"], 2, error)
    late = refusal(second, "complete_task", task_id=task["id"], attempt=1, result="late")
    assert "attempt 1" in late and "is no longer yours" in late and "claimed again by bob (attempt 2)" in late
    assert second.call("complete_task", task_id=task["id"], attempt=2, result="right")["result"] == "right"
    assert [row[3:] for row in attempts(place)] == [("ann", "failed"), ("bob", "completed")]


# The timer of a running server.


@pytest.fixture
async def plain(tmp_path: Path) -> Any:
    """A server without the tools of workers."""
    async with running(settings(tmp_path)) as app:
        yield app


async def silent(app: App, at: Any) -> str:
    """The id of a task that was claimed at `at` by a worker that says no more."""
    new = NewTask("outside", {}, max_attempts=1, timeout_seconds=60.0)
    task = await app.service.store.add(new)
    await stored(app, task.id, lambda row: row.ready)
    assert isinstance(await at.claim(Wanted(), "ann", NOTHING_MS), Claimed)
    return task.id


async def test_a_server_wakes_when_a_claim_ends_that_was_made_through_it(plain: App) -> None:
    task_id = await silent(plain, plain.service.outside)
    await stored(plain, task_id, lambda row: row.status is Status.FAILED)
    task = await plain.service.queries.get(task_id)
    assert task.error and task.error.reason is Reason.WORKER_LOST


async def test_a_server_wakes_when_a_claim_ends_that_was_made_through_another(plain: App, tmp_path: Path) -> None:
    async with open_database(tmp_path / "state" / "taskorch.db") as database:
        store = Store(database)
        task_id = await silent(plain, OutsideStore(database, store.now, {}))
        await stored(plain, task_id, lambda row: row.status is Status.FAILED)


async def test_a_wait_ends_when_an_outside_worker_is_done(tmp_path: Path, era: str) -> None:
    async with running(settings(tmp_path, toolsets="worker")) as app, connected(app.server, era) as client:
        created = (await call(client, "create_task", kind="outside")).facts
        task_id = created["id"]
        answers: list[Answer] = []

        async def wait() -> None:
            answers.append(await call(client, "wait_for_tasks", task_ids=[task_id], timeout_seconds=20))

        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await call(client, "claim_task")
                await call(client, "complete_task", task_id=task_id, attempt=1, result=5)
        assert answers[0].facts["done"] is True and answers[0].facts["tasks"][0]["result"] == 5
