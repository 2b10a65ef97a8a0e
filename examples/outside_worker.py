"""An outside worker: claims tasks of the kind outside:count, says how far it is, and completes them.

It creates three such tasks first, so that there is something to do. Start it twice with the same STATE_DIR, and the two
share the list.

python examples/outside_worker.py [STATE_DIR]
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

KIND = "outside:count"
CLAIM_SECONDS = 60


class Refused(Exception):
    """What the server says to a call that it refuses; the store is as it was."""


class Worker:
    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            raise Refused(result.content[0].text)
        return result.structured_content

    async def work_off(self) -> None:
        """Work on what there is until nothing is left to claim."""
        wanted = {"kind": KIND, "worker": self.name, "claim_seconds": CLAIM_SECONDS}
        while (task := await self.call("claim_task", **wanted))["claimed"]:
            mine = {"task_id": task["id"], "attempt": task["attempt"]}
            try:
                lines = await self.count(anyio.Path(task["payload"]["path"]), mine)
                ended = {"tool": "complete_task", "result": {"lines": lines, "by": self.name}}
            except Exception as error:  # it is tried again, by us or another worker
                ended = {"tool": "fail_task", "message": f"{type(error).__name__}: {error}"}
            try:
                told = await self.call(**ended, **mine)
                print(told["id"], told.get("status", "deleted"), told.get("result", ""), flush=True)
            except Refused as refusal:  # we were too slow, and another worker has it by now
                print(refusal, flush=True)
        print(task["hint"], flush=True)

    async def count(self, path: anyio.Path, mine: dict[str, Any]) -> int:
        """The work itself: here, to count the lines of a file."""
        lines = (await path.read_text()).splitlines()
        for number, _ in enumerate(lines):
            if number % 50 == 0:
                heard = await self.call("heartbeat_task", **mine, progress=number, total=len(lines))
                if heard.get("phase") == "cancelling":
                    raise RuntimeError("stopped as was asked")
        return len(lines)


async def main(state: str) -> None:
    environment = {"TASKORCH_STATE_DIR": state, "TASKORCH_TOOLSETS": "core,worker"}
    server = StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=environment)
    async with Client(server) as client:
        worker = Worker(client, f"worker {os.getpid()}")
        files = sorted(Path(__file__).parent.glob("*.py"))[:3]
        await worker.call("create_tasks", tasks=[{"kind": KIND, "payload": {"path": str(path)}} for path in files])
        await worker.work_off()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        anyio.run(main, sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(main, folder)
