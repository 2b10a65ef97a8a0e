"""The goals as data: what a release keeps (floor), what we reach for (stretch), and where a run stands."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import sub, truediv

from benchmarks.results import Results
from benchmarks.table import number

Measured = Callable[[Results], float | None]


@dataclass(frozen=True)
class Goal:
    """`most`: it is met by values up to the floor instead of from it on. `unit`: "x" for ratios."""

    name: str
    measured: Measured
    floor: float
    stretch: float | None = None
    most: bool = False
    unit: str = "x"

    def met(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        if self.stretch is not None and self._reaches(value, self.stretch):
            return "met, stretch too"
        return "met" if self._reaches(value, self.floor) else "**not met**"

    def _reaches(self, value: float, bound: float) -> bool:
        return value <= bound if self.most else value >= bound


def ours(figure: str) -> Measured:
    return lambda results: results.median(("taskorch", figure))


def worst(figure: str) -> Measured:
    return lambda results: results.worst(("taskorch", figure))


def to(queue: str, figure: str, base: str = "") -> Measured:
    """Our figure to the same one, or to `base`, of another queue or of ours."""
    return lambda results: results.ratio(("taskorch", figure), (queue, base or figure))


def over(figure: str, base: str) -> Measured:
    """How much more one figure of ours is than another."""

    def measured(results: Results) -> float | None:
        one, other = ours(figure)(results), ours(base)(results)
        return None if one is None or other is None else one - other

    return measured


def ratio_of(row: str) -> Measured:
    """That of a row of another program here."""
    return lambda results: (found := results.row(row)) and found.ratio


def value_of(row: str) -> Measured:
    return lambda results: (found := results.row(row)) and found.value


def between(row: str, base: str) -> Measured:
    """One row's value to another's."""
    return lambda results: _both(results, row, base, truediv)


def more(row: str, base: str) -> Measured:
    """How much more one row's value is than another's."""
    return lambda results: _both(results, row, base, sub)


def _both(results: Results, row: str, base: str, reckon: Callable[[float, float], float]) -> float | None:
    one, other = results.row(row), results.row(base)
    return reckon(one.value, other.value) if one and other else None


EMPTY, USED = "empty server of the SDK", "existing folder"
NO_OP, CREATE, GET = "lowlevel, our stdio", "taskorch create_task", "taskorch get_task"
ENDED, SCHEDULED = "backlog 1k above 1M ended cpu", "backlog 1k beside 1M scheduled cpu"
US, MS, MB = ({"most": True, "unit": unit} for unit in ("us", "ms", "MB"))
NONE = {"most": True, "unit": ""}

GOALS = (
    Goal("drain, to huey", to("huey", "drain"), 15, 25),
    Goal("drain, to the raw loop", to("raw", "drain"), 0.40, 0.55),
    Goal("drain, to pgqueuer", to("pgqueuer", "drain"), 5),
    Goal("drain, to fastmcp-tasks", to("fastmcp-tasks", "drain"), 100),
    Goal("CPU a task", ours("drain cpu"), 40, 25, **US),
    Goal("create, 1 caller, to a raw commit", to("raw", "create 1"), 0.6),
    Goal("create, 64 callers, to a raw commit", to("raw", "create 64", "create 1"), 8, 12),
    Goal("create, 1000 in a call, to raw `executemany`", to("raw", "bulk"), 0.3),
    Goal("pickup p50, to a raw commit at an idle moment", to("raw", "pickup p50"), 2, most=True),
    Goal("pickup p99", ours("pickup p99"), 15, **MS),
    Goal("pickup p95 in another process, more than in the same", over("remote p95", "pickup p95"), 5, **MS),
    Goal("CPU a task, 100,000 waiting, to 1,000", to("taskorch", "backlog 100k cpu", "backlog 1k cpu"), 1.2, most=True),
    Goal("CPU a task, 1,000,000 waiting, to 1,000", to("taskorch", "backlog 1M cpu", "backlog 1k cpu"), 1.2, most=True),
    Goal("bytes a task, the same", to("taskorch", "backlog 1M bytes", "backlog 1k bytes"), 1.2, most=True),
    Goal("CPU a task, above 1,000,000 ended", to("taskorch", ENDED, "backlog 1k cpu"), 1.2, most=True),
    Goal("CPU a task, beside 1,000,000 scheduled", to("taskorch", SCHEDULED, "backlog 1k cpu"), 1.2, most=True),
    Goal("8 processes create 100/s each: errors", worst("paced 8 errors"), 0, **NONE),
    Goal("8 processes create 100/s each: p99", ours("paced 8 p99"), 25, **MS),
    Goal("the same while each also works: p99", ours("crowd 8 p99"), 25, **MS),
    Goal("kill -9: tasks lost", worst("kill lost"), 0, **NONE),
    Goal("kill -9: until work resumes", ours("kill resumes"), 1000, **MS),
    Goal("a no-op over our transport, 1 in flight, to MCPServer's", ratio_of(f"{NO_OP}, 1 in flight"), 2),
    Goal("a no-op over our transport, 64 in flight, to MCPServer's", ratio_of(f"{NO_OP}, 64 in flight"), 3),
    Goal("`get_task`, 1 in flight, to MCPServer's no-op", ratio_of(f"{GET}, 1 in flight"), 2),
    Goal("`get_task`, 64 in flight, to MCPServer's no-op", ratio_of(f"{GET}, 64 in flight"), 3),
    Goal("`create_task`, 1 in flight, to `get_task`", between(f"{CREATE}, 1 in flight", f"{GET}, 1 in flight"), 0.6),
    Goal("`create_task`, 64 in flight, to `get_task`", between(f"{CREATE}, 64 in flight", f"{GET}, 64 in flight"), 0.6),
    Goal("a command, 8 at a time, to a bare process", ratio_of("attempt, 8 at a time"), 0.5),
    Goal("first `tools/list`, to an empty server", ratio_of(f"start, {USED}"), 1.15, most=True),
    Goal("memory when idle, more than an empty server", more(f"idle RSS, {USED}", f"idle RSS, {EMPTY}"), 10, **MB),
    Goal("CPU when idle", value_of(f"idle CPU, {USED}"), 0.1, most=True, unit="%"),
)


def table(results: Results, only_measured: bool = False) -> list[list[str]]:
    """Goal, floor, stretch, measured, whether it is met."""
    lines: list[list[str]] = []
    for goal in GOALS:
        value = goal.measured(results)
        if value is None and only_measured:
            continue
        sign = "≤" if goal.most else "≥"
        bounds = ["" if one is None else f"{sign} {_with_unit(one, goal.unit)}" for one in (goal.floor, goal.stretch)]
        lines.append([goal.name, *bounds, "" if value is None else _with_unit(value, goal.unit), goal.met(value)])
    return lines


def _with_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".strip()
