"""From the start of a process to its first `tools/list`, and what the server needs while it does nothing.

    python -m benchmarks.startup [--rounds 15] [--idle-seconds 30] [--tasks 10000] [--folder DIR]

The measure is `empty_server.py`, an empty server of the SDK, started in the same way. Rounds are interleaved; the
medians are printed, and their ratios to that server's in the same round. A client sends the 2025-11-25 handshake and
`tools/list` at once and waits for the answer. "idle" is measured in all of them at the same time, on Linux alone:
memory, and of all threads processor time and wake-ups (voluntary context switches).
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import anyio

from benchmarks.table import Row, markdown, row
from taskorch.domain.task import Completed, NewTask
from taskorch.storage.database import open_database
from taskorch.storage.store import Store

ROOT = Path(__file__).parents[1]
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "startup", "version": "0"}}
REQUESTS = b"".join(
    json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
    for message in (
        {"id": 1, "method": "initialize", "params": HELLO},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list"},
    )
)
EMPTY = [sys.executable, "-m", "benchmarks.empty_server"]
TASKORCH = [sys.executable, "-m", "taskorch"]
SETTLE_SECONDS = 5.0  # before a server counts as idle
BATCH = 500


def measure(rounds: int, folder: Path, tasks: int = 10_000, idle_seconds: float = 30.0) -> list[Row]:
    """Both of what is measured here; on other systems than Linux the start alone. `folder`: on which disk."""
    rows = measure_start(rounds, folder, tasks)
    return rows + measure_idle(idle_seconds, folder, tasks) if sys.platform == "linux" else rows


def measure_start(rounds: int, parent: Path, tasks: int) -> list[Row]:
    """Milliseconds to the first `tools/list`: with a new state folder, one that exists, one with ended tasks."""
    with _folders(parent, tasks) as (used, full):
        servers = {"empty server of the SDK": (EMPTY, used), "existing folder": (TASKORCH, used)}
        servers |= {f"{tasks:,} ended tasks": (TASKORCH, full)}
        took: list[dict[str, float]] = []
        for _ in range(rounds):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            took.append({"start, python -c pass": 1000 * (time.perf_counter() - began)})
            for name, (command, folder) in servers.items():
                took[-1][f"start, {name}"] = 1000 * _start(command, folder)
            with tempfile.TemporaryDirectory(dir=parent) as folder:
                took[-1]["start, new folder"] = 1000 * _start(TASKORCH, Path(folder) / "state")
    return [row(name, "ms", took, "start, empty server of the SDK") for name in took[0]]


def measure_idle(seconds: float, parent: Path, tasks: int) -> list[Row]:
    """What each of them needs while nobody asks for anything. Linux alone."""
    with _folders(parent, tasks) as (used, full):
        commands = {"empty server of the SDK": (EMPTY, used), "existing folder": (TASKORCH, used)}
        commands |= {f"{tasks:,} ended tasks": (TASKORCH, full)}
        servers = {name: _answered(command, folder) for name, (command, folder) in commands.items()}
        try:
            time.sleep(SETTLE_SECONDS)
            before = {name: _used(server.pid) for name, server in servers.items()}
            began = time.perf_counter()
            time.sleep(seconds)
            rows: list[Row] = []
            base: Mapping[str, float] = {}
            for name, server in servers.items():
                cpu, switches = (
                    (after - first) / (time.perf_counter() - began)
                    for after, first in zip(_used(server.pid), before[name], strict=True)
                )
                memory = _memory(server.pid)
                base = base or memory
                rows += [
                    Row(f"idle {kind}, {name}", mb, "MB", mb / base[kind], f"idle {kind}, empty server of the SDK")
                    for kind, mb in memory.items()
                ]
                rows += [
                    Row(f"idle CPU, {name}", cpu * 100, "%"),
                    Row(f"idle wake-ups, {name}", switches, "a second"),
                ]
            return rows
        finally:
            for server in servers.values():
                _end(server)


@contextmanager
def _folders(parent: Path, tasks: int) -> Generator[tuple[Path, Path]]:
    """A state folder that a server has used, and one with so many ended tasks. Byte code is made on the way."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        used, full = Path(name) / "used", Path(name) / "full"
        for command in (EMPTY, TASKORCH):
            _start(command, used)
        shutil.copytree(used, full)
        anyio.run(_fill, full / "taskorch.db", tasks)
        yield used, full


async def _fill(path: Path, tasks: int) -> None:
    async with open_database(path) as database:
        store = Store(database)
        owner = await store.register("benchmark", 1, "0", ["echo"])
        while tasks > 0:
            async with anyio.create_task_group() as group:
                for _ in range(min(BATCH, tasks)):
                    group.start_soon(store.add, NewTask("echo", {"text": "x" * 100}, 1, 60.0))
            claimed = await store.claim(owner, {"echo": 0}, BATCH)
            await store.settle_all([(task, Completed({"text": "x" * 100}), None) for task in claimed])
            tasks -= BATCH
        await store.leave(owner)


def _start(command: list[str], folder: Path) -> float:
    """Seconds from the start of the process to the answer."""
    began = time.perf_counter()
    server = _answered(command, folder)
    seconds = time.perf_counter() - began
    _end(server)
    return seconds


def _answered(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A server that has answered `tools/list`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKORCH_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has byte code
    mine = {"TASKORCH_STATE_DIR": str(folder), "XDG_CONFIG_HOME": str(folder)}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept | mine, cwd=ROOT)
    assert server.stdin and server.stdout
    server.stdin.write(REQUESTS)
    server.stdin.flush()
    for line in server.stdout:
        message = json.loads(line)
        if message.get("id") == 2:
            assert message["result"]["tools"], message
            return server
    raise RuntimeError(f"{command} ended without an answer")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.communicate()  # the end of its stdin


def _used(pid: int) -> tuple[float, float]:
    """Seconds of processor time of all threads, and how often they have slept."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    ns = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)
    lines = [line for thread in threads for line in (thread / "status").read_text().splitlines()]
    return ns / 1e9, sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def _memory(pid: int) -> dict[str, float]:
    """RSS and PSS, in MB of 2^20 bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {line[:3].upper(): int(line.split()[1]) / 1024 for line in lines if line.startswith(("Rss:", "Pss:"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure (%(default)s)")
    arguments = parser.parse_args()
    rows = measure(arguments.rounds, arguments.folder, arguments.tasks, arguments.idle_seconds)
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
