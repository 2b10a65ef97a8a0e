"""Talking to a server in JSON-RPC messages, as they would stand on the wire, in either protocol era."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as mt
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.server import Server
from mcp.shared.message import SessionMessage

from taskorch.mcp.server import initialization

META = "io.modelcontextprotocol/"
TASKS = f"{META}tasks"
Body = dict[str, Any]


class Refused(Exception):
    """A JSON-RPC error."""

    def __init__(self, error: Body) -> None:
        super().__init__(str(error))
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: Any = error.get("data")


class Talk:
    """One connection. `declares`: whether requests say that they know protocol tasks, unless they say so themselves."""

    def __init__(self, write: MemoryObjectSendStream[SessionMessage | Exception], era: str, declares: bool) -> None:
        self._write, self._era, self._declares = write, era, declares
        self._number = 0
        self._answers: dict[Any, Body] = {}
        self._changed = anyio.Event()
        self.notifications: list[Body] = []

    async def begin(self) -> Body:
        """Open the connection; what the server says of itself."""
        if self._era == "auto":
            return await self.ask("server/discover")
        client = {"name": "talk", "version": "0"}
        knows = {"extensions": {TASKS: {}}} if self._declares else {}
        opened = await self.ask("initialize", protocolVersion="2025-11-25", capabilities=knows, clientInfo=client)
        await self._send({"method": "notifications/initialized"})
        return opened

    async def send(self, method: str, *, declares: bool | None = None, **params: Any) -> int:
        """Send a request; its id."""
        self._number += 1
        if self._era == "auto":
            knows = self._declares if declares is None else declares
            params["_meta"] = {
                f"{META}protocolVersion": "2026-07-28",
                f"{META}clientCapabilities": {"extensions": {TASKS: {}}} if knows else {},
                f"{META}clientInfo": {"name": "talk", "version": "0"},
            }
        await self._send({"id": self._number, "method": method, "params": params})
        return self._number

    async def ask(self, method: str, *, declares: bool | None = None, **params: Any) -> Body:
        """The result, without the stamp that the SDK puts on each."""
        number = await self.send(method, declares=declares, **params)
        with anyio.fail_after(20):
            while number not in self._answers:
                await self._changed.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise Refused(answer["error"])
        answer["result"].pop("_meta", None)
        return answer["result"]

    async def call(self, tool: str, *, declares: bool | None = None, **arguments: Any) -> Body:
        return await self.ask("tools/call", declares=declares, name=tool, arguments=arguments)

    async def stop(self, request_id: int) -> None:
        await self._send({"method": "notifications/cancelled", "params": {"requestId": request_id}})

    async def told(self, method: str, number: int = 1) -> list[Body]:
        """The params of the first so many notifications of that name."""
        with anyio.fail_after(10):
            while len(found := [one["params"] for one in self.notifications if one["method"] == method]) < number:
                await self._changed.wait()
        return found

    async def _send(self, message: Body) -> None:
        parsed = mt.jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **message})
        await self._write.send(SessionMessage(parsed))

    async def listen(self, read: MemoryObjectReceiveStream[SessionMessage]) -> None:
        async for item in read:
            message = item.message.model_dump(mode="json", by_alias=True, exclude_unset=True)
            if "method" in message:
                self.notifications.append(message)
            else:
                self._answers[message["id"]] = message
            self._changed.set()
            self._changed = anyio.Event()


@asynccontextmanager
async def talking(server: Server[Any], era: str = "auto", declares: bool = True) -> AsyncIterator[Talk]:
    """A connection to the server that has been opened."""
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](100)
    to_client, from_server = anyio.create_memory_object_stream[SessionMessage](100)
    talk = Talk(to_server, era, declares)
    async with anyio.create_task_group() as group:
        group.start_soon(talk.listen, from_server)
        group.start_soon(server.run, from_client, to_client, initialization(server))
        await talk.begin()
        yield talk
        group.cancel_scope.cancel()
    for stream in (to_server, from_client, to_client, from_server):
        stream.close()
