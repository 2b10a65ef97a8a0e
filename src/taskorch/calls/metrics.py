"""The numbers of this moment, as Prometheus reads them: what the store says, so that they are true after any restart.

All are gauges. What the store has forgotten by retention would make a counter fall, and those of the last 24 hours
come and go: `recent` in their names says so. Names and labels are contract: docs/how-to/observability.md lists them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio.to_thread

from taskorch.calls.service import Service
from taskorch.calls.wording import Facts
from taskorch.domain.task import Priority, Status
from taskorch.storage.place import free_bytes
from taskorch.storage.queries import Stats

QUANTILES = (0.5, 0.9, 0.95, 0.99)
OUTCOMES = ("completed", "failed", "cancelled", "interrupted")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]  # labels, value


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: what it is called, what it says, and its samples."""

    name: str
    help: str
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Servers:
    """How many server processes there are on the store; `silent`: those of them that do not respond."""

    alive: int
    silent: int


async def text(service: Service) -> str:
    """All of it in Prometheus' text format, whose media type is CONTENT_TYPE. Raises StoreError."""
    return rendered(await measured(service))


async def measured(service: Service, servers: Servers | None = None) -> list[Metric]:
    """What is known of this moment, always in the same order; what is unknown or does not exist is left out.

    `servers`: as the caller sees them; by default those that are noted, and that this one's pool knows to be silent.
    """
    now = service.store.now()
    stats = await service.queries.stats(now)
    attempts = await service.queries.attempts(now)
    outside, _ = await service.outside.open_claims(0)
    noted = Servers(len(stats.servers), len(service.pool.silent()) if service.pool else 0)
    return [
        Metric("taskorch_build_info", "The version that tells this.", [({"version": service.version}, 1)]),
        *_tasks(stats, now),
        *_recent(stats, attempts),
        *_workers(service, servers or noted, outside),
        Metric("taskorch_database_bytes", "Size of the database.", [({}, stats.database_bytes)]),
        *await anyio.to_thread.run_sync(_disk, service),
    ]


def rendered(metrics: Sequence[Metric]) -> str:
    """Prometheus' text format 0.0.4."""
    return "".join(f"{line}\n" for metric in metrics for line in _lines(metric))


def facts(metrics: Sequence[Metric]) -> Facts:
    """The same as JSON."""
    return {
        "metrics": [
            {
                "name": metric.name,
                "type": "gauge",
                "help": metric.help,
                "samples": [{"labels": dict(labels), "value": value} for labels, value in metric.samples],
            }
            for metric in metrics
        ]
    }


def _tasks(stats: Stats, now: int) -> list[Metric]:
    stored: list[Sample] = [
        ({"status": status, "priority": priority.name.lower()}, stats.counts.get((status, priority), 0))
        for status in map(str, Status)
        for priority in Priority
    ]
    active: list[Sample] = [({"status": status}, stats.by_status[status]) for status in ("waiting", "working")]
    oldest = 0.0 if stats.oldest_ready_at is None else max(0.0, (now - stats.oldest_ready_at) / 1000)
    following: list[Sample] = [] if stats.next_run_at is None else [({}, stats.next_run_at / 1000)]
    return [
        Metric("taskorch_tasks", "Stored tasks; those that have ended are removed when their retention ends.", stored),
        Metric("taskorch_active_tasks", "Tasks that wait or work.", active),
        Metric("taskorch_queue_size", "Tasks that may start now and wait for a free slot.", [({}, stats.ready)]),
        Metric("taskorch_queue_oldest_seconds", "Age of the oldest of those, 0 if there is none.", [({}, oldest)]),
        *_if_any("taskorch_next_run_timestamp_seconds", "When the next task is due that waits for a time.", following),
    ]


def _recent(stats: Stats, attempts: Mapping[str, int]) -> list[Metric]:
    """What ended in the last 24 hours, of the newest 100,000 tasks."""
    ended = Counter(status for status, _, _ in stats.ends)
    ends: list[Sample] = [({"status": status}, ended[status]) for status in OUTCOMES[:3]]
    tried: list[Sample] = [({"outcome": outcome}, attempts.get(outcome, 0)) for outcome in OUTCOMES]
    took = sorted((end - start) / 1000 for status, start, end in stats.ends if start and status == Status.COMPLETED)
    durations: list[Sample] = [({"quantile": str(q)}, took[round(q * (len(took) - 1))]) for q in QUANTILES if took]
    return [
        Metric("taskorch_recent_tasks_ended", "Tasks that ended in the last 24 hours.", ends),
        Metric("taskorch_recent_attempts_ended", "Attempts that ended in the last 24 hours.", tried),
        *_if_any("taskorch_recent_run_seconds", "How long those took that completed, the last attempt.", durations),
    ]


def _workers(service: Service, servers: Servers, outside: int) -> list[Metric]:
    responding: list[Sample] = [
        ({"state": "responding"}, servers.alive - servers.silent),
        ({"state": "silent"}, servers.silent),
    ]
    pool = service.pool
    return [
        Metric("taskorch_servers", "Processes that run tasks of this store.", responding),
        Metric("taskorch_outside_claims", "Attempts that outside workers are at.", [({}, outside)]),
        *([Metric("taskorch_slots", "Attempts that this server runs at once.", [({}, pool.slots)])] if pool else []),
        *([Metric("taskorch_slots_busy", "Attempts under way in it.", [({}, pool.busy())])] if pool else []),
    ]


def _disk(service: Service) -> list[Metric]:
    try:
        free = free_bytes(service.output_folder.parent)
    except OSError:
        return []
    return [Metric("taskorch_disk_free_bytes", "Free bytes on the disk of the state folder.", [({}, free)])]


def _if_any(name: str, help_text: str, samples: Sequence[Sample]) -> list[Metric]:
    return [Metric(name, help_text, samples)] if samples else []


def _lines(metric: Metric) -> list[str]:
    told = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    return [
        f"# HELP {metric.name} {told}",
        f"# TYPE {metric.name} gauge",
        *(f"{metric.name}{_labels(labels)} {value}" for labels, value in metric.samples),
    ]


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
