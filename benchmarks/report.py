"""Results as Markdown, and between the markers of a document."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import goals
from benchmarks.phases import BACKLOGS, CALLERS
from benchmarks.queues import QUEUES
from benchmarks.results import Results
from benchmarks.table import markdown, number

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
DURABLE = {queue.name: queue.durable for queue in QUEUES}
OWN_CPU = "taskorch", "drain cpu"
NAMES = {
    "raw": "raw sqlite3, the limit",
    "obvious": "aiosqlite, the obvious code",
    "taskorch": "**taskorch**",
    "fastmcp-tasks": "fastmcp-tasks, its defaults",
    "pgqueuer": "pgqueuer, PostgreSQL",
    "procrastinate": "procrastinate, PostgreSQL",
}


def text(results: Results, only_measured: bool = False) -> str:
    """All of it. `only_measured`: without the goals that this run says nothing about."""
    parts = [
        "; ".join(f"{name}: {value}" for name, value in results.machine.items()) + ".",
        _table(["goal", "floor", "stretch", "measured", ""], goals.table(results, only_measured)),
        *(section(results) for section in (_rates, _own, _waits, _backlog, _shared, _kills)),
        markdown(results.rows) if results.rows else "",
        _skipped(results),
    ]
    return "\n\n".join(part for part in parts if part)


def write(results: Results, document: Path) -> None:
    """Put the text between the markers of the document. Raises like `parts`."""
    before, after = parts(document)
    document.write_text(f"{before}{BEGIN}\n\n{text(results)}\n\n{END}{after}")


def parts(document: Path) -> tuple[str, str]:
    """What stands before and after the markers. Raises OSError, and ValueError when they are not there."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} has no {BEGIN} and {END}")
    return before, after


def _rates(results: Results) -> str:
    """Of each queue, with what taskorch's drain is to its own."""
    head = ["system", "survives", *(f"create, {n}" for n in CALLERS), "in bulk", "drain", "taskorch is", "CPU", "bytes"]
    figures = [*(f"create {callers}" for callers in CALLERS), "bulk", "drain"]
    lines: list[list[str]] = []
    for queue in results.queues:
        ratio = results.ratio(("taskorch", "drain"), (queue, "drain"))
        times = "" if queue == "taskorch" or ratio is None else f"{number(ratio)} x"
        cells = [_cell(results.median((queue, figure))) for figure in figures]
        used = [_cell(results.median((queue, f"drain {what}"))) for what in ("cpu", "bytes")]
        lines.append([_name(queue), DURABLE[queue], *cells, times, *used])
    return _titled("Tasks a second; CPU (us) and bytes written of a drained task", head, lines, skip=2)


def _own(results: Results) -> str:
    """How a drained task's processor time is shared, and what becomes of rates while the event loop is busy."""
    lines = [
        [name, _cell(results.median(("taskorch", figure))), _cell(results.ratio(("taskorch", figure), base))]
        for name, figure, base in (
            ("CPU of a drained task in the event loop's thread, us; to all of it", "drain cpu loop", OWN_CPU),
            (
                "create, 64 callers, while the event loop computes; to a raw commit",
                "busy create 64",
                ("raw", "create 1"),
            ),
            ("drain, while the event loop computes; to the raw loop", "busy drain", ("raw", "drain")),
        )
    ]
    return _titled("taskorch by itself", ["what", "value", "ratio"], lines)


def _waits(results: Results) -> str:
    figures = [f"{where} {part}" for where in ("pickup", "remote") for part in ("p50", "p95", "p99")]
    lines = [
        [_name(queue), *(_cell(results.median((queue, figure))) for figure in figures)] for queue in results.queues
    ]
    head = ["system", "p50", "p95", "p99", "other process: p50", "p95", "p99"]
    return _titled("From a create to the start of the task, idle worker (ms); raw: one commit", head, lines)


def _backlog(results: Results) -> str:
    lines: list[list[str]] = []
    for name in BACKLOGS:
        cells: list[str] = []
        for queue in ("taskorch", "raw"):
            for what in ("cpu", "bytes"):
                of = queue, f"backlog {name} {what}"
                cells += [_cell(results.median(of)), _cell(results.ratio(of, (queue, f"backlog 1k {what}")))]
        lines.append([name.replace("1k", "1,000").replace("100k", "100,000").replace("1M", "1,000,000"), *cells])
    head = [
        "waiting",
        "CPU us a task",
        "to 1,000",
        "bytes a task",
        "to 1,000",
        "raw: CPU",
        "to 1,000",
        "bytes",
        "to 1,000",
    ]
    return _titled("Working off a backlog", head, lines)


def _shared(results: Results) -> str:
    ways = [(f"{name} {count}", name, count) for name in ("paced", "crowd", "flat out") for count in (2, 4, 8)]
    words = {"paced": "100/s each", "crowd": "100/s each, all work", "flat out": "flat out"}
    lines = [
        [_name(queue), str(count), words[name], *_of_one(results, queue, figure)]
        for figure, name, count in ways
        for queue in results.queues
        if results.median((queue, figure)) is not None
    ]
    head = ["system", "processes", "how", "creates/s", "p99 ms", "longest ms", "errors"]
    return _titled("Several processes create in one store", head, lines, skip=3)


def _of_one(results: Results, queue: str, figure: str) -> list[str]:
    errors = results.worst((queue, f"{figure} errors"))
    return [
        *(_cell(results.median((queue, name))) for name in (figure, f"{figure} p99", f"{figure} max")),
        _cell(errors),
    ]


def _kills(results: Results) -> str:
    lines = [
        [
            _name(queue),
            *(_cell(results.worst((queue, f"kill {what}"))) for what in ("lost", "repeated")),
            *(_cell(results.median((queue, f"kill {what}"))) for what in ("resumes", "rerun")),
        ]
        for queue in results.queues
    ]
    head = [
        "system",
        "never ended in the watch",
        "ended ones repeated",
        "work resumes after ms",
        "last one rerun after ms",
    ]
    return _titled("kill -9 amid 40 ms tasks, and a new process at once", head, lines)


def _skipped(results: Results) -> str:
    if not results.skipped:
        return ""
    return "Not measured:\n\n" + "\n".join(f"- {name}: {why}" for name, why in results.skipped.items())


def _titled(title: str, head: Sequence[str], lines: Sequence[Sequence[str]], skip: int = 1) -> str:
    """The table without lines whose cells after the first `skip` are empty; nothing when none is left."""
    full = [line for line in lines if any(line[skip:])]
    return f"### {title}\n\n{_table(head, full)}" if full else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join([_line(head), "|" + "---|" * len(head), *map(_line, lines)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)


def _name(queue: str) -> str:
    return NAMES.get(queue, queue)
