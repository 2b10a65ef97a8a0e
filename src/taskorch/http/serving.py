"""HTTP on one port of this machine: listening, patience with clients, and an end in time."""

import asyncio
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from taskorch.calls.service import Service
from taskorch.config import Settings
from taskorch.http.flights import Flights
from taskorch.http.guard import Gate, Guard
from taskorch.http.site import site
from taskorch.http.token import Token, kept_token

CONNECTIONS = 1024  # each takes an open file
HEAD_SECONDS = 10.0  # for the head of a request to arrive
LAST_ANSWERS_SECONDS = 0.2  # what is under way when the server is told to stop may take so long
ABANDON_SECONDS = 0.5  # from then until connections are cut whose clients do not read


async def serve(
    service: Service,
    mcp: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    stop: anyio.Event,
    begun: Callable[[str], None],
) -> None:
    """Answer requests until `stop` is set and what was under way is answered or cut off. Raises StoreError.

    `mcp` is what answers POSTs of MCP; `begun` is called with the address of the board when requests are answered.
    """
    host, port = listener.getsockname()[:2]
    given = settings.http_token
    token = Token(given.get_secret_value() if given else await _kept(settings.state_dir), port)
    flights = Flights()
    guarded = Guard(site(service, mcp), Gate(host, port, token), token, flights)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    server = PatientServer(
        guarded, stop, lambda: begun(address if given else f"{address}?token={token.value}"), flights
    )
    await server.serve([listener])


async def _kept(state: Path) -> str:
    return await anyio.to_thread.run_sync(kept_token, state)


class _PatientProtocol(H11Protocol):
    """A connection that is closed when the head of its next request does not come whole in time."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.cycle or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self._waiting or self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None


class PatientServer(uvicorn.Server):
    """uvicorn, told by an event when to stop, and with an end in time; signals are left to whoever runs it."""

    def __init__(self, app: ASGIApp, stop: anyio.Event, begun: Callable[[], None], flights: Flights) -> None:
        config = uvicorn.Config(
            app,
            http=_PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=60,
        )
        super().__init__(config)
        self._stop = stop
        self._begun = begun
        self._flights = flights

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        self._begun()
        await self._stop.wait()
        loop = asyncio.get_running_loop()
        loop.call_later(LAST_ANSWERS_SECONDS, self._flights.end)
        loop.call_later(ABANDON_SECONDS, self._abandon)

    def _abandon(self) -> None:
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
