"""How smoothly the board shows 5,000 tasks of which 100 change each second: long tasks and frames, in Chromium.

python -m tests.smoothness

A long task is one that keeps the page from answering for 50 ms. The numbers mean something on a quiet machine alone.
"""

import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

sys.path.insert(0, str(Path(__file__).parent))

import browsers
from browsers import Host, hosted, launched
from clients import STATUSES, Facts, connected, settings

from taskorch.app import running

TASKS, CHANGES_A_SECOND = 5_000, 100
PAGE = 500
SECONDS = 12.0
OBSERVE = """() => {
  window.long = []; window.frames_ = [];
  const note = list => list.getEntries().forEach(entry => long.push(entry.duration));
  new PerformanceObserver(note).observe({type: 'longtask'});
  let before = performance.now();
  const frame = now => { frames_.push(now - before); before = now; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}"""


class Busy:
    """Answers `board_data` like a server where much goes on: each time other rows have changed."""

    def __init__(self) -> None:
        self._chance = random.Random(1)
        self._asked = datetime.now(UTC)
        self._rows = [self._row(n) for n in range(TASKS)]

    def answer(self, given: Facts) -> Facts:
        now = datetime.now(UTC)
        counts = Counter(row["status"] for row in self._rows)
        facts: Facts = {
            "now": _iso(now),
            "counts": {status: counts[status] for status in STATUSES},
            "servers": 1,
            "since": "m1.1.1.1",
        }
        if "since" in given:
            number = min(900, round((now - self._asked).total_seconds() * CHANGES_A_SECOND))
            self._asked = now
            changed = self._chance.sample(self._rows, number)
            for row in changed:
                self._become(row, self._chance.choice(STATUSES), now - timedelta(minutes=1))
            return facts | {"tasks": changed, "gone": []}
        begin = int(given.get("cursor", "c0")[1:])
        more = {"next_cursor": f"c{begin + PAGE}"} if begin + PAGE < TASKS else {}
        return facts | {"tasks": self._rows[begin : begin + PAGE]} | more

    def _row(self, n: int) -> Facts:
        created = self._asked - timedelta(seconds=self._chance.randint(60, 80_000))
        row: Facts = {"id": f"t{n:016d}", "name": f"task number {n} of a big batch", "kind": "command", "version": 0}
        row |= {"priority": "medium", "attempt": 3, "max_attempts": 3, "labels": ["batch"], "created_at": _iso(created)}
        self._become(row, self._chance.choice(("completed",) * 6 + STATUSES), created)
        return row

    def _become(self, row: Facts, status: str, begin: datetime) -> None:
        def at(seconds: int) -> str:
            return _iso(begin + timedelta(seconds=seconds))

        for name in ("phase", "error", "progress", "started_at", "finished_at"):
            row.pop(name, None)
        row |= {"status": status, "version": row["version"] + 1}
        row |= {"phase": "ready"} if status == "waiting" else {"started_at": at(5)}
        row |= {"progress": {"value": 3, "total": 10, "message": "step 3"}} if status == "working" else {}
        row |= {"finished_at": at(30)} if status in ("completed", "failed", "cancelled") else {}
        row |= {"error": {"reason": "exit_code", "message": "boom", "exit_code": 2}} if status == "failed" else {}
        row["runs"] = [
            {"attempt": n, "started_at": at(10 * n - 5), "ended_at": at(10 * n), "outcome": "failed"} for n in (1, 2, 3)
        ]


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _watch(_: Host) -> None:
    await anyio.sleep(SECONDS)


async def _scroll(host: Host) -> None:
    for _ in range(100):
        await host.frame.evaluate("document.querySelector('#view-board .list').scrollTop += 900")
        await anyio.sleep(SECONDS / 100)


async def measure(host: Host, name: str, tab: str, do: Callable[[Host], Awaitable[None]]) -> None:
    """Print what one view does to the page while something is done with it."""
    await host.board.locator(f"#tab-{tab}").click()
    await anyio.sleep(1)
    await host.frame.evaluate("long.length = 0, frames_.length = 0")
    await do(host)
    found: tuple[list[float], list[float]] = await host.frame.evaluate("[long, frames_.sort((a, b) => a - b)]")
    long, frames = found
    told = ", ".join(f"{each:.0f} ms" for each in long) or "none"
    p99 = frames[int(0.99 * len(frames))]
    line = f"{name}: long tasks {told}; {len(frames) / SECONDS:.0f} frames a second, p99 {p99:.0f} ms"
    print(f"{line}, worst {frames[-1]:.0f} ms")  # noqa: T201 - for who runs this file by hand


async def main() -> None:
    browsers.FLAGS[:] = [flag for flag in browsers.FLAGS if "Isolate" not in flag]  # a process of its own, as hosts do
    with TemporaryDirectory() as folder:
        async with (
            running(settings(Path(folder), toolsets="core,board")) as app,
            connected(app.server, "auto") as client,
            launched() as browser,
            hosted(browser, client) as host,
        ):
            host.answers["board_data"] = Busy().answer
            await host.show(width=960, height=700, containerDimensions={"height": 700})
            await host.frame.wait_for_function(f"() => model.loaded && model.rows.size === {TASKS}")
            await host.frame.evaluate(OBSERVE)
            await measure(host, "board", "board", _watch)
            await measure(host, "timeline", "timeline", _watch)
            await measure(host, "board, scrolled over 90,000 px", "board", _scroll)


if __name__ == "__main__":
    anyio.run(main)
