"""Several servers on one file, each with a client that creates as fast as it can, and one of them killed on the way."""

import sys
import threading
from collections import Counter

import pytest
from servers import Place, Server, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

SERVERS, EACH, IN_FLIGHT, KILLED_AT = 4, 250, 16, 100
SECONDS = 90.0


def test_a_thousand_commands_created_through_four_servers_run_exactly_once_though_one_is_killed(place: Place) -> None:
    servers = [place.start() for _ in range(SERVERS)]
    created: list[list[str]] = [[] for _ in servers]
    clients = [threading.Thread(target=create, args=(servers[n], created[n], KILLED_AT * (n == 0))) for n in range(4)]
    for client in clients:
        client.start()
    clients[0].join(SECONDS)
    servers[0].kill()  # with requests under way
    again = place.start()
    create(again, created[0], 0)
    for client in clients:
        client.join(SECONDS)
    ids = {task_id for client in created for task_id in client}
    assert [len(client) for client in created] == [EACH] * SERVERS and len(ids) == EACH * SERVERS

    def done() -> bool:
        return again.call("list_tasks", status="completed", limit=1)["counts"]["completed"] >= len(ids)

    wait_for(done, SECONDS)
    rows = place.rows()
    assert ids <= rows.keys(), "acknowledged and lost"
    wait_for(lambda: all(row["status"] == "completed" for row in place.rows().values()), SECONDS)
    assert len(rows) - len(ids) <= IN_FLIGHT, "beyond those whose answers were lost"
    starts = Counter((place.work / "ran").read_text().split())
    assert starts.keys() == rows.keys() and set(starts.values()) == {1}
    assert {row["attempt"] - row["interruptions"] for row in place.rows().values()} == {1}


def create(server: Server, created: list[str], stop_at: int) -> None:
    """Create until there are EACH, or to `stop_at` and leave the rest of the answers unread."""
    argv = ["sh", "-c", 'echo "$TASKORCH_TASK_ID" >> ran']
    waiting: list[int] = []
    while len(created) < (stop_at or EACH):
        while len(waiting) < IN_FLIGHT and (stop_at or len(created) + len(waiting) < EACH):
            waiting.append(server.post_call("create_task", payload={"argv": argv}))
        created.append(server.facts(waiting.pop(0))["id"])
