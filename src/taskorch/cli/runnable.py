"""What may run here, as `taskorch doctor` looks at it: programs, folders, recipes, tools of other servers."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from taskorch.cli.check import FAIL, OK, WARN, Found
from taskorch.config import PREFIX, config_file
from taskorch.domain.errors import InvalidInput
from taskorch.domain.recipe import Recipe, hole
from taskorch.work.mcp_servers import Stdio, read_servers
from taskorch.work.policy import Policy
from taskorch.work.recipes import locate


def commands(allowed: str) -> Found:
    policy = Policy(allowed)
    if not policy.allows_any:
        return OK, f"no program may run; {PREFIX}ALLOW_COMMANDS names those that may", ""
    missing = [name for name in policy.names if name != "*" and shutil.which(name, path=policy.path) is None]
    if missing:
        return (
            WARN,
            f"{', '.join(missing)}: not found in PATH={policy.path}",
            f"Install it, or name its absolute path in {PREFIX}ALLOW_COMMANDS; a host's PATH may differ from this one.",
        )
    return OK, "every program may run" if "*" in policy.names else f"{', '.join(policy.names)} may run", ""


def command_dirs(allowed: str) -> Found:
    roots = Policy("", folders=allowed).roots
    missing = [root for root in roots if not os.path.isdir(root)]
    if missing:
        return WARN, f"{', '.join(missing)}: no such folder", f"Make it, or correct {PREFIX}ALLOW_DIRS."
    return OK, f"commands may run in or below {', '.join(roots)}" if roots else "commands may run in every folder", ""


def recipes(tables: Mapping[str, Recipe]) -> Found:
    """What each runs. Without its program the server does not start; without its folder only its tasks do not."""
    if not tables:
        return OK, f"none in {config_file()}", ""
    policy, runs, missing = Policy(""), list[str](), list[str]()
    for name, recipe in tables.items():
        try:
            runs.append(f"{name} runs {locate(name, recipe, policy)}")
        except InvalidInput as error:
            missing.append(str(error))
    if missing:
        mend = f"Correct {config_file()}: the server does not start so. A host's PATH may differ from this one."
        return FAIL, " ".join(missing), mend
    fixed = {name: recipe.cwd for name, recipe in tables.items() if recipe.cwd and not hole(recipe.cwd)}
    if lost := [f"{name} runs in {cwd}, which is no folder" for name, cwd in fixed.items() if not os.path.isdir(cwd)]:
        return WARN, "; ".join(lost), f"Make it, or correct {config_file()}."
    return OK, "; ".join(runs), ""


def mcp_servers(file: Path | None) -> Found:
    """The names of those in the file, and which of their programs are not there."""
    try:
        known = read_servers(file)
    except InvalidInput as error:
        return FAIL, str(error), "Correct the file: no server starts with it."
    if not known:
        return OK, f"no tasks on tools of other servers; {PREFIX}MCP_SERVERS names a file of servers", ""
    missing = [name for name, entry in known.items() if isinstance(entry, Stdio) and entry.found is None]
    if missing:
        return WARN, f"{', '.join(missing)}: the command is not found", f"Install it, or give its path in {file}."
    return OK, f"tasks may call tools of {', '.join(known)}", ""
