"""When schedules fire: against a walk through the year minute by minute that knows nothing of our reckoning.

A bigger run, and another one: `SCHEDULES_EXPRESSIONS=100 SCHEDULES_SEED=8 pytest tests/test_schedules.py`.
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice, pairwise, product, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from taskorch.domain import schedules
from taskorch.domain.errors import InvalidInput
from taskorch.domain.task import CatchUp, Schedule

YEAR = 2027
SEED = os.environ.get("SCHEDULES_SEED", "7")
EXPRESSIONS = int(os.environ.get("SCHEDULES_EXPRESSIONS", "4"))
DENSE = 20_000  # firings in a year, beyond which one expression says as much as the next
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
FIRST = int(datetime(YEAR, 1, 1, tzinfo=UTC).timestamp()) * 1000
LAST = int(datetime(YEAR + 1, 1, 1, tzinfo=UTC).timestamp()) * 1000 - MINUTE
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "America/Santiago",  # at midnight
    "Antarctica/Troll",  # two hours
]


# The oracle.


@dataclass(frozen=True)
class Expression:
    """A cron expression, and the values that its fields mean, as whoever drew it knows them."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0: Sunday

    def on(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        _, _, dom, _, dow = self.text.split()
        found = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return all(found) if dom.startswith("*") or dow.startswith("*") else any(found)

    def matches(self, local: datetime) -> bool:
        return local.minute in self.minutes and local.hour in self.hours and self.on(local)

    @property
    def once(self) -> bool:
        """Whether it names its times, so that each comes once a day."""
        minute, hour, *_ = self.text.split()
        return not minute.startswith("*") and not hour.startswith("*")


@dataclass(frozen=True)
class Year:
    """What clocks show in each minute of the year: the moments by that time of day, the time, whether it came before.

    `gaps`: the moment after each, and the times that clocks skip.
    """

    shown: dict[tuple[int, int], list[tuple[int, datetime, bool]]]
    gaps: list[tuple[int, list[datetime]]]


@lru_cache(maxsize=1)
def walk(zone: str) -> Year:
    """Minute by minute."""
    place, year = ZoneInfo(zone), Year(defaultdict(list), [])
    moments = range(FIRST - MINUTE, LAST + MINUTE, MINUTE)
    walked = [(at, datetime.fromtimestamp(at // 1000, place).replace(tzinfo=None)) for at in moments]
    latest = datetime.min  # the latest time that clocks have shown
    for (_, before), (at, local) in pairwise(walked):
        year.shown[local.hour, local.minute].append((at, local, local <= latest))
        latest = max(latest, local)
        if local - before > timedelta(minutes=1):
            minutes = range(1, (local - before) // timedelta(minutes=1))
            year.gaps.append((at, [before + timedelta(minutes=n) for n in minutes]))
    return year


def oracle(expression: Expression, zone: str) -> list[int]:
    """When it fires in that year, by the documented rule for times that are skipped or come twice."""
    year = walk(zone)
    on = cache(lambda year, month, day: expression.on(datetime(year, month, day)))
    found = {
        at
        for time in product(expression.hours, expression.minutes)
        for at, local, again in year.shown[time]
        if on(local.year, local.month, local.day) and not (again and expression.once)
    }
    if expression.once:
        found |= {at for at, skipped in year.gaps if any(map(expression.matches, skipped))}
    return sorted(found)


# Expressions.

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


def field(chance: random.Random, low: int, high: int, names: list[str] | None = None) -> tuple[str, set[int]]:
    def said(value: int) -> str:
        return chance.choice([str(value), names[value - low], names[value - low].upper()]) if names else str(value)

    match chance.randrange(6):
        case 0:
            return "*", set(range(low, high + 1))
        case 1:
            step = chance.randint(2, high - low)
            return f"*/{step}", set(range(low, high + 1, step))
        case 2:
            first = chance.randint(low, high)
            last = chance.randint(first, high)
            return f"{said(first)}-{said(last)}", set(range(first, last + 1))
        case 3:
            first, step = chance.randint(low, high - 1), chance.randint(2, 7)
            return f"{first}-{high}/{step}", set(range(first, high + 1, step))
        case 4:
            values = {chance.randint(low, high) for _ in range(chance.randint(2, 5))}
            return ",".join(said(value) for value in values), values
        case _:
            value = chance.randint(low, high)
            return said(value), {value}


def drawn(chance: random.Random) -> Expression:
    early = chance.random() < 0.7  # most at the hours at which clocks are changed
    hours = field(chance, 0, 3) if early else field(chance, 0, 23)
    if hours[0].startswith("*"):
        hours = field(chance, 0, 23)
    parts = [field(chance, 0, 59), hours, field(chance, 1, 28), field(chance, 1, 12, MONTHS)]
    parts.append(field(chance, 0, 6, WEEKDAYS))
    if chance.random() < 0.5:
        parts[2] = ("*", set(range(1, 32)))
    for index, (low, high) in ((2, (1, 31)), (3, (1, 12)), (4, (0, 6))):
        if chance.random() < 0.5:
            parts[index] = ("*", set(range(low, high + 1)))
    if parts[2][0].startswith("*/"):
        step = int(parts[2][0][2:])
        parts[2] = (parts[2][0], set(range(1, 32, step)))
    return Expression(" ".join(text for text, _ in parts), *(frozenset(values) for _, values in parts))


def named(text: str, *fields: set[int]) -> Expression:
    return Expression(text, *(frozenset(values) for values in fields))


ALL = (set(range(60)), set(range(24)), set(range(1, 32)), set(range(1, 13)), set(range(7)))
AT_THE_CHANGES = [
    named("30 2 * * *", {30}, {2}, *ALL[2:]),
    named("15,45 0-3 * * *", {15, 45}, {0, 1, 2, 3}, *ALL[2:]),
    named("0 0 * * *", {0}, {0}, *ALL[2:]),
    named("59 23 * * *", {59}, {23}, *ALL[2:]),
    named("*/20 * * * *", {0, 20, 40}, *ALL[1:]),
    named("*/20 0-3 * * *", {0, 20, 40}, {0, 1, 2, 3}, *ALL[2:]),
    named("10 * * * *", {10}, *ALL[1:]),
    named("5 */2 * * *", {5}, set(range(0, 24, 2)), *ALL[2:]),
    named("* 1-2 * * 0", ALL[0], {1, 2}, ALL[2], ALL[3], {0}),
    named("0-59/10 2 * * sun", {0, 10, 20, 30, 40, 50}, {2}, ALL[2], ALL[3], {0}),
]


def expressions(zone: str) -> Iterator[Expression]:
    yield from AT_THE_CHANGES
    chance = random.Random(f"{SEED}/{zone}")
    for _ in range(EXPRESSIONS):
        yield drawn(chance)


def cron(text: str, zone: str = "UTC", **more: object) -> Schedule:
    return replace(schedules.checked(Schedule(text, None, zone)), **more)


def firings(schedule: Schedule) -> list[int]:
    """All of that year."""
    return list(takewhile(lambda at: at <= LAST, schedules.times(schedule, FIRST - 1)))


@pytest.mark.parametrize("zone", ZONES)
def test_a_year_of_firings_is_what_a_clock_on_the_wall_would_make(zone: str) -> None:
    seen, chance = 0, random.Random(SEED)
    for expression in expressions(zone):
        right = oracle(expression, zone)
        if len(right) > DENSE:
            continue
        seen += 1
        schedule = cron(expression.text, zone)
        assert firings(schedule) == right, f"{expression.text} in {zone}, seed {SEED}"
        due = schedules.due(replace(schedule, catch_up="all"), FIRST - 1, LAST)
        assert list(due.at) == [FIRST - 1, *right][-100:], f"backwards: {expression.text} in {zone}, seed {SEED}"
        for at in chance.sample(right, min(20, len(right))):  # from any moment on, not only from the year's first
            later = [time for time in right if time > at]
            assert schedules.following(schedule, at - 1) == at
            assert not later or schedules.following(schedule, at) == later[0]
    assert seen > 8


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
def test_where_clocks_change_by_whole_hours_it_is_what_debians_cron_would_make(zone: str) -> None:
    """CronSim follows that one, but takes every gap for one of whole hours, and midnights for sacred."""
    start = datetime(YEAR, 1, 1, tzinfo=ZoneInfo(zone)) - timedelta(seconds=1)
    for expression in expressions(zone):
        theirs = islice(CronSim(expression.text, start), 5_000)
        ours = islice(schedules.times(cron(expression.text, zone), int(start.timestamp()) * 1000), 5_000)
        assert list(ours) == [int(time.timestamp()) * 1000 for time in theirs], expression.text


@pytest.mark.parametrize(
    ("text", "zone", "after", "right"),
    [
        # Berlin skips 2027-03-28 02:00 to 03:00, and has 2027-10-31 02:00 to 03:00 twice.
        ("30 2 * * *", "Europe/Berlin", "2027-03-27T12:00+01:00", ["03-28T03:00:00+02:00", "03-29T02:30:00+02:00"]),
        ("*/30 2 * * *", "Europe/Berlin", "2027-03-27T12:00+01:00", ["03-29T02:00:00+02:00", "03-29T02:30:00+02:00"]),
        ("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00+02:00", ["10-31T02:30:00+02:00", "11-01T02:30:00+01:00"]),
        ("*/30 2 31 * *", "Europe/Berlin", "2027-10-31T02:10+02:00", ["10-31T02:30:00+02:00", "10-31T02:00:00+01:00"]),
        # Asked within the second of the two hours.
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T02:10+01:00", ["11-01T02:30:00+01:00", "11-02T02:30:00+01:00"]),
        # Lord Howe Island skips half an hour.
        (
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2027-10-02T12:00+10:30",
            ["10-03T02:30:00+11:00", "10-04T02:15:00+11:00"],
        ),
    ],
)
def test_what_the_documents_say_of_changed_clocks_is_so(text: str, zone: str, after: str, right: list[str]) -> None:
    schedule = cron(text, zone)
    moments = islice(schedules.times(schedule, int(datetime.fromisoformat(after).timestamp()) * 1000), len(right))
    assert [schedules.local(schedule, at).isoformat() for at in moments] == [f"2027-{text}" for text in right]


PLAIN = st.sampled_from(["*", "*/5", "0", "1-5", "2,3", "MON", "jan", "L", "LW", "1L", "5#2", "31", "2-6/2", "feb"])
PARTS = PLAIN | PLAIN | PLAIN | st.text("0123456789*/,-?LW#@", min_size=1, max_size=5)


@given(text=st.lists(PARTS, min_size=5, max_size=5).map(" ".join) | st.text(max_size=20))
def test_an_expression_is_understood_or_refused_in_words(text: str) -> None:
    try:
        schedule = cron(text)
    except InvalidInput as error:
        assert str(error).startswith("cron ")
    else:
        assert schedules.checked(schedule) == schedule
        with suppress(InvalidInput):
            _, first = schedules.begun(schedule, None, 1_800_000_000_000)
            assert first > 1_800_000_000_000 and first % 60_000 == 0


@given(
    interval=st.floats(1, 366 * 86_400),
    start=st.integers(0, 2**41),
    now=st.integers(0, 2**41),
    run_at=st.integers(0, 2**41),
    catch_up=st.sampled_from(["once", "skip", "all"]),
)
def test_whatever_the_clock_says_a_grid_is_kept(
    interval: float, start: int, now: int, run_at: int, catch_up: CatchUp
) -> None:
    schedule = Schedule(None, interval, "UTC", catch_up, start=start)
    step = round(1000 * interval)
    run_at = min(run_at, now)
    due = schedules.due(schedule, run_at, now)
    grid = [at for at in due.at if at != run_at]
    assert list(due.at) == sorted(set(due.at)) and len(due.at) <= 100
    assert all(run_at < at <= now and at >= start and (at - start) % step == 0 for at in grid)
    assert due.following is not None and now < due.following and (due.following - start) % step == 0
    assert due.following <= max(start, now + step), "none is left out"
    passed = max(0, (now - start) // step - max(-1, (run_at - start) // step)) + 1 if now >= start else 1
    assert len(due.at) + due.left_out == min(passed, schedules.MOST_COUNTED)
