"""The questions for models can be answered with our tools alone, from either form of the replies, in few calls."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import connected
from evals.agents import Agent, Program, Reader, seconds
from evals.seed import KEEP, seed

from taskorch.app import running
from taskorch.config import Settings
from taskorch.queries import Filters

QUESTIONS = Path(__file__).parent / "evals" / "questions.xml"
LONGEST = 25  # of a page, as an agent would ask that has seen the default of 20


async def reason_of_the_second_attempt(agent: Agent) -> str:
    imports, _ = await agent.page(label="erp")
    most = max(imports, key=lambda row: row["attempt"])
    attempts, _ = await agent.history(most["id"])
    return attempts[1]["reason"]


async def longest_backup(agent: Agent) -> str:
    nights = await agent.pages(label="nightly", text="backup")
    return str(int(max([await agent.ran(row["id"]) for row in nights])))


async def who_cancelled_what_worked(agent: Agent) -> str:
    cancelled, _ = await agent.page(label="release-4.2", status="cancelled")
    for row in cancelled:
        attempts, events = await agent.history(row["id"])
        if attempts:
            return next(event["by"] for event in events if event["event"] == "cancel_requested")
    raise AssertionError


async def first_failed_test(agent: Agent) -> str:
    day = {"created_after": "2026-03-04T00:00:00Z", "created_before": "2026-03-05T00:00:00Z"}
    failed, _ = await agent.page(label="ci", status="failed", **day)
    codes = await agent.exit_codes([row["id"] for row in failed])
    (task,) = [task for task, code in codes.items() if code == 2]
    lines, _ = await agent.output(task, grep="FAILED")
    return lines[0].split("::")[1].split()[0]


async def host_that_refused(agent: Agent) -> str:
    (staging,), _ = await agent.page(label="deploy", text="staging")
    lines, _ = await agent.output(staging["id"], attempt=1, grep="refused")
    return lines[0].split("connect to host ")[1].split()[0]


async def kept_warnings(agent: Agent) -> str:
    (export,), _ = await agent.page(label="audit")
    lines, more = await agent.output(export["id"], grep="disk nearly full")
    while more:
        further, more = await agent.output(export["id"], grep="disk nearly full", offset=more)
        lines += further
    return str(len(lines))


async def completed_on_the_worst_day(agent: Agent) -> str:
    days = Counter(row["when"][:10] for row in await agent.pages(kind="resize", status="failed"))
    ((day, _),) = days.most_common(1)
    bounds = {"created_after": f"{day}T00:00:00Z", "created_before": f"{day}T23:59:59.999Z"}
    return str((await agent.counts(kind="resize", **bounds))["completed"])


async def seconds_until_the_retry(agent: Agent) -> str:
    completed, _ = await agent.page(label="release-4.2", status="completed")
    for row in (row for row in completed if row["attempt"] > 1):
        attempts, events = await agent.history(row["id"])
        for event in (event for event in events if event["event"] == "retried"):
            return f"{seconds(attempts[0]['ended_at'], event['at']):g}"
    raise AssertionError


async def points_below_all(agent: Agent) -> str:
    def rate(counts: dict[str, int]) -> float:
        return 100 * counts["completed"] / (counts["completed"] + counts["failed"])

    return f"{rate(await agent.counts()) - rate(await agent.counts(label='ci')):.1f}"


async def seconds_until_the_takeover(agent: Agent) -> str:
    migrations, _ = await agent.page(label="db", text="migrate")
    for row in migrations:
        attempts, events = await agent.history(row["id"])
        for event in (event for event in events if event["event"] == "adopted"):
            return f"{seconds(attempts[0]['started_at'], event['at']):g}"
    raise AssertionError


Solver = Callable[[Agent], Awaitable[str]]
SOLVERS: dict[Solver, tuple[int, int, int]] = {  # calls, bytes of text and bytes of facts: at most
    reason_of_the_second_attempt: (9, 99999, 99999),
    longest_backup: (9, 99999, 99999),
    who_cancelled_what_worked: (9, 99999, 99999),
    first_failed_test: (9, 99999, 99999),
    host_that_refused: (9, 99999, 99999),
    kept_warnings: (9, 99999, 99999),
    completed_on_the_worst_day: (9, 99999, 99999),
    seconds_until_the_retry: (9, 99999, 99999),
    points_below_all: (9, 99999, 99999),
    seconds_until_the_takeover: (9, 99999, 99999),
}


def pairs() -> list[tuple[str, str]]:
    root = ElementTree.parse(QUESTIONS).getroot()
    assert root.tag == "evaluation"
    return [(pair.findtext("question", "").strip(), pair.findtext("answer", "").strip()) for pair in root]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("evaluation") / "state"
    anyio.run(seed, state)
    return state


def of(state: Path) -> Settings:
    return Settings(state_dir=state, **{name.removeprefix("TASKORCH_").lower(): value for name, value in KEEP.items()})


def test_there_are_ten_questions_of_one_answer_each() -> None:
    assert len(pairs()) == len(SOLVERS) == 10
    assert all(question.endswith(".") and answer for question, answer in pairs())
    assert not any(answer in question for question, answer in pairs())


@pytest.mark.parametrize("form", [Reader, Program])
@pytest.mark.parametrize("number", range(len(SOLVERS)), ids=[solver.__name__ for solver in SOLVERS])
async def test_an_agent_finds_the_answer_within_its_budget(number: int, form: type[Agent], state: Path) -> None:
    solve, (calls, of_text, of_facts) = list(SOLVERS.items())[number]
    async with running(of(state)) as app, connected(app.server, "auto") as client:
        agent = form(client)
        assert await solve(agent) == pairs()[number][1]
    assert 2 <= agent.calls <= calls
    assert agent.bytes <= (of_text if form is Reader else of_facts)
