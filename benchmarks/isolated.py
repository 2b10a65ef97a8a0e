"""What a process of its own costs: attempts of an isolated handler that does nothing, one after another and at once.

.venv/bin/python benchmarks/isolated.py [runs]
"""

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from taskorch import handler
from taskorch.domain.task import BLANK, Completed, with_values
from taskorch.work.attempt import Attempt
from taskorch.work.isolated import Isolated

AT_ONCE = 8


@handler("nothing", isolate=True)
def nothing(payload: dict[str, Any]) -> None:
    """Does nothing."""


async def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state" / "output"
        folder.parent.mkdir()
        kind = Isolated(nothing, 1, modules="isolated", folder=folder, grace_seconds=5, start=folder.parent)

        async def run(number: int) -> float:
            task = with_values(BLANK, seq=1, id=f"t{number:016d}", kind="nothing", attempt=1, timeout_seconds=60.0)
            began = time.perf_counter()
            outcome = await kind.run(Attempt(task, lambda attempt: None))
            assert isinstance(outcome, Completed), outcome
            return 1000 * (time.perf_counter() - began)

        await run(0)  # compiles what is to be compiled
        before = _cpu_seconds()
        taken = sorted([await run(number) for number in range(1, runs + 1)])
        cpu = _cpu_seconds() - before
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for number in range(AT_ONCE):
                group.start_soon(run, runs + 1 + number)
        together = 1000 * (time.perf_counter() - began)
    figures = {
        "runs": runs,
        "best_ms": round(taken[0]),
        "median_ms": round(statistics.median(taken)),
        "p95_ms": round(taken[int(0.95 * (runs - 1))]),
        "cpu_ms": round(1000 * cpu / runs),
        f"{AT_ONCE}_at_once_ms": round(together),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(figures))


def _cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 30)
