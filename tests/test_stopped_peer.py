"""One process stopped in the middle of a transaction: who it is, what the others do meanwhile and afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from pools import Gate, Pool, Told, ok
from servers import Place, wait_for

from taskorch.domain.errors import StoreError
from taskorch.domain.task import Status
from taskorch.storage import busy
from taskorch.storage.database import Database, open_database
from taskorch.work import settler, worker
from taskorch.work.handlers import Context

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the holder is found through /proc/locks")

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
print("holding", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


class Holder:
    """A process of its own in the middle of a transaction."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """It goes on, and ends its transaction."""
        self.process.send_signal(signal.SIGCONT)
        self.process.communicate("\n", timeout=10)


@contextmanager
def holder(path: Path) -> Iterator[Holder]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "holding\n"
            yield Holder(process)
        finally:
            process.kill()


@contextmanager
def stopped_holder(path: Path) -> Iterator[Holder]:
    with holder(path) as found:
        found.stop()
        yield found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "taskorch.db"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the lock gives up soon, and tries again soon."""
    monkeypatch.setattr(busy, "BUSY_SECONDS", 0.05)
    for module in (worker, settler):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)


# What the error says.


async def refusal(database: Database) -> str:
    with pytest.raises(StoreError) as error:
        await database.write(lambda tx: None)
    return str(error.value)


async def test_the_error_names_the_stopped_process_and_how_to_go_on(
    database: Database, path: Path, impatient: None
) -> None:
    with stopped_holder(path) as found:
        assert await refusal(database) == (
            f"The store is busy: process {found.pid} holds its write lock and is stopped. Nothing was changed. Resume "
            f"that process (kill -CONT {found.pid}) or end it (kill -KILL {found.pid}); then call again."
        )
        found.resume()
    await database.write(lambda tx: None)


async def test_the_error_names_a_process_that_is_only_slow(database: Database, path: Path, impatient: None) -> None:
    with holder(path) as found:
        said = await refusal(database)
    assert f"process {found.pid} holds its write lock. Nothing was changed; call again in a moment." in said
    assert f"end that process (kill {found.pid})" in said
    assert "stopped" not in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "another process holds its write lock. Nothing was changed; call again in a moment."),
        ("1: POSIX  ADVISORY  WRITE -1 fe:00:{inode} 120 120\n", "a process of another container holds its write lock"),
    ],
)
async def test_a_holder_without_a_pid_here_is_told_of_without_one(
    line: str, said: str, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(busy.lock_holder, "__defaults__", (path.with_name("locks"),))
    (path.with_name("locks")).write_text(line.format(inode=path.with_name("taskorch.db-shm").stat().st_ino))
    with stopped_holder(path):
        assert said in await refusal(database)


async def test_whoever_is_ended_instead_of_resumed_frees_the_others_too(database: Database, path: Path) -> None:
    with stopped_holder(path) as found:
        os.kill(found.pid, signal.SIGKILL)
        with anyio.fail_after(5):
            await database.write(lambda tx: None)


async def test_a_server_that_starts_beside_a_stopped_process_says_who_it_is(
    database: Database, path: Path, impatient: None
) -> None:
    with stopped_holder(path) as found, pytest.raises(StoreError, match=f"process {found.pid} .* is stopped"):
        async with open_database(path):
            pass


async def test_whoever_came_later_waits_its_own_time_and_no_longer(
    database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits alone; the others come meanwhile, and share the next commit."""
    ends: dict[str, str] = {}

    async def write(name: str) -> None:
        try:
            await database.write(lambda tx: None)
            ends[name] = "written"
        except StoreError:
            ends[name] = "refused"
            refused.set()

    refused = anyio.Event()
    with stopped_holder(path) as found, anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for name, seconds in (("first", 0.2), ("second", 0.2), ("late", 60.0)):
                monkeypatch.setattr(busy, "BUSY_SECONDS", seconds)
                group.start_soon(write, name)
                await anyio.wait_all_tasks_blocked()
            while len(ends) < 2:
                await refused.wait()
                refused = anyio.Event()
            assert ends == {"first": "refused", "second": "refused"}
            found.resume()
    assert ends["late"] == "written"


# What the pool does.


async def test_what_the_pool_could_not_write_is_written_when_the_stopped_process_goes_on(
    pool: Pool, told: Told, path: Path, impatient: None
) -> None:
    """A claim, an end and a report of progress, each made while nobody can write."""
    gate, telling, end = Gate(), anyio.Event(), anyio.Event()

    async def report(payload: object, context: Context) -> None:
        await telling.wait()
        context.progress(1, 2, "half")
        await end.wait()

    async with pool.running(2, gate=gate.kind, report=report, work=ok):
        ending, reporting = await pool.add("gate", {"result": 7}), await pool.add("report")
        await gate.begun.wait()
        await pool.seen(reporting, lambda task: task.status is Status.WORKING)
        ready = await pool.add("work")
        with stopped_holder(path) as found:
            telling.set()
            await told.line("progress could not be stored")
            gate.open.set()
            await told.line("the ends of 1 attempts could not be stored")
            assert f"process {found.pid}" in told.lines[-1]
            assert [(await pool.get(task)).status for task in (ending, ready)] == [Status.WORKING, Status.WAITING]
            found.resume()
        shown = await pool.seen(reporting, lambda task: task.progress is not None)
        assert shown.progress and shown.progress.message == "half"
        assert (await pool.ended(ending)).result == 7
        assert (await pool.ended(ready)).status is Status.COMPLETED
        end.set()
        await pool.ended(reporting)
    assert [attempt[:2] for attempt in await pool.attempts(ending)] == [(1, "completed")]


# The whole server, at the true limit.


def test_a_server_beside_a_stopped_process_reads_refuses_in_words_and_goes_on_afterwards(tmp_path: Path) -> None:
    place = Place(tmp_path)
    try:
        server = place.start()
        held = server.create("hold")
        server.until_working(held)
        with stopped_holder(place.state / "taskorch.db") as found:
            began = time.monotonic()
            calls = [server.post_call("create_task", kind="echo", payload={"n": n}) for n in range(3)]
            assert server.get(held)["status"] == "working", "reads go on"
            assert server.call("list_tasks")["tasks"]
            assert time.monotonic() - began < 5
            wait_for(lambda: server.answered() >= set(calls), 15)
            assert 9.5 < time.monotonic() - began < 13
            for request in calls:
                result = server.answer(request)["result"]
                assert result["isError"]
                assert f"process {found.pid} holds its write lock and is stopped" in result["content"][0]["text"]
            found.resume()
        made = server.create("echo", n=4)
        server.until_ended(made)
        assert place.rows().keys() == {held, made}, "what was refused was not stored"
        assert server.end() == 0
    finally:
        place.close()


def test_a_server_leaves_in_time_beside_a_stopped_process_and_the_next_one_makes_up_for_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    try:
        server = place.start()
        held = server.create("hold")
        server.until_working(held)
        with stopped_holder(place.state / "taskorch.db") as found:
            assert server.end() == 0
            assert place.row(held)["status"] == "working"
            found.resume()
        following = place.start()
        following.until_ended(held)
        assert following.get(held)["status"] == "completed"
        assert following.end() == 0
    finally:
        place.close()
