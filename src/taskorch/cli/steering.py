"""The commands that change a task: cancel, retry, edit, rm."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import typer

from taskorch.cli.adding import read_object
from taskorch.cli.exits import Exit
from taskorch.cli.invocation import Json, Reference, StateDir, carry_out, flags
from taskorch.cli.seeing import answer
from taskorch.cli.serving import read_settings
from taskorch.config import Settings
from taskorch.domain.kind import Kind


def cancel(
    context: typer.Context,
    task: Reference,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; its history keeps it.")] = "",
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """End a waiting task at once; ask a working one to stop, with its whole process tree."""
    from taskorch.calls import actions, arguments

    wanted = {"task_id": task, "reason": reason}
    _do(read_settings(flags(context, state_dir)), actions.cancel_task, arguments.CancelTask, wanted, as_json)


def retry(
    context: typer.Context,
    task: Reference,
    delay: Annotated[str, typer.Option(metavar="TIME", help="Start later: 90, 90s, 15m, 2h.")] = "0",
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Run a failed or cancelled task once more; its history stays."""
    from taskorch.calls import actions, arguments

    wanted = {"task_id": task, "delay_seconds": delay}
    _do(read_settings(flags(context, state_dir)), actions.retry_task, arguments.RetryTask, wanted, as_json)


def edit(
    context: typer.Context,
    task: Reference,
    name: Annotated[str | None, typer.Option("--name", "-n", help="A new name.")] = None,
    priority: Annotated[str | None, typer.Option("--priority", "-p", help="low, medium or high.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Instead of the ones before.")] = None,
    payload: Annotated[str | None, typer.Option(metavar="JSON", help="A new one, or - to read it from stdin.")] = None,
    delay: Annotated[str | None, typer.Option(metavar="TIME", help="Start so long from now; 0: now.")] = None,
    run_at: Annotated[str | None, typer.Option(metavar="TIME", help="Start then (ISO 8601, with a zone).")] = None,
    expires_at: Annotated[str | None, typer.Option(metavar="TIME", help="Fail if not started by then.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Limit of one attempt.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Starts in all.")] = None,
    paused: Annotated[bool | None, typer.Option("--pause/--resume", help="Keep it from starting, or let it.")] = None,
    expected_version: Annotated[int | None, typer.Option(help="Refuse if it has changed since.")] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Change a waiting task; of a working one, priority and labels. What is left out stays."""
    from taskorch.calls import actions, arguments
    from taskorch.cli import session

    settings = read_settings(flags(context, state_dir))
    wanted = {
        "task_id": task,
        "name": name,
        "priority": priority,
        "labels": label,
        "payload": None if payload is None else read_object(payload),
        "delay_seconds": delay,
        "run_at": run_at,
        "expires_at": expires_at,
        "timeout_seconds": timeout,
        "max_attempts": max_attempts,
        "paused": paused,
        "expected_version": expected_version,
    }

    def kinds() -> Mapping[str, Kind]:
        return {} if payload is None else session.kinds(settings, "")

    _do(settings, actions.update_task, arguments.UpdateTask, wanted, as_json, kinds)


def rm(
    context: typer.Context,
    task: Reference,
    yes: Annotated[bool, typer.Option("--yes", "--confirm", help="Also if it works: it is cancelled first.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Remove a task with its output; it takes the whole id or the name. A working one needs --yes."""
    from taskorch.calls import actions, arguments

    wanted = {"task_id": task, "confirm": yes}
    _do(read_settings(flags(context, state_dir)), actions.delete_task, arguments.DeleteTask, wanted, as_json)


def _do(
    settings: Settings,
    action: Callable[[Any, Any, Any], Awaitable[Any]],
    model: type[Any],
    given: Mapping[str, Any],
    as_json: bool,
    kinds: Callable[[], Mapping[str, Kind]] = dict,
) -> None:
    """One call of a tool's own function, in a process of its own."""

    async def do() -> Exit:
        from taskorch.calls.arguments import parse
        from taskorch.cli import session

        wanted = parse(model, {name: value for name, value in given.items() if value is not None})
        async with session.changing(settings, kinds()) as service, session.following(service.store):
            answer(await action(service, session.CALL, wanted), as_json)
        return Exit.OK

    carry_out(do)
