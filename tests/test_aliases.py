"""What models write instead of the contract's arguments is understood where it can mean one thing only."""

import pytest
from clients import Facts, call
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client

from taskorch.calls.aliases import understood
from taskorch.domain.errors import InvalidInput
from taskorch.mcp.tools import TOOLS

GIT = {"payload": {"argv": ["git", "fetch"]}}
MEANT: list[tuple[str, Facts, Facts]] = [
    ("get_task", {"id": "x"}, {"task_id": "x"}),
    ("get_task", {"taskId": "x"}, {"task_id": "x"}),
    ("get_task", {"task": "x"}, {"task_id": "x"}),
    ("wait_for_tasks", {"ids": ["x"]}, {"task_ids": ["x"]}),
    ("wait_for_tasks", {"taskIds": ["x"], "timeoutSeconds": 5}, {"task_ids": ["x"], "timeout_seconds": 5}),
    ("wait_for_tasks", {"task_id": "x"}, {"task_ids": ["x"]}),
    ("wait_for_tasks", {"task_ids": "x"}, {"task_ids": ["x"]}),
    ("wait_for_tasks", {"task_ids": '["x", "y"]'}, {"task_ids": ["x", "y"]}),
    ("list_tasks", {"state": "failed"}, {"status": "failed"}),
    ("list_tasks", {"status": "failed", "text": "", "created_after": "", "cursor": ""}, {"status": "failed"}),
    ("list_tasks", {"state": "", "createdBefore": "", "kind": ""}, {}),
    ("get_task_output", {"task_id": "x", "grep": ""}, {"task_id": "x"}),
    ("create_task", {"title": "n", "tags": ["a"], "type": "echo"}, {"name": "n", "labels": ["a"], "kind": "echo"}),
    ("create_task", {"labels": "nightly"}, {"labels": ["nightly"]}),
    ("create_task", {"maxAttempts": 2} | GIT, {"max_attempts": 2} | GIT),
    ("create_task", {"command": ["git", "fetch"]}, GIT),
    ("create_task", {"argv": ["git", "fetch"], "kind": "command"}, GIT | {"kind": "command"}),
    ("create_task", {"cmd": ["git", "fetch"]}, GIT),
    ("create_task", {"command": "git", "args": ["fetch"]}, GIT),
    ("create_task", {"command": "make"}, {"payload": {"argv": ["make"]}}),
    ("create_task", {"payload": {"command": ["git", "fetch"]}}, GIT),
    ("create_task", {"payload": {"command": "git", "args": ["fetch"]}}, GIT),
    ("create_task", {"payload": '{"argv": ["git", "fetch"]}'}, GIT),
    (
        "create_task",
        {"argv": ["ls"], "cwd": "/", "env": {"A": "b"}, "stdin": "c"},
        {"payload": {"argv": ["ls"], "cwd": "/", "env": {"A": "b"}, "stdin": "c"}},
    ),
    ("create_task", {"payload": {"argv": ["ls"]}, "cwd": "/"}, {"payload": {"argv": ["ls"], "cwd": "/"}}),
    ("create_task", {"kind": "echo", "payload": '{"a": 1}'}, {"kind": "echo", "payload": {"a": 1}}),
]


@pytest.mark.parametrize(("tool", "written", "meant"), MEANT, ids=[str(written)[:60] for _, written, _ in MEANT])
def test_what_can_mean_one_thing_only_is_understood(tool: str, written: Facts, meant: Facts) -> None:
    assert understood(written, TOOLS[tool].arguments.model_fields) == meant


CONTRACT: list[tuple[str, Facts]] = [
    ("create_task", {"kind": "echo", "payload": {"command": "ls -l", "args": [1], "argv": 5}}),
    ("create_task", {"kind": "echo", "payload": {"a": '{"b": 1}'}, "labels": ["[1]", "a"]}),
    ("create_task", {"payload": {"argv": ["echo", '["x"]', "a | b"], "stdin": "{}"}, "name": "[1]"}),
    ("wait_for_tasks", {"task_ids": ["a", "b"]}),
    ("get_task", {"task_id": '["x"]'}),
    ("get_task", {"task_id": ""}),
    ("create_task", {"kind": "", "name": ""}),
    ("update_task", {"task_id": "x", "priority": ""}),
    ("get_stats", {}),
]


@pytest.mark.parametrize(("tool", "written"), CONTRACT)
def test_what_keeps_to_the_contract_is_left_alone(tool: str, written: Facts) -> None:
    assert understood(written, TOOLS[tool].arguments.model_fields) == written


WORDS = st.sampled_from(
    """id ids task task_id task_ids taskId tags labels title retries x
    kind payload command argv cmd args cwd env script workdir
    name timeout_ms filters arguments params task_name""".split()  # noqa: SIM905  (a list of so many takes a line each)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["[", '["a"]', '{"argv": ["ls"]}', "a b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(), inner, max_size=3),
)


@given(st.sampled_from(list(TOOLS)), st.dictionaries(WORDS | st.text(), JSON, max_size=6))
def test_whatever_is_written_it_is_understood_or_refused_once_and_for_all(tool: str, written: Facts) -> None:
    before = repr(written)
    try:
        meant = understood(written, TOOLS[tool].arguments.model_fields)
    except InvalidInput:
        return
    finally:
        assert repr(written) == before, "the caller's object was changed"
    assert understood(meant, TOOLS[tool].arguments.model_fields) == meant, "once is enough"


async def test_a_model_that_writes_the_usual_names_gets_there_at_once(client: Client) -> None:
    made = await call(client, "create_task", command=["echo", "hello"], title="greeting", tags=["a"], waitSeconds=20)
    assert made.facts["status"] == "completed" and made.facts["name"] == "greeting"
    assert (await call(client, "wait_for_tasks", id=made.facts["id"])).facts["done"]
    assert (await call(client, "get_task_output", taskId="greeting")).facts["text"] == "hello\n"


async def test_a_model_that_must_fill_in_every_argument_can_list_and_read(client: Client) -> None:
    """Hosts with strict schemas take away what is optional: every argument becomes required, and none may be null."""
    await call(client, "create_task", command=["echo", "hello"], name="greeting", wait_seconds=20)
    empty = dict.fromkeys(("kind", "label", "text", "created_after", "created_before", "cursor"), "")
    listed = await call(client, "list_tasks", status="completed", priority="medium", limit=20, **empty)
    assert [row["name"] for row in listed.facts["tasks"]] == ["greeting"]
    read = await call(client, "get_task_output", task_id="greeting", attempt=1, tail_bytes=2048, offset=0, grep="")
    assert read.facts["text"] == "hello\n"
