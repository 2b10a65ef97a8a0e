"""How soon a server acts on what another one stored: starts, cancels and waits across two real servers over stdio.

python -m reliability wake [--tasks 200]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

HANDLERS = """
import time
import anyio
from taskorch import Context, handler

@handler("stamp")
async def stamp(payload: dict) -> int:
    return time.monotonic_ns()

@handler("until_cancelled")
async def until_cancelled(payload: dict) -> None:
    await anyio.sleep_forever()
"""
STARTS_MS, REACHES_MS = 50.0, 250.0  # what is promised


def server(folder: Path, slots: int) -> StdioServerParameters:
    settings = {"STATE_DIR": str(folder / "state"), "CONCURRENCY": str(slots), "HANDLERS": "wake_handlers"}
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}
    env |= {f"TASKORCH_{name}": value for name, value in settings.items()}
    return StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=env)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content or {}


async def working(client: Client, task_id: str) -> None:
    while (await call(client, "get_task", task_id=task_id))["status"] != "working":  # noqa: ASYNC110  (no event tells of other processes)
        await anyio.sleep(0.01)


async def measure(folder: Path, tasks: int) -> dict[str, list[float]]:
    """Milliseconds of each: `start` on the other server, `cancel` reaching it, a `wait` here seeing its end there."""
    found: dict[str, list[float]] = {"start": [], "cancel": [], "wait": []}
    async with Client(server(folder, 1)) as busy, Client(server(folder, 2)) as idle:
        held = await call(busy, "create_task", kind="sleep", payload={"seconds": 3600}, priority="high")
        await call(idle, "get_stats")
        await working(busy, held["id"])
        for _ in range(tasks):
            before = time.monotonic_ns()
            task = await call(busy, "create_task", kind="stamp", payload={})
            await call(busy, "wait_for_tasks", task_ids=[task["id"]], timeout_seconds=10)
            seen = time.monotonic_ns()
            started = (await call(busy, "get_task", task_id=task["id"], detail="full"))["result"]
            found["start"].append((started - before) / 1e6)
            found["wait"].append((seen - started) / 1e6)
        for _ in range(max(1, tasks // 10)):
            task = await call(idle, "create_task", kind="until_cancelled", payload={})
            await working(idle, task["id"])
            before = time.monotonic_ns()
            await call(busy, "cancel_task", task_id=task["id"])
            await call(idle, "wait_for_tasks", task_ids=[task["id"]], timeout_seconds=10)
            found["cancel"].append((time.monotonic_ns() - before) / 1e6)
        await call(busy, "cancel_task", task_id=held["id"])
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability wake", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wake_handlers.py").write_text(HANDLERS)
        found = anyio.run(measure, folder, options.tasks)
    worst = {name: statistics.quantiles(times, n=20)[-1] for name, times in found.items()}
    for name, times in found.items():
        print(f"{name:7} p50 {statistics.median(times):6.1f} ms, p95 {worst[name]:6.1f} ms, most {max(times):6.1f} ms")
    kept = worst["start"] <= STARTS_MS and worst["cancel"] <= REACHES_MS
    print("kept" if kept else f"NOT kept: starts within {STARTS_MS} ms, cancels within {REACHES_MS} ms (p95)")
    return 0 if kept else 1
