"""How a server's process ends: in time, and with a line that says why where somebody can mend it."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from signal import Signals
from typing import NoReturn, cast

import anyio
from anyio.abc import TaskStatus

from taskorch.domain.errors import TaskError

CANNOT_START = 2
FLUSH_SECONDS = 0.1
LAST_RESORT_SECONDS = 1.4  # the SDK's client sends SIGTERM 2.0 s after it has closed our stdin

log = logging.getLogger(__name__)


async def heed(signals: Collection[Signals], told: Callable[[int], None], *, task_status: TaskStatus[None]) -> None:
    """Call `told` with the number of the first of these signals; the second one ends the process at once."""
    heard = False
    with anyio.open_signal_receiver(*signals) as coming:
        task_status.started()
        async for number in coming:
            if heard:
                leave(128 + number)
            heard = True
            told(number)


def leave(code: int) -> NoReturn:
    """End the process now, whatever threads still run."""
    last_words = threading.Thread(target=_flush, daemon=True)  # blocks if nobody reads stderr
    last_words.start()
    last_words.join(FLUSH_SECONDS)
    os._exit(code)


def arm_last_resort(code: int) -> None:
    """Leave a little later, if nothing else has ended the process until then."""
    timer = threading.Timer(LAST_RESORT_SECONDS, leave, [code])
    timer.daemon = True
    timer.start()


def cause(error: BaseException) -> BaseException:
    """The first of a group of errors, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseExceptionGroup[BaseException], error).exceptions[0]
    return error


def explain(error: BaseException, starting: bool) -> int:
    """Say what ended the server: in one line if somebody can mend it. The exit code."""
    error = cause(error)
    match error:
        case ImportError() if starting:
            text = f"{error}. See TASKORCH_HANDLERS and PYTHONPATH."
        case TaskError() | OSError() if starting:
            text = str(error)
        case _:
            text = f"{type(error).__name__}: {error}"
            log.critical("the server failed", exc_info=error)
    if sys.stderr:  # None when it was closed before we began
        sys.stderr.write(f"taskorch: {'could not start' if starting else 'stopped'}: {text}\n")
    return CANNOT_START if starting else 1


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the last: it was closed before we began
            stream.flush()
