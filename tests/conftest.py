from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clients import ERAS, connected, settings
from fakes import Clock
from mcp import Client
from pools import Gate, Pool, Told, log_lines
from servers import Place

from taskorch.app import App, running
from taskorch.storage.database import Database, open_database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

if TYPE_CHECKING:
    from playwright.async_api import Browser


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test logged may hold what no wire carries, that between pytest's processes included."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """aiosqlite is built on asyncio, so asyncio is the backend."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator["Browser"]:
    """A real one, for the tests of a file."""
    from browsers import launched  # what it needs is loaded by those who need it

    async with launched() as browser:
        yield browser


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "state" / "taskorch.db") as database:
        yield database


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    return Store(database, clock)


@pytest.fixture
def queries(database: Database) -> Queries:
    return Queries(database)


@pytest.fixture
def pool(store: Store, queries: Queries, clock: Clock, tmp_path: Path) -> Pool:
    """The store, for workers of this process."""
    return Pool(store, queries, clock, tmp_path)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def told() -> Iterator[Told]:
    """What is logged while the test runs."""
    with log_lines() as told:
        yield told


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A state folder for real server processes, which end with the test."""
    place = Place(tmp_path)
    yield place
    place.close()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One where commands may run, and one where they may not."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "app", outside):
        folder.mkdir(parents=True)
    return inside, outside


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    """A running server in this process."""
    async with running(settings(tmp_path)) as app:
        yield app


@pytest.fixture
async def client(app: App, era: str) -> AsyncIterator[Client]:
    """One in memory, of each protocol era."""
    async with connected(app.server, era) as client:
        yield client
