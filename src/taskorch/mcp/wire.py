"""MCP over two descriptors, as the streams that `Server.run` takes: no threads, and no line that goes unanswered."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import mcp_types as mt
from mcp.shared.message import ServerMessageMetadata, SessionMessage

from taskorch.mcp.descriptors import Descriptor
from taskorch.mcp.lines import Lines, Malformed, read, written

MOST_UNSENT_BYTES = 2**20
MOST_IN_FLIGHT = 256
ANSWER_SECONDS = 0.4  # after the end of input, for the answers to what was asked before; and for any of them to be read
UNHEARD_SECONDS = 0.1  # after the last who could read us has gone, for what was sent before that
LISTEN = "subscriptions/listen"  # it is answered when nobody listens any more: it delays neither calls nor the end
TOO_MANY = mt.ErrorData(
    code=-32000,
    message=f"{MOST_IN_FLIGHT} requests are in flight, as many as may be. Wait for answers or cancel some "
    "(notifications/cancelled), then send this one again.",
)

log = logging.getLogger(__name__)


class Wire:
    """Both streams of `Server.run`: messages come as lines from `source` and go as lines to `sink`. See `opened`.

    At most MOST_IN_FLIGHT requests are served at a time, and as many listen; further ones are refused, for what comes
    behind them may cancel one. While more than MOST_UNSENT_BYTES wait for the other side, nothing is read from it.
    """

    def __init__(self, source: Descriptor, sink: Descriptor, on_end: Callable[[], None]) -> None:
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._lines = Lines()
        self._come: deque[bytes | None] = deque()
        self._unsent = bytearray()
        self._sent = 0
        self._calls = 0  # neither answered nor cancelled; who listens is not among them
        self._listens: list[mt.RequestId] = []
        self._ended = False  # nothing is read any more
        self._broken = False  # nothing can be written any more
        self._filled = anyio.Event()
        self._changed = anyio.Event()

    # Reading.

    async def receive(self) -> SessionMessage:
        """The next message. Raises anyio.EndOfStream at the end."""
        while True:
            await self._until(lambda: len(self._unsent) <= MOST_UNSENT_BYTES or self._ended)
            while not self._come and not self._ended:
                await self._read()
            if self._ended:
                raise anyio.EndOfStream
            try:
                message = read(self._come.popleft())
            except Malformed as error:
                self._put(error.answer)
                continue
            if isinstance(message, mt.JSONRPCRequest):
                if self._admits(message):
                    settled = ServerMessageMetadata(on_request_unanswered=partial(self._unanswered, message.id))
                    return SessionMessage(message, settled)
                self._put(mt.JSONRPCError(jsonrpc="2.0", id=message.id, error=TOO_MANY))
            elif message is not None:
                return SessionMessage(message)

    async def _read(self) -> None:
        try:
            chunk = await self._source.read()
        except anyio.ClosedResourceError:  # `end` has woken us
            return
        except OSError as error:
            log.warning("stdin cannot be read any more: %s", error)
            chunk = b""
        if chunk:
            self._come.extend(self._lines.feed(chunk))
        elif rest := self._lines.rest():
            self._come.extend(rest)
        else:
            await self._flush(lambda: self._ended)
            if self._ended:
                return
            self._on_end()
            with anyio.move_on_after(ANSWER_SECONDS):
                await self._until(lambda: self._calls == 0 or self._ended)
            self._ended = True

    def end(self) -> None:
        """End the input now, though not all that was asked is answered; `Server.run` returns by itself."""
        if not self._ended:
            self._ended = True
            self._on_end()
            self._source.wake()
            self._changed.set()

    def _admits(self, request: mt.JSONRPCRequest) -> bool:
        if request.method == LISTEN:
            if len(self._listens) == MOST_IN_FLIGHT:
                return False
            self._listens.append(request.id)
        elif self._calls == MOST_IN_FLIGHT:
            return False
        else:
            self._calls += 1
        return True

    async def _unanswered(self, request_id: mt.RequestId) -> None:
        """The request has ended without an answer, for it was cancelled."""
        self._settle(request_id)

    def _settle(self, request_id: mt.RequestId | None) -> None:
        if request_id in self._listens:
            self._listens.remove(request_id)
        else:
            self._calls -= 1
        self._changed.set()

    # Writing.

    async def send(self, item: SessionMessage, /) -> None:
        """Have the message written, together with what else is ready. Raises anyio.BrokenResourceError, ValueError."""
        message = item.message
        if isinstance(message, mt.JSONRPCResponse | mt.JSONRPCError):
            self._settle(message.id)
        if self._broken:
            raise anyio.BrokenResourceError
        self._put(message)
        if self._calls == 0:  # nothing else is about to be ready, to leave with it
            self._write_now()
        await self._until(lambda: len(self._unsent) <= MOST_UNSENT_BYTES or self._ended or self._broken)

    def _put(self, message: mt.JSONRPCMessage) -> None:
        self._unsent += written(message)
        self._filled.set()

    def _write_now(self) -> None:
        try:
            self._take(self._sink.write_now(self._unsent))
        except OSError as error:
            self._break(error)

    async def write_out(self) -> None:
        """Write what is sent, until nobody can read it."""
        try:
            while True:
                while not self._unsent:
                    self._filled = anyio.Event()
                    await self._filled.wait()
                self._take(await self._sink.write(self._unsent))
        except OSError as error:
            self._break(error)

    def _take(self, sent: int) -> None:
        del self._unsent[:sent]
        self._sent += sent
        self._changed.set()

    async def watch(self) -> None:
        """Notice that nobody can read what we write, though nothing is to be written."""
        await self._sink.unheard()
        await anyio.sleep(UNHEARD_SECONDS)
        self._break("nobody reads it")

    async def flush(self) -> None:
        """Return when everything is written, or nothing has been for ANSWER_SECONDS."""
        await self._flush(lambda: False)

    async def _flush(self, enough: Callable[[], bool]) -> None:
        before = -1
        while self._unsent and self._sent > before and not enough():
            before = self._sent
            with anyio.move_on_after(ANSWER_SECONDS):
                await self._until(lambda before=before: self._sent > before or not self._unsent or enough())

    def _break(self, why: object) -> None:
        if not self._broken:
            log.warning("stdout cannot be written any more: %s", why)
            self._broken = True
            self._unsent.clear()
            self._changed.set()
            self.end()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()

    # What `Server.run` does with streams besides. `opened` closes them, for answers are written after the end of input.

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


@asynccontextmanager
async def opened(
    source: Descriptor, sink: Descriptor, on_end: Callable[[], None] = lambda: None
) -> AsyncGenerator[Wire]:
    """A wire, for the block around `Server.run`; both descriptors are closed behind it.

    `on_end` is called when the input ends: because nothing more comes, because nobody reads what we write any more, or
    by `Wire.end`. What is not sent when the block ends has as long as the other side goes on reading.
    """
    wire = Wire(source, sink, on_end)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(wire.write_out)
            group.start_soon(wire.watch)
            try:
                yield wire
            finally:
                with anyio.CancelScope(shield=True):
                    await wire.flush()
                group.cancel_scope.cancel()
    finally:
        source.close()
        sink.close()
