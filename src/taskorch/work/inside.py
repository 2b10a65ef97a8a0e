"""Run one attempt of an isolated handler: what happens inside its own process, which `isolated.py` starts."""

import ctypes
import logging
import os
import signal
import sys
from typing import Any, NoReturn, TypedDict

import anyio
from anyio.abc import TaskStatus

from taskorch.domain.task import Completed, Failed, Outcome, Reason
from taskorch.storage.rows import from_row
from taskorch.telemetry import context, providers
from taskorch.work import outcomes
from taskorch.work.attempt import Attempt, Ending
from taskorch.work.handlers import Handler, load_handlers
from taskorch.work.telling import Teller

PR_SET_PDEATHSIG = 1
CUT_SHORT = 128 + signal.SIGTERM  # the exit code of what ended because it was asked to

log = logging.getLogger(__name__)


class Job(TypedDict):
    """What the process is given: its import path, the modules with handlers, its task as a row, where to tell."""

    path: list[str]
    modules: str
    task: list[Any]
    fifo: str


def main(job: Job) -> NoReturn:
    """Run the attempt, tell its outcome, and leave at once, whatever threads still run."""
    _end_with_supervisor()
    teller = Teller(job["fifo"])
    attempt = Attempt(from_row(job["task"]), teller.note)
    outcome = _outcome(attempt, job["modules"])
    if not isinstance(outcome, Completed | Failed):
        _leave(CUT_SHORT)
    teller.end(outcome)
    providers.flush()
    _leave(0)


def _outcome(attempt: Attempt, modules: str) -> Outcome | None:
    try:
        kinds = load_handlers(modules)
    except BaseException as error:  # whatever a module does while it is imported
        log.warning("the handlers could not be imported", exc_info=error)
        return Failed(Reason.SPAWN_ERROR, f"its handlers could not be imported: {outcomes.failed(error).message}")
    if handler := kinds.get(attempt.task.kind):
        if "TRACEPARENT" in os.environ:  # the attempt is recorded
            providers.start()
        with context.continued(os.environ):
            return anyio.run(_run, handler, attempt)
    return Failed(Reason.SPAWN_ERROR, f"no module of TASKORCH_HANDLERS registers the kind {attempt.task.kind!r}")


async def _run(handler: Handler, attempt: Attempt) -> Outcome | None:
    async def hear(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                attempt.end(Ending.CANCEL)
                if not handler.hears:
                    _leave(CUT_SHORT)

    outcome: Outcome | None = None
    async with anyio.create_task_group() as group:
        await group.start(hear)
        outcome = await handler.run(attempt)
        group.cancel_scope.cancel()
    return outcome


def _end_with_supervisor() -> None:
    """Should the supervisor be killed, it cannot end us any more: the kernel does (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave(code: int) -> NoReturn:
    os._exit(code)  # -u: nothing that was printed is left in here
