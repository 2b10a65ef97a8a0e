"""The REST API of a running engine as an ASGI application, behind a guard that knows one token."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from taskorch import engine
from taskorch.config import Settings
from taskorch.http.envelope import HANDLERS, failure
from taskorch.http.rest import routes

TOKEN = "token-of-a-test"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


class Guard:
    """What stands before the API in a server, as far as these tests need it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        authorised = dict(scope["headers"]).get(b"authorization") == WITH_TOKEN["Authorization"].encode()
        if not authorised and scope["path"] != "/health":
            return await failure("UNAUTHORIZED", "A token is needed.")(scope, receive, send)
        scope.setdefault("state", {})["authorised"] = authorised
        await self._app(scope, receive, send)


def application(settings: Settings) -> ASGIApp:
    """One that starts its engine with its lifespan. Commands stay as closed as the settings say."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with engine.running(settings, Path(settings.state_dir)) as running:
            app.router.routes.extend(routes(running.service))
            yield

    return Guard(Starlette(lifespan=lifespan, exception_handlers=HANDLERS))


def closed(folder: Path, **given: Any) -> Settings:
    """Settings under which no task can touch the machine."""
    return Settings(**{"state_dir": folder / "state", "allow_commands": "", "concurrency": 2, **given})
