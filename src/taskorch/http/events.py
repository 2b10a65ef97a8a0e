"""`GET /api/events`: a stream that says when something has changed, in this process or in another.

What has changed it does not say: whoever listens asks anew. The first event comes at once, for those who come back.
"""

import itertools
from collections.abc import Sequence

import anyio
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from taskorch.calls.service import Service
from taskorch.http.flights import Flights
from taskorch.http.refusals import Refusal, response
from taskorch.storage.store import Change

PATH = "/api/events"
PAUSE_SECONDS = 0.25  # between two events
BEAT_SECONDS = 15.0  # between two signs of life
STREAMS = 64
CHANGED, BEAT = b"event: change\ndata: {}\n\n", b": still here\n\n"
FIRST = b"retry: 2000\n" + CHANGED  # milliseconds until a browser asks again when the stream has ended
FULL = Refusal(503, f"{STREAMS} streams of events are open already; close one.", {"Retry-After": "5"})
START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")],
}


class Events:
    """ASGI, for one path and all methods: a path below /api that refuses one would be sought in the REST API."""

    def __init__(self, service: Service) -> None:
        self._store = service.store
        self._open = Flights(STREAMS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        if self._open.full:
            return await response(FULL, scope["path"])(scope, receive, send)
        if scope["method"] == "HEAD":
            await send(START)
            return await send({"type": "http.response.body", "body": b""})
        with self._open.one():
            async with anyio.create_task_group() as group:
                group.start_soon(self._tell, send)
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

    async def _tell(self, send: Send) -> None:
        changed = anyio.Event()

        def heard(_: Sequence[Change]) -> None:
            changed.set()

        with self._store.listening(heard):
            await send(START)
            for number in itertools.count():
                text = FIRST if number == 0 else CHANGED if changed.is_set() else BEAT
                changed = anyio.Event()
                await send({"type": "http.response.body", "body": text, "more_body": True})
                await anyio.sleep(PAUSE_SECONDS)
                with anyio.move_on_after(BEAT_SECONDS - PAUSE_SECONDS):
                    await changed.wait()
