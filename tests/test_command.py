"""Commands: which may run, what they are given, how they end, and how they outlive their server."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from errno import EMFILE
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import until
from fakes import Clock
from pools import Payload, Pool, ok, other_process
from servers import names

from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.task import Cancelled, Completed, Failed, Interrupted, Outcome, Progress, Reason, Status, Task
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store
from taskorch.work import leftovers, output, supervised
from taskorch.work.attempt import Attempt, Ending, Remains
from taskorch.work.command import Command
from taskorch.work.peers import Peers
from taskorch.work.policy import Policy
from taskorch.work.spawner import Spawner
from taskorch.work.supervised import Supervised
from taskorch.work.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

WAITS = "echo up; until test -e go; do sleep 0.01; done; echo done"
TREE = "sleep 60 & setsid sleep 60 & trap '' TERM; echo up; sleep 60; sleep 60"

SERVER = """
import anyio, os, pathlib, sys
from taskorch.work.command import Command
from taskorch.work.policy import Policy
from taskorch.storage.database import open_database
from taskorch.work.peers import Peers
from taskorch.storage.store import Store
from taskorch.work.worker import Worker

async def main(folder):
    async with open_database(folder / "state" / "taskorch.db") as database:
        store = Store(database)
        with Peers(folder / "servers") as peers:
            owner = await store.register(peers.uuid, os.getpid(), "0", ["command"])
            kind = Command(folder / "state" / "output", Policy("*"), "", 5, folder)
            await Worker(store, peers, owner, {"command": kind}, 2).run()

anyio.run(main, pathlib.Path(sys.argv[1]))
"""


def command(folder: Path, allowed: str = "*", **options: Any) -> Command:
    options = {"pass_env": "", "grace_seconds": 0.2, "start": folder} | options
    return Command(folder / "state" / "output", Policy(allowed), **options)


class Commands(Pool):
    """A pool whose worker runs commands in a folder of the test's."""

    def kind(self, allowed: str = "*", **options: Any) -> Command:
        return command(self.folder, allowed, **options)

    def serving(self, slots: int = 2, **options: Any) -> AbstractAsyncContextManager[Worker]:
        return self.running(slots, command=self.kind(**options), ok=ok)

    async def command(self, *argv: str, payload: Payload | None = None, **fields: Any) -> Task:
        return await self.add("command", {"argv": list(argv), **(payload or {})}, **{"max_attempts": 1} | fields)

    async def run(self, *argv: str, payload: Payload | None = None, **fields: Any) -> Task:
        return await self.ended(await self.command(*argv, payload=payload, **fields))

    async def up(self, *argv: str, **fields: Any) -> Task:
        """A command that has begun and has said so."""
        task = await self.command(*argv, **fields)
        await until(lambda: b"up" in self.output(task))
        return await self.get(task)

    async def tree(self, **fields: Any) -> Task:
        """A command with a background child, a child in a session of its own, and no ear for TERM."""
        task = await self.up("sh", "-c", TREE, **fields)
        await until(lambda: self.alive(task) == ["sh", "sleep", "sleep", "sleep"])
        return task

    def attempt_folder(self, task: Task) -> Path:
        return self.folder / "state" / "output" / task.id / str(max(task.attempt, 1))

    def output(self, task: Task) -> bytes:
        with suppress(FileNotFoundError):
            return (self.attempt_folder(task) / "output").read_bytes()
        return b""

    def shim(self, task: Task) -> int:
        pid = supervised.holder(self.attempt_folder(task))
        assert pid
        return pid

    def alive(self, task: Task) -> list[str]:
        return names(task.id)

    async def events(self, task: Task) -> list[str]:
        return [row["event"] for row in (await self.queries.history(task)).events]


@pytest.fixture
def pool(store: Store, queries: Queries, clock: Clock, tmp_path: Path) -> Iterator[Commands]:
    pool = Commands(store, queries, clock, tmp_path)
    yield pool
    for folder in (tmp_path / "state" / "output").glob("*/*"):
        if pid := supervised.holder(folder):
            os.kill(pid, signal.SIGKILL)
        leftovers.end_leftovers(folder, folder.parent.name, int(folder.name))


@pytest.fixture
def kind(tmp_path: Path) -> Callable[..., Command]:
    return partial(command, tmp_path)


def failure(task: Task) -> tuple[Status, Reason, str, int | None]:
    assert task.error is not None
    return task.status, task.error.reason, task.error.message, task.error.exit_code


# How a command ends.


async def test_a_command_that_exits_with_0_is_completed(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("sh", "-c", "printf out; printf error >&2")
    assert (task.status, task.result) == (Status.COMPLETED, {"exit_code": 0, "output_bytes": 8})
    assert pool.output(task) == b"outerror"


async def test_an_exit_code_fails_it_with_the_last_line_of_its_output(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("sh", "-c", "echo first; echo 'no such branch'; exit 3")
        silent = await pool.run("false")
    assert failure(task) == (Status.FAILED, Reason.EXIT_CODE, "exit code 3: no such branch", 3)
    assert failure(silent) == (Status.FAILED, Reason.EXIT_CODE, "exit code 1", 1)


async def test_a_signal_is_named(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("sh", "-c", "kill -KILL $$")
        unnamed = await pool.run("sh", "-c", "kill -40 $$")
    assert failure(task) == (Status.FAILED, Reason.EXIT_CODE, "ended by signal 9 (SIGKILL)", 137)
    assert failure(unnamed) == (Status.FAILED, Reason.EXIT_CODE, "ended by signal 40 (unknown)", 168)


async def test_a_failed_command_is_tried_again_while_starts_are_left(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.backing_off(await pool.command("sh", "-c", "exit 75", max_attempts=2))
        await pool.pass_backoff()
        task = await pool.ended(task)
    assert (task.attempt, failure(task)) == (2, (Status.FAILED, Reason.EXIT_CODE, "exit code 75", 75))


@pytest.mark.parametrize("code", [126, 127])
async def test_what_was_not_found_or_not_executable_is_not_tried_again(pool: Commands, code: int) -> None:
    async with pool.serving():
        task = await pool.run("sh", "-c", f"exit {code}", max_attempts=3)
    assert (task.status, task.attempt) == (Status.FAILED, 1)


async def test_a_program_that_cannot_be_executed_says_why(pool: Commands, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF and nothing else")
    program.chmod(0o700)
    async with pool.serving():
        task = await pool.run(str(program), max_attempts=3)
    assert failure(task)[:2] == (Status.FAILED, Reason.SPAWN_ERROR)
    assert failure(task)[2] == "the program could not be started: Exec format error"
    assert task.attempt == 1


async def test_a_time_limit_ends_the_whole_tree(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("sh", "-c", TREE, timeout_seconds=0.2)
    assert pool.alive(task) == []
    assert failure(task)[:2] == (Status.FAILED, Reason.TIMEOUT)
    assert failure(task)[2].startswith("it ran longer than 0.2 s; ")


async def test_a_flood_of_output_takes_little_room(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("head", "-c", "100000000", "/dev/zero")
    assert task.result == {"exit_code": 0, "output_bytes": 100_000_000}
    assert sum(path.stat().st_size for path in pool.attempt_folder(task).iterdir()) < 2 * 1024 * 1024


async def test_an_attempts_files_are_for_their_owner_only(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("echo", "secret")
    folder = pool.attempt_folder(task)
    assert [oct(path.stat().st_mode & 0o777) for path in (folder.parent, folder, folder / "output")] == [
        "0o700",
        "0o700",
        "0o600",
    ]


# Which programs may run.


def refused(kind: Command, *argv: str, **payload: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        kind.check({"argv": list(argv), **payload})
    return str(error.value)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, the only one in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("git", "rm"):
        make_program(folder / name)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def make_program(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)


def test_nothing_may_run_until_the_operator_allows_it(kind: Callable[..., Command], bin_folder: Path) -> None:
    assert not Policy("").allows_any
    assert "on this server no commands may run" in refused(kind(""), "not_installed")
    assert refused(kind(""), "git", "status") == (
        "The command 'git' is not allowed: on this server no commands may run. Ask the user to set "
        "TASKORCH_ALLOW_COMMANDS=git in the environment of taskorch (or * for every program) and to restart it: "
        "`taskorch install HOST --allow-command git` does so, or the form of the bundle."
    )


def test_a_program_that_is_not_on_the_list_is_refused_with_the_line_to_add(
    kind: Callable[..., Command], bin_folder: Path
) -> None:
    text = refused(kind(" git , make "), "rm", "-rf", "/")
    assert "only git, make may run" in text
    assert "TASKORCH_ALLOW_COMMANDS=git,make,rm " in text


def test_an_allowed_program_may_be_named_by_its_path_and_the_other_way_round(
    kind: Callable[..., Command], bin_folder: Path
) -> None:
    path = str(bin_folder / "git")
    for allowed, name in (("git", "git"), ("git", path), (path, path), (path, "git"), ("*", "git"), ("*", path)):
        kind(allowed).check({"argv": [name]})


def test_another_file_of_the_same_name_is_another_program(
    kind: Callable[..., Command], bin_folder: Path, tmp_path: Path
) -> None:
    make_program(tmp_path / "elsewhere" / "git")
    other = str(tmp_path / "elsewhere" / "git")
    assert f"TASKORCH_ALLOW_COMMANDS=git,{other} " in refused(kind("git"), other)


def test_a_file_that_appears_in_front_of_an_allowed_one_is_not_allowed(
    kind: Callable[..., Command], bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'early'}:{bin_folder}")
    git = kind("git")
    git.check({"argv": ["git"]})
    make_program(tmp_path / "early" / "git")
    assert f"The command {shown(f'{tmp_path}/early/git')} is not allowed" in refused(git, "git")


async def test_a_relative_folder_in_path_means_the_servers_folder_not_the_tasks(
    pool: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "evil"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "tool").chmod(0o700)
    monkeypatch.chdir(tmp_path / "good")
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    async with pool.serving(allowed="tool"):
        task = await pool.run("tool", payload={"cwd": str(tmp_path / "evil")})
    assert (task.status, pool.output(task)) == (Status.COMPLETED, b"good\n")


def test_what_is_not_installed_is_answered_with_the_path_that_was_searched(
    kind: Callable[..., Command], bin_folder: Path
) -> None:
    assert f"payload.argv[0] 'gti': not found in PATH={bin_folder}." in refused(kind("*"), "gti")
    assert "it does not exist or is not executable" in refused(kind("*"), "/no/such/program")


def test_a_relative_path_names_no_program(kind: Callable[..., Command]) -> None:
    assert "is a relative path" in refused(kind("*"), "./run.sh")
    assert "payload.argv[0] is empty" in refused(kind("*"), "")


async def test_a_program_that_is_no_longer_allowed_when_it_starts_fails_for_good(pool: Commands) -> None:
    """The task was accepted by a server with other settings."""
    async with pool.serving(allowed="echo"):
        task = await pool.run("ls", max_attempts=3)
        assert not pool.attempt_folder(task).exists()
    status, reason, text, _ = failure(task)
    assert (status, reason, task.attempt) == (Status.FAILED, Reason.NOT_ALLOWED, 1)
    assert "TASKORCH_ALLOW_COMMANDS=echo,ls " in text


# What it is given.


async def test_arguments_arrive_as_they_are(pool: Commands) -> None:
    arguments = ["a b", "$HOME", "*", ";id", "`id`", "$(id)", "|cat", "'\"", "\\", "é\n\t", "-e", "", "#", "~"]
    async with pool.serving():
        task = await pool.run("printf", "%s\x01", *arguments)
    assert pool.output(task).decode().split("\x01")[:-1] == arguments


@pytest.mark.parametrize(
    "payload",
    [
        {"argv": ["echo", "a\0x/bin/false"]},
        {"argv": ["ec\0ho"]},
        {"argv": ["echo"], "stdin": "a\0x/bin/false"},
        {"argv": ["echo"], "env": {"A": "a\0x/bin/false"}},
        {"argv": ["echo"], "env": {"A\0x/bin/false": ""}},
        {"argv": ["echo"], "cwd": "/tmp\0x/bin/false"},
    ],
)
async def test_a_nul_smuggles_nothing_past_the_policy(pool: Commands, payload: Payload) -> None:
    """The shim reads NUL-terminated records: what follows one would be a record of its own."""
    with pytest.raises(InvalidInput, match=r"holds the character '\\x00', which no program can be given"):
        pool.kind("echo").check(payload)
    async with pool.serving(allowed="echo"):
        task = await pool.ended(await pool.add("command", payload, max_attempts=1))
    assert failure(task)[:2] == (Status.FAILED, Reason.INVALID_PAYLOAD)


async def environment(pool: Commands, **payload: Any) -> dict[str, str]:
    task = await pool.run("env", "-0", payload=payload)
    return dict(line.split("=", 1) for line in pool.output(task).decode().split("\0")[:-1])


async def test_a_command_sees_only_the_variables_that_it_may(pool: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANARY_TOKEN", "LD_PRELOAD", "TASKORCH_STATE_DIR", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    for name in ("LC_ALL", "TZ"):
        monkeypatch.setenv(name, "C")
    async with pool.serving():
        seen = await environment(pool, env={"MINE": "a=b", "TZ": "UTC"})
    allowed = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "SHELL", "TERM"}
    ours = {"MINE", "TASKORCH_TASK_ID", "TASKORCH_ATTEMPT", "TASKORCH_IDEMPOTENCY_KEY"}
    assert {name for name in seen if not name.startswith("LC_")} <= allowed | ours
    assert (seen["MINE"], seen["TZ"], seen["LC_ALL"], seen["PATH"]) == ("a=b", "UTC", "C", os.environ["PATH"])


async def test_a_command_is_told_which_task_and_which_start_it_is(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.run("env", payload={"env": {"TASKORCH_TASK_ID": "forged"}})
    lines = pool.output(task).decode().splitlines()
    assert {f"TASKORCH_TASK_ID={task.id}", "TASKORCH_ATTEMPT=1", f"TASKORCH_IDEMPOTENCY_KEY={task.id}"} <= {*lines}


async def test_the_operator_may_pass_further_variables(pool: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "wanted")
    async with pool.serving(pass_env="CANARY_TOKEN, BASH_ENV"):
        seen = await environment(pool, env={"BASH_ENV": "/dev/null"})
    assert (seen["CANARY_TOKEN"], seen["BASH_ENV"]) == ("wanted", "/dev/null")


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "DYLD_INSERT_LIBRARIES", "PYTHONSTARTUP", "BASH_ENV", "GIT_SSH_COMMAND"]
)
def test_a_variable_that_runs_other_code_is_refused(kind: Callable[..., Command], name: str) -> None:
    assert f"TASKORCH_PASS_ENV={name}" in refused(kind(), "echo", env={name: "x"})


def test_a_malformed_environment_is_refused(kind: Callable[..., Command]) -> None:
    assert "use names without '='" in refused(kind(), "echo", env={"A=B": "x"})
    assert "use names without '='" in refused(kind(), "echo", env={"": "x"})
    assert "at most 65536 are allowed" in refused(kind(), "echo", env={"A": "x" * 65_536})


async def test_a_command_runs_in_the_folder_it_names_or_in_the_servers(pool: Commands, tmp_path: Path) -> None:
    async with pool.serving():
        named = await pool.run("pwd", "-P", payload={"cwd": "/usr"})
        default = await pool.run("pwd", "-P")
    assert (pool.output(named), pool.output(default)) == (b"/usr\n", f"{tmp_path}\n".encode())


async def test_a_server_started_in_the_root_runs_commands_at_home(
    pool: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with pool.serving(start=Path("/")):
        assert pool.output(await pool.run("pwd", "-P")) == f"{tmp_path}\n".encode()


def test_a_folder_must_be_absolute_and_exist(kind: Callable[..., Command], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "payload.cwd 'src' is relative" in refused(kind(), "ls", cwd="src")
    assert "payload.cwd '' is relative" in refused(kind(), "ls", cwd="")
    assert "payload.cwd '/no/such' is not a folder" in refused(kind(), "ls", cwd="/no/such")
    assert "is not a folder" in refused(kind(), "ls", cwd=str(file))


async def test_text_for_stdin_arrives_and_without_any_it_is_empty(pool: Commands) -> None:
    text = "é\n" * 50_000
    async with pool.serving():
        given = await pool.run("cat", payload={"stdin": text})
        empty = await pool.run("cat")
    assert (pool.output(given).decode(), pool.output(empty)) == (text, b"")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({}, "payload.argv is required"),
        ({"argv": "git status"}, "'git status' is one string, and no shell reads it. Give a list: payload="),
        ({"argv": "git"}, "payload.argv 'git' is not allowed; it must be an array."),
        ({"argv": []}, "payload.argv [] is not allowed; it must have"),
        ({"argv": ["git", 1]}, "payload.argv.1 1 is not allowed; it must be a string."),
        ({"argv": ["a"] * 1025}, "it must have at most 1024 items."),
        ({"argv": ["git"], "args": []}, "Unknown argument 'payload.args'."),
        ({"argv": ["git"], "envs": {}}, "Did you mean 'env'? Allowed: argv, cwd, env, stdin."),
        ({"argv": ["git"], "env": {"A": 1}}, "payload.env 'A' must be a string."),
    ],
)
def test_a_malformed_payload_is_refused_in_words(kind: Callable[..., Command], payload: Payload, text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        kind("*").check(payload)
    assert text in str(error.value)


# Cancelling.


async def test_cancelled_means_that_the_whole_tree_is_gone(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.tree()
        await pool.store.cancel(task.id, "", "client")
        task = await pool.ended(task)
        assert pool.alive(task) == []
    assert failure(task)[:2] == (Status.CANCELLED, Reason.USER)
    assert failure(task)[2] == "cancelled by client; its process tree was ended; 3 processes had to be killed"
    assert (await pool.queries.history(task)).attempts[0]["message"] == failure(task)[2]
    assert await pool.events(task) == ["cancel_requested"]


async def test_a_command_may_end_by_itself_within_the_grace(pool: Commands) -> None:
    async with pool.serving(grace_seconds=5):
        task = await pool.up("sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
        await pool.store.cancel(task.id, "", "client")
        task = await pool.ended(task)
    assert pool.output(task).endswith(b"\nbye\n")
    assert task.status is Status.CANCELLED


async def test_a_command_cancelled_before_it_began_never_runs(
    pool: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, starting, go = Spawner.start, anyio.Event(), anyio.Event()

    async def slow_start(*arguments: Any) -> Supervised:
        starting.set()
        await go.wait()
        return await start(*arguments)

    monkeypatch.setattr(Spawner, "start", slow_start)
    async with pool.serving():
        task = await pool.command("touch", "ran")
        await starting.wait()
        await pool.store.cancel(task.id, "", "client")
        go.set()
        task = await pool.ended(task)
    assert failure(task)[:3] == (Status.CANCELLED, Reason.USER, "cancelled by client; it had not begun")
    assert not (tmp_path / "ran").exists()


# Its server goes away.


async def left_behind(pool: Commands, *argv: str, **fields: Any) -> Task:
    """A command (the tree, if none is given) that has begun and whose server has gone."""
    async with pool.serving():
        task = await (pool.up(*argv, **fields) if argv else pool.tree(**fields))
    return await pool.get(task)


async def adopted(pool: Commands, task: Task) -> Task:
    return await pool.seen(task, lambda now: now.owner not in (None, task.owner))


async def test_a_command_outlives_its_server_and_the_next_one_takes_in_its_result(
    pool: Commands, tmp_path: Path
) -> None:
    task = await left_behind(pool, "sh", "-c", WAITS)
    assert (task.status, bool(pool.alive(task))) == (Status.WORKING, True)
    async with pool.serving():
        task = await adopted(pool, task)
        (tmp_path / "go").touch()
        task = await pool.ended(task)
    assert (task.status, task.result, task.attempt) == (Status.COMPLETED, {"exit_code": 0, "output_bytes": 8}, 1)
    assert await pool.attempts(task) == [(1, "completed", None)]
    assert await pool.events(task) == ["adopted"]


async def test_a_command_is_adopted_as_often_as_servers_come_and_go(pool: Commands, tmp_path: Path) -> None:
    task = await left_behind(pool, "sh", "-c", f"{WAITS}; exit 5")
    for _ in range(2):
        async with pool.serving():
            task = await adopted(pool, task)
        assert (await pool.get(task)).status is Status.WORKING
    async with pool.serving():
        await adopted(pool, task)
        (tmp_path / "go").touch()
        task = await pool.ended(task)
    assert failure(task) == (Status.FAILED, Reason.EXIT_CODE, "exit code 5: done", 5)
    assert await pool.attempts(task) == [(1, "failed", "exit_code")]
    assert await pool.events(task) == ["adopted"] * 3


async def test_an_end_that_nobody_watched_is_taken_in(pool: Commands, tmp_path: Path) -> None:
    task = await left_behind(pool, "sh", "-c", WAITS)
    (tmp_path / "go").touch()
    await until(lambda: (pool.attempt_folder(task) / "exit.json").exists())
    async with pool.serving():
        task = await pool.ended(task)
    assert (task.status, task.result) == (Status.COMPLETED, {"exit_code": 0, "output_bytes": 8})


async def test_an_adopted_command_can_be_cancelled(pool: Commands) -> None:
    task = await left_behind(pool)
    async with pool.serving():
        task = await adopted(pool, task)
        await pool.store.cancel(task.id, "", "client")
        task = await pool.ended(task)
        assert pool.alive(task) == []
    assert task.status is Status.CANCELLED


async def test_a_command_cancelled_while_no_server_lived_is_ended_by_the_next(pool: Commands) -> None:
    task = await left_behind(pool)
    await pool.store.cancel(task.id, "", "client")
    async with pool.serving():
        task = await pool.ended(task)
        assert pool.alive(task) == []
    assert task.status is Status.CANCELLED


async def test_a_time_limit_holds_while_no_server_lives(pool: Commands) -> None:
    task = await left_behind(pool, timeout_seconds=1)
    await until(lambda: not pool.alive(task))
    async with pool.serving():
        task = await pool.ended(task)
    assert failure(task)[:2] == (Status.FAILED, Reason.TIMEOUT)


async def test_an_adopted_command_fills_a_slot_and_leaves_it_when_it_ends(pool: Commands, tmp_path: Path) -> None:
    task = await left_behind(pool, "sh", "-c", WAITS)
    async with pool.serving(1):
        await adopted(pool, task)
        waiting = await pool.add("ok")
        await anyio.wait_all_tasks_blocked()
        assert (await pool.get(waiting)).status is Status.WAITING
        (tmp_path / "go").touch()
        await pool.ended(task)
        await pool.ended(waiting)


async def test_following_an_adopted_command_leaves_no_descriptor_open(pool: Commands, tmp_path: Path) -> None:
    task = await left_behind(pool, "sh", "-c", WAITS)
    before = open_descriptors()
    for _ in range(3):
        async with pool.serving():
            task = await adopted(pool, task)
    assert open_descriptors() == before


def open_descriptors() -> int:
    gc.collect()  # what earlier tests have let go of
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def other_server(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, killed at the end of the block."""
    with subprocess.Popen([sys.executable, "-c", SERVER, folder]) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_command_of_a_killed_server_goes_on_and_is_adopted(pool: Commands, tmp_path: Path) -> None:
    with other_server(tmp_path):
        task = await pool.up("sh", "-c", WAITS)
    async with pool.serving():
        await adopted(pool, task)
        (tmp_path / "go").touch()
        task = await pool.ended(task)
    assert (task.status, task.result) == (Status.COMPLETED, {"exit_code": 0, "output_bytes": 8})
    assert await pool.attempts(task) == [(1, "completed", None)]


async def test_a_command_that_is_to_stop_is_gone_soon_after_its_server_was_killed(
    pool: Commands, tmp_path: Path
) -> None:
    with other_server(tmp_path):
        task = await pool.tree(on_server_exit="stop")
    await until(lambda: not pool.alive(task))
    async with pool.serving():
        task = await pool.ended(task)
    assert failure(task)[:3] == (
        Status.FAILED,
        Reason.INTERRUPTED,
        "its server went away; 4 processes had to be killed",
    )


async def test_a_command_that_is_to_stop_with_its_server_is_gone_with_its_tree(pool: Commands) -> None:
    task = await left_behind(pool, on_server_exit="stop")
    assert pool.alive(task) == []
    assert failure(task)[:2] == (Status.FAILED, Reason.INTERRUPTED)
    assert failure(task)[2] == "the server stopped; 3 processes had to be killed"


async def test_a_command_that_is_to_stop_with_its_server_runs_again_while_starts_are_left(
    pool: Commands, tmp_path: Path
) -> None:
    task = await left_behind(pool, "sh", "-c", WAITS, on_server_exit="stop", max_attempts=2)
    assert (task.status, task.attempt) == (Status.WAITING, 1)
    (tmp_path / "go").touch()
    async with pool.serving():
        await pool.pass_backoff()
        task = await pool.ended(task)
    assert await pool.attempts(task) == [(1, "failed", "interrupted"), (2, "completed", None)]


async def test_a_command_that_is_to_stop_stops_although_it_is_being_cancelled(pool: Commands) -> None:
    """Its own grace is long; that of a server that stops is short."""
    async with pool.serving(grace_seconds=60):
        task = await pool.tree(on_server_exit="stop")
        await pool.store.cancel(task.id, "", "client")
    task = await pool.get(task)
    assert (task.status, pool.alive(task)) == (Status.CANCELLED, [])


async def test_a_cancel_under_way_is_finished_by_the_next_server(pool: Commands) -> None:
    async with pool.serving(grace_seconds=1):
        task = await pool.up("sh", "-c", "trap 'echo heard' TERM; echo up; while :; do sleep 0.01; done")
        await pool.store.cancel(task.id, "", "client")
        await until(lambda: b"heard" in pool.output(task))
    async with pool.serving():
        task = await pool.ended(task)
    assert (task.status, pool.alive(task)) == (Status.CANCELLED, [])
    assert await pool.events(task) == ["cancel_requested", "adopted"]


async def test_a_server_that_lost_its_command_lets_go_and_signals_nothing(pool: Commands, tmp_path: Path) -> None:
    async with other_process(tmp_path, pool.clock) as other, anyio.create_task_group() as group:
        with Peers(tmp_path / "servers") as alive:
            stranger = await other.register(alive.uuid, os.getpid(), "0", [])
            async with pool.serving() as worker:
                group.start_soon(pool.store.follow_others)
                task = await pool.up("sh", "-c", f"trap 'echo heard' TERM; {WAITS}")
                assert await other.adopt(task, stranger)
                await until(lambda: worker.busy == 0)
            (tmp_path / "go").touch()
            await until(lambda: (pool.attempt_folder(task) / "exit.json").exists())
        group.cancel_scope.cancel()
    assert pool.output(task) == b"up\ndone\n"
    assert (await pool.get(task)).owner == stranger


async def test_the_end_of_a_frozen_server_s_command_is_taken_in_and_what_runs_is_left(
    pool: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.work.worker.HUNG_SECONDS", 0.2)
    monkeypatch.setattr("taskorch.work.worker.SILENT_SECONDS", 0.1)
    monkeypatch.setattr("taskorch.work.worker.TICK_SECONDS", 0.01)
    monkeypatch.setattr(Peers, "silent_seconds", lambda *_: 1.0)
    with Peers(pool.folder / "servers") as frozen:  # alive, and doing nothing
        owner = await pool.store.register(frozen.uuid, os.getpid(), "0", ["command"])
        ended, running = await pool.command("true"), await pool.command("sleep", "60")
        claimed = {task.id: task for task in await pool.store.claim(owner, {"command": 0}, 2)}
        folder = pool.attempt_folder(claimed[ended.id])
        folder.mkdir(parents=True)
        record = {"why": "exit", "code": 0, "signal": None, "errno": None, "tree_gone": True, "killed": 0, "bytes": 0}
        (folder / "exit.json").write_text(json.dumps(record))
        (folder / "exit.json").chmod(0o600)
        async with pool.serving() as worker:
            assert (await pool.ended(ended)).status is Status.COMPLETED
            assert worker.silent == {os.getpid(): 1.0}
            left = await pool.get(running)
        assert (left.status, left.owner) == (Status.WORKING, owner)


# The shim is killed.


async def test_a_shim_killed_under_its_server_loses_the_command_and_leaves_nothing(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.tree()
        os.kill(pool.shim(task), signal.SIGKILL)
        task = await pool.ended(task)
        assert pool.alive(task) == []
    assert failure(task)[:2] == (Status.FAILED, Reason.WORKER_LOST)
    assert failure(task)[2] == "its supervisor was killed or failed; 4 processes had to be killed"


async def test_a_shim_killed_while_no_server_lived_is_cleaned_up_after_by_the_next(pool: Commands) -> None:
    task = await left_behind(pool)
    os.kill(pool.shim(task), signal.SIGKILL)
    await until(lambda: supervised.holder(pool.attempt_folder(task)) is None)
    assert pool.alive(task)
    async with pool.serving():
        task = await pool.ended(task)
        assert pool.alive(task) == []
    assert failure(task)[:2] == (Status.FAILED, Reason.WORKER_LOST)


async def test_a_shim_killed_after_adoption_loses_the_command_and_leaves_nothing(pool: Commands) -> None:
    task = await left_behind(pool)
    async with pool.serving():
        await adopted(pool, task)
        os.kill(pool.shim(task), signal.SIGKILL)
        task = await pool.ended(task)
        assert pool.alive(task) == []
    assert failure(task)[:2] == (Status.FAILED, Reason.WORKER_LOST)


async def test_a_shim_killed_before_it_was_told_what_to_run_costs_no_start(
    pool: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, killed = Spawner.start, False

    async def start_and_kill(*arguments: Any) -> Supervised:
        nonlocal killed
        shim = await start(*arguments)
        if not killed:
            killed = True
            os.kill(shim._pid, signal.SIGKILL)
            await shim.ended()
        return shim

    monkeypatch.setattr(Spawner, "start", start_and_kill)
    async with pool.serving():
        task = await pool.run("echo", max_attempts=1)
    assert (task.status, task.attempt, task.interruptions) == (Status.COMPLETED, 2, 1)


async def test_a_command_whose_server_died_before_it_began_costs_no_start(pool: Commands) -> None:
    task = await pool.command("echo", max_attempts=1)
    with Peers(pool.folder / "servers") as peers:
        owner = await pool.store.register(peers.uuid, os.getpid(), "0", ["command"])
        [claimed] = await pool.store.claim(owner, {"command": 0}, 1)
        pool.attempt_folder(claimed).mkdir(parents=True)
        shim = await Supervised.start(pool.attempt_folder(claimed), supervised.SHIM)
        shim.close()
        await until(lambda: supervised.holder(pool.attempt_folder(claimed)) is None)
    async with pool.serving():
        task = await pool.ended(task)
    assert (task.status, task.attempt, task.interruptions) == (Status.COMPLETED, 2, 1)


async def test_a_shim_that_does_not_come_up_fails_the_attempt_which_may_be_tried_again(
    pool: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind = pool.kind()
    monkeypatch.setattr(supervised, "compiled_shim", lambda _: tmp_path / "missing.py")
    async with pool.running(1, command=kind):
        task = await pool.backing_off(await pool.command("echo", max_attempts=2))
    assert task.error is not None
    assert (task.error.reason, "did not come up" in task.error.message) == (Reason.SPAWN_ERROR, True)


async def test_a_supervisor_s_code_that_was_cut_short_costs_one_attempt_and_not_all(
    pool: Commands, tmp_path: Path
) -> None:
    """As a full disk or a power cut may leave it."""
    async with pool.serving():
        await pool.run("true")
    [code] = (tmp_path / "state" / "cache").glob("shim-*.pyc")
    code.write_bytes(code.read_bytes()[:1000])
    async with pool.serving():
        assert failure(await pool.run("true"))[1] is Reason.SPAWN_ERROR
        assert (await pool.run("true")).status is Status.COMPLETED


async def test_shims_that_were_let_go_do_not_stay_as_zombies(pool: Commands, tmp_path: Path) -> None:
    async with pool.serving():
        (tmp_path / "one").mkdir()
        shim = await Supervised.start(tmp_path / "one", supervised.SHIM)
        shim.close()  # without an order it leaves
        await until(lambda: state(shim._pid) in ("Z", ""))
        await pool.run("true")
        assert state(shim._pid) == ""


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# What was left on disk is not believed blindly.

RECORD = {"code": 0, "signal": None, "why": "exit", "errno": None, "tree_gone": True, "killed": 0, "bytes": 5}


@asynccontextmanager
async def attempt_of(pool: Commands, wish: Ending | None = None) -> AsyncIterator[tuple[Command, Attempt, Path]]:
    """An attempt that another server began, with an empty folder."""
    task = await pool.command("echo")
    [claimed] = await pool.store.claim(1, {"command": 0}, 1)
    folder = pool.attempt_folder(task)
    folder.mkdir(parents=True)
    attempt = Attempt(claimed, lambda _: None, adopted=True)
    if wish:
        attempt.end(wish)
    umask = os.umask(0o077)  # as a shim makes its files
    try:
        yield pool.kind(), attempt, folder
    finally:
        os.umask(umask)


@pytest.mark.parametrize(
    ("record", "wish", "outcome"),
    [
        ({}, None, Completed({"exit_code": 0, "output_bytes": 5})),
        ({}, Ending.CANCEL, Completed({"exit_code": 0, "output_bytes": 5})),
        ({"code": 9}, None, Failed(Reason.EXIT_CODE, "exit code 9", 9)),
        ({"code": 127}, None, Failed(Reason.EXIT_CODE, "exit code 127", 127, retryable=False)),
        (
            {"why": "cancel", "killed": 1},
            Ending.CANCEL,
            Cancelled("its process tree was ended; 1 process had to be killed"),
        ),
        (
            {"why": "cancel", "killed": 2},  # its server was stopping, and died before it could say so
            None,
            Failed(Reason.INTERRUPTED, "the server stopped; 2 processes had to be killed"),
        ),
        (
            {"why": "server_gone"},
            None,
            Failed(Reason.INTERRUPTED, "its server went away"),
        ),
        (
            {"why": "spawn_error", "code": None, "errno": 11},
            None,
            Failed(
                Reason.SPAWN_ERROR, "the program could not be started: Resource temporarily unavailable", retryable=True
            ),
        ),
        (
            {"why": "spawn_error", "code": None, "errno": 13},
            None,
            Failed(Reason.SPAWN_ERROR, "the program could not be started: Permission denied", 126, retryable=False),
        ),
        (
            {"tree_gone": False},
            None,
            Failed(Reason.WORKER_LOST, "some of its processes could not be ended", retryable=False),
        ),
    ],
)
async def test_the_record_of_a_shim_decides_how_the_attempt_ended(
    pool: Commands, record: dict[str, Any], wish: Ending | None, outcome: Outcome
) -> None:
    async with attempt_of(pool, wish) as (kind, attempt, folder):
        (folder / "exit.json").write_text(json.dumps(RECORD | record))
        assert await kind.inspect(attempt.task) is Remains.ADOPTABLE
        assert await kind.run(attempt) == outcome


BAD_RECORDS: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.touch(),
    "truncated": lambda path: path.write_text(json.dumps(RECORD)[:-5]),
    "not JSON": lambda path: path.write_bytes(b"\xff\xfe"),
    "not an object": lambda path: path.write_text("[]"),
    "a field missing": lambda path: path.write_text("{}"),
    "a field of another type": lambda path: path.write_text(json.dumps(RECORD | {"code": "0"})),
    "true for a number": lambda path: path.write_text(json.dumps(RECORD | {"code": False})),
    "an end that no shim knows": lambda path: path.write_text(json.dumps(RECORD | {"why": "success"})),
    "a code that no system has": lambda path: path.write_text(json.dumps(RECORD | {"code": 10**30})),
    "a negative code": lambda path: path.write_text(json.dumps(RECORD | {"code": -1})),
    "an errno that no system has": lambda path: path.write_text(
        json.dumps(RECORD | {"why": "spawn_error", "code": None, "errno": 10**30})
    ),
    "more bytes than a file has": lambda path: path.write_text(json.dumps(RECORD | {"bytes": 10**30})),
    "a thousand brackets": lambda path: path.write_text("[" * 1000),
    "huge": lambda path: path.write_text(json.dumps(RECORD | {"more": "x" * 10_000})),
    "a hole of a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "writable by others": lambda path: (path.write_text(json.dumps(RECORD)), path.chmod(0o622)),
    "a link": lambda path: (path.with_name("other").write_text(json.dumps(RECORD)), path.symlink_to("other")),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("make", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
async def test_a_record_that_no_shim_wrote_is_not_believed(pool: Commands, make: Callable[[Path], Any]) -> None:
    async with attempt_of(pool) as (kind, attempt, folder):
        make(folder / "exit.json")
        (folder / "shim.lock").write_text("1 2 boot\n3 4\n")  # a child was noted
        assert await kind.inspect(attempt.task) is Remains.NOTHING
        assert await kind.run(attempt) == Failed(Reason.WORKER_LOST, "its supervisor was killed or failed")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: (path.write_text("1 2 boot\n"), path.chmod(0o622)),
    ],
    ids=["a link", "a folder", "a pipe", "garbage", "writable by others"],
)
async def test_a_lock_that_no_shim_made_is_nobodys(pool: Commands, make: Callable[[Path], Any]) -> None:
    async with attempt_of(pool) as (kind, attempt, folder):
        make(folder / "shim.lock")
        assert supervised.holder(folder) is None
        certain = (folder / "shim.lock").is_file() and (folder / "shim.lock").lstat().st_mode & 0o777 == 0o600
        assert await kind.inspect(attempt.task) is (Remains.NEVER_BEGUN if certain else Remains.NOTHING)
        assert isinstance(await kind.run(attempt), Interrupted if certain else Failed)


async def test_what_a_server_had_claimed_and_not_begun_when_it_died_has_not_begun(pool: Commands) -> None:
    async with attempt_of(pool) as (kind, attempt, folder):
        shutil.rmtree(folder)
        assert await kind.inspect(attempt.task) is Remains.NEVER_BEGUN
        shutil.rmtree(folder.parent)
        assert await kind.inspect(attempt.task) is Remains.NEVER_BEGUN, "not even its task's folder"
        shutil.rmtree(folder.parent.parent)
        assert await kind.inspect(attempt.task) is Remains.NOTHING, "all output is gone: that proves nothing"
        folder.mkdir(parents=True)


async def test_a_command_whose_files_are_removed_while_it_runs_is_lost_and_not_run_again(
    pool: Commands, tmp_path: Path
) -> None:
    log = tmp_path / "runs"
    script = 'echo run >> "$1"; rm -rf "$2/$TASKORCH_TASK_ID/$TASKORCH_ATTEMPT"; exit 0'
    async with pool.serving():
        task = await pool.ended(
            await pool.command("sh", "-c", script, "sh", str(log), str(tmp_path / "state" / "output"))
        )
    assert (task.status, task.attempt) == (Status.FAILED, 1)
    assert task.error is not None
    assert task.error.reason is Reason.WORKER_LOST
    assert log.read_text() == "run\n"


async def test_a_supervisor_that_was_stopped_still_ends_its_command_at_the_limit(pool: Commands) -> None:
    async with pool.serving():
        task = await pool.ended(await pool.command("sh", "-c", "kill -STOP $PPID; sleep 100", timeout_seconds=0.5))
        assert pool.alive(task) == []
    assert failure(task)[1] is Reason.TIMEOUT


def test_a_shim_that_this_process_cannot_name_is_sent_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives 0 for a pid of another namespace, and 0 as an address means everybody here."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(supervised, "holder", lambda folder: 0)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    shim = Supervised.attach(tmp_path)
    assert shim
    shim.terminate()
    shim.kill()
    shim.close()
    assert sent == []


async def test_what_cannot_be_ended_is_never_started_again(pool: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process, as after sudo, refuses the signal."""
    monkeypatch.setattr(leftovers, "end_leftovers", lambda *_: (1, [4711]))
    task = await left_behind(pool, "sh", "-c", WAITS, max_attempts=3)
    os.kill(pool.shim(task), signal.SIGKILL)
    await until(lambda: supervised.holder(pool.attempt_folder(task)) is None)
    async with pool.serving():
        task = await pool.ended(task)
    assert failure(task)[:2] == (Status.FAILED, Reason.WORKER_LOST)
    assert task.attempt == 1


def test_a_child_that_has_not_yet_become_the_command_is_found_by_the_note(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], env={}) as child, subprocess.Popen(["sleep", "60"], env={}) as later:
        try:
            started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
            (tmp_path / "shim.lock").write_text(f"1 1 boot\n{later.pid} 17\n")
            (tmp_path / "shim.lock").chmod(0o600)
            assert leftovers.end_leftovers(tmp_path, "tleft", 1) == (0, [])  # the number is another's by now
            (tmp_path / "shim.lock").write_text(f"1 1 boot\n{child.pid} {started}\n")
            (tmp_path / "shim.lock").chmod(0o600)
            assert leftovers.end_leftovers(tmp_path, "tleft", 1) == (1, [])
            assert (child.wait(5), later.poll()) == (-signal.SIGKILL, None)
        finally:
            child.kill()
            later.kill()


BEGINNING = "1 1 boot\nbegins\n"


def note(folder: Path, text: str) -> None:
    (folder / "shim.lock").write_text(text)
    (folder / "shim.lock").chmod(0o600)


def test_a_process_that_becomes_the_command_after_its_shim_was_killed_is_waited_for_and_ended(tmp_path: Path) -> None:
    note(tmp_path, BEGINNING)
    later = f"read _ < {tmp_path}/gate; TASKORCH_TASK_ID=tleft TASKORCH_ATTEMPT=1 exec sleep 60"
    os.mkfifo(tmp_path / "gate")
    with subprocess.Popen(["sh", "-c", later], env={}) as child:
        try:
            opened = threading.Timer(0.1, (tmp_path / "gate").write_text, ["go\n"])
            opened.start()
            assert leftovers.end_leftovers(tmp_path, "tleft", 1) == (1, [])
            assert child.wait(5) == -signal.SIGKILL
        finally:
            child.kill()


async def test_a_command_that_may_have_begun_when_its_shim_was_killed_is_never_run_again(pool: Commands) -> None:
    async with attempt_of(pool) as (kind, attempt, folder):
        note(folder, BEGINNING)
        assert await kind.inspect(attempt.task) is Remains.UNKNOWN
        outcome = await kind.run(attempt)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.retryable) == (Reason.WORKER_LOST, False)
    assert "may have begun" in outcome.message


def test_leftovers_are_those_of_one_attempt_only(tmp_path: Path) -> None:
    def start(attempt: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], env={"TASKORCH_TASK_ID": "tleft", "TASKORCH_ATTEMPT": str(attempt)})

    with start(1) as old, start(2) as new:
        try:
            # The old one is ours to reap and stays as a zombie, which does not count.
            assert leftovers.end_leftovers(tmp_path, "tleft", 1) == (1, [])
            assert (old.wait(5), new.poll()) == (-signal.SIGKILL, None)
        finally:
            old.kill()
            new.kill()


async def test_a_command_tells_its_progress_by_what_it_writes_also_when_its_server_has_gone(
    pool: Commands, tmp_path: Path
) -> None:
    on, off = tmp_path / "on", tmp_path / "off"  # two: a reader may open one that its last writer has not closed yet
    for fifo in (on, off):
        os.mkfifo(fifo)
    script = "echo '::progress 1/3 first'; read -r _ < \"$1\"; echo '::progress 2/3 second'; read -r _ < \"$2\""

    async def told(progress: Progress) -> None:
        await pool.seen(task, lambda now: now.progress == progress)

    task = await pool.command("sh", "-c", script, "sh", str(on), str(off))
    async with pool.serving():
        await told(Progress(1, 3, "first"))
    async with pool.serving():
        await anyio.to_thread.run_sync(on.write_text, "go\n")
        await told(Progress(2, 3, "second"))
        await anyio.to_thread.run_sync(off.write_text, "go\n")
        assert (await pool.ended(task)).status is Status.COMPLETED


async def test_output_that_cannot_be_read_costs_a_command_its_progress_and_nothing_else(
    pool: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, asked = tmp_path / "go", 0
    os.mkfifo(go)

    def broken(*_: object) -> tuple[bytes, int]:
        nonlocal asked
        asked += 1
        raise OSError(EMFILE, "Too many open files")

    monkeypatch.setattr(output, "news", broken)
    task = await pool.command("sh", "-c", "echo '::progress 1/3'; read -r _ < \"$1\"", "sh", str(go))
    async with pool.serving():
        await until(lambda: asked > 1)
        await anyio.to_thread.run_sync(go.write_text, "go\n")
        assert (await pool.ended(task)).status is Status.COMPLETED
