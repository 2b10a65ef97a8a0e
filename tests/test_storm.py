"""Eight processes on one file, and the checks that would notice if one of them failed."""

import subprocess
import sys

import pytest

from reliability import storm
from reliability.storm import BUSY_SECONDS, STOPPED_SECONDS, WRITES, Call

GOOD = [Call(name, 1.0, 5.0) for name in (*WRITES, "list")]
BEGUN = 100.0
ENDED = BEGUN + STOPPED_SECONDS
REFUSED = Call("edit", BEGUN + 0.1, BUSY_SECONDS * 1000, f"{storm.BUSY}: ...")
READ = Call("list", BEGUN + 0.1, 2.0)
AGAIN = Call("create", ENDED + 1, 2.0)


def test_a_good_round_has_no_complaints() -> None:
    assert storm.complaints(GOOD, storm.P99_MS) == []
    assert storm.stop_complaints([READ, REFUSED, AGAIN], BEGUN, ENDED) == []


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (Call("edit", 1.0, 5.0, "database is locked"), "1 times: database is locked"),
        (Call("list", 1.0, 5.0, "boom"), "1 times: boom"),
        (Call("list", 1.0, 300.0), "list took too long"),
        (Call("claim", 1.0, 3_000.0), "claim took too long"),
    ],
)
def test_a_failed_or_slow_call_is_complained_of(call: Call, word: str) -> None:
    (text,) = storm.complaints([*GOOD, call], storm.P99_MS)
    assert word in text


def test_an_operation_that_was_never_tried_proves_nothing() -> None:
    assert storm.complaints(GOOD[1:]) == ["no create was made"]


@pytest.mark.parametrize(
    ("calls", "word"),
    [
        ([REFUSED, AGAIN], "0 reads"),
        ([READ._replace(ms=60.0), REFUSED, AGAIN], "p99 60 ms"),
        ([READ._replace(error=storm.BUSY), REFUSED, AGAIN], "error: "),
        ([READ, REFUSED._replace(error="database is locked"), AGAIN], "error: "),
        ([READ, REFUSED._replace(error=""), AGAIN], "not refused in time"),
        ([READ, REFUSED._replace(ms=BUSY_SECONDS * 2_000), AGAIN], "not refused in time"),
        ([READ, AGAIN], "0 writes refused"),
        ([READ, REFUSED], "then 0"),
        ([READ, REFUSED, AGAIN._replace(error=f"{storm.BUSY}: ...")], "error: "),
    ],
)
def test_whatever_goes_wrong_beside_a_stopped_process_is_complained_of(calls: list[Call], word: str) -> None:
    assert word in storm.stop_complaints(calls, BEGUN, ENDED)[0]


def test_eight_processes_on_one_file_get_no_error_and_outlast_one_that_is_stopped() -> None:
    command = [sys.executable, "-m", "reliability", "storm", "--processes", "8", "--seconds", "2.5"]
    command += ["--p99", "1000"]  # other tests may run beside it
    run = subprocess.run(command, cwd=storm.ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("storm: 0 wrong\n")
