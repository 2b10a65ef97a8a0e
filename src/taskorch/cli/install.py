"""`taskorch install`: name this taskorch in a host's configuration file, and change nothing else in it."""

import difflib
import json
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import typer

from taskorch.cli import hosts, jsontext
from taskorch.cli.hosts import Host, HostName
from taskorch.config import PREFIX, Settings, unknown_variables
from taskorch.domain.errors import did_you_mean, shown
from taskorch.storage.place import utc
from taskorch.work.policy import parts

FAILED = 1
USAGE = 2
ALLOW, TOOLSETS = f"{PREFIX}ALLOW_COMMANDS", f"{PREFIX}TOOLSETS"
REMOTE = ("url", "headers")  # of an entry that names a server elsewhere
LONG_LINE = 300  # a file on one line is shown laid out, to tell what changes in it

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Unusable(Exception):
    """The file is left as it is; the text says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done. `before`: the bytes that were read, None without a file; `after` equals it: nothing to do."""

    host: Host
    path: Path
    entry: Mapping[str, Any] | None  # None: it is removed
    before: bytes | None
    after: bytes
    problem: str = ""  # why the file cannot be changed

    @property
    def changes(self) -> bool:
        return self.after != (self.before or b"")


def environment(assignments: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as variables. Raises ValueError."""
    found: dict[str, str] = {}
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise ValueError(f"--env {shown(word)} is not KEY=VALUE")
        found[name] = value
    if unknown := unknown_variables(found):
        known = [PREFIX + name.upper() for name in Settings.model_fields]
        meant = did_you_mean(unknown[0], known)
        raise ValueError(f"{unknown[0]} is no setting.{meant} `taskorch config show` lists all.")
    return found


def target(name: HostName, project: Path | None) -> tuple[Host, Path]:
    """The host, and its file: for all projects, or the one in a project's folder. Raises ValueError."""
    host = hosts.find(name)
    if project is None:
        return host, host.user
    if host.project is None:
        raise ValueError(f"{host.title} has no file for a project; leave --project out")
    return host, project / host.project


def entry(host: Host, present: Mapping[str, Any], variables: Mapping[str, str], allowed: Sequence[str]) -> Any:
    """Our entry: how to start this taskorch, with the board where the host can show it.

    What else stands in the present one is kept: variables, options, more.
    """
    command, *arguments = hosts.program()
    typed = {"type": "stdio"} if host.name in (HostName.CLAUDE_CODE, HostName.VSCODE) else {}
    made = typed | dict(present) | {"command": command, "args": arguments + hosts.own_arguments(present)}
    made = {name: value for name, value in made.items() if name not in (*REMOTE, *([] if made["args"] else ["args"]))}
    if "type" in made:
        made["type"] = "stdio"
    kept = present.get("env")
    env = {TOOLSETS: "core,board"} if host.shows_pages else {}
    env |= cast(Mapping[str, Any], kept) if isinstance(kept, dict) else {}
    env |= variables
    if allowed:
        named = parts(str(env.get(ALLOW) or ""))
        env[ALLOW] = ",".join(dict.fromkeys(filter(None, [*named, *allowed])))
    return made | ({"env": env} if env else {})


def plan(
    name: HostName, project: Path | None, variables: Mapping[str, str], allowed: Sequence[str], remove: bool = False
) -> Plan:
    """Look at the host's file and work out its new content; writes nothing. Raises ValueError."""
    host, path = target(name, project)
    path = Path(os.path.realpath(path))  # a link stays a link
    before, made = None, None
    try:
        before = _read(path)
        text = (before or b"").decode("utf-8")
        present = hosts.entry_of(jsontext.lenient(text), host.section)  # with comments it may be right already
        made = None if remove else entry(host, present or {}, variables, allowed)
        return Plan(host, path, made, before, _changed(text, host.section, present, made).encode())
    except (OSError, ValueError) as error:
        why = f"{path} is left as it is: {_reason(error)}."
        made = made or (None if remove else entry(host, {}, variables, allowed))
        return Plan(host, path, made, before, before or b"", why)


def carry_out(plan: Plan, yes: bool, only_print: bool) -> int:
    """Show the change, ask, and make it; the exit code. Only with `yes` is it made without a person to ask."""
    for warning in _warnings(plan):
        typer.echo(f"taskorch: {warning}", err=True)
    if only_print:
        typer.echo(f"This belongs in {plan.path}:", err=True)
        typer.echo(shape(plan))
        return 0
    if plan.problem:
        typer.echo(f"taskorch: {plan.problem} {_by_hand(plan)}", err=True)
        if plan.entry is not None:
            typer.echo(shape(plan))
        return FAILED
    if not plan.changes:
        what = "no taskorch" if plan.entry is None else "this taskorch already"
        typer.echo(f"Nothing to change: {plan.path} names {what}.")
        return 0
    typer.echo("\n".join(difference(plan)))
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        typer.echo("taskorch: nothing was written, as there is nobody to ask. Add --yes to write it.", err=True)
        return USAGE
    if not yes and not typer.confirm(f"Write this to {plan.path}?"):
        typer.echo("Nothing was written.")
        return FAILED
    return _written(plan)


def shape(plan: Plan) -> str:
    """The entry as one would paste it into an empty file."""
    return json.dumps({plan.host.section: {hosts.NAME: plan.entry}}, indent=2, ensure_ascii=False)


def difference(plan: Plan) -> Iterator[str]:
    """The lines of a unified diff."""
    old, new = (_lines(text) for text in (plan.before or b"", plan.after))
    name = str(plan.path)
    yield from difflib.unified_diff(old, new, name if plan.before is not None else os.devnull, name, lineterm="")


def write(plan: Plan) -> Path | None:
    """Put the new content in place at one stroke; the copy of the old one, if any. Raises OSError, Unusable."""
    if plan.before is not None and not os.access(plan.path, os.W_OK):
        raise Unusable(f"{plan.path} is write-protected and left as it is.")
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    copy = _back_up(plan) if plan.before is not None else None
    handle, name = tempfile.mkstemp(dir=plan.path.parent, prefix=f".{plan.path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(plan.after)
            file.flush()
            if plan.before is not None:
                _like(file.fileno(), plan.path)
            os.fsync(file.fileno())
        if _read(plan.path) != plan.before:  # hosts write their files too
            raise Unusable(f"{plan.path} was changed meanwhile and is left as it is. Run this again.")
        os.replace(name, plan.path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return copy


def _written(plan: Plan) -> int:
    try:
        copy = write(plan)
    except Unusable as error:
        typer.echo(f"taskorch: {error}", err=True)
        return FAILED
    except OSError as error:
        typer.echo(f"taskorch: {plan.path} could not be written and is left as it is: {error.strerror}.", err=True)
        return FAILED
    typer.echo(f"Wrote {plan.path}." + (f" What it was before is kept in {copy}." if copy else ""))
    typer.echo(plan.host.after if plan.entry is not None else f"{plan.host.title} forgets it when it starts anew.")
    return 0


def _warnings(plan: Plan) -> Iterator[str]:
    started = hosts.program()[0]
    if plan.entry is not None and hosts.is_temporary(started):
        for_good = "Install taskorch for good (`uv tool install`, `pipx install`), then run this again with it."
        yield f"{started} lies where it may be cleared away. {for_good}"
    if plan.path == Path(os.path.realpath(plan.host.user)) and not plan.path.parent.exists():
        yield f"{plan.path.parent} is not there: is {plan.host.title} installed?"


def _by_hand(plan: Plan) -> str:
    if plan.entry is None:
        return f"Take {plan.host.section}.{hosts.NAME} out by hand."
    return "Correct it and run this again, or put this entry in by hand:"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _changed(text: str, section: str, present: Mapping[str, Any] | None, made: Mapping[str, Any] | None) -> str:
    if made is None:
        return jsontext.without_member(text, section, hosts.NAME) if hosts.NAME in text else text
    return text if made == present else jsontext.with_member(text, section, hosts.NAME, made)


def _reason(error: OSError | ValueError) -> str:
    match error:
        case OSError():
            return error.strerror or str(error)
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case jsontext.NotPlain():
            return str(error)
        case _:
            return f"it is not JSON: {error}"


def _back_up(plan: Plan) -> Path:
    """A copy beside the file, as private as it; never over another one."""
    moment = time.time()
    while os.path.lexists(copy := plan.path.with_name(f"{plan.path.name}.{utc(moment)}.bak")):
        moment += 1
    with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(plan.before or b"")
        _like(file.fileno(), plan.path)
    return copy


def _like(handle: int, path: Path) -> None:
    """Give an open file the rights and, as root, the owner of another."""
    with suppress(FileNotFoundError):
        there = path.stat()
        os.fchmod(handle, stat.S_IMODE(there.st_mode))
        if os.geteuid() == 0:
            os.fchown(handle, there.st_uid, there.st_gid)


def _lines(content: bytes) -> list[str]:
    lines = content.decode().splitlines()
    if all(len(line) <= LONG_LINE for line in lines):
        return lines
    return json.dumps(json.loads(content), indent=2, ensure_ascii=False).splitlines()
