"""The command `worker`: the pool of a server, with no host attached."""

import gc
from collections.abc import Callable

import anyio

from taskorch import engine
from taskorch.cli.unattended import until_signalled
from taskorch.config import Settings


async def work(settings: Settings) -> int:
    """Run tasks until SIGTERM, SIGINT or SIGHUP; the exit code, 0 when one of these ended it.

    Then all is settled, given back or let go within 1.5 s, as when a server stops; a second signal leaves at once.
    """
    gc.freeze()
    stop = anyio.CancelScope()

    async def run(begun: Callable[[str], None]) -> None:
        with stop:
            async with engine.running(settings) as running:
                kinds = ", ".join(sorted(running.kinds.claimable)) or "none"
                begun(f"taskorch worker: {settings.concurrency} slots on {settings.state_dir}, kinds: {kinds}")
                await anyio.sleep_forever()

    return await until_signalled(run, stop.cancel)
