"""The server as a host meets it: a process with three pipes. JSON lines, signals, kill -9, two servers at once."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from servers import ENVELOPE, HELLO, LEGACY, MODERN, SECONDS, Place, Server, alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


def test_a_server_may_open_the_files_that_many_commands_take_whatever_its_host_has_left_it(place: Place) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        server = place.start(concurrency="100")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    sleepers = [server.command("sleep", "60") for _ in range(100)]
    server.until_working(*sleepers)
    wait_for(lambda: all(map(alive, sleepers)))
    server.end()


# The end of stdin.


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_requests_with_the_end_of_stdin_right_behind_them_are_all_answered(era: str, place: Place) -> None:
    server = place.start(era)
    creations = [server.post_call("create_task", kind="echo", payload={"n": n}) for n in range(20)]
    listing = server.post("tools/list")
    server.hang_up()
    assert server.left(SECONDS) == 0
    ids = {server.facts(request)["id"] for request in creations}
    assert ids == place.rows().keys()
    assert len(ids) == 20
    assert server.answer(listing)["result"]["tools"]


def test_a_handler_cut_short_by_the_end_of_stdin_runs_again_at_the_next_start(place: Place) -> None:
    first = place.start()
    task_id = first.create("hold")
    first.until_working(task_id)
    assert first.end() == 0
    row = place.row(task_id)
    assert (row["status"], row["attempt"], row["interruptions"], row["owner"]) == ("waiting", 1, 1, None)
    second = place.start()
    second.until_ended(task_id)
    task = second.get(task_id)
    assert (task["status"], task["result"], task["attempt"]) == ("completed", 2, 2)
    assert [attempt["outcome"] for attempt in task["attempts"]] == ["interrupted", "completed"]


def test_a_command_outlives_its_server_and_the_next_one_records_its_end(place: Place) -> None:
    fifo = place.fifo("fifo")
    first = place.start()
    task_id = first.command("cat", fifo.path)
    wait_for(lambda: alive(task_id))
    assert first.end() == 0
    assert place.row(task_id)["status"] == "working"
    assert alive(task_id)
    second = place.start()
    wait_for(lambda: any(event["event"] == "adopted" for event in second.get(task_id).get("events", [])))
    fifo.release("said after the adoption")
    second.until_ended(task_id)
    task = second.get(task_id)
    assert (task["status"], task["attempt"], task["result"]["exit_code"]) == ("completed", 1, 0)
    assert second.call("get_task_output", task_id=task_id)["text"] == "said after the adoption"


def test_a_stop_command_is_gone_with_its_whole_tree_when_its_server_is(place: Place) -> None:
    server = place.start()
    tree = "trap '' TERM; sleep 60 & setsid sleep 60 & (setsid sh -c 'sleep 60 &') ; wait"
    task_id = server.command("sh", "-c", tree, on_server_exit="stop")
    wait_for(lambda: len(alive(task_id)) >= 4)
    assert server.end() == 0
    assert alive(task_id) == []
    row = place.row(task_id)
    assert (row["status"], json.loads(row["error"])["reason"]) == ("failed", "interrupted")


def test_a_hundred_running_tasks_do_not_delay_the_end(place: Place) -> None:
    server = place.start(concurrency="100")
    deaf = ["sh", "-c", "trap '' TERM; sleep 60 & wait"]
    requests = [server.post_call("create_task", kind="hold") for _ in range(60)]
    stop = [server.post_call("create_task", payload={"argv": deaf}, on_server_exit="stop") for _ in range(20)]
    survive = [server.post_call("create_task", payload={"argv": ["sleep", "60"]}) for _ in range(20)]
    waiting = [server.post_call("create_task", kind="hold") for _ in range(20)]
    stopped = {server.facts(request)["id"] for request in stop}
    survivors = {server.facts(request)["id"] for request in survive}
    held, queued = ({server.facts(request)["id"] for request in some} for some in (requests, waiting))
    wait_for(lambda: server.call("list_tasks", limit=1)["counts"]["working"] == 100)
    wait_for(lambda: all(map(alive, stopped | survivors)), 2 * SECONDS)
    assert server.end() == 0
    rows = place.rows()
    assert {(rows[i]["status"], rows[i]["attempt"], rows[i]["interruptions"]) for i in held} == {("waiting", 1, 1)}
    assert {(rows[i]["status"], rows[i]["attempt"], rows[i]["interruptions"]) for i in queued} == {("waiting", 0, 0)}
    assert {rows[i]["status"] for i in stopped} == {"failed"}
    assert {rows[i]["status"] for i in survivors} == {"working"}
    assert not any(map(alive, stopped))
    assert all(map(alive, survivors))


def test_a_handler_stuck_in_synchronous_code_does_not_keep_the_process(place: Place) -> None:
    server = place.start()
    stuck, held = server.create("stuck"), server.create("hold")
    server.until_working(stuck, held)
    assert server.end() == 0
    assert place.row(held)["status"] == "waiting"
    assert place.row(stuck)["status"] == "working"  # the next server finds its owner dead


def test_a_host_that_never_reads_stderr_does_not_keep_the_process(place: Place) -> None:
    read, write = os.pipe()
    server = place.start(stderr=write)
    os.close(write)
    server.until_working(server.create("flood"))
    os.read(read, 1)  # it is full, or will be
    code = server.end()
    os.close(read)
    assert code == 0


def test_a_server_whose_stdout_is_closed_leaves_although_stdin_is_open(place: Place) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "taskorch"],
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.DEVNULL,
        env=place.environment,
        cwd=place.work,
        bufsize=0,
    )
    os.close(write)
    try:
        assert process.stdin
        process.stdin.write(
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}).encode() + b"\n"
        )
        assert os.read(read, 1)  # it serves
        os.close(read)
        process.stdin.write(b'{"jsonrpc": "2.0", "id": 2, "method": "tools/list"}\n')
        assert process.wait(1.0) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


# Signals.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_although_stdin_is_open(number: signal.Signals, code: int, place: Place) -> None:
    fifo = place.fifo("fifo")
    server = place.start()
    held, command = server.create("hold"), server.command("cat", fifo.path)
    server.until_working(held)
    wait_for(lambda: alive(command))
    os.killpg(server.process.pid, number)  # as a terminal does, and the SDK's client
    assert server.left() == code
    row = place.row(held)
    assert (row["status"], row["interruptions"], row["owner"]) == ("waiting", 1, None)
    assert place.row(command)["status"] == "working"
    assert alive(command)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_at_once(number: signal.Signals, code: int, place: Place) -> None:
    server = place.start()
    stuck = server.create("stuck")
    server.until_working(stuck)
    wait = server.post_call("wait_for_tasks", task_ids=[stuck])
    server.call("get_stats")  # the wait was read before
    server.process.send_signal(number)
    assert server.answer(wait)["error"]  # the first signal was heard
    server.process.send_signal(number)
    assert server.left(0.7) == code  # the stuck handler alone would keep it for 1.4 s


# kill -9.


def test_after_kill_9_running_work_runs_again_and_scheduled_work_starts_on_time(place: Place) -> None:
    first = place.start()
    held = first.create("hold")
    scheduled = first.call("create_task", kind="echo", payload={"a": 1}, delay_seconds=2.5)["id"]
    first.until_working(held)
    first.kill()
    row = place.row(held)
    assert (row["status"], row["attempt"]) == ("working", 1)
    second = place.start()
    second.until_ended(held, scheduled)
    task = second.get(held)
    assert (task["status"], task["result"], task["attempt"]) == ("completed", 2, 2)
    assert [attempt.get("reason") for attempt in task["attempts"]] == ["worker_lost", None]
    row = place.row(scheduled)
    assert (row["status"], row["attempt"]) == ("completed", 1)
    assert 0 <= row["started_at"] - row["run_at"] < 1000


def test_no_acknowledged_task_is_lost_when_the_server_is_killed(place: Place) -> None:
    record = place.folder / "record"
    record.touch()
    moment = random.randint(1, 49)
    first = place.start()
    requests = [first.post_call("create_task", kind="note", payload={"file": str(record)}) for _ in range(50)]
    wait_for(lambda: len(first.answered()) >= moment)
    first.kill()
    acknowledged = {first.facts(request)["id"] for request in requests if request in first.answered()}
    second = place.start()
    assert len(acknowledged) >= moment - 1  # one of them was the answer to initialize
    assert acknowledged <= place.rows().keys(), f"killed after {moment} answers"
    wait_for(lambda: second.call("list_tasks")["counts"]["completed"] == len(place.rows()))
    runs = Counter(record.read_text().split())
    assert runs.keys() == place.rows().keys()
    for task_id, row in place.rows().items():
        ends = [attempt for attempt in second.get(task_id)["attempts"] if attempt["outcome"] == "completed"]
        assert len(ends) == 1
        assert 1 <= runs[task_id] <= row["attempt"] <= 2


# Two servers on one state folder.


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two servers, as a host starts them; only the second runs commands."""
    place = Place(tmp_path_factory.mktemp("shared"))
    place.start(LEGACY, allow_commands="")
    place.start(MODERN)
    yield place
    place.close()


def test_two_servers_show_the_same_tasks_and_run_each_once(shared: Place) -> None:
    record = shared.folder / "record"
    posts = [
        (server, server.post_call("create_task", kind="note", payload={"file": str(record)}, labels=["both"]))
        for _ in range(20)
        for server in shared.servers
    ]
    ids = {server.facts(request)["id"] for server, request in posts}
    for server in shared.servers:
        server.until_ended(*ids)
        listed = server.call("list_tasks", label="both", limit=100)
        assert {task["id"] for task in listed["tasks"]} == ids
        assert listed["counts"]["completed"] == 40
    assert Counter(record.read_text().split()) == dict.fromkeys(ids, 1)
    owners = {attempt["server"] for task_id in ids for attempt in shared.servers[0].get(task_id)["attempts"]}
    assert len(owners) == 2


def test_a_wait_ends_when_the_other_server_has_finished_the_task(shared: Place) -> None:
    ours, theirs = shared.servers
    fifo = shared.fifo("wait")
    task_id = theirs.command("cat", fifo.path)
    wait_for(lambda: alive(task_id))
    wait = ours.post_call("wait_for_tasks", task_ids=[task_id])
    fifo.release("done")
    facts = ours.facts(wait)
    assert facts["done"]
    assert (facts["tasks"][0]["status"], facts["tasks"][0]["output_tail"]) == ("completed", "done")


def test_a_task_can_be_cancelled_through_the_server_that_does_not_run_it(shared: Place) -> None:
    ours, theirs = shared.servers
    task_id = theirs.command("cat", shared.fifo("cancel").path)
    wait_for(lambda: alive(task_id))
    assert ours.call("cancel_task", task_id=task_id, reason="enough")["phase"] == "cancelling"
    ours.until_ended(task_id)
    assert ours.get(task_id)["status"] == "cancelled"
    assert alive(task_id) == []


def test_the_tasks_of_a_killed_server_are_taken_over_by_the_other(place: Place) -> None:
    fifo = place.fifo("fifo")
    theirs = place.start()
    held, command = theirs.create("hold"), theirs.command("cat", fifo.path)
    theirs.until_working(held)
    wait_for(lambda: alive(command))
    ours = place.start(MODERN)
    assert ours.get(held)["attempts"][0]["server"] == ours.get(command)["attempts"][0]["server"]
    theirs.kill()
    wait_for(lambda: ours.get(held)["attempts"][0].get("reason") == "worker_lost")
    wait_for(lambda: any(event["event"] == "adopted" for event in ours.get(command).get("events", [])))
    fifo.release("to the heir")
    ours.until_ended(held, command)
    task = ours.get(held)
    assert (task["status"], task["result"]) == ("completed", 2)
    assert [attempt["outcome"] for attempt in ours.get(command)["attempts"]] == ["completed"]
    assert ours.call("get_task_output", task_id=command)["text"] == "to the heir"


# What comes out where.


def test_stdout_carries_the_protocol_and_nothing_else_and_the_working_folder_stays_empty(place: Place) -> None:
    server = place.start(log_level="DEBUG")
    loud = server.create("loud")
    to_every_fd = "for n in 1 2 3 4 5 6 7 8 9; do echo '{}' >&$n; done 2>/dev/null; cat"
    command = server.command("sh", "-c", to_every_fd)
    server.until_ended(loud, command)
    assert server.get(loud)["result"] == ""  # nor can a handler eat what the client says
    assert server.end() == 0
    messages = [json.loads(line) for line in server.lines]
    assert {message["jsonrpc"] for message in messages} == {"2.0"}
    assert [message["id"] for message in messages] == list(range(1, len(messages) + 1))
    assert all(isinstance(message["result"], dict) for message in messages)
    said = server.errors.read_text()
    for text in ("printed while importing", "written while importing", "printed by a handler", "echoed by its child"):
        assert text in said
    assert list(place.work.iterdir()) == []


# Whatever comes in.

EARLY, LATE = 1, 2  # ids of a call before the handshake, and of the handshake


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One server of each era for everything bad; the legacy client has called a tool before its handshake."""
    place = Place(tmp_path_factory.mktemp("rough"))
    servers = {LEGACY: place.start(LEGACY, handshake=False), MODERN: place.start(MODERN)}
    assert servers[LEGACY].post_call("get_stats") == EARLY
    assert servers[LEGACY].post("initialize", **HELLO) == LATE
    yield servers
    place.close()


def request(era: str, method: str, params: dict[str, Any], request_id: object = "bad") -> dict[str, Any]:
    envelope = {"_meta": ENVELOPE} if era == MODERN else {}
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params | envelope}


# None: no answer; a number: the code of the error; True: an ordinary answer. Lines of no era are in test_malformed.py.
BAD: dict[str, tuple[Callable[[str], dict[str, Any] | bytes], object]] = {
    "an unknown notification": (lambda era: b'{"jsonrpc": "2.0", "method": "notifications/none"}', None),
    "an answer that nobody asked for": (lambda era: b'{"jsonrpc": "2.0", "id": 99, "result": {}}', None),
    "an unknown method": (lambda era: request(era, "tools/make", {}), -32601),
    "an unknown tool": (lambda era: request(era, "tools/call", {"name": "make_tea"}), -32602),
    "arguments of the wrong type": (
        lambda era: request(era, "tools/call", {"name": "list_tasks", "arguments": [1]}),
        -32602,
    ),
    "no tool name": (lambda era: request(era, "tools/call", {"arguments": {}}), -32602),
    "arguments null": (lambda era: request(era, "tools/call", {"name": "list_tasks", "arguments": None}), True),
    "an id of another kind": (lambda era: request(era, "tools/list", {}, "bad"), True),
    "the cancelling of an unknown id": (
        lambda era: b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 12345}}',
        None,
    ),
    "the cancelling of what cannot be an id": (
        lambda era: b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": [{}]}}',
        None,
    ),
}


@pytest.mark.parametrize("era", [LEGACY, MODERN])
@pytest.mark.parametrize("name", BAD)
def test_the_call_after_bad_input_is_answered(name: str, era: str, rough: dict[str, Server]) -> None:
    server = rough[era]
    make, wanted = BAD[name]
    server.send(make(era))
    assert server.call("list_tasks")["tasks"] is not None
    match wanted:
        case None:
            assert "bad" not in server.answered()
        case True:
            assert "result" in server.answer("bad")
        case code:
            assert server.answer("bad")["error"]["code"] == code


def test_a_call_before_the_handshake_is_refused_and_the_handshake_works_still(rough: dict[str, Server]) -> None:
    assert rough[LEGACY].answer(EARLY)["error"]["code"] == -32602
    assert rough[LEGACY].answer(LATE)["result"]["protocolVersion"] == LEGACY


@pytest.mark.parametrize(("era", "code"), [(LEGACY, None), (MODERN, -32022)])
def test_initialize_on_an_open_connection_does_no_harm(era: str, code: int | None, rough: dict[str, Server]) -> None:
    server = rough[era]
    server.send({"jsonrpc": "2.0", "id": "again", "method": "initialize", "params": HELLO})
    answer = server.answer("again")
    assert answer.get("error", {}).get("code") == code
    assert server.call("list_tasks")["tasks"] is not None


def test_an_enveloped_request_on_a_legacy_connection_is_refused(rough: dict[str, Server]) -> None:
    server = rough[LEGACY]
    server.send(request(MODERN, "tools/list", {}, "enveloped"))
    assert server.answer("enveloped")["error"]["code"] == -32600
    assert server.call("list_tasks")["tasks"] is not None


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_a_line_of_five_megabytes_is_answered_in_words(era: str, rough: dict[str, Server]) -> None:
    server = rough[era]
    answer = server.answer(server.post_call("create_task", kind="echo", payload={"text": "x" * 5_000_000}))["result"]
    assert answer["isError"]
    assert "at most 262144 are allowed" in answer["content"][0]["text"]
    assert server.call("list_tasks")["tasks"] is not None


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_a_nul_in_an_argument_is_answered_in_words(era: str, rough: dict[str, Server]) -> None:
    server = rough[era]
    answer = server.answer(server.post_call("create_task", kind="echo", name="a\0b"))["result"]
    assert answer["isError"]
    assert r"name holds the character '\x00'" in answer["content"][0]["text"]
    assert server.call("list_tasks")["tasks"] is not None


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_cancelling_a_wait_in_flight_leaves_the_task_alone(era: str, rough: dict[str, Server]) -> None:
    server = rough[era]
    task_id = server.create("hold")
    server.until_working(task_id)
    wait = server.post_call("wait_for_tasks", task_ids=[task_id], timeout_seconds=50)
    server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": wait}})
    assert server.get(task_id)["status"] == "working"
    assert "phase" not in server.get(task_id)
    assert wait not in server.answered()
    server.call("cancel_task", task_id=task_id)
    server.until_ended(task_id)
    assert wait not in server.answered()  # it had really ended


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_two_requests_with_one_id_are_both_answered(era: str, rough: dict[str, Server]) -> None:
    server = rough[era]
    task_id = server.create("hold")
    arguments = {"task_ids": [task_id]}
    for _ in range(2):
        server.send(request(era, "tools/call", {"name": "wait_for_tasks", "arguments": arguments}, "twin"))
    server.call("cancel_task", task_id=task_id)
    for _ in range(2):
        assert server.answer("twin")["result"]["structuredContent"]["done"]


# The SDK's own client.


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_sdks_client_sees_a_task_through(mode: Any, place: Place) -> None:
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "taskorch"], env=place.environment, cwd=place.work
    )
    async with Client(server, mode=mode) as client:
        created = await client.call_tool("create_task", {"payload": {"argv": ["echo", "hello"]}, "name": "greeting"})
        waited = await client.call_tool("wait_for_tasks", {"task_ids": ["greeting"]})
        assert created.structured_content and waited.structured_content
        assert waited.structured_content["tasks"][0]["output_tail"] == "hello"
        found = await client.read_resource(f"task://{created.structured_content['id']}/output")
        assert "hello" in cast(Any, found.contents[0]).text
