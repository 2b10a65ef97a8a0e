"""What a newcomer runs: the demo, the examples, mcp.json, and the README's two commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters

ROOT = Path(__file__).parent.parent
WAIT_SECONDS = 60


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


def test_the_demo_comes_out_as_announced() -> None:
    done = run(sys.executable, "-m", "taskorch", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything came out as announced." in done.stdout
    assert done.stdout.count("✓") == 17
    assert "✗" not in done.stdout


def test_the_quickstart_follows_both_handlers_to_their_end() -> None:
    done = run(sys.executable, "examples/quickstart.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "countdown completed {'counted': 20, 'attempt': 1}" in done.stdout
    assert "checksum completed" in done.stdout


async def test_mcp_json_starts_a_server_that_lists_its_tools(tmp_path: Path) -> None:
    (entry,) = json.loads((ROOT / "mcp.json").read_text())["mcpServers"].values()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    server = StdioServerParameters(
        command=entry["command"],
        args=entry["args"],
        env={**entry["env"], "PATH": path, "TASKORCH_STATE_DIR": str(tmp_path)},
    )
    with anyio.fail_after(WAIT_SECONDS):
        async with Client(server) as client:
            assert "create_task" in [tool.name for tool in (await client.list_tools()).tools]


async def test_a_hundred_megabytes_of_output_stay_bounded(tmp_path: Path) -> None:
    done = run(sys.executable, "benchmarks/flood.py")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["status"] == "completed"
    assert figures["output_bytes"] > 99_000_000
    assert figures["disk_bytes_most"] <= 10_000_000
    assert figures["server_rss_growth_bytes"] <= 20_000_000
    assert figures["output_reply_bytes_most"] <= 6_144


def test_ci_runs_the_two_commands_of_the_readme_as_they_stand() -> None:
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [command for command in commands if command not in steps] == []
