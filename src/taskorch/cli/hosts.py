"""The hosts that can be set up: where each keeps its servers, how an entry of ours looks, whom an entry starts."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from taskorch.cli import jsontext

NAME = "taskorch"  # of our entry
LAUNCHERS = {"uv", "uvx", "pipx", "docker", "podman", "wsl", "wsl.exe"}  # they find the program themselves


class HostName(StrEnum):
    CLAUDE_DESKTOP = "claude-desktop"
    CLAUDE_CODE = "claude-code"
    CURSOR = "cursor"
    VSCODE = "vscode"


@dataclass(frozen=True, slots=True)
class Host:
    """`user`: its file for all projects, `project`: its file in a project's folder, `section`: the servers in it."""

    name: HostName
    title: str
    user: Path
    project: str | None
    section: str
    after: str  # what to do once its file has changed
    shows_pages: bool  # in the conversation: the board


def hosts() -> list[Host]:
    """All of them, with the files of this user on this platform."""
    home, apps = Path.home(), _applications()
    return [
        Host(
            HostName.CLAUDE_DESKTOP,
            "Claude Desktop",
            apps / "Claude" / "claude_desktop_config.json",
            None,
            "mcpServers",
            "Quit Claude Desktop fully and start it again.",
            True,
        ),
        Host(
            HostName.CLAUDE_CODE,
            "Claude Code",
            home / ".claude.json",
            ".mcp.json",
            "mcpServers",
            "Start a new session of Claude Code; /mcp shows the server.",
            False,
        ),
        Host(
            HostName.CURSOR,
            "Cursor",
            home / ".cursor" / "mcp.json",
            ".cursor/mcp.json",
            "mcpServers",
            "Restart Cursor, or switch the server on in its MCP settings.",
            True,
        ),
        Host(
            HostName.VSCODE,
            "VS Code",
            apps / "Code" / "User" / "mcp.json",
            ".vscode/mcp.json",
            "servers",
            'Run "MCP: List Servers" in VS Code to start the server.',
            True,
        ),
    ]


def find(name: HostName) -> Host:
    return next(host for host in hosts() if host.name == name)


def program() -> list[str]:
    """How to start this taskorch from anywhere: the absolute path of its command, else of its Python."""
    script = Path(os.path.abspath(sys.executable)).with_name(NAME)
    if os.access(script, os.X_OK) and script.is_file():
        return [str(script)]
    return [os.path.abspath(sys.executable), "-m", NAME]


def is_temporary(path: str) -> bool:
    """Whether a program lies where it may be cleared away: a temporary folder, the cache of uv or pipx."""
    where = Path(path)
    if {".cache", "Caches", "archive-v0"} & set(where.parts):
        return True
    roots = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("UV_CACHE_DIR") or tempfile.gettempdir()]
    return any(where.is_relative_to(root) for root in roots)


def entry_of(document: Any, section: str) -> Mapping[str, Any] | None:
    """Our entry in a parsed file, if it is there and an object."""
    servers = _object(_object(document).get(section))
    found = servers.get(NAME)
    return _object(found) if isinstance(found, dict) else None


def own_arguments(entry: Mapping[str, Any]) -> list[str]:
    """What an entry gives to taskorch itself, behind the words that start it."""
    command, arguments = words(entry)[:1], words(entry)[1:]
    if command and os.path.basename(command[0]) == NAME:
        return arguments
    return arguments[arguments.index(NAME) + 1 :] if NAME in arguments else []


def words(entry: Mapping[str, Any]) -> list[str]:
    """Command and arguments of an entry; what is no string is left out."""
    arguments = entry.get("args")
    listed: list[Any] = cast(list[Any], arguments) if isinstance(arguments, list) else []
    return [word for word in (entry.get("command"), *listed) if isinstance(word, str)]


def read(path: Path) -> Any:
    """A host's file as the host understands it, None when it is not there. Raises OSError, ValueError."""
    try:
        return jsontext.lenient(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None


def is_this_one(started: list[str]) -> bool:
    """Whether these words start the taskorch that runs now: by its command, a link to it, or its Python."""
    ours = Path(os.path.abspath(sys.executable)).with_name(NAME)
    if os.path.basename(started[0]) == NAME:
        return os.path.realpath(started[0]) == os.path.realpath(ours)
    return started[1:3] == ["-m", NAME] and os.path.abspath(started[0]) == os.path.abspath(sys.executable)


def flaw(started: list[str]) -> str | None:
    """Why a host could not start these words, if it could not: it expands no `~`."""
    command = started[0]
    if not os.path.isabs(command):
        return None if shutil.which(command) else f"{command} is not found"
    if not os.path.exists(command):
        return f"{command} does not exist"
    return None if os.path.isfile(command) and os.access(command, os.X_OK) else f"{command} cannot be executed"


def _applications() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _object(value: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else {}
