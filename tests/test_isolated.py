"""Handlers with a process of their own: they end like any other, can be killed, and leave nothing behind."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import isolated_kinds
import pytest
from clients import until
from isolated_kinds import ENDS
from pools import Payload, log_lines
from servers import LEGACY, Place, alive, lives, wait_for

from taskorch.domain.task import BLANK, Cancelled, Completed, Failed, Interrupted, Outcome, Reason, Task, with_values
from taskorch.storage.ids import new_id
from taskorch.work import handlers, output, supervised
from taskorch.work.attempt import Attempt, Ending, Remains
from taskorch.work.handlers import Handler, load_handlers
from taskorch.work.isolated import Isolated
from taskorch.work.telling import LINE_BYTES, PAUSE_SECONDS, Teller, hearing

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked for in /proc")

SECONDS = 30  # for what should take a moment, beside other tests
GRACE_SECONDS = 0.3


class Run:
    """One attempt of an isolated handler, and what it tells meanwhile."""

    def __init__(self, kind: Isolated, task: Task, adopted: bool = False) -> None:
        self.kind = kind
        self.told: list[Any] = []
        self._news = anyio.Event()
        self.attempt = Attempt(task, self._note, adopted)
        self.task = task
        self.outcome: Outcome | None = None
        self.left = anyio.Event()

    def _note(self, attempt: Attempt) -> None:
        self.told.append(attempt.latest)
        self._news.set()

    async def go(self) -> None:
        with anyio.CancelScope() as self.scope:
            self.outcome = await self.kind.run(self.attempt)
        self.left.set()

    async def pids(self) -> list[int]:
        """What the handler has told as the message of its progress."""
        while not self.told:
            await self._news.wait()
        return [int(pid) for pid in self.told[-1].message.split()]


class Bench:
    """Isolated handlers, run without a store."""

    def __init__(self, folder: Path, grace_seconds: float = GRACE_SECONDS) -> None:
        self.folder = folder / "state" / "output"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._make = partial(Isolated, folder=self.folder, grace_seconds=grace_seconds, start=folder)

    def kind(self, name: str, modules: str = "isolated_kinds") -> Isolated:
        registered = handlers._REGISTERED[f"test.isolated.{name}"]
        return self._make(registered.function, 3, modules=modules)

    def task(self, kind: str, payload: Payload, **fields: Any) -> Task:
        task_id = new_id()  # one of its own: processes are looked for by it on the whole machine
        fields = {"seq": 1, "attempt": 1, "timeout_seconds": 60.0} | fields
        return with_values(BLANK, id=task_id, kind=f"test.isolated.{kind}", payload=payload, **fields)

    async def run(self, kind: str, payload: Payload | None = None, **fields: Any) -> Outcome | None:
        run = Run(self.kind(kind), self.task(kind, payload or {}, **fields))
        with anyio.fail_after(SECONDS):
            await run.go()
        return run.outcome

    @asynccontextmanager
    async def running(self, kind: str, payload: Payload | None = None, **fields: Any) -> AsyncIterator[Run]:
        """The attempt runs beside the block, which has to make it end."""
        run = Run(self.kind(kind), self.task(kind, payload or {}, **fields))
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                group.start_soon(run.go)
                yield run
        assert not alive(run.task.id)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    return Bench(tmp_path)


# Inside as outside.


@pytest.mark.parametrize("end", ["text", "longest", "much too long", "error", "later", "exit"])
async def test_it_ends_in_the_same_words_as_in_the_server(bench: Bench, end: str) -> None:
    assert await bench.run("end", {"end": end}) == as_stored(await in_the_server(bench, end))


@pytest.mark.parametrize("end", ENDS)
async def test_every_end_is_told_as_it_is(bench: Bench, tmp_path: Path, end: str) -> None:
    outcome = await in_the_server(bench, end)
    with hearing(Attempt(BLANK, lambda attempt: None), tmp_path / "fifo") as heard:
        teller = Teller(str(tmp_path / "fifo"))
        async with anyio.create_task_group() as group:  # a pipe holds less than the longest line
            group.start_soon(heard.listen)
            await anyio.to_thread.run_sync(teller.end, outcome)
            group.cancel_scope.cancel()
        heard.take()
    assert heard.outcome == as_stored(outcome)


async def in_the_server(bench: Bench, end: str) -> Completed | Failed:
    outcome = await Handler(isolated_kinds.end).run(Attempt(bench.task("end", {"end": end}), lambda attempt: None))
    assert isinstance(outcome, Completed | Failed)
    return outcome


def as_stored(outcome: Completed | Failed) -> Outcome:
    """A result that has been JSON: no tuples, and names that are text."""
    return Completed(json.loads(outcome.text or ""), outcome.text) if isinstance(outcome, Completed) else outcome


async def test_payloads_and_results_have_their_types(bench: Bench) -> None:
    assert await bench.run("frame", {"width": 3}) == Completed({"width": 4, "height": 10}, '{"width":4,"height":10}')
    wrong = await bench.run("frame", {"width": "wide"})
    assert isinstance(wrong, Failed)
    assert (wrong.reason, wrong.retryable) == (Reason.INVALID_PAYLOAD, False)
    assert wrong.message.startswith("payload.width 'wide' is not allowed; it must be a whole number.")


async def test_it_sees_its_task_and_where_the_server_was_started(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", "é = \n")
    async with bench.running("where", {"a": [1, "é"]}, name="nightly", labels=("x", "y")) as run:
        pass
    found, task_id = run.outcome, run.task.id
    assert isinstance(found, Completed)
    pid = found.result.pop("pid")
    assert pid != os.getpid() and not lives(pid)
    assert found.result == {
        "cwd": str(tmp_path),
        "task": [task_id, "nightly", 1, ["x", "y"], {"a": [1, "é"]}],
        "environment": {"TASKORCH_TASK_ID": task_id, "MARK": "é = \n"},
        "stdin": "",
    }


async def test_the_last_progress_is_told_and_few_of_many(bench: Bench) -> None:
    run = Run(bench.kind("report"), bench.task("report", {}))
    began = anyio.current_time()
    with anyio.fail_after(SECONDS):
        await run.go()
    assert run.outcome == Failed(Reason.ERROR, "ValueError: that was all")
    last = run.told[-1]
    assert (last.value, last.total, last.message) == (199_999, 200_000, "counting")
    assert len(run.told) <= (anyio.current_time() - began) / PAUSE_SECONDS + 2


async def test_progress_is_told_while_it_works(bench: Bench) -> None:
    async with bench.running("wait") as run:
        [pid] = await run.pids()
        assert alive(run.task.id) == [pid]
        run.attempt.end(Ending.CANCEL)
    assert run.outcome == Cancelled()


# It can be ended.


async def test_code_that_computes_for_ever_is_cancelled_at_once(tmp_path: Path) -> None:
    bench, file = Bench(tmp_path, grace_seconds=60), tmp_path / "pid"
    async with bench.running("spin", {"file": str(file)}) as run:
        await until(lambda: file.exists() and file.read_text())
        pid = int(file.read_text())
        assert alive(run.task.id) == [pid]
        run.attempt.end(Ending.CANCEL)
    assert run.outcome == Cancelled()
    assert not lives(pid)


async def test_code_that_could_ask_and_does_not_is_killed_after_the_grace(bench: Bench) -> None:
    async with bench.running("deaf") as run:
        await run.pids()
        asked = anyio.current_time()
        run.attempt.end(Ending.CANCEL)
    assert run.outcome == Cancelled()
    assert anyio.current_time() - asked >= GRACE_SECONDS


async def test_synchronous_code_learns_that_it_should_end(tmp_path: Path) -> None:
    bench, file = Bench(tmp_path, grace_seconds=60), tmp_path / "file"
    async with bench.running("polite", {"file": str(file)}) as run:
        await run.pids()
        run.attempt.end(Ending.CANCEL)
    assert (run.outcome, file.read_text()) == (Cancelled(), "asked")


async def test_asynchronous_code_cleans_up_when_it_is_cancelled(tmp_path: Path) -> None:
    bench, file = Bench(tmp_path, grace_seconds=60), tmp_path / "file"
    async with bench.running("wait", {"file": str(file)}) as run:
        await run.pids()
        run.attempt.end(Ending.CANCEL)
    assert (run.outcome, file.read_text()) == (Cancelled(), "cleaned up")


async def test_it_ends_with_all_that_it_has_started(bench: Bench) -> None:
    async with bench.running("family", {"waits": True}) as run:
        pids = await run.pids()
        assert sorted(alive(run.task.id)) == sorted(pids) and len(pids) == 3
        run.attempt.end(Ending.CANCEL)
    assert run.outcome == Cancelled()
    assert not any(map(lives, pids))


async def test_what_it_leaves_running_ends_with_its_return(bench: Bench) -> None:
    async with bench.running("family") as run:
        pass  # `running` sees to it that nobody is left; what it told last may be too late to be heard
    assert isinstance(run.outcome, Completed)
    assert len(run.outcome.result) == 2
    assert await bench.run("thread") == Completed("left", '"left"')


@pytest.mark.parametrize("name", ["spin", "deaf", "wait"])
async def test_its_time_limit_ends_it(bench: Bench, tmp_path: Path, name: str) -> None:
    async with bench.running(name, {"file": str(tmp_path / "file")}, timeout_seconds=2.0) as run:
        pass
    assert isinstance(run.outcome, Failed)
    assert (run.outcome.reason, run.outcome.retryable) == (Reason.TIMEOUT, True)
    assert run.outcome.message.startswith("it ran longer than 2 s")


@pytest.mark.parametrize("name", ["deaf", "wait"])
async def test_a_server_that_stops_gives_it_back_in_time(tmp_path: Path, name: str) -> None:
    async with Bench(tmp_path, grace_seconds=60).running(name) as run:
        await run.pids()
        began = anyio.current_time()
        run.attempt.end(Ending.STOP)
    assert run.outcome == Interrupted("the server stopped")
    assert anyio.current_time() - began < 1.4


async def test_what_is_no_longer_ours_is_ended_and_not_settled(bench: Bench) -> None:
    async with bench.running("wait") as run:
        await run.pids()
        run.attempt.end(Ending.LOST)
    assert run.left.is_set() and run.outcome is None


async def test_what_is_cancelled_before_it_begins_is_never_started(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    run = Run(bench.kind("spin"), bench.task("spin", {"file": str(file)}))
    run.attempt.end(Ending.CANCEL)
    with anyio.fail_after(SECONDS):
        await run.go()
    assert (run.outcome, file.exists()) == (Cancelled("it had not begun"), False)


# It cannot take the server with it.


@pytest.mark.parametrize(
    ("by", "text", "code"),
    [
        ("segfault", "ended by signal 11 (SIGSEGV) before it returned", 139),
        ("kill", "ended by signal 9 (SIGKILL) before it returned; was the system out of memory?", 137),
        (3, "exit code 3 before it returned: last words", 3),
        (0, "exit code 0 before it returned", 0),
    ],
)
async def test_a_process_that_ends_fails_the_attempt_and_says_how(bench: Bench, by: Any, text: str, code: int) -> None:
    assert await bench.run("crash", {"by": by}) == Failed(Reason.EXIT_CODE, text, code)


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        ("no_such_module", "its handlers could not be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("json", "no module of TASKORCH_HANDLERS registers the kind 'test.isolated.end'"),
        ("broken_kinds", "its handlers could not be imported: SystemExit: 5"),
    ],
)
async def test_a_module_that_has_gone_bad_meanwhile_is_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: str, text: str
) -> None:
    (tmp_path / "broken_kinds.py").write_text("import sys\nsys.exit(5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    attempt = Attempt(bench.task("end", {"end": "null"}), lambda attempt: None)
    with anyio.fail_after(SECONDS):
        assert await bench.kind("end", modules).run(attempt) == Failed(Reason.SPAWN_ERROR, text)


async def test_a_supervisor_that_is_killed_takes_it_along(bench: Bench) -> None:
    async with bench.running("wait") as run:
        [pid] = await run.pids()
        shim = supervised.holder(bench.folder / run.task.id / "1")
        assert shim is not None
        os.kill(shim, signal.SIGKILL)
        await until(lambda: not lives(pid))
    assert isinstance(run.outcome, Failed)
    assert (run.outcome.reason, run.outcome.retryable) == (Reason.WORKER_LOST, True)


async def test_what_it_prints_goes_to_the_log_and_is_its_output(bench: Bench) -> None:
    with log_lines() as told:
        async with bench.running("loud") as run:
            pass
    assert run.outcome == Completed("quiet", '"quiet"')
    before = f"task {run.task.id} attempt 1 printed: "
    assert [line.removeprefix(before) for line in told.lines] == [
        '{"jsonrpc": "2.0", "id": 1, "result": "printed"}',
        "written",
        "to stderr",
        "by its child",
    ]
    assert output.read(bench.folder / run.task.id / "1").text.count("\n") == 4


# What a dead server leaves.


async def test_a_server_that_dies_takes_it_along_and_leaves_nothing_to_adopt(bench: Bench) -> None:
    async with bench.running("family", {"waits": True}) as run:
        pids = await run.pids()
        assert await run.kind.inspect(run.task) is Remains.ADOPTABLE, "while it runs it is not gone"
        assert not run.kind.has_ended(run.task), "its end is not on record for others"
        run.scope.cancel()  # as a death does, it closes the pipe to the supervisor
        await until(lambda: supervised.holder(bench.folder / run.task.id / "1") is None)
        assert not any(map(lives, pids))
        assert await run.kind.inspect(run.task) is Remains.NOTHING
    assert run.outcome is None


async def test_what_a_killed_supervisor_left_is_ended_by_whoever_inspects_it(bench: Bench) -> None:
    async with bench.running("family", {"waits": True}) as run:
        pids = await run.pids()
        shim = supervised.holder(bench.folder / run.task.id / "1")
        assert shim is not None
        run.scope.cancel()
        os.kill(shim, signal.SIGKILL)
        await until(lambda: not lives(pids[0]))  # by itself: nobody may ever come to inspect it
        assert lives(pids[1]) and lives(pids[2])
        assert await run.kind.inspect(run.task) is Remains.NOTHING
        assert not any(map(lives, pids))


async def test_whoever_adopts_it_ends_it(bench: Bench) -> None:
    async with bench.running("family", {"waits": True}) as run:
        pids = await run.pids()
        adopted = Run(run.kind, run.task, adopted=True)
        await adopted.go()
        assert adopted.outcome == Failed(Reason.WORKER_LOST, "the server that ran it died")
        assert not any(map(lives, pids))
        await run.left.wait()


async def test_what_had_not_begun_says_so(bench: Bench) -> None:
    bench.folder.mkdir()
    assert await bench.kind("wait").inspect(bench.task("wait", {})) is Remains.NEVER_BEGUN


# What is heard.


async def test_only_what_a_teller_tells_is_heard_and_only_its_first_end(tmp_path: Path) -> None:
    attempt = Attempt(with_values(BLANK, id=new_id(), attempt=1), lambda attempt: None)
    fifo = tmp_path / "fifo"
    with log_lines() as told, hearing(attempt, fifo) as heard:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        for line in (
            b"no JSON",
            b"[]",
            b'{"completed": 1}',
            b'{"progress": {"value": NaN}}',
            b'{"progress": {"value": "much"}}',
            b'{"failed": {"reason": "bad luck", "message": ""}}',
            b"\xff" * 100,
            b"[" * 10_000,
        ):
            os.write(fd, line + b"\n")
            heard.take()
        assert (heard.outcome, attempt.latest, len(told.lines)) == (None, None, 8)
        for _ in range(20):  # a line without an end is not kept
            os.write(fd, b"x" * 60_000)
            heard.take()
            assert len(heard._rest) <= LINE_BYTES
        os.write(fd, b"\n")
        teller = Teller(str(fifo))
        teller.end(Failed(Reason.ERROR, "é", retryable=False, retry_after_ms=5))
        teller.end(Completed(1, "1"))
        heard.take()
        os.close(fd)
        assert heard.outcome == Failed(Reason.ERROR, "é", retryable=False, retry_after_ms=5)
    assert not fifo.exists()


async def test_a_result_that_is_larger_than_any_handler_may_return_is_refused_here_too(tmp_path: Path) -> None:
    attempt = Attempt(BLANK, lambda attempt: None)
    with hearing(attempt, tmp_path / "fifo") as heard:
        fd = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        for piece in (b'{"completed":{"result":"', b"x" * 40_000, b"x" * 40_000, b'"}}\n'):
            os.write(fd, piece)
            heard.take()
        os.close(fd)
    assert heard.outcome == Failed(Reason.ERROR, "its result has 80002 bytes; at most 65536 are kept", retryable=False)


# As a server runs them.


def test_only_those_that_ask_for_it_have_a_process_of_their_own(tmp_path: Path) -> None:
    isolated = partial(Isolated, modules="", folder=tmp_path, grace_seconds=1.0, start=tmp_path)
    kinds = load_handlers("isolated_kinds", isolated=isolated)
    assert {name for name, kind in kinds.items() if not kind.in_process} == {
        name for name in kinds if name.startswith("test.isolated.")
    }
    assert kinds["test.isolated.crash"].max_attempts == 1
    assert all(kind.in_process for kind in load_handlers("isolated_kinds").values()), "but within that process"


@pytest.fixture
def served(place: Place) -> Place:
    """A place whose servers know the handlers of this file."""
    place.environment["TASKORCH_HANDLERS"] = "isolated_kinds"
    place.environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    return place


def test_kill_9_of_the_server_ends_it_within_2_seconds_and_it_runs_again(served: Place) -> None:
    server = served.start()
    task_id = server.create("test.isolated.wait")
    wait_for(lambda: server.get(task_id).get("progress"))
    [pid] = alive(task_id)
    server.kill()
    wait_for(lambda: not lives(pid), 2)
    assert not alive(task_id)
    second = served.start()
    wait_for(lambda: second.get(task_id)["attempt"] == 1 and second.get(task_id)["status"] == "waiting")
    second.call("update_task", task_id=task_id, delay_seconds=0)
    second.until_ended(task_id)
    task = second.get(task_id)
    assert (task["status"], task["result"], task["attempt"]) == ("completed", 2, 2)
    assert [attempt.get("reason") for attempt in task["attempts"]] == ["worker_lost", None]


def test_eight_at_once_are_eight_processes(served: Place) -> None:
    server = served.start(concurrency="8")
    ids = [server.create("test.isolated.deaf") for _ in range(8)]
    wait_for(lambda: all(server.get(task_id).get("progress") for task_id in ids))
    assert len({pid for task_id in ids for pid in alive(task_id)}) == 8
    for task_id in ids:
        server.call("cancel_task", task_id=task_id)
    server.until_ended(*ids)
    assert {server.get(task_id)["status"] for task_id in ids} == {"cancelled"}
    assert not [pid for task_id in ids for pid in alive(task_id)]


def test_an_orderly_stop_gives_it_back_and_leaves_nothing(served: Place) -> None:
    server = served.start()
    task_id = server.create("test.isolated.family", waits=True)
    wait_for(lambda: server.get(task_id).get("progress"))
    assert server.end() == 0
    row = served.row(task_id)
    assert (row["status"], row["attempt"], row["interruptions"]) == ("waiting", 1, 1)
    assert not alive(task_id)


@pytest.mark.parametrize("by", ["segfault", 3])
def test_the_server_lives_on_and_nothing_reaches_the_wire(served: Place, by: Any) -> None:
    server = served.start(LEGACY)
    loud, crash = server.create("test.isolated.loud"), server.create("test.isolated.crash", by=by)
    server.until_ended(loud, crash)
    assert server.get(loud)["result"] == "quiet"
    assert server.get(crash)["error"]["exit_code"] == (139 if by == "segfault" else by)
    for line in server.lines:
        assert json.loads(line)["jsonrpc"] == "2.0" and b"printed" not in line and b"written" not in line
    log = server.errors.read_text()
    assert f"task {loud} attempt 1 printed: written" in log
    text = server.call("get_task_output", task_id=loud)["text"]
    assert "by its child" in text and "\x1b" not in text
