"""Plots of saved results, in an environment that has matplotlib: python -m benchmarks.plots RESULTS.json FOLDER

Their background is transparent and their ink grey, so that they can be read on a light page and on a dark one.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.phases import CALLERS
from benchmarks.results import Results, load

INK, OURS, LIMIT = "#808891", "#e8590c", "#2f9e44"
OTHERS = {
    "obvious": "#7c8dff", "huey": "#3b8eea", "litequeue": "#18a5b5", "fastmcp-tasks": "#c77dff",
    "pgqueuer": "#d6459a", "procrastinate": "#b08930",
}  # fmt: skip
COLOURS = {"taskorch": OURS, "raw": LIMIT, **OTHERS}
LABELS = {
    "raw": "raw sqlite3", "obvious": "aiosqlite, obvious code", "litequeue": "litequeue (no fsync)",
    "fastmcp-tasks": "fastmcp-tasks (memory)", "pgqueuer": "pgqueuer (PostgreSQL)",
    "procrastinate": "procrastinate (PostgreSQL)",
}  # fmt: skip
SIZES = {"1k": 1_000, "100k": 100_000, "1M": 1_000_000}
BESIDE = {"1k above 1M ended": "s", "1k beside 1M scheduled": "D"}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "taskorch",
    "font.family": "sans-serif", "font.size": 11, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titleweight": "bold", "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}  # fmt: skip


def drain(results: Results, axes: Any) -> None:
    found = {queue: results.median((queue, "drain")) for queue in results.queues}
    rates = sorted((rate, queue) for queue, rate in found.items() if rate)
    if not rates:
        return
    names = [_label(queue) for _, queue in rates]
    bars = axes.barh(names, [rate for rate, _ in rates], color=[COLOURS[queue] for _, queue in rates])
    axes.bar_label(bars, [f"{rate:,.0f}" for rate, _ in rates], padding=4, color=INK)
    axes.set_xscale("log")
    axes.set_xlim(right=rates[-1][0] * 4)
    axes.set_title("Tasks drained a second")


def creates(results: Results, axes: Any) -> None:
    ends: list[tuple[float, str]] = []
    for queue in _others_first(results):
        rates = [results.median((queue, f"create {callers}")) for callers in CALLERS]
        if all(rates):
            axes.plot(CALLERS, rates, marker="o", **_line(queue))
            ends.append((rates[-1] or 0, queue))
    axes.set(xscale="log", yscale="log", xlabel="callers at once")
    axes.set_xticks(CALLERS, [str(callers) for callers in CALLERS], minor=False)
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(top=axes.get_ylim()[1] * 1.5)
    _name_ends(axes, CALLERS[-1], ends, 1.25)
    axes.set_title("Tasks created a second, one a call")


def backlog(results: Results, axes: Any) -> None:
    for queue in ("raw", "taskorch"):
        costs = {size: results.median((queue, f"backlog {name} cpu")) for name, size in SIZES.items()}
        found = {size: cost for size, cost in costs.items() if cost}
        if found:
            label = f"{_label(queue)}, so many waiting"
            axes.plot(list(found), list(found.values()), marker="o", label=label, **_line(queue))
        for name, marker in BESIDE.items():
            if cost := results.median((queue, f"backlog {name} cpu")):
                label = f"{_label(queue)}, {name.replace('1k', '1,000').replace('1M', '1,000,000')}"
                axes.plot([1000], [cost], marker, markersize=9, mfc="none", mew=1.8, color=COLOURS[queue], label=label)
    axes.set(xscale="log", xlabel="tasks waiting in the file", ylabel="CPU, us a task")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if axes.has_data():
        axes.legend(frameon=False, fontsize=9, loc="center right")
    axes.set_title("Claiming and settling, by what lies in the store")


def pickup(results: Results, axes: Any) -> None:
    found = [(results.median((queue, "pickup p50")), queue) for queue in results.queues]
    waits = sorted(((p50, queue) for p50, queue in found if p50), reverse=True)
    for place, (p50, queue) in enumerate(waits):
        p99 = results.median((queue, "pickup p99")) or p50
        axes.plot([p50, p99], [place, place], color=COLOURS[queue], linewidth=5, solid_capstyle="round", alpha=0.55)
        axes.plot([p50], [place], "o", color=COLOURS[queue], markersize=9)
        axes.annotate(f"{p50:.1f} to {p99:.1f} ms", (p99, place), (8, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(waits)), [_label(queue) if queue != "raw" else "one raw commit" for _, queue in waits])
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    axes.set_title("From a create to its start by an idle worker: p50 to p99")


def draw(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for plot in (drain, creates, backlog, pickup):
            figure, axes = plt.subplots(figsize=(8.2, 4.2), layout="constrained")
            plot(results, axes)
            if not axes.has_data():
                continue  # nothing of it was measured
            axes.grid(axis="x" if plot in (drain, pickup) else "y", color=INK, alpha=0.25, linewidth=0.6)
            axes.set_axisbelow(True)
            figure.savefig(folder / f"{plot.__name__}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def _name_ends(axes: Any, x: float, ends: list[tuple[float, str]], apart: float) -> None:
    """Each line's name at its right end, by that factor apart from the next."""
    at = 0.0
    for rate, queue in sorted(ends):
        at = max(rate, at * apart)
        axes.annotate(_label(queue), (x, at), (8, 0), textcoords="offset points", va="center", color=COLOURS[queue])


def _others_first(results: Results) -> list[str]:
    return sorted(results.queues, key=lambda queue: queue == "taskorch")


def _line(queue: str) -> dict[str, Any]:
    return {"color": COLOURS[queue], "linewidth": 3 if queue == "taskorch" else 1.6}


def _label(queue: str) -> str:
    return LABELS.get(queue, queue)


if __name__ == "__main__":
    draw(load(Path(sys.argv[1])), Path(sys.argv[2]))
