"""Looking into the file without making, converting or changing anything, whoever else has it open."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from taskorch.domain.errors import StoreError
from taskorch.domain.task import NewTask
from taskorch.storage import reading, schema
from taskorch.storage.database import open_database
from taskorch.storage.listing import Filters
from taskorch.storage.queries import Queries
from taskorch.storage.reading import NoStore, Reader, open_reader
from taskorch.storage.store import Store

NEW = NewTask("echo", {}, max_attempts=3, timeout_seconds=60.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "taskorch.db"


async def add(path: Path, number: int = 1) -> None:
    async with open_database(path) as database:
        for _ in range(number):
            await Store(database).add(NEW)


async def stored(reader: Reader) -> int:
    return sum((await Queries(reader).page(Filters(), 1, None)).counts.values())


def traces(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_mode, file.read_bytes()) for file in folder.iterdir()}


async def test_where_nothing_was_ever_stored_nothing_is_made(path: Path) -> None:
    with open_reader(path) as reader, pytest.raises(NoStore, match="no task was ever created there"):
        await stored(reader)
    assert not path.parent.exists()


async def test_a_store_that_nobody_has_open_is_read_and_left_as_it_is(path: Path) -> None:
    await add(path, 3)
    before = traces(path.parent)
    with open_reader(path) as reader:
        assert await stored(reader) == 3
    assert traces(path.parent) == before
    assert before.keys() == {path.name}


async def test_what_a_server_has_just_committed_is_seen_at_once_and_told(path: Path) -> None:
    async with open_database(path) as database:
        with open_reader(path) as reader:
            told = await reader.foreign_version()
            assert await reader.foreign_version() == told
            for number in range(1, 4):
                await Store(database).add(NEW)
                assert await stored(reader) == number
                assert await reader.foreign_version() != told
                told = await reader.foreign_version()


async def test_a_look_that_goes_on_sees_servers_come_and_go(path: Path) -> None:
    await add(path)
    with open_reader(path) as reader:
        seen = [await reader.foreign_version()]
        assert await stored(reader) == 1
        async with open_database(path) as database:
            await Store(database).add(NEW)
            assert await stored(reader) == 2
            seen.append(await reader.foreign_version())
        assert await stored(reader) == 2
        await add(path)
        assert await stored(reader) == 3
        seen.append(await reader.foreign_version())
    assert len(set(seen)) == 3


async def test_what_a_server_does_while_a_still_file_is_read_is_not_missed(path: Path) -> None:
    """Read as one that stands still it would show a mixture of before and after."""
    await add(path)
    looks = 0

    def look(db: sqlite3.Connection) -> int:
        nonlocal looks
        looks += 1
        if looks == 1:
            with closing(sqlite3.connect(path)) as other:  # opens, changes and closes: no -wal is left of it
                other.execute("UPDATE tasks SET name = 'changed'")
                other.commit()
        return db.execute("SELECT count(*) FROM tasks WHERE name = 'changed'").fetchone()[0]

    with open_reader(path) as reader:
        assert await reader.read(look) == 1
    assert looks > 1


async def test_a_database_that_takes_the_place_of_another_is_the_one_that_is_read(path: Path, tmp_path: Path) -> None:
    await add(path)
    other = tmp_path / "other" / path.name
    await add(other, 2)
    async with open_database(path), open_database(other):  # both with a -wal of their own
        with open_reader(path) as reader:
            assert await stored(reader) == 1
            for ending in ("", "-wal", "-shm"):
                other.with_name(other.name + ending).replace(path.with_name(path.name + ending))
            assert await stored(reader) == 2


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (schema.version() + 1, "written by a newer taskorch .* Upgrade taskorch"),
        (schema.version() - 1, "written by an older taskorch .* a server of this version that starts converts it"),
        (0, "is empty"),
    ],
)
async def test_a_store_of_another_version_is_named_and_not_converted(path: Path, version: int, said: str) -> None:
    await add(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={version}")
    before = traces(path.parent)
    with open_reader(path) as reader, pytest.raises(StoreError, match=said):
        await stored(reader)
    assert traces(path.parent) == before


async def test_who_only_looks_cannot_write(path: Path) -> None:
    await add(path)

    def write(db: Any) -> None:
        db.execute("DELETE FROM tasks")

    with open_reader(path) as reader:
        with pytest.raises(StoreError, match="only to be read"):
            await Store(reader).add(NEW)
        with pytest.raises(StoreError):
            await reader.read(write)
        assert await stored(reader) == 1


def test_what_is_no_database_is_an_error_that_says_so(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is a letter" * 100)
    with open_reader(path) as reader, pytest.raises(StoreError, match="not a database"):
        anyio.run(stored, reader)


async def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await add(path)
    shared = reading.place.Mount("/", "nfs")
    monkeypatch.setattr(reading.place, "mount_of", lambda *_: shared)
    with pytest.raises(StoreError, match="network file system"), open_reader(path):
        pass
    with open_reader(path, allow_network=True) as reader:
        assert await stored(reader) == 1
