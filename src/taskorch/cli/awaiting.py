"""The commands that follow tasks to their end: wait, logs."""

from typing import Annotated

import typer

from taskorch.cli.completion import complete_task
from taskorch.cli.exits import Exit
from taskorch.cli.invocation import Json, Reference, StateDir, carry_out, flags
from taskorch.cli.serving import read_settings, refuse


def wait(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(metavar="TASK...", help="Ids, names, first characters of ids.", autocompletion=complete_task),
    ],
    timeout: Annotated[str | None, typer.Option("--timeout", "-t", metavar="TIME", help="At most: 90, 15m.")] = None,
    any_of_them: Annotated[bool, typer.Option("--any", help="Until the first of them has ended.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Wait until tasks have ended. Exit code 1 if one of them failed or was cancelled, 4 when it took too long."""
    settings = read_settings(flags(context, state_dir))

    async def wait_for_them() -> Exit:
        from taskorch.cli.ending import wait_for

        return await wait_for(settings, tasks, timeout, any_of_them, as_json)

    carry_out(wait_for_them)


def logs(
    context: typer.Context,
    task: Reference,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of that attempt; by default the latest.")] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, metavar="LINES", help="Only the last so many.")
    ] = None,
    grep: Annotated[str | None, typer.Option("--grep", "-g", metavar="TEXT", help="Only lines with this text.")] = None,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Print what a command wrote. With -f the exit code is 1 if the task failed or was cancelled."""
    settings = read_settings(flags(context, state_dir))
    if as_json and follow:
        refuse("--json tells of one moment: leave out --follow, or run `taskorch wait` first.")

    async def print_it() -> Exit:
        from taskorch.cli.lines import follow_output, print_output

        if follow:
            return await follow_output(settings, task, attempt, tail, grep)
        return await print_output(settings, task, attempt, tail, grep, as_json)

    carry_out(print_it)
