"""The command line. Without a subcommand it serves MCP over stdio. What needs the MCP SDK imports it when it runs.

Without arguments it is not even loaded: see `start`.
"""

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import anyio
import typer

from taskorch import __version__
from taskorch.cli import adding, awaiting, loading, seeing, serving, steering
from taskorch.cli.exits import Exit
from taskorch.cli.hosts import HostName
from taskorch.cli.invocation import StateDir, flags, say, say_json
from taskorch.cli.serving import read_settings, refuse
from taskorch.config import PREFIX
from taskorch.domain.errors import StoreError

cli = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
config = typer.Typer(help="Settings: see where each comes from.", no_args_is_help=True)


@cli.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    state_dir: StateDir = None,
    concurrency: Annotated[int | None, typer.Option(help="How many tasks run at once in this process.")] = None,
    allow_commands: Annotated[
        str | None, typer.Option(help="Programs that commands may run, comma-separated; * allows every program.")
    ] = None,
    handlers: Annotated[str | None, typer.Option(help="Python modules with handlers, comma-separated.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Durable background tasks for MCP clients, served over stdin and stdout.

    Every option has a TASKORCH_ variable; "taskorch config show" lists all settings.
    """
    if version:
        typer.echo(f"taskorch {__version__}")
        return
    given = {"state_dir": state_dir, "concurrency": concurrency, "allow_commands": allow_commands, "handlers": handlers}
    context.obj = given
    if context.invoked_subcommand is not None:
        return
    serving.serve(given)


cli.command(context_settings={"allow_interspersed_args": False})(adding.add)
for command in (
    loading.load,
    seeing.ls,
    seeing.show,
    awaiting.logs,
    awaiting.wait,
    steering.cancel,
    steering.retry,
    steering.edit,
):
    cli.command()(command)
for command in (steering.rm, seeing.stats, seeing.metrics, seeing.top):
    cli.command()(command)


@cli.command()
def worker(context: typer.Context, state_dir: StateDir = None) -> None:
    """Run tasks with no host attached, until SIGTERM or Ctrl-C; then what works is given back or goes on by itself."""
    from taskorch.cli.unattended import keep_to_stderr
    from taskorch.cli.working import work
    from taskorch.leaving import leave

    settings = read_settings(flags(context, state_dir))
    keep_to_stderr()
    leave(anyio.run(work, settings))


@cli.command()
def http(
    context: typer.Context,
    port: Annotated[int | None, typer.Option(help="Where to listen; 0 is a free port. TASKORCH_HTTP_PORT.")] = None,
    host: Annotated[str, typer.Option(help="An address of this machine alone.")] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="What clients must send; others see it in `ps`: better TASKORCH_HTTP_TOKEN.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Serve the board, the REST API and MCP over HTTP, to this machine alone, until SIGTERM or Ctrl-C.

    Prints the address that opens the board. Clients send the token that is in it; it is kept in STATE_DIR/http-token.
    """
    from taskorch.cli.http import listener, serve
    from taskorch.cli.unattended import keep_to_stderr
    from taskorch.leaving import leave

    settings = read_settings({**flags(context, state_dir), "http_port": port, "http_token": token})
    keep_to_stderr()
    leave(anyio.run(serve, settings, listener(host, settings.http_port)))


@config.command("show")
def show_config(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Each setting, its value, and where that comes from: flag, environment, file or default."""
    from taskorch.cli import configured

    given = flags(context, state_dir)
    facts = configured.shown(read_settings(given), given)
    if as_json:
        say_json(facts)
    else:
        say("\n".join(configured.lines(facts)))


@cli.command()
def demo() -> None:
    """Run sixteen tasks through a real server over stdio and show what becomes of them."""
    from taskorch.cli.demo import run_demo

    raise typer.Exit(anyio.run(run_demo))


@cli.command()
def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Look for what may be wrong and say how to mend it; changes nothing. Exit code 1 if something must be mended."""
    from taskorch.cli import doctor as examination

    folder, checks = examination.diagnose(flags(context, state_dir))
    if as_json:
        say_json(examination.facts(folder, checks))
    else:
        typer.echo("\n".join(examination.report(folder, checks)))
    raise typer.Exit(Exit.OK if examination.is_healthy(checks) else Exit.FAILED)


@cli.command()
def backup(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="The copy, which must not exist yet; by default one in STATE_DIR/backups.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Copy the database to a file of its own, also while servers run, and print its path."""
    from taskorch.storage.backup import backup_database

    settings = read_settings(flags(context, state_dir))
    try:
        copy = backup_database(settings.state_dir / "taskorch.db", file and file.absolute())
    except StoreError as error:
        refuse(str(error), Exit.STORE)
    if as_json:
        say_json({"file": str(copy)})
    else:
        typer.echo(copy)


@cli.command()
def install(
    context: typer.Context,
    host: Annotated[HostName, typer.Argument(help="Whose configuration is to name this taskorch.")],
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A variable for the server; repeatable.")
    ] = None,
    allow_command: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A program that commands may run; repeatable.")
    ] = None,
    project: Annotated[bool, typer.Option("--project", help="The file of the project in this folder.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the entry out again.")] = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print the entry and write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
) -> None:
    """Name this taskorch in a host's configuration: shows the change, asks, keeps a copy of the file.

    Nothing else in the file is touched. Options before `install` go into the entry too.
    """
    from taskorch.cli import install as setup

    if remove and only_print:
        refuse("--print and --remove exclude each other.")
    try:
        variables = _given(context.obj) | setup.environment(env or ())
        plan = setup.plan(host, Path.cwd() if project else None, variables, allow_command or (), remove)
    except ValueError as error:
        refuse(str(error))
    read_settings(
        {name.removeprefix(PREFIX).lower(): v for name, v in variables.items() if name.startswith(PREFIX) and v}
    )
    raise typer.Exit(setup.carry_out(plan, yes, only_print))


cli.add_typer(config, name="config")


def main() -> None:
    """The `taskorch` command with arguments."""
    _occupy_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a task's name may hold what this terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="taskorch")


def _occupy_streams() -> None:
    """No file of ours gets the number of a stream that was closed when we began: handlers and programs write to it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number


def _given(flags: Mapping[str, object]) -> dict[str, str]:
    """Flags as the variables that mean the same in any folder."""
    said = {
        name: os.path.abspath(v.expanduser()) if isinstance(v, Path) else str(v)
        for name, v in flags.items()
        if v is not None
    }
    return {PREFIX + name.upper(): value for name, value in said.items()}
