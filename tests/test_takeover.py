"""What a dead server leaves: other processes that really die, and the worker that goes on from there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fakes import Clock
from pools import Gate, Loose, Payload, Pool, Told, ok, other_process

from taskorch.domain.task import Completed, Outcome, Reason, Status, Task
from taskorch.storage.database import Database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store, now_ms
from taskorch.work.attempt import Attempt, Remains
from taskorch.work.handlers import Context
from taskorch.work.peers import Peers

SERVER = """
import anyio, os, pathlib, sys
from taskorch.storage.database import open_database
from taskorch.work.handlers import Handler
from taskorch.work.peers import Peers
from taskorch.storage.store import Store
from taskorch.work.worker import Worker

async def work(payload):
    print("begun", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    return "the first server's"

async def main(folder):
    async with open_database(folder / "state" / "taskorch.db") as database:
        store = Store(database)
        with Peers(folder / "servers") as peers:
            owner = await store.register(peers.uuid, os.getpid(), "0", ["work"])
            async with anyio.create_task_group() as group:
                group.start_soon(store.follow_others)
                await Worker(store, peers, owner, {"work": Handler(work)}, 2).run()

anyio.run(main, pathlib.Path(sys.argv[1]))
"""


class Server:
    """A server in a process of its own. Its handler says that it has begun, and ends when it is let."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def begun(self) -> None:
        assert self._process.stdout
        with anyio.fail_after(10):
            assert await anyio.to_thread.run_sync(self._process.stdout.readline) == "begun\n"

    def let(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(5)

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


class Left:
    """A kind that says what an inspection finds, and waits for the word to say it."""

    in_process = False
    max_attempts = 1

    def __init__(self, remains: Remains) -> None:
        self.remains = remains
        self.inspecting = anyio.Event()
        self.go_on = anyio.Event()
        self.adopted: list[bool] = []

    def check(self, payload: Mapping[str, Any]) -> None: ...

    async def inspect(self, task: Task) -> Remains:
        self.inspecting.set()
        await self.go_on.wait()
        return self.remains

    async def run(self, attempt: Attempt) -> Outcome | None:
        self.adopted.append(attempt.adopted)
        return Completed("adopted" if attempt.adopted else "anew")


@pytest.fixture
def pool(database: Database, queries: Queries, tmp_path: Path) -> Pool:
    """Its clock starts at the real time, as other processes have no other."""
    clock = Clock(now_ms())
    return Pool(Store(database, clock), queries, clock, tmp_path)


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


async def begin(pool: Pool, server: Server, **fields: Any) -> Task:
    """A task that the other server works on."""
    task = await pool.add(**fields)
    await server.begun()
    return await pool.get(task)


async def claimed_by_the_dead(pool: Pool, kind: str = "left", **fields: Any) -> Task:
    """A task that names a server which is gone."""
    await pool.add(kind, **{"max_attempts": 1} | fields)
    with Peers(pool.folder / "servers") as peers:
        owner = await pool.store.register(peers.uuid, os.getpid(), "0", [kind])
        [task] = await pool.store.claim(owner, {kind: 0}, 1)
    return task


async def which_start(payload: Payload, context: Context) -> int:
    return context.task.attempt


# Servers that die.


async def test_work_of_a_killed_server_runs_again_elsewhere(pool: Pool, told: Told, tmp_path: Path) -> None:
    with server(tmp_path) as other:
        task = await begin(pool, other)
        async with pool.running(work=which_start):
            other.kill()
            task = await pool.backing_off(task)
            assert task.error is not None
            assert (task.error.reason, task.interruptions) == (Reason.WORKER_LOST, 0)
            await pool.pass_backoff()
            task = await pool.ended(task)
    assert (task.status, task.result) == (Status.COMPLETED, 2)
    assert await pool.attempts(task) == [(1, "failed", "worker_lost"), (2, "completed", None)]
    assert "took over task" in await told.line(task.id)


async def test_a_killed_server_is_noticed_at_the_next_start_too(pool: Pool, tmp_path: Path) -> None:
    with server(tmp_path) as other:
        task = await begin(pool, other, max_attempts=1)
        other.kill()
    async with pool.running(work=which_start):
        task = await pool.ended(task)
    assert task.error is not None
    assert (task.status, task.error.reason) == (Status.FAILED, Reason.WORKER_LOST)


async def test_a_dead_server_is_forgotten_with_its_file(pool: Pool, tmp_path: Path) -> None:
    with server(tmp_path) as other:
        task = await begin(pool, other, max_attempts=1)
        other.kill()
    [dead] = await pool.store.others(0)
    file = tmp_path / "servers" / f"{dead.uuid}.lock"
    assert file.exists()
    async with pool.running(work=ok):
        await pool.ended(task)
        with anyio.fail_after(5):
            while file.exists():  # nothing tells
                await anyio.lowlevel.checkpoint()
        assert dead not in await pool.store.others(0)


async def test_a_cancel_that_a_server_did_not_live_to_obey_is_obeyed_by_the_next(pool: Pool, tmp_path: Path) -> None:
    with server(tmp_path) as other:
        task = await begin(pool, other)
        other.freeze()
        await pool.store.cancel(task.id, "", "client")
        other.kill()
    async with pool.running(work=which_start):
        task = await pool.ended(task)
    assert (task.status, task.attempt) == (Status.CANCELLED, 1)


async def test_a_deletion_that_a_server_did_not_live_to_see_is_made_by_the_next(pool: Pool, tmp_path: Path) -> None:
    with server(tmp_path) as other:
        task = await begin(pool, other)
        other.freeze()
        await pool.store.delete(task.id, True, "client")
        other.kill()
    gone = anyio.Event()
    with pool.store.listening(lambda changes: gone.set() if (task.id, None) in changes else None):
        async with pool.running(work=which_start):
            with anyio.fail_after(5):
                await gone.wait()


async def test_a_frozen_server_keeps_its_work_and_completes_it(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, is_dead = anyio.Event(), Peers.is_dead
    looks = 0

    def look(peers: Peers, *of: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks == 20:
            looked.set()
        return is_dead(peers, *of)

    monkeypatch.setattr(Peers, "is_dead", look)
    monkeypatch.setattr("taskorch.work.worker.TICK_SECONDS", 0.01)
    with server(tmp_path) as other:
        task = await begin(pool, other)
        other.freeze()
        async with pool.running(work=which_start), anyio.create_task_group() as group:
            await looked.wait()
            pool.clock.advance(86_400)  # however much time seems to have passed
            assert await pool.get(task) == task
            other.thaw()
            other.let()
            group.start_soon(pool.store.follow_others)
            task = await pool.ended(task)
            group.cancel_scope.cancel()
    assert (task.result, task.attempt) == ("the first server's", 1)


async def test_the_late_end_of_a_server_whose_work_was_taken_is_refused(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its lock had been lost while it lives: the fence alone has to hold."""
    with server(tmp_path) as other:
        task = await begin(pool, other)
        monkeypatch.setattr(Peers, "is_dead", lambda *_: True)
        async with pool.running(work=which_start), anyio.create_task_group() as group:
            await pool.backing_off(task)
            other.let()
            group.start_soon(pool.store.follow_others)
            await pool.pass_backoff()
            task = await pool.ended(task)
            group.cancel_scope.cancel()
    assert (task.result, task.attempt) == (2, 2)


async def test_two_servers_that_find_one_dead_run_its_work_once(pool: Pool, tmp_path: Path) -> None:
    ran: list[int] = []

    async def work(payload: Payload, context: Context) -> None:
        ran.append(payload["n"])

    dead = [await claimed_by_the_dead(pool, "work", payload={"n": n}, max_attempts=2) for n in range(10)]
    async with other_process(tmp_path, pool.clock) as store, anyio.create_task_group() as group:
        other = Pool(store, pool.queries, pool.clock, tmp_path)
        async with pool.running(work=work), other.running(work=work):
            for each in (pool, other):
                group.start_soon(each.store.follow_others)
            for task in dead:
                await pool.backing_off(task)
            await pool.pass_backoff()
            for task in dead:
                assert (await pool.ended(task)).attempt == 2
        group.cancel_scope.cancel()
    assert sorted(ran) == list(range(10))


# What an inspection finds decides.


@pytest.mark.parametrize(
    ("remains", "status", "reason"),
    [
        (Remains.NOTHING, Status.WAITING, Reason.WORKER_LOST),
        (Remains.NEVER_BEGUN, Status.WAITING, Reason.INTERRUPTED),
        (Remains.UNKNOWN, Status.FAILED, Reason.WORKER_LOST),
    ],
)
async def test_what_is_left_decides_whether_it_may_run_again(
    pool: Pool, remains: Remains, status: Status, reason: Reason
) -> None:
    task = await claimed_by_the_dead(pool, max_attempts=2)
    left = Left(remains)
    left.go_on.set()
    async with taking_over_only(pool, left):
        task = await pool.seen(task, lambda task: task.status is not Status.WORKING)
    assert task.error is not None
    assert (task.status, task.error.reason) == (status, reason)
    assert task.interruptions == (remains is Remains.NEVER_BEGUN)
    assert left.adopted == []


def taking_over_only(pool: Pool, kind: Any) -> Any:
    """A worker that claims nothing of that kind, as where no commands are allowed."""
    return pool.running(1, others={"left": kind}, ok=ok)


async def test_a_kind_that_may_not_be_claimed_here_is_taken_over_all_the_same(pool: Pool) -> None:
    task = await claimed_by_the_dead(pool)
    waiting = await pool.add("left")
    left = Left(Remains.ADOPTABLE)
    left.go_on.set()
    async with taking_over_only(pool, left):
        task = await pool.ended(task)
        await pool.ended(await pool.add("ok"))
        assert (await pool.get(waiting)).status is Status.WAITING
    assert (task.result, task.attempt, left.adopted) == ("adopted", 1, [True])


async def test_work_of_a_kind_that_nobody_here_knows_is_put_back(pool: Pool) -> None:
    task = await claimed_by_the_dead(pool, "unheard_of", max_attempts=2)
    async with pool.running(work=ok):
        task = await pool.backing_off(task)
    assert task.error is not None
    assert task.error.reason is Reason.WORKER_LOST


async def test_a_server_that_stops_in_the_middle_of_a_takeover_leaves_it_to_the_next(pool: Pool) -> None:
    task = await claimed_by_the_dead(pool)
    left = Left(Remains.ADOPTABLE)
    async with pool.running(left=left) as worker:
        await left.inspecting.wait()
        worker.stop()
        left.go_on.set()
    assert (await pool.get(task)).owner == task.owner
    assert left.adopted == []
    async with pool.running(left=left):
        task = await pool.ended(task)
    assert task.result == "adopted"


async def test_a_server_told_to_stop_while_it_adopts_leaves_the_work_to_the_next(pool: Pool) -> None:
    task = await claimed_by_the_dead(pool)
    left = Left(Remains.ADOPTABLE)
    left.go_on.set()
    async with pool.running(left=left) as worker:

        def stop(changes: Any) -> None:
            if any(now.id == task.id and now.owner != task.owner for _, now in changes if now):
                worker.stop()

        with pool.store.listening(stop):
            await pool.seen(task, lambda now: now.owner != task.owner)
    assert left.adopted == []
    async with pool.running(left=left):
        assert (await pool.ended(task)).result == "adopted"


async def test_a_task_that_may_have_killed_its_server_is_not_claimed_ahead_of_others(pool: Pool) -> None:
    """While one is about, nothing is: a further crash should cost as few starts as possible."""
    gate, suspect = Gate(), await claimed_by_the_dead(pool, "short", max_attempts=3)

    async def short(payload: Payload) -> Any:
        return await gate(payload) if payload.get("long") else None

    async with pool.running(1, short=short):
        await pool.backing_off(suspect)
        for task in [await pool.add("short") for _ in range(30)]:
            await pool.ended(task)
        await pool.add("short", {"long": True})
        await gate.begun.wait()
        others = [await pool.add("short") for _ in range(5)]
        await anyio.wait_all_tasks_blocked()
        assert {(await pool.get(task)).status for task in others} == {Status.WAITING}
        gate.open.set()
        for task in others:
            await pool.ended(task)


async def test_work_left_by_a_server_without_a_record_is_taken_over(pool: Pool) -> None:
    await pool.add("work", max_attempts=1)
    [task] = await pool.store.claim(4711, {"work": 0}, 1)
    async with pool.running(work=ok):
        task = await pool.ended(task)
    assert task.error is not None
    assert task.error.reason is Reason.WORKER_LOST


async def test_a_server_that_let_go_of_work_is_followed_by_one_that_finds_it(pool: Pool) -> None:
    loose = Loose()
    async with pool.running(left=loose):
        task = await pool.add("left", max_attempts=1)
        await loose.begun.wait()
        loose.open.set()
    task = await pool.get(task)
    assert task.status is Status.WORKING
    left = Left(Remains.ADOPTABLE)
    left.go_on.set()
    async with pool.running(left=left):
        assert (await pool.ended(task)).result == "adopted"
