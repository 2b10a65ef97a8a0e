"""A figure, and how figures are told."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A median over the rounds; `ratio` is the median of what each round's value is to the same round's `base`."""

    name: str
    value: float
    unit: str  # "/s", "ms", "us", "bytes", "%", "MB", or what is counted
    ratio: float | None = None
    base: str = ""  # the row that it is compared with


def row(name: str, unit: str, rounds: Sequence[Mapping[str, float]], base: str = "") -> Row:
    """The row of `name` from the values of each round, by name; rounds without it are left out.

    Raises StatisticsError when no round has it.
    """
    value = statistics.median(values[name] for values in rounds if name in values)
    both = [values[name] / values[base] for values in rounds if name in values and values.get(base)]
    return Row(name, value, unit, statistics.median(both) if both else None, base)


def markdown(rows: Sequence[Row]) -> str:
    """A table, one line a row."""
    lines = ["| what | value | ratio | to |", "|---|---|---|---|"]
    for one in rows:
        ratio = "" if one.ratio is None else number(one.ratio)
        lines.append(f"| {one.name} | {number(one.value)} {one.unit} | {ratio} | {one.base if ratio else ''} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that matter, thousands with a comma."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
