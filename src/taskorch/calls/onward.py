"""What to call next: every reply about a task says it."""

from taskorch.domain import readiness
from taskorch.domain.task import Error, Reason, Status, Task
from taskorch.storage.ids import FULL_ID

# Reasons for which nothing was written: the whole message says what to do.
SILENT = (Reason.NOT_ALLOWED, Reason.INVALID_PAYLOAD, Reason.SPAWN_ERROR, Reason.WORKER_LOST)


def next_call(task: Task, now: int, wait_cap_seconds: float) -> str | None:
    """The one call that makes sense now (ms), where one may wait so long; None where there is none."""
    wait_ends = now + 1000 * wait_cap_seconds
    match task.status:
        case Status.WAITING if task.paused:
            return f'update_task(task_id="{task.id}", paused=false)'
        case Status.WAITING if task.schedule is not None or readiness.starts_after(task, wait_ends):
            return None
        case Status.WAITING | Status.WORKING:
            return f'wait_for_tasks(task_ids=["{task.id}"], timeout_seconds={wait_cap_seconds:g})'
        case Status.FAILED | Status.CANCELLED if task.error and (cause := _cause(task.error)):
            return f'retry_task(task_id="{cause}")'
        case Status.FAILED if task.error and task.error.reason in SILENT:
            return f'get_task(task_id="{task.id}", detail="full")'
        case Status.FAILED if task.is_command and task.attempt:
            return f'get_task_output(task_id="{task.id}")'
        case Status.FAILED | Status.CANCELLED:
            return f'retry_task(task_id="{task.id}")'
        case _:
            return f'get_task_output(task_id="{task.id}")' if task.is_command else None


def _cause(error: Error) -> str | None:
    """The task because of which another ended, with which that comes back: its id begins the message."""
    by_others = error.reason in (Reason.DEPENDENCY, Reason.DEPENDENCY_FAILED)
    found = FULL_ID.match(error.message) if by_others else None
    return found and found[0]
