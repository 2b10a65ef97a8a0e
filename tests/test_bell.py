"""Servers wake each other: what one stores, another starts at once."""

import os
import resource
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import settings
from pools import Payload, Pool

from taskorch.app import running
from taskorch.domain.task import NewTask, Status
from taskorch.storage import store as store_module
from taskorch.storage.database import open_database
from taskorch.storage.store import Store
from taskorch.work.bell import Bell


@pytest.fixture(autouse=True)
def no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by itself: only a bell brings news."""
    monkeypatch.setattr(store_module, "TOLD_SECONDS", 3600.0)


@asynccontextmanager
async def another_server(pool: Pool, path: Path) -> AsyncIterator[Store]:
    """One that runs nothing by itself, on a connection of its own."""
    async with open_database(path) as database:
        store = Store(database)
        with Bell(pool.folder / "servers", "another", store) as bell:
            async with anyio.create_task_group() as group:
                group.start_soon(bell.run)
                yield store
                group.cancel_scope.cancel()


@asynccontextmanager
async def awake(pool: Pool) -> AsyncIterator[None]:
    """The pool's server hears the bell."""
    with Bell(pool.folder / "servers", "ours", pool.store) as bell:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.store.follow_others, bell.rung)
            await anyio.wait_all_tasks_blocked()
            yield
            group.cancel_scope.cancel()


async def work(payload: Payload) -> Any:
    return payload


async def test_a_task_of_one_server_starts_on_another_that_is_idle(pool: Pool, tmp_path: Path) -> None:
    async with pool.running(work=work), awake(pool), another_server(pool, tmp_path / "state" / "taskorch.db") as other:
        task = await other.add(NewTask("work", {"n": 1}, 3, 60))
        assert (await pool.ended(task)).result == {"n": 1}


async def test_a_cancel_reaches_the_server_that_runs_the_task(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.work.worker.TICK_SECONDS", 0.01)
    begun = anyio.Event()

    async def wait(_: Payload) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with pool.running(work=wait), awake(pool), another_server(pool, tmp_path / "state" / "taskorch.db") as other:
        task = await pool.add()
        await begun.wait()
        await other.cancel(task.id, "enough", "x")
        assert (await pool.ended(task)).status is Status.CANCELLED


async def test_what_concerns_nobody_else_rings_nowhere(pool: Pool, tmp_path: Path) -> None:
    async with awake(pool):
        with Bell(pool.folder / "servers", "listener", pool.store) as listener:
            task = await pool.add(run_at=pool.clock.now + 60_000)
            await pool.store.edit(task.id, {"labels": ("x",)}, None, "x")
            heard = anyio.Event()

            async def listen() -> None:
                await listener.rung()
                heard.set()

            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                assert not heard.is_set()
                listener.tell()
                await heard.wait()


async def test_a_full_or_deserted_fifo_stops_nobody(tmp_path: Path, store: Store) -> None:
    os.mkfifo(tmp_path / "deserted.fifo")
    with Bell(tmp_path, "full", store) as full, Bell(tmp_path, "ringer", store) as ringer:
        for _ in range(70_000 if sys.platform == "linux" else 1):
            full.ring()  # to `ringer` alone
        ringer.ring()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".fifo")] == ["deserted.fifo"]


async def test_who_has_too_many_files_open_rings_nobody_and_goes_on(tmp_path: Path, store: Store) -> None:
    with Bell(tmp_path, "deaf", store), Bell(tmp_path, "ringer", store) as ringer:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            ringer.ring()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_what_a_program_stores_that_rings_nobody_is_noticed(tmp_path: Path) -> None:
    told = anyio.Event()
    async with running(settings(tmp_path)) as app:
        with app.service.store.listening(lambda changes: None if changes else told.set()), anyio.fail_after(15):
            await anyio.wait_all_tasks_blocked()
            await app.service.store.probe()  # the first look is done
            with closing(sqlite3.connect(tmp_path / "state" / "taskorch.db")) as other, other:
                other.execute("UPDATE servers SET version = 'another'")
            await told.wait()
