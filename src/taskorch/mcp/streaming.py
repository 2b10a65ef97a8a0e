"""MCP over HTTP, by the SDK's own manager: each POST stands alone, in both protocol eras.

A 2025-11-25 client gets no session: nobody would tell when it has gone, and none survives a restart of the server.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.types import ASGIApp


@asynccontextmanager
async def streaming(server: Server[Any]) -> AsyncGenerator[ASGIApp]:
    """What answers POSTs of MCP, while the block lasts. It asks nobody who he is: `http.guard` has done that."""
    manager = StreamableHTTPSessionManager(server, stateless=True)
    async with manager.run():
        yield StreamableHTTPASGIApp(manager)
