"""What is counted and measured: tasks and attempts by what each commit of this process has changed, and what waits now.

Names and units are contract: docs/how-to/observability.md lists them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskorch.domain.task import Reason, Status, Task
from taskorch.telemetry.context import METRICS, is_loaded, is_set

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)  # buckets of histograms

Look = Callable[[], Mapping[str, int] | None]


@dataclass(frozen=True, slots=True)
class Now:
    """What can be looked at when somebody collects, from any thread.

    `depth`: the live tasks by status, and those `ready`; None: it cannot be read. `slots`, `busy`: of this pool.
    """

    depth: Look
    slots: int
    busy: Callable[[], int]


def recorder(version: str, now: Now) -> "Instruments | None":
    """What counts and measures; None where nobody collects: to be asked once, when all that may collect is loaded."""
    if not is_loaded(METRICS):
        return None
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    return Instruments(provider.get_meter("taskorch", version), now) if is_set(provider) else None


class Instruments:
    """Hand it each commit's moves."""

    def __init__(self, meter: "Meter", now: Now) -> None:
        count, took = meter.create_counter, meter.create_histogram
        self._created = count("taskorch.task.created", "{task}", "Tasks that were created here.")
        self._acquired = count("taskorch.task.acquired", "{attempt}", "Attempts that were begun here.")
        self._attempts = count("taskorch.task.attempts", "{attempt}", "Attempts that were settled here, by outcome.")
        self._ended = {
            status: count(f"taskorch.task.{status}", "{task}", f"Tasks that became {status} here, for good.")
            for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
        }
        buckets = {"explicit_bucket_boundaries_advisory": SECONDS}
        self._wait = took("taskorch.task.queue.wait", "s", "From when an attempt was due to its begin.", **buckets)
        self._run = took("taskorch.task.run.duration", "s", "From an attempt's begin to its end.", **buckets)
        _gauges(meter, now)

    def count(self, moves: Sequence[tuple[Task | None, Task | None]]) -> None:
        """What a commit has changed: each task before (None: new) and after (None: deleted)."""
        for before, after in moves:
            if after is None:
                continue
            of = {"kind": after.kind}
            if before is None:
                self._created.add(1, of | {"priority": after.priority.name.lower()})
                continue
            if before.status is Status.WAITING and after.status is Status.WORKING:
                self._acquired.add(1, of)
                self._wait.record(_seconds(_due(before), after.started_at), of)
            elif before.status is Status.WORKING and after.status is not Status.WORKING:
                outcome = _outcome(after)
                self._attempts.add(1, of | {"outcome": outcome} | _why(after))
                self._run.record(_seconds(after.started_at, after.updated_at), of | {"outcome": outcome})
            if after.ended:
                self._ended[after.status].add(1, of | (_why(after) if after.status is Status.FAILED else {}))


def _gauges(meter: "Meter", now: Now) -> None:
    from opentelemetry.metrics import Observation

    def active(_: "CallbackOptions") -> "Iterable[Observation]":
        found = now.depth()
        return [Observation(found[status], {"status": status}) for status in ("waiting", "working")] if found else []

    def ready(_: "CallbackOptions") -> "Iterable[Observation]":
        return [Observation(found["ready"])] if (found := now.depth()) else []

    look = meter.create_observable_gauge
    look("taskorch.active_tasks", [active], "{task}", "Tasks of the store that wait or work.")
    look("taskorch.queue_size", [ready], "{task}", "Tasks of the store that may start now.")
    look("taskorch.slots.busy", [lambda _: [Observation(now.busy())]], "{slot}", "Attempts under way here.")
    look("taskorch.slots", [lambda _: [Observation(now.slots)]], "{slot}", "Attempts that may be under way here.")


def _due(task: Task) -> int:
    """When the next attempt of a waiting task could have begun (ms)."""
    return task.run_at or (task.updated_at if task.attempt else task.created_at)


def _seconds(start: int | None, end: int | None) -> float:
    """Between two times of the store, whose clock may have been set back."""
    return max(0, (end or 0) - (start or end or 0)) / 1000


def _outcome(after: Task) -> str:
    """How the attempt ended that has left its task so."""
    if after.status is Status.WAITING:
        return "interrupted" if after.error and after.error.reason is Reason.INTERRUPTED else "failed"
    return str(after.status)


def _why(after: Task) -> dict[str, str]:
    return {"error.type": str(after.error.reason)} if after.error else {}
