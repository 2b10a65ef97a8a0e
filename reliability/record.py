"""What a run has left to judge by: its journal and its tables, read without a line of taskorch."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Key = tuple[str, int]  # task, attempt

TASKS = (
    "SELECT id, kind, status, attempt, max_attempts, interruptions, owner, result, error, concurrency_key FROM tasks"
)
STARTS = "SELECT t.id, a.attempt, a.owner, a.outcome, a.reason FROM attempts a JOIN tasks t ON t.seq = a.task"
# Of what they created, only the names say whose it is.
SCHEDULES = """SELECT s.id, json_extract(s.schedule, '$.start'), json_extract(s.schedule, '$.every_seconds') * 1000,
  (SELECT json_group_array(at) FROM (SELECT at FROM firings WHERE schedule = s.seq ORDER BY at)),
  (SELECT count(*) FROM tasks t WHERE t.name LIKE s.name || ' %') FROM tasks s WHERE s.schedule IS NOT NULL"""
EVENTS = "SELECT t.id, e.at, e.event, e.by FROM events e JOIN tasks t ON t.seq = e.task ORDER BY e.id"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the journal. `at`: seconds on a clock that all processes share, for people to read."""

    at: float
    pid: int
    word: str
    task: str = "-"
    attempt: int = 0
    detail: str = "-"

    @property
    def key(self) -> Key:
        return self.task, self.attempt


@dataclass(frozen=True, slots=True)
class Row:
    """A task as stored."""

    id: str
    kind: str
    status: str
    attempt: int
    max_attempts: int
    interruptions: int
    owner: int | None
    result: Any
    error: dict[str, Any] | None
    concurrency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A row of `attempts`."""

    owner: int
    outcome: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Course:
    """What a schedule has done: the times (ms) of its firings, in order, and how many tasks it created."""

    start: int
    interval: int
    times: list[int]
    created: int


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `events`. `at`: ms since the epoch."""

    at: int
    event: str
    by: str


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a run. `sure`: how many of the lines were there before the tables were read."""

    lines: Sequence[Line]
    tasks: dict[str, Row]
    starts: dict[Key, Start]
    events: dict[str, list[Event]] = field(default_factory=dict)
    sure: int = 1 << 60
    schedules: dict[str, Course] = field(default_factory=dict)

    @property
    def displaced(self) -> set[Key]:
        """Attempts of servers that lost their lock while they lived: only those may overlap with their successors."""
        lost = {line.pid for line in self.lines if line.word == "lost"}
        return {line.key for line in self.lines if line.pid in lost and line.task != "-"}

    def of(self, *words: str) -> Iterator[Line]:
        return (line for line in self.lines if line.word in words)

    def known(self, word: str) -> Iterator[Line]:
        """Lines whose consequences the tables must show."""
        return (line for line in self.lines[: self.sure] if line.word == word)

    def retried(self, task: str) -> int:
        return sum(event.event == "retried" for event in self.events.get(task, ()))


def read(folder: Path, patience_seconds: float = 10) -> History:
    """The history of the run in that folder, also while it goes on. Raises sqlite3.OperationalError if that is busy."""
    sure = len(read_journal(folder / "journal"))
    with closing(connect(folder, patience_seconds)) as db:
        db.execute("BEGIN")
        tasks = {row[0]: _row(row) for row in db.execute(TASKS)}
        starts = {(row[0], row[1]): Start(*row[2:]) for row in db.execute(STARTS)}
        events: dict[str, list[Event]] = defaultdict(list)
        for task, *event in db.execute(EVENTS):
            events[task].append(Event(*event))
        schedules = {
            task: Course(start, round(interval), json.loads(times), created)
            for task, start, interval, times, created in db.execute(SCHEDULES)
        }
    return History(read_journal(folder / "journal"), tasks, starts, events, sure, schedules)


def unfinished(folder: Path) -> int:
    """How many tasks have not ended. Raises sqlite3.OperationalError if that cannot be read now."""
    with closing(connect(folder, 0.1)) as db:
        return db.execute("SELECT count(*) FROM tasks WHERE status IN ('waiting', 'working')").fetchone()[0]


def read_journal(path: Path) -> list[Line]:
    """The lines so far. Raises ValueError for one that is none."""
    lines: list[Line] = []
    for text in path.read_text().splitlines():
        at, pid, word, task, attempt, detail = text.split(" ", 5)
        lines.append(Line(float(at), int(pid), word, task, int(attempt), detail))
    return lines


def _row(row: Any) -> Row:
    values: list[Any] = [*row[:7], *(text and json.loads(text) for text in row[7:9]), row[9]]
    return Row(*values)


def connect(folder: Path, patience_seconds: float = 10) -> sqlite3.Connection:
    """The run's file, to read only. Close it before another server is forked."""
    return sqlite3.connect(f"file:{folder / 'state' / 'taskorch.db'}?mode=ro", uri=True, timeout=patience_seconds)
