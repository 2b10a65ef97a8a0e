"""The store against a model in plain dicts: any calls by two servers, with any fence ever held, by any clock.

The model repeats what DESIGN promises and imports none of the rules. A bigger run, and one that can be repeated:
`MODEL_EXAMPLES=20000 MODEL_STEPS=100 pytest tests/test_model.py --hypothesis-seed=1`.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fakes import Clock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taskorch.database import Database, open_database
from taskorch.errors import Conflict, NotFound
from taskorch.rows import SELECT, from_row
from taskorch.store import Store
from taskorch.task import (
    Cancelled,
    Completed,
    Error,
    Failed,
    Interrupted,
    NewTask,
    Outcome,
    Priority,
    Progress,
    Reason,
    Task,
)

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "120"))
STEPS = int(os.environ.get("MODEL_STEPS", "50"))
HOUR, DAY = 3600, 86_400  # seconds
KINDS = ("echo", "sleep")
SERVERS = 2
TASKS = 6  # at once: a run that comes back to the same task again and again meets more

Row = dict[str, Any]

LOST = Failed(Reason.WORKER_LOST, "gone")
OUTCOMES: list[Outcome] = [
    Completed(1),
    Completed(None),
    Completed({"a": 1}, '{"a":1}'),
    Failed(Reason.ERROR, "boom"),
    Failed(Reason.EXIT_CODE, "no use", 3, retryable=False),
    Cancelled("ended"),
    Interrupted("the server stopped"),
    LOST,
]
nth = st.integers(0, 12)  # of the newest, the oldest of few being as likely as the newest of many
server = st.integers(0, SERVERS - 1)
seconds = st.none() | st.sampled_from([-HOUR, -1, 0, 1, 30, HOUR, 2 * DAY])
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


class World:
    """Two connections to one file in one event loop, and the owner numbers of the servers on them."""

    def __init__(self, portal: BlockingPortal, databases: Sequence[Database]) -> None:
        self.clock = Clock()
        self._portal = portal
        self._databases = databases
        self.stores = [Store(database, self.clock) for database in databases]
        self.owners = [self.run(store.register, str(n), n, "1", KINDS) for n, store in enumerate(self.stores)]

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._portal.call(call, *arguments)

    def read(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        return self.run(self._databases[0].read, query)

    def clear(self) -> None:
        """Nothing is left of the run before, neither in the file nor in the stores."""
        self.clock.now = Clock().now
        self.run(self._databases[0].write, lambda tx: tx.execute("DELETE FROM tasks"))
        self.run(self._databases[0].write, lambda tx: tx.execute("UPDATE counts SET tasks = 0"))
        self.stores = [Store(database, self.clock) for database in self._databases]


class Twin:
    """What the store must hold, and what each of its methods must do: rows by id, with `starts` and `events`."""

    def __init__(self, clock: Clock) -> None:
        self.rows: dict[str, Row] = {}
        self.completed: dict[str, Row] = {}  # as they were when they were completed
        self._clock = clock
        self._looked = [1 << 62] * SERVERS  # when each server last looked for due tasks; at first it cannot know

    @property
    def now(self) -> int:
        return self._clock.now

    def may_run(self, row: Row) -> bool:
        due = row["run_at"] is None or row["run_at"] <= self.now
        return row["status"] == "waiting" and due and not row["paused"] and not self.expired(row)

    def expired(self, row: Row) -> bool:
        return row["status"] == "waiting" and row["expires_at"] is not None and row["expires_at"] <= self.now

    def held(self, task: Task) -> Row | None:
        row = self.rows.get(task.id, {"status": "deleted"})
        held = (row["status"], row.get("attempt"), row.get("owner"))
        return row if held == ("working", task.attempt, task.owner) else None

    def ready(self, kind: str) -> list[Row]:
        """The ready index of a kind, as a claim walks it."""
        return sorted((row for row in self.rows.values() if row["ready"] and row["kind"] == kind), key=_best)

    # Moves. Each is only called where it is allowed.

    def move(self, row: Row, status: str, **fields: Any) -> None:
        row |= {"status": status, "version": row["version"] + 1, "updated_at": self.now} | fields
        row["ready"] = self.may_run(row)
        if status == "completed":
            self.completed[row["id"]] = dict(row)

    def claim(self, owner: int, kinds: Mapping[str, int], free: int) -> list[str]:
        found: list[Row] = []
        for kind, more in kinds.items():
            while stale := [row for row in self.ready(kind)[: free + more] if not self.may_run(row)]:
                for row in stale:
                    self.refile(row)
            found += self.ready(kind)[: free + more]
        claimed: list[Row] = []
        for row in sorted(found, key=_best):
            room = len(claimed) < free + kinds[row["kind"]] and _starts_left(row) > 1
            claimed += [row] if len(claimed) < free or room else []
        for row in claimed:
            begun = {"attempt": row["attempt"] + 1, "owner": owner, "started_at": self.now}
            self.move(row, "working", **begun, error=None, progress=None)
            row["starts"].append([row["attempt"], owner, None, None])
        return [row["id"] for row in claimed]

    def settle(self, task: Task, outcome: Outcome, started_at: int | None, backoff: int | None) -> bool:
        """False: refused. `backoff`: when the store says that it runs again, checked here."""
        row = self.held(task)
        if row is None:
            return False
        began = {"owner": None, "started_at": row["started_at"] if started_at is None else started_at}
        end = began | {"finished_at": self.now}
        cancelled = isinstance(outcome, Cancelled) or row["cancel_requested_at"] is not None
        wait = began | {"progress": None}
        row["starts"][-1][2:] = [_name(outcome), _reason(outcome)]
        match outcome:
            case Completed(result):
                self.move(row, "completed", **end, result=result, progress=None, error=None)
            case _ if cancelled:
                row["starts"][-1][2:] = ["cancelled", "user"]
                self.move(row, "cancelled", **end, error="user")
            case Failed(reason, retryable=True) if _starts_left(row) > 0:
                longest = min(300_000, 2_000 * 2 ** (row["attempt"] - 1))
                assert backoff is not None and longest / 2 - 1 <= backoff - self.now <= longest
                self.move(row, "waiting", **wait, run_at=backoff, error=str(reason))
            case Failed(reason):
                self.move(row, "failed", **end, error=str(reason))
            case _ if row["interruptions"] == 5:
                self.move(row, "failed", **end, error="poison")
            case _:
                given_back = {"interruptions": row["interruptions"] + 1, "run_at": None}
                self.move(row, "waiting", **wait, **given_back, error="interrupted")
        if row["delete_requested"]:
            self.forget(row)
        return True

    def cancel(self, row: Row, reason: str) -> None:
        if row["status"] == "waiting":
            self.move(row, "cancelled", finished_at=self.now, paused=False, error="user")
            row["events"].append("cancelled")
        elif row["status"] == "working" and row["cancel_requested_at"] is None:
            self.move(row, "working", cancel_requested_at=self.now, cancel_reason=reason)
            row["events"].append("cancel_requested")

    def retry(self, row: Row, run_at: int | None) -> None:
        expires_at = row["expires_at"]
        if expires_at is not None and expires_at <= max(self.now, run_at or 0):
            expires_at = None
        most = max(row["max_attempts"], row["attempt"] - row["interruptions"] + 1)
        anew = dict.fromkeys(("finished_at", "progress", "error", "cancel_requested_at", "cancel_reason"))
        self.move(row, "waiting", **anew, run_at=run_at, expires_at=expires_at, max_attempts=most, paused=False)
        row["events"].append("retried")

    def refile(self, row: Row) -> None:
        """It leaves or enters the ready index, or fails as it has expired."""
        if self.expired(row):
            self.move(row, "failed", finished_at=self.now, paused=False, error="expired")
            row["events"].append("expired")
        row["ready"] = self.may_run(row)

    def promote(self, by: int) -> int | None:
        """When it is to be called next. A retry whose backoff an advanced clock has reckoned waits as long from now."""
        set_back, self._looked[by] = self.now < self._looked[by], self.now
        for row in self.rows.values() if set_back else ():
            backs_off = row["status"] == "waiting" and not row["ready"] and not row["paused"] and row["error"]
            if backs_off and row["run_at"] and row["updated_at"] > self.now < row["run_at"]:
                wait = row["run_at"] - row["updated_at"]
                if wait <= 300_000:
                    row |= {"run_at": min(row["run_at"], self.now + max(0, wait)), "updated_at": self.now}
        for row in self.rows.values():
            if self.expired(row) or (not row["paused"] and row["run_at"] is not None and self.may_run(row)):
                self.refile(row)
        waiting = [row for row in self.rows.values() if row["status"] == "waiting"]
        due = [row["run_at"] for row in waiting if not row["ready"] and not row["paused"]]
        return min((at for at in [*due, *(row["expires_at"] for row in waiting)] if at is not None), default=None)

    def forget(self, row: Row) -> None:
        del self.rows[row["id"]]
        self.completed.pop(row["id"], None)

    def edit_is_refused(self, row: Row, changes: Row, version: int | None) -> bool:
        """Whether its status, its version, or what it has come to forbids it."""
        fixed = set(changes) - {"priority", "labels"}
        new = row | changes
        never = {"run_at", "expires_at"} & set(changes) and new["run_at"] and new["expires_at"]
        return bool(
            row["finished_at"] is not None
            or (version is not None and version != row["version"])
            or (row["status"] == "working" and fixed)
            or ("payload" in changes and row["attempt"] > 0)
            or ("max_attempts" in changes and _starts_left(new) <= 0)
            or (never and new["expires_at"] <= new["run_at"])
        )


def _best(row: Row) -> tuple[int, int]:
    return -row["rank"], row["seq"]


def _starts_left(row: Row) -> int:
    return row["max_attempts"] + row["interruptions"] - row["attempt"]


def _name(outcome: Outcome) -> str:
    return type(outcome).__name__.lower()


def _reason(outcome: Outcome) -> str | None:
    return (
        str(outcome.reason)
        if isinstance(outcome, Failed)
        else None
        if isinstance(outcome, Completed)
        else "interrupted"
    )


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
    @rule(kind=st.sampled_from(KINDS), priority=st.sampled_from(Priority), run_at=seconds, expires_at=seconds)
    def add(self, kind: str, priority: Priority, run_at: int | None, expires_at: int | None) -> None:
        times = {"run_at": self.at(run_at), "expires_at": self.at(expires_at)}
        new = NewTask(kind, {"n": 1}, max_attempts=2, timeout_seconds=60.0, priority=priority, **times)
        row: Row = dict.fromkeys(Task.__dataclass_fields__) | {"starts": [], "events": [], "attempt": 0}
        row |= {"kind": kind, "payload": {"n": 1}, "priority": priority, "rank": int(priority), "interruptions": 0}
        row |= {"max_attempts": 2, "timeout_seconds": 60.0, "on_server_exit": "survive", "labels": (), "paused": False}
        row |= {"created_at": self.twin.now, "delete_requested": False, "version": 0} | times
        row["seq"] = 1 + max((row["seq"] for row in self.twin.rows.values()), default=0)
        row["id"] = self.run(0, Store.add, new).id
        self.twin.move(row, "waiting")
        self.twin.rows[row["id"]] = row
        self.ids.append(row["id"])

    @rule(n=nth, changes=changes, behind=st.sampled_from([None, None, 0, 1]))
    def edit(self, n: int, changes: Row, behind: int | None) -> None:
        changes = changes | {name: self.at(changes[name]) for name in ("run_at", "expires_at") if name in changes}
        row = self.twin.rows.get(self.id(n) or "", {"version": 1})
        version = None if behind is None else row["version"] - behind
        arguments = (changes, version, "me")
        if self.change(n, lambda row: self.twin.edit_is_refused(row, changes, version), Store.edit, *arguments):
            rank = {"rank": int(changes["priority"])} if "priority" in changes else {}
            self.twin.move(row, row["status"], **changes, **rank)
            row["events"].append("updated")

    @rule(n=nth)
    def cancel(self, n: int) -> None:
        if row := self.change(n, lambda row: False, Store.cancel, "no more", "me"):
            self.twin.cancel(row, "cancelled by me: no more")

    @rule(n=nth, run_at=seconds)
    def retry(self, n: int, run_at: int | None) -> None:
        at = self.at(run_at)
        if row := self.change(n, lambda row: row["status"] not in ("failed", "cancelled"), Store.retry, at, "me"):
            self.twin.retry(row, at)

    @rule(n=nth, confirm=st.booleans())
    def delete(self, n: int, confirm: bool) -> None:
        row = self.change(n, lambda row: row["status"] == "working" and not confirm, Store.delete, confirm, "me")
        if row and row["status"] != "working":
            self.twin.forget(row)
        elif row:
            if row["cancel_requested_at"] is None:
                self.twin.cancel(row, "deleted while working")
            else:
                row["events"].append("cancel_requested")
            row |= {"delete_requested": True, "updated_at": self.twin.now}

    # Workers.

    @rule(by=server, free=st.sampled_from([1, 2, 0]), ahead=st.integers(0, 2))
    def claim(self, by: int, free: int, ahead: int) -> None:
        kinds = {"echo": ahead, "sleep": 0}
        claimed = self.run(by, Store.claim, self.world.owners[by], kinds, free)
        assert [task.id for task in claimed] == self.twin.claim(self.world.owners[by], kinds, free)
        self.fences += claimed

    @rule(by=server, ends=st.lists(st.tuples(nth, st.sampled_from(OUTCOMES)), min_size=1, max_size=3), late=seconds)
    def settle_any(self, by: int, ends: list[tuple[int, Outcome]], late: int | None) -> None:
        """Whoever holds a fence, or ever held it, says how it ended: several ends in one transaction."""
        chosen = [(self.fences[-1 - n % len(self.fences)], outcome) for n, outcome in ends if self.fences]
        self.settle(by, chosen, self.at(late))

    @precondition(lambda self: self.held())
    @rule(by=server, n=nth, outcome=st.sampled_from(OUTCOMES))
    def settle_held(self, by: int, n: int, outcome: Outcome) -> None:
        """The usual thing: one that is held ends."""
        held = self.held()
        self.settle(by, [(held[-1 - n % len(held)], outcome)], None)

    @precondition(lambda self: self.overtaken())
    @rule(by=server, n=nth, outcome=st.sampled_from(OUTCOMES))
    def settle_overtaken(self, by: int, n: int, outcome: Outcome) -> None:
        """One speaks of an attempt that is over, or no longer its own, while the next one is under way."""
        overtaken = self.overtaken()
        self.settle(by, [(overtaken[-1 - n % len(overtaken)], outcome)], None)

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
        mine = self.run(by, Store.adopt, task, self.world.owners[by])
        row = self.twin.held(task)
        assert (mine is None) == (row is None)
        if row and mine:
            self.twin.move(row, "working", owner=self.world.owners[by])
            row["events"].append("adopted")
            self.fences.append(mine)
            self.settle(by, [(task, late)] if late else [], None)

    @rule(by=server, n=nth, value=st.integers(0, 9))
    def report(self, by: int, n: int, value: int) -> None:
        if self.fences:
            task = self.fences[-1 - n % len(self.fences)]
            self.run(by, Store.report, [(task, Progress(value, 9, "so far"))])
            if row := self.twin.held(task):
                row |= {"progress": Progress(value, 9, "so far"), "updated_at": self.twin.now}

    # Time.

    @rule(by=server)
    def promote(self, by: int) -> None:
        assert self.run(by, Store.promote) == self.twin.promote(by)

    @precondition(lambda self: any(row["error"] for row in self.twin.rows.values()))
    @rule(by=server)
    def go_on(self, by: int) -> None:
        """What gets a task that has failed under way again."""
        self.world.clock.advance(600)
        self.promote(by)
        self.claim(by, 2, 0)

    @rule(seconds=st.sampled_from([0.001, 3, 600, HOUR, DAY, 9 * DAY, -1, -HOUR, -DAY]))
    def jump(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule(keep=st.sampled_from([HOUR, DAY]), keep_failed=st.sampled_from([HOUR, 3 * DAY]))
    def purge(self, keep: int, keep_failed: int) -> None:
        def is_old(row: Row) -> bool:
            kept = keep_failed if row["status"] == "failed" else keep
            return row["finished_at"] is not None and row["finished_at"] < self.twin.now - 1000 * kept

        old = [row for row in self.twin.rows.values() if is_old(row)]
        assert self.run(0, Store.purge, 1000 * keep, 1000 * keep_failed) == len(old)
        for row in old:
            self.twin.forget(row)

    # What must hold after each step.

    @invariant()
    def the_store_is_as_the_model(self) -> None:
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
        return self.world.run(method, self.world.stores[by], *arguments)

    def at(self, seconds: int | None) -> int | None:
        return None if seconds is None else self.twin.now + 1000 * seconds

    def id(self, n: int) -> str | None:
        """A task that is stored, or now and then any one."""
        ids = list(self.twin.rows) if n < 10 and self.twin.rows else self.ids
        return ids[-1 - n % len(ids)] if ids else None

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


def everything(db: sqlite3.Connection) -> tuple[dict[str, Row], dict[int, Any], dict[int, Any], dict[Any, int]]:
    """All rows by id (of an error its reason alone), the attempts and events of each, and the counts."""
    starts, events = dict[int, Any](), dict[int, Any]()
    for seq, *start in db.execute("SELECT task, attempt, owner, outcome, reason FROM attempts ORDER BY 1, 2"):
        starts.setdefault(seq, []).append(start)
    for seq, event in db.execute("SELECT task, event FROM events ORDER BY id"):
        events.setdefault(seq, []).append(event)
    counts = {(status, priority): n for status, priority, n in db.execute("SELECT * FROM counts WHERE tasks <> 0")}
    return {row["id"]: row for row in map(_as_row, db.execute(SELECT))}, starts, events, counts


def _as_row(values: Sequence[Any]) -> Row:
    row = dict(vars(from_row(values)))
    error: Error | None = row["error"]
    return row | {"status": str(row["status"]), "error": error and str(error.reason)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with start_blocking_portal() as portal, ExitStack() as stack:
        path = tmp_path / "taskorch.db"
        opened = [stack.enter_context(portal.wrap_async_context_manager(open_database(path))) for _ in range(SERVERS)]
        yield World(portal, opened)


def test_the_store_does_what_the_model_does(world: World) -> None:
    Machine.world = world
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=checks,
            print_blob=True,
        ),
    )


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
