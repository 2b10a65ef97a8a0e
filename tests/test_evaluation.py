"""The questions for models can be answered with our tools alone, from either form of the replies, in few calls."""

import json
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import connected
from evals.agents import Agent, Program, Reader, seconds
from evals.seed import KEEP, seed

from taskorch.app import running
from taskorch.config import Settings
from taskorch.engine import DAY_MS
from taskorch.storage.rows import COLUMNS

ROOT = Path(__file__).parents[1]
QUESTIONS = ROOT / "tests" / "evals" / "questions.xml"


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
SOLVERS: dict[Solver, tuple[int, int, int]] = {  # calls, bytes of text, bytes of facts: at most
    reason_of_the_second_attempt: (2, 1_500, 2_500),
    longest_backup: (6, 2_000, 3_200),
    who_cancelled_what_worked: (2, 1_200, 1_900),
    first_failed_test: (3, 1_300, 2_000),
    host_that_refused: (2, 400, 600),
    kept_warnings: (3, 3_200, 3_300),
    completed_on_the_worst_day: (3, 2_700, 6_600),
    seconds_until_the_retry: (2, 1_300, 2_000),
    points_below_all: (2, 500, 700),
    seconds_until_the_takeover: (2, 1_200, 1_800),
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


async def test_a_server_leaves_the_seeded_week_as_it_was(state: Path) -> None:
    before = rows(state)
    for settings in (of(state), of(state).model_copy(update={"allow_commands": "*"})):
        async with running(settings) as app:
            await app.service.store.promote()
            await app.service.store.purge(round(settings.keep_days * DAY_MS), round(settings.keep_failed_days * DAY_MS))
            assert app.worker.busy == 0
        assert rows(state) == before


def rows(state: Path) -> dict[str, list[Any]]:
    """All that is stored of tasks but their rank, which rises while they wait, and the files of their output."""
    columns = {"tasks": ", ".join(name for name in COLUMNS if name != "rank"), "attempts": "*", "events": "*"}
    with closing(sqlite3.connect(state / "taskorch.db")) as db:
        tables = {table: db.execute(f"SELECT {names} FROM {table}").fetchall() for table, names in columns.items()}
    return tables | {"files": sorted((str(path), path.stat().st_size) for path in (state / "output").rglob("*"))}


async def test_the_seed_is_the_same_each_time(state: Path, tmp_path: Path) -> None:
    await seed(tmp_path / "state")
    files = [(path.removeprefix(str(state)), size) for path, size in rows(state).pop("files")]
    again = rows(tmp_path / "state")
    assert files == [(path.removeprefix(str(tmp_path / "state")), size) for path, size in again.pop("files")]
    assert again == {name: found for name, found in rows(state).items() if name != "files"}


def test_the_seed_prints_how_a_host_starts_a_server_on_it(tmp_path: Path) -> None:
    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.evals.seed", str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    entry = json.loads(run().stdout)["mcpServers"]["taskorch"]
    assert entry["env"] == {"TASKORCH_STATE_DIR": str(tmp_path / "state"), **KEEP}
    assert (tmp_path / "state" / "taskorch.db").exists()
    assert "exists already" in run().stderr
