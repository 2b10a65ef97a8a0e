"""The MCP Inspector's command line: each step starts a server of its own on the same state, as a new chat does."""

import asyncio
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import loop

CALL_FAILED = 5  # the exit code of `tools/call` when the tool answers with an error


class Inspector:
    """Runs the Inspector on a configuration file, in one protocol era."""

    def __init__(self, folder: Path) -> None:
        command, variables = loop.given()
        server = {"type": "stdio", "command": command, "args": [], "env": variables}
        self.config = folder / "mcp.json"
        self.config.write_text(json.dumps({"mcpServers": {"taskorch": server}}))
        self.era = {"auto": "modern"}.get(loop.mode(), loop.mode())

    async def ask(self, method: str, *options: str) -> Any:
        """The result of a request."""
        fixed = ("--cli", "--config", str(self.config), "--server", "taskorch", "-q", "--format", "json")
        process = await asyncio.create_subprocess_exec(
            *("mcp-inspector", *fixed, "--protocol-era", self.era, "--method", method, *options),
            env={**os.environ, "MCP_INSPECTOR_SECRET_STORE": "memory"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode not in (0, CALL_FAILED) or b"Warning: tool" in err:
            raise AssertionError(f"{method} ended with {process.returncode}: {out.decode()}{err.decode()}")
        return json.loads(out)["result"]

    async def call(self, tool: str, **arguments: Any) -> str:
        given = ("--tool-name", tool, "--tool-args-json", json.dumps(arguments))
        result = await self.ask("tools/call", *given)
        text = result["content"][0]["text"]
        if result.get("isError"):
            raise loop.Refused(text)
        return text

    async def read(self, uri: str) -> str:
        return (await self.ask("resources/read", "--uri", uri))["contents"][0]["text"]

    async def prompt(self, name: str, arguments: dict[str, str]) -> str:
        given = [f"{name}={value}" for name, value in arguments.items()]
        result = await self.ask("prompts/get", "--prompt-name", name, "--prompt-args", *given)
        return result["messages"][0]["content"]["text"]


async def main() -> None:
    with TemporaryDirectory() as folder:
        inspector = Inspector(Path(folder))
        loop.era((await inspector.ask("initialize"))["protocolVersion"])
        listed = await inspector.ask("tools/list", "--strict")
        loop.tools(tool["name"] for tool in listed["tools"])
        loop.ok("portable schemas (--strict)")
        await loop.readings(await loop.whole(inspector.call), inspector.read, inspector.prompt)
        if inspector.era == "modern":
            await loop.handle(inspector.call)


loop.run(main)
