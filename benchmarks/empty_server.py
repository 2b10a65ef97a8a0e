"""The least that the SDK can be: a lowlevel server with one tool over its own stdio."""

from typing import Any

import anyio
import mcp_types as mt
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server


async def list_tools(_: ServerRequestContext[Any], params: mt.PaginatedRequestParams | None) -> mt.ListToolsResult:
    return mt.ListToolsResult(tools=[mt.Tool(name="nothing", input_schema={"type": "object"})])


async def call_tool(_: ServerRequestContext[Any], params: mt.CallToolRequestParams) -> mt.CallToolResult:
    return mt.CallToolResult(content=[])


async def main() -> None:
    server: Server[Any] = Server("empty", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
