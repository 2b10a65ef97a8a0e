"""The store against the model; and the model against stores with bugs in them, each of which it must find."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from model import prove
from seeded import BUGS
from twin import SERVERS
from world import World, everything, opened

from taskorch.domain.errors import TaskError
from taskorch.domain.task import Completed, NewTask


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened(tmp_path / "taskorch.db", SERVERS) as world:
        yield world


def test_the_store_does_what_the_model_does(world: World) -> None:
    prove(world)


@pytest.mark.parametrize("bug", BUGS)
def test_the_model_finds_a_bug_in_the_store(bug: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises((AssertionError, TaskError)):
        prove(world, 1, shrink=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
@pytest.mark.parametrize("bug", BUGS)
def test_it_finds_it_whatever_the_seed(bug: str, seed: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises((AssertionError, TaskError)):
        prove(world, seed, shrink=False)


def test_a_task_that_was_adopted_while_being_cancelled_and_then_deleted_goes_when_it_has_completed(
    world: World,
) -> None:
    store = world.stores[0]
    task_id = world.run(store.add, NewTask("echo", {}, max_attempts=1, timeout_seconds=60.0)).id
    [claimed] = world.run(store.claim, world.owners[0], {"echo": 0}, 1)
    world.run(store.cancel, task_id, "", "me")
    adopted = world.run(store.adopt, claimed, world.owners[1])
    assert world.run(store.delete, task_id, True, "me").delete_requested
    assert world.run(store.settle, adopted, Completed(1))
    assert world.read(everything)[0] == {}


def test_a_task_that_was_deleted_while_working_and_then_adopted_goes_when_it_has_completed(world: World) -> None:
    store = world.stores[0]
    task_id = world.run(store.add, NewTask("echo", {}, max_attempts=1, timeout_seconds=60.0)).id
    [claimed] = world.run(store.claim, world.owners[0], {"echo": 0}, 1)
    assert world.run(store.delete, task_id, True, "me").delete_requested
    adopted = world.run(store.adopt, claimed, world.owners[1])
    assert world.run(store.settle, adopted, Completed(1))
    assert world.read(everything)[0] == {}
