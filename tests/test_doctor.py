"""`taskorch doctor`: each thing that can be wrong is found, named, and comes with what to do."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import taskorch
from taskorch.cli import diagnosis, doctor, hosts, runnable
from taskorch.cli.check import FAIL, OK, WARN, Check, State
from taskorch.storage import busy, place, schema
from taskorch.work import machine

SECONDS = 20.0
SOMEBODY = 12_345
PACKAGE = str(Path(taskorch.__file__).parents[1])
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
SERVER = """if True:
    import asyncio, fcntl, os, pathlib, sqlite3, sys
    from taskorch.storage.database import open_database
    from taskorch.work.peers import Peers
    from taskorch.storage.store import Store

    async def run(state):
        async with open_database(state / "taskorch.db") as database:
            with Peers(state / "servers") as peers:
                await Store(database).register(peers.uuid, os.getpid(), "1.2.3", ["echo"])
                attempt = state / "output" / "tabcdef" / "2"
                attempt.mkdir(parents=True)
                lock = os.open(attempt / "shim.lock", os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.lockf(lock, fcntl.LOCK_EX)
                writer = sqlite3.connect(state / "taskorch.db", isolation_level=None)
                writer.execute("BEGIN IMMEDIATE")
                print("ready", flush=True)
                sys.stdin.readline()
                writer.execute("ROLLBACK")
                writer.close()

    asyncio.run(run(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def nothing_of_the_developer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TASKORCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that a server has used."""
    folder = tmp_path / "state"
    schema.make_ready(folder / "taskorch.db")
    return folder


@contextmanager
def server(state: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that holds the write lock, with a supervisor beside it; what holds both is one process."""
    command = [sys.executable, "-c", SERVER, state]
    environment = os.environ | {"PYTHONPATH": PACKAGE}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            if process.stdin and process.poll() is None:
                process.communicate(b"\n", timeout=SECONDS)


def examine(state: Path, **flags: object) -> dict[str, Check]:
    return {check.name: check for check in doctor.diagnose({"state_dir": state, **flags})[1]}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def run(*options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "taskorch", *options]
    environment = os.environ | {"PYTHONPATH": PACKAGE} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)


# The whole


def test_a_newcomer_is_told_that_nothing_is_there_and_nothing_is_made(tmp_path: Path) -> None:
    checks = examine(tmp_path / "new" / "state")
    assert not [check for check in checks.values() if check.state == FAIL]
    assert "first start" in checks["folder"].text and "first start" in checks["database"].text
    assert checks["servers"].text == "none runs"
    assert os.listdir(tmp_path) == []


def test_a_sound_folder_is_left_as_it_is_to_the_last_byte(state: Path) -> None:
    before = contents(state)
    checks = examine(state)
    assert {name: check.state for name, check in checks.items() if name != "sqlite" and check.state != OK} == {}
    text = checks["database"].text
    assert text.startswith(f"schema {schema.version()}, ") and text.endswith(" KiB, sound")
    assert contents(state) == before


def test_every_problem_says_how_to_mend_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "mount_of", lambda _: place.Mount("/", "nfs"))
    monkeypatch.setattr(place, "free_bytes", lambda _: 0)
    (state / "taskorch.db").write_bytes(b"no database" * 1000)
    (state / "taskorch.db.corrupt-20260101T000000Z").touch()
    monkeypatch.setenv("TASKORCH_CONCURENCY", "3")
    checks = examine(state, concurrency=0, allow_commands="no-such-program")
    problems = {name for name, check in checks.items() if check.state != OK}
    assert problems >= {"settings", "variables", "file system", "disk", "database", "moved aside"}
    assert [name for name in problems if not checks[name].mend] == []


def test_the_command_prints_a_line_for_each_check_and_exits_with_0_when_nothing_fails(state: Path) -> None:
    result = run("--state-dir", str(state), "doctor")
    assert (result.returncode, result.stderr) == (0, "")
    first, *lines, last = [line for line in result.stdout.splitlines() if "->" not in line]
    assert first == f"State folder: {state}"
    assert [tuple(line[:20].split(None, 1)) for line in lines][2:4] == [
        ("ok", "settings      "),
        ("ok", "variables     "),
    ]
    assert len(lines) == 18
    assert last.endswith("to look at.") or last == "All is well."


def test_the_command_exits_with_1_when_something_must_be_mended(state: Path) -> None:
    (state / "taskorch.db").write_bytes(b"no database" * 1000)
    result = run("doctor", "--json", "--state-dir", str(state))
    assert (result.returncode, result.stderr) == (1, "")
    told = json.loads(result.stdout)
    assert (told["healthy"], told["state_dir"]) == (False, str(state))
    [failed] = [check for check in told["checks"] if check["state"] == "FAIL"]
    assert failed["name"] == "database" and "is damaged" in failed["text"] and "Stop all servers" in failed["mend"]


def test_it_needs_no_sdk() -> None:
    script = "import sys; from taskorch.cli import doctor; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": PACKAGE}).returncode == 0


def test_a_check_that_cannot_be_made_is_a_problem_and_not_the_end(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(place, "free_bytes", broken)
    checks = examine(state)
    assert checks["disk"].state == FAIL and "Input/output error" in checks["disk"].text
    assert checks["database"].state == OK


# Programs and settings


@pytest.mark.parametrize(("version", "state"), [((3, 10, 9), FAIL), ((3, 11, 0), OK), ((3, 14, 1), OK)])
def test_python(version: tuple[int, ...], state: State) -> None:
    assert doctor.python(version)[0] == state


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ((3, 36, 0), FAIL),
        ((3, 40, 1), WARN),
        ((3, 44, 5), WARN),
        ((3, 44, 6), OK),
        ((3, 45, 9), WARN),
        ((3, 50, 6), WARN),
        ((3, 50, 7), OK),
        ((3, 51, 2), WARN),
        ((3, 51, 3), OK),
        ((3, 52, 0), OK),
        ((4, 0, 0), OK),
    ],
)
def test_sqlite_with_its_wal_reset_bug(version: tuple[int, int, int], state: State) -> None:
    assert doctor.sqlite(version)[0] == state


def test_a_wrong_setting_is_named_and_the_rest_is_looked_at_all_the_same(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKORCH_STATE_DIR", str(state))
    monkeypatch.setenv("TASKORCH_CONCURRENCY", "many")
    folder, found = doctor.diagnose({})
    checks = {check.name: check for check in found}
    assert folder == state
    assert checks["settings"].state == FAIL and "concurrency 'many' is not allowed" in checks["settings"].text
    assert checks["database"].text.startswith(f"schema {schema.version()}")


@pytest.mark.parametrize("text", [b"concurrency = \n", b"x = \xe4\n"])
def test_a_broken_config_file_is_named(text: bytes, state: Path, tmp_path: Path) -> None:
    (tmp_path / "config" / "taskorch").mkdir(parents=True)
    (tmp_path / "config" / "taskorch" / "config.toml").write_bytes(text)
    checks = examine(state)
    assert checks["settings"].state == checks["config keys"].state == FAIL
    assert "config.toml cannot be read" in checks["settings"].text


def test_misspelt_variables_and_keys_are_named(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKORCH_CONCURENCY", "3")
    (tmp_path / "config" / "taskorch").mkdir(parents=True)
    (tmp_path / "config" / "taskorch" / "config.toml").write_text("keep_day = 3\nkeep_days = 4\n")
    checks = examine(state)
    assert (checks["variables"].state, checks["config keys"].state) == (WARN, WARN)
    assert checks["variables"].text.startswith("TASKORCH_CONCURENCY:")
    assert checks["config keys"].text.startswith("keep_day:")


@pytest.mark.parametrize(
    ("allowed", "state", "said"),
    [
        ("", OK, "no program may run"),
        ("*", OK, "every program may run"),
        ("sh, ls", OK, "sh, ls may run"),
        ("sh,no-such-program", WARN, "no-such-program: not found in PATH="),
        ("/no/such/program,sh", WARN, "/no/such/program: not found"),
    ],
)
def test_allowed_commands_are_looked_for(allowed: str, state: State, said: str) -> None:
    found, text, mend = runnable.commands(allowed)
    assert (found, bool(mend)) == (state, state == WARN)
    assert text.startswith(said)


# The folder


def test_rights_that_are_too_wide(state: Path) -> None:
    state.chmod(0o755)
    assert examine(state)["folder"].state == WARN
    state.chmod(0o700)
    (state / "taskorch.db").chmod(0o640)
    check = examine(state)["folder"]
    assert check.state == WARN and "taskorch.db is open to others" in check.text
    assert stat.S_IMODE((state / "taskorch.db").stat().st_mode) == 0o640


@as_root
@pytest.mark.parametrize("name", ["", "taskorch.db"])
def test_somebody_else_s_files(name: str, state: Path) -> None:
    os.chown(state / name, SOMEBODY, -1)
    check = examine(state)["folder"]
    assert check.state == FAIL and f"uid {SOMEBODY}" in check.text and "chown" in check.mend


def test_a_linked_database(state: Path) -> None:
    (state / "taskorch.db").rename(state / "real.db")
    (state / "taskorch.db").symlink_to(state / "real.db")
    check = examine(state)["folder"]
    assert check.state == FAIL and "symbolic link" in check.text and check.mend


def test_a_folder_that_can_neither_be_made_nor_written(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    check = examine(tmp_path / "file" / "state")["folder"]
    assert check.state == FAIL and f"cannot be made in {tmp_path / 'file'}" in check.text
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("taskorch.db"))
    check = examine(state)["folder"]
    assert check.state == FAIL and "taskorch.db cannot be written" in check.text


@pytest.mark.parametrize(
    ("mount", "allowed", "state"),
    [
        (None, False, OK),
        (place.Mount("/", "ext4"), False, OK),
        (place.Mount("/net", "nfs4"), False, FAIL),
        (place.Mount("/net", "nfs4"), True, WARN),
    ],
)
def test_file_systems(
    mount: place.Mount | None, allowed: bool, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "mount_of", lambda _: mount)
    found, text, mend = doctor.file_system(tmp_path, allowed)
    assert (found, bool(mend)) == (state, state != OK)
    assert mount is None or (mount.kind in text and mount.point in text)


@pytest.mark.parametrize(("mib", "state"), [(49, FAIL), (50, WARN), (499, WARN), (500, OK)])
def test_free_disk(mib: int, state: State) -> None:
    assert doctor.disk(mib * 2**20)[:2] == (state, f"{mib} MiB free")


# The database


def test_damage_deep_inside_is_found(state: Path) -> None:
    path = state / "taskorch.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE notes(text)")
        connection.executemany("INSERT INTO notes VALUES (?)", [("x" * 500,)] * 100)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size - 2 * 4096)
        file.write(b"\xff" * 4096)
    check = examine(state)["database"]
    assert check.state == FAIL and "is damaged" in check.text and "backups/" in check.mend


def test_a_newer_database(state: Path) -> None:
    with closing(sqlite3.connect(state / "taskorch.db")) as connection:
        connection.execute("PRAGMA user_version=99")
    check = examine(state)["database"]
    assert check.state == FAIL and "newer taskorch (schema 99" in check.text and "Upgrade" in check.mend


def test_a_database_without_wal(state: Path) -> None:
    with closing(sqlite3.connect(state / "taskorch.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    check = examine(state)["database"]
    assert check.state == WARN and "journal mode" in check.text and "WAL" in check.mend


def test_a_database_that_cannot_be_read(state: Path) -> None:
    (state / "taskorch.db").unlink()
    (state / "taskorch.db").mkdir()
    check = examine(state)["database"]
    assert check.state == FAIL and "cannot be read" in check.text and check.mend


def test_what_was_moved_aside_is_listed(state: Path) -> None:
    aside = place.set_aside(state / "taskorch.db")
    check = examine(state)["moved aside"]
    assert check.state == WARN and aside.name in check.text and check.mend


# Who uses it


def test_servers_supervisors_and_the_holder_of_the_write_lock_are_named(state: Path) -> None:
    with server(state) as process:
        checks = examine(state)
    assert checks["servers"].state == OK
    assert checks["servers"].text.startswith(f"pid {process.pid}, taskorch 1.2.3, ")
    assert checks["servers"].text.endswith(" s old")
    assert checks["supervisors"].text == f"task tabcdef, attempt 2, pid {process.pid}"
    assert checks["database"].state == OK
    if busy.LOCKS.exists():
        assert checks["write lock"].state == WARN
        assert checks["write lock"].text == f"held by pid {process.pid}"


def test_looking_disturbs_no_lock_of_a_running_server(state: Path) -> None:
    with server(state):
        examine(state)
        assert examine(state)["servers"].state == OK
        with (
            closing(sqlite3.connect(state / "taskorch.db", timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")


def test_a_server_that_was_killed_is_a_warning_with_a_way_out(state: Path) -> None:
    with server(state) as process:
        process.kill()
    before = {name: data for name, data in contents(state).items() if not name.endswith("-shm")}
    checks = examine(state)
    assert checks["servers"].state == WARN
    assert f"none runs; gone without signing off: pid {process.pid}" in checks["servers"].text
    assert "Start taskorch" in checks["servers"].mend
    assert "next start makes up for that" in checks["database"].text
    assert checks["supervisors"].text == "no command runs"
    assert checks["write lock"].text == "free"
    assert {name: data for name, data in contents(state).items() if not name.endswith("-shm")} == before


@pytest.mark.parametrize(
    ("machine_id", "said"),
    [(machine.machine_id(), "none runs; gone without signing off: pid 4242"), ("other", "pid 4242 on another machine")],
)
def test_a_lock_file_of_an_earlier_boot_or_another_machine_is_a_warning(
    machine_id: str, said: str, state: Path
) -> None:
    (state / "servers").mkdir()
    (state / "servers" / "abc.lock").write_text(f"4242 another-boot {machine_id}\n")
    check = examine(state)["servers"]
    assert (check.state, check.text) == (WARN, said)
    assert check.mend


@pytest.mark.parametrize(
    ("lines", "holder"),
    [
        ("1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 120 120\n", 77),
        ("1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n", 77),
        ("1: POSIX  ADVISORY  WRITE -1 fe:00:{inode} 120 120\n", -1),
        ("1: POSIX  ADVISORY  READ 77 fe:00:{inode} 120 120\n", None),
        ("1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 121 121\n", None),
        ("1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 100 119\n", None),
        ("1: POSIX  ADVISORY  WRITE 77 fe:00:1{inode} 120 120\n", None),
        ("1: -> POSIX  ADVISORY  WRITE 77 fe:00:{inode} 120 120\n", None),
        ("1: FLOCK  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n", None),
        ("", None),
    ],
)
def test_the_holder_is_found_in_the_kernel_s_list(lines: str, holder: int | None, tmp_path: Path) -> None:
    (tmp_path / "taskorch.db-shm").write_text("")
    inode = (tmp_path / "taskorch.db-shm").stat().st_ino
    (tmp_path / "locks").write_text("9: FLOCK ADVISORY WRITE 1 00:01:1 0 EOF\n" + lines.format(inode=inode))
    assert busy.lock_holder(tmp_path / "taskorch.db", tmp_path / "locks") == holder


def test_a_holder_in_another_container_has_no_pid() -> None:
    assert "another container" in doctor.write_lock(-1)[1]


def test_ages_are_told_in_words() -> None:
    ages = [5.0, 120.0, 5400.0, 200_000.0]
    told = [str(diagnosis.Server(1, True, age, "")) for age in ages]
    assert told == ["pid 1, 5 s old", "pid 1, 2.0 min old", "pid 1, 1.5 h old", "pid 1, 2.3 d old"]


def test_a_clock_that_was_set_back_makes_nobody_younger_than_nothing(tmp_path: Path) -> None:
    noted = diagnosis.Store(servers={"abc": (1, round(1000 * (time.time() + 3600)), "1.0")})
    [found] = diagnosis.servers(tmp_path, noted)
    assert found.age == 0


def test_allowed_folders_are_looked_for(tmp_path: Path) -> None:
    assert runnable.command_dirs("")[:2] == (State.OK, "commands may run in every folder")
    assert runnable.command_dirs(str(tmp_path))[:2] == (State.OK, f"commands may run in or below {tmp_path}")
    state, text, mend = runnable.command_dirs(f"{tmp_path},{tmp_path}/gone")
    assert (state, text) == (State.WARN, f"{tmp_path}/gone: no such folder")
    assert "TASKORCH_ALLOW_DIRS" in mend


# Hosts


PROGRAM = str(Path(sys.executable).with_name("taskorch"))


def connected(state: Path, text: str, name: str = "cursor") -> Check:
    """What is said of a host whose file holds that text."""
    path = hosts.find(hosts.HostName(name)).user
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return examine(state)[name]


def naming(*words: str) -> str:
    return json.dumps({"mcpServers": {"taskorch": {"command": words[0], "args": words[1:]}}})


def test_without_a_host_it_is_said_how_to_connect_one(state: Path) -> None:
    checks = examine(state)
    assert checks["hosts"].state == OK and "taskorch install claude-desktop|" in checks["hosts"].text
    assert not checks.keys() & set(hosts.HostName)


def test_only_the_hosts_that_are_found_are_told_of(state: Path) -> None:
    check = connected(state, '{"numStartups": 3}', "claude-code")
    assert check.state == OK and "names no taskorch; to connect it: taskorch install claude-code" in check.text
    checks = examine(state)
    assert checks.keys() & {"hosts", *hosts.HostName} == {"claude-code"}


@pytest.mark.parametrize("link", [False, True])
def test_a_host_that_starts_this_taskorch_is_well(link: bool, state: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "taskorch").symlink_to(PROGRAM)
    program = str(tmp_path / "bin" / "taskorch") if link else PROGRAM
    assert connected(state, naming(program)) == Check("cursor", OK, f"starts this taskorch: {program}")
    assert connected(state, naming(sys.executable, "-m", "taskorch")).text.startswith("starts this taskorch")


def test_a_file_with_comments_is_understood(state: Path) -> None:
    text = f'{{"servers": {{"taskorch": {{"command": "{PROGRAM}",}}, /* mine */}}}} // end'
    assert connected(state, text, "vscode").text.startswith("starts this taskorch")


@pytest.mark.parametrize(
    ("words", "state_said", "said"),
    [
        (("/gone/bin/taskorch",), FAIL, "/gone/bin/taskorch does not exist"),
        (("{tmp}/dead",), FAIL, "cannot be executed"),
        (("{tmp}",), FAIL, "cannot be executed"),
        (("~/bin/taskorch",), FAIL, "~/bin/taskorch is not found"),
        (("no-such-taskorch",), FAIL, "no-such-taskorch is not found"),
        (("sh",), WARN, "another PATH"),
        (("{tmp}/taskorch",), WARN, "another taskorch than this one"),
        (("{tmp}/live",), WARN, "another taskorch than this one"),
        (("/bin/sh", "-m", "taskorch"), WARN, "another taskorch than this one"),
        (("{tmp}/uvx", "taskorch"), OK, "uvx taskorch"),
        (("${userHome}/taskorch",), OK, "only Cursor can look up"),
    ],
)
def test_a_host_that_starts_something_else_is_told_of(
    words: tuple[str, ...], state_said: State, said: str, state: Path, tmp_path: Path
) -> None:
    for name, mode in (("dead", 0o600), ("live", 0o700), ("uvx", 0o700), ("taskorch", 0o700)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    check = connected(state, naming(*(word.replace("{tmp}", str(tmp_path)) for word in words)))
    assert check.state == state_said and said in check.text
    assert ("taskorch install cursor" in check.mend) is (state_said != OK)


@pytest.mark.parametrize(
    ("text", "state_said", "said"),
    [
        ('{"mcpServers": {"taskorch": {"url": "http://localhost"}}}', FAIL, "names no command"),
        ('{"mcpServers": {"taskorch": {"command": 3, "args": ["x"]}}}', FAIL, "names no command"),
        ('{"mcpServers": {"taskorch": 3}}', OK, "names no taskorch"),
        ('{"mcpServers": []}', OK, "names no taskorch"),
        ("[]", OK, "names no taskorch"),
        ("", OK, "names no taskorch"),
        ('{"mcpServers": ', WARN, "is no JSON"),
    ],
)
def test_whatever_a_host_s_file_holds_is_put_in_words(text: str, state_said: State, said: str, state: Path) -> None:
    check = connected(state, text)
    assert check.state == state_said and said in check.text
