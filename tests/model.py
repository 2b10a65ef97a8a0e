"""Any calls by two servers, with any fence ever held, by any clock: the store must do what the model in `twin.py` does.

A bigger run, and one that can be repeated:
`MODEL_EXAMPLES=20000 MODEL_STEPS=100 pytest tests/test_model.py --hypothesis-seed=1`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twin import LIMITS, SERVERS, Row, Twin
from world import KINDS, World, everything

from taskorch.domain.errors import Conflict, NotFound
from taskorch.domain.task import (
    Cancelled,
    Completed,
    Failed,
    Interrupted,
    NewTask,
    OnDependencyFailure,
    Outcome,
    Priority,
    Progress,
    Reason,
    Task,
)
from taskorch.storage.additions import Wish
from taskorch.storage.store import Store

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "80"))
STEPS = int(os.environ.get("MODEL_STEPS", "50"))
HOUR, DAY = 3600, 86_400  # seconds
TASKS = 6  # at once: a run that comes back to the same task again and again meets more

LOST = Failed(Reason.WORKER_LOST, "gone")
OUTCOMES: list[Outcome] = [
    Completed(1),
    Completed(None),
    Completed({"a": 1}, '{"a":1}'),
    Failed(Reason.ERROR, "boom"),
    Failed(Reason.ERROR, "later", retry_after_ms=45_000),
    Failed(Reason.EXIT_CODE, "no use", 3, retryable=False),
    Cancelled("ended"),
    Interrupted("the server stopped"),
    LOST,
]
GIVEN_BACK = [
    None,  # not at all: it is adopted
    LOST,
    Interrupted("the server stopped"),
    Cancelled("ended"),
    Failed(Reason.ERROR, "boom", retryable=False),
]
POLICIES: list[OnDependencyFailure] = ["cancel", "fail", "run"]
MEANWHILE = ["nothing", "pause", "report", "delete"]
outcome = st.sampled_from(OUTCOMES)
DONE = Completed({"n": 1})
kind = st.sampled_from(KINDS)
priority = st.sampled_from(Priority)
nth = st.integers(0, 12)  # of the newest, the oldest of few being as likely as the newest of many
server = st.integers(0, SERVERS - 1)
some = st.lists(nth, min_size=1, max_size=3)
seconds = st.none() | st.sampled_from([-HOUR, -1, 0, 1, 30, HOUR, 2 * DAY])
key = st.sampled_from([None, None, "k", "k"])
group = st.sampled_from([None, "a", "a", "b"])  # concurrency_keys
changes = st.fixed_dictionaries(
    {},
    optional={
        "name": st.none() | st.just("n"),
        "priority": st.sampled_from(Priority),
        "payload": st.just({"n": 2}),
        "run_at": seconds,
        "expires_at": seconds.filter(lambda value: value is not None),
        "max_attempts": st.integers(1, 4),
        "labels": st.just(("l",)),
        "paused": st.booleans(),
    },
).filter(bool)


class Machine(RuleBasedStateMachine):
    """Any calls. A fence is a task as a claim, an adoption or a look at a dead server's work gave it to somebody."""

    world: ClassVar[World]

    @initialize()
    def begin(self) -> None:
        self.world.clear()
        self.twin = Twin(self.world.clock)
        self.ids: list[str] = []  # all that were ever given, those of deleted tasks too
        self.fences: list[Task] = []

    # Clients.

    @precondition(lambda self: len(self.twin.rows) < TASKS)
    @rule(kind=kind, priority=priority, run_at=seconds, expires_at=seconds, key=key, group=group)
    def add(
        self,
        kind: str,
        priority: Priority,
        run_at: int | None,
        expires_at: int | None,
        key: str | None = None,
        group: str | None = None,
    ) -> None:
        times = {"run_at": self.at(run_at), "expires_at": self.at(expires_at), "concurrency_key": group}
        new = NewTask(kind, {"n": 1}, max_attempts=2, timeout_seconds=60.0, priority=priority, **times)
        if key is None:
            self.born(self.run(0, Store.add, new).id, kind, priority, times)
            return
        holder = self.twin.holder(key)
        is_other = holder is not None and (holder["kind"], holder["payload"]) != (kind, {"n": 1})
        try:
            ((task, there),) = self.run(0, Store.add_all, [Wish(new, key)])
        except Conflict:
            assert is_other
            return
        assert not is_other and (task.id if there else None) == (holder["id"] if holder else None)
        if not there:
            self.born(task.id, kind, priority, times)
            self.twin.keys[key] = task.id

    @precondition(lambda self: self.ids and len(self.twin.rows) < 2 * TASKS)
    @rule(by=server, some=some, policy=st.sampled_from(POLICIES), run_at=seconds, group=group)
    def add_after(
        self, by: int, some: list[int], policy: OnDependencyFailure, run_at: int | None, group: str | None = None
    ) -> None:
        """A task that depends on others."""
        parents = list(dict.fromkeys(self.ids[-1 - n % len(self.ids)] for n in some))
        times = {"run_at": self.at(run_at), "expires_at": None, "concurrency_key": group}
        new = NewTask("echo", {"n": 1}, max_attempts=2, timeout_seconds=60.0, **times)
        rows = [self.twin.rows.get(task_id) for task_id in parents]
        is_lost = any(row is None for row in rows)
        bad = [row for row in rows if row and (row["delete_requested"] or row["status"] in ("failed", "cancelled"))]
        is_refused = any(row["delete_requested"] or policy != "run" for row in bad)
        try:
            ((task, _),) = self.run(by, Store.add_all, [Wish(new, None, tuple(parents), policy)])
        except NotFound:
            assert is_lost
        except Conflict:
            assert is_refused and not is_lost
        else:
            assert not is_lost and not is_refused
            self.born(task.id, "echo", Priority.MEDIUM, times, parents, policy)

    @precondition(lambda self: len(self.twin.rows) < TASKS)
    @rule(by=server, policy=st.sampled_from(POLICIES), outcome=outcome, late=st.sampled_from(["retry", "purge", ""]))
    def run_a_chain(self, by: int, policy: OnDependencyFailure, outcome: Outcome, late: str) -> None:
        """A task, one that depends on it, and one on that: the first one runs, and perhaps comes back."""
        self.add("echo", Priority.HIGH, None, None)
        first = self.ids[-1]
        self.add_after(by, [0], policy, None)
        self.add_after(by, [0], policy, None)
        self.claim(by, TASKS, 0)
        if task := next((task for task in self.held() if task.id == first), None):
            self.settle(by, [(task, outcome)], None)
        if late == "purge":
            self.jump(9 * DAY)
            self.purge(HOUR, HOUR)
        elif late and (row := self.twin.rows.get(first)) and not self.retry_is_refused(row):
            self.do(first, Store.retry, None, "me")
            self.twin.retry(row, None)

    def born(
        self, task_id: str, kind: str, priority: Priority, times: Row, parents: Sequence[str] = (), policy: str = "run"
    ) -> None:
        row: Row = dict.fromkeys(Task.__dataclass_fields__) | {"starts": [], "events": [], "attempt": 0}
        row |= {"parents": list(parents), "policy": policy}
        row |= {"kind": kind, "payload": {"n": 1}, "priority": priority, "rank": int(priority), "interruptions": 0}
        row |= {"max_attempts": 2, "timeout_seconds": 60.0, "on_server_exit": "survive", "labels": (), "paused": False}
        row |= {"blocked": self.twin.unfinished(row), "held": False}
        row |= {"created_at": self.twin.now, "delete_requested": False, "version": 0} | times
        row["seq"] = 1 + max((row["seq"] for row in self.twin.rows.values()), default=0)
        row["id"] = task_id
        self.twin.move(row, "waiting")
        self.twin.rows[row["id"]] = row
        self.ids.append(row["id"])

    @precondition(lambda self: self.ids)
    @rule(n=nth, changes=changes, behind=st.sampled_from([None, None, 0, 1]))
    def edit(self, n: int, changes: Row, behind: int | None) -> None:
        changes = changes | {name: self.at(changes[name]) for name in ("run_at", "expires_at") if name in changes}
        row = self.twin.rows.get(self.id(n) or "", {"version": 1})
        version = None if behind is None else row["version"] - behind
        self.edit_as_seen(n, changes, version)

    def edit_as_seen(self, n: int, changes: Row, version: int | None) -> None:
        arguments = (changes, version, "me")
        if row := self.change(n, lambda row: self.twin.edit_is_refused(row, changes, version), Store.edit, *arguments):
            rank = {"rank": int(changes["priority"])} if "priority" in changes else {}
            self.twin.move(row, row["status"], **changes, **rank)
            row["events"].append("updated")

    @precondition(lambda self: self.ids)
    @rule(n=nth)
    def cancel(self, n: int) -> None:
        if row := self.change(n, lambda row: False, Store.cancel, "no more", "me"):
            self.twin.cancel(row, "cancelled by me: no more")

    @precondition(lambda self: self.ids)
    @rule(n=nth, run_at=seconds)
    def retry(self, n: int, run_at: int | None) -> None:
        at = self.at(run_at)
        if row := self.change(n, self.retry_is_refused, Store.retry, at, "me"):
            self.twin.retry(row, at)

    def retry_is_refused(self, row: Row) -> bool:
        return row["status"] not in ("failed", "cancelled") or self.twin.stopped(row)

    @precondition(lambda self: self.ids)
    @rule(n=nth, confirm=st.booleans())
    def delete(self, n: int, confirm: bool) -> None:
        def is_refused(row: Row) -> bool:
            return (row["status"] == "working" and not confirm) or self.twin.is_needed(row)

        row = self.change(n, is_refused, Store.delete, confirm, "me")
        if row and row["status"] != "working":
            self.twin.forget(row)
        elif row:
            if row["cancel_requested_at"] is None:
                self.twin.cancel(row, "deleted while working")
            else:
                self.twin.move(row, "working")
                row["events"].append("cancel_requested")
            row |= {"delete_requested": True, "updated_at": self.twin.now}

    # Workers.

    @precondition(lambda self: len(self.twin.rows) < TASKS)
    @rule(by=server, kind=kind, more=st.integers(1, 2), group=group)
    def begin_work(self, by: int, kind: str, more: int, group: str | None) -> None:
        """What may run is claimed at once: without this most runs have nothing under way."""
        for _ in range(more):
            self.add(kind, Priority.HIGH, None, None, None, group)
        if group:
            for other in KINDS:
                self.add(other, Priority.MEDIUM, None, None, None, group)
        self.claim(by, 2, 0)

    @precondition(lambda self: self.twin.rows)
    @rule(by=server, free=st.sampled_from([1, 2, 0]), ahead=st.integers(0, 2))
    def claim(self, by: int, free: int, ahead: int) -> None:
        kinds = {"echo": ahead, "sleep": 0}
        claimed = self.run(by, Store.claim, self.world.owners[by], kinds, free)
        assert [task.id for task in claimed] == self.twin.claim(self.world.owners[by], kinds, free)
        self.fences += claimed

    @precondition(lambda self: self.fences)
    @rule(by=server, ends=st.lists(st.tuples(nth, st.sampled_from(OUTCOMES)), min_size=2, max_size=3), late=seconds)
    def settle_any(self, by: int, ends: list[tuple[int, Outcome]], late: int | None) -> None:
        """Whoever holds a fence, or ever held it, says how it ended: several ends in one transaction."""
        chosen = [(self.fences[-1 - n % len(self.fences)], outcome) for n, outcome in ends]
        self.settle(by, chosen, self.at(late))

    @precondition(lambda self: self.held())
    @rule(by=server, n=nth, outcome=outcome)
    def settle_held(self, by: int, n: int, outcome: Outcome) -> None:
        """The usual thing: one that is held ends."""
        held = self.held()
        self.settle(by, [(held[-1 - n % len(held)], outcome)], None)

    @precondition(lambda self: self.overtaken())
    @rule(by=server, n=nth, outcome=outcome)
    def settle_overtaken(self, by: int, n: int, outcome: Outcome) -> None:
        """One speaks of an attempt that is over, or no longer its own, while the next one is under way."""
        overtaken = self.overtaken()
        self.settle(by, [(overtaken[-1 - n % len(overtaken)], outcome)], None)

    @precondition(lambda self: self.held())
    @rule(by=server, dead=server, outcome=st.sampled_from([LOST, replace(LOST, retryable=False), Interrupted()]))
    def take_over(self, by: int, dead: int, outcome: Outcome) -> None:
        """Another server says how all ended that one held."""
        held: list[Task] = self.run(by, Store.held_by, self.world.owners[dead])
        rows = [row for row in self.twin.rows.values() if row["owner"] == self.world.owners[dead]]
        assert sorted(task.id for task in held) == sorted(row["id"] for row in rows)
        self.fences += held
        self.settle(by, [(task, outcome) for task in held], None)

    @precondition(lambda self: self.held())
    @rule(by=server, n=nth, any_fence=st.booleans(), late=st.none() | st.sampled_from(OUTCOMES))
    def adopt(self, by: int, n: int, any_fence: bool, late: Outcome | None) -> None:
        """Another server goes on with it; the one that held it may have been thought dead, and speak `late`."""
        fences = self.fences if any_fence else self.held()
        task = fences[-1 - n % len(fences)]
        self.take(by, task)
        self.settle(by, [(task, late)] if late else [], None)

    @precondition(lambda self: self.fences)
    @rule(by=server, n=nth, value=st.integers(0, 9))
    def report(self, by: int, n: int, value: int) -> None:
        self.say_progress(by, self.fences[-1 - n % len(self.fences)], value)

    @precondition(lambda self: self.held())
    @rule(n=nth, back=st.sampled_from(GIVEN_BACK), meanwhile=st.sampled_from(MEANWHILE), outcome=outcome)
    def speak_late(self, n: int, back: Outcome | None, meanwhile: str, outcome: Outcome) -> None:
        """An attempt is thought lost: another has it, or its own server begins the next, and then speaks of it."""
        held = self.held()
        task = held[-1 - n % len(held)]
        by = self.world.owners.index(task.owner)
        if back:
            self.settle(1 - by, [(task, back)], None)
        else:
            self.take(1 - by, task)
        row = self.twin.rows.get(task.id)
        if row and not self.retry_is_refused(row):
            self.do(task.id, Store.retry, None, "me")
            self.twin.retry(row, None)
        elif row and row["status"] == "waiting" and meanwhile == "delete" and not self.twin.is_needed(row):
            self.do(task.id, Store.delete, False, "me")
            self.twin.forget(row)
        elif row and row["status"] == "waiting" and meanwhile == "pause":
            for paused in (True, False):
                self.do(task.id, Store.edit, {"paused": paused}, None, "me")
                self.twin.move(row, row["status"], paused=paused)
                row["events"].append("updated")
        self.advance(600)
        self.promote(1 - by)
        self.claim(by, TASKS, 0)
        if meanwhile == "report":
            self.say_progress(by, task, 1)
        self.settle(by, [(task, outcome)], None)

    @precondition(lambda self: len(self.twin.rows) < TASKS)
    @rule(by=server, kind=kind, free=st.sampled_from([1, 2]), expires=st.booleans(), group=group)
    def claim_stale(self, by: int, kind: str, free: int, expires: bool, group: str | None) -> None:
        """What is in the ready index may run no more, expired or too early by a clock that was set back."""
        self.add(kind, Priority.HIGH, *((None, 30) if expires else (0, None)), None, group)
        self.advance(30 if expires else -1)
        self.claim(by, free, 0)

    # Time.

    @rule(by=server)
    def promote(self, by: int) -> None:
        assert self.run(by, Store.promote) == self.twin.promote(by)

    @precondition(lambda self: any(row["error"] for row in self.twin.rows.values()))
    @rule(by=server)
    def go_on(self, by: int) -> None:
        """What gets a task that has failed under way again."""
        self.advance(600)
        self.promote(by)
        self.claim(by, 2, 0)

    @rule(seconds=st.sampled_from([0.001, 3, 600, HOUR, DAY, 9 * DAY, -1, -HOUR, -DAY]))
    def jump(self, seconds: float) -> None:
        self.advance(seconds)

    @precondition(lambda self: len(self.twin.rows) < TASKS)
    @rule(by=server, minutes=st.sampled_from([0, 9, 10, 21]), kind=kind, priority=priority, group=group)
    def age(self, by: int, minutes: int, kind: str, priority: Priority, group: str | None) -> None:
        """What waits has waited for so long."""
        self.add(kind, priority, None, None, None, group)
        self.advance(60 * minutes)
        self.run(by, Store.age)
        self.twin.age()

    @precondition(lambda self: any(row["finished_at"] is not None for row in self.twin.rows.values()))
    @rule(keep=st.sampled_from([HOUR, DAY]), keep_failed=st.sampled_from([HOUR, 3 * DAY]))
    def purge(self, keep: int, keep_failed: int) -> None:
        ages = 1000 * keep, 1000 * keep_failed
        assert self.run(0, Store.purge, *ages) == self.twin.purge(*ages)

    # What must hold after each step.

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        self.twin.commit()
        rows, starts, events, counts = self.world.read(everything)
        wanted = {row["id"]: row for row in self.twin.rows.values()}
        assert rows == {i: {name: row[name] for name in Task.__dataclass_fields__} for i, row in wanted.items()}
        assert starts == {row["seq"]: row["starts"] for row in wanted.values() if row["starts"]}
        assert events == {row["seq"]: row["events"] for row in wanted.values() if row["events"]}
        tally: dict[tuple[str, int], int] = {}
        for row in rows.values():
            tally[row["status"], row["priority"]] = tally.get((row["status"], row["priority"]), 0) + 1
        assert counts == tally

    @invariant()
    def of_a_key_no_more_work_than_may_and_nobody_waits_for_nothing(self) -> None:
        rows = self.world.read(everything)[0].values()
        for key in ("a", "b"):
            of_key = [row for row in rows if row["concurrency_key"] == key]
            room = LIMITS.get(key, 1) - sum(row["status"] == "working" for row in of_key)
            assert room >= 0
            for held in (row for row in of_key if row["held"]):
                assert sum(row["ready"] and row["kind"] == held["kind"] for row in of_key) == room

    @invariant()
    def what_is_gone_is_remembered(self) -> None:
        assert dict(self.world.read(lambda db: db.execute("SELECT id, at FROM removed").fetchall())) == self.twin.gone

    @invariant()
    def what_is_completed_stays_so(self) -> None:
        for task_id, row in self.twin.completed.items():
            assert self.twin.rows[task_id] == row

    @invariant()
    def a_task_starts_as_often_as_it_may(self) -> None:
        for row in self.twin.rows.values():
            assert len(row["starts"]) == row["attempt"] <= row["max_attempts"] + row["interruptions"]
            assert row["interruptions"] <= 5

    # Helpers.

    def run(self, by: int, method: Callable[..., Any], *arguments: Any) -> Any:
        self.twin.commit()  # what the call before has done
        return self.world.run(method, self.world.stores[by], *arguments)

    def advance(self, seconds: float) -> None:
        self.twin.commit()
        self.world.clock.advance(seconds)

    def at(self, seconds: int | None) -> int | None:
        return None if seconds is None else self.twin.now + 1000 * seconds

    def id(self, n: int) -> str | None:
        """A task that is stored, or now and then any one."""
        ids = list(self.twin.rows) if n < 10 and self.twin.rows else self.ids
        return ids[-1 - n % len(ids)] if ids else None

    def do(self, task_id: str, method: Callable[..., Any], *arguments: Any) -> None:
        self.run(0, method, task_id, *arguments)

    def take(self, by: int, task: Task) -> None:
        mine = self.run(by, Store.adopt, task, self.world.owners[by])
        row = self.twin.held(task)
        assert (mine is None) == (row is None)
        if row and mine:
            self.twin.move(row, "working", owner=self.world.owners[by])
            row["events"].append("adopted")
            self.fences.append(mine)

    def say_progress(self, by: int, task: Task, value: int) -> None:
        self.run(by, Store.report, [(task, Progress(value, 9, "so far"))])
        if row := self.twin.held(task):
            row |= {"progress": Progress(value, 9, "so far"), "updated_at": self.twin.now}
            self.twin.touch(row)

    def held(self) -> list[Task]:
        return [task for task in self.fences if self.twin.held(task)]

    def overtaken(self) -> list[Task]:
        """Fences of old attempts and old owners of what is working now."""
        working = {row["id"] for row in self.twin.rows.values() if row["status"] == "working"}
        return [task for task in self.fences if task.id in working and not self.twin.held(task)]

    def change(self, n: int, refused: Callable[[Row], bool], method: Callable[..., Any], *arguments: Any) -> Row | None:
        """Do what a client asks with some task; its row in the model if the store must do it and has."""
        task_id = self.id(n)
        if task_id is None:
            return None
        row = self.twin.rows.get(task_id)
        if row is None or refused(row):
            with pytest.raises(NotFound if row is None else Conflict):
                self.run(n % SERVERS, method, task_id, *arguments)
            return None
        self.run(n % SERVERS, method, task_id, *arguments)
        return row

    def settle(self, by: int, ends: Sequence[tuple[Task, Outcome]], started_at: int | None) -> None:
        once = {(task.id, task.attempt, task.owner): (task, outcome, started_at) for task, outcome in ends}
        lost: list[Task] = self.run(by, Store.settle_all, list(once.values()))
        rows = self.world.read(everything)[0]
        for task, outcome, _ in once.values():
            run_at = rows.get(task.id, {}).get("run_at")
            assert self.twin.settle(task, outcome, started_at, run_at) == (task not in lost)


def prove(
    world: World, with_seed: int | None = None, *, shrink: bool = True, machine: type[RuleBasedStateMachine] = Machine
) -> None:
    """Any calls, EXAMPLES times; what the store does otherwise than the model is raised."""
    in_this_world = type(machine.__name__, (machine,), {"world": world})
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        in_this_world if with_seed is None else seed(with_seed)(in_this_world),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=phases,
            suppress_health_check=checks,
            print_blob=shrink,
        ),
    )
