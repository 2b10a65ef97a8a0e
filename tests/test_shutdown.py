"""A hundred running tasks when the server is told to go: it is gone in time, and nothing is left undone or alive."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from servers import IN_TIME, SECONDS, Place, Server, alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

DEAF = ["sh", "-c", "trap '' TERM; sleep 60 & wait"]
WAYS = ("end of stdin", "SIGTERM", "SIGINT")
CODES = {"end of stdin": 0, "SIGTERM": 143, "SIGINT": 130}


def begin(place: Place) -> tuple[Server, set[str], set[str]]:
    """A server with 50 handlers that sleep and 50 trees of processes that ignore TERM, all of them up."""
    server = place.start(concurrency="100")
    handlers = [server.post_call("create_task", kind="hold") for _ in range(50)]
    commands = [server.post_call("create_task", payload={"argv": DEAF}, on_server_exit="stop") for _ in range(50)]
    held, trees = ({server.facts(request)["id"] for request in some} for some in (handlers, commands))
    wait_for(lambda: server.call("list_tasks", limit=1)["counts"]["working"] == 100, 3 * SECONDS)
    wait_for(lambda: all(len(alive(task_id)) >= 2 for task_id in trees), 3 * SECONDS)
    return server, held, trees


def leave(server: Server, way: str) -> float:
    """Tell it to go; how many seconds that took."""
    began = time.monotonic()
    if way == "end of stdin":
        server.hang_up()
    else:
        os.kill(server.process.pid, signal.Signals[way])
    code = server.process.wait(2 * SECONDS)
    seconds = time.monotonic() - began
    assert server.left() == code == CODES[way]
    return seconds


def check(place: Place, held: set[str], trees: set[str]) -> None:
    assert not any(map(alive, trees)), "no process is left"
    rows = place.rows()
    assert {(rows[i]["status"], rows[i]["attempt"], rows[i]["interruptions"]) for i in held} == {("waiting", 1, 1)}
    assert {(rows[i]["status"], json.loads(rows[i]["error"] or "{}").get("reason")) for i in trees} == {
        ("failed", "interrupted")
    }


def one_round(folder: Path, way: str) -> float:
    folder.mkdir()
    place = Place(folder)
    try:
        server, held, trees = begin(place)
        seconds = leave(server, way)
        check(place, held, trees)
        return seconds
    finally:
        place.close()


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_signal_settles_a_hundred_running_tasks_in_time_and_leaves_no_process(way: str, tmp_path: Path) -> None:
    assert one_round(tmp_path / "round", way) < IN_TIME


@pytest.mark.slow
def test_twenty_times_a_server_with_a_hundred_running_tasks_is_gone_in_time(tmp_path: Path) -> None:
    """On a machine with nothing else to do; `-s` shows the figures."""
    took = {way: [one_round(tmp_path / f"{way}{n}", way) for n in range(20)] for way in WAYS}
    for way, seconds in took.items():
        sys.stderr.write(f"{way}: median {sorted(seconds)[10]:.2f} s, longest {max(seconds):.2f} s\n")
    assert max(second for seconds in took.values() for second in seconds) <= 1.5
