"""FastMCP's client, which resolves protocol tasks by itself once `fastmcp_tasks` is imported."""

from typing import Any

import fastmcp_tasks  # noqa: F401  (from now on clients announce the extension)
import loop
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.exceptions import ToolError


async def main() -> None:
    command, variables = loop.given()
    transport = StdioTransport(command=command, args=[], env=variables, keep_alive=False)
    async with Client(transport, mode=loop.mode()) as client:
        loop.era(client.protocol_version)

        async def call(tool: str, **arguments: Any) -> str:
            try:
                return (await client.call_tool(tool, arguments)).content[0].text
            except ToolError as error:
                raise loop.Refused(str(error)) from error

        async def read(uri: str) -> str:
            return (await client.read_resource(uri))[0].text

        async def prompt(name: str, arguments: dict[str, str]) -> str:
            return (await client.get_prompt(name, arguments)).messages[0].content.text

        loop.tools(tool.name for tool in await client.list_tools())
        await loop.readings(await loop.whole(call), read, prompt)
        if loop.mode() == "auto":
            await loop.handle(call)


loop.run(main)
