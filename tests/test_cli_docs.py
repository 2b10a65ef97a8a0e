"""What is written about the command line is true: the reference, the skill for agents, examples for init systems."""

import configparser
import os
import plistlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from servers import SECONDS, Place
from terminals import Terminal

from taskorch.cli.exits import Exit
from taskorch.cli.main import cli
from taskorch.config import variables

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference" / "cli.md").read_text()
SKILL = (ROOT / "examples" / "skill" / "SKILL.md").read_text()
UNIT = ROOT / "examples" / "taskorch-worker.service"
PLIST = ROOT / "examples" / "taskorch-worker.plist"


def commands() -> dict[str, Any]:
    found: Any = typer.main.get_command(cli)
    own = dict(found.commands)
    config = own.pop("config")
    return own | {f"config {name}": command for name, command in config.commands.items()}


def test_the_reference_has_every_exit_code_and_no_other() -> None:
    told = dict(re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", REFERENCE, re.MULTILINE))
    assert told == {str(int(code)): code.name for code in Exit}


@pytest.mark.parametrize("name", commands())
def test_the_reference_has_every_command_and_option(name: str) -> None:
    assert re.search(rf"^\| `taskorch {name}\b", REFERENCE, re.MULTILINE)
    for parameter in commands()[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert not option.startswith("-") or re.search(f"[` ]{option}[` ]", REFERENCE), option


def test_every_command_of_the_skill_does_what_it_says(place: Place) -> None:
    """In their order, with a worker beside them; one after the other, so that none hides behind another's failure."""
    lines = [line for block in re.findall("```sh\n(.*?)```", SKILL, re.DOTALL) for line in block.splitlines()]
    assert {line.split()[1] for line in lines} == {
        "add",
        "wait",
        "logs",
        "ls",
        "show",
        "cancel",
        "retry",
        "rm",
        "stats",
    }
    (place.work / "Makefile").write_text("test build check:\n\t@echo no error in $@\n")
    terminal = Terminal(place)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with terminal.worker():
        for line in lines:
            assert line.startswith("taskorch ")
            ran = subprocess.run(
                ["sh", "-c", line],
                cwd=place.work,
                env=terminal.environment | {"PATH": path},
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert ran.returncode == Exit.OK, (line, ran.stderr)
        assert "no error in test" in terminal.out("logs", "tests")
    ended = {row["name"]: row["status"] for row in place.rows().values()}
    assert ended == dict.fromkeys(("tests", "build", "check"), "completed")


def test_the_skill_has_the_front_matter_that_agents_read() -> None:
    head = re.match(r"---\nname: ([a-z-]{1,64})\ndescription: (.{1,1024})\n---\n", SKILL)
    assert head and head[1] == "taskorch"
    assert len(SKILL.encode()) < 4_096


def test_the_examples_for_init_systems_start_a_worker() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(UNIT)
    assert unit["Service"]["ExecStart"].split("/")[-1] == "taskorch worker"
    agent = plistlib.loads(PLIST.read_bytes())
    assert [word.split("/")[-1] for word in agent["ProgramArguments"]] == ["taskorch", "worker"]
    named = {*agent["EnvironmentVariables"], *re.findall(r"(TASKORCH_\w+)=", UNIT.read_text())}
    assert {name for name in named if name != "PATH"} <= variables()
