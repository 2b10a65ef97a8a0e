"""The command `config show`: each setting, its value, and where it comes from."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr

from taskorch.config import PREFIX, TABLES, Settings, config_file

FLAG, ENVIRONMENT, FILE, DEFAULT = "flag", "environment", "file", "default"


def shown(settings: Settings, flags: Mapping[str, object]) -> dict[str, Any]:
    """Of each setting its value and its source; of tables in config.toml the names alone: they may hold secrets."""
    given = {name for name, value in os.environ.items() if value}
    written = _written()

    def source(name: str) -> str:
        if flags.get(name) is not None:
            return FLAG
        if name not in TABLES and PREFIX + name.upper() in {known.upper() for known in given}:
            return ENVIRONMENT
        return FILE if name in written else DEFAULT

    found = {
        name: {"value": _value(name, getattr(settings, name)), "source": source(name)} for name in Settings.model_fields
    }
    return {"config_file": str(config_file()), "config_file_exists": config_file().exists(), "settings": found}


def lines(facts: Mapping[str, Any]) -> list[str]:
    """A line each: name, value, source."""
    there = "" if facts["config_file_exists"] else " (there is none)"
    rows = [(name, _text(found["value"]), found["source"]) for name, found in facts["settings"].items()]
    width, wide = (max(len(row[at]) for row in rows) for at in (0, 1))
    return [f"{name:<{width}}  {value:<{min(wide, 40)}}  {source}" for name, value, source in rows] + [
        f"file: {facts['config_file']}{there}"
    ]


def _written() -> set[str]:
    try:
        return set(tomllib.loads(config_file().read_text("utf-8")))
    except FileNotFoundError:
        return set()


def _value(name: str, value: Any) -> Any:
    if name in TABLES:
        return sorted(value)
    return str(value) if isinstance(value, Path | SecretStr) else value  # of a secret that is asterisks


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(cast(list[str], value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={most}" for key, most in cast(dict[str, int], value).items()) or "-"
    return "-" if value is None or value == "" else str(value)
