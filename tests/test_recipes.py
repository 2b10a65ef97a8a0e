"""Recipes at work: what the operator wrote runs with what a task chose, and does all that commands do."""

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import Answer, call, check_task, connected, refused, settings, stored, until
from mcp import Client
from protocol import talking
from servers import names

from taskorch.app import App, running
from taskorch.cli import runnable
from taskorch.cli.check import FAIL, OK, WARN
from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.recipe import Recipe
from taskorch.domain.task import Reason, Status
from taskorch.work.handlers import handler
from taskorch.work.policy import Policy

CANARY = "canary-7d41"
TELL = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), sys.stdin.read()]))"
TEXT = {"type": "string"}
WILD = {"type": "string", "allow_dash": True}
PATH = {"type": "path"}
HOSTILE = [
    "; rm -rf /",
    "$(id)",
    "`id`",
    "a && b | c > d",
    "*",
    "~",
    "two\nlines",
    "tab\tand\r\n",
    "'\"\\",
    "{b}",
    "{{b}}",
    "%s%n",
    "日本語 \U0001f600 e\u0301",
    "\u202eabc",
    "--force",
    "-",
    "--",
    "x" * 100_000,
]


def tells(*argv: str | list[str], slots: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A recipe whose program says what it was given."""
    return {"argv": [sys.executable, "-c", TELL, *argv], "slots": slots or {}, **more}


@asynccontextmanager
async def serving(folder: Path, era: str = "auto", **given: Any) -> AsyncIterator[Client]:
    """A client of a server on which no command may run, with recipes."""
    recipes = {name: given.pop(name) for name in list(given) if isinstance(given[name], dict)}
    async with (
        running(settings(folder, allow_commands="", recipes=recipes, **given), start=folder) as app,
        connected(app.server, era) as client,
    ):
        yield client


async def ended(client: Client, kind: str, payload: dict[str, Any] | None = None, **more: Any) -> Answer:
    return await call(client, "create_task", kind=kind, payload=payload or {}, wait_seconds=20, **more)


async def told(client: Client, payload: dict[str, Any], kind: str = "recipe:r") -> tuple[Any, Any, Any, Any]:
    """What the program of a recipe was given: arguments, folder, environment, input."""
    done = await ended(client, kind, payload)
    assert done.facts["status"] == "completed", done.text
    text = ""
    while True:
        part = (await call(client, "get_task_output", task_id=done.facts["id"], offset=len(text.encode()))).facts
        text += part["text"]
        if part["next_offset"] >= part["total_bytes"]:
            return tuple(json.loads(text))


# What runs.


async def test_a_recipe_runs_where_no_command_may(tmp_path: Path, era: str) -> None:
    async with serving(
        tmp_path, era, r=tells("fixed", "{a}", slots={"a": TEXT}, env={"WORD": "w"}, stdin="in")
    ) as client:
        argv, folder, environment, stdin = await told(client, {"a": "x y"})
        assert (argv, folder, environment["WORD"], stdin) == (["fixed", "x y"], str(tmp_path), "w", "in")
        text = await refused(client, "create_task", payload={"argv": [sys.executable, "-c", "1"]})
        assert "TASKORCH_ALLOW_COMMANDS" in text


async def test_whatever_is_put_in_a_slot_arrives_as_one_argument(tmp_path: Path) -> None:
    slots = {"a": WILD, "b": TEXT | {"optional": True}}
    recipe = {"argv": [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", "{a}", "{b}", "end"]}
    async with serving(tmp_path, r=recipe | {"slots": slots}) as client:
        for value in HOSTILE:
            done = await ended(client, "recipe:r", {"a": value})
            whole = (tmp_path / "state" / "output" / done.facts["id"] / "1" / "output").read_bytes()
            assert json.loads(whole) == [value, "end"], value[:40]


async def test_what_no_slot_takes_is_refused_and_stores_nothing(tmp_path: Path, era: str) -> None:
    branch = {"type": "string", "pattern": "[a-z]+", "max_length": 20}
    bad = ["; rm -rf /", "-f", "main\n", "m\0", "x" * 200_000, "é", {"a": 1}, ["main"], 5, True, "{other}", ""]
    async with serving(tmp_path, era, r=tells("{branch}", slots={"branch": branch})) as client:
        for value in bad:
            text = await refused(client, "create_task", kind="recipe:r", payload={"branch": value})
            assert text.startswith("payload.branch ") and len(text) < 600
            assert text.endswith("Nothing was done; correct this and call create_task again.")
        assert (await call(client, "list_tasks")).facts["tasks"] == []


async def test_a_wrong_payload_is_answered_with_what_the_recipe_takes(tmp_path: Path) -> None:
    slots = {"suite": {"type": "string", "choices": ["unit", "all"]}, "n": {"type": "integer", "optional": True}}
    async with serving(tmp_path, r=tells("{suite}", ["-n", "{n}"], slots=slots)) as client:
        text = await refused(client, "create_task", kind="recipe:r")
        assert (
            "payload.suite is required; add it. This recipe takes suite: 'unit' or 'all'; n?: a whole number." in text
        )
        task = (await call(client, "create_task", kind="recipe:r", payload={"suite": "all"}, delay_seconds=60)).facts
        text = await refused(client, "update_task", task_id=task["id"], payload={"suite": "some"})
        assert "payload.suite 'some' is not allowed; use 'unit' or 'all'." in text
        await call(client, "update_task", task_id=task["id"], payload={"suite": "unit", "n": 3}, delay_seconds=0)


async def test_what_stands_beside_the_payload_is_meant_for_it(tmp_path: Path) -> None:
    slots = {"suite": {"type": "string", "choices": ["unit", "all"]}, "n": {"type": "integer", "optional": True}}
    async with serving(tmp_path, r=tells("{suite}", ["-n", "{n}"], slots=slots)) as client:
        for given in (
            {"suite": "all", "n": 3},
            {"suite": "all", "n": 3, "payload": {}},
            {"payload": '{"suite": "all", "n": 3}'},
        ):
            done = await call(client, "create_task", kind="recipe:r", wait_seconds=20, **given)
            full = await call(client, "get_task", task_id=done.facts["id"], detail="full")
            assert full.facts["payload"] == {"suite": "all", "n": 3}
        text = await refused(client, "create_task", kind="recipe:r", suite="all", notify=True)
        assert "Unknown argument 'payload.notify'." in text and "This recipe takes suite" in text
        assert "write max_attempts=3" in await refused(
            client, "create_task", kind="recipe:r", suite="all", max_retries=2
        )
        text = await refused(client, "create_task", kind="recipe:r", payload={"suite": "all"}, n=3)
        assert "Unknown argument 'n'." in text


async def test_the_kinds_tell_what_a_recipe_takes_and_none_of_its_secrets(tmp_path: Path, era: str) -> None:
    slots = {"suite": {"type": "string", "choices": ["unit", "all"]}, "token": TEXT | {"default": CANARY}}
    recipe = tells("{suite}", slots=slots, env={"TOKEN": "{token}", "FIXED": CANARY}, description="Run the tests")
    async with serving(tmp_path, era, r=recipe, timeout_seconds=50) as client:
        text = str((await client.read_resource("tasks://kinds")).contents[0].model_dump()["text"])
        (kind,) = [kind for kind in json.loads(text)["kinds"] if kind["name"] == "recipe:r"]
        assert (kind["description"], kind["max_attempts"]) == ("Run the tests", 1)
        assert kind["payload_schema"]["properties"]["suite"] == {"type": "string", "enum": ["unit", "all"]}
        assert kind["payload_schema"]["required"] == ["suite"]
        assert CANARY not in text


async def test_an_unknown_recipe_is_answered_with_those_there_are(tmp_path: Path) -> None:
    async with serving(tmp_path, deploy=tells(), ci=tells()) as client:
        text = await refused(client, "create_task", kind="recipe:deplyo")
        assert (
            "Unknown kind 'recipe:deplyo'. Did you mean 'recipe:deploy'? Use one of: command, echo, recipe:ci" in text
        )
        assert "Did you mean 'recipe:ci'?" in await refused(client, "create_task", kind="ci")
        stats = await call(client, "get_stats")
        assert {"recipe:ci", "recipe:deploy"} <= set(stats.facts["workers"]["kinds"])
        assert "recipe:deploy" in stats.text


def test_no_handler_may_take_the_place_of_a_recipe() -> None:
    with pytest.raises(ValueError, match="is taken"):
        handler("recipe:deploy")(lambda payload: payload)


async def test_a_recipe_has_limits_of_its_own_and_a_task_may_set_others(tmp_path: Path) -> None:
    own, none = tells(timeout_seconds=7, max_attempts=4), tells()
    async with serving(tmp_path, own=own, none=none, command_max_attempts=2, timeout_seconds=50) as client:
        for kind, options, wanted in (
            ("recipe:own", {}, (4, 7)),
            ("recipe:own", {"max_attempts": 1, "timeout_seconds": 9}, (1, 9)),
            ("recipe:none", {}, (2, 50)),
        ):
            task = await call(client, "create_task", kind=kind, delay_seconds=60, **options)
            full = (await call(client, "get_task", task_id=task.facts["id"], detail="full")).facts
            assert (full["max_attempts"], full["timeout_seconds"]) == wanted


# Folders and paths.


async def test_a_slot_says_where_it_runs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    inside, outside = folders
    recipe = tells(cwd="{dir}", slots={"dir": PATH | {"optional": True}})
    async with serving(tmp_path, r=recipe, allow_dirs=str(inside)) as client:
        assert (await told(client, {"dir": str(inside / "app")}))[1] == str(inside / "app")
        assert (await told(client, {}))[1] == str(tmp_path), "the operator left it open"
        text = await refused(client, "create_task", kind="recipe:r", payload={"dir": str(outside)})
        assert f"payload.dir {shown(str(outside))} is not allowed" in text and "TASKORCH_ALLOW_DIRS" in text
        text = await refused(client, "create_task", kind="recipe:r", payload={"dir": str(inside / "gone")})
        assert "is not a folder; use one that exists" in text
        text = await refused(client, "create_task", kind="recipe:r", payload={"dir": "app"})
        assert "payload.dir 'app' is relative; use an absolute path." in text


async def test_a_path_that_a_task_gives_lies_below_the_allowed_folders(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    inside, outside = folders
    (inside / "out").symlink_to(outside)
    recipe = tells("{f}", "{g}", slots={"f": PATH, "g": PATH | {"anywhere": True, "optional": True}})
    async with serving(tmp_path, r=recipe, allow_dirs=str(inside)) as client:
        assert (await told(client, {"f": str(inside / "new"), "g": "/etc/hosts"}))[0] == [
            str(inside / "new"),
            "/etc/hosts",
        ]
        for path in (outside / "x", inside / ".." / "outside", inside / "out" / "x", Path("/")):
            text = await refused(client, "create_task", kind="recipe:r", payload={"f": str(path)})
            assert "payload.f" in text and f"commands run below {inside}. Use a path there" in text


async def test_what_the_operator_wrote_is_not_held_to_the_allowed_folders(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    inside, outside = folders
    recipes = {
        "r": tells("{f}", cwd=str(outside), slots={"f": PATH | {"choices": [str(outside)]}}),
        "any": tells(cwd="{dir}", slots={"dir": PATH | {"anywhere": True}}),
        "usual": tells(cwd="{dir}", slots={"dir": PATH | {"default": str(outside)}}),
    }
    async with serving(tmp_path, **recipes, allow_dirs=str(inside)) as client:
        assert (await told(client, {"f": str(outside)}))[:2] == ([str(outside)], str(outside))
        assert (await told(client, {"dir": str(outside)}, "recipe:any"))[1] == str(outside)
        assert (await told(client, {}, "recipe:usual"))[1] == str(outside)
        await refused(client, "create_task", kind="recipe:usual", payload={"dir": str(tmp_path)})


async def test_a_folder_that_is_exchanged_after_the_creation_leads_nowhere(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    inside, outside = folders
    link = inside / "link"
    link.symlink_to(inside / "app")
    recipe = tells(cwd="{dir}", slots={"dir": PATH})
    async with serving(tmp_path, r=recipe, allow_dirs=str(inside)) as client:
        task = await call(client, "create_task", kind="recipe:r", payload={"dir": str(link)}, delay_seconds=60)
        link.unlink()
        link.symlink_to(outside)
        await call(client, "update_task", task_id=task.facts["id"], delay_seconds=0)
        done = await call(client, "wait_for_tasks", task_ids=[task.facts["id"]])
        assert done.facts["tasks"][0]["error"]["reason"] == Reason.NOT_ALLOWED


async def test_a_folder_that_is_exchanged_at_the_last_moment_is_found_out_from_inside(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = folders
    look = Policy.folder

    def exchanged(self: Policy, path: str, what: str) -> str:
        found = look(self, path, what)
        if waits and not (inside / "gone").exists():
            (inside / "app").rename(inside / "gone")
            (inside / "app").symlink_to(outside)
        return found

    waits: list[str] = []
    monkeypatch.setattr(Policy, "folder", exchanged)
    recipe = {"argv": ["touch", "here"], "cwd": "{dir}", "slots": {"dir": PATH}}
    async with serving(tmp_path, r=recipe, allow_dirs=str(inside)) as client:
        payload = {"dir": str(inside / "app")}
        task = (await call(client, "create_task", kind="recipe:r", payload=payload, delay_seconds=60)).facts
        waits.append(task["id"])
        await call(client, "update_task", task_id=task["id"], delay_seconds=0)
        done = await call(client, "wait_for_tasks", task_ids=waits)
    assert done.facts["tasks"][0]["error"]["reason"] == Reason.NOT_ALLOWED
    assert os.listdir(outside) == []


async def test_a_folder_of_the_operators_that_is_gone_is_said_when_a_task_is_created(tmp_path: Path) -> None:
    async with serving(tmp_path, r=tells(cwd=str(tmp_path / "later"))) as client:
        text = await refused(client, "create_task", kind="recipe:r")
        assert f"The cwd of recipe:r {shown(str(tmp_path / 'later'))} is not a folder" in text
        (tmp_path / "later").mkdir()
        assert (await told(client, {}))[1] == str(tmp_path / "later")


# The program.


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_the_program_is_the_one_of_the_start_whatever_appears_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    program(second / "deploy", 'echo "$0 second"')
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{second}{os.pathsep}{os.environ['PATH']}")
    async with serving(tmp_path, r={"argv": ["deploy"]}) as client:
        program(first / "deploy", "echo first")
        done = await ended(client, "recipe:r")
        assert "second" in (await call(client, "get_task_output", task_id=done.facts["id"])).text
        (second / "deploy").unlink()
        text = await refused(client, "create_task", kind="recipe:r")
        assert f"recipe:r cannot run: its program {second / 'deploy'} is gone." in text


async def test_a_program_that_goes_while_the_task_waits_fails_it_in_words(tmp_path: Path) -> None:
    path = program(tmp_path / "bin" / "deploy", "echo")
    async with serving(tmp_path, r={"argv": [str(path)]}) as client:
        task = await call(client, "create_task", kind="recipe:r", delay_seconds=60)
        path.unlink()
        await call(client, "update_task", task_id=task.facts["id"], delay_seconds=0)
        await call(client, "wait_for_tasks", task_ids=[task.facts["id"]])
        error = (await call(client, "get_task", task_id=task.facts["id"], detail="full")).facts["error"]
        assert error == {
            "reason": "spawn_error",
            "exit_code": 127,
            "message": "the program could not be started: No such file or directory",
        }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["no-such-program"], "recipes.r: its program 'no-such-program': not found in PATH="),
        (["/no/such/program"], "recipes.r: its program '/no/such/program': it does not exist or is not executable"),
        (
            ["bin/deploy"],
            "recipes.r: its program 'bin/deploy' is a relative path; use a bare name or an absolute path.",
        ),
        ([""], "recipes.r: its program '': not found in PATH="),
    ],
)
async def test_a_server_does_not_start_with_a_recipe_whose_program_is_missing(
    argv: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as error:
        async with serving(tmp_path, r={"argv": argv}):
            pytest.fail("it started")
    assert str(error.value).startswith(said)


# What is shown.


async def test_a_variables_value_is_in_no_reply(tmp_path: Path, era: str) -> None:
    slots = {"token": TEXT, "why": TEXT}
    recipe = tells("{why}", slots=slots, env={"TOKEN": "{token}", "FIXED": f"{CANARY}-fixed"})
    payload = {"token": CANARY, "why": "release"}
    async with serving(tmp_path, era, r=recipe) as client:
        task = await call(client, "create_task", kind="recipe:r", payload=payload, delay_seconds=60)
        task_id = task.facts["id"]
        full = await call(client, "get_task", task_id=task_id, detail="full")
        assert full.facts["payload"] == {"token": "(hidden)", "why": "release"}
        resource = (await client.read_resource(f"task://{task_id}")).contents[0]
        texts = [task.text, full.text, str(resource), str((await client.read_resource("tasks://recent")).contents)]
        texts += [await refused(client, "create_task", kind="recipe:r", payload=payload | {"token": [CANARY]})]
        texts += [await refused(client, "update_task", task_id=task_id, payload=payload | {"token": f"-{CANARY}\0"})]
        assert not [text for text in texts if CANARY in text]
        text = await refused(client, "create_task", kind="recipe:r", payload=full.facts["payload"])
        assert "payload.token is '(hidden)', as replies show it; give its value." in text
        environment = (await told(client, payload))[2]
        assert (environment["TOKEN"], environment["FIXED"]) == (CANARY, f"{CANARY}-fixed")
        assert b"-fixed" not in database(tmp_path), "what the operator wrote stays in config.toml"


def database(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("taskorch.db*"))


async def test_of_a_recipe_that_is_not_known_here_no_value_is_shown(tmp_path: Path) -> None:
    async with serving(tmp_path, r=tells(env={"T": "{t}"}, slots={"t": TEXT})) as client:
        task = await call(client, "create_task", kind="recipe:r", payload={"t": CANARY}, delay_seconds=60)
    async with serving(tmp_path) as client:
        full = await call(client, "get_task", task_id=task.facts["id"], detail="full")
        assert full.facts["payload"] == {"t": "(hidden)"}
        assert full.facts["phase"] == "blocked" and "no running server can do 'recipe:r'" in full.text
        text = await refused(client, "update_task", task_id=task.facts["id"], payload={"t": "x"})
        assert "Unknown kind 'recipe:r'" in text


# It is a command in all else.


async def test_output_is_read_searched_and_offered_as_for_a_command(tmp_path: Path, era: str) -> None:
    script = "echo ::progress 40 linking; echo second line; exit $1"
    recipe = {"argv": ["sh", "-c", script, "sh", "{code}"], "slots": {"code": {"type": "integer"}}}
    async with serving(tmp_path, era, r=recipe) as client:
        good = await ended(client, "recipe:r", {"code": 0})
        task_id = good.facts["id"]
        check_task(good)
        assert good.facts["next"] == f'get_task_output(task_id="{task_id}")'
        assert good.facts["result"] == {"exit_code": 0, "output_bytes": 34}
        part = await call(client, "get_task_output", task_id=task_id, grep="SECOND")
        assert part.facts["text"] == "second line"
        full = await call(client, "get_task", task_id=task_id, detail="full")
        assert full.facts["output_folder"] == str(tmp_path / "state" / "output" / task_id / "1")
        waited = await call(client, "wait_for_tasks", task_ids=[task_id])
        assert "second line" in waited.text
        resource = (await client.read_resource(f"task://{task_id}/output")).contents[0]
        assert "second line" in str(resource)
        bad = await ended(client, "recipe:r", {"code": 3})
        assert bad.facts["error"] == {"reason": "exit_code", "exit_code": 3, "message": "second line"}
        assert bad.facts["next"] == f'get_task_output(task_id="{bad.facts["id"]}")'
        diagnosis = await client.get_prompt("diagnose_failure", {"task": bad.facts["id"]})
        assert "get_task_output" in str(diagnosis.messages)


async def test_a_recipe_that_wrote_nothing_is_not_told_to_be_no_command(tmp_path: Path) -> None:
    async with serving(tmp_path, r={"argv": ["true"]}) as client:
        done = await ended(client, "recipe:r")
        assert "hint" not in (await call(client, "get_task_output", task_id=done.facts["id"])).facts


async def test_what_a_recipe_wrote_is_handed_on_and_checked_in_the_slot(tmp_path: Path) -> None:
    says = {"argv": ["echo", "{a}"], "slots": {"a": TEXT}}
    async with serving(
        tmp_path, says=says, r=tells("{a}", slots={"a": {"type": "string", "pattern": "[a-z]+"}})
    ) as client:
        for word, status in (("main", "completed"), ("main; id", "failed")):
            first = (await call(client, "create_task", kind="recipe:says", payload={"a": word})).facts["id"]
            done = await ended(client, "recipe:r", {"a": {"$result": first, "path": "output"}})
            assert done.facts["status"] == status, done.text
        assert done.facts["error"]["reason"] == Reason.INVALID_PAYLOAD


async def test_what_is_known_of_slots_is_checked_before_results_come(tmp_path: Path) -> None:
    slots = {"a": TEXT, "n": {"type": "integer", "maximum": 9, "optional": True}, "cwd": {"type": "path"}}
    async with serving(tmp_path, r=tells("{a}", "{n}", slots=slots, cwd="{cwd}")) as client:
        later = {"$result": (await call(client, "create_task", kind="echo", delay_seconds=600)).facts["id"]}
        good = {"a": later, "n": 3, "cwd": str(tmp_path)}
        for wrong, said in (
            ({"b": 1}, "Unknown argument 'payload.b'"),
            ({"n": 10}, "payload.n 10 is not allowed; it must be at most 9"),
            ({"cwd": None}, "payload.cwd is required"),
            ({"cwd": "/no/such/folder"}, "payload.cwd '/no/such/folder' is not a folder"),
        ):
            assert said in await refused(client, "create_task", kind="recipe:r", payload=good | wrong)
        for payload in (good, {"a": "x", "n": later, "cwd": later}, {"a": [later], "cwd": later}, later):
            made = await call(client, "create_task", kind="recipe:r", payload=payload)
            assert made.facts["phase"] == "blocked"


@asynccontextmanager
async def at_work(folder: Path, script: str, **more: Any) -> AsyncIterator[tuple[App, Client, str]]:
    """A recipe's task that has begun."""
    recipes = {"r": {"argv": ["sh", "-c", script], **more}}
    async with (
        running(settings(folder, allow_commands="", recipes=recipes, grace_seconds=0.2), start=folder) as app,
        connected(app.server, "auto") as client,
    ):
        task = await call(client, "create_task", kind="recipe:r")
        yield app, client, task.facts["id"]


async def test_progress_is_told(tmp_path: Path) -> None:
    async with at_work(tmp_path, "echo ::progress 3/12 files; exec sleep 60") as (app, client, task_id):
        await stored(app, task_id, lambda task: task.progress)
        facts = (await call(client, "get_task", task_id=task_id)).facts
        assert facts["progress"] == {"value": 3, "total": 12, "message": "files"}
        await call(client, "cancel_task", task_id=task_id)
        await stored(app, task_id, lambda task: task.ended)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
async def test_a_cancelled_recipe_is_gone_with_its_children(tmp_path: Path) -> None:
    script = "sleep 60 & setsid sleep 60 & trap '' TERM; echo up; sleep 60; sleep 60"
    async with at_work(tmp_path, script) as (app, client, task_id):
        await until(lambda: names(task_id) == ["sh", "sleep", "sleep", "sleep"])
        await call(client, "cancel_task", task_id=task_id)
        await stored(app, task_id, lambda task: task.ended)
        task = await app.service.queries.get(task_id)
        assert task.status is Status.CANCELLED and task.error
        assert "its process tree was ended" in task.error.message
    assert names(task_id) == []


async def test_its_time_limit_ends_it(tmp_path: Path) -> None:
    async with at_work(tmp_path, "exec sleep 60", timeout_seconds=0.2) as (app, client, task_id):
        await stored(app, task_id, lambda task: task.ended)
        error = (await call(client, "get_task", task_id=task_id)).facts["error"]
        assert error["reason"] == "timeout" and "longer than 0.2 s" in error["message"]


async def test_a_host_gets_a_handle_and_the_result(tmp_path: Path) -> None:
    recipes = {"r": tells("{a}", slots={"a": TEXT})}
    async with (
        running(settings(tmp_path, allow_commands="", recipes=recipes), start=tmp_path) as app,
        talking(app.server) as host,
    ):
        handle = await host.call("create_task", kind="recipe:r", payload={"a": "x"}, wait_seconds=20)
        assert handle["resultType"] == "task", handle
        await stored(app, handle["taskId"], lambda task: task.ended)
        task = await host.ask("tasks/get", taskId=handle["taskId"])
        assert task["status"] == "completed"
        assert task["result"]["structuredContent"]["kind"] == "recipe:r"


async def test_a_task_that_waits_runs_as_the_recipe_says_then(tmp_path: Path) -> None:
    async with serving(tmp_path, r=tells("old", "{a}", slots={"a": TEXT})) as client:
        later = [
            await call(client, "create_task", kind="recipe:r", payload={"a": a}, delay_seconds=60) for a in ("x", "yy")
        ]
    async with serving(tmp_path, r=tells("new", "{a}", slots={"a": TEXT | {"max_length": 1}})) as client:
        ids = [task.facts["id"] for task in later]
        for task_id in ids:
            await call(client, "update_task", task_id=task_id, delay_seconds=0)
        await call(client, "wait_for_tasks", task_ids=ids)
        assert '["new", "x"]' in (await call(client, "get_task_output", task_id=ids[0])).text
        error = (await call(client, "get_task", task_id=ids[1], detail="full")).facts["error"]
        assert error["reason"] == "invalid_payload" and "at most 1 characters" in error["message"]


# What the doctor says.


def found(**tables: dict[str, Any]) -> tuple[str, str, str]:
    return runnable.recipes({name: Recipe.model_validate(table) for name, table in tables.items()})


def test_the_doctor_lists_what_recipes_run(tmp_path: Path) -> None:
    path = program(tmp_path / "deploy", "true")
    state, text, mend = found(deploy={"argv": [str(path)]}, list={"argv": ["ls"], "cwd": "/"})
    assert (state, mend) == (OK, "")
    assert text == f"deploy runs {path}; list runs {shutil.which('ls')}"
    assert found()[0] == OK and found()[1].startswith("none in ")


def test_the_doctor_names_the_recipe_that_keeps_the_server_from_starting(tmp_path: Path) -> None:
    state, text, mend = found(good={"argv": ["ls"]}, bad={"argv": ["no-such-program"]})
    assert state == FAIL and text.startswith("recipes.bad: its program 'no-such-program': not found in PATH=")
    assert "the server does not start so" in mend


def test_the_doctor_names_a_recipe_whose_folder_is_missing(tmp_path: Path) -> None:
    slots = {"d": PATH}
    state, text, mend = found(
        a={"argv": ["ls"], "cwd": f"{tmp_path}/no"}, b={"argv": ["ls"], "cwd": "{d}", "slots": slots}
    )
    assert (state, text) == (WARN, f"a runs in {tmp_path}/no, which is no folder")
    assert mend.startswith("Make it, or correct ")


def test_a_program_is_found_by_the_policys_path(tmp_path: Path) -> None:
    path = program(tmp_path / "deploy", "true")
    assert Policy("", path=str(tmp_path)).locate("deploy", "it") == str(path)
