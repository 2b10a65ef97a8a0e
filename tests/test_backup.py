"""Copies of the database: whole, private, made while servers run, and never over another file."""

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from taskorch.domain.errors import StoreError
from taskorch.storage import backup, schema

DEAD_PID = 2**22 + 1  # larger than any


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "taskorch.db"
    schema.make_ready(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE notes(text)")
        connection.execute("INSERT INTO notes VALUES ('first')")
    return path


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT text FROM notes")]


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_a_copy_without_a_name_goes_into_backups_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        copies = [backup.backup_database(path), backup.backup_database(path)]  # within one second, most likely
    finally:
        os.umask(before)
    assert len(set(copies)) == 2
    for copy in copies:
        assert copy.parent == path.parent / "backups"
        assert copy.name.startswith("taskorch-2") and copy.suffix == ".db"
        assert (mode(copy), mode(copy.parent)) == ("0o600", "0o700")
        assert notes(copy) == ["first"]
    assert sorted(os.listdir(path.parent / "backups")) == sorted(copy.name for copy in copies)


def test_a_copy_can_take_the_place_of_the_database(path: Path, tmp_path: Path) -> None:
    copy = backup.backup_database(path, tmp_path / "copy.db")
    path.write_bytes(copy.read_bytes())
    schema.make_ready(path)
    assert notes(path) == ["first"]


def test_a_copy_is_made_while_a_server_writes_and_holds_what_is_committed(path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as server:
        server.execute("INSERT INTO notes VALUES ('second')")  # in the -wal
        server.execute("BEGIN IMMEDIATE")
        server.execute("INSERT INTO notes VALUES ('third')")
        backup.backup_database(path, tmp_path / "copy.db")
        server.execute("COMMIT")
    assert notes(tmp_path / "copy.db") == ["first", "second"]
    assert notes(path) == ["first", "second", "third"]


def test_an_existing_file_is_refused_and_left_as_it_is(path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.db").write_text("precious")
    with pytest.raises(StoreError, match=r"mine\.db exists already"):
        backup.backup_database(path, tmp_path / "mine.db")
    assert (tmp_path / "mine.db").read_text() == "precious"
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere.db")
    with pytest.raises(StoreError, match=r"link\.db exists already"):
        backup.backup_database(path, tmp_path / "link.db")
    assert sorted(os.listdir(tmp_path)) == ["link.db", "mine.db", "state"]


def test_a_folder_that_is_not_there_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none/copy\.db cannot be written: No such file"):
        backup.backup_database(path, tmp_path / "none" / "copy.db")


def test_without_a_database_there_is_nothing_to_copy_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database at"):
        backup.backup_database(tmp_path / "state" / "taskorch.db")
    assert os.listdir(tmp_path) == []


def test_a_damaged_database_is_not_passed_off_as_a_backup(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        backup.backup_database(path, tmp_path / "copy.db")
    assert os.listdir(tmp_path) == ["state"]


def test_a_copy_that_came_out_wrong_is_removed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "damage", lambda _: "row 1 missing from index tasks_id")
    with pytest.raises(StoreError, match="row 1 missing"):
        backup.backup_database(path, tmp_path / "copy.db")
    assert os.listdir(tmp_path) == ["state"]


def test_a_full_disk_leaves_nothing_behind(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        backup.backup_database(path, tmp_path / "copy.db")
    assert os.listdir(tmp_path) == ["state"]


def test_only_the_newest_three_automatic_copies_are_kept(path: Path) -> None:
    asked_for = backup.backup_database(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        made = [backup.before_migration(connection, path, version) for version in (9, 10, 11, 12, 13)]
    assert backup.automatic(path.parent / "backups") == made[-3:]
    assert asked_for.exists()


def test_what_a_killed_copy_left_is_removed_and_does_not_count(path: Path) -> None:
    folder = path.parent / "backups"
    folder.mkdir()
    name = f"taskorch-20200101T000000Z-{backup.BEFORE}1.db"
    (folder / name).touch()
    (folder / f".{name}.{DEAD_PID}.part").write_text("half")
    running = folder / f".taskorch-20200101T000001Z.db.{os.getpid()}.part"
    running.write_text("half")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        made = backup.before_migration(connection, path, 1)
    assert sorted(os.listdir(folder)) == sorted([made.name, running.name])


def test_a_copy_that_is_killed_leaves_no_file_that_looks_whole(path: Path, tmp_path: Path) -> None:
    script = f"""if True:
        import os, pathlib, signal
        from taskorch.storage import backup
        backup._to_disk = lambda part: os.kill(os.getpid(), signal.SIGKILL)
        backup.backup_database(pathlib.Path({str(path)!r}), pathlib.Path({str(tmp_path / "copy.db")!r}))
    """
    environment = os.environ | {"PYTHONPATH": str(Path(backup.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=20).returncode == -9
    assert (tmp_path / "copy.db").stat().st_size == 0
    assert notes(path) == ["first"]
