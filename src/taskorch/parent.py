"""The process that started us: a host that is gone without closing our stdin must not leave a server behind."""

import os
import sys

import anyio

LOOK_SECONDS = 1.0  # where the kernel does not tell


async def gone() -> None:
    """Return when the process that started us has ended; never, when that is the first of all, as in a container."""
    parent = os.getppid()
    if parent <= 1:
        await anyio.sleep_forever()
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(parent)
        except OSError:  # gone already, or an old kernel
            handle = -1
        if handle >= 0:
            try:
                await anyio.wait_readable(handle)
                return
            finally:
                os.close(handle)
    while os.getppid() == parent:  # noqa: ASYNC110  (no event tells)
        await anyio.sleep(LOOK_SECONDS)
