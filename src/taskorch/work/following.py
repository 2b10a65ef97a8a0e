"""One attempt under a shim, whatever its kind: its folder, wishes to end it, its end, and what a killed shim left."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from errno import EACCES, EAGAIN, ENOENT, ENOMEM, EXDEV
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from taskorch.domain.task import Failed, Interrupted, Outcome, Reason, Task
from taskorch.work import leftovers
from taskorch.work.attempt import Attempt, Remains
from taskorch.work.supervised import Exit, Supervised

STOP_SECONDS = 0.5  # what an orderly server stop leaves the work after TERM
WAKE_SECONDS = 1.0  # after the time limit, how often a supervisor that should be gone is woken


def make_folder(folder: Path) -> None:
    """Make an attempt's folder, which must be new, and those above it, for us alone. Raises OSError."""
    for above in (folder.parent.parent, folder.parent):  # `parents=True` would make them for all
        with suppress(FileExistsError):
            os.mkdir(above, 0o700)
    folder.mkdir(mode=0o700)


async def follow(
    attempt: Attempt,
    shim: Supervised,
    grace_seconds: float,
    lets_go: Callable[[], bool],
    listen: Callable[[], Coroutine[Any, Any, None]],
    quiet_seconds: float = 0.0,
) -> bool:
    """Wait for the shim's end, handing on every wish to end it; False when we let go of it.

    `lets_go`: whether the wishes so far mean that the work goes on without us. `listen` runs beside, to the end. It
    begins after `quiet_seconds`: what has ended by then needs no task of its own, which would cost as much as all this.
    """
    steering = _Steering(attempt, shim, attempt.task.timeout_seconds + grace_seconds, lets_go)
    try:
        with steering.scope:
            with anyio.move_on_after(quiet_seconds) as quiet:
                await shim.ended()
            if quiet.cancelled_caught:
                async with anyio.create_task_group() as group:
                    group.start_soon(listen)
                    await shim.ended()
                    group.cancel_scope.cancel()
    finally:
        steering.end()
    return not steering.let_go


class _Steering:
    """Hands every wish to end an attempt on to its shim, at once, until `end`; cancels `scope` when we let go of it."""

    def __init__(self, attempt: Attempt, shim: Supervised, limit_seconds: float, lets_go: Callable[[], bool]) -> None:
        self.scope = anyio.CancelScope()
        self.let_go = False
        self._attempt = attempt
        self._shim = shim
        self._lets_go = lets_go
        self._asked = False
        self._loop = asyncio.get_running_loop()
        self._killing: asyncio.TimerHandle | None = None
        self._waking = self._loop.call_later(limit_seconds + WAKE_SECONDS, self._wake)
        attempt.on_end(self._wish)

    def end(self) -> None:
        self._attempt.on_end(lambda: None)
        self._waking.cancel()
        if self._killing:
            self._killing.cancel()

    def _wish(self) -> None:
        self.let_go = self.let_go or self._lets_go()
        if self.let_go:
            self.scope.cancel()
            return
        if not self._asked:
            self._asked = True
            self._shim.terminate()
        if self._attempt.stopping and not self._killing:
            self._killing = self._loop.call_later(STOP_SECONDS, self._shim.kill)

    def _wake(self) -> None:
        """A supervisor that was stopped keeps no time: let it go on when the limit is long past."""
        self._shim.wake()
        self._waking = self._loop.call_later(WAKE_SECONDS, self._wake)


async def without_record(attempt: Attempt, folder: Path) -> Outcome:
    """How an attempt ended whose shim was killed: it left no record, and what it left running is ended here."""
    task = attempt.task
    never_begun = leftovers.never_begun(folder, ordered=not attempt.adopted)
    ended, left = await anyio.to_thread.run_sync(leftovers.end_leftovers, folder, task.id, task.attempt)
    if left:
        text = f"its supervisor was killed and processes {', '.join(map(str, left))} could not be ended"
        if left == [0]:
            text = "its supervisor was killed while it started the command, which may have begun"
        return Failed(Reason.WORKER_LOST, text, retryable=False)
    if never_begun and not ended:
        return Interrupted("it had not begun")
    return Failed(Reason.WORKER_LOST, f"{_how(folder)}{killed_text(ended)}")


def _how(folder: Path) -> str:
    return "its supervisor was killed or failed" if folder.is_dir() else "its files were removed"


async def remains(task: Task, folder: Path) -> Remains:
    """What is left of an attempt whose server and shim are gone: it is ended here, as far as that is possible."""
    ended, left = await anyio.to_thread.run_sync(leftovers.end_leftovers, folder, task.id, task.attempt)
    if left:
        return Remains.UNKNOWN
    return Remains.NEVER_BEGUN if not ended and leftovers.never_begun(folder, ordered=False) else Remains.NOTHING


def marks(task: Task) -> dict[str, str]:
    """The variables that tell work which task it is for, and us which processes are its own."""
    return {
        "TASKORCH_TASK_ID": task.id,
        "TASKORCH_ATTEMPT": str(task.attempt),
        "TASKORCH_IDEMPOTENCY_KEY": task.id,
    }


def exit_text(record: Exit) -> tuple[int, str]:
    """A process's exit code, as a shell has it, and how it ended in words."""
    if record.signal is None:
        return record.code or 0, f"exit code {record.code}"
    name = signal.Signals(record.signal).name if record.signal in set(signal.Signals) else "unknown"
    return 128 + record.signal, f"ended by signal {record.signal} ({name})"


def spawn_error(number: int) -> Outcome:
    """How an attempt ended whose program could not be started: the shim gives the errno."""
    if number == EXDEV:  # the shim's word for it; starting a program has no other use for that number
        text = "its folder was replaced by one outside TASKORCH_ALLOW_DIRS while it started"
        return Failed(Reason.NOT_ALLOWED, text, retryable=False)
    text = f"the program could not be started: {os.strerror(number)}"
    return Failed(Reason.SPAWN_ERROR, text, {ENOENT: 127, EACCES: 126}.get(number), number in (EAGAIN, ENOMEM))


def killed_text(processes: int) -> str:
    """How many processes did not end by themselves, as the end of a sentence about it."""
    return f"; {processes} process{'' if processes == 1 else 'es'} had to be killed" if processes else ""
