"""Server processes on one file: each holds a kernel lock on a file of its own, so that a death is seen at once.

The lock is `lockf`: children do not inherit it. It falls when this process closes any descriptor of the file, so the
file is opened exactly once and never probed from here. Beside the lock, the file says which machine and boot it belongs
to, and a thread counts up in it: a peer whose number stands still for many looks of ours hangs, or is frozen. No clock
is compared with another's.
"""

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from taskorch.domain.errors import StoreError
from taskorch.work import machine

BEAT_SECONDS = 0.25
LOOK_SECONDS = 1.0  # a longer pause between two looks means that we were asleep or frozen
COUNTER_AT = 256  # where in the file the counter stands: 8 bytes, after the line of text
STILL_SECONDS = 60.0  # a server on another machine whose counter stands still for so long is gone
STRAY_SECONDS = 60.0  # a younger file may belong to a server that is about to note itself in the store

_OURS: set[str] = set()  # a second lock on a file of this process would succeed, and closing it would drop the first


@dataclass(frozen=True, slots=True)
class Record:
    """What a server's file says."""

    pid: int
    boot: str
    machine: str
    beats: int

    @property
    def is_of_this_boot(self) -> bool:
        return self.boot == machine.boot_id()

    @property
    def is_foreign(self) -> bool:
        """Of another machine (virtual ones that share a folder): its lock says nothing here."""
        return not self.is_of_this_boot and self.machine != machine.machine_id()


class Peers:
    """This process's identity, and who else is alive. Use as a context manager: the lock is held inside.

    `is_dead` is to be asked again and again: what it sees of a counter is what `silent_seconds` goes by.
    `at_each_beat` is called four times a second by the thread that counts, which wakes anyway.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.uuid = uuid.uuid4().hex
        self.folder = folder
        self.at_each_beat: Callable[[], None] = _nothing
        self._clock = clock
        self._fd = -1
        self._gone = threading.Event()
        self._seen: dict[str, tuple[int, float, float]] = {}  # of each peer: its counter, when we looked, silent since

    def __enter__(self) -> "Peers":
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path(self.uuid), flags, 0o600)
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _OURS.add(self.uuid)
        os.write(self._fd, f"{os.getpid()} {machine.boot_id() or '-'} {machine.machine_id()}\n".encode())
        self._thread = threading.Thread(target=self._beat, daemon=True, name="taskorch-heartbeat")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gone.set()
        self._thread.join()
        self._path(self.uuid).unlink(missing_ok=True)
        os.close(self._fd)
        _OURS.discard(self.uuid)

    def is_dead(self, peer_uuid: str, pid: int = 0, noted_at: int = 0) -> bool:
        """Whether that other server's process is gone: its lock is free, or it belongs to an earlier boot.

        `pid` and `noted_at` (ms) are what the store says of it: they decide when its file is missing, which an orderly
        exit leaves behind, but a careless hand as well.
        """
        if peer_uuid in _OURS:
            return False
        try:
            fd = os.open(self._path(peer_uuid), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return pid == os.getpid() or not machine.runs(pid, noted_at)
        except OSError:  # such as too many open files: not known to be dead
            return False
        try:
            record = _read(fd)
            self._look(peer_uuid, record.beats if record else 0)
            if record and not record.is_of_this_boot:
                return not record.is_foreign or self.silent_seconds(peer_uuid) >= STILL_SECONDS
            return _is_free(fd)
        finally:
            os.close(fd)

    def silent_seconds(self, peer_uuid: str) -> float:
        """For how long we have looked at that server's counter and it stood still; a sleep of ours does not count."""
        return self._seen.get(peer_uuid, (0, 0.0, 0.0))[2]

    def beat_age(self, peer_uuid: str) -> float:
        """Seconds since that server last counted, by the clock: for who looks once. 0 when its file is gone."""
        try:
            return max(0.0, time.time() - self._path(peer_uuid).stat().st_mtime)
        except OSError:
            return 0.0

    def forget(self, peer_uuid: str) -> None:
        """Remove a dead server's files, once its rows are settled."""
        self._path(peer_uuid).unlink(missing_ok=True)
        self._path(peer_uuid).with_suffix(".fifo").unlink(missing_ok=True)
        self._seen.pop(peer_uuid, None)

    def sweep(self, known: set[str]) -> None:
        """Remove the files of servers that died before they could note themselves in the store."""
        for path in self.folder.glob("*.lock"):
            name = path.stem
            if name not in known and name not in _OURS and _is_old(path) and self.is_dead(name):
                self.forget(name)

    def _look(self, peer_uuid: str, beats: int) -> None:
        now = self._clock()
        before, looked, silent = self._seen.get(peer_uuid, (-1, now, 0.0))
        silent += min(now - looked, LOOK_SECONDS)
        self._seen[peer_uuid] = (beats, now, silent if beats == before else 0.0)

    def _beat(self) -> None:
        beats = 0
        while True:  # by a thread: neither a busy event loop nor a busy store may make us look frozen
            beats += 1
            with suppress(OSError):  # some file systems refuse even this when they are full
                os.pwrite(self._fd, beats.to_bytes(8, "little"), COUNTER_AT)
            self.at_each_beat()
            if self._gone.wait(BEAT_SECONDS):
                return

    def _path(self, peer_uuid: str) -> Path:
        return self.folder / f"{peer_uuid or 'unknown'}.lock"


def refuse_foreign(folder: Path) -> None:
    """Raise StoreError when a server on another machine works on this folder. Takes a second if one ever has."""
    first = {path: record for path in folder.glob("*.lock") if (record := read(path)) and record.is_foreign}
    if not first:
        return
    time.sleep(4 * BEAT_SECONDS)  # for some beats of the others, before anything else has begun
    for path, record in first.items():
        again = read(path)
        if again and again.beats != record.beats:
            raise StoreError(
                f"The state folder {folder.parent} is in use by a server on another machine (pid {record.pid} there, "
                f"machine {record.machine}). SQLite's file cannot be shared between machines: stop that server, or "
                "set TASKORCH_STATE_DIR to a folder of this machine."
            )


def nobody_lives(folder: Path) -> bool:
    """Whether no server, but perhaps this process, is alive on this folder."""
    peers = Peers(folder)
    return all(path.stem in _OURS or peers.is_dead(path.stem) for path in folder.glob("*.lock"))


def read(path: Path) -> Record | None:
    """What another server's file says; None when it is gone or not yet written."""
    if path.stem in _OURS:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _read(fd)
    finally:
        os.close(fd)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime >= STRAY_SECONDS
    except FileNotFoundError:  # another server sweeps too
        return False


def _read(fd: int) -> Record | None:
    content = os.pread(fd, COUNTER_AT + 8, 0)
    words = content[:COUNTER_AT].split(b"\n")[0].decode("ascii", "replace").split()
    if len(words) != 3 or not words[0].isdecimal():
        return None
    boot = "" if words[1] == "-" else words[1]
    return Record(int(words[0]), boot, words[2], int.from_bytes(content[COUNTER_AT:], "little"))


def _nothing() -> None:
    """Nobody wants to know."""


def _is_free(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
