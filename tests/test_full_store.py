"""Every command beside two servers on a store of 10,000 tasks: it answers, it is heard, and no server minds."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from servers import MODERN, Place
from terminals import Terminal

from taskorch.cli.main import cli

TASKS = 10_000
LOOKS = (
    ("ls", "task 9999"),
    ("ls --status waiting --text 'task 77' --limit 3 --json", '"task 7799"'),
    ("show broken", "exit_code"),
    ("logs broken --json", '"total_bytes"'),
    ("wait broken --json", '"done"'),
    ("stats --json", '"total": 10'),
    ("metrics", 'taskorch_tasks{status="failed",priority="medium"} 1'),
    ("top --json", "broken"),
    ("config show", "state_dir"),
)
OTHERS = {"add", "load", "edit", "cancel", "retry", "rm", "backup", "doctor"}  # of which each is in a test below
ELSEWHERE = {"demo", "install", "worker", "http", "serve"}  # they use other stores, hosts' files, or do not end


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("full"))
    with contextlib.ExitStack() as servers:  # not the place: it would look for a command of each task
        servers.callback(lambda: [server.close() for server in place.servers])
        first, _ = place.start(), place.start(MODERN)
        for part in range(TASKS // 1000):
            wishes = [_wish(1000 * part + n) for n in range(1000)]
            assert first.call("create_tasks", tasks=wishes)["count"] == 1000
        failed = first.command("false", name="broken")
        first.until_ended(failed)
        yield place


def _wish(n: int) -> dict[str, Any]:
    """Half of them wait for tomorrow, the others end at once."""
    later = {"delay_seconds": 86_400} if n % 2 else {}
    return {
        "kind": "echo",
        "name": f"task {n}",
        "payload": {"n": n},
        "labels": ["even" if n % 2 == 0 else "odd"],
        **later,
    }


def test_every_command_is_tried() -> None:
    commands: set[str] = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]
    assert commands - ELSEWHERE == {words.split()[0] for words, _ in LOOKS} | OTHERS


@pytest.mark.parametrize(("words", "said"), LOOKS)
def test_what_looks_finds_it_at_once(words: str, said: str, full: Place) -> None:
    ran = Terminal(full).run(*shlex.split(words))
    assert ran.returncode == (1 if words.startswith("wait") else 0), ran.stderr
    assert said.replace(": ", ":") in ran.stdout.replace(": ", ":")


def test_what_changes_something_is_seen_by_both_servers(full: Place) -> None:
    terminal = Terminal(full)
    made = terminal.out("add", "-n", "fresh", "--", "sh", "-c", "echo hello").strip()
    for server in full.servers:
        server.until_ended(made)
    assert terminal.out("logs", "fresh") == "hello\n"
    assert len(terminal.out("load", "-", stdin='[{"kind": "echo"}, {"kind": "echo"}]').split()) == 2
    terminal.out("edit", "task 5001", "--priority", "high")
    terminal.out("cancel", "task 5003")
    terminal.out("retry", "broken")
    for server in full.servers:
        server.until_ended(server.get("broken")["id"])
        assert server.get("task 5001")["priority"] == "high"
        assert server.get("task 5003")["status"] == "cancelled"
        assert server.get("broken")["attempt"] == 2
    terminal.out("rm", "task 5005", "--yes")
    answers = [server.answer(server.post_call("get_task", task_id="task 5005")) for server in full.servers]
    assert all(answer["result"]["isError"] for answer in answers)


def test_a_backup_holds_what_is_stored(full: Place) -> None:
    assert Terminal(full).run("backup").returncode == 0
    assert list((full.state / "backups").iterdir())


def test_the_doctor_finds_nothing_to_mend(full: Place) -> None:
    found = json.loads(Terminal(full).run("doctor", "--json").stdout)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["database"] == states["servers"] == "ok" and "fail" not in states.values(), found


def test_no_server_has_said_anything(full: Place) -> None:
    for server in full.servers:
        assert "WARNING" not in server.errors.read_text() and "ERROR" not in server.errors.read_text()
