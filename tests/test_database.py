"""The file: commits that many share, callers that are cancelled, other processes, full disks, files of others."""

import os
import random
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import anyio.to_thread
import pytest

from taskorch.domain.errors import Conflict, NotFound, StoreError
from taskorch.storage import busy
from taskorch.storage import database as module
from taskorch.storage.database import Database, Transaction, open_database

NOTES = "CREATE TABLE notes(text TEXT NOT NULL UNIQUE) STRICT"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where conftest's database lies."""
    return tmp_path / "state" / "taskorch.db"


@pytest.fixture
async def notes(database: Database) -> Database:
    """A database with a table of ours."""
    await database.write(lambda tx: tx.execute(NOTES))
    return database


def put(*texts: str) -> Any:
    """A transaction function that stores them and tells of them."""

    def put(tx: Transaction) -> None:
        for text in texts:
            tx.execute("INSERT INTO notes VALUES (?)", (text,))
            tx.changed.append(text)

    return put


def texts(db: sqlite3.Connection) -> list[str]:
    return [text for (text,) in db.execute("SELECT text FROM notes ORDER BY rowid")]


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process holds the write lock."""
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


class Gate:
    """A transaction function that says when it runs and goes on when it is let."""

    def __init__(self) -> None:
        self._entered, self._open = threading.Event(), threading.Event()

    def __call__(self, tx: Transaction) -> None:
        self._entered.set()
        assert self._open.wait(5)

    async def entered(self) -> None:
        assert await anyio.to_thread.run_sync(self._entered.wait, 5)

    def open(self) -> None:
        self._open.set()


@asynccontextmanager
async def together(database: Database) -> AsyncIterator[anyio.abc.TaskGroup]:
    """Writes that are started inside form one batch: they queue behind a transaction that waits for the block's end."""
    gate = Gate()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(database.write, gate)
            await gate.entered()
            try:
                yield group
                await anyio.wait_all_tasks_blocked()
            finally:
                gate.open()


async def outcome_of(database: Database, function: Any, outcomes: dict[str, Any], name: str) -> None:
    try:
        outcomes[name] = await database.write(function)
    except Exception as error:
        outcomes[name] = error


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


def content(path: Path) -> bytes:
    return path.read_bytes()


def sqlite_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name}


def all_ended(threads: set[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


# Transactions


async def test_an_answered_write_can_be_seen_by_every_other_process(notes: Database, path: Path) -> None:
    await notes.write(put("a", "b"))
    with raw(path) as other:
        assert texts(other) == ["a", "b"]


async def test_writes_that_come_together_share_a_commit(notes: Database) -> None:
    statements: list[str] = []
    await notes.write(lambda tx: tx.set_trace_callback(statements.append))
    statements.clear()
    async with together(notes) as group:
        for n in range(100):
            group.start_soon(notes.write, put(str(n)))
    assert statements.count("COMMIT") == 2  # the one they waited behind, and theirs
    assert statements.count("BEGIN IMMEDIATE") == 2
    assert await notes.read(texts) == [str(n) for n in range(100)]  # in the order they came


async def test_a_refused_write_leaves_its_neighbours_alone_and_undoes_only_itself(notes: Database) -> None:
    told: list[list[str]] = []
    notes.on_commit = told.append
    outcomes: dict[str, Any] = {}
    called: list[str] = []

    def first(tx: Transaction) -> None:
        put("a")(tx)
        tx.afterwards.append(lambda: called.append("first"))

    def refused(tx: Transaction) -> None:
        put("half", "done")(tx)
        tx.afterwards.append(lambda: called.append("refused"))
        raise Conflict("no")

    writes = {"first": first, "refused": refused, "last": put("b")}
    async with together(notes) as group:
        for name, function in writes.items():
            group.start_soon(outcome_of, notes, function, outcomes, name)
    assert (outcomes["first"], outcomes["last"]) == (None, None)
    assert isinstance(outcomes["refused"], Conflict)
    assert await notes.read(texts) == ["a", "b"]
    assert told == [["a", "b"]]
    assert called == ["first"]


async def test_what_sqlite_refuses_is_told_as_a_store_error_to_that_caller_alone(notes: Database) -> None:
    await notes.write(put("taken"))
    outcomes: dict[str, Any] = {}
    async with together(notes) as group:
        group.start_soon(outcome_of, notes, put("new", "taken"), outcomes, "refused")
        group.start_soon(outcome_of, notes, put("other"), outcomes, "last")
    assert isinstance(outcomes["refused"], StoreError)
    assert "UNIQUE" in str(outcomes["refused"])
    assert outcomes["last"] is None
    assert await notes.read(texts) == ["taken", "other"]


async def test_a_write_sees_what_its_neighbours_before_it_wrote(notes: Database) -> None:
    outcomes: dict[str, Any] = {}
    async with together(notes) as group:
        group.start_soon(notes.write, put("a"))
        group.start_soon(outcome_of, notes, texts, outcomes, "seen")
    assert outcomes["seen"] == ["a"]


async def test_items_that_come_together_are_written_by_one_call_and_each_gets_its_result(notes: Database) -> None:
    calls: list[list[str]] = []

    def put_all(tx: Transaction, items: Sequence[str]) -> list[str]:
        calls.append(list(items))
        put(*items)(tx)
        return [item.upper() for item in items]

    results: dict[str, str] = {}

    async def one(item: str) -> None:
        results[item] = await notes.write_together(put_all, item)

    async with together(notes) as group:
        for item in "abc":
            group.start_soon(one, item)
    assert calls == [["a", "b", "c"]]
    assert results == {"a": "A", "b": "B", "c": "C"}
    assert await notes.read(texts) == ["a", "b", "c"]


async def test_an_item_that_is_refused_costs_its_neighbours_nothing(notes: Database) -> None:
    def put_all(tx: Transaction, items: Sequence[str]) -> list[None]:
        for item in items:
            put(item)(tx)
            if item == "bad":
                raise Conflict("no")
        return [None] * len(items)

    outcomes: dict[str, Any] = {}

    async def one(item: str) -> None:
        try:
            outcomes[item] = await notes.write_together(put_all, item)
        except Conflict as error:
            outcomes[item] = str(error)

    async with together(notes) as group:
        for item in ("a", "bad", "b"):
            group.start_soon(one, item)
    assert outcomes == {"a": None, "bad": "no", "b": None}
    assert await notes.read(texts) == ["a", "b"]


async def test_a_mistake_in_a_transaction_does_not_end_the_writer(notes: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        await notes.write(lambda tx: (put("half")(tx), 1 / 0))
    await notes.write(put("next"))
    assert await notes.read(texts) == ["next"]


async def test_a_listener_that_fails_does_not_end_the_writer(notes: Database, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: list[Any]) -> None:
        raise ValueError("broken")

    notes.on_commit = broken
    await notes.write(put("a"))
    await notes.write(put("b"))
    assert await notes.read(texts) == ["a", "b"]
    assert "a listener failed" in caplog.text


# Cancelled callers


async def test_a_cancelled_caller_leaves_no_transaction_open(notes: Database, path: Path) -> None:
    """Hundreds of calls that are cancelled at random, while another process writes too."""
    chance = random.Random(7)
    stop = threading.Event()
    theirs = 0

    def other_process() -> None:
        nonlocal theirs
        with raw(path) as other:
            while not stop.is_set():
                busy.begin(other)
                other.execute("INSERT INTO notes VALUES (?)", (f"theirs {theirs}",))
                other.execute("COMMIT")
                theirs += 1
                stop.wait(0.001)

    cancelled = 0

    async def call(n: int) -> None:
        nonlocal cancelled
        with anyio.move_on_after(chance.choice((0, chance.random() * 0.003))) as scope:
            await notes.write(put(f"{n} left", f"{n} right"))
        cancelled += scope.cancelled_caught

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, other_process)
            try:
                for first in range(0, 500, 4):
                    async with anyio.create_task_group() as callers:
                        for n in range(first, first + 4):
                            callers.start_soon(call, n)
            finally:
                stop.set()
        await notes.write(put("the end"))  # drains the queue
    assert cancelled > 50
    assert theirs > 5
    kept = set(await notes.read(texts))
    assert all((f"{n} left" in kept) == (f"{n} right" in kept) for n in range(500))
    assert "the end" in kept
    with locked(path) as other:  # nobody else holds the lock
        assert other.in_transaction


async def test_a_write_whose_caller_was_cancelled_is_made_all_the_same(notes: Database) -> None:
    async with together(notes) as group, anyio.create_task_group() as callers:
        callers.start_soon(notes.write, put("a"))
        group.start_soon(notes.write, put("b"))
        await anyio.wait_all_tasks_blocked()
        callers.cancel_scope.cancel()
    assert await notes.read(texts) == ["a", "b"]


# Other processes


async def test_reads_do_not_wait_for_a_writer(notes: Database, path: Path) -> None:
    await notes.write(put("a"))
    with locked(path) as other, anyio.fail_after(5):
        other.execute("INSERT INTO notes VALUES ('theirs')")
        async with anyio.create_task_group() as group:
            group.start_soon(notes.write, put("ours"))
            await anyio.wait_all_tasks_blocked()
            assert await notes.read(texts) == ["a"]  # while the write waits for the lock
            other.execute("ROLLBACK")
    assert await notes.read(texts) == ["a", "ours"]


async def test_a_read_sees_one_moment_and_stops_no_writer(notes: Database) -> None:
    loop_runs, go_on = threading.Event(), threading.Event()

    def twice(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
        before = texts(db)
        loop_runs.set()
        assert go_on.wait(5)
        return before, texts(db)

    async def write() -> None:
        await anyio.to_thread.run_sync(loop_runs.wait, 5)
        await notes.write(put("meanwhile"))
        go_on.set()

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        assert await notes.read(twice) == ([], [])
    assert await notes.read(texts) == ["meanwhile"]


async def test_a_read_cannot_write(notes: Database) -> None:
    with pytest.raises(StoreError, match="readonly"):
        await notes.read(lambda db: db.execute("INSERT INTO notes VALUES ('a')"))
    assert await notes.read(texts) == []  # and the connection works on


async def test_a_write_waits_until_another_process_releases_the_lock(notes: Database, path: Path) -> None:
    tried = threading.Event()
    await notes.write(lambda tx: tx.set_trace_callback(lambda sql: tried.set() if "BEGIN" in sql else None))
    with locked(path) as other, anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(notes.write, put("ours"))
            assert await anyio.to_thread.run_sync(tried.wait, 5)
            other.execute("COMMIT")
    assert await notes.read(texts) == ["ours"]


async def test_a_write_says_so_when_the_lock_is_held_too_long_and_later_ones_work(
    notes: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "BUSY_SECONDS", 0.05)
    with locked(path), anyio.fail_after(5), pytest.raises(StoreError, match=r"busy.*Nothing was changed"):
        await notes.write(put("a"))
    await notes.write(put("b"))
    assert await notes.read(texts) == ["b"]


async def test_only_other_processes_commits_change_the_foreign_version(notes: Database, path: Path) -> None:
    seen = await notes.foreign_version()
    await notes.write(put("ours"))
    assert await notes.foreign_version() == seen
    with raw(path) as other:
        other.execute("INSERT INTO notes VALUES ('theirs')")
    assert await notes.foreign_version() != seen


async def test_a_store_that_cannot_be_looked_at_is_told_as_a_store_error(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: sqlite3.Connection) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(module, "_data_version", broken)
    with pytest.raises(StoreError, match="disk I/O error"):
        await database.foreign_version()


async def test_servers_that_open_a_new_file_at_the_same_moment_all_succeed(tmp_path: Path) -> None:
    for n in range(5):
        path = tmp_path / str(n) / "taskorch.db"

        async def use(name: str, path: Path = path) -> None:
            async with open_database(path) as database:
                await database.write(lambda tx: tx.execute("UPDATE counts SET tasks = tasks + 1"))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for name in "abcdef":
                    group.start_soon(use, name)
        with raw(path) as other:
            assert other.execute("SELECT DISTINCT tasks FROM counts").fetchall() == [(6,)]


OPEN = """
import sys, anyio
from pathlib import Path
from taskorch.storage.database import open_database
async def main():
    print("up", flush=True)
    sys.stdin.readline()
    async with open_database(Path(sys.argv[1])) as database:
        await database.write(lambda tx: tx.execute("UPDATE counts SET tasks = tasks + 1"))
anyio.run(main)
"""


def test_two_processes_that_open_a_new_file_at_the_same_moment_both_succeed(path: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == "up\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [(process.communicate(timeout=20)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(5)
    assert answers == [("", 0), ("", 0)]
    with raw(path) as other:
        assert other.execute("SELECT DISTINCT tasks FROM counts").fetchall() == [(2,)]


# Opening and closing


async def test_both_connections_are_set_up_to_lose_nothing(database: Database) -> None:
    def pragmas(db: sqlite3.Connection) -> dict[str, Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "mmap_size", "query_only")
        return {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    assert await database.write(pragmas) == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "mmap_size": 0,
        "query_only": 0,
    }
    reader = await database.read(pragmas)
    assert (reader["journal_mode"], reader["trusted_schema"], reader["query_only"]) == ("wal", 0, 1)


async def test_what_was_written_is_there_when_it_is_opened_again(path: Path) -> None:
    async with open_database(path) as database:
        await database.write(lambda tx: tx.execute(NOTES))
        await database.write(put("a"))
    async with open_database(path) as database:
        assert await database.read(texts) == ["a"]


async def test_closing_leaves_no_thread(path: Path) -> None:
    before = sqlite_threads()
    async with open_database(path) as database:
        await database.read(lambda db: db.execute("SELECT 1").fetchone())
        ours = sqlite_threads() - before
    assert len(ours) == 2
    assert all_ended(ours)


async def test_an_error_in_the_block_comes_out_and_leaves_no_thread(path: Path) -> None:
    before = sqlite_threads()
    ours: set[threading.Thread] = set()
    with pytest.raises(ExceptionGroup) as raised:
        async with open_database(path):
            ours |= sqlite_threads() - before
            raise ZeroDivisionError
    assert raised.group_contains(ZeroDivisionError)
    assert all_ended(ours)


async def test_a_server_cancelled_in_the_middle_of_a_write_finishes_it_and_leaves_no_thread(path: Path) -> None:
    before = sqlite_threads()
    gate = Gate()

    async def server() -> None:
        async with open_database(path) as database:
            await database.write(lambda tx: tx.execute(NOTES))
            await database.write(lambda tx: (put("left")(tx), gate(tx), put("right")(tx)))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(server)
            await gate.entered()
            ours = sqlite_threads() - before
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()  # the cancellation has arrived everywhere
            gate.open()
    assert os.listdir(path.parent) == ["taskorch.db"]  # closed in order: no -wal is left behind
    assert len(ours) == 2
    assert all_ended(ours)
    with raw(path) as other:
        assert texts(other) == ["left", "right"]


async def test_a_server_that_is_torn_down_still_stores_what_its_workers_report(path: Path) -> None:
    cancelled = anyio.Event()

    async def server() -> None:
        async with open_database(path) as database:
            await database.write(lambda tx: tx.execute(NOTES))
            with anyio.move_on_after(5, shield=True):  # as a worker's last words
                up.set()
                await cancelled.wait()
                await anyio.wait_all_tasks_blocked()  # the cancellation has arrived everywhere else
                await database.write(put("the end of an attempt"))

    up = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(server)
            await up.wait()
            group.cancel_scope.cancel()
            cancelled.set()
    with raw(path) as other:
        assert texts(other) == ["the end of an attempt"]


async def test_a_server_that_stops_does_not_wait_for_another_process_s_lock(notes: Database, path: Path) -> None:
    outcomes: dict[str, Any] = {}
    tried = threading.Event()
    with anyio.fail_after(5), raw(path) as other:  # BUSY_SECONDS is 10
        async with open_database(path) as database:
            await database.write(lambda tx: tx.set_trace_callback(lambda sql: tried.set() if "BEGIN" in sql else None))
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as group:
                group.start_soon(outcome_of, database, put("a"), outcomes, "ours")
                assert await anyio.to_thread.run_sync(tried.wait, 5)
                database.close()
    assert isinstance(outcomes["ours"], StoreError)
    assert await notes.read(texts) == []


async def test_a_write_to_a_closing_store_is_refused(path: Path) -> None:
    async with open_database(path) as database:
        pass
    with anyio.fail_after(5), pytest.raises(StoreError, match="closing"):
        await database.write(put("a"))


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state" / "taskorch.db"
    before = os.umask(0)
    try:
        async with open_database(path) as database:
            await database.write(lambda tx: tx.execute(NOTES))
            modes = {name: mode(path.parent / name) for name in os.listdir(path.parent)}
    finally:
        os.umask(before)
    assert modes == {"taskorch.db": "0o600", "taskorch.db-wal": "0o600", "taskorch.db-shm": "0o600"}
    assert mode(path.parent) == "0o700"


async def test_files_that_others_could_read_are_closed_to_them(path: Path) -> None:
    async with open_database(path):
        pass
    os.chmod(path.parent, 0o755)
    os.chmod(path, 0o644)
    async with open_database(path):
        assert (mode(path), mode(path.parent)) == ("0o600", "0o700")


async def test_a_file_of_a_newer_version_is_refused_and_left_unharmed(path: Path) -> None:
    async with open_database(path) as database:
        await database.write(lambda tx: tx.execute(NOTES))
        await database.write(put("theirs"))
        await database.write(lambda tx: tx.execute("PRAGMA user_version=99"))
    before = content(path)
    with pytest.raises(StoreError, match=r"newer taskorch \(schema 99"):
        async with open_database(path):
            pass
    assert content(path) == before
    with raw(path) as other:
        assert texts(other) == ["theirs"]


@pytest.mark.parametrize("garbage", [b"# not a database\n" * 500, b"SQLite format 3\0" + b"\xff" * 8176])
async def test_a_file_that_is_no_database_is_refused_and_left_unharmed(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "taskorch.db"
    path.write_bytes(garbage)
    before = sqlite_threads()
    with pytest.raises(StoreError, match=r"not a database|malformed|unable"):
        async with open_database(path):
            pass
    assert content(path) == garbage
    assert all_ended(sqlite_threads() - before)


async def test_a_place_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        async with open_database(tmp_path / "file" / "taskorch.db"):
            pass


# A full disk


async def test_a_full_disk_loses_nothing_and_is_recovered_from(notes: Database) -> None:
    """A page limit stands for the full disk: SQLite answers both with SQLITE_FULL."""
    await notes.write(put("before"))
    big = "x" * 200_000
    pages = await notes.write(lambda tx: tx.execute("PRAGMA page_count").fetchone()[0])
    await notes.write(lambda tx: tx.execute(f"PRAGMA max_page_count={pages + 2}"))
    told: list[Any] = []
    notes.on_commit = told.append
    outcomes: dict[str, Any] = {}
    async with together(notes) as group:
        group.start_soon(outcome_of, notes, put("half", big), outcomes, "big")
        group.start_soon(outcome_of, notes, put("small"), outcomes, "small")
    assert isinstance(outcomes["big"], StoreError)
    assert "full" in str(outcomes["big"])
    small = [] if isinstance(outcomes["small"], StoreError) else ["small"]
    assert await notes.read(texts) == ["before", *small]
    assert told == ([small] if small else [])
    await notes.write(lambda tx: tx.execute("PRAGMA max_page_count=1000000"))
    await notes.write(put("after", big))
    assert await notes.read(texts) == ["before", *small, "after", big]


async def test_a_commit_that_fails_is_told_to_all_who_shared_it(notes: Database, path: Path) -> None:
    """A limit on file sizes makes the log refuse what COMMIT writes, as a failing disk would."""
    await notes.write(put("before"))
    told: list[Any] = []
    notes.on_commit = told.append
    outcomes: dict[str, Any] = {}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        async with together(notes) as group:
            group.start_soon(outcome_of, notes, put("a"), outcomes, "a")
            group.start_soon(outcome_of, notes, put("b"), outcomes, "b")
            resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [type(outcome) for outcome in outcomes.values()] == [StoreError] * 2
    assert await notes.read(texts) == ["before"]
    assert told == []
    await notes.write(put("after"))
    assert await notes.read(texts) == ["before", "after"]
    with raw(path) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_commit_that_is_refused_leaves_no_transaction_open(notes: Database) -> None:
    def orphan(tx: Transaction) -> None:
        tx.execute("PRAGMA defer_foreign_keys=ON")  # so that it is COMMIT that finds it
        tx.execute("INSERT INTO events(task, at, event, by) VALUES (99, 1, 'retried', 'x')")

    with pytest.raises(StoreError, match="FOREIGN KEY"):
        await notes.write(orphan)
    await notes.write(put("next"))
    assert await notes.read(texts) == ["next"]


async def test_a_transaction_that_sqlite_itself_undid_is_refused_to_all_who_shared_it(notes: Database) -> None:
    """An I/O error or a full disk may end the whole transaction: nobody is told that a lost change was made."""
    told: list[Any] = []
    notes.on_commit = told.append
    outcomes: dict[str, Any] = {}

    def undone(tx: Transaction) -> None:
        tx.execute("INSERT OR ROLLBACK INTO notes VALUES ('a')")  # 'a' is taken: SQLite rolls back everything

    async with together(notes) as group:
        group.start_soon(outcome_of, notes, put("a"), outcomes, "before")
        group.start_soon(outcome_of, notes, undone, outcomes, "undone")
        group.start_soon(outcome_of, notes, put("b"), outcomes, "after")
    assert [type(outcome) for outcome in outcomes.values()] == [StoreError] * 3
    assert await notes.read(texts) == []
    assert told == []
    await notes.write(put("next"))
    assert await notes.read(texts) == ["next"]


# What we lean on


def test_aiosqlite_still_has_the_executor_that_a_transaction_runs_on() -> None:
    """`connection.hop` runs a whole transaction in one hop through these two private names. If this fails, a new
    version of aiosqlite has renamed them: adapt `hop`, then raise the bound in pyproject.toml."""
    assert callable(aiosqlite.Connection._execute)
    assert isinstance(aiosqlite.Connection._conn, property)


async def test_lookups_of_missing_things_pass_through_as_they_are(database: Database) -> None:
    def missing(_: sqlite3.Connection) -> None:
        raise NotFound("no such task")

    with pytest.raises(NotFound, match=r"^no such task$"):
        await database.read(missing)


@contextmanager
def moved_away(path: Path, replaced: bool) -> Iterator[None]:
    away = path.with_suffix(".away")
    path.rename(away)
    if replaced:
        path.touch()
    yield
    path.unlink(missing_ok=True)
    away.rename(path)


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_written_into_a_file_that_nobody_will_find_again(
    notes: Database, path: Path, replaced: bool
) -> None:
    await notes.write(put("kept"))
    with moved_away(path, replaced), pytest.raises(StoreError, match="removed or replaced"):
        await notes.write(put("lost"))
    await notes.write(put("again"))
    assert await notes.read(texts) == ["kept", "again"]
