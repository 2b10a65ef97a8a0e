"""How to test a handler: a whole server in this process, on a store of the test's own. Needs no more than pytest.

PYTHONPATH=examples pytest examples/test_countdown.py
"""

from pathlib import Path

import anyio
from mcp import Client

from taskorch.app import running
from taskorch.config import Settings


def test_a_countdown_counts_and_refuses_nonsense(tmp_path: Path) -> None:
    async def through_a_server() -> None:
        settings = Settings(state_dir=tmp_path, handlers="handlers")
        async with running(settings) as app, Client(app.server) as client:
            task = {"kind": "countdown", "payload": {"steps": 3, "pause_seconds": 0}, "wait_seconds": 30}
            ended = await client.call_tool("create_task", task)  # answers as soon as it has ended
            assert ended.structured_content["result"] == {"counted": 3, "attempt": 1}
            refused = await client.call_tool("create_task", {**task, "payload": {"steps": 0}})
            assert refused.is_error and "steps" in refused.content[0].text

    anyio.run(through_a_server)
