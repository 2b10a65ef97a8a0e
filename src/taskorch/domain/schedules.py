"""When a schedule fires. Pure, like `rules`: the time comes in. Times are milliseconds since the epoch (UTC).

Cron times are local ones. What names its minutes and hours fires once for each of them whatever clocks do: at the first
moment after the gap for a time that is skipped, the first time for one that comes twice. What begins its minutes or its
hours with `*` follows the clock on the wall: nothing in the gap, and both times of what comes twice.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count, islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from taskorch.domain.errors import Conflict, InvalidInput, shown
from taskorch.domain.task import Schedule, Task, with_values

LATE_MS = 120_000  # what is later was missed; a server looks at its clock once a minute at least
MOST_CAUGHT_UP = 100
MOST_COUNTED = 200  # of the missed ones; a clock may be wrong by years
CRON_CHARACTERS = 200
REPEATED = timedelta(hours=3)  # more than any zone ever sets its clocks back by

NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
FIELDS = "minute hour day-of-month month day-of-week"


@dataclass(frozen=True, slots=True)
class Due:
    """What a schedule that is due has to make: `at`, the oldest first, and how many times it leaves out as missed.

    `more`: and it may have missed others before those. `following`: when it fires next, None for never again.
    """

    at: tuple[int, ...]
    left_out: int
    more: bool
    following: int | None


def checked(schedule: Schedule) -> Schedule:
    """With its cron expression as it is kept. Raises InvalidInput for an expression or a zone that is none."""
    _zone(schedule)
    if schedule.cron is None:
        return schedule
    written = schedule.cron.strip()
    cron = NICKNAMES.get(written.lower(), " ".join(written.split()))
    where = f"cron {shown(written)} is not allowed;"
    if cron.startswith("@"):
        raise InvalidInput(f"{where} of such names there are {', '.join(NICKNAMES)}.")
    if (number := len(cron.split())) != 5 or len(cron) > CRON_CHARACTERS:
        seconds = " Seconds cannot be given; every_seconds can." if number == 6 else ""
        raise InvalidInput(f"{where} it must have 5 fields, {FIELDS}, like '0 7 * * 1-5'.{seconds}")
    try:
        CronSim(cron, datetime(2000, 1, 1))
    except CronSimError as error:
        bad = str(error).removeprefix("Bad ")
        raise InvalidInput(f"{where} its {bad} cannot be. The fields are {FIELDS}, like '0 7 * * 1-5'.") from None
    return replace(schedule, cron=cron)


def begun(schedule: Schedule, not_before: int | None, now: int) -> tuple[Schedule, int]:
    """A new schedule with the start of its grid, and when it first fires. Raises InvalidInput when it never would."""
    if schedule.every_seconds is not None:
        start = now + _interval(schedule) if not_before is None else not_before
        schedule = replace(schedule, start=start)
    first = following(schedule, _before(not_before, now))
    if first is None:
        raise InvalidInput(f"cron {shown(schedule.cron)} never comes: no such day is in the next 50 years.")
    return schedule, first


def following(schedule: Schedule, after: int) -> int | None:
    """When it fires next after that moment, None for never. Raises InvalidInput when its zone is not known here."""
    return next(times(schedule, after), None)


def times(schedule: Schedule, after: int) -> Iterator[int]:
    """All times after that moment, in order. Raises InvalidInput when its zone is not known here."""
    if schedule.every_seconds is None:
        return (at for at in _moments(schedule, after, 1) if at > after)
    start, interval = schedule.start or 0, _interval(schedule)
    return count(max(start, after + interval - (after - start) % interval), interval)


def due(schedule: Schedule, run_at: int, now: int) -> Due:
    """What is to be made when `run_at` has come: of the times that were missed only what `catch_up` says.

    Raises InvalidInput when its zone is not known here.
    """
    _zone(schedule)
    passed = list(islice(takewhile(lambda at: at > run_at, _back(schedule, now)), MOST_COUNTED))
    more = len(passed) == MOST_COUNTED
    passed += [] if more else [run_at]  # newest first
    match schedule.catch_up:
        case "all":
            made = passed[:MOST_CAUGHT_UP]
        case "skip" if now - passed[0] > LATE_MS:
            made = []
        case _:
            made = passed[:1]
    return Due(tuple(reversed(made)), len(passed) - len(made), more, following(schedule, now))


def resumed(task: Task, not_before: int | None, now: int) -> int | None:
    """When a schedule that was paused or cancelled fires next: what passed meanwhile is not made up for."""
    assert task.schedule is not None
    after = _before(not_before, now)
    return task.run_at if task.run_at is not None and task.run_at > after else following(task.schedule, after)


def edited(task: Task, changes: Mapping[str, Any], now: int) -> dict[str, Any]:
    """What an edit means to a schedule: a new `run_at` is its next time, whatever comes after that. Raises Conflict."""
    if "expires_at" in changes:
        raise Conflict(f"{task.label} is a schedule, which has no expires_at. Call cancel_task to end it.")
    fields = dict(changes)
    if fields.get("run_at") is not None:
        fields["run_at"] = max(now, fields["run_at"])
    elif task.paused and fields.get("paused") is False:
        fields["run_at"] = resumed(task, None, now)
    return fields


def fired(task: Task, following: int | None, now: int) -> Task:
    """Its next time is that. It does not raise the version: nobody's edit conflicts with it."""
    return with_values(task, run_at=following, updated_at=now)


def upcoming(task: Task, now: int, number: int) -> list[int]:
    """When a schedule that waits fires next, at most `number` times."""
    assert task.schedule is not None
    if task.run_at is None:
        return []
    return [task.run_at, *islice(times(task.schedule, max(task.run_at, now)), number - 1)]


def local(schedule: Schedule, at: int) -> datetime:
    """That moment in the schedule's zone, to the second."""
    return datetime.fromtimestamp(at // 1000, _zone(schedule))


def local_name(schedule: Schedule, at: int) -> str:
    """That moment as it stands in the name of a task."""
    return f"{local(schedule, at):%Y-%m-%d %H:%M{'' if at // 1000 % 60 == 0 else ':%S'}}"


def _before(not_before: int | None, now: int) -> int:
    """What is to come must come after that: after now, or at or after a moment that was asked for and is not missed."""
    if not_before is None:
        return now
    return (now if not_before < now - LATE_MS else not_before) - 1


def _interval(schedule: Schedule) -> int:
    return round(1000 * (schedule.every_seconds or 0))


def _back(schedule: Schedule, until: int) -> Iterator[int]:
    """The times up to that moment, newest first."""
    if schedule.every_seconds is None:
        return (at for at in _moments(schedule, until, -1) if at <= until)
    start, interval = schedule.start or 0, _interval(schedule)
    return iter(range(until - (until - start) % interval, start - 1, -interval))


# Cron: which local times match is CronSim's; which moments those are is told here.


def _moments(schedule: Schedule, start: int, step: int) -> Iterator[int]:
    """The moments from a little before `start` on, in order; with step -1 from a little after it, backwards."""
    cron, zone = schedule.cron or "", _zone(schedule)
    minute, hour, *_ = cron.split()
    once = not minute.startswith("*") and not hour.startswith("*")
    begin = datetime.fromtimestamp(start // 1000, zone).replace(tzinfo=None) - step * REPEATED
    repeated: deque[int] = deque()  # local times that come twice: each second one waits until its moment has come
    last: int | None = None
    for time in CronSim(cron, begin, reverse=step < 0):
        near, far = _real(time, zone, once)[::step]
        while repeated and near is not None and (near - repeated[0]) * step > 0:
            yield repeated.popleft()
        if near is not None and near != last:  # several times of a gap fire at its one end
            yield near
            last = near
        if far is not None and far != near:
            repeated.append(far)
    yield from repeated


def _real(time: datetime, zone: ZoneInfo, once: bool) -> tuple[int | None, int | None]:
    """The first and the last moment at which clocks show that local time; None and None: they skip it."""
    first = time.replace(tzinfo=zone)
    if once:
        while _skipped(first):
            first += timedelta(minutes=1)
        return _ms(first), _ms(first)
    if _skipped(first):
        return None, None
    return _ms(first), _ms(first.replace(fold=1))


def _skipped(time: datetime) -> bool:
    return time.astimezone(UTC).astimezone(time.tzinfo) != time


def _ms(time: datetime) -> int:
    return int(time.timestamp()) * 1000


def _zone(schedule: Schedule) -> ZoneInfo:
    try:
        return ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        name = shown(schedule.time_zone)
        raise InvalidInput(f"time_zone {name} is not known; it must be a name like 'Europe/Berlin' or 'UTC'.") from None
