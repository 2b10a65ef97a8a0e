"""Bugs to plant in the store, each of which a proof must find: one that proves nothing would find none."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from taskorch.domain import readiness, rules
from taskorch.domain.task import Status, Task, with_values
from taskorch.storage import bulk, claims, dedupe, dependencies, ends, limits, removed, rows, store
from taskorch.storage.database import Transaction
from taskorch.storage.rows import BY_ID, COLUMNS, from_row

Plant = Callable[[pytest.MonkeyPatch], None]


def _fence(holds: Callable[[Task, Task], bool]) -> Plant:
    """Every write of a worker looks at its row this way."""

    def held(tx: Transaction, task: Task) -> Task | None:
        row = tx.execute(BY_ID, (task.id,)).fetchone()
        now = from_row(row) if row else None
        return now if now and now.status is Status.WORKING and holds(now, task) else None

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(ends, "held", held)
        patch.setattr(store, "held", held)

    return plant


def _trusts_the_index(patch: pytest.MonkeyPatch) -> None:
    def runnable(tx: Transaction, query: str, values: Sequence[Any], now: int) -> list[Task]:
        return [from_row(row) for row in bulk.select(tx, COLUMNS, query, values)]

    def claim(task: Task, owner: int, now: int) -> Task:
        return original(with_values(task, run_at=None, expires_at=None), owner, now)

    original = rules.claim
    patch.setattr(claims, "runnable", runnable)
    patch.setattr(rules, "claim", claim)


def _rule(name: str, before: Callable[[Task], Task]) -> Plant:
    """A rule sees the task otherwise than it is."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = getattr(rules, name)
        patch.setattr(rules, name, lambda task, *args: original(before(task), *args))

    return plant


def _no_cancel_request(task: Task) -> Task:
    return with_values(task, cancel_requested_at=None)


def _unlimited(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "starts_left", lambda task: 1)


def _number_given_back(patch: pytest.MonkeyPatch) -> None:
    original = rules.settle

    def settle(task: Task, *args: Any) -> Task:
        after = original(task, *args)
        return with_values(after, attempt=task.attempt - 1) if after.status is Status.WAITING else after

    patch.setattr(rules, "settle", settle)


def _half_a_batch(patch: pytest.MonkeyPatch) -> None:
    original = ends._end_attempts
    patch.setattr(ends, "_end_attempts", lambda tx, settled: original(tx, settled[:1]))


def _counts_forgotten(patch: pytest.MonkeyPatch) -> None:
    def changed(tx: Transaction, before: Task | None, after: Task) -> Task:
        tx.changed.append((after.id, after))
        tx.moved += [(before, after)] if before is None or before.status is not Status.WORKING else []
        return after

    for module in (ends, rows):
        patch.setattr(module, "changed", changed)


def _other_work_under_a_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dedupe, "_refuse_other", lambda *_: None)


def _forgotten_without_a_note(patch: pytest.MonkeyPatch) -> None:
    def note(tx: Transaction, task: Task, by: str, now: int) -> None:
        if task.status is not Status.WAITING:
            original(tx, task, by, now)

    original = removed.note
    patch.setattr(removed, "note", note)


def _others_as(**wrong: Any) -> Plant:
    """What a task depends on is seen otherwise than it is."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = dependencies.state
        patch.setattr(dependencies, "state", lambda tx, child: replace(original(tx, child), **wrong))

    return plant


def _only_the_next_step(patch: pytest.MonkeyPatch) -> None:
    def follow(tx: Transaction, now: int) -> None:
        known = len(tx.moved)
        original(tx, now)
        beyond = [move for move in tx.moved[known:] if move[0].ended is not move[1].ended]
        for before, after in beyond[1:]:  # what follows from what has followed is undone
            rows.save(tx, after, with_values(before, version=after.version + 1))

    original = dependencies.follow
    patch.setattr(dependencies, "follow", follow)


def _nothing_comes_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dependencies, "_bring_back", lambda *_: None)


def _needed_ones_are_removed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dependencies, "delete_unneeded", rows.delete)


def _limits_uncounted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claims, "without_room", lambda *_: [])


def _freed_for_nobody(patch: pytest.MonkeyPatch) -> None:
    def refill(tx: Transaction, *args: Any) -> None:
        if any(after is not None and not after.ended for _, after in tx.moved):
            original(tx, *args)

    original = store.refill
    patch.setattr(store, "refill", refill)


def _one_kind_let_in(patch: pytest.MonkeyPatch) -> None:
    original = limits.held_kinds
    patch.setattr(limits, "held_kinds", lambda *args: list(original(*args))[:1])


def _never_raised(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(readiness, "aged", lambda task, now: task)


BUGS: dict[str, Plant] = {
    "fence without the attempt": _fence(lambda now, task: now.owner == task.owner),
    "fence without the owner": _fence(lambda now, task: now.attempt == task.attempt),
    "fence by status alone": _fence(lambda now, task: True),
    "stale index rows claimed": _trusts_the_index,
    "a retry ignores a cancel request": _rule("settle", _no_cancel_request),
    "starts without limit": _unlimited,
    "an attempt's number is given back": _number_given_back,
    "only the first attempt of a batch is ended": _half_a_batch,
    "ends are not counted": _counts_forgotten,
    "other work under a key is taken for the same": _other_work_under_a_key,
    "a removal is not remembered": _forgotten_without_a_note,
    "a failed step stops nothing": _others_as(failed=None),
    "the first of many to end lets a task go": _others_as(unfinished=False),
    "a failure stops no more than one task": _only_the_next_step,
    "a retry does not bring back what it stopped": _nothing_comes_back,
    "retention takes what others wait for": _needed_ones_are_removed,
    "a claim does not count what works of a key": _limits_uncounted,
    "a place that an end frees goes to nobody": _freed_for_nobody,
    "of a key only one kind is let in": _one_kind_let_in,
    "what waits long is never raised": _never_raised,
}
