"""Servers on one file: who is alive is what the kernel's locks say."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from taskorch.domain.errors import StoreError
from taskorch.work import machine
from taskorch.work import peers as module
from taskorch.work.peers import BEAT_SECONDS, COUNTER_AT, Peers, read, refuse_foreign

SERVER = """
import os, pathlib, sys, time
from taskorch.work.peers import Peers

with Peers(pathlib.Path(sys.argv[1])) as peers:
    child = os.fork()  # it shares every descriptor
    if not child:
        time.sleep(60)
        os._exit(0)
    print(peers.uuid, child, flush=True)
    sys.stdin.read()
"""

LOOK = """
import pathlib, sys
from taskorch.work.peers import Peers

print(Peers(pathlib.Path(sys.argv[1])).is_dead(sys.argv[2]))
"""


class Server:
    """Another process with an identity of its own, and a child that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.uuid, child = self.process.stdout.readline().split()
        self.child = int(child)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(5)

    def leave(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(5)

    def close(self) -> None:
        self.kill()
        with suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    with Peers(tmp_path) as peers:
        yield peers


def seen_dead(folder: Path, uuid: str) -> bool:
    """What another process says."""
    answer = subprocess.run([sys.executable, "-c", LOOK, folder, uuid], capture_output=True, text=True, check=True)
    return answer.stdout == "True\n"


def test_a_living_server_is_seen_and_its_death_at_once(peers: Peers, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert not peers.is_dead(server.uuid)
        assert not peers.is_dead(server.uuid)  # looking has not changed it
        server.kill()
        assert peers.is_dead(server.uuid)


def test_a_child_that_outlives_its_server_does_not_make_it_look_alive(peers: Peers, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.kill()
        os.kill(server.child, 0)
        assert peers.is_dead(server.uuid)


def test_a_killed_server_leaves_its_file_until_it_is_forgotten(peers: Peers, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.kill()
        file = tmp_path / f"{server.uuid}.lock"
        assert file.exists()
        peers.forget(server.uuid)
        assert not file.exists()
        peers.forget(server.uuid)  # another server was faster
        assert peers.is_dead(server.uuid)


def test_an_orderly_exit_removes_the_file(peers: Peers, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.leave()
        assert [path.name for path in tmp_path.iterdir()] == [f"{peers.uuid}.lock"]
        assert peers.is_dead(server.uuid)


def test_looking_at_oneself_is_harmless(peers: Peers, tmp_path: Path) -> None:
    """A second lock in one process succeeds, and closing it drops the first."""
    assert not peers.is_dead(peers.uuid)
    with Peers(tmp_path) as other:
        assert not peers.is_dead(other.uuid)
        assert not other.is_dead(peers.uuid)
        assert not seen_dead(tmp_path, other.uuid)
    assert not seen_dead(tmp_path, peers.uuid)
    assert peers.is_dead(other.uuid)


def test_a_server_that_nobody_has_heard_of_is_dead(peers: Peers) -> None:
    assert peers.is_dead("0" * 32)
    assert peers.is_dead("")  # rows may name an owner whose record is lost


def test_what_cannot_be_looked_at_is_not_called_dead(peers: Peers, tmp_path: Path) -> None:
    (tmp_path / "strange.lock").symlink_to(tmp_path / f"{peers.uuid}.lock")
    assert not peers.is_dead("strange")


def test_files_are_for_their_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Peers(tmp_path / "servers") as peers:
            file = tmp_path / "servers" / f"{peers.uuid}.lock"
            modes = [oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "servers", file)]
            assert file.read_text().split()[0] == str(os.getpid())
    finally:
        os.umask(before)
    assert modes == ["0o700", "0o600"]


def test_every_start_has_a_new_identity(tmp_path: Path) -> None:
    peers = [Peers(tmp_path) for _ in range(3)]
    assert len({peer.uuid for peer in peers}) == 3


def noted(folder: Path, name: str, *, boot: str, computer: str, beats: int = 1) -> Path:
    """The file of a server that is not under way here."""
    path = folder / f"{name}.lock"
    path.write_bytes(f"7 {boot} {computer}\n".encode().ljust(COUNTER_AT, b"\0") + beats.to_bytes(8, "little"))
    return path


def test_a_server_says_where_it_runs_and_counts_up(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        path = tmp_path / f"{server.uuid}.lock"
        first = read(path)
        assert first and (first.pid, first.boot, first.machine) == (
            server.process.pid,
            machine.boot_id(),
            machine.machine_id(),
        )
        deadline = time.monotonic() + 5
        while (now := read(path)) and now.beats < first.beats + 2:
            assert time.monotonic() < deadline
            time.sleep(BEAT_SECONDS / 5)


def test_a_server_of_an_earlier_boot_is_dead_whatever_its_lock_says(peers: Peers, tmp_path: Path) -> None:
    noted(tmp_path, "earlier", boot="another", computer=machine.machine_id())
    assert peers.is_dead("earlier")


def test_a_server_on_another_machine_is_dead_only_when_its_counter_has_stood_still_for_long(tmp_path: Path) -> None:
    seconds = iter(range(1000))
    peers = Peers(tmp_path, lambda: next(seconds))
    noted(tmp_path, "foreign", boot="another", computer="elsewhere")
    assert [peers.is_dead("foreign") for _ in range(50)] == [False] * 50
    noted(tmp_path, "foreign", boot="another", computer="elsewhere", beats=2)  # it moves
    assert [peers.is_dead("foreign") for _ in range(61)] == [False] * 60 + [True]


def test_what_passed_while_we_slept_is_no_silence_of_others(tmp_path: Path) -> None:
    now = 0.0
    peers = Peers(tmp_path, lambda: now)
    noted(tmp_path, "foreign", boot="another", computer="elsewhere")
    peers.is_dead("foreign")
    now = 3600.0
    assert not peers.is_dead("foreign")
    assert peers.silent_seconds("foreign") == 1.0


def test_a_folder_that_another_machine_works_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beat(_: float) -> None:
        noted(tmp_path, "foreign", boot="another", computer="elsewhere", beats=2)

    noted(tmp_path, "foreign", boot="another", computer="elsewhere")
    noted(tmp_path, "earlier", boot="another", computer=machine.machine_id())
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    refuse_foreign(tmp_path)  # it does not move: left behind
    monkeypatch.setattr(module.time, "sleep", beat)
    with pytest.raises(StoreError, match=r"another machine \(pid 7 there, machine elsewhere\).*TASKORCH_STATE_DIR"):
        refuse_foreign(tmp_path)


def test_a_frozen_server_is_silent_and_not_dead(peers: Peers, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        deadline = time.monotonic() + 5
        while peers.silent_seconds(server.uuid) < 4 * BEAT_SECONDS:
            assert time.monotonic() < deadline and not peers.is_dead(server.uuid)
        os.kill(server.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 5
        while peers.silent_seconds(server.uuid):
            assert time.monotonic() < deadline and not peers.is_dead(server.uuid)


def test_a_server_whose_file_was_removed_is_alive_while_its_process_is(peers: Peers, tmp_path: Path) -> None:
    before = time.time_ns() // 1_000_000
    with serving(tmp_path) as server:
        (tmp_path / f"{server.uuid}.lock").unlink()
        now = time.time_ns() // 1_000_000
        assert not peers.is_dead(server.uuid, server.process.pid, now)
        assert peers.is_dead(server.uuid, server.process.pid, before - 5_000)  # the number belongs to a later process
        server.kill()
        assert peers.is_dead(server.uuid, server.process.pid, now)


def test_files_of_servers_that_nobody_knows_are_swept(peers: Peers, tmp_path: Path) -> None:
    old = noted(tmp_path, "old", boot=machine.boot_id() or "-", computer=machine.machine_id())
    known = noted(tmp_path, "known", boot=machine.boot_id() or "-", computer=machine.machine_id())
    young = noted(tmp_path, "young", boot=machine.boot_id() or "-", computer=machine.machine_id())
    for path in (old, known):
        os.utime(path, (0, 0))
    with serving(tmp_path) as server:
        living = tmp_path / f"{server.uuid}.lock"
        os.kill(server.process.pid, signal.SIGSTOP)  # or its next beat would make it young
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        os.utime(living, (0, 0))
        peers.sweep({"known"})
        assert not old.exists()
        assert known.exists() and young.exists() and living.exists()
        os.kill(server.process.pid, signal.SIGCONT)


def test_a_dead_server_leaves_no_file_once_it_is_forgotten(peers: Peers, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        os.mkfifo(tmp_path / f"{server.uuid}.fifo")
        server.kill()
        assert peers.is_dead(server.uuid)
        peers.forget(server.uuid)
    assert not list(tmp_path.glob(f"{server.uuid}.*"))


def test_the_heartbeat_ends_with_the_server(tmp_path: Path) -> None:
    with Peers(tmp_path):
        assert any(thread.name == "taskorch-heartbeat" for thread in threading.enumerate())
    assert not any(thread.name == "taskorch-heartbeat" for thread in threading.enumerate())
