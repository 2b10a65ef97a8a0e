"""Tasks as rows: a table for people, words between tabs for programs."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from taskorch.calls.replies import progress_text
from taskorch.calls.wording import Facts, visible_line
from taskorch.cli.invocation import is_for_people

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NOTHING = "-"
STYLES = {"waiting": "yellow", "working": "cyan", "completed": "green", "failed": "bold red", "cancelled": "dim"}
UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


@dataclass(frozen=True, slots=True)
class Column:
    """`of`: a row's word there, for programs; `seen`: the same for people, if that is another.

    `usual`: words that need no mention: people do not see a column that has no others.
    """

    name: str
    of: Callable[[Facts], str | None]
    seen: Callable[[Facts], str | None] | None = None
    is_wide: bool = False  # it gives way where the terminal is narrow
    usual: Collection[str] = ()


def state(row: Facts) -> str:
    """`waiting`, and after it why: `scheduled`, `exit_code`."""
    why = row.get("phase") or row.get("error", {}).get("reason")
    return f"{row['status']} ({why})" if why else row["status"]


def latest(row: Facts) -> str:
    """The time that matters most: of its end, of a start to come, else when it was created."""
    return row.get("finished_at") or row.get("run_at") or row["created_at"]


def ago(moment: str) -> str:
    """An ISO time as a person says it: `5m ago`, `in 2h`."""
    seconds = time.time() - datetime.fromisoformat(moment).timestamp()
    said = span(abs(seconds))
    return f"{said} ago" if seconds >= 0 else f"in {said}"


def span(seconds: float) -> str:
    """The largest unit: `3d`, `5m`, `0s`."""
    return next((f"{seconds // size:.0f}{unit}" for unit, size in UNITS if seconds >= size), "0s")


ID = Column("id", lambda row: row["id"])
STATUS = Column("status", lambda row: row["status"], state)
WHY = Column("why", lambda row: row.get("phase") or row.get("error", {}).get("reason"))
PRIORITY = Column("priority", lambda row: row.get("priority"), usual=("medium",))
KIND = Column("kind", lambda row: row["kind"], is_wide=True)
ATTEMPT = Column("attempt", lambda row: str(row["attempt"]), usual=("0", "1"))
WHEN = Column("when", latest, lambda row: ago(latest(row)))
NAME = Column("name", lambda row: row.get("name"), is_wide=True)
PROGRESS = Column(
    "progress",
    lambda row: progress_text(row["progress"]) if "progress" in row else None,
    is_wide=True,
    usual=(NOTHING,),
)

LISTED = (ID, STATUS, WHY, PRIORITY, KIND, ATTEMPT, WHEN, NAME)


def show(rows: Sequence[Facts], columns: Sequence[Column] = LISTED) -> None:
    """Print them: as a table on a terminal, else a line each with tabs between the words and no heading."""
    if not is_for_people():
        for row in rows:
            typer.echo("\t".join(_word(column.of(row)) for column in columns))
    elif rows:
        from rich.console import Console

        Console(highlight=False).print(table(rows, columns))


def table(rows: Sequence[Facts], columns: Sequence[Column] = LISTED) -> "Table":
    from rich.table import Table
    from rich.text import Text

    # People read WHY beside the status.
    seen = [one for one in columns if one is not WHY and any(_word(one.of(row)) not in one.usual for row in rows)]
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in seen:
        made.add_column(column.name.upper(), no_wrap=True, overflow="ellipsis" if column.is_wide else "fold")
    for row in rows:
        made.add_row(*(Text(_word((column.seen or column.of)(row)), style=_style(column, row)) for column in seen))
    return made


def counted(counts: Mapping[str, int]) -> "Text":
    """`3 waiting  1 working`, each in its colour."""
    from rich.text import Text

    parts = [(f"{number} {status}  ", STYLES.get(status, "")) for status, number in counts.items() if number]
    return Text.assemble(*parts) if parts else Text("no tasks")


def _word(value: Any) -> str:
    return visible_line(str(value)) or NOTHING if value is not None else NOTHING


def _style(column: Column, row: Facts) -> str:
    return STYLES.get(row["status"], "") if column is STATUS else "bold" if column is NAME else ""
