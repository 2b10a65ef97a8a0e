"""What a newcomer runs: the demo, the examples, mcp.json, and the README's two commands."""

import json
import os
import subprocess
import sys
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from servers import Place

ROOT = Path(__file__).parent.parent
WAIT_SECONDS = 60


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


def test_the_demo_comes_out_as_announced() -> None:
    done = run(sys.executable, "-m", "taskorch", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything came out as announced." in done.stdout
    assert done.stdout.count("✓") == 20
    assert "✗" not in done.stdout


def test_the_quickstart_follows_its_handlers_to_their_end() -> None:
    done = run(sys.executable, "examples/quickstart.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "countdown completed {'counted': 20, 'attempt': 1}" in done.stdout
    assert f"checksum completed {{'path': '{ROOT / 'examples' / 'quickstart.py'}', 'sha256': '" in done.stdout
    assert "primes completed {'below': 200000, 'primes': 17984}" in done.stdout


def test_the_example_of_a_test_passes() -> None:
    """And would not, if the handler were another."""
    ran = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "examples/test_countdown.py"]
    done = run(*ran, PYTHONPATH="examples")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


class Busy(BaseHTTPRequestHandler):
    """Answers the first request with 503 and a time to come again, others by their path."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        code = int(self.path[1:]) if self.asked.count(self.path) > 1 or self.path == "/404" else 503
        self.send_response(code)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None: ...


def test_the_example_of_fetching_comes_again_when_it_is_told_to_and_only_then(place: Place) -> None:
    place.environment["PYTHONPATH"] += f":{ROOT / 'examples'}"
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        server = place.start(handlers="handlers")
        urls = [f"http://127.0.0.1:{web.server_port}/{code}" for code in (200, 404)]
        ids = [server.create("fetch", url=url) for url in urls]
        server.until_ended(*ids)
        found, missing = map(server.get, ids)
        web.shutdown()
    assert (found["status"], found["result"]) == ("completed", {"status": 200, "bytes": 5})
    first, second = found["attempts"]
    assert first["message"] == f"RetryAfter: {urls[0]} is busy"
    waited = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["ended_at"])
    assert waited.total_seconds() >= 1
    assert (missing["status"], missing["attempt"]) == ("failed", 1)
    assert missing["error"]["message"] == f"NonRetryable: {urls[1]} answers 404"


def test_two_outside_workers_share_a_list(tmp_path: Path) -> None:
    command = [sys.executable, "examples/outside_worker.py", str(tmp_path / "state")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        done = run(*command)
        told = other.communicate(timeout=WAIT_SECONDS)[0].splitlines() + done.stdout.splitlines()
    assert done.returncode == other.returncode == 0, done.stderr
    completed = [line.split()[0] for line in told if " completed {'lines': " in line]
    assert len(completed) == len(set(completed)) == 6
    assert len(told) == 6 + 2, told


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
