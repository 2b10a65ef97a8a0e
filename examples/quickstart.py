"""A client: starts taskorch over stdio with the handlers beside this file, and follows three tasks to their end.

python examples/quickstart.py
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

HERE = Path(__file__).parent


async def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "taskorch"],
            env={
                "TASKORCH_STATE_DIR": state,  # leave it out to keep tasks from run to run
                "TASKORCH_HANDLERS": "handlers",
                "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            },
        )
        async with Client(server) as client:

            async def call(tool: str, **arguments: Any) -> dict[str, Any]:
                result = await client.call_tool(tool, arguments)
                if result.is_error:
                    raise RuntimeError(result.content[0].text)
                return result.structured_content

            slow = await call("create_task", kind="countdown", payload={"steps": 20}, name="count")
            quick = await call("create_task", kind="checksum", payload={"path": __file__}, priority="high")
            alone = await call("create_task", kind="primes", payload={"below": 200_000})
            ids = [task["id"] for task in (slow, quick, alone)]
            found = {"done": False}
            while not found["done"]:
                found = await call("wait_for_tasks", task_ids=ids, timeout_seconds=1)
                for task in found["tasks"]:
                    print(task["status"], task.get("name", ""), task.get("progress", ""))
            for task_id in ids:
                task = await call("get_task", task_id=task_id)
                print(task["kind"], task["status"], task["result"])


if __name__ == "__main__":
    anyio.run(main)
