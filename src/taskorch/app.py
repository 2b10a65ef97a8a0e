"""The running server: an engine with MCP spoken in front of it."""

import logging
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from mcp.server.lowlevel.server import Server

from taskorch import engine, parent
from taskorch.calls.service import Service
from taskorch.config import Settings
from taskorch.leaving import arm_last_resort, explain, leave
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
async def running(settings: Settings, start: Path | None = None) -> AsyncGenerator[App]:
    """Have an engine running and the MCP server ready until the block ends.

    `start`: where commands run by default, the current folder if None. Raises TaskError, ImportError.
    """
    async with engine.running(settings, start) as running:
        resources = Resources(running.service)
        server = build_server(running.service, resources)
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

    async def on_signal(*, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if code:
                    leave(code)
                code = 128 + number
                wire.end()

    async def on_orphaned() -> None:
        await parent.gone()
        log.warning("the process that started this server is gone: leaving")
        wire.end()

    try:
        streams = opened(*claim_stdio(), on_end=lambda: arm_last_resort(code))
        async with streams as wire, anyio.create_task_group() as group:
            await group.start(on_signal)
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
