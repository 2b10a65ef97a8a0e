"""Schedules as a client sees them: what is accepted, what replies tell of them, and waits that do not wait for them."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest
from clients import Answer, Facts, call, check_row, check_task, connected, refused, settings, size, stored
from mcp import Client

from taskorch.app import App, running
from taskorch.calls.schedules import machine_zone

DAILY = {"cron": "0 7 * * *", "time_zone": "Europe/Berlin"}


async def create(client: Client, schedule: Any = DAILY, **arguments: Any) -> Facts:
    return check_task(await call(client, "create_task", kind="echo", schedule=schedule, **arguments))


async def full(client: Client, task_id: str) -> Answer:
    return await call(client, "get_task", task_id=task_id, detail="full")


@pytest.fixture(autouse=True)
def zones_are_looked_up_anew() -> Iterator[None]:
    machine_zone.cache_clear()
    yield
    machine_zone.cache_clear()


# Replies.


async def test_a_schedule_tells_when_it_runs_next_in_its_own_zone(client: Client) -> None:
    reply = await call(client, "create_task", kind="echo", name="backup", schedule=DAILY)
    facts = check_task(reply)
    assert (facts["status"], facts["phase"], facts["time_zone"]) == ("waiting", "scheduled", "Europe/Berlin")
    runs = [datetime.fromisoformat(text) for text in facts["next_runs"]]
    berlin = ZoneInfo("Europe/Berlin")
    assert len(runs) == 3 and [run.strftime("%H:%M:%S") for run in runs] == ["07:00:00"] * 3
    assert all(run.utcoffset() == run.astimezone(berlin).utcoffset() for run in runs)
    assert datetime.fromisoformat(facts["run_at"]) == runs[0]
    assert f"next runs: {', '.join(facts['next_runs'])} (Europe/Berlin)" in reply.text
    assert "next" not in facts, "there is nothing to wait for"
    got = await call(client, "get_task", task_id="backup")
    assert check_task(got)["next_runs"] == facts["next_runs"]


@pytest.mark.parametrize("name", ["backup", "n" * 200, "😀" * 200])
@pytest.mark.parametrize("zone", ["UTC", "America/Argentina/ComodRivadavia", "America/North_Dakota/New_Salem"])
async def test_what_is_told_of_a_schedule_stays_within_its_bytes(name: str, zone: str, client: Client) -> None:
    for schedule in (DAILY | {"time_zone": zone}, {"every_seconds": 1.5, "time_zone": zone}):
        reply = await call(client, "create_task", kind="echo", name=name, schedule=schedule)
        check_task(reply)
        assert reply.text_bytes <= 400 and reply.facts_bytes <= 400
        assert size({"content": [{"type": "text", "text": reply.text}], "structuredContent": reply.facts}) <= 800
        assert len(reply.facts["next_runs"]) == 3


async def test_a_schedule_in_full_shows_what_it_is_and_what_it_created(app: App, client: Client) -> None:
    made = await create(client, {"every_seconds": "1h", "time_zone": "Europe/Berlin", "overlap": "queue"}, name="tick")
    await call(client, "update_task", task_id=made["id"], delay_seconds=0)
    await stored(app, made["id"], lambda task: task.run_at and task.run_at > app.service.store.now())
    reply = await full(client, made["id"])
    assert reply.facts["schedule"] == {
        "every_seconds": 3600.0,
        "start": made["run_at"],
        "time_zone": "Europe/Berlin",
        "catch_up": "once",
        "overlap": "queue",
    }
    [firing] = reply.facts["firings"]
    assert firing.keys() == {"at", "task", "status"} and firing["at"] < made["run_at"]
    [fired] = [event for event in reply.facts["events"] if event["event"] == "fired"]
    assert firing["task"] in fired["detail"]
    for word in ('schedule: {"every_seconds":3600.0', "created last:", f"  {firing['task']} ", firing["at"]):
        assert word in reply.text
    created = await full(client, firing["task"])
    assert created.facts["schedule"] == made["id"] and f'schedule: "{made["id"]}"' in created.text
    assert created.facts["name"].startswith("tick 20")
    assert "schedule" not in check_task(await call(client, "get_task", task_id=firing["task"]))


async def test_a_paused_or_cancelled_schedule_tells_no_runs(client: Client) -> None:
    made = await create(client)
    paused = await call(client, "update_task", task_id=made["id"], paused=True)
    assert check_task(paused)["phase"] == "paused" and "starts" not in paused.text
    assert paused.facts["next"] == f'update_task(task_id="{made["id"]}", paused=false)'
    resumed = check_task(await call(client, "update_task", task_id=made["id"], paused=False))
    assert resumed["next_runs"] == made["next_runs"]
    cancelled = check_task(await call(client, "cancel_task", task_id=made["id"]))
    assert not {"next_runs", "time_zone"} & (paused.facts.keys() | cancelled.keys())
    assert cancelled["next"] == f'retry_task(task_id="{made["id"]}")'
    again = check_task(await call(client, "retry_task", task_id=made["id"]))
    assert again["next_runs"] == made["next_runs"]


async def test_in_lists_a_schedule_is_a_task_that_waits(client: Client) -> None:
    made = await create(client, name="backup")
    reply = await call(client, "list_tasks")
    [row] = reply.facts["tasks"]
    check_row(row, reply.text)
    assert (row["id"], row["status"], row["phase"]) == (made["id"], "waiting", "scheduled")
    assert row["run_at"] == made["run_at"]


async def test_many_tasks_of_one_call_may_be_schedules(client: Client) -> None:
    tasks = [{"kind": "echo", "schedule": "@daily"}, {"kind": "echo"}, {"kind": "echo", "schedule": "* * *"}]
    assert "tasks[2]: schedule.cron '* * *' is not allowed" in await refused(client, "create_tasks", tasks=tasks)
    reply = await call(client, "create_tasks", tasks=tasks[:2])
    assert [row["phase"] for row in reply.facts["tasks"]] == ["scheduled", "ready"]


# Waiting.


async def test_a_schedule_is_not_waited_for(client: Client) -> None:
    made = await create(client)
    for until in ("all", "any"):
        with anyio.fail_after(5):
            reply = await call(client, "wait_for_tasks", task_ids=[made["id"]], until=until, timeout_seconds=50)
        assert reply.facts["done"] is False and reply.text.startswith("Not done yet.")
        assert f"{made['id']}: a schedule has no end" in reply.facts["hint"] and reply.facts["hint"] in reply.text
        assert "Call wait_for_tasks again" not in reply.text


async def test_what_stands_beside_a_schedule_is_waited_for(client: Client) -> None:
    schedule = await create(client)
    other = (await call(client, "create_task", kind="echo")).facts
    with anyio.fail_after(5):
        ids = [schedule["id"], other["id"]]
        reply = await call(client, "wait_for_tasks", task_ids=ids, timeout_seconds=50)
        assert reply.facts["done"] is True and "a schedule has no end" in reply.facts["hint"]
        later = (await call(client, "create_task", kind="echo", delay_seconds=40)).facts
        unfinished = await call(client, "wait_for_tasks", task_ids=[schedule["id"], later["id"]], timeout_seconds=0)
        assert unfinished.facts["done"] is False
        assert "a schedule has no end" in unfinished.facts["hint"] and "Call wait_for_tasks again" in unfinished.text
        assert all(part in unfinished.text for part in unfinished.facts["hint"].split(" Nothing is wrong"))


async def test_a_hundred_schedules_in_one_wait_take_eight_kilobytes(client: Client) -> None:
    tasks = [{"kind": "echo", "schedule": DAILY, "name": "😀" * 200}] * 100
    ids = (await call(client, "create_tasks", tasks=tasks)).facts["ids"]
    reply = await call(client, "wait_for_tasks", task_ids=ids, timeout_seconds=50)
    assert reply.text_bytes <= 8_192 and reply.facts_bytes <= 8_192 and "and 99 more" in reply.facts["hint"]


async def test_a_cancelled_schedule_has_an_end(client: Client) -> None:
    made = await create(client)
    await call(client, "cancel_task", task_id=made["id"])
    assert (await call(client, "wait_for_tasks", task_ids=[made["id"]])).facts["done"] is True


@pytest.mark.parametrize("schedule", [DAILY, {"every_seconds": 60}])
async def test_a_repeated_call_finds_its_schedule_and_no_other(schedule: Facts, client: Client) -> None:
    made = await create(client, schedule, dedupe_key="k")
    again = await call(client, "create_task", kind="echo", schedule=schedule, dedupe_key="k")
    assert again.facts["id"] == made["id"] and again.facts["deduplicated"] is True
    for other in (None, DAILY | {"overlap": "queue"}, {"every_seconds": 61}):
        text = await refused(client, "create_task", kind="echo", schedule=other, dedupe_key="k")
        assert "which has another schedule, or none" in text and made["id"] in text


# What is accepted.


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        ("0 7 * * *", {"cron": "0 7 * * *"}),
        ("  0\t7  * * mon-FRI ", {"cron": "0 7 * * mon-FRI"}),
        ("@Daily", {"cron": "0 0 * * *"}),
        ({"cron": "@weekly"}, {"cron": "0 0 * * 0"}),
        ({"cron": "0 0 L * *"}, {"cron": "0 0 L * *"}),
        ({"cron": "0 9 * * MON#1"}, {"cron": "0 9 * * MON#1"}),
        ('{"cron": "5 4 * * 7"}', {"cron": "5 4 * * 7"}),
        ({"every_seconds": "5m"}, {"every_seconds": 300.0}),
        ({"every_seconds": "PT1H"}, {"every_seconds": 3600.0}),
        ({"every_seconds": 1}, {"every_seconds": 1.0}),
        ({"every_seconds": "366d"}, {"every_seconds": 31_622_400.0}),
        ({"every_minutes": 5}, {"every_seconds": 300.0}),
        ({"everySeconds": 5, "timeZone": "Asia/Kolkata"}, {"every_seconds": 5.0, "time_zone": "Asia/Kolkata"}),
        ({"cron": "0 7 * * *", "every_seconds": None, "catch_up": "ALL"}, {"cron": "0 7 * * *", "catch_up": "all"}),
        ({"cron": "0 7 * * *", "time_zone": "local"}, {"cron": "0 7 * * *"}),
        ({"cron": "0 7 * * *", "overlap": " Queue "}, {"cron": "0 7 * * *", "overlap": "queue"}),
    ],
)
async def test_a_schedule_can_be_said_so(schedule: Any, kept: Facts, client: Client) -> None:
    made = await create(client, schedule)
    shown = (await full(client, made["id"])).facts["schedule"]
    usual = {"time_zone": machine_zone(), "catch_up": "once", "overlap": "skip"}
    assert {name: value for name, value in shown.items() if name != "start"} == usual | kept


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("0 7 * *", "schedule.cron '0 7 * *' is not allowed; it must have 5 fields, minute hour day-of-month"),
        ("0 0 7 * * *", "Seconds cannot be given; every_seconds can."),
        ("", "it must have 5 fields"),
        ("* " * 150, "it must have 5 fields"),
        (f"{'1,' * 110}1 * * * *", "it must have 5 fields"),
        ("0 25 * * *", "its hour cannot be"),
        ("60 * * * *", "its minute cannot be"),
        ("0 0 31 2 *", "its day-of-month cannot be"),
        ("0 0 30 feb *", "its day-of-month cannot be"),
        ("0 0 * * fri-mon", "its day-of-week cannot be"),
        ("0 0 ? * *", "its day-of-month cannot be"),
        ("*/0 * * * *", "its minute cannot be"),
        ("0 0 */20 * 1L", "never comes"),
        ("@reboot", "of such names there are @hourly, @daily"),
        ("@every 5m", 'is a span of time; write schedule={"every_seconds": "5m"}'),
        ("every 5 minutes", 'write schedule={"every_seconds": "5 minutes"}'),
        ({}, "neither cron nor every_seconds"),
        ({"cron": "0 7 * * *", "every_seconds": 60}, "both cron and every_seconds"),
        ({"expression": "0 7 * * *"}, "Unknown argument 'schedule.expression'. Did you mean 'cron'?"),
        ({"interval": 60}, "Unknown argument 'schedule.interval'. Did you mean 'every_seconds'?"),
        ({"cron": "0 7 * * *", "tz": "UTC"}, "Did you mean 'time_zone'?"),
        ({"cron": "0 7 * * *", "time_zone": "Berlin"}, "schedule.time_zone 'Berlin' is not known"),
        ({"cron": "0 7 * * *", "time_zone": "../../etc/passwd"}, "is not known"),
        ({"cron": "0 7 * * *", "time_zone": "x" * 5000}, "is not known"),
        ({"cron": "0 7 * * *", "time_zone": "Europe"}, "is not known"),
        ({"every_seconds": 0.5}, "schedule.every_seconds 0.5 is not allowed; it must be at least 1"),
        ({"every_seconds": "367d"}, "it must be at most 31622400"),
        ({"every_seconds": True}, "must be a number"),
        ({"every_seconds": "soon"}, "must be a number"),
        ({"every_seconds": 60, "catch_up": "some"}, "use 'once', 'skip' or 'all'"),
        ({"every_seconds": 60, "overlap": "all"}, "use 'skip' or 'queue'"),
        ({"cron": ["0 7 * * *"]}, "must be a string"),
        ([], "it must be an object"),
        (60, "it must be an object"),
    ],
)
async def test_a_schedule_that_cannot_be_is_refused_in_words(schedule: Any, said: str, client: Client) -> None:
    text = await refused(client, "create_task", kind="echo", schedule=schedule)
    assert said in text and "Nothing was done" in text and len(text) < 400
    assert (await call(client, "list_tasks")).facts["tasks"] == []


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"wait_seconds": 5}, "no end to wait for"),
        ({"expires_at": "2999-01-01T00:00Z"}, "no expires_at"),
        ({"depends_on": ["other"]}, "cannot depend on other tasks"),
        ({"payload": {"text": {"$result": "other"}}}, "cannot depend on other tasks"),
    ],
)
async def test_what_a_schedule_cannot_have_is_refused(beside: Facts, said: str, client: Client) -> None:
    await call(client, "create_task", kind="echo", name="other")
    assert said in await refused(client, "create_task", **{"kind": "echo", "schedule": DAILY} | beside)


async def test_no_task_can_wait_for_a_schedule(client: Client) -> None:
    made = await create(client)
    assert "is a schedule, which has no end" in await refused(
        client, "create_task", kind="echo", depends_on=[made["id"]]
    )


async def test_an_edit_that_a_schedule_cannot_have_is_refused(client: Client) -> None:
    made = await create(client)
    text = await refused(client, "update_task", task_id=made["id"], expires_at="2999-01-01T00:00Z")
    assert "is a schedule, which has no expires_at" in text


# The machine's zone.


@pytest.fixture
def zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Sets TZ; afterwards the process has its own again."""
    import tzlocal.unix

    monkeypatch.setattr(tzlocal.unix, "_cache_tz_name", None)
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


async def test_times_are_those_of_the_machine_where_nothing_else_is_said(
    zone_of_the_machine: pytest.MonkeyPatch, client: Client
) -> None:
    zone_of_the_machine.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    made = await create(client, "0 7 * * *")
    assert made["time_zone"] == "Asia/Kolkata" and made["next_runs"][0].endswith("T07:00:00+05:30")


async def test_a_machine_that_names_no_zone_is_not_taken_for_another(
    zone_of_the_machine: pytest.MonkeyPatch, client: Client
) -> None:
    zone_of_the_machine.setenv("TZ", "XYZ-9:30")
    time.tzset()
    assert "time_zone is required" in await refused(client, "create_task", kind="echo", schedule="0 7 * * *")
    assert (await create(client, {"every_seconds": 60}))["time_zone"] == "UTC"


# For real.


async def test_a_schedule_fires_and_its_task_runs(client: Client, app: App) -> None:
    made = await create(client, {"every_seconds": 1}, payload={"a": 1}, name="tick")
    await stored(app, made["id"], lambda task: task.run_at and task.created_at + 2_000 <= task.run_at)
    [firing] = (await full(client, made["id"])).facts["firings"][-1:]
    done = await call(client, "wait_for_tasks", task_ids=[firing["task"]])
    assert done.facts["done"] and done.facts["tasks"][0]["result"] == {"a": 1}
    await call(client, "cancel_task", task_id=made["id"])


async def test_a_delay_of_zero_lets_a_schedule_fire_at_once(client: Client, app: App) -> None:
    made = await create(client, {"every_seconds": 3600}, delay_seconds=0)
    assert made["run_at"] <= made["created_at"]
    await stored(app, made["id"], lambda task: task.run_at and task.run_at > app.service.store.now())
    assert [firing["at"] for firing in (await full(client, made["id"])).facts["firings"]] == [made["run_at"]]


async def test_a_schedule_has_no_output_of_its_own(client: Client) -> None:
    made = check_task(await call(client, "create_task", payload={"argv": ["true"]}, schedule=DAILY))
    output = await call(client, "get_task_output", task_id=made["id"])
    assert output.facts["hint"] == "a schedule never runs itself"


async def test_a_schedule_whose_zone_is_not_known_here_can_be_looked_at(tmp_path: Path, era: str) -> None:
    async with running(settings(tmp_path)) as app, connected(app.server, era) as client:
        made = await create(client)
        changed = '{"cron":"0 7 * * *","every_seconds":null,"time_zone":"Mars/Base","catch_up":"once","overlap":"skip"}'

        def change(tx: Any) -> None:
            tx.execute("UPDATE tasks SET schedule = ? WHERE id = ?", (changed, made["id"]))

        await app.service.queries._database.write(change)  # pyright: ignore[reportPrivateUsage]
        facts = check_task(await call(client, "get_task", task_id=made["id"]))
        assert "next_runs" not in facts
        assert (await full(client, made["id"])).facts["schedule"]["time_zone"] == "Mars/Base"
