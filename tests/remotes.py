"""Small MCP servers to call tools of, and a pool whose kind `tool` knows them."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from clients import until
from pools import Pool
from servers import lives

from taskorch.domain.task import Task
from taskorch.work.connections import Connections
from taskorch.work.mcp_servers import Entry, Stdio
from taskorch.work.remote import RemoteTool

PEER = Path(__file__).with_name("remote_peer.py")
TOKEN = "s3cret-of-the-peer"


class Peer:
    """A server as an entry of the file, and what has happened to it."""

    def __init__(self, folder: Path, name: str = "peer", mode: str = "serve") -> None:
        self.log = folder / f"{name}.log"
        self.log.touch()
        self.args = ["-I", "-S", str(PEER), str(self.log), mode]

    @property
    def entry(self) -> Stdio:
        return Stdio(command=sys.executable, args=self.args, env={"PEER_SECRET": TOKEN})

    @property
    def raw(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {"command": sys.executable, "args": self.args, "env": {"PEER_SECRET": TOKEN}}

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def pids(self) -> list[int]:
        """Of every process that was started, in order."""
        return [int(line.split()[1]) for line in self.lines if line.startswith("started ")]

    async def noted(self, line: str, times: int = 1) -> None:
        await until(lambda: self.lines.count(line) >= times)

    async def gone(self) -> None:
        await until(lambda: not any(map(lives, self.pids)))


@asynccontextmanager
async def calling(
    pool: Pool,
    *,
    slots: int = 2,
    pauses: tuple[float, ...] = (0.01, 0.01),
    connect_seconds: float = 10,
    idle_seconds: float = 60,
    **peers: Peer | Entry,
) -> AsyncIterator[Connections]:
    """A worker that runs tool tasks on these servers, until the block ends."""
    entries = {name: peer.entry if isinstance(peer, Peer) else peer for name, peer in peers.items()}
    connections = Connections(entries, "0", {}, connect_seconds, idle_seconds)
    async with anyio.create_task_group() as group:
        await group.start(connections.run)
        try:
            async with pool.running(slots, tool=RemoteTool(connections, pauses)):
                yield connections
        finally:
            group.cancel_scope.cancel()


async def add(pool: Pool, tool: str, server: str = "peer", **more: Any) -> Task:
    """A task that calls the tool; what is not a field of a task is an argument of the tool."""
    fields = {name: more.pop(name) for name in ("max_attempts", "timeout_seconds") if name in more}
    return await pool.add("tool", {"server": server, "tool": tool, "arguments": more}, **({"max_attempts": 1} | fields))


async def called(pool: Pool, tool: str, server: str = "peer", **more: Any) -> Task:
    """The task at its end."""
    return await pool.ended(await add(pool, tool, server, **more))
