"""A shim seen from the server: starting one, steering it, waiting for its end, and what it left on disk."""

import fcntl
import os
import py_compile
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import EMFILE, ENFILE
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import anyio
import anyio.to_thread
from pydantic import Field, TypeAdapter

Found = TypeVar("Found")

_LET_GO: list[subprocess.Popen[bytes]] = []  # shims that go on without us; subprocess warns when it forgets one
SHIM = Path(__file__).with_name("shim.py")
DID_NOT_COME_UP = "the supervisor did not come up; see free memory, disk and the limit on processes"
HELLO_SECONDS = 5.0
POLL_SECONDS = 0.1  # how often a shim is looked at where there is no pidfd
TOO_MANY = (EMFILE, ENFILE)
RECORD_BYTES = 4096  # an exit.json larger than this was not written by a shim

# `struct flock` begins type, whence, start, length, pid on Linux and start, length, pid, type, whence on macOS.
_FLOCK, _PID = ("hhqqi4x", 4) if sys.platform == "linux" else ("qqihh", 2)


Small = Annotated[int, Field(ge=0, le=4095)]  # larger ones were not written by a shim: no system has such numbers
Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class Exit:
    """What a shim put on record when its command had ended."""

    why: Literal["exit", "timeout", "cancel", "server_gone", "spawn_error"]
    code: Small | None
    signal: Small | None
    errno: Small | None
    tree_gone: bool
    killed: Count
    bytes: Count


_EXIT = TypeAdapter(Exit)


@dataclass(frozen=True, slots=True)
class Order:
    """What a shim shall run."""

    program: str
    argv: tuple[str, ...]
    cwd: str
    roots: tuple[str, ...]  # folders that the real one must be in or below; none: it may be anywhere
    env: dict[str, str]
    stdin: str | None
    timeout_seconds: float
    grace_seconds: float
    on_server_exit: str

    def encode(self) -> bytes:
        """Records of one letter, a value and NUL, as shim.py reads them; it starts the command at the last, `G`."""
        records = [f"x{self.program}", f"c{self.cwd}", f"t{self.timeout_seconds}", f"g{self.grace_seconds}"]
        records += [f"s{self.on_server_exit}"]
        records += [f"r{root}" for root in self.roots]
        records += [f"a{item}" for item in self.argv]
        records += [f"e{name}={value}" for name, value in self.env.items()]
        records += [] if self.stdin is None else [f"i{self.stdin}"]
        return "\0".join([*records, "G", ""]).encode("utf-8", "surrogateescape")


class SpawnFailed(Exception):
    """The shim itself did not come up; nothing was started."""


class Supervised:
    """A shim at work. `pipe`: its command pipe, or -1 when another server started it. Close it when done."""

    def __init__(
        self, folder: Path, pid: int, pipe: int, pidfd: int, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.folder = folder
        self._pid = pid
        self._pipe = pipe
        self._pidfd = pidfd  # -1 where the system has none
        self._process = process

    @classmethod
    async def start(cls, folder: Path, shim: Path) -> "Supervised":
        """Start a shim that waits for its order, its lock held. Raises SpawnFailed."""
        try:
            process = await anyio.to_thread.run_sync(_spawn, folder, shim)
        except OSError as error:
            raise SpawnFailed(f"the supervisor could not be started: {error}") from error
        assert process.stdin and process.stdout
        hello = b""
        with process.stdout as stdout, anyio.move_on_after(HELLO_SECONDS):
            await anyio.wait_readable(stdout.fileno())
            hello = os.read(stdout.fileno(), 2)
        pipe = os.dup(process.stdin.fileno())
        process.stdin.close()
        started = cls(folder, process.pid, pipe, _pidfd(process.pid), process)
        if not hello.startswith(b"L"):
            process.kill()
            await started.ended()
            started.close()
            if shim != SHIM:
                _remove(shim)  # a full disk may have cut it short: it is made anew
            raise SpawnFailed(DID_NOT_COME_UP)
        return started

    @classmethod
    def attach(cls, folder: Path) -> "Supervised | None":
        """The shim of an attempt whose server died; None when it is gone. Raises OSError as `known` says."""
        pid = holder(folder)
        if pid is None:
            return None
        found = cls(folder, pid, -1, _pidfd(pid))
        same = False
        try:
            same = holder(folder) == pid  # it may have left before the pidfd, and the number be another's by now
        finally:
            if not same:
                found.close()
        return found if same else None

    async def order(self, order: Order) -> None:
        """Hand over what to run; from then on it runs. Raises SpawnFailed when the shim is gone."""
        try:
            if rest := _write_now(self._pipe, order.encode()):
                await anyio.to_thread.run_sync(_write_all, self._pipe, rest)
        except OSError as error:
            raise SpawnFailed(f"the supervisor went away: {error}") from error

    def terminate(self) -> None:
        """TERM to the command's group, and after the grace the whole tree is killed."""
        self._tell(b"T")

    def kill(self) -> None:
        """End the whole tree now. (To an adopted shim a second TERM means the same.)"""
        self._tell(b"K")

    def wake(self) -> None:
        """Let a stopped shim go on."""
        self._signal(signal.SIGCONT)

    async def ended(self) -> None:
        """Return when the shim has exited; its record, if any, is on disk then."""
        if self._pidfd >= 0:
            await anyio.wait_readable(self._pidfd)
            return
        while not await known(self._gone):  # noqa: ASYNC110  # nothing tells
            await anyio.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Let go: a closed pipe tells a shim that its server is gone."""
        for fd in (self._pipe, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._pipe = self._pidfd = -1
        _LET_GO[:] = [process for process in (*_LET_GO, self._process) if process and process.poll() is None]

    def _tell(self, command: bytes) -> None:
        self.wake()
        with suppress(OSError):  # it has ended meanwhile
            if self._pipe >= 0:
                os.write(self._pipe, command)
            else:
                self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        with suppress(OSError):  # it has ended meanwhile
            if sys.platform == "linux" and self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self._process is not None or (self._pid > 0 and holder(self.folder) == self._pid):
                os.kill(self._pid, number)  # 0: it lives in another pid namespace

    def _gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        return holder(self.folder) != self._pid


async def known(look: Callable[[], Found]) -> Found:
    """What `look` finds; while too many files are open to look at any, that says nothing of an attempt: wait."""
    while True:
        try:
            return look()
        except OSError as error:
            if error.errno not in TOO_MANY:
                raise
        await anyio.sleep(POLL_SECONDS)


def holder(folder: Path) -> int | None:
    """The pid that holds an attempt's shim lock, None when nobody does. Raises OSError as `known` says."""
    fd = _opened(folder / "shim.lock", os.O_RDWR)
    if fd is None:
        return None
    try:
        query = struct.pack(_FLOCK, *([fcntl.F_WRLCK, 0, 0, 0, 0] if _PID == 4 else [0, 0, 0, fcntl.F_WRLCK, 0]))
        answer = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, query))
    finally:
        os.close(fd)
    kind = answer[0] if _PID == 4 else answer[3]
    return None if kind == fcntl.F_UNLCK else answer[_PID]


def exit_record(folder: Path) -> Exit | None:
    """What the shim left when it ended; None when there is no (sound) record. Raises OSError as `known` says."""
    fd = _opened(folder / "exit.json", os.O_RDONLY)
    if fd is None:
        return None
    try:
        return _EXIT.validate_json(os.read(fd, RECORD_BYTES), strict=True)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _opened(path: Path, mode: int) -> int | None:
    """None where there is no such file of ours. Raises OSError as `known` says."""
    try:
        return open_own(path, mode)
    except OSError as error:
        if error.errno in TOO_MANY:
            raise
        return None


def open_own(path: Path, mode: int) -> int:
    """Open a regular file that only we can have written, and nothing that merely bears its name. Raises OSError."""
    fd = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(fd)
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or writable:
        os.close(fd)
        raise PermissionError(f"{path} is not a file of ours")
    return fd


def compiled_shim(folder: Path) -> Path:
    """The shim's byte code for this interpreter, made once: compiling it at every start costs more than its run."""
    stamp = SHIM.stat().st_mtime_ns
    target = folder / f"shim-{stamp:x}.{sys.implementation.cache_tag}.pyc"
    if not target.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        py_compile.compile(str(SHIM), cfile=str(target), doraise=True)
    return target


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


def _spawn(folder: Path, shim: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(shim), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
        bufsize=0,
    )


def _write_now(fd: int, data: bytes) -> bytes:
    """Write what goes without waiting; the rest."""
    os.set_blocking(fd, False)
    try:
        return data[os.write(fd, data) :]
    except BlockingIOError:
        return data
    finally:
        os.set_blocking(fd, True)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pidfd(pid: int) -> int:
    if sys.platform != "linux":
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone already, or a kernel without it
        return -1
