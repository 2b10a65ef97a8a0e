"""The kind `tool` on real servers over stdio: what becomes of a call, of a lost connection, of a bad server."""

import base64
from pathlib import Path
from typing import Any

import anyio
import pytest
from pools import Pool
from remotes import TOKEN, Peer, add, called, calling
from servers import lives

from taskorch.domain.errors import InvalidInput
from taskorch.domain.task import Error, Progress, Reason, Status, Task
from taskorch.work.connections import Connections
from taskorch.work.mcp_servers import Stdio
from taskorch.work.policy import NotAllowed
from taskorch.work.remote import RemoteTool
from taskorch.work.remote_answer import Answer, error_of, value_of


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def failed(task: Task, reason: Reason, *parts: str) -> Error:
    assert task.status is Status.FAILED and task.error is not None, task
    assert task.error.reason is reason, task.error
    for part in parts:
        assert part in task.error.message
    return task.error


# What a call comes to.


async def test_the_text_of_an_answer_is_the_result_of_its_task(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "echo", text="é 1")
    assert (task.status, task.result, task.attempt) == (Status.COMPLETED, "é 1", 1)


async def test_structured_content_goes_before_text(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "structured")
    assert task.result["pid"] == peer.pids[0]


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (Answer([]), None),
        (Answer([], structured={}), {}),
        (Answer([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), ["a", "b"]),
        (Answer([{"type": "resource_link", "uri": "x:y"}]), [{"type": "resource_link", "uri": "x:y"}]),
        (
            Answer([{"type": "audio", "data": "QQ==", "mimeType": "a/b"}]),
            [{"type": "audio", "data": "QQ==", "mimeType": "a/b"}],
        ),
    ],
    ids=["nothing", "empty structure", "several texts", "a link", "a small blob"],
)
def test_every_form_of_content_is_kept(answer: Answer, result: Any) -> None:
    assert value_of(answer) == result


@pytest.mark.parametrize("size", [4_000, 4_001, 4_002])
def test_long_binary_content_is_told_by_its_size(size: int) -> None:
    data = base64.b64encode(bytes(size)).decode()
    image = {"type": "image", "data": data, "mimeType": "image/png"}
    inner = {"uri": "x:y", "blob": data, "mimeType": "application/zip"}
    assert value_of(Answer([image, {"type": "resource", "resource": inner}])) == [
        {"type": "image", "mimeType": "image/png", "bytes": size},
        {"type": "resource", "resource": {"uri": "x:y", "mimeType": "application/zip", "bytes": size}},
    ]


async def test_an_answer_that_is_an_error_fails_the_task_with_its_text(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "fail", text="no such repository")
        assert failed(task, Reason.ERROR).message == "no such repository"
        long = await called(pool, "fail", text="x" * 100_000)
        assert len(failed(long, Reason.ERROR).message) == 4_000


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer([], is_error=True), "said nothing"),
        (Answer([{"type": "text", "text": " \n"}], is_error=True), "said nothing"),
        (Answer([], {"code": 5}, is_error=True), '{"code":5}'),
        (
            Answer([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}], is_error=True),
            "a\nb",
        ),
    ],
    ids=["nothing", "blanks", "structure alone", "texts beside others"],
)
def test_an_error_is_told_by_what_there_is(answer: Answer, text: str) -> None:
    assert text in error_of(answer)


async def test_an_answer_too_large_to_keep_fails_clearly_and_is_not_asked_for_again(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "huge", bytes=3_000_000, max_attempts=3)
    failed(task, Reason.ERROR, "3000002 bytes", "65536")
    assert task.attempt == 1


async def test_the_progress_of_a_tool_is_that_of_its_task(pool: Pool, peer: Peer, tmp_path: Path) -> None:
    async with calling(pool, peer=peer):
        task = await add(pool, "wait", until=str(tmp_path / "go"))
        await pool.seen(task, lambda task: task.progress == Progress(1, 2, "waiting"))
        (tmp_path / "go").touch()
        assert (await pool.ended(task)).result == "waited"


async def test_an_answer_that_is_no_answer_fails_the_task(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        failed(await called(pool, "complain"), Reason.ERROR, "peer: its answer is not what it should be")
        failed(await called(pool, "surrogate"), Reason.ERROR)
        assert (await called(pool, "echo", text="goes on")).result == "goes on"


async def test_a_question_to_a_person_is_declined(pool: Pool, peer: Peer) -> None:
    """Nobody sits at a task; what the tool makes of that is its affair."""
    async with calling(pool, peer=peer):
        assert (await called(pool, "ask")).result == "asked"


# Who is meant.


async def test_an_unknown_server_is_refused_when_the_task_is_created(pool: Pool, peer: Peer) -> None:
    kind = RemoteTool(Connections({"files": peer.entry, "memory": peer.entry}, "0", {}))
    with pytest.raises(
        InvalidInput, match=r"server 'file' is not known here\. Did you mean 'files'\? Use one of: files, memory\."
    ):
        kind.check({"server": "file", "tool": "read"})
    with pytest.raises(
        InvalidInput, match=r"tool is required; add it\. The payload is \{.server.: .files.\|.memory., .tool.: string, "
    ):
        kind.check({"server": "files"})
    with pytest.raises(InvalidInput, match=r"Unknown argument 'payload\.args'\. Did you mean 'arguments'"):
        kind.check({"server": "files", "tool": "read", "args": {}})
    with pytest.raises(InvalidInput, match=r"payload\.arguments .* must be an object"):
        kind.check({"server": "files", "tool": "read", "arguments": "path"})
    later = {"$result": "t0123456789abcdef"}
    with pytest.raises(InvalidInput, match=r"server 'none' is not known here"):
        kind.check({"server": "none", "tool": "read", "arguments": {"path": later}})
    for arguments in (later, {"path": later}):
        kind.check({"server": "files", "tool": "read", "arguments": arguments})


def test_a_tool_that_the_entry_does_not_allow_is_refused(peer: Peer) -> None:
    kind = RemoteTool(Connections({"files": peer.entry.model_copy(update={"tools": ["echo"]})}, "0", {}))
    kind.check({"server": "files", "tool": "echo"})
    with pytest.raises(NotAllowed, match=r"payload\.tool 'change' is not allowed: .* may call echo\. Ask the user"):
        kind.check({"server": "files", "tool": "change"})


async def test_a_tool_that_is_no_longer_allowed_when_it_starts_fails_for_good(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer.entry.model_copy(update={"tools": ["echo"]})):
        assert (await called(pool, "echo", text="1")).result == "1"
        task = await called(pool, "change", max_attempts=3)
    failed(task, Reason.NOT_ALLOWED, "'change'")
    assert task.attempt == 1 and "changed" not in peer.lines


async def test_an_unknown_tool_is_refused_with_the_one_that_was_meant(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "ecoh", max_attempts=3)
    failed(task, Reason.INVALID_PAYLOAD, "'ecoh'", "Did you mean 'echo'?", "It has: ask, blocks, change")
    assert task.attempt == 1


async def test_a_tool_that_has_come_since_is_found(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        await called(pool, "grow")
        assert (await called(pool, "grown")).result == "grown"


async def test_a_tool_that_the_server_says_has_gone_is_not_called(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        await called(pool, "shrink")
        failed(await called(pool, "change"), Reason.INVALID_PAYLOAD, "has no such tool")


async def test_what_the_server_refuses_for_good_is_not_tried_again(pool: Pool, peer: Peer) -> None:
    """Its list may be older than it is; then it says itself that it has no such tool."""
    async with calling(pool, peer=peer) as connections:
        await called(pool, "echo")
        session = connections._open["peer"].session  # pyright: ignore[reportPrivateUsage]
        assert session is not None
        session._tools = {"removed": False}  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        task = await called(pool, "removed", max_attempts=3)
    failed(task, Reason.ERROR, "peer: Unknown tool: removed")
    assert task.attempt == 1


async def test_the_kind_tells_what_it_takes(peer: Peer) -> None:
    kind = RemoteTool(Connections({"files": peer.entry}, "0", {}))
    schema = kind.payload_schema()
    assert schema["required"] == ["server", "tool"] and not schema["additionalProperties"]
    assert schema["properties"]["server"]["enum"] == ["files"]
    assert kind.description


# Connections.


async def test_a_server_finds_its_own_variables_and_no_others(
    pool: Pool, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET", TOKEN)
    async with calling(pool, peer=peer):
        found = (await called(pool, "structured")).result["env"]
    assert found["PEER_SECRET"] == TOKEN and "PATH" in found and "AWS_SECRET" not in found


async def test_calls_at_once_share_one_connection(pool: Pool, peer: Peer, tmp_path: Path) -> None:
    async with calling(pool, slots=3, peer=peer):
        tasks = [await add(pool, "wait", tag=tag, until=str(tmp_path / tag)) for tag in "abc"]
        for tag in "abc":
            await peer.noted(f"waiting {tag}")
        for tag in "cab":
            (tmp_path / tag).touch()
        assert [(await pool.ended(task)).result for task in tasks] == ["waited a", "waited b", "waited c"]
    assert len(peer.pids) == 1


async def test_each_server_has_a_connection_of_its_own(pool: Pool, peer: Peer, tmp_path: Path) -> None:
    other = Peer(tmp_path, "other")
    async with calling(pool, peer=peer, other=other):
        first, second = await called(pool, "structured"), await called(pool, "structured", "other")
    assert (first.result["pid"], second.result["pid"]) == (*peer.pids, *other.pids)


async def test_a_server_is_not_started_before_its_first_call(pool: Pool, peer: Peer, tmp_path: Path) -> None:
    other = Peer(tmp_path, "other")
    async with calling(pool, peer=peer, other=other):
        await called(pool, "echo", "other")
    assert (peer.pids, len(other.pids)) == ([], 1)


async def test_an_idle_connection_is_closed_and_the_next_call_opens_another(
    pool: Pool, peer: Peer, tmp_path: Path
) -> None:
    async with calling(pool, peer=peer, idle_seconds=0.05):
        task = await add(pool, "wait", until=str(tmp_path / "go"))
        await peer.noted("waiting")
        await anyio.sleep(0.1)  # longer than an idle one would be kept
        (tmp_path / "go").touch()
        assert (await pool.ended(task)).result == "waited"
        await peer.noted("end of input")
        await peer.gone()
        await called(pool, "echo")
    assert len(peer.pids) == 2


async def test_stopping_ends_every_server_however_stubborn_it_is(pool: Pool, peer: Peer, tmp_path: Path) -> None:
    deaf = Peer(tmp_path, "deaf", "deaf")
    async with calling(pool, peer=peer, deaf=deaf):
        await called(pool, "echo")
        await called(pool, "echo", "deaf")
        began = anyio.current_time()
    assert anyio.current_time() - began < 1.3, "of the 1.5 s that a server has to leave"
    assert not any(map(lives, peer.pids + deaf.pids))


# When a connection is lost.


async def test_a_call_that_comes_as_the_connection_ends_gets_another(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer) as connections:

        async def itself(session: Any) -> Any:
            return session

        first = await connections.use("peer", itself)
        first.ended.set()
        assert await connections.use("peer", itself) is not first
        assert await connections.use("peer", itself) is not first


async def test_a_server_that_dies_in_a_call_fails_the_task_and_is_started_for_the_next(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "crash")
        error = failed(
            task, Reason.ERROR, "peer: ended (exit code 7): fatal error: ", "; crash may have had its effect"
        )
        assert "fatal error: the disk is on fire" in error.message and TOKEN not in error.message
        assert (await called(pool, "structured")).result["pid"] == peer.pids[1]


async def test_others_on_a_lost_connection_hear_of_it(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        other = await add(pool, "wait", tag="on")
        await peer.noted("waiting on")
        await called(pool, "crash")
        failed(await pool.ended(other), Reason.ERROR, "exit code 7")


async def test_a_call_that_may_be_repeated_is_repeated_over_a_new_connection(
    pool: Pool, peer: Peer, tmp_path: Path
) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "crash_once", flag=str(tmp_path / "flag"))
    assert (task.status, task.result, task.attempt) == (Status.COMPLETED, "survived", 1)
    assert len(peer.pids) == 2


async def test_the_minute_for_another_connection_begins_when_one_is_lost(
    pool: Pool, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.work.remote.CONNECT_SECONDS", 1)
    bad = Peer(tmp_path, "bad", "exit")
    async with calling(pool, peer=peer, bad=bad, pauses=(0.01, 5)):
        task = await called(pool, "crash_once", flag=str(tmp_path / "flag"), after=1.2)
        assert (task.status, task.result) == (Status.COMPLETED, "survived")
        failed(await called(pool, "echo", "bad"), Reason.SPAWN_ERROR)
    assert len(bad.pids) == 2, "the third would have come later than that"


async def test_a_call_that_may_have_had_its_effect_is_repeated_only_when_the_task_says_so(
    pool: Pool, peer: Peer
) -> None:
    async with calling(pool, peer=peer):
        await called(pool, "crash")
        assert peer.lines.count("crashing") == 1
        task = await add(pool, "crash", max_attempts=2)
        await pool.backing_off(task)
        await pool.pass_backoff()
        assert (await pool.ended(task)).attempt == 2
    assert peer.lines.count("crashing") == 3


# Ending a call.


async def test_a_task_that_takes_too_long_is_ended_and_its_server_told(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await called(pool, "wait", timeout_seconds=0.5)
        failed(task, Reason.TIMEOUT, "longer than 0.5 s", "the server peer had not answered")
        await peer.noted("cancelled")
        assert (await called(pool, "echo", text="same")).result == "same"
    assert len(peer.pids) == 1


async def test_cancelling_a_task_tells_its_server(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await add(pool, "wait")
        await peer.noted("waiting")
        await pool.store.cancel(task.id, "enough", "test")
        ended = await pool.ended(task)
        assert ended.status is Status.CANCELLED and ended.error is not None
        assert ended.error.message == (
            "cancelled by test: enough; the server peer was told to stop; what the tool had done by then stays done"
        )
        await peer.noted("cancelled")
    assert len(peer.pids) == 1


async def test_cancelling_does_not_wait_for_a_server_that_is_not_connected_yet(pool: Pool, tmp_path: Path) -> None:
    silent = Peer(tmp_path, "silent", "silent")
    async with calling(pool, silent=silent):
        task = await add(pool, "echo", "silent")
        await pool.seen(task, lambda task: task.status is Status.WORKING)
        await pool.store.cancel(task.id, "", "test")
        ended = await pool.ended(task)
        assert ended.error is not None and ended.error.message == "cancelled by test; it had not been called"


async def test_stopping_gives_back_a_call_that_may_be_repeated(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await add(pool, "wait_safely")
        await peer.noted("waiting")
    found = await pool.get(task)
    assert (found.status, found.interruptions) == (Status.WAITING, 1)


async def test_stopping_gives_back_what_had_not_been_called(pool: Pool, tmp_path: Path) -> None:
    silent = Peer(tmp_path, "silent", "silent")
    async with calling(pool, silent=silent):
        task = await add(pool, "change", "silent")
        await pool.seen(task, lambda task: task.status is Status.WORKING)
    found = await pool.get(task)
    assert (found.status, found.interruptions) == (Status.WAITING, 1)


async def test_stopping_fails_a_call_that_may_have_had_its_effect(pool: Pool, peer: Peer) -> None:
    async with calling(pool, peer=peer):
        task = await add(pool, "wait")
        more = await add(pool, "wait", max_attempts=2)
        await peer.noted("waiting", 2)
    failed(await pool.get(task), Reason.INTERRUPTED, "the server stopped while wait ran; it may have had its effect")
    found = await pool.get(more)
    assert (found.status, found.attempt, found.interruptions) == (Status.WAITING, 1, 0), "by a start that it has"


async def test_stopping_waits_a_moment_for_a_call_to_end(pool: Pool, peer: Peer, tmp_path: Path) -> None:
    async with calling(pool, peer=peer):
        task = await add(pool, "wait", until=str(tmp_path / "go"))
        await peer.noted("waiting")
        (tmp_path / "go").touch()
    assert (await pool.get(task)).result == "waited"


# Bad servers.


async def test_a_server_that_ends_at_once_is_tried_again_and_its_last_words_told(pool: Pool, tmp_path: Path) -> None:
    bad = Peer(tmp_path, "bad", "exit")
    async with calling(pool, bad=bad):
        task = await called(pool, "echo", "bad")
    failed(task, Reason.SPAWN_ERROR, "bad: ended (exit code 1): ImportError: no module named nothing")
    assert (len(bad.pids), task.attempt) == (3, 1)


async def test_a_connection_that_could_not_be_made_leaves_the_task_its_other_starts(pool: Pool, tmp_path: Path) -> None:
    bad = Peer(tmp_path, "bad", "exit").entry
    async with calling(pool, bad=bad, pauses=()):
        task = await add(pool, "change", "bad", max_attempts=2)
        await pool.backing_off(task)
        bad.args[-1] = "serve"
        await pool.pass_backoff()
        assert (await pool.ended(task)).result == "changed"


async def test_a_server_that_never_answers_is_given_up(pool: Pool, tmp_path: Path) -> None:
    silent = Peer(tmp_path, "silent", "silent")
    async with calling(pool, silent=silent, connect_seconds=0.3, pauses=()):
        failed(await called(pool, "echo", "silent"), Reason.SPAWN_ERROR, "silent: has not answered within 0.3 s")
        await silent.gone()


async def test_a_server_that_speaks_no_mcp_is_given_up_and_quoted(pool: Pool, tmp_path: Path) -> None:
    bad = Peer(tmp_path, "bad", "garbage")
    async with calling(pool, bad=bad, connect_seconds=0.5, pauses=()):
        failed(await called(pool, "echo", "bad"), Reason.SPAWN_ERROR, "within 0.5 s: this is no protocol")


async def test_a_program_that_only_floods_is_given_up_at_once(pool: Pool, tmp_path: Path) -> None:
    async with calling(pool, yes=Peer(tmp_path, "yes", "flood"), pauses=()):
        failed(await called(pool, "echo", "yes"), Reason.SPAWN_ERROR, "yes: writes what is no MCP: y")


async def test_a_banner_on_stdout_does_no_harm(pool: Pool, tmp_path: Path) -> None:
    async with calling(pool, peer=Peer(tmp_path, mode="banner")):
        assert (await called(pool, "echo", text="1")).result == "1"


async def test_a_program_that_is_not_there_is_not_tried_again(pool: Pool, tmp_path: Path) -> None:
    missing = Stdio(command="no-such-program", env={"PATH": str(tmp_path)})
    nowhere = Stdio(command="/bin/sh", cwd=str(tmp_path / "nowhere"))
    async with calling(pool, missing=missing, nowhere=nowhere, pauses=(30,)):
        task = await called(pool, "echo", "missing", max_attempts=3)
        failed(task, Reason.SPAWN_ERROR, "missing: cannot be started: No such file or directory: no-such-program")
        failed(await called(pool, "echo", "nowhere"), Reason.SPAWN_ERROR, "nowhere")


async def test_a_message_without_an_end_is_not_kept(pool: Pool, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskorch.work.program.LINE_BYTES", 100_000)
    async with calling(pool, peer=peer):
        failed(await called(pool, "huge", bytes=1_000_000), Reason.ERROR, "wrote a message of more than")
        assert (await called(pool, "echo", text="1")).result == "1"
