"""What outside workers are answered: the task to work on, whether it is still theirs, what became of it."""

from dataclasses import replace

from taskorch.calls import outside_arguments as args
from taskorch.calls.actions import Call
from taskorch.calls.replies import CONCISE_BYTES, Reply, View, error_facts, error_text, headline, task_facts, task_reply
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts, iso, present, visible_line
from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.outside import OUTSIDE, check_kind, is_outside
from taskorch.domain.task import Completed, Failed, Reason, Task
from taskorch.storage.outside import Claimed, Ended, Nothing, Wanted
from taskorch.storage.rows import dumps

NEXT = "claim_task()"  # once one has ended


async def claim_task(service: Service, call: Call, a: args.ClaimTask) -> Reply:
    if a.kind is not None:
        if not is_outside(a.kind):
            raise InvalidInput(
                f"kind {shown(a.kind)} is not allowed: servers run it. Workers claim 'outside' or 'outside:NAME'; "
                "leave kind out for any of these."
            )
        check_kind(a.kind)
    worker = (a.worker and visible_line(a.worker)) or call.by
    wanted = Wanted(a.kind, a.label, a.work_directory)
    view = await service.view()  # what may fail comes before the claim
    while isinstance(found := await service.outside.claim(wanted, worker, _ms(a.claim_seconds)), Claimed):
        try:
            return _claimed(await _filled(service, found), worker, a.claim_seconds, view)
        except InvalidInput as error:  # nobody could do that one
            wrong = Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
            await service.outside.end(found.task.id, found.task.attempt, wrong)
    return _nothing(found, wanted, view)


async def heartbeat_task(service: Service, call: Call, a: args.HeartbeatTask) -> Reply:
    task = await service.queries.resolve(a.task_id)
    told = present(value=a.progress, total=a.total, message=a.message)
    claim_ms = None if a.claim_seconds is None else _ms(a.claim_seconds)
    after = await service.outside.heartbeat(task.id, a.attempt, told, claim_ms)
    until = iso(after.claim_expires_at or 0)
    before, following = f"Yours until {until}: ", _complete(after)
    if after.cancel_requested_at is not None:
        before, following = f"It is to be cancelled: stop. Yours until {until}: ", _stopped(after)
    return task_reply(after, await service.view(), before, {"claim_expires_at": until, "next": following})


async def complete_task(service: Service, call: Call, a: args.CompleteTask) -> Reply:
    task = await service.queries.resolve(a.task_id)
    return await _ended(service, task, await service.outside.end(task.id, a.attempt, Completed(a.result)))


async def fail_task(service: Service, call: Call, a: args.FailTask) -> Reply:
    task = await service.queries.resolve(a.task_id)
    outcome = Failed(Reason.ERROR, a.message, retryable=a.retryable)
    return await _ended(service, task, await service.outside.end(task.id, a.attempt, outcome))


async def _filled(service: Service, found: Claimed) -> Claimed:
    """It with the results that its payload takes. Raises InvalidInput when there are none, or they are too large."""
    task = await service.fill(found.task)
    service.kinds[OUTSIDE].check(task.payload)
    return replace(found, task=task)


def _claimed(found: Claimed, worker: str, claim_seconds: float, view: View) -> Reply:
    task, until = found.task, iso(found.task.claim_expires_at or 0)
    last = found.last_error and error_facts(found.last_error, CONCISE_BYTES)
    facts = {"claimed": True} | task_facts(task, view, CONCISE_BYTES)
    facts |= present(
        labels=list(task.labels) or None,
        payload=task.payload,  # as bounded by its kind
        worker=worker,
        claim_seconds=claim_seconds,
        claim_expires_at=until,
        timeout_seconds=task.timeout_seconds,
        last_error=last,
        next=_complete(task),
    )
    lines = [f"Claimed {headline(task, facts, view)}", f"payload: {dumps(task.payload)}"]
    lines += [f"labels: {', '.join(task.labels)}"] if task.labels else []
    lines += [f"the attempt before: {error_text(last)}"] if last else []
    limits = f"heartbeat_task makes that {claim_seconds:g} s from then on, {task.timeout_seconds:g} s in all"
    lines += [
        f"{worker} has it until {until}; {limits}.",
        f"Next, when it is done: {facts['next']}; if it cannot be done: fail_task.",
    ]
    return Reply("\n".join(lines), facts)


def _nothing(found: Nothing, wanted: Wanted, view: View) -> Reply:
    filtered = wanted != Wanted()
    hints: list[str] = []
    if found.ready:
        hints.append("Something has just become ready: call claim_task again.")
    elif found.others_ready:
        hints.append(f"Ready, but not fitting: {found.others_ready}; call claim_task with other filters, or none.")
    if found.next_run_at is not None:
        seconds = max(0.0, (found.next_run_at - view.now) / 1000)
        hints.append(f"The next one is due in {seconds:.0f} s: call again then.")
    elif found.waiting > found.ready:
        hints.append('Those that wait are held back; list_tasks(status="waiting") says why.')
    if found.working and (found.next_run_at is None or found.behind) and not (found.ready or found.others_ready):
        hints.append("What others work on may fail and come back, or free what waits for it: call again later.")
    hint = " ".join(hints) or "Nothing is left to do."
    facts: Facts = {"claimed": False, "waiting": found.waiting, "working": found.working} | present(
        others_ready=found.others_ready or None,
        next_run_at=None if found.next_run_at is None else iso(found.next_run_at),
        hint=hint,
    )
    which = " that fit" if filtered else ""
    due = f" (next {facts['next_run_at']})" if found.next_run_at is not None else ""
    text = f"Nothing to claim: {found.waiting} waiting{which}{due}, outside workers are at {found.working}. {hint}"
    return Reply(text, facts)


async def _ended(service: Service, task: Task, ended: Ended) -> Reply:
    if ended.task is None:
        return Reply(
            f"{task.label} has ended, and is deleted as was asked. Next: {NEXT}",
            {"id": task.id, "deleted": True, "next": NEXT},
        )
    before, marks = ("This was known already: ", {"repeated": True}) if ended.again else ("", {})
    return task_reply(ended.task, await service.view(), before, marks | {"next": NEXT})


def _complete(task: Task) -> str:
    return f'complete_task(task_id="{task.id}", attempt={task.attempt})'


def _stopped(task: Task) -> str:
    return f'fail_task(task_id="{task.id}", attempt={task.attempt}, message="stopped")'


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
