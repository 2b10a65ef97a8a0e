"""Pages by number: the same as sorting all that fits and cutting it, whatever is asked for."""

import random
from collections.abc import Callable
from typing import Any, get_args

import pytest
from fakes import Clock

from taskorch.domain.task import NewTask, Priority, Status, Task
from taskorch.http.listing import Sort
from taskorch.storage.listing import SORTS, Filters, Order
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

LIFE = ("waiting", "working", "completed", "failed", "cancelled")
OF: dict[str, Callable[[Task], Any]] = {
    "created_at": lambda task: task.seq,
    "updated_at": lambda task: task.updated_at,
    "priority": lambda task: task.priority,
    "status": lambda task: LIFE.index(task.status),
    "name": lambda task: task.name or "",
}


async def fill(store: Store, clock: Clock) -> None:
    """Forty tasks, of few names and priorities, some cancelled, some edited, under a clock that is once set back."""
    chance = random.Random(7)
    for number in range(40):
        clock.advance(-3600 if number == 20 else chance.choice((0, 0.001, 5)))
        name = chance.choice((None, "a", "b", "Ä"))
        new = NewTask("k", {}, 3, 60.0, name, chance.choice(list(Priority)), run_at=clock.now + 10_000_000)
        task = await store.add(new)
        match number % 4:
            case 0:
                await store.cancel(task.id, "", "test")
            case 1:
                clock.advance(chance.choice((0, 100)))
                await store.edit(task.id, {"labels": ("x",)}, None, "test")
            case _:
                pass


@pytest.mark.parametrize("by", SORTS)
async def test_a_page_is_a_part_of_all_that_fits_in_order(
    store: Store, queries: Queries, clock: Clock, by: str
) -> None:
    await fill(store, clock)
    for filters in (Filters(), Filters(status=Status.WAITING), Filters(label="x"), Filters(priority=Priority.HIGH)):
        fitting = (await queries.page(filters, 100, None)).tasks
        for descending in (True, False):
            whole = sorted(fitting, key=lambda task: (OF[by](task), task.seq), reverse=descending)
            for offset, limit in ((0, 1), (0, 7), (5, 10), (len(whole) - 1, 5), (len(whole), 5), (0, 100)):
                found = await queries.window(filters, Order(by, descending), limit, offset)
                assert [task.id for task in found.tasks] == [task.id for task in whole[offset : offset + limit]]
                assert (found.total, found.partial) == (len(whole), False)
                assert found.has_more is (offset + limit < len(whole))


def test_what_the_rest_api_sorts_by_is_what_can_be_sorted_by() -> None:
    assert get_args(Sort) == tuple(SORTS)
