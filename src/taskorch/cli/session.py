"""The store as a command sees it: to look, or to change something and let the servers know."""

import os
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, redirect_stdout, suppress
from pathlib import Path

import anyio

from taskorch import engine
from taskorch.calls.actions import Call
from taskorch.calls.metrics import Servers
from taskorch.calls.service import Service
from taskorch.config import Settings
from taskorch.domain.errors import InvalidInput, TaskError
from taskorch.domain.kind import Kind
from taskorch.domain.outside import is_outside
from taskorch.domain.task import COMMAND
from taskorch.storage.reading import missing, open_reader
from taskorch.storage.store import Store
from taskorch.telemetry.context import called_from
from taskorch.work.bell import Bell
from taskorch.work.peers import Peers, refuse_foreign
from taskorch.work.recipes import load_recipes
from taskorch.work.worker import SILENT_SECONDS

BY = "the command line"


async def _untold(value: float, total: float, message: str) -> None:
    """Nobody looks at a call's progress."""


async def _unasked(question: str, about: str) -> None:
    """What needs a yes needs --yes."""


CALL = Call(BY, _untold, _unasked)


@asynccontextmanager
async def looking(settings: Settings, kinds: Mapping[str, Kind] | None = None) -> AsyncGenerator[Service]:
    """Calls that only look: nothing is made, converted or written. Raises StoreError where there is nothing."""
    refuse_foreign(settings.state_dir / "servers")
    with open_reader(database(settings), settings.allow_network_state) as reader:
        yield engine.serving(settings, reader, engine.open_store(settings, reader), kinds or {})


@asynccontextmanager
async def changing(
    settings: Settings, kinds: Mapping[str, Kind] | None = None, make: bool = False
) -> AsyncGenerator[Service]:
    """Calls that change something; the servers are woken for it. `make`: the store, where there is none."""
    if not (make or database(settings).exists()):
        raise missing(database(settings))
    async with engine.opened(settings) as opened:
        store = engine.open_store(settings, opened)
        bell = Bell(settings.state_dir / "servers", "", store)
        async with anyio.create_task_group() as group:
            group.start_soon(bell.run)
            try:
                with called_from(os.environ):
                    yield engine.serving(settings, opened, store, kinds or {})
            finally:
                bell.ring()
            group.cancel_scope.cancel()


@asynccontextmanager
async def following(store: Store) -> AsyncGenerator[None]:
    """Hear of what servers change, while the block lasts."""
    async with anyio.create_task_group() as group:
        group.start_soon(store.follow_others)
        yield
        group.cancel_scope.cancel()


def database(settings: Settings) -> Path:
    return settings.state_dir / "taskorch.db"


def kinds(settings: Settings, wanted: str) -> Mapping[str, Kind]:
    """What a task of the kind that is wanted is checked by: handlers are imported only for others than commands.

    What they print while they are imported is no answer. Raises TaskError.
    """
    if wanted == COMMAND:
        return {COMMAND: engine.load_command(settings)}
    try:
        with _no_answers():
            return engine.load_kinds(settings).all
    except TaskError:
        raise
    except Exception as error:  # whatever a module raises
        text = f"The handlers cannot be loaded: {type(error).__name__}: {error}. See TASKORCH_HANDLERS and PYTHONPATH."
        raise InvalidInput(text) from error


def shown_kinds(settings: Settings) -> Mapping[str, Kind]:
    """Those that know what of a payload is secret; where a recipe is broken its values stay hidden."""
    command = engine.load_command(settings)
    recipes: dict[str, Kind] = {}
    for name, recipe in settings.recipes.items():
        with suppress(InvalidInput):
            recipes |= load_recipes({name: recipe}, command)
    return {COMMAND: command, **recipes}


@contextmanager
def _no_answers() -> Generator[None]:
    """What is written to stdout, by whatever way, goes to stderr."""
    if sys.stdout:  # else it was closed when we began
        sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


async def seen_servers(service: Service) -> Servers:
    """The servers on the store, as they show themselves to who looks once."""
    peers = Peers(service.output_folder.parent / "servers")
    noted = await service.queries.servers()
    alive = [server.uuid for server in noted if not peers.is_dead(server.uuid, server.pid, server.started_at)]
    return Servers(len(alive), sum(peers.beat_age(uuid) >= SILENT_SECONDS for uuid in alive))


async def is_served(service: Service, kind: str | None = None) -> bool:
    """Whether a live server can run that kind, or there is one at all."""
    if kind is not None and is_outside(kind):
        return True
    peers = Peers(service.output_folder.parent / "servers")
    return any(
        (kind is None or kind in server.kinds) and not peers.is_dead(server.uuid, server.pid, server.started_at)
        for server in await service.queries.servers()
    )
