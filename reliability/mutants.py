"""Seeded bugs, each of which the kill runs must catch: a proof that proves nothing would find none of them.

A record that a power cut can tear is looked for by the power cuts instead: see `power --bug`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from reliability import records
from taskorch.domain import rules, schedules
from taskorch.domain.task import Schedule, Status, Task, with_values
from taskorch.storage import additions, bulk, claims, dependencies, feeding, firings, limits, rows, schema, store
from taskorch.storage.ends import _end_attempts as end_attempts
from taskorch.storage.rows import BY_ID, COLUMNS, encoded, from_row
from taskorch.work import worker

READY = f"SELECT {', '.join(COLUMNS)} FROM tasks WHERE ready = 1 AND kind = ? ORDER BY rank DESC, seq LIMIT ?"

Aim = tuple[str, int, Literal["kill", "stop", "lose"]]  # a point, at which of its first passages at most, and what

STORM_SECONDS = 45.0  # with REST_SECONDS a minute at most
REST_SECONDS = 12.0
COUNTED_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug. `focus`: the points that most servers of such a run are drawn from; `shim_rate`: of 256.

    `breaks`: the rules of which one must be seen broken. A bug that is planted wrongly stops its servers, which shows
    only as tasks that do not end (H10).
    """

    what: str
    apply: Callable[[], None] = lambda: None
    focus: Sequence[Aim] = ()
    shim_rate: int = 0
    breaks: Sequence[str] = ("H2", "H3", "H4", "H5", "H6", "H7", "H13")


def apply(name: str) -> None:
    """Plant the bug in this process."""
    if name:
        MUTANTS[name].apply()


def focus(name: str) -> Sequence[Aim]:
    return MUTANTS[name].focus if name else ()


def shim_rate(name: str, usual: int) -> int:
    return MUTANTS[name].shim_rate if name else usual


# The bugs.


def _now(tx: Any, task_id: str) -> Task:
    return from_row(tx.execute(BY_ID, (task_id,)).fetchone())


def _overwrite(tx: Any, before: Task, after: Task) -> Task:
    """Write the whole row by its place, whatever it holds by now."""
    names = COLUMNS[1:]
    bulk.update(tx, "tasks", names, ("seq",), [(*encoded(after, names), before.seq)])
    return rows.changed(tx, before, after)


def _settle(tx: Any, ends: Sequence[Any], clock: Callable[[], int], by_status: bool) -> list[Task]:
    lost: list[Task] = []
    for task, outcome, started_at in ends:
        row = _now(tx, task.id)
        if by_status and row.status is not Status.WORKING:
            lost.append(task)
            continue
        changes = {"status": Status.WORKING, "attempt": max(1, row.attempt), "finished_at": None, "result": None}
        after = rules.settle(with_values(row, **changes, error=None), outcome, clock(), started_at)
        _overwrite(tx, row, after)
        end_attempts(tx, [(after, outcome)])
    return lost


def _unfenced(by_status: bool) -> None:
    store.settle = partial(_settle, by_status=by_status)


def _claim_race() -> None:
    def claim(tx: Any, pool: feeding.Pool, now: int) -> list[Task]:
        """What could be claimed when the transaction before this one had ended."""
        ahead = pool.ahead()
        if ahead is None:
            return []
        (held,) = tx.execute(feeding.HELD, (pool.owner,)).fetchone()
        claimed = [(task, rules.claim(task, pool.owner, now)) for task in seen.get(pool.owner, [])[: pool.slots - held]]
        for before, after in claimed:
            _overwrite(tx, _now(tx, before.id), after)
            values = (after.seq, after.attempt, pool.owner, after.started_at)
            tx.execute("INSERT OR IGNORE INTO attempts(task, attempt, owner, started_at) VALUES (?,?,?,?)", values)
        rows = [row for kind in ahead for row in tx.execute(READY, (kind, pool.slots)).fetchall()]
        seen[pool.owner] = [from_row(row) for row in rows]
        return [after for _, after in claimed]

    seen: dict[int, list[Task]] = {}
    feeding.Pools._claim = lambda self, tx, pool, now: claim(tx, pool, now)


def _counted_late() -> None:
    original = store.Store.settle  # by those who take over: what a crash cut short was never counted

    async def settle(self: Any, task: Task, *args: Any) -> bool:
        done = await original(self, task, *args)
        if done:

            def uncount(tx: Any) -> None:
                tx.execute("UPDATE tasks SET attempt = attempt - 1 WHERE seq = ? AND status = 'waiting'", (task.seq,))

            await self._database.write(uncount)
        return done

    insert = bulk.insert

    def insert_again(tx: Any, table: str, columns: tuple[str, ...], values: bulk.Rows) -> list[int]:
        if table == "attempts":
            tx.executemany("DELETE FROM attempts WHERE task = ? AND attempt = ?", [row[:2] for row in values])
        return insert(tx, table, columns, values)

    bulk.insert = insert_again
    store.Store.settle = settle  # pyright: ignore[reportAttributeAccessIssue]


def _no_take_over() -> None:
    async def nothing(*_: Any) -> None:
        pass

    worker.Worker._take_over = nothing  # pyright: ignore[reportAttributeAccessIssue]


def _unbounded() -> None:
    rules.starts_left = lambda task: 1
    schema.PRAGMAS = (*schema.PRAGMAS, "ignore_check_constraints=ON")


def _cancel_lost() -> None:
    original = rules.settle

    def settle(task: Task, outcome: Any, now: int, started_at: int | None = None) -> Task:
        return original(with_values(task, cancel_requested_at=None), outcome, now, started_at)

    rules.settle = settle


def _adoption() -> None:
    async def adopt(self: Any, task: Task, owner: int) -> Task:
        def write(tx: Any) -> Task:
            row = _now(tx, task.id)
            ended = {"finished_at": None, "result": None, "error": None, "ready": False}
            after = with_values(row, **ended, status=Status.WORKING, attempt=task.attempt, owner=owner)
            _overwrite(tx, row, after)
            rows.note(tx, after, "adopted", f"server {owner}", f"from server {row.owner}")
            return after

        return await self._database.write(write)

    store.Store.adopt = adopt


def _order_ignored() -> None:
    create = rules.create
    rules.create = lambda new, *, blocked=False, **rest: create(new, **rest)


def _failure_ignored() -> None:
    state = dependencies.state
    dependencies.state = lambda tx, child: replace(state(tx, child), failed=None)


def _not_brought_back() -> None:
    dependencies._bring_back = lambda tx, child, now: None


def _limit_ignored() -> None:
    claims.without_room = lambda *_: []


def _limit_counted_before() -> None:
    count = limits._working
    known: dict[str, tuple[float, int]] = {}

    def working(db: Any, key: str) -> int:
        if key not in known or time.monotonic() - known[key][0] > COUNTED_SECONDS:
            known[key] = (time.monotonic(), count(db, key))
        return known[key][1]

    limits._working = working


def _fire_by_halves(first: Callable[..., Any], then: Callable[..., Any]) -> None:
    """Do one half of a firing, and the other one in a later transaction: it goes with this process."""
    later: list[Callable[[Any], None]] = []

    def fire(tx: Any, task: Task, schedule: Schedule, most_live: int, now: int) -> None:
        for half in later:
            half(tx)
        later.clear()
        due = schedules.due(schedule, task.run_at or now, now)
        first(tx, task, schedule, due, now)
        later.append(lambda tx: then(tx, _now(tx, task.id), schedule, due, now))

    firings.fire = fire


def _move_on(tx: Any, task: Task, schedule: Schedule, due: schedules.Due, now: int) -> None:
    if task.schedule is not None and task.status is Status.WAITING:
        rows.save(tx, task, schedules.fired(task, due.following, now))


def _create(tx: Any, task: Task, schedule: Schedule, due: schedules.Due, now: int) -> None:
    for at in due.at:
        [made] = additions.insert(tx, [additions.Wish(firings._wanted(task, schedule, at)).row(now, False)], 1 << 30)
        tx.execute("INSERT OR IGNORE INTO firings(schedule, at, task) VALUES (?, ?, ?)", (task.seq, at, made.seq))


FENCE: Sequence[Aim] = (
    ("before settle", 6, "lose"),
    ("before take-over settle", 2, "stop"),
    ("claimed", 4, "lose"),
    ("claimed", 6, "kill"),
)
MUTANTS = {
    "unfenced-by-id": Mutant("an end is written whoever holds the task", partial(_unfenced, False), FENCE),
    "unfenced-by-status": Mutant("an end is written if the task is working", partial(_unfenced, True), FENCE),
    "claim-race": Mutant("a claim reads outside its transaction", _claim_race),
    "counted-late": Mutant("a start is counted when it has ended", _counted_late, (("before settle", 6, "kill"),)),
    "no-take-over": Mutant("nobody looks after a dead server's tasks", _no_take_over, breaks=("H10",)),
    "unbounded-retries": Mutant("the number of starts is not limited", _unbounded),
    "cancel-lost": Mutant("a retry ignores a cancel request", _cancel_lost, (("cancel", 1, "kill"),)),
    "adoption-unfenced": Mutant(
        "an adoption does not look whose the task is",
        _adoption,
        (("before adopt", 1, "stop"), ("after go", 3, "kill"), ("after go", 2, "kill")),
    ),
    "order-ignored": Mutant("a task does not wait for those it depends on", _order_ignored, breaks=("H14",)),
    "failure-ignored": Mutant("a task starts after one that failed", _failure_ignored, breaks=("H14",)),
    "not-brought-back": Mutant("a retry leaves what its failure stopped", _not_brought_back, breaks=("H15",)),
    "limit-ignored": Mutant("a claim does not count what works of a key", _limit_ignored, breaks=("H16",)),
    "limit-counted-before": Mutant(
        "what works of a key was counted before the transaction", _limit_counted_before, breaks=("H16",)
    ),
    "firing-lost": Mutant(
        "a schedule moves on before it has created its task",
        partial(_fire_by_halves, _move_on, _create),
        breaks=("H17",),
    ),
    "firing-twice": Mutant(
        "a schedule moves on after it has created its task",
        partial(_fire_by_halves, _create, _move_on),
        breaks=("H17",),
    ),
    "early-start": Mutant("the command starts before its supervisor has noted it", shim_rate=40),
    "late-record": Mutant(
        "the end is recorded after the supervisor's lock has fallen", focus=(("after go", 6, "kill"),)
    ),
}


# Running them.


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=[*MUTANTS, *records.BUGS])
    options = parser.parse_args(argv)
    missed = 0
    print(f"{'mutant':20} {'seed':>4}  {'caught':7} {'seconds':>7}  first violation")
    for name in [options.only] if options.only else [*MUTANTS, *records.BUGS]:
        for seed in range(1, options.seeds + 1):
            seconds, first = cut(name, seed) if name in records.BUGS else catch(name, seed)
            missed += first is None
            print(f"{name:20} {seed:4}  {'yes' if first else 'NO':7} {seconds:7.1f}  {first or '-'}", flush=True)
    print(f"{missed} not caught")
    return 1 if missed else 0


def catch(name: str, seed: int) -> tuple[float, str | None]:
    """Run with that bug; how long it took (seconds), and the first violation, None if there was none."""
    began = time.monotonic()
    command = [sys.executable, "-m", "reliability", "kills", "--kills", "100000", "--mutant", name, "--seed", str(seed)]
    command += ["--until-caught", "--seconds", str(STORM_SECONDS), "--rest", str(REST_SECONDS)]
    with tempfile.TemporaryDirectory(prefix="taskorch-mutant-", ignore_cleanup_errors=True) as folder:
        done = subprocess.run([*command, "--folder", folder], capture_output=True, text=True)
    told = [line.removeprefix("VIOLATION ") for line in done.stdout.splitlines() if line.startswith("VIOLATION ")]
    found = [line for line in told if line.split(" ", 1)[0] in MUTANTS[name].breaks]
    if done.stderr or done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return time.monotonic() - began, found[0] if found else None


def cut(name: str, seed: int) -> tuple[float, str | None]:
    """The same by power cuts while supervisors record how their commands ended."""
    began = time.monotonic()
    command = [sys.executable, "-m", "reliability", "power", "--records", "3", "--bug", name, "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stderr or done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    first = [line.partition("bad record: ")[2] for line in done.stdout.splitlines() if "bad record: " in line]
    return time.monotonic() - began, first[0] if first else None
