"""The file of MCP servers: what it may look like, what is refused in one line, and that its secrets stay in it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from taskorch.cli.check import FAIL, OK, WARN
from taskorch.cli.runnable import mcp_servers
from taskorch.domain.errors import InvalidInput
from taskorch.work.mcp_servers import WITHIN, Http, Stdio, read_servers, refuse_own, within

SECRET = "hunter2-hunter2"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.json"


def write(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def entries(file: Path, **named: Any) -> dict[str, Any]:
    return dict(read_servers(write(file, {"mcpServers": named})))


def test_no_file_names_no_server() -> None:
    assert read_servers(None) == {}


def test_entries_are_taken_as_hosts_write_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    known = entries(
        file,
        files={"command": "npx", "args": ["-y", "x"], "env": {"A": "b"}, "cwd": "~/work", "autoApprove": ["read"]},
        plain={"type": "stdio", "command": "/bin/server"},
        off={"command": "x", "disabled": True},
        remote={"type": "http", "url": "https://example.org/mcp", "headers": {"Authorization": "Bearer x"}},
        bare={"url": "http://127.0.0.1:1/"},
    )
    assert known == {
        "files": Stdio(command="npx", args=["-y", "x"], env={"A": "b"}, cwd="/home/somebody/work"),
        "plain": Stdio(command="/bin/server"),
        "remote": Http(url="https://example.org/mcp", headers={"Authorization": "Bearer x"}),
        "bare": Http(url="http://127.0.0.1:1/"),
    }


def test_the_example_names_servers_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    known = read_servers(Path(__file__).parents[1] / "examples" / "mcp-servers.json")
    files, memory = known["files"], known["memory"]
    assert isinstance(files, Stdio) and files.args[-1] == "/home/somebody/notes" and not files.allows("write_file")
    assert memory.allows("read_graph")


def test_variables_of_this_process_may_be_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.delenv("PLACE", raising=False)
    known = entries(
        file, a={"command": "${PLACE:-/bin}/x", "args": ["--at=${PLACE:-}"], "env": {"T": "a ${TOKEN}", "U": "$TOKEN"}}
    )
    assert known["a"] == Stdio(command="/bin/x", args=["--at="], env={"T": f"a {SECRET}", "U": "$TOKEN"})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["servers.json is no JSON: Expecting"]),
        ("[" * 100_000, ["servers.json is no JSON"]),
        ([], ["has no object mcpServers", '{"mcpServers": {"files"']),
        ({"servers": {}}, ["has no object mcpServers"]),
        ({"mcpServers": []}, ["has no object mcpServers"]),
        ({"mcpServers": {"a": "npx"}}, ["mcpServers.a must be an object"]),
        ({"mcpServers": {"a": {}}}, ["mcpServers.a.command is required"]),
        ({"mcpServers": {"a": {"command": ""}}}, ["mcpServers.a.command '' is not allowed"]),
        ({"mcpServers": {"a": {"command": ["npx"]}}}, ["mcpServers.a.command", "must be a string"]),
        ({"mcpServers": {"a": {"command": "npx -y x"}}}, ["mcpServers.a.command 'npx -y x' is a line", "into args"]),
        ({"mcpServers": {"a": {"command": "x", "args": "-y"}}}, ["mcpServers.a.args '-y' is not allowed", "an array"]),
        ({"mcpServers": {"a": {"command": "x", "arg": []}}}, ["mcpServers.a.arg means nothing. Did you mean 'args'?"]),
        ({"mcpServers": {"a": {"command": "x", "cwd": "."}}}, ["mcpServers.a.cwd '.' is a relative path"]),
        ({"mcpServers": {"a": {"command": "x", "env": {"T": 5}}}}, ["mcpServers.a.env 'T' must be a string"]),
        ({"mcpServers": {"a": {"command": "${NO_SUCH_THING}"}}}, ["${NO_SUCH_THING}, which is not set", ":-default}"]),
        ({"mcpServers": {"a": {"type": "sse", "url": "http://x"}}}, ["mcpServers.a.type 'sse' is not supported"]),
        ({"mcpServers": {"a": {"url": "ftp://x"}}}, ["mcpServers.a.url", "http:// or https://"]),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(file: Path, content: Any, parts: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_servers(write(file, content))
    for part in parts:
        assert part in str(refused.value)
    assert "\n" not in str(refused.value) and str(file) in str(refused.value)


def test_a_file_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"servers\.json cannot be read: No such file"):
        read_servers(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "x", "env": {"A": {"B": SECRET}}},
        {"command": "x", "env": [SECRET]},
        {"command": "x", "env": SECRET},
        {"url": "http://x", "headers": {"A": [SECRET]}},
        {"command": 5, "env": {"A": SECRET}},
    ],
)
def test_no_error_shows_a_secret(file: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        entries(file, a=entry)
    assert SECRET not in str(refused.value)


def test_an_entry_shows_no_secret_and_takes_it_out_of_a_text() -> None:
    entry = Stdio(command="x", env={"TOKEN": SECRET, "DEBUG": "1"})
    address = Http(url=f"https://x/{SECRET}", headers={"X": SECRET})
    assert SECRET not in f"{entry!r} {entry} {address!r}"
    assert entry.hide(f"1 of {SECRET}!") == "1 of (hidden)!"
    assert address.hide(f"{address.url} and {SECRET}") == "(hidden) and (hidden)"


def test_a_program_inherits_no_more_than_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET", SECRET)
    found = Stdio(command="x", env={"PATH": "/opt", "A": "b"}).environment()
    assert (found["PATH"], found["A"], "AWS_SECRET" in found) == ("/opt", "b", False)


# A taskorch that would start itself.


def test_a_server_refuses_the_state_folder_of_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    below = within(tmp_path / "b", within(tmp_path / "a", {}))
    for state in ("a", "b", "link"):
        with pytest.raises(InvalidInput, match="TASKORCH_STATE_DIR of its own"):
            refuse_own(tmp_path / state, below)
    refuse_own(tmp_path / "c", below)
    refuse_own(tmp_path / "a", {})
    assert below.keys() == {WITHIN}


# What the doctor says.


def test_doctor_names_the_servers_and_none_of_their_secrets(file: Path) -> None:
    raw = {"command": sys.executable, "args": [SECRET], "env": {"A": SECRET}}
    write(file, {"mcpServers": {"files": raw, "web": {"url": f"http://x/{SECRET}"}}})
    assert mcp_servers(file) == (OK, "tasks may call tools of files, web", "")
    assert mcp_servers(None)[0] == OK


def test_doctor_tells_of_a_command_that_is_not_found(file: Path) -> None:
    raw = {
        "files": {"command": "no-such-program"},
        "here": {"command": "python", "env": {"PATH": os.path.dirname(sys.executable)}},
    }
    state, text, mend = mcp_servers(write(file, {"mcpServers": raw}))
    assert (state, text) == (WARN, "files: the command is not found") and str(file) in mend


def test_doctor_finds_a_wrong_file(file: Path) -> None:
    state, text, _ = mcp_servers(write(file, "{"))
    assert state == FAIL and "no JSON" in text
