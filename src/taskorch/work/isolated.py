"""A handler whose attempts have a process of their own: under a shim, it can be ended with all that it started.

Nothing is forked: a new interpreter imports the handlers' modules, runs the function as the server would (`inside.py`),
and tells what comes of it through a FIFO. What it prints is kept as a command's output is, and goes to the log.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from taskorch.domain.task import Failed, Interrupted, Outcome, Reason, Task
from taskorch.storage.rows import to_values
from taskorch.telemetry import context
from taskorch.work import output, supervised
from taskorch.work.attempt import Attempt, Ending, Remains, unbegun
from taskorch.work.following import (
    exit_text,
    follow,
    killed_text,
    make_folder,
    marks,
    remains,
    spawn_error,
    without_record,
)
from taskorch.work.handlers import Handler, cut_short
from taskorch.work.spawner import Spawner
from taskorch.work.supervised import Exit, Order, SpawnFailed, Supervised, known
from taskorch.work.telling import Hearing, hearing

BOOT = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job['path']; "
    "from taskorch.work import inside; inside.main(job)"
)
# Unbuffered, so that a crash loses nothing that was printed; no current folder in front of the standard library.
INTERPRETER = (sys.executable, "-u", "-P", "-X", "faulthandler", "-c", BOOT)
PRINTED_SECONDS = 0.5  # how often what was printed is looked at
PRINTED_LINES = 200  # of an attempt that go to the log; get_task_output has what is kept of the others
LINE_BYTES = 4_000  # a longer line is logged in pieces

log = logging.getLogger(__name__)


class Isolated(Handler):
    """The kind. `modules`: what the process imports; `folder`: of all attempts' files; `start`: where it runs."""

    in_process = False

    def __init__(
        self,
        function: Callable[..., Any],
        max_attempts: int,
        *,
        modules: str,
        folder: Path,
        grace_seconds: float,
        start: Path,
        spawner: Spawner | None = None,
    ) -> None:
        super().__init__(function, max_attempts)
        self._modules = modules
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._start = start
        self._spawner = spawner or Spawner(folder.parent / "cache")

    async def run(self, attempt: Attempt) -> Outcome | None:
        task, folder = attempt.task, self._attempt_folder(attempt.task)
        if attempt.adopted:
            return await self._end(attempt, folder)
        with ExitStack() as stack:
            try:
                make_folder(folder)
                heard = stack.enter_context(hearing(attempt, folder / "told"))
                shim = await self._spawner.start(folder)
            except (SpawnFailed, OSError) as error:
                return Failed(Reason.SPAWN_ERROR, str(error))
            stack.callback(shim.close)
            if attempt.ending:
                return unbegun(attempt.ending)
            try:
                await shim.order(self._order(task, folder / "told"))
            except SpawnFailed as error:
                return Interrupted(str(error))
            printed = Printed(task, folder)
            await follow(attempt, shim, self._grace_seconds, lambda: False, partial(_listen, heard, printed))
            heard.take()
            await printed.look(last=True)
        return await self._came_to(attempt, folder, heard.outcome)

    async def inspect(self, task: Task) -> Remains:
        """Its shim ends it when the server dies. While that is at work, it is to be adopted: to wait for that."""
        folder = self._attempt_folder(task)
        if await known(partial(supervised.holder, folder)) is not None:
            return Remains.ADOPTABLE
        return await remains(task, folder)

    async def _end(self, attempt: Attempt, folder: Path) -> Outcome | None:
        """Wait until what a dead server has left is gone."""
        if shim := await known(partial(Supervised.attach, folder)):
            shim.kill()
            try:
                if not await follow(attempt, shim, 0, partial(_lets_go, attempt), anyio.sleep_forever):
                    return None
            finally:
                shim.close()
        gone = await remains(attempt.task, folder) is not Remains.UNKNOWN
        return Failed(Reason.WORKER_LOST, "the server that ran it died", retryable=gone)

    async def _came_to(self, attempt: Attempt, folder: Path, told: Outcome | None) -> Outcome | None:
        """How it ended: as the process told, or else as its end shows."""
        record = await known(partial(supervised.exit_record, folder))
        if attempt.ending is Ending.LOST:
            return None
        if record is None:
            return await without_record(attempt, folder)
        if not record.tree_gone:
            return Failed(Reason.WORKER_LOST, "some of its processes could not be ended", retryable=False)
        return told or _ending(attempt, record, output.last_line(folder))

    def _order(self, task: Task, fifo: Path) -> Order:
        job = {"path": sys.path, "modules": self._modules, "task": to_values(task), "fifo": str(fifo)}
        return Order(
            program=sys.executable,
            argv=INTERPRETER,
            cwd=str(self._start),
            roots=(),
            env={**os.environ, **context.variables(), **marks(task)},
            stdin=json.dumps(job),
            timeout_seconds=task.timeout_seconds,
            grace_seconds=self._grace_seconds,
            on_server_exit="stop",
        )

    def _attempt_folder(self, task: Task) -> Path:
        return output.attempt_folder(self._folder, task.id, task.attempt)


class Printed:
    """Hands the first lines of what a process prints on to the log."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._which = task.id, task.attempt
        self._folder = folder
        self._read = 0
        self._rest = b""
        self._lines = 0

    async def listen(self) -> None:
        """Until cancelled."""
        while True:
            await anyio.sleep(PRINTED_SECONDS)
            await self.look()

    async def look(self, last: bool = False) -> None:
        """Log what is new, as whole lines; with `last` also one that has no end yet."""
        with suppress(OSError):  # what cannot be read now must not end the attempt
            data, self._read = await anyio.to_thread.run_sync(output.news, self._folder, self._read)
            *lines, self._rest = (self._rest + data).split(b"\n")
            if self._rest and (last or len(self._rest) > LINE_BYTES):
                lines, self._rest = [*lines, self._rest], b""
            for line in lines[: max(0, PRINTED_LINES - self._lines)]:
                log.warning("task %s attempt %s printed: %s", *self._which, output.clean(line))
            self._lines += len(lines)


async def _listen(heard: Hearing, printed: Printed) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(heard.listen)
        group.start_soon(printed.listen)


def _lets_go(attempt: Attempt) -> bool:
    return attempt.stopping or attempt.ending is Ending.LOST


def _ending(attempt: Attempt, record: Exit, last: str) -> Outcome | None:
    """The end of a process that told none."""
    match record.why:
        case "timeout":
            text = f"it ran longer than {attempt.task.timeout_seconds:g} s{killed_text(record.killed)}"
            return Failed(Reason.TIMEOUT, text)
        case "spawn_error":
            return spawn_error(record.errno or 0)
        case "cancel" if attempt.ending:
            return cut_short(attempt)
        case "exit":
            code, text = exit_text(record)
            more = "; was the system out of memory?" if code == 137 else f": {last}" if last and record.code else ""
            return Failed(Reason.EXIT_CODE, f"{text} before it returned{more}", code)
        case _:
            return Failed(Reason.INTERRUPTED, f"its supervisor was told to end it{killed_text(record.killed)}")
