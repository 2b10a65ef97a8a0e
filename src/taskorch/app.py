"""The running server: wires database, store, worker and MCP server together. The only file that knows both sides."""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server

from taskorch import __version__, parent
from taskorch.calls.service import Service
from taskorch.config import Settings
from taskorch.domain.errors import StoreError, TaskError
from taskorch.domain.kind import Kind as TaskKind
from taskorch.domain.outside import OUTSIDE, Outside
from taskorch.domain.task import COMMAND, TOOL
from taskorch.mcp.answered import Answers, Asked
from taskorch.mcp.protocol_tasks import serve_protocol_tasks
from taskorch.mcp.resources import Resources
from taskorch.mcp.server import build_server, initialization
from taskorch.mcp.tools import WORKER
from taskorch.storage.database import open_database
from taskorch.storage.outside import OutsideStore
from taskorch.storage.place import LEAST_FREE_BYTES, free_bytes
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work.attempt import Kind
from taskorch.work.bell import Bell
from taskorch.work.command import Command
from taskorch.work.connections import Connections
from taskorch.work.handlers import load_handlers
from taskorch.work.housekeeping import Housekeeper
from taskorch.work.isolated import Isolated
from taskorch.work.mcp_servers import read_servers, refuse_own, within
from taskorch.work.peers import Peers, nobody_lives, refuse_foreign
from taskorch.work.policy import Policy, parts
from taskorch.work.recipes import load_recipes
from taskorch.work.remote import RemoteTool
from taskorch.work.results import Results
from taskorch.work.worker import Worker

DAY_MS = 86_400_000
CANNOT_START = 2
FLUSH_SECONDS = 0.1
SWITCH_SECONDS = 0.0005  # the store waits so long at each statement while handlers compute, instead of 5 ms
LAST_RESORT_SECONDS = 1.4  # the SDK's client sends SIGTERM 2.0 s after it has closed our stdin

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class App:
    """Everything of a running server that a test or another front end may want."""

    service: Service
    worker: Worker
    server: Server[Any]


@asynccontextmanager
async def running(settings: Settings, start: Path | None = None) -> AsyncGenerator[App]:
    """Open the store, start the pool, and have the MCP server ready, until the block ends.

    `start`: where commands run by default, the current folder if None. Raises TaskError, ImportError.
    """
    state = settings.state_dir
    refuse_own(state, os.environ)
    connections = Connections(read_servers(settings.mcp_servers), __version__, within(state, os.environ))
    folder = state / "output"
    policy = Policy(settings.allow_commands, folders=settings.allow_dirs)
    command = Command(folder, policy, settings.pass_env, settings.grace_seconds, start or Path.cwd())
    command.max_attempts = settings.command_max_attempts
    isolated = partial(
        Isolated, modules=settings.handlers, folder=folder, grace_seconds=settings.grace_seconds, start=Path.cwd()
    )
    others: dict[str, Kind] = {
        **load_handlers(settings.handlers, settings.handler_max_attempts, isolated),
        **load_recipes(settings.recipes, command),
        **({TOOL: RemoteTool(connections)} if connections.servers else {}),
    }
    claimable = others | ({COMMAND: command} if command.policy.allows_any else {})
    toolsets = set(parts(settings.toolsets))
    for_workers: dict[str, TaskKind] = {OUTSIDE: Outside()} if WORKER in toolsets else {}
    await anyio.to_thread.run_sync(refuse_foreign, state / "servers")
    alone = partial(nobody_lives, state / "servers")
    async with open_database(state / "taskorch.db", alone, settings.allow_network_state) as database:
        folder.mkdir(mode=0o700, exist_ok=True)
        store = Store(database, most_live=settings.max_live_tasks, limits=settings.limits)
        with Peers(state / "servers") as peers, Bell(peers.folder, peers.uuid, store) as bell:
            room = partial(_has_room, state)
            owner = await store.register(peers.uuid, os.getpid(), __version__, sorted(claimable))
            queries = Queries(database, settings.limits)
            results = Results(queries.get_many, folder)
            taken_over = {COMMAND: command}
            worker = Worker(store, peers, owner, claimable, settings.concurrency, taken_over, room, results.fill)
            service = Service(
                store=store,
                queries=queries,
                outside=OutsideStore(database, store.now, settings.limits),
                kinds={**others, COMMAND: command, **for_workers},
                toolsets=toolsets,
                fill=results.filled,
                output_folder=folder,
                version=__version__,
                slots=settings.concurrency,
                busy=lambda: worker.busy,
                timeout_seconds=settings.timeout_seconds,
                on_server_exit=settings.on_server_exit,
                wait_cap_seconds=settings.wait_cap_seconds,
                silent=lambda: worker.silent,
            )
            resources = Resources(service)
            server = build_server(service, resources)
            keep_ms, keep_failed_ms = round(settings.keep_days * DAY_MS), round(settings.keep_failed_days * DAY_MS)
            serve_protocol_tasks(server, service, keep_ms, keep_failed_ms)
            housekeeper = Housekeeper(
                store,
                folder,
                keep_ms=keep_ms,
                keep_failed_ms=keep_failed_ms,
                interval_seconds=settings.cleanup_interval_seconds,
                most_bytes=settings.output_quota_bytes,
            )
            peers.sweep({peer.uuid for peer in await store.others(owner)})
            async with anyio.create_task_group() as group:
                await group.start(connections.run)
                for loop in (partial(store.follow_others, bell.rung), bell.run, resources.run, housekeeper.run):
                    group.start_soon(loop)
                app = App(service, worker, server)
                try:
                    async with anyio.create_task_group() as pool:
                        await pool.start(worker.run)
                        try:
                            yield app
                        finally:
                            worker.stop()
                finally:
                    with anyio.CancelScope(shield=True):
                        try:
                            await store.leave(owner)
                        except StoreError as error:  # the others will find this server gone
                            log.warning("could not sign off: %s", error)
                group.cancel_scope.cancel()


def _has_room(state: Path) -> bool:
    """Whether the disk has enough left to start a task: what it writes must not keep others from being settled."""
    return free_bytes(state) >= LEAST_FREE_BYTES


async def serve(settings: Settings) -> int:
    """Serve MCP over stdin and stdout until stdin ends or a signal comes; the exit code (128 + signal).

    Everything is settled, given back or let go within 1.5 s of either; a second signal leaves at once. What keeps the
    server from starting is said in one line.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what was imported stays: walking it took some calls 60 ms
    code, app = 0, None
    talk = anyio.CancelScope()

    async def on_signal(*, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if code:
                    leave(code)
                code = 128 + number
                _arm_last_resort(code)
                talk.cancel()

    async def on_orphaned() -> None:
        await parent.gone()
        log.warning("the process that started this server is gone: leaving")
        _arm_last_resort(0)
        talk.cancel()

    async with stdio_server() as (read, write):
        sys.stdout = sys.stderr  # what a handler prints is no protocol, not even what is flushed at the very end
        # The SDK's reader thread blocks on stdin, and only the end of stdin ends it: every other way out leaves here.
        try:
            async with anyio.create_task_group() as group:
                await group.start(on_signal)
                group.start_soon(on_orphaned)
                async with running(settings) as app:
                    asked = Asked(read, partial(_arm_last_resort, 0))
                    try:
                        with talk:
                            await app.server.run(asked, Answers(write, asked), initialization(app.server))
                    finally:
                        _arm_last_resort(code)
                group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():  # by the SDK's writer, which has failed
            log.warning("stdout cannot be written any more: leaving")
            leave(0)
        except BaseException as error:
            leave(_explain(error, starting=app is None))
        if code or talk.cancel_called:
            leave(code)
    return code


def leave(code: int) -> NoReturn:
    """End the process now, whatever threads still run."""
    last_words = threading.Thread(target=_flush, daemon=True)  # blocks if nobody reads stderr
    last_words.start()
    last_words.join(FLUSH_SECONDS)
    os._exit(code)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _arm_last_resort(code: int) -> None:
    timer = threading.Timer(LAST_RESORT_SECONDS, leave, [code])
    timer.daemon = True
    timer.start()


def _explain(error: BaseException, starting: bool) -> int:
    """Say what ended the server: in one line if somebody can mend it. The exit code."""
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseExceptionGroup[BaseException], error).exceptions[0]
    match error:
        case ImportError() if starting:
            text = f"{error}. See TASKORCH_HANDLERS and PYTHONPATH."
        case TaskError() | OSError() if starting:
            text = str(error)
        case _:
            text = f"{type(error).__name__}: {error}"
            log.critical("the server failed", exc_info=error)
    sys.stderr.write(f"taskorch: {'could not start' if starting else 'stopped'}: {text}\n")
    return CANNOT_START if starting else 1
