"""Retention: what is old goes, with its output; what lives, or came back to life, stays."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes import Clock

from taskorch.domain.errors import NotFound, StoreError
from taskorch.domain.task import Cancelled, Completed, Failed, NewTask, Outcome, Reason, Task
from taskorch.storage import queries as module
from taskorch.storage import removed
from taskorch.storage.database import Database, open_database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work import housekeeping
from taskorch.work.housekeeping import Housekeeper

DAY_MS = 24 * 3_600_000
DAY_SECONDS = DAY_MS / 1000
KEEP = (7 * DAY_MS, 30 * DAY_MS)
FINAL = Failed(Reason.ERROR, "no use", retryable=False)


def new(name: str | None = None, **wishes: Any) -> NewTask:
    return NewTask(**{"kind": "echo", "payload": {}, "max_attempts": 3, "timeout_seconds": 60.0, "name": name} | wishes)


async def ended(store: Store, outcome: Outcome, name: str | None = None) -> Task:
    task = await store.add(new(name, kind=name or "echo"))
    (claimed,) = await store.claim(1, {task.kind: 0}, 1)
    assert await store.settle(claimed, outcome)
    return task


async def left(database: Database) -> set[str]:
    return await database.read(lambda db: {name for (name,) in db.execute("SELECT name FROM tasks")})


async def attempts(database: Database) -> int:
    return await database.read(lambda db: db.execute("SELECT count(*) FROM attempts").fetchone()[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where tasks keep their output."""
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.fixture
def housekeeper(store: Store, folder: Path) -> Housekeeper:
    return Housekeeper(store, folder, keep_ms=KEEP[0], keep_failed_ms=KEEP[1], interval_seconds=3600)


def lay_output(folder: Path, task_id: str, age_seconds: float = 3600) -> Path:
    """Output as a command leaves it, last changed so long ago."""
    attempt = folder / task_id / "1"
    attempt.mkdir(parents=True)
    (attempt / "output").write_bytes(b"hello")
    then = time.time() - age_seconds
    os.utime(folder / task_id, (then, then))
    return folder / task_id


# Rows


async def test_ended_tasks_go_after_7_days_and_failed_ones_after_30(
    store: Store, database: Database, clock: Clock
) -> None:
    await ended(store, Completed(), "completed")
    await ended(store, Cancelled(), "cancelled")
    await ended(store, FINAL, "failed")
    clock.advance(7 * DAY_SECONDS)
    assert await store.purge(*KEEP) == 0
    clock.advance(0.001)
    assert await store.purge(*KEEP) == 2
    assert await left(database) == {"failed"}
    assert await attempts(database) == 1
    clock.advance(23 * DAY_SECONDS - 0.001)
    assert await store.purge(*KEEP) == 0
    clock.advance(0.001)
    assert await store.purge(*KEEP) == 1
    assert await left(database) == set()
    assert await attempts(database) == 0


async def test_a_task_that_has_not_ended_is_never_too_old(store: Store, database: Database, clock: Clock) -> None:
    await store.add(new("working"))
    await store.claim(1, {"echo": 0}, 1)
    await store.add(new("waiting"))
    await store.add(new("later", run_at=clock.now + 400 * DAY_MS))
    paused = await store.add(new("paused"))
    await store.edit(paused.id, {"paused": True}, None, "x")
    clock.advance(365 * DAY_SECONDS)
    assert await store.purge(*KEEP) == 0
    assert await left(database) == {"working", "waiting", "later", "paused"}


async def test_what_counts_is_when_a_task_ended(store: Store, database: Database, clock: Clock) -> None:
    await store.add(new("old", kind="old"))
    (claimed,) = await store.claim(1, {"old": 0}, 1)
    clock.advance(100 * DAY_SECONDS)
    await ended(store, Completed(), "young")
    await store.settle(claimed, Completed())
    assert await store.purge(*KEEP) == 0
    clock.advance(8 * DAY_SECONDS)
    assert await store.purge(*KEEP) == 2


async def test_old_tasks_are_found_among_many_in_batches(
    store: Store, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WALK", 4)
    for n in range(10):
        await ended(store, Completed(), f"old {n}")
        await store.add(new(f"live {n}"))
    clock.advance(8 * DAY_SECONDS)
    for n in range(5):
        await ended(store, Completed(), f"young {n}")
    assert await store.purge(*KEEP) == 10
    assert await left(database) == {f"live {n}" for n in range(10)} | {f"young {n}" for n in range(5)}


async def test_an_old_failure_behind_young_rows_goes_when_failures_are_kept_shorter(
    store: Store, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk ends at rows that no cutoff can reach, whichever of the two settings is the longer."""
    monkeypatch.setattr(module, "WALK", 2)
    for n in range(6):
        await ended(store, FINAL, f"failed {n}")
        await ended(store, Completed(), f"completed {n}")
    clock.advance(8 * DAY_SECONDS)
    assert await store.purge(30 * DAY_MS, 7 * DAY_MS) == 6
    assert await left(database) == {f"completed {n}" for n in range(6)}


async def test_a_task_retried_between_reading_and_deleting_stays(
    store: Store, database: Database, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server retries it at that very moment."""
    task = await ended(store, FINAL, "failed")
    gone = await ended(store, FINAL, "gone")
    clock.advance(31 * DAY_SECONDS)
    write = database.write

    async with open_database(tmp_path / "state" / "taskorch.db") as elsewhere:
        other, queries = Store(elsewhere, clock), Queries(elsewhere)

        async def late_write(function: Any) -> Any:
            if (await queries.get(task.id)).ended:
                await other.retry(task.id, None, "bob")
            return await write(function)

        monkeypatch.setattr(database, "write", late_write)
        assert await store.purge(*KEEP) == 1
    assert await left(database) == {"failed"}
    assert await store.stored([task.id, gone.id]) == {task.id}


async def test_who_asks_for_a_removed_task_is_told_what_became_of_it(
    store: Store, database: Database, clock: Clock
) -> None:
    queries = Queries(database)
    gone, other = await ended(store, FINAL, "gone"), await ended(store, Completed(1), "other")
    clock.advance(31 * DAY_SECONDS)
    when = datetime.fromtimestamp(clock() / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    await store.delete(other.id, False, "retention")
    assert await store.purge(*KEEP) == 1
    for reference, said in (
        (gone.id, f"It was removed at {when}: its retention ended."),
        ("gone", f"It was removed at {when} ({gone.id}): its retention ended."),
        (other.id, f"It was removed at {when}: deleted by retention."),
    ):
        with pytest.raises(NotFound) as told:
            await queries.resolve(reference)
        assert said in str(told.value) and "Call list_tasks" in str(told.value)


async def test_what_became_of_tasks_is_forgotten_in_time_and_in_number(
    store: Store, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removed, "MOST", 2)

    async def noted() -> set[str]:
        return await database.read(lambda db: {name for (name,) in db.execute("SELECT name FROM removed")})

    for name in "abc":
        await store.delete((await ended(store, Completed(1), name)).id, False, "alice")
        clock.advance(1)
    assert await noted() == {"a", "b", "c"}
    await store.purge(*KEEP)
    assert await noted() == {"b", "c"}
    clock.advance(31 * DAY_SECONDS)
    await store.purge(*KEEP)
    assert await noted() == set()


async def test_listeners_are_told_which_tasks_went(store: Store, clock: Clock) -> None:
    task = await ended(store, Completed())
    clock.advance(8 * DAY_SECONDS)
    heard: list[Any] = []
    with store.listening(heard.extend):
        await store.purge(*KEEP)
    assert heard == [(task.id, None)]


# Output


async def test_output_goes_with_its_task(store: Store, housekeeper: Housekeeper, folder: Path) -> None:
    gone, kept = await store.add(new()), await store.add(new())
    paths = [lay_output(folder, task.id, age_seconds=0) for task in (gone, kept)]
    async with anyio.create_task_group() as group:
        group.start_soon(housekeeper.run)
        await anyio.wait_all_tasks_blocked()
        await store.delete(gone.id, False, "x")
        with anyio.fail_after(5):
            while paths[0].exists():
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert (paths[1] / "1" / "output").read_bytes() == b"hello"


async def test_retention_takes_the_output_too(
    store: Store, housekeeper: Housekeeper, folder: Path, clock: Clock
) -> None:
    old = await ended(store, Completed())
    clock.advance(8 * DAY_SECONDS)
    young = await ended(store, Completed())
    paths = [lay_output(folder, task.id) for task in (old, young)]
    await housekeeper.clean()
    assert [path.exists() for path in paths] == [False, True]
    assert await store.stored([old.id, young.id]) == {young.id}


async def test_output_that_no_task_owns_goes_once_it_is_a_minute_old(
    housekeeper: Housekeeper, store: Store, folder: Path
) -> None:
    """A crash may come between deleting a row and its files; a folder just made may be of a task just created."""
    stray = lay_output(folder, "t0000000000000000", housekeeping.STRAY_SECONDS + 5)
    fresh = lay_output(folder, "t1111111111111111", housekeeping.STRAY_SECONDS - 50)
    owned = lay_output(folder, (await store.add(new())).id)
    await housekeeper.clean()
    assert [path.exists() for path in (stray, fresh, owned)] == [False, True, True]


async def test_cleaning_up_needs_no_output_folder(store: Store, tmp_path: Path, clock: Clock) -> None:
    await ended(store, Completed())
    clock.advance(8 * DAY_SECONDS)
    keeper = Housekeeper(store, tmp_path / "none", keep_ms=KEEP[0], keep_failed_ms=KEEP[1], interval_seconds=60)
    await keeper.clean()
    assert await store.purge(*KEEP) == 0


async def test_only_the_output_folder_is_swept(housekeeper: Housekeeper, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("kept")
    link = folder / "t0000000000000000"
    link.symlink_to(outside)
    then = time.time() - 3600
    os.utime(link, (then, then), follow_symlinks=False)
    os.utime(outside, (then, then))
    await housekeeper.clean()
    assert (outside / "file").read_text() == "kept"


async def test_a_store_that_fails_does_not_end_the_housekeeping(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    purge = store.purge
    asked = 0
    recovered = anyio.Event()

    async def failing(*keep: int) -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise StoreError("the store is busy")
        removed = await purge(*keep)
        recovered.set()
        return removed

    monkeypatch.setattr(store, "purge", failing)
    keeper = Housekeeper(store, folder, keep_ms=KEEP[0], keep_failed_ms=KEEP[1], interval_seconds=0.001)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        with anyio.fail_after(5):
            await recovered.wait()
        group.cancel_scope.cancel()
    assert "the store is busy" in caplog.text


async def test_output_over_its_quota_goes_oldest_ended_first_and_live_output_stays(
    store: Store, folder: Path, clock: Clock
) -> None:
    owner = await store.register("me", 1, "1", ["echo"])
    for _ in range(4):
        await store.add(NewTask("echo", {}, 3, 60.0))
    tasks = await store.claim(owner, {"echo": 0}, 4)
    for task in tasks:
        (folder / task.id / "1").mkdir(parents=True)
        (folder / task.id / "1" / "output").write_bytes(b"x" * 1000)
    second, first, third, live = tasks
    for task in (first, second, third):
        clock.advance(1)
        assert await store.settle(task, Completed())

    async def left(most_bytes: int) -> set[str]:
        keep = {"keep_ms": KEEP[0], "keep_failed_ms": KEEP[1], "interval_seconds": 3600}
        await Housekeeper(store, folder, **keep, most_bytes=most_bytes).keep_quota()
        return set(os.listdir(folder))

    assert await left(4000) == {task.id for task in tasks}
    assert await left(2500) == {third.id, live.id}
    assert await left(1) == {live.id}


async def test_output_that_only_a_damaged_database_knows_is_kept(housekeeper: Housekeeper, folder: Path) -> None:
    stray = folder / "told2hear"
    stray.mkdir(parents=True)
    os.utime(stray, (0, 0))
    aside = folder.parent / "taskorch.db.corrupt-20261124T000000Z"
    aside.touch()
    await housekeeper.clean()
    assert os.listdir(folder) == [stray.name]
    os.unlink(aside)
    await housekeeper.clean()
    assert os.listdir(folder) == []
