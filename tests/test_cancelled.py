"""Tool calls of a real server, cancelled at any moment: no task is cancelled by that, and nothing is half done."""

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from servers import LEGACY, MODERN, Place, Server, wait_for
from test_cancelled_store import SEED, check_rows

DELAYS = 40  # of each tool
LATEST_SECONDS = 0.025


@dataclass(frozen=True)
class Tool:
    """`arguments`: for the task with that id, in the call with that number; `after`: what the row becomes."""

    name: str
    arguments: Callable[[str, int], dict[str, Any]]
    after: tuple[Any, ...] | None = None  # version, status, priority, events; None: gone


LATER = {"kind": "echo", "delay_seconds": 3600}
BEFORE = {"retry_task": (2, "cancelled", 1, "cancelled")}
WAITING = (1, "waiting", 1, None)
ROWS = """SELECT name, version, status, priority, (SELECT group_concat(event) FROM events WHERE task = seq) AS events
  FROM tasks"""
TOOLS = (
    Tool("create_task", lambda _, n: LATER | {"name": f"new {n}", "wait_seconds": n % 2 * 5}, WAITING),
    Tool("update_task", lambda i, _: {"task_id": i, "priority": "high"}, (2, "waiting", 2, "updated")),
    Tool("cancel_task", lambda i, _: {"task_id": i, "reason": "enough"}, (2, "cancelled", 1, "cancelled")),
    Tool("retry_task", lambda i, _: {"task_id": i, "delay_seconds": 3600}, (3, "waiting", 1, "cancelled,retried")),
    Tool("delete_task", lambda i, _: {"task_id": i}),
    Tool("list_tasks", lambda _, n: {"text": "delete_task", "limit": n + 1}, WAITING),
    Tool("get_task", lambda i, _: {"task_id": i, "detail": "full"}, WAITING),
    Tool("wait_for_tasks", lambda i, _: {"task_ids": [i], "timeout_seconds": 20}, WAITING),
    Tool("get_task_output", lambda i, _: {"task_id": i}, WAITING),
    Tool("get_stats", lambda *_: {}, WAITING),
)


def prepared(server: Server) -> dict[str, list[str]]:
    """Tasks that wait for an hour, as many for each tool as it is called; those to be retried are cancelled."""
    ids: dict[str, list[str]] = {}
    for tool in TOOLS[1:]:  # one after the other, for all at once would be more than may be in flight
        asked = [server.post_call("create_task", name=f"{tool.name} {n}", **LATER) for n in range(DELAYS)]
        ids[tool.name] = [server.facts(request)["id"] for request in asked]
    for request in [server.post_call("cancel_task", task_id=task_id) for task_id in ids["retry_task"]]:
        server.facts(request)
    return ids | {"create_task": [""] * DELAYS}


def call_and_cancel(server: Server, tool: str, arguments: dict[str, Any], seconds: float) -> None:
    request = server.post_call(tool, **arguments)
    time.sleep(seconds)  # the moment of the cancel is what is tried
    server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request}})


def rows_of(database: Path) -> dict[str, tuple[Any, ...]]:
    """By name: version, status, priority, events. And another process can write, a commit under way apart."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=0.25)) as db:
        db.execute("BEGIN IMMEDIATE")
        rows = {name: tuple(row) for name, *row in db.execute(ROWS)}
        db.execute("ROLLBACK")
        return rows


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_cancelling_a_call_cancels_no_task_and_leaves_nothing_half_done(era: str, place: Place) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")  # noqa: T201  (to repeat a run that failed)
    server = place.start(era, concurrency="2")
    held = server.create("hold")
    server.until_working(held)
    ids = prepared(server)
    delays = [LATEST_SECONDS * (n / DELAYS) ** 2 for n in range(DELAYS)]
    calls = [(tool, n, seconds) for tool in TOOLS for n, seconds in enumerate(delays)]
    chance.shuffle(calls)
    for tool, n, seconds in calls:
        name = f"new {n}" if tool.name == "create_task" else f"{tool.name} {n}"
        call_and_cancel(server, tool.name, tool.arguments(ids[tool.name][n], n), seconds)
        assert server.call("list_tasks", limit=1)["counts"]["working"] == 1
        found = rows_of(place.state / "taskorch.db").get(name)
        before = None if tool.name == "create_task" else BEFORE.get(tool.name, WAITING)
        assert found in (before, tool.after), (SEED, name, seconds)
    with contextlib.closing(sqlite3.connect(place.state / "taskorch.db")) as db:
        check_rows(db)
        assert db.execute("SELECT count(*) FROM tasks WHERE cancel_requested_at IS NOT NULL").fetchone() == (0,)
    assert place.row(held)["status"] == "working"
    assert server.end() == 0


def test_cancelling_a_wait_or_a_deletion_of_a_working_task_leaves_it_working_or_deletes_it(place: Place) -> None:
    server = place.start(concurrency="64")
    ids = [server.facts(request)["id"] for request in [server.post_call("create_task", kind="hold") for _ in range(60)]]
    server.until_working(*ids)
    waited, deleted = ids[:20], ids[20:]
    for n, task_id in enumerate(waited):
        seconds = LATEST_SECONDS * n / len(waited)
        call_and_cancel(server, "wait_for_tasks", {"task_ids": [task_id], "until": "any"}, seconds)
        call_and_cancel(server, "create_task", {"kind": "echo", "name": f"new {n}", "wait_seconds": 5}, seconds)
        assert server.get(task_id)["status"] == "working"
    for n, task_id in enumerate(deleted):
        call_and_cancel(server, "delete_task", {"task_id": task_id, "confirm": True}, LATEST_SECONDS * n / len(deleted))
        server.call("list_tasks", limit=1)
    wait_for(lambda: not any(row["delete_requested"] for row in place.rows().values()))
    wait_for(lambda: all(row["status"] != "waiting" for row in place.rows().values()))
    made = [row for row in place.rows().values() if row["name"]]
    assert {row["status"] for row in made} <= {"completed"}
    left = {task_id: row["status"] for task_id, row in place.rows().items() if not row["name"]}
    assert set(left.values()) == {"working"}
    assert left.keys() >= set(waited)
