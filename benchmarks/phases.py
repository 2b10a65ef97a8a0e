"""What is measured of each queue, one function a phase; a child process runs one phase of one queue.

A phase gives figures by name. Times are in ms, `cpu` in microseconds of this process a task, rates in tasks a second.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path

from benchmarks.peers import BULK, NotOffered, Peer
from benchmarks.work import STARTS, read_log

Figures = dict[str, float]
ROOT = Path(__file__).parents[1]
CALLERS = (1, 8, 64)
PACE_SECONDS = 0.01  # of callers that create 100 a second
IDLE_SECONDS = (0.02, 0.08)  # between two tasks for an idle worker
DRAIN_SECONDS = 20.0  # a slower drain is measured by what it did in that time
KILLED_TASKS, KILLED_AFTER, KILLED_TASK_SECONDS = 120, 40, 0.04


# Creating.


async def create(peer: Peer, seconds: float) -> Figures:
    """Creates a second; each caller waits until its own task is durable."""
    found: Figures = {}
    for callers in CALLERS:
        await peer.open(fresh=callers == CALLERS[0])
        found[f"create {callers}"] = await _creates(peer, callers, seconds)
        await peer.close()
    return found


async def busy_create(peer: Peer, seconds: float) -> Figures:
    """The same with 64 callers while something computes in the event loop, a millisecond at a turn."""
    await peer.open(fresh=True)
    async with _BusyLoop():
        rate = await _creates(peer, 64, seconds)
    await peer.close()
    return {"busy create 64": rate}


async def bulk(peer: Peer, tasks: int) -> Figures:
    await peer.open(fresh=True)
    began = time.perf_counter()
    await peer.create_many(tasks)
    rate = tasks / (time.perf_counter() - began)
    await peer.close()
    return {"bulk": rate}


async def _creates(peer: Peer, callers: int, seconds: float) -> float:
    made, began = 0, time.perf_counter()

    async def caller() -> None:
        nonlocal made
        while time.perf_counter() - began < seconds:
            await peer.create()
            made += 1

    await asyncio.gather(*[caller() for _ in range(callers)])
    return made / (time.perf_counter() - began)


# Working.


async def drain(peer: Peer, share: float) -> Figures:
    """From a full queue to every result stored. `share`: of the tasks that the queue does in a few seconds."""
    return await _drain(peer, max(64, round(peer.tasks * share)))


async def busy_drain(peer: Peer, share: float) -> Figures:
    """The same while something computes in the event loop, a millisecond at a turn."""
    found = await _drain(peer, max(64, round(peer.tasks * share)), _BusyLoop())
    return {"busy drain": found["drain"]}


async def _drain(peer: Peer, tasks: int, beside: AbstractAsyncContextManager[None] | None = None) -> Figures:
    await peer.open(fresh=True)
    await peer.fill(tasks)
    STARTS.reset()
    began, used = time.perf_counter(), Used()
    async with beside or nullcontext():
        await peer.start()
        await _until_settled(peer, tasks)
    taken, done = time.perf_counter() - began, STARTS.count
    found = {"drain": done / taken, **used.each("drain", done, peer.is_embedded)}
    await peer.stop()
    await peer.close()
    return found


async def pickup(peer: Peer, tasks: int) -> Figures:
    """An idle worker in this process: from just before the create to the start of the task."""
    await peer.open(fresh=True)
    await peer.start()
    await asyncio.sleep(0.5)
    STARTS.reset()
    await _one_by_one(peer, tasks, lambda: STARTS.count)
    await peer.stop()
    await peer.close()
    return _latencies("pickup", STARTS.waits)


async def remote(peer: Peer, tasks: int) -> Figures:
    """The same with the worker in another process, which must be woken."""
    _refuse_alone(peer)
    await peer.open(fresh=True)
    log = peer.folder / "starts"
    with _worker(peer, log) as child:
        await asyncio.to_thread(_told, child)
        await asyncio.sleep(0.5)
        await _one_by_one(peer, tasks, lambda: len(read_log(log)))
    await peer.close()
    return _latencies("remote", [at - tag for tag, at in read_log(log)])


async def _one_by_one(peer: Peer, tasks: int, started: Callable[[], int]) -> None:
    pauses = random.Random(7)
    for number in range(1, tasks + 1):
        await peer.create(time.monotonic())
        await _until(lambda number=number: started() >= number, 5)
        await asyncio.sleep(pauses.uniform(*IDLE_SECONDS))


# What lies in the store meanwhile.

BACKLOGS = {  # by name: what is in the store beside what is worked off, and how much of that waits
    "1k": ("", 0, 1_000),
    "100k": ("", 0, 100_000),
    "1M": ("", 0, 1_000_000),
    "1k above 1M ended": ("ended", 1_000_000, 1_000),
    "1k beside 1M scheduled": ("scheduled", 1_000_000, 1_000),
}


async def backlog(peer: Peer, name: str, tasks: int) -> Figures:
    """A drain of about so many tasks at a size of the store.

    A small backlog is worked off again and again; the first time does not count, for its caches are cold.
    """
    state, beside, waiting = BACKLOGS[name]
    await peer.open(fresh=True)
    if beside:
        await peer.fill(beside, state)
    found = [await _worked_off(peer, waiting, tasks)]
    if waiting <= BULK:
        found = [await _worked_off(peer, waiting, tasks) for _ in range(max(1, tasks // waiting))]
    await peer.close()
    done, seconds, cpu, written = (sum(values) for values in zip(*found, strict=True))
    return {
        f"backlog {name}": done / seconds,
        f"backlog {name} cpu": 1e6 * cpu / done,
        f"backlog {name} bytes": written / done,
    }


async def _worked_off(peer: Peer, waiting: int, most: int) -> tuple[float, ...]:
    """Add so many tasks and drain nine tenths of them, or `most`: tasks, seconds, seconds of processor time, bytes."""
    await (peer.create_many if waiting <= BULK else peer.fill)(waiting)
    STARTS.reset()
    await peer.start()
    await _until(lambda: STARTS.count > 0, 30)
    before, began, used = STARTS.count, time.perf_counter(), Used()
    end = min(round(0.9 * waiting), before + most)
    await _until(lambda: STARTS.count >= end, DRAIN_SECONDS)
    found = STARTS.count - before, time.perf_counter() - began, used.cpu(), used.written()
    if waiting <= BULK:
        await _until_settled(peer, waiting)
    await peer.stop()
    return found


# Several processes, and dead ones.


async def share(peer: Peer, seconds: float, processes: list[int]) -> Figures:
    """So many processes create in one store, a caller each: at 100 a second each, and flat out."""
    found: Figures = {}
    for name, pace in (("paced", PACE_SECONDS), ("flat out", 0.0)):
        for count in processes:
            found |= await _shared(peer, name, count, {"pace": pace, "seconds": seconds})
    return found


async def crowd(peer: Peer, seconds: float, processes: int) -> Figures:
    """So many processes create in one store at 100 a second each, and each also works off what all create."""
    return await _shared(peer, "crowd", processes, {"pace": PACE_SECONDS, "seconds": seconds, "works": 1})


async def _shared(peer: Peer, name: str, processes: int, options: dict[str, float]) -> Figures:
    """Creates a second, failed ones, and how long the others took (ms)."""
    _refuse_alone(peer)
    await peer.open(fresh=True)
    await peer.close()
    waits, errors = await asyncio.to_thread(_callers, peer, processes, options)
    at = f"{name} {processes}"
    return {
        at: len(waits) / options["seconds"],
        f"{at} errors": errors,
        f"{at} p99": _percentile(waits, 0.99),
        f"{at} max": _percentile(waits, 1.0),
    }


def _callers(peer: Peer, processes: int, options: dict[str, float]) -> tuple[list[float], int]:
    """What they waited for each create (ms), and how many failed."""
    children = [_start(peer, "caller", options) for _ in range(processes)]
    try:
        for child in children:
            _told(child)
        for child in children:  # all begin together
            child.stdin.write(b"\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
        answers = [json.loads(child.stdout.readline()) for child in children]  # type: ignore[union-attr]
        for child in children:
            child.wait(10)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [wait for answer in answers for wait in answer["waits"]], sum(answer["errors"] for answer in answers)


async def caller(peer: Peer, pace: float, seconds: float, works: float = 0) -> None:
    """The life of a child that creates."""
    await peer.open(fresh=False)
    if works:
        await peer.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    waits: list[float] = []
    errors, end, due = 0, time.perf_counter() + seconds, time.perf_counter()
    while (began := time.perf_counter()) < end:
        try:
            await peer.create()
            waits.append(1000 * (time.perf_counter() - began))
        except Exception as error:
            errors += 1
            print(repr(error)[:300], file=sys.stderr)
        due += pace
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    print(json.dumps({"waits": waits, "errors": errors}), flush=True)
    if works:
        await peer.stop()
    await peer.close()


async def worker(peer: Peer) -> None:
    """The life of a child that works until it is killed."""
    await peer.open(fresh=False)
    await peer.start()
    print("ready", flush=True)
    await asyncio.sleep(3600)


async def kill(peer: Peer, watch_seconds: float) -> Figures:
    """kill -9 amid tasks of 40 ms, and a new process at once.

    `lost` had not ended when the watch did, be it lost or stuck. `resumes` is from the kill to the next start of a
    task, Python's own start included; `rerun` to when the last of those that were under way is run again.
    """
    _refuse_alone(peer)
    await peer.open(fresh=True)
    for number in range(1, KILLED_TASKS + 1):
        await peer.create(float(number))
    await peer.close()
    log = peer.folder / "starts"
    with _worker(peer, log, KILLED_TASK_SECONDS) as child:
        await _until(lambda: sum(tag > 0 for tag, _ in read_log(log)) >= KILLED_AFTER, 30)
        child.send_signal(signal.SIGKILL)
        child.wait()
    before, killed = read_log(log), time.monotonic()

    def is_over() -> bool:
        return len({tag for tag, _ in read_log(log) if tag < 0}) == KILLED_TASKS

    with _worker(peer, log, KILLED_TASK_SECONDS):
        await _until(is_over, watch_seconds, 0.02)
        await asyncio.sleep(0.5)  # for repeats
    seen = read_log(log)
    starts = Counter(tag for tag, _ in seen if tag > 0)
    ended_before = {-tag for tag, _ in before if tag < 0}
    under_way = {tag for tag, _ in before if tag > 0} - ended_before
    later = [(tag, at - killed) for tag, at in seen[len(before) :] if tag > 0]
    again = [at for tag, at in later if tag in under_way]
    found: Figures = {
        "kill lost": KILLED_TASKS - len({tag for tag, _ in seen if tag < 0}),
        "kill repeated": sum(starts[tag] > 1 for tag in ended_before),
    }
    if later:
        found["kill resumes"] = 1000 * later[0][1]
    if again:
        found["kill rerun"] = 1000 * max(again)
    return found


PHASES: dict[str, Callable[..., Awaitable[Figures]]] = {
    one.__name__: one
    for one in (create, busy_create, bulk, drain, busy_drain, pickup, remote, backlog, share, crowd, kill)
}  # fmt: skip
LIVES: dict[str, Callable[..., Awaitable[None]]] = {"caller": caller, "worker": worker}


# What they share.


class Used:
    """Processor time and bytes written by this process since it was made, in the event loop's thread."""

    def __init__(self) -> None:
        self._cpu, self._loop, self._written = time.process_time(), time.thread_time(), _bytes_written()

    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def written(self) -> int:
        return _bytes_written() - self._written

    def each(self, name: str, tasks: int, is_embedded: bool) -> Figures:
        loop = time.thread_time() - self._loop
        found = {f"{name} cpu": 1e6 * self.cpu() / max(tasks, 1), f"{name} cpu loop": 1e6 * loop / max(tasks, 1)}
        written = self.written()
        return found | ({f"{name} bytes": written / max(tasks, 1)} if is_embedded and written else {})


def _bytes_written() -> int:
    """By calls that write to files; 0 where /proc does not say."""
    try:
        return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])
    except OSError:
        return 0


class _BusyLoop:
    """Something that computes in the event loop while the block lasts."""

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._compute())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _compute(self) -> None:
        while True:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)


async def _until(condition: Callable[[], bool], seconds: float, step: float = 0.002) -> None:
    """Wait until it holds, or so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not condition():  # noqa: ASYNC110  (most queues tell nobody what they do)
        await asyncio.sleep(step)


async def _until_settled(peer: Peer, tasks: int) -> None:
    end = time.perf_counter() + DRAIN_SECONDS
    while time.perf_counter() < end:
        if STARTS.count >= tasks and await peer.settled():
            return
        await asyncio.sleep(0.002)


def _latencies(name: str, seconds: list[float]) -> Figures:
    if not seconds:
        raise NotOffered("no task was started in time")
    waits = [1000 * wait for wait in seconds]
    return {
        f"{name} p50": statistics.median(waits),
        f"{name} p95": _percentile(waits, 0.95),
        f"{name} p99": _percentile(waits, 0.99),
    }


def _percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[round(part * (len(ordered) - 1))] if ordered else 0.0


def _refuse_alone(peer: Peer) -> None:
    if not peer.is_shared:
        raise NotOffered("its store is the memory of one process")


def _start(peer: Peer, life: str, options: dict[str, float], **variables: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.child", peer.__module__.rpartition(".")[2], life, json.dumps(options)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, **pipes)


@contextmanager
def _worker(peer: Peer, log: Path, task_seconds: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works, and notes starts and ends in the log; killed when the block ends."""
    child = _start(peer, "worker", {}, BENCH_LOG=str(log), BENCH_TASK_SECONDS=str(task_seconds))
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _told(child: subprocess.Popen[bytes]) -> None:
    if not child.stdout or child.stdout.readline() != b"ready\n":
        raise RuntimeError("a child process ended before it was ready")
