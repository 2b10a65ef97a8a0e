"""What a hostile text, a hostile file or a careless task cannot do. docs/security.md has the promises."""

import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import ERAS, Answer, call, connected, raw_call, refusal, settings
from mcp import Client
from test_process import Place, wait_for

import taskorch
from taskorch.app import App, running
from taskorch.policy import NotAllowed, Policy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

SOURCE = Path(taskorch.__file__).parent
CANARY = "canary-5f1d9c3e7a"
LATER = {"delay_seconds": 3600}
METACHARACTERS = [
    *("a b", "$HOME", "${IFS}", "*", "?", "[a]", "~", ";id", "&& id", "|| id", "| cat", "> out", "< in", "`id`"),
    *("$(id)", "'", '"', "\\", "#", "!", "{a,b}", "\n", "\t", "-e", "--", "", "é\u202e", "%s", "\x1b[31m"),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with running(settings(tmp_path)) as app:
        yield app


@pytest.fixture
async def client(app: App, era: str) -> AsyncIterator[Client]:
    async with connected(app.server, era) as client:
        yield client


async def ran(client: Client, *argv: str, **payload: Any) -> Answer:
    """A command that has ended."""
    return await call(client, "create_task", payload={"argv": list(argv), **payload}, wait_seconds=20)


async def written(client: Client, *argv: str, **payload: Any) -> str:
    task = (await ran(client, *argv, **payload)).facts
    return (await call(client, "get_task_output", task_id=task["id"])).facts["text"]


def texts_in(folder: Path) -> dict[str, bytes]:
    """Every plain file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# 1. Files.


def test_all_that_a_server_makes_is_its_owners_alone_whatever_the_umask(place: Place) -> None:
    old = os.umask(0)
    try:
        server = place.start()
        task = server.command("sh", "-c", "echo secret; exec sleep 60")
        server.until_working(task)
        wait_for(lambda: list(place.state.glob("output/*/*/output")))
    finally:
        os.umask(old)
    found = [place.state, *place.state.rglob("*")]
    open_to_others = {
        path.name: oct(mode)
        for path in found
        if (mode := stat.S_IMODE(path.lstat().st_mode)) & 0o077 and path.suffix != ".pyc"
    }
    assert open_to_others == {}
    writable = [path for path in found if path.lstat().st_mode & 0o022]
    assert writable == [], "the supervisor's byte code is run: nobody else may write it"
    assert {path.name for path in found} >= {"taskorch.db", "output", "shim.lock", "servers"}
    server.call("cancel_task", task_id=task)
    server.until_ended(task)


# 2. No shell.


def test_metacharacters_arrive_literally_in_each_slot_of_a_real_call(place: Place) -> None:
    server = place.start()
    slots = 4
    for shift in range(slots):
        words = METACHARACTERS[shift:] + METACHARACTERS[:shift]
        task = server.command("printf", "%s\\001", *words)
        server.until_ended(task)
        [file] = place.state.glob(f"output/{task}/1/output")
        assert file.read_text().split("\x01")[:-1] == words
    assert list(place.work.iterdir()) == []


@pytest.mark.parametrize("word", [*METACHARACTERS, "echo hi", "echo;id", "$(echo)", "/bin/echo hi"])
async def test_a_program_is_a_name_and_never_a_line(client: Client, word: str) -> None:
    text = refusal(await raw_call(client, "create_task", {"payload": {"argv": [word]}}))
    assert "payload.argv[0]" in text


# 3. The environment.

DENIED = [
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "PYTHONSTARTUP", "BASH_ENV", "ENV"),
    *("GIT_SSH_COMMAND", "GIT_SSH", "BASH_FUNC_echo%%"),
]


@pytest.mark.parametrize("name", DENIED)
async def test_a_variable_that_runs_other_code_is_refused_when_a_task_names_it(client: Client, name: str) -> None:
    text = refusal(await raw_call(client, "create_task", {"payload": {"argv": ["true"], "env": {name: "x"}}}))
    assert f"payload.env {name} can make a program run other code" in text
    assert f"TASKORCH_PASS_ENV={name}" in text


def test_a_command_of_a_real_server_sees_no_variable_of_the_servers_but_the_listed(place: Place) -> None:
    place.environment |= dict.fromkeys(DENIED, "/nowhere") | {"CANARY": CANARY, "WANTED": "yes"}
    for name in ("LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "PYTHONSTARTUP"):
        del place.environment[name]  # they would disturb the server itself
    server = place.start(pass_env="WANTED")
    task = server.command("cat", "/proc/self/environ")
    server.until_ended(task)
    [file] = place.state.glob(f"output/{task}/1/output")
    seen = {line.partition(b"=")[0].decode() for line in file.read_bytes().split(b"\0")[:-1]}
    seen.discard("LC_CTYPE")  # Python sets it in a server without a locale; LC_* are listed
    assert seen == {"PATH", "HOME", "WANTED", "TASKORCH_TASK_ID", "TASKORCH_ATTEMPT", "TASKORCH_IDEMPOTENCY_KEY"}


# 4. The working folder.


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One where commands may run, and one where they may not."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "app", outside):
        folder.mkdir(parents=True)
    return inside, outside


def policy(*roots: Path) -> Policy:
    return Policy("*", folders=",".join(map(str, roots)))


def test_without_the_setting_every_folder_will_do(tmp_path: Path) -> None:
    assert policy().folder(str(tmp_path), "cwd") == os.path.realpath(tmp_path)


def test_a_folder_must_be_in_or_below_one_that_is_allowed(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    for good in (inside, inside / "app", inside / "app" / ".."):
        assert policy(inside).folder(str(good), "cwd") == os.path.realpath(good)
    assert policy(outside, inside).folder(str(inside), "cwd") == str(inside)
    assert policy(Path("/")).folder(str(outside), "cwd") == str(outside)
    (inside.parent / "inside-out").mkdir()
    for bad in (outside, inside.parent, inside / ".." / "outside", inside.parent / "inside-out", Path("/")):
        with pytest.raises(NotAllowed) as error:
            policy(inside).folder(str(bad), "payload.cwd")
        assert str(inside) in str(error.value) and "TASKORCH_ALLOW_DIRS=" in str(error.value)


def test_a_link_is_judged_by_where_it_leads(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    (inside / "link").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    with pytest.raises(NotAllowed) as error:
        policy(inside).folder(str(inside / "link"), "payload.cwd")
    assert f"(really '{outside}')" in str(error.value)
    assert policy(outside / "back").folder(str(inside / "app"), "cwd") == str(inside / "app")
    assert policy(inside).folder(str(outside / "back" / "app"), "cwd") == str(inside / "app")


async def test_a_command_elsewhere_is_refused_with_the_setting_to_change(
    folders: tuple[Path, Path], tmp_path: Path, era: str
) -> None:
    inside, outside = folders
    async with (
        running(settings(tmp_path, allow_dirs=str(inside)), start=outside) as app,
        connected(app.server, era) as client,
    ):
        text = refusal(await raw_call(client, "create_task", {"payload": {"argv": ["pwd"], "cwd": str(outside)}}))
        assert f"TASKORCH_ALLOW_DIRS={inside},{outside}" in text
        text = refusal(await raw_call(client, "create_task", {"payload": {"argv": ["pwd"]}}))
        assert "The server's own folder" in text and "Use a cwd" in text
        assert (await call(client, "list_tasks")).facts["tasks"] == []
        assert await written(client, "pwd", "-P", cwd=str(inside / "app")) == f"{inside / 'app'}\n"


async def test_a_link_that_is_exchanged_after_the_creation_leads_nowhere(
    folders: tuple[Path, Path], tmp_path: Path, era: str
) -> None:
    inside, outside = folders
    link = inside / "link"
    link.symlink_to(inside / "app")
    async with (
        running(settings(tmp_path, allow_dirs=str(inside))) as app,
        connected(app.server, era) as client,
    ):
        payload = {"argv": ["touch", "here"], "cwd": str(link)}
        task = (await call(client, "create_task", payload=payload, **LATER)).facts
        link.unlink()
        link.symlink_to(outside)
        await call(client, "update_task", task_id=task["id"], delay_seconds=0)
        await call(client, "wait_for_tasks", task_ids=[task["id"]])
        ended = (await call(client, "get_task", task_id=task["id"])).facts
    assert (ended["status"], ended["error"]["reason"]) == ("failed", "not_allowed")
    assert list(outside.iterdir()) == list((inside / "app").iterdir()) == []


async def test_a_folder_that_is_exchanged_at_the_last_moment_is_found_out_from_inside(
    folders: tuple[Path, Path], tmp_path: Path, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has looked; then somebody puts a link in the folder's place."""
    inside, outside = folders
    look = Policy.folder

    def exchanged(self: Policy, path: str, what: str) -> str:
        found = look(self, path, what)
        if not (inside / "gone").exists() and "task" in exchange:
            (inside / "app").rename(inside / "gone")
            (inside / "app").symlink_to(outside)
        return found

    exchange: set[str] = set()
    monkeypatch.setattr(Policy, "folder", exchanged)
    async with (
        running(settings(tmp_path, allow_dirs=str(inside))) as app,
        connected(app.server, era) as client,
    ):
        payload = {"argv": ["touch", "here"], "cwd": str(inside / "app")}
        task = (await call(client, "create_task", payload=payload, **LATER)).facts
        exchange.add("task")
        await call(client, "update_task", task_id=task["id"], delay_seconds=0)
        await call(client, "wait_for_tasks", task_ids=[task["id"]])
        ended = (await call(client, "get_task", task_id=task["id"])).facts
    assert (inside / "app").is_symlink(), "it was exchanged"
    assert list(outside.iterdir()) == []
    assert (ended["status"], ended["error"]["reason"]) == ("failed", "not_allowed")
    assert "TASKORCH_ALLOW_DIRS" in ended["error"]["message"]


# 5. Caps. (tests/test_bad_input.py has the table of what is refused, each by its limit and one.)


async def test_a_payload_one_byte_too_large_is_refused_wherever_the_bytes_are(client: Client) -> None:
    def padded(make: Callable[[str], dict[str, Any]], size: int) -> dict[str, Any]:
        return make("x" * (size - len(json.dumps(make(""), separators=(",", ":")))))

    for make in (
        lambda text: {"argv": ["true", text]},
        lambda text: {"argv": ["true"], "stdin": text},
        lambda text: {"argv": ["true"], "cwd": "/" + text},
    ):
        payload = padded(make, 262_145)
        text = refusal(await raw_call(client, "create_task", {"payload": payload}))
        assert "payload has 262145 bytes; at most 262144 are allowed" in text
    stdin = padded(lambda text: {"argv": ["wc", "-c"], "stdin": text}, 262_144)
    assert await written(client, *stdin["argv"], stdin=stdin["stdin"]) == f"{len(stdin['stdin'])}\n"


async def test_an_environment_one_byte_too_large_is_refused(client: Client) -> None:
    for name, value in (("A", "x" * 65_536), ("A", "é" * 32_768)):
        payload = {"argv": ["true"], "env": {name: value}}
        text = refusal(await raw_call(client, "create_task", {"payload": payload}))
        assert "payload.env has 65537 bytes; at most 65536 are allowed" in text
    assert await written(client, "sh", "-c", "echo ${#A}", env={"A": "x" * 65_535}) == "65535\n"


async def test_one_argument_that_no_system_takes_fails_the_task_in_words(client: Client) -> None:
    ended = (await ran(client, "true", "x" * 200_000)).facts
    assert (ended["status"], ended["error"]["reason"]) == ("failed", "spawn_error")
    assert "Argument list too long" in ended["error"]["message"]


async def test_no_more_tasks_are_stored_than_may_live(tmp_path: Path, era: str) -> None:
    async with (
        running(settings(tmp_path, max_live_tasks=2)) as app,
        connected(app.server, era) as client,
    ):
        for _ in range(2):
            await call(client, "create_task", kind="echo", **LATER)
        text = refusal(await raw_call(client, "create_task", {"kind": "echo", **LATER}))
        assert "at most 2 may (TASKORCH_MAX_LIVE_TASKS)" in text


async def test_a_command_gets_no_core_files_and_a_bounded_number_of_open_files(client: Client) -> None:
    limits = await written(client, "sh", "-c", "ulimit -S -c; ulimit -H -c; ulimit -S -n")
    core, core_hard, files = limits.split()
    assert (core, core_hard) == ("0", "0")
    assert int(files) <= 4096


async def test_a_fork_bomb_ends_at_its_time_limit_with_all_its_children(client: Client) -> None:
    bomb = "b() { test $1 -gt 0 && { b $(($1-1)) & b $(($1-1)) & }; exec sleep 60; }; b 5"  # 63 processes at most
    payload = {"argv": ["sh", "-c", bomb]}
    task = (await call(client, "create_task", payload=payload, timeout_seconds=1, wait_seconds=20)).facts
    assert task["error"]["reason"] == "timeout"
    mark = f"TASKORCH_TASK_ID={task['id']}".encode()
    assert not [pid for pid, environ in environments().items() if mark in environ]


def environments() -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "environ").read_bytes()
        except OSError:
            continue
    return found
