"""A running server works off tasks in waves, with retention on: memory, descriptors, threads and WAL stay flat."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from taskorch import handler
from taskorch.app import App, running
from taskorch.config import Settings
from taskorch.domain.task import NewTask
from taskorch.storage.listing import Filters

WARM_UP = 10_000  # tasks; what is taken until then is not growth
WAVE = 1_000  # tasks
CREATORS = 20
GROWTH_MIB = 20.0
WAL_MIB = 64.0
KEPT_SECONDS = 2.0  # how long ended tasks are kept
FORGOTTEN_SECONDS = 15.0  # by then nothing is stored any more
MIB = 1 << 20
KIND = "soak.nothing"


@handler(KIND)
async def nothing(payload: dict[str, Any]) -> int:
    return payload["n"]


@dataclass(frozen=True)
class Sample:
    """`tasks`: completed by then; `stored`: rows that retention has left; sizes in MiB."""

    tasks: int
    seconds: float
    rss: float
    descriptors: int
    threads: int
    wal: float
    stored: int

    def __str__(self) -> str:
        speed = self.tasks / self.seconds if self.seconds else 0
        return (
            f"tasks={self.tasks} ({speed:.0f}/s) rss={self.rss:.1f} MiB descriptors={self.descriptors} "
            f"threads={self.threads} wal={self.wal:.1f} MiB stored={self.stored}"
        )


async def look(app: App, database: Path, tasks: int, begun: float) -> Sample:
    stored = sum((await counted(app)).values())
    return measure(database, tasks, begun, stored)


def measure(database: Path, tasks: int, begun: float, stored: int) -> Sample:
    wal = database.with_name(f"{database.name}-wal")
    return Sample(
        tasks=tasks,
        seconds=time.monotonic() - begun,
        rss=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB,
        descriptors=len(os.listdir("/proc/self/fd")) - 1,  # without the one that reads the list
        threads=len(os.listdir("/proc/self/task")),
        wal=wal.stat().st_size / MIB if wal.exists() else 0.0,
        stored=stored,
    )


async def counted(app: App) -> dict[str, int]:
    return (await app.service.queries.page(Filters(), 1, None)).counts


async def wave(app: App, first: int, tasks: int) -> None:
    """Create the tasks, and wait until the last of them has ended."""
    numbers, left = iter(range(first, first + tasks)), tasks
    done = anyio.Event()

    def heard(changes: Sequence[Any]) -> None:
        nonlocal left
        left -= sum(task is not None and task.status == "completed" for _, task in changes)
        if left <= 0:
            done.set()

    async def create() -> None:
        for number in numbers:
            await app.service.store.add(NewTask(KIND, {"n": number}, max_attempts=3, timeout_seconds=60))

    with app.service.store.listening(heard), anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            for _ in range(CREATORS):
                group.start_soon(create)
        await done.wait()


async def work_off(folder: Path, tasks: int) -> tuple[list[Sample], int]:
    """A sample after each wave, and how many rows are stored long after the last one."""
    settings = Settings(
        state_dir=folder / "state",
        handlers=__name__,
        concurrency=8,
        keep_days=KEPT_SECONDS / 86_400,
        cleanup_interval_seconds=1,
    )
    database, samples, begun = settings.state_dir / "taskorch.db", list[Sample](), time.monotonic()
    async with running(settings) as app:
        for first in range(0, tasks, WAVE):
            await wave(app, first, min(WAVE, tasks - first))
            samples.append(await look(app, database, min(first + WAVE, tasks), begun))
            if samples[-1].tasks % max(WAVE, tasks // 10) == 0:
                print(f"soak: {samples[-1]}", flush=True)
        left = 1
        with anyio.move_on_after(FORGOTTEN_SECONDS):
            while left := sum((await counted(app)).values()):  # noqa: ASYNC110  (to be looked at now and then)
                await anyio.sleep(0.2)
    return samples, left


def complaints(samples: Sequence[Sample], left: int) -> list[str]:
    """What has grown. A run that is shorter than the warm-up is compared with its first half."""
    at = min(WARM_UP, samples[-1].tasks // 2)
    early = [sample for sample in samples if sample.tasks <= at] or [samples[0]]
    late = [sample for sample in samples if sample.tasks > at]
    found: list[str] = []
    if (growth := max(sample.rss for sample in late) - early[-1].rss) > GROWTH_MIB:
        found.append(f"memory grew by {growth:.1f} MiB after the first {early[-1].tasks} tasks")
    for name in ("descriptors", "threads"):
        before, after = (max(getattr(sample, name) for sample in some) for some in (early, late))
        if after > before:
            found.append(f"{name}: {before} at most in the first {early[-1].tasks} tasks, {after} later")
    if (wal := max(sample.wal for sample in samples)) > WAL_MIB:
        found.append(f"the WAL was {wal:.1f} MiB")
    if left:
        found.append(f"{left} rows are stored although their time is over")
    return found


def prove(tasks: int) -> int:
    """The exit code. The folder of a run that failed is kept."""
    print(f"soak: tasks={tasks} wave={WAVE} kept={KEPT_SECONDS:g} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="taskorch-soak-"))
    samples, left = anyio.run(work_off, folder, tasks)
    found = complaints(samples, left)
    growth = max(sample.rss for sample in samples) - next(s for s in samples if s.tasks >= min(WARM_UP, tasks // 2)).rss
    most = max(sample.wal for sample in samples)
    print(f"soak: {samples[-1]}; rss growth={growth:.1f} MiB, most wal={most:.1f} MiB, stored in the end={left}")
    for text in found:
        print(f"soak: WRONG: {text}")
    print(f"soak: {len(found)} wrong" + (f"; kept {folder}" if found else ""))
    if not found:
        shutil.rmtree(folder)
    return 1 if found else 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability soak", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    given = parser.parse_args(argv)
    if sys.platform != "linux":
        print("soak: NOTHING IS PROVED: it looks at the process through /proc", file=sys.stderr)
        return 77
    return prove(given.tasks)
