"""The rules: every move that a task can make. Pure: time, ids and chance come in as arguments.

Each rule takes a Task and returns the Task it becomes; none changes anything in place. Times are milliseconds since
the epoch (UTC). `schema.sql` repeats the invariants as CHECK constraints.
"""

from collections.abc import Mapping
from typing import Any

from taskorch.domain import schedules
from taskorch.domain.errors import Conflict
from taskorch.domain.readiness import backoff_ms, file, is_expired, may_help, may_run
from taskorch.domain.task import (
    BLANK,
    Cancelled,
    Completed,
    Error,
    Failed,
    Interrupted,
    NewTask,
    Outcome,
    Parents,
    Progress,
    Reason,
    Status,
    Task,
    of_values,
    with_values,
)

MAX_INTERRUPTIONS = 5

MOVES: Mapping[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.WAITING, Status.WORKING, Status.FAILED, Status.CANCELLED}),
    Status.WORKING: frozenset(Status),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset({Status.WAITING}),
    Status.CANCELLED: frozenset({Status.WAITING}),
}

# What no task has that has ended.
GONE = {"ready": False, "paused": False, "blocked": False, "held": False, "owner": None, "claim_expires_at": None}

EDITABLE_WAITING = frozenset(
    {"name", "priority", "payload", "run_at", "expires_at", "max_attempts", "timeout_seconds", "labels", "paused"}
)
EDITABLE_WORKING = frozenset({"priority", "labels"})


def create(new: NewTask, *, seq: int, task_id: str, now: int, blocked: bool = False) -> Task:
    """A new waiting task, in the ready index if it may run now. `blocked`: it depends on one that has not ended.

    Raises InvalidInput for a schedule that never fires.
    """
    schedule, run_at = new.schedule, new.run_at
    if schedule is not None:
        schedule, run_at = schedules.begun(schedule, run_at, now)
    task = with_values(
        BLANK,
        seq=seq,
        id=task_id,
        name=new.name,
        kind=new.kind,
        payload=new.payload,
        priority=new.priority,
        rank=int(new.priority),
        max_attempts=new.max_attempts,
        timeout_seconds=new.timeout_seconds,
        on_server_exit=new.on_server_exit,
        labels=new.labels,
        concurrency_key=new.concurrency_key,
        ready=new.concurrency_key is None,
        retry=new.retry,
        schedule=schedule,
        trace=new.trace,
        blocked=blocked,
        run_at=run_at,
        expires_at=new.expires_at,
        created_at=now,
        updated_at=now,
    )
    return file(task, now)


def starts_left(task: Task) -> int:
    """How many more starts the budget allows; interruptions were given back."""
    return task.max_attempts + task.interruptions - task.attempt


def claim(task: Task, owner: int, now: int) -> Task:
    """waiting → working: the next attempt belongs to `owner`. To be committed before anything starts."""
    if not may_run(task, now):
        raise Conflict(f"task {task.label} may not start now")
    return _move(
        task,
        Status.WORKING,
        now,
        ready=False,
        attempt=task.attempt + 1,
        owner=owner,
        started_at=now,
        error=None,
        progress=None,
    )


def settle(task: Task, outcome: Outcome, now: int, started_at: int | None = None) -> Task:
    """Apply the end of the current attempt. A cancel request beats a retry; work that completed stays completed.

    `started_at` is when the work really began, if that was later than the claim.
    """
    _must_work(task)
    began = task.started_at if started_at is None else started_at
    match outcome:
        case Completed(result):
            return _end(task, Status.COMPLETED, now, began, result=result, progress=None)
        case Cancelled(message):
            return _cancelled(task, now, began, message)
        case _ if task.cancel_requested_at is not None:
            return _cancelled(task, now, began, outcome.message)
        case Failed(reason, message, exit_code, retry_after_ms=asked):
            error = Error(reason, message, exit_code)
            if may_help(outcome, task.retry) and starts_left(task) > 0:
                wait = backoff_ms(task.id, task.attempt, task.retry) if asked is None else asked
                return _wait(task, now, run_at=now + wait, started_at=began, error=error)
            return _end(task, Status.FAILED, now, began, error=error)
        case Interrupted(message):
            if task.interruptions >= MAX_INTERRUPTIONS:
                error = Error(Reason.POISON, f"interrupted {MAX_INTERRUPTIONS + 1} times; not started again")
                return _end(task, Status.FAILED, now, began, error=error)
            error = Error(Reason.INTERRUPTED, message or "the server stopped; the task runs again")
            return _wait(task, now, run_at=None, started_at=began, error=error, interruptions=task.interruptions + 1)


def adopt(task: Task, owner: int, now: int) -> Task:
    """working → working: another server goes on with the same attempt of a command that outlived its owner."""
    _must_work(task)
    return _move(task, Status.WORKING, now, owner=owner)


def cancel(task: Task, reason: str, now: int) -> Task:
    """Cancel what waits at once; ask what works to stop; leave what has ended as it is."""
    if task.ended or task.cancel_requested_at is not None:
        return task
    if task.status is Status.WAITING:
        return _end(task, Status.CANCELLED, now, task.started_at, error=Error(Reason.USER, reason))
    return _move(task, Status.WORKING, now, cancel_requested_at=now, cancel_reason=reason)


def expire(task: Task, now: int) -> Task:
    """waiting → failed: `expires_at` has passed."""
    if not is_expired(task, now):
        raise Conflict(f"task {task.label} has not expired")
    again = " again" if task.attempt else ""
    error = Error(Reason.EXPIRED, f"it had not started{again} when expires_at passed")
    return _end(task, Status.FAILED, now, task.started_at, error=error)


def never(task: Task, why: str, now: int) -> Task:
    """waiting → failed: a schedule that cannot fire any more."""
    return _end(task, Status.FAILED, now, task.started_at, error=Error(Reason.ERROR, why))


def follow(task: Task, parents: Parents, now: int) -> Task:
    """waiting → waiting, cancelled or failed: a task that this one depends on has changed."""
    if task.status is not Status.WAITING:
        raise Conflict(f"task {task.label} waits for nothing")
    if parents.failed is None:
        same = task.blocked is parents.unfinished
        return file(task if same else with_values(task, blocked=parents.unfinished), now)
    if parents.on_failure == "fail":
        return _end(task, Status.FAILED, now, task.started_at, error=Error(Reason.DEPENDENCY_FAILED, parents.failed))
    return _end(task, Status.CANCELLED, now, task.started_at, error=Error(Reason.DEPENDENCY, parents.failed))


def bring_back(task: Task, parents: Parents, now: int) -> Task:
    """cancelled or failed → waiting: a task that never started, and ended for a reason that holds no longer."""
    reason = task.error.reason if task.error else None
    waits_for_it = reason in (Reason.DEPENDENCY, Reason.DEPENDENCY_FAILED) and task.attempt == 0
    if not waits_for_it or parents.failed is not None or task.delete_requested:
        return task
    return retry(task, task.run_at, now, blocked=parents.unfinished)


def retry(task: Task, run_at: int | None, now: int, blocked: bool = False, trace: str | None = None) -> Task:
    """failed or cancelled → waiting, with at least one more start; the history and the attempt number stay.

    `blocked`: a task that it depends on has not ended. `trace`: of who asks, None: it keeps the one that it has.
    """
    if task.status not in (Status.FAILED, Status.CANCELLED):
        raise Conflict(f"{task.label} is {task.status}; retry_task works on failed and cancelled tasks.{_hint(task)}")
    if task.delete_requested:
        raise Conflict(f"{task.label} is about to be deleted. Create a new task instead.")
    expired = task.expires_at is not None and task.expires_at <= max(now, run_at or now)
    return _wait(
        task,
        now,
        run_at=run_at if task.schedule is None else schedules.resumed(task, run_at, now),
        error=None,
        max_attempts=max(task.max_attempts, task.attempt - task.interruptions + 1),
        paused=False,
        blocked=blocked,
        trace=trace or task.trace,
        expires_at=None if expired else task.expires_at,
        cancel_requested_at=None,
        cancel_reason=None,
    )


def edit(task: Task, changes: Mapping[str, Any], expected_version: int | None, now: int) -> Task:
    """Set the given fields of the task where its status allows it, all or nothing. `run_at=None` means at once."""
    if task.ended:
        raise Conflict(f"{task.label} is {task.status} and can no longer be changed.{_hint(task)}")
    if expected_version is not None and expected_version != task.version:
        raise Conflict(
            f"{task.label} is at version {task.version}, not {expected_version}: it was changed meanwhile. "
            f"Read it with get_task and call again with expected_version={task.version}."
        )
    allowed = EDITABLE_WAITING if task.status is Status.WAITING else EDITABLE_WORKING
    refused = sorted(set(changes) - allowed)
    if refused:
        raise Conflict(
            f"{task.label} is working: {', '.join(refused)} cannot be changed now; "
            f"{' and '.join(sorted(EDITABLE_WORKING))} can. Cancel it first, or create a new task."
        )
    if "payload" in changes and task.attempt > 0:
        raise Conflict(f"{task.label} has started before, so its payload is fixed. Create a new task instead.")
    fields = dict(changes) if task.schedule is None else schedules.edited(task, changes, now)
    if (most := fields.get("max_attempts")) is not None and most + task.interruptions <= task.attempt:
        least = task.attempt - task.interruptions + 1
        raise Conflict(f"{task.label} has had {least - 1} start(s); max_attempts must be at least {least}.")
    if "priority" in fields:
        fields["rank"] = int(fields["priority"])
    edited = _move(task, task.status, now, **fields)
    timed = "run_at" in fields or "expires_at" in fields
    if timed and edited.run_at and edited.expires_at and edited.expires_at <= edited.run_at:
        raise Conflict(f"{task.label} would expire before it may start. Set expires_at after run_at.")
    return file(edited, now) if task.status is Status.WAITING else edited


def report(task: Task, progress: Progress, now: int) -> Task:
    """Note how far the current attempt is. It does not raise the version: nobody's edit conflicts with it."""
    _must_work(task)
    return with_values(task, progress=progress, updated_at=now)


def request_delete(task: Task, confirm: bool, now: int, asked: int | None = None) -> Task | None:
    """None: the task may be deleted now. A task: it is being cancelled and goes when it has ended.

    `asked`: the attempt that the confirmation is about, None for whichever.
    """
    if task.status is not Status.WORKING:
        return None
    if asked not in (None, task.attempt):
        raise Conflict(f"{task.label} was started again while the user was asked. Call delete_task again.")
    if not confirm:
        raise Conflict(
            f"{task.label} is working; deleting it ends its work. Call delete_task again with confirm=true, "
            "or cancel_task first."
        )
    wish = {"delete_requested": True, "updated_at": now, "version": task.version + 1}
    return with_values(cancel(task, "deleted while working", now), **wish)


def _move(task: Task, to: Status, now: int, **changes: Any) -> Task:
    """The one door: every change of a task that a caller can see passes here."""
    if to not in MOVES[task.status]:
        raise Conflict(f"{task.label} is {task.status} and cannot become {to}.{_hint(task)}")
    changes |= {"status": to, "updated_at": now, "version": task.version + 1}
    return of_values(task.__dict__ | changes)


def _must_work(task: Task) -> None:
    """What has no attempt under way has nothing to settle, adopt or report. Raises Conflict."""
    if task.status is not Status.WORKING:
        raise Conflict(f"{task.label} is {task.status}: no attempt of it is under way.{_hint(task)}")


def _end(task: Task, to: Status, now: int, started_at: int | None, **changes: Any) -> Task:
    return _move(task, to, now, **GONE, started_at=started_at, finished_at=now, **changes)


def _wait(task: Task, now: int, *, run_at: int | None, error: Error | None, **changes: Any) -> Task:
    waiting = _move(
        task,
        Status.WAITING,
        now,
        owner=None,
        claim_expires_at=None,
        finished_at=None,
        progress=None,
        result=None,
        rank=int(task.priority),
        run_at=run_at,
        error=error,
        **changes,
    )
    return file(waiting, now)


def _cancelled(task: Task, now: int, started_at: int | None, message: str) -> Task:
    text = "; ".join(part for part in (task.cancel_reason, message) if part)
    return _end(task, Status.CANCELLED, now, started_at, error=Error(Reason.USER, text or "cancelled"))


def _hint(task: Task) -> str:
    match task.status:
        case Status.WAITING:
            state = "has not started yet" if task.attempt == 0 else "waits for its next attempt"
            return f' It {state}. See get_task("{task.id}").'
        case Status.WORKING:
            return f' Wait for it with wait_for_tasks(["{task.id}"]), or call cancel_task first.'
        case Status.COMPLETED:
            return " Create a new task to do the work again."
        case _:
            return f' To run it again call retry_task("{task.id}").'
