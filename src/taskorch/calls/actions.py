"""What the tools do: a function each. How they look to a model is in `mcp.tools`."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread

from taskorch.calls import arguments as args
from taskorch.calls import links
from taskorch.calls import schedules as timing
from taskorch.calls.health import stats_reply
from taskorch.calls.history import FULL_BYTES, full_reply
from taskorch.calls.policies import given_policy
from taskorch.calls.replies import Reply, list_reply, output_reply, task_reply
from taskorch.calls.service import Service, Tell, missing
from taskorch.calls.waits import awaited, wait_order, wait_reply
from taskorch.calls.wording import iso
from taskorch.domain.errors import InvalidInput, did_you_mean, shown
from taskorch.domain.kind import Kind
from taskorch.domain.outside import OUTSIDE, check_kind, is_outside
from taskorch.domain.task import RECIPE, TOOL, NewTask, Priority, Status, Task
from taskorch.storage.additions import Wish
from taskorch.storage.listing import Filters
from taskorch.telemetry import context
from taskorch.work import output

DELETE_SECONDS = 25.0  # how long delete_task waits for a working task to end
CURSOR = re.compile(r"c[0-9]{1,18}")  # what SQLite can hold


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: who called, how to tell them progress, and how to ask the person behind them.

    `ask(question, about)`: the person's answer, None if they cannot be asked.
    """

    by: str
    tell: Tell
    ask: Callable[[str, str], Awaitable[bool | None]]


async def create_task(service: Service, call: Call, a: args.CreateTask) -> Reply:
    _check_wait(service, "wait_seconds", a.wait_seconds)
    view = await service.view()  # what may fail comes before the task is stored
    full = await service.queries.limit(a.concurrency_key) if a.concurrency_key else None
    names = links.named(a)
    depends_on = await links.found(service, names)
    ids = {name: parent.id for name, parent in depends_on.items()}
    task, there = await _store(service, links.wish(a, new_task(service, a), names, ids))
    before, marks = ("Already created: ", {"deduplicated": True}) if there else ("Created ", {})
    if a.wait_seconds == 0:
        return task_reply(task, replace(view, waits=links.waits(task, [*depends_on.values()], full)), before, marks)
    found = await service.wait_until(lambda tasks: all(t.ended for t in tasks), [task.id], a.wait_seconds, call.tell)
    after = found[0] if found else task
    return task_reply(after, await service.view([after]), before, marks)


async def list_tasks(service: Service, call: Call, a: args.ListTasks) -> Reply:
    page = await service.queries.page(filters(a), a.limit, read_cursor(a.cursor))
    return list_reply(page, cursor(page.next_seq), await service.view())


async def get_task(service: Service, call: Call, a: args.GetTask, most_bytes: int = FULL_BYTES) -> Reply:
    """`most_bytes`: of a payload or a result, in full."""
    task, view = await service.seen(a.task_id)
    if a.detail == "concise":
        return task_reply(task, view)
    folder = str(output.attempt_folder(service.output_folder, task.id, task.attempt))
    has_output = task.is_command and task.attempt > 0
    history = await service.queries.history(task)
    return full_reply(task, service.shown(task), history, view, folder if has_output else None, most_bytes)


async def update_task(service: Service, call: Call, a: args.UpdateTask) -> Reply:
    task = await service.queries.resolve(a.task_id)
    given = a.model_dump(exclude={"task_id", "expected_version", "delay_seconds", "run_at"}, exclude_none=True)
    begin = args.start(a.delay_seconds, a.run_at, service.store.now())
    changes: dict[str, Any] = given | ({} if begin is None else {"run_at": begin})
    if not changes:
        raise InvalidInput("update_task was given nothing to change. Add a field, like priority or delay_seconds.")
    if a.priority:
        changes["priority"] = Priority[a.priority.upper()]
    if a.labels is not None:
        changes["labels"] = tuple(a.labels)
    if a.payload is not None:
        changes["payload"] = await links.edited(service, task, a.payload)
        _kind(service, task.kind).check(a.payload)
    if a.expires_at is not None:
        _check_expiry(a.expires_at, None, service.store.now())
    updated = await service.store.edit(task.id, changes, a.expected_version, call.by)
    return task_reply(updated, await service.view([updated]), "Updated ")


async def cancel_task(service: Service, call: Call, a: args.CancelTask) -> Reply:
    task = await service.queries.resolve(a.task_id)
    after = await service.store.cancel(task.id, a.reason, call.by)
    return task_reply(after, await service.view([after]), "Already ended: " if task.ended else "")


async def retry_task(service: Service, call: Call, a: args.RetryTask) -> Reply:
    task = await service.queries.resolve(a.task_id)
    run_at = service.store.now() + round(a.delay_seconds * 1000) if a.delay_seconds else None
    after = await service.store.retry(task.id, run_at, call.by, context.current())
    return task_reply(after, await service.view([after]), "Retrying ")


async def delete_task(service: Service, call: Call, a: args.DeleteTask) -> Reply:
    task = await service.queries.resolve(a.task_id, prefixes=False)
    confirm, asked = a.confirm, None
    if task.status is Status.WORKING and not confirm:
        question = f"{task.label} is working. Cancel it and delete it with its output?"
        answer = await call.ask(question, f"delete {task.id} attempt {task.attempt}")
        if answer is False:
            return Reply(f"Not deleted: the user said no. {task.label} goes on.", {"id": task.id, "deleted": False})
        confirm, asked = bool(answer), task.attempt
    left = await service.store.delete(task.id, confirm, call.by, asked)
    if left is not None:
        await service.wait_until(lambda tasks: not tasks, [task.id], DELETE_SECONDS, call.tell)
        left = (await service.queries.get_many([task.id]) or [None])[0]
    if left is None:
        return Reply(f"Deleted {task.label}.", {"id": task.id, "deleted": True})
    note = f"{task.label} is being cancelled and is deleted when it has ended."
    return Reply(note, {"id": task.id, "deleted": False, "phase": "cancelling"})


async def wait_for_tasks(service: Service, call: Call, a: args.WaitForTasks) -> Reply:
    seconds = a.timeout_seconds
    if "timeout_seconds" in a.model_fields_set:
        _check_wait(service, "timeout_seconds", seconds)
    ids, gone = await service.stored(a.task_ids)
    until = all if a.until == "all" else any

    def over(tasks: Sequence[Task]) -> bool:
        known = awaited(tasks)
        return until(task.ended for task in known) or (a.until == "any" and len(tasks) < len(ids)) or not known

    tasks = await service.wait_until(over, ids, min(seconds, service.wait_cap_seconds), call.tell)
    tails = await service.tails(wait_order(tasks))
    done = over(tasks) and (bool(awaited(tasks)) or not tasks)
    return wait_reply(tasks, gone + missing(ids, tasks), done, tails, await service.view(tasks))


async def get_task_output(service: Service, call: Call, a: args.GetTaskOutput) -> Reply:
    task = await service.queries.resolve(a.task_id)
    attempt = a.attempt or task.attempt
    if attempt > task.attempt:
        raise InvalidInput(
            f"{task.label} has had {task.attempt} attempts; there is no attempt {attempt}. "
            "Leave attempt out for the latest."
        )
    if a.offset is not None and a.tail_bytes != type(a).model_fields["tail_bytes"].default:
        raise InvalidInput("tail_bytes and offset exclude each other; give one of them.")
    folder = output.attempt_folder(service.output_folder, task.id, attempt)

    def read() -> output.Slice:
        if a.grep is not None:
            return output.grep(folder, a.grep, offset=a.offset or 0, max_bytes=a.tail_bytes)
        return output.read(folder, offset=a.offset, max_bytes=a.tail_bytes)

    end = await service.queries.attempt(task, attempt)  # before what was written: then that is whole
    return output_reply(task, attempt, await anyio.to_thread.run_sync(read), a.grep, end)


async def get_stats(service: Service, call: Call, a: args.GetStats) -> Reply:
    return await stats_reply(service)


def filters(a: args.Filtering) -> Filters:
    return Filters(
        status=Status(a.status) if a.status else None,
        kind=a.kind,
        priority=Priority[a.priority.upper()] if a.priority else None,
        label=a.label,
        text=a.text,
        created_after=a.created_after,
        created_before=a.created_before,
    )


def new_task(service: Service, a: args.TaskWish) -> NewTask:
    """What the arguments ask for. Raises InvalidInput."""
    now = service.store.now()
    kind = _kind(service, a.kind)
    kind.check(a.payload)
    run_at = args.start(a.delay_seconds, a.run_at, now)
    if a.expires_at is not None:
        _check_expiry(a.expires_at, run_at, now)
    retry, max_attempts = given_policy(a, kind)
    if a.schedule is not None:
        _check_schedule(a)
    return NewTask(
        kind=a.kind,
        payload=a.payload,
        name=a.name,
        priority=Priority[a.priority.upper()],
        max_attempts=max_attempts,
        timeout_seconds=a.timeout_seconds or kind.timeout_seconds or service.timeout_seconds,
        run_at=run_at,
        expires_at=a.expires_at,
        on_server_exit=a.on_server_exit or service.on_server_exit,
        labels=tuple(a.labels),
        retry=retry,
        concurrency_key=a.concurrency_key,
        schedule=None if a.schedule is None else timing.wished(a.schedule),
        trace=context.current(),
    )


async def _store(service: Service, wish: Wish) -> tuple[Task, bool]:
    """The task, and whether it was there already. Most tasks know nothing of others, and are stored together."""
    if wish.dedupe_key is None and not wish.depends_on:
        return await service.store.add(wish.new), False
    return (await service.store.add_all([wish]))[0]


def _kind(service: Service, name: str) -> Kind:
    if is_outside(name) and OUTSIDE in service.kinds:
        check_kind(name)
        return service.kinds[OUTSIDE]
    if name not in service.kinds:
        known = sorted(service.kinds)
        raise InvalidInput(f"Unknown kind {shown(name)}.{_meant(name, known)} Use one of: {', '.join(known)}.")
    return service.kinds[name]


def _meant(name: str, known: Sequence[str]) -> str:
    """What a kind that there is not may mean, or what switches it on."""
    if is_outside(name):
        return " Outside workers are switched on by TASKORCH_TOOLSETS=core,worker in the environment of taskorch."
    if name == TOOL:
        return " Tools of other servers can be called when TASKORCH_MCP_SERVERS names a file of such servers."
    return did_you_mean(RECIPE + name, known) if RECIPE + name in known else did_you_mean(name, known)


def _check_expiry(expires_at: int, run_at: int | None, now: int) -> None:
    if expires_at <= max(now, run_at or 0):
        raise InvalidInput(
            f"expires_at {iso(expires_at)} must lie ahead, and after run_at; the task could never start. "
            "Choose a later time."
        )


def _check_schedule(a: args.TaskWish) -> None:
    """Raise InvalidInput for what a schedule, which never starts and has no end, cannot have."""
    if links.named(a):
        raise InvalidInput("A schedule cannot depend on other tasks; leave out depends_on, and $result in the payload.")
    if a.expires_at is not None:
        raise InvalidInput("A schedule has no expires_at; leave it out, and call cancel_task to end the schedule.")
    if isinstance(a, args.CreateTask) and a.wait_seconds:
        raise InvalidInput("A schedule has no end to wait for; leave out wait_seconds.")


def _check_wait(service: Service, name: str, seconds: float) -> None:
    cap = service.wait_cap_seconds
    if seconds > cap:
        raise InvalidInput(
            f"{name} {seconds:g} is not allowed; it must be at most {cap:g}: hosts end calls after about a minute. "
            f"Wait {cap:g} s at a time, or have the user raise TASKORCH_WAIT_CAP_SECONDS."
        )


def cursor(seq: int | None) -> str | None:
    """Where the next page begins, as a client gives it back; None after the last one."""
    return None if seq is None else f"c{seq}"


def read_cursor(cursor: str | None) -> int | None:
    """Before which place a page begins, None for the first one. Raises InvalidInput."""
    if cursor is None:
        return None
    if not CURSOR.fullmatch(cursor):
        raise InvalidInput(
            f"cursor {shown(cursor)} is none that was given; leave it out to begin with the newest task."
        )
    return int(cursor[1:])
