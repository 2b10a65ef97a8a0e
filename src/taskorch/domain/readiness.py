"""When a waiting task may start, and why it may not yet. Pure, like `rules`."""

from collections.abc import Collection
from random import Random

from taskorch.domain.outside import is_outside
from taskorch.domain.task import Failed, Phase, Priority, Reason, Retry, Status, Task, with_values

AGEING_MS = 600_000  # of waiting for a slot or for room under a limit, for each level of rank
USUAL = Retry()  # what holds without a policy
BACKOFF_CAP_MS = round(USUAL.max_delay_seconds * 1000)
NEVER_RETRIED = (126, 127)  # exit codes for not executable, not found: it would fail again
TRY_AGAIN = 75  # EX_TEMPFAIL: how a program itself asks to be run again
GROWTH_STEPS = 300  # more than the starts that a task can be given, and no float holds more of the largest factor


def may_run(task: Task, now: int) -> bool:
    """Whether a claim would be right at this moment."""
    due = task.run_at is None or task.run_at <= now
    stopped = task.paused or task.blocked or task.schedule is not None
    return task.status is Status.WAITING and due and not stopped and not is_expired(task, now)


def starts_after(task: Task, moment: float) -> bool:
    """Whether it waits for its time, and that is later than a moment (ms): a wait until then finds nothing new."""
    return task.status is Status.WAITING and task.run_at is not None and task.run_at > moment


def is_expired(task: Task, now: int) -> bool:
    return task.status is Status.WAITING and task.expires_at is not None and task.expires_at <= now


def file(task: Task, now: int) -> Task:
    """Enter or leave the ready index. Not a change that anybody sees: version and updated_at stay.

    With a `concurrency_key` it enters `held`: how many of that key may be ready is counted where all of them are.
    """
    may = may_run(task, now)
    ready = may and (task.ready or task.concurrency_key is None)
    held = may and not ready
    return task if (task.ready, task.held) == (ready, held) else with_values(task, ready=ready, held=held)


def admit(task: Task, now: int) -> Task:
    """From `held` into the ready index, as there is room; into neither if it may not run after all."""
    return with_values(task, ready=may_run(task, now), held=False)


def hold(task: Task) -> Task:
    """Out of the ready index: there is no room for it."""
    return with_values(task, ready=False, held=True)


def waits_since(task: Task) -> int:
    """Since when it could run (ms), for what is ready or held: a retry and an edit begin anew."""
    return max(task.updated_at, task.run_at or 0)


def aged(task: Task, now: int) -> Task:
    """With the rank that it has come to by waiting: a level up for every ten minutes, at most that of high.

    Nobody starves behind an endless stream of better ones. Not a change that anybody sees, like `file`.
    """
    if not (task.ready or task.held):
        return task
    rank = min(int(Priority.HIGH), task.priority + (now - waits_since(task)) // AGEING_MS)
    return with_values(task, rank=rank) if rank > task.rank else task


def phase(task: Task, now: int, kinds: Collection[str]) -> Phase | None:
    """Why the task waits, or that it is being cancelled. `kinds`: what some live server can run.

    What outside workers do waits for no server.
    """
    if task.status is Status.WORKING:
        return Phase.CANCELLING if task.cancel_requested_at is not None else None
    if task.status is not Status.WAITING:
        return None
    if task.paused:
        return Phase.PAUSED
    if task.blocked or task.held or not (task.kind in kinds or is_outside(task.kind)):
        return Phase.BLOCKED
    if task.schedule is not None:
        return Phase.SCHEDULED
    if task.run_at is not None and task.run_at > now:
        return Phase.BACKOFF if task.error is not None else Phase.SCHEDULED
    return Phase.READY


def may_help(failed: Failed, policy: Retry | None) -> bool:
    """Whether another start may help after that failure: the kind's word, and for exit codes the policy's too.

    What a kind gives up on stays given up. A policy says nothing of other reasons, like a timeout.
    """
    if policy is None or not failed.retryable or failed.reason is not Reason.EXIT_CODE:
        return failed.retryable
    named = policy.on_exit is None or failed.exit_code in policy.on_exit
    return failed.exit_code == TRY_AGAIN or (named and failed.exit_code not in policy.fail_on_exit)


def backoff_ms(task_id: str, attempt: int, policy: Retry | None = None) -> int:
    """How long to wait after failure number `attempt`: exponential, half of it jittered, and the same at every call."""
    policy = policy or USUAL
    grown = policy.first_delay_seconds * policy.factor ** min(attempt - 1, GROWTH_STEPS)
    whole = 1000 * min(policy.max_delay_seconds, grown)
    return int(whole / 2 + whole / 2 * Random(f"{task_id}/{attempt}").random())


def restore_backoff(task: Task, now: int) -> Task:
    """The same wait from now, of a task whose backoff was reckoned by a clock that has been set back since."""
    if task.run_at is None:
        return task
    return with_values(task, run_at=min(task.run_at, now + max(0, task.run_at - task.updated_at)), updated_at=now)
