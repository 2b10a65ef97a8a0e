"""Answers that never arrive: what was asked is done whole and once, and the next server may be asked again."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
from servers import HELLO, SECONDS, Place, Server, wait_for
from test_cancelled_store import check_rows

# Imported by the server with its handlers: it is killed when a commit has been made, before anybody is answered.
FATAL = """
import os, signal
from taskorch.storage.database import Database

commit = Database._commit

async def and_die(self, batch):
    changed, afterwards = await commit(self, batch)
    if changed and os.path.exists("die"):
        os.unlink("die")
        os.kill(os.getpid(), signal.SIGKILL)
    return changed, afterwards

Database._commit = and_die
"""
LATER = {"kind": "echo", "delay_seconds": 3600}
UPDATED = {"priority": "high", "labels": ["a"]}


class Mortal:
    """A state folder whose servers die on request, right after they have committed what they were asked."""

    def __init__(self, place: Place) -> None:
        self.place = place
        (place.folder / "handlers" / "fatal.py").write_text(FATAL)

    def start(self) -> Server:
        return self.place.start(handlers="probe,fatal")

    def lose(self, server: Server, tool: str, **arguments: Any) -> None:
        """Ask, and see the server die without a word."""
        (self.place.work / "die").touch()
        request = server.post_call(tool, **arguments)
        assert server.process.wait(SECONDS) == -9
        server.left()
        assert request not in server.answered()

    def noted(self, task_id: str) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.place.state / "taskorch.db")) as db:
            check_rows(db)
            query = "SELECT event FROM events JOIN tasks ON seq = task WHERE tasks.id = ? ORDER BY events.id"
            return [event for (event,) in db.execute(query, (task_id,))]


@pytest.fixture
def mortal(place: Place) -> Mortal:
    return Mortal(place)


def refusal(server: Server, tool: str, **arguments: Any) -> str:
    answer = server.answer(server.post_call(tool, **arguments))["result"]
    assert answer["isError"]
    return answer["content"][0]["text"]


def test_a_task_whose_creation_was_never_answered_is_there_once_and_is_found_by_its_name(mortal: Mortal) -> None:
    mortal.lose(mortal.start(), "create_task", kind="note", name="the report", payload={"file": "ran"})
    server = mortal.start()
    [found] = server.call("list_tasks", text="the report")["tasks"]
    assert server.get("the report")["id"] == found["id"]
    server.until_ended(found["id"])
    assert server.get(found["id"])["status"] == "completed"
    assert (mortal.place.work / "ran").read_text().split() == [found["id"]]
    assert len(mortal.place.rows()) == 1
    assert server.end() == 0


def test_an_update_that_was_never_answered_is_made_and_may_be_asked_for_again(mortal: Mortal) -> None:
    first = mortal.start()
    task_id = first.call("create_task", **LATER)["id"]
    mortal.lose(first, "update_task", task_id=task_id, expected_version=1, **UPDATED)
    server = mortal.start()
    assert server.get(task_id)["version"] == 2
    assert "is at version 2, not 1" in refusal(server, "update_task", task_id=task_id, expected_version=1, **UPDATED)
    assert mortal.noted(task_id) == ["updated"]
    again = server.call("update_task", task_id=task_id, expected_version=2, **UPDATED)
    assert (again["priority"], again["version"]) == ("high", 3)
    assert mortal.place.row(task_id)["labels"] == '["a"]'
    assert server.end() == 0


def test_a_cancel_that_was_never_answered_is_made_once_however_often_it_is_asked_for(mortal: Mortal) -> None:
    first = mortal.start()
    task_id = first.call("create_task", **LATER)["id"]
    mortal.lose(first, "cancel_task", task_id=task_id, reason="enough")
    server = mortal.start()
    for _ in range(2):
        assert server.call("cancel_task", task_id=task_id, reason="enough")["status"] == "cancelled"
    assert mortal.noted(task_id) == ["cancelled"]
    assert mortal.place.row(task_id)["version"] == 2
    assert server.end() == 0


def test_a_retry_that_was_never_answered_is_made_once_and_the_next_one_is_refused(mortal: Mortal) -> None:
    first = mortal.start()
    task_id = first.call("create_task", **LATER)["id"]
    first.call("cancel_task", task_id=task_id)
    mortal.lose(first, "retry_task", task_id=task_id, delay_seconds=3600)
    server = mortal.start()
    assert "is waiting" in refusal(server, "retry_task", task_id=task_id, delay_seconds=3600)
    assert mortal.noted(task_id) == ["cancelled", "retried"]
    assert server.get(task_id)["status"] == "waiting"
    assert server.end() == 0


def test_a_deletion_that_was_never_answered_is_made_and_the_next_one_says_that_it_is_gone(mortal: Mortal) -> None:
    first = mortal.start()
    task_id = first.call("create_task", **LATER)["id"]
    mortal.lose(first, "delete_task", task_id=task_id)
    server = mortal.start()
    assert task_id in refusal(server, "delete_task", task_id=task_id)
    assert mortal.place.rows() == {}
    assert mortal.noted(task_id) == []
    assert server.end() == 0


def test_tasks_whose_answers_nobody_can_read_any_more_are_stored_once_each(place: Place) -> None:
    def line(message: dict[str, Any]) -> bytes:
        return json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n"

    names = {f"task {n}" for n in range(1, 21)}
    calls = [{"name": "create_task", "arguments": LATER | {"name": name}} for name in names]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "taskorch"]
    with subprocess.Popen(command, env=place.environment, cwd=place.work, **pipes) as server:
        assert server.stdin and server.stdout
        server.stdin.write(line({"id": 0, "method": "initialize", "params": HELLO}))
        server.stdin.flush()
        server.stdout.readline()
        server.stdin.write(line({"method": "notifications/initialized"}))
        server.stdin.write(
            b"".join(line({"id": n, "method": "tools/call", "params": c}) for n, c in enumerate(calls, 1))
        )
        server.stdout.close()
        server.stdin.flush()
        wait_for(place.rows)
        with contextlib.suppress(BrokenPipeError):
            server.stdin.close()
        server.wait(SECONDS)
    following = place.start()
    listed = [task["name"] for task in following.call("list_tasks", limit=100)["tasks"]]
    assert names >= set(listed)
    assert len(set(listed)) == len(listed) == len(place.rows()) > 0
    with contextlib.closing(sqlite3.connect(place.state / "taskorch.db")) as db:
        check_rows(db)
    assert following.end() == 0
