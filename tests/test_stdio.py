"""What a host may hand out as stdin and stdout, and hosts that stop reading: real servers, spoken to in bytes."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ends import Ends, pipes, sockets
from servers import HELLO, IN_TIME, SECONDS, Place, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


def one_socket() -> Ends:
    ours, theirs = (s.detach() for s in socket.socketpair())
    return ours, os.dup(ours), theirs, os.dup(theirs)


def pipe_and_terminal() -> Ends:
    """As behind a `|` that somebody has typed."""
    (in_read, in_write), (master, slave) = os.pipe(), pty.openpty()
    tty.setraw(slave)
    return in_read, slave, master, in_write


class Host:
    """A process that has started a server and holds the other ends of its stdin and stdout."""

    def __init__(self, place: Place, ends: Ends) -> None:
        stdin, stdout, self.source, self.sink = ends
        self.errors = place.folder / "stderr"
        with self.errors.open("wb") as errors:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "taskorch"],
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                env=place.environment,
                cwd=place.work,
                start_new_session=True,
            )
        os.close(stdin)
        os.close(stdout)
        self._open = {self.source, self.sink}
        self._rest = b""
        self._lines: list[bytes] = []

    def ask(self, request_id: int, method: str, **params: Any) -> dict[str, Any]:
        os.write(self.sink, line(request_id, method, **params))
        return self.answer()

    def answer(self) -> dict[str, Any]:
        while not self._lines:
            ready, _, _ = select.select([self.source], [], [], SECONDS)
            assert ready, f"no answer; the server said: {self.errors.read_text()}"
            *self._lines, self._rest = (self._rest + os.read(self.source, 65_536)).split(b"\n")
        return json.loads(self._lines.pop(0))

    def hello(self) -> None:
        assert self.ask(0, "initialize", **HELLO)["result"]["serverInfo"]["name"] == "taskorch"

    def create(self, kind: str) -> str:
        answer = self.ask(1, "tools/call", name="create_task", arguments={"kind": kind})
        return answer["result"]["structuredContent"]["id"]

    def until_working(self, task_id: str) -> None:
        def works() -> bool:
            found = self.ask(2, "tools/call", name="get_task", arguments={"task_id": task_id})
            return found["result"]["structuredContent"]["status"] == "working"

        wait_for(works)

    def pour(self, lines: bytes) -> int:
        """Write until the server takes no more for a while; how many bytes it took."""
        os.set_blocking(self.sink, False)
        taken = 0
        while taken < len(lines) and select.select([], [self.sink], [], 1.0)[1]:
            taken += os.write(self.sink, lines[taken : taken + 4096])
        os.set_blocking(self.sink, True)
        return taken

    def memory(self) -> int:
        """Bytes that the server has in memory."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def close(self, *fds: int) -> None:
        for fd in fds or tuple(self._open):
            os.close(fd)
            self._open.discard(fd)

    def left(self, seconds: float = IN_TIME) -> int:
        code = self.server.wait(seconds)
        assert "Traceback" not in self.errors.read_text()
        return code


def line(request_id: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode() + b"\n"


@contextmanager
def hosting(place: Place, ends: Ends) -> Iterator[Host]:
    host = Host(place, ends)
    try:
        yield host
    finally:
        host.server.kill()
        host.server.wait()
        host.close()


# What stdin and stdout may be.


@pytest.mark.parametrize("way", [pipes, sockets, one_socket, pipe_and_terminal])
def test_a_server_speaks_over_whatever_its_host_hands_out_and_leaves_when_that_is_closed(
    way: Callable[[], Ends], place: Place
) -> None:
    with hosting(place, way()) as host:
        host.hello()
        assert place.row(host.create("echo"))["kind"] == "echo"
        os.write(host.sink, b"{\n")
        assert host.answer()["error"]["code"] == -32700
        host.close(host.sink, host.source)
        assert host.left() == 0


@pytest.mark.parametrize("way", [pipes, sockets, one_socket, pipe_and_terminal])
def test_a_signal_ends_a_server_over_whatever_its_host_hands_out(way: Callable[[], Ends], place: Place) -> None:
    with hosting(place, way()) as host:
        host.hello()
        host.server.send_signal(signal.SIGTERM)
        assert host.left() == 143


def test_a_file_of_requests_is_answered_into_a_file(place: Place) -> None:
    asked, said = place.folder / "asked", place.folder / "said"
    creations = [
        line(n, "tools/call", name="create_task", arguments={"kind": "echo", "delay_seconds": 60})
        for n in range(1, 101)
    ]
    asked.write_bytes(line(0, "initialize", **HELLO) + b"".join(creations))
    with asked.open("rb") as stdin, said.open("wb") as stdout:
        command = [sys.executable, "-m", "taskorch"]
        done = subprocess.run(
            command, stdin=stdin, stdout=stdout, env=place.environment, cwd=place.work, timeout=SECONDS, check=False
        )
    assert done.returncode == 0
    answers = [json.loads(text) for text in said.read_text().splitlines()]
    assert {answer["id"] for answer in answers} == set(range(101))
    assert len(place.rows()) == 100


def test_a_named_pipe_whose_writer_has_gone_already_is_read_to_its_end(place: Place) -> None:
    fifo = place.folder / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with fifo.open("wb") as writer:
        writer.write(line(0, "initialize", **HELLO) + line(1, "tools/list"))
    os.set_blocking(reader, True)
    source, sink = os.pipe()
    with hosting(place, (reader, sink, source, os.open(os.devnull, os.O_WRONLY))) as host:
        assert [host.answer()["id"], host.answer()["id"]] == [0, 1]
        assert host.left() == 0


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("< /dev/null", 0, ""),
        ("< /dev/null > /dev/null", 0, ""),
        ("<&-", 2, "stdin and stdout must be open"),
        (">&-", 2, "stdin and stdout must be open"),
    ],
)
def test_a_server_without_a_client_leaves_at_once(redirection: str, code: int, said: str, place: Place) -> None:
    command = f'"{sys.executable}" -m taskorch {redirection}'
    done = subprocess.run(
        ["sh", "-c", command],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        env=place.environment,
        cwd=place.work,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_disk_that_is_full_ends_a_server_that_writes_to_a_file(place: Place) -> None:
    with open("/dev/full", "wb") as full, (place.folder / "asked").open("w+b") as asked:
        asked.write(line(0, "initialize", **HELLO))
        asked.seek(0)
        done = subprocess.run(
            [sys.executable, "-m", "taskorch"],
            stdin=asked,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=place.environment,
            cwd=place.work,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 0
    assert "stdout cannot be written any more" in done.stderr
    assert "Traceback" not in done.stderr


# Hosts that stop reading.


@pytest.mark.parametrize("way", [pipes, sockets])
def test_a_host_that_never_reads_costs_no_memory_and_cannot_keep_the_server(
    way: Callable[[], Ends], place: Place
) -> None:
    """Of 40,000 calls that would be answered with 330 MB."""
    with hosting(place, way()) as host:
        host.hello()
        held = host.create("hold")
        host.until_working(held)
        before = host.memory()
        poured = b"".join(line(n, "tools/list") for n in range(100, 40_100))
        assert host.pour(poured) < len(poured) / 2
        assert host.memory() - before < 20_000_000
        host.server.send_signal(signal.SIGTERM)
        assert host.left() == 143
        row = place.row(held)
        assert (row["status"], row["interruptions"], row["owner"]) == ("waiting", 1, None)


def test_a_host_that_reads_late_is_answered_everything_though_stdin_has_ended(place: Place) -> None:
    with hosting(place, pipes()) as host:
        host.hello()
        poured = b"".join(line(n, "tools/list") for n in range(10_000))
        taken = poured[: host.pour(poured)]
        host.close(host.sink)
        answers = [host.answer() for _ in range(taken.count(b"\n"))]
        assert {answer["id"] for answer in answers} == set(range(len(answers)))
        assert taken.endswith(b"\n") or host.answer()["error"]["code"] == -32700
        assert host.left() == 0


def test_a_host_that_has_closed_stdout_is_noticed_without_a_word(place: Place) -> None:
    with hosting(place, pipes()) as host:
        host.hello()
        held = host.create("hold")
        host.until_working(held)
        host.close(host.source)
        assert host.left(1.0) == 0
        row = place.row(held)
        assert (row["status"], row["interruptions"], row["owner"]) == ("waiting", 1, None)


def test_what_was_sent_before_stdout_was_closed_is_done(place: Place) -> None:
    with hosting(place, pipes()) as host:
        host.hello()
        host.close(host.source)
        with contextlib.suppress(BrokenPipeError):
            os.write(host.sink, line(1, "tools/call", name="create_task", arguments={"kind": "echo", "name": "last"}))
        assert host.left(1.0) == 0
        assert [row["name"] for row in place.rows().values()] == ["last"]
