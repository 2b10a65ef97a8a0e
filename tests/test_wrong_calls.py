"""Calls as models get them wrong: understood where they can mean one thing, else answered with what to call next."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from clients import ERAS, Facts, Gate, call, connected, raw_call, refusal, settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mcp import Client
from mcp.shared.exceptions import MCPError
from test_process import LEGACY, MODERN, Place, Server

from taskorch.app import App, running
from taskorch.calls.actions import Call
from taskorch.calls.aliases import understood
from taskorch.calls.arguments import parse
from taskorch.domain.errors import InvalidInput, TaskError
from taskorch.mcp.tools import TOOLS, call_tool
from taskorch.storage.listing import Filters

NOISE = re.compile(r"pydantic|https?:|Traceback|Internal error|validation error|\[type=|Error executing", re.I)
GIT = {"payload": {"argv": ["git", "fetch"]}}
LS = {"payload": {"argv": ["ls"]}}
ECHO = {"kind": "echo", "payload": {"a": 1}}
LATER = {"kind": "echo", "delay_seconds": 3600}
FULL_ID = "t0123456789abcdef"


def soon(**right: Any) -> Facts:
    return {"kind": "echo"} | right


# tool, what is written, the call of the contract that it means
MEANT: list[tuple[str, Facts, Facts]] = [
    # A command's shape.
    ("create_task", {"payload": ["git", "fetch"]}, GIT),
    ("create_task", {"payload": '["git", "fetch"]'}, GIT),
    ("create_task", {"payload": {"argv": '["git", "fetch"]'}}, GIT),
    ("create_task", {"argv": '["git", "fetch"]'}, GIT),
    ("create_task", {"command": '["git", "fetch"]'}, GIT),
    ("create_task", {"command": "git", "args": "fetch"}, GIT),
    ("create_task", {"command": "git", "args": '["fetch"]'}, GIT),
    ("create_task", {"command": "git", "arguments": ["fetch"]}, GIT),
    ("create_task", {"payload": {"program": "git", "args": ["fetch"]}}, GIT),
    ("create_task", {"executable": "git", "args": ["fetch"]}, GIT),
    ("create_task", {"payload": "ls"}, LS),
    ("create_task", {"command": "ls", "args": ""}, LS),
    ("create_task", {"command": "/opt/my tool", "args": ["x"]}, {"payload": {"argv": ["/opt/my tool", "x"]}}),
    ("create_task", {"command": ["ls"], "payload": {}, "kind": "command"}, LS),
    ("create_task", {"argv": ["ls"], "working_dir": "/tmp"}, {"payload": {"argv": ["ls"], "cwd": "/tmp"}}),
    ("create_task", {"payload": {"argv": ["ls"], "workdir": "/"}}, {"payload": {"argv": ["ls"], "cwd": "/"}}),
    (
        "create_task",
        {"payload": {"argv": ["ls"], "environment": {"A": "b"}}},
        {"payload": {"argv": ["ls"], "env": {"A": "b"}}},
    ),
    ("create_task", {"payload": {"argv": ["ls"], "timeout_seconds": 5}}, LS | {"timeout_seconds": 5}),
    ("create_task", {"payload": {"kind": "command", "argv": ["ls"], "name": "x"}}, LS | {"name": "x"}),
    ("create_task", {"payload": {"payload": {"payload": {"argv": ["ls"]}}}}, LS),
    ("create_task", {"name": "x", "payload": {"payload": {"argv": ["ls"]}}}, LS | {"name": "x"}),
    ("create_task", {"kind": None, "payload": None, "argv": ["ls"], "cwd": None, "name": None}, LS),
    ("create_task", {"payload": {"argv": ["ls"], "cwd": None, "env": None, "stdin": None}}, LS),
    ("create_task", {"payload": {"argv": None, "command": ["ls"]}}, LS),
    (
        "create_task",
        {"payload": {"argv": ["ls"], "timeout_ms": 5000, "title": "x"}},
        LS | {"timeout_seconds": 5, "name": "x"},
    ),
    ("create_task", {"argv": ["ls"], "env": '{"A": "b"}'}, {"payload": {"argv": ["ls"], "env": {"A": "b"}}}),
    # Retry policies.
    ("create_task", soon(retry='{"factor": 3}'), soon(retry={"factor": 3})),
    ("create_task", {"payload": {"argv": ["ls"], "retry": {"factor": 3}}}, LS | {"retry": {"factor": 3}}),
    # Something put around all of it.
    ("create_task", {"arguments": GIT}, GIT),
    ("create_task", {"args": GIT}, GIT),
    ("create_task", {"arguments": '{"argv": ["git", "fetch"]}'}, GIT),
    ("create_task", {"task": ECHO}, ECHO),
    ("create_task", {"input": ECHO}, ECHO),
    ("create_task", {"params": ECHO}, ECHO),
    ("create_task", {"parameters": ECHO}, ECHO),
    ("create_task", {"request": ECHO}, ECHO),
    ("create_task", {"properties": ECHO}, ECHO),
    ("create_task", {"payload": ECHO | {"name": "x"}}, ECHO | {"name": "x"}),
    ("get_task", {"arguments": {"taskId": "x"}}, {"task_id": "x"}),
    ("get_stats", {"arguments": {}}, {}),
    ("list_tasks", {"filter": {"status": "failed"}, "limit": 5}, {"status": "failed", "limit": 5}),
    ("list_tasks", {"filters": {"status": "failed"}}, {"status": "failed"}),
    ("update_task", {"task_id": "x", "changes": {"priority": "low"}}, {"task_id": "x", "priority": "low"}),
    ("update_task", {"task_id": "x", "updates": '{"paused": true}'}, {"task_id": "x", "paused": True}),
    ("update_task", {"task": {"id": "x", "paused": True}}, {"task_id": "x", "paused": True}),
    # Schedules.
    ("create_task", soon(schedule="0 7 * * *"), soon(schedule={"cron": "0 7 * * *"})),
    ("create_task", soon(schedule='{"every_seconds": 60}'), soon(schedule={"every_seconds": 60})),
    # Units.
    *(
        ("create_task", soon(delay_seconds=text), soon(delay_seconds=seconds))
        for text, seconds in {
            "30": 30,
            "30s": 30,
            "30 seconds": 30,
            "5m": 300,
            "5 min": 300,
            "2 minutes": 120,
            "1h": 3600,
            "1.5h": 5400,
            "1h30m": 5400,
            "1h 30m": 5400,
            "1d": 86_400,
            "500ms": 0.5,
            " 5m ": 300,
            "PT30S": 30,
            "PT1H30M": 5400,
            "P1DT1M": 86_460,
        }.items()
    ),
    ("create_task", soon(timeout_seconds="10m"), soon(timeout_seconds=600)),
    ("create_task", soon(wait_seconds="10s"), soon(wait_seconds=10)),
    ("wait_for_tasks", {"task_ids": ["x"], "timeout_seconds": "30s"}, {"task_ids": ["x"], "timeout_seconds": 30}),
    ("retry_task", {"task_id": "x", "delay_seconds": "5m"}, {"task_id": "x", "delay_seconds": 300}),
    ("create_task", soon(delay_ms=5000), soon(delay_seconds=5)),
    ("create_task", soon(timeoutMs=60_000), soon(timeout_seconds=60)),
    ("create_task", soon(delay_minutes=5), soon(delay_seconds=300)),
    ("create_task", soon(delay_hours=2), soon(delay_seconds=7200)),
    ("wait_for_tasks", {"task_ids": ["x"], "timeout_ms": 10_000}, {"task_ids": ["x"], "timeout_seconds": 10}),
    # Times.
    ("create_task", soon(run_at="2026-11-25 10:00 UTC"), soon(run_at="2026-11-25T10:00:00Z")),
    ("create_task", soon(run_at="2026-11-25T10:00:00 GMT"), soon(run_at="2026-11-25T10:00:00Z")),
    ("create_task", soon(run_at="2026-11-25T10:00:00z"), soon(run_at="2026-11-25T10:00:00Z")),
    ("create_task", soon(run_at="2026-11-25 10:00:00+0100"), soon(run_at="2026-11-25T09:00:00Z")),
    # Words, numbers and booleans.
    ("create_task", soon(priority="High"), soon(priority="high")),
    ("create_task", soon(priority=" LOW "), soon(priority="low")),
    ("create_task", soon(on_server_exit="Stop"), soon(on_server_exit="stop")),
    ("create_task", soon(max_attempts="3"), soon(max_attempts=3)),
    ("create_task", soon(max_attempts=3.0), soon(max_attempts=3)),
    ("create_task", soon(label="a"), soon(labels=["a"])),
    ("create_task", soon(tag="a"), soon(labels=["a"])),
    ("create_task", soon(task_name="a"), soon(name="a")),
    ("create_task", {"Kind": "echo", "max-attempts": 2, "RUN_AT": None}, soon(max_attempts=2)),
    ("get_task", {"task_id": "x", "detail": "Full"}, {"task_id": "x", "detail": "full"}),
    ("list_tasks", {"status": "FAILED"}, {"status": "failed"}),
    ("list_tasks", {"status": ["failed"]}, {"status": "failed"}),
    ("list_tasks", {"labels": ["a"]}, {"label": "a"}),
    ("list_tasks", {"tags": "a"}, {"label": "a"}),
    ("list_tasks", {"limit": "10", "cursor": None}, {"limit": 10}),
    ("update_task", {"task_id": "x", "paused": "true"}, {"task_id": "x", "paused": True}),
    ("delete_task", {"task_id": "x", "confirm": "true"}, {"task_id": "x", "confirm": True}),
    ("wait_for_tasks", {"task_ids": ["x"], "until": "ANY"}, {"task_ids": ["x"], "until": "any"}),
    # One or many.
    ("get_task", {"task_id": ["x"]}, {"task_id": "x"}),
    ("cancel_task", {"task_ids": ["x"]}, {"task_id": "x"}),
    ("delete_task", {"ids": ["x"]}, {"task_id": "x"}),
    ("retry_task", {"taskID": "x"}, {"task_id": "x"}),
    ("get_task", {"name": "x"}, {"task_id": "x"}),
    ("get_task_output", {"task_name": "x"}, {"task_id": "x"}),
    ("get_task", {"task_id": {"id": "x", "status": "failed"}}, {"task_id": "x"}),
    ("wait_for_tasks", {"task_ids": [{"id": "x"}, "y"]}, {"task_ids": ["x", "y"]}),
    ("wait_for_tasks", {"tasks": [{"task_id": "x"}]}, {"task_ids": ["x"]}),
    ("wait_for_tasks", {"task": {"id": "x"}}, {"task_ids": ["x"]}),
    ("wait_for_tasks", {"names": ["x"]}, {"task_ids": ["x"]}),
    ("wait_for_tasks", {"task_ids": f"{FULL_ID}, {FULL_ID[::-1]}"}, {"task_ids": [f"{FULL_ID}, {FULL_ID[::-1]}"]}),
    ("wait_for_tasks", {"task_ids": f"{FULL_ID}, {FULL_ID[:-1]}0"}, {"task_ids": [FULL_ID, f"{FULL_ID[:-1]}0"]}),
]


@pytest.mark.parametrize(("tool", "written", "right"), MEANT, ids=[f"{t}-{str(w)[:60]}" for t, w, _ in MEANT])
def test_a_sloppy_call_means_the_right_one(tool: str, written: Facts, right: Facts) -> None:
    model = TOOLS[tool].arguments
    assert parse(model, understood(written, model.model_fields)) == parse(model, right)


CREATE_AGAIN = "correct this and call create_task again."
# tool, what is written, what the answer must say
TOLD: list[tuple[str, Facts, list[str]]] = [
    # A line is shown as the list to write.
    ("create_task", {"payload": "git fetch"}, ['payload={"argv": ["git", "fetch"]}', CREATE_AGAIN]),
    ("create_task", {"payload": {"argv": ["git fetch"]}}, ['payload={"argv": ["git", "fetch"]}']),
    ("create_task", {"command": "git fetch", "args": ["--all"]}, ['["git", "fetch", "--all"]']),
    ("create_task", {"command": "git", "args": "fetch --all"}, ['["git", "fetch", "--all"]']),
    ("create_task", {"command": "git", "args": {"a": 1}}, ["'payload.args'"]),
    ("create_task", {"command": 'git commit -m "a b"'}, ['["git", "commit", "-m", "a b"]']),
    ("create_task", {"command": "python -c 'print(1)'"}, ['["python", "-c", "print(1)"]']),
    ("create_task", {"command": "cd /repo && make all"}, ['{"argv": ["make", "all"], "cwd": "/repo"}']),
    ("create_task", {"command": "CI=1 make all"}, ['{"argv": ["make", "all"], "env": {"CI": "1"}}']),
    ("create_task", {"command": "echo $HOME"}, ['["bash", "-c", "echo $HOME"]', "the user allows one"]),
    ("create_task", {"command": "it's broken"}, ['["bash", "-c", "it\'s broken"]']),
    ("create_task", {"script": "git fetch && make"}, ['["bash", "-c", "git fetch && make"]']),
    ("create_task", {"payload": {"shell": "echo hi"}}, ['["echo", "hi"]']),
    ("create_task", {"payload": {"argv": ["cd /x && ls"]}}, ['{"argv": ["ls"], "cwd": "/x"}']),
    ("create_task", {"payload": {"argv": ["cd", "/x"]}}, ["'cd'", "as cwd"]),
    (
        "create_task",
        {"payload": {"argv": ["ls"], "shell": True}},
        ["'payload.shell'", "Allowed: argv, cwd, env, stdin"],
    ),
    ("create_task", {"payload": {"argv": ["ls"], "env": {"PORT": 80}}}, ["'PORT' must be a string"]),
    ("create_task", {"payload": {"argv": ["sleep", 5]}}, ["payload.argv.1 5", "must be a string"]),
    ("create_task", {}, ["payload.argv is required", 'payload={"argv": ["git", "fetch"]}']),
    ("update_task", {"task_id": "command", "payload": {"argv": "git fetch"}}, ['payload={"argv": ["git", "fetch"]}']),
    ("update_task", {"task_id": "command", "argv": ["ls"]}, ["'argv'", 'payload={"argv"']),
    # Kinds.
    *(
        ("create_task", {"kind": kind, "payload": {"argv": ["ls"]}}, [f"'{kind}'", "Did you mean 'command'?"])
        for kind in ("shell", "bash", "python", "cmd", "script", "process", "exec", "subprocess", "Command", "run")
    ),
    ("create_task", {"kind": "http"}, ["'http'", "Use one of: command, echo, sleep"]),
    ("create_task", {"kind": "tool", "payload": {"server": "a"}}, ["TASKORCH_MCP_SERVERS", "command, echo, sleep"]),
    ("create_task", {"kind": "shell", "command": "echo hi"}, ["'command'", 'the kind "command"', "leave out"]),
    ("create_task", {"kind": "sleep", "seconds": 3}, ["'seconds'", 'payload={"seconds": 3}']),
    ("create_task", {"code": "print(1)"}, ["'code'", '["python3", "-c", "print(1)"]']),
    ("create_task", {"argv": ["ls"], "command": "ls"}, ["'payload.command'", "Allowed: argv, cwd, env, stdin"]),
    ("list_tasks", {"id": "failed"}, ["'id'", "get_task"]),
    ("list_tasks", {"phase": "paused"}, ["'phase'", '"waiting"']),
    ("create_task", soon(payload="hello"), ["payload 'hello'", "must be an object"]),
    ("create_task", soon(input={"name": "bob"}), ["'input'", "Did you mean 'payload'?"]),
    # Times.
    ("create_task", soon(run_at="2026-11-25 10:00"), ["no time zone", "write 2026-11-25T10:00:00Z or an offset"]),
    ("create_task", soon(run_at="2026-11-25"), ["write 2026-11-25T00:00:00Z"]),
    ("create_task", soon(run_at="tomorrow 9am"), ["'tomorrow 9am'", f"write it like {datetime.now(UTC).year}"]),
    ("create_task", soon(run_at="in 5 minutes"), ["'in 5 minutes'", "give delay_seconds=300"]),
    ("create_task", soon(run_at="in 12 days 1 hour 5 s"), ["give delay_seconds=1040405"]),
    ("create_task", soon(run_at="+1h"), ["'+1h'", "give delay_seconds=3600"]),
    ("create_task", soon(run_at="PT5M"), ["'PT5M'", "give delay_seconds=300"]),
    ("create_task", soon(run_at="now"), ["'now'", "leave it out to start at once"]),
    ("create_task", soon(run_at=1_795_600_000), ["1795600000", "2026-11-25T09:46:40.000Z"]),
    ("create_task", soon(run_at="1795600000000"), ["2026-11-25T09:46:40.000Z"]),
    ("create_task", soon(run_at="0 9 * * *"), ["'0 9 * * *' is not a time"]),
    ("create_task", soon(expires_at="1h"), ["'1h' is not a time", "which is now"]),
    ("list_tasks", {"created_after": "yesterday"}, ["'yesterday' is not a time", "which is now"]),
    ("list_tasks", {"since": "24h"}, ["'since'", "Did you mean 'created_after'?"]),
    ("create_task", soon(delay_seconds="10M"), ["delay_seconds '10M'", "must be a number"]),
    ("create_task", soon(delay_seconds="1:30"), ["delay_seconds '1:30'", "must be a number"]),
    ("create_task", soon(delay_seconds="soon"), ["delay_seconds 'soon'", "must be a number"]),
    ("create_task", soon(delay_seconds="9999 days"), ["at most 31622400"]),
    ("create_task", soon(delay=5), ["'delay'", "Did you mean 'delay_seconds'?"]),
    ("create_task", soon(timeout_seconds=100_000), ["100000", "at most 86400"]),
    ("create_task", soon(timeout=60), ["'timeout'", "Did you mean 'timeout_seconds'?"]),
    ("create_task", soon(wait=True), ["'wait'", "Did you mean 'wait_seconds'?"]),
    ("create_task", soon(wait_seconds="5 minutes"), ["wait_seconds 300", "at most 50"]),
    ("wait_for_tasks", {"task_ids": ["failed"], "timeout_seconds": 60_000}, ["60000", "at most 50", "Wait 50 s"]),
    ("wait_for_tasks", {"task_ids": ["failed"], "timeout_ms": 120_000}, ["120", "at most 50"]),
    # Wishes.
    *(
        ("create_task", soon(**{name: value}), [repr(name), 'write schedule={"cron": "0 7 * * 1-5"}'])
        for name, value in {
            "cron": "0 9 * * *",
            "cron_expression": "0 9 * * *",
            "repeat": "daily",
            "every": "5m",
            "interval": 60,
            "every_seconds": 60,
            "recurrence": {"freq": "daily"},
        }.items()
    ),
    ("create_task", soon(timezone="UTC"), ["'timezone'", "belongs to a schedule"]),
    ("update_task", {"task_id": "command", "schedule": "0 9 * * *"}, ["'schedule'", "cancel_task it, create another"]),
    ("update_task", {"task_id": "command", "cron": "0 9 * * *"}, ["'cron'", "run_at or delay_seconds=0"]),
    ("create_task", soon(depends_on=["x"]), ["depends_on: No task 'x'", "list_tasks"]),
    ("create_task", soon(depends_on="x"), ["depends_on: No task 'x'"]),
    ("create_task", soon(after=["x"]), ["depends_on: No task 'x'"]),
    ("create_task", soon(ref="x"), ["'ref'", "create_tasks"]),
    ("create_task", soon(on_dependency_failure="ignore"), ["on_dependency_failure 'ignore'", "'run'"]),
    ("create_task", soon(payload={"a": {"$result": "x"}}), ["depends_on: No task 'x'"]),
    ("create_task", soon(payload={"a": [{"$result": 1}]}), ["$result 1 names no task"]),
    ("create_task", soon(payload={"a": {"$result": "x", "key": "y"}}), ["'key' cannot stand beside $result"]),
    ("create_task", soon(payload={"a": {"$result": "x", "path": "a["}}), ["path 'a[' is no JMESPath"]),
    ("create_task", soon(payload={"a": {"$result": "x", "path": 3}}), ["path 3 is no JMESPath"]),
    ("create_task", soon(run_in_background=True), ["'run_in_background'", "leave it out"]),
    ("create_task", soon(id="mine"), ["'id'", "Give a name"]),
    ("create_task", {"tasks": [GIT, GIT]}, ["'tasks'", "call create_tasks"]),
    ("create_task", soon(retries="3"), ["'retries'", "max_attempts=4"]),
    ("create_task", soon(retries=True), ["'retries'", "1 is no retry"]),
    # Retry policies.
    ("create_task", soon(retry=3), ["retry 3 is no object like", "for 3 retries write max_attempts=4"]),
    ("create_task", soon(retry="2"), ["retry '2' is no object", "max_attempts=3"]),
    ("create_task", soon(retry=False), ["retry False is no object", "max_attempts counts all starts", "1 is no retry"]),
    ("create_task", soon(retry="exponential"), ["retry 'exponential' is no object", '{"on_exit": [75]']),
    ("create_task", {"payload": {"argv": ["ls"], "retry": 3}}, ["retry 3 is no object", "max_attempts=4"]),
    ("create_task", soon(retry=[1, 75]), ["retry [1, 75] is no object like", '{"on_exit": [75]']),
    ("create_task", soon(retry_delay_seconds=5), ["'retry_delay_seconds'", 'retry={"on_exit"', "first_delay_seconds"]),
    ("create_task", LS | {"on_exit": [1]}, ["'on_exit'", 'Write retry={"on_exit": [1, 75]']),
    ("create_tasks", {"tasks": [soon(retry_delay_seconds=5)]}, ["tasks[0]", 'retry={"on_exit"']),
    ("create_task", soon(retry={"max_attempts": 5}), ["'retry.max_attempts'", "write max_attempts=5 beside it"]),
    ("create_task", soon(retry={"attempts": 5}), ["'retry.attempts'", "write max_attempts=5 beside it"]),
    ("create_task", soon(retry={"maxRetries": 5}), ["'retry.maxRetries'", "write max_attempts=6 beside it"]),
    ("create_task", soon(retry={"max_retries": "many"}), ["write max_attempts beside it"]),
    (
        "create_task",
        soon(retry={"attempts": 4, "backoff": "exponential", "delay": 1, "factor": 2}),
        ["max_attempts=4 beside it", "factor, 2 if it is left out", "first_delay_seconds=1,"],
    ),
    ("create_task", soon(retry={"backoff": "exponential"}), ["'retry.backoff'", "factor, 2 if it is left out"]),
    ("create_task", soon(retry={"strategy": "fixed"}), ["'retry.strategy'", "write factor=1."]),
    ("create_task", soon(retry={"delay_seconds": 5}), ["'retry.delay_seconds'", "first_delay_seconds=5,", "factor=1"]),
    ("create_task", soon(retry={"delay": "2m"}), ["first_delay_seconds=120,"]),
    ("create_task", soon(retry={"retryDelayMs": 500}), ["'retry.retryDelayMs'", "first_delay_seconds=0.5,"]),
    ("create_task", soon(retry={"jitter": True}), ["'retry.jitter'", "chance, always", "leave it out"]),
    ("create_task", soon(retry={"multiplier": 2}), ["'retry.multiplier'", "Did you mean 'factor'?"]),
    ("create_task", soon(retry={"max_delay": 9}), ["Did you mean 'max_delay_seconds'?"]),
    (
        "create_task",
        {"payload": LS["payload"], "retry": {"exit_codes": [1]}},
        ["Did you mean 'on_exit'?", "Allowed: on_"],
    ),
    ("create_task", soon(retry={"foo": None}), ["'retry.foo'", "Allowed: on_exit, fail_on_exit, first_delay"]),
    ("create_task", soon(retry={"firstDelaySeconds": 1, "first_delay_seconds": 2}), ["are the same"]),
    ("create_task", soon(retry={"first_delay_seconds": -1}), ["retry.first_delay_seconds -1", "at least 0"]),
    ("create_task", soon(retry={"first_delay_seconds": "2 days"}), ["172800", "at most 86400"]),
    ("create_task", soon(retry={"first_delay_seconds": "soon"}), ["'soon'", "must be a number"]),
    ("create_task", soon(retry={"max_delay_seconds": 86_401}), ["retry.max_delay_seconds", "at most 86400"]),
    ("create_task", soon(retry={"factor": 0.5}), ["retry.factor 0.5", "at least 1"]),
    ("create_task", soon(retry={"factor": 11}), ["retry.factor 11", "at most 10"]),
    ("create_task", soon(retry={"factor": True}), ["retry.factor True", "must be a number"]),
    (
        "create_task",
        soon(retry={"first_delay_seconds": 9, "max_delay_seconds": 5}),
        ["retry.max_delay_seconds 5 is less than first_delay_seconds 9", "9 or more"],
    ),
    ("create_task", soon(retry={"on_exit": [1]}), ["retry.on_exit is for commands", "'echo' has no exit code"]),
    ("create_task", soon(retry={"fail_on_exit": [1]}), ["retry.fail_on_exit is for commands", "Leave it out"]),
    ("create_tasks", {"tasks": [ECHO, soon(retry={"on_exit": [1]})]}, ["tasks[1]: retry.on_exit is for commands"]),
    ("create_tasks", {"tasks": [soon(retry=3)]}, ["tasks[0]: retry 3 is no object", "max_attempts=4"]),
    ("create_task", LS | {"retry": {"on_exit": [0]}}, ["retry.on_exit.0 0 is no exit code of a failure", "1 to 255"]),
    ("create_task", LS | {"retry": {"on_exit": [1, -9]}}, ["retry.on_exit.1 -9", "128 + n for signal n"]),
    ("create_task", LS | {"retry": {"on_exit": 256}}, ["256 is no exit code"]),
    ("create_task", LS | {"retry": {"on_exit": [True]}}, ["retry.on_exit.0 True", "must be a number"]),
    ("create_task", LS | {"retry": {"on_exit": ["EX_TEMPFAIL"]}}, ["'EX_TEMPFAIL'", "a whole number"]),
    ("create_task", LS | {"retry": {"on_exit": "all"}}, ["'all' names no exit codes", "leave it out: then every one"]),
    ("create_task", LS | {"retry": {"on_exit": []}}, ["[] names no exit codes", "every one is tried again"]),
    ("create_task", LS | {"retry": {"on_exit": [1, 127]}}, ["retry.on_exit may not name 127", "no retry mends"]),
    ("create_task", LS | {"retry": {"fail_on_exit": [1, 75]}}, ["may not name 75 (EX_TEMPFAIL)", "max_attempts=1"]),
    ("create_task", LS | {"retry": {"on_exit": [1, 3], "fail_on_exit": [3]}}, ["3 stands in", "in one of them"]),
    ("update_task", {"task_id": "waiting", "retry": {"factor": 3}}, ["'retry'", "fixed", "max_attempts can be"]),
    ("update_task", {"task_id": "waiting", "retry": 3}, ["'retry'", "max_attempts=4"]),
    ("create_task", soon(priority=5), ["priority 5", "'low', 'medium' or 'high'"]),
    ("create_task", soon(priority="normal"), ["Did you mean 'medium'?"]),
    ("create_task", soon(one=1, two=2, three=3), ["'one'", "'two'", "'three'", "Allowed: kind,"]),
    ("list_tasks", {"status": ["failed", "cancelled"]}, ["is not one status", "leave it out for all", "once for each"]),
    ("list_tasks", {"status": "failed,cancelled"}, ["is not one status", "'cancelled'"]),
    ("list_tasks", {"status": "all"}, ["'all' is not one status", "leave it out for all"]),
    ("list_tasks", {"status": "pending"}, ["Did you mean 'waiting'?"]),
    ("list_tasks", {"status": "in progress"}, ["Did you mean 'working'?"]),
    ("list_tasks", {"page": 2, "per_page": 10}, ["'page'", "next_cursor"]),
    ("list_tasks", {"offset": 20}, ["'offset'", "next_cursor"]),
    ("list_tasks", {"sort": "-created_at"}, ["'sort'", "newest first"]),
    ("list_tasks", {"limit": 1000}, ["limit 1000", "at most 100"]),
    ("list_tasks", {"tags": ["a", "b"]}, ["label ['a', 'b']", "must be a string"]),
    ("get_task", {"task_id": "failed", "verbose": True}, ["'verbose'", 'detail="full"']),
    ("update_task", {"task_id": "waiting", "status": "cancelled"}, ["'status'", "cancel_task", "paused=true"]),
    ("update_task", {"task_id": "waiting", "resume": True}, ["'resume'", "paused=false"]),
    ("update_task", {"task_id": "waiting"}, ["nothing to change"]),
    ("update_task", {"task_id": "failed", "priority": "high"}, ["is failed", "retry_task("]),
    ("retry_task", {"task_id": "completed"}, ["is completed", "Create a new task"]),
    ("retry_task", {"task_id": "failed", "payload": {"argv": ["true"]}}, ["'payload'", "create a new task"]),
    ("cancel_task", {"task_id": "waiting", "force": True}, ["'force'", "leave it out"]),
    ("get_task_output", {"task_id": "failed", "lines": 50}, ["'lines'", "tail_bytes"]),
    ("get_task_output", {"task_id": "failed", "stream": "stderr"}, ["'stream'", "one output"]),
    ("get_task_output", {"task_id": "failed", "follow": True}, ["'follow'", "wait_for_tasks"]),
    ("get_task_output", {"task_id": "failed", "tail_bytes": 100_000}, ["at most 2048"]),
    ("get_stats", {"hours": 24}, ["'hours'", "takes no arguments"]),
    ("get_stats", {"random_string": "x"}, ["'random_string'", "takes no arguments"]),
    # One or many.
    ("get_task", {"task_ids": ["waiting", "failed"]}, ["one task, not 2", "first with task_id='waiting'"]),
    ("cancel_task", {"task_id": ["waiting", "failed"]}, ["one task, not 2", "once for each"]),
    ("cancel_task", {"status": "waiting"}, ["'status'", "list_tasks"]),
    ("cancel_task", {"task_id": "all"}, ["No task 'all'", "list_tasks"]),
    ("delete_task", {"ids": ["waiting", "failed"]}, ["one task, not 2"]),
    ("delete_task", {}, ["task_id is required", "list_tasks shows"]),
    ("delete_task", {"task_id": "working", "force": True}, ["'force'", "Did you mean 'confirm'?"]),
    ("delete_task", {"task_id": "working", "confirm": "sure"}, ["confirm 'sure'", "true or false"]),
    ("delete_task", {"task_id": "  'working' "}, ["is working", "confirm=true"]),
    ("wait_for_tasks", {}, ["task_ids is required", "list_tasks shows"]),
    ("wait_for_tasks", {"task_ids": []}, ["1 or more items", "list_tasks shows"]),
    ("wait_for_tasks", {"task_ids": "waiting,failed"}, ["'waiting'", "'failed'"]),
    ("wait_for_tasks", {"task_ids": ["failed"], "until": "completed"}, ["Did you mean 'all'?"]),
    ("wait_for_tasks", {"task_ids": ["failed"], "any": True}, ['until="any"']),
    ("get_task", {"task_id": "WAITING"}, ["Nearest:", "'waiting'"]),
    ("get_task", {"task_id": "latest"}, ["No task 'latest'", "list_tasks"]),
]


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    async with running(settings(tmp_path_factory.mktemp("wrong"))) as app:
        yield app


@pytest.fixture(scope="module")
async def clients(app: App) -> AsyncIterator[dict[str, Client]]:
    """One for each era, on a store with a task in every state, named after it."""
    async with connected(app.server, "legacy") as legacy, connected(app.server, "auto") as modern:
        await call(legacy, "create_task", **LATER, name="waiting")
        await call(legacy, "create_task", payload={"argv": ["true"]}, delay_seconds=3600, name="command")
        await call(legacy, "create_task", payload={"argv": ["false"]}, name="failed", wait_seconds=20)
        await call(legacy, "create_task", kind="echo", name="completed", wait_seconds=20)
        gate = Gate()
        await call(legacy, "create_task", kind="test.gate", payload=gate.payload, name="working")
        await gate.reached()
        yield {"legacy": legacy, "auto": modern}


async def stored(app: App) -> list[Any]:
    """Every task as it is; how far the working one is aside."""
    tasks = (await app.service.queries.page(Filters(), 100, None)).tasks
    return [vars(task) | {"progress": None, "updated_at": None} for task in tasks]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("tool", "written", "said"), TOLD, ids=[f"{t}-{str(w)[:60]}" for t, w, _ in TOLD])
async def test_a_wrong_call_is_told_the_right_one_and_leaves_no_trace(
    app: App, clients: dict[str, Client], era: str, tool: str, written: Facts, said: list[str]
) -> None:
    before = await stored(app)
    text = refusal(await raw_call(clients[era], tool, written))
    for words in said:
        assert words in text, text
    assert not NOISE.search(text) and "\n" not in text and len(text.encode()) <= 700, text
    assert await stored(app) == before, "nothing was stored"


DRESSED = (
    *(" {} ", "\n{}\n", "'{}'", '"{}"', "`{}`", "<{}>", "[{}]", "({})", "#{}", "{}.", "{},", "{};"),
    *("task://{}", "task://{}/output", "<task://{}>", "'{}'."),
)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("dress", DRESSED)
async def test_an_id_is_found_in_whatever_stands_around_it(clients: dict[str, Client], era: str, dress: str) -> None:
    task = (await call(clients[era], "get_task", task_id="waiting")).facts
    for reference in (task["id"], task["id"].upper()):
        written = dress.format(reference)
        assert (await call(clients[era], "get_task", task_id=written)).facts["id"] == task["id"]
        found = await call(clients[era], "wait_for_tasks", task_ids=[written], timeout_seconds=0)
        assert [row["id"] for row in found.facts["tasks"]] == [task["id"]]


async def test_a_name_comes_before_what_it_looks_like(clients: dict[str, Client]) -> None:
    client = clients["auto"]
    quoted = (await call(client, "create_task", **LATER, name="'waiting'")).facts["id"]
    assert (await call(client, "get_task", task_id="'waiting'")).facts["id"] == quoted
    assert (await call(client, "get_task", task_id=" waiting ")).facts["name"] == "waiting"
    assert (await call(client, "get_task", task_id='"waiting"')).facts["name"] == "waiting"
    await call(client, "delete_task", task_id="'waiting'")
    assert (await call(client, "get_task", task_id="waiting")).facts["status"] == "waiting"


async def test_the_beginning_of_an_id_is_enough_to_look_but_not_to_delete(clients: dict[str, Client]) -> None:
    client = clients["auto"]
    task = (await call(client, "get_task", task_id="waiting")).facts
    for short in (task["id"][:8], task["id"][:8] + "…", task["id"][:6] + "..."):
        assert (await call(client, "get_task", task_id=short)).facts["id"] == task["id"]
        text = refusal(await raw_call(client, "delete_task", {"task_id": short}))
        assert task["id"] in text and "full id" in text, text


async def test_the_output_of_a_task_that_has_none_says_why(clients: dict[str, Client]) -> None:
    client = clients["auto"]
    for name, why in {
        "command": "has not started",
        "completed": "only commands and isolated handlers write output; see get_task(",
    }.items():
        reply = await call(client, "get_task_output", task_id=name)
        assert why in reply.text and why in reply.facts["hint"]
    assert "hint" not in (await call(client, "get_task_output", task_id="failed")).facts


# Tools that there are not.

MEANT_TOOLS = {
    **dict.fromkeys(["run_command", "start_task", "createTask", "submit_task", "bash"], "create_task"),
    **dict.fromkeys(["mcp__taskorch__create_task", "taskorch.create_task", "functions.create_task"], "create_task"),
    **dict.fromkeys(["task_status", "get_task_status", "getTask", "get_task_result"], "get_task"),
    **dict.fromkeys(["list_task", "tasks/list", "search_tasks", "get_tasks"], None),
    **dict.fromkeys(["kill_task", "stop_task", "abort"], "cancel_task"),
    **dict.fromkeys(["remove_task", "delete_tasks"], "delete_task"),
    **dict.fromkeys(["wait_for_task", "wait", "await_task"], "wait_for_tasks"),
    **dict.fromkeys(["get_output", "get_task_log", "tail_output"], "get_task_output"),
    **dict.fromkeys(["rerun_task", "restart_task"], "retry_task"),
    **dict.fromkeys(["edit_task", "pause_task", "resume_task"], "update_task"),
    **dict.fromkeys(["stats", "get_statistics", "health"], "get_stats"),
}


@pytest.mark.parametrize("era", ERAS)
async def test_an_unknown_tool_is_answered_with_the_one_that_was_meant(clients: dict[str, Client], era: str) -> None:
    for name, meant in MEANT_TOOLS.items():
        with pytest.raises(MCPError) as refused:
            await raw_call(clients[era], name, {})
        error = refused.value.error
        assert error.code == -32602 and "\n" not in error.message and not NOISE.search(error.message)
        assert name in error.message and f"Did you mean '{meant or 'list_tasks'}'?" in error.message, error.message


@pytest.mark.parametrize("era", ERAS)
async def test_a_tool_that_means_nothing_is_answered_with_all_there_are(clients: dict[str, Client], era: str) -> None:
    for name in ("", "xyzzy", "\x1b[31m", "é" * 500):
        with pytest.raises(MCPError, match="Use one of: create_task, create_tasks, list_tasks") as refused:
            await raw_call(clients[era], name, {})
        assert len(refused.value.error.message) <= 300 and "\x1b" not in refused.value.error.message


# Over stdio.

# method, params, the code of the answer
MALFORMED: dict[str, tuple[str, Facts, int]] = {
    "arguments as an array": ("tools/call", {"name": "list_tasks", "arguments": ["failed"]}, -32602),
    "arguments as text": ("tools/call", {"name": "list_tasks", "arguments": "{}"}, -32602),
    "arguments as a number": ("tools/call", {"name": "list_tasks", "arguments": 5}, -32602),
    "no name": ("tools/call", {"arguments": {}}, -32602),
    "a null name": ("tools/call", {"name": None, "arguments": {}}, -32602),
    "a name as an array": ("tools/call", {"name": ["list_tasks"]}, -32602),
    "an unknown tool": ("tools/call", {"name": "run_command", "arguments": {}}, -32602),
    "a tool's name as the method": ("create_task", {"payload": {"argv": ["ls"]}}, -32601),
    "a method that is none": ("tools/run", {}, -32601),
    "an empty method": ("", {}, -32601),
    "a resource without a URI": ("resources/read", {}, -32602),
    "a prompt without a name": ("prompts/get", {}, -32602),
}


@pytest.fixture(scope="module", params=[LEGACY, MODERN])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = Place(tmp_path_factory.mktemp("stdio"))
    yield place.start(request.param, allow_commands="true")
    place.close()


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_call_is_a_protocol_error_and_the_next_call_is_answered(server: Server, name: str) -> None:
    method, params, code = MALFORMED[name]
    answer = server.answer(server.post(method, **params))
    assert answer["error"]["code"] == code, answer
    assert not NOISE.search(str(answer)), answer
    assert server.call("list_tasks")["tasks"] == []


def test_a_call_without_arguments_is_one_with_none(server: Server) -> None:
    for params in ({"name": "list_tasks"}, {"name": "list_tasks", "arguments": None}):
        assert server.answer(server.post("tools/call", **params))["result"]["structuredContent"]["tasks"] == []


# Whatever is written.

NAMES = st.sampled_from(
    [
        *sorted({name for tool in TOOLS.values() for name in tool.arguments.model_fields}),
        *("id", "ids", "task", "tasks", "arguments", "input", "params", "changes", "filter", "command", "args", "argv"),
        *("script", "workdir", "timeout_ms", "delay_minutes", "force", "Confirm", "status", "names", "cron", "x"),
    ]
)
VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2.5, 10**30, 1_795_600_000, "true", "yes", "", " ", "all", "*", "precious"),
        *(" precious ", '"precious"', "task://precious", "['precious']", "waiting", "echo", "command", "sleep", "bash"),
        *("ls", "ls -l", "rm -rf /", "cd / && ls", '["ls"]', '{"argv": ["ls"]}', "5m", "PT5M", "now", "2027-01-01"),
        *("2027-01-01T00:00:00 UTC", "high", "HIGH", "failed,cancelled", "\x1b[31m", "a\nb", "é" * 300, "…"),
    ]
)
WRITTEN = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3))


class Desk:
    """A server that may run no command, with a task at work that is named precious."""

    def __init__(self, portal: BlockingPortal, app: App) -> None:
        self.portal = portal
        self.service = replace(app.service, wait_cap_seconds=0.02)

    def run(self, tool: str, written: Facts) -> str | None:
        """The refusal; None when it was done."""

        async def tell(value: float, total: float, message: str) -> None:
            pass

        async def nobody(question: str, about: str) -> None:
            return None

        async def attempt() -> str | None:
            try:
                await call_tool(self.service, Call("test", tell, nobody), tool, written)
            except TaskError as error:
                return str(error)
            return None

        return self.portal.call(attempt)

    def stored(self) -> list[Any]:
        """What tasks are, but for what their work changes by itself."""
        tasks = self.portal.call(self.service.queries.page, Filters(), 1000, None).tasks
        return [(t.id, t.kind, t.name, t.payload, t.delete_requested, t.cancel_requested_at) for t in tasks]

    def precious(self) -> str:
        """The id of the one at work; made anew when the last one was ended."""
        tasks = self.portal.call(self.service.queries.page, Filters(), 1000, None).tasks
        found = [t.id for t in tasks if t.name == "precious" and t.status == "working" and not t.cancel_requested_at]
        if found:
            return found[0]
        gate = Gate()
        assert self.run("create_task", {"kind": "test.gate", "payload": gate.payload, "name": "precious"}) is None
        self.portal.call(gate.reached)
        return self.precious()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with start_blocking_portal() as portal, ExitStack() as stack:
        opened = running(settings(folder, allow_commands="", concurrency=8))
        yield Desk(portal, stack.enter_context(portal.wrap_async_context_manager(opened)))


def confirms(written: Any) -> bool:
    """Whether the caller has said `confirm` anywhere."""
    if isinstance(written, dict):
        return any(str(name).lower() == "confirm" or confirms(value) for name, value in written.items())
    return isinstance(written, list) and any(map(confirms, written))


@hypothesis_settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tool=st.sampled_from(list(TOOLS)), written=st.dictionaries(NAMES, WRITTEN, max_size=4))
def test_no_call_whatever_leaks_stores_when_refused_runs_a_command_or_deletes_work(
    desk: Desk, tool: str, written: Facts
) -> None:
    precious, before = desk.precious(), desk.stored()
    text = desk.run(tool, written)
    after = desk.stored()
    if text is not None:
        assert not NOISE.search(text) and "\n" not in text, text
        assert after == before
    assert not [kind for _, kind, *_ in after if kind == "command"], "no command may run here, by whatever name"
    if not confirms(written):
        assert precious in [task_id for task_id, *_ in after]
        assert not any(delete_requested for *_, delete_requested, _ in after)


@pytest.mark.parametrize("written", [{"force": True}, {"yes": True}, {"confirmed": True}, {"reason": "confirm"}])
def test_nothing_but_confirm_confirms(desk: Desk, written: Facts) -> None:
    task_id = desk.precious()
    for around in (lambda given: given, lambda given: {"arguments": given}):
        assert desk.run("delete_task", around({"task_id": task_id} | written)) is not None
    assert task_id == desk.precious()


@pytest.mark.parametrize(
    "written", [w for tool, w, right in MEANT if tool == "create_task" and re.search(r"argv': \['\w+'", str(right))]
)
def test_no_way_of_writing_a_command_gets_round_what_is_allowed(desk: Desk, written: Facts) -> None:
    text = desk.run("create_task", written)
    assert text is not None and "is not allowed: on this server no commands may run" in text


def test_a_line_is_never_named_as_a_program_to_allow(desk: Desk) -> None:
    text = desk.run("create_task", {"payload": {"argv": ["git fetch"]}})
    assert text is not None and "TASKORCH_ALLOW_COMMANDS" not in text and '["git", "fetch"]' in text


def test_a_call_that_is_ambiguous_is_left_to_the_caller() -> None:
    known = TOOLS["get_task"].arguments.model_fields
    for written in ({"id": "a", "task_id": "b"}, {"name": "a", "id": "b"}, {"task_ids": ["a"], "ids": ["a"]}):
        with pytest.raises(InvalidInput, match="are the same argument"):
            understood(written, known)
