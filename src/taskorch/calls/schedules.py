"""Schedules as they are asked for and as replies tell of them."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import tzlocal
from pydantic import BeforeValidator, Field

from taskorch.calls.aliases import understood
from taskorch.calls.arguments import DAY_SECONDS, DAYS, Arguments, Word, parse
from taskorch.calls.moments import duration, seconds
from taskorch.calls.wording import Facts, iso, present
from taskorch.domain import schedules
from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.task import CatchUp, Overlap, Schedule, Status, Task

HERE = ("", "local", "localtime", "system")  # no zone's name, but the machine's
RUNS = 3  # the next ones that a reply tells

CRON, EVERY = 'schedule={"cron": "0 7 * * 1-5"}', 'schedule={"every_seconds": 60}'

Interval = Annotated[float, Field(ge=1, le=DAYS * DAY_SECONDS, allow_inf_nan=False), BeforeValidator(seconds)]


class ScheduleWish(Arguments):
    """What can be said of a schedule."""

    cron: str | None = None
    every_seconds: Interval | None = None
    time_zone: str | None = None
    catch_up: Annotated[CatchUp, Word] = "once"
    overlap: Annotated[Overlap, Word] = "skip"


def wished(raw: Mapping[str, Any]) -> Schedule:
    """The schedule that was asked for. Raises InvalidInput."""
    try:
        known = ScheduleWish.model_fields
        wish = parse(ScheduleWish, understood(raw, known), "schedule")
        if (wish.cron is None) == (wish.every_seconds is None):
            which = "both cron and every_seconds" if wish.cron else "neither cron nor every_seconds"
            raise InvalidInput(f"schedule has {which}; it takes one of them: {CRON} or {EVERY}.")
        _refuse_spans(wish.cron or "")
        named = None if (wish.time_zone or "").lower() in HERE else wish.time_zone
        zone = named or machine_zone() or ("" if wish.cron else "UTC")
        if not zone:
            raise InvalidInput("time_zone is required, as this machine does not name its own; add one, like 'UTC'.")
        return schedules.checked(Schedule(wish.cron, wish.every_seconds, zone, wish.catch_up, wish.overlap))
    except InvalidInput as error:
        text = str(error)
        raise InvalidInput(f"schedule.{text}" if text.startswith(("cron ", "time_zone ")) else text) from None


@cache
def machine_zone() -> str | None:
    """The name of this machine's time zone; None where it has none, or that is not how its clock goes."""
    try:
        name: str | None = tzlocal.get_localzone_name()
        offset = datetime.now(ZoneInfo(name or "UTC")).utcoffset()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
    here = datetime.now(UTC).astimezone().utcoffset()
    return (name or ("UTC" if not time.daylight else None)) if offset == here else None


def runs_facts(task: Task, now: int) -> Facts:
    """When a schedule that goes on fires next, in its own time zone."""
    if task.schedule is None or task.status is not Status.WAITING or task.paused:
        return {}
    try:
        runs = [schedules.local(task.schedule, at).isoformat() for at in schedules.upcoming(task, now, RUNS)]
    except InvalidInput:  # its zone is not known here: it ends when its time comes, and says so
        return {}
    return {"next_runs": runs, "time_zone": task.schedule.time_zone}


def runs_text(facts: Facts) -> str:
    return f"next runs: {', '.join(facts['next_runs'])} ({facts['time_zone']})"


def schedule_facts(schedule: Schedule) -> Facts:
    return present(
        cron=schedule.cron,
        every_seconds=schedule.every_seconds,
        start=schedule.start and iso(schedule.start),
        time_zone=schedule.time_zone,
        catch_up=schedule.catch_up,
        overlap=schedule.overlap,
    )


def _refuse_spans(cron: str) -> None:
    """Raise InvalidInput for a span of time in the place of a cron expression."""
    span = re.sub(r"^@?(every|each) +", "", cron.strip(), flags=re.IGNORECASE)
    if duration(span) is not None:
        raise InvalidInput(f'cron {shown(cron)} is a span of time; write schedule={{"every_seconds": "{span}"}}.')
