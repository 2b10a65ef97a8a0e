"""Files removed or replaced under a running server: nothing that was answered is lost without a word."""

import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from servers import Place, wait_for

from taskorch.domain.errors import StoreError
from taskorch.storage import database as module
from taskorch.storage.database import Database, open_database

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be removed there")


@contextmanager
def served(folder: Path) -> Iterator[Place]:
    place = Place(folder)
    try:
        yield place
    finally:
        place.close()


def remove(place: Place, *endings: str) -> None:
    for ending in endings:
        (place.state / f"taskorch.db{ending}").unlink()


def sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


GONE = pytest.mark.parametrize("gone", [("-wal",), ("-shm",), ("-wal", "-shm")], ids="".join)
LATER = {"delay_seconds": 3600}


@GONE
def test_a_server_goes_on_when_files_beside_its_database_are_removed(gone: tuple[str, ...], tmp_path: Path) -> None:
    with served(tmp_path) as place:
        server = place.start()
        made = {server.create("hold") for _ in range(5)}
        remove(place, *gone)
        made |= {server.create("hold") for _ in range(5)}
        assert f"{gone[0]} was removed while the server runs" in server.errors.read_text()
        server.kill()
        assert place.rows().keys() == made
        assert sound(place.state / "taskorch.db")
        following = place.start()
        assert following.call("list_tasks", limit=1)["counts"]
        assert following.end() == 0


@GONE
def test_what_was_stored_is_saved_soon_although_nobody_writes(gone: tuple[str, ...], tmp_path: Path) -> None:
    with served(tmp_path) as place:
        server = place.start()
        made = {server.call("create_task", kind="hold", **LATER)["id"] for _ in range(5)}
        remove(place, *gone)
        wait_for(lambda: "was removed while the server runs" in server.errors.read_text())
        wait_for(lambda: all(path.exists() for path in (place.state / f"taskorch.db{ending}" for ending in gone)))
        server.kill()
        assert place.rows().keys() == made


@GONE
def test_two_servers_both_go_on_when_files_beside_their_database_are_removed(
    gone: tuple[str, ...], tmp_path: Path
) -> None:
    with served(tmp_path) as place:
        one, two = place.start(), place.start()
        made = {server.call("create_task", kind="hold", **LATER)["id"] for server in (one, two) for _ in range(5)}
        remove(place, *gone)
        made |= {server.call("create_task", kind="hold", **LATER)["id"] for _ in range(5) for server in (one, two)}
        assert {task["id"] for task in two.call("list_tasks", limit=100)["tasks"]} == made
        three = place.start()
        made.add(three.call("create_task", kind="hold", **LATER)["id"])
        assert one.end() == two.end() == three.end() == 0
        assert place.rows().keys() == made
        assert sound(place.state / "taskorch.db")


def test_a_crash_image_without_its_wal_opens_as_of_the_last_checkpoint_and_is_sound(tmp_path: Path) -> None:
    """What was only in the `-wal` is gone, and nothing can tell; what the file holds is there, and it can be used."""
    with served(tmp_path) as place:
        first = place.start()
        kept = first.call("create_task", kind="hold", **LATER)["id"]
        assert first.end() == 0
        second = place.start()
        second.call("create_task", kind="hold", **LATER)
        second.kill()
        remove(place, "-wal", "-shm")
        third = place.start()
        made = third.call("create_task", kind="hold", **LATER)["id"]
        assert third.end() == 0
        assert place.rows().keys() == {kept, made}
        assert sound(place.state / "taskorch.db")


@pytest.mark.parametrize("replaced", [False, True])
async def test_what_a_removed_database_held_is_kept_in_a_copy_that_the_error_names(
    replaced: bool, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "taskorch.db"
    await database.write(lambda tx: tx.execute("CREATE TABLE notes AS SELECT 1 AS text").fetchone())
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM notes").fetchone()) == (1,)
    path.unlink()
    if replaced:
        path.touch()
    for _ in range(2):
        with pytest.raises(StoreError, match="removed or replaced") as error:
            await database.write(lambda tx: tx.execute("INSERT INTO notes VALUES (2)"))
    [copy] = (tmp_path / "state" / "backups").iterdir()
    assert str(copy) in str(error.value)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == [(1,)]
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM notes").fetchone()) == (1,), "reads go on"
    assert not path.exists() or path.stat().st_size == 0, "and nothing is written into what is there now"


async def test_a_folder_removed_as_a_whole_is_told_and_not_made_again(database: Database, tmp_path: Path) -> None:
    os.rename(tmp_path / "state", tmp_path / "away")
    with pytest.raises(StoreError, match="removed or replaced"):
        await database.write(lambda tx: None)
    assert not (tmp_path / "state").exists()
    os.rename(tmp_path / "away", tmp_path / "state")
    await database.write(lambda tx: None)


async def test_files_that_cannot_be_made_anew_at_once_are_made_by_a_later_write(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "reopen", full)
        database._path.with_name("taskorch.db-wal").unlink()
        for _ in range(2):
            with pytest.raises(StoreError, match="the disk is full"):
                await database.write(lambda tx: None)
    await database.write(lambda tx: tx.execute("CREATE TABLE notes(text)").fetchone())
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM notes").fetchone()) == (0,)


async def test_reads_go_on_while_files_are_made_anew(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the old files and the new ones no connection is open: who reads then waits."""
    between, go_on = anyio.Event(), anyio.Event()
    reopen = module.reopen

    async def slow(*args: Any) -> None:
        between.set()
        await go_on.wait()
        await reopen(*args)

    async def read() -> None:
        assert await database.read(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()) == (0,)

    monkeypatch.setattr(module, "reopen", slow)
    database._path.with_name("taskorch.db-wal").unlink()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(database.write, lambda tx: None)
            await between.wait()
            group.start_soon(read)
            group.start_soon(database.foreign_version)
            await anyio.wait_all_tasks_blocked()
            go_on.set()


async def test_a_read_opens_files_anew_that_could_not_be_made_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "reopen", full)
        database._path.with_name("taskorch.db-wal").unlink()
        with pytest.raises(StoreError, match="the disk is full"):
            await database.write(lambda tx: None)
        with pytest.raises(StoreError, match="the disk is full"):
            await database.read(lambda db: None)
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()) == (0,)


async def test_files_that_are_there_are_not_made_anew(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with open_database(database._path):
        await database.write(lambda tx: None)
    await database.foreign_version()
    await database.write(lambda tx: None)
    assert not caplog.records
