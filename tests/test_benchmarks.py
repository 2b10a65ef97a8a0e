"""The benchmarks run, and say what they found: also what was not met and what could not be measured."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import goals, report
from benchmarks.results import Results, load
from benchmarks.table import row

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_command_measures_taskorch_beside_the_limit_and_keeps_what_it_found(tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    told = run("--quick", "--only", "drain,raw", "--folder", str(tmp_path), "--save", str(saved))
    found = load(saved)
    ours, limit = found.median(("taskorch", "drain")), found.median(("raw", "drain"))
    assert ours and limit and found.queues == ["raw", "taskorch"]
    assert "| drain, to the raw loop | ≥ 0.40 x | ≥ 0.55 x |" in told
    assert f"{limit:,.0f}" in told and f"{ours:,.0f}" in told
    assert run("--load", str(saved), "--only", "drain") == told
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def test_a_ratio_compares_what_was_measured_in_the_same_round() -> None:
    found = Results()
    for number, (ours, other) in enumerate([(10, 1), (40, 8), (90, 6)]):
        found.add(number, "taskorch", {"drain": ours})
        found.add(number, "huey", {"drain": other})
    found.add(3, "taskorch", {"drain": 1000})  # the other one failed in this round
    assert found.ratio(("taskorch", "drain"), ("huey", "drain")) == 10
    rounds = [{"a": 10.0, "b": 1.0}, {"a": 40.0, "b": 8.0}, {"a": 90.0, "b": 6.0}, {"a": 1000.0}]
    assert row("a", "/s", rounds, "b").ratio == 10


@pytest.mark.parametrize(
    ("rate", "told"),
    [(14, "14 x | **not met** |"), (15, "15 x | met |"), (25, "25 x | met, stretch too |")],
)
def test_a_goal_that_is_missed_is_shown_as_missed(rate: float, told: str) -> None:
    found = Results()
    found.add(0, "huey", {"drain": 1})
    found.add(0, "taskorch", {"drain": rate})
    lines = report.text(found).splitlines()
    assert f"| drain, to huey | ≥ 15 x | ≥ 25 x | {told}" in lines
    assert "| CPU a task | ≤ 40 us | ≤ 25 us |  | not measured |" in lines


def test_a_bound_from_above_is_met_from_below() -> None:
    goal = goals.Goal("errors", lambda _: None, 0, most=True)
    assert goal.met(0) == "met" and goal.met(1) == "**not met**" and goal.met(None) == "not measured"


def test_what_could_not_be_measured_is_named_with_the_reason() -> None:
    found = Results(skipped={"litequeue": "it needs Python 3.12"})
    assert "- litequeue: it needs Python 3.12" in report.text(found)


def test_the_document_gets_the_tables_between_its_markers_and_keeps_the_rest(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(Results(skipped={"huey": "no network"}), document)
    written = document.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "- huey: no network" in written and "old" not in written
    report.write(Results(), document)
    assert "huey: no network" not in document.read_text()
    document.write_text("no markers")
    with pytest.raises(ValueError, match="figures: begin"):
        report.write(Results(), document)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "drian"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "unknown: drian" in done.stderr and "drain" in done.stderr
