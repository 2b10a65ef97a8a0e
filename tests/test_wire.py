"""The transport with a small server on it, in this process: what goes wrong on the other side, and what is too much."""

import fcntl
import json
import os
import pty
import time
import tty
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as mt
import pytest
from clients import ERAS, until
from ends import Ends, pipes, sockets
from mcp import Client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.message import SessionMessage
from servers import ENVELOPE, HELLO, LEGACY

from taskorch.mcp import wire as module
from taskorch.mcp.descriptors import Descriptor
from taskorch.mcp.wire import ANSWER_SECONDS, MOST_IN_FLIGHT, MOST_UNSENT_BYTES, Wire, opened

Ctx = ServerRequestContext[Any]


def terminals() -> Ends:
    (in_theirs, in_ours), (out_theirs, out_ours) = pty.openpty(), pty.openpty()
    for fd in (in_ours, out_ours):
        tty.setraw(fd)
    return in_ours, out_ours, out_theirs, in_theirs


WAYS = (pipes, sockets)


class Small:
    """A server with tools: `say` answers a text of `bytes`, `hold` when it is let go, `half` what no JSON holds."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.go = anyio.Event()
        self.server: Server[Any] = Server(
            "small",
            on_list_tools=self.list,
            on_call_tool=self.call,
            on_subscriptions_listen=ListenHandler(InMemorySubscriptionBus()),
        )

    async def run(self, source: int, sink: int) -> None:
        async with opened(Descriptor(source, os.O_RDONLY), Descriptor(sink, os.O_WRONLY)) as wire:
            await self.server.run(wire, wire, self.server.create_initialization_options())

    async def list(self, ctx: Ctx, params: mt.PaginatedRequestParams | None) -> mt.ListToolsResult:
        return mt.ListToolsResult(tools=[mt.Tool(name="say", input_schema={"type": "object"})])

    async def call(self, ctx: Ctx, params: mt.CallToolRequestParams) -> mt.CallToolResult:
        self.called[params.name] += 1
        given = params.arguments or {}
        match params.name:
            case "hold":
                await self.go.wait()
            case "tell":
                await ctx.session.send_resource_updated("task://\ud800")
            case _:
                pass
        return mt.CallToolResult(content=[mt.TextContent(text=self.text(params.name, given))])

    def text(self, name: str, given: dict[str, Any]) -> str:
        return "\udfff" if name == "half" else "x" * given.get("bytes", 1)


class Peer:
    """The client's side, in bytes."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = Descriptor(source, os.O_RDONLY), Descriptor(sink, os.O_WRONLY)
        self._rest = b""
        self._lines: list[bytes] = []
        self.is_open = True

    async def send(self, *lines: bytes) -> None:
        data = bytearray(b"".join(lines))
        while data:
            del data[: await self.sink.write(data)]

    async def ask(self, *requests: dict[str, Any] | bytes) -> None:
        await self.send(*(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in requests))

    async def answer(self) -> dict[str, Any]:
        with anyio.fail_after(10):
            while not self._lines:
                chunk = await self.source.read()
                assert chunk, "the server has closed the wire"
                *self._lines, self._rest = (self._rest + chunk).split(b"\n")
            return json.loads(self._lines.pop(0))

    async def answers(self, count: int) -> dict[Any, dict[str, Any]]:
        return {answer["id"]: answer for answer in [await self.answer() for _ in range(count)]}

    def hang_up(self) -> None:
        self.sink.close()
        self.is_open = False

    def close(self) -> None:
        self.source.close()
        if self.is_open:
            self.sink.close()


class Served:
    """A small server that runs, the wire that it runs on, and its client."""

    def __init__(self, small: Small, wire: Wire, peer: Peer) -> None:
        self.small, self.wire, self.peer = small, wire, peer
        self.ended = anyio.Event()

    async def run(self) -> None:
        server = self.small.server
        await server.run(self.wire, self.wire, server.create_initialization_options())
        self.ended.set()

    async def end(self, seconds: float = 1.0) -> float:
        """Wait until `Server.run` has returned; how long that took."""
        began = time.monotonic()
        with anyio.fail_after(seconds):
            await self.ended.wait()
        return time.monotonic() - began


@asynccontextmanager
async def serving(ends: Ends, on_end: Callable[[], None] = lambda: None) -> AsyncGenerator[Served]:
    ours_in, ours_out, theirs_in, theirs_out = ends
    peer = Peer(theirs_in, theirs_out)
    source, sink = Descriptor(ours_in, os.O_RDONLY), Descriptor(ours_out, os.O_WRONLY)
    try:
        async with opened(source, sink, on_end) as wire, anyio.create_task_group() as group:
            served = Served(Small(), wire, peer)
            group.start_soon(served.run)
            yield served
            wire.end()
            await served.end(5)
    finally:
        peer.close()


@pytest.fixture(params=WAYS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serving(request.param()) as served:
        await hello(served.peer)
        yield served


@pytest.fixture
async def piped() -> AsyncIterator[Served]:
    async with serving(pipes()) as served:
        await hello(served.peer)
        yield served


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for answers after the end waits longer than any of the tests that use this."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 20.0)


async def hello(peer: Peer) -> None:
    await peer.ask({"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": HELLO})
    assert (await peer.answer())["result"]["protocolVersion"] == LEGACY


def call(request_id: object, tool: str = "say", **arguments: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def cancel(request_id: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}


def text(answer: dict[str, Any]) -> str:
    return answer["result"]["content"][0]["text"]


# Both sides speak the protocol.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("era", ERAS)
async def test_the_sdks_client_is_served(era: Any, way: Callable[[], Ends]) -> None:
    """The client is on the same transport, from the other side."""
    ours_in, ours_out, theirs_in, theirs_out = way()
    small = Small()

    @asynccontextmanager
    async def transport() -> AsyncGenerator[tuple[Wire, Wire]]:
        theirs = opened(Descriptor(theirs_in, os.O_RDONLY), Descriptor(theirs_out, os.O_WRONLY))
        async with theirs as wire, anyio.create_task_group() as group:
            group.start_soon(small.run, ours_in, ours_out)
            yield wire, wire
            wire.end()
            group.cancel_scope.cancel()

    with anyio.fail_after(10):
        async with Client(transport(), mode=era) as client:
            result = await client.call_tool("say", {"bytes": 200_000})
            assert isinstance(result.content[0], mt.TextContent)
            assert len(result.content[0].text) == 200_000


async def test_a_message_that_comes_byte_by_byte_is_served(served: Served) -> None:
    for byte in json.dumps(call(1)).encode() + b"\n":
        await served.peer.send(bytes([byte]))
        await anyio.lowlevel.checkpoint()
    assert text(await served.peer.answer()) == "x"


async def test_a_line_of_fifteen_megabytes_is_served(served: Served) -> None:
    await served.peer.ask(call(1, padding="x" * 15 * 2**20), call(2))
    assert (await served.peer.answers(2)).keys() == {1, 2}


async def test_an_answer_larger_than_what_may_be_unsent_arrives_whole(served: Served) -> None:
    await served.peer.ask(call(1, bytes=5 * MOST_UNSENT_BYTES))
    assert len(text(await served.peer.answer())) == 5 * MOST_UNSENT_BYTES


async def test_answers_that_are_ready_together_leave_together(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.peer.ask(*(call(n, "hold") for n in range(50)))
    await until(lambda: served.small.called["hold"] >= 50)
    writes: list[int] = []
    plain = Descriptor.write_now

    def counted(self: Descriptor, data: bytearray) -> int:
        writes.append(sent := plain(self, data))
        return sent

    monkeypatch.setattr(Descriptor, "write_now", counted)
    served.small.go.set()
    assert len(await served.peer.answers(50)) == 50
    assert len([sent for sent in writes if sent]) <= 3


# What cannot be read or written.


async def test_bad_lines_are_answered_and_the_next_call_too(served: Served) -> None:
    await served.peer.ask(b"{\n", b"[1]\n", b'{"id": "bad", "method": "ping"}\n', call(1))
    said = [await served.peer.answer() for _ in range(4)]
    assert [(answer["id"], answer.get("error", {}).get("code")) for answer in said] == [
        (None, -32700),
        (None, -32600),
        ("bad", -32600),
        (1, None),
    ]


async def test_half_a_character_costs_one_answer_and_not_the_server(served: Served) -> None:
    await served.peer.ask(call("half", "half"))
    assert (await served.peer.answer())["error"]["code"] == -32603
    await served.peer.ask(call("whole"))
    assert text(await served.peer.answer()) == "x"


async def test_half_a_character_in_a_notification_costs_that_alone(served: Served) -> None:
    await served.peer.ask(call(1, "tell"))
    assert (await served.peer.answer())["id"] == 1


# Too much.


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_does_not_read_is_not_read_either(way: Callable[[], Ends]) -> None:
    """3,000 calls of 100 kB: what waits for it stays small; when it reads, all is answered."""
    size, calls = 100_000, 3000
    async with serving(way()) as served:
        await hello(served.peer)
        async with anyio.create_task_group() as group:
            group.start_soon(served.peer.ask, *(call(n, bytes=size) for n in range(calls)))
            await settled(served)
            assert MOST_UNSENT_BYTES < served.small.called["say"] * size < 4 * MOST_UNSENT_BYTES
            with anyio.fail_after(30):
                for _ in range(calls):
                    assert len(text(await served.peer.answer())) == size
    assert served.small.called["say"] == calls


async def settled(served: Served) -> None:
    """Wait until the server takes no more calls."""
    seen = -1
    with anyio.fail_after(10):
        while seen != served.small.called["say"]:
            seen = served.small.called["say"]
            await anyio.sleep(0.1)  # nothing tells that nothing more happens


async def test_what_a_background_task_says_waits_for_a_client_that_does_not_read(piped: Served) -> None:
    said = 0

    async def say_much() -> None:
        nonlocal said
        note = mt.JSONRPCNotification(jsonrpc="2.0", method="x", params={"text": "x" * 10_000})
        while True:
            await piped.wire.send(SessionMessage(note))
            said += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(say_much)
        await until(lambda: said * 10_000 >= MOST_UNSENT_BYTES)
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()
        assert said * 10_000 < 2 * MOST_UNSENT_BYTES
        group.cancel_scope.cancel()


async def test_requests_beyond_what_may_be_in_flight_are_refused_and_a_cancel_makes_room(served: Served) -> None:
    more = 10
    await served.peer.ask(*(call(n, "hold") for n in range(MOST_IN_FLIGHT + more)))
    refused = await served.peer.answers(more)
    assert refused.keys() == set(range(MOST_IN_FLIGHT, MOST_IN_FLIGHT + more))
    assert {answer["error"]["code"] for answer in refused.values()} == {-32000}
    assert "notifications/cancelled" in refused[MOST_IN_FLIGHT]["error"]["message"]
    await served.peer.ask(cancel(0))
    await until(lambda: served.wire._calls != MOST_IN_FLIGHT)
    await served.peer.ask(call("after"))
    assert text(await served.peer.answer()) == "x"
    served.small.go.set()
    assert len(await served.peer.answers(MOST_IN_FLIGHT - 1)) == MOST_IN_FLIGHT - 1
    assert served.wire._calls == 0


async def test_two_requests_with_one_id_count_twice(served: Served) -> None:
    await served.peer.ask(call("twin", "hold"), call("twin", "hold"))
    await until(lambda: served.small.called["hold"] >= 2)
    assert served.wire._calls == 2
    served.small.go.set()
    assert [(await served.peer.answer())["id"] for _ in range(2)] == ["twin", "twin"]
    assert served.wire._calls == 0


async def test_listening_takes_no_call_its_place() -> None:
    def listen(request_id: int) -> dict[str, Any]:
        params = {"_meta": ENVELOPE, "notifications": {"resourceSubscriptions": [f"task://{request_id}"]}}
        return {"jsonrpc": "2.0", "id": request_id, "method": "subscriptions/listen", "params": params}

    async with serving(pipes()) as served:
        await served.peer.ask(*(listen(n) for n in range(MOST_IN_FLIGHT + 1)))
        said = [await served.peer.answer() for _ in range(MOST_IN_FLIGHT + 1)]
        refused = [answer for answer in said if "id" in answer]
        assert [(answer["id"], answer["error"]["code"]) for answer in refused] == [(MOST_IN_FLIGHT, -32000)]
        await served.peer.ask(cancel(0))
        with anyio.fail_after(5):  # nothing tells when a cancel has made room
            await served.peer.ask(listen(1000))
            while "error" in await served.peer.answer():
                await served.peer.ask(listen(1000))
        modern = call("call")
        modern["params"]["_meta"] = ENVELOPE
        await served.peer.ask(modern)
        assert text(await served.peer.answer()) == "x"
        assert served.wire._calls == 0


# The end.


async def test_what_was_asked_before_the_end_of_input_is_answered_before_the_server_leaves(served: Served) -> None:
    await served.peer.ask(*(call(n, "hold") for n in range(20)))
    served.peer.hang_up()
    await until(lambda: served.small.called["hold"] >= 20)
    assert not served.ended.is_set()
    served.small.go.set()
    assert {text(answer) for answer in (await served.peer.answers(20)).values()} == {"x"}
    await served.end()


async def test_what_is_not_answered_in_a_moment_after_the_end_of_input_is_refused(served: Served) -> None:
    await served.peer.ask(call(1, "hold"))
    served.peer.hang_up()
    assert await served.end(5) < ANSWER_SECONDS + 0.5
    assert (await served.peer.answer())["error"]["message"] == "Connection closed"


@pytest.mark.parametrize("way", WAYS)
async def test_the_input_of_a_client_that_reads_slowly_ends_when_it_has_read(way: Callable[[], Ends]) -> None:
    said: list[int] = []
    at_end: list[int] = []
    async with serving(way(), lambda: at_end.append(len(said))) as served:
        await hello(served.peer)
        await served.peer.ask(*(call(n, bytes=100_000) for n in range(20)))
        served.peer.hang_up()
        read_slowly(served.peer)
        while len(said) < 20:
            said.append(len(text(await served.peer.answer())))
        await served.end()
    assert said == [100_000] * 20
    assert at_end > [10]  # what a pipe or socket holds may be unread still


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_that_is_ready_after_the_end_of_input_arrives_whole(way: Callable[[], Ends]) -> None:
    ours_in, ours_out, theirs_in, theirs_out = way()
    small, peer = Small(), Peer(theirs_in, theirs_out)
    async with anyio.create_task_group() as group:
        group.start_soon(small.run, ours_in, ours_out)
        await hello(peer)
        await peer.ask(call(1, "hold", bytes=1_000_000))
        peer.hang_up()
        await until(lambda: small.called["hold"])
        small.go.set()
        read_slowly(peer)
        assert len(text(await peer.answer())) == 1_000_000
    peer.close()


def read_slowly(peer: Peer) -> None:
    plain = peer.source.read

    async def read() -> bytes:
        await anyio.sleep(0.05)
        return await plain()

    peer.source.read = read  # type: ignore[method-assign]


@pytest.mark.usefixtures("patient")
async def test_who_listens_does_not_delay_the_end() -> None:
    async with serving(pipes()) as served:
        params = {"_meta": ENVELOPE, "notifications": {"resourceSubscriptions": ["task://a"]}}
        await served.peer.ask({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params})
        assert "id" not in await served.peer.answer()  # it is heard
        served.peer.hang_up()
        await served.end(5)


async def test_input_that_ends_in_mid_message_is_answered(served: Served) -> None:
    await served.peer.ask(b'{"jsonrpc": "2.0", "id": 1, "meth')
    served.peer.hang_up()
    assert (await served.peer.answer())["error"]["code"] == -32700
    await served.end()


async def test_a_last_line_without_a_line_feed_is_served(served: Served) -> None:
    await served.peer.ask(json.dumps(call(1)).encode())
    served.peer.hang_up()
    assert text(await served.peer.answer()) == "x"
    await served.end()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("asked", [True, False])
async def test_the_server_can_be_told_to_end_at_any_moment(asked: bool) -> None:
    ends: list[str] = []
    async with serving(pipes(), lambda: ends.append("end")) as served:
        await hello(served.peer)
        if asked:
            await served.peer.ask(call(1, "hold"))
            await until(lambda: served.small.called["hold"])
        served.wire.end()
        await served.end(5)
        if asked:
            assert (await served.peer.answer())["error"]["message"] == "Connection closed"
    assert ends == ["end"]


async def test_the_server_can_be_told_to_end_while_it_waits_for_a_client_that_does_not_read() -> None:
    with anyio.fail_after(15):
        async with serving(pipes()) as served:
            await hello(served.peer)
            await served.peer.ask(*(call(n, bytes=100_000) for n in range(100)))
            await settled(served)
            served.wire.end()
            await served.end(5)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_cannot_be_answered_any_more_ends_the_server(way: Callable[[], Ends]) -> None:
    async with serving(way()) as served:
        await hello(served.peer)
        await served.peer.ask(*(call(n, bytes=100_000) for n in range(30)))
        await settled(served)
        served.peer.source.close()
        await served.end(5)
        began = time.monotonic()
        served.peer.source = Descriptor(os.open(os.devnull, os.O_RDONLY), os.O_RDONLY)
    assert time.monotonic() - began < 10  # nothing waits for what nobody can read


@pytest.mark.parametrize("sent", [0, 1])
async def test_a_client_that_has_gone_is_noticed_without_a_word_and_what_it_sent_is_done(
    sent: int, piped: Served
) -> None:
    piped.peer.source.close()
    await piped.peer.ask(*(call(n) for n in range(sent)))
    await piped.end(5)
    assert piped.small.called["say"] == sent
    piped.peer.source = Descriptor(os.open(os.devnull, os.O_RDONLY), os.O_RDONLY)


# Descriptors.


@pytest.mark.parametrize("way", WAYS)
def test_who_shares_the_pipe_or_socket_does_not_find_it_changed(way: Callable[[], Ends]) -> None:
    ends = way()
    copies = [os.dup(fd) for fd in ends[:2]]
    ours = Descriptor(ends[0], os.O_RDONLY), Descriptor(ends[1], os.O_WRONLY)
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in copies] == [0, 0]
    for one in ours:
        one.close()
    for fd in (*copies, *ends[2:]):
        os.close(fd)


@pytest.mark.parametrize("way", WAYS)
async def test_a_reader_whose_share_another_has_taken_waits_on_and_blocks_nobody(way: Callable[[], Ends]) -> None:
    source, out, back, sink = way()
    both = Descriptor(os.dup(source), os.O_RDONLY), Descriptor(source, os.O_RDONLY)
    got: list[bytes] = []
    taken = anyio.Event()

    async def take(one: Descriptor) -> None:
        got.append(await one.read())
        taken.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for one in both:
                group.start_soon(take, one)
            await anyio.lowlevel.checkpoint()
            os.write(sink, b"once")
            await taken.wait()
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert got == [b"once"]
    for one in both:
        one.close()
    for fd in (out, back, sink):
        os.close(fd)


async def test_where_a_pipe_cannot_be_opened_anew_a_full_one_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Descriptor, "_opened_anew", lambda self, flags: False)  # as on a system without /proc
    async with serving(pipes()) as served:
        await hello(served.peer)
        await served.peer.ask(call(1, bytes=300_000))
        for _ in range(100):  # it would hang here
            await anyio.lowlevel.checkpoint()
        assert len(text(await served.peer.answer())) == 300_000


async def test_terminals_are_read_and_written_and_who_shares_them_does_not_find_them_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = terminals()
    plain = Descriptor._opened_anew

    def anew(self: Descriptor, flags: int) -> bool:
        """What opens the client's side of a terminal anew gets another terminal."""
        if self.fd not in ends[2:]:
            return plain(self, flags)
        os.set_blocking(self.fd, False)
        return True

    monkeypatch.setattr(Descriptor, "_opened_anew", anew)
    copies = [os.dup(fd) for fd in ends[:2]]
    async with serving(ends) as served:
        await hello(served.peer)
        await served.peer.ask(call(1, bytes=300_000))
        assert len(text(await served.peer.answer())) == 300_000
        assert [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in copies] == [0, 0]
    for fd in copies:
        os.close(fd)


async def test_files_are_read_and_written(tmp_path: Path) -> None:
    asked, said = tmp_path / "asked", tmp_path / "said"
    hello = {"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": HELLO}
    asked.write_text("".join(json.dumps(one) + "\n" for one in (hello, *(call(n) for n in range(100)))))
    with anyio.fail_after(5):
        await Small().run(os.open(asked, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_CREAT))
    assert {json.loads(line)["id"] for line in said.read_text().splitlines()} == {"hello", *range(100)}
