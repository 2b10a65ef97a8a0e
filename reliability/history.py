"""The checker: reads the journal and the tables of a run, and says what must not have happened.

It imports nothing of taskorch, so that no mistake is made twice. The order of the journal's lines is the truth about
what came first: each is one appending write, made while its process was alive.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from reliability.record import History, Key, Row, connect

MAX_INTERRUPTIONS = 5
ORPHANED_SECONDS = 5.0  # 2 s are promised to those whose servers are not killed while they take over
STATUSES = {"waiting", "working", "completed", "failed", "cancelled"}
OF_AN_ATTEMPT = {"begin", "beat", "end"}  # written by what an attempt runs


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str
    task: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule} {self.task}: {self.text}"


def check(history: History) -> list[Violation]:
    """What is wrong at any time."""
    return [found for rule in RULES for found in rule(history)]


def check_end(history: History, folder: Path) -> list[Violation]:
    """What is wrong once all servers have left."""
    return [*check(history), *_h10_none_left(history), *_h11_sound(folder), *_h12_no_leaks(folder, history)]


@dataclass(frozen=True, slots=True)
class Order:
    """What a task was created to depend on, and what it does if one of those fails."""

    task: str
    policy: str
    parents: list[str]


def orders(history: History) -> Iterator[Order]:
    for line in history.of("after"):
        policy, *parents = line.detail.split()
        if line.task in history.tasks:
            yield Order(line.task, policy, parents)


# The rules.


def _h1_durable(history: History) -> Iterator[Violation]:
    for line in history.known("ack"):
        if line.task not in history.tasks:
            yield Violation("H1", line.task, "its creation was acknowledged, and it is not stored")


def _h2_legal(history: History) -> Iterator[Violation]:
    """One end state, nothing after a completed attempt, nothing after a cancel request but a retry."""
    for task in history.tasks.values():
        if task.status not in STATUSES:
            yield Violation("H2", task.id, f"its status is {task.status}")
    for (task_id, attempt), start in history.starts.items():
        task = history.tasks[task_id]
        if start.outcome == "completed" and (task.status != "completed" or task.attempt != attempt):
            yield Violation("H2", task_id, f"attempt {attempt} completed, and now it is {task.status}")
    for line in history.known("asked"):
        task = history.tasks.get(line.task)
        if task and task.attempt > line.attempt and not history.retried(line.task):
            yield Violation("H2", line.task, f"attempt {task.attempt} began after attempt {line.attempt} was cancelled")


def _h3_accepted(history: History) -> Iterator[Violation]:
    """What was accepted comes from an attempt that ran, and from one that held it."""
    ended = {line.key for line in history.of("end")}
    for task in history.tasks.values():
        key = (task.id, task.attempt)
        if task.status != "completed":
            continue
        if key not in history.starts or key not in ended:
            yield Violation("H3", task.id, f"attempt {task.attempt} is accepted, and never ran to its end")
        by = task.result.get("by") if isinstance(task.result, dict) else None
        if by is not None and by != f"{task.id}/{task.attempt}":
            yield Violation("H3", task.id, f"the result of attempt {task.attempt} is that of {by}")
    for line in history.known("settled"):
        start = history.starts.get(line.key)
        holders = {f"server {start.owner}" if start else ""} | {
            event.by for event in history.events.get(line.task, ()) if event.event == "adopted"
        }
        if f"server {line.detail}" not in holders:
            yield Violation("H3", line.task, f"server {line.detail} settled attempt {line.attempt} and never held it")


def _h4_starts(history: History) -> Iterator[Violation]:
    """No attempt number twice, rising, and no more than the budget."""
    displaced = history.displaced
    latest: Counter[str] = Counter()
    begun: Counter[Key] = Counter()
    for line in history.of("begin"):
        begun[line.key] += 1
        if begun[line.key] > 1:
            yield Violation("H4", line.task, f"attempt {line.attempt} began {begun[line.key]} times")
        elif line.attempt < latest[line.task] and line.key not in displaced:
            yield Violation("H4", line.task, f"attempt {line.attempt} began after attempt {latest[line.task]}")
        latest[line.task] = max(latest[line.task], line.attempt)
    counted = Counter(task for task, _ in begun.keys() - displaced)
    for line in history.known("ack"):
        if task := history.tasks.get(line.task):
            yield from _budget(history, task, int(line.detail.split()[1]), counted[task.id])


def _budget(history: History, task: Row, wished: int, starts: int) -> Iterator[Violation]:
    granted = wished + history.retried(task.id)
    if task.interruptions > MAX_INTERRUPTIONS:
        yield Violation("H4", task.id, f"it was interrupted {task.interruptions} times")
    if max(task.attempt, starts) > granted + task.interruptions:
        text = f"{max(task.attempt, starts)} starts, {granted} granted, {task.interruptions} given back"
        yield Violation("H4", task.id, text)
    if task.kind == "command" and starts > granted:  # only what never began is given back
        yield Violation("H13", task.id, f"a command began {starts} times, {granted} granted")


def _h5_one_result(history: History) -> Iterator[Violation]:
    for (task, attempt), times in Counter(line.key for line in history.of("settled")).items():
        if times > 1:
            yield Violation("H5", task, f"{times} ends of attempt {attempt} were accepted")


def _h6_no_overlap(history: History) -> Iterator[Violation]:
    """An attempt says nothing once a later one has begun, nor once its end is accepted (H7)."""
    displaced = history.displaced
    latest: Counter[str] = Counter()
    settled: set[Key] = set()
    for line in history.lines:
        if line.word == "begin":
            latest[line.task] = max(latest[line.task], line.attempt)
        if line.word == "settled":
            settled.add(line.key)
        if line.word not in OF_AN_ATTEMPT or line.key in displaced:
            continue
        if line.attempt < latest[line.task]:
            text = f"attempt {line.attempt} goes on ({line.word}, pid {line.pid}) beside attempt {latest[line.task]}"
            yield Violation("H6", line.task, text)
        if line.key in settled:
            text = f"attempt {line.attempt} goes on ({line.word}, pid {line.pid}) after its end was accepted"
            yield Violation("H7", line.task, text)


def _h13_commands(history: History) -> Iterator[Violation]:
    """A command's attempt has one end, and is not called lost when it came to it under a living supervisor."""
    ends = Counter(line.key for line in history.of("end"))
    unsupervised = {line.key for line in history.of("shimkill")} | history.displaced
    for (task_id, attempt), times in ends.items():
        task, start = history.tasks.get(task_id), history.starts.get((task_id, attempt))
        if not task or not start or task.kind != "command":
            continue
        if times > 1:
            yield Violation("H13", task_id, f"attempt {attempt} has {times} ends")
        if start.reason == "worker_lost" and (task_id, attempt) not in unsupervised:
            yield Violation("H13", task_id, f"attempt {attempt} came to its end, and is called lost")


def _h16_limits(history: History) -> Iterator[Violation]:
    """Of a concurrency_key no more attempts are under way than the number that it ends with."""
    displaced = history.displaced
    last = {line.key: place for place, line in enumerate(history.lines) if line.word in OF_AN_ATTEMPT}
    under_way: defaultdict[str, set[Key]] = defaultdict(set)
    for place, line in enumerate(history.lines):
        task = history.tasks.get(line.task)
        if not task or not task.concurrency_key or line.word not in OF_AN_ATTEMPT or line.key in displaced:
            continue
        others = under_way[task.concurrency_key]
        others.add(line.key)
        if line.word == "begin" and len(others) > int(task.concurrency_key.rpartition("-")[2]):
            text = ", ".join(f"{task_id} attempt {attempt}" for task_id, attempt in sorted(others))
            yield Violation("H16", line.task, f"{len(others)} of {task.concurrency_key} work at once: {text}")
        if last[line.key] == place:
            others.remove(line.key)


def _h10_taken_over(history: History) -> Iterator[Violation]:
    """A dead server's tasks are soon somebody else's, or nobody's."""
    known = history.lines[: history.sure]
    now = known[-1].at if known else 0.0
    died = {line.pid: line.at for line in history.known("dead")}
    owners = {int(line.detail): died[line.pid] for line in history.known("server") if line.pid in died}
    for task in history.tasks.values():
        since = now - owners.get(task.owner or 0, now)
        if task.status == "working" and since > ORPHANED_SECONDS:
            yield Violation("H10", task.id, f"it is working, and its server {task.owner} died {since:.1f} s ago")


def _h14_order(history: History) -> Iterator[Violation]:
    """A task that minds begins when all that it depends on have completed, and they say nothing after that."""
    places: dict[str, list[int]] = {}
    displaced = history.displaced
    for place, line in enumerate(history.lines[: history.sure]):
        if line.word in OF_AN_ATTEMPT and line.key not in displaced:
            places.setdefault(line.task, []).append(place)
    for order in orders(history):
        if order.policy == "run" or order.task not in places:
            continue
        for parent in order.parents:
            if parent in history.tasks and history.tasks[parent].status != "completed":
                text = f"it began, and {parent}, which it depends on, is {history.tasks[parent].status}"
                yield Violation("H14", order.task, text)
            elif places.get(parent, [0])[-1] > places[order.task][0]:
                yield Violation("H14", order.task, f"it began while {parent}, which it depends on, was at work")


def _h15_stopped_for_a_reason(history: History) -> Iterator[Violation]:
    """What a failure has stopped is stopped only as long as something that it depends on has not done well."""
    for order in orders(history):
        task = history.tasks[order.task]
        reason = (task.error or {}).get("reason")
        if reason not in ("dependency", "dependency_failed"):
            continue
        bad = [p for p in order.parents if p in history.tasks and history.tasks[p].status in ("failed", "cancelled")]
        if not bad or order.policy == "run":
            yield Violation("H15", order.task, f"it was stopped ({reason}), and nothing that it depends on has failed")


def _h17_schedules(history: History) -> Iterator[Violation]:
    """A schedule fires at each of its times, which lie on its grid, and creates one task for each."""
    for task, course in history.schedules.items():
        if course.created != len(course.times):
            yield Violation("H17", task, f"it created {course.created} tasks for {len(course.times)} times")
        for at in course.times:
            if (at - course.start) % course.interval:
                yield Violation("H17", task, f"it fired at {at}, which is none of its times")
        steps = {after - before for before, after in pairwise(course.times)}
        if steps - {course.interval} and not history.retried(task):  # nothing is made up for from before a retry
            yield Violation("H17", task, f"times lie {sorted(steps)} ms apart, and should {course.interval}")


RULES = (
    _h17_schedules,
    _h14_order,
    _h15_stopped_for_a_reason,
    _h1_durable,
    _h2_legal,
    _h3_accepted,
    _h4_starts,
    _h5_one_result,
    _h6_no_overlap,
    _h10_taken_over,
    _h13_commands,
    _h16_limits,
)


# At the end.


def _h10_none_left(history: History) -> Iterator[Violation]:
    for task in history.tasks.values():
        if task.status in ("waiting", "working"):
            yield Violation("H10", task.id, f"it is {task.status} (owner {task.owner}) when all is over")


def _h11_sound(folder: Path) -> Iterator[Violation]:
    with closing(connect(folder)) as db:
        for query in ("PRAGMA integrity_check", "PRAGMA foreign_key_check"):
            found = [row for row in db.execute(query) if row[0] != "ok"]
            if found:
                yield Violation("H11", "-", f"{query}: {found[:3]}")
        counted = db.execute("SELECT status, priority, tasks FROM counts WHERE tasks > 0").fetchall()
        real = db.execute("SELECT status, priority, count(*) FROM tasks GROUP BY 1, 2").fetchall()
        if sorted(counted) != sorted(real):
            yield Violation("H11", "-", f"the counts say {counted}, the rows {real}")


def _h12_no_leaks(folder: Path, history: History) -> Iterator[Violation]:
    for path in (folder / "state" / "servers").iterdir():
        yield Violation("H12", "-", f"{path.name} was left behind")
    for pid, task in left_behind(folder, history.tasks).items():
        yield Violation("H12", task, f"process {pid} was left behind")


def left_behind(folder: Path, tasks: dict[str, Row]) -> dict[int, str]:
    """Processes that run for one of these tasks (by their environment) or in the state folder, by pid."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(folder / "state" / "output") in (entry / "cmdline").read_bytes():
                found[int(entry.name)] = "-"
            for item in (entry / "environ").read_bytes().split(b"\0"):
                name, _, value = item.partition(b"=")
                if name == b"TASKORCH_TASK_ID" and value.decode() in tasks:
                    found[int(entry.name)] = value.decode()
    return found
