"""Servers that others wrote and published, called by tasks over real stdio. They come from npm."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.environments import Unavailable, npm
from servers import Place, Server, wait_for
from test_conformance import unavailable

VERSION = "2026.8.31"
NAMES = ("everything", "filesystem", "memory")
OLDEST_NODE = 20


@pytest.fixture(scope="module")
def commands(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with their commands, installed once into pytest's cache."""
    cache: Any = getattr(pytestconfig, "cache", None)  # none with `-p no:cacheprovider`
    packages = [f"@modelcontextprotocol/server-{name}@{VERSION}" for name in NAMES]
    try:
        folder = npm(cache.mkdir("servers") if cache else tmp_path_factory.mktemp("npm"), *packages, oldest=OLDEST_NODE)
    except Unavailable as error:
        unavailable(str(error), "Published servers")
    return folder / "node_modules" / ".bin"


@pytest.fixture
def server(place: Place, commands: Path) -> Iterator[Server]:
    """A taskorch that knows them."""
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    entries = {name: {"command": str(commands / f"mcp-server-{name}"), "env": {"PATH": path}} for name in NAMES}
    entries["filesystem"]["args"] = [str(place.work)]
    entries["memory"]["env"]["MEMORY_FILE_PATH"] = str(place.work / "memory.jsonl")
    file = place.folder / "servers.json"
    file.write_text(json.dumps({"mcpServers": entries}))
    server = place.start(mcp_servers=str(file))
    yield server
    assert server.end() == 0


def create(server: Server, name: str, tool: str, **arguments: Any) -> str:
    return server.create("tool", server=name, tool=tool, arguments=arguments)


def result(server: Server, task_id: str) -> Any:
    server.until_ended(task_id)
    task = server.get(task_id)
    assert task["status"] == "completed", task
    return task["result"]


def test_the_everything_server_answers_tells_progress_and_is_cancelled(server: Server) -> None:
    assert result(server, create(server, "everything", "echo", message="from a task")) == "Echo: from a task"
    weather = create(server, "everything", "get-structured-content", location="Chicago")
    image = create(server, "everything", "get-tiny-image")
    working = create(server, "everything", "trigger-long-running-operation", duration=2, steps=8)
    endless = create(server, "everything", "trigger-long-running-operation", duration=600, steps=6000)
    wait_for(lambda: server.get(working).get("progress", {}).get("total") == 8)
    wait_for(lambda: server.get(endless).get("progress"))
    server.call("cancel_task", task_id=endless)
    assert result(server, weather).keys() == {"temperature", "conditions", "humidity"}
    assert {"type": "image", "mimeType": "image/png"}.items() <= result(server, image)[1].items()
    assert result(server, working) == "Long running operation completed. Duration: 2 seconds, Steps: 8."
    server.until_ended(endless)
    assert server.get(endless)["status"] == "cancelled"
    wrong = create(server, "everything", "get-sum", a="one", b=2)
    server.until_ended(wrong)
    assert server.get(wrong)["error"]["reason"] == "error"


def test_the_filesystem_server_writes_and_reads_and_keeps_to_its_folder(server: Server, place: Place) -> None:
    path = str(place.work / "note.txt")
    result(server, create(server, "filesystem", "write_file", path=path, content="written by a task\n"))
    assert Path(path).read_text() == "written by a task\n"
    assert result(server, create(server, "filesystem", "read_text_file", path=path)) == {
        "content": "written by a task\n"
    }
    outside = create(server, "filesystem", "read_text_file", path="/etc/passwd")
    server.until_ended(outside)
    assert "outside allowed directories" in server.get(outside)["error"]["message"]
    near = create(server, "filesystem", "read_fil", path=path)
    server.until_ended(near)
    error = server.get(near)["error"]
    assert error["reason"] == "invalid_payload" and "Did you mean 'read_file'?" in error["message"]


def test_the_memory_server_keeps_a_graph_over_a_restart(server: Server, place: Place) -> None:
    entity = {"name": "taskorch", "entityType": "program", "observations": ["keeps tasks"]}
    result(server, create(server, "memory", "create_entities", entities=[entity]))
    assert result(server, create(server, "memory", "read_graph"))["entities"] == [entity]
    assert server.end() == 0
    again = place.start(mcp_servers=str(place.folder / "servers.json"))
    assert result(again, create(again, "memory", "open_nodes", names=["taskorch"]))["entities"] == [entity]
    assert again.end() == 0
