"""Questions: finding a task by what a client calls it, listing in pages, counting, history, statistics."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from fakes import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from taskorch.domain import rules
from taskorch.domain.errors import InvalidInput, NotFound
from taskorch.domain.task import Cancelled, Completed, Failed, NewTask, Priority, Reason, Status, Task
from taskorch.storage import listing
from taskorch.storage import queries as module
from taskorch.storage.database import Database, open_database
from taskorch.storage.listing import Filters, Page
from taskorch.storage.queries import Queries
from taskorch.storage.rows import insert_all, to_values
from taskorch.storage.store import Store

FINAL = Failed(Reason.EXIT_CODE, "exit code 7", 7, retryable=False)


def new(name: str | None = None, **wishes: Any) -> NewTask:
    return NewTask(**{"kind": "echo", "payload": {}, "max_attempts": 3, "timeout_seconds": 60.0, "name": name} | wishes)


async def ended(store: Store, outcome: Any, name: str | None = None, **wishes: Any) -> Task:
    """A task that has ended like that."""
    task = await store.add(new(name, priority=Priority.HIGH, **wishes))
    claimed = next(one for one in await store.claim(1, {task.kind: 0}, 1) if one.id == task.id)
    assert await store.settle(claimed, outcome)
    return task


async def with_id(database: Database, clock: Clock, task_id: str, name: str | None = None) -> Task:
    """A task that bears this id."""

    def add(tx: Any) -> Task:
        (seq,) = tx.execute("SELECT coalesce(max(seq), 0) + 1 FROM tasks").fetchone()
        task = rules.create(new(name), seq=seq, task_id=task_id, now=clock.now)
        return insert_all(tx, [(task, to_values(task))])[0]

    return await database.write(add)


def found(page: Page) -> list[str | None]:
    return [task.name for task in page.tasks]


# Finding


async def test_a_task_is_found_by_its_id_its_name_and_the_beginning_of_its_id(store: Store, queries: Queries) -> None:
    task = await store.add(new("nightly build"))
    await store.add(new("other"))
    for reference in (task.id, "nightly build", task.id[:6], task.id[:16]):
        assert await queries.resolve(reference) == task
    assert await queries.get(task.id) == task


async def test_a_name_means_the_one_live_task_that_bears_it(store: Store, queries: Queries) -> None:
    await ended(store, Completed(), "build")
    await ended(store, FINAL, "build")
    live = await store.add(new("build"))
    await ended(store, Completed(), "build")
    assert (await queries.resolve("build")).id == live.id


async def test_a_name_means_an_ended_task_when_no_other_bears_it(store: Store, queries: Queries) -> None:
    task = await ended(store, Completed(), "build")
    assert (await queries.resolve("build")).id == task.id


@pytest.mark.parametrize("live", [True, False])
async def test_a_name_that_several_tasks_bear_is_refused_with_all_to_choose_from(
    store: Store, queries: Queries, live: bool
) -> None:
    tasks = [await store.add(new("build")) if live else await ended(store, FINAL, "build") for _ in range(3)]
    not_meant = await ended(store, Completed(), "build") if live else await store.add(new("builder"))
    with pytest.raises(InvalidInput) as refused:
        await queries.resolve("build")
    text = str(refused.value)
    assert all(f"{task.id} 'build' ({'waiting' if live else 'failed'})" in text for task in tasks)
    assert not_meant.id not in text
    assert "full id" in text


async def test_at_most_five_candidates_are_named(store: Store, queries: Queries) -> None:
    ids = [(await store.add(new("build"))).id for _ in range(7)]
    with pytest.raises(InvalidInput, match="and more") as refused:
        await queries.resolve("build")
    assert [task_id for task_id in ids if task_id in str(refused.value)] == ids[2:]  # the newest


async def test_the_beginning_of_an_id_must_be_of_one_task(database: Database, clock: Clock, queries: Queries) -> None:
    first = await with_id(database, clock, "tabcde0000000000a")
    second = await with_id(database, clock, "tabcde0000000000b")
    await with_id(database, clock, "tabcdf00000000000")
    with pytest.raises(InvalidInput) as refused:
        await queries.resolve("tabcde")
    assert first.id in str(refused.value)
    assert second.id in str(refused.value)
    assert await queries.resolve("tabcdf") == await queries.resolve("tabcdf000")


async def test_less_than_six_characters_of_an_id_mean_nothing(
    database: Database, clock: Clock, queries: Queries
) -> None:
    await with_id(database, clock, "tabcde0000000000a")
    with pytest.raises(NotFound):
        await queries.resolve("tabcd")


async def test_where_something_is_deleted_the_beginning_of_an_id_is_not_enough(store: Store, queries: Queries) -> None:
    task = await store.add(new("build"))
    with pytest.raises(NotFound):
        await queries.resolve(task.id[:10], prefixes=False)
    assert await queries.resolve("build", prefixes=False) == task
    assert await queries.resolve(task.id, prefixes=False) == task


async def test_a_name_that_looks_like_the_beginning_of_an_id_is_a_name(
    database: Database, clock: Clock, queries: Queries
) -> None:
    await with_id(database, clock, "tester0000000000a")
    named = await with_id(database, clock, "tzzzzz0000000000a", "tester")
    assert await queries.resolve("tester") == named


async def test_a_name_that_nobody_bears_is_answered_with_the_nearest_ones(store: Store, queries: Queries) -> None:
    task = await store.add(new("nightly build"))
    await store.add(new("something else"))
    with pytest.raises(NotFound, match=rf"Nearest: {task.id} 'nightly build'\. Call list_tasks"):
        await queries.resolve("nightly biuld")
    mistyped = task.id[:-1] + ("0" if task.id[-1] != "0" else "1")
    with pytest.raises(NotFound, match=task.id):
        await queries.resolve(mistyped)


async def test_where_nothing_is_near_nothing_is_suggested(store: Store, queries: Queries) -> None:
    await store.add(new("nightly build"))
    with pytest.raises(NotFound) as missing:
        await queries.resolve("%")
    assert str(missing.value) == "No task '%'. Call list_tasks to see ids and names."


async def test_an_unknown_id_says_that_the_task_no_longer_exists(queries: Queries) -> None:
    with pytest.raises(NotFound, match="no longer exists"):
        await queries.get("t0000000000000000")


async def test_many_are_read_in_the_order_asked_for_without_those_that_are_gone(store: Store, queries: Queries) -> None:
    a, b = await store.add(new("a")), await store.add(new("b"))
    assert await queries.get_many([b.id, "t0000000000000000", a.id]) == [b, a]


async def test_completion_offers_ids_and_names_newest_first(store: Store, queries: Queries) -> None:
    for name in ("deploy a", "build", "deploy b"):
        await store.add(new(name))
    assert await queries.suggest("dep", 9) == ["deploy b", "deploy a"]
    assert await queries.suggest("dep", 1) == ["deploy b"]
    assert len([word for word in await queries.suggest("t", 9) if len(word) == 17]) == 3
    assert await queries.suggest("%", 9) == []


# Pages


@pytest.fixture
async def mixture(store: Store, clock: Clock) -> dict[str, Task]:
    """One task each second, of different looks."""
    wishes: list[dict[str, Any]] = [
        {"name": "a", "labels": ("red",)},
        {"name": "b", "labels": ("red", "blue"), "priority": Priority.LOW},
        {"name": "c", "kind": "sleep", "priority": Priority.LOW},
        {"name": "d", "labels": ("blue",), "priority": Priority.HIGH},
    ]
    made: dict[str, Task] = {}
    for wish in wishes:
        clock.advance(1)
        made[wish["name"]] = await store.add(new(**wish))
    await store.cancel(made["b"].id, "not needed", "bob")
    return made


async def test_everything_is_listed_newest_first(mixture: dict[str, Task], queries: Queries) -> None:
    page = await queries.page(Filters(), 10, None)
    assert found(page) == ["d", "c", "b", "a"]
    assert page.next_seq is None


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"status": Status.WAITING}, "dca"),
        ({"status": Status.CANCELLED}, "b"),
        ({"status": Status.FAILED}, ""),
        ({"kind": "sleep"}, "c"),
        ({"priority": Priority.LOW}, "cb"),
        ({"label": "red"}, "ba"),
        ({"label": "re"}, ""),
        ({"text": "BLU"}, "db"),
        ({"text": "not needed"}, "b"),
        ({"text": "user"}, "b"),  # the reason of its error
        ({"label": "red", "status": Status.WAITING}, "a"),
        ({"label": "blue", "priority": Priority.LOW, "text": "needed", "kind": "echo"}, "b"),
        ({"label": "red", "kind": "sleep"}, ""),
    ],
)
async def test_all_given_filters_hold_together(
    mixture: dict[str, Task], queries: Queries, filters: dict[str, Any], names: str
) -> None:
    assert found(await queries.page(Filters(**filters), 10, None)) == list(names)


async def test_times_of_creation_bound_a_list(mixture: dict[str, Task], queries: Queries) -> None:
    bounds = Filters(created_after=mixture["a"].created_at, created_before=mixture["d"].created_at)
    assert found(await queries.page(bounds, 10, None)) == ["c", "b"]


async def test_counts_name_every_status_under_the_other_filters(mixture: dict[str, Task], queries: Queries) -> None:
    nothing = dict.fromkeys(map(str, Status), 0)
    everything = await queries.page(Filters(), 1, None)
    assert everything.counts == nothing | {"waiting": 3, "cancelled": 1}
    by_status = await queries.page(Filters(status=Status.FAILED), 1, None)
    assert by_status.counts == everything.counts
    red = await queries.page(Filters(status=Status.FAILED, label="red"), 1, None)
    assert red.counts == nothing | {"waiting": 1, "cancelled": 1}
    assert not (everything.counts_partial or by_status.counts_partial or red.counts_partial)


async def test_counts_do_not_depend_on_the_page(mixture: dict[str, Task], queries: Queries) -> None:
    first = await queries.page(Filters(label="red"), 1, None)
    second = await queries.page(Filters(label="red"), 1, first.next_seq)
    assert (found(first), found(second)) == (["b"], ["a"])
    assert first.counts == second.counts


async def test_beyond_a_bound_filtered_counts_look_at_the_newest_tasks_and_say_so(
    mixture: dict[str, Task], queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "EXACT_COUNTS", 4)
    assert not (await queries.page(Filters(label="red"), 10, None)).counts_partial
    monkeypatch.setattr(listing, "EXACT_COUNTS", 3)
    page = await queries.page(Filters(label="red"), 10, None)
    assert (page.counts["waiting"], page.counts["cancelled"], page.counts_partial) == (0, 1, True)
    assert found(page) == ["b", "a"]  # the list itself is whole
    exact = await queries.page(Filters(status=Status.WAITING), 10, None)
    assert (exact.counts["waiting"], exact.counts_partial) == (3, False)


@pytest.mark.parametrize("filters", [Filters(), Filters(label="old", status=Status.WAITING)])
async def test_paging_meets_every_old_task_once_while_others_are_created_and_deleted(
    store: Store, queries: Queries, filters: Filters
) -> None:
    old = [await store.add(new(f"old {n}", labels=("old",))) for n in range(23)]
    met: list[str] = []
    at: int | None = None
    newest = old[-1]
    for turn in range(9):
        page = await queries.page(filters, 3, at)
        met += [task.id for task in page.tasks]
        if page.next_seq is None:
            break
        at = page.next_seq
        if turn % 2:
            await store.delete(newest.id, True, "x")  # its place in the order is given again
        newest = await store.add(new(f"new {turn}", labels=("old",)))
    assert met == [task.id for task in reversed(old)]
    assert turn == 7


async def test_the_last_page_says_that_it_is_the_last(store: Store, queries: Queries) -> None:
    for n in range(4):
        await store.add(new(str(n)))
    first = await queries.page(Filters(), 2, None)
    assert first.next_seq is not None
    assert (await queries.page(Filters(), 2, first.next_seq)).next_seq is None
    assert (await queries.page(Filters(), 2, 1)).tasks == []


@pytest.mark.parametrize("text", ["%", "_", "\\", "100%", "a_b", "\\%", "'", '"', "[a]", "*", "?"])
async def test_a_text_filter_takes_every_character_as_it_is(store: Store, queries: Queries, text: str) -> None:
    await store.add(new(f"before {text} after"))
    await store.add(new("label", labels=(f"x{text}y",)))
    await ended(store, Failed(Reason.ERROR, f"it said {text}", retryable=False), "error")
    await store.add(new("100 a-b axb", labels=("plain",)))
    assert len((await queries.page(Filters(text=text), 10, None)).tasks) == 3


@pytest.mark.parametrize("text", ["message", "reason", '","', "null", "exit_code", "{"])
async def test_a_text_filter_does_not_see_how_rows_are_stored(store: Store, queries: Queries, text: str) -> None:
    await store.add(new("a", labels=("x", "y")))
    await ended(store, Failed(Reason.ERROR, "no use", 7, retryable=False), "b")
    page = await queries.page(Filters(text=text), 10, None)
    assert (page.tasks, sum(page.counts.values())) == ([], 0)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def test_any_text_in_a_name_a_label_or_an_error_comes_back_and_is_found(tmp_path: Path) -> None:
    async def check(name: str, label: str, message: str, first: int, last: int) -> None:
        await database.write(lambda tx: tx.execute("DELETE FROM tasks"))
        for n in range(3):
            await store.add(new(f"other {n}", labels=("other",)))
        task = await ended(store, Failed(Reason.ERROR, message, retryable=False), name, labels=(label,))
        stored = await queries.get(task.id)
        assert stored.error
        assert (stored.name, stored.labels, stored.error.message) == (name, (label,), message)
        assert (await queries.resolve(name)).id == task.id
        assert task.id in [one.id for one in (await queries.page(Filters(label=label), 10, None)).tasks]
        for text in (name, label, message):
            if part := text[first:last]:
                assert task.id in [one.id for one in (await queries.page(Filters(text=part), 10, None)).tasks]

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_database(tmp_path / "taskorch.db")) as database,
    ):
        store, queries = Store(database, Clock()), Queries(database)

        @settings(max_examples=60, deadline=None)
        @given(texts, texts, texts, st.integers(0, 5), st.integers(1, 20))
        def any_text(name: str, label: str, message: str, first: int, last: int) -> None:
            portal.call(check, name, label, message, first, last)

        any_text()


# History, statistics


async def test_a_history_is_told_oldest_first_and_bounded(
    store: Store, queries: Queries, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await store.add(new())
    for n in range(5):
        clock.advance(1)
        (claimed,) = await store.claim(1, {"echo": 0}, 1)
        await store.settle(claimed, FINAL if n else Cancelled(f"end {n}"))
        await store.retry(task.id, None, f"retry {n}")
    history = await queries.history(task)
    assert [one["attempt"] for one in history.attempts] == [1, 2, 3, 4, 5]
    assert [one["by"] for one in history.events] == [f"retry {n}" for n in range(5)]
    assert history.attempts[0] == {
        "attempt": 1,
        "owner": 1,
        "worker": None,
        "started_at": clock.now - 4000,
        "ended_at": clock.now - 4000,
        "outcome": "cancelled",
        "reason": "user",
        "message": "end 0",
        "exit_code": None,
    }
    assert history.events[-1] == {"at": clock.now, "event": "retried", "by": "retry 4", "detail": None}
    monkeypatch.setattr(module, "HISTORY_ROWS", 2)
    newest = await queries.history(task)
    assert [one["attempt"] for one in newest.attempts] == [4, 5]
    assert [one["by"] for one in newest.events] == ["retry 3", "retry 4"]


async def test_kinds_are_runnable_while_a_server_that_runs_them_is_noted(store: Store, queries: Queries) -> None:
    assert (await queries.situation([])).kinds == set()
    one = await store.register("one", 1, "1", ["echo", "command"])
    await store.register("two", 2, "1", ["echo"])
    assert (await queries.situation([])).kinds == {"echo", "command"}
    await store.leave(one)
    assert (await queries.situation([])).kinds == {"echo"}


async def test_statistics_count_what_is_stored_and_what_ended_within_a_day(
    store: Store, queries: Queries, clock: Clock, tmp_path: Path
) -> None:
    owner = await store.register("one", 7, "1.0", ["echo"])
    await ended(store, FINAL)
    yesterday = clock.now
    clock.advance(24 * 3600 + 0.001)
    done = await ended(store, Completed())
    await store.cancel((await store.add(new())).id, "", "x")
    oldest = await store.add(new("oldest", priority=Priority.LOW))
    clock.advance(1)
    await store.add(new())
    await store.add(new(run_at=clock.now + 5000))
    await store.add(new(run_at=clock.now + 3000))
    paused = await store.add(new(run_at=clock.now + 1000))
    await store.edit(paused.id, {"paused": True}, None, "x")
    stats = await queries.stats(clock.now)
    assert stats.by_status == {"waiting": 5, "working": 0, "completed": 1, "failed": 1, "cancelled": 1}
    assert stats.by_priority == {"low": 1, "medium": 5, "high": 2}
    assert sorted(stats.ends) == [
        ("cancelled", None, done.created_at),
        ("completed", done.created_at, done.created_at),
    ]
    assert (stats.ready, stats.oldest_ready_at, stats.next_run_at) == (2, oldest.created_at, clock.now + 3000)
    assert stats.servers == [{"id": owner, "uuid": "one", "pid": 7, "started_at": yesterday, "version": "1.0"}]
    assert 0 < stats.database_bytes < 1_000_000


async def test_an_empty_store_has_statistics_too(queries: Queries, clock: Clock) -> None:
    stats = await queries.stats(clock.now)
    assert set(stats.by_status) == set(map(str, Status))
    assert (sum(stats.by_status.values()), stats.ends, stats.ready) == (0, [], 0)
    assert (stats.oldest_ready_at, stats.next_run_at, stats.servers) == (None, None, [])


async def test_questions_are_answered_while_another_process_writes(
    store: Store, queries: Queries, tmp_path: Path
) -> None:
    task = await store.add(new("a"))
    elsewhere = sqlite3.connect(tmp_path / "state" / "taskorch.db", isolation_level=None)
    elsewhere.execute("BEGIN IMMEDIATE")
    asked: list[Callable[[], Any]] = [
        lambda: queries.resolve("a"),
        lambda: queries.page(Filters(), 10, None),
        lambda: queries.history(task),
        lambda: queries.stats(0),
    ]
    with anyio.fail_after(5):
        for question in asked:
            await question()
    elsewhere.close()
