"""How new tasks are stored: by themselves or many at once, once for each dedupe_key, behind those they depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import Any

from taskorch.domain import references, rules
from taskorch.domain.errors import Crowded
from taskorch.domain.task import NewTask, OnDependencyFailure, Task
from taskorch.storage import dedupe, dependencies
from taskorch.storage.database import Transaction
from taskorch.storage.ids import new_id
from taskorch.storage.rows import insert_all, to_values

LIVE = "SELECT sum(tasks) FROM counts WHERE status IN ('waiting', 'working')"

Row = tuple[Task, list[Any]]  # a new task, and its encoded row


@dataclass(frozen=True, slots=True)
class Wish:
    """A task to be stored.

    `dedupe_key`: by which a repeated call finds it. `depends_on`: ids of stored tasks, and of those stored with it.
    """

    new: NewTask
    dedupe_key: str | None = None
    depends_on: tuple[str, ...] = ()
    on_dependency_failure: OnDependencyFailure = "cancel"
    task_id: str = field(default_factory=new_id)

    def row(self, now: int, blocked: bool) -> Row:
        """The new task, to be made outside the transaction, which others wait for."""
        task = rules.create(self.new, seq=0, task_id=self.task_id, now=now, blocked=blocked)
        return task, to_values(task)


def insert(tx: Transaction, new: Sequence[Row], most_live: int) -> list[Task]:
    """Store new tasks that know nothing of others. Raises Conflict when too many would wait or work."""
    _refuse_crowd(tx, len(new), most_live)
    return insert_all(tx, new)


def add_all(
    tx: Transaction, wishes: Sequence[Wish], rows: Sequence[Row], most_live: int, now: int
) -> list[tuple[Task, bool]]:
    """Store the tasks of all wishes, whose rows these are: each task, and whether it was there already.

    Raises Conflict, NotFound.
    """
    if not any(wish.dedupe_key or wish.depends_on for wish in wishes):
        return [(task, False) for task in insert(tx, rows, most_live)]
    made = {wish.task_id: row for wish, row in zip(wishes, rows, strict=True)}
    stored: dict[str, tuple[Task, bool]] = {}
    for wish in _in_order(wishes):
        stored[wish.task_id] = _add(tx, _known(wish, stored), made[wish.task_id], now)
    _refuse_crowd(tx, 0, most_live)
    return [stored[wish.task_id] for wish in wishes]


def _in_order(wishes: Sequence[Wish]) -> list[Wish]:
    """Each behind those that it depends on."""
    by_id = {wish.task_id: wish for wish in wishes}
    order = TopologicalSorter({wish.task_id: wish.depends_on for wish in wishes}).static_order()
    return [by_id[task_id] for task_id in order if task_id in by_id]


def _known(wish: Wish, stored: dict[str, tuple[Task, bool]]) -> Wish:
    """The wish with the ids of tasks that were there already in the place of those that it was to depend on."""
    other = {i: stored[i][0].id for i in wish.depends_on if i in stored and stored[i][0].id != i}
    if not other:
        return wish
    payload = references.renamed(wish.new.payload, other)
    depends_on = tuple(dict.fromkeys(other.get(i, i) for i in wish.depends_on))
    return replace(wish, new=replace(wish.new, payload=payload), depends_on=depends_on)


def _add(tx: Transaction, wish: Wish, row: Row, now: int) -> tuple[Task, bool]:
    if wish.dedupe_key is not None and (holder := dedupe.holder(tx, wish.dedupe_key, wish.new, now)):
        return holder, True  # whatever has become of what it depends on
    found = dependencies.parents(tx, wish.depends_on, wish.on_dependency_failure)
    blocked = not all(parent.ended for parent in found)
    if blocked is not row[0].blocked or wish.new.payload is not row[0].payload:
        row = wish.row(now, blocked)
    [task] = insert_all(tx, [row])
    dependencies.link(tx, task, found, wish.on_dependency_failure)
    if wish.dedupe_key is not None:
        dedupe.hold(tx, wish.dedupe_key, task)
    return task, False


def _refuse_crowd(tx: Transaction, more: int, most_live: int) -> None:
    """Raise Crowded when with so many more tasks too many would wait or work."""
    live: int = tx.execute(LIVE).fetchone()[0] + more
    if live + len(tx.moved) <= most_live:
        return  # whatever this transaction has done, which is not among the counts yet
    live += sum(_is_live(after) - _is_live(before) for before, after in tx.moved)
    if live > most_live:
        raise Crowded(
            f"{live} tasks would wait or work; at most {most_live} may (TASKORCH_MAX_LIVE_TASKS). Nothing "
            "was stored: wait until some have ended, or cancel_task those that are not needed."
        )


def _is_live(task: Task | None) -> bool:
    return task is not None and not task.ended
