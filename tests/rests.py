"""The REST API of a running engine as an ASGI application, behind the guard of a server."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from taskorch import engine
from taskorch.calls.service import Service
from taskorch.config import Settings
from taskorch.http.flights import Flights
from taskorch.http.guard import Gate, Guard
from taskorch.http.site import site
from taskorch.http.token import Token

PORT = 8100
URL = f"http://127.0.0.1:{PORT}"
TOKEN = "token-of-a-test-that-is-long-enough"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


def guarded(service: Service) -> ASGIApp:
    """All that `taskorch http` answers but MCP."""
    token = Token(TOKEN, PORT)
    return Guard(site(service, _no_mcp), Gate("127.0.0.1", PORT, token), token, Flights())


class Application:
    """ASGI: an engine that runs as long as its lifespan, and what is asked of it."""

    def __init__(self, settings: Settings) -> None:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncGenerator[None]:
            async with engine.running(settings, Path(settings.state_dir)) as running:
                self._answering = guarded(running.service)
                yield

        self._living = Starlette(lifespan=lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._living if scope["type"] == "lifespan" else self._answering)(scope, receive, send)


def closed(folder: Path, **given: Any) -> Settings:
    """Settings under which no task can touch the machine."""
    return Settings(**{"state_dir": folder / "state", "allow_commands": "", "concurrency": 2, **given})


async def _no_mcp(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError  # the REST API alone is tried here
