"""What a new task says of others: whom it waits for, and whose results it takes. Names become ids here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskorch.calls.arguments import TaskWish
from taskorch.calls.service import Service
from taskorch.domain import references
from taskorch.domain.errors import Conflict, InvalidInput, NotFound
from taskorch.domain.task import NewTask, Task
from taskorch.storage.additions import Wish
from taskorch.storage.dependencies import FIRST, Waits
from taskorch.storage.ids import new_id
from taskorch.storage.limits import Full

MOST = 1_000  # tasks that one may depend on


def named(a: TaskWish) -> list[str]:
    """The tasks that it names, as they are written: those that it depends on, a result being a dependency too."""
    names = list(dict.fromkeys([*a.depends_on, *(found.task for found in references.find(a.payload))]))
    if len(names) > MOST:
        raise InvalidInput(
            f"depends_on names {len(names)} tasks; at most {MOST} are allowed. Let one task gather some."
        )
    return names


async def found(service: Service, names: Sequence[str]) -> dict[str, Task]:
    """The stored tasks of these names. Raises InvalidInput for one that means none, or several."""
    tasks: dict[str, Task] = {}
    for name in names:
        try:
            tasks[name] = await service.queries.resolve(name)
        except (NotFound, InvalidInput) as error:
            raise InvalidInput(f"depends_on: {error}") from None
    return tasks


def wish(a: TaskWish, new: NewTask, names: Sequence[str], ids: Mapping[str, str], task_id: str | None = None) -> Wish:
    """The task to be stored, with `ids` in the place of the `names` that it was given."""
    if names:
        new = replace(new, payload=references.renamed(new.payload, ids))
    depends_on = tuple(dict.fromkeys(ids[name] for name in names))
    return Wish(new, a.dedupe_key, depends_on, a.on_dependency_failure, task_id or new_id())


def waits(task: Task, depends_on: Sequence[Task], full: Full | None) -> dict[str, Waits | Full]:
    """What a task waits for that was just created. `full`: what used up the limit of its concurrency_key before."""
    if task.held and full:
        return {task.id: full}
    parents = {parent.id: parent for parent in depends_on}
    first = [(parent.id, parent.name) for parent in parents.values() if not parent.ended]
    return {task.id: Waits(len(first), len(parents), tuple(first[:FIRST]))} if task.blocked and first else {}


async def edited(service: Service, task: Task, payload: Mapping[str, object]) -> Mapping[str, object]:
    """The new payload of a stored task with ids for names. Raises Conflict where it takes results of other tasks.

    What a task depends on is fixed when it is created.
    """
    names = list(dict.fromkeys(reference.task for reference in references.find(payload)))
    if not names:
        return payload
    ids = {name: parent.id for name, parent in (await found(service, names)).items()}
    if others := sorted(set(ids.values()) - set(await service.queries.parents(task))):
        raise Conflict(
            f"{task.label} does not depend on {others[0]}, whose result it was to take, and that cannot be added. "
            "Nothing was changed: create a new task."
        )
    return references.renamed(payload, ids)
