"""What models write instead of the contract's arguments, understood where only one thing can be meant.

The published schemas stay closed and name none of this. What could mean two things is answered with the right name.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, cast

from taskorch.errors import SHOWN_CHARACTERS, InvalidInput, shown

Raw = dict[str, Any]

RENAMED = {
    "id": ("task_id", "task_ids"),
    "ids": ("task_ids",),
    "task": ("task_id",),
    "tasks": ("task_ids",),
    "task_id": ("task_ids",),
    "state": ("status",),
    "tags": ("labels",),
    "title": ("name",),
    "type": ("kind",),
    "idempotency_key": ("dedupe_key",),
}
OBJECTS = ("payload",)
ARRAYS = ("task_ids", "labels")
RETRIES = ("max_retries", "retries", "retry_count")
PROGRAM = ("argv", "command", "cmd")  # the names that models give an argument list
COMMAND = ("cwd", "env", "stdin")  # what else a command's payload holds
SHELL = frozenset("|&;<>()$`\\\"'*?#~\n")


def understood(raw: Mapping[str, Any], known: Collection[str]) -> Raw:
    """The arguments of a call by the names that its tool has (`known`). Raises InvalidInput for what is ambiguous."""
    arguments: Raw = {}
    for name, value in raw.items():
        right = _right_name(name, known)
        if right != name and (right in raw or right in arguments):
            raise InvalidInput(f"{shown(name)} and {right} are the same argument; give {right} alone.")
        arguments[right] = value
    _refuse_retries(arguments, known)
    for name in OBJECTS:
        _parse_json(arguments, name, dict)
    for name in ARRAYS:
        _parse_json(arguments, name, list)
        if isinstance(value := arguments.get(name), str):
            arguments[name] = [value]
    if "payload" in known and "kind" in known:
        _gather_command(arguments)
    return arguments


def _right_name(name: str, known: Collection[str]) -> str:
    if name in known:
        return name
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return next((right for right in (snake, *RENAMED.get(snake, ())) if right in known), name)


def _refuse_retries(arguments: Raw, known: Collection[str]) -> None:
    """`max_retries` counts what comes after the first start, in most systems; whoever says so must choose."""
    for name in RETRIES:
        if name in arguments and "max_attempts" in known:
            value = arguments[name]
            right = f"; for {value} retries write max_attempts={value + 1}" if type(value) is int else ""
            raise InvalidInput(f"Unknown argument {name!r}. max_attempts counts all starts, the first included{right}.")


def _parse_json(arguments: Raw, name: str, wanted: type) -> None:
    """Some hosts send objects and arrays as JSON text."""
    value = arguments.get(name)
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return
        if isinstance(parsed, wanted):
            arguments[name] = parsed


def _gather_command(arguments: Raw) -> None:
    """Bring a command that was given beside its payload, or under another name in it, into payload.argv."""
    payload = arguments.get("payload")
    if arguments.get("kind", "command") != "command" or not (payload is None or isinstance(payload, dict)):
        return
    given = cast(Raw, payload or {})
    beside = {name: arguments.pop(name) for name in (*PROGRAM, "args", *COMMAND) if name in arguments}
    if twice := beside.keys() & given.keys():
        raise InvalidInput(f"{min(twice)} stands both beside payload and in it; give it in payload alone.")
    if found := _with_argv({**given, **beside}):
        arguments["payload"] = found


def _with_argv(payload: Raw) -> Raw:
    programs = [name for name in PROGRAM if name in payload]
    if len(programs) != 1:
        return payload
    program, rest = payload[programs[0]], payload.get("args")
    if isinstance(program, str) and isinstance(rest, list):
        argv: Any = [program, *cast(list[Any], rest)]
    elif isinstance(program, str) and program.split() not in ([], [program]):
        raise InvalidInput(_as_list(program))
    elif isinstance(program, str):
        argv = [program]
    elif rest is not None:
        return payload
    else:
        argv = program
    return {name: value for name, value in payload.items() if name not in (programs[0], "args")} | {"argv": argv}


def _as_list(line: str) -> str:
    example, when = ["git", "fetch"], "Give a list"
    if SHELL.isdisjoint(line) and len(line) <= SHOWN_CHARACTERS:
        example = line.split()
    elif len(line) <= SHOWN_CHARACTERS:
        example, when = ["bash", "-c", line], "Give a list; where a shell is needed, and the user allows one"
    payload = json.dumps({"argv": example}, ensure_ascii=False)
    return f"The command {shown(line)} is one string, and no shell reads it. {when}: payload={payload}."
