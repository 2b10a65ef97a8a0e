"""The full view of one task: its payload and settings, and everything that happened to it, in order."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from taskorch.calls.replies import CONCISE_BYTES, Reply, View, details, headline, quoted, task_facts
from taskorch.calls.schedules import schedule_facts
from taskorch.calls.wording import Facts, cut_bytes, cut_json, iso, present, visible
from taskorch.domain.readiness import USUAL
from taskorch.domain.task import Retry, Task
from taskorch.storage.queries import History
from taskorch.storage.rows import dumps

FULL_BYTES = 16_384  # of a payload, a result, an error's message
NAME_BYTES = 44  # of another task's name


def full_reply(
    task: Task,
    payload: Mapping[str, Any],
    history: History,
    view: View,
    folder: str | None,
    most_bytes: int = FULL_BYTES,
) -> Reply:
    """The concise answer and the rest. `payload`: as it may be shown; `folder`: where the output files lie."""
    facts = task_facts(task, view, most_bytes) | present(
        labels=list(task.labels) or None,
        concurrency_key=task.concurrency_key,
        timeout_seconds=task.timeout_seconds,
        expires_at=task.expires_at and iso(task.expires_at),
        on_server_exit=task.on_server_exit,
        retry=task.retry and _retry_facts(task.retry),
        interruptions=task.interruptions or None,
        paused=task.paused or None,
        depends_on=_others(history.depends_on),
        on_dependency_failure=history.depends_on[0]["on_failure"] if history.depends_on else None,
        dependents=_others(history.dependents),
        schedule=schedule_facts(task.schedule) if task.schedule else history.schedule,
        firings=[_firing_facts(row) for row in history.firings] or None,
        cancel_requested_at=task.cancel_requested_at and iso(task.cancel_requested_at),
        claim_expires_at=task.claim_expires_at and iso(task.claim_expires_at),
        updated_at=iso(task.updated_at),
        output_folder=folder,
        **cut_json("payload", payload, most_bytes),
        attempts=[_attempt_facts(row) for row in history.attempts] or None,
        events=[_event_facts(row) for row in history.events] or None,
    )
    settings = f"timeout {task.timeout_seconds:g} s, on server exit: {task.on_server_exit}"
    labels = f", labels: {', '.join(task.labels)}" if task.labels else ""
    key = f', concurrency key "{task.concurrency_key}"' if task.concurrency_key else ""
    said = facts["payload"] if "payload_bytes" in facts else dumps(facts["payload"])
    expires = f", expires {facts['expires_at']}" if task.expires_at else ""
    silent = f", claimed until {facts['claim_expires_at']}" if task.claim_expires_at else ""
    settings += labels + key + expires + silent
    lines = [headline(task, facts, view), *details(task, facts), f"payload: {said}", settings]
    lines += _order_lines(facts)
    lines += [f"retry: {dumps(facts['retry'])}"] if task.retry else []
    lines += _schedule_lines(facts)
    lines += [f"output files: {folder}"] if folder else []
    lines += ["history:", f"  {iso(task.created_at)} created", *_history_lines(history)]
    return Reply("\n".join(lines), facts)


def _others(rows: Sequence[Mapping[str, Any]]) -> list[Facts] | None:
    """The tasks that one depends on, or that depend on it; absent where there are none."""
    return [
        present(id=row["id"], name=cut_bytes(row["name"], NAME_BYTES), status=row["status"]) for row in rows
    ] or None


def _order_lines(facts: Facts) -> list[str]:
    def names(others: Sequence[Facts]) -> str:
        return ", ".join(f"{other['id']}{quoted(other)} {other['status']}" for other in others)

    lines: list[str] = []
    if "depends_on" in facts:
        lines.append(f"depends on: {names(facts['depends_on'])}; if one fails: {facts['on_dependency_failure']}")
    if "dependents" in facts:
        lines.append(f"depend on it: {names(facts['dependents'])}")
    return lines


def _retry_facts(policy: Retry) -> Facts:
    """What is not as usual in it, by the names that it was given by."""
    facts = {name: value for name, value in asdict(policy).items() if value != getattr(USUAL, name)}
    return facts | {name: [*facts[name]] for name in ("on_exit", "fail_on_exit") if name in facts}


def _schedule_lines(facts: Facts) -> list[str]:
    lines = [f"schedule: {dumps(facts['schedule'])}"] if "schedule" in facts else []
    lines += ["created last:"] if "firings" in facts else []
    return lines + [f"  {row['task']} {row['status']}, for {row['at']}" for row in facts.get("firings", ())]


def _firing_facts(row: Mapping[str, Any]) -> Facts:
    return {"at": iso(row["at"]), "task": row["task"], "status": row["status"]}


def _attempt_facts(row: Mapping[str, Any]) -> Facts:
    times = {name: iso(row[name]) for name in ("started_at", "ended_at") if row[name] is not None}
    rest = {name: row[name] for name in ("outcome", "reason", "exit_code")}
    who = {"server": row["owner"]} if row["worker"] is None else {"by": _short(row["worker"])}
    return present(attempt=row["attempt"], **who, **times, **rest, message=_short(row["message"]))


def _event_facts(row: Mapping[str, Any]) -> Facts:
    return present(at=iso(row["at"]), event=row["event"], by=row["by"], detail=_short(row["detail"]))


def _history_lines(history: History) -> list[str]:
    lines: list[tuple[int, str]] = []
    for row in history.attempts:
        began = f"started on server {row['owner']}" if row["worker"] is None else f"claimed by {_short(row['worker'])}"
        lines.append((row["started_at"], f"attempt {row['attempt']} {began}"))
        if row["ended_at"] is not None:
            why = ": ".join(str(text) for text in (row["reason"], _short(row["message"])) if text)
            lines.append((row["ended_at"], f"attempt {row['attempt']} {row['outcome']}{f' ({why})' if why else ''}"))
    lines.extend((row["at"], _event_line(row)) for row in history.events)
    return [f"  {iso(at)} {text}" for at, text in sorted(lines, key=lambda line: line[0])]


def _event_line(row: Mapping[str, Any]) -> str:
    detail = f": {_short(row['detail'])}" if row["detail"] else ""
    return f"{row['event']} by {row['by']}{detail}"


def _short(text: str | None) -> str | None:
    """A text of others as it may be shown in a line: without what only a terminal understands, or nobody sees."""
    return text and cut_bytes(visible(text).replace("\n", " "), CONCISE_BYTES)
