"""Creates and drains per second at the store's level, beside the least that SQLite needs for the same rows.

    python benchmarks/throughput.py [--tasks 20000] [--rounds 3] [--slots 8] [--folder DIR]

Everything with synchronous=FULL. "raw" is the standard library's sqlite3 in one thread with our schema: one row a
commit for creates; for the drain, batches of 64 claimed and settled in one commit, task and attempt rows both.
"busy loop" is the same while something else computes in the event loop all the time, a millisecond at a turn.
DIR must be on a real disk. Rounds are interleaved; the medians and the ratios within a round are printed.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from taskorch.app import SWITCH_SECONDS
from taskorch.domain.task import NewTask
from taskorch.storage.claims import ATTEMPT_BEGIN
from taskorch.storage.database import open_database
from taskorch.storage.ends import ATTEMPT_END
from taskorch.storage.ids import new_id
from taskorch.storage.rows import COLUMNS, dumps
from taskorch.storage.schema import PRAGMAS
from taskorch.storage.store import Store, now_ms
from taskorch.work.handlers import Handler
from taskorch.work.peers import Peers
from taskorch.work.worker import Worker

PAYLOAD = {"k": "x" * 191}
NEW = NewTask("noop", PAYLOAD, 3, 3600.0)
BATCH = 64
INSERT = f"INSERT INTO tasks({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
CLAIM = """UPDATE tasks SET status = 'working', ready = 0, attempt = attempt + 1, owner = 1, started_at = :now,
  updated_at = :now, version = version + 1
  WHERE seq IN (SELECT seq FROM tasks WHERE kind = 'noop' AND ready = 1 ORDER BY rank DESC, seq LIMIT :limit)
  RETURNING seq, attempt"""
SETTLE = """UPDATE tasks SET status = 'completed', owner = NULL, finished_at = ?, updated_at = ?, result = ?,
  version = version + 1 WHERE seq = ? AND status = 'working' AND attempt = ? AND owner = 1"""
BEGIN_ATTEMPT = f"INSERT INTO attempts({', '.join(ATTEMPT_BEGIN)}) VALUES (?, ?, ?, ?)"
END_ATTEMPT = f"UPDATE attempts SET {', '.join(f'{name} = ?' for name in ATTEMPT_END)} WHERE task = ? AND attempt = ?"


async def noop(payload: dict[str, Any]) -> Any:
    return {"ok": 1}


async def create(store: Store, callers: int, seconds: float) -> float:
    """Creates per second, each caller waiting until its own task is on disk."""
    made = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal made
        while time.perf_counter() < end:
            await store.add(NEW)
            made += 1

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(caller)
    return made / (time.perf_counter() - began)


async def fill(store: Store, tasks: int) -> None:
    async def some(count: int) -> None:
        for _ in range(count):
            await store.add(NEW)

    async with anyio.create_task_group() as group:
        for _ in range(BATCH):
            group.start_soon(some, tasks // BATCH)


async def drain(store: Store, folder: Path, tasks: int, slots: int) -> float:
    """Tasks per second from a full queue to every result on disk."""
    done, left = anyio.Event(), tasks // BATCH * BATCH

    def heard(changes: Any) -> None:
        nonlocal left
        left -= sum(task is not None and task.ended for _, task in changes)
        if left == 0:
            done.set()

    with Peers(folder / "servers") as peers, store.listening(heard):
        owner = await store.register(peers.uuid, os.getpid(), "bench", ["noop"])
        worker = Worker(store, peers, owner, {"noop": Handler(noop)}, slots)
        async with anyio.create_task_group() as group:
            began = time.perf_counter()
            await group.start(worker.run)
            await done.wait()
            taken = time.perf_counter() - began
            worker.stop()
    return (tasks // BATCH * BATCH) / taken


def connect(folder: Path) -> sqlite3.Connection:
    db = sqlite3.connect(folder / "taskorch.db", isolation_level=None)
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


def raw_create(folder: Path, seconds: float) -> float:
    db, made = connect(folder), 0
    first = db.execute("SELECT coalesce(max(seq), 0) FROM tasks").fetchone()[0]
    row = dict.fromkeys(COLUMNS) | {
        "kind": "noop", "status": "waiting", "priority": 1, "rank": 1, "ready": 1, "paused": 0, "blocked": 0, "held": 0,
        "attempt": 0, "max_attempts": 3, "interruptions": 0, "timeout_seconds": 3600.0, "on_server_exit": "survive",
        "delete_requested": 0, "version": 1, "payload": dumps(PAYLOAD),
    }  # fmt: skip
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        made += 1
        row |= {"seq": first + made, "id": new_id(), "created_at": now_ms(), "updated_at": now_ms()}
        db.execute("BEGIN IMMEDIATE")
        db.execute(INSERT, tuple(row.values()))
        db.execute("COMMIT")
    rate = made / (time.perf_counter() - began)
    db.close()
    return rate


def raw_drain(folder: Path, tasks: int) -> float:
    db, held, done = connect(folder), [], 0
    result = dumps({"ok": 1})
    began = time.perf_counter()
    while True:
        now = now_ms()
        db.execute("BEGIN IMMEDIATE")
        if held:
            db.executemany(SETTLE, [(now, now, result, seq, attempt) for seq, attempt in held])
            ends = [(now, now, "completed", None, None, None, seq, attempt) for seq, attempt in held]
            db.executemany(END_ATTEMPT, ends)
            done += len(held)
        held = db.execute(CLAIM, {"now": now, "limit": BATCH}).fetchall()
        db.executemany(BEGIN_ATTEMPT, [(seq, attempt, 1, now) for seq, attempt in held])
        db.execute("COMMIT")
        if not held:
            break
    rate = done / (time.perf_counter() - began)
    db.close()
    return rate


async def compute() -> None:
    """Keep the event loop busy."""
    while True:
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        await anyio.lowlevel.checkpoint()


async def beside(load: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[float]]) -> float:
    async with anyio.create_task_group() as group:
        group.start_soon(load)
        rate = await work()
        group.cancel_scope.cancel()
    return rate


async def with_store(folder: Path, use: Callable[[Store], Awaitable[Any]]) -> Any:
    async with open_database(folder / "taskorch.db") as database:
        return await use(Store(database))


async def one_round(parent: Path, tasks: int, slots: int, seconds: float) -> dict[str, float]:
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        await with_store(folder, lambda store: create(store, 1, 0.2))
        rates["raw create, 1 a commit"] = raw_create(folder, seconds)
        for callers in (1, 8, 64):
            rates[f"create, {callers} callers"] = await with_store(
                folder, lambda store, n=callers: create(store, n, seconds)
            )
        rates["create, 64 callers, busy loop"] = await with_store(
            folder, lambda store: beside(compute, lambda: create(store, 64, seconds))
        )
    for name_of, run in (
        ("raw drain, 64 a commit", None),
        (f"drain, {slots} slots", drain),
        (f"drain, {slots} slots, busy loop", lambda *given: beside(compute, lambda: drain(*given))),
    ):
        with tempfile.TemporaryDirectory(dir=parent) as name:
            folder = Path(name)
            await with_store(folder, lambda store: fill(store, tasks))
            if run is None:
                rates[name_of] = raw_drain(folder, tasks)
            else:
                rates[name_of] = await with_store(folder, lambda store, f=folder: drain(store, f, tasks, slots))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)  # as the server does
    rounds = [
        anyio.run(one_round, options.folder, options.tasks, options.slots, options.seconds)
        for _ in range(options.rounds)
    ]
    base = {name: "raw drain, 64 a commit" if "drain" in name else "raw create, 1 a commit" for name in rounds[0]}
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {options.rounds} rounds, {options.tasks} tasks, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print("| what | per second | ratio to raw |\n|---|---|---|")
    for name in rounds[0]:
        ratio = statistics.median(rates[name] / rates[base[name]] for rates in rounds)
        print(f"| {name} | {statistics.median(rates[name] for rates in rounds):,.0f} | {ratio:.2f} |")
    print("\n" + json.dumps(rounds))


if __name__ == "__main__":
    main()
