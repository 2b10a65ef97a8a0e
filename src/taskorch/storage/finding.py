"""Which task is meant by an id, a name, or the first characters of an id."""

import difflib
import sqlite3

from taskorch.domain.errors import InvalidInput, NotFound, shown
from taskorch.domain.task import Task
from taskorch.storage import removed
from taskorch.storage.ids import FULL_ID, PREFIX, undressed
from taskorch.storage.rows import BY_ID, SELECT, from_row

CANDIDATES = 5
BY_NAME = f"{SELECT} WHERE name = ? ORDER BY finished_at IS NOT NULL, seq DESC LIMIT {CANDIDATES + 1}"
BY_PREFIX = f"{SELECT} WHERE id >= ? AND id < ? ORDER BY id LIMIT {CANDIDATES + 1}"
NEWEST_NAMES = "SELECT id, name FROM tasks ORDER BY seq DESC LIMIT 500"


def find(db: sqlite3.Connection, reference: str, prefixes: bool) -> Task:
    """The task that is meant: by what is written, else by that without what stands around it.

    Raises NotFound with the nearest ones, InvalidInput when several match.
    """
    bare = undressed(reference)
    if found := _match(db, reference, prefixes) or (bare != reference and _match(db, bare, prefixes)):
        return found
    known = removed.told(db, reference) or removed.told(db, bare) or _nearest(db, bare)
    raise NotFound(f"No task {shown(reference)}.{known} Call list_tasks to see ids and names.")


def _match(db: sqlite3.Connection, reference: str, prefixes: bool) -> Task | None:
    if FULL_ID.fullmatch(reference) and (row := db.execute(BY_ID, (reference,)).fetchone()):
        return from_row(row)
    named = [from_row(row) for row in db.execute(BY_NAME, (reference,))]
    live = [task for task in named if not task.ended]
    if len(live) == 1 or len(named) == 1:
        return (live or named)[0]
    if named:
        raise InvalidInput(_several(reference, live or named))
    if PREFIX.fullmatch(reference):
        found = [from_row(row) for row in db.execute(BY_PREFIX, (reference, reference + "~"))]
        if len(found) == 1 and prefixes:
            return found[0]
        if found and prefixes:
            raise InvalidInput(_several(reference, found))
        if found:
            raise NotFound(_whole(reference, found))
    return None


def _whole(reference: str, found: list[Task]) -> str:
    names = ", ".join(f"{task.label} ({task.status})" for task in found[:CANDIDATES])
    return f"{shown(reference)} is not a whole id, which this needs. It begins {names}. Call again with the full id."


def _several(reference: str, found: list[Task]) -> str:
    names = ", ".join(f"{task.label} ({task.status})" for task in found[:CANDIDATES])
    more = " and more" if len(found) > CANDIDATES else ""
    return f"{shown(reference)} means several tasks: {names}{more}. Call again with the full id of one of them."


def _nearest(db: sqlite3.Connection, reference: str) -> str:
    known: dict[str, str] = {}
    for task_id, name in db.execute(NEWEST_NAMES):
        known |= {task_id: task_id} | ({name.casefold(): f"{task_id} {shown(name)}"} if name else {})
    near = difflib.get_close_matches(reference.casefold(), known, n=2, cutoff=0.6)
    return f" Nearest: {', '.join(known[word] for word in near)}." if near else ""
