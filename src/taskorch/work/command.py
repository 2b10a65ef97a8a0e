"""The `command` kind: what may run, and how an attempt of it or of a recipe is started, followed, ended and adopted."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from taskorch.domain import references
from taskorch.domain.argv import as_list, is_line, plain, variables
from taskorch.domain.errors import InvalidInput, readable, shown
from taskorch.domain.fields import plain_schema
from taskorch.domain.readiness import NEVER_RETRIED
from taskorch.domain.task import HIDDEN, Cancelled, Completed, Failed, Interrupted, Outcome, Reason, Task
from taskorch.telemetry import context
from taskorch.work import output, supervised
from taskorch.work.attempt import Attempt, Ending, Remains, unbegun
from taskorch.work.environment import inherited
from taskorch.work.following import (
    exit_text,
    follow,
    killed_text,
    make_folder,
    marks,
    remains,
    spawn_error,
    without_record,
)
from taskorch.work.markers import Markers
from taskorch.work.policy import NotAllowed, Policy, parts
from taskorch.work.spawner import Spawner
from taskorch.work.supervised import Exit, Order, SpawnFailed, Supervised, known

# Each runs other code than argv says, whatever the program: loaders, the start of shells and interpreters, git's ssh.
DENIED = {"BASH_ENV", "ENV", "PYTHONSTARTUP", "GIT_SSH", "GIT_SSH_COMMAND"}
DENIED_PREFIXES = ("LD_", "DYLD_", "BASH_FUNC_")
ENV_BYTES = 65_536
STAND_IN = "x"  # for a text that is not known yet
PROGRESS_SECONDS = 0.5  # how often a command's output is looked at for what it says of its progress


def _list(value: Any) -> Any:
    if isinstance(value, str) and is_line(value):
        raise ValueError(f"is wrong: {as_list(value).removesuffix('.')}")
    return value


Text = Annotated[str, AfterValidator(plain)]


class CommandPayload(BaseModel):
    """What a command task takes."""

    model_config = ConfigDict(extra="forbid")
    argv: Annotated[list[Text], Field(min_length=1, max_length=1024), BeforeValidator(_list)]
    cwd: Text | None = None
    env: Annotated[dict[Text, Text], BeforeValidator(variables)] = {}
    stdin: Text | None = None


def _parsed(raw: Mapping[str, Any]) -> CommandPayload:
    try:
        return CommandPayload.model_validate(raw)
    except ValidationError as error:
        raise InvalidInput(readable(error, "payload", [*CommandPayload.model_fields])) from None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a payload asks for, checked: the program's path, arguments, folder, `roots` as in an Order, variables."""

    program: str
    argv: list[str]
    cwd: str
    roots: tuple[str, ...]
    env: dict[str, str]
    stdin: str | None


class Command:
    """The kind. `folder`: where attempts keep their files, one folder each; `start`: where commands run by default."""

    description = "Runs a program: an argument list, never a shell line."
    max_attempts = 1  # a command that a model wrote is seldom safe to repeat; it survives restarts by its shim instead
    timeout_seconds: float | None = None
    in_process = False

    def __init__(self, folder: Path, policy: Policy, pass_env: str, grace_seconds: float, start: Path) -> None:
        self.policy = policy
        self._folder = folder
        self._passed = frozenset(parts(pass_env))
        self._grace_seconds = grace_seconds
        self.start = str(Path.home() if start == Path("/") else start)
        self.spawner = Spawner(folder.parent / "cache")

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput when the payload is malformed or its program may not run here, now.

        Of a payload that takes results of other tasks that is asked of what stands in it already.
        """
        if not references.find(payload):
            self._wanted(payload)
            return
        if references.KEY in payload:
            raise InvalidInput(
                f"The payload of a command is no result: {references.KEY} stands within argv, env or stdin."
            )
        argv, cwd = payload.get("argv"), payload.get("cwd")
        filled = references.filled(payload, lambda _: STAND_IN)
        parsed = _parsed(filled if isinstance(argv, list) else filled | {"argv": [STAND_IN]})
        self._check_env(parsed.env)
        if isinstance(argv, list) and isinstance(argv[0], str):
            self.policy.program(argv[0])
        if isinstance(cwd, str):
            self.policy.folder(cwd, "payload.cwd")

    def shown(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        env = payload.get("env")
        return {**payload, "env": dict.fromkeys(env, HIDDEN)} if env else payload

    def payload_schema(self) -> dict[str, Any]:
        return plain_schema(CommandPayload)

    async def run(self, attempt: Attempt) -> Outcome | None:
        return await self.carry_out(attempt, self._wanted)

    async def carry_out(self, attempt: Attempt, wanted: Callable[[Mapping[str, Any]], Wanted]) -> Outcome | None:
        """Run what `wanted` makes of the task's payload, or go on with it. `wanted` may raise InvalidInput."""
        task = attempt.task
        folder = self.attempt_folder(task)
        if attempt.adopted:
            return await self._go_on(attempt, await known(partial(Supervised.attach, folder)))
        try:
            order = self._order(task, wanted(task.payload))
            make_folder(folder)
            shim = await self.spawner.start(folder)
        except NotAllowed as error:
            return Failed(Reason.NOT_ALLOWED, str(error), retryable=False)
        except InvalidInput as error:
            return Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
        except (SpawnFailed, OSError) as error:
            return Failed(Reason.SPAWN_ERROR, str(error))
        try:
            if attempt.ending:
                return unbegun(attempt.ending)
            await shim.order(order)
            return await self._follow(attempt, shim)
        except SpawnFailed as error:
            return Interrupted(str(error))
        finally:
            shim.close()

    def has_ended(self, task: Task) -> bool:
        return supervised.exit_record(self.attempt_folder(task)) is not None

    async def inspect(self, task: Task) -> Remains:
        folder = self.attempt_folder(task)
        if await known(lambda: supervised.exit_record(folder) or supervised.holder(folder)) is not None:
            return Remains.ADOPTABLE
        return await remains(task, folder)

    def attempt_folder(self, task: Task) -> Path:
        return output.attempt_folder(self._folder, task.id, task.attempt)

    # One attempt.

    async def _go_on(self, attempt: Attempt, shim: Supervised | None) -> Outcome | None:
        """Follow what a dead server has started; without a shim it has ended."""
        if shim is None:
            return await self._outcome(attempt)
        try:
            return await self._follow(attempt, shim)
        finally:
            shim.close()

    async def _follow(self, attempt: Attempt, shim: Supervised) -> Outcome | None:
        """Wait for the shim's end, handing on every wish to end it; None when we let go of it."""

        def lets_go() -> bool:
            return attempt.ending is Ending.LOST or (attempt.stopping and _survives(attempt.task))

        listen = partial(self._listen, attempt)
        ended = await follow(attempt, shim, self._grace_seconds, lets_go, listen, PROGRESS_SECONDS)
        shim.close()  # before its record is opened: there may be no files left but these
        return await self._outcome(attempt) if ended else None

    async def _listen(self, attempt: Attempt) -> None:
        """Hear what the command says of its progress. A file is all there is after its first server."""
        folder = self.attempt_folder(attempt.task)
        markers, heard = Markers(), 0
        while True:
            with suppress(OSError):  # what cannot be read now must not end the attempt
                written, _ = await anyio.to_thread.run_sync(output.activity, folder)
                if written > heard:
                    data, heard = await anyio.to_thread.run_sync(output.news, folder, heard)
                    if progress := markers.read(data):
                        attempt.progress(progress)
            await anyio.sleep(PROGRESS_SECONDS)

    async def _outcome(self, attempt: Attempt) -> Outcome:
        """How the attempt ended, from its record."""
        folder = self.attempt_folder(attempt.task)
        record = await known(partial(supervised.exit_record, folder))
        return await without_record(attempt, folder) if record is None else self._ending(attempt, record)

    def _ending(self, attempt: Attempt, record: Exit) -> Outcome:
        if not record.tree_gone:
            return Failed(Reason.WORKER_LOST, "some of its processes could not be ended", retryable=False)
        match record.why:
            case "timeout":
                limit = f"it ran longer than {attempt.task.timeout_seconds:g} s{killed_text(record.killed)}"
                return Failed(Reason.TIMEOUT, limit)
            case "spawn_error":
                return spawn_error(record.errno or 0)
            case "cancel" if attempt.ending is not Ending.CANCEL:  # a server that stopped, or a signal to the shim
                stopped = attempt.stopping or attempt.adopted  # by a server that died meanwhile
                why = "the server stopped" if stopped else "its supervisor was told to end it"
                return Failed(Reason.INTERRUPTED, f"{why}{killed_text(record.killed)}")
            case "cancel":
                return Cancelled(f"its process tree was ended{killed_text(record.killed)}")
            case "server_gone":
                return Failed(Reason.INTERRUPTED, f"its server went away{killed_text(record.killed)}")
            case _:
                return self._exited(attempt.task, record)

    def _exited(self, task: Task, record: Exit) -> Outcome:
        if record.code == 0:
            return Completed({"exit_code": 0, "output_bytes": record.bytes})
        code, text = exit_text(record)
        last = output.last_line(self.attempt_folder(task))
        return Failed(Reason.EXIT_CODE, f"{text}: {last}" if last else text, code, code not in NEVER_RETRIED)

    # What to run.

    def _order(self, task: Task, wanted: Wanted) -> Order:
        return Order(
            program=wanted.program,
            argv=tuple(wanted.argv),
            cwd=wanted.cwd,
            roots=wanted.roots,
            env=self._environment(task, wanted.env),
            stdin=wanted.stdin,
            timeout_seconds=task.timeout_seconds,
            grace_seconds=self._grace_seconds,
            on_server_exit=task.on_server_exit,
        )

    def _wanted(self, raw: Mapping[str, Any]) -> Wanted:
        payload = _parsed(raw)
        self._check_env(payload.env)
        program, cwd, roots = self.policy.program(payload.argv[0]), self.start, self.policy.roots
        if payload.cwd is not None or roots:
            given = (self.start, "The server's own folder") if payload.cwd is None else (payload.cwd, "payload.cwd")
            cwd = self.policy.folder(*given)
        return Wanted(program, payload.argv, cwd, roots, payload.env, payload.stdin)

    def _check_env(self, env: Mapping[str, str]) -> None:
        if (size := sum(len(text.encode()) for pair in env.items() for text in pair)) > ENV_BYTES:
            raise InvalidInput(f"payload.env has {size} bytes; at most {ENV_BYTES} are allowed.")
        for name, value in env.items():
            if not name or "=" in name:
                raise InvalidInput(f"payload.env {shown(name)} is not a variable's name; use names without '='.")
            if value == HIDDEN:
                raise InvalidInput(f"payload.env {shown(name)} is {HIDDEN!r}, as replies show it; give its value.")
            if (name in DENIED or name.startswith(DENIED_PREFIXES)) and name not in self._passed:
                raise InvalidInput(
                    f"payload.env {name} can make a program run other code, so it is refused. "
                    f"If the user wants it, they set TASKORCH_PASS_ENV={name}."
                )

    def _environment(self, task: Task, given: Mapping[str, str]) -> dict[str, str]:
        return {
            **inherited(self._passed),
            **context.variables(),
            **given,
            **marks(task),
        }


def _survives(task: Task) -> bool:
    return task.on_server_exit == "survive"
