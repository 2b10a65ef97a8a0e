"""The command `add`: a new task, for whichever server or worker can run it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from taskorch.cli.completion import complete_task
from taskorch.cli.exits import Exit
from taskorch.cli.invocation import Json, StateDir, carry_out, flags, hint, say_json
from taskorch.cli.serving import read_settings, refuse
from taskorch.domain.errors import shown
from taskorch.domain.task import COMMAND

NOBODY = 'no running server can start it: it waits for one, or for "taskorch worker" with the same settings'


def add(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="The program to run, and its arguments.")
    ] = None,
    kind: Annotated[str, typer.Option("--kind", "-k", help="What sort of work it is.")] = COMMAND,
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="What the kind receives: an object, or - to read it from stdin.")
    ] = None,
    cwd: Annotated[Path | None, typer.Option(help="Where the command runs; by default here.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A variable of the command; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="What to call it; good wherever an id is.")] = None,
    priority: Annotated[str, typer.Option("--priority", "-p", help="low, medium or high.")] = "medium",
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Repeatable.")] = None,
    delay: Annotated[str | None, typer.Option(metavar="TIME", help="Start later: 90, 90s, 15m, 2h.")] = None,
    run_at: Annotated[str | None, typer.Option(metavar="TIME", help="Start then (ISO 8601, with a zone).")] = None,
    expires_at: Annotated[str | None, typer.Option(metavar="TIME", help="Fail if not started by then.")] = None,
    depends_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK", help="Start when that one has completed; repeatable.", autocompletion=complete_task
        ),
    ] = None,
    on_dependency_failure: Annotated[str, typer.Option(help="cancel, fail or run.")] = "cancel",
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Limit of one attempt.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Starts in all.")] = None,
    retry: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='When and how soon it is tried again: {"on_exit": [75]}.'),
    ] = None,
    on_server_exit: Annotated[str | None, typer.Option(help="survive or stop.")] = None,
    concurrency_key: Annotated[str | None, typer.Option(help="Of one key, one works at a time.")] = None,
    dedupe_key: Annotated[str | None, typer.Option(help="Same key and payload: the same task.")] = None,
    cron: Annotated[str | None, typer.Option(help='Again and again: "0 7 * * 1-5".')] = None,
    every: Annotated[str | None, typer.Option(metavar="TIME", help="Again and again: 15m.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="Of --cron; by default this machine's.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for its end; 1 if it failed.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Store a task and print its id. A running server or worker on the same state folder starts it.

    What follows the first word of the command belongs to it: taskorch add -n tests -- make -j4 test
    """
    settings = read_settings(flags(context, state_dir))
    wish = {
        "kind": kind,
        "payload": _payload(kind, command or [], payload, cwd, env or []),
        "name": name,
        "priority": priority,
        "labels": label,
        "delay_seconds": delay,
        "run_at": run_at,
        "expires_at": expires_at,
        "depends_on": depends_on,
        "on_dependency_failure": on_dependency_failure,
        "timeout_seconds": timeout,
        "max_attempts": max_attempts,
        "retry": None if retry is None else read_object(retry, "--retry", '{"on_exit": [75]}'),
        "on_server_exit": on_server_exit,
        "concurrency_key": concurrency_key,
        "dedupe_key": dedupe_key,
        "schedule": _schedule(cron, every, time_zone),
    }
    if wait and wish["schedule"]:
        refuse("a schedule has no end to wait for: leave out --wait.")

    async def store_it() -> Exit:
        from taskorch.calls import actions, arguments
        from taskorch.cli import session
        from taskorch.cli.ending import until_ended

        wanted = arguments.parse(arguments.CreateTask, {k: v for k, v in wish.items() if v is not None})
        kinds = session.kinds(settings, kind)
        async with session.looking(settings, kinds) as service:
            actions.new_task(service, wanted)  # no store is made for what is refused
        async with session.changing(settings, kinds, make=True) as service:
            facts = (await actions.create_task(service, session.CALL, wanted)).facts
            if not await session.is_served(service, kind):
                hint(NOBODY)
        if wait:
            hint(f"{facts['id']}: waiting for its end")
            return await until_ended(settings, facts["id"], as_json)
        if as_json:
            say_json(facts)
        else:
            typer.echo(facts["id"])
        return Exit.OK

    carry_out(store_it)


def _payload(kind: str, command: list[str], given: str | None, cwd: Path | None, env: list[str]) -> dict[str, Any]:
    if kind != COMMAND or given is not None:
        if command or cwd or env:
            refuse(f"a command, --cwd and --env go with kind {COMMAND} and without --payload.")
        return read_object(given) if given is not None else {}
    if not command:
        refuse("say what to run: taskorch add -- make test; or give --kind and --payload.")
    if wrong := [one for one in env if not one.partition("=")[0] or "=" not in one]:
        refuse(f"--env {shown(wrong[0])} is no variable; write KEY=VALUE.")
    folder = os.path.abspath(os.path.expanduser(cwd)) if cwd else here()
    variables = {"env": dict(one.split("=", 1) for one in env)} if env else {}
    return {"argv": command, "cwd": folder} | variables


def here() -> str:
    """The current folder. Exits when it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        refuse("the folder that you are in is gone; go to another, or name one by --cwd.")


def read_object(text: str, option: str = "--payload", example: str = '{"seconds": 3}') -> dict[str, Any]:
    """The object that an option gives as JSON, or stdin. Exits with what is wrong with it."""
    said = sys.stdin.read() if text == "-" else text
    try:
        value = json.loads(said)
    except (ValueError, RecursionError) as error:  # not the text: it may hold secrets
        refuse(f"{option} is no JSON: {error}. Write an object: '{example}'.")
    if not isinstance(value, dict):
        refuse(f"{option} must be an object, like '{example}'.")
    return cast(dict[str, Any], value)


def _schedule(cron: str | None, every: str | None, time_zone: str | None) -> dict[str, Any] | None:
    given = {"cron": cron, "every_seconds": every, "time_zone": time_zone}
    return {name: value for name, value in given.items() if value is not None} or None
