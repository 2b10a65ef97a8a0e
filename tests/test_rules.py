"""What a task may become: every move from every status, and no sequence of moves that breaks a task."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakes import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from taskorch.domain import readiness, rules
from taskorch.domain.errors import Conflict
from taskorch.domain.task import (
    Cancelled,
    Completed,
    Error,
    Failed,
    Interrupted,
    NewTask,
    Outcome,
    Phase,
    Priority,
    Progress,
    Reason,
    Status,
    Task,
)
from taskorch.storage import schema
from taskorch.storage.database import Transaction
from taskorch.storage.rows import insert_all, load, save, to_values

NOW = 1_800_000_000_000
ME, PEER = 1, 2
LOST = Failed(Reason.WORKER_LOST, "gone")
FINAL = Failed(Reason.ERROR, "no use", retryable=False)


def waiting(**wishes: Any) -> Task:
    new = NewTask(**{"kind": "echo", "payload": {"n": 1}, "max_attempts": 3, "timeout_seconds": 60.0} | wishes)
    return rules.create(new, seq=1, task_id="t0123456789abcdef", now=NOW)


def working(**wishes: Any) -> Task:
    return rules.claim(waiting(**wishes), ME, NOW)


def in_status(status: Status) -> Task:
    match status:
        case Status.WAITING:
            return waiting()
        case Status.WORKING:
            return working()
        case Status.COMPLETED:
            return rules.settle(working(), Completed({"n": 1}), NOW)
        case Status.FAILED:
            return rules.settle(working(), FINAL, NOW)
        case Status.CANCELLED:
            return rules.settle(rules.cancel(working(), "enough", NOW), Cancelled(), NOW)


def times_out(task: Task) -> Task:
    return rules.settle(task, Failed(Reason.TIMEOUT, "too slow"), NOW)


# The table of the design, every move from every status. None: it may be deleted now; "": refused.

MOVES: dict[str, Callable[[Task, int], Task | None]] = {
    "claim": lambda task, now: rules.claim(task, PEER, now),
    "complete": lambda task, now: rules.settle(task, Completed(1), now),
    "fail": lambda task, now: rules.settle(task, FINAL, now),
    "fail, retryable": lambda task, now: rules.settle(task, LOST, now),
    "end cancelled": lambda task, now: rules.settle(task, Cancelled("killed 3 processes"), now),
    "interrupt": lambda task, now: rules.settle(task, Interrupted(), now),
    "adopt": lambda task, now: rules.adopt(task, PEER, now),
    "report": lambda task, now: rules.report(task, Progress(1, 2), now),
    "cancel": lambda task, now: rules.cancel(task, "enough", now),
    "expire": rules.expire,
    "retry": lambda task, now: rules.retry(task, None, now),
    "edit": lambda task, now: rules.edit(task, {"labels": ("a",)}, None, now),
    "file": readiness.file,
    "delete": lambda task, now: rules.request_delete(task, False, now),
    "delete, confirmed": lambda task, now: rules.request_delete(task, True, now),
}

TABLE = {
    #                     waiting      working      completed    failed       cancelled
    "claim": ("working", "", "", "", ""),
    "complete": ("", "completed", "", "", ""),
    "fail": ("", "failed", "", "", ""),
    "fail, retryable": ("", "waiting", "", "", ""),
    "end cancelled": ("", "cancelled", "", "", ""),
    "interrupt": ("", "waiting", "", "", ""),
    "adopt": ("", "working", "", "", ""),
    "report": ("", "working", "", "", ""),
    "cancel": ("cancelled", "working", "completed", "failed", "cancelled"),
    "expire": ("", "", "", "", ""),
    "retry": ("", "", "", "waiting", "waiting"),
    "edit": ("waiting", "working", "", "", ""),
    "file": ("waiting", "working", "completed", "failed", "cancelled"),
    "delete": (None, "", None, None, None),
    "delete, confirmed": (None, "working", None, None, None),
}


@pytest.mark.parametrize(
    ("move", "status", "becomes"),
    [(move, status, becomes) for move, row in TABLE.items() for status, becomes in zip(Status, row, strict=True)],
)
def test_every_move_from_every_status_does_what_the_design_says(move: str, status: Status, becomes: str | None) -> None:
    before = in_status(status)
    copy = dict(before.__dict__)
    if becomes == "":
        with pytest.raises(Conflict):
            MOVES[move](before, NOW)
    else:
        after = MOVES[move](before, NOW)
        assert (after and after.status) == becomes
        if after and after != before:
            assert after.version == before.version + (move != "report")
        if before.ended and becomes == before.status:
            assert after == before
    assert before.__dict__ == copy  # a rule makes a new task and leaves the old one as it is


def test_no_move_of_any_rule_leaves_completed() -> None:
    assert rules.MOVES[Status.COMPLETED] == set()
    assert rules.MOVES[Status.FAILED] == rules.MOVES[Status.CANCELLED] == {Status.WAITING}
    assert Status.COMPLETED not in rules.MOVES[Status.WAITING]


def test_a_waiting_task_fails_once_it_has_expired() -> None:
    task = waiting(expires_at=NOW + 1000)
    with pytest.raises(Conflict):
        rules.expire(task, NOW + 999)
    with pytest.raises(Conflict):
        rules.claim(task, ME, NOW + 1000)
    ended = rules.expire(task, NOW + 1000)
    assert ended.status is Status.FAILED
    assert ended.error and ended.error.reason is Reason.EXPIRED


def test_a_working_task_does_not_expire() -> None:
    with pytest.raises(Conflict):
        rules.expire(working(expires_at=NOW + 1000), NOW + 2000)


def test_a_task_that_expires_between_two_attempts_is_not_said_never_to_have_started() -> None:
    task = times_out(working(expires_at=NOW + 1000))
    ended = rules.expire(task, NOW + 1000)
    assert ended.error
    assert "again" in ended.error.message


# Starting


def test_a_task_that_is_not_due_cannot_be_claimed() -> None:
    task = waiting(run_at=NOW + 1000)
    assert not task.ready
    with pytest.raises(Conflict):
        rules.claim(task, ME, NOW + 999)
    assert rules.claim(task, ME, NOW + 1000).status is Status.WORKING


def test_a_paused_task_cannot_be_claimed_until_it_is_resumed() -> None:
    task = rules.edit(waiting(), {"paused": True}, None, NOW)
    assert not task.ready
    with pytest.raises(Conflict):
        rules.claim(task, ME, NOW)
    resumed = rules.edit(task, {"paused": False}, None, NOW)
    assert resumed.ready
    assert rules.claim(resumed, ME, NOW).attempt == 1


def test_a_task_that_has_expired_when_it_is_created_is_not_ready() -> None:
    assert not waiting(expires_at=NOW).ready


def test_an_attempt_starts_without_what_the_last_one_left() -> None:
    task = rules.report(working(), Progress(1, 2, "half"), NOW)
    again = times_out(task)
    assert (again.progress, again.error) == (None, Error(Reason.TIMEOUT, "too slow"))
    started = rules.claim(again, PEER, NOW + 10_000)
    assert (started.attempt, started.owner, started.error) == (2, PEER, None)
    assert started.started_at == NOW + 10_000


# How an attempt ends


def test_a_failure_that_may_be_retried_waits_for_its_backoff() -> None:
    after = times_out(working())
    assert after.run_at == NOW + readiness.backoff_ms(after.id, 1)
    assert not after.ready
    assert after.error == Error(Reason.TIMEOUT, "too slow")


@pytest.mark.parametrize("wait", [0, 1, 86_400_000])
def test_a_failure_that_says_when_to_try_again_waits_so_long_instead_of_its_backoff(wait: int) -> None:
    after = rules.settle(working(), Failed(Reason.ERROR, "busy", retry_after_ms=wait), NOW)
    assert (after.status, after.run_at, after.ready) == (Status.WAITING, NOW + wait, wait == 0)


def test_no_wish_to_try_again_grants_a_start() -> None:
    ended = rules.settle(working(max_attempts=1), Failed(Reason.ERROR, "busy", retry_after_ms=5), NOW)
    assert (ended.status, ended.run_at) == (Status.FAILED, None)


def test_the_last_start_that_fails_ends_the_task_and_crashes_count_as_starts() -> None:
    task = waiting(max_attempts=2)
    for _ in range(2):
        task = rules.settle(rules.claim(task, ME, NOW + 600_000), LOST, NOW)
    assert (task.status, task.attempt) == (Status.FAILED, 2)
    assert task.error and task.error.reason is Reason.WORKER_LOST


def test_a_failure_that_no_retry_can_help_ends_the_task_at_once() -> None:
    ended = rules.settle(working(), Failed(Reason.EXIT_CODE, "exit code 126", 126, retryable=False), NOW)
    assert ended.status is Status.FAILED
    assert ended.error == Error(Reason.EXIT_CODE, "exit code 126", 126)


def test_an_interrupted_attempt_does_not_count_and_its_number_is_not_used_again() -> None:
    given_back = rules.settle(working(max_attempts=1), Interrupted(), NOW)
    assert (given_back.status, given_back.ready, given_back.interruptions) == (Status.WAITING, True, 1)
    assert rules.starts_left(given_back) == 1
    assert rules.claim(given_back, ME, NOW).attempt == 2


def test_the_sixth_interruption_ends_a_task() -> None:
    task = waiting(max_attempts=1)
    for _ in range(5):
        task = rules.settle(rules.claim(task, ME, NOW), Interrupted(), NOW)
        assert task.status is Status.WAITING
    ended = rules.settle(rules.claim(task, ME, NOW), Interrupted(), NOW)
    assert (ended.status, ended.attempt) == (Status.FAILED, 6)
    assert ended.error and ended.error.reason is Reason.POISON


@pytest.mark.parametrize("outcome", [LOST, FINAL, Interrupted("stopped"), Cancelled("killed")])
def test_a_task_asked_to_stop_is_cancelled_however_its_attempt_ends(outcome: Outcome) -> None:
    ended = rules.settle(rules.cancel(working(), "by bob", NOW), outcome, NOW + 5)
    assert (ended.status, ended.finished_at) == (Status.CANCELLED, NOW + 5)
    assert ended.error and ended.error.reason is Reason.USER
    assert ended.error.message == f"by bob; {outcome.message}"


def test_work_that_completed_stays_completed_although_it_was_asked_to_stop() -> None:
    ended = rules.settle(rules.cancel(working(), "by bob", NOW), Completed(7), NOW)
    assert (ended.status, ended.result, ended.error) == (Status.COMPLETED, 7, None)


def test_work_that_began_after_its_claim_says_so() -> None:
    task = working()
    for outcome in (Completed(), FINAL, LOST, Interrupted(), Cancelled()):
        assert rules.settle(task, outcome, NOW + 9, NOW + 5).started_at == NOW + 5
        assert rules.settle(task, outcome, NOW + 9).started_at == NOW


def test_adopting_changes_the_owner_and_nothing_of_the_attempt() -> None:
    before = rules.cancel(working(), "by bob", NOW)
    after = rules.adopt(before, PEER, NOW + 1)
    assert changed(before, after) == {"owner", "updated_at", "version"}
    assert after.owner == PEER


# Cancelling, deleting


def test_cancelling_twice_keeps_the_first_reason() -> None:
    asked = rules.cancel(working(), "first", NOW)
    assert rules.cancel(asked, "second", NOW + 1) is asked
    assert (asked.cancel_reason, asked.cancel_requested_at) == ("first", NOW)


def test_a_waiting_task_is_cancelled_at_once() -> None:
    ended = rules.cancel(rules.edit(waiting(), {"paused": True}, None, NOW), "by bob", NOW + 1)
    assert (ended.status, ended.finished_at, ended.paused) == (Status.CANCELLED, NOW + 1, False)
    assert ended.error == Error(Reason.USER, "by bob")


def test_deleting_a_working_task_cancels_it_and_is_remembered() -> None:
    with pytest.raises(Conflict, match="confirm=true"):
        rules.request_delete(working(), False, NOW)
    after = rules.request_delete(working(), True, NOW + 1)
    assert after and after.delete_requested
    assert (after.status, after.cancel_requested_at) == (Status.WORKING, NOW + 1)
    asked = rules.cancel(working(), "first", NOW)
    later = rules.request_delete(asked, True, NOW + 5)
    assert later and (later.cancel_reason, later.updated_at) == ("first", NOW + 5)


# Retrying


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_retrying_grants_at_least_one_more_start_and_keeps_the_attempt_number(status: Status) -> None:
    before = in_status(status)
    after = rules.retry(before, None, NOW + 1)
    assert (after.status, after.ready, after.attempt) == (Status.WAITING, True, before.attempt)
    assert rules.starts_left(after) == max(1, rules.starts_left(before))
    assert (after.error, after.finished_at, after.cancel_requested_at, after.cancel_reason) == (None, None, None, None)
    assert rules.claim(after, ME, NOW + 1).attempt == before.attempt + 1


def test_retrying_later_waits_until_then() -> None:
    after = rules.retry(in_status(Status.FAILED), NOW + 1000, NOW)
    assert (after.ready, after.run_at) == (False, NOW + 1000)


@pytest.mark.parametrize(("run_at", "kept"), [(None, True), (NOW + 5000, True), (NOW + 9000, False)])
def test_a_retry_never_expires_before_it_may_start(run_at: int | None, kept: bool) -> None:
    expires_at = NOW + 6000
    before = rules.settle(working(expires_at=expires_at), FINAL, NOW)
    assert rules.retry(before, run_at, NOW).expires_at == (expires_at if kept else None)


def test_a_task_that_has_expired_can_be_retried() -> None:
    expired = rules.expire(waiting(expires_at=NOW + 1), NOW + 1)
    after = rules.retry(expired, None, NOW + 2)
    assert (after.ready, after.expires_at) == (True, None)


def test_a_task_about_to_be_deleted_is_not_retried() -> None:
    doomed = rules.request_delete(working(), True, NOW)
    assert doomed
    with pytest.raises(Conflict, match="deleted"):
        rules.retry(rules.settle(doomed, Cancelled(), NOW), None, NOW)


@pytest.mark.parametrize(
    ("status", "next_call"),
    [(Status.WAITING, "get_task"), (Status.WORKING, "wait_for_tasks"), (Status.COMPLETED, "Create a new task")],
)
def test_a_refused_retry_names_the_call_that_makes_sense(status: Status, next_call: str) -> None:
    with pytest.raises(Conflict, match=next_call):
        rules.retry(in_status(status), None, NOW)


# Editing

EDITS: dict[str, Any] = {
    "name": "other",
    "priority": Priority.HIGH,
    "payload": {"n": 2},
    "run_at": NOW + 1000,
    "expires_at": NOW + 5000,
    "max_attempts": 9,
    "timeout_seconds": 5.0,
    "labels": ("x", "y"),
    "paused": True,
}


@pytest.mark.parametrize("field", EDITS)
def test_a_waiting_task_can_be_edited_in_every_field_that_the_tool_offers(field: str) -> None:
    after = rules.edit(waiting(), {field: EDITS[field]}, 1, NOW + 1)
    assert getattr(after, field) == EDITS[field]
    assert (after.version, after.updated_at) == (2, NOW + 1)


@pytest.mark.parametrize("field", EDITS)
def test_a_working_task_keeps_what_its_attempt_was_started_with(field: str) -> None:
    if field in ("priority", "labels"):
        assert getattr(rules.edit(working(), {field: EDITS[field]}, None, NOW), field) == EDITS[field]
    else:
        with pytest.raises(Conflict, match=f"{field} cannot be changed now; labels and priority can"):
            rules.edit(working(), {field: EDITS[field], "priority": Priority.LOW}, None, NOW)


def test_editing_the_priority_moves_the_task_in_the_queue() -> None:
    assert rules.edit(waiting(), {"priority": Priority.HIGH}, None, NOW).rank == 2


def test_an_edit_of_an_old_version_is_refused_and_told_the_present_one() -> None:
    task = rules.edit(waiting(), {"name": "a"}, 1, NOW)
    with pytest.raises(Conflict, match="expected_version=2"):
        rules.edit(task, {"name": "b"}, 1, NOW)


def test_the_payload_of_a_task_that_has_started_is_fixed() -> None:
    with pytest.raises(Conflict, match="payload is fixed"):
        rules.edit(times_out(working()), {"payload": {}}, None, NOW)


def test_max_attempts_leaves_a_waiting_task_at_least_one_start() -> None:
    task = times_out(working())
    with pytest.raises(Conflict, match="at least 2"):
        rules.edit(task, {"max_attempts": 1}, None, NOW)
    assert rules.starts_left(rules.edit(task, {"max_attempts": 2}, None, NOW)) == 1
    given_back = rules.settle(working(), Interrupted(), NOW)
    assert rules.starts_left(rules.edit(given_back, {"max_attempts": 1}, None, NOW)) == 1


def test_editing_run_at_files_the_task_anew() -> None:
    later = rules.edit(waiting(), {"run_at": NOW + 1000}, None, NOW)
    assert not later.ready
    assert rules.edit(later, {"run_at": None}, None, NOW).ready


def test_an_edit_that_lets_a_task_expire_before_it_may_start_is_refused() -> None:
    with pytest.raises(Conflict, match="expire before it may start"):
        rules.edit(waiting(expires_at=NOW + 5000), {"run_at": NOW + 5000}, None, NOW)
    with pytest.raises(Conflict, match="expire before it may start"):
        rules.edit(waiting(run_at=NOW + 5000), {"expires_at": NOW + 5000}, None, NOW)


def test_a_task_whose_backoff_ends_after_it_expires_can_still_be_labelled() -> None:
    task = times_out(working(expires_at=NOW + 1))
    assert task.run_at and task.expires_at and task.run_at > task.expires_at
    assert rules.edit(task, {"labels": ("seen",)}, None, NOW).labels == ("seen",)


# Phases, backoff


@pytest.mark.parametrize(
    ("task", "phase"),
    [
        (waiting(), Phase.READY),
        (waiting(kind="unknown"), Phase.BLOCKED),
        (waiting(kind="unknown", run_at=NOW + 1), Phase.BLOCKED),
        (waiting(run_at=NOW + 1), Phase.SCHEDULED),
        (waiting(run_at=NOW), Phase.READY),
        (times_out(working()), Phase.BACKOFF),
        (rules.settle(working(), Interrupted(), NOW), Phase.READY),
        (rules.retry(in_status(Status.FAILED), NOW + 1, NOW), Phase.SCHEDULED),
        (rules.edit(waiting(), {"paused": True}, None, NOW), Phase.PAUSED),
        (working(), None),
        (rules.cancel(working(), "enough", NOW), Phase.CANCELLING),
        (in_status(Status.COMPLETED), None),
        (in_status(Status.FAILED), None),
        (in_status(Status.CANCELLED), None),
    ],
)
def test_a_task_says_why_it_waits(task: Task, phase: Phase | None) -> None:
    assert readiness.phase(task, NOW, {"echo"}) is phase


ids = st.from_regex(r"t[0-9a-hjkmnp-tv-z]{16}", fullmatch=True)


@given(ids, st.integers(1, 10_000))
def test_backoff_is_the_same_at_every_call_and_stays_within_its_bounds(task_id: str, attempt: int) -> None:
    whole = min(300_000, 2_000 * 2 ** (attempt - 1))
    waits = {readiness.backoff_ms(task_id, attempt) for _ in range(3)}
    assert len(waits) == 1
    assert whole / 2 <= waits.pop() <= whole


def test_backoff_is_the_same_in_every_version_and_process() -> None:
    assert [readiness.backoff_ms("t0123456789abcdef", n) for n in (1, 2, 10)] == [1471, 2119, 292669]


def test_a_failure_waits_longer_each_time() -> None:
    waits = [readiness.backoff_ms("t0123456789abcdef", attempt) for attempt in range(1, 9)]
    assert waits == sorted(waits)
    assert waits[0] < 2_000
    assert waits[-1] >= 128_000
    assert readiness.backoff_ms("t0123456789abcdef", 9) >= 150_000


def test_tasks_that_fail_together_do_not_come_back_together() -> None:
    waits = {readiness.backoff_ms(f"t{n:016d}", 3) for n in range(100)}
    assert len(waits) > 90
    assert max(waits) - min(waits) > 3_000  # of the 4 s that are drawn


# Any sequence


def changed(before: Task, after: Task) -> set[str]:
    return {name for name, value in before.__dict__.items() if after.__dict__[name] != value}


@contextmanager
def table() -> Iterator[Transaction]:
    """The real tables, in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=Transaction)
    schema.migrate(connection)
    try:
        yield connection
    finally:
        connection.close()


times = st.none() | st.integers(-5_000, 500_000)
outcomes = st.one_of(
    st.builds(Completed, st.none() | st.integers() | st.lists(st.text(max_size=3), max_size=2)),
    st.builds(
        Failed,
        st.sampled_from([Reason.EXIT_CODE, Reason.TIMEOUT, Reason.WORKER_LOST]),
        st.text(max_size=5),
        st.none() | st.integers(0, 255),
        st.booleans(),
    ),
    st.builds(Cancelled, st.text(max_size=5)),
    st.builds(Interrupted, st.text(max_size=5)),
)
values: dict[str, st.SearchStrategy[Any]] = {
    "name": st.text(max_size=5),
    "priority": st.sampled_from(Priority),
    "payload": st.dictionaries(st.text(max_size=3), st.integers() | st.booleans(), max_size=2),
    "run_at": times,
    "expires_at": st.integers(-5_000, 500_000),
    "max_attempts": st.integers(1, 3),
    "timeout_seconds": st.floats(0.1, 100),
    "labels": st.lists(st.text(max_size=3), max_size=2).map(tuple),
    "paused": st.booleans(),
}
edits = st.sampled_from(list(values)).flatmap(lambda name: st.fixed_dictionaries({name: values[name]}))
edits |= st.fixed_dictionaries({}, optional=values)


class AnyMoves:
    """One task, any moves, a clock that jumps forward; each row is saved in the real table and read back."""

    def __init__(self, tx: Transaction, run_at: int | None, expires_at: int | None, max_attempts: int) -> None:
        self.tx = tx
        self.clock = Clock()
        self.starts = 0
        wishes = {"run_at": self.when(run_at), "expires_at": self.when(expires_at), "max_attempts": max_attempts}
        self.task = waiting(**wishes)
        self.check_task(self.task)
        self.task = insert_all(tx, [(self.task, to_values(self.task))])[0]

    def when(self, offset: int | None) -> int | None:
        return None if offset is None else self.clock.now + offset

    def move(self, name: str, make: Callable[[Task, int], Task | None]) -> None:
        before = self.task
        try:
            after = make(before, self.clock.now)
        except Conflict as refused:
            assert before.id in str(refused)
            return
        if after is None:
            assert name == "delete"
            assert before.status is not Status.WORKING
            return
        self.starts += name == "claim"
        self.check_move(name, before, after)
        self.check_task(after)
        self.task = save(self.tx, before, after)
        assert load(self.tx, after.id) == after

    def check_move(self, name: str, before: Task, after: Task) -> None:
        moved = changed(before, after)
        if before.status is Status.COMPLETED:
            assert not moved
        if before.ended and moved:
            assert name == "retry"
        if before.status is Status.WORKING and after.status is not Status.WORKING:
            assert name == "settle"
        assert after.attempt == before.attempt + (name == "claim")
        assert after.version == before.version + (0 if name in ("report", "file") or not moved else 1) or (
            name == "delete" and before.cancel_requested_at is not None and after.version == before.version
        )
        if "ready" in moved and name != "file":
            assert after.version > before.version
        if before.cancel_requested_at is not None and name == "settle":
            assert after.status in (Status.COMPLETED, Status.CANCELLED)
        if before.cancel_requested_at is not None and after.status is Status.WORKING:
            assert after.cancel_requested_at == before.cancel_requested_at
        if before.attempt > 0:
            assert "payload" not in moved
        if name == "retry":
            assert rules.starts_left(after) == max(1, rules.starts_left(before))
        if name == "adopt":
            assert moved <= {"owner", "updated_at", "version"}
        if name == "file":
            assert moved <= {"ready"}
        assert not moved & {"seq", "id", "kind", "created_at", "on_server_exit"}

    def check_task(self, task: Task) -> None:
        assert task.attempt == self.starts
        assert task.attempt <= task.max_attempts + task.interruptions
        assert task.interruptions <= 5
        assert (task.owner is not None) == (task.status is Status.WORKING)
        assert (task.finished_at is not None) == task.ended
        assert not task.ready or readiness.may_run(task, self.clock.now)
        if task.status is Status.WAITING:
            assert rules.starts_left(task) >= 1
            assert task.cancel_requested_at is None
        if task.status in (Status.FAILED, Status.CANCELLED):
            assert task.error is not None
        if task.status is not Status.COMPLETED:
            assert task.result is None

    def go_on(self, outcome: Outcome) -> None:
        """What would come next: a start when it is due, the end of the attempt, a retry."""
        if self.task.status is Status.WAITING:
            self.clock.now = max(self.clock.now, self.task.run_at or 0)
            self.move("claim", lambda task, now: rules.claim(task, ME, now))
        elif self.task.status is Status.WORKING:
            self.move("settle", lambda task, now: rules.settle(task, outcome, now))
        else:
            self.move("retry", lambda task, now: rules.retry(task, None, now))

    def any_move(self, name: str) -> None:
        first = name.split(",")[0]
        settles = first in ("complete", "fail", "end cancelled", "interrupt")
        self.move("settle" if settles else first, MOVES[name])

    def edit(self, changes: dict[str, Any], version: int | None) -> None:
        absolute = {
            name: self.when(value) if name in ("run_at", "expires_at") else value for name, value in changes.items()
        }
        self.move("edit", lambda task, now: rules.edit(task, absolute, version, now))

    def retry(self, delay: int | None) -> None:
        self.move("retry", lambda task, now: rules.retry(task, self.when(delay), now))

    def file(self) -> None:
        self.move("file", readiness.file)
        assert self.task.ready == readiness.may_run(self.task, self.clock.now)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


steps = st.one_of(
    st.tuples(st.just("go_on"), st.sampled_from([LOST, Interrupted()])),
    st.tuples(st.just("go_on"), st.just(Interrupted())),
    st.tuples(st.just("go_on"), outcomes),
    st.tuples(st.just("any_move"), st.sampled_from(list(MOVES))),
    st.tuples(st.just("edit"), edits, st.none() | st.none() | st.integers(1, 9)),
    st.tuples(st.just("retry"), times),
    st.tuples(st.just("file")),
    st.tuples(st.just("pass_time"), st.sampled_from([0.001, 1, 3, 400])),
)


@settings(max_examples=200, deadline=None)
@given(times, st.none() | times, st.integers(1, 4), st.lists(steps, min_size=20, max_size=40))
def test_no_sequence_of_moves_breaks_a_task(
    run_at: int | None, expires_at: int | None, max_attempts: int, sequence: list[tuple[Any, ...]]
) -> None:
    with table() as tx:
        task = AnyMoves(tx, run_at, expires_at, max_attempts)
        for name, *arguments in sequence:
            getattr(task, name)(*arguments)
