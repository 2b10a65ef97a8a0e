"""Schedules on real servers: many on one file, killed around the moments at which schedules fire."""

import contextlib
import os
import random
import sqlite3
import sys
import time
from typing import Any

import anyio
import anyio.to_thread
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from servers import MODERN, SECONDS, Place, Server, wait_for

SEED = os.environ.get("SCHEDULES_SEED", "7")
KILLS = int(os.environ.get("SCHEDULES_KILLS", "4"))
SOON_SECONDS = 0.05  # around a firing


class Table:
    """What is stored of a schedule, read without any server."""

    def __init__(self, place: Place, schedule: dict[str, Any]) -> None:
        self.place, self.id = place, schedule["id"]
        self.start: int = self.all("SELECT run_at FROM tasks WHERE id = ?", self.id)[0][0]

    def all(self, query: str, *values: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.place.state / "taskorch.db")) as connection:
            return connection.execute(query, values).fetchall()

    def times(self) -> list[int]:
        query = "SELECT at FROM firings WHERE schedule = (SELECT seq FROM tasks WHERE id = ?) ORDER BY at"
        return [row[0] for row in self.all(query, self.id)]

    def check(self, interval: int = 1_000) -> None:
        """Each time up to the last one has made one task, and there are no others."""
        times = self.times()
        assert times == [self.start + n * interval for n in range(len(times))]
        made = [row[0] for row in self.all("SELECT seq FROM tasks WHERE id <> ?", self.id)]
        assert sorted(made) == sorted(row[0] for row in self.all("SELECT task FROM firings"))
        assert len(made) == len(times)
        names = self.all("SELECT name FROM tasks WHERE id <> ?", self.id)
        assert len(set(names)) == len(times)


def begin(server: Server, place: Place, **schedule: Any) -> Table:
    wish = {"every_seconds": 1, "overlap": "queue", "catch_up": "all"} | schedule
    return Table(place, server.call("create_task", kind="echo", name="tick", schedule=wish))


def test_servers_that_look_at_the_same_moments_make_each_task_once(place: Place) -> None:
    for number in (2, 4):
        while len(place.servers) < number:
            place.start(MODERN)
            place.servers[-1].call("get_stats")
    for server in place.servers:  # one schedule by each, all of them fired by whoever is first
        schedule = {"every_seconds": 1, "overlap": "queue"}
        server.call("create_task", kind="echo", name=f"tick {server.process.pid}", schedule=schedule)
    wait_for(lambda: place.rows() and len(place.rows()) >= 4 + 4 * 5)
    with contextlib.closing(sqlite3.connect(place.state / "taskorch.db")) as connection:
        rows = connection.execute("SELECT schedule, at, task FROM firings ORDER BY schedule, at").fetchall()
    tasks = {row["seq"]: row for row in place.rows().values() if row["schedule"] is None}
    assert len({row[:2] for row in rows}) == len({row[2] for row in rows}) == len(rows) >= 20
    assert {row[2] for row in rows} <= tasks.keys()
    for schedule in {row[0] for row in rows}:
        times = [at for owner, at, _ in rows if owner == schedule]
        assert all((at - times[0]) % 1_000 == 0 for at in times) and times == sorted(set(times))
    place.servers[0].until_ended(*(task["id"] for task in tasks.values()))


def test_servers_killed_around_firings_lose_none_and_make_none_twice(place: Place) -> None:
    chance = random.Random(SEED)
    table = begin(place.start(MODERN), place)
    place.start(MODERN).call("get_stats")
    for kill in range(KILLS):
        now = time.time()
        firing = (table.start / 1000) + int(now - table.start / 1000) + 1
        time.sleep(max(0.0, firing + chance.uniform(-SOON_SECONDS, SOON_SECONDS) - now))
        victim = next(server for server in place.servers if server.process.poll() is None)
        victim.kill()
        if kill % 3 == 2:  # and now and then nobody is left
            for server in place.servers:
                if server.process.poll() is None:
                    server.kill()
            time.sleep(chance.uniform(0, 2))
            place.start(MODERN).call("get_stats")
        place.start(MODERN).call("get_stats")
    seen = len(table.times())
    wait_for(lambda: len(table.times()) >= seen + 2)
    last = place.servers[-1]
    last.call("cancel_task", task_id=table.id)
    table.check()
    ids = [row[0] for row in table.all("SELECT id FROM tasks WHERE id <> ? AND finished_at IS NULL", table.id)]
    if ids:
        last.until_ended(*ids)
    assert table.all("SELECT count(*) FROM tasks WHERE id <> ? AND status <> 'completed'", table.id) == [(0,)]


def test_a_schedule_fires_for_what_passed_while_no_server_ran(place: Place) -> None:
    first = place.start()
    table = begin(first, place, catch_up="once")
    first.kill()
    wait_for(lambda: time.time() * 1000 > table.start + 2_500)
    second = place.start()
    wait_for(table.times)
    shown = second.get(table.id)
    assert table.times()[0] >= table.start + 2_000, "the latest"
    assert [event["event"] for event in shown["events"]][:2] == ["skipped", "fired"]
    assert shown["events"][0]["detail"].endswith("earlier times, which were missed")


async def test_an_official_client_sees_a_schedule_run(place: Place) -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=place.environment)
    with anyio.fail_after(SECONDS):
        async with Client(server) as client:

            async def call(tool: str, **arguments: Any) -> dict[str, Any]:
                result = await client.call_tool(tool, arguments)
                assert not result.is_error and result.structured_content is not None, result.content
                return result.structured_content

            payload = {"argv": ["echo", "ran"]}
            wish = {"every_seconds": 1, "time_zone": "Europe/Berlin"}
            made = await call("create_task", payload=payload, name="tick", schedule=wish)
            assert len(made["next_runs"]) == 3 and made["time_zone"] == "Europe/Berlin"
            await anyio.to_thread.run_sync(wait_for, lambda: len(place.rows()) > 1)
            fired = (await call("get_task", task_id="tick", detail="full"))["firings"]
            done = await call("wait_for_tasks", task_ids=[fired[-1]["task"]])
            assert done["tasks"][0]["status"] == "completed"
            assert (await call("get_task_output", task_id=fired[-1]["task"]))["text"] == "ran\n"
            assert (await call("cancel_task", task_id="tick"))["status"] == "cancelled"
