"""Descriptors that never make the event loop wait, whoever else may hold what they lead to."""

import errno
import fcntl
import os
import select
import socket
import stat
import sys
from typing import cast

import anyio
import anyio.lowlevel

CHUNK_BYTES = 65_536


class Descriptor:
    """A pipe, a socket, a terminal, a file or a device, to be read or to be written.

    O_NONBLOCK belongs to what a descriptor leads to and would hit everybody who shares it: a pipe or terminal is opened
    anew where the system allows that, and elsewhere written in pieces that fit.
    """

    def __init__(self, fd: int, flags: int) -> None:
        """`flags`: os.O_RDONLY or os.O_WRONLY. `fd` is ours from here on."""
        kind = os.fstat(fd).st_mode
        self.fd = fd
        self._is_pipe = stat.S_ISFIFO(kind)
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(kind) else None
        self._waits = self._is_pipe or self._socket is not None or os.isatty(fd)  # all others are always ready
        self._blocks = self._waits and self._socket is None and not self._opened_anew(flags)

    async def read(self) -> bytes:
        """What has come, at most CHUNK_BYTES; b"" at the end. Raises OSError; anyio.ClosedResourceError by `wake`."""
        while True:
            if self._waits:
                await anyio.wait_readable(self.fd)
            else:
                await anyio.lowlevel.checkpoint()
            try:
                if self._socket is not None:
                    return self._socket.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
                return os.read(self.fd, CHUNK_BYTES)
            except BlockingIOError:  # somebody who shares it was faster
                continue

    async def write(self, data: bytearray) -> int:
        """Wait until some of its beginning is written; how many bytes: 0 if it is empty by then. Raises OSError."""
        while not (sent := self.write_now(data)) and data:
            await anyio.wait_writable(self.fd)
            if self._blocks:
                return os.write(self.fd, data[: select.PIPE_BUF])
        return sent

    def write_now(self, data: bytearray) -> int:
        """Write what can be without waiting; how many bytes. Raises OSError."""
        if self._blocks:
            return 0
        try:
            return os.write(self.fd, data) if self._socket is None else self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    async def unheard(self) -> None:
        """Return when nobody can read any more what is written; never where only a write would tell."""
        if not (self._is_pipe and sys.platform == "linux"):
            await anyio.sleep_forever()
        await anyio.wait_readable(self.fd)  # the end of a pipe that is written is never readable, only broken

    def wake(self) -> None:
        """Let a `read` that waits raise anyio.ClosedResourceError."""
        anyio.notify_closing(self.fd)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)

    def _opened_anew(self, flags: int) -> bool:
        try:
            named = self._is_pipe and not os.readlink(f"/proc/self/fd/{self.fd}").startswith("pipe:")
            if named and flags == os.O_RDONLY:  # opened anew it would never end, if whoever wrote it has gone by now
                return False
            anew = os.open(f"/proc/self/fd/{self.fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # no /proc, somebody else's, or nobody at the other end
            return False
        os.close(self.fd)
        self.fd = anew
        return True


def claim_stdio() -> tuple[Descriptor, Descriptor]:
    """stdin and stdout for us alone, until the process ends: what handlers and their children read is empty, and what
    they print goes to stderr. Raises OSError when one of the two is closed.
    """
    if cast(object, sys.stdin) is None or cast(object, sys.stdout) is None:
        raise OSError(errno.EBADF, "stdin and stdout must be open, for MCP is spoken over them")
    read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))
    _divert(0, os.open(os.devnull, os.O_RDONLY))
    try:
        _divert(1, os.dup(2))
    except OSError:  # stderr is closed
        _divert(1, os.open(os.devnull, os.O_WRONLY))
    sys.stdout = sys.stderr  # not even what is flushed at the very end is protocol
    return Descriptor(read, os.O_RDONLY), Descriptor(write, os.O_WRONLY)


def _divert(fd: int, to: int) -> None:
    os.dup2(to, fd)
    os.close(to)
