"""One attempt under a shim, whatever its kind: its folder, wishes to end it, its end, and what a killed shim left."""

import os
import signal
from collections.abc import Callable, Coroutine
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
        above.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)


async def follow(
    attempt: Attempt,
    shim: Supervised,
    grace_seconds: float,
    lets_go: Callable[[], bool],
    listen: Callable[[], Coroutine[Any, Any, None]],
) -> bool:
    """Wait for the shim's end, handing on every wish to end it; False when we let go of it.

    `lets_go`: whether the wishes so far mean that the work goes on without us. `listen` runs beside, to the end.
    """
    wished = anyio.Event()
    attempt.on_end(lambda: wished.set())
    let_go = False
    async with anyio.create_task_group() as group:

        async def steer() -> None:
            nonlocal wished, let_go
            asked = False
            while not let_go:
                await wished.wait()
                wished = anyio.Event()
                let_go = lets_go()
                if let_go:
                    group.cancel_scope.cancel()
                elif not asked:
                    asked = True
                    shim.terminate()
                if attempt.stopping:
                    await anyio.sleep(STOP_SECONDS)
                    shim.kill()

        async def wake() -> None:
            """A supervisor that was stopped keeps no time: let it go on when the limit is long past."""
            await anyio.sleep(attempt.task.timeout_seconds + grace_seconds)
            while True:
                await anyio.sleep(WAKE_SECONDS)
                shim.wake()

        group.start_soon(listen)
        group.start_soon(steer)
        group.start_soon(wake)
        await shim.ended()
        group.cancel_scope.cancel()
    return not let_go


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
    return Failed(Reason.WORKER_LOST, f"{_how(folder)}; {killed_text(ended)}")


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
    return f"{processes} process{'' if processes == 1 else 'es'} had to be killed"
