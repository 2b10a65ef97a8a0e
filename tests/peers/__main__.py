"""Clients that others wrote, each in an environment of its own, against the installed server over stdio.

python -m tests.peers [name ...]
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from platformdirs import user_cache_path

from .environments import Unavailable, npm, venv
from .pins import ERAS, PEERS, Peer

HERE = Path(__file__).parent
SERVER = Path(sys.executable).with_name("taskorch")
SECONDS = 180


@dataclass
class Run:
    """What a peer's program said: what it negotiated, and what it has seen to work."""

    era: str = "-"
    shown: list[str] = field(default_factory=list[str])
    wrong: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=(__doc__ or "").splitlines()[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names)}; default: all")
    cache = user_cache_path("taskorch") / "peers"
    parser.add_argument("--cache", type=Path, default=cache, help="where environments are kept (%(default)s)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    if not SERVER.exists():
        parser.error(f"{SERVER} is not there; run this with the Python that taskorch is installed for")
    row("peer", "version", "era", "what ran", "result")
    row(*["---"] * 5)
    chosen = [peer for peer in PEERS if peer.name in (options.names or names)]
    failures = [
        wrong for peer in chosen for mode in peer.modes if (wrong := failure(peer, mode, options.cache.resolve()))
    ]
    print("", *failures, sep="\n", end="", file=sys.stderr)
    return 1 if failures else 0


def failure(peer: Peer, mode: str, cache: Path) -> str:
    """Run a peer in one mode and print its row; what went wrong."""
    began = time.monotonic()
    try:
        found = ran(peer, mode, cache)
    except Unavailable as error:
        found = Run(wrong=str(error))
    result = "FAILED" if found.wrong else f"passed in {time.monotonic() - began:.0f} s"
    row(peer.name, packages(peer), found.era, "; ".join(found.shown) or "nothing", result)
    return f"{peer.name} ({mode}): {found.wrong}\n" if found.wrong else ""


def ran(peer: Peer, mode: str, cache: Path) -> Run:
    """What the peer's program showed, against a server with a state folder of its own."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        variables = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TASKORCH_STATE_DIR": str(folder / "state"),
            "TASKORCH_ALLOW_COMMANDS": "sh",
        }
        command, path = started(peer, cache, folder)
        variables["PATH"] = os.pathsep.join([*path, os.environ["PATH"]])
        output = folder / "output"  # a file, since what a peer leaves behind would hold a pipe open
        code = ended([*command, str(SERVER), mode], variables, output)
        return judged(output.read_text("utf-8", "replace"), code, ERAS[mode])


def started(peer: Peer, cache: Path, folder: Path) -> tuple[list[str], list[str]]:
    """What starts the peer's program, and folders that its PATH begins with."""
    program = HERE / peer.program
    if not peer.npm:
        python = venv(cache, *peer.packages) / "bin" / "python" if peer.packages else sys.executable
        return [str(python), str(program)], []
    installed = npm(cache, *peer.packages) / "node_modules"
    path = [str(installed / ".bin")]
    if program.suffix == ".py":
        return [sys.executable, str(program)], path
    for module in HERE.glob("*.mjs"):  # imports are looked up from where the module is
        shutil.copy(module, folder)
    (folder / "node_modules").symlink_to(installed)
    return ["node", str(folder / peer.program)], path


def ended(command: list[str], variables: dict[str, str], output: Path) -> int | None:
    """How the program ended; None: it had to be killed, with all it started."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def judged(said: str, code: int | None, era: str) -> Run:
    lines = said.splitlines()
    found = Run(shown=[line[3:] for line in lines if line.startswith("ok ")])
    found.era = next((line[4:] for line in lines if line.startswith("era ")), "-")
    if code is None:
        found.wrong = f"took more than {SECONDS} s:\n{said[-2000:]}"
    elif code or lines[-1:] != ["end"]:
        found.wrong = f"exit code {code}:\n{said[-2000:]}"
    elif found.era != era:
        found.wrong = f"negotiated {found.era} instead of {era}"
    return found


def packages(peer: Peer) -> str:
    return ", ".join(peer.packages) or f"mcp=={version('mcp')}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
