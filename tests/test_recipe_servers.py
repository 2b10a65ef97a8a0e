"""Recipes in real servers over stdio: config.toml as a person writes it, what outlives a server, and the example."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import LEGACY, MODERN, Fifo, Place, Server, alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "config.toml"
WAITS = """
[recipes.wait]
argv = ["cat", "{file}"]
max_attempts = 2
[recipes.wait.slots]
file = { type = "path" }
"""
PROMPT = "- Look at `main`; $(id) \"and\" 'so' on --help\n\n\\ {work_directory} %s\t日本語\n"


@pytest.fixture
def configure(place: Place) -> Callable[[str], None]:
    """Write config.toml; nothing else allows any command."""
    place.environment["TASKORCH_ALLOW_COMMANDS"] = ""
    file = place.folder / ".config" / "taskorch" / "config.toml"
    file.parent.mkdir(parents=True)
    return file.write_text


def program(place: Place, name: str, text: str) -> Path:
    """A script on the PATH of the servers, in front of all others."""
    path = place.folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    if not place.environment["PATH"].startswith(str(path.parent)):
        place.environment["PATH"] = f"{path.parent}{os.pathsep}{place.environment['PATH']}"
    return path


def doctor(place: Place) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "taskorch", "doctor"]
    return subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=30, check=False)


# Retry policies.


def test_a_policy_of_the_task_says_which_exit_codes_of_a_recipe_are_tried_again(
    place: Place, configure: Callable[[str], None]
) -> None:
    configure('[recipes.flaky]\nargv = ["sh", "-c", "exit $((74 + TASKORCH_ATTEMPT))"]\nmax_attempts = 3\n')
    server = place.start()
    retry = {"on_exit": [1], "first_delay_seconds": 0.05}
    task_id = server.call("create_task", kind="recipe:flaky", retry=retry)["id"]
    server.until_ended(task_id)
    task = server.get(task_id)
    assert [attempt["exit_code"] for attempt in task["attempts"]] == [75, 76]
    assert (task["status"], task["max_attempts"], task["retry"]) == ("failed", 3, retry)


# What outlives a server.


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_a_recipe_of_a_killed_server_is_adopted_by_one_beside_it(
    era: str, place: Place, configure: Callable[[str], None]
) -> None:
    configure(WAITS)
    fifo = place.fifo("gate")
    first = place.start(era)
    task = first.create("recipe:wait", file=fifo.path)
    first.until_working(task)
    (pid,) = wait_for(lambda: alive(task))  # type: ignore[misc]
    second = place.start(era)
    second.get(task)
    first.kill()
    wait_for(lambda: [event for event in second.get(task).get("events", []) if event["event"] == "adopted"])
    assert alive(task) == [pid], "the same process goes on"
    fifo.release("let through")
    second.until_ended(task)
    facts = second.get(task)
    assert (facts["status"], facts["attempt"]) == ("completed", 1)
    assert second.call("get_task_output", task_id=task)["text"] == "let through"


def waiting(place: Place, configure: Callable[[str], None]) -> tuple[Fifo, Server, str]:
    """A server with a task of the recipe under way: what lets it end, the server, the task."""
    configure(WAITS)
    fifo = place.fifo("gate")
    first = place.start()
    task = first.create("recipe:wait", file=fifo.path)
    first.until_working(task)
    wait_for(lambda: alive(task))
    return fifo, first, task


def test_a_server_that_does_not_know_the_recipe_adopts_it_all_the_same(
    place: Place, configure: Callable[[str], None]
) -> None:
    configure(WAITS)
    fifo = place.fifo("gate")
    first = place.start()
    going, cancelled = first.create("recipe:wait", file=fifo.path), first.create("recipe:wait", file=fifo.path + "2")
    os.mkfifo(fifo.path + "2")
    first.until_working(going)
    wait_for(lambda: alive(going))
    first.kill()
    configure("")
    second = place.start()
    assert "recipe:wait" not in second.call("get_stats")["workers"]["kinds"]
    fifo.release("let through")
    second.until_ended(going)
    facts = second.get(going)
    assert (facts["status"], facts["attempt"], facts["kind"]) == ("completed", 1, "recipe:wait")
    assert second.call("get_task_output", task_id=going)["text"] == "let through"
    second.call("cancel_task", task_id=cancelled)
    second.until_ended(cancelled)
    assert alive(cancelled) == []


def test_a_recipe_goes_on_when_the_host_closes_and_ends_under_the_next_server(
    place: Place, configure: Callable[[str], None]
) -> None:
    fifo, first, task = waiting(place, configure)
    assert first.end() == 0
    assert alive(task)
    second = place.start()
    fifo.release("later")
    second.until_ended(task)
    assert second.call("get_task_output", task_id=task)["text"] == "later"


def test_a_recipe_that_ended_while_no_server_ran_has_left_its_result(
    place: Place, configure: Callable[[str], None]
) -> None:
    fifo, first, task = waiting(place, configure)
    first.kill()
    fifo.release("alone")
    wait_for(lambda: not alive(task))
    configure("")
    second = place.start()
    second.until_ended(task)
    assert second.get(task)["result"] == {"exit_code": 0, "output_bytes": 5}


# What keeps a server from starting.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[recipes.r]\nargv = ["no-such-program"]',
            "could not start: recipes.r: its program 'no-such-program': not found",
        ),
        ('[recipes.r]\nargv = ["ls", "--x={a}"]', "a setting is wrong: recipes.r has {a} inside a longer text"),
        (
            '[recipes.r]\nargv = ["ls"]\nalow_dash = true',
            "a setting is wrong: recipes.r has the unknown key 'alow_dash'",
        ),
        ('[recipes.r]\nargv = ["ls"', "config.toml cannot be read: "),
    ],
)
def test_a_wrong_recipe_keeps_the_server_from_starting_with_one_line(
    text: str, said: str, place: Place, configure: Callable[[str], None]
) -> None:
    configure(text)
    server = place.start(handlers="")
    assert server.left(20) == 2
    (line,) = server.errors.read_text().splitlines()
    assert line.startswith("taskorch: ") and said in line
    assert "TASKORCH_…" not in line, "no variable can mend it"
    assert server.lines == []
    found = doctor(place)
    assert found.returncode == 1
    assert "FAIL" in found.stdout and "config.toml" in found.stdout


# The example.


def test_every_recipe_of_the_example_runs(place: Place, configure: Callable[[str], None]) -> None:
    told = f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], os.getcwd()]))\n"
    for name in ("git", "make"):
        program(place, name, told)
    program(place, "claude", "#!/bin/sh\ncat\n")
    configure(EXAMPLE.read_text())
    place.environment["TASKORCH_ALLOW_DIRS"] = str(place.work)
    server = place.start()
    folder = str(place.work)
    payloads = {
        "pull": ({"repository": folder, "depth": 3}, ["pull", "--ff-only", "--depth", "3", "origin", "main"]),
        "test": ({"project": folder, "suite": "unit", "keep_going": True}, ["unit", "--keep-going"]),
        "prompt": ({"work_directory": folder, "prompt": "x"}, None),
    }
    assert payloads.keys() == tomllib.loads(EXAMPLE.read_text())["recipes"].keys()
    for name, (payload, argv) in payloads.items():
        task = server.create(f"recipe:{name}", **payload)
        server.until_ended(task)
        assert server.get(task)["status"] == "completed"
        text = server.call("get_task_output", task_id=task)["text"]
        assert text == "x" if argv is None else json.loads(text) == [argv, folder]
    assert "pull runs" in doctor(place).stdout


@pytest.mark.parametrize("how", ["stdin", "argv"])
def test_a_prompt_reaches_the_agent_as_it_was_written(how: str, place: Place, configure: Callable[[str], None]) -> None:
    """The task of old: a folder to work in and a prompt, run by an agent."""
    read = "sys.stdin.buffer.read()" if how == "stdin" else "os.fsencode(sys.argv[2])"
    script = (
        f"#!{sys.executable}\nimport os, sys\nopen('prompt', 'wb').write({read})\nprint(sys.argv[1:2], os.getcwd())\n"
    )
    program(place, "claude", script)
    example = tomllib.loads(EXAMPLE.read_text())["recipes"]["prompt"]
    recipe = f"""
[recipes.prompt]
argv = {json.dumps(example["argv"] + ["{prompt}"] * (how == "argv"))}
cwd = {json.dumps(example["cwd"])}
{"stdin = " + json.dumps(example["stdin"]) if how == "stdin" else ""}
[recipes.prompt.slots]
work_directory = {{ type = "path" }}
prompt = {{ type = "string", max_length = 100000, allow_dash = {json.dumps(how == "argv")} }}
"""
    configure(recipe)
    server = place.start()
    task = server.create("recipe:prompt", work_directory=str(place.work), prompt=PROMPT)
    server.until_ended(task)
    assert server.get(task)["status"] == "completed"
    assert (place.work / "prompt").read_bytes() == PROMPT.encode()
    assert server.call("get_task_output", task_id=task)["text"] == f"['-p'] {place.work}\n"
    assert server.get(task)["payload"] == {"work_directory": str(place.work), "prompt": PROMPT}
