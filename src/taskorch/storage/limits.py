"""How many tasks of one concurrency_key work at a time, whichever servers of the file run them.

Nothing is counted but rows, in the transaction that goes by the number. Of the tasks of a key that could run, as many
as there is room for are in the ready index, of each kind the best: some server may have slots for that kind alone. The
others are `held`. A claim counts again, over all kinds.
"""

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taskorch.domain import readiness
from taskorch.domain.task import Task
from taskorch.storage.database import Transaction
from taskorch.storage.rows import at_place, save

Limits = Mapping[str, int]

OTHERS = "*"  # the limit of the keys that are not named
USUAL = 1

WORKING = "SELECT count(*) FROM tasks WHERE concurrency_key = ? AND status = 'working'"
READY = "SELECT kind, -rank, seq FROM tasks WHERE concurrency_key = ? AND ready = 1"
HELD = """SELECT kind, -rank, seq FROM tasks
  WHERE held = 1 AND concurrency_key = ? AND kind = ? ORDER BY rank DESC, seq LIMIT ?"""
NEXT_KEY = "SELECT min(concurrency_key) FROM tasks WHERE held = 1 AND concurrency_key > ?"
NEXT_KIND = "SELECT min(kind) FROM tasks WHERE held = 1 AND concurrency_key = ? AND kind > ?"
FIRST = "SELECT id, name FROM tasks WHERE concurrency_key = ? AND status = 'working' ORDER BY seq LIMIT 1"
NEXT = "SELECT id, name FROM tasks WHERE concurrency_key = ? AND ready = 1 ORDER BY rank DESC, seq LIMIT 1"


class Place(NamedTuple):
    """A waiting task's in the order of its kind: the least one is next."""

    kind: str
    minus_rank: int
    seq: int


@dataclass(frozen=True, slots=True)
class Full:
    """What a held task waits for: of its key `limit` may work at a time, and `working` do.

    `first`: id and name of the first of them; where none has begun, of the one that is next. None: there is neither.
    """

    key: str
    limit: int
    working: int
    first: tuple[str, str | None] | None


def most(limits: Limits, key: str) -> int:
    """How many tasks of that key may work at a time."""
    return limits.get(key, limits.get(OTHERS, USUAL))


def without_room(tx: Transaction, tasks: Iterable[Task], limits: Limits) -> list[Task]:
    """Those of the tasks, best first, for which their key has no room beside what works and those before them."""
    room: dict[str, int] = {}
    over: list[Task] = []
    for task in tasks:
        if (key := task.concurrency_key) is None:
            continue
        room[key] = (room[key] if key in room else _room(tx, key, limits)) - 1
        if room[key] < 0:
            over.append(task)
    return over


def refill(tx: Transaction, limits: Limits, now: int) -> None:
    """Before the commit: let in what there is room for, and hold the rest, of every key that was touched."""
    moves: Sequence[tuple[Task | None, Task | None]] = tx.moved
    touched = {task.concurrency_key for move in moves for task in move if task}
    for key in sorted(key for key in touched if key is not None):
        fill(tx, key, limits, now)


def fill(tx: Transaction, key: str, limits: Limits, now: int) -> None:
    """Let in the best of that key that there is room for, and hold the others."""
    room = _room(tx, key, limits)
    ready = [Place(*row) for row in tx.execute(READY, (key,))]
    for kind in {place.kind for place in ready} | (set(held_kinds(tx, key)) if room else set[str]()):
        _fill(tx, key, kind, {place for place in ready if place.kind == kind}, room, now)


def stuck_keys(db: sqlite3.Connection, keys: Collection[str], limits: Limits) -> list[str]:
    """Those of the keys that have room for a task which is held all the same. There are none, unless limits rise."""
    return [key for key in keys if _is_stuck(db, key, limits)]


def held_keys(db: sqlite3.Connection, after: str, number: int) -> list[str]:
    """The next keys of which tasks are held, in their order."""
    found: list[str] = []
    while len(found) < number and (key := db.execute(NEXT_KEY, (after,)).fetchone()[0]) is not None:
        found.append(after := key)
    return found


def held_kinds(db: sqlite3.Connection, key: str) -> Iterator[str]:
    """The kinds of what is held of that key: a step of the index for each."""
    kind: str | None = ""
    while (kind := db.execute(NEXT_KIND, (key, kind)).fetchone()[0]) is not None:
        yield kind


def full(db: sqlite3.Connection, key: str, limits: Limits) -> Full:
    """What uses up that key's limit."""
    first = db.execute(FIRST, (key,)).fetchone() or db.execute(NEXT, (key,)).fetchone()
    return Full(key, most(limits, key), _working(db, key), first)


def _room(db: sqlite3.Connection, key: str, limits: Limits) -> int:
    return max(0, most(limits, key) - _working(db, key))


def _working(db: sqlite3.Connection, key: str) -> int:
    return db.execute(WORKING, (key,)).fetchone()[0]


def _is_stuck(db: sqlite3.Connection, key: str, limits: Limits) -> bool:
    room = _room(db, key, limits)
    ready = Counter(kind for kind, _, _ in db.execute(READY, (key,)))
    return any(ready[kind] < room for kind in held_kinds(db, key))


def _fill(tx: Transaction, key: str, kind: str, ready: set[Place], room: int, now: int) -> None:
    """Of one kind; what may not run after all is neither ready nor held, and others take its room."""
    while True:
        held = [Place(*row) for row in tx.execute(HELD, (key, kind, room))] if room else []
        best = set(sorted([*ready, *held])[:room])
        for place in ready - best:
            task = at_place(tx, place.seq)
            save(tx, task, readiness.hold(task))
        let_in = {place: _admit(tx, place, now) for place in best - ready}
        if all(let_in.values()):
            return
        ready = {place for place in best if let_in.get(place, True)}


def _admit(tx: Transaction, place: Place, now: int) -> bool:
    task = at_place(tx, place.seq)
    return save(tx, task, readiness.admit(task, now)).ready
