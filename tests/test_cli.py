"""The command line as a person or a host meets it: what it says, on which stream, and the exit code."""

import os
import pty
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import taskorch
from taskorch.storage import schema

SECONDS = 15.0  # for what takes one or two
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing of the developer's own settings and state."""
    package = Path(taskorch.__file__).parents[1]
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PYTHONPATH": str(package),
        "TASKORCH_STATE_DIR": str(tmp_path / "state"),
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run taskorch with options and variables. Stdin stays open unless `stdin` says otherwise."""

    def run(*options: str, stdin: int | None = None, **variables: str) -> "subprocess.CompletedProcess[str]":
        read, write = os.pipe()
        try:
            return subprocess.run(
                [sys.executable, "-m", "taskorch", *options],
                stdin=read if stdin is None else stdin,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=environment | variables,
                cwd=tmp_path,
            )
        finally:
            os.close(read)
            os.close(write)

    return run


def refusal(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line on stderr that says why it did not start."""
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("taskorch: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# Talking to people.


def test_version_prints_the_version_and_nothing_else(run: Run) -> None:
    result = run("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"taskorch {taskorch.__version__}\n", "")


def test_the_installed_command_is_the_module(environment: dict[str, str]) -> None:
    command = Path(sys.executable).with_name("taskorch")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert (result.returncode, result.stdout) == (0, f"taskorch {taskorch.__version__}\n")


def test_help_names_every_option(run: Run) -> None:
    result = run("--help")
    assert result.returncode == 0
    for option in (
        "--state-dir",
        "--concurrency",
        "--allow-commands",
        "--handlers",
        "--version",
        "demo",
        "doctor",
        "backup",
        "install",
    ):
        assert option in result.stdout


def test_a_person_at_a_terminal_is_told_what_to_do_instead(run: Run, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        result = run(stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (result.returncode, result.stdout) == (2, "")
    assert "MCP server" in result.stderr
    assert "taskorch demo" in result.stderr
    assert "taskorch doctor" in result.stderr
    assert "taskorch install" in result.stderr
    assert '"mcpServers"' in result.stderr
    assert not (tmp_path / "state").exists()


# What keeps it from starting.


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        (["--concurrency", "0"], {}, "concurrency 0 is not allowed; it must be at least 1"),
        ([], {"TASKORCH_CONCURRENCY": "many"}, "concurrency 'many' is not allowed; it must be a whole number"),
        ([], {"TASKORCH_LOG_LEVEL": "LOUD"}, "log_level 'LOUD' is not allowed"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    options: list[str], variables: dict[str, str], said: str, run: Run
) -> None:
    assert said in refusal(run(*options, **variables))


@pytest.mark.parametrize("text", [b"concurrency = \n", b"concurrency = 3 # \xe4\n", b'concurrency = "three"\n'])
def test_a_broken_config_file_is_named_in_one_line(text: bytes, run: Run, tmp_path: Path) -> None:
    (tmp_path / "config" / "taskorch").mkdir(parents=True)
    (tmp_path / "config" / "taskorch" / "config.toml").write_bytes(text)
    assert "config.toml" in refusal(run())


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_host_that_gives_no_stdin_or_stdout_is_told_so(closed: str, environment: dict[str, str]) -> None:
    script = f'"{sys.executable}" -m taskorch {closed}'
    shell = ["sh", "-c", script]
    result = subprocess.run(
        shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, env=environment
    )
    assert "stdin and stdout must be open" in refusal(result)


def test_a_server_that_cannot_start_exits_with_2_though_stderr_is_closed(environment: dict[str, str]) -> None:
    script = f'"{sys.executable}" -m taskorch --handlers no_such_module 2>&-'
    shell = ["sh", "-c", script]
    assert subprocess.run(shell, stdin=subprocess.PIPE, timeout=SECONDS, env=environment).returncode == 2


# The next four fail after stdin and stdout were taken over, while the host keeps stdin open: none may hang.


def test_a_missing_handler_module_is_named_in_one_line(run: Run) -> None:
    said = refusal(run("--handlers", "no_such_module"))
    assert "no_such_module" in said
    assert "TASKORCH_HANDLERS" in said


def test_a_handler_module_that_fails_is_shown_with_its_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('not today')")
    result = run("--handlers", "broken")
    assert (result.returncode, result.stdout) == (2, "")
    assert "broken.py" in result.stderr
    assert result.stderr.endswith("taskorch: could not start: SystemExit: not today\n")


def test_a_newer_store_is_refused_in_one_line_and_left_as_it_is(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    connection = sqlite3.connect(state / "taskorch.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript("CREATE TABLE future(x); INSERT INTO future VALUES (1); PRAGMA user_version = 99;")
    connection.close()
    before = (state / "taskorch.db").read_bytes()
    assert "newer taskorch (schema 99" in refusal(run())
    assert (state / "taskorch.db").read_bytes() == before
    assert not (state / "taskorch.db-wal").exists()


def test_a_state_folder_that_cannot_be_written_is_named_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refusal(run("--state-dir", str(tmp_path / "file" / "state")))


def test_a_lock_folder_that_cannot_be_made_is_named_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "servers").write_text("")
    assert "servers" in refusal(run())


# Copies of the database.


def test_backup_prints_where_the_copy_is(run: Run, tmp_path: Path) -> None:
    schema.make_ready(tmp_path / "state" / "taskorch.db")
    result = run("backup")
    assert (result.returncode, result.stderr) == (0, "")
    copy = Path(result.stdout.strip())
    assert copy.parent == tmp_path / "state" / "backups"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_backup_takes_a_file_relative_to_where_it_is_called(run: Run, tmp_path: Path) -> None:
    schema.make_ready(tmp_path / "other" / "taskorch.db")
    result = run("backup", "copy.db", "--state-dir", str(tmp_path / "other"))
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'copy.db'}\n")
    assert (tmp_path / "copy.db").read_bytes()[:15] == b"SQLite format 3"


@pytest.mark.parametrize(("made", "said"), [(True, "mine.db exists already"), (False, "There is no database at")])
def test_a_backup_that_cannot_be_made_is_explained_in_one_line(made: bool, said: str, run: Run, tmp_path: Path) -> None:
    if made:
        schema.make_ready(tmp_path / "state" / "taskorch.db")
    (tmp_path / "mine.db").write_text("mine")
    result = run("backup", "mine.db")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (5, "", 1)
    assert said in result.stderr
    assert (tmp_path / "mine.db").read_text() == "mine"


# What it starts with.


def test_a_misspelt_variable_or_key_is_warned_about_and_does_no_harm(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config" / "taskorch").mkdir(parents=True)
    (tmp_path / "config" / "taskorch" / "config.toml").write_text("concurency = 3\n")
    result = run(stdin=subprocess.DEVNULL, TASKORCH_CONCURENCY="3")
    assert (result.returncode, result.stdout) == (0, "")
    variable, key = result.stderr.splitlines()
    assert "WARNING" in variable and "TASKORCH_CONCURENCY means nothing" in variable
    assert "WARNING" in key and "concurency in" in key
