"""What a start loads: all of it is waited for, by a host at each start of the server, by a person at each command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from servers import HELLO

from taskorch.cli.main import cli

ROOT = Path(__file__).parents[1]
SECONDS = 30.0
SDK = {"mcp", "mcp_types"}
HEAVY = {*SDK, "opentelemetry", "starlette", "uvicorn", "sse_starlette"}  # which the SDK brings
# Every command, and arguments with which it does something; None: it speaks MCP, or does not end.
COMMANDS: dict[str, list[str] | None] = {
    "demo": None,
    "doctor": [],
    "backup": [],
    "install": ["claude-code", "--print"],
    "config": ["show"],
    "add": ["--kind", "echo"],
    "load": ["examples/pipeline.json"],
    "ls": [],
    "show": ["one"],
    "logs": ["one", "--json"],
    "wait": ["one", "--timeout", "0", "--json"],
    "cancel": ["one"],
    "retry": ["two"],
    "edit": ["one", "--priority", "low"],
    "rm": ["one"],
    "stats": [],
    "metrics": [],
    "top": [],
    "worker": None,  # it ends by a signal alone: test_terminal sees what it loads
    "http": None,  # the same, and it does speak MCP
}
# What a server loads beyond an empty one of the SDK.
OURS = {"aiosqlite", "cronsim", "jmespath", "platformdirs", "taskorch", "tzlocal"}
# What only some servers need, and only when they do.
LATE = {
    *("taskorch.cli.main", "taskorch.work.program", "taskorch.work.remote_session"),
    *("taskorch.http", "taskorch.mcp.streaming"),
}


def loaded(folder: Path, *command: str, stdin: bytes = b"") -> set[str]:
    """The modules that `python COMMAND` has loaded when it has done its work."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "TASKORCH_STATE_DIR": str(folder / "state"),
    }
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        timeout=SECONDS,
        env=environment,
    )
    # 1 is the doctor's word for something to mend, 4 the word of a wait that was not over.
    assert result.returncode in (0, 1, 4), result.stderr.decode()[-2000:]
    assert result.stdout
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", result.stderr.decode(), re.MULTILINE))


def packages(modules: set[str]) -> set[str]:
    """Those that are not Python's own."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def requests() -> bytes:
    messages = (
        {"id": 1, "method": "initialize", "params": HELLO},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list"},
    )
    return b"".join(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n" for message in messages)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with something to back up, a task that waits and one that can be retried."""
    folder = tmp_path_factory.mktemp("home")
    for command in ("add -k echo -n one --delay 1h", "add -k echo -n two --delay 1h", "cancel two"):
        loaded(folder, "-m", "taskorch", *command.split())
    return folder


def test_every_command_is_in_the_table() -> None:
    assert set(typer.main.get_command(cli).commands) == set(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_what_only_talks_loads_neither_the_sdk_nor_a_database(arguments: list[str], tmp_path: Path) -> None:
    assert not packages(loaded(tmp_path, "-m", "taskorch", *arguments)) & HEAVY


@pytest.mark.parametrize("name", [name for name, arguments in COMMANDS.items() if arguments is not None])
def test_a_command_that_speaks_no_mcp_does_not_load_the_sdk(name: str, tmp_path: Path, home: Path) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    assert not packages(loaded(tmp_path, "-m", "taskorch", name, *COMMANDS[name] or ())) & HEAVY


def test_the_server_loads_only_what_it_needs_beyond_the_sdk(tmp_path: Path) -> None:
    mine = loaded(tmp_path, "-m", "taskorch", stdin=requests())
    empty = loaded(tmp_path, "-m", "benchmarks.empty_server", stdin=requests())
    assert "mcp" in packages(empty)
    assert packages(mine) - packages(empty) <= OURS
    assert not mine & LATE
