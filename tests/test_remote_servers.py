"""Tool tasks of a whole server: what names the servers, how it stops, taskorch and HTTP as the other side."""

import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest
from pools import Pool
from remotes import TOKEN, Peer, called, calling
from servers import IN_TIME, LEGACY, Place, Server, lives, wait_for
from test_conformance import served

import taskorch
from taskorch.domain.task import Reason, Status, Task
from taskorch.work.mcp_servers import Http


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def named(place: Place, **entries: Any) -> str:
    path = place.folder / "servers.json"
    path.write_text(json.dumps({"mcpServers": entries}))
    return str(path)


# What names the servers.


def test_without_a_file_there_is_no_such_kind(place: Place) -> None:
    server = place.start()
    answer = server.answer(server.post_call("create_task", kind="tool", payload={"server": "peer", "tool": "echo"}))
    assert answer["result"]["isError"] and "Unknown kind 'tool'." in answer["result"]["content"][0]["text"]
    assert server.end() == 0


def test_a_task_calls_a_tool_of_a_server_in_the_file(place: Place, peer: Peer) -> None:
    server = place.start(mcp_servers=named(place, peer=peer.raw))
    assert 'kind "tool"' in server.answer(1)["result"]["instructions"]
    [found] = server.answer(server.post("resources/read", uri="tasks://kinds"))["result"]["contents"]
    [kind] = [kind for kind in json.loads(found["text"])["kinds"] if kind["name"] == "tool"]
    assert kind["payload_schema"]["properties"]["server"]["enum"] == ["peer"] and kind["max_attempts"] == 1
    payload = {"server": "peer", "tool": "echo", "arguments": {"text": "over two pipes"}}
    task = server.call("create_task", kind="tool", payload=payload, wait_seconds=20)
    assert (task["status"], task["result"], task["max_attempts"]) == ("completed", "over two pipes", 1)
    refusal = server.answer(server.post_call("create_task", kind="tool", payload={"server": "pear", "tool": "echo"}))
    assert "payload.server 'pear' is not known here. Did you mean 'peer'?" in refusal["result"]["content"][0]["text"]
    assert server.end() == 0
    assert TOKEN not in server.errors.read_text() and not any(map(lives, peer.pids))


def test_a_tool_s_result_is_the_argument_of_another_s(place: Place, peer: Peer) -> None:
    server = place.start(mcp_servers=named(place, peer=peer.raw))
    first = {"server": "peer", "tool": "structured"}
    second = {"server": "peer", "tool": "echo", "arguments": {"text": {"$result": "first", "path": "env.PEER_SECRET"}}}
    tasks = [{"kind": "tool", "ref": "first", "payload": first}, {"kind": "tool", "payload": second}]
    ids = server.call("create_tasks", tasks=tasks)["ids"]
    server.until_ended(*ids)
    assert server.get(ids[1])["result"] == TOKEN
    assert server.end() == 0


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("servers.json", ["mcp_servers 'servers.json' is a relative path"]),
        ("/nowhere/servers.json", ["could not start: TASKORCH_MCP_SERVERS=/nowhere/servers.json cannot be read"]),
        ("{folder}/servers.json", ["could not start: ", "servers.json: mcpServers.peer.args 'x' is not allowed"]),
    ],
)
def test_a_wrong_file_keeps_the_server_from_starting(place: Place, given: str, parts: list[str]) -> None:
    named(place, peer={"command": "x", "args": "x", "env": {"A": TOKEN}})
    server = place.start(handshake=False, mcp_servers=given.format(folder=place.folder))
    assert server.left(20) == 2
    [line] = server.errors.read_text().splitlines()
    assert line.startswith("taskorch: ") and TOKEN not in line
    for part in parts:
        assert part in line


def test_a_taskorch_that_would_be_started_on_its_own_folder_does_not_start(place: Place, peer: Peer) -> None:
    server = place.start(mcp_servers=named(place, peer=peer.raw))
    task = server.create("tool", server="peer", tool="structured")
    server.until_ended(task)
    within = server.get(task)["result"]["env"]["TASKORCH_WITHIN"]
    assert within == str(place.state)
    child = place.start(handshake=False, within=within)
    assert child.left(20) == 2
    assert "could not start: the state folder" in child.errors.read_text()
    assert "TASKORCH_STATE_DIR of its own" in child.errors.read_text()
    assert server.end() == 0


# How it stops.


def test_the_end_of_input_ends_the_servers_in_time(place: Place, peer: Peer) -> None:
    deaf = Peer(place.folder, "deaf", "deaf")
    server = place.start(mcp_servers=named(place, peer=peer.raw, deaf=deaf.raw))
    safe = server.create("tool", server="peer", tool="wait_safely")
    task = server.create("tool", server="deaf", tool="wait")
    wait_for(lambda: "waiting" in peer.lines and "waiting" in deaf.lines)
    server.hang_up()
    assert server.left(IN_TIME) == 0
    assert not any(map(lives, peer.pids + deaf.pids))
    rows = place.rows()
    assert (rows[safe]["status"], rows[safe]["interruptions"]) == ("waiting", 1)
    assert (rows[task]["status"], rows[task]["error"].split('"')[3]) == ("failed", "interrupted")


def test_after_a_crash_a_call_is_not_repeated_by_itself(place: Place, peer: Peer) -> None:
    path = named(place, peer=peer.raw)
    server = place.start(mcp_servers=path)
    task = server.create("tool", server="peer", tool="wait")
    wait_for(lambda: "waiting" in peer.lines)
    server.kill()
    wait_for(lambda: not any(map(lives, peer.pids)))  # by the end of their input
    successor = place.start(mcp_servers=path)
    successor.until_ended(task)
    assert successor.get(task)["error"]["reason"] == "worker_lost"
    assert successor.end() == 0 and peer.lines.count("waiting") == 1


# Protocol tasks.


def other_taskorch(place: Place) -> dict[str, Any]:
    source = str(Path(taskorch.__file__).parents[1])
    variables = {
        "PYTHONPATH": source,
        "TASKORCH_STATE_DIR": str(place.folder / "other"),
        "TASKORCH_ALLOW_COMMANDS": "*",
    }
    return {"command": sys.executable, "args": ["-m", "taskorch"], "env": variables}


def theirs(place: Place) -> list[tuple[str, bool]]:
    """Of each task of the other taskorch its status, and whether it was asked to end."""
    with closing(sqlite3.connect(place.folder / "other" / "taskorch.db")) as connection:
        return list(connection.execute("SELECT status, cancel_requested_at IS NOT NULL FROM tasks ORDER BY seq"))


def create_there(server: Server, *argv: str, **fields: Any) -> str:
    """A task that has the other taskorch run a command, and waits for it."""
    arguments = {"payload": {"argv": argv}, "wait_seconds": 40}
    payload = {"server": "other", "tool": "create_task", "arguments": arguments}
    return server.call("create_task", kind="tool", payload=payload, **fields)["id"]


def follows(server: Server, task_id: str) -> bool:
    return "attempt 1/1" in server.get(task_id).get("progress", {}).get("message", "")


def test_a_protocol_task_is_followed_to_its_end(place: Place) -> None:
    gate = place.fifo("gate")
    server = place.start(mcp_servers=named(place, other=other_taskorch(place)))
    task = create_there(server, "cat", gate.path)
    wait_for(lambda: follows(server, task))
    assert theirs(place) == [("working", False)]
    gate.release("done")
    failure = create_there(server, "false")
    server.until_ended(task, failure)
    found = server.get(task)
    assert (found["status"], found["result"]["result"]) == ("completed", {"exit_code": 0, "output_bytes": 4})
    found = server.get(failure)
    assert (found["status"], found["error"]["reason"]) == ("failed", "error")
    assert "exit_code 1" in found["error"]["message"]
    assert server.end() == 0


def test_a_protocol_task_is_followed_over_another_connection_when_the_first_is_lost(place: Place) -> None:
    gate = place.fifo("gate")
    server = place.start(mcp_servers=named(place, other=other_taskorch(place)))
    task = create_there(server, "cat", gate.path)
    wait_for(lambda: follows(server, task))
    with closing(sqlite3.connect(place.folder / "other" / "taskorch.db")) as connection:
        [(pid,)] = connection.execute("SELECT pid FROM servers").fetchall()
    os.kill(pid, signal.SIGKILL)
    gate.release("done")
    server.until_ended(task)
    found = server.get(task)
    assert (found["status"], found["attempt"]) == ("completed", 1), found.get("error")
    assert found["result"]["result"] == {"exit_code": 0, "output_bytes": 4}
    assert len(theirs(place)) == 1
    assert server.end() == 0


def test_a_call_that_is_cut_short_takes_its_protocol_task_with_it(place: Place) -> None:
    server = place.start(mcp_servers=named(place, other=other_taskorch(place)))
    cancelled = create_there(server, "sleep", "60")
    wait_for(lambda: follows(server, cancelled))
    late = create_there(server, "sleep", "60", timeout_seconds=2)
    stopped = create_there(server, "sleep", "60", max_attempts=2)
    wait_for(lambda: follows(server, stopped))
    server.call("cancel_task", task_id=cancelled)
    server.until_ended(cancelled, late)
    assert (server.get(cancelled)["status"], server.get(late)["error"]["reason"]) == ("cancelled", "timeout")
    wait_for(lambda: [wished for _, wished in theirs(place)].count(True) == 2)
    assert server.end() == 0
    assert [wished for _, wished in theirs(place)] == [True, True, True]


# HTTP.


class Web(BaseHTTPRequestHandler):
    """A server of the protocol before 2026, with a session, answering with plain JSON."""

    sessions: ClassVar[set[str]] = set()
    heard: ClassVar[list[tuple[str, str]]] = []
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = message["method"]
        self.heard.append((method, self.headers.get("Authorization", "")))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401)
        session = self.headers.get("Mcp-Session-Id")
        if method == "server/discover":
            return self.answer(400)
        if method == "initialize":
            session = f"s{len(self.heard)}"
            self.sessions.add(session)
            info = {
                "protocolVersion": LEGACY,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "w", "version": "1"},
            }
            return self.answer(200, message, info, session)
        if session not in self.sessions:
            return self.answer(404)
        if "id" not in message:
            return self.answer(202)
        if method == "tools/list":
            return self.answer(200, message, {"tools": [{"name": "where", "inputSchema": {"type": "object"}}]})
        self.answer(200, message, {"content": [{"type": "text", "text": session}]})

    def do_GET(self) -> None:
        self.answer(405)

    def do_DELETE(self) -> None:
        self.heard.append(("DELETE", ""))
        self.answer(200)

    def answer(self, status: int, asked: Any = None, result: Any = None, session: str = "") -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode() if asked else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        if session:
            self.send_header("Mcp-Session-Id", session)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  (its name in the standard library)


@asynccontextmanager
async def web() -> AsyncIterator[str]:
    Web.sessions.clear()
    Web.heard.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/mcp"
        finally:
            server.shutdown()
            thread.join()


def error_of(task: Task) -> str:
    assert task.status is Status.FAILED and task.error is not None and task.error.reason is Reason.SPAWN_ERROR, task
    return task.error.message


async def test_a_server_at_an_address_is_called_with_its_headers(pool: Pool) -> None:
    async with web() as url, calling(pool, web=Http(url=url, headers={"Authorization": f"Bearer {TOKEN}"})):
        task = await called(pool, "where", "web")
        assert (task.status, task.result) == (Status.COMPLETED, next(iter(Web.sessions)))
        assert {said for _, said in Web.heard} == {f"Bearer {TOKEN}"}


async def test_a_session_that_the_server_has_forgotten_is_opened_anew(pool: Pool) -> None:
    async with web() as url, calling(pool, web=Http(url=url, headers={"Authorization": f"Bearer {TOKEN}"})):
        await called(pool, "where", "web")
        Web.sessions.clear()
        assert (await called(pool, "where", "web")).result == next(iter(Web.sessions))


async def test_an_address_that_refuses_or_does_not_answer_is_told(pool: Pool) -> None:
    async with web() as url, calling(pool, web=Http(url=url), gone=Http(url="http://127.0.0.1:9/mcp"), pauses=()):
        assert error_of(await called(pool, "where", "web")).startswith("web: answered HTTP 401 Unauthorized")
        assert error_of(await called(pool, "where", "gone")).startswith("gone: cannot be reached")


async def test_protocol_tasks_work_over_http(place: Place) -> None:
    async with served(place.folder / "web") as url:
        await anyio.to_thread.run_sync(over_http, place, url)


def over_http(place: Place, url: str) -> None:
    server = place.start(mcp_servers=named(place, web={"url": url}))
    wishes = {
        "slow_compute": {"seconds": 0.3, "label": "x"},
        "protocol_error_job": {},
        "confirm_delete": {"filename": "x"},
    }
    tasks = [server.create("tool", server="web", tool=tool, arguments=given) for tool, given in wishes.items()]
    server.until_ended(*tasks)
    done, refused, asking = map(server.get, tasks)
    assert done["status"] == "completed", json.dumps(done)
    assert done["result"]["result"] == "computed x"
    assert (refused["status"], refused["error"]["reason"]) == ("failed", "error")
    assert "nobody to ask" in asking["error"]["message"]
    assert server.end() == 0
