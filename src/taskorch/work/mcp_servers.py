"""The other MCP servers whose tools tasks may call: their names and how each is reached, as the operator's file says.

The file has the form that hosts share: {"mcpServers": {"files": {"command": "npx", "args": [...], "env": {...}}}}.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from taskorch.domain.argv import is_line, variables
from taskorch.domain.errors import InvalidInput, cut, did_you_mean, readable, shown
from taskorch.domain.task import HIDDEN
from taskorch.work.environment import inherited

SETTING = "TASKORCH_MCP_SERVERS"
WITHIN = "TASKORCH_WITHIN"  # tells a server that we start which state folders those above it use
SECRET_CHARACTERS = 4  # shorter values are no secrets, and would be found everywhere
HTTP = ("http", "streamable-http", "streamableHttp")  # how hosts spell it
VARIABLE = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")  # ${NAME}, ${NAME:-default}


def _program(text: str) -> str:
    path = os.path.expanduser(text)
    if is_line(path) and not os.path.exists(path):
        raise ValueError(f"{shown(text)} is a line; name the program alone and put the rest into args")
    return path


def _folder(text: str) -> str:
    if not os.path.isabs(path := os.path.expanduser(text)):
        raise ValueError(f"{shown(text)} is a relative path; use an absolute one")
    return path


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"{shown(text)} is no address; it begins with http:// or https://")
    return text


Secrets = Annotated[dict[str, str], BeforeValidator(variables), Field(repr=False)]


class Server(BaseModel):
    """What every entry may say: which of its tools tasks may call; `*` is all."""

    tools: list[str] = ["*"]

    def allows(self, tool: str) -> bool:
        return "*" in self.tools or tool in self.tools


class Stdio(Server):
    """A server that is a program of ours, spoken to over its stdin and stdout."""

    command: Annotated[str, Field(min_length=1), AfterValidator(_program)]
    args: list[str] = []
    env: Secrets = {}
    cwd: Annotated[str, AfterValidator(_folder)] | None = None

    def environment(self) -> dict[str, str]:
        """What the program finds in its environment, WITHIN left out."""
        return inherited() | self.env

    @property
    def found(self) -> str | None:
        """The program's path, None if there is none."""
        return shutil.which(self.command, path=self.environment().get("PATH", os.defpath))

    def hide(self, text: str) -> str:
        """A text without the values of the entry's variables."""
        return _without(self.env.values(), text)


class Http(Server):
    """A server that runs elsewhere, at an address (streamable HTTP)."""

    url: Annotated[str, AfterValidator(_url), Field(repr=False)]
    headers: Secrets = {}

    def hide(self, text: str) -> str:
        """A text without the values of the entry's headers, and without its address: that may hold a key."""
        return _without([self.url, *self.headers.values()], text)


Entry = Stdio | Http


def read_servers(path: Path | None) -> dict[str, Entry]:
    """The servers that the file names, none without a file. Raises InvalidInput with one line that says what is wrong.

    `${NAME}` and `${NAME:-default}` stand for variables of this process. Entries with `"disabled": true` are left out,
    and so is what other programs keep in such a file.
    """
    if path is None:
        return {}
    where = f"{SETTING}={path}"
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInput(f"{where} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} is no JSON: {error}.") from None
    listed = cast(dict[str, Any], content).get("mcpServers") if isinstance(content, dict) else None
    if not isinstance(listed, dict):
        raise InvalidInput(f'{where} has no object mcpServers; write {{"mcpServers": {{"files": {{"command": …}}}}}}.')
    try:
        entries = cast(dict[str, Any], listed).items()
        return {name: _entry(f"mcpServers.{name}", raw) for name, raw in entries if not _disabled(raw)}
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def refuse_own(state: Path, environment: Mapping[str, str]) -> None:
    """Raise InvalidInput when this server was started, as somebody's tools, by one on the same state folder.

    It would run that one's tasks, start another server for them, and so on without end.
    """
    if os.path.realpath(state) in environment.get(WITHIN, "").split(os.pathsep):
        raise InvalidInput(
            f"the state folder {state} is that of the taskorch that starts this one as a server of {SETTING}. "
            "Give the entry a TASKORCH_STATE_DIR of its own in its env, or take it out."
        )


def within(state: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable that lets a server that we start know of our state folder."""
    return {WITHIN: os.pathsep.join(filter(None, [environment.get(WITHIN), os.path.realpath(state)]))}


def _disabled(raw: Any) -> bool:
    return isinstance(raw, dict) and cast(dict[str, Any], raw).get("disabled") is True


def _entry(where: str, raw: Any) -> Entry:
    if not isinstance(raw, dict):
        raise InvalidInput(f"{cut(where)} must be an object with a command or a url.")
    given = cast(dict[str, Any], raw)
    kind = given.get("type", "http" if "url" in given else "stdio")
    if kind != "stdio" and kind not in HTTP:
        raise InvalidInput(f"{cut(where)}.type {shown(kind)} is not supported; use 'stdio' or 'http'.")
    model = Stdio if kind == "stdio" else Http
    known = [*model.model_fields]
    for name in sorted(given.keys() - {*known, "type"}):
        if near := did_you_mean(name, known):
            raise InvalidInput(f"{cut(where)}.{cut(name)} means nothing.{near}")
    try:
        return model.model_validate({name: _expanded(where, given[name]) for name in known if name in given})
    except ValidationError as error:
        raise InvalidInput(readable(error, where, known)) from None


def _expanded(where: str, value: Any) -> Any:
    """A value with what `${NAME}` in its texts stands for."""
    match value:
        case str():
            return VARIABLE.sub(lambda match: _variable(where, match), value)
        case list():
            return [_expanded(where, item) for item in cast(list[Any], value)]
        case dict():
            return {name: _expanded(where, item) for name, item in cast(dict[str, Any], value).items()}
        case _:
            return value


def _variable(where: str, match: re.Match[str]) -> str:
    value = os.environ.get(match[1]) or match[2]
    if value is None:
        raise InvalidInput(
            f"{cut(where)} names {cut(match[0])}, which is not set. Set it in the environment of taskorch, or write "
            f"${{{cut(match[1])}:-default}}."
        )
    return value


def _without(secrets: Any, text: str) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SECRET_CHARACTERS:
            text = text.replace(secret, HIDDEN)
    return text
