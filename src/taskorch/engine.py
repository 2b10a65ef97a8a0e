"""A server without its front end: the store open, the pool at work on it, the service that calls are made with."""

import logging
import os
import resource
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from taskorch import __version__
from taskorch.calls.service import WORKER, Pool, Service
from taskorch.config import Settings
from taskorch.domain.errors import StoreError
from taskorch.domain.kind import Kind as TaskKind
from taskorch.domain.outside import OUTSIDE, Outside
from taskorch.domain.task import COMMAND, TOOL
from taskorch.storage.database import Database, open_database
from taskorch.storage.outside import OutsideStore
from taskorch.storage.place import LEAST_FREE_BYTES, free_bytes
from taskorch.storage.queries import Queries
from taskorch.storage.reading import depth
from taskorch.storage.store import Store
from taskorch.storage.watch import Watch
from taskorch.telemetry import instruments, providers, spans
from taskorch.telemetry.instruments import Now
from taskorch.work.attempt import Kind, prepared
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
from taskorch.work.watched import watched
from taskorch.work.worker import Worker

DAY_MS = 86_400_000
OPEN_FILES = 4096  # each command at work takes two, adopted ones too, and some systems allow 256 unless they are asked
SWITCH_SECONDS = 0.0005  # the store waits so long at each statement while handlers compute, instead of 5 ms

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """A pool at work, and the calls that can be made beside it."""

    service: Service
    worker: Worker
    kinds: "Kinds"


@dataclass(frozen=True)
class Kinds:
    """What these settings let tasks be. `others`: all but commands; `outside`: what no server runs."""

    command: Command
    others: Mapping[str, Kind]
    outside: Mapping[str, TaskKind]
    connections: Connections

    @property
    def all(self) -> dict[str, TaskKind]:
        return {**self.others, COMMAND: self.command, **self.outside}

    @property
    def claimable(self) -> dict[str, Kind]:
        """What a pool may start."""
        return {**self.others, **({COMMAND: self.command} if self.command.policy.allows_any else {})}


@asynccontextmanager
async def running(settings: Settings, start: Path | None = None) -> AsyncGenerator[Engine]:
    """Open the store and run the pool until the block ends; what cannot finish then is given back or let go.

    `start`: where commands run by default, the current folder if None. Raises TaskError, ImportError.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    _open_more_files()
    state = settings.state_dir
    refuse_own(state, os.environ)
    kinds = load_kinds(settings, start)
    providers.start(__version__)
    traces = spans.recorder(__version__)
    folder = state / "output"
    async with opened(settings) as database:
        folder.mkdir(mode=0o700, exist_ok=True)
        store = open_store(settings, database)
        with (
            closing(kinds.command.spawner),
            Peers(state / "servers") as peers,
            Bell(peers.folder, peers.uuid, store) as bell,
        ):
            peers.at_each_beat = Watch(state / "taskorch.db", bell.tell).look
            room = partial(has_room, state)
            owner = await store.register(peers.uuid, os.getpid(), __version__, sorted(kinds.claimable))
            idle = serving(settings, database, store, kinds.all)
            run = watched(prepared(Results(idle.queries.get_many, folder).fill), traces, settings.log_format == "json")
            taken_over = {COMMAND: kinds.command}
            worker = Worker(store, peers, owner, kinds.claimable, settings.concurrency, taken_over, room, run)
            now = Now(partial(depth, state / "taskorch.db"), settings.concurrency, lambda: worker.busy)
            measures = instruments.recorder(__version__, now)
            if traces:
                database.on_moves.append(partial(traces.taken_over, owner))
            if measures:
                database.on_moves.append(measures.count)
            pool = Pool(settings.concurrency, lambda: worker.busy, lambda: worker.silent)
            service = replace(idle, pool=pool)
            housekeeper = Housekeeper(
                store,
                folder,
                keep_ms=keep_ms(settings.keep_days),
                keep_failed_ms=keep_ms(settings.keep_failed_days),
                interval_seconds=settings.cleanup_interval_seconds,
                most_bytes=settings.output_quota_bytes,
            )
            peers.sweep({peer.uuid for peer in await store.others(owner)})
            async with anyio.create_task_group() as group:
                await group.start(kinds.connections.run)
                for loop in (partial(store.follow_others, bell.rung), bell.run, housekeeper.run):
                    group.start_soon(loop)
                try:
                    async with anyio.create_task_group() as slots:
                        await slots.start(worker.run)
                        try:
                            yield Engine(service, worker, kinds)
                        finally:
                            worker.stop()
                finally:
                    with anyio.CancelScope(shield=True):
                        try:
                            await store.leave(owner)
                        except StoreError as error:  # the others will find this server gone
                            log.warning("could not sign off: %s", error)
                        if traces or measures:
                            await anyio.to_thread.run_sync(providers.flush)
                group.cancel_scope.cancel()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[Database]:
    """The state folder's database, made if need be, until the block ends. Raises StoreError."""
    state = settings.state_dir
    await anyio.to_thread.run_sync(refuse_foreign, state / "servers")
    alone = partial(nobody_lives, state / "servers")
    async with open_database(state / "taskorch.db", alone, settings.allow_network_state) as database:
        yield database


def open_store(settings: Settings, database: Database) -> Store:
    return Store(database, most_live=settings.max_live_tasks, limits=settings.limits)


def load_kinds(settings: Settings, start: Path | None = None) -> Kinds:
    """All kinds of work that the settings name. Raises TaskError, ImportError, and what a handlers' module raises."""
    state = settings.state_dir
    connections = Connections(read_servers(settings.mcp_servers), __version__, within(state, os.environ))
    folder = state / "output"
    command = load_command(settings, start)
    isolated = partial(
        Isolated,
        modules=settings.handlers,
        folder=folder,
        grace_seconds=settings.grace_seconds,
        start=Path.cwd(),
        spawner=command.spawner,
    )
    others: dict[str, Kind] = {
        **load_handlers(settings.handlers, settings.handler_max_attempts, isolated),
        **load_recipes(settings.recipes, command),
        **({TOOL: RemoteTool(connections)} if connections.servers else {}),
    }
    for_workers: dict[str, TaskKind] = {OUTSIDE: Outside()} if WORKER in parts(settings.toolsets) else {}
    return Kinds(command, others, for_workers, connections)


def load_command(settings: Settings, start: Path | None = None) -> Command:
    policy = Policy(settings.allow_commands, folders=settings.allow_dirs)
    folder = settings.state_dir / "output"
    command = Command(folder, policy, settings.pass_env, settings.grace_seconds, start or Path.cwd())
    command.max_attempts = settings.command_max_attempts
    return command


def serving(settings: Settings, database: Database, store: Store, kinds: Mapping[str, TaskKind]) -> Service:
    """What calls are made with, over an open store, in a process that runs nothing."""
    queries = Queries(database, settings.limits)
    folder = settings.state_dir / "output"
    return Service(
        store=store,
        queries=queries,
        outside=OutsideStore(database, store.now, settings.limits),
        kinds=kinds,
        toolsets=set(parts(settings.toolsets)),
        fill=Results(queries.get_many, folder).filled,
        output_folder=folder,
        version=__version__,
        pool=None,
        timeout_seconds=settings.timeout_seconds,
        on_server_exit=settings.on_server_exit,
        wait_cap_seconds=settings.wait_cap_seconds,
    )


def keep_ms(days: float) -> int:
    return round(days * DAY_MS)


def has_room(state: Path) -> bool:
    """Whether the disk has enough left to start a task: what it writes must not keep others from being settled."""
    try:
        return free_bytes(state) >= LEAST_FREE_BYTES
    except OSError:  # the store says what is wrong with its folder
        return True


def _open_more_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # a system with another limit beside this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
