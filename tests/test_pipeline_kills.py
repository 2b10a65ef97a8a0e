"""A pipeline of twelve real commands, made in one call: finished right, also when the server is killed at each."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from servers import Place, Server, wait_for

# Says that it has begun, waits until it is let, and says that it ends. $0: its name, $1: the folder, the rest: results.
STEP = """
name=$0; folder=$1; shift
echo "start $name" >> "$folder/log"
cat "$folder/$name" > /dev/null
echo "end $name" >> "$folder/log"
"""
FLAKY = 'if [ ! -e "$folder/flaky.tried" ]; then touch "$folder/flaky.tried"; echo "not yet" >&2; exit 75; fi\n'

# What each depends on, what it does in the end, and what its payload takes from others.
Step = tuple[list[str], str, list[Any]]
STEPS: dict[str, Step] = {
    "fetch": ([], """echo '{"parts": ["a", "b", "c"]}'""", []),
    "build-a": (["fetch"], 'echo "built $1"', [{"$result": "fetch", "path": "json.parts[0]"}]),
    "build-b": (["fetch"], 'echo "built $1"', [{"$result": "fetch", "path": "json.parts[1]"}]),
    "build-c": (["fetch"], 'echo "built $1"', [{"$result": "fetch", "path": "json.parts[2]"}]),
    "flaky": (["fetch"], FLAKY + 'echo "it works now"', []),
    "join": (
        ["build-a", "build-b", "build-c", "flaky"],
        'echo "$*"',
        [{"$result": name} for name in ("build-a", "build-b", "build-c", "flaky")],
    ),
    "breaks": (["build-a"], 'echo "this one breaks"; exit 3', []),
    "is-cancelled": (["breaks"], "", []),
    "fails-too": (["breaks"], "", []),
    "cleans-up": (["fails-too"], "echo cleaned", []),
    "report": (["join", "breaks"], 'echo "$1; $2"', [{"$result": "join"}, {"$result": "breaks", "path": "exit_code"}]),
    "done": (["report", "cleans-up"], 'echo "$1"', [{"$result": "report"}]),
}
POLICIES = {"fails-too": "fail", "cleans-up": "run", "report": "run"}
NEVER = {"is-cancelled", "fails-too"}  # start
STATUSES = dict.fromkeys(STEPS, "completed") | {
    "breaks": "failed",
    "is-cancelled": "cancelled",
    "fails-too": "failed",
}
REPORT = "built a built b built c it works now; 3"


def pipeline(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "ref": name,
            "name": name,
            "labels": ["pipeline"],
            "payload": {"argv": ["sh", "-c", STEP + script, name, str(folder), *results]},
            "depends_on": depends_on,
            "on_dependency_failure": POLICIES.get(name, "cancel"),
            **({"max_attempts": 3, "retry": {"first_delay_seconds": 0.05}} if name == "flaky" else {}),
        }
        for name, (depends_on, script, results) in STEPS.items()
    ]


class Run:
    """What the steps have put on record, and how they are let go on."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        self._log.touch()
        self._folder = folder
        for name in STEPS:
            os.mkfifo(folder / name)

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def next(self, seen: int) -> str:
        """The name of the step that starts next after so many starts."""
        starts = wait_for(lambda: [line for line in self.lines() if line.startswith("start")][seen:])
        assert isinstance(starts, list)
        return starts[0].removeprefix("start ")

    def let(self, name: str) -> None:
        with (self._folder / name).open("w"):  # `cat` sees the end at once
            pass

    def check(self) -> None:
        """Each step that may run ran once, the flaky one twice, and none before what it depends on."""
        lines = self.lines()
        expected = [name for name in STEPS if name not in NEVER] + ["flaky"]
        for word in ("start", "end"):
            assert sorted(line for line in lines if line.startswith(word)) == sorted(f"{word} {n}" for n in expected)
        for name, (depends_on, _, _) in STEPS.items():
            for before in set(depends_on) - NEVER if name not in NEVER else ():
                last_end = max(place for place, line in enumerate(lines) if line == f"end {before}")
                assert last_end < lines.index(f"start {name}"), (before, name)


STARTS = len(STEPS) - len(NEVER) + 1


def check_end(server: Server, ids: dict[str, str]) -> None:
    ended = server.call("wait_for_tasks", task_ids=list(ids.values()), timeout_seconds=20)
    assert ended["done"], ended
    found = {name: server.get(task_id) for name, task_id in ids.items()}
    assert {name: task["status"] for name, task in found.items()} == STATUSES
    for name in NEVER:
        assert found[name]["attempt"] == 0
        assert found[name]["error"]["message"] == f"{ids['breaks']} 'breaks' failed (exit_code)"
    outcomes = [attempt["outcome"] for attempt in found["flaky"]["attempts"]]
    # Killed between the claim and the start, a server has begun nothing: that start is given back.
    assert [outcome for outcome in outcomes if outcome != "interrupted"] == ["failed", "completed"]
    for name in ("report", "done"):
        assert server.call("get_task_output", task_id=ids[name])["text"].strip() == REPORT


def create(server: Server, folder: Path) -> dict[str, str]:
    made = server.call("create_tasks", tasks=pipeline(folder))
    return dict(zip(STEPS, made["ids"], strict=True))


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed at every step"])
def test_a_pipeline_is_finished_right(place: Place, kill: bool) -> None:
    run = Run(place.folder)
    server = place.start()
    ids = create(server, place.folder)
    for n in range(STARTS):
        name = run.next(n)
        if kill:  # the step goes on without a server, and the next one adopts it
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(5)
            server = place.start()
        run.let(name)
    check_end(server, ids)
    run.check()


def records(place: Place, task_id: str) -> list[Path]:
    return list((place.state / "output" / task_id).glob("*/exit.json"))


def test_a_step_that_ends_while_no_server_runs_lets_the_next_one_start(place: Place) -> None:
    """Its end is on record; the server that finds it lets go what waits for it in the same commit."""
    run = Run(place.folder)
    server = place.start()
    ids = create(server, place.folder)
    for n in range(STARTS):
        name = run.next(n)
        server.kill()
        run.let(name)
        ended = run.lines().count(f"start {name}")  # attempts of this step
        wait_for(lambda ended=ended, name=name: len(records(place, ids[name])) == ended)
        server = place.start()
    check_end(server, ids)
    run.check()


def test_a_retry_finishes_a_pipeline_that_broke(place: Place) -> None:
    server = place.start()
    flag = place.folder / "flag"
    tasks = [
        {"ref": "a", "payload": {"argv": ["sh", "-c", f'test -e "{flag}" && echo \'"fine"\'']}},
        {"ref": "b", "kind": "echo", "payload": {"is": {"$result": "a", "path": "json"}}},
        {"ref": "c", "kind": "echo", "depends_on": ["b"], "on_dependency_failure": "fail"},
    ]
    a, b, c = server.call("create_tasks", tasks=tasks)["ids"]
    assert server.call("wait_for_tasks", task_ids=[a, b, c], timeout_seconds=20)["counts"] == {
        "failed": 2,
        "cancelled": 1,
    }
    flag.touch()
    server.kill()
    server = place.start()
    server.call("retry_task", task_id=a)
    assert server.call("wait_for_tasks", task_ids=[a, b, c], timeout_seconds=20)["counts"] == {"completed": 3}
    assert json.loads(json.dumps(server.get(b)["result"])) == {"is": "fine"}
