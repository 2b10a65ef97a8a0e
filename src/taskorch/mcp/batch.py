"""Many tasks in one call: all of them are stored or none, in one commit."""

from collections.abc import Mapping
from typing import Any

import anyio.to_thread

from taskorch.domain.errors import InvalidInput
from taskorch.mcp import arguments as args
from taskorch.mcp.actions import Call, new_task
from taskorch.mcp.aliases import understood
from taskorch.mcp.replies import Reply, row_facts, row_line
from taskorch.mcp.service import Service
from taskorch.storage.rows import dumps
from taskorch.storage.store import Wish

SHOWN = 10  # tasks whose rows are in the reply; of the others the ids
PAYLOAD_BYTES = 8_388_608  # of all payloads together
MISTAKES = 3  # that are told at once


async def create_tasks(service: Service, call: Call, a: args.CreateTasks) -> Reply:
    view = await service.view()  # what may fail comes before the tasks are stored
    wishes = await anyio.to_thread.run_sync(_wishes, service, a.tasks)
    stored = await service.store.add_all(wishes)
    there = sum(was_there for _, was_there in stored)
    rows = [row_facts(task, view) for task, _ in stored[:SHOWN]]
    ids = [task.id for task, _ in stored]
    following = f"Next: wait_for_tasks(task_ids=[…], timeout_seconds={view.wait_cap_seconds:g}), 100 ids at most."
    facts: dict[str, Any] = {"count": len(ids), "ids": ids, "tasks": rows} | ({"deduplicated": there} if there else {})
    already = f", {there} of them already there" if there else ""
    more = [f"and: {' '.join(ids[SHOWN:])}"] if len(ids) > SHOWN else []
    return Reply("\n".join([f"{len(ids)} tasks{already}:", *map(row_line, rows), *more, following]), facts)


def _wishes(service: Service, tasks: list[dict[str, Any]]) -> list[Wish]:
    """What is to be stored. Raises InvalidInput that says which of the tasks are wrong."""
    wishes: list[Wish] = []
    mistakes: list[str] = []
    for index, raw in enumerate(tasks):
        try:
            wishes.append(_wish(service, raw))
        except InvalidInput as error:
            mistakes.append(f"tasks[{index}]: {error}")
    if mistakes:
        more = f" {len(mistakes) - MISTAKES} more tasks are wrong." if len(mistakes) > MISTAKES else ""
        raise InvalidInput(" ".join(mistakes[:MISTAKES]) + more)
    if (size := sum(len(dumps(wish.new.payload)) for wish in wishes)) > PAYLOAD_BYTES:
        limit = f"at most {PAYLOAD_BYTES} may be in one call. Split it"
        raise InvalidInput(f"The payloads have {size} characters together; {limit}.")
    return wishes


def _wish(service: Service, raw: Mapping[str, Any]) -> Wish:
    if "wait_seconds" in raw:
        raise InvalidInput("wait_seconds is for create_task alone; call wait_for_tasks afterwards.")
    wish = args.parse(args.TaskWish, understood(raw, args.TaskWish.model_fields))
    return Wish(new_task(service, wish), wish.dedupe_key)
