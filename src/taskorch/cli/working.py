"""The command `worker`: the pool of a server, with no host attached."""

import gc
import os
import signal
import sys

import anyio
from anyio.abc import TaskStatus

from taskorch import engine
from taskorch.cli.exits import Exit
from taskorch.config import Settings
from taskorch.domain.errors import StoreError
from taskorch.leaving import arm_last_resort, cause, explain, leave


def keep_to_stderr() -> None:
    """What a handler writes to stdout is a log, by whatever way it does; and there is nothing to read on stdin."""
    sys.stderr = sys.stderr or os.fdopen(os.dup(2), "w")  # it was closed when we began
    sys.stdout = sys.stderr
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


async def work(settings: Settings) -> int:
    """Run tasks until SIGTERM, SIGINT or SIGHUP; the exit code, 0 when one of these ended it.

    Then all is settled, given back or let go within 1.5 s, as when a server stops; a second signal leaves at once.
    """
    gc.freeze()
    stop, started, asked = anyio.CancelScope(), False, False

    async def on_signal(*, task_status: TaskStatus[None]) -> None:
        nonlocal asked
        with anyio.open_signal_receiver(*_signals()) as signals:
            task_status.started()
            async for number in signals:
                if asked:
                    leave(128 + number)
                asked = True
                arm_last_resort(0)
                stop.cancel()

    try:
        async with anyio.create_task_group() as group:
            await group.start(on_signal)
            with stop:
                async with engine.running(settings) as running:
                    started = True
                    _announce(settings, running)
                    await anyio.sleep_forever()
            group.cancel_scope.cancel()
    except BaseException as error:
        code = explain(error, starting=not started)
        return Exit.STORE if isinstance(cause(error), StoreError) else code
    return 0


def _signals() -> list[signal.Signals]:
    """SIGHUP too, which a terminal sends when it goes, unless nohup is to keep it off."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


def _announce(settings: Settings, running: engine.Engine) -> None:
    kinds = ", ".join(sorted(running.kinds.claimable)) or "none"
    sys.stderr.write(f"taskorch worker: {settings.concurrency} slots on {settings.state_dir}, kinds: {kinds}\n")
    sys.stderr.flush()
