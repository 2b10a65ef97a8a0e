"""Waiting for the end of tasks: in bounded waits, as tools do, one after the other."""

import math
import time
from collections.abc import Sequence

from taskorch.calls import actions, arguments
from taskorch.calls.arguments import WaitForTasks, parse
from taskorch.calls.replies import row_facts
from taskorch.calls.wording import Facts
from taskorch.cli import session, tables
from taskorch.cli.exits import Exit
from taskorch.cli.invocation import hint, say_json
from taskorch.config import Settings
from taskorch.domain.errors import NotFound
from taskorch.domain.task import Status, Task

NOBODY = 'no server runs: nothing will start before one does, or "taskorch worker"'


async def wait_for(settings: Settings, tasks: Sequence[str], timeout: str | None, first: bool, as_json: bool) -> Exit:
    """Wait, and print a row for each of the tasks, or what wait_for_tasks answers. Raises TaskError."""
    given = {"task_ids": [*tasks], "until": "any" if first else "all"}
    most = parse(WaitForTasks, given | {"timeout_seconds": timeout}).timeout_seconds if timeout else math.inf
    async with session.looking(settings) as service, session.following(service.store):
        ids, gone = await service.stored(parse(WaitForTasks, given).task_ids)
        if not await session.is_served(service):
            hint(NOBODY)
        until = time.monotonic() + most
        while True:
            seconds = min(service.wait_cap_seconds, max(0.0, until - time.monotonic()))
            wanted = parse(WaitForTasks, given | {"task_ids": ids + gone, "timeout_seconds": seconds})
            facts = (await actions.wait_for_tasks(service, session.CALL, wanted)).facts
            if facts["done"] or time.monotonic() >= until:
                break
        found = await service.queries.get_many(ids)
        view = await service.view(found)
    if as_json:
        say_json(facts)
    else:
        tables.show([row_facts(task, view) for task in found])
        for task_id in facts.get("deleted", ()):
            hint(f"{task_id} is no longer stored")
    return _verdict(facts)


async def until_ended(settings: Settings, task_id: str, as_json: bool) -> Exit:
    """Wait for the end of one, and print it, or what get_task answers. Raises NotFound when it is deleted."""
    async with session.looking(settings) as service, session.following(service.store):
        tasks = await service.wait_until(_all_ended, [task_id], math.inf, session.CALL.tell)
        if not tasks:
            raise NotFound(f"{task_id} was deleted before it had ended.")
        view = await service.view(tasks)
        if as_json:
            wanted = parse(arguments.GetTask, {"task_id": task_id})
            say_json((await actions.get_task(service, session.CALL, wanted)).facts)
        else:
            tables.show([row_facts(tasks[0], view)])
    return Exit.OK if tasks[0].status is Status.COMPLETED else Exit.FAILED


def _all_ended(tasks: Sequence[Task]) -> bool:
    return all(task.ended for task in tasks)


def _verdict(facts: Facts) -> Exit:
    """What a wait comes to."""
    counts = facts["counts"]
    if not facts["done"]:
        return Exit.TIMEOUT
    if counts.get("failed") or counts.get("cancelled"):
        return Exit.FAILED
    return Exit.NOT_FOUND if facts.get("deleted") else Exit.OK
