"""Environments for what others wrote: made once in a cache, whole or not at all."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

NODE = "node@22"
INSTALL_SECONDS = 180


class Unavailable(Exception):
    """It cannot be installed here; the text says why."""


def run(*command: str, folder: Path | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)


def npm(cache: Path, *packages: str, oldest: int = 22) -> Path:
    """A folder whose `node_modules/.bin` has the packages' commands, and a `node` where the machine's is too old."""

    def fill(folder: Path) -> None:
        command = shutil.which("npm")
        if command is None:
            raise Unavailable("there is no npm on the PATH.")
        wanted = packages if own_node(oldest) else (*packages, NODE)
        quiet = ("--no-audit", "--no-fund", "--no-package-lock")
        _install(wanted, command, "install", "--prefix", str(folder), *quiet, *wanted)

    return _made(cache, packages, fill)


def venv(cache: Path, *packages: str, python: str = sys.executable) -> Path:
    """A virtual environment of that Python that has the packages."""

    def fill(folder: Path) -> None:
        _install(("a virtual environment",), python, "-m", "venv", str(folder))
        _install(packages, str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages)

    return _made(cache, packages, fill)


def own_node(oldest: int = 22) -> str | None:
    """The machine's node, if it is new enough."""
    node = shutil.which("node")
    found = re.match(r"v(\d+)", run(node, "--version").stdout) if node else None
    return node if found and int(found[1]) >= oldest else None


def _made(cache: Path, packages: tuple[str, ...], fill: Callable[[Path], None]) -> Path:
    """The packages' folder; filled beside its place, so that a run that was cut short leaves nothing half done."""
    folder = cache / re.sub(r"[^\w.]+", "-", "+".join(packages)).strip("-")
    if not folder.exists():
        made = cache / f"new-{os.getpid()}"
        made.mkdir(parents=True)
        try:
            fill(made)
            if not folder.exists():  # else another run was first
                made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _install(what: tuple[str, ...], *command: str) -> None:
    try:
        done = run(*command, seconds=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{Path(command[0]).name} took too long over {' and '.join(what)}.") from None
    if done.returncode:
        error = done.stderr[-500:]
        raise Unavailable(f"{Path(command[0]).name} could not install {' and '.join(what)}: {error}")
