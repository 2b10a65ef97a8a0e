"""Command trees of every shape, ended in every way: nothing of them may be left, and get_task must say what happened.

Each end gets real servers of its own, which run one task of each shape. Round 1 waits until the trees have grown; later
rounds strike at a random moment while they grow. Then: no process with a task's marker after 2 s and the grace, none at
all once a reply says that the task has ended or its server has left, no supervisor, and the right status and message.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

import taskorch

GRACE_SECONDS = 0.3  # between TERM and KILL
GONE_SECONDS = 2.0 + GRACE_SECONDS  # from the end to the last process
LEAVE_SECONDS = 1.9  # for a server to leave by itself; after 2.0 the SDK's client sends SIGTERM
GROW_SECONDS = 15.0  # for all trees of an end to grow
STAGE_SECONDS = 60.0  # one end with all its shapes
AT_ONCE = 2  # ends under way together
POLL_SECONDS = 0.01
BOMB = "bomb() { [ $1 = 0 ] || { bomb $(($1-1)) & bomb $(($1-1)) & }; while :; do sleep 0.2; done; }; bomb 4"


# A script for `sh -c`, and how many marked processes it has once it has grown. Each is given STDIN.
SHAPES = {
    "plain": ("exec sleep 600", 1),
    "background": ("sleep 600 & exec sleep 600", 2),
    "setsid": ("setsid sleep 600 & exec sleep 600", 2),
    "double-fork": ("(setsid sh -c 'sleep 600 & sleep 600 &' &); exec sleep 600", 3),
    "ignores-term": ("trap '' TERM; sleep 600 & setsid sleep 600 & sleep 600; sleep 600", 4),
    "closed-fds": ("exec 0<&- 1>&- 2>&-; sleep 600 & sleep 600; sleep 600", 3),
    "writes": ("while :; do echo 'a line, and the next'; done | cat", 3),
    "reads-stdin": ("read -r line; cat; sleep 600 & sleep 600; sleep 600", 3),
    "fork-bomb": (BOMB, 50),  # 31 shells that fork for ever, at most 62 processes at once
}
STDIN = "a line\n" + "x" * 100_000


@dataclass
class Cell:
    """One shape under one end: its task, and what was seen of it."""

    shape: str
    end: str
    task_id: str = ""
    told: float = 0.0  # when it was told to end (monotonic)
    gone_ms: int = -1
    wrong: list[str] = field(default_factory=list[str])

    def none_alive(self, when: str) -> None:
        if left := marked().get(self.task_id):
            self.wrong.append(f"{len(left)} processes alive when {when}")


class Stage:
    """One end: a state folder, the servers on it one after the other, and a cell for each shape."""

    client: Client  # of the latest server

    def __init__(self, folder: Path, cells: list[Cell], moment: float | None) -> None:
        self.state = folder / "state"
        self.cells = cells
        self.servers = AsyncExitStack()
        self._moment = moment  # how long after its first process each tree is struck; None: when all have grown

    async def start(self) -> None:
        """The next server, with the SDK's client of it, until `servers` is closed."""
        given = {"STATE_DIR": self.state, "ALLOW_COMMANDS": "*", "GRACE_SECONDS": GRACE_SECONDS}
        given |= {"CONCURRENCY": len(self.cells)}
        environment = {f"TASKORCH_{name}": str(value) for name, value in given.items()}
        environment["PYTHONPATH"] = str(Path(taskorch.__file__).parents[1])
        server = StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=environment, cwd="/")
        await until(lambda: not servers(self.state))
        self.client = await self.servers.enter_async_context(Client(server))

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The facts that a tool answers. Raises LookupError with the text of a refusal."""
        result = await self.client.call_tool(tool, arguments)
        if result.is_error or not result.structured_content:
            raise LookupError(result.content)
        return result.structured_content

    def signal(self, number: int) -> None:
        for pid in servers(self.state):
            os.kill(pid, number)

    async def grow(self, **options: Any) -> None:
        """Start a server with every tree on it; return at the moment to end them."""
        await self.start()
        size: dict[str, int] = {}
        for cell in self.cells:
            script, processes = SHAPES[cell.shape]
            payload = {"argv": ["sh", "-c", script], "stdin": STDIN}
            cell.task_id = (await self.call("create_task", payload=payload, **options))["id"]
            cell.told = time.monotonic()
            size[cell.task_id] = processes if self._moment is None else 1
        await until(lambda: all(len(marked().get(task_id, ())) >= n for task_id, n in size.items()))
        await anyio.sleep(self._moment or 0)
        for cell in self.cells:
            cell.told = max(time.monotonic(), cell.told + options.get("timeout_seconds", 0))

    async def watch(self) -> None:
        """Note when the last process of each tree has gone; what is still there in the end is wrong."""
        last = max(cell.told for cell in self.cells) + GONE_SECONDS
        while (left := [cell for cell in self.cells if cell.gone_ms < 0]) and time.monotonic() < last:
            found = marked()
            for cell in left:
                if not found.get(cell.task_id):
                    cell.gone_ms = max(0, round((time.monotonic() - cell.told) * 1000))
            await anyio.sleep(POLL_SECONDS)
        for cell in left:
            cell.none_alive(f"{GONE_SECONDS:g} s had passed")

    async def each(self, step: Callable[[Cell], Coroutine[Any, Any, None]]) -> None:
        """Do something with all cells at once, while watching their processes go."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.watch)
            for cell in self.cells:
                group.start_soon(step, cell)


async def told(stage: Stage, status: str, reason: str, words: str, cell: Cell) -> None:
    """Wait until a reply says that it has ended: then no process may be left, and get_task says what happened."""
    if not (await stage.call("wait_for_tasks", task_ids=[cell.task_id], timeout_seconds=30))["done"]:
        cell.wrong.append("it did not end")
    cell.none_alive("it was said to have ended")
    task = await stage.call("get_task", task_id=cell.task_id, detail="full")
    error = task.get("error", {})
    said = (task["status"], error.get("reason"), [attempt.get("outcome") for attempt in task["attempts"]])
    if said != (status, reason, [status]) or words not in error["message"]:
        cell.wrong.append(f"get_task says {said}: {error.get('message')}")


async def cancel(stage: Stage, cell: Cell) -> None:
    await stage.call("cancel_task", task_id=cell.task_id, reason="enough")
    await told(stage, "cancelled", "user", "enough; its process tree was ended", cell)


async def delete(stage: Stage) -> None:

    async def step(cell: Cell) -> None:
        await stage.call("delete_task", task_id=cell.task_id, confirm=True)
        with suppress(LookupError):  # a refusal: it is gone already
            await stage.call("wait_for_tasks", task_ids=[cell.task_id], timeout_seconds=30)
        cell.none_alive("it was said to be deleted")
        with suppress(LookupError):
            cell.wrong.append(f"it is still stored: {await stage.call('get_task', task_id=cell.task_id)}")

    await stage.each(step)


async def kill_9(stage: Stage) -> None:
    stage.signal(signal.SIGKILL)
    await stage.watch()  # nobody but the supervisors can do it
    await stage.start()
    await stage.each(partial(told, stage, "failed", "interrupted", "its server went away"))


async def adopt(stage: Stage) -> None:
    """They outlive their server; the next one adopts them and can cancel them."""
    stage.signal(signal.SIGKILL)
    await stage.start()
    found = marked()
    for cell in stage.cells:
        cell.wrong += [] if found.get(cell.task_id) else ["it did not survive its server"]
        events: list[dict[str, Any]] = []
        while not any(event["event"] == "adopted" for event in events):
            events = (await stage.call("get_task", task_id=cell.task_id, detail="full")).get("events", [])
        cell.told = time.monotonic()
    await stage.each(partial(cancel, stage))


async def sigterm(stage: Stage) -> None:
    stage.signal(signal.SIGTERM)
    await _has_left(stage)


async def end_stdin(stage: Stage) -> None:
    await stage.servers.aclose()  # the client closes stdin; after 2 s it would send SIGTERM
    await _has_left(stage)


async def kill_shim(stage: Stage) -> None:
    """The one way to lose the tree: its owner has to find it by the marker."""
    for pid in shims(stage.state):
        os.kill(pid, signal.SIGKILL)
    await stage.each(partial(told, stage, "failed", "worker_lost", "its supervisor was killed"))


async def _has_left(stage: Stage) -> None:
    """The server leaves in time, its trees gone; the next one knows how they ended."""
    await until(lambda: not servers(stage.state))
    late = time.monotonic() - stage.cells[0].told > LEAVE_SECONDS
    for cell in stage.cells:
        cell.wrong += ["the server did not leave in time"] if late else []
        cell.none_alive("the server had left")
    await stage.watch()
    await stage.start()
    await stage.each(partial(told, stage, "failed", "interrupted", "the server stopped"))


LIMIT, SURVIVE, STOP = {"timeout_seconds": 3}, {"on_server_exit": "survive"}, {"on_server_exit": "stop"}
# What the tasks are created with, and what ends them once they have grown.
ENDS: dict[str, tuple[dict[str, Any], Callable[[Stage], Awaitable[None]]]] = {
    "cancel": ({}, lambda stage: stage.each(partial(cancel, stage))),
    "timeout": (LIMIT, lambda stage: stage.each(partial(told, stage, "failed", "timeout", "it ran longer than 3 s"))),
    "delete": ({}, delete),
    "kill -9": (STOP, kill_9),
    "adoption": (SURVIVE, adopt),
    "SIGTERM": (STOP, sigterm),
    "end of stdin": (STOP, end_stdin),
    "shim killed": ({}, kill_shim),
}


async def until(holds: Callable[[], bool]) -> None:
    """Look again and again: nothing tells of the deeds of another's processes."""
    with anyio.fail_after(GROW_SECONDS):
        while not holds():  # noqa: ASYNC110  (no event tells of other processes)
            await anyio.sleep(POLL_SECONDS)


def marked() -> dict[str, list[int]]:
    """The living processes that bear a task's marker in their environment, by task id."""
    found: dict[str, list[int]] = {}
    for pid, text in _proc("environ"):
        for item in text.split(b"\0"):
            if item.startswith(b"TASKORCH_TASK_ID="):
                found.setdefault(item.partition(b"=")[2].decode(), []).append(pid)
    return found


def servers(state: Path) -> list[int]:
    return [pid for pid, text in _proc("environ") if f"\0TASKORCH_STATE_DIR={state}\0".encode() in b"\0" + text]


def shims(state: Path) -> list[int]:
    """The supervisors: each has the files of its attempt open. (Their arguments are those of what has forked them.)"""
    return [pid for pid, text in _proc("cmdline") if b"/shim" in text and _has_open(pid, f"{state}/output/")]


def _has_open(pid: int, folder: str) -> bool:
    with suppress(OSError):
        return any(os.readlink(fd).startswith(folder) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _proc(file: str) -> Iterator[tuple[int, bytes]]:
    """Every process with one of its files in /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), (folder / file).read_bytes()


async def play(cells: list[Cell], moment: float | None, turn: anyio.CapacityLimiter) -> None:
    """One end with its shapes, from the first server to the last process."""
    options, end = ENDS[cells[0].end]
    async with turn:
        with tempfile.TemporaryDirectory(prefix="trees-", ignore_cleanup_errors=True) as folder:
            stage = Stage(Path(folder), cells, moment)
            wrong: list[str] = []
            try:
                with anyio.fail_after(STAGE_SECONDS):
                    async with stage.servers:
                        await stage.grow(**options)
                        await end(stage)
            except Exception as error:
                wrong = [f"{type(error).__name__}: {error}"]
            left = shims(stage.state)
            for cell in cells:
                cell.none_alive("all was over")
                cell.wrong += wrong + ([f"{len(left)} supervisors left"] if left else [])
                left += marked().get(cell.task_id, [])
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def play_round(cells: list[Cell], moments: dict[str, float | None]) -> None:
    turn = anyio.CapacityLimiter(AT_ONCE)
    async with anyio.create_task_group() as group:
        for end, moment in moments.items():
            group.start_soon(play, [cell for cell in cells if cell.end == end], moment, turn)


def report(cells: list[Cell], ends: list[str]) -> str:
    """A line for each shape, a column for each end: the milliseconds until its last process had gone."""
    lines = ["".join(f"{word:>13}" for word in ("ms to gone", *ends))]
    for shape in dict.fromkeys(cell.shape for cell in cells):
        row = ["FAILED" if cell.wrong else str(cell.gone_ms) for cell in cells if cell.shape == shape]
        lines.append("".join(f"{word:>13}" for word in (shape, *row)))
    lines += [f"FAILED {cell.shape} / {cell.end}: {'; '.join(cell.wrong)}" for cell in cells if cell.wrong]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Play the matrix; 0 only if every cell of every round passed."""
    parser = argparse.ArgumentParser(prog="python -m reliability trees", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--shape", action="append", choices=[*SHAPES])
    parser.add_argument("--end", action="append", choices=[*ENDS])
    options = parser.parse_args(argv)
    shapes, ends = options.shape or [*SHAPES], options.end or [*ENDS]
    chance, cells, began = random.Random(options.seed), list[Cell](), time.monotonic()
    for number in range(options.rounds):
        played = [Cell(shape, end) for end in ends for shape in shapes]
        anyio.run(play_round, played, {end: chance.uniform(0, 0.2) if number else None for end in ends})
        sys.stdout.write(f"round {number + 1}, seed {options.seed}\n{report(played, ends)}")
        cells += played
    failed, slowest = sum(bool(cell.wrong) for cell in cells), max(cell.gone_ms for cell in cells)
    sys.stdout.write(f"{len(cells)} cells, {failed} failed, slowest {slowest} ms; {time.monotonic() - began:.0f} s\n")
    return 1 if failed else 0
