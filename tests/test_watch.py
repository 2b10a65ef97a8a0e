"""An idle server looks at the database from outside: it must see what anybody commits, and wake nobody for nothing."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskorch.storage.watch import Watch


class Seen:
    """A database that another program writes to, and how often the watch has told of it."""

    def __init__(self, path: Path, other: sqlite3.Connection) -> None:
        self.wal = path.with_name(path.name + "-wal")
        self.other = other
        self.told = 0
        self.watch = Watch(path, self._tell)

    def _tell(self) -> None:
        self.told += 1

    def look(self) -> int:
        """How often one look has told."""
        before = self.told
        self.watch.look()
        return self.told - before

    def commit(self) -> None:
        self.other.execute("UPDATE notes SET n = n + 1")


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    path = tmp_path / "taskorch.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE notes(n)")
        other.execute("INSERT INTO notes VALUES (0)")
        yield Seen(path, other)


def test_while_nobody_commits_nothing_is_told(seen: Seen) -> None:
    assert [seen.look() for _ in range(20)] == [0] * 20


def test_a_commit_is_told_by_the_next_look(seen: Seen) -> None:
    seen.commit()
    assert seen.look() == 1
    seen.look()
    assert [seen.look() for _ in range(5)] == [0] * 5


def test_a_commit_that_no_look_can_tell_from_the_one_before_is_told(seen: Seen) -> None:
    """The second writes over the same place of the `-wal`, in the same tick of the file system's clock."""
    seen.commit()
    assert seen.other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
    seen.commit()
    assert seen.look() == 1
    state = os.stat(seen.wal)
    assert seen.other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
    seen.commit()
    os.utime(seen.wal, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(seen.wal).st_size == state.st_size
    assert seen.look() == 1


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_a_file_that_is_removed_is_told(seen: Seen, tmp_path: Path, ending: str) -> None:
    (tmp_path / f"taskorch.db{ending}").unlink()
    assert seen.look() == 1
