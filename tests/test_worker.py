"""The pool with a real store: what is claimed and when, how attempts end, and what stopping leaves behind."""

import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from clients import settings
from fakes import Clock
from pools import Gate, Payload, Pool, Told, broken, ok, other_process, write_lock

from taskorch import engine
from taskorch.domain import rules
from taskorch.domain.errors import NonRetryable
from taskorch.domain.readiness import phase
from taskorch.domain.task import Completed, Outcome, Phase, Priority, Reason, Status, Task
from taskorch.storage import busy
from taskorch.storage.database import Database, Transaction
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work import handlers, pace, settler, worker
from taskorch.work.attempt import Attempt, Ending, Remains
from taskorch.work.handlers import Context
from taskorch.work.pace import AHEAD_MOST
from taskorch.work.peers import Peers

# What runs, and when.


async def test_a_task_runs_and_its_result_is_stored(pool: Pool) -> None:
    async with pool.running(work=ok):
        task = await pool.ended(await pool.add(payload={"a": [1, None, "é"]}))
    assert (task.status, task.result) == (Status.COMPLETED, {"a": [1, None, "é"]})
    assert await pool.attempts(task) == [(1, "completed", None)]


async def test_what_waited_before_the_worker_came_runs_too(pool: Pool) -> None:
    tasks = [await pool.add(payload={"n": n}) for n in range(5)]
    async with pool.running(work=ok):
        assert [(await pool.ended(task)).result for task in tasks] == [{"n": n} for n in range(5)]


async def test_a_higher_priority_overtakes_and_equals_keep_their_order(pool: Pool, gate: Gate) -> None:
    order: list[str] = []

    async def note(payload: Payload) -> None:
        order.append(payload["name"])

    async with pool.running(1, gate=gate.kind, note=note):
        await pool.add("gate")
        await gate.begun.wait()
        wanted = (("low", Priority.LOW), ("old", Priority.MEDIUM), ("new", Priority.MEDIUM), ("high", Priority.HIGH))
        tasks = [await pool.add("note", {"name": name}, priority=priority) for name, priority in wanted]
        gate.open.set()
        for task in tasks:
            await pool.ended(task)
    assert order == ["high", "old", "new", "low"]


async def test_nothing_starts_before_its_time(pool: Pool) -> None:
    async with pool.running(work=ok):
        later = await pool.add(run_at=pool.clock.now + 60_000)
        await pool.ended(await pool.add())
        assert (await pool.get(later)).status is Status.WAITING
        pool.clock.advance(60)
        await pool.store.promote()
        assert (await pool.ended(later)).status is Status.COMPLETED


async def test_a_delayed_task_starts_by_itself_when_it_is_due(
    database: Database, queries: Queries, tmp_path: Path
) -> None:
    pool = Pool(Store(database), queries, Clock(), tmp_path)
    async with pool.running(work=ok):
        await pool.ended(await pool.add())  # the worker sleeps by now
        task = await pool.ended(await pool.add(run_at=pool.store.now() + 150))
    assert task.run_at is not None
    assert task.started_at is not None
    assert task.started_at >= task.run_at


async def test_a_kind_that_this_worker_does_not_know_is_left_alone(pool: Pool) -> None:
    async with pool.running(work=ok):
        foreign = await pool.add("unheard_of")
        await pool.ended(await pool.add())
        assert (await pool.get(foreign)).status is Status.WAITING


async def test_an_engine_has_its_threads_take_turns_often_enough(tmp_path: Path) -> None:
    """With Python's 5 ms a handler that computes holds up the store at each statement."""
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        async with engine.running(settings(tmp_path)):
            assert sys.getswitchinterval() == pytest.approx(engine.SWITCH_SECONDS)
    finally:
        sys.setswitchinterval(usual)


async def test_two_slots_run_two_at_once_and_never_three(pool: Pool) -> None:
    running, most, both = 0, 0, anyio.Event()

    async def count(payload: Payload) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            both.set()
        await both.wait()
        await anyio.sleep(0.001)
        running -= 1

    async with pool.running(2, work=count):
        for task in [await pool.add() for _ in range(20)]:
            await pool.ended(task)
    assert most == 2


# Failing, and trying again.


async def test_a_failed_attempt_is_made_again_after_a_pause(pool: Pool) -> None:
    async def second_time(payload: Payload, context: Context) -> int:
        if context.task.attempt == 1:
            raise OSError("not yet")
        return context.task.attempt

    async with pool.running(work=second_time):
        task = await pool.backing_off(await pool.add())
        assert task.run_at is not None
        assert task.run_at > pool.clock.now
        assert task.error is not None
        assert (task.error.reason, task.error.message) == (Reason.ERROR, "OSError: not yet")
        assert phase(task, pool.clock.now, {"work"}) is Phase.BACKOFF
        await pool.pass_backoff()
        task = await pool.ended(task)
    assert (task.status, task.result, task.error) == (Status.COMPLETED, 2, None)
    assert await pool.attempts(task) == [(1, "failed", "error"), (2, "completed", None)]


async def test_a_task_that_always_fails_ends_with_its_last_error_and_every_attempt_on_record(pool: Pool) -> None:
    async def fail(payload: Payload, context: Context) -> None:
        raise ValueError(f"failure {context.task.attempt}")

    async with pool.running(work=fail):
        task = await pool.add(max_attempts=3)
        for n in (1, 2):
            await pool.seen(task, lambda task, n=n: task.status is Status.WAITING and task.attempt == n)
            await pool.pass_backoff()
        task = await pool.ended(task)
    assert task.error is not None
    assert (task.status, task.error.message) == (Status.FAILED, "ValueError: failure 3")
    history = await pool.queries.history(task)
    assert [row["message"] for row in history.attempts] == [f"ValueError: failure {n}" for n in (1, 2, 3)]


async def test_what_cannot_succeed_is_not_tried_again(pool: Pool) -> None:
    async def never(payload: Payload) -> None:
        raise NonRetryable("no such customer")

    async with pool.running(work=never):
        task = await pool.ended(await pool.add(max_attempts=3))
    assert task.error is not None
    assert (task.status, task.attempt, task.error.message) == (Status.FAILED, 1, "NonRetryable: no such customer")


async def test_a_time_limit_ends_the_attempt_and_counts_as_a_failure(pool: Pool) -> None:
    cleaned = anyio.Event()

    async def slow(payload: Payload, context: Context) -> str:
        if context.task.attempt == 2:
            return "in time"
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.set()
        return "never"

    async with pool.running(work=slow):
        task = await pool.backing_off(await pool.add(timeout_seconds=0.05))
        assert cleaned.is_set()
        assert task.error is not None
        assert (task.error.reason, task.error.message) == (Reason.TIMEOUT, "it ran longer than 0.05 s")
        await pool.pass_backoff()
        assert (await pool.ended(task)).result == "in time"


async def test_a_time_limit_that_a_handler_sets_for_itself_keeps_its_text(pool: Pool) -> None:
    async def own_limit(payload: Payload) -> None:
        with anyio.fail_after(0):
            await anyio.sleep_forever()

    async with pool.running(work=own_limit):
        task = await pool.ended(await pool.add(max_attempts=1))
    assert task.error is not None
    assert (task.error.reason, task.error.message) == (Reason.ERROR, "TimeoutError")


async def test_a_kind_that_breaks_costs_its_attempt_only(pool: Pool, told: Told) -> None:
    class Broken:
        in_process = True
        max_attempts = 1

        def check(self, payload: Mapping[str, Any]) -> None: ...

        async def inspect(self, task: Task) -> Remains:
            return Remains.NOTHING

        async def run(self, attempt: Attempt) -> Outcome | None:
            raise KeyError("a bug of ours")

    async with pool.running(1, work=Broken(), fine=ok):
        task = await pool.ended(await pool.add(max_attempts=1))
        await pool.ended(await pool.add("fine"))
    assert task.error is not None
    assert "internal error" in task.error.message
    assert "a bug of ours" not in task.error.message
    await told.line("its kind failed")


# Cancelling.


async def test_a_waiting_task_is_cancelled_at_once_and_never_starts(pool: Pool, gate: Gate) -> None:
    async with pool.running(1, gate=gate.kind, work=ok):
        await pool.add("gate")
        await gate.begun.wait()
        task = await pool.add()
        assert (await pool.store.cancel(task.id, "", "client")).status is Status.CANCELLED
        gate.open.set()
        await pool.ended(await pool.add())
    assert (await pool.get(task)).attempt == 0


async def test_a_task_that_backs_off_is_cancelled_at_once(pool: Pool) -> None:
    async with pool.running(work=broken):
        task = await pool.backing_off(await pool.add())
        assert (await pool.store.cancel(task.id, "", "client")).status is Status.CANCELLED
        await pool.pass_backoff()
        await pool.backing_off(await pool.add())
    assert (await pool.get(task)).attempt == 1


async def test_a_running_task_is_cancelled_after_it_has_cleaned_up(pool: Pool) -> None:
    begun, cleaning, clean = anyio.Event(), anyio.Event(), anyio.Event()

    async def careful(payload: Payload) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(5, shield=True):
                cleaning.set()
                await clean.wait()

    async with pool.running(work=careful):
        task = await pool.add()
        await begun.wait()
        await pool.store.cancel(task.id, "wrong file", "client")
        await cleaning.wait()
        held = await pool.get(task)
        assert phase(held, pool.clock.now, {"work"}) is Phase.CANCELLING
        clean.set()
        task = await pool.ended(task)
    assert task.error is not None
    assert (task.status, task.error.message) == (Status.CANCELLED, "cancelled by client: wrong file")
    assert await pool.attempts(task) == [(1, "cancelled", "user")]


async def test_a_cancel_request_beats_a_retry(pool: Pool) -> None:
    """The handler turns its cancellation into a failure, which would be tried again."""
    begun = anyio.Event()

    async def rude(payload: Payload) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            raise ValueError("clean-up failed") from error

    async with pool.running(work=rude):
        task = await pool.add(max_attempts=3)
        await begun.wait()
        await pool.store.cancel(task.id, "", "client")
        task = await pool.ended(task)
    assert (task.status, task.attempt) == (Status.CANCELLED, 1)


async def test_work_that_swallows_its_cancellation_and_completes_is_completed(pool: Pool) -> None:
    begun = anyio.Event()

    async def deaf(payload: Payload) -> str:
        begun.set()
        try:
            await anyio.sleep_forever()
        except BaseException:
            return "done all the same"

    async with pool.running(1, work=deaf, fine=ok):
        task = await pool.add()
        await begun.wait()
        await pool.store.cancel(task.id, "", "client")
        task = await pool.ended(task)
        assert (await pool.ended(await pool.add("fine"))).status is Status.COMPLETED
    assert (task.status, task.result) == (Status.COMPLETED, "done all the same")


async def test_a_cancel_from_another_process_ends_the_work(pool: Pool, gate: Gate, tmp_path: Path) -> None:
    async with (
        other_process(tmp_path, pool.clock) as other,
        pool.running(work=gate.kind),
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.store.follow_others)
        task = await pool.add()
        await gate.begun.wait()
        await other.cancel(task.id, "", "another window")
        assert (await pool.ended(task)).status is Status.CANCELLED
        group.cancel_scope.cancel()


async def test_a_cancel_that_shares_a_commit_with_what_frees_the_slot_comes_first(
    pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    started = anyio.Event()

    async def work(payload: Payload) -> None:
        started.set()
        await anyio.sleep_forever()

    async with pool.running(1, gate=gate.kind, work=work), anyio.create_task_group() as group:
        await pool.add("gate")
        await gate.begun.wait()
        task = await pool.add()
        with write_lock(tmp_path):
            group.start_soon(pool.add, "unheard_of")  # it waits for the lock, and the next two wait for it
            await anyio.wait_all_tasks_blocked()
            gate.open.set()
            await anyio.wait_all_tasks_blocked()
            group.start_soon(pool.store.cancel, task.id, "", "client")
            await anyio.wait_all_tasks_blocked()
        task = await pool.ended(task)
    assert (task.status, task.attempt) == (Status.CANCELLED, 0)
    assert not started.is_set()


# Claiming ahead.


@asynccontextmanager
async def blocked(pool: Pool, gate: Gate, **kinds: Any) -> AsyncIterator[list[str]]:
    """One slot that has run many short tasks, and now runs a long one of the same kind. Yields the names that ran."""
    ran: list[str] = []

    async def short(payload: Payload) -> None:
        if payload.get("long"):
            await gate(payload)
        elif name := payload.get("name"):
            ran.append(name)

    async with pool.running(1, short=short, **kinds):
        for task in [await pool.add("short") for _ in range(30)]:
            await pool.ended(task)
        for task in [await pool.add(name) for name in kinds]:
            await pool.ended(task)
        await pool.add("short", {"long": True}, priority=Priority.HIGH)
        await gate.begun.wait()
        yield ran


async def test_short_tasks_are_claimed_before_a_slot_is_free(pool: Pool, gate: Gate) -> None:
    async with blocked(pool, gate):
        waiting = [await pool.add("short") for _ in range(10)]
        first = await pool.seen(waiting[0], lambda task: task.status is Status.WORKING)
        pool.clock.advance(9)
        gate.open.set()
        task = await pool.ended(first)
    assert (task.started_at, first.started_at) == (pool.clock.now, pool.clock.now - 9_000)  # when the work began


async def test_an_urgent_task_comes_soon_however_many_are_claimed_ahead(pool: Pool, gate: Gate) -> None:
    async with blocked(pool, gate) as ran:
        tasks = [await pool.add("short", {"name": str(n)}) for n in range(150)]
        await pool.seen(tasks[0], lambda task: task.status is Status.WORKING)
        urgent = await pool.add("short", {"name": "urgent"}, priority=Priority.HIGH)
        gate.open.set()
        await pool.ended(urgent)
        await pool.ended(tasks[-1])
    assert ran.index("urgent") <= AHEAD_MOST
    assert len(ran) == 151


async def test_last_starts_and_work_outside_the_process_are_never_claimed_ahead(pool: Pool, gate: Gate) -> None:
    class Outside:
        in_process = False
        max_attempts = 3

        def check(self, payload: Mapping[str, Any]) -> None: ...

        async def inspect(self, task: Task) -> Remains:
            return Remains.NOTHING

        async def run(self, attempt: Attempt) -> Outcome | None:
            return Completed()

    async with blocked(pool, gate, outside=Outside()):
        ahead = await pool.add("short")
        await pool.seen(ahead, lambda task: task.status is Status.WORKING)
        last = await pool.add("short", max_attempts=1)
        outside = await pool.add("outside", priority=Priority.HIGH)
        assert [(await pool.get(task)).status for task in (last, outside)] == [Status.WAITING] * 2
        gate.open.set()
        for task in (last, outside, ahead):
            await pool.ended(task)


async def test_long_tasks_are_never_claimed_ahead(pool: Pool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "AHEAD_RUN_SECONDS", 0.0)  # so that every task is long
    async with blocked(pool, gate):
        tasks = [await pool.add("short") for _ in range(5)]
        await anyio.wait_all_tasks_blocked()
        assert {(await pool.get(task)).status for task in tasks} == {Status.WAITING}
        gate.open.set()
        for task in tasks:
            await pool.ended(task)


async def test_a_task_cancelled_between_its_claim_and_its_start_never_starts(pool: Pool, gate: Gate) -> None:
    async with blocked(pool, gate) as ran:
        tasks = [await pool.add("short", {"name": name}) for name in ("one", "two")]
        for task in tasks:
            await pool.seen(task, lambda task: task.status is Status.WORKING)
        await pool.store.cancel(tasks[0].id, "", "client")
        gate.open.set()
        ended = [await pool.ended(task) for task in tasks]
    assert [task.status for task in ended] == [Status.CANCELLED, Status.COMPLETED]
    assert ran == ["two"]


async def test_a_cancel_from_another_process_reaches_what_is_claimed_ahead(
    pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    async with (
        other_process(tmp_path, pool.clock) as other,
        anyio.create_task_group() as group,
        blocked(pool, gate) as ran,
    ):
        group.start_soon(pool.store.follow_others)
        task = await pool.add("short", {"name": "one"})
        await pool.seen(task, lambda task: task.status is Status.WORKING)
        await other.cancel(task.id, "", "another window")
        for held in await pool.held():  # the long one: its end shows that both requests have been seen
            await other.cancel(held.id, "", "another window")
        assert (await pool.ended(task)).status is Status.CANCELLED
        assert ran == []
        group.cancel_scope.cancel()


# Stopping.


async def test_stopping_lets_a_handler_finish_within_the_grace(pool: Pool, gate: Gate) -> None:
    async with pool.running(work=gate.kind) as running:
        task = await pool.add(payload={"result": 7})
        await gate.begun.wait()
        running.stop()
        await anyio.wait_all_tasks_blocked()
        gate.open.set()
    task = await pool.get(task)
    assert (task.status, task.result) == (Status.COMPLETED, 7)


async def test_stopping_gives_back_what_the_grace_cut_short(pool: Pool, gate: Gate) -> None:
    async with pool.running(work=gate.kind):
        task = await pool.add(max_attempts=1)
        await gate.begun.wait()
    task = await pool.get(task)
    assert (task.status, task.attempt, task.interruptions, task.owner) == (Status.WAITING, 1, 1, None)
    assert rules.starts_left(task) == 1
    assert await pool.attempts(task) == [(1, "interrupted", "interrupted")]
    gate.open.set()
    async with pool.running(work=gate.kind):
        task = await pool.ended(task)
    assert (task.status, task.attempt) == (Status.COMPLETED, 2)


async def test_stopping_claims_nothing_more(pool: Pool, gate: Gate) -> None:
    async with pool.running(1, work=gate.kind) as running:
        await pool.add()
        await gate.begun.wait()
        task = await pool.add()
        running.stop()
        gate.open.set()
    task = await pool.get(task)
    assert (task.status, task.attempt) == (Status.WAITING, 0)


async def test_stopping_gives_back_what_was_claimed_ahead(pool: Pool, gate: Gate) -> None:
    async with blocked(pool, gate) as ran:
        task = await pool.add("short", {"name": "one"})
        await pool.seen(task, lambda task: task.status is Status.WORKING)
    task = await pool.get(task)
    assert (task.status, task.attempt, task.interruptions) == (Status.WAITING, 1, 1)
    assert (await pool.queries.history(task)).attempts[0]["message"] == "the server stopped before it began"
    assert ran == []


async def test_the_sixth_interruption_is_the_last(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "STOP_SECONDS", 0.0)
    task = await pool.add(max_attempts=1)
    for _ in range(6):
        gate = Gate()
        async with pool.running(work=gate.kind):
            await gate.begun.wait()
    task = await pool.get(task)
    assert task.error is not None
    assert (task.status, task.error.reason, task.attempt) == (Status.FAILED, Reason.POISON, 6)


async def test_a_loss_beats_a_cancel_and_a_cancel_beats_a_stop(pool: Pool) -> None:
    attempt = Attempt(await pool.add(), lambda _: None)
    seen: list[Ending | None] = []
    attempt.on_end(lambda: seen.append(attempt.ending))
    for wish in (Ending.STOP, Ending.STOP, Ending.CANCEL, Ending.LOST, Ending.CANCEL):
        attempt.end(wish)
    assert seen == [Ending.STOP, Ending.CANCEL, Ending.LOST]
    assert attempt.stopping


async def test_a_cancel_request_beats_giving_back(pool: Pool) -> None:
    begun, cleaning, clean = anyio.Event(), anyio.Event(), anyio.Event()

    async def careful(payload: Payload) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(5, shield=True):
                cleaning.set()
                await clean.wait()

    async with pool.running(work=careful) as running:
        task = await pool.add()
        await begun.wait()
        await pool.store.cancel(task.id, "", "client")
        await cleaning.wait()
        running.stop()
        clean.set()
    assert (await pool.get(task)).status is Status.CANCELLED


async def test_a_cancel_request_during_the_grace_is_obeyed(pool: Pool, gate: Gate) -> None:
    async with pool.running(work=gate.kind) as running:
        task = await pool.add()
        await gate.begun.wait()
        running.stop()
        await pool.store.cancel(task.id, "", "client")
    assert (await pool.get(task)).status is Status.CANCELLED


async def test_what_was_claimed_ahead_and_cancelled_is_not_given_back(pool: Pool, gate: Gate) -> None:
    async with blocked(pool, gate):
        task = await pool.add("short")
        await pool.seen(task, lambda task: task.status is Status.WORKING)
        await pool.store.cancel(task.id, "", "client")
    assert (await pool.get(task)).status is Status.CANCELLED


async def test_a_server_torn_down_gives_back_what_it_ran(pool: Pool, gate: Gate) -> None:
    """Its scope is cancelled from outside, as when the program fails elsewhere."""
    with anyio.CancelScope() as scope:
        async with pool.running(work=gate.kind):
            task = await pool.add()
            await gate.begun.wait()
            scope.cancel()
    task = await pool.get(task)
    assert (task.status, task.interruptions) == (Status.WAITING, 1)


# A store that fails, and a task that is no longer ours.


async def test_an_end_that_cannot_be_stored_is_stored_later(
    pool: Pool, gate: Gate, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(settler, "RETRY_SECONDS", 0.05)
    async with pool.running(1, work=gate.kind):
        task = await pool.add(payload={"result": 7})
        await gate.begun.wait()
        with write_lock(tmp_path):
            gate.open.set()
            await told.line("the ends of 1 attempts could not be stored")
            assert (await pool.get(task)).status is Status.WORKING
        task = await pool.ended(task)
        assert (task.status, task.result, task.attempt) == (Status.COMPLETED, 7, 1)
        await pool.ended(await pool.add())


async def test_what_is_claimed_while_the_pool_stops_is_given_back(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    original, claimed, go_on = Transaction.execute, threading.Event(), threading.Event()

    def slow_commit(self: Transaction, text: str, *values: Any) -> Any:
        if text == "COMMIT" and any(task and task.owner for _, task in self.changed):
            claimed.set()
            assert go_on.wait(5)
        return original(self, text, *values)

    started = anyio.Event()

    async def work(payload: Payload) -> None:
        started.set()

    monkeypatch.setattr(Transaction, "execute", slow_commit)

    async def add() -> None:
        nonlocal task
        task = await pool.add()

    task: Task | None = None
    async with pool.running(1, work=work) as running, anyio.create_task_group() as group:
        group.start_soon(add)
        assert await anyio.to_thread.run_sync(claimed.wait, 5)
        running.stop()
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert task
    task = await pool.get(task)
    assert (task.status, task.attempt, task.interruptions) == (Status.WAITING, 1, 1)
    assert not started.is_set()


async def test_claiming_goes_on_when_the_store_is_free_again(
    pool: Pool, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(settler, "RETRY_SECONDS", 0.05)
    has_room = False
    async with pool.running(1, room=lambda: has_room, work=ok):
        task = await pool.add()
        with write_lock(tmp_path):
            has_room = True
            await told.line("could not claim")
        assert (await pool.ended(task)).status is Status.COMPLETED


async def test_an_attempt_that_is_adopted_back_while_it_still_runs_ends_no_server(pool: Pool, gate: Gate) -> None:
    """As when a server wakes from a freeze, and takes over from one that had taken over from it."""
    async with pool.running(1, work=gate.kind, fine=ok) as running, anyio.create_task_group() as group:
        task = await pool.add()
        await gate.begun.wait()
        group.start_soon(running._attempt, await pool.get(task), True)
        await anyio.wait_all_tasks_blocked()
        gate.open.set()
        assert (await pool.ended(task)).status is Status.COMPLETED
        assert (await pool.ended(await pool.add("fine"))).status is Status.COMPLETED
        assert running.busy == 0


async def test_nothing_is_claimed_while_the_disk_is_nearly_full(
    pool: Pool, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.01)
    full = True
    async with pool.running(1, work=ok, room=lambda: not full):
        task = await pool.add()
        await told.line("the disk is nearly full")
        assert (await pool.get(task)).status is Status.WAITING
        full = False
        assert (await pool.ended(task)).status is Status.COMPLETED


async def test_a_worker_that_lost_its_task_lets_go_and_its_result_is_dropped(
    pool: Pool, told: Told, tmp_path: Path
) -> None:
    begun, unwound = anyio.Event(), anyio.Event()

    async def work(payload: Payload) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            unwound.set()

    async with other_process(tmp_path, pool.clock) as other, anyio.create_task_group() as group:
        with Peers(tmp_path / "servers") as alive:
            stranger = await other.register(alive.uuid, os.getpid(), "0", [])
            async with pool.running(1, work=work, fine=ok):
                group.start_soon(pool.store.follow_others)
                task = await pool.add()
                await begun.wait()
                assert await other.adopt(await pool.get(task), stranger)
                with anyio.fail_after(5):
                    await unwound.wait()
                await pool.ended(await pool.add("fine"))
        group.cancel_scope.cancel()
    task = await pool.get(task)
    assert (task.status, task.attempt, task.owner) == (Status.WORKING, 1, stranger)
    assert told.lines == [f"task {task.id} attempt 1 is no longer ours; its end is dropped"]


async def test_a_worker_that_lost_its_task_cannot_settle(pool: Pool, gate: Gate, told: Told, tmp_path: Path) -> None:
    """Nobody has told it of the loss: the fence in the write refuses it."""
    async with other_process(tmp_path, pool.clock) as other, pool.running(1, work=gate.kind, fine=ok):
        task = await pool.add()
        await gate.begun.wait()
        stranger = await other.register("elsewhere", os.getpid(), "0", [])
        assert await other.adopt(await pool.get(task), stranger)
        gate.open.set()
        await pool.ended(await pool.add("fine"))
    task = await pool.get(task)
    assert (task.status, task.result) == (Status.WORKING, None)
    assert told.lines == [f"task {task.id} attempt 1 is no longer ours; its end is dropped"]
