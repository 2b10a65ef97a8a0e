"""The official Python SDK's client, in both of its modes; in 2026-07-28 with protocol tasks."""

from typing import Any

import loop
from handles import ProtocolTasks
from mcp import Client, StdioServerParameters


async def main() -> None:
    command, variables = loop.given()
    modern = loop.mode() == "auto"
    server = StdioServerParameters(command=command, env=variables)
    async with Client(server, mode=loop.mode(), extensions=[ProtocolTasks()] if modern else []) as client:
        loop.era(client.protocol_version)

        async def call(tool: str, **arguments: Any) -> str:
            result = await client.call_tool(tool, arguments)
            text = result.content[0].text
            if result.is_error:
                raise loop.Refused(text)
            return text

        async def read(uri: str) -> str:
            return (await client.read_resource(uri)).contents[0].text

        async def prompt(name: str, arguments: dict[str, str]) -> str:
            return (await client.get_prompt(name, arguments)).messages[0].content.text

        loop.tools(tool.name for tool in (await client.list_tools()).tools)
        await loop.readings(await loop.whole(call), read, prompt)
        if modern:
            await loop.handle(call)


loop.run(main)
