"""The command `load`: many tasks that a file describes; all of them are stored, or none."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from taskorch.cli.adding import NOBODY, here
from taskorch.cli.exits import Exit
from taskorch.cli.invocation import Json, StateDir, carry_out, flags, hint, say_json
from taskorch.cli.serving import read_settings, refuse
from taskorch.domain.task import COMMAND

EXAMPLE = '[{"ref": "build", "payload": {"argv": ["make"]}}, {"name": "check", "depends_on": ["build"], ...}]'


def load(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A JSON array of tasks; - reads stdin.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Store the tasks of a file, up to 1,000, all or none, and print their ids. They may depend on each other by ref.

    Each is an object of what create_task takes. A command without cwd runs in the folder where you typed this.
    """
    settings = read_settings(flags(context, state_dir))
    tasks = _tasks(file)
    kinds_named = sorted({str(task.get("kind") or COMMAND) for task in tasks})

    async def store_them() -> Exit:
        from taskorch.calls import arguments, batch
        from taskorch.cli import session

        wanted = arguments.parse(arguments.CreateTasks, {"tasks": tasks})
        kinds = session.kinds(settings, next((kind for kind in kinds_named if kind != COMMAND), COMMAND))
        async with session.looking(settings, kinds) as service:
            batch.wanted(service, tasks)  # no store is made for what is refused
        async with session.changing(settings, kinds, make=True) as service:
            facts = (await batch.create_tasks(service, session.CALL, wanted)).facts
            for kind in kinds_named:
                if not await session.is_served(service, kind):
                    hint(f"{kind}: {NOBODY}")
        if as_json:
            say_json(facts)
        else:
            typer.echo("\n".join(facts["ids"]))
        return Exit.OK

    carry_out(store_them, by_options=False)


def _tasks(file: str) -> list[dict[str, Any]]:
    """What the file holds. Exits with what is wrong with it."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        value = json.loads(text)
    except OSError as error:
        refuse(f"{file} cannot be read: {error.strerror}.")
    except (ValueError, RecursionError) as error:  # not the text: it may hold secrets
        refuse(f"{file} is no JSON: {error}. Write an array: {EXAMPLE}")
    listed = cast(list[Any], value) if isinstance(value, list) else []
    tasks = [cast(dict[str, Any], task) for task in listed if isinstance(task, dict)]
    if not tasks or len(tasks) != len(listed):
        refuse(f"{file} must hold an array of objects: {EXAMPLE}")
    return [_placed(task) for task in tasks]


def _placed(task: dict[str, Any]) -> dict[str, Any]:
    """A command, in the folder that it is to run in."""
    payload = task.get("payload")
    if task.get("kind", COMMAND) != COMMAND or not isinstance(payload, dict) or "cwd" in payload:
        return task
    return task | {"payload": {**cast(dict[str, Any], payload), "cwd": here()}}
