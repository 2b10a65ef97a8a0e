"""The official conformance scenarios for protocol tasks, against our extension. They come from npm and need Node 22."""

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from peers.environments import Unavailable, npm, own_node, run

SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
CHECKS = {
    "capability-negotiation": 5,
    "lifecycle": 9,
    "wire-fields": 4,
    "request-state-removal": 3,
    "mrtr-input": 4,
    "request-headers": 5,
    "dispatch-and-envelope": 9,
    "required-task-error": 3,
    "mrtr-composition": 2,
}
AT_ONCE = 3
SERVER = Path(__file__).with_name("conformance_server.py")


def unavailable(why: str, what: str = "The official conformance scenarios") -> NoReturn:
    text = f"{what} were NOT run: {why}"
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(text)
    pytest.skip(text)


def installed(cache: Path) -> list[str]:
    """The command that runs the suite; installed once, into pytest's cache."""
    try:
        modules = npm(cache, SUITE) / "node_modules"
    except Unavailable as error:
        unavailable(str(error))
    node = modules / ".bin" / "node"
    return [
        str(node) if node.exists() else own_node() or "node",
        str(modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"),
    ]


@asynccontextmanager
async def served(state: Path) -> AsyncIterator[str]:
    """The fixture's address."""
    async with await anyio.open_process([sys.executable, str(SERVER), str(state)], stderr=None) as process:
        try:
            assert process.stdout is not None
            with anyio.fail_after(30):
                port = int(await process.stdout.receive())
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


async def checked(suite: list[str], scenario: str, url: str, results: Path) -> Counter[str]:
    """How many checks of the scenario came out how."""
    folder = results / scenario
    folder.mkdir()
    command = [*suite, "server", "--url", url, "--scenario", f"tasks-{scenario}", "-o", str(folder)]
    done = await anyio.to_thread.run_sync(lambda: run(*command, folder=folder, seconds=60))
    found = [json.loads(path.read_text("utf-8")) for path in folder.rglob("checks.json")]
    assert found, f"{scenario}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    checks = [check for part in found for check in part]
    if done.returncode:
        sys.stderr.write("\n".join(json.dumps(check) for check in checks if check["status"] != "SUCCESS") + "\n")
    return Counter(check["status"] for check in checks)


async def test_every_official_check_of_protocol_tasks_passes(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    cache: Any = getattr(pytestconfig, "cache", None)  # none with `-p no:cacheprovider`
    suite = installed(cache.mkdir("conformance") if cache else tmp_path)
    results: dict[str, Counter[str]] = {}
    limit = anyio.CapacityLimiter(AT_ONCE)

    async def check(scenario: str, url: str) -> None:
        async with limit:
            results[scenario] = await checked(suite, scenario, url, tmp_path)

    async with served(tmp_path / "state") as url, anyio.create_task_group() as group:
        for scenario in CHECKS:
            group.start_soon(check, scenario, url)
    assert results == {scenario: Counter(SUCCESS=number) for scenario, number in CHECKS.items()}
    assert sum(CHECKS.values()) == 44
