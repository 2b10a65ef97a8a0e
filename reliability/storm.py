"""Many processes on one file: paced, flat out, and with one of them stopped inside a transaction.

Each process opens the store as a server does; it creates, edits, claims and settles, and lists meanwhile. No call may
fail. While one of them is stopped holding the write lock, reads go on and writers are told in the end; when it goes on,
all recover.
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from taskorch.domain.errors import Conflict
from taskorch.domain.task import Completed, NewTask, Priority, Task
from taskorch.storage import busy
from taskorch.storage.database import open_database
from taskorch.storage.listing import Filters
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

ROOT = Path(__file__).parents[1]
PACE = 100.0  # writes a second of all processes together
P99_MS = 250.0  # limit of every operation in the paced round, on a machine with nothing else to do
LONGEST = 8  # times that limit may the longest call take
READ_MS = 50.0  # limit of the 99th percentile of reads while a stopped process holds the lock
LISTS_SECONDS = 0.02  # pause between two reads of a process
BUSY_SECONDS = 1.0  # in that round: how long a writer waits before it gives up
STOPPED_SECONDS = 2.5
ROUND_SECONDS = 6.0
SLACK_SECONDS = 0.5  # how much later than BUSY_SECONDS a writer may be told
BUSY = "The store is busy"
WRITES = ("create", "edit", "claim", "settle")


class Call(NamedTuple):
    """`begun`: by the monotonic clock, which all processes share; `error`: empty if there was none."""

    name: str
    begun: float
    ms: float
    error: str = ""


# A child.


class Mix:
    """One process's work. `pause_seconds`: between two writes, on average."""

    def __init__(self, store: Store, queries: Queries, owner: int, pause_seconds: float, chance: random.Random) -> None:
        self.calls: list[Call] = []
        self._store, self._queries, self._owner = store, queries, owner
        self._pause_seconds, self._chance = pause_seconds, chance
        self._made: list[Task] = []
        self._held: list[Task] = []

    async def run(self, seconds: float) -> None:
        async with anyio.create_task_group() as group:
            with anyio.move_on_after(seconds):
                group.start_soon(self._forever, self._read, LISTS_SECONDS)
                await self._forever(self._write, self._pause_seconds)
            group.cancel_scope.cancel()

    async def _forever(self, step: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
        while True:
            await anyio.sleep(self._chance.expovariate(1 / pause_seconds) if pause_seconds else 0)
            await step()

    async def _read(self) -> None:
        await self._timed("list", self._queries.page(Filters(), 20, None))

    async def _write(self) -> None:
        name = self._chance.choice(WRITES)
        if name == "edit" and self._made:
            task = self._made.pop()
            await self._timed("edit", self._store.edit(task.id, {"priority": Priority.HIGH}, None, "client"))
        elif name == "settle" and self._held:
            ends = [(task, Completed(1), None) for task in self._held]
            lost = await self._timed("settle", self._store.settle_all(ends))
            self._held = self._held if lost is None else []
            self.calls += [Call("settle", time.monotonic(), 0, f"{task.id} was lost") for task in lost or ()]
        elif name == "claim" and not self._held:
            self._held = await self._timed("claim", self._store.claim(self._owner, {"work": 0}, 2)) or []
        else:
            payload = {"text": "x" * self._chance.choice((0, 100, 5_000))}
            if made := await self._timed("create", self._store.add(NewTask("work", payload, 3, 60.0))):
                self._made = [*self._made[-20:], made]

    async def _timed(self, name: str, call: Awaitable[Any]) -> Any:
        """Its result; None for one that failed. A call that the end of the round cuts off is not counted."""
        begun, error, result = time.monotonic(), "", None
        try:
            result = await call
        except Conflict:  # another process has ended the task meanwhile
            pass
        except Exception as found:
            error = str(found)
        self.calls.append(Call(name, begun, (time.monotonic() - begun) * 1000, error))
        return result


async def take_part(path: Path, seconds: float, pause_seconds: float, seed: int, stopping: bool) -> None:
    busy.BUSY_SECONDS = BUSY_SECONDS if stopping else busy.BUSY_SECONDS
    async with open_database(path) as database:
        store, chance = Store(database), random.Random(seed)
        owner = await store.register(f"storm-{os.getpid()}", os.getpid(), "0", ["work"])
        mix = Mix(store, Queries(database), owner, pause_seconds, chance)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        await mix.run(seconds)
    print(json.dumps(mix.calls))


async def hold(path: Path) -> None:
    """Say when a transaction is open, and commit it a moment later."""

    def inside(tx: sqlite3.Connection) -> None:
        tx.execute("UPDATE counts SET tasks = tasks")
        print("holding", flush=True)
        time.sleep(0.3)

    async with open_database(path) as database:
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        await anyio.sleep(1)
        await database.write(inside)
    print("committed")


# The parent.


def start(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "reliability.storm", "--child", str(path), *options]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def children(
    path: Path, count: int, seconds: float, pause_seconds: float, seed: int, *more: str
) -> Iterator[list[Any]]:
    """Processes that begin together when the block does; those that still live at its end are killed."""
    options = ("--seconds", str(seconds), "--pause", str(pause_seconds), *more)
    started = [start(path, *options, "--seed", str(seed + number)) for number in range(count)]
    try:
        for child in started:
            begin_with(child, "ready")
        for child in started:
            say_go(child)
        yield started
    finally:
        for child in started:
            with child:
                child.kill()


def begin_with(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout
    line = child.stdout.readline()
    if line != f"{word}\n":
        raise RuntimeError(f"a child said {line!r} instead of {word}")


def say_go(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    child.stdin.write("go\n")
    child.stdin.flush()


def calls_of(child: subprocess.Popen[str], seconds: float) -> list[Call]:
    said, _ = child.communicate(timeout=seconds + 60)
    return [Call(*call) for call in json.loads(said)]


def race(path: Path, processes: int, seconds: float, pause_seconds: float, seed: int) -> list[Call]:
    with children(path, processes, seconds, pause_seconds, seed) as started:
        return [call for child in started for call in calls_of(child, seconds)]


def stop_one(path: Path, processes: int, seed: int) -> tuple[list[list[Call]], float, float]:
    """The calls of each of the others, and from when until when one was stopped."""
    count, pause_seconds = processes - 1, (processes - 1) / PACE
    with (
        children(path, count, ROUND_SECONDS, pause_seconds, seed, "--stopping") as others,
        start(path) as holder,
    ):
        try:
            begin_with(holder, "ready")
            say_go(holder)
            begin_with(holder, "holding")
            holder.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
            begun = time.monotonic()
            time.sleep(STOPPED_SECONDS)
            ended = time.monotonic()
            holder.send_signal(signal.SIGCONT)
            begin_with(holder, "committed")
        finally:
            holder.kill()
        return [calls_of(child, ROUND_SECONDS) for child in others], begun, ended


def percentile(ms: list[float], share: float) -> float:
    return sorted(ms)[min(len(ms) - 1, int(share * len(ms)))] if ms else 0.0


def show(title: str, calls: list[Call], seconds: float) -> None:
    writes = sum(call.name in WRITES for call in calls)
    print(f"storm: {title}: {writes} writes ({writes / seconds:.0f}/s), {len(calls) - writes} reads")
    for name in (*WRITES, "list"):
        ms = [call.ms for call in calls if call.name == name]
        half, late, longest = percentile(ms, 0.5), percentile(ms, 0.99), max(ms, default=0)
        print(f"storm:   {name:7} calls={len(ms)} p50={half:.1f} ms p99={late:.1f} ms longest={longest:.1f} ms")


def complaints(calls: list[Call], p99_ms: float = math.inf) -> list[str]:
    found = [f"{n} times: {text}" for text, n in Counter(call.error for call in calls if call.error).items()]
    for name in (*WRITES, "list"):
        ms = [call.ms for call in calls if call.name == name]
        if not ms:
            found.append(f"no {name} was made")
        elif percentile(ms, 0.99) > p99_ms or max(ms) > LONGEST * p99_ms:
            found.append(f"{name} took too long: p99 {percentile(ms, 0.99):.0f} ms, longest {max(ms):.0f} ms")
    return found


def stop_complaints(calls: list[Call], begun: float, ended: float) -> list[str]:
    """What one process did wrong while another was stopped from `begun` until `ended`."""
    reads = [call.ms for call in calls if call.name == "list" and begun <= call.begun < ended]
    writes = [call for call in calls if call.name in WRITES]
    blocked = [call for call in writes if begun <= call.begun < ended - BUSY_SECONDS - SLACK_SECONDS]
    after = [call for call in writes if call.begun >= ended + SLACK_SECONDS]
    told = [call for call in writes if call.error.startswith(BUSY) and begun - SLACK_SECONDS <= call.begun < ended]
    found = [f"error: {call}" for call in calls if call.error and call not in told]
    if not reads or percentile(reads, 0.99) > READ_MS:
        found.append(f"{len(reads)} reads while one was stopped, p99 {percentile(reads, 0.99):.0f} ms")
    limit_ms = (BUSY_SECONDS + SLACK_SECONDS) * 1000
    found += [f"not refused in time: {call}" for call in blocked if not call.error or call.ms > limit_ms]
    failed = sum(bool(call.error) for call in after)
    if not told or not after or failed:
        found.append(f"{len(told)} writes refused, then {len(after)} made, of which {failed} failed")
    return found


def check_file(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        sound = db.execute("PRAGMA integrity_check(3)").fetchall()
        counted = db.execute("SELECT status, priority, tasks FROM counts WHERE tasks > 0 ORDER BY 1, 2").fetchall()
        real = db.execute("SELECT status, priority, count(*) FROM tasks GROUP BY 1, 2 ORDER BY 1, 2").fetchall()
    return ([] if sound == [("ok",)] else [str(sound)]) + ([] if counted == real else [f"{counted} is not {real}"])


def prove(processes: int, seconds: float, seed: int, p99_ms: float) -> int:
    """All rounds; the exit code. The folder of a run that failed is kept."""
    folder = Path(tempfile.mkdtemp(prefix="taskorch-storm-"))
    print(f"storm: processes={processes} seconds={seconds:g} seed={seed} folder={folder}", flush=True)
    path, found = folder / "state" / "taskorch.db", list[str]()
    for title, pause_seconds in (("paced", processes / PACE), ("flat out", 0.0)):
        calls = race(path, processes, seconds, pause_seconds, seed)
        show(title, calls, seconds)
        found += complaints(calls, p99_ms if title == "paced" else math.inf)
    others, begun, ended = stop_one(path, processes, seed)
    show("one stopped in a transaction", [call for calls in others for call in calls], ROUND_SECONDS)
    found += [text for calls in others for text in stop_complaints(calls, begun, ended)] + check_file(path)
    reads = [call.ms for calls in others for call in calls if call.name == "list" and begun <= call.begun < ended]
    late, longest = percentile(reads, 0.99), max(reads, default=0)
    refused = sum(call.error.startswith(BUSY) for calls in others for call in calls)
    print(
        f"storm:   meanwhile {len(reads)} reads: p99={late:.1f} ms longest={longest:.1f} ms; {refused} writes refused"
    )
    for text in found[:20]:
        print(f"storm: WRONG: {text}")
    print(f"storm: {len(found)} wrong" + (f"; kept {folder}" if found else ""))
    if not found:
        shutil.rmtree(folder)
    return 1 if found else 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability storm", description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, help="of each of the first two rounds", default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--p99", type=float, help="limit of the paced round in ms", default=P99_MS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stopping", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child and given.pause is None:
        anyio.run(hold, given.child)
    elif given.child:
        anyio.run(take_part, given.child, given.seconds, given.pause, given.seed, given.stopping)
    else:
        return prove(given.processes, given.seconds, given.seed, given.p99)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
