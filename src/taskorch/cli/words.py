"""Texts that were written for those who call tools, as one says them at a terminal."""

import re

from taskorch.calls.rewording import reworded

COMMANDS = {
    "create_tasks": "load",
    "create_task": "add",
    "list_tasks": "ls",
    "get_task_output": "logs",
    "get_task": "show",
    "update_task": "edit",
    "cancel_task": "cancel",
    "retry_task": "retry",
    "delete_task": "rm",
    "wait_for_tasks": "wait",
    "get_stats": "stats",
}
OPTIONS = {
    "confirm=true": "--yes",
    "paused=true": "--pause",
    "paused=false": "--resume",
    "max_attempts": "--max-attempts",
    "timeout_seconds": "--timeout",
    "delay_seconds": "--delay",
    "run_at": "--run-at",
    "expires_at": "--expires-at",
    "on_server_exit": "--on-server-exit",
    "depends_on": "--depends-on",
    "on_dependency_failure": "--on-dependency-failure",
    "concurrency_key": "--concurrency-key",
    "dedupe_key": "--dedupe-key",
    "expected_version": "--expected-version",
    "created_after": "--since",
    "created_before": "--until",
    "time_zone": "--time-zone",
    "every_seconds": "--every",
}
PEOPLE = {
    "Ask the user to set": "Set",
    "ask the user to set": "set",
    "Tell the user.": "",
    "and to restart": "and restart",
}

_OPTION = re.compile(rf"(?<![\w.-])({'|'.join(OPTIONS)})(?!\w)")
_PEOPLE = re.compile("|".join(map(re.escape, PEOPLE)))


def told(text: str, by_options: bool = True) -> str:
    """The same with our commands and options in the place of tools and their arguments.

    `by_options`: whether arguments were given so; in a file they are called what they are called in a tool.
    """
    text = reworded(text, COMMANDS, "run", lambda tool: f"`taskorch {COMMANDS[tool]}`", _command)
    if by_options:
        text = _OPTION.sub(lambda found: OPTIONS[found[1]], text)
    return _PEOPLE.sub(lambda found: PEOPLE[found[0]], text).rstrip()


def _command(tool: str, task: str | None, arguments: str) -> str:
    """`wait_for_tasks(task_ids=["t1"], timeout_seconds=50)` is `taskorch wait t1`."""
    option = next((f" {said}" for word, said in OPTIONS.items() if "=" in word and word in arguments), "")
    return f"taskorch {COMMANDS[tool]}{f' {task}' if task else ''}{option}"
