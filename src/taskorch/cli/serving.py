"""Serving over stdin and stdout, and what every command needs: the settings, and a refusal in one line."""

import gc
import logging
import os
import sys
import tomllib
from collections.abc import Mapping
from typing import NoReturn

import anyio
from pydantic import ValidationError

from taskorch import logs
from taskorch.cli.exits import Exit
from taskorch.config import Settings, config_file, load_settings, unknown_keys, unknown_variables, where_to_mend
from taskorch.domain.errors import readable
from taskorch.leaving import leave
from taskorch.telemetry.context import leave_out_missing

HINT = """\
taskorch is an MCP server: a host (Claude Desktop, Claude Code, the MCP Inspector, ...) starts it and talks to it over
stdin, so there is nothing to type here.

  taskorch ls        tasks that agents have started (show, logs, wait, cancel, ...: see --help)
  taskorch demo      see it at work
  taskorch doctor    what may be wrong on this machine, and how to mend it
  taskorch install   name it in a host's configuration
  taskorch --help    options and settings

A host that `taskorch install` does not know takes this in its MCP configuration:

  {"mcpServers": {"taskorch": {"command": "taskorch"}}}
"""


def serve(flags: Mapping[str, object]) -> NoReturn:
    """Serve MCP over stdin and stdout, with these settings on top, and leave. `flags` as for `load_settings`."""
    settings = read_settings(flags)
    if sys.platform == "win32":
        refuse("taskorch does not run on Windows yet: use Linux, macOS or WSL.")
    if not (sys.stdin and sys.stdout):
        refuse("stdin and stdout must be open: MCP is spoken over them.")
    if sys.stdin.isatty():
        _end(HINT, Exit.USAGE)
    from taskorch.app import serve

    gc.freeze()  # no garbage will come of what imports made: walking that took some calls 60 ms
    gc.enable()
    leave(anyio.run(serve, settings))


def read_settings(flags: Mapping[str, object]) -> Settings:
    """The settings, and from here on logs as they say. What is wrong with them ends the process."""
    try:
        settings = load_settings(**flags)
    except ValidationError as error:
        refuse(f"a setting is wrong: {readable(error)} Set it {where_to_mend(error)}.")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        refuse(f"{config_file()} cannot be read: {error}")
    logs.start(settings.log_level, settings.log_format)
    log = logging.getLogger(__name__)
    for name in leave_out_missing():
        log.warning("the propagator %s of OTEL_PROPAGATORS is not installed and is left out", name)
    for name in unknown_variables(os.environ):
        log.warning("the variable %s means nothing to taskorch", name)
    for name in unknown_keys():
        log.warning("the key %s in %s means nothing to taskorch", name, config_file())
    return settings


def refuse(text: str, code: int = Exit.USAGE) -> NoReturn:
    """One readable line on stderr, and out."""
    _end(f"taskorch: {text}\n", code)


def _end(text: str, code: int) -> NoReturn:
    if sys.stderr:  # None when it was closed before we began
        sys.stderr.write(text)
    sys.exit(code)
