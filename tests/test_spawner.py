"""The process that forks supervisors: what they inherit, whose end is heard, and that nothing depends on its life."""

import gc
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from clients import until
from servers import Place, wait_for

from taskorch.work import spawner, supervised
from taskorch.work.following import make_folder
from taskorch.work.spawner import Spawner
from taskorch.work.supervised import Order, SpawnFailed, Supervised

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

MEMORY_KIB = 4096


class Started:
    """A spawner, and the shims that it has started."""

    def __init__(self, folder: Path) -> None:
        self.spawner = Spawner(folder / "cache")
        self.folder = folder / "output"
        self.folder.mkdir()
        self.shims: list[Supervised] = []
        self._numbers = itertools.count()

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        assert self.spawner._process
        return self.spawner._process._popen.pid

    async def shim(self) -> Supervised:
        folder = self.folder / f"t{next(self._numbers)}" / "1"
        make_folder(folder)
        shim = await self.spawner.start(folder)
        self.shims.append(shim)
        return shim

    async def running(self, *argv: str, **options: Any) -> Supervised:
        shim = await self.shim()
        await shim.order(order(*argv, **options))
        return shim

    async def ran(self, *argv: str) -> supervised.Exit | None:
        shim = await self.running(*argv)
        await shim.ended()
        shim.close()
        return supervised.exit_record(shim.folder)

    def close(self) -> None:
        for shim in self.shims:
            if shim._pipe >= 0:
                shim.kill()
                shim.close()
        self.spawner.close()


def order(program: str, *arguments: str, on_server_exit: str = "survive") -> Order:
    return Order(program, (program, *arguments), "/", (), {}, None, 60, 5, on_server_exit)


def is_forked(shim: Supervised) -> bool:
    return shim._process is None


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    return {int(fd.name): os.readlink(fd) for fd in folder.iterdir()}


def status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{field}:"))


def named_by(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and not status(pid, "State").startswith("Z")


def child(shim: Supervised) -> int:
    """The command's own pid, 0 before it is noted."""
    lines = (shim.folder / "shim.lock").read_text().splitlines()
    return int(lines[2].split()[0]) if len(lines) > 2 else 0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started
    started.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawner, "FORK_SECONDS", 0.5)
    monkeypatch.setattr(spawner, "LAST_SECONDS", 0.2)


# What a shim is.


async def test_a_forked_shim_leads_its_own_session_and_is_the_reaper_of_its_command_alone(started: Started) -> None:
    shim = await started.running("/bin/sh", "-c", "setsid sleep 60 & echo $!; exec sleep 60")
    assert is_forked(shim)
    assert os.getsid(shim._pid) == shim._pid
    assert supervised.holder(shim.folder) == shim._pid
    await until(lambda: (shim.folder / "output").read_bytes().endswith(b"\n") and child(shim))
    orphan = int((shim.folder / "output").read_bytes())
    os.kill(child(shim), signal.SIGKILL)
    with anyio.fail_after(5):
        await shim.ended()
    assert not is_alive(orphan)
    assert int(status(started.pid, "PPid")) == os.getpid()


async def test_a_shim_and_its_command_have_nothing_open_that_belongs_to_others(started: Started) -> None:
    """One connection too many, and nobody hears that a server is gone."""
    first = await started.running("/bin/sleep", "60")
    second = await started.running("/bin/sleep", "60")
    for shim in (first, second):
        await until(lambda shim=shim: child(shim))
        own = descriptors(shim._pid)
        assert own[0] == own[1]
        assert own[2] == os.devnull
        assert sorted(os.path.basename(name) for name in own.values() if name.startswith(str(started.folder))) == [
            "1",
            "exit.json.tmp",
            "output",
            "shim.lock",
        ]
        sockets = [name for name in own.values() if name.startswith("socket:")]
        assert len(sockets) == 2  # the same one twice
        assert set(descriptors(child(shim))) == {0, 1, 2}
    assert descriptors(first._pid)[0] != descriptors(second._pid)[0]
    idle = descriptors(started.pid)
    assert len(idle) == 3
    assert not {idle[0]} & {name for shim in started.shims for name in descriptors(shim._pid).values()}


async def test_a_closed_connection_is_heard_although_others_were_forked_meanwhile(started: Started) -> None:
    shim = await started.running("/bin/sleep", "60", on_server_exit="stop")
    await started.running("/bin/sleep", "60")
    pidfd = os.pidfd_open(shim._pid)
    shim.close()
    with anyio.fail_after(5):
        await anyio.wait_readable(pidfd)
    os.close(pidfd)
    record = supervised.exit_record(shim.folder)
    assert record and record.why == "server_gone"


async def test_the_end_that_is_waited_for_is_that_of_the_very_shim(started: Started) -> None:
    shim = await started.running("/bin/sleep", "60")
    other = await started.running("/bin/true")
    assert named_by(shim._pidfd) == shim._pid
    with anyio.fail_after(5):
        await other.ended()
    with anyio.move_on_after(0.05) as waited:
        await shim.ended()
    assert waited.cancelled_caught
    shim.kill()
    with anyio.fail_after(5):
        await shim.ended()
    record = supervised.exit_record(shim.folder)
    assert record and record.why == "cancel"


async def test_nobody_stays_as_a_zombie_after_200_commands(started: Started) -> None:
    async def some() -> None:
        for _ in range(25):
            record = await started.ran("/bin/true")
            assert record and record.code == 0

    before = len(os.listdir("/proc/self/fd"))
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(some)
    assert all(is_forked(shim) for shim in started.shims)
    assert len(started.shims) == 200
    await until(lambda: Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text() == "")
    assert len(descriptors(started.pid)) == 3
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the spawner's connection, and what anyio keeps


async def test_a_running_command_costs_little_memory_that_nobody_shares(started: Started) -> None:
    shim = await started.running("/bin/sh", "-c", "seq 100000; exec sleep 60")
    await until(
        lambda: (shim.folder / "output").read_bytes().endswith(b"100000\n") or len(list(shim.folder.iterdir())) > 3
    )
    assert 0 < private_kib(shim._pid) <= MEMORY_KIB


# What becomes of the spawner.


async def test_shims_outlive_the_one_that_forked_them_and_the_next_are_forked_by_another(started: Started) -> None:
    go = started.folder / "go"
    os.mkfifo(go)
    shim = await started.running("/bin/sh", "-c", f"read x < {go}; exit 7")
    old = started.pid
    os.kill(old, signal.SIGKILL)
    await until(lambda: not is_alive(old))
    again = await started.ran("/bin/true")
    assert again and again.code == 0
    assert is_forked(started.shims[-1])
    assert started.pid != old
    await anyio.to_thread.run_sync(go.write_text, "\n")
    with anyio.fail_after(5):
        await shim.ended()
    record = supervised.exit_record(shim.folder)
    assert record and record.code == 7


@pytest.mark.parametrize("moment", ["forked = os.fork()", "os.setsid()"], ids=["before the fork", "in the fork"])
async def test_a_start_goes_on_directly_when_it_is_killed_in_the_middle_of_one(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source = supervised.SHIM.read_text()
    assert source.count(moment) == 1
    broken = tmp_path / "shim.py"
    broken.write_text(source.replace(moment, f"os.kill(os.getpid(), 9); {moment}"))
    monkeypatch.setattr(supervised, "compiled_shim", lambda _: broken)
    with anyio.fail_after(supervised.HELLO_SECONDS):
        record = await started.ran("/bin/true")
    assert record and record.code == 0
    assert not is_forked(started.shims[-1])


async def test_what_a_killed_fork_left_does_not_keep_the_attempt_from_starting(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "shim.py"
    greet = "        supervise(path, _greet_afar)"
    source = supervised.SHIM.read_text()
    assert source.count(greet) == 1
    broken.write_text(source.replace(greet, "        supervise(path, lambda: os.kill(os.getpid(), 9))"))
    monkeypatch.setattr(supervised, "compiled_shim", lambda _: broken)
    record = await started.ran("/bin/true")
    assert record and record.code == 0


@pytest.mark.usefixtures("impatient")
async def test_a_stopped_one_is_killed_and_keeps_nobody_from_starting(started: Started) -> None:
    await started.ran("/bin/true")
    old = started.pid
    os.kill(old, signal.SIGSTOP)
    with anyio.fail_after(supervised.HELLO_SECONDS):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(started.ran, "/bin/true")
    assert [is_forked(shim) for shim in started.shims] == [True, False, False, False, False]
    assert all(supervised.exit_record(shim.folder) for shim in started.shims)
    await until(lambda: not is_alive(old))
    await started.ran("/bin/true")
    assert is_forked(started.shims[-1])


@pytest.mark.usefixtures("impatient")
async def test_a_fork_that_is_stopped_fails_its_attempt_and_runs_nothing_when_it_wakes_up(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "shim.py"
    source = supervised.SHIM.read_text()
    note = f'os.write(os.open("{tmp_path}/pid", os.O_WRONLY | os.O_CREAT), b"%d" % os.getpid())'
    broken.write_text(
        source.replace("            os.setsid()\n", f"            {note}; os.kill(os.getpid(), 19); os.setsid()\n")
    )
    monkeypatch.setattr(supervised, "compiled_shim", lambda _: broken)
    with pytest.raises(SpawnFailed, match="did not come up"):
        await started.shim()
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGCONT)
    await until(lambda: not is_alive(pid))
    assert not (started.folder / "t0" / "1" / "exit.json").exists()


async def test_while_too_many_files_are_open_nobody_takes_an_end_for_a_lost_one(started: Started) -> None:
    folder = (await started.running("/bin/true")).folder
    ends: list[supervised.Exit | None] = []

    async def look() -> None:
        ends.append(await supervised.known(lambda: supervised.exit_record(folder)))

    await started.shims[0].ended()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with anyio.create_task_group() as group:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                supervised.holder(folder)
            group.start_soon(look)
            await anyio.wait_all_tasks_blocked()
            assert ends == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ends[0] and ends[0].code == 0


async def test_it_ends_with_the_one_that_uses_it_even_if_nobody_closes_it(started: Started) -> None:
    await started.ran("/bin/true")
    pid = started.pid
    started.spawner = Spawner(started.folder)
    gc.collect()
    await until(lambda: not is_alive(pid))


# Where it cannot be.


def refused(*_: object, **__: object) -> Any:
    raise OSError(11, "Resource temporarily unavailable")


async def test_where_it_cannot_be_started_shims_are_started_directly(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner, "_serve", refused)
    record = await started.ran("/bin/true")
    assert record and record.code == 0
    assert not is_forked(started.shims[-1])


@pytest.mark.parametrize("call", ["socketpair", "send_fds"])
async def test_where_it_cannot_be_asked_shims_are_started_directly(
    started: Started, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    await started.ran("/bin/true")
    with monkeypatch.context() as patch:
        patch.setattr(socket, call, refused)
        record = await started.ran("/bin/true")
    assert record and record.code == 0
    assert [is_forked(shim) for shim in started.shims] == [True, False]


async def test_a_limit_on_processes_is_told_as_when_nothing_is_forked(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root has no such limit, so the system calls refuse."""
    await started.ran("/bin/true")
    monkeypatch.setattr(spawner, "_Process", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    os.kill(started.pid, signal.SIGKILL)
    with pytest.raises(SpawnFailed, match=r"could not be started: .*temporarily unavailable"):
        await started.shim()


async def test_a_fork_that_the_system_refuses_is_made_up_for(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "shim.py"
    source = supervised.SHIM.read_text()
    broken.write_text(source.replace("forked = os.fork()", "raise OSError(11, 'as the test wants it')"))
    monkeypatch.setattr(supervised, "compiled_shim", lambda _: broken)
    for _ in range(2):
        record = await started.ran("/bin/true")
        assert record and record.code == 0
    assert not any(is_forked(shim) for shim in started.shims)
    assert is_alive(started.pid)


async def test_an_order_larger_than_the_connection_takes_at_once_arrives_whole(started: Started) -> None:
    arguments = ["x" * 100_000 for _ in range(8)]
    shim = await started.running("/bin/sh", "-c", "echo $(($# + ${#1}))", "sh", *arguments)
    with anyio.fail_after(5):
        await shim.ended()
    assert (shim.folder / "output").read_bytes() == b"100008\n"


# With a real server.


def test_a_killed_server_takes_its_spawner_with_it_and_leaves_its_shims_to_the_next(place: Place) -> None:
    server, begun, go = place.start(), place.folder / "begun", place.folder / "go"
    task_id = server.command("sh", "-c", f"touch {begun}; until test -e {go}; do sleep 0.01; done; echo done")
    folder = place.state / "output" / task_id / "1"
    wait_for(begun.exists)  # a shim that has no order yet leaves with its server
    shim = supervised.holder(folder)
    assert shim
    forker = int(status(shim, "PPid"))
    assert int(status(forker, "PPid")) == server.process.pid
    server.kill()
    wait_for(lambda: not is_alive(forker))
    assert is_alive(shim)
    place.start()
    wait_for(lambda: place.rows()[task_id]["owner"] not in (None, 1))
    assert supervised.holder(folder) == shim
    go.touch()
    wait_for(lambda: place.rows()[task_id]["status"] == "completed")
    assert place.rows()[task_id]["attempt"] == 1
