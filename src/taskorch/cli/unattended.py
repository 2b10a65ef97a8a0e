"""Processes that run with no host attached, until a signal ends them."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from taskorch.cli.exits import Exit
from taskorch.domain.errors import StoreError
from taskorch.leaving import arm_last_resort, cause, explain, heed


def keep_to_stderr() -> None:
    """What a handler writes to stdout is a log, by whatever way it does; and there is nothing to read on stdin."""
    sys.stderr = sys.stderr or os.fdopen(os.dup(2), "w")  # it was closed when we began
    sys.stdout = sys.stderr
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


async def until_signalled(work: Callable[[Callable[[str], None]], Awaitable[None]], stop: Callable[[], object]) -> int:
    """Do `work` until SIGTERM, SIGINT or SIGHUP; the exit code, 0 when one of these ended it.

    `work` is given what to call with a line for the person when it has begun; `stop` is called at the first signal, and
    it has 1.4 s from then. A second signal ends the process at once.
    """
    started = False

    def begun(line: str) -> None:
        nonlocal started
        started = True
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def told(_: int) -> None:
        arm_last_resort(0)
        stop()

    try:
        async with anyio.create_task_group() as group:
            await group.start(partial(heed, _signals(), told))
            await work(begun)
            group.cancel_scope.cancel()
    except BaseException as error:
        code = explain(error, starting=not started)
        return Exit.STORE if isinstance(cause(error), StoreError) else code
    return 0


def _signals() -> list[signal.Signals]:
    """SIGHUP too, which a terminal sends when it goes, unless nohup is to keep it off."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]
