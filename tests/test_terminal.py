"""Tasks from a terminal: each command against a real store, beside real servers and workers."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from servers import MODERN, SECONDS, Place, alive, wait_for
from terminals import Prompt, Terminal, fill

from taskorch.cli.exits import Exit
from taskorch.cli.words import COMMANDS, told
from taskorch.mcp.tools import TOOLS
from taskorch.storage import schema


@pytest.fixture
def terminal(place: Place) -> Terminal:
    return Terminal(place)


@pytest.fixture
def prompt(place: Place) -> Prompt:
    return Prompt(place)


@pytest.fixture
def busy(place: Place, terminal: Terminal) -> Iterator[Terminal]:
    """With a worker that runs what is added."""
    with terminal.worker():
        yield terminal


def columns(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines()]


# Adding and waiting.


def test_a_command_that_is_added_runs_where_it_was_typed_and_is_waited_for(busy: Terminal, place: Place) -> None:
    ran = busy.run("add", "-n", "here", "--wait", "--", "sh", "-c", "pwd; echo $MINE > made", "x", MINE="")
    assert (ran.returncode, columns(ran.stdout)[0][1]) == (Exit.OK, "completed")
    assert (place.work / "made").exists()
    assert busy.out("logs", "here") == f"{place.work}\n"


def test_options_end_where_the_command_begins(busy: Terminal) -> None:
    """So that `--` is needed only where the program's name itself looks like an option."""
    task = busy.add("-n", "flags", "echo", "-n", "--json", "--wait")
    assert busy.run("wait", task).returncode == Exit.OK
    assert busy.facts("show", task)["payload"]["argv"] == ["echo", "-n", "--json", "--wait"]
    assert busy.out("logs", task) == "--json --wait\n"


def test_all_options_of_add_reach_the_task(prompt: Prompt, place: Place) -> None:
    first = prompt.add("-n", "first", "--", "true")
    options = "-n second -p high -l a -l b --depends-on first --on-dependency-failure run --timeout 2m --max-attempts 4"
    others = "--on-server-exit stop --concurrency-key k --expires-at 2999-01-01T00:00:00Z --env A=b=c"
    policy = '{"on_exit": [75], "first_delay_seconds": 1}'
    task = prompt.add(*options.split(), *others.split(), "--retry", policy, "--cwd", str(place.folder), "--", "true")
    facts = prompt.facts("show", task)
    expected = {
        "name": "second",
        "priority": "high",
        "labels": ["a", "b"],
        "on_dependency_failure": "run",
        "timeout_seconds": 120.0,
        "max_attempts": 4,
        "on_server_exit": "stop",
        "concurrency_key": "k",
        "expires_at": "2999-01-01T00:00:00.000Z",
        "retry": json.loads(policy),
    }
    assert expected.items() <= facts.items()
    assert [parent["id"] for parent in facts["depends_on"]] == [first]
    assert facts["payload"]["cwd"] == str(place.folder)
    assert "b=c" not in prompt.out("show", task), "values of variables are nobody's business"
    assert prompt.add("--delay", "1h", "--dedupe-key", "d", "--", "true") == prompt.add(
        *("--delay", "1h", "--dedupe-key", "d", "--", "true")
    )


def test_other_kinds_take_a_payload_also_from_stdin(busy: Terminal) -> None:
    ran = busy.run("add", "--kind", "echo", "--payload", "-", "--wait", "--json", stdin='{"a": 1}')
    assert json.loads(ran.stdout)["result"] == {"a": 1}


def test_a_schedule_is_added_and_never_waited_for(prompt: Prompt) -> None:
    task = prompt.add("--cron", "0 7 * * 1-5", "--time-zone", "Europe/Berlin", "--", "true")
    assert prompt.facts("show", task)["schedule"]["cron"] == "0 7 * * 1-5"
    assert "no end to wait for" in prompt.run("add", "--every", "15m", "--wait", "--", "true").stderr


def test_who_adds_is_told_when_nobody_can_run_it(terminal: Terminal, place: Place) -> None:
    ran = terminal.run("add", "--", "true")
    assert (ran.returncode, len(ran.stdout.split())) == (Exit.OK, 1)
    assert 'no running server can start it: it waits for one, or for "taskorch worker"' in ran.stderr
    place.start(allow_commands="", handlers="")
    wait_for(lambda: "no running server" not in terminal.run("add", "--kind", "echo").stderr)
    assert "no running server" in terminal.run("add", "--", "true").stderr, "that server may run no commands"


def test_a_server_that_died_is_not_taken_for_one_that_runs(terminal: Terminal, place: Place) -> None:
    server = place.start()
    server.create("echo")
    assert not terminal.run("add", "--", "true").stderr
    server.kill()
    assert "no running server" in terminal.run("add", "--", "true").stderr


def test_servers_are_woken_for_what_is_added_and_cancelled(prompt: Prompt, place: Place) -> None:
    """Each listens at a FIFO beside its lock."""
    task = prompt.kind("echo", {})
    (place.state / "servers").mkdir(exist_ok=True)
    ear = place.state / "servers" / "listening.fifo"
    os.mkfifo(ear)
    fd = os.open(ear, os.O_RDWR | os.O_NONBLOCK)
    try:
        prompt.kind("echo", {})
        assert os.read(fd, 100)
        prompt.out("cancel", task)
        assert os.read(fd, 100)
        prompt.out("ls")
        with pytest.raises(BlockingIOError):
            os.read(fd, 100)
    finally:
        os.close(fd)


def test_the_tasks_of_a_file_are_stored_together_and_run_in_their_order(busy: Terminal, place: Place) -> None:
    tasks = [
        {"ref": "one", "name": "first", "payload": {"argv": ["sh", "-c", "echo $PWD"]}},
        {
            "kind": "echo",
            "name": "second",
            "depends_on": ["one"],
            "payload": {"a": {"$result": "one", "path": "exit_code"}},
        },
    ]
    ids = busy.out("load", "-", stdin=json.dumps(tasks)).split()
    assert busy.run("wait", *ids).returncode == Exit.OK
    assert busy.out("logs", ids[0]) == f"{place.work}\n", "where it was typed"
    assert busy.facts("show", "second")["result"] == {"a": 0}
    (place.work / "tasks.json").write_text(json.dumps(tasks[:1]))
    assert busy.facts("load", "tasks.json")["count"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "- is no JSON"),
        ('{"kind": "echo"}', "- must hold an array of objects"),
        ("[]", "must hold an array"),
        ('[{"kind": "echo"}, 1]', "must hold an array"),
        ('[{"kind": "echo"}, {"kind": "nosuch"}]', "tasks[1]: Unknown kind 'nosuch'"),
        (
            '[{"kind": "echo", "ref": "a", "depends_on": ["b"]}, {"kind": "echo", "ref": "b", "depends_on": ["a"]}]',
            "circle",
        ),
        ('[{"payload": 7}]', "tasks[0]: payload"),
        ('[{"kind": "echo", "depends_on": 7}]', "tasks[0]: depends_on"),
        ('[{"kind": "echo", "when": 1}]', "run_at"),
    ],
)
def test_a_file_with_a_mistake_stores_nothing_and_says_where_it_is(
    prompt: Prompt, place: Place, text: str, said: str
) -> None:
    ran = prompt.run("load", "-", stdin=text)
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")
    assert said in ran.stderr and ran.stderr.count("\n") == 1
    assert "--" not in ran.stderr, "a file has no options"
    assert "circle" in said or not place.state.exists()
    assert not place.state.exists() or not place.rows()


def test_a_file_that_is_not_there_is_named(prompt: Prompt) -> None:
    assert "nowhere.json cannot be read" in prompt.run("load", "nowhere.json").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to run: taskorch add -- make test"),
        (("--kind", "nosuch"), "Unknown kind 'nosuch'."),
        (("--kind", "echo", "--", "true"), "a command, --cwd and --env go with kind command"),
        (("--payload", "{"), "--payload is no JSON"),
        (("--payload", "[1]"), "--payload must be an object"),
        (("--retry", "often", "--", "true"), "--retry is no JSON"),
        (("--retry", '{"on_exits": [1]}', "--", "true"), "Did you mean"),
        (("--env", "novalue", "--", "true"), "--env 'novalue' is no variable; write KEY=VALUE"),
        (("--max-attempts", "0", "--", "true"), "--max-attempts 0 is not allowed; it must be at least 1"),
        (("--delay", "soon", "--", "true"), "--delay 'soon' is not allowed"),
        (("--delay", "1", "--run-at", "2999-01-01T00:00:00Z", "--", "true"), "exclude each other"),
        (("-p", "urgent", "--", "true"), "priority 'urgent' is not allowed"),
        (("--", "no-such-program"), "not found in PATH"),
        (("--depends-on", "nobody", "--", "true"), "No task 'nobody'. Run `taskorch ls` to see ids and names."),
    ],
)
def test_what_cannot_be_added_is_refused_in_one_line(
    prompt: Prompt, place: Place, arguments: tuple[str, ...], said: str
) -> None:
    ran = prompt.run("add", *arguments)
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")
    assert place.state.exists() == ("nobody" in said), "no store is made for what is refused"
    assert ran.stderr.startswith("taskorch: ") and ran.stderr.count("\n") == 1
    assert said in ran.stderr


def test_commands_are_allowed_by_the_same_setting_as_in_servers(prompt: Prompt) -> None:
    ran = prompt.run("add", "--", "true", TASKORCH_ALLOW_COMMANDS="git")
    assert ran.returncode == Exit.USAGE
    assert "Set TASKORCH_ALLOW_COMMANDS=git,true in the environment of taskorch" in ran.stderr
    assert prompt.run("--allow-commands", "true", "add", "--", "true", TASKORCH_ALLOW_COMMANDS="").returncode == 0


def test_what_handlers_print_while_they_are_imported_is_no_answer(terminal: Terminal) -> None:
    """The module of these servers prints JSON."""
    ran = terminal.run("add", "--kind", "hold", "--json")
    assert json.loads(ran.stdout)["kind"] == "hold"
    assert "written while importing" in ran.stderr


# Exit codes.


def test_the_exit_code_of_a_wait_says_how_tasks_ended(busy: Terminal) -> None:
    good, bad, long = (
        busy.add("--", "true"),
        busy.add("--", "false"),
        busy.kind("hold", {}),
    )
    assert busy.run("wait", good).returncode == Exit.OK
    assert busy.run("wait", good, bad).returncode == Exit.FAILED
    assert busy.run("wait", good, long, "--any").returncode == Exit.OK
    assert busy.run("wait", good, long, "--timeout", "0.2").returncode == Exit.TIMEOUT
    assert busy.run("add", "--wait", "--", "false").returncode == Exit.FAILED
    assert busy.run("logs", "-f", bad).returncode == Exit.FAILED
    busy.out("cancel", long)
    assert busy.run("wait", long).returncode == Exit.FAILED
    busy.out("rm", good)
    assert busy.run("wait", good, "--timeout", "1").returncode == Exit.NOT_FOUND
    assert busy.run("wait", good, long, "--timeout", "5").returncode == Exit.FAILED


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("logs",), ("logs", "-f"), ("wait",), ("cancel",), ("retry",), ("edit", "-n", "x"), ("rm",)],
    ids=" ".join,
)
def test_a_task_that_is_not_there_is_exit_code_3(prompt: Prompt, arguments: tuple[str, ...]) -> None:
    prompt.kind("echo", {})
    ran = prompt.run(*arguments, "nobody")
    assert (ran.returncode, ran.stdout) == (Exit.NOT_FOUND, "")
    assert ran.stderr == "taskorch: No task 'nobody'. Run `taskorch ls` to see ids and names.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        *(("ls",), ("show", "x"), ("logs", "x"), ("logs", "-f", "x"), ("wait", "x"), ("cancel", "x"), ("retry", "x")),
        *(("edit", "x", "-n", "y"), ("rm", "x"), ("stats",), ("top",), ("backup",)),
    ],
    ids=" ".join,
)
def test_a_machine_without_a_store_is_told_so_and_gets_none(
    prompt: Prompt, place: Place, arguments: tuple[str, ...]
) -> None:
    ran = prompt.run(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (Exit.STORE, "", 1)
    assert re.search("There is no (store|database)", ran.stderr)
    assert not place.state.exists()


def test_a_store_of_another_version_is_left_as_it_is(prompt: Prompt, place: Place) -> None:
    prompt.kind("echo", {})
    for version, said in ((schema.version() + 1, "newer taskorch"), (schema.version() - 1, "older taskorch")):
        with closing(sqlite3.connect(place.state / "taskorch.db")) as connection:
            connection.execute(f"PRAGMA user_version={version}")
        before = (place.state / "taskorch.db").read_bytes()
        ran = prompt.run("ls")
        assert (ran.returncode, said in ran.stderr) == (Exit.STORE, True)
        assert (place.state / "taskorch.db").read_bytes() == before


def test_what_is_not_possible_now_is_a_usage_error_in_our_words(busy: Terminal) -> None:
    long = busy.kind("hold", {})
    wait_for(lambda: busy.facts("show", long)["status"] == "working")
    ran = busy.run("rm", long)
    assert (ran.returncode, "--yes" in ran.stderr) == (Exit.USAGE, True)
    assert busy.facts("rm", long, "--yes") == {"id": long, "deleted": True}
    assert busy.run("ls", "--status", "done").returncode == Exit.USAGE
    assert busy.run("nosuch").returncode == Exit.USAGE


def test_ctrl_c_ends_a_wait_and_not_the_task(terminal: Terminal) -> None:
    task = terminal.kind("hold", {})
    with terminal.screen("wait", task) as screen:
        screen.until("no server runs")
        os.kill(screen.process.pid, signal.SIGINT)
        assert screen.end() == Exit.INTERRUPTED
        assert "Traceback" not in screen.text
    assert terminal.facts("show", task)["status"] == "waiting"


# Steering.


def test_a_task_is_edited_paused_cancelled_retried_and_removed(prompt: Prompt) -> None:
    task = prompt.kind("echo", {"a": 1}, "-n", "old")
    done = prompt.out("edit", "old", "-n", "new", "-p", "low", "-l", "x", "--payload", '{"a": 2}', "--timeout", "9s")
    assert '"new" echo: waiting' in done
    facts = prompt.facts("show", "new")
    assert (facts["priority"], facts["labels"], facts["payload"], facts["timeout_seconds"]) == (
        "low",
        ["x"],
        {"a": 2},
        9,
    )
    assert prompt.facts("edit", task, "--pause")["phase"] == "paused"
    assert f"Next: taskorch edit {task} --resume" in prompt.out("show", task)
    assert prompt.facts("edit", task, "--resume", "--delay", "1h")["run_at"]
    assert prompt.run("edit", task, "-n", "other", "--expected-version", "1").returncode == Exit.USAGE
    assert prompt.run("edit", task).returncode == Exit.USAGE
    assert prompt.facts("cancel", task, "--reason", "enough")["status"] == "cancelled"
    assert "cancelled by the command line: enough" in prompt.out("show", task)
    assert f"Next: taskorch retry {task}" in prompt.out("show", task)
    assert prompt.facts("retry", task, "--delay", "10m")["status"] == "waiting"
    assert prompt.out("rm", task) == f"Deleted {task} 'new'.\n"
    assert prompt.out("ls") == ""


def test_cancelling_ends_a_command_that_a_server_runs(terminal: Terminal, place: Place) -> None:
    server = place.start()
    task = server.command("sleep", "600")
    server.until_working(task)
    wait_for(lambda: alive(task))
    terminal.out("cancel", task)
    assert terminal.run("wait", task).returncode == Exit.FAILED
    wait_for(lambda: not alive(task))


# Output.


def test_output_is_followed_to_the_end_through_retries(busy: Terminal, place: Place) -> None:
    gates = place.fifo("gate1"), place.fifo("gate2")
    script = 'echo "attempt $TASKORCH_ATTEMPT"; cat "$0$TASKORCH_ATTEMPT"; test $TASKORCH_ATTEMPT = 2'
    task = busy.add("--max-attempts", "2", "--", "sh", "-c", script, str(place.folder / "gate"))
    with busy.following("logs", "-f", task) as following:
        following.until("attempt 1")
        gates[0].release("shut\n")
        following.until("attempt 2")
        assert following.lines == ["attempt 1", "shut", "attempt 2"]
        assert busy.run("logs", "-f", task, "--attempt", "1").returncode == Exit.FAILED, "that one has ended"
        gates[1].release("opened\n")
        assert following.end() == Exit.OK
        assert following.lines == ["attempt 1", "shut", "attempt 2", "opened"]
    assert busy.out("logs", task, "--attempt", "1") == "attempt 1\nshut\n"
    assert busy.run("logs", task, "--attempt", "1", "-f").returncode == Exit.FAILED
    assert busy.run("logs", task, "--attempt", "3").returncode == Exit.USAGE


def test_output_is_cut_and_searched_by_lines(busy: Terminal) -> None:
    task = busy.add("--wait", "-n", "lines", "--", "sh", "-c", "seq 1 1000; printf 'the END'").split()[0]
    assert busy.out("logs", task, "--tail", "2") == "1000\nthe END\n"
    assert busy.out("logs", task, "-n", "0") == ""
    assert busy.out("logs", task, "--grep", "end") == "the END\n"
    assert busy.out("logs", task, "--grep", "99", "--tail", "3") == "997\n998\n999\n"
    assert busy.out("logs", "-f", task, "--tail", "1") == "the END\n"
    assert len(busy.out("logs", task).splitlines()) == 1001
    facts = busy.facts("logs", task)
    assert (facts["text"].splitlines()[0], facts["offset"], facts["next_offset"]) == ("1", 0, facts["total_bytes"])


def test_more_than_is_kept_says_where_bytes_are_missing(busy: Terminal) -> None:
    task = busy.add("--wait", "--", "sh", "-c", "seq 1 400000; echo end").split()[0]
    lines = busy.out("logs", task).splitlines()
    [dropped] = [line for line in lines if "were dropped here" in line]
    assert (lines[0], lines[-1]) == ("1", "end")
    assert int(re.findall("[0-9]+", dropped)[0]) == busy.facts("logs", task)["dropped_bytes"] > 0


def test_what_writes_no_output_says_so(prompt: Prompt) -> None:
    task = prompt.kind("echo", {})
    ran = prompt.run("logs", task)
    assert (ran.returncode, ran.stdout) == (Exit.OK, "")
    assert f"only commands and isolated handlers write output; see taskorch show {task}" in ran.stderr


# The same as tools answer.


def test_each_command_answers_what_the_tool_of_that_name_answers(terminal: Terminal, place: Place) -> None:
    legacy, modern = place.start(), place.start(MODERN)
    done = legacy.command("sh", "-c", "echo in; echo out; printf open; exit 3", name="done", labels=["x"])
    modern.until_ended(done)
    legacy.create("echo")
    modern.call("create_task", kind="echo", delay_seconds=3600, name="later")
    for server in (legacy, modern):
        assert terminal.facts("show", "done") == server.call("get_task", task_id="done", detail="full")
        listed = server.call("list_tasks", label="x", status="failed")
        assert terminal.facts("ls", "--label", "x", "--status", "failed") == listed
        assert terminal.facts("ls", "-n", "2") == server.call("list_tasks", limit=2)
        assert terminal.facts("logs", done) == server.call("get_task_output", task_id=done, offset=0)
        assert terminal.facts("logs", done, "-g", "OUT") == server.call("get_task_output", task_id=done, grep="OUT")
        assert json.loads(terminal.run("wait", done, "--json").stdout) == server.call("wait_for_tasks", task_ids=[done])
        ours, theirs = terminal.facts("stats"), server.call("get_stats")
        assert {*theirs} - {*ours} == {"uptime_seconds", "process"}
        for name in ("status", "overview", "status_distribution", "priority_distribution", "performance", "hours"):
            assert ours[name] == theirs[name]
        assert ours["workers"]["servers"] == theirs["workers"]["servers"]
        assert len(ours["workers"]["servers"]) == 2
    made = terminal.facts("add", "--kind", "echo", "--delay", "1h")
    assert made == legacy.call("get_task", task_id=made["id"])
    edited = terminal.facts("edit", "later", "--pause")
    assert edited == legacy.call("get_task", task_id="later")
    assert terminal.facts("cancel", "later") == legacy.call("get_task", task_id="later")
    assert terminal.facts("retry", "later", "--delay", "1h") == legacy.call("get_task", task_id="later")


def test_servers_see_at_once_what_is_typed_beside_them(terminal: Terminal, place: Place) -> None:
    """Commands and two servers on one file, at the same time."""
    servers = place.start(), place.start(MODERN)
    held = servers[0].create("hold")
    servers[0].until_working(held)
    waits = [server.post_call("wait_for_tasks", task_ids=[held], timeout_seconds=30) for server in servers]
    terminal.out("cancel", held)
    assert [server.facts(call)["counts"] for server, call in zip(servers, waits, strict=True)] == [{"cancelled": 1}] * 2
    task = terminal.kind("note", {"file": str(place.folder / "notes")})
    servers[1].until_ended(task)
    assert (place.folder / "notes").read_text() == f"{task}\n", "it ran once"


def test_every_tool_of_servers_has_a_command(prompt: Prompt) -> None:
    others = {"show_board", "board_data", "claim_task", "heartbeat_task", "complete_task", "fail_task"}
    assert TOOLS.keys() - others == COMMANDS.keys()
    told_of = prompt.out("--help")
    assert all(re.search(rf"^  {command} ", told_of, re.MULTILINE) for command in COMMANDS.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('wait_for_tasks(task_ids=["t1"], timeout_seconds=50)', "taskorch wait t1"),
        ('get_task_output(task_id="t1")', "taskorch logs t1"),
        ('get_task(task_id="t1", detail="full")', "taskorch show t1"),
        ('update_task(task_id="t1", paused=false)', "taskorch edit t1 --resume"),
        ("Call retry_task(task_id='t1') first", "Run taskorch retry t1 first"),
        ("Call list_tasks to see ids.", "Run `taskorch ls` to see ids."),
        ("run_at and delay_seconds exclude each other", "--run-at and --delay exclude each other"),
        ("my_timeout_seconds and claim_task stay", "my_timeout_seconds and claim_task stay"),
    ],
)
def test_texts_for_models_are_told_in_the_words_of_the_terminal(text: str, said: str) -> None:
    assert told(text) == said


# What it looks like.

HOSTILE = "[red]x[/red] \x1b[31m\u202eevil\u2066 " + "w" * 150


def test_hostile_names_stay_text(prompt: Prompt, terminal: Terminal, place: Place) -> None:
    prompt.kind("echo", {}, "-n", "plain", "-l", "l")
    with closing(sqlite3.connect(place.state / "taskorch.db")) as connection:
        connection.execute("UPDATE tasks SET name = ?", (HOSTILE + "\n\tbelow",))
        connection.commit()
    task = columns(prompt.out("ls"))[0][0]
    for arguments in (("ls",), ("show", task), ("wait", task, "--timeout", "0"), ("top",), ("stats",)):
        said = prompt.run(*arguments).stdout
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", said), arguments
    assert [len(row) for row in columns(prompt.out("ls"))] == [8], "no name makes columns or lines of its own"
    assert "[red]" in prompt.out("ls")
    with terminal.screen("ls", NO_COLOR="1") as screen:
        assert screen.end() == Exit.OK
    assert "[red]x" in screen.text
    assert "\u202e" not in screen.text and "\x1b[31m" not in screen.text
    assert prompt.out("show", task, "--json").isascii()
    assert prompt.facts("show", task)["name"].startswith(HOSTILE[:30])


def test_people_see_a_table_and_programs_words_between_tabs(terminal: Terminal, place: Place) -> None:
    place.start().create("echo")
    task = terminal.kind("echo", {}, "-n", "nightly build", "--delay", "2h")
    row, _ = columns(terminal.out("ls"))
    assert (row[0], row[1:6], row[7]) == (task, ["waiting", "scheduled", "medium", "echo", "0"], "nightly build")
    with terminal.screen("ls") as screen:
        assert screen.end() == Exit.OK
    assert re.search(rf"{task} .*waiting \(scheduled\).*echo.*in 1h.*nightly build", screen.text)
    assert "\x1b[" in screen.text
    with terminal.screen("ls", NO_COLOR="1") as plain:
        assert plain.end() == Exit.OK
    assert not re.search("\x1b\\[[0-9;]*3[0-9]m", plain.text), "no colour"
    with terminal.screen("ls", TERM="dumb") as dumb:
        assert dumb.end() == Exit.OK
    assert "\x1b" not in dumb.text


def test_a_terminal_that_cannot_show_a_name_shows_it_escaped(terminal: Terminal) -> None:
    terminal.kind("echo", {}, "-n", "日記")
    ran = terminal.run("ls", PYTHONIOENCODING="latin-1")
    assert (ran.returncode, "\\u65e5\\u8a18" in ran.stdout) == (Exit.OK, True)


def test_pages_follow_each_other_and_all_of_them_are_one(prompt: Prompt, place: Place) -> None:
    prompt.environment["TASKORCH_STATE_DIR"] = str(place.folder / "large")
    fill(place.folder / "large" / "taskorch.db", [f"n{number}" for number in range(250)])
    first = prompt.run("ls", "-n", "100")
    cursor = re.findall(r"--cursor (c\d+)", first.stderr)[0]
    second = prompt.out("ls", "-n", "100", "--cursor", cursor)
    whole = columns(prompt.out("ls", "--all"))
    assert [row[7] for row in whole] == [f"n{number}" for number in reversed(range(250))]
    assert columns(first.stdout) + columns(second) == whole[:200]
    facts = prompt.facts("ls", "-a")
    assert (len(facts["tasks"]), facts["counts"]["waiting"], "next_cursor" in facts) == (250, 250, False)


def test_the_board_is_live_and_ends_with_q(terminal: Terminal, place: Place) -> None:
    with terminal.screen("top") as before:
        assert before.end() == Exit.STORE
    server = place.start()
    held = server.create("hold")
    server.until_working(held)
    with terminal.screen("top", "--interval", "30") as screen:
        screen.until(held)
        added = server.create("hold")
        screen.until(added)
        screen.press("x")
        screen.press("q")
        assert screen.end() == Exit.OK
    assert "\x1b[?1049l" in screen.text, "the screen is given back"
    with terminal.screen("top", "--interval", "0.2", TERM="dumb") as dumb:
        dumb.until(added)
        dumb.until(added)
        dumb.press("q")
        assert dumb.end() == Exit.OK
    assert "\x1b" not in dumb.text
    with terminal.screen("top") as screen:
        screen.until(added)
        os.kill(screen.process.pid, signal.SIGINT)
        assert screen.end() == Exit.INTERRUPTED
    assert "Traceback" not in screen.text
    once = terminal.facts("top")
    assert [task["id"] for task in once["tasks"]] == [added, held]
    assert once["stats"]["status_distribution"]["working"] == 2
    assert columns(terminal.out("top"))[1][0] == added


# The worker.


def test_a_worker_runs_tasks_and_stops_in_good_order(terminal: Terminal, place: Place) -> None:
    with terminal.worker() as worker:
        assert f"taskorch worker: 4 slots on {place.state}, kinds: command, " in worker.announced
        held, command = terminal.kind("hold", {}), terminal.add("--", "sleep", "600")
        wait_for(lambda: all(row["status"] == "working" for row in place.rows().values()))
        loud = terminal.kind("loud", {})
        assert terminal.run("wait", loud).returncode == Exit.OK
        begun = time.monotonic()
        code, out, errors = worker.stop()
        assert (code, time.monotonic() - begun < 1.9) == (0, True)
        assert (out, "Traceback" in errors) == ("", False)
        for said in ("printed by a handler", "written by a handler", "echoed by its child"):
            assert said in errors
    row = place.row(held)
    assert (row["status"], row["interruptions"]) == ("waiting", 1), "given back"
    assert alive(command), "it goes on"
    with terminal.worker():
        terminal.out("cancel", command)
        assert terminal.run("wait", command, held, "--json").returncode == Exit.FAILED
        assert place.row(held)["status"] == "completed"
        assert not alive(command)


def test_a_worker_that_cannot_start_says_why(terminal: Terminal, place: Place) -> None:
    ran = terminal.run("worker", TASKORCH_HANDLERS="nosuch")
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")
    assert "could not start: No module named 'nosuch'. See TASKORCH_HANDLERS" in ran.stderr
    newer = place.folder / "newer"
    newer.mkdir()
    with closing(sqlite3.connect(newer / "taskorch.db")) as connection:
        connection.execute(f"PRAGMA user_version={schema.version() + 1}")
    ran = terminal.run("--state-dir", str(newer), "worker")
    assert (ran.returncode, "written by a newer taskorch" in ran.stderr) == (Exit.STORE, True)


def test_handlers_that_cannot_be_loaded_are_named(prompt: Prompt, place: Place) -> None:
    ran = prompt.run("add", "--kind", "echo", TASKORCH_HANDLERS="nosuch")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (Exit.USAGE, "", 1)
    assert "No module named 'nosuch'. See TASKORCH_HANDLERS and PYTHONPATH." in ran.stderr
    assert prompt.run("add", "--", "true", TASKORCH_HANDLERS="nosuch").returncode == Exit.OK, "no handler is needed"


def test_a_worker_does_not_wait_for_code_that_cannot_be_interrupted(terminal: Terminal, place: Place) -> None:
    stuck = terminal.kind("stuck", {})
    with terminal.worker() as worker:
        wait_for(lambda: place.row(stuck)["status"] == "working")
        begun = time.monotonic()
        assert worker.stop()[0] == 0
        assert time.monotonic() - begun < 1.9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_stop_a_worker_too(terminal: Terminal, number: int) -> None:
    with terminal.worker() as worker:
        assert worker.stop(number)[0] == 0


def shell(terminal: Terminal, line: str, *arguments: str) -> "subprocess.Popen[str]":
    """A command as a line of a shell starts it: `exec "$@"` and what stands around it."""
    return subprocess.Popen(
        ["sh", "-c", line, "sh", sys.executable, "-m", "taskorch", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=terminal.environment,
        cwd=terminal.place.work,
        text=True,
    )


def test_commands_and_workers_do_with_streams_that_are_closed(terminal: Terminal, place: Place) -> None:
    adding = shell(terminal, 'exec "$@" >&-', "add", "--kind", "echo")
    assert (adding.communicate(timeout=SECONDS)[0], adding.returncode) == ("", Exit.OK)
    working = shell(terminal, 'exec "$@" <&- >&- 2>&-', "worker")
    wait_for(lambda: [row["status"] for row in place.rows().values()] == ["completed"])
    working.send_signal(signal.SIGTERM)
    assert (working.communicate(timeout=SECONDS), working.returncode) == (("", ""), 0)


def test_a_worker_that_nohup_started_stays_when_the_terminal_goes(terminal: Terminal, place: Place) -> None:
    first = terminal.kind("echo", {})
    working = shell(terminal, "trap '' HUP; exec \"$@\"", "worker")
    assert terminal.run("wait", first).returncode == Exit.OK
    working.send_signal(signal.SIGHUP)
    assert terminal.run("wait", terminal.kind("echo", {})).returncode == Exit.OK
    working.send_signal(signal.SIGTERM)
    working.communicate(timeout=SECONDS)
    assert working.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_answer_that_cannot_be_written_is_said_in_one_line(terminal: Terminal) -> None:
    terminal.kind("echo", {})
    listing = shell(terminal, 'exec "$@" > /dev/full', "ls")
    assert "No space left on device" in listing.communicate(timeout=SECONDS)[1].splitlines()[-1]
    assert listing.returncode == Exit.USAGE


# Settings and completion.


def configured(place: Place, text: str) -> Path:
    config = place.folder / "config" / "taskorch" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(text)
    return config


def test_a_recipe_is_added_and_shown_without_what_is_secret(prompt: Prompt, place: Place) -> None:
    slots = '[recipes.login.slots]\ntoken = { type = "string" }\n'
    config = configured(place, f'[recipes.login]\nargv = ["true"]\nenv = {{ TOKEN = "{{token}}" }}\n{slots}')
    task = prompt.kind("recipe:login", {"token": "hunter2"})
    assert prompt.facts("show", task)["payload"].keys() == {"token"}
    assert "hunter2" not in prompt.out("show", task)
    config.write_text('[recipes.login]\nargv = ["no-such-program"]\n')
    assert "hunter2" not in prompt.out("show", task), "nobody knows any more what is secret"
    assert columns(prompt.out("ls"))[0][0] == task, "a broken recipe keeps nobody from looking"


def test_settings_tell_where_they_come_from(prompt: Prompt, place: Place) -> None:
    recipe = '[recipes.hi]\nargv = ["true"]\nenv = {TOKEN = "hidden"}\n'
    config = configured(place, f"keep_days = 3\nconcurrency = 9\n{recipe}[limits]\ngpu = 2\n")
    facts = prompt.facts("--allow-commands", "git", "config", "show")
    found = {name: (one["value"], one["source"]) for name, one in facts["settings"].items()}
    assert found["allow_commands"] == ("git", "flag")
    assert found["concurrency"] == (4, "environment")
    assert found["keep_days"] == (3.0, "file")
    assert found["limits"] == ({"gpu": 2}, "file")
    assert found["recipes"] == (["hi"], "file")
    assert found["grace_seconds"] == (5.0, "default")
    text = prompt.out("config", "show")
    assert re.search(r"^limits +gpu=2 +file$", text, re.MULTILINE)
    assert f"file: {config}" in text
    assert "hidden" not in text + json.dumps(facts)


def test_shells_complete_tasks_and_stay_silent_where_there_are_none(terminal: Terminal) -> None:
    def completed(words: str) -> str:
        asked = {"_TASKORCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        ran = terminal.run(**asked)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    assert completed("taskorch show ni").strip() == ""
    task = terminal.kind("echo", {}, "-n", "nightly")
    terminal.kind("echo", {}, "-n", "nice one; rm -rf x")
    assert completed("taskorch show ni").split() == ["nightly"]
    assert completed(f"taskorch cancel {task[:3]}").split() == [task]
    assert "show" in completed("taskorch sho")


# What it costs.


def test_a_worker_does_not_load_the_sdk(terminal: Terminal, place: Place) -> None:
    """Of the other commands `test_imports` says it."""
    terminal.kind("echo", {})
    with terminal.worker(PYTHONPROFILEIMPORTTIME="1") as worker:
        wait_for(lambda: [row["status"] for row in place.rows().values()] == ["completed"])
        code, _, errors = worker.stop()
    loaded = {line.rpartition("|")[2].strip() for line in errors.splitlines() if line.startswith("import time:")}
    assert (code, {name for name in loaded if name.partition(".")[0] in ("mcp", "mcp_types", "opentelemetry")}) == (
        0,
        set(),
    )
    assert "taskorch.engine" in loaded


def test_ten_thousand_tasks_are_listed_counted_and_shown(terminal: Terminal, place: Place) -> None:
    terminal.environment["TASKORCH_STATE_DIR"] = str(place.folder / "large")
    fill(place.folder / "large" / "taskorch.db", [f"n{number}" for number in range(10_000)])
    assert columns(terminal.out("ls"))[0][7] == "n9999"
    assert terminal.facts("ls", "--text", "n123", "-n", "100")["counts"]["waiting"] == 11
    assert terminal.facts("stats")["overview"]["total"] == 10_000
    assert len(terminal.facts("top", "--rows", "12")["tasks"]) == 6
    assert len(columns(terminal.out("ls", "--all"))) == 10_000
    before = os.times()
    terminal.out("ls")
    used = os.times().children_user + os.times().children_system - before.children_user - before.children_system
    assert used < 1.0, "0.3 s are usual: no server's imports, and no row that is not shown"
