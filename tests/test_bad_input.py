"""Everything wrong that a caller can say is refused before anything is stored, with a text that helps."""

import math
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clients import ERAS, Facts, call, connected, raw_call, refusal, settings
from mcp import Client

from taskorch.app import App, running
from taskorch.calls.actions import Call
from taskorch.domain.errors import TaskError
from taskorch.mcp.tools import call_tool

DIRECT = "direct"  # what a client in memory would mend or choke on goes straight to the tools
BIG = 2**70
ID_LIKE = "t0123456789abcdef"
NEXT_STEP = (
    r"correct this and call {} again\.$|Call list_tasks to|call again with expected_version|Set expires_at after"
)
LATER = {"kind": "echo", "delay_seconds": 3600}


def nested(levels: int, inner: Any = 1) -> Facts:
    """An object with that many levels of objects and arrays."""
    value: Any = {"a": inner}
    for level in range(levels - 1):
        value = {"a": value} if level % 2 or level == levels - 2 else [value]
    return value


def ahead(**time: float) -> str:
    return (datetime.now(UTC) + timedelta(**time)).isoformat()


def echo(payload: Any) -> Facts:
    return {"kind": "echo", "payload": payload}


def argv(*words: Any, **more: Any) -> Facts:
    return {"payload": {"argv": list(words), **more}}


# tool, arguments, what the text must say: the value (or the argument) and what is allowed
BAD: list[tuple[str, Facts, list[str]]] = [
    # Names.
    ("create_task", {"max_attempt": 5}, ["'max_attempt'", "Did you mean 'max_attempts'?", "Allowed: kind,"]),
    ("create_task", {"retries": 5}, ["'retries'", "for 5 retries write max_attempts=6"]),
    ("create_task", {"tries": 5}, ["'tries'", "Did you mean 'max_attempts'?"]),
    ("create_task", {"timeout": 5}, ["'timeout'", "Did you mean 'timeout_seconds'?"]),
    ("create_task", {"when": "now"}, ["'when'", "Did you mean 'run_at'?"]),
    ("list_tasks", {"search": "x"}, ["'search'", "Did you mean 'text'?"]),
    ("get_task_output", {"task_id": "failed", "lines": 5}, ["'lines'", "give tail_bytes"]),
    ("delete_task", {"task_id": "waiting", "force": True}, ["'force'", "Did you mean 'confirm'?"]),
    ("get_task", {"id": "waiting", "task_id": "failed"}, ["'id' and task_id are the same argument", "task_id alone"]),
    ("create_task", {"x" * 5000: 5}, ["'xxxxxx", "Allowed: kind,"]),
    ("create_task", {"unheard_of": None}, ["'unheard_of'", "Allowed: kind,"]),
    ("get_stats", {"now": True}, ["'now'"]),
    ("create_task", {"kind": "ecoh"}, ["'ecoh'", "Did you mean 'echo'?", "Use one of: command, echo, sleep"]),
    ("create_task", {"kind": "k" * 101}, ["kind 'kkk", "at most 100 characters"]),
    ("create_task", {"kind": ""}, ["kind ''", "1 or more characters"]),
    *(
        (tool, {"task_id": "t0000000000000000"}, ["No task 't0000000000000000'", "Call list_tasks"])
        for tool in ("get_task", "cancel_task", "retry_task", "delete_task", "get_task_output")
    ),
    ("update_task", {"task_id": "nobody", "priority": "low"}, ["No task 'nobody'", "Call list_tasks"]),
    ("wait_for_tasks", {"task_ids": ["waiting", "nobody"]}, ["No task 'nobody'", "Call list_tasks"]),
    ("get_task", {"task_id": "waitin"}, ["No task 'waitin'", "Nearest:", "'waiting'", "Call list_tasks"]),
    ("get_task", {}, ["task_id is required"]),
    ("get_task", {"task_id": None}, ["task_id is required"]),
    ("get_task", {"task_id": ""}, ["task_id ''", "1 or more characters"]),
    ("get_task", {"task_id": "n" * 201}, ["task_id 'nnn", "at most 200 characters"]),
    ("get_task", {"task_id": ["waiting", "failed"]}, ["one task, not 2", "first with task_id='waiting'"]),
    ("wait_for_tasks", {"task_ids": []}, ["task_ids []", "1 or more items"]),
    ("wait_for_tasks", {"task_ids": ["waiting"] * 101}, ["task_ids", "at most 100 items"]),
    ("wait_for_tasks", {"task_ids": {"a": 1}}, ["task_ids {'a': 1}", "must be an array"]),
    ("create_task", {"name": "n" * 201}, ["name 'nnn", "at most 200 characters"]),
    ("create_task", {"name": ID_LIKE}, [f"name '{ID_LIKE}'", "looks like a task id", "another name"]),
    ("create_task", {"name": " \u3000"}, ["name ' \\u3000' is blank", "leave name out"]),
    ("create_task", {"name": "two\nlines"}, ["name 'two\\nlines'", "control character", "one line"]),
    ("create_task", {"name": "\x1b[31mred"}, ["name '\\x1b[31mred'", "control character"]),
    ("create_task", {"name": 5}, ["name 5", "must be a string"]),
    ("update_task", {"task_id": "waiting", "name": ID_LIKE}, [f"name '{ID_LIKE}'", "looks like a task id"]),
    ("create_task", {"labels": ["l"] * 33}, ["labels", "at most 32 items"]),
    ("create_task", {"labels": ["ok", ""]}, ["labels.1 ''", "1 or more characters"]),
    ("create_task", {"labels": ["l" * 101]}, ["labels.0 'lll", "at most 100 characters"]),
    ("create_task", {"labels": ["a\tb"]}, ["labels.0 'a\\tb'", "control character"]),
    ("create_task", {"labels": {"a": 1}}, ["labels {'a': 1}", "must be an array"]),
    # Choices.
    (
        "list_tasks",
        {"status": "done"},
        ["status 'done'", "'waiting', 'working', 'completed'", "Did you mean 'completed'?"],
    ),
    ("create_task", {"priority": "urgent"}, ["priority 'urgent'", "'low', 'medium' or 'high'", "Did you mean 'high'?"]),
    ("create_task", {"priority": 2}, ["priority 2", "'low', 'medium' or 'high'"]),
    ("create_task", {"on_server_exit": "die"}, ["on_server_exit 'die'", "'survive' or 'stop'"]),
    ("get_task", {"task_id": "waiting", "detail": "all"}, ["detail 'all'", "'concise' or 'full'"]),
    ("wait_for_tasks", {"task_ids": ["waiting"], "until": "most"}, ["until 'most'", "'all' or 'any'"]),
    ("delete_task", {"task_id": "waiting", "confirm": "surely"}, ["confirm 'surely'", "true or false"]),
    ("update_task", {"task_id": "waiting", "paused": 2}, ["paused 2", "true or false"]),
    # Numbers.
    ("create_task", {"max_attempts": 0}, ["max_attempts 0", "at least 1"]),
    ("create_task", {"max_attempts": -1}, ["max_attempts -1", "at least 1"]),
    ("create_task", {"max_attempts": 101}, ["max_attempts 101", "at most 100"]),
    ("create_task", {"max_attempts": BIG}, [f"max_attempts {BIG}", "at most 100"]),
    ("create_task", {"max_attempts": True}, ["max_attempts True", "must be a number"]),
    ("create_task", {"max_attempts": 1.5}, ["max_attempts 1.5", "a whole number"]),
    ("create_task", {"max_attempts": "many"}, ["max_attempts 'many'", "a whole number"]),
    ("create_task", {"max_attempts": [3]}, ["max_attempts [3]", "a whole number"]),
    ("create_task", {"timeout_seconds": 0}, ["timeout_seconds 0", "greater than 0"]),
    ("create_task", {"timeout_seconds": -5}, ["timeout_seconds -5", "greater than 0"]),
    ("create_task", {"timeout_seconds": 86_401}, ["timeout_seconds 86401", "at most 86400"]),
    ("create_task", {"timeout_seconds": BIG}, [f"timeout_seconds {BIG}", "at most 86400"]),
    ("create_task", {"timeout_seconds": False}, ["timeout_seconds False", "must be a number"]),
    ("create_task", {"timeout_seconds": "soon"}, ["timeout_seconds 'soon'", "a number"]),
    ("create_task", {"timeout_seconds": "inf"}, ["timeout_seconds 'inf'", "finite number"]),
    ("create_task", {"delay_seconds": -1}, ["delay_seconds -1", "at least 0"]),
    ("create_task", {"delay_seconds": 366 * 86_400 + 1}, ["delay_seconds 31622401", "at most 31622400"]),
    ("create_task", {"delay_seconds": BIG}, [f"delay_seconds {BIG}", "at most 31622400"]),
    ("create_task", {"delay_seconds": "nan"}, ["delay_seconds 'nan'", "finite number"]),
    ("create_task", {"delay_seconds": True}, ["delay_seconds True", "must be a number"]),
    ("retry_task", {"task_id": "failed", "delay_seconds": -1}, ["delay_seconds -1", "at least 0"]),
    ("retry_task", {"task_id": "failed", "delay_seconds": 1e9}, ["delay_seconds 1000000000", "at most"]),
    ("create_task", {"wait_seconds": -1}, ["wait_seconds -1", "at least 0"]),
    ("create_task", {"wait_seconds": True}, ["wait_seconds True", "must be a number"]),
    ("create_task", {"wait_seconds": 51}, ["wait_seconds 51", "at most 50", "Wait 50 s at a time"]),
    ("create_task", {"wait_seconds": BIG}, ["wait_seconds 1.1", "at most 50"]),
    (
        "wait_for_tasks",
        {"task_ids": ["waiting"], "timeout_seconds": 50.5},
        ["timeout_seconds 50.5", "at most 50", "TASKORCH_WAIT_CAP_SECONDS"],
    ),
    ("wait_for_tasks", {"task_ids": ["waiting"], "timeout_seconds": -1}, ["timeout_seconds -1", "at least 0"]),
    ("list_tasks", {"limit": 0}, ["limit 0", "at least 1"]),
    ("list_tasks", {"limit": 101}, ["limit 101", "at most 100"]),
    ("list_tasks", {"limit": BIG}, [f"limit {BIG}", "at most 100"]),
    ("list_tasks", {"limit": True}, ["limit True", "must be a number"]),
    ("get_task_output", {"task_id": "failed", "tail_bytes": 0}, ["tail_bytes 0", "at least 1"]),
    ("get_task_output", {"task_id": "failed", "tail_bytes": 2049}, ["tail_bytes 2049", "at most 2048"]),
    ("get_task_output", {"task_id": "failed", "offset": -1}, ["offset -1", "at least 0"]),
    ("get_task_output", {"task_id": "failed", "offset": True}, ["offset True", "must be a number"]),
    ("get_task_output", {"task_id": "failed", "attempt": True}, ["attempt True", "must be a number"]),
    ("get_task_output", {"task_id": "failed", "tail_bytes": True}, ["tail_bytes True", "must be a number"]),
    ("create_task", {"name": "a\u2028b"}, ["name 'a\\u2028b'", "control character"]),
    ("get_task_output", {"task_id": "failed", "offset": BIG}, [f"offset {BIG}", "at most"]),
    ("get_task_output", {"task_id": "failed", "attempt": 0}, ["attempt 0", "at least 1"]),
    ("get_task_output", {"task_id": "failed", "attempt": BIG}, [f"attempt {BIG}", "at most"]),
    ("get_task_output", {"task_id": "failed", "attempt": 2}, ["1 attempts", "no attempt 2", "Leave attempt out"]),
    (
        "get_task_output",
        {"task_id": "failed", "offset": 0, "tail_bytes": 5},
        ["tail_bytes and offset exclude each other", "give one of them"],
    ),
    ("get_task_output", {"task_id": "failed", "grep": "x" * 201}, ["grep", "at most 200 characters"]),
    (
        "update_task",
        {"task_id": "waiting", "priority": "low", "expected_version": BIG},
        [f"expected_version {BIG}", "at most"],
    ),
    (
        "update_task",
        {"task_id": "waiting", "priority": "low", "expected_version": 7},
        ["version 1, not 7", "get_task", "expected_version=1"],
    ),
    # Times.
    ("create_task", {"run_at": "tomorrow"}, ["run_at 'tomorrow'", "write it like 20", "which is now", "delay_seconds"]),
    ("create_task", {"run_at": "2027-01-01T10:00:00"}, ["'2027-01-01T10:00:00' has no time zone", "Z or"]),
    ("create_task", {"run_at": "1" * 9000}, ["run_at '111", "has no time zone", "Z or an offset"]),
    ("create_task", {"run_at": "2027-01-01"}, ["run_at '2027-01-01' has no time zone"]),
    ("create_task", {"run_at": 1_800_000_000}, ["run_at 1800000000", "write it like"]),
    ("create_task", {"run_at": True}, ["run_at True", "write it like"]),
    ("create_task", {"run_at": ["2027-01-01T10:00:00Z"]}, ["run_at ['2027", "write it like"]),
    ("create_task", {"run_at": "0001-01-01T00:00:00+14:00"}, ["'0001-01-01T00:00:00+14:00'", "1970 to 9998"]),
    ("create_task", {"expires_at": "9999-12-31T23:59:59.9999Z"}, ["'9999-12-31", "1970 to 9998"]),
    ("list_tasks", {"created_after": "9999-12-31T23:59:59-14:00"}, ["created_after '9999", "1970 to 9998"]),
    ("list_tasks", {"created_before": "then"}, ["created_before 'then'", "write it like"]),
    (
        "create_task",
        {"kind": "echo", "run_at": ahead(days=366, hours=2)},
        ["run_at 20", "more than 366 days ahead", "choose an earlier time"],
    ),
    (
        "create_task",
        {"kind": "echo", "run_at": ahead(hours=1), "delay_seconds": 5},
        ["delay_seconds and run_at exclude each other", "give one of them"],
    ),
    (
        "create_task",
        {"kind": "echo", "expires_at": "2020-01-01T00:00:00Z"},
        ["expires_at 2020-01-01T00:00:00.000Z must lie ahead", "Choose a later time"],
    ),
    (
        "create_task",
        {"kind": "echo", "delay_seconds": 3 * 3600, "expires_at": ahead(hours=2)},
        ["expires_at 20", "after run_at", "Choose a later time"],
    ),
    (
        "update_task",
        {"task_id": "waiting", "expires_at": "2020-01-01T00:00:00Z"},
        ["expires_at 2020-01-01T00:00:00.000Z must lie ahead", "Choose a later time"],
    ),
    (
        "update_task",
        {"task_id": "waiting", "run_at": ahead(hours=1), "delay_seconds": 5},
        ["delay_seconds and run_at exclude each other", "give one of them"],
    ),
    ("update_task", {"task_id": "waiting", "expires_at": ahead(minutes=50)}, ["expire before", "Set expires_at after"]),
    # Payloads.
    ("create_task", {}, ["payload.argv is required"]),
    ("create_task", {"payload": "ls -l"}, ["'ls -l' is one string", 'payload={"argv": ["ls", "-l"]}']),
    ("create_task", {"payload": ["ls", 1]}, ["payload ['ls', 1]", "must be an object"]),
    ("create_task", {"payload": '{"argv": ["ls"]'}, ["payload must be an object", "no JSON: Expecting ',' delimiter"]),
    ("create_task", {"payload": "[5]"}, ["payload '[5]'", "must be an object"]),
    ("create_task", argv(), ["payload.argv []", "1 or more items"]),
    ("create_task", argv(""), ["payload.argv[0] is empty", "must name a program"]),
    ("create_task", argv("bin/ls"), ["'bin/ls' is a relative path", "bare name or an absolute path"]),
    ("create_task", argv("no-such-program"), ["'no-such-program'", "not found in PATH", "Name an installed program"]),
    ("create_task", argv("/no/such"), ["'/no/such'", "does not exist", "absolute path"]),
    ("create_task", argv("ls", 1), ["payload.argv.1 1", "must be a string"]),
    ("create_task", argv("ls", ["-l"]), ["payload.argv.1 ['-l']", "must be a string"]),
    ("create_task", argv("ls", None), ["payload.argv.1 None", "must be a string"]),
    ("create_task", {"payload": {"argv": "ls -l"}}, ["'ls -l' is one string", 'payload={"argv": ["ls", "-l"]}']),
    ("create_task", {"command": "ls | wc"}, ["'ls | wc' is one string", 'payload={"argv": ["bash", "-c", "ls | wc"]}']),
    ("create_task", {"command": "ls " * 99}, ["'ls ls", 'payload={"argv": ["git", "fetch"]}']),
    ("create_task", {"payload": {"argv": {"a": 1}}}, ["payload.argv {'a': 1}", "must be an array"]),
    ("create_task", argv("ls") | {"argv": ["ls"]}, ["argv stands both beside payload and in it", "in payload alone"]),
    ("create_task", {"kind": "echo", "command": ["ls"]}, ["Unknown argument 'command'"]),
    ("create_task", argv(*["x"] * 1025), ["payload.argv", "at most 1024 items"]),
    ("create_task", argv("ls", cwd="here"), ["payload.cwd 'here' is relative", "use an absolute path"]),
    ("create_task", argv("ls", cwd="/no/such/folder"), ["payload.cwd '/no/such/folder'", "use one that exists"]),
    ("create_task", argv("ls", cwd=5), ["payload.cwd 5", "must be a string"]),
    ("create_task", argv("ls", env={"A": 5}), ["payload.env 'A' must be a string"]),
    ("create_task", argv("ls", env=["A=5"]), ["payload.env must be an object"]),
    ("create_task", argv("ls", env={"A=B": "c"}), ["payload.env 'A=B'", "use names without '='"]),
    ("create_task", argv("ls", env={"": "c"}), ["payload.env ''", "use names without '='"]),
    ("create_task", argv("ls", env={"LD_PRELOAD": "c"}), ["LD_PRELOAD", "refused", "TASKORCH_PASS_ENV=LD_PRELOAD"]),
    ("create_task", argv("ls", env={"x" * 9000: 5}), ["payload.env 'xxx", "must be a string"]),
    ("create_task", argv("ls", stdin=5), ["payload.stdin 5", "must be a string"]),
    ("create_task", argv("ls", args=["-l"]), ["'payload.args'", "Allowed: argv, cwd, env, stdin"]),
    ("create_task", argv("ls", agrv=["-l"]), ["'payload.agrv'", "Did you mean 'argv'?"]),
    ("create_task", {"kind": "sleep"}, ["payload.seconds is required"]),
    ("create_task", {"kind": "sleep", "payload": {"seconds": -1}}, ["payload.seconds -1", "at least 0"]),
    ("create_task", {"kind": "sleep", "payload": {"seconds": "x"}}, ["payload.seconds 'x'", "must be a number"]),
    (
        "create_task",
        {"kind": "sleep", "payload": {"secnods": 1}},
        ["'payload.secnods'", "Did you mean 'seconds'?", "payload.seconds is required"],
    ),
    ("update_task", {"task_id": "sleeper", "payload": {"seconds": "x"}}, ["payload.seconds 'x'", "must be a number"]),
    ("create_task", echo({"a": "x" * 262_144}), ["payload has 262152 bytes", "at most 262144", "in a file"]),
    ("create_task", echo({"a": "é" * 131_072}), ["payload has 262152 bytes", "at most 262144"]),
    ("create_task", echo(nested(33)), ["payload is nested more than 32 levels deep", "flatten it"]),
    ("create_task", echo(nested(32, {})), ["payload is nested more than 32 levels deep"]),
    ("create_task", echo(nested(32, [])), ["payload is nested more than 32 levels deep"]),
    ("update_task", {"task_id": "waiting", "payload": nested(33)}, ["payload is nested more than 32"]),
    ("update_task", {"task_id": "waiting", "payload": {"a": "x" * 262_144}}, ["payload has 262152 bytes"]),
    # Text.
    ("create_task", {"name": "a\0b"}, ["name holds the character '\\x00'", "leave it out"]),
    ("create_task", echo({"a": [{"b": "\0"}]}), ["payload.a.0.b holds the character '\\x00'"]),
    ("create_task", echo({"a\0": 1}), ["The name 'payload.a\\x00' holds the character '\\x00'"]),
    ("create_task", echo({"y" * 9000 + "\0": 1}), ["The name 'payload.yyy", "holds the character '\\x00'"]),
    ("create_task", echo({"y" * 9000: "\0"}), ["payload.yyy", "holds the character '\\x00'"]),
    ("get_task", {"task_id": "wait\0ing"}, ["task_id holds the character '\\x00'"]),
    ("list_tasks", {"text": "\0"}, ["text holds the character '\\x00'"]),
    ("list_tasks", {"text": "x" * 201}, ["text 'xxx", "at most 200 characters"]),
    ("cancel_task", {"task_id": "waiting", "reason": "x" * 501}, ["reason 'xxx", "at most 500 characters"]),
    ("cancel_task", {"task_id": "waiting", "reason": "\0"}, ["reason holds the character '\\x00'"]),
    # Cursors.
    *(
        ("list_tasks", {"cursor": cursor}, [f"cursor '{cursor}'", "leave it out to begin with the newest"])
        for cursor in (" ", "5", "c", "cx", "c-1", "c1x", "c٣", "c9223372036854775808", "c9999999999999999999")
    ),
    ("list_tasks", {"cursor": 5}, ["cursor 5", "must be a string"]),
]

# What JSON cannot say, or a client refuses to send: a client's mistake that still may not harm.
ONLY_DIRECT: list[tuple[str, Facts, list[str]]] = [
    ("create_task", {"delay_seconds": math.nan}, ["delay_seconds nan", "finite number"]),
    ("create_task", {"timeout_seconds": math.inf}, ["timeout_seconds inf", "finite number"]),
    ("create_task", {"wait_seconds": -math.inf}, ["wait_seconds -inf", "finite number"]),
    ("create_task", {"max_attempts": math.nan}, ["max_attempts nan", "finite number"]),
    ("create_task", echo({"a": math.nan}), ["payload holds NaN or an infinite number", "use null or a string"]),
    ("create_task", echo({"a": [math.inf]}), ["payload holds NaN or an infinite number"]),
    ("create_task", {"name": "\ud800"}, ["name holds the character '\\ud800'", "leave it out"]),
    ("create_task", echo({"a": "\udfff"}), ["payload.a holds the character '\\udfff'"]),
    ("create_task", echo({"\ud800": 1}), ["The name 'payload.\\ud800' holds the character '\\ud800'"]),
    ("create_task", {"\ud800": 1}, ["The name '\\ud800' holds the character '\\ud800'"]),
    ("get_task", {"task_id": "\udc80"}, ["task_id holds the character '\\udc80'"]),
]


def rows() -> Iterator[Any]:
    for table, doors in ((BAD, ERAS), (ONLY_DIRECT, (DIRECT,))):
        for tool, arguments, said in table:
            for door in doors:
                yield pytest.param(door, tool, arguments, said, id=f"{tool}-{said[0][:40]!a}-{door}")


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    async with running(settings(tmp_path_factory.mktemp("bad"))) as app:
        yield app


@pytest.fixture(scope="module")
async def clients(app: App) -> AsyncIterator[dict[str, Client]]:
    """One for each era, on a store with tasks named `waiting`, `sleeper` (which waits too) and `failed`."""
    async with connected(app.server, "legacy") as legacy, connected(app.server, "auto") as modern:
        await call(legacy, "create_task", **LATER, name="waiting")
        await call(legacy, "create_task", kind="sleep", payload={"seconds": 1}, delay_seconds=3600, name="sleeper")
        await call(legacy, "create_task", payload={"argv": ["false"]}, name="failed", wait_seconds=20)
        yield {"legacy": legacy, "auto": modern}


async def refused(app: App, clients: dict[str, Client], door: str, tool: str, arguments: Facts | None) -> str:
    if door != DIRECT:
        return refusal(await raw_call(clients[door], tool, arguments))

    async def tell(value: float, total: float, message: str) -> None:
        pass

    async def nobody(question: str, about: str) -> None:
        return None

    with pytest.raises(TaskError) as error:
        await call_tool(app.service, Call("test", tell, nobody), tool, arguments or {})
    text = str(error.value)
    text.encode()
    return text


@pytest.mark.parametrize(("door", "tool", "arguments", "said"), list(rows()))
async def test_bad_input_is_refused_with_help_and_leaves_no_trace(
    app: App, clients: dict[str, Client], door: str, tool: str, arguments: Facts, said: list[str]
) -> None:
    before = await store_of(clients["legacy"])

    text = await refused(app, clients, door, tool, arguments)

    for words in said:
        assert words in text, text
    assert re.search(NEXT_STEP.format(tool), text), text
    for noise in ("pydantic", "http", "Traceback", "Error executing", "Internal error", "validation error", "[type="):
        assert noise not in text, text
    assert "\n" not in text and len(text) <= 700, text
    assert await store_of(clients["legacy"]) == before, "nothing was stored"
    good = await call(clients["legacy"], "create_task", **LATER)
    await call(clients["legacy"], "delete_task", task_id=good.facts["id"])


async def store_of(client: Client) -> Facts:
    """All that is stored: counts, and the rows in full."""
    listed = (await call(client, "list_tasks", limit=100)).facts
    return listed | {
        row["id"]: (await call(client, "get_task", task_id=row["id"], detail="full")).facts for row in listed["tasks"]
    }


@pytest.mark.parametrize("door", ERAS)
async def test_several_mistakes_are_all_told_at_once(clients: dict[str, Client], door: str) -> None:
    arguments = {"priority": "urgent", "max_attempts": 0, "run_at": "soon", "nmae": "x"}
    text = refusal(await raw_call(clients[door], "create_task", arguments))
    for words in ("priority 'urgent'", "max_attempts 0", "run_at 'soon'", "Did you mean 'name'?"):
        assert words in text


@pytest.mark.parametrize("door", ERAS)
async def test_arguments_may_be_null_or_missing_where_none_are_needed(clients: dict[str, Client], door: str) -> None:
    for tool in ("list_tasks", "get_stats"):
        assert not (await raw_call(clients[door], tool, None)).is_error
    assert "task_id is required" in refusal(await raw_call(clients[door], "get_task", None))
    assert "payload.argv is required" in refusal(await raw_call(clients[door], "create_task", None))


@pytest.mark.parametrize(
    "good",
    [
        {"payload": nested(32)},
        {"payload": nested(31, {})},
        {"payload": {"a": "x" * (262_144 - 8)}},
        {"max_attempts": 100, "timeout_seconds": 86_400},
        {"max_attempts": "7"},
        {"delay_seconds": 366 * 86_400},
        {"delay_seconds": None, "run_at": "2020-01-01T00:00:00+14:00"},
        {"delay_seconds": None, "run_at": ahead(days=365, hours=23)},
        {"expires_at": "9998-12-31T23:59:59Z"},
        {"name": "n" * 200},
        {"name": "t" + "é" * 16},
        {"name": "夜間 バックアップ 😀"},
        {"labels": ["l" * 100] + [str(i) for i in range(31)]},
        {"payload": {"\x01": "\x7f\u2028"}},
    ],
    ids=lambda good: str(good)[:40],
)
@pytest.mark.parametrize("door", ERAS)
async def test_what_lies_just_inside_the_limits_is_accepted(clients: dict[str, Client], door: str, good: Facts) -> None:
    made = await call(clients[door], "create_task", **(LATER | good))
    kept = (await call(clients[door], "get_task", task_id=made.facts["id"], detail="full")).facts
    for name in good.keys() & {"name", "labels"}:
        assert kept[name] == good[name]
    await call(clients[door], "delete_task", task_id=made.facts["id"], confirm=True)


@pytest.mark.parametrize("door", ERAS)
async def test_a_name_that_several_tasks_bear_is_refused_with_candidates(clients: dict[str, Client], door: str) -> None:
    ids = [(await call(clients[door], "create_task", **LATER, name="twin")).facts["id"] for _ in range(7)]
    text = refusal(await raw_call(clients[door], "cancel_task", {"task_id": "twin"}))
    assert sum(task_id in text for task_id in ids) == 5 and "and more" in text and "full id" in text
    for task_id in ids:
        await call(clients[door], "delete_task", task_id=task_id)


@pytest.mark.parametrize("door", ERAS)
async def test_a_command_that_is_not_allowed_is_refused_with_the_setting_to_change(
    tmp_path_factory: pytest.TempPathFactory, door: str
) -> None:
    folder = tmp_path_factory.mktemp("none")
    async with running(settings(folder, allow_commands="")) as app, connected(app.server, door) as client:
        text = refusal(await raw_call(client, "create_task", argv("git", "status")))
        assert "'git' is not allowed" in text and "TASKORCH_ALLOW_COMMANDS=git" in text and "Ask the user" in text
        assert (await call(client, "list_tasks")).facts["tasks"] == []
