"""An agent of Pydantic AI whose model is a function: each step of the loop is a tool call that this model asks for."""

import asyncio
from typing import Any

import loop
from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits


class Script:
    """Calls of the loop become the model's answers, and what the agent tells the model becomes their replies."""

    def __init__(self) -> None:
        self.wanted = asyncio.Queue[tuple[str, dict[str, Any]] | None]()
        self.told = asyncio.Queue[str | loop.Refused]()
        self.offered: list[str] = []

    async def call(self, tool: str, **arguments: Any) -> str:
        await self.wanted.put((tool, arguments))
        reply = await self.told.get()
        if isinstance(reply, loop.Refused):
            raise reply
        return reply

    async def model(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.offered = [tool.name for tool in info.function_tools]
        part = messages[-1].parts[-1]
        if isinstance(part, ToolReturnPart):
            text = part.model_response_str()
            await self.told.put(text if part.outcome == "success" else loop.Refused(text))
        if (wanted := await self.wanted.get()) is None:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart(*wanted)])


async def main() -> None:
    command, variables = loop.given()
    script = Script()
    toolset = MCPToolset(StdioTransport(command=command, args=[], env=variables, keep_alive=False), max_retries=3)
    agent = Agent(FunctionModel(script.model), toolsets=[toolset])

    async def read(uri: str) -> str:
        return str(await toolset.read_resource(uri))

    async def prompt(name: str, arguments: dict[str, str]) -> str:
        return str(await toolset.get_prompt(name, arguments))

    async with agent:
        loop.era(toolset.client.protocol_version)
        running = asyncio.create_task(agent.run("Go.", usage_limits=UsageLimits(request_limit=None)))
        running.add_done_callback(lambda _: script.told.put_nowait(loop.Refused("the agent ended")))
        failed = await loop.whole(script.call)
        loop.tools(script.offered)
        await loop.handle(script.call)
        await script.wanted.put(None)
        assert (await running).output == "done"
        await loop.readings(failed, read, prompt)


loop.run(main)
