"""Limits across real servers on one file: never exceeded at any instant, whoever is killed, and never stuck."""

import random
from collections import Counter
from pathlib import Path

import pytest
from servers import Place, Server, wait_for

LIMITS = {"one": 1, "two": 2, "three": 3}  # "one" is not named in the settings
SETTINGS = {"limits": '{"two": 2, "three": 3}', "concurrency": "6"}
# The order of the lines is the order of what happened: each is one appending write.
SCRIPT = 'echo "begin $0 $TASKORCH_TASK_ID" >> "$1"; sleep "$2"; echo "end $0 $TASKORCH_TASK_ID" >> "$1"'


def command(server: Server, log: Path, key: str, seconds: float) -> str:
    return server.command("sh", "-c", SCRIPT, key, str(log), f"{seconds:.2f}", concurrency_key=key)


def peaks(log: Path) -> Counter[str]:
    """Of each key, how many ran at once at most; raises when that was too many."""
    at_work: dict[str, set[str]] = {key: set() for key in LIMITS}
    most: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        word, key, task_id = line.split()
        if word == "begin":
            assert task_id not in at_work[key]
            at_work[key].add(task_id)
        else:
            at_work[key].remove(task_id)
        most[key] = max(most[key], len(at_work[key]))
        assert len(at_work[key]) <= LIMITS[key], f"{len(at_work[key])} of {key!r} work: {at_work[key]}"
    return most


def lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def storm(place: Place, commands: int, kills: int, chance: random.Random) -> Counter[str]:
    """Commands of three keys on four servers, some of which are killed, and others started in their place."""
    log = place.folder / "log"
    servers = [place.start(**SETTINGS) for _ in range(4)]
    keys = [key for key in LIMITS for _ in range(commands // len(LIMITS))]
    chance.shuffle(keys)
    ids = [command(chance.choice(servers), log, key, chance.uniform(0.05, 0.2)) for key in keys]
    for n in range(kills):
        wait_for(lambda n=n: lines(log) >= (n + 1) * len(keys) // (kills + 1), 60)
        servers.pop(chance.randrange(len(servers))).kill()
        servers.append(place.start(**SETTINGS))
    wait_for(lambda: all(row["finished_at"] for row in place.rows().values()), 60)
    rows = place.rows()
    assert [(i, rows[i]["error"]) for i in ids if rows[i]["status"] != "completed"] == []
    assert lines(log) == 2 * len(ids)
    return peaks(log)


def test_no_more_work_at_once_than_may_though_servers_are_killed(place: Place) -> None:
    assert storm(place, 60, 2, random.Random(1)) == LIMITS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_it_holds_for_long(place: Place, seed: int) -> None:
    assert storm(place, 300, 12, random.Random(seed)) == LIMITS


def test_a_command_that_outlived_its_server_still_counts(place: Place) -> None:
    first, fifo = place.start(), place.fifo("gate")
    before = first.command("cat", fifo.path, concurrency_key="deploy", name="the first")
    first.until_working(before)
    second = place.start()
    after = second.command("true", concurrency_key="deploy")
    assert second.get(after)["waits_for"] == {"concurrency_key": "deploy", "limit": 1, "working": [before]}
    first.kill()
    wait_for(lambda: any(event["event"] == "adopted" for event in second.get(before).get("events", [])))
    assert second.get(after)["phase"] == "blocked"
    fifo.release("go")
    second.until_ended(before, after)
    assert second.get(after)["status"] == "completed"


def test_a_raised_limit_lets_in_what_waits_when_a_server_starts_with_it(place: Place) -> None:
    first, fifo = place.start(), place.fifo("gate")
    held = [first.command("cat", fifo.path, concurrency_key="gpu") for _ in range(2)]
    first.until_working(held[0])
    first.end()
    second = place.start(limits='{"gpu": 2}')
    second.until_working(*held)
    for task_id in held:
        second.call("cancel_task", task_id=task_id)
    second.until_ended(*held)


def test_what_another_server_lets_in_is_started_here(place: Place) -> None:
    """The one that settles has no kind for the next: it is woken that has."""
    runs, other = place.start(), place.start(allow_commands="")
    gate = place.fifo("gate")
    first = runs.command("cat", gate.path, concurrency_key="k")
    runs.until_working(first)
    waiting = other.call("create_task", kind="echo", payload={}, concurrency_key="k")["id"]
    gate.release("go")
    other.until_ended(first, waiting)
    assert other.get(waiting)["status"] == "completed"
