"""What commands on tasks share: options, errors as exit codes, and how they speak on stdout and stderr."""

import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import anyio
import typer

from taskorch.cli.completion import complete_task
from taskorch.cli.exits import Exit
from taskorch.cli.serving import refuse
from taskorch.cli.words import told
from taskorch.domain.errors import NotFound, StoreError, TaskError
from taskorch.leaving import cause

StateDir = Annotated[Path | None, typer.Option(help="Where database, output and locks are kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print what the tool of this name answers, as JSON.")]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="Its id, its name, or the first 6 characters of the id.", autocompletion=complete_task
    ),
]


def flags(context: typer.Context, state_dir: Path | None) -> dict[str, object]:
    """What was given before the subcommand's name, and after it."""
    return {**context.obj, "state_dir": state_dir or context.obj["state_dir"]}


def carry_out(work: Callable[[], Awaitable[Exit]], by_options: bool = True) -> NoReturn:
    """Do it and leave with its exit code; what goes wrong is one line on stderr. `by_options` as for `told`."""
    try:
        code = anyio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except Exception as error:
        match cause(error):
            case TaskError() as known:
                refuse(told(str(known), by_options), code_of(known))
            case BrokenPipeError() as gone:  # whoever read has enough: the command line's library leaves silently
                raise gone from None
            case OSError() as failed:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of an answer is not tried again
                refuse(str(failed))
            case other:
                raise other from None
    raise typer.Exit(code)


def code_of(error: TaskError) -> Exit:
    match error:
        case NotFound():
            return Exit.NOT_FOUND
        case StoreError():
            return Exit.STORE
        case _:
            return Exit.USAGE


def say(text: str) -> None:
    """Print lines as they may be shown: names and output of tasks are texts of others."""
    from taskorch.calls.wording import visible

    typer.echo(visible(text))


def hint(text: str) -> None:
    """A line for the person, beside what was asked for."""
    from taskorch.calls.wording import visible

    typer.echo(visible(text), err=True)


def say_json(facts: Any) -> None:
    typer.echo(json.dumps(facts, indent=2))


def is_for_people() -> bool:
    """Whether a person reads stdout, not a program."""
    return sys.stdout.isatty()
