"""What `top` shows: the numbers, and below them what works, what waits, and what ended last."""

import os
import sys
import termios
import tty
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial

import anyio
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from taskorch.calls.health import stats_reply
from taskorch.calls.replies import CONCISE_BYTES, task_facts
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts
from taskorch.cli import session, tables
from taskorch.cli.invocation import say, say_json
from taskorch.cli.tables import ATTEMPT, ID, KIND, NAME, PRIORITY, PROGRESS, STATUS, WHEN, WHY
from taskorch.domain.task import Status
from taskorch.storage.listing import Filters
from taskorch.storage.queries import WINDOW_MS
from taskorch.storage.store import Change

ROWS = 30  # where no screen says how many
AROUND = 5  # lines of a screen that hold no task
PAUSE_SECONDS = 0.25  # between two pictures at least, however much happens
COLUMNS = (ID, STATUS, WHY, PRIORITY, KIND, ATTEMPT, PROGRESS, WHEN, NAME)


async def once(service: Service, rows: int | None, as_json: bool) -> None:
    """One look, for programs."""
    stats, tasks = await _look(service, rows or ROWS)
    if as_json:
        say_json({"stats": stats, "tasks": tasks})
    else:
        say(_headline(stats).plain)
        tables.show(tasks, COLUMNS)


async def watch(service: Service, rows: int | None, interval: float) -> None:
    """A picture that is drawn anew when something has changed, until q; on dumb terminals one below another."""
    console = Console(highlight=False)
    changed = anyio.Event()

    def heard(_: Sequence[Change]) -> None:
        changed.set()

    async with session.following(service.store), anyio.create_task_group() as group:
        with _keys() as fd, service.store.listening(heard), _screen(console) as draw:
            if fd is not None:
                group.start_soon(_until_q, fd, group.cancel_scope)
            while True:
                changed = anyio.Event()
                stats, tasks = await _look(service, rows or max(1, console.height - AROUND))
                draw(Group(_headline(stats), Text(), tables.table(tasks, COLUMNS)))
                await anyio.sleep(PAUSE_SECONDS)
                with anyio.move_on_after(interval - PAUSE_SECONDS):
                    await changed.wait()


async def _look(service: Service, rows: int) -> tuple[Facts, list[Facts]]:
    """The statistics, and that many tasks at most: what works first, then what waits, then what ended last."""
    queries, since = service.queries, service.store.now() - WINDOW_MS
    tasks = (await queries.page(Filters(Status.WORKING), rows, None)).tasks
    tasks += (await queries.page(Filters(Status.WAITING), rows, None)).tasks[: max(1, rows // 2)]
    ended = await queries.ended(since, True, rows) + await queries.ended(since, False, rows)
    tasks += sorted(ended, key=lambda task: task.finished_at or 0, reverse=True)
    view = await service.view(tasks[:rows])
    return (await stats_reply(service)).facts, [task_facts(task, view, CONCISE_BYTES) for task in tasks[:rows]]


def _headline(stats: Facts) -> Text:
    queue, servers = stats["queue"], len(stats["workers"]["servers"])
    oldest = f", oldest {tables.span(queue['oldest_ready_seconds'])}" if "oldest_ready_seconds" in queue else ""
    served = f"{servers} server{'' if servers == 1 else 's'}" if servers else "no server runs"
    words = Text.assemble("taskorch  ", tables.counted(stats["status_distribution"]))
    return words.append(f"{queue['ready']} ready{oldest}  {served}  {stats['timestamp'][11:19]}Z")


@contextmanager
def _screen(console: Console) -> Generator[partial[None]]:
    """A function that shows a picture: in the place of the one before, where the terminal can do that."""
    if console.is_dumb_terminal or not console.is_terminal:
        yield partial(console.print)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield partial(live.update, refresh=True)


@contextmanager
def _keys() -> Generator[int | None]:
    """The descriptor on which single keys arrive while the block lasts; None where nobody can press any."""
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _until_q(fd: int, scope: anyio.CancelScope) -> None:
    while True:
        await anyio.wait_readable(fd)
        pressed = os.read(fd, 64)
        if not pressed or b"q" in pressed.lower():
            scope.cancel()
            return
