"""The OpenAI Agents SDK, its tools called as a model calls them, with strict schemas where it can make them."""

import json
from typing import Any

import loop
from agents.mcp import MCPServerStdio, MCPUtil
from agents.tool import FunctionTool
from agents.tool_context import ToolContext

OPEN = {"create_task", "create_tasks", "update_task"}  # a payload may hold anything, which no strict schema can say


class Watched(MCPServerStdio):
    """Remembers the last result: what the model is told does not say whether it is an error."""

    last: Any = None

    async def call_tool(self, *given: Any, **named: Any) -> Any:
        self.last = await super().call_tool(*given, **named)
        return self.last


def filled(tool: FunctionTool, **chosen: Any) -> dict[str, Any]:
    """What a model must write under a strict schema, where every argument is required and none may be null."""
    properties = tool.params_json_schema["properties"]
    least = {"string": "", "integer": 0}
    return {
        name: chosen.get(name, about.get("default", about.get("minimum", least.get(about["type"]))))
        for name, about in properties.items()
    }


async def main() -> None:
    command, variables = loop.given()
    async with Watched(params={"command": command, "env": variables}, client_session_timeout_seconds=60) as server:
        loop.era(server.session.protocol_version)
        tools: dict[str, FunctionTool] = {
            tool.name: tool
            for tool in await MCPUtil.get_function_tools(
                server, convert_schemas_to_strict=True, run_context=None, agent=None
            )
        }
        loop.tools(tools)
        if {name for name, tool in tools.items() if not tool.strict_json_schema} != OPEN:
            raise AssertionError({name: tool.strict_json_schema for name, tool in tools.items()})
        loop.ok("strict schemas (8 of 11)")

        async def call(tool: str, **arguments: Any) -> str:
            text = json.dumps(arguments)
            context = ToolContext(None, tool_name=tool, tool_call_id="1", tool_arguments=text)
            told = (await tools[tool].on_invoke_tool(context, text))["text"]
            if server.last.is_error:
                raise loop.Refused(told)
            return told

        async def read(uri: str) -> str:
            return (await server.read_resource(uri)).contents[0].text

        async def prompt(name: str, arguments: dict[str, str]) -> str:
            return (await server.get_prompt(name, arguments)).messages[0].content.text

        failed = await loop.whole(call)
        await loop.readings(failed, read, prompt)
        listing = filled(tools["list_tasks"], status="failed", priority="medium")
        loop.has(await call("list_tasks", **listing), failed)
        reading = filled(tools["get_task_output"], task_id=failed)
        loop.has(await call("get_task_output", **reading), "broken")
        loop.ok("every argument filled in")


loop.run(main)
