"""What every Python peer goes through, seen as its model sees it: by the text of the replies alone.

Runs inside the peers' own environments, so it needs nothing but Python.
"""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

TOOLS = {
    *(
        "create_task",
        "create_tasks",
        "list_tasks",
        "get_task",
        "update_task",
        "cancel_task",
        "delete_task",
        "retry_task",
    ),
    *("wait_for_tasks", "get_task_output", "get_stats"),
}
ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
NOWHERE = "t0000000000000000"
PATIENCE_SECONDS = 90

Call = Callable[..., Awaitable[str]]  # call(tool, **arguments): the reply's text, or Refused with it


class Refused(Exception):
    """The tool answered with an error; this is its text."""


def era(version: object) -> None:
    """Say what was negotiated."""
    print(f"era {version}", flush=True)


def ok(what: str) -> None:
    """Say what has just been shown to work."""
    print(f"ok {what}", flush=True)


def given() -> tuple[str, dict[str, str]]:
    """The server's command, and the variables that it is to be started with."""
    return sys.argv[1], {name: value for name, value in os.environ.items() if name.startswith("TASKORCH_")}


def mode() -> str:
    """What the peer is asked to negotiate, where it can be asked."""
    return sys.argv[2]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the peer to its end; a peer that stops before that has failed."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await main()

    asyncio.run(bounded())
    print("end", flush=True)


def has(text: str, *wanted: str) -> str:
    """The text, which must hold all that is wanted."""
    for part in wanted:
        if part not in text:
            raise AssertionError(f"{part!r} is missing in:\n{text}")
    return text


def id_in(text: str) -> str:
    found = ID.search(text)
    if found is None:
        raise AssertionError(f"there is no task id in:\n{text}")
    return found[0]


def shell(line: str) -> dict[str, Any]:
    """The payload of a command."""
    return {"argv": ["sh", "-c", line]}


def tools(names: Iterable[str]) -> None:
    if (found := set(names)) != TOOLS:
        raise AssertionError(f"not the tools we have: {sorted(found ^ TOOLS)}")
    ok("tools")


async def whole(call: Call) -> str:
    """From creation to deletion; the id of a task that failed."""
    task = await _completes(call)
    failed = await _fails(call)
    has(await call("list_tasks"), task, failed)
    ok("list")
    await _is_cancelled_and_deleted(call)
    return failed


async def refusal(call: Call, tool: str, **arguments: Any) -> str:
    """The error's text of a call that must be refused."""
    try:
        text = await call(tool, **arguments)
    except Refused as error:
        return str(error)
    raise AssertionError(f"{tool} was not refused: {text}")


async def handle(call: Call) -> None:
    """A protocol task: the client itself waits for the end, which is later than the wait that the call asks for."""
    has(await call("create_task", payload=shell("sleep 2"), wait_seconds=0.2), "completed")
    ok("protocol task")


async def _completes(call: Call) -> str:
    task = id_in(await call("create_task", payload=shell("echo written by a peer"), name="peer"))
    has(await call("wait_for_tasks", task_ids=[task], timeout_seconds=30), task, "completed")
    has(await call("get_task_output", task_id=task), "written by a peer")
    ok("create, wait, output")
    return task


async def _fails(call: Call) -> str:
    has(await refusal(call, "get_task", task_id=NOWHERE), NOWHERE, "list_tasks")
    failed = id_in(await call("create_task", payload=shell("echo broken >&2; exit 3")))
    has(await call("wait_for_tasks", task_ids=[failed], timeout_seconds=30), "failed")
    has(await call("get_task", task_id=failed), "exit_code", "broken")
    ok("errors")
    return failed


async def _is_cancelled_and_deleted(call: Call) -> None:
    task = id_in(await call("create_task", payload=shell("sleep 60")))
    await call("cancel_task", task_id=task, reason="the peer says so")
    has(await call("wait_for_tasks", task_ids=[task], timeout_seconds=30), task, "cancelled")
    has(await call("delete_task", task_id=task), task)
    has(await refusal(call, "get_task", task_id=task), task)
    ok("cancel, delete")


async def readings(
    failed: str, read: Callable[[str], Awaitable[str]], prompt: Callable[[str, dict[str, str]], Awaitable[str]]
) -> None:
    """Resources and prompts: each as one text."""
    has(await read("tasks://recent"), failed)
    has(await read(f"task://{failed}"), failed, "exit_code")
    has(await read(f"task://{failed}/output"), "broken")
    ok("resources")
    has(await prompt("diagnose_failure", {"task": failed}), failed, "broken")
    ok("prompts")
