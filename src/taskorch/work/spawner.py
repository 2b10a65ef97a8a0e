"""Starts shims: a process that has the shim loaded forks one for each attempt, as a new Python costs ten times that.

A shim so forked is no child of ours: once it holds its lock it tells its pid and a pidfd, and the connection on which
it does so is its command pipe from then on. It needs nothing of the spawner any more, which may die, and ends with its
server. What a spawner cannot start is started directly, and so is everything where there are no pidfds (macOS).
"""

import socket
import subprocess
import sys
import weakref
from pathlib import Path

import anyio
import anyio.to_thread

from taskorch.work import supervised
from taskorch.work.supervised import DID_NOT_COME_UP, SpawnFailed, Supervised

SERVES = sys.platform == "linux"
FORK_SECONDS = 2.0  # a spawner that takes longer is stopped, or as good as that
LAST_SECONDS = 1.0  # for what it may have forked by then
GREETING_BYTES = 32
LEFT = ("exit.json.tmp", "output", "shim.lock")  # by a shim that died before it had its order


class Spawner:
    """Starts the shims of one server. `cache`: the folder for the shim's byte code. Close it when done."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._turn = anyio.Lock(fast_acquire=True)
        self._process: _Process | None = None

    async def start(self, folder: Path) -> Supervised:
        """Start a shim that waits for its order, its lock held. Raises SpawnFailed, OSError."""
        forked = await self._fork(folder) if SERVES else None
        return forked or await Supervised.start(folder, supervised.compiled_shim(self._cache))

    def close(self) -> None:
        """End the process that forks. Shims go on."""
        if self._process:
            self._process.end()

    async def _fork(self, folder: Path) -> Supervised | None:
        """Have one forked. None: there is none, and the folder is as it was. Raises SpawnFailed if that is unknown."""
        try:
            process = await self._running()
            ours = process.ask(folder)
        except OSError:
            return None
        with ours:
            greeting = await _greeting(ours, FORK_SECONDS)
            if greeting is None:
                process.end()
                greeting = await _greeting(ours, LAST_SECONDS)
            if greeting is None:  # stopped, or as good as that; without an order it leaves when it wakes up
                raise SpawnFailed(DID_NOT_COME_UP)
            said, pidfds = greeting
            if said.startswith(b"L"):
                return Supervised(folder, int(said[1:]), ours.detach(), next(iter(pidfds), -1))
        for name in LEFT:  # the connection has ended, and with it everybody who had it
            (folder / name).unlink(missing_ok=True)
        return None

    async def _running(self) -> "_Process":
        async with self._turn:
            if self._process is None or self._process.ended:
                self.close()
                self._process = await anyio.to_thread.run_sync(_Process, supervised.compiled_shim(self._cache))
            return self._process


class _Process:
    """A process that forks shims, and the connection to it. Raises OSError where it cannot be started."""

    def __init__(self, shim: Path) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setblocking(False)
        with theirs:
            try:
                self._popen = _serve(shim, theirs)
            except OSError:
                self._connection.close()
                raise
        self.end = weakref.finalize(self, _end, self._connection, self._popen)

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def ask(self, folder: Path) -> socket.socket:
        """Ask for a shim; our end of the connection to it. Raises OSError when the process is gone or is deaf."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._connection, [bytes(folder)], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours


def _serve(shim: Path, connection: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(shim), "--serve"],
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"LD_BIND_NOW": "1"},  # what it looks up now, no fork has to
        start_new_session=True,
    )


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()


async def _greeting(connection: socket.socket, seconds: float) -> tuple[bytes, list[int]] | None:
    """What a shim says, and its pidfd; nothing at all when it is gone. None: neither, for so long."""
    with anyio.move_on_after(seconds):
        await anyio.wait_readable(connection)
        said, pidfds, *_ = socket.recv_fds(connection, GREETING_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        return said, pidfds
    return None
