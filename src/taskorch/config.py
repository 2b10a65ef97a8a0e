"""Settings: flag, then environment (TASKORCH_…), then config.toml in the platform's config folder, then the default."""

import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_config_path, user_state_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from taskorch.domain import recipe
from taskorch.domain.errors import shown
from taskorch.domain.task import OnServerExit
from taskorch.work.policy import parts

PREFIX = "TASKORCH_"
TABLES = frozenset({"recipes"})  # what only config.toml can say
TOOLSETS = ("core", "worker", "board")
TOKEN = re.compile("[A-Za-z0-9._~-]{16,200}")  # what needs no quoting, in a header or an address
GIVEN_BY_US = {"TASKORCH_TASK_ID", "TASKORCH_ATTEMPT", "TASKORCH_IDEMPOTENCY_KEY", "TASKORCH_WITHIN"}  # no settings


def default_concurrency() -> int:
    """The number of CPUs this process may use, at least 2."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, cpus or 2)


def _absolute(path: Path) -> Path:
    """Hosts pass `~` on as it is, and a command's supervisor works in another folder than the server."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _file(path: Path) -> Path:
    if not os.path.isabs(whole := os.path.expanduser(path)):
        raise ValueError(f"{shown(str(path))} is a relative path; use an absolute one")
    return Path(whole)


def _folders(text: str) -> str:
    for folder in parts(text):
        if not os.path.isabs(os.path.expanduser(folder)):
            raise ValueError(f"{shown(folder)} is a relative path; use absolute ones, comma-separated")
    return text


def _table(value: Any) -> Any:
    """Of a variable, which is JSON. Hosts that start taskorch set variables, and no table of config.toml."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f'{shown(value)} is no JSON object; write {{"gpu": 2}}') from None


def _keys(limits: dict[str, int]) -> dict[str, int]:
    for key in limits:
        if not 1 <= len(key) <= 200:
            raise ValueError(f"{shown(key)} cannot be a concurrency_key, which has 1 to 200 characters")
    return limits


def _token(token: SecretStr) -> SecretStr:
    if not TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("must be 16 to 200 letters, digits or any of -._~; leave it out to have one made")
    return token


def _toolsets(text: str) -> str:
    for name in parts(text):
        if name not in TOOLSETS:
            raise ValueError(f"{shown(name)} is no toolset; use {' or '.join(TOOLSETS)}, comma-separated")
    return text


class Settings(BaseModel):
    """Each field is TASKORCH_ and its name in capitals, and a key of config.toml. TABLES are that alone."""

    model_config = ConfigDict(validate_default=True)

    state_dir: Annotated[Path, AfterValidator(_absolute), Field(description="database, output, locks")] = (
        user_state_path("taskorch")
    )
    concurrency: Annotated[int, Field(ge=1, le=256, description="slots in this server process")] = default_concurrency()
    allow_commands: Annotated[str, Field(description="programs that may run, comma-separated; * is all")] = ""
    allow_dirs: Annotated[
        str, AfterValidator(_folders), Field(description="folders that commands may run below, comma-separated")
    ] = ""
    pass_env: Annotated[str, Field(description="further variables that commands inherit, comma-separated")] = ""
    mcp_servers: Annotated[
        Annotated[Path, AfterValidator(_file)] | None,
        Field(description="JSON file of MCP servers whose tools tasks may call"),
    ] = None
    handlers: Annotated[str, Field(description="Python modules with handlers, comma-separated")] = ""
    toolsets: Annotated[
        str,
        AfterValidator(_toolsets),
        Field(description="core, worker for outside workers, board for hosts that show pages, comma-separated"),
    ] = "core"
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400, description="default limit of one attempt")] = 3600
    command_max_attempts: Annotated[int, Field(ge=1, le=100, description="default starts of a command")] = 1
    handler_max_attempts: Annotated[int, Field(ge=1, le=100, description="default starts of a handler")] = 3
    on_server_exit: Annotated[
        OnServerExit, Field(description="default: what commands do when the server goes away")
    ] = "survive"
    grace_seconds: Annotated[float, Field(ge=0, le=60, description="between TERM and KILL")] = 5
    wait_cap_seconds: Annotated[float, Field(ge=1, le=3600, description="longest wait of one call")] = 50
    keep_days: Annotated[float, Field(gt=0, description="how long completed and cancelled tasks are kept")] = 7
    keep_failed_days: Annotated[float, Field(gt=0, description="how long failed tasks are kept")] = 30
    output_quota_bytes: Annotated[int, Field(ge=1_048_576, description="all output; what ended first goes first")] = (
        1 << 30
    )
    max_live_tasks: Annotated[int, Field(ge=1, description="waiting and working tasks that are stored at most")] = (
        2_000_000
    )
    limits: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=1000)]],
        BeforeValidator(_table),
        AfterValidator(_keys),
        Field(description="tasks of a concurrency_key that work at once, as JSON; of others 1, or what * says"),
    ] = {}
    allow_network_state: Annotated[bool, Field(description="keep state on a network file system, at your own risk")] = (
        False
    )
    cleanup_interval_seconds: Annotated[float, Field(ge=1, description="how often old tasks are removed")] = 3600
    http_port: Annotated[int, Field(ge=0, le=65_535, description="where taskorch http listens; 0 is a free one")] = 8765
    http_token: Annotated[
        Annotated[SecretStr, AfterValidator(_token)] | None,
        Field(description="what clients of taskorch http must send; without it one is made and kept"),
    ] = None
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="what goes to stderr")] = (
        "WARNING"
    )
    log_format: Annotated[Literal["text", "json"], Field(description="how: for people, or an object a line")] = "text"
    recipes: Annotated[recipe.Recipes, Field(description="commands that the operator has written, by name")] = {}


def config_file() -> Path:
    return user_config_path("taskorch") / "config.toml"


def load_settings(**flags: Any) -> Settings:
    """The settings, with the given flags (None: not given) on top.

    Raises pydantic's ValidationError; for a file that cannot be read OSError, TOMLDecodeError, UnicodeDecodeError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    return Settings.model_validate({**_in_file(), **_in_environment(), **given})


def variables() -> set[str]:
    """The TASKORCH_ variables that are settings."""
    return {PREFIX + name.upper() for name in Settings.model_fields.keys() - TABLES}


def where_to_mend(error: ValidationError) -> str:
    """Where a setting that is wrong has its place, as the end of a sentence."""
    in_file = all(mistake["loc"][:1] and mistake["loc"][0] in TABLES for mistake in error.errors())
    return f"in {config_file()}" if in_file else f"by flag, by {PREFIX}… or in {config_file()}"


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """TASKORCH_ variables that mean nothing: misspelt, most likely."""
    known = variables() | GIVEN_BY_US
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def unknown_keys() -> list[str]:
    """Keys of config.toml that mean nothing. Raises like `load_settings`."""
    found = _in_file()
    return sorted([*(found.keys() - Settings.model_fields.keys()), *recipe.unknown_keys(found.get("recipes"))])


def _in_file() -> dict[str, Any]:
    file = config_file()
    return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}


def _in_environment() -> dict[str, str]:
    """An empty variable is not given."""
    names = Settings.model_fields.keys() - TABLES
    return {name: value for name in names if (value := os.environ.get(PREFIX + name.upper()))}
