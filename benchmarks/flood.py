"""100 MB of output from one command over real stdio: disk, memory, reply size, and how other calls fare meanwhile.

python benchmarks/flood.py [--megabytes 100]
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

WRITER = "import sys\nline = b'0123456789abcdef' * 64 + b'\\n'\nfor _ in range({lines}): sys.stdout.buffer.write(line)"


def rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def disk_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a segment that was dropped meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total


async def main(megabytes: int) -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as state:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "taskorch"],
            env={"TASKORCH_STATE_DIR": state, "TASKORCH_ALLOW_COMMANDS": "*"},
        )
        async with Client(server) as client:

            async def call(tool: str, **arguments: Any) -> Any:
                result = await client.call_tool(tool, arguments)
                return result

            stats = (await call("get_stats")).structured_content
            pid = stats["process"]["pid"]
            await call("list_tasks")
            before, slowest, replies, calls = rss_bytes(pid), 0.0, 0, 0
            source = WRITER.format(lines=megabytes * 1_000_000 // 1025)
            began = time.perf_counter()
            task = (await call("create_task", payload={"argv": [sys.executable, "-c", source]})).structured_content
            peak, most_disk, status = before, 0, "waiting"
            while status in ("waiting", "working"):
                for tool, arguments in (
                    ("get_task_output", {"task_id": task["id"]}),
                    ("get_task", {"task_id": task["id"]}),
                    ("list_tasks", {}),
                ):
                    asked = time.perf_counter()
                    result = await call(tool, **arguments)
                    slowest = max(slowest, time.perf_counter() - asked)
                    calls += 1
                    size = len(result.model_dump_json(by_alias=True, exclude_none=True))
                    replies = max(replies, size) if tool == "get_task_output" else replies
                    status = result.structured_content.get("status", status)
                peak = max(peak, rss_bytes(pid))
                most_disk = max(most_disk, disk_bytes(Path(state)))
            took = time.perf_counter() - began
            output = (await call("get_task_output", task_id=task["id"])).structured_content
        print(
            json.dumps(
                {
                    "status": status,
                    "seconds": round(took, 2),
                    "output_bytes": output["total_bytes"],
                    "dropped_bytes": output["dropped_bytes"],
                    "disk_bytes_most": most_disk,
                    "server_rss_growth_bytes": peak - before,
                    "output_reply_bytes_most": replies,
                    "calls_meanwhile": calls,
                    "slowest_call_ms": round(1000 * slowest, 1),
                    "cpus": os.cpu_count(),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    anyio.run(main, parser.parse_args().megabytes)
