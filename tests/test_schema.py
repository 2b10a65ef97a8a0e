"""Opening a file that is older, newer, damaged, or cannot be written."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

import taskorch
from taskorch.domain.errors import StoreError
from taskorch.storage import backup, place, schema
from taskorch.storage.database import open_database

SECONDS = 20.0
TODAY = schema.version()
KILLED_STEP = """if True:
    import os, pathlib, signal, sys
    from taskorch.storage import schema

    def step(connection):
        connection.execute("CREATE TABLE half(x)")
        connection.execute("UPDATE notes SET text = 'changed'")
        os.kill(os.getpid(), signal.SIGKILL)

    schema.STEPS = (*schema.STEPS, step)
    schema.make_ready(pathlib.Path(sys.argv[1]))
"""
OTHER_SERVER = """if True:
    import asyncio, pathlib, sys
    from taskorch.storage import database

    async def run():
        async with database.open_database(pathlib.Path(sys.argv[1])) as opened:
            await opened.write(lambda tx: tx.execute("INSERT INTO notes VALUES ('last')"))
            print("ready", flush=True)
            sys.stdin.read()

    asyncio.run(run())
"""


def yes() -> bool:
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "taskorch.db"


@pytest.fixture
def old(path: Path) -> Path:
    """A database of today's version, with something in it."""
    schema.make_ready(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE notes(text)")
        connection.executemany("INSERT INTO notes VALUES (?)", [(f"{'x' * 500}{i}",) for i in range(100)])
    return path


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A taskorch that is one version ahead."""
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, lambda db: db.execute("CREATE TABLE more(x)")))


@pytest.fixture
def outdated(old: Path, request: pytest.FixtureRequest) -> Path:
    """A database that is one version behind."""
    request.getfixturevalue("newer")
    return old


def ask(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()


def tables(path: Path) -> set[object]:
    return {row[0] for row in ask(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")}


def content(path: Path) -> bytes:
    return path.read_bytes()


def user_version(path: Path) -> object:
    return ask(path, "PRAGMA user_version")[0][0]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(taskorch.__file__).parents[1])}


# The ladder


def test_every_script_is_a_step_of_the_ladder() -> None:
    scripts = sorted(path.name for path in Path(schema.__file__).with_name("migrations").glob("*.sql"))
    assert scripts == [f"{number:03}.sql" for number in range(2, schema.version() + 1)]


def test_a_new_file_has_today_s_version_and_needs_no_copy(path: Path) -> None:
    schema.make_ready(path)
    assert user_version(path) == schema.version() == TODAY
    assert "tasks" in tables(path)
    assert os.listdir(path.parent) == ["taskorch.db"]


def test_a_file_of_the_first_version_keeps_its_tasks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as first:
        first.setattr(schema, "STEPS", schema.STEPS[:1])
        schema.make_ready(path)
        values = "1, 't0123456789abcdef', 'old', 'echo', '{}', 'cancelled', 1, 1, 0, 0, 0, 3, 0, 60.0, 'survive'"
        names = "seq, id, name, kind, payload, status, priority, rank, ready, paused, attempt, max_attempts"
        ask(
            path,
            f"INSERT INTO tasks({names}, interruptions, timeout_seconds, on_server_exit, error, delete_requested, "
            f"created_at, updated_at, finished_at, version) VALUES ({values}, '{{}}', 0, 5, 5, 5, 1)",
        )
    schema.make_ready(path)
    assert user_version(path) == TODAY
    assert ask(path, "SELECT id, name, trace FROM tasks") == [("t0123456789abcdef", "old", None)]
    assert ask(path, "SELECT * FROM removed") == []


@pytest.mark.usefixtures("newer")
def test_a_new_file_climbs_every_step(path: Path) -> None:
    schema.make_ready(path)
    assert user_version(path) == TODAY + 1
    assert {"tasks", "more"} <= tables(path)
    assert not (path.parent / backup.FOLDER).exists()


def test_an_older_file_is_copied_and_then_converted(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [lambda db: db.execute("CREATE TABLE two(x)"), lambda db: db.execute("ALTER TABLE two RENAME TO three")]
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, *more))
    schema.make_ready(old)
    assert user_version(old) == TODAY + 2
    assert "three" in tables(old) and "two" not in tables(old)
    [copy] = backup.automatic(old.parent / backup.FOLDER)
    assert copy.name.endswith(f"-before-migration-from-{TODAY}.db")
    assert user_version(copy) == TODAY
    assert ask(copy, "SELECT count(*) FROM notes") == ask(old, "SELECT count(*) FROM notes") == [(100,)]
    assert "three" not in tables(copy)


def test_a_file_is_copied_and_converted_once(outdated: Path) -> None:
    schema.make_ready(outdated)
    schema.make_ready(outdated)
    assert len(backup.automatic(outdated.parent / backup.FOLDER)) == 1


def test_servers_that_start_at_once_copy_and_convert_once(outdated: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: schema.make_ready(outdated), range(8)))
    assert user_version(outdated) == TODAY + 1
    assert len(backup.automatic(outdated.parent / backup.FOLDER)) == 1


def test_a_kill_between_two_statements_of_a_step_leaves_the_old_version(
    old: Path, request: pytest.FixtureRequest
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_STEP, old], env=environment(), timeout=SECONDS)
    assert done.returncode == -signal.SIGKILL
    assert user_version(old) == TODAY
    assert "half" not in tables(old)
    assert ask(old, "SELECT count(*) FROM notes WHERE text = 'changed'") == [(0,)]
    request.getfixturevalue("newer")
    schema.make_ready(old, alone=yes)
    assert user_version(old) == TODAY + 1
    assert len(backup.automatic(old.parent / backup.FOLDER)) == 2  # also when both start within one second


def test_a_step_that_fails_leaves_the_old_version(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE notes")
        connection.execute("no SQL")

    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    with pytest.raises(StoreError, match="syntax error"):
        schema.make_ready(old)
    assert (user_version(old), ask(old, "SELECT count(*) FROM notes")) == (TODAY, [(100,)])


def test_without_a_copy_nothing_is_converted(outdated: Path) -> None:
    (outdated.parent / backup.FOLDER).write_text("in the way")
    with pytest.raises(StoreError, match="backups cannot be made"):
        schema.make_ready(outdated)
    assert user_version(outdated) == TODAY
    assert "more" not in tables(outdated)


def test_a_copy_that_fails_keeps_the_old_version(outdated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backup, "copy", full)
    with pytest.raises(StoreError, match=rf"older taskorch \(schema {TODAY}\).*disk is full\. Free space in"):
        schema.make_ready(outdated)
    assert user_version(outdated) == TODAY


@pytest.mark.parametrize("found", [TODAY + 1, 99])
def test_a_newer_file_is_refused_and_left_unharmed(found: int, old: Path) -> None:
    ask(old, f"PRAGMA user_version={found}")
    before = content(old)
    with pytest.raises(StoreError, match=rf"newer taskorch \(schema {found}; this one knows {TODAY}\).*Upgrade"):
        schema.make_ready(old, alone=yes)
    assert content(old) == before
    assert os.listdir(old.parent) == ["taskorch.db"]


# Damage


@pytest.fixture(params=["text", "pages", "header"])
def broken(request: pytest.FixtureRequest, old: Path) -> bytes:
    """A damaged database, of which opening finds out; its content."""
    content = old.read_bytes()
    content = {
        "text": b"# not a database\n" * 500,
        "pages": content[:100] + b"\xff" * (len(content) - 100),
        "header": b"SQLite format 3\0" + b"\xff" * 8176,
    }[request.param]
    old.write_bytes(content)
    return content


async def test_a_damaged_file_is_kept_beside_an_empty_new_one(
    broken: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_database(path, alone=yes) as database:
        assert await database.read(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()[0]) == 0
        [aside] = place.set_aside_files(path.parent)
    assert content(aside) == broken
    assert str(aside) in caplog.text


async def test_a_damaged_file_that_others_may_use_is_refused_and_left_as_it_is(broken: bytes, path: Path) -> None:
    with pytest.raises(StoreError, match=r"is damaged.*Stop all taskorch servers"):
        async with open_database(path, alone=lambda: False):
            pass
    assert content(path) == broken
    assert place.set_aside_files(path.parent) == []


@pytest.mark.usefixtures("broken")
def test_servers_that_start_at_once_on_a_damaged_file_agree_on_one_new_one(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: schema.make_ready(path, alone=yes), range(8)))
    assert len(place.set_aside_files(path.parent)) == 1
    assert user_version(path) == TODAY


def test_damage_deep_inside_is_found_after_a_crash(old: Path) -> None:
    size = os.path.getsize(old)
    with open(old, "r+b") as file:
        file.seek(size - 2 * 4096)  # rows of notes: opening alone does not read them
        file.write(b"\xff" * 4096)
    schema.make_ready(old, alone=yes)  # an orderly stop: not looked for
    assert place.set_aside_files(old.parent) == []
    leave_wal(old)
    schema.make_ready(old, alone=lambda: False)  # a server runs: not looked for
    assert place.set_aside_files(old.parent) == []
    leave_wal(old)
    before = content(old), content(old.with_name("taskorch.db-wal"))
    schema.make_ready(old, alone=yes)
    [aside] = place.set_aside_files(old.parent)
    assert (content(aside), content(aside.with_name(f"{aside.name}-wal"))) == before
    assert user_version(old) == TODAY


def test_a_sound_file_is_kept_after_a_crash_with_what_was_committed_last(old: Path) -> None:
    leave_wal(old)
    schema.make_ready(old, alone=yes)
    assert place.set_aside_files(old.parent) == []
    assert ask(old, "SELECT count(*) FROM notes WHERE text = 'last'") == [(1,)]


def test_rows_that_break_a_rule_are_no_damage(path: Path) -> None:
    schema.make_ready(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE strict(x CHECK (x > 0))")
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("INSERT INTO strict VALUES (-1)")
        connection.execute("PRAGMA ignore_check_constraints=OFF")
        assert "CHECK" in connection.execute("PRAGMA quick_check").fetchone()[0]
        assert backup.damage(connection) is None


def test_a_wal_without_its_database_is_kept(old: Path) -> None:
    leave_wal(old)
    wal = old.with_name("taskorch.db-wal").read_bytes()
    old.unlink()
    schema.make_ready(old)
    [kept] = old.parent.glob("*.corrupt-*-wal")
    assert kept.read_bytes() == wal


def leave_wal(path: Path) -> None:
    """Have a server killed that has committed something."""
    command = [sys.executable, "-c", OTHER_SERVER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as server:
        assert server.stdout and server.stdout.readline() == b"ready\n"
        server.kill()
    assert place.has_wal(path)


# What cannot be written


@pytest.fixture
def read_only(old: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{old.as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        yield connection


def test_a_file_that_cannot_be_written_says_so_and_what_to_do(read_only: sqlite3.Connection, old: Path) -> None:
    with pytest.raises(sqlite3.OperationalError) as raised:
        read_only.execute("CREATE TABLE t(x)")
    said = str(schema.explained(old, raised.value))
    assert str(old) in said and "cannot be written (attempt to write a readonly database)" in said
    assert "TASKORCH_STATE_DIR" in said


@pytest.mark.parametrize(
    ("code", "said"),
    [(sqlite3.SQLITE_FULL, "disk is full"), (sqlite3.SQLITE_IOERR | 19 << 8, "full or failing"), (1, "doctor")],
)
def test_each_reason_has_its_next_step(code: int, said: str, old: Path) -> None:
    error = sqlite3.OperationalError("reason")
    error.sqlite_errorcode = code
    assert said in str(schema.explained(old, error))


async def test_what_opening_raises_is_a_store_error(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("CREATE TABLE t(x)")

    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    with pytest.raises(StoreError, match="cannot be written"):
        async with open_database(old):
            pass


def test_a_sqlite_that_is_too_old_is_named_before_anything_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST_SQLITE", (9, 0, 0))
    with pytest.raises(StoreError, match=rf"SQLite {sqlite3.sqlite_version} is too old"):
        schema.make_ready(path)
    assert not path.parent.exists()
