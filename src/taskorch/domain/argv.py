"""A command's payload as models write it: understood where it can mean one thing only.

No shell reads a command, so a line is never split for the caller: it is shown as the list to write.
"""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any, cast

from taskorch.domain.errors import InvalidInput, shown

Raw = dict[str, Any]

PROGRAM = ("argv", "command", "cmd", "program", "executable")  # the names that models give an argument list
LINE = ("script", "shell", "command_line", "commandline", "bash")  # and a line for a shell
BESIDE = ("cwd", "env", "stdin")  # what else a command's payload holds
RENAMED = {
    "working_directory": "cwd",
    "working_dir": "cwd",
    "workdir": "cwd",
    "environment": "env",
    "env_vars": "env",
    "arguments": "args",
}
NAMES = (*PROGRAM, *LINE, "args", *BESIDE, *RENAMED)
SHELL_KINDS = ("shell", "bash", "sh", "zsh", "cmd", "script", "process", "subprocess", "exec", "program", "cli", "run")
LINE_CHARACTERS = 120  # of a line that an error repeats as a list
SHELL = frozenset("|&;<>()$`\\\"'*?#~\n")
QUOTED = re.compile("""'[^']*'|"[^"$`\\\\]*\"""")  # what is the same to a shell and to shlex
SETS = re.compile("([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
MOVES = re.compile(r"cd (/[^\s&]*) && (.+)", re.DOTALL)


def as_payload(given: Any) -> Any:
    """What stands where a command's payload belongs, as an object where that is plain."""
    given = parsed(given, list)
    if isinstance(given, list):
        words = cast(list[Any], given)
        return {"argv": words} if words and all(isinstance(word, str) for word in words) else words
    if isinstance(given, str) and given.strip() and given.lstrip()[0] not in "{[":
        return {"command": given}
    payload = given
    while isinstance(payload, dict) and list(cast(Raw, payload)) == ["payload"]:
        payload = cast(Raw, payload)["payload"]
    return cast(Any, payload)


def with_argv(payload: Raw) -> Raw:
    """The payload with its program and arguments in `argv`. Raises InvalidInput for a line; leaves what is neither."""
    given = {name: value for name, value in payload.items() if value is not None or name not in NAMES}
    payload = {_right_name(name, given): value for name, value in given.items()}
    payload |= {"env": parsed(payload["env"], dict)} if "env" in payload else {}
    programs = [name for name in PROGRAM if name in payload]
    if not programs and (line := next((payload[name] for name in LINE if isinstance(payload.get(name), str)), "")):
        raise InvalidInput(as_list(line))
    if len(programs) != 1:
        return payload
    program, rest = parsed(payload[programs[0]], list), parsed(payload.get("args"), list)
    if isinstance(program, str) and isinstance(rest, str | list | None):
        program, rest = _words(program, cast(str | list[Any] | None, rest)), None
    if rest is not None:
        return payload
    return {name: value for name, value in payload.items() if name not in (programs[0], "args")} | {"argv": program}


def plain(text: str) -> str:
    """The text, if a program can be given it. Raises ValueError: NUL would end it, and a surrogate is no character."""
    if found := re.search("[\x00\ud800-\udfff]", text):
        raise ValueError(f"holds the character {found[0]!a}, which no program can be given")
    return text


def variables(value: Any) -> Any:
    """The value, if it can be an environment. Raises ValueError that shows no values: they may be secrets."""
    if not isinstance(value, dict):
        raise ValueError("must be an object of names and strings")
    for name, text in cast(dict[str, Any], value).items():
        if not isinstance(text, str):
            raise ValueError(f"{shown(name)} must be a string")
    return cast(Any, value)


def as_list(line: str, rest: Sequence[str] = ()) -> str:
    """A sentence that refuses a command line, with the call to make instead."""
    payload, when = {"argv": ["git", "fetch"]}, "Give a list"
    if len(line) <= LINE_CHARACTERS:
        payload = _as_payload(line, rest)
        if payload["argv"][:2] == ["bash", "-c"]:
            when += "; where a shell is needed, and the user allows one"
    written = json.dumps(payload, ensure_ascii=False)
    return f"The command {shown(line)} is one string, and no shell reads it. {when}: payload={written}."


def is_line(program: str) -> bool:
    """Whether a program's name is more than one word."""
    return program.split() not in ([], [program])


def _right_name(name: str, taken: Collection[str]) -> str:
    right = RENAMED.get(name, name)
    return name if right in taken else right


def parsed(value: Any, wanted: type) -> Any:
    """Some hosts send arrays and objects as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, wanted) else value
    return value


def _words(program: str, rest: str | list[Any] | None) -> list[Any]:
    if isinstance(rest, str):
        if rest and (is_line(rest) or not SHELL.isdisjoint(rest)):
            raise InvalidInput(as_list(f"{program} {rest}"))
        rest = [rest] if rest.strip() else []
    if is_line(program) and not (program.startswith("/") and rest):
        raise InvalidInput(as_list(program, [str(word) for word in rest or []]))
    return [program, *(rest or [])]


def _as_payload(line: str, rest: Sequence[str]) -> Raw:
    if moves := MOVES.fullmatch(line.strip()):
        inner = _as_payload(moves[2], rest)
        if inner["argv"][:2] != ["bash", "-c"]:
            return inner | {"cwd": moves[1]}
    words = _split(line)
    env: dict[str, str] = {}
    while words and (sets := SETS.fullmatch(words[0])):
        env[sets[1]] = sets[2]
        words = words[1:]
    if not words:
        return {"argv": ["bash", "-c", " ".join([line, *rest])]}
    return {"argv": [*words, *rest]} | ({"env": env} if env else {})


def _split(line: str) -> list[str]:
    """Its words, where a shell would read the same ones; none where it takes a shell."""
    if not SHELL.isdisjoint(QUOTED.sub("", line)):
        return []
    try:
        return shlex.split(line)
    except ValueError:
        return []
