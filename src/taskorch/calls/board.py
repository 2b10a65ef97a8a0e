"""What the board is told: the page that shows tasks live, in a chat or a browser."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from taskorch.calls.actions import Call, cursor, read_cursor
from taskorch.calls.arguments import Arguments, Id, StatusName
from taskorch.calls.health import stats_reply
from taskorch.calls.moments import number
from taskorch.calls.replies import Reply, View, task_facts
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts, counts_text, iso, present
from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.task import Status, Task
from taskorch.storage.listing import Filters
from taskorch.storage.overview import Overview, read_mark

ROWS = 500
MESSAGE_BYTES = 200  # of an error or a progress message in a row
IN_WORDS = (
    "Where the host shows no page: list_tasks has the tasks as text, and `taskorch top` shows them at a terminal."
)


class ShowBoard(Arguments):
    task_id: Annotated[Id | None, Field(description="open this one")] = None


class BoardData(Arguments):
    status: StatusName | None = None
    text: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    cursor: str | None = None
    since: str | None = None
    limit: Annotated[int, Field(ge=1, le=ROWS), BeforeValidator(number)] = ROWS


@cache
def page() -> str:
    """The board as one HTML document: it asks for nothing from outside."""
    return resources.files("taskorch.calls").joinpath("board.html").read_text("utf-8")


async def show_board(service: Service, call: Call, a: ShowBoard) -> Reply:
    """The statistics, for who sees no page; and which task it opens."""
    stats = await stats_reply(service)
    reply = Reply(f"{stats.text}\n{IN_WORDS}", stats.facts | {"hint": IN_WORDS})
    if a.task_id is None:
        return reply
    task = await service.queries.resolve(a.task_id)
    return Reply(f"{reply.text}\nOn the board: {task.label}", reply.facts | {"task_id": task.id})


async def board_data(service: Service, call: Call, a: BoardData) -> Reply:
    """A page of rows, or with `since` those that have changed."""
    filters = Filters(status=Status(a.status) if a.status else None, text=a.text)
    now = service.store.now()
    if a.since is None:
        found = await service.queries.overview(filters, a.limit, read_cursor(a.cursor), now)
        return _reply(service, found)
    mark = read_mark(a.since)
    if mark is None:
        raise InvalidInput(f"since {shown(a.since)} is not one of board_data; leave it out to load everything.")
    if a.cursor is not None:
        raise InvalidInput("since and cursor exclude each other; give one of them.")
    found = await service.queries.changes(filters, mark, now)
    return _reply(service, found, gone=list(found.gone), stale=found.stale or None)


def _reply(service: Service, found: Overview, **changes: object) -> Reply:
    view = service.view_of(found.situation)
    facts: Facts = present(
        now=iso(view.now),
        tasks=[_row(task, view, found) for task in found.tasks],
        counts=found.counts,
        counts_partial=found.counts_partial or None,
        servers=found.servers,
        next_cursor=cursor(found.next_seq),
        since=str(found.mark),
        **changes,
    )
    counts = f" ({counts_text(found.counts)})" if found.counts is not None else ""
    return Reply(f"Rows for the board: {len(found.tasks)}{counts}. list_tasks is for reading.", facts)


def _row(task: Task, view: View, found: Overview) -> Facts:
    facts = task_facts(task, view, MESSAGE_BYTES)
    for name in ("result", "result_bytes", "next"):  # the page asks for the task when it shows them
        facts.pop(name, None)
    return facts | present(
        labels=list(task.labels) or None,
        depends_on=found.parents.get(task.id),
        runs=[_run(row) for row in found.runs[task.id]] if task.id in found.runs else None,
    )


def _run(row: Mapping[str, Any]) -> Facts:
    times = {name: iso(row[name]) for name in ("started_at", "ended_at") if row[name] is not None}
    return present(attempt=row["attempt"], **times, outcome=row["outcome"], reason=row["reason"])
