"""The command `http`: a server that many clients of this machine share, over HTTP instead of stdin and stdout."""

import errno
import gc
import ipaddress
import socket
from collections.abc import Callable

import anyio

from taskorch.cli.serving import refuse
from taskorch.cli.unattended import until_signalled
from taskorch.config import Settings

BACKLOG = 512


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens there, on a free port for 0. What is wrong with that ends the process."""
    address = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not local:
        refuse(
            f"--host {host!r} is no address of this machine alone; use 127.0.0.1, ::1 or localhost. From another "
            "machine come through `ssh -L PORT:127.0.0.1:PORT`, or by a reverse proxy that runs here."
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            refuse(f"port {port} of {address} is in use. Use another (--port, TASKORCH_HTTP_PORT; 0 is a free one).")
        refuse(f"port {port} of {address} cannot be had: {error.strerror or error}. Use another (--port).")
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each answer waits 40 ms for its body
    return listening


async def serve(settings: Settings, listening: socket.socket) -> int:
    """Serve on that socket until SIGTERM, SIGINT or SIGHUP; the exit code, 0 when one of these ended it.

    Then what is under way is answered or cut off, and all is settled, given back or let go, within 1.5 s.
    """
    from taskorch.app import serve_http

    gc.freeze()
    stop = anyio.Event()

    async def run(begun: Callable[[str], None]) -> None:
        await serve_http(settings, listening, stop, lambda address: begun(f"taskorch http: {address}"))

    return await until_signalled(run, stop.set)
