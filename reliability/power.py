"""Power cuts: each write and sync of a real run is recorded, and the disk rebuilt as a cut at that moment leaves it.

A child works on the store and says what it was told is stored. Each rebuilt copy must open, be whole, and hold all
that was acknowledged before the cut. With `--synchronous NORMAL` or `OFF` rows must be found missing: that proves that
losses would be seen.

With `--records` supervisors are watched instead, each recording how its command ended: a cut must leave no record or
the whole one, and the whole one for certain once the supervisor has left. `--bug` leaves out one of the steps of
writing it (the rename, the sync of the file, the sync of its folder), and bad records must be found.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from reliability import disk, records
from reliability.trace import CANNOT_TRACE, STRACE, Event, Recording, why_not
from taskorch.domain.task import Completed, Failed, NewTask, Reason
from taskorch.storage import schema
from taskorch.storage.database import open_database
from taskorch.storage.store import Store

ROOT = Path(__file__).parents[1]
DATABASE = "taskorch.db"
SESSIONS, ACTORS = 3, 4
NEVER = 1 << 62  # the version of a row that is gone
COUNTERS = ("events", "cuts", "copies", "lost", "corrupt", "half")
ROWS = "SELECT id, version, status FROM tasks"
COUNTS = "SELECT status, sum(tasks) FROM counts GROUP BY status HAVING sum(tasks) > 0"

Told = dict[str, Sequence[Any]]  # by task: the version and status last acknowledged


# The child that is watched.


async def work(folder: Path, synchronous: str, rounds: int, seed: int) -> None:
    """Create, claim, settle and delete, in several sessions, with a checkpoint every few commits."""
    schema.PRAGMAS = (*schema.PRAGMAS, "wal_autocheckpoint=64")
    if synchronous != "FULL":
        schema.PRAGMAS = (*schema.PRAGMAS, f"synchronous={synchronous}")
    chance = random.Random(seed)
    for _ in range(SESSIONS):
        async with open_database(folder / DATABASE) as database:
            store = Store(database)
            owner = await store.register(f"server-{chance.random()}", os.getpid(), "0", ["work"])
            async with anyio.create_task_group() as group:
                for _ in range(ACTORS):
                    group.start_soon(act, store, owner, rounds, random.Random(chance.random()))


async def act(store: Store, owner: int, rounds: int, chance: random.Random) -> None:
    for _ in range(rounds):
        payload = {"text": "x" * chance.choice((0, 200, 6_000))}
        task = await store.add(NewTask("work", payload, max_attempts=2, timeout_seconds=60))
        acknowledge(task.id, task.version, task.status)
        for claimed in await store.claim(owner, {"work": 0}, chance.randint(1, 2)):
            acknowledge(claimed.id, claimed.version, claimed.status)
            await end(store, claimed, chance)


async def end(store: Store, task: Any, chance: random.Random) -> None:
    if chance.random() < 0.7:
        await store.settle(task, Completed({"n": chance.random()}))
        acknowledge(task.id, task.version + 1, "completed")
        return
    await store.settle(task, Failed(Reason.ERROR, "as it is meant to", retryable=False))
    acknowledge(task.id, task.version + 1, "failed")
    if chance.random() < 0.5:
        task = await store.retry(task.id, None, "client")
        acknowledge(task.id, task.version, task.status)
    elif chance.random() < 0.5:
        acknowledge(task.id, NEVER, "deleting")
        await store.delete(task.id, False, "client")
        acknowledge(task.id, NEVER, "deleted")


def acknowledge(task_id: str, version: int, status: str) -> None:
    os.write(1, json.dumps([task_id, version, status]).encode() + b"\n")


# The recording.


def is_lasting(name: str) -> bool:
    """Whether it is a file of the database; `-shm` is made anew after a cut."""
    return name.startswith(DATABASE) and not name.endswith("-shm")


def record(folder: Path, synchronous: str, rounds: int, seed: int) -> list[Event]:
    """What the child did, in order. The trace stays in the folder."""
    state, trace = folder / "state", folder / "trace"
    child = [sys.executable, "-m", "reliability.power", "--child", str(state), "--rounds", str(rounds)]
    options = ["--synchronous", synchronous, "--seed", str(seed)]
    subprocess.run([*STRACE, "-o", trace, *child, *options], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=600)
    return list(Recording(state, is_lasting).events(trace.open()))


# The cuts.


@dataclass
class Verdict:
    """`lost`, `corrupt` and `half` count copies; half: the counts table does not agree with the rows."""

    counts: Counter[str] = field(default_factory=Counter[str])
    first: str = ""  # what was wrong with the first bad copy


def judge(events: list[Event], cuts: int, chance: random.Random, folder: Path) -> Verdict:
    """Cut the power after each of `cuts` events, and look at every way in which the disk may come out of it."""
    verdict = Verdict(Counter(events=len(events)))
    at = set(chance.sample(range(len(events)), min(cuts, len(events))))
    drive, told = disk.Disk(), Told()
    for number, (what, arguments) in enumerate(events):
        if what != "ack":
            getattr(drive, what)(*arguments)
        elif arguments[1] >= told.get(arguments[0], (0,))[0]:
            told[arguments[0]] = arguments[1:]
        if number in at:
            verdict.counts["cuts"] += 1
            for name, files in variants(drive, chance).items():
                verdict.counts["copies"] += 1
                bad = examine(files, told, folder)
                if bad and not verdict.first:
                    verdict.first = f"after event {number} ({name}): {bad[1]}"
                verdict.counts[bad[0] if bad else "good"] += 1
    return verdict


def variants(drive: disk.Disk, chance: random.Random) -> dict[str, dict[str, bytes]]:
    """The ways in which the disk may come out of a cut, each once."""
    some, torn = disk.some(chance), disk.torn(chance)
    found: dict[str, dict[str, bytes]] = {}
    for name, keep in {"nothing": disk.nothing, "everything": disk.everything, "some": some, "torn": torn}.items():
        files = drive.after_cut(keep)
        if files not in found.values():
            found[name] = files
    return found


def examine(files: Mapping[str, bytes], told: Told, folder: Path) -> tuple[str, str] | None:
    """What is wrong with a copy: lost, corrupt or half, and how; None: nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with contextlib.closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as copy:
        try:
            copy.execute("PRAGMA synchronous=OFF")  # this copy need not last
            if (sound := copy.execute("PRAGMA integrity_check(3)").fetchall()) != [("ok",)]:
                return "corrupt", str(sound)
            if not copy.execute("SELECT 1 FROM sqlite_schema WHERE name = 'tasks'").fetchone():
                return ("lost", "the whole schema") if told else None
            rows = {task: state for task, *state in copy.execute(ROWS)}
            counted = dict(copy.execute(COUNTS))
        except sqlite3.DatabaseError as error:
            return "corrupt", str(error)
    lost = [f"{task} {was}, now {rows.get(task)}" for task, was in told.items() if is_lost(was, rows.get(task))]
    if lost:
        return "lost", f"{len(lost)} rows: {lost[:3]}"
    real = Counter(status for _, status in rows.values())
    return None if counted == real else ("half", f"counts {counted}, rows {dict(real)}")


def is_lost(was: Sequence[Any], now: Sequence[Any] | None) -> bool:
    """Whether a row is in an earlier state than was acknowledged."""
    version, status = was
    if status in ("deleting", "deleted"):
        return status == "deleted" and now is not None
    return now is None or now[0] < version or (now[0] == version and now[1] != status)


def as_expected(synchronous: str, counts: Mapping[str, int]) -> bool:
    """FULL keeps everything, NORMAL loses the latest but stays whole, OFF promises nothing at all."""
    lost, broken = counts["lost"], counts["corrupt"] + counts["half"]
    return {"FULL": lost + broken == 0, "NORMAL": lost > 0 == broken, "OFF": lost + broken > 0}[synchronous]


def prove(cuts: int, seed: int, synchronous: str) -> int:
    """Record, cut, judge; the exit code. The folder of a run that did not go as expected is kept."""
    folder = Path(tempfile.mkdtemp(prefix="taskorch-power-"))
    print(f"power: synchronous={synchronous} cuts={cuts} seed={seed} folder={folder}", flush=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as fast:
        events = record(folder, synchronous, max(3, cuts // 60), seed)
        verdict = judge(events, cuts, random.Random(seed), Path(fast) / "copy")
    right = as_expected(synchronous, verdict.counts) and verdict.counts["cuts"] == cuts
    figures = " ".join(f"{name}={verdict.counts[name]}" for name in COUNTERS)
    print(f"power: synchronous={synchronous} {figures}: {'as' if right else 'NOT as'} expected")
    if verdict.first:
        print(f"power: the first bad copy: {verdict.first}")
    if right:
        shutil.rmtree(folder)
    else:
        print(f"power: kept {folder}")
    return 0 if right else 1


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability power", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL", "OFF"), default="FULL")
    parser.add_argument("--records", type=int, metavar="N", help="cut while so many supervisors record ends")
    parser.add_argument("--bug", choices=[*records.BUGS], help="of those supervisors: bad records must be found")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child:
        anyio.run(work, given.child, given.synchronous, given.rounds, given.seed)
        return 0
    if reason := why_not():
        print(f"power: NOTHING IS PROVED: strace cannot run here: {reason}", file=sys.stderr)
        return CANNOT_TRACE
    if given.records or given.bug:
        return records.prove(given.records or 20, given.seed, given.bug)
    return prove(given.cuts, given.seed, given.synchronous)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
