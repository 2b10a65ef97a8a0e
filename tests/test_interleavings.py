"""Actors on one task, a transaction at a time, in every order: each outcome is that of the rules, one after the other.

What an actor does goes by what it has seen some steps before: a claim it made, the version it read, the work of a
server that it takes for dead. After each step the file must be as the model says.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from model import DONE, LOST, Machine
from seeded import BUGS
from twin import SERVERS
from world import World, opened

from taskorch.domain.errors import TaskError
from taskorch.domain.task import Failed, Interrupted, Outcome, Priority, Reason, Task
from taskorch.storage.store import Store

Steps = Iterator[None]
Actor = Callable[[Machine], Steps]

OURS, THEIRS = 0, 1
BOOM = Failed(Reason.ERROR, "boom", retryable=False)
TRIPLES = 200  # orders of three actors, of more than ten thousand


def claimed(machine: Machine, by: int) -> list[Task]:
    known = len(machine.fences)
    machine.claim(by, 1, 0)
    return machine.fences[known:]


def works(by: int, end: Outcome) -> Actor:
    """Claims, says how far it is, settles."""

    def steps(machine: Machine) -> Steps:
        tasks = claimed(machine, by)
        yield
        for task in tasks:
            machine.say_progress(by, task, 1)
        yield
        machine.settle(by, [(task, end) for task in tasks], None)
        yield

    return steps


def begins_again(machine: Machine) -> Steps:
    """Claims, is stopped, claims once more and completes."""
    for end in (Interrupted("the server stopped"), DONE):
        tasks = claimed(machine, OURS)
        yield
        machine.settle(OURS, [(task, end) for task in tasks], None)
        yield


def takes_over(how: Outcome) -> Actor:
    """Sees what the other server holds, says that it has ended, and works itself."""

    def steps(machine: Machine) -> Steps:
        held: list[Task] = machine.run(THEIRS, Store.held_by, machine.world.owners[OURS])
        yield
        machine.settle(THEIRS, [(task, how) for task in held], None)
        yield
        machine.go_on(THEIRS)
        mine = machine.held()
        yield
        machine.settle(THEIRS, [(task, DONE) for task in mine if task.owner == machine.world.owners[THEIRS]], None)
        yield

    return steps


def adopts(machine: Machine) -> Steps:
    """Sees what the other server holds, goes on with it, and says how it ended."""
    held: list[Task] = machine.run(THEIRS, Store.held_by, machine.world.owners[OURS])
    yield
    known = len(machine.fences)
    for task in held:
        machine.take(THEIRS, task)
    mine = machine.fences[known:]
    yield
    for task in mine:
        machine.say_progress(THEIRS, task, 2)
    yield
    machine.settle(THEIRS, [(task, DONE) for task in mine], None)
    yield


def changes_its_mind(machine: Machine) -> Steps:
    """Reads, edits what it has read, cancels, and wants it after all."""
    version = machine.twin.rows[machine.ids[0]]["version"]
    yield
    machine.edit_as_seen(0, {"priority": Priority.LOW}, version)
    yield
    machine.cancel(0)
    yield
    machine.retry(0, None)
    yield


def throws_it_away(machine: Machine) -> Steps:
    """Pauses it, goes on, deletes it without and with consent."""
    machine.edit_as_seen(0, {"paused": True}, None)
    yield
    machine.edit_as_seen(0, {"paused": False}, None)
    yield
    machine.delete(0, False)
    yield
    machine.delete(0, True)
    yield


WORKERS: dict[str, Actor] = {
    "works": works(OURS, DONE),
    "fails": works(OURS, BOOM),
    "begins again": begins_again,
}
OTHERS: dict[str, Actor] = {
    "takes over": takes_over(LOST),
    "takes over what never began": takes_over(Interrupted("it had not begun")),
    "adopts": adopts,
    "changes its mind": changes_its_mind,
    "throws it away": throws_it_away,
}
ACTORS = WORKERS | OTHERS
# What shows a bug in the fence.
SHOWN = {
    "fence without the attempt": ("begins again", "takes over"),
    "fence without the owner": ("works", "adopts"),
    "fence by status alone": ("works", "adopts"),
}


def orders(left: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to deal turns to actors that have so many steps left."""
    if not any(left):
        yield ()
    for actor, steps in enumerate(left):
        if steps:
            for rest in orders([n - (place == actor) for place, n in enumerate(left)]):
                yield actor, *rest


def play(world: World, actors: Sequence[Actor], order: Sequence[int]) -> None:
    machine = begun(world)
    under_way = [actor(machine) for actor in actors]
    for turn in order:
        next(under_way[turn])
        machine.the_store_is_as_the_model()
        machine.what_is_completed_stays_so()
        machine.a_task_starts_as_often_as_it_may()


def begun(world: World) -> Machine:
    """A world with one waiting task that may start twice."""

    class InThisWorld(Machine):
        pass

    InThisWorld.world = world
    machine = InThisWorld()
    machine.begin()
    machine.add("echo", Priority.MEDIUM, None, None)
    return machine


def length(world: World, actor: Actor) -> int:
    return len(list(actor(begun(world))))


def play_all(world: World, *names: str) -> int:
    """Play every order; how many there are."""
    found = list(orders([length(world, ACTORS[name]) for name in names]))
    for order in found:
        play_one(world, names, order)
    return len(found)


def play_one(world: World, names: Sequence[str], order: Sequence[int]) -> None:
    try:
        play(world, [ACTORS[name] for name in names], order)
    except (AssertionError, TaskError) as error:
        error.add_note(f"{', '.join(names)} in the order {order}")
        raise


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened(tmp_path / "taskorch.db", SERVERS) as world:
        yield world


def test_every_order_is_played_once() -> None:
    assert sorted(orders([2, 1])) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert len(set(orders([4, 4]))) == 70


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("worker", WORKERS)
def test_two_actors_do_in_any_order_what_the_rules_say(worker: str, other: str, world: World) -> None:
    assert play_all(world, worker, other) >= 35


@pytest.mark.slow
@pytest.mark.parametrize("client", ["changes its mind", "throws it away"])
@pytest.mark.parametrize("other", ["takes over", "adopts"])
@pytest.mark.parametrize("worker", WORKERS)
def test_three_actors_do_too(worker: str, other: str, client: str, world: World) -> None:
    names = (worker, other, client)
    turns = [place for place, name in enumerate(names) for _ in range(length(world, ACTORS[name]))]
    chance = random.Random(f"{names}")
    for _ in range(TRIPLES):
        chance.shuffle(turns)
        play_one(world, names, turns)


@pytest.mark.parametrize("bug", SHOWN)
def test_a_bug_in_the_fence_shows_in_some_order(bug: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises((AssertionError, TaskError)):
        play_all(world, *SHOWN[bug])
