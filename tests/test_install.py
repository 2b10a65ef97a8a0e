"""`taskorch install`: a host's file names this taskorch afterwards, and nothing else in it is touched."""

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import taskorch
from taskorch.cli import hosts, install
from taskorch.cli.hosts import HostName

SECONDS = 20.0
PROGRAM = str(Path(sys.executable).with_name("taskorch"))
BOARD = {"TASKORCH_TOOLSETS": "core,board"}  # where the host can show it
OTHER = '{\n\t"mcpServers": {\n\t\t"other": {"command":"x", "env": {"TOKEN": "s"}}\n\t},\n\t"theme": "dark"\n}'
COMMENTED = '{\n  // mine\n  "servers": {},\n}\n'
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("TASKORCH_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    def run(*options: str, folder: Path = home) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(Path(taskorch.__file__).parents[1]),
        }
        command = [sys.executable, "-m", "taskorch", *options]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            cwd=folder,
        )

    return run


def config(home: Path, name: str = "cursor", text: str = OTHER) -> Path:
    path = hosts.find(HostName(name)).user
    assert path.is_relative_to(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(name: str = "cursor", allowed: tuple[str, ...] = (), **variables: str) -> Any:
    """Install without asking; our entry in the file as it is then."""
    plan = install.plan(HostName(name), None, variables, allowed)
    assert install.carry_out(plan, yes=True, only_print=False) == 0
    return json.loads(plan.path.read_text())[plan.host.section]["taskorch"]


# Each host.


@pytest.mark.parametrize(
    ("name", "path", "section", "entry"),
    [
        (
            "claude-desktop",
            ".config/Claude/claude_desktop_config.json",
            "mcpServers",
            {"command": PROGRAM, "env": BOARD},
        ),
        ("claude-code", ".claude.json", "mcpServers", {"type": "stdio", "command": PROGRAM}),
        ("cursor", ".cursor/mcp.json", "mcpServers", {"command": PROGRAM, "env": BOARD}),
        ("vscode", ".config/Code/User/mcp.json", "servers", {"type": "stdio", "command": PROGRAM, "env": BOARD}),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_each_host_is_set_up_in_its_own_file(
    name: str, path: str, section: str, entry: dict[str, Any], run: Run, home: Path
) -> None:
    result = run("install", name, "--yes")
    assert result.returncode == 0, result.stderr
    assert json.loads((home / path).read_text()) == {section: {"taskorch": entry}}
    assert f"Wrote {home / path}" in result.stdout


def test_macos_keeps_them_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    support = home / "Library" / "Application Support"
    assert hosts.find(HostName.CLAUDE_DESKTOP).user == support / "Claude" / "claude_desktop_config.json"
    assert hosts.find(HostName.VSCODE).user == support / "Code" / "User" / "mcp.json"


@pytest.mark.parametrize(
    ("name", "path"), [("claude-code", ".mcp.json"), ("cursor", ".cursor/mcp.json"), ("vscode", ".vscode/mcp.json")]
)
def test_a_project_has_a_file_of_its_own(name: str, path: str, run: Run, home: Path) -> None:
    (home / "work").mkdir()
    assert run("install", name, "--project", "--yes", folder=home / "work").returncode == 0
    assert list(files(home)) == [f"work/{path}"]


def test_claude_desktop_has_no_project(run: Run, home: Path) -> None:
    result = run("install", "claude-desktop", "--project", "--yes")
    assert (result.returncode, files(home)) == (2, {})
    assert "no file for a project" in result.stderr


def test_who_set_the_tools_keeps_them(home: Path) -> None:
    """The board among them or not; hosts that cannot show it are not given it."""
    assert put(TASKORCH_TOOLSETS="core,worker")["env"] == {"TASKORCH_TOOLSETS": "core,worker"}
    assert put()["env"] == {"TASKORCH_TOOLSETS": "core,worker"}
    assert "env" not in put("claude-code")


# The rest of the file.


def test_the_change_is_shown_and_the_rest_of_the_file_stays(run: Run, home: Path) -> None:
    path = config(home)
    path.chmod(0o640)
    result = run("install", "cursor", "--yes")
    env = '\t\t\t"env": {\n\t\t\t\t"TASKORCH_TOOLSETS": "core,board"\n\t\t\t}'
    added = ',\n\t\t"taskorch": {\n\t\t\t"command": "' + PROGRAM + '",\n' + env + "\n\t\t}\n\t},"
    assert path.read_text() == OTHER.replace("\n\t},", added)
    assert f'+\t\t\t"command": "{PROGRAM}",' in result.stdout.splitlines()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (copy,) = [other for other in path.parent.iterdir() if other != path]
    assert copy.read_text() == OTHER and str(copy) in result.stdout
    assert copy.suffix == ".bak" and stat.S_IMODE(copy.stat().st_mode) == 0o640


def test_a_second_time_nothing_is_to_be_changed(run: Run, home: Path) -> None:
    config(home)
    run("install", "cursor", "--allow-command", "git", "--yes")
    before = files(home)
    result = run("install", "cursor", "--allow-command", "git")
    assert (result.returncode, files(home)) == (0, before)
    assert "Nothing to change" in result.stdout


def test_what_a_person_wrote_into_the_entry_stays(home: Path) -> None:
    entry = {
        "command": "/old/bin/taskorch",
        "args": ["--concurrency", "3"],
        "env": {"TASKORCH_ALLOW_COMMANDS": "make", "A": "b"},
        "alwaysLoad": True,
        "url": "http://localhost",
    }
    config(home, text=json.dumps({"mcpServers": {"taskorch": entry}}))
    assert put(allowed=("git", "make"), TASKORCH_GRACE_SECONDS="2") == {
        "command": PROGRAM,
        "args": ["--concurrency", "3"],
        "env": {"TASKORCH_ALLOW_COMMANDS": "make,git", "A": "b", "TASKORCH_GRACE_SECONDS": "2"} | BOARD,
        "alwaysLoad": True,
    }


@pytest.mark.parametrize(
    ("command", "arguments", "kept"),
    [
        ("uvx", ["taskorch", "--concurrency", "3"], ["--concurrency", "3"]),
        ("/py", ["-m", "taskorch"], []),
        ("npx", ["x"], []),
    ],
)
def test_only_what_was_meant_for_taskorch_itself_is_kept(command: str, arguments: list[str], kept: list[str]) -> None:
    assert hosts.own_arguments({"command": command, "args": arguments}) == kept


def test_removing_takes_out_the_entry_alone(run: Run, home: Path) -> None:
    path = config(home)
    run("install", "cursor", "--yes")
    assert run("install", "cursor", "--remove").returncode == 2
    assert run("install", "cursor", "--remove", "--yes").returncode == 0
    assert path.read_text() == OTHER
    result = run("install", "cursor", "--remove", "--yes")
    assert (result.returncode, path.read_text()) == (0, OTHER)
    assert "Nothing to change" in result.stdout


def test_a_link_stays_a_link(home: Path) -> None:
    path = config(home)
    path.rename(home / "dotfile.json")
    path.symlink_to(home / "dotfile.json")
    put()
    assert path.is_symlink() and "taskorch" in (home / "dotfile.json").read_text()


def test_a_file_on_one_line_is_shown_laid_out(home: Path) -> None:
    text = json.dumps({"mcpServers": {"other": {"command": "x" * 500}}})
    config(home, text=text)
    plan = install.plan(HostName.CURSOR, None, {}, ())
    assert f'+      "command": "{PROGRAM}",' in list(install.difference(plan))
    assert (
        plan.after.decode() == text[:-2] + f', "taskorch": {{"command": "{PROGRAM}", "env": {json.dumps(BOARD)}}}}}}}'
    )


# Asking.


def test_without_a_person_to_ask_nothing_is_written(run: Run, home: Path) -> None:
    config(home)
    before = files(home)
    result = run("install", "cursor")
    assert (result.returncode, files(home)) == (2, before)
    assert PROGRAM in result.stdout and "--yes" in result.stderr


@pytest.mark.parametrize(("answer", "code", "written"), [("y", 0, True), ("n", 1, False), ("", 1, False)])
def test_a_person_is_asked(answer: str, code: int, written: bool, home: Path) -> None:
    path = config(home)
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb"}
    command = [sys.executable, "-m", "taskorch", "install", "cursor"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=home) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        said = b""
        while b"Write this to" not in said or b"\n" not in said.rpartition(b"Write this to")[2]:
            said += os.read(ours, 4096)
        assert process.wait(SECONDS) == code
    os.close(ours)
    assert (path.read_text() != OTHER) is written
    assert b"[y/N]" in said


def test_printing_writes_nothing(run: Run, home: Path) -> None:
    config(home)
    before = files(home)
    result = run("install", "cursor", "--print", "--yes", "--allow-command", "git")
    assert (result.returncode, files(home)) == (0, before)
    entry = {"command": PROGRAM, "env": {"TASKORCH_ALLOW_COMMANDS": "git"} | BOARD}
    assert json.loads(result.stdout) == {"mcpServers": {"taskorch": entry}}
    assert str(home / ".cursor" / "mcp.json") in result.stderr


# What goes wrong.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COMMENTED.encode(), "not plain JSON"),
        (b'{"servers": ', "not JSON"),
        (b'{"servers": {"a": "\xff"}}', "not UTF-8"),
        (b"[]", "not an object"),
        (b'{"servers": {}, "servers": {}}', "2 times"),
    ],
)
def test_a_file_that_cannot_be_changed_safely_is_left_and_the_entry_is_given(
    text: bytes, said: str, run: Run, home: Path
) -> None:
    path = config(home, "vscode")
    path.write_bytes(text)
    result = run("install", "vscode", "--yes")
    assert (result.returncode, list(files(home).values())) == (1, [text])
    assert said in result.stderr and str(path) in result.stderr and "by hand" in result.stderr
    assert json.loads(result.stdout)["servers"]["taskorch"]["command"] == PROGRAM
    assert run("install", "vscode", "--print").returncode == 0


def test_a_file_with_comments_that_is_right_already_is_left_in_peace(run: Run, home: Path) -> None:
    entry = json.dumps({"type": "stdio", "command": PROGRAM, "env": BOARD})
    path = config(home, "vscode", COMMENTED.replace("{}", f'{{"taskorch": {entry}}}'))
    assert run("install", "vscode").returncode == 0
    result = run("install", "vscode", "--remove", "--yes")
    assert result.returncode == 1 and "Take servers.taskorch out by hand" in result.stderr
    assert "// mine" in path.read_text()


def test_what_the_host_wrote_meanwhile_is_not_lost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(home)
    plan = install.plan(HostName.CURSOR, None, {}, ())
    path.write_text('{"theme": "light"}')
    assert install.carry_out(plan, yes=True, only_print=False) == 1
    assert "changed meanwhile" in capsys.readouterr().err
    assert path.read_text() == '{"theme": "light"}'
    assert not [name for name in files(home) if name.startswith(".cursor/.")]


def test_a_disk_that_takes_nothing_more_leaves_the_file_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(home)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    plan = install.plan(HostName.CURSOR, None, {}, ())
    assert install.carry_out(plan, yes=True, only_print=False) == 1
    assert "No space left" in capsys.readouterr().err
    assert path.read_text() == OTHER
    assert not [name for name in files(home) if name.startswith(".cursor/.")]


def test_a_write_protected_file_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(home)
    monkeypatch.setattr(os, "access", lambda where, mode: where != path)
    plan = install.plan(HostName.CURSOR, None, {}, ())
    assert install.carry_out(plan, yes=True, only_print=False) == 1
    assert "write-protected" in capsys.readouterr().err and path.read_text() == OTHER


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--env", "A"], "not KEY=VALUE"),
        (["--env", "1A=x"], "not KEY=VALUE"),
        (["--env", "TASKORCH_CONCURENCY=3"], "Did you mean 'TASKORCH_CONCURRENCY'?"),
        (["--env", "TASKORCH_CONCURRENCY=many"], "it must be a whole number"),
        (["--print", "--remove"], "exclude each other"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_read(options: list[str], said: str, run: Run, home: Path) -> None:
    result = run("install", "cursor", "--yes", *options)
    assert (result.returncode, result.stdout, files(home)) == (2, "", {})
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_options_before_the_word_go_into_the_entry(run: Run, home: Path) -> None:
    run("--concurrency", "3", "--state-dir", "state", "install", "cursor", "--yes", "--env", "A=b=c")
    entry = json.loads((home / ".cursor" / "mcp.json").read_text())["mcpServers"]["taskorch"]
    expected = {"TASKORCH_CONCURRENCY": "3", "TASKORCH_STATE_DIR": str(home / "state"), "A": "b=c"} | BOARD
    assert entry["env"] == expected


# The program.


def test_a_python_without_the_command_starts_the_module(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    assert hosts.program() == [str(home / "python"), "-m", "taskorch"]
    assert put() == {"command": str(home / "python"), "args": ["-m", "taskorch"], "env": BOARD}
    assert put() == {"command": str(home / "python"), "args": ["-m", "taskorch"], "env": BOARD}


@pytest.mark.parametrize(
    ("path", "temporary"),
    [
        ("/home/me/.cache/uv/archive-v0/x/bin/taskorch", True),
        ("/home/me/Library/Caches/uv/x/bin/taskorch", True),
        ("/tmp/venv/bin/taskorch", True),
        ("/home/me/.local/share/uv/tools/taskorch/bin/taskorch", False),
        ("/home/me/tmp/.venv/bin/taskorch", False),
    ],
)
def test_a_program_that_may_be_cleared_away_is_warned_about(
    path: str, temporary: bool, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hosts, "program", lambda: [path])
    install.carry_out(install.plan(HostName.CURSOR, None, {}, ()), yes=False, only_print=True)
    assert ("cleared away" in capsys.readouterr().err) is temporary
