"""The commands that look: ls, show, stats, metrics, top."""

from typing import Annotated, Any

import typer

from taskorch.cli.exits import Exit
from taskorch.cli.invocation import Json, Reference, StateDir, carry_out, flags, hint, is_for_people, say, say_json
from taskorch.cli.serving import read_settings
from taskorch.cli.words import told
from taskorch.domain.task import Status

PAGE = 100  # rows that one look fetches, of all


def ls(
    context: typer.Context,
    status: Annotated[Status | None, typer.Option(help="Only tasks with this status.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only tasks of this kind.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, medium or high.")] = None,
    label: Annotated[str | None, typer.Option(help="Only tasks with this label.")] = None,
    text: Annotated[str | None, typer.Option(help="Only tasks with this in name, labels or error.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Created after this (ISO 8601, a zone).")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Created before this.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, 1 to 100.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on where the page before has ended.")] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All of them, whatever --limit says.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """List tasks, newest first."""
    settings = read_settings(flags(context, state_dir))
    filters = {"status": status, "kind": kind, "priority": priority, "label": label, "text": text}
    wanted = filters | {"created_after": since, "created_before": until, "cursor": cursor}

    async def list_them() -> Exit:
        from taskorch.calls import actions, arguments
        from taskorch.cli import session, tables

        async with session.looking(settings) as service:
            given = wanted | {"limit": PAGE if everything else limit}
            facts = (await actions.list_tasks(service, session.CALL, arguments.parse(arguments.ListTasks, given))).facts
            while everything and "next_cursor" in facts:
                more = arguments.parse(arguments.ListTasks, given | {"cursor": facts.pop("next_cursor")})
                page = (await actions.list_tasks(service, session.CALL, more)).facts
                facts["tasks"] += page.pop("tasks")
                facts |= page
        if as_json:
            say_json(facts)
            return Exit.OK
        tables.show(facts["tasks"])
        if is_for_people():
            from rich.console import Console

            Console(stderr=True, highlight=False).print(tables.counted(facts["counts"]))
        if "next_cursor" in facts:
            hint(f"more: the same with --cursor {facts['next_cursor']}, or --all")
        return Exit.OK

    carry_out(list_them)


def show(context: typer.Context, task: Reference, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Tell all of one task: payload, attempts, history, and what to do next."""
    settings = read_settings(flags(context, state_dir))

    async def show_it() -> Exit:
        from taskorch.calls import actions, arguments
        from taskorch.cli import session

        async with session.looking(settings, session.shown_kinds(settings)) as service:
            wanted = arguments.parse(arguments.GetTask, {"task_id": task, "detail": "full"})
            answer(await actions.get_task(service, session.CALL, wanted), as_json)
        return Exit.OK

    carry_out(show_it)


def stats(context: typer.Context, as_json: Json = False, state_dir: StateDir = None) -> None:
    """Count: tasks by status and priority, success rate, durations, queue, servers, the store."""
    settings = read_settings(flags(context, state_dir))

    async def count() -> Exit:
        from taskorch.calls.health import stats_reply
        from taskorch.cli import session

        async with session.looking(settings) as service:
            answer(await stats_reply(service), as_json)
        return Exit.OK

    carry_out(count)


def metrics(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print the numbers of this moment for Prometheus, in its text format."""
    settings = read_settings(flags(context, state_dir))

    async def measure() -> Exit:
        from taskorch.calls.metrics import facts, measured, rendered
        from taskorch.cli import session

        async with session.looking(settings) as service:
            found = await measured(service, await session.seen_servers(service))
        if as_json:
            say_json(facts(found))
        else:
            typer.echo(rendered(found), nl=False)
        return Exit.OK

    carry_out(measure)


def top(
    context: typer.Context,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Tasks shown at most; by default what the screen holds.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks, when nothing happens.")] = 2.0,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Watch what works, waits and has ended, live; q or Ctrl-C ends it. Without a terminal it looks once."""
    settings = read_settings(flags(context, state_dir))

    async def watch() -> Exit:
        from taskorch.cli import session
        from taskorch.cli.board import once, watch

        async with session.looking(settings) as service:
            if as_json or not is_for_people():
                await once(service, rows, as_json)
            else:
                await watch(service, rows, interval)
        return Exit.OK

    carry_out(watch)


def answer(reply: Any, as_json: bool) -> None:
    """Print what a call answers."""
    if as_json:
        say_json(reply.facts)
    else:
        say(told(reply.text))
