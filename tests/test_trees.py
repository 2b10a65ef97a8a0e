"""A part of `python -m reliability trees`: trees that are hard to end, each end once; and that it sees what is left."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taskorch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

ROOT = Path(__file__).parents[1]
HARD = ("double-fork", "ignores-term", "fork-bomb")
SECONDS = 60.0  # for what should take a third of it


def trees(*options: str, source: Path = Path(taskorch.__file__).parents[1]) -> tuple[int, str]:
    """The exit code and the report of one round, with taskorch from that folder."""
    done = subprocess.run(
        [sys.executable, "-m", "reliability", "trees", "--rounds", "1", *options],
        env=os.environ | {"PYTHONPATH": f"{source}:{ROOT}"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout


def test_nothing_is_left_of_a_tree_however_it_ends() -> None:
    code, report = trees(*(word for shape in HARD for word in ("--shape", shape)))
    assert code == 0, report
    assert re.search(r"^24 cells, 0 failed", report, re.MULTILINE), report


@pytest.mark.parametrize(
    ("broken", "instead", "end", "said"),
    [
        # The group alone is killed: what has left it stays.
        ("self._kill_tree(give_up)", "_signal_group(self._child, 9); return True", "cancel", "processes alive when"),
        # Nobody looks for what a killed supervisor leaves.
        ("seen.add(pid)", "return 0, []", "shim killed", "processes alive when"),
    ],
    ids=["group only", "leftovers ignored"],
)
def test_what_is_left_is_seen(tmp_path: Path, broken: str, instead: str, end: str, said: str) -> None:
    shutil.copytree(Path(taskorch.__file__).parent, tmp_path / "taskorch", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "taskorch" / "work" / ("shim.py" if "self" in broken else "leftovers.py")
    text = source.read_text()
    assert text.count(broken) == 1
    source.write_text(text.replace(broken, instead))
    code, report = trees("--shape", "double-fork", "--end", end, source=tmp_path)
    assert code == 1, report
    assert said in report, report
