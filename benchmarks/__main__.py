r"""Measures taskorch beside the limit of SQLite and beside other queues, in interleaved rounds, and prints Markdown.

    python -m benchmarks                            everything, 3 rounds, about 15 minutes
    python -m benchmarks --quick --only create,drain
    python -m benchmarks --save docs/explanation/performance.json --plots docs/images \
        --write docs/explanation/performance.md

Queues of others are installed, at pinned versions, into environments in a cache; what cannot be is named with the
reason.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from benchmarks import calls, commands, machine, report, startup
from benchmarks.phases import BACKLOGS, ROOT
from benchmarks.postgres import postgres
from benchmarks.queues import QUEUES, Queue, plots_python, python_of
from benchmarks.results import Results, load
from tests.peers.environments import Unavailable

PHASE_SECONDS = 120
# They reckon for themselves; and how many of their rounds are to one of ours.
PROGRAMS = {"calls": (calls.measure, 2), "commands": (commands.measure, 1), "startup": (startup.measure, 3)}
EVERY = frozenset(queue.name for queue in QUEUES)
ALONE = frozenset({"taskorch"})


def phases(quick: bool) -> Iterator[tuple[str, dict[str, object], frozenset[str], bool]]:
    """Name, options, for which queues, and whether in one round only."""
    yield "create", {"seconds": 0.4 if quick else 0.8}, EVERY, False
    yield "busy_create", {"seconds": 0.4 if quick else 0.8}, ALONE, False
    yield "bulk", {"tasks": 5_000 if quick else 20_000}, EVERY, False
    yield "drain", {"share": 0.25 if quick else 1.0}, EVERY, False
    yield "busy_drain", {"share": 0.25 if quick else 0.5}, ALONE, False
    yield "pickup", {"tasks": 15 if quick else 50}, EVERY, False
    yield "remote", {"tasks": 15 if quick else 40}, EVERY, False
    for name in BACKLOGS:
        if not (quick and "1M" in name):
            yield "backlog", {"name": name, "tasks": 4_000 if quick else 20_000}, ALONE | {"raw"}, False
    yield "share", {"seconds": 0.5 if quick else 2.0, "processes": [8] if quick else [2, 4, 8]}, ALONE, False
    yield "share", {"seconds": 0.5 if quick else 2.0, "processes": [8]}, EVERY - ALONE, True
    yield "crowd", {"seconds": 0.5 if quick else 2.0, "processes": 8}, ALONE, False
    yield "kill", {"watch_seconds": 5 if quick else 15}, ALONE, False
    yield "kill", {"watch_seconds": 5 if quick else 15}, EVERY - ALONE, True


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # in good order: PostgreSQL ends too
    results = options.results or measured(options)
    print(report.text(results, only_measured=bool(options.only or options.quick)))
    if options.save:
        results.save(options.save)
    if options.write:
        report.write(results, options.write)
    if options.plots:
        source = options.save or options.load
        try:
            command = [plots_python(options.cache), "-m", "benchmarks.plots", str(source), str(options.plots)]
        except Unavailable as why:
            print(f"no plots: {why}", file=sys.stderr)
            return 1
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    return 0


def measured(options: argparse.Namespace) -> Results:
    wanted = set(options.only.split(",")) if options.only else set[str]()
    names = {queue.name for queue in QUEUES}
    wanted_phases = wanted - names
    results = Results()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL may run as another user
        results.machine = machine.describe(folder)
        if machine.file_system(folder) in ("tmpfs", "ramfs"):
            results.skipped["durability"] = f"{folder} is in memory, where a commit costs nothing; give --folder"
        if not wanted_phases or wanted_phases - set(PROGRAMS):
            chosen = [queue for queue in QUEUES if not wanted & names or queue.name in wanted | ALONE]
            with postgres(folder) if any(queue.needs_postgres for queue in chosen) else nullcontext() as why:
                if why:
                    results.skipped["PostgreSQL"] = why
                pythons = _pythons(chosen, options.cache, results)
                for number in range(options.rounds):
                    _round(number, pythons, wanted_phases, options.quick, folder, results)
        for program, (measure, times) in PROGRAMS.items():
            if program in wanted_phases or not (wanted or options.quick):
                results.rows += measure(times * options.rounds, folder)
    results.machine["load after"] = f"{os.getloadavg()[0]:.1f}"
    results.machine["rounds"] = str(options.rounds)
    return results


def _pythons(chosen: list[Queue], cache: Path, results: Results) -> dict[Queue, str]:
    """The queues that can be measured here, with a Python that has each."""
    found: dict[Queue, str] = {}
    for queue in chosen:
        try:
            found[queue] = python_of(queue, cache)
        except Unavailable as why:
            results.skipped[queue.about] = str(why)
    return found


def _round(
    number: int, pythons: dict[Queue, str], wanted: set[str], quick: bool, folder: Path, results: Results
) -> None:
    for phase, options, queues, once in phases(quick):
        for queue, python in pythons.items():
            if (
                (wanted and phase not in wanted)
                or phase in queue.lacks
                or queue.name not in queues
                or (once and number)
            ):
                continue
            began = time.monotonic()
            said = _child(python, queue, phase, options, folder)
            results.add(number, queue.name, said.get("figures", {}))
            if why := said.get("lacks") or said.get("failed"):
                results.skipped[f"{queue.name}, {phase}"] = why
            took = f"{time.monotonic() - began:.1f} s"
            print(f"round {number + 1}: {phase} of {queue.name}, {took}", why or "", file=sys.stderr)


def _child(python: str, queue: Queue, phase: str, options: dict[str, object], folder: Path) -> dict[str, Any]:
    """What one phase of one queue said, in a process of its own: figures, or what it lacks, or how it failed."""
    command = [python, "-m", "benchmarks.child", queue.module, phase, json.dumps(options)]
    variables = os.environ | {"BENCH_FOLDER": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=PHASE_SECONDS)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {PHASE_SECONDS} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if process.returncode or not said.strip():
        return {"failed": complaint.splitlines()[-1] if complaint else f"exit code {process.returncode}"}
    return json.loads(said.splitlines()[-1])


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds; give 1 or more")
    return int(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*dict.fromkeys(phase for phase, *_ in phases(quick=False)), *PROGRAMS, *(queue.name for queue in QUEUES)]
    parser.add_argument("--rounds", type=_rounds, default=None, help="3, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="less of everything, in 2 minutes; nothing at a million")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(known)}")
    parser.add_argument("--save", type=Path, help="write the results as JSON")
    parser.add_argument("--load", type=Path, help="measure nothing, tell saved results")
    parser.add_argument("--plots", type=Path, help="a folder for plots of what is saved or loaded")
    parser.add_argument("--write", type=Path, help="a document with markers that gets the tables")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure (%(default)s)")
    cache = user_cache_path("taskorch") / "bench"
    parser.add_argument("--cache", type=Path, default=cache, help="where environments are kept (%(default)s)")
    options = parser.parse_args()
    if unknown := [name for name in options.only.split(",") if options.only and name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    if options.plots and not (options.save or options.load):
        parser.error("--plots needs --save or --load: plots are made from a file")
    if not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is no folder; give one on the disk to measure")
    if options.save and not options.save.parent.is_dir():
        parser.error(f"--save: {options.save.parent} is no folder")
    try:  # what could only fail at the end fails now
        options.results = load(options.load) if options.load else None
        if options.write:
            report.parts(options.write)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.cache = options.cache.resolve()
    return options


if __name__ == "__main__":
    raise SystemExit(main())
