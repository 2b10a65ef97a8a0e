"""What a board is told: all at first, then what changed; who follows sees what who loads anew would see."""

import random
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Clock

from taskorch.domain.task import Completed, Failed, NewTask, Priority, Reason, Retry, Status
from taskorch.storage import overview as module
from taskorch.storage.additions import Wish
from taskorch.storage.database import Database
from taskorch.storage.listing import Filters
from taskorch.storage.overview import Mark, Overview, read_mark
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

BROKEN = Failed(Reason.ERROR, "no such host", None)


def new(name: str, **wishes: Any) -> NewTask:
    return NewTask(**{"kind": "echo", "payload": {}, "max_attempts": 3, "timeout_seconds": 60.0, "name": name} | wishes)


class Viewer:
    """Somebody who loads everything once, and from then on asks what changed."""

    def __init__(self, queries: Queries, clock: Clock, filters: Filters, limit: int = 500) -> None:
        self.queries, self.clock, self.filters, self.limit = queries, clock, filters, limit
        self.seen: dict[str, Any] = {}
        self.loads = 0
        self.counts: Any = None

    async def load(self) -> None:
        self.loads += 1
        self.seen, self.mark, before = {}, None, None
        while self.mark is None or before is not None:
            part = await self.queries.overview(self.filters, self.limit, before, self.clock.now)
            self.mark = self.mark or part.mark
            assert (part.counts is None) == (before is not None), "they are counted once a load"
            self.counts = part.counts or self.counts
            self._take(part)
            before = part.next_seq

    async def follow(self) -> None:
        assert self.mark is not None
        mark = read_mark(str(self.mark))
        assert mark == self.mark
        part = await self.queries.changes(self.filters, mark, self.clock.now)
        if part.stale:
            return await self.load()
        self.mark = part.mark
        self.counts = self.counts if part.counts is None else part.counts
        self._take(part)

    def _take(self, part: Overview) -> None:
        for task in part.tasks:
            told = part.situation.waits.get(task.id)
            self.seen[task.id] = (task, told, part.runs.get(task.id), part.parents.get(task.id))
        for task_id in part.gone:
            self.seen.pop(task_id, None)


async def finish(store: Store, outcome: Any) -> None:
    for claimed in await store.claim(1, {"echo": 0}, 1):
        await store.settle(claimed, outcome)


async def at_random(store: Store, clock: Clock, dice: random.Random, live: list[str]) -> None:
    """One thing that may happen to a store."""
    pick = dice.choice(live) if live else None

    async def create() -> None:
        wishes = {"priority": dice.choice([*Priority]), "concurrency_key": dice.choice([None, None, "one"])}
        parents = (pick,) if pick and dice.random() < 0.4 else ()
        wish = Wish(new(dice.choice(["red", "blue"]), **wishes), depends_on=parents, on_dependency_failure="run")
        live.extend(task.id for task, _ in await store.add_all([wish]))

    async def claim() -> None:
        await store.claim(1, {"echo": 0}, dice.randint(1, 2))

    async def delete() -> None:
        if pick and await store.delete(pick, False, "me") is None:
            live.remove(pick)

    ends = [Completed({"n": 1}), BROKEN, Failed(Reason.ERROR, "final", retryable=False)]
    deeds: list[Callable[[], Any]] = [create, create, create, claim, delete, lambda: finish(store, dice.choice(ends))]
    if pick:
        deeds += [
            lambda: store.cancel(pick, "", "me"),
            lambda: store.retry(pick, None, "me"),
            lambda: store.edit(pick, {"priority": dice.choice([*Priority])}, None, "me"),
            lambda: store.edit(pick, {"paused": dice.random() < 0.5}, None, "me"),
        ]
    clock.advance(dice.choice([0, 0.001, 0.5, 3, 20]))
    try:
        await dice.choice(deeds)()
    except Exception as error:  # a move that this task cannot make
        assert type(error).__module__ == "taskorch.domain.errors", error


@pytest.mark.parametrize("window", [5_000, 4])
@pytest.mark.parametrize("filters", [Filters(), Filters(status=Status.WAITING), Filters(text="red")])
@pytest.mark.parametrize("seed", range(4))
async def test_who_follows_sees_what_who_loads_anew_would_see(
    store: Store, queries: Queries, clock: Clock, filters: Filters, window: int, seed: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(module, "REFRESH_MS", 0 if window < 5_000 else 60_000)
    dice, live = random.Random(seed), list[str]()
    viewer, fresh = (Viewer(queries, clock, filters, limit=7) for _ in range(2))
    await viewer.load()
    for _ in range(60):
        for _ in range(dice.randint(0, 3)):
            await at_random(store, clock, dice, live)
        clock.advance(0.001)
        await viewer.follow()
        await fresh.load()
        assert viewer.seen == fresh.seen
        assert viewer.counts == fresh.counts
    assert fresh.seen and (viewer.loads == 1 or window < 5_000)


async def test_what_works_is_seen_however_old_it_is_until_it_has_ended(
    store: Store, queries: Queries, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    old = await store.add(new("old"))
    claimed = (await store.claim(1, {"echo": 0}, 1))[0]
    for n in range(5):
        await store.add(new(f"later {n}"))
    clock.advance(10)
    viewer = Viewer(queries, clock, Filters(), limit=2)
    part = await queries.overview(Filters(), 2, None, clock.now)
    assert [task.id for task in part.tasks][2:] == [old.id] and part.mark.beyond == (old.seq,)
    viewer.mark, viewer.seen = part.mark, {}
    clock.advance(10)
    await store.settle(claimed, Completed())
    clock.advance(10)
    await viewer.follow()
    assert viewer.seen[old.id][0].status is Status.COMPLETED
    assert viewer.mark.beyond == ()


async def test_a_row_that_is_committed_late_is_not_missed(
    store: Store, queries: Queries, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times are those of its making; a look in between has seen nothing of it."""
    monkeypatch.setattr(module, "UNSETTLED", 0)
    viewer = Viewer(queries, clock, Filters())
    made_at = clock.now
    clock.advance(30)  # it waited so long for the lock
    await viewer.load()
    clock.now, there = made_at, clock.now
    task = await store.add(new("late"))
    clock.now = there + 1
    await viewer.follow()
    assert viewer.loads == 1 and task.id in viewer.seen


@pytest.mark.parametrize(
    ("what", "then"),
    [
        ("the clock was put back", lambda mark, clock: clock.advance(-3600)),
        ("servers can run other kinds", None),
    ],
)
async def test_what_may_have_changed_unseen_is_loaded_anew(
    store: Store, queries: Queries, clock: Clock, what: str, then: Any
) -> None:
    await store.add(new("one"))
    viewer = Viewer(queries, clock, Filters())
    await viewer.load()
    if then is None:
        await store.register("a-uuid", 1, "0", ["echo"])
    else:
        then(viewer.mark, clock)
    await viewer.follow()
    assert viewer.loads == 2, what
    await viewer.follow()
    assert viewer.loads == 2


async def test_who_missed_a_great_deal_begins_anew(
    store: Store, queries: Queries, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    viewer = Viewer(queries, clock, Filters())
    await viewer.load()
    await store.add_all([Wish(new(f"n{n}")) for n in range(11)])
    clock.advance(1)
    await viewer.follow()
    assert (viewer.loads, len(viewer.seen)) == (2, 11)


@pytest.mark.parametrize(("window", "is_counted"), [(5_000, True), (1, False)])
async def test_words_are_not_counted_at_each_change_where_many_tasks_are_stored(
    store: Store, queries: Queries, clock: Clock, monkeypatch: pytest.MonkeyPatch, window: int, is_counted: bool
) -> None:
    """On 200,000 tasks it takes half a second, of a connection that all who ask this server share."""
    monkeypatch.setattr(module, "WINDOW", window)
    await store.add_all([Wish(new(f"n{n}")) for n in range(3)])
    filters = Filters(text="n")
    mark = (await queries.overview(filters, 500, None, clock.now)).mark
    await store.add(new("n3"))
    found = await queries.changes(filters, mark, clock.now)
    assert "n3" in {task.name for task in found.tasks}
    assert (found.counts is not None) is is_counted


async def test_attempts_are_told_of_what_had_several(store: Store, queries: Queries, clock: Clock) -> None:
    quick = Retry(first_delay_seconds=0.001, factor=1, max_delay_seconds=0.001)
    await store.add(new("flaky", retry=quick, max_attempts=20))
    for _ in range(12):
        clock.advance(1)
        await store.promote()
        await finish(store, BROKEN)
    part = await queries.overview(Filters(), 10, None, clock.now)
    (runs,) = part.runs.values()
    assert [row["attempt"] for row in runs] == [*range(3, 13)]
    assert {row["outcome"] for row in runs} == {"failed"}


async def test_a_task_that_waits_after_its_first_attempt_tells_of_it(
    store: Store, queries: Queries, clock: Clock
) -> None:
    owner = await store.register("s" * 32, 1, "0", ["echo"])
    await store.add(new("once"))
    (task,) = await store.claim(owner, {"echo": 1}, 1)
    part = await queries.overview(Filters(), 500, None, clock.now)
    assert part.runs == {}  # its own times say all
    clock.advance(1)
    await store.settle(task, BROKEN)
    part = await queries.overview(Filters(), 500, None, clock.now)
    assert [(row["attempt"], row["outcome"]) for row in part.runs[task.id]] == [(1, "failed")]


def test_a_mark_is_read_as_it_was_written_and_nothing_else_is() -> None:
    mark = Mark(1_800_000_000_000, 1_799_999_999_999, 12, 4_294_967_295, (3, 1))
    assert read_mark(str(mark)) == mark
    assert read_mark(str(Mark(0, 0, 0, 0))) == Mark(0, 0, 0, 0)
    for text in (
        "",
        "m1.2.3",
        "c12",
        "m1.2.3.4.",
        "m-1.2.3.4",
        "m1.2.3.x",
        "m٣.1.1.1",
        f"{mark} ",
        "m1.2.3.4" + ".5" * 1001,
    ):
        assert read_mark(text) is None, text


async def test_a_look_at_changes_walks_the_window_and_no_more(database: Database) -> None:
    """The plan uses the order of arrival and the index of what works, at any size."""

    def plan(db: sqlite3.Connection) -> str:
        rows = db.execute(f"EXPLAIN QUERY PLAN {module.CHANGED}", (1, 1, 1, 1, "[]")).fetchall()
        rows += db.execute(f"EXPLAIN QUERY PLAN {module.BEYOND}", (1,)).fetchall()
        return "; ".join(row[3] for row in rows)

    found = await database.read(plan)
    assert (
        found.count("tasks_working") == 2
        and "rowid<" not in found
        and "SCAN tasks" not in found.replace("tasks USING", "")
    )
