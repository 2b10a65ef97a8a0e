"""Input that no client should send, over real stdio: the next good call is answered, whatever came before it.

Lines that are not what the protocol says, and arguments made from each tool's own schema and then spoilt. The seed of
the latter is printed; `MALFORMED_SEED=7 MALFORMED_CALLS=20000 pytest tests/test_malformed.py` repeats or prolongs them.
"""

import json
import os
import random
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from servers import LEGACY, Place, Server

CALLS = int(os.environ.get("MALFORMED_CALLS", "2000"))
SEED = int(os.environ.get("MALFORMED_SEED", str(random.randrange(1_000_000))))
AT_ONCE = 50  # calls sent before their answers are read
NOISE = re.compile(r"Traceback|pydantic|errors\.pydantic\.dev|https?:|validation error|\[type=|Internal error", re.I)

Message = dict[str, Any]


def line(method: object = "tools/call", params: object = None, request_id: object = "bad", **more: Any) -> bytes:
    """A request as JSON; what it holds is up to the caller."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": method} | ({} if params is None else {"params": params})
    return json.dumps(message | more).encode()


def calling(tool: object = "list_tasks", arguments: object = None, **more: Any) -> bytes:
    return line(params={"name": tool, "arguments": arguments} | more)


def echo(payload: str) -> bytes:
    """create_task with a payload written in raw JSON."""
    return calling("create_task", {"kind": "echo", "payload": "HERE"}).replace(b'"HERE"', payload.encode())


PARSE, INVALID, PARAMS, NOT_FOUND, GOOD_ANSWER = -32700, -32600, -32602, -32002, 0

# What the server reads, and the id and the code of the error that it answers (None: it answers nothing).
MALFORMED: dict[str, tuple[bytes, tuple[object, int] | None]] = {
    "a null id": (line("tools/list", request_id=None), (None, INVALID)),
    "a float id": (line("tools/list", request_id=1.5), (None, INVALID)),
    "a boolean id": (line("tools/list", request_id=True), (None, INVALID)),
    "an object as id": (line("tools/list", request_id={}), (None, INVALID)),
    "a huge id": (line("tools/list", request_id=10**30), (10**30, GOOD_ANSWER)),
    "an id of 10,000 digits": (line("tools/list").replace(b'"bad"', b"9" * 10_000), (None, INVALID)),
    "an id of half a character": (line(["x"]).replace(b'"bad"', rb'"\ud800"'), (None, INVALID)),
    "a version of another kind": (line("tools/list", jsonrpc=2.0), ("bad", INVALID)),
    "the version of another protocol": (line("tools/list", jsonrpc="1.0"), ("bad", INVALID)),
    "no version": (b'{"id": "bad", "method": "tools/list"}', ("bad", INVALID)),
    "no method": (b'{"jsonrpc": "2.0", "id": "bad"}', ("bad", INVALID)),
    "a method of another kind": (line(["tools/list"]), ("bad", INVALID)),
    "params as text": (line(params="list_tasks"), ("bad", INVALID)),
    "params as an array": (line(params=["list_tasks", {}]), ("bad", INVALID)),
    "no params": (line(), ("bad", PARAMS)),
    "a tool name of another kind": (calling({"name": "list_tasks"}), ("bad", PARAMS)),
    "a tool name of 100,000 characters": (calling("x" * 100_000), ("bad", PARAMS)),
    "arguments as text": (calling(arguments="{}"), ("bad", PARAMS)),
    "a progress token of another kind": (calling(arguments={}, _meta={"progressToken": [1]}), ("bad", PARAMS)),
    "a cursor of another kind": (line("tools/list", {"cursor": {"a": 1}}), ("bad", PARAMS)),
    "a resource that is no URI": (line("resources/read", {"uri": "\x7f \\ ["}), ("bad", NOT_FOUND)),
    "a completion of nothing": (
        line("completion/complete", {"ref": {"type": "none"}, "argument": {}}),
        ("bad", PARAMS),
    ),
    "an argument of 1 MiB": (calling("get_task", {"task_id": "x" * 2**20}), ("bad", GOOD_ANSWER)),
    "an argument of 15 MiB": (
        calling("cancel_task", {"task_id": "x", "reason": "y" * 15 * 2**20}),
        ("bad", GOOD_ANSWER),
    ),
    "an argument of 16 MiB": (calling("cancel_task", {"task_id": "x", "reason": "y" * 2**24}), (None, INVALID)),
    "a line of 40 MiB that is no JSON": (b"x" * (40 * 2**20), (None, INVALID)),
    "a line of 1 MiB that is no JSON": (b"[" + b"9" * 2**20, (None, PARSE)),
    "a message cut short": (b'{"jsonrpc": "2.0", "id": "bad", ', (None, PARSE)),
    "an array of messages": (b"[" + line("tools/list") + b"]", (None, INVALID)),
    "a number": (b"42", (None, INVALID)),
    "100 levels": (echo('{"a": ' * 100 + "1" + "}" * 100), ("bad", GOOD_ANSWER)),
    "500 levels": (echo('{"a": ' * 500 + "1" + "}" * 500), ("bad", INVALID)),
    "100,000 levels": (echo("[" * 100_000 + "]" * 100_000), (None, INVALID)),
    "1,000 levels inside a text": (calling("get_task", {"task_id": "[" * 1000}), ("bad", GOOD_ANSWER)),
    "lone surrogates": (echo(r'{"a": "\ud800", "\udfff": 1}'), ("bad", INVALID)),
    "half a pair": (calling("get_task", {"task_id": "HERE"}).replace(b"HERE", rb"\udbff\ud7ff"), ("bad", INVALID)),
    "a pair": (calling("get_task", {"task_id": "HERE"}).replace(b"HERE", rb"\ud83d\ude00"), ("bad", GOOD_ANSWER)),
    "NaN": (echo('{"a": NaN}'), ("bad", GOOD_ANSWER)),
    "infinity": (echo('{"a": -Infinity, "b": 1e999}'), ("bad", GOOD_ANSWER)),
    "a number of 400 digits": (echo('{"a": ' + "9" * 400 + "}"), ("bad", GOOD_ANSWER)),
    "a number of 10,000 digits": (echo('{"a": ' + "9" * 10_000 + "}"), ("bad", INVALID)),
    "a raw NUL": (b'{"jsonrpc": "2.0", "id": "bad", "method": "tools/list\0"}', (None, PARSE)),
    "invalid UTF-8": (calling("get_task", {"task_id": "HERE"}).replace(b"HERE", b"\xff\xc0\x80"), (None, PARSE)),
    "UTF-16": (line("tools/list").decode().encode("utf-16"), (None, PARSE)),
    "a byte order mark": (b"\xef\xbb\xbf" + line("tools/list"), ("bad", GOOD_ANSWER)),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + line("tools/list"), (None, PARSE)),
    "a carriage return at the end": (line("tools/list") + b"\r", ("bad", GOOD_ANSWER)),
    "a carriage return between words": (line("tools/list").replace(b": ", b":\r"), ("bad", GOOD_ANSWER)),
    "line ends of Unicode": (
        calling("get_task", {"task_id": "HERE"}).replace(b"HERE", "a\u2028b\u2029c\x85d".encode()),
        ("bad", GOOD_ANSWER),
    ),
    "a key twice": (b'{"id": 7, ' + calling()[1:], ("bad", GOOD_ANSWER)),
    "two messages on one line": (line("tools/list") + line("tools/list"), (None, PARSE)),
    "nothing": (b"", None),
    "blanks": (b" \t \r", None),
    "an end to nothing": (b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {}}', None),
    "progress of nobody": (b'{"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}', None),
    "a notification with a list": (
        b'{"jsonrpc": "2.0", "method": "notifications/progress", "params": [1]}',
        (None, INVALID),
    ),
    "a response that is none": (b'{"jsonrpc": "2.0", "id": "bad", "result": [1]}', (None, INVALID)),
    "an answer that nobody asked for": (b'{"jsonrpc": "2.0", "id": "bad", "result": {}}', None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("malformed"))
    yield place
    place.close()


@pytest.fixture(scope="module")
def server(place: Place) -> Server:
    """One server for everything; a command that happens to be made well is harmless."""
    return place.start(LEGACY, allow_commands="true")


@pytest.mark.parametrize("name", MALFORMED)
def test_the_call_after_a_malformed_line_is_answered(name: str, server: Server) -> None:
    sent, wanted = MALFORMED[name]
    before = len(server.lines)
    server.send(sent)
    if wanted is not None:
        request_id, code = wanted
        answer = server.answer(request_id)
        assert answer.get("error", {"code": GOOD_ANSWER})["code"] == code, answer
    assert server.call("list_tasks")["counts"] is not None
    assert not server.answered() & {"bad", None}
    for text in server.lines[before:]:
        assert not NOISE.search(text.decode()), text[:500]


# Arguments made from the schemas.


class Maker:
    """Makes arguments as a tool's schema allows them, and spoils them. What it makes ends within a moment."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.ids = ["t0123456789abcdef0"]

    def arguments(self, schema: Message) -> Message:
        """Every argument that is required, some of the others; every other time with something wrong."""
        fields, required = schema["properties"], schema.get("required", [])
        given = {name: self.value(name, fields[name]) for name in fields if name in required or self.once_in(5)}
        if "payload" in fields:
            kind, payload = self.chance.choice(GOOD)
            given |= {"payload": payload} | ({"kind": kind} if "kind" in fields else {})
        for _ in range(self.chance.choice([0, 0, 0, 1, 1, 2])):
            given = self.spoilt(given)
        if "task_ids" in fields and given.get("timeout_seconds") is None:
            given["timeout_seconds"] = 0
        for name in {"wait_seconds", "timeout_seconds"} & given.keys():
            if isinstance(given[name], int | float) and 0.02 < given[name] <= 50:
                given[name] = 0.02  # of a wait: calls queue behind each other
        return given

    def value(self, name: str, schema: Message) -> Any:
        if name == "task_id":
            return self.id()
        if "enum" in schema:
            return self.chance.choice(schema["enum"])
        match schema.get("type"):
            case "string":
                return self.text(name, schema)
            case "integer" | "number":
                low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 100)
                return self.chance.choice([low, low + 1, high, self.chance.randint(int(low), int(high))])
            case "boolean":
                return self.once_in(2)
            case "array":
                return [self.value("task_id" if name == "task_ids" else "", schema["items"]) for _ in range(3)]
            case _:
                return {}

    def text(self, name: str, schema: Message) -> str:
        if schema.get("format") == "date-time":
            return f"20{self.chance.randint(20, 40)}-0{self.chance.randint(1, 9)}-01T00:00:00+01:00"
        letters = self.chance.choices("abc é😀\u3000'\"\\/%_*[]{}$`", k=self.chance.randint(1, 12))
        return "".join(letters) if self.once_in(2) else "x" * schema.get("maxLength", 10)

    def id(self) -> str:
        known = self.chance.choice(self.ids)
        return known[: self.chance.randint(6, len(known))] if self.once_in(4) else known

    def spoilt(self, given: Message) -> Message:
        """One thing wrong: a value of another kind or out of range, a name unknown, missing or in another case."""
        name = self.chance.choice([*given, "task_id", "x"])
        junk = self.chance.choice(JUNK)
        match self.chance.randrange(6):
            case 0:
                return {key: value for key, value in given.items() if key != name}
            case 1:
                return given | {name + self.chance.choice(["s", "_", "\n", "\x1b", "é"]): junk}
            case 2:
                return given | {name: [given.get(name)]}
            case 3 if isinstance(given.get(name), dict):
                return given | {name: given[name] | {self.chance.choice(["argv", "env", "cwd", "stdin", "x"]): junk}}
            case 4 if isinstance(given.get(name), list):
                return given | {name: [*given[name], junk]}
            case _:
                return given | {name: junk}

    def once_in(self, n: int) -> bool:
        return self.chance.randrange(n) == 0


GOOD: list[tuple[str, Message]] = [
    ("command", {"argv": ["true"]}),
    ("command", {"argv": ["true", "é", ""], "stdin": "x", "cwd": "/"}),
    ("echo", {"a": [1, {}]}),
    ("sleep", {"seconds": 0.01}),
]
JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, 2**63, -(2**63) - 1, 10**40),
    *(
        "",
        " ",
        "\0",
        "a\nb",
        "\x1b[31m",
        "\u2028",
        "\ufffe",
        "\U0010ffff",
        "x" * 5000,
        "٣",
        "1e3",
        "inf",
        "nan",
        "null",
    ),
    *("9999-12-31T23:59:60Z", "0000-00-00", "2027-02-30T00:00:00Z", "2027-01-01T00:00:00+99:99", "c1", "c" + "9" * 40),
    *("../../etc/passwd", "%s%n", "'; DROP TABLE tasks; --", "t" * 17, "{}", "[]"),
    *([], {}, [[]], [None], [1, "a", {}], {"": ""}, {"a" * 300: 1}, {"argv": "true"}, {"argv": ["true", "\0"]}),
    *({"argv": ["true"], "cwd": "\n"}, {"argv": ["true"], "env": {"A": "\0", "": "x"}}, ["x"] * 200, {"a": 1e308}),
]


def tools(server: Server) -> dict[str, Message]:
    return {tool["name"]: tool["inputSchema"] for tool in server.answer(server.post("tools/list"))["result"]["tools"]}


def check(answer: Message, sent: str) -> Message:
    """An answer in words or facts, for the model to read; its facts."""
    said = json.dumps(answer)
    assert not NOISE.search(said), f"{sent}: {said[:1000]}"
    if "error" in answer:
        assert answer["error"]["code"] == -32602, f"{sent}: {said[:1000]}"
        return {}
    result = answer["result"]
    assert result["content"][0]["text"], sent
    assert result.get("isError", False) == ("structuredContent" not in result), f"{sent}: {said[:1000]}"
    return result.get("structuredContent", {})


def test_any_arguments_are_answered_in_words(server: Server, place: Place) -> None:
    sys.stdout.write(f"MALFORMED_SEED={SEED}\n")
    maker = Maker(random.Random(SEED))
    schemas = tools(server)
    refused = 0
    for _ in range(0, CALLS, AT_ONCE):
        calls = [(name, maker.arguments(schemas[name])) for name in maker.chance.choices([*schemas], k=AT_ONCE)]
        posted = [(server.post_call(name, **given), f"{name}({given})") for name, given in calls]
        for request, sent in posted:
            facts = check(server.answer(request), sent)
            refused += not facts
            maker.ids = [*maker.ids[-20:], facts["id"]] if "attempt" in facts and "id" in facts else maker.ids
    assert CALLS / 5 < refused < CALLS * 4 / 5, f"{refused} of {CALLS} refused; both the good and the bad are met"
    assert server.call("get_stats")
    assert server.end() == 0
    check_books(place)


def check_books(place: Place) -> None:
    """The file is sound, and the counts and attempts say the same as the rows."""
    with closing(sqlite3.connect(place.state / "taskorch.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counted = db.execute("SELECT status, priority, tasks FROM counts WHERE tasks <> 0 ORDER BY 1, 2").fetchall()
        rows = db.execute("SELECT status, priority, count(*) FROM tasks GROUP BY 1, 2 ORDER BY 1, 2").fetchall()
        assert counted == rows
        starts = "SELECT attempt, (SELECT count(*) FROM attempts WHERE task = seq) FROM tasks"
        assert all(attempt == begun for attempt, begun in db.execute(starts))
