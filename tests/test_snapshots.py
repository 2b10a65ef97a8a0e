"""What typical replies look like, word for word: a change of theirs is a change of the contract, and is seen here."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clients import Facts

from taskorch.calls.history import full_reply
from taskorch.calls.replies import Reply, View, list_reply, output_reply, task_reply
from taskorch.calls.waits import Tail, wait_reply
from taskorch.domain import rules
from taskorch.domain.task import Completed, Failed, NewTask, Outcome, Priority, Progress, Reason, Retry, Schedule, Task
from taskorch.storage.limits import Full
from taskorch.storage.listing import Page
from taskorch.storage.queries import History
from taskorch.work.output import Slice

AGREED = Path(__file__).parent / "replies.json"
NOW = 1_800_000_000_000
VIEW = View(NOW + 60_000, {"command", "echo"}, 50)
COUNTS = {"waiting": 1, "working": 1, "completed": 12, "failed": 2, "cancelled": 0}


def waiting(**wishes: Any) -> Task:
    new = NewTask("command", {"argv": ["make", "test"]}, 1, 3600.0)
    return rules.create(dataclasses.replace(new, **wishes), seq=7, task_id="t69az46cfe84017ff", now=NOW)


def working(**wishes: Any) -> Task:
    return dataclasses.replace(rules.claim(waiting(**wishes), 1, NOW + 5), started_at=NOW + 5)


def ended(outcome: Outcome, **wishes: Any) -> Task:
    return rules.settle(working(**wishes), outcome, NOW + 1_505)


FULL = dataclasses.replace(VIEW, waits={waiting().id: Full("deploy", 1, 1, ("t4kq2vz8n3x7c5m1b", "to staging"))})
SUCCESS = Completed({"exit_code": 0, "output_bytes": 5_120})
FAILURE = Failed(Reason.EXIT_CODE, "exit code 2: 3 tests failed", 2)
POLICY = Retry(on_exit=(1, 2), fail_on_exit=(3,), first_delay_seconds=0.5)


def under_way() -> Task:
    return dataclasses.replace(working(name="tests"), progress=Progress(40, 100, "linking"))


def a_schedule(**wishes: Any) -> Task:
    return waiting(schedule=Schedule("0 7 * * 1-5", None, "Europe/Berlin"), **wishes)


def fired() -> History:
    detail = "tqqqqqqqqqqqqqqqq (2027-01-15T07:00:00+01:00)"
    event = {"at": NOW + 2, "event": "fired", "by": "schedule", "detail": detail}
    firing = {"at": NOW, "task": "tqqqqqqqqqqqqqqqq", "status": "completed"}
    return History([], [event], firings=[firing])


def history() -> History:
    start = {"attempt": 1, "owner": 1, "worker": None, "started_at": NOW + 5}
    end = {
        "ended_at": NOW + 1_505,
        "outcome": "failed",
        "reason": "exit_code",
        "message": "exit code 2",
        "exit_code": 2,
    }
    event = {"at": NOW + 2, "event": "updated", "by": "claude-code", "detail": "priority"}
    return History([start | end], [event])


def _full(task: Task) -> Reply:
    return full_reply(task, task.payload, history(), VIEW, "/state/output/t6/1")


REPLIES: dict[str, Callable[[], Reply]] = {
    "held": lambda: task_reply(waiting(concurrency_key="deploy"), FULL, "Created "),
    "created": lambda: task_reply(waiting(name="tests"), VIEW, "Created "),
    "created, scheduled": lambda: task_reply(waiting(run_at=NOW + 3_600_000), VIEW, "Created "),
    "created, nobody can run it": lambda: task_reply(waiting(kind="mail"), VIEW, "Created "),
    "created, a schedule": lambda: task_reply(a_schedule(name="backup"), VIEW, "Created "),
    "full, a schedule": lambda: full_reply(a_schedule(name="backup"), {"argv": ["make"]}, fired(), VIEW, None),
    "wait, a schedule": lambda: wait_reply([a_schedule()], [], False, {}, VIEW),
    "working": lambda: task_reply(under_way(), VIEW),
    "completed command": lambda: task_reply(ended(SUCCESS, name="tests"), VIEW),
    "completed handler": lambda: task_reply(ended(Completed({"sent": 3}), kind="echo"), VIEW),
    "failed": lambda: task_reply(ended(FAILURE, name="tests"), VIEW),
    "backoff": lambda: task_reply(ended(FAILURE, max_attempts=3), VIEW),
    "cancelled": lambda: task_reply(rules.cancel(waiting(), "cancelled by claude-code: not needed", NOW + 9), VIEW),
    "cancelling": lambda: task_reply(rules.cancel(working(), "cancelled by claude-code", NOW + 9), VIEW),
    "full": lambda: _full(ended(FAILURE, name="tests", labels=("ci",))),
    "full, with a policy": lambda: _full(ended(FAILURE, retry=POLICY, max_attempts=3)),
    "list": lambda: list_reply(
        Page([under_way(), ended(FAILURE, name="tests", priority=Priority.HIGH)], COUNTS, False, 7), "c7", VIEW
    ),
    "list, empty": lambda: list_reply(Page([], dict.fromkeys(COUNTS, 0), False, None), None, VIEW),
    "wait, not done": lambda: wait_reply(
        [under_way()], [], False, {under_way().id: Tail("[40/100] linking\n", 2.5)}, VIEW
    ),
    "wait, done": lambda: wait_reply([ended(SUCCESS), ended(FAILURE)], ["tqqqqqqqqqqqqqqqq"], True, {}, VIEW),
    "output": lambda: output_reply(ended(SUCCESS), 1, Slice("3 passed\n", 5_111, 5_120, 5_120, 0), None),
    "output, of a failed attempt": lambda: output_reply(
        ended(FAILURE), 1, Slice("2 failed\n", 0, 9, 9, 0), None, history().attempts[0]
    ),
    "output, matching": lambda: output_reply(ended(SUCCESS), 1, Slice("1: warning\n", 0, 20, 5_120, 9), "warn"),
}


def test_replies_are_those_that_were_agreed() -> None:
    assert replies() == json.loads(AGREED.read_text("utf-8")), (
        "What replies look like is a public contract and has changed. "
        "If that is meant, run `python tests/test_snapshots.py` and commit tests/replies.json."
    )


def replies() -> Facts:
    made = {name: make() for name, make in REPLIES.items()}
    return {name: {"text": reply.text.splitlines(), "facts": reply.facts} for name, reply in made.items()}


if __name__ == "__main__":
    AGREED.write_text(json.dumps(replies(), indent=1, ensure_ascii=False) + "\n", "utf-8")
