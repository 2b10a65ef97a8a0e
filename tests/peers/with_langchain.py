"""LangChain's adapters: a client that is still on version 1 of the SDK, and so speaks 2025-11-25."""

from typing import Any

import loop
from langchain_core.tools import ToolException
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.prompts import load_mcp_prompt
from langchain_mcp_adapters.resources import get_mcp_resource
from langchain_mcp_adapters.tools import load_mcp_tools


async def main() -> None:
    command, variables = loop.given()
    server = {"transport": "stdio", "command": command, "args": [], "env": variables}
    client = MultiServerMCPClient({"taskorch": server})
    async with client.session("taskorch", auto_initialize=False) as session:
        loop.era((await session.initialize()).protocolVersion)
        tools = {tool.name: tool for tool in await load_mcp_tools(session, handle_tool_errors=False)}

        async def call(tool: str, **arguments: Any) -> str:
            try:
                return (await tools[tool].ainvoke(arguments))[0]["text"]
            except ToolException as error:
                raise loop.Refused(str(error)) from error

        async def read(uri: str) -> str:
            return (await get_mcp_resource(session, uri))[0].as_string()

        async def prompt(name: str, arguments: dict[str, str]) -> str:
            return (await load_mcp_prompt(session, name, arguments=arguments))[0].content

        loop.tools(tools)
        await loop.readings(await loop.whole(call), read, prompt)


loop.run(main)
