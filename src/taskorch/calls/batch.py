"""Many tasks in one call: all of them are stored or none, in one commit. They may depend on each other by `ref`."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

import anyio.to_thread
from pydantic import Field

from taskorch.calls import arguments as args
from taskorch.calls import links
from taskorch.calls.actions import Call, new_task
from taskorch.calls.advice import refuse_wishes
from taskorch.calls.aliases import understood
from taskorch.calls.replies import Reply, View, row_facts, row_line
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts
from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.task import NewTask, Task
from taskorch.storage.additions import Wish
from taskorch.storage.ids import new_id
from taskorch.storage.rows import dumps

SHOWN = 10  # tasks whose rows are in the reply; of the others the ids
PAYLOAD_BYTES = 8_388_608  # of all payloads together
MISTAKES = 3  # that are told at once
LINKS = 100_000  # dependencies in one call


class BatchWish(args.TaskWish):
    """One of the tasks: what create_task takes, and a name that the others of the call know it by."""

    ref: Annotated[str | None, Field(min_length=1, max_length=200)] = None


Wanted = tuple[BatchWish, NewTask]


async def create_tasks(service: Service, call: Call, a: args.CreateTasks) -> Reply:
    view = await service.view()  # what may fail comes before the tasks are stored
    checked = await anyio.to_thread.run_sync(wanted, service, a.tasks)
    return _reply(await service.store.add_all(await _wishes(service, checked)), view)


async def _wishes(service: Service, wanted: Sequence[Wanted]) -> list[Wish]:
    """The tasks to be stored, with ids in the place of refs and names. Raises InvalidInput."""
    refs = _refs([wish for wish, _ in wanted])
    names = [links.named(wish) for wish, _ in wanted]
    _check_order([wish for wish, _ in wanted], names, refs)
    others = list(dict.fromkeys(name for some in names for name in some if name not in refs))
    ids = {name: task.id for name, task in (await links.found(service, others)).items()} | refs
    return [
        links.wish(wish, new, some, ids, wish.ref and refs[wish.ref])
        for (wish, new), some in zip(wanted, names, strict=True)
    ]


def _reply(stored: Sequence[tuple[Task, bool]], view: View) -> Reply:
    ids = [task.id for task, _ in stored]
    rows = [row_facts(task, view) for task, _ in stored[:SHOWN]]
    there = sum(was_there for _, was_there in stored)
    facts: Facts = {"count": len(ids), "ids": ids, "tasks": rows} | ({"deduplicated": there} if there else {})
    already = f", {there} of them already there" if there else ""
    more = [f"and: {' '.join(ids[SHOWN:])}"] if len(ids) > SHOWN else []
    following = f"Next: wait_for_tasks(task_ids=[…], timeout_seconds={view.wait_cap_seconds:g}), 100 ids at most."
    return Reply("\n".join([f"{len(ids)} tasks{already}:", *map(row_line, rows), *more, following]), facts)


def wanted(service: Service, tasks: Sequence[Mapping[str, Any]]) -> list[Wanted]:
    """What is to be stored, checked one by one. Raises InvalidInput that says which of the tasks are wrong."""
    found: list[Wanted] = []
    mistakes: list[str] = []
    for index, raw in enumerate(tasks):
        try:
            found.append(_wish(service, raw))
        except InvalidInput as error:
            mistakes.append(f"tasks[{index}]: {error}")
    if mistakes:
        more = f" {len(mistakes) - MISTAKES} more tasks are wrong." if len(mistakes) > MISTAKES else ""
        raise InvalidInput(" ".join(mistakes[:MISTAKES]) + more)
    if (size := sum(len(dumps(new.payload)) for _, new in found)) > PAYLOAD_BYTES:
        limit = f"at most {PAYLOAD_BYTES} may be in one call. Split it"
        raise InvalidInput(f"The payloads have {size} characters together; {limit}.")
    return found


def _wish(service: Service, raw: Mapping[str, Any]) -> Wanted:
    if "wait_seconds" in raw:
        raise InvalidInput("wait_seconds is for create_task alone; call wait_for_tasks afterwards.")
    given = understood(raw, BatchWish.model_fields)
    refuse_wishes("create_task", given.keys() - BatchWish.model_fields.keys())
    wish = args.parse(BatchWish, given)
    return wish, new_task(service, wish)


def _refs(wishes: Sequence[BatchWish]) -> dict[str, str]:
    """The id that each task with a ref gets, by that ref."""
    refs: dict[str, str] = {}
    for index, wish in enumerate(wishes):
        if wish.ref in refs:
            raise InvalidInput(f"tasks[{index}]: ref {shown(wish.ref)} is another task's; give each its own.")
        if wish.ref is not None:
            refs[wish.ref] = new_id()
    return refs


def _check_order(wishes: Sequence[BatchWish], names: Sequence[list[str]], refs: Mapping[str, str]) -> None:
    """Raise InvalidInput when tasks would wait for a schedule, or for each other in a circle, which it shows."""
    endless = {wish.ref for wish in wishes if wish.schedule is not None}
    for index, some in enumerate(names):
        if found := [name for name in some if name in endless]:
            raise InvalidInput(
                f"tasks[{index}]: depends_on {shown(found[0])} is a schedule, which has no end. Leave it out."
            )
    if (links_wanted := sum(map(len, names))) > LINKS:
        raise InvalidInput(f"The tasks name {links_wanted} tasks in depends_on; at most {LINKS} may be in one call.")
    graph = {wish.ref: [n for n in some if n in refs] for wish, some in zip(wishes, names, strict=True) if wish.ref}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1][::-1]  # each behind the one that depends on it
        shown_cycle = " -> ".join(cycle if len(cycle) <= 10 else [*cycle[:9], "…", cycle[-1]])
        raise InvalidInput(
            f"depends_on goes round in a circle: {shown_cycle} (each depends on the next), so none could ever start. "
            "Leave one of these out."
        ) from None
