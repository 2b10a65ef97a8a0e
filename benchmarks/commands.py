"""What supervision costs a command: attempts around `true` beside `true` alone, started by asyncio with pipes.

    .venv/bin/python -m benchmarks.commands [--rounds 3] [--runs 400] [--folder DIR]

An attempt is a supervisor, its order, the command, the exit record on disk, and the server that has seen the end.
"directly": each supervisor is a new Python, as where nothing can fork them. "task": the same through the store and
the pool. DIR must be on a real disk. Rounds are interleaved; medians, and the ratios within a round, are printed.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from benchmarks.table import Row, markdown, row
from taskorch.domain.task import NewTask
from taskorch.engine import SWITCH_SECONDS, has_room
from taskorch.storage.database import open_database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work import supervised
from taskorch.work.attempt import prepared
from taskorch.work.command import Command
from taskorch.work.following import make_folder
from taskorch.work.peers import Peers
from taskorch.work.policy import Policy
from taskorch.work.results import Results
from taskorch.work.spawner import Spawner
from taskorch.work.supervised import Order, Supervised
from taskorch.work.worker import Worker

AT_ONCE = 8
BARE, ATTEMPT, DIRECTLY, TASK = "bare `true`", "attempt", "attempt, directly", f"task, {AT_ONCE} slots"
MEMORY, MEMORY_DIRECTLY = "private memory of a supervisor", "private memory of a supervisor, directly"
SETTLE_SECONDS = 0.3  # after the order, until a supervisor only waits
TRUE = Order("/bin/true", ("true",), "/", (), {}, None, 60.0, 5.0, "survive")
SLEEP = Order("/bin/sleep", ("sleep", "60"), "/", (), {}, None, 60.0, 5.0, "survive")

Start = Callable[[Path], Awaitable[Supervised]]


async def bare() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("/bin/true", stdin=pipe, stdout=pipe, stderr=pipe)
    await process.wait()


async def attempt(start: Start, folder: Path) -> None:
    """One supervised `true` in a new folder, its end on record."""
    make_folder(folder)
    shim = await start(folder)
    try:
        await shim.order(TRUE)
        await shim.ended()
    finally:
        shim.close()
    record = supervised.exit_record(folder)
    assert record and record.code == 0, record


async def rate(one: Callable[[int], Awaitable[None]], runs: int, at_once: int) -> float:
    """Runs per second, so many at a time."""
    numbers = iter(range(runs))

    async def some() -> None:
        for number in numbers:
            await one(number)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(some)
    return runs / (time.perf_counter() - began)


async def tasks(folder: Path, runs: int, slots: int) -> float:
    """Command tasks per second from a full queue to every result on disk."""
    done, left = anyio.Event(), runs

    def heard(changes: Any) -> None:
        nonlocal left
        left -= sum(task is not None and task.ended for _, task in changes)
        if left == 0:
            done.set()

    async with open_database(folder / "taskorch.db") as database:
        store = Store(database)
        with Peers(folder / "servers") as peers:
            owner = await store.register(peers.uuid, os.getpid(), "bench", ["command"])
            kind = Command(folder / "output", Policy("*"), "", 5.0, folder)
            new = NewTask("command", {"argv": ["/bin/true"]}, 1, 60.0)
            for _ in range(runs):
                await store.add(new)
            run = prepared(Results(Queries(database).get_many, folder / "output").fill)
            worker = Worker(store, peers, owner, {"command": kind}, slots, room=partial(has_room, folder), run=run)
            with store.listening(heard):
                async with anyio.create_task_group() as group:
                    began = time.perf_counter()
                    await group.start(worker.run)
                    await done.wait()
                    taken = time.perf_counter() - began
                    worker.stop()
    return runs / taken


def private_memory(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("Private_"))


async def private_kib(start: Start, folder: Path) -> float:
    """Memory that a supervisor shares with nobody, KiB, while its command runs. Linux only."""
    make_folder(folder)
    shim = await start(folder)
    try:
        await shim.order(SLEEP)
        await anyio.sleep(SETTLE_SECONDS)
        return private_memory(supervised.holder(folder) or 0)
    finally:
        shim.kill()
        await shim.ended()
        shim.close()


async def one_round(folder: Path, runs: int) -> dict[str, float]:
    """What was found, by name."""
    found: dict[str, float] = {}
    (folder / "output").mkdir(parents=True)
    spawner = Spawner(folder / "cache")
    code = supervised.compiled_shim(folder / "cache")

    def place(series: str, number: int) -> Path:
        return folder / "output" / f"{series}{number}" / "1"

    def forked(series: str, number: int) -> Awaitable[None]:
        return attempt(spawner.start, place(series, number))

    def direct(series: str, number: int) -> Awaitable[None]:
        return attempt(lambda path: Supervised.start(path, code), place(series, number))

    await bare()
    await forked("warm", 0)
    for at_once in (1, AT_ONCE):
        found[_name(BARE, at_once)] = await rate(lambda _: bare(), runs, at_once)
        found[_name(ATTEMPT, at_once)] = await rate(partial(forked, f"f{at_once}-"), runs, at_once)
        found[_name(DIRECTLY, at_once)] = await rate(partial(direct, f"d{at_once}-"), runs // 8, at_once)
    found[TASK] = await tasks(folder, runs, AT_ONCE)
    if sys.platform == "linux":
        found[MEMORY] = await private_kib(spawner.start, place("memory", 0))
        found[MEMORY_DIRECTLY] = await private_kib(lambda path: Supervised.start(path, code), place("memory", 1))
    spawner.close()
    return found


def measure(rounds: int, folder: Path, runs: int = 400) -> list[Row]:
    """All rows, each the median of so many rounds; `folder`: on which disk."""
    sys.setswitchinterval(SWITCH_SECONDS)  # as the server does
    # Removed last of all: for minutes, ext4 without a journal pays for each new file by a walk over what was removed.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        seen = [anyio.run(one_round, Path(name) / str(number), runs) for number in range(rounds)]
    rates = [
        row(_name(what, at_once), "per second", seen, _name(BARE, at_once))
        for at_once in (1, AT_ONCE)
        for what in (BARE, ATTEMPT, DIRECTLY)
    ]
    rates.append(row(TASK, "per second", seen, _name(BARE, AT_ONCE)))
    return rates + [row(name, "KiB", seen) for name in (MEMORY, MEMORY_DIRECTLY) if name in seen[0]]


def _name(what: str, at_once: int) -> str:
    return f"{what}, {at_once} at a time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure (%(default)s)")
    options = parser.parse_args()
    rows = measure(options.rounds, options.folder, options.runs)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {options.rounds} rounds, "
        f"{options.runs} runs, load {os.getloadavg()[0]:.1f}\n"
    )
    print(markdown(rows))


if __name__ == "__main__":
    main()
