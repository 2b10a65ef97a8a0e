"""The running server: an engine with MCP spoken in front of it."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from socket import socket
from typing import Any

import anyio
from mcp.server.lowlevel.server import Server

from taskorch import engine, parent
from taskorch.calls.service import BOARD, Service
from taskorch.config import Settings
from taskorch.leaving import arm_last_resort, explain, heed
from taskorch.mcp.descriptors import claim_stdio
from taskorch.mcp.protocol_tasks import serve_protocol_tasks
from taskorch.mcp.resources import Resources
from taskorch.mcp.server import build_server, initialization
from taskorch.mcp.wire import opened
from taskorch.work.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class App:
    """Everything of a running server that a test or another front end may want."""

    service: Service
    worker: Worker
    server: Server[Any]


@asynccontextmanager
async def running(settings: Settings, start: Path | None = None, over_http: bool = False) -> AsyncGenerator[App]:
    """Have an engine running and the MCP server ready until the block ends.

    `start`: where commands run by default, the current folder if None. `over_http`: each request may be another
    client's, so none is told later of what it subscribed to in an earlier one. Raises TaskError, ImportError.
    """
    async with engine.running(settings, start) as running:
        resources = Resources(running.service)
        server = build_server(running.service, resources, one_client=not over_http)
        keep_ms, keep_failed_ms = engine.keep_ms(settings.keep_days), engine.keep_ms(settings.keep_failed_days)
        serve_protocol_tasks(server, running.service, keep_ms, keep_failed_ms)
        async with anyio.create_task_group() as group:
            group.start_soon(resources.run)
            yield App(running.service, running.worker, server)
            group.cancel_scope.cancel()


async def serve(settings: Settings) -> int:
    """Serve MCP over stdin and stdout until stdin ends or a signal comes; the exit code (128 + signal).

    Everything is settled, given back or let go within 1.5 s of either; a second signal leaves at once. What keeps the
    server from starting is said in one line. Threads may still run: `leave` with the code.
    """
    code, started = 0, False

    def on_signal(number: int) -> None:
        nonlocal code
        code = 128 + number
        wire.end()

    async def on_orphaned() -> None:
        await parent.gone()
        log.warning("the process that started this server is gone: leaving")
        wire.end()

    try:
        streams = opened(*claim_stdio(), on_end=lambda: arm_last_resort(code))
        async with streams as wire, anyio.create_task_group() as group:
            await group.start(heed, (SIGINT, SIGTERM), on_signal)
            group.start_soon(on_orphaned)
            async with running(settings) as app:
                started = True
                try:
                    await app.server.run(wire, wire, initialization(app.server))
                finally:
                    wire.end()
            group.cancel_scope.cancel()
    except BaseException as error:
        return explain(error, starting=not started)
    return code


async def serve_http(settings: Settings, listener: socket, stop: anyio.Event, begun: Callable[[str], None]) -> None:
    """Serve the board, its events, the REST API and MCP over HTTP, on a socket that is bound, until `stop` is set.

    `begun` is called with the address that opens the board when requests are answered. Afterwards requests that are
    short get their answers, others are cut off, and the engine stops as it does under `serve`. Raises TaskError,
    ImportError, OSError.
    """
    from taskorch.http.serving import serve
    from taskorch.mcp.streaming import streaming

    with_board = settings.model_copy(update={"toolsets": f"{settings.toolsets},{BOARD}"})  # the page calls its tools
    async with running(with_board, over_http=True) as app, streaming(app.server) as mcp:
        await serve(app.service, mcp, settings, listener, stop, begun)
