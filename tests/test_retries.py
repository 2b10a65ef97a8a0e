"""Retry policies: which failures are tried again, after how long, how often, and what is kept of each attempt."""

from types import SimpleNamespace
from typing import Any

import pytest
from clients import Facts, call, check_task, connected, settings
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from servers import LEGACY, MODERN, Place, Server

from taskorch.app import running
from taskorch.calls.arguments import TaskWish
from taskorch.calls.policies import given_policy
from taskorch.domain import rules
from taskorch.domain.readiness import NEVER_RETRIED, backoff_ms
from taskorch.domain.task import Failed, NewTask, Reason, Retry, Status, Task

NOW = 1_800_000_000_000
TRUE = {"payload": {"argv": ["true"]}, "delay_seconds": 3600}  # a command that stays waiting


def working(retry: Retry | None, max_attempts: int = 3) -> Task:
    new = NewTask("command", {"argv": ["work"]}, max_attempts, 60.0, retry=retry)
    return rules.claim(rules.create(new, seq=1, task_id="t0123456789abcdef", now=NOW), 1, NOW)


def exits(task: Task, code: int) -> Task:
    failed = Failed(Reason.EXIT_CODE, f"exit code {code}", code, code not in NEVER_RETRIED)
    return rules.settle(task, failed, NOW)


# Which failures.

ONLY = Retry(on_exit=(1, 3))
NEVER = Retry(fail_on_exit=(3, 137))
BOTH = Retry(on_exit=(1, 2), fail_on_exit=(3,))
NONE = Retry(on_exit=(200,))
AGAIN = {
    1: (True, True, True, True, False),
    2: (True, False, True, True, False),
    3: (True, True, False, False, False),
    75: (True, True, True, True, True),  # the program asks for it
    126: (False, False, False, False, False),
    127: (False, False, False, False, False),
    137: (True, False, False, False, False),  # KILL
    255: (True, False, True, False, False),
}


@pytest.mark.parametrize("code", AGAIN)
def test_the_exit_code_decides_whether_a_command_is_tried_again(code: int) -> None:
    for policy, again in zip((None, ONLY, NEVER, BOTH, NONE), AGAIN[code], strict=True):
        after = exits(working(policy), code)
        assert after.status is (Status.WAITING if again else Status.FAILED), policy
        assert after.error is not None and after.error.exit_code == code


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.WORKER_LOST, Reason.SPAWN_ERROR, Reason.INTERRUPTED])
def test_exit_codes_say_nothing_of_what_ended_otherwise(reason: Reason) -> None:
    policy = Retry(on_exit=(1,), fail_on_exit=(127,))
    for code in (None, 127):
        assert rules.settle(working(policy), Failed(reason, "gone", code), NOW).status is Status.WAITING
        final = Failed(reason, "gone", code, retryable=False)
        assert rules.settle(working(policy), final, NOW).status is Status.FAILED


@pytest.mark.parametrize("policy", [None, ONLY, NEVER])
def test_no_exit_code_and_no_policy_grants_a_start(policy: Retry | None) -> None:
    assert exits(working(policy, max_attempts=1), 75).status is Status.FAILED
    task = working(policy, max_attempts=2)
    again = rules.claim(exits(task, 75), 1, NOW + 600_000)
    assert (exits(again, 75).status, again.attempt) == (Status.FAILED, 2)


# After how long.

ids = st.from_regex(r"t[0-9a-hjkmnp-tv-z]{16}", fullmatch=True)
delays = st.floats(0, 86_400)


@st.composite
def policies(draw: st.DrawFn) -> Retry:
    first, most = sorted((draw(delays), draw(delays)))
    return Retry(first_delay_seconds=first, factor=draw(st.floats(1, 10)), max_delay_seconds=most)


@given(ids, policies(), st.integers(1, 100))
def test_a_wait_keeps_to_its_policy_and_is_the_same_at_every_call(task_id: str, policy: Retry, attempt: int) -> None:
    whole = policy.first_delay_seconds
    for _ in range(attempt - 1):
        whole = min(whole * policy.factor, policy.max_delay_seconds)
    waits = {backoff_ms(task_id, attempt, policy) for _ in range(3)}
    assert len(waits) == 1
    assert 500 * whole * (1 - 1e-9) - 1 <= waits.pop() <= 1000 * whole * (1 + 1e-9)


@given(ids, delays, st.floats(2, 10), st.integers(1, 20))
def test_each_wait_is_at_least_as_long_as_the_one_before(
    task_id: str, first: float, factor: float, attempt: int
) -> None:
    policy = Retry(first_delay_seconds=first, factor=factor, max_delay_seconds=1e30)
    assert backoff_ms(task_id, attempt, policy) <= backoff_ms(task_id, attempt + 1, policy)


@given(ids, st.integers(1, 10_000))
def test_the_usual_policy_is_none(task_id: str, attempt: int) -> None:
    assert backoff_ms(task_id, attempt, Retry()) == backoff_ms(task_id, attempt)


@pytest.mark.parametrize("attempt", [301, 1_000, 10**9])
def test_no_number_of_attempts_is_too_large_for_a_wait(attempt: int) -> None:
    policy = Retry(first_delay_seconds=86_400.0, factor=10.0, max_delay_seconds=86_400.0)
    assert 43_200_000 <= backoff_ms("t0123456789abcdef", attempt, policy) <= 86_400_000


def test_the_waits_of_a_policy_are_the_same_in_every_version_and_process() -> None:
    policy = Retry(first_delay_seconds=0.5, factor=3.0, max_delay_seconds=10.0)
    assert [backoff_ms("t0123456789abcdef", n, policy) for n in (1, 2, 3, 4, 9)] == [367, 794, 2617, 7426, 9787]


def test_a_task_waits_as_its_policy_says() -> None:
    policy = Retry(first_delay_seconds=60.0, factor=1.0)
    after = exits(working(policy), 1)
    assert after.run_at == NOW + backoff_ms(after.id, 1, policy)
    assert 30_000 <= after.run_at - NOW <= 60_000


@pytest.mark.parametrize("wait", [0, 5, 7_200_000])
def test_who_asks_for_a_certain_wait_gets_it_whatever_the_policy(wait: int) -> None:
    failed = Failed(Reason.ERROR, "busy", retry_after_ms=wait)
    assert rules.settle(working(Retry(first_delay_seconds=60.0)), failed, NOW).run_at == NOW + wait


# What can be asked for.

GIVEN: list[tuple[Facts, Facts]] = [
    ({"on_exit": [1, 75, 1]}, {"on_exit": [1, 75]}),
    ({"on_exit": 75}, {"on_exit": [75]}),
    ({"on_exit": "75"}, {"on_exit": [75]}),
    ({"on_exit": "[1, 2]"}, {"on_exit": [1, 2]}),
    ({"on_exit": [1], "fail_on_exit": [3, 126]}, {"on_exit": [1], "fail_on_exit": [3, 126]}),
    ({"fail_on_exit": list(range(1, 75))}, {"fail_on_exit": list(range(1, 75))}),
    ({"first_delay_seconds": 0.05}, {"first_delay_seconds": 0.05}),
    ({"first_delay_seconds": 0}, {"first_delay_seconds": 0.0}),
    (
        {"first_delay_seconds": "5s", "factor": 1, "max_delay_seconds": "PT1H"},
        {"first_delay_seconds": 5.0, "factor": 1.0, "max_delay_seconds": 3600.0},
    ),
    ({"firstDelayMs": 500, "maxDelaySeconds": 30}, {"first_delay_seconds": 0.5, "max_delay_seconds": 30.0}),
    ({"max_delay_minutes": 10}, {"max_delay_seconds": 600.0}),
    ({"first_delay_seconds": 600}, {"first_delay_seconds": 600.0, "max_delay_seconds": 600.0}),
    ({"max_delay_seconds": 1}, {"first_delay_seconds": 1.0, "max_delay_seconds": 1.0}),
    ({"factor": 10, "on_exit": None}, {"factor": 10.0}),
    ({"factor": 2, "first_delay_seconds": 2, "fail_on_exit": []}, {}),
]


@pytest.mark.parametrize(("given", "kept"), GIVEN, ids=[str(given)[:60] for given, _ in GIVEN])
async def test_the_full_view_shows_of_a_policy_what_is_not_as_usual(client: Client, given: Facts, kept: Facts) -> None:
    task = check_task(await call(client, "create_task", **TRUE, retry=given))
    reply = await call(client, "get_task", task_id=task["id"], detail="full")
    assert reply.facts.get("retry", {}) == kept
    said = [line for line in reply.text.splitlines() if line.startswith("retry: ")]
    assert len(said) == bool(kept)
    assert all(str(value).replace(" ", "") in said[0] for value in kept.values())
    assert "retry" not in task


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        ({}, 1),
        ({"retry": {}}, 1),
        ({"retry": {"on_exit": None}}, 1),
        ({"retry": {"factor": 2}}, 3),
        ({"retry": {"on_exit": [1]}}, 3),
        ({"retry": {"on_exit": [1]}, "max_attempts": 2}, 2),
        ({"retry": {"on_exit": [1]}, "max_attempts": 1}, 1),
    ],
)
async def test_a_command_with_a_policy_gets_three_starts_unless_it_is_said_otherwise(
    client: Client, arguments: Facts, starts: int
) -> None:
    reply = await call(client, "create_task", **TRUE, **arguments)
    assert check_task(reply)["max_attempts"] == starts
    assert f"attempt 0/{starts}" in reply.text


async def test_a_user_who_lets_commands_start_more_often_is_heeded(tmp_path: Any) -> None:
    async with running(settings(tmp_path, command_max_attempts=2)) as app, connected(app.server, "auto") as client:
        task = check_task(await call(client, "create_task", **TRUE, retry={"factor": 3}))
    assert task["max_attempts"] == 2


async def test_the_starts_of_other_kinds_stay_theirs(client: Client) -> None:
    task = check_task(await call(client, "create_task", kind="echo", delay_seconds=9, retry={"factor": 3}))
    assert task["max_attempts"] == 3


def test_a_recipe_has_exit_codes_and_as_many_starts_as_its_operator_says() -> None:
    once: Any = SimpleNamespace(max_attempts=1)
    assert given_policy(TaskWish(kind="recipe:deploy", retry={"on_exit": [1]}), once) == (Retry(on_exit=(1,)), 1)
    wish = TaskWish(kind="recipe:deploy", retry={"factor": 3}, max_attempts=2)
    assert given_policy(wish, once) == (Retry(factor=3.0), 2)


async def test_many_tasks_at_once_have_their_policies_too(client: Client) -> None:
    tasks = [TRUE | {"retry": {"on_exit": [n]}} for n in (1, 2)]
    ids = (await call(client, "create_tasks", tasks=tasks)).facts["ids"]
    for n, task_id in enumerate(ids, 1):
        facts = (await call(client, "get_task", task_id=task_id, detail="full")).facts
        assert (facts["retry"], facts["max_attempts"]) == ({"on_exit": [n]}, 3)


# Over stdio, with real commands.

QUICK = {"first_delay_seconds": 0.05, "max_delay_seconds": 0.1}
EXITS = 'echo "try $TASKORCH_ATTEMPT"; shift $((TASKORCH_ATTEMPT - 1)); exit $1'


def start(server: Server, codes: list[int], retry: Facts, **arguments: Any) -> str:
    """A command that exits with one code after another."""
    return server.command("sh", "-c", EXITS, "sh", *map(str, codes), retry=QUICK | retry, **arguments)


def run(server: Server, codes: list[int], retry: Facts, **arguments: Any) -> Facts:
    """The same when it has ended, in full."""
    task_id = start(server, codes, retry, **arguments)
    server.until_ended(task_id)
    return server.get(task_id)


def attempts(task: Facts) -> list[tuple[int, str, str | None, int | None]]:
    return [(a["attempt"], a["outcome"], a.get("reason"), a.get("exit_code")) for a in task["attempts"]]


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_every_attempt_keeps_its_own_output_exit_code_and_reason(place: Place, era: str) -> None:
    server = place.start(era)
    task = run(server, [75, 9, 0], {})
    assert (task["status"], task["attempt"], task["max_attempts"]) == ("completed", 3, 3)
    assert attempts(task) == [
        (1, "failed", "exit_code", 75),
        (2, "failed", "exit_code", 9),
        (3, "completed", None, None),
    ]
    for number, outcome, reason, code in attempts(task):
        read = server.call("get_task_output", task_id=task["id"], attempt=number)
        assert (read["text"], read["attempt"]) == (f"try {number}\n", number)
        assert (read["outcome"], read.get("reason"), read.get("exit_code")) == (outcome, reason, code)
    assert server.end() == 0
    assert place.start(era).get(task["id"])["retry"] == QUICK, "a restart forgets no policy"


POLICIES: list[tuple[list[int], Facts, tuple[str, int, int | None]]] = [
    ([75, 75, 0], {"on_exit": [1]}, ("completed", 3, None)),  # whatever on_exit names
    ([75, 75, 75], {}, ("failed", 3, 75)),
    ([3], {"fail_on_exit": [3]}, ("failed", 1, 3)),
    ([2], {"on_exit": [1]}, ("failed", 1, 2)),
    ([1, 2], {"on_exit": [1]}, ("failed", 2, 2)),
    ([1, 1, 0], {"on_exit": [1], "fail_on_exit": [3]}, ("completed", 3, None)),
    ([127], {}, ("failed", 1, 127)),
]


def test_policies_hold_for_real_commands(place: Place) -> None:
    server = place.start()
    ids = [start(server, codes, retry) for codes, retry, _ in POLICIES]
    server.until_ended(*ids)
    tasks = [server.get(task_id) for task_id in ids]
    ends = [(task["status"], task["attempt"], task.get("error", {}).get("exit_code")) for task in tasks]
    assert ends == [end for *_, end in POLICIES]
    assert {task["max_attempts"] for task in tasks} == {3}


def test_the_output_of_an_attempt_says_how_that_one_ended(place: Place) -> None:
    server = place.start()
    task = run(server, [3, 0], {}, max_attempts=2)
    request = server.post_call("get_task_output", task_id=task["id"], attempt=1)
    text = server.answer(request)["result"]["content"][0]["text"]
    assert text.startswith(f"output of {task['id']} attempt 1 (failed exit_code 3), bytes 0-6 of 6.")
    fifo = place.fifo("fifo")
    working = server.command("cat", fifo.path)
    server.until_working(working)
    read = server.call("get_task_output", task_id=working)
    assert read.keys().isdisjoint({"outcome", "reason", "exit_code"}), "it has not ended"
    fifo.release("")
