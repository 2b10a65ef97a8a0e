"""Pages of tasks by number, in any order."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from taskorch.calls.actions import filters
from taskorch.calls.arguments import Filtering, Offset, Word
from taskorch.calls.moments import number
from taskorch.calls.replies import CONCISE_BYTES, View, task_facts
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts, iso, present
from taskorch.domain.task import Task
from taskorch.http.words import told_facts
from taskorch.storage.listing import Order

MOST = 1000  # tasks on a page

Sort = Literal["created_at", "updated_at", "priority", "status", "name"]


class ListTasks(Filtering):
    work_directory: Annotated[
        Annotated[str, Field(min_length=1, max_length=4096)] | None,
        Field(description="in the folder of a command (payload.cwd) or of outside work (payload.work_directory)"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=MOST), BeforeValidator(number)] = 100
    offset: Annotated[Offset, Field(description="tasks to pass over")] = 0
    sort_by: Annotated[Sort, Word] = "created_at"
    sort_order: Annotated[Literal["asc", "desc"], Word] = "desc"


async def list_tasks(service: Service, a: ListTasks) -> Facts:
    """`{tasks, pagination: {total, limit, offset, has_more, total_partial?}}`; of each task what is concise."""
    wanted = replace(filters(a), work_directory=a.work_directory)
    page = await service.queries.window(wanted, Order(a.sort_by, a.sort_order == "desc"), a.limit, a.offset)
    view = await service.view(page.tasks)
    pagination = present(
        total=page.total,
        limit=a.limit,
        offset=a.offset,
        has_more=page.has_more,
        total_partial=page.partial or None,
    )
    return {"tasks": [_item(task, view) for task in page.tasks], "pagination": pagination}


def _item(task: Task, view: View) -> Facts:
    labels = present(labels=list(task.labels) or None)
    return told_facts(task_facts(task, view, CONCISE_BYTES)) | labels | {"updated_at": iso(task.updated_at)}
