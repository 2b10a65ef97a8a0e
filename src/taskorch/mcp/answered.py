"""The SDK's stdio streams, passed on so that what was asked before the end of stdin is answered.

At the end of stdin the SDK drops what it has not answered, even answers that wait to be written: to
`printf … | taskorch` it would say little.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, Self

import anyio
import mcp_types as mt
from mcp.shared.message import SessionMessage

ANSWER_SECONDS = 0.4  # after the end of stdin, for the answers to what was asked before it


class Source(Protocol):
    """Where messages come from, as the SDK's streams offer it."""

    async def receive(self) -> SessionMessage | Exception: ...
    async def aclose(self) -> None: ...


class Sink(Protocol):
    """Where messages go."""

    async def send(self, item: SessionMessage, /) -> None: ...
    async def aclose(self) -> None: ...


class _Stream:
    """One side of the transport, passed on."""

    def __init__(self, aclose: Callable[[], Awaitable[None]]) -> None:
        self._aclose = aclose

    async def aclose(self) -> None:
        await self._aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        await self.aclose()


class Asked(_Stream):
    """What the client sends, its end held back until all of it is answered, for a moment at most.

    `on_end` is called when the end is seen.
    """

    def __init__(self, read: Source, on_end: Callable[[], None]) -> None:
        super().__init__(read.aclose)
        self._read = read
        self._on_end = on_end
        self._open: set[mt.RequestId] = set()
        self._changed = anyio.Event()

    async def receive(self) -> SessionMessage | Exception:
        try:
            item = await self._read.receive()
        except anyio.EndOfStream:
            self._on_end()
            with anyio.move_on_after(ANSWER_SECONDS):
                while self._open:
                    self._changed = anyio.Event()
                    await self._changed.wait()
            raise
        match item:
            case SessionMessage(message=mt.JSONRPCRequest(id=request_id, method=method)):
                if method != "subscriptions/listen":  # it is answered when nobody listens any more
                    self._open.add(request_id)
            case SessionMessage(message=mt.JSONRPCNotification(method="notifications/cancelled", params=params)):
                cancelled = (params or {}).get("requestId")
                self._open = {request_id for request_id in self._open if request_id != cancelled}
            case _:
                pass
        return item

    def answered(self, request_id: mt.RequestId | None) -> None:
        if request_id is not None:
            self._open.discard(request_id)
            self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class Answers(_Stream):
    """What we send; it tells `asked` what has been answered."""

    def __init__(self, write: Sink, asked: Asked) -> None:
        super().__init__(write.aclose)
        self._write = write
        self._asked = asked

    async def send(self, item: SessionMessage, /) -> None:
        await self._write.send(item)
        if isinstance(message := item.message, mt.JSONRPCResponse | mt.JSONRPCError):
            self._asked.answered(message.id)
