"""Workers with any attempt they ever held, at two servers, by any clock: the store must do what plain dicts do.

A bigger run: `MODEL_EXAMPLES=20000 MODEL_STEPS=100 pytest tests/test_outside_model.py --hypothesis-seed=1`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import model
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import World, everything, opened

from taskorch.domain import rules
from taskorch.domain.errors import Conflict, NotFound, TaskError
from taskorch.domain.outside import OWNER
from taskorch.domain.task import Completed, Failed, Interrupted, NewTask, Reason, Status, Task, with_values
from taskorch.storage import lapses, outside
from taskorch.storage.outside import Claimed, OutsideStore, Wanted
from taskorch.storage.store import Store

SERVERS = 2
TASKS = 4  # at once: a run that comes back to the same task again and again meets more
KINDS = ("outside", "outside:x")
TIMEOUT_MS = 600_000
Row = dict[str, Any]
Fence = tuple[str, int]

server = st.integers(0, SERVERS - 1)
nth = st.integers(0, 9)
silence = st.sampled_from([10_000, 60_000, 900_000])
FAILURES = [Failed(Reason.ERROR, "no"), Failed(Reason.ERROR, "never", retryable=False)]


class Machine(RuleBasedStateMachine):
    """`rows`: what is stored, `ends`: how each attempt ended, `fences`: every attempt that a worker was ever given."""

    world: ClassVar[World]

    @initialize()
    def begin(self) -> None:
        self.world.clear()
        self.rows: dict[str, Row] = {}
        self.ends: dict[Fence, str] = {}
        self.fences: list[Fence] = []
        self.looked = [1 << 62] * SERVERS
        self.said = 0

    @property
    def now(self) -> int:
        return self.world.clock.now

    # Clients.

    @precondition(lambda self: len(self.rows) < TASKS)
    @rule(kind=st.sampled_from(KINDS), most=st.integers(1, 3))
    def add(self, kind: str, most: int) -> None:
        task: Task = self.run(0, Store.add, NewTask(kind, {}, max_attempts=most, timeout_seconds=TIMEOUT_MS / 1000))
        self.rows[task.id] = {"kind": kind, "status": "waiting", "attempt": 0, "most": most, "run_at": None}
        self.rows[task.id] |= {"until": None, "cancel": False, "delete": False, "result": None}

    @precondition(lambda self: self.rows)
    @rule(n=nth)
    def cancel(self, n: int) -> None:
        task_id = self.some(n)
        row = self.rows[task_id]
        self.run(n % SERVERS, Store.cancel, task_id, "", "me")
        if row["status"] == "waiting":
            row["status"] = "cancelled"
        elif row["status"] == "working":
            row["cancel"] = True

    @precondition(lambda self: self.rows)
    @rule(n=nth)
    def delete(self, n: int) -> None:
        task_id = self.some(n)
        row = self.rows[task_id]
        self.run(n % SERVERS, Store.delete, task_id, True, "me")
        if row["status"] == "working":
            row |= {"cancel": True, "delete": True}
        else:
            del self.rows[task_id]

    @precondition(lambda self: any(row["status"] in ("failed", "cancelled") for row in self.rows.values()))
    @rule(n=nth)
    def retry(self, n: int) -> None:
        ended = [task_id for task_id, row in self.rows.items() if row["status"] in ("failed", "cancelled")]
        row = self.rows[task_id := ended[n % len(ended)]]
        self.run(n % SERVERS, Store.retry, task_id, None, "me")
        row |= {"status": "waiting", "run_at": None, "cancel": False, "most": max(row["most"], row["attempt"] + 1)}

    # Workers.

    @precondition(lambda self: self.rows)
    @rule(by=server, kind=st.none() | st.sampled_from(KINDS), claim_ms=silence)
    def claim(self, by: int, kind: str | None, claim_ms: int) -> None:
        self.promote(by)
        found = self.at(by, OutsideStore.claim, Wanted(kind=kind), "ann", claim_ms)
        fit = [task_id for task_id, row in self.rows.items() if self.is_ready(row) and kind in (None, row["kind"])]
        assert (found.task.id if isinstance(found, Claimed) else None) == (fit[0] if fit else None)
        if fit:
            row = self.rows[fit[0]]
            row |= {"status": "working", "attempt": row["attempt"] + 1, "began": self.now, "claim_ms": claim_ms}
            self.hear(row)
            self.fences.append((fit[0], row["attempt"]))

    @precondition(lambda self: len(self.rows) < TASKS)
    @rule(by=server, kind=st.sampled_from(KINDS), most=st.integers(1, 3), claim_ms=silence)
    def begin_work(self, by: int, kind: str, most: int, claim_ms: int) -> None:
        """What may start is claimed at once: without this most runs have nothing under way."""
        self.add(kind, most)
        self.claim(by, kind, claim_ms)

    @precondition(lambda self: self.under_way())
    @rule(by=server, n=nth, how=st.sampled_from(["silent", "fails"]), claim_ms=silence)
    def lose(self, by: int, n: int, how: str, claim_ms: int) -> None:
        """A worker falls silent, or fails, and another gets the task; then the first one may speak again."""
        fences = self.under_way()
        task_id, attempt = fences[n % len(fences)]
        if how == "fails":
            self.say_end(by, task_id, attempt, FAILURES[0])
        else:
            self.world.clock.advance(1 + TIMEOUT_MS / 1000)
            self.promote(by)
        self.world.clock.advance(301)
        self.claim(1 - by, None, claim_ms)

    @precondition(lambda self: self.overtaken())
    @rule(by=server, n=nth, failure=st.none() | st.sampled_from(FAILURES), beats=st.booleans())
    def speak_late(self, by: int, n: int, failure: Failed | None, beats: bool) -> None:
        """A worker speaks of its attempt while another one is under way."""
        fences = self.overtaken()
        task_id, attempt = fences[n % len(fences)]
        if beats:
            self.beat(by, task_id, attempt, None)
        else:
            self.say_end(by, task_id, attempt, failure)

    @precondition(lambda self: self.fences)
    @rule(by=server, n=nth, claim_ms=st.none() | silence)
    def heartbeat(self, by: int, n: int, claim_ms: int | None) -> None:
        self.beat(by, *self.fence(n), claim_ms)

    def beat(self, by: int, task_id: str, attempt: int, claim_ms: int | None) -> None:
        row = self.held(task_id, attempt)
        try:
            task: Task = self.at(by, OutsideStore.heartbeat, task_id, attempt, {"value": 1.0}, claim_ms)
        except (Conflict, NotFound):
            assert row is None
            return
        assert row is not None and (task.cancel_requested_at is not None) == row["cancel"]
        row["claim_ms"] = claim_ms or row["claim_ms"]
        self.hear(row)

    @precondition(lambda self: self.fences)
    @rule(by=server, n=nth, failure=st.none() | st.sampled_from(FAILURES), twice=st.booleans())
    def end(self, by: int, n: int, failure: Failed | None, twice: bool) -> None:
        """Whoever holds an attempt, or ever held it, says how it ended; perhaps again, as the reply was lost."""
        for at in (by, 1 - by) if twice else (by,):
            self.say_end(at, *self.fence(n), failure)

    def say_end(self, by: int, task_id: str, attempt: int, failure: Failed | None) -> None:
        self.said += 1
        row, known = self.held(task_id, attempt), self.ends.get((task_id, attempt))
        is_known = known == "completed" if failure is None else known in ("failed", "cancelled")
        try:
            ended = self.at(by, OutsideStore.end, task_id, attempt, failure or Completed(self.said))
        except NotFound:
            assert task_id not in self.rows
            return
        except Conflict:
            assert task_id in self.rows and row is None and not is_known
            return
        assert (row is not None) != ended.again and ended.again == (row is None and is_known)
        if row is not None:
            self.settle(task_id, row, failure, self.said)
        assert (ended.task is None) == (task_id not in self.rows)

    # Time.

    @rule(by=server)
    def promote(self, by: int) -> None:
        self.run(by, Store.promote)
        working = [(task_id, row) for task_id, row in self.rows.items() if row["status"] == "working"]
        if self.now < self.looked[by]:
            for _, row in working:
                row["until"] = min(row["until"], self.now + row["claim_ms"])
        self.looked[by] = self.now
        for task_id, row in working:
            if row["until"] <= self.now:
                self.settle(task_id, row, Failed(Reason.WORKER_LOST, "silent"), 0)
        stored = self.world.read(everything)[0]
        for task_id, row in self.rows.items():
            row["run_at"] = stored[task_id]["run_at"]  # how long a pause is, and what a clock does to it, is no matter

    @rule(seconds=st.sampled_from([0.001, 3, 11, 59.999, 600, 3600, 86_400, -1, -70, -3600, -86_400]))
    def jump(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    # What must hold after each step.

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        rows, starts, _, _ = self.world.read(everything)
        names = ("status", "attempt", "claim_expires_at", "result")
        told = {task_id: tuple(row[name] for name in names) for task_id, row in rows.items()}
        assert told == {
            task_id: (row["status"], row["attempt"], row["until"], row["result"]) for task_id, row in self.rows.items()
        }
        for task_id, row in rows.items():
            ends = [outcome for _, owner, outcome, _ in starts.get(row["seq"], []) if owner == OWNER]
            known = [self.ends.get((task_id, n + 1)) for n in range(row["attempt"])]
            assert ends == ["failed" if how == "lost" else how for how in known]

    # Helpers.

    def run(self, by: int, method: Callable[..., Any], *arguments: Any) -> Any:
        return self.world.run(method, self.world.stores[by], *arguments)

    def at(self, by: int, method: Callable[..., Any], *arguments: Any) -> Any:
        return self.world.run(method, self.world.desks[by], *arguments)

    def some(self, n: int) -> str:
        return list(self.rows)[-1 - n % len(self.rows)]

    def fence(self, n: int) -> Fence:
        return self.fences[-1 - n % len(self.fences)]

    def held(self, task_id: str, attempt: int) -> Row | None:
        row = self.rows.get(task_id)
        return row if row and (row["status"], row["attempt"]) == ("working", attempt) else None

    def under_way(self) -> list[Fence]:
        return [(task_id, row["attempt"]) for task_id, row in self.rows.items() if row["status"] == "working"]

    def overtaken(self) -> list[Fence]:
        working = dict(self.under_way())
        return [(task_id, n) for task_id, n in self.fences if n < working.get(task_id, 0)]

    def is_ready(self, row: Row) -> bool:
        return row["status"] == "waiting" and (row["run_at"] is None or row["run_at"] <= self.now)

    def hear(self, row: Row) -> None:
        row["until"] = min(self.now + row["claim_ms"], row["began"] + TIMEOUT_MS)

    def settle(self, task_id: str, row: Row, failure: Failed | None, result: int) -> None:
        retried = failure is not None and failure.retryable and row["attempt"] < row["most"]
        if failure is None:
            row |= {"status": "completed", "result": result}
        elif row["cancel"]:
            row["status"] = "cancelled"
        else:
            row["status"] = "waiting" if retried else "failed"
        silent = failure is not None and failure.reason is Reason.WORKER_LOST and row["status"] != "cancelled"
        how = "failed" if row["status"] == "waiting" else row["status"]
        self.ends[task_id, row["attempt"]] = "lost" if silent else how
        row["until"] = None
        if row["delete"]:
            del self.rows[task_id]
        elif retried and row["status"] == "waiting":
            row["run_at"] = self.world.read(everything)[0][task_id]["run_at"]


def prove(world: World, with_seed: int | None = None) -> None:
    model.prove(world, with_seed, shrink=with_seed is None, machine=Machine)


# Bugs, each of which it must find.


def _any_attempt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outside, "_is_under_way", lambda task, attempt: task.status is Status.WORKING)


def _late_heartbeats(patch: pytest.MonkeyPatch) -> None:
    def heartbeat(tx: Any, task_id: str, attempt: int, told: Any, claim_ms: int | None, now: int) -> Task:
        current = outside.load(tx, task_id).attempt
        return original(tx, task_id, max(attempt, current), told, claim_ms, now)

    original = outside._heartbeat
    patch.setattr(outside, "_heartbeat", heartbeat)


def _completed_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outside, "_was_said", lambda *_: True)


def _silence_forgiven(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lapses, "lapsed", lambda *_: Interrupted("silent"))


def _clock_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lapses, "shorten", lambda tx, now: None)
    patch.setattr(lapses, "TOO_FAR", f"{lapses.SELECT} WHERE claim_expires_at > ? AND seq < 0")


def _no_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outside, "lapses_at", lambda task, claim_ms, now: now + claim_ms)


def _cancellation_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = rules.settle
    patch.setattr(rules, "settle", lambda task, *args: original(with_values(task, cancel_requested_at=None), *args))


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "an end is written whatever attempt it is of": _any_attempt,
    "a late heartbeat keeps another worker's claim": _late_heartbeats,
    "every end is taken for one that is said again": _completed_again,
    "silence costs no attempt": _silence_forgiven,
    "a clock that is set back keeps a claim": _clock_trusted,
    "heartbeats outlive the limit": _no_limit,
    "a failure forgets that it was cancelled": _cancellation_forgotten,
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened(tmp_path / "taskorch.db", SERVERS) as world:
        yield world


def test_the_store_does_what_the_model_of_workers_does(world: World) -> None:
    prove(world)


@pytest.mark.parametrize("bug", BUGS)
def test_the_model_of_workers_finds_a_bug(bug: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises((AssertionError, TaskError)):
        prove(world, 1)


@pytest.mark.slow
@pytest.mark.parametrize("with_seed", [2, 3, 4])
@pytest.mark.parametrize("bug", BUGS)
def test_it_finds_it_whatever_the_seed(bug: str, with_seed: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises((AssertionError, TaskError)):
        prove(world, with_seed)
