"""What a run has found: saved as JSON, asked for medians and for ratios within a round."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.table import Row

Of = tuple[str, str]  # a queue and a figure of it


@dataclass
class Results:
    """`rounds`: by queue and figure, the value of each round."""

    machine: dict[str, str] = field(default_factory=dict[str, str])
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list[dict[str, dict[str, float]]])
    rows: list[Row] = field(default_factory=list[Row])  # of programs that reckon for themselves
    skipped: dict[str, str] = field(default_factory=dict[str, str])  # what was not measured, and why

    def add(self, number: int, queue: str, figures: dict[str, float]) -> None:
        while len(self.rounds) <= number:
            self.rounds.append({})
        self.rounds[number].setdefault(queue, {}).update(figures)

    def values(self, of: Of) -> dict[int, float]:
        """By round."""
        queue, figure = of
        found = {number: values.get(queue, {}).get(figure) for number, values in enumerate(self.rounds)}
        return {number: value for number, value in found.items() if value is not None}

    def median(self, of: Of) -> float | None:
        values = self.values(of).values()
        return statistics.median(values) if values else None

    def worst(self, of: Of) -> float | None:
        return max(self.values(of).values(), default=None)

    def ratio(self, of: Of, to: Of) -> float | None:
        """The median of what each round's value is to the same round's other one."""
        own, base = self.values(of), self.values(to)
        both = [own[number] / base[number] for number in own if base.get(number)]
        return statistics.median(both) if both else None

    def row(self, name: str) -> Row | None:
        return next((one for one in self.rows if one.name == name), None)

    @property
    def queues(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(queue for values in self.rounds for queue in values))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(path: Path) -> Results:
    """Raises OSError, and ValueError when the file holds no results of ours."""
    try:
        found = Results(**json.loads(path.read_text()))
        found.rows = [Row(**row) for row in found.rows]  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this program: {error}") from None
    return found
