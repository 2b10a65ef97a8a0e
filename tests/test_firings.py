"""What schedules do to the store: each time makes one task, whatever clocks, servers and people do meanwhile."""

import dataclasses
import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes import Clock
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pools import other_process

from taskorch.domain.errors import Conflict, InvalidInput
from taskorch.domain.task import CatchUp, Completed, NewTask, Overlap, Priority, Retry, Schedule, Status, Task
from taskorch.storage.database import Database, open_database
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
HOURLY = Schedule(None, 3600, "Europe/Berlin")
AT_SEVEN = Schedule("0 7 * * *", None, "Europe/Berlin")


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1000


class World:
    """A store with a clock, and what a test asks of the schedules in it."""

    def __init__(self, store: Store, queries: Queries, clock: Clock, database: Database) -> None:
        self.store, self.queries, self.clock, self.database = store, queries, clock, database
        self.owner = 0

    async def add(self, schedule: Schedule = HOURLY, **fields: Any) -> Task:
        new = NewTask("work", {"a": 1}, 3, 60, name="tick", schedule=schedule)
        return await self.store.add(replace(new, **fields))

    async def get(self, task: Task) -> Task:
        return await self.queries.get(task.id)

    async def at(self, moment: int) -> None:
        """Time goes to that moment, by leaps from one due time to the next, as with a server that runs."""
        while (due := await self.store.promote()) is not None and due <= moment:
            self.clock.now = max(self.clock.now, due)
        self.clock.now = moment
        await self.store.promote()

    async def after(self, milliseconds: int) -> None:
        """A server that did not run until then looks for the first time."""
        self.clock.now += milliseconds
        await self.store.promote()

    async def end_all(self) -> None:
        """Whatever the schedules have created runs and completes."""
        self.owner = self.owner or await self.store.register(f"lock {id(self)}", 1, "0", ["work"])
        while claimed := await self.store.claim(self.owner, {"work": 0}, 100):
            await self.store.settle_all([(task, Completed(None), None) for task in claimed])

    async def times(self, task: Task) -> list[int]:
        """For which times it has created tasks that are stored."""
        query = "SELECT at FROM firings WHERE schedule = ? ORDER BY at"
        return await self.database.read(lambda db: [row[0] for row in db.execute(query, (task.seq,))])

    async def created(self, task: Task) -> list[Task]:
        query = "SELECT t.id FROM firings f JOIN tasks t ON t.seq = f.task WHERE f.schedule = ? ORDER BY f.at"
        ids = await self.database.read(lambda db: [row[0] for row in db.execute(query, (task.seq,))])
        return await self.queries.get_many(ids)

    async def told(self, task: Task, event: str) -> list[str]:
        return [row["detail"] for row in (await self.queries.history(task)).events if row["event"] == event]


@pytest.fixture
def world(store: Store, queries: Queries, clock: Clock, database: Database) -> World:
    clock.now = ms("2027-03-01T12:00:00+01:00")
    return World(store, queries, clock, database)


# Firing.


async def test_each_time_makes_a_task_of_its_own_and_the_schedule_goes_on(world: World) -> None:
    start = world.clock.now
    task = await world.add()
    assert (task.status, task.ready, task.run_at) == (Status.WAITING, False, start + HOUR)
    assert await world.store.promote() == start + HOUR
    for hour in (1, 2, 3):
        await world.at(start + hour * HOUR)
        await world.end_all()
        assert await world.times(task) == [start + n * HOUR for n in range(1, hour + 1)]
        assert (await world.get(task)).run_at == start + (hour + 1) * HOUR
    assert (await world.get(task)).status is Status.WAITING


async def test_what_it_creates_is_as_the_schedule_was_described(world: World) -> None:
    fields: dict[str, Any] = {
        "priority": Priority.HIGH,
        "labels": ("a", "b"),
        "on_server_exit": "stop",
        "retry": Retry(on_exit=(3,)),
        "max_attempts": 7,
        "timeout_seconds": 9,
        "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    task = await world.add(AT_SEVEN, **fields, concurrency_key="k")
    await world.at(ms("2027-03-02T07:00:00+01:00"))
    [made] = await world.created(task)
    assert {name: getattr(made, name) for name in fields} == fields
    assert (made.kind, made.payload, made.concurrency_key) == ("work", {"a": 1}, "k")
    assert (made.schedule, made.run_at, made.expires_at) == (None, None, None)
    assert made.name == "tick 2027-03-02 07:00"
    looked_at = {"kind", "payload", "concurrency_key", "schedule", "run_at", "expires_at", "name"}
    assert {field.name for field in dataclasses.fields(NewTask)} == fields.keys() | looked_at
    assert made.status is Status.WAITING and (made.ready or made.held)


async def test_a_schedule_without_a_name_makes_tasks_without_one_and_long_names_fit(world: World) -> None:
    nameless, long = await world.add(name=None), await world.add(name="n" * 200)
    await world.after(HOUR)
    assert (await world.created(nameless))[0].name is None
    name = (await world.created(long))[0].name
    assert name == f"{'n' * 183} 2027-03-01 13:00" and len(name) == 200


async def test_a_grid_does_not_drift_however_late_servers_look(world: World) -> None:
    start = world.clock.now
    task = await world.add()
    for late in (1, 59_000, 7, 30_000):
        at = (await world.get(task)).run_at
        assert at is not None
        await world.after(at - world.clock.now + late)
        await world.end_all()
    assert await world.times(task) == [start + n * HOUR for n in (1, 2, 3, 4)]


async def test_a_grid_begins_where_it_is_told_to(world: World) -> None:
    now = world.clock.now
    later = await world.add(run_at=now + 5 * MINUTE)
    past = await world.add(run_at=now - 90 * MINUTE)
    at_once = await world.add(run_at=now)
    just_now = await world.add(run_at=now - 1)  # so long the request was on its way
    firsts = [task.run_at for task in (later, past, at_once, just_now)]
    assert firsts == [now + 5 * MINUTE, now + 30 * MINUTE, now, now - 1]
    await world.after(5 * MINUTE)
    assert (await world.get(later)).run_at == now + 65 * MINUTE
    assert (await world.get(at_once)).run_at == now + HOUR


async def test_cron_does_not_fire_before_it_is_told_to(world: World) -> None:
    exactly = await world.add(AT_SEVEN, run_at=ms("2027-03-05T07:00:00+01:00"))
    between = await world.add(AT_SEVEN, run_at=ms("2027-03-05T07:00:01+01:00"))
    assert (exactly.run_at, between.run_at) == (ms("2027-03-05T07:00+01:00"), ms("2027-03-06T07:00+01:00"))


async def test_what_never_comes_is_no_schedule(world: World) -> None:
    with pytest.raises(InvalidInput, match="never comes"):
        await world.add(Schedule("0 0 */20 * 1L", None, "UTC"))


# Two and more servers.


@pytest.mark.parametrize("servers", [2, 4])
async def test_a_time_makes_one_task_however_many_servers_look(servers: int, tmp_path: Path, clock: Clock) -> None:
    clock.now = ms("2027-03-01T12:00:00+01:00")
    start = clock.now
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(other_process(tmp_path, clock)) for _ in range(servers)]
        database = await stack.enter_async_context(open_database(tmp_path / "state" / "taskorch.db"))
        made = [
            await stores[0].add(
                NewTask("work", {}, 1, 60, schedule=replace(HOURLY, overlap="queue", catch_up=catch_up))
            )
            for catch_up in ("once", "skip", "all")
        ]
        for _ in range(20):
            clock.now += HOUR
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    for store in stores:
                        for _ in range(3):
                            group.start_soon(store.promote)
        rows = await database.read(lambda db: db.execute("SELECT schedule, at, task FROM firings").fetchall())
        tasks = await database.read(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()[0])
    assert sorted(row[:2] for row in rows) == [(task.seq, start + n * HOUR) for task in made for n in range(1, 21)]
    assert len({row[2] for row in rows}) == 60 and tasks == 63


async def test_a_time_that_was_made_is_not_made_again(world: World) -> None:
    """Not even when the schedule's own row says so."""
    start = world.clock.now
    task = await world.add(replace(HOURLY, overlap="queue"))
    await world.after(HOUR)
    with sqlite3.connect(world_file(world)) as other:
        other.execute("UPDATE tasks SET run_at = ? WHERE id = ?", (start + HOUR, task.id))
    await world.store.promote()
    assert await world.times(task) == [start + HOUR] and len(await world.created(task)) == 1
    assert (await world.told(task, "skipped"))[0].startswith("this time had its task already")


def world_file(world: World) -> Path:
    return world.database._path  # pyright: ignore[reportPrivateUsage]


# Sleep and clocks: each catch_up with each overlap.

LATE = 5 * HOUR + 10 * MINUTE  # at half past five hours the laptop wakes: five times have passed
# What is made (as hours) of the five times, and what is left out: how many, and why.
CAUGHT_UP: dict[tuple[CatchUp, Overlap], tuple[list[int], list[str]]] = {
    ("once", "skip"): ([5], ["4 earlier times"]),
    ("once", "queue"): ([5], ["4 earlier times"]),
    ("skip", "skip"): ([], ["5 earlier times"]),
    ("skip", "queue"): ([], ["5 earlier times"]),
    ("all", "skip"): ([1], ["has not ended"] * 4),
    ("all", "queue"): ([1, 2, 3, 4, 5], []),
}


@pytest.mark.parametrize("schedule", [HOURLY, Schedule("0 * * * *", None, "Europe/Berlin")], ids=["every", "cron"])
@pytest.mark.parametrize(("catch_up", "overlap"), CAUGHT_UP)
async def test_after_a_sleep(catch_up: CatchUp, overlap: Overlap, schedule: Schedule, world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(schedule, catch_up=catch_up, overlap=overlap))
    await world.after(LATE)
    made, left_out = CAUGHT_UP[catch_up, overlap]
    assert await world.times(task) == [start + hour * HOUR for hour in made]
    skipped = await world.told(task, "skipped")
    assert len(skipped) == len(left_out) and all(part in text for part, text in zip(left_out, skipped, strict=True))
    assert (await world.get(task)).run_at == start + 6 * HOUR, "and it goes on"


@pytest.mark.parametrize("overlap", ["skip", "queue"])
@pytest.mark.parametrize("catch_up", ["once", "skip", "all"])
async def test_while_the_task_before_still_runs(catch_up: CatchUp, overlap: Overlap, world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(HOURLY, catch_up=catch_up, overlap=overlap))
    await world.at(start + 3 * HOUR)
    queued = [start + HOUR, start + 2 * HOUR, start + 3 * HOUR]
    assert await world.times(task) == (queued if overlap == "queue" else queued[:1])
    first = (await world.created(task))[0]
    skipped = await world.told(task, "skipped")
    assert skipped == (
        [] if overlap == "queue" else [f"{first.id} has not ended (2027-03-01T{hour}:00:00+01:00)" for hour in (14, 15)]
    )
    await world.end_all()
    await world.at(start + 4 * HOUR)
    assert (await world.times(task))[-1] == start + 4 * HOUR


async def test_a_task_that_works_or_backs_off_has_not_ended(world: World) -> None:
    task = await world.add()
    await world.after(HOUR)
    owner = await world.store.register("lock", 1, "0", ["work"])
    [working] = await world.store.claim(owner, {"work": 0}, 1)
    await world.after(HOUR)
    assert len(await world.times(task)) == 1
    await world.store.cancel(working.id, "", "test")
    await world.after(HOUR)
    assert len(await world.times(task)) == 1, "asked to stop is not ended"
    await world.store.settle(working, Completed(None))
    await world.after(HOUR)
    assert len(await world.times(task)) == 2


async def test_queued_tasks_with_a_key_work_one_at_a_time(world: World) -> None:
    task = await world.add(replace(HOURLY, overlap="queue", catch_up="all"), concurrency_key="k")
    await world.after(3 * HOUR)
    owner = await world.store.register("lock", 1, "0", ["work"])
    for made in await world.created(task):
        claimed = await world.store.claim(owner, {"work": 0}, 9)
        assert [one.id for one in claimed] == [made.id], "the first time first"
        await world.store.settle(claimed[0], Completed(None))


async def test_a_firing_a_little_late_is_not_missed(world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(HOURLY, catch_up="skip"))
    await world.after(HOUR + 120_000)
    assert await world.times(task) == [start + HOUR]
    await world.end_all()
    await world.after(HOUR + 1)  # 120.001 s late
    assert await world.times(task) == [start + HOUR]


async def test_of_all_missed_times_the_latest_hundred_are_made_up(world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(HOURLY, every_seconds=60, catch_up="all", overlap="queue"))
    await world.after(150 * MINUTE)
    assert await world.times(task) == [start + n * MINUTE for n in range(51, 151)]
    names = [made.name for made in await world.created(task)]
    assert (names[0], names[-1]) == ("tick 2027-03-01 12:51", "tick 2027-03-01 14:30")
    assert len(await world.told(task, "fired")) + len(await world.told(task, "skipped")) == 50
    world.clock.now += 30 * DAY
    await world.end_all()
    await world.store.promote()
    assert len(await world.times(task)) == 200


@pytest.mark.parametrize("schedule", [replace(HOURLY, every_seconds=1), Schedule("* * * * *", None, "Europe/Berlin")])
@pytest.mark.parametrize("catch_up", ["once", "skip", "all"])
async def test_a_clock_set_forward_by_years_is_one_short_transaction(
    schedule: Schedule, catch_up: CatchUp, world: World
) -> None:
    task = await world.add(replace(schedule, catch_up=catch_up, overlap="queue"))
    with anyio.fail_after(5):
        await world.after(50 * 365 * DAY)
    [skipped] = await world.told(task, "skipped") if catch_up != "all" else [""]
    assert "or more earlier times" in skipped or catch_up == "all"
    assert len(await world.times(task)) == (100 if catch_up == "all" else 1)


@pytest.mark.parametrize("schedule", [HOURLY, Schedule("0 * * * *", None, "Europe/Berlin")], ids=["every", "cron"])
async def test_a_clock_set_back_makes_no_time_twice(schedule: Schedule, world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(schedule, overlap="queue"))
    await world.at(start + 3 * HOUR)
    world.clock.now = start
    await world.at(start + 5 * HOUR)
    assert await world.times(task) == [start + n * HOUR for n in range(1, 6)]


# What people do.


async def test_a_paused_schedule_fires_not_and_makes_up_for_nothing(world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(HOURLY, catch_up="all", overlap="queue"))
    await world.store.edit(task.id, {"paused": True}, None, "test")
    await world.after(5 * HOUR + MINUTE)
    assert await world.times(task) == []
    resumed = await world.store.edit(task.id, {"paused": False}, None, "test")
    assert resumed.run_at == start + 6 * HOUR
    await world.at(start + 6 * HOUR)
    assert await world.times(task) == [start + 6 * HOUR]


async def test_a_pause_between_two_times_changes_nothing(world: World) -> None:
    task = await world.add()
    await world.store.edit(task.id, {"paused": True}, None, "test")
    world.clock.advance(60)
    assert (await world.store.edit(task.id, {"paused": False}, None, "test")).run_at == task.run_at


async def test_a_time_made_before_a_pause_is_not_made_after_it_by_a_clock_set_back(world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(HOURLY, overlap="queue"))
    await world.after(HOUR)
    await world.store.edit(task.id, {"paused": True}, None, "test")
    world.clock.now = start + MINUTE
    assert (await world.store.edit(task.id, {"paused": False}, None, "test")).run_at == start + 2 * HOUR


async def test_a_schedule_fires_when_it_is_told_to_and_goes_on_as_before(world: World) -> None:
    now = world.clock.now = world.clock.now + 7 * MINUTE
    every, cron = await world.add(run_at=now - 7 * MINUTE), await world.add(AT_SEVEN)
    for task in (every, cron):
        await world.store.edit(task.id, {"run_at": now}, None, "test")
    await world.store.promote()
    assert await world.times(every) == await world.times(cron) == [now]
    assert (await world.get(every)).run_at == now + 53 * MINUTE
    assert (await world.get(cron)).run_at == ms("2027-03-02T07:00+01:00")


async def test_a_time_in_the_past_means_now_and_not_all_since_then(world: World) -> None:
    now = world.clock.now
    task = await world.add(replace(HOURLY, catch_up="all", overlap="queue"))
    await world.store.edit(task.id, {"run_at": now - DAY}, None, "test")
    await world.store.promote()
    assert await world.times(task) == [now]


async def test_what_a_schedule_creates_from_now_on_can_be_changed(world: World) -> None:
    task = await world.add()
    changes = {"payload": {"b": 2}, "name": "new", "labels": ("x",), "max_attempts": 9, "priority": Priority.LOW}
    await world.store.edit(task.id, changes, None, "test")
    await world.after(HOUR)
    [made] = await world.created(task)
    assert (made.payload, made.name, made.labels, made.max_attempts) == ({"b": 2}, "new 2027-03-01 13:00", ("x",), 9)
    assert made.rank == made.priority == Priority.LOW
    await world.end_all()
    await world.store.edit(task.id, {"payload": {"c": 3}}, 2, "test")  # firing does not raise the version
    with pytest.raises(Conflict, match="has no expires_at"):
        await world.store.edit(task.id, {"expires_at": world.clock.now + DAY}, None, "test")


async def test_a_cancelled_schedule_fires_no_more_and_what_it_created_goes_on(world: World) -> None:
    start = world.clock.now
    task = await world.add(replace(HOURLY, catch_up="all", overlap="queue"))
    await world.after(HOUR)
    assert (await world.store.cancel(task.id, "", "test")).status is Status.CANCELLED
    await world.after(5 * HOUR)
    assert await world.times(task) == [start + HOUR]
    assert [made.status for made in await world.created(task)] == [Status.WAITING]
    back = await world.store.retry(task.id, None, "test")
    assert (back.status, back.ready, back.run_at) == (Status.WAITING, False, start + 7 * HOUR)
    await world.at(start + 7 * HOUR)
    assert await world.times(task) == [start + HOUR, start + 7 * HOUR]


async def test_a_schedule_may_come_back_later(world: World) -> None:
    start = world.clock.now
    every, cron = await world.add(), await world.add(AT_SEVEN)
    for task in (every, cron):
        await world.store.cancel(task.id, "", "test")
    assert (await world.store.retry(every.id, start + 90 * MINUTE, "test")).run_at == start + 2 * HOUR
    assert (await world.store.retry(cron.id, start + 2 * DAY, "test")).run_at == ms("2027-03-04T07:00+01:00")


async def test_what_a_deleted_schedule_created_stays(world: World) -> None:
    task = await world.add()
    await world.after(HOUR)
    [made] = await world.created(task)
    assert await world.store.delete(task.id, False, "test") is None
    assert (await world.get(made)).status is Status.WAITING
    assert (await world.queries.history(made)).schedule is None
    assert await world.store.promote() is None


async def test_a_schedule_outlives_what_it_created(world: World) -> None:
    start = world.clock.now
    task = await world.add()
    await world.after(HOUR)
    await world.end_all()
    world.clock.now += 30 * MINUTE
    assert await world.store.purge(0, 0) == 1
    assert await world.times(task) == []
    world.clock.now = start + MINUTE
    await world.at(start + 2 * HOUR)
    assert await world.times(task) == [start + 2 * HOUR], "the first time is not made again"


async def test_no_worker_ever_gets_a_schedule(world: World) -> None:
    await world.add(run_at=world.clock.now)
    owner = await world.store.register("lock", 1, "0", ["work"])
    assert await world.store.claim(owner, {"work": 0}, 9) == []
    await world.store.promote()
    [made] = await world.store.claim(owner, {"work": 0}, 9)
    assert made.schedule is None


# Limits.


async def test_a_schedule_of_every_minute_leaves_few_events(world: World) -> None:
    task = await world.add(replace(HOURLY, every_seconds=60))
    other = await world.add(replace(HOURLY, every_seconds=60), name="other")
    await world.store.edit(task.id, {"priority": Priority.HIGH}, None, "test")
    for _ in range(60):
        await world.after(MINUTE)
    query = "SELECT event, count(*) FROM events WHERE task = ? GROUP BY event ORDER BY event"
    for each, updated in ((task, [("updated", 1)]), (other, [])):
        counted = await world.database.read(lambda db, each=each: db.execute(query, (each.seq,)).fetchall())
        assert counted == [("skipped", 50), *updated]


async def test_many_schedules_that_are_due_at_once_all_fire(world: World) -> None:
    tasks = [await world.add(replace(HOURLY, every_seconds=60)) for _ in range(50)]
    plain = await world.store.add(NewTask("work", {}, 1, 60, run_at=world.clock.now + HOUR))
    await world.after(DAY)
    assert [len(await world.times(task)) for task in tasks] == [1] * 50
    assert (await world.get(plain)).ready
    assert (await world.told(tasks[0], "skipped"))[0].startswith("199 or more earlier times")


async def test_a_full_store_leaves_firings_out_and_says_so(database: Database, queries: Queries, clock: Clock) -> None:
    world = World(Store(database, clock, most_live=2), queries, clock, database)
    task = await world.add(replace(HOURLY, overlap="queue"))
    await world.after(HOUR)
    await world.after(HOUR)
    assert len(await world.times(task)) == 1
    assert "at most 2 may" in (await world.told(task, "skipped"))[0]
    await world.end_all()
    await world.after(HOUR)
    assert len(await world.times(task)) == 2


async def test_of_many_missed_times_no_more_are_made_than_the_store_takes(
    database: Database, queries: Queries, clock: Clock
) -> None:
    world = World(Store(database, clock, most_live=4), queries, clock, database)
    task = await world.add(replace(HOURLY, overlap="queue", catch_up="all"))
    await world.after(20 * HOUR)
    assert len(await world.times(task)) == 3
    assert "5 tasks would wait or work; at most 4 may" in (await world.told(task, "skipped"))[0]


@pytest.mark.parametrize("when", ['"0 7 * * *","every_seconds":null', 'null,"every_seconds":60'], ids=["cron", "every"])
async def test_a_schedule_that_cannot_be_reckoned_here_fails_and_no_server_with_it(when: str, world: World) -> None:
    task, healthy = await world.add(AT_SEVEN), await world.add(AT_SEVEN)
    with sqlite3.connect(world_file(world)) as other:
        changed = f'{{"cron":{when},"time_zone":"Mars/Base","catch_up":"once","overlap":"skip"}}'
        other.execute("UPDATE tasks SET schedule = ? WHERE id = ?", (changed, task.id))
    await world.at(ms("2027-03-02T07:00+01:00"))
    failed = await world.get(task)
    assert failed.status is Status.FAILED and failed.error and "'Mars/Base' is not known" in failed.error.message
    assert len(await world.times(healthy)) == 1


# Any course of things.

Step = tuple[str, int]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("forward"), st.integers(0, 3 * HOUR)),
        st.tuples(st.just("leap"), st.integers(0, 3 * DAY)),
        st.tuples(st.just("back"), st.integers(0, 6 * HOUR)),
        st.tuples(st.just("look"), st.just(0)),
        st.tuples(st.just("pause"), st.just(0)),
        st.tuples(st.just("resume"), st.just(0)),
        st.tuples(st.just("cancel"), st.just(0)),
        st.tuples(st.just("retry"), st.just(0)),
        st.tuples(st.just("end"), st.just(0)),
        st.tuples(st.just("purge"), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("catch_up", ["once", "skip", "all"])
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_whatever_happens_firings_are_on_the_grid_and_each_is_new(
    catch_up: CatchUp, overlap: Overlap, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each later than all before it, none before its time, none while paused or cancelled, at most one at a time."""

    @hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps=steps, interval=st.sampled_from([7 * MINUTE, HOUR, DAY]))
    def run(steps: Sequence[Step], interval: int) -> None:
        anyio.run(course, steps, interval, catch_up, overlap, tmp_path_factory.mktemp("course"))

    run()


async def course(steps: Sequence[Step], interval: int, catch_up: CatchUp, overlap: Overlap, folder: Path) -> None:
    clock = Clock(ms("2027-03-20T12:00:00+01:00"))
    async with AsyncExitStack() as stack:
        worlds: list[World] = []
        for _ in range(2):
            database = await stack.enter_async_context(open_database(folder / "state" / "taskorch.db"))
            worlds.append(World(Store(database, clock), Queries(database), clock, database))
        start = clock.now + interval
        task = await worlds[0].add(Schedule(None, interval / 1000, "Europe/Berlin", catch_up, overlap))
        seen: list[int] = []
        for place, (step, amount) in enumerate(steps):
            await take(worlds[place % 2], task, step, amount)
            is_live = (now := await worlds[0].get(task)).status is Status.WAITING and not now.paused
            async with anyio.create_task_group() as group:
                for world in worlds:
                    group.start_soon(world.store.promote)
            fresh = [at for at in await worlds[1].times(task) if at not in seen]
            assert all((at - start) % interval == 0 and start <= at <= clock.now for at in fresh)
            assert all(at > max(seen, default=0) for at in fresh) and (is_live or not fresh)
            assert len(fresh) <= (100 if catch_up == "all" else 1)
            if overlap == "skip":
                assert sum(not made.ended for made in await worlds[0].created(task)) <= 1
            seen += sorted(fresh)
        after = await worlds[0].get(task)
        if after.status is Status.WAITING and not after.paused:
            assert after.run_at is not None and (after.run_at - start) % interval == 0
            assert after.run_at > max([clock.now, *seen])


async def take(world: World, task: Task, step: str, amount: int) -> None:
    status, paused = (now := await world.get(task)).status, now.paused
    match step:
        case "forward" | "leap":
            world.clock.now += amount
        case "back":
            world.clock.now -= amount
        case "pause" | "resume" if status is Status.WAITING and paused != (step == "pause"):
            await world.store.edit(task.id, {"paused": step == "pause"}, None, "test")
        case "cancel":
            await world.store.cancel(task.id, "", "test")
        case "retry" if status is Status.CANCELLED:
            await world.store.retry(task.id, None, "test")
        case "end":
            await world.end_all()
        case "purge" if status is Status.WAITING:
            await world.store.purge(DAY, DAY)
        case _:
            pass
