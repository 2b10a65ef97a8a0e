"""The kill runs: the checker sees each thing that must not happen, a run has none of it, and a seeded bug is caught."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from reliability import history, mutants, record
from reliability.record import Course, Event, History, Line, Row, Start
from taskorch.storage import schema

ROOT = Path(__file__).parents[1]
TASK = "t0000000000000001"
KILLS = 100  # docs/explanation/reliability.md has the long runs
SERVER = 7  # a server's pid
ROW = Row(TASK, "work", "completed", 1, 3, 0, None, {"by": f"{TASK}/1"}, None)
GOOD = (
    Line(1.0, SERVER, "server", detail="1"),
    Line(1.1, SERVER, "ack", TASK, 0, "work 3 survive"),
    Line(1.2, SERVER, "claim", TASK, 1, "1"),
    Line(1.3, SERVER, "begin", TASK, 1),
    Line(1.4, SERVER, "beat", TASK, 1),
    Line(1.5, SERVER, "end", TASK, 1),
    Line(1.6, SERVER, "settled", TASK, 1, "1"),
)
SECOND = (
    Line(2.0, SERVER, "claim", TASK, 2, "1"),
    Line(2.1, SERVER, "begin", TASK, 2),
    Line(2.2, SERVER, "end", TASK, 2),
    Line(2.3, SERVER, "settled", TASK, 2, "1"),
)
TWICE = replace(ROW, attempt=2, result={"by": f"{TASK}/2"})
COMMAND = replace(ROW, kind="command", max_attempts=1, result={"exit_code": 0})
OTHER = "t0000000000000002"
KEYED = (
    Line(1.0, SERVER, "server", detail="1"),
    *(Line(1.1, SERVER, "ack", task, 0, "work 3 survive") for task in (TASK, OTHER)),
    *(
        Line(1.3, SERVER, word, task, 1)
        for word, task in (("begin", TASK), ("end", TASK), ("begin", OTHER), ("end", OTHER))
    ),
    *(Line(1.6, SERVER, "settled", task, 1, "1") for task in (TASK, OTHER)),
)
DONE = Start(1, "completed", None)
FAILED = Start(1, "failed", "error")


def told(lines: Iterable[Line], row: Row | None = ROW, *starts: Start, events: Iterable[Event] = ()) -> History:
    """A history of one task whose attempts are `starts`, in order; one that completed if none is given."""
    tasks = {row.id: row} if row else {}
    numbered = {(TASK, number): start for number, start in enumerate(starts or (DONE,), 1)} if row else {}
    return History(list(lines), tasks, numbered, {TASK: list(events)})


def keyed(key: str, order: Sequence[int] = (3, 4, 5, 6)) -> History:
    """Two tasks of one key: begin and end of one, begin and end of the other, in that `order`."""
    lines = [*KEYED[:3], *(KEYED[place] for place in order), *KEYED[7:]]
    tasks = {i: replace(ROW, id=i, result={"by": f"{i}/1"}, concurrency_key=key) for i in (TASK, OTHER)}
    return History(lines, tasks, {(TASK, 1): DONE, (OTHER, 1): DONE})


def broken(seen: History) -> set[str]:
    return {violation.rule for violation in history.check(seen)}


def test_a_good_history_is_called_good() -> None:
    assert history.check(told(GOOD)) == []
    assert history.check(told((*GOOD, *SECOND), TWICE, FAILED, DONE)) == []


@pytest.mark.parametrize("order", [(3, 5, 4, 6), (3, 5, 6, 4), (5, 3, 4, 6)])
def test_more_of_a_key_than_may_work_at_once_is_found(order: Sequence[int]) -> None:
    assert broken(keyed("alone-1", order)) == {"H16"}
    assert broken(keyed("pair-2", order)) == broken(keyed("alone-1")) == set()


LOST = (
    *GOOD[:2],
    Line(1.2, 8, "claim", TASK, 1, "2"),
    Line(1.25, 8, "begin", TASK, 1),
    Line(1.3, 8, "lost"),
    *SECOND[:2],
    Line(2.15, 8, "beat", TASK, 1),
    *SECOND[2:],
)
ADOPTED = (*GOOD[:6], Line(1.6, 9, "settled", TASK, 1, "2"))
RETRIED = (*GOOD[:3], Line(1.25, SERVER, "asked", TASK, 1), *GOOD[3:], *SECOND)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(told(LOST, TWICE, Start(2, "failed", "worker_lost"), DONE), id="beside a server without its lock"),
        pytest.param(told(ADOPTED, events=[Event(0, "adopted", "server 2")]), id="an adopter settles"),
        pytest.param(
            told(RETRIED, TWICE, FAILED, DONE, events=[Event(0, "retried", "a")]), id="retried when cancelled"
        ),
    ],
)
def test_what_is_allowed_is_not_called_wrong(seen: History) -> None:
    assert history.check(seen) == []


GOES_ON = Line(2.15, SERVER, "beat", TASK, 1)
CANCELLED = (*GOOD[:4], Line(1.45, SERVER, "asked", TASK, 1), *GOOD[4:], *SECOND)
ONCE = tuple(replace(line, detail="command 1 survive") if line.word == "ack" else line for line in GOOD)
ORPHANED = (*GOOD[:4], Line(2.0, SERVER, "dead", detail="9"), Line(9.0, 8, "server", detail="2"))
WORKS = replace(ROW, status="working", owner=1, result=None)


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        pytest.param("H1", told(GOOD, None), id="acknowledged, not stored"),
        pytest.param("H2", told(GOOD, replace(ROW, status="done")), id="no such status"),
        pytest.param("H2", told((*GOOD, *SECOND), TWICE, DONE, DONE), id="started again after it completed"),
        pytest.param("H2", told(GOOD, replace(ROW, status="failed"), DONE), id="completed, then failed"),
        pytest.param("H2", told(CANCELLED, TWICE, FAILED, DONE), id="cancelled, then started again"),
        pytest.param("H3", told([*GOOD[:5], GOOD[6]]), id="accepted before it came to its end"),
        pytest.param("H3", told(GOOD, replace(ROW, result={"by": f"{TASK}/2"})), id="another attempt's result"),
        pytest.param("H3", told([*GOOD[:6], replace(GOOD[6], detail="2")]), id="settled by who never held it"),
        pytest.param("H4", told([*GOOD[:4], *GOOD[3:]]), id="an attempt began twice"),
        pytest.param("H4", told((*GOOD[:2], *SECOND, *GOOD[2:]), TWICE, FAILED, DONE), id="attempts out of order"),
        pytest.param("H4", told(GOOD, replace(ROW, attempt=4), *[FAILED] * 3, DONE), id="more starts than granted"),
        pytest.param("H4", told(GOOD, replace(ROW, interruptions=6)), id="interrupted too often"),
        pytest.param("H5", told((*GOOD, GOOD[6])), id="an end accepted twice"),
        pytest.param(
            "H6", told((*GOOD, *SECOND[:2], GOES_ON, *SECOND[2:]), TWICE, FAILED, DONE), id="attempts overlap"
        ),
        pytest.param("H7", told((*GOOD, GOES_ON)), id="goes on after its end was accepted"),
        pytest.param("H10", told(ORPHANED, WORKS, Start(1, None, None)), id="a dead server's task"),
        pytest.param(
            "H13",
            told((*ONCE, *SECOND), replace(COMMAND, attempt=2, interruptions=1), FAILED, DONE),
            id="a command began twice",
        ),
        pytest.param("H13", told((*ONCE[:6], *ONCE[5:]), COMMAND), id="a command ended twice"),
        pytest.param(
            "H13",
            told(ONCE, replace(COMMAND, status="failed", result=None), Start(1, "failed", "worker_lost")),
            id="a command that ended, called lost",
        ),
    ],
)
def test_what_must_not_happen_is_found(rule: str, seen: History) -> None:
    assert rule in broken(seen)


# Order: a task that depends on the one above.


CHILD = "t0000000000000002"
BEGUN = Line(1.7, SERVER, "begin", CHILD, 1)


def ordered(policy: str, lines: Iterable[Line], parent: Row, child: Row) -> History:
    after = Line(1.05, SERVER, "after", CHILD, 0, f"{policy} {TASK}")
    seen = told((GOOD[0], after, *lines), parent)
    starts = {(CHILD, 1): DONE} if child.attempt else {}
    return replace(seen, tasks=seen.tasks | {CHILD: child}, starts=seen.starts | starts)


NEXT = replace(ROW, id=CHILD, status="working", owner=1, result=None)
BROKE = replace(ROW, status="failed", result=None)
STOPPED = replace(NEXT, status="cancelled", owner=None, attempt=0, error={"reason": "dependency"})


def test_a_task_that_began_after_the_one_before_it_is_in_order() -> None:
    assert not {"H14", "H15"} & broken(ordered("cancel", (*GOOD[1:], BEGUN), ROW, NEXT))
    assert not {"H14", "H15"} & broken(ordered("run", (*GOOD[1:], BEGUN), BROKE, NEXT))
    assert not {"H14", "H15"} & broken(ordered("cancel", GOOD[1:], BROKE, STOPPED))


def test_what_began_after_the_tables_were_read_is_not_held_against_them() -> None:
    seen = ordered("cancel", (*GOOD[1:], BEGUN), WORKS, replace(NEXT, status="waiting", attempt=0))
    assert not {"H14", "H15"} & broken(replace(seen, sure=len(seen.lines) - 1))


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        pytest.param("H14", ordered("cancel", (*GOOD[1:4], BEGUN, *GOOD[4:]), ROW, NEXT), id="began beside it"),
        pytest.param("H14", ordered("fail", (*GOOD[1:], BEGUN), BROKE, NEXT), id="began after it failed"),
        pytest.param("H15", ordered("cancel", GOOD[1:], ROW, STOPPED), id="stopped by one that completed"),
        pytest.param("H15", ordered("run", GOOD[1:], BROKE, STOPPED), id="stopped, and it does not mind"),
    ],
)
def test_a_wrong_order_is_found(rule: str, seen: History) -> None:
    assert rule in broken(seen)


# Schedules.


def course(*times: int, created: int | None = None, events: Iterable[Event] = ()) -> History:
    """One whose times are 1000, 2000, 3000 and so on, which fired at these."""
    count = len(times) if created is None else created
    return replace(told(GOOD, events=events), schedules={TASK: Course(1000, 1000, list(times), count)})


def test_a_schedule_that_fired_at_each_of_its_times_once_is_sound() -> None:
    assert "H17" not in broken(course())
    assert "H17" not in broken(course(3000, 4000, 5000))
    assert "H17" not in broken(course(3000, 9000, events=[Event(0, "retried", "client")]))


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(course(1000, 3000), id="a time without its firing"),
        pytest.param(course(1000, 2000, 2500), id="a firing at no time of its"),
        pytest.param(course(1000, 2000, created=3), id="two tasks for a time"),
        pytest.param(course(1000, 2000, created=1), id="a firing without its task"),
    ],
)
def test_a_wrong_firing_is_found(seen: History) -> None:
    assert "H17" in broken(seen)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run in which nothing happened."""
    (tmp_path / "state" / "servers").mkdir(parents=True)
    (tmp_path / "journal").touch()
    with sqlite3.connect(tmp_path / "state" / "taskorch.db") as db:
        schema.migrate(db)
    db.close()
    return tmp_path


def at_the_end(seen: History, folder: Path) -> set[str]:
    return {violation.rule for violation in history.check_end(seen, folder)}


def test_an_empty_run_is_sound(folder: Path) -> None:
    assert history.check_end(record.read(folder), folder) == []


def test_a_task_that_has_not_ended_is_found(folder: Path) -> None:
    waits = replace(ROW, status="waiting", result=None)
    assert at_the_end(told(GOOD, waits, FAILED), folder) == {"H10"}


def test_a_damaged_file_is_found(folder: Path) -> None:
    with sqlite3.connect(folder / "state" / "taskorch.db") as db:
        db.execute("UPDATE counts SET tasks = 1 WHERE status = 'failed' AND priority = 0")
    db.close()
    assert at_the_end(told(GOOD), folder) == {"H11"}


def test_a_file_that_a_server_left_is_found(folder: Path) -> None:
    (folder / "state" / "servers" / "0.lock").touch()
    assert at_the_end(told(GOOD), folder) == {"H12"}


def test_a_process_that_a_task_left_is_found(folder: Path) -> None:
    left = subprocess.Popen(
        ["/bin/sh", "-c", "echo up; read -r _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TASKORCH_TASK_ID": TASK},
    )
    with left:
        assert left.stdin and left.stdout and left.stdout.readline() == b"up\n"
        assert at_the_end(told(GOOD), folder) == {"H12"}
        left.stdin.write(b"\n")


def proof(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a proof as the command line does."""
    command = [sys.executable, "-m", "reliability", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def test_kills_of_4_servers_break_nothing(tmp_path: Path) -> None:
    run = proof("kills", "--kills", str(KILLS), "--servers", "4", "--folder", str(tmp_path), seconds=60 + KILLS)
    assert run.returncode == 0, run.stdout + run.stderr
    seen = record.read(tmp_path)
    words = {line.word for line in seen.lines}
    assert {"kill", "point", "resume", "adopt", "refused", "settled"} <= words, "it hardly proved anything"
    assert len([line for line in seen.of("dead") if line.detail == "9"]) >= KILLS


BUGS = ("unbounded-retries", "claim-race", "unfenced-by-id", "order-ignored", "limit-ignored", "limit-counted-before")


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_caught_by_the_rule_that_it_breaks(bug: str) -> None:
    _, first = mutants.catch(bug, 1)
    assert first and first.split()[0] in mutants.MUTANTS[bug].breaks


def test_a_bug_that_only_stops_its_servers_counts_as_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "VIOLATION H10 t0: it is working, and its server 1 died\nVIOLATION H12 - server: ended by itself\n"
    done = subprocess.CompletedProcess([], 1, stdout=told, stderr="")
    monkeypatch.setattr(mutants.subprocess, "run", lambda *args, **options: done)
    assert mutants.catch("claim-race", 1)[1] is None
    assert mutants.catch("no-take-over", 1)[1]


def test_the_checker_knows_nothing_of_the_program() -> None:
    for module in (history, record):
        text = Path(module.__file__ or "").read_text()
        assert "import taskorch" not in text and "from taskorch" not in text
