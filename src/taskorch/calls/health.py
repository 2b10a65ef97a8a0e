"""Statistics and health: counted from rows or measured now; what cannot be measured is left out."""

import os
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import anyio.to_thread

from taskorch.calls.replies import Reply
from taskorch.calls.service import Pool, Service
from taskorch.calls.wording import Facts, counts_text, cut_bytes, iso, visible_line
from taskorch.domain.errors import StoreError
from taskorch.domain.task import Status
from taskorch.storage.outside import OpenClaim
from taskorch.storage.place import free_bytes, set_aside_files
from taskorch.storage.queries import HOUR_MS, WINDOW_MS, Stats

CLAIMS = 3  # of outside workers that are told: the oldest
WORKER_BYTES = 40
SLOW_MS = 1_000.0  # a store that takes longer for one write is called degraded


async def stats_reply(service: Service) -> Reply:
    """Counts, success rate, durations, ends per hour, queue, workers, health of the store, version, uptime.

    Of a process that runs nothing, what it would tell of itself is left out, and its kinds are those of the servers.
    """
    now = service.store.now()
    began = time.perf_counter()
    stats = await service.queries.stats(now)
    read_ms = 1000 * (time.perf_counter() - began)
    probe = await _write_probe(service) if service.pool else {}  # who only looks writes nothing
    store = {"read_ms": round(read_ms, 1)} | probe | {"bytes": stats.database_bytes}
    store |= await anyio.to_thread.run_sync(_disk, service)
    facts: Facts = {
        "status": "healthy" if store.get("healthy", read_ms < SLOW_MS) else "degraded",
        "timestamp": iso(now),
        "version": service.version,
        **({"uptime_seconds": round(time.monotonic() - service.pool.started, 1)} if service.pool else {}),
        "overview": _overview(stats),
        "status_distribution": stats.by_status,
        "priority_distribution": stats.by_priority,
        "performance": _performance(stats, now),
        "hours": _hours(stats),
        "queue": _queue(stats, now),
        "workers": {
            **({"slots": service.pool.slots, "busy": service.pool.busy()} if service.pool else {}),
            "servers": [_server(s, service.pool.silent() if service.pool else {}) for s in stats.servers],
            "kinds": sorted(service.kinds if service.pool else (await service.view()).kinds),
            **_outside(*await service.outside.open_claims(CLAIMS)),
        },
        "store": store,
        **({"process": _process(service.pool)} if service.pool else {}),
    }
    return Reply(_text(facts), facts)


async def _write_probe(service: Service) -> Facts:
    """Whether a transaction can be made now, and how long one takes."""
    began = time.perf_counter()
    try:
        await service.store.probe()
    except StoreError as error:
        return {"healthy": False, "error": str(error)}
    taken = 1000 * (time.perf_counter() - began)
    return {"healthy": taken < SLOW_MS, "write_ms": round(taken, 1)}


def _server(row: Facts, silent: Mapping[int, float]) -> Facts:
    facts: Facts = {"pid": row["pid"], "started_at": iso(row["started_at"])}
    if row["pid"] in silent:
        facts["not_responding_seconds"] = round(silent[row["pid"]], 1)
    return facts


def _outside(working: int, claims: Sequence[OpenClaim]) -> Facts:
    """What outside workers are at: how much, and the oldest claims. Absent when it is nothing."""
    oldest = [
        {"id": claim.task_id, "worker": cut_bytes(visible_line(claim.worker), WORKER_BYTES), "since": iso(claim.since)}
        for claim in claims
    ]
    return {"outside": {"working": working, "oldest": oldest}} if working else {}


def _outside_lines(facts: Facts | None) -> list[str]:
    if not facts:
        return []
    oldest = ", ".join(f"{one['worker']} {one['id']} since {one['since']}" for one in facts["oldest"])
    return [f"outside workers: at {facts['working']} tasks; longest: {oldest}"]


def _overview(stats: Stats) -> Facts:
    ended = {status: stats.by_status[status] for status in ("completed", "failed", "cancelled")}
    judged = ended["completed"] + ended["failed"]
    rate = {"success_rate": round(ended["completed"] / judged, 4)} if judged else {}
    total = sum(stats.by_status.values())
    return {"total": total, "active": total - sum(ended.values()), **ended, **rate}


def _performance(stats: Stats, now: int) -> Facts:
    """Over what ended in the last 24 hours."""
    ran = [end - start for status, start, end in stats.ends if start is not None and status == Status.COMPLETED]
    facts: Facts = {"window_hours": WINDOW_MS // HOUR_MS, "ended": len(stats.ends)}
    if ran:
        seconds = sorted(milliseconds / 1000 for milliseconds in ran)
        facts["average_seconds"] = round(statistics.fmean(seconds), 3)
        facts["p95_seconds"] = round(seconds[min(len(seconds) - 1, round(0.95 * (len(seconds) - 1)))], 3)
    hours = max(1.0, (now - min((end for _, _, end in stats.ends), default=now)) / HOUR_MS)
    facts["tasks_per_hour"] = round(len(stats.ends) / hours, 1)
    return facts


def _hours(stats: Stats) -> list[Facts]:
    """How many ended in each of the last 24 hours, oldest first; hours in which nothing ended are left out."""
    found: Counter[tuple[int, str]] = Counter((end // HOUR_MS, status) for status, _, end in stats.ends)
    names = ("completed", "failed", "cancelled")
    return [
        {"hour": iso(hour * HOUR_MS)} | {name: found[hour, name] for name in names if found[hour, name]}
        for hour in sorted({hour for hour, _ in found})
    ]


def _queue(stats: Stats, now: int) -> Facts:
    facts: Facts = {"ready": stats.ready}
    if stats.oldest_ready_at is not None:
        facts["oldest_ready_seconds"] = round((now - stats.oldest_ready_at) / 1000, 1)
    if stats.next_run_at is not None:
        facts["next_run_at"] = iso(stats.next_run_at)
    return facts


def _disk(service: Service) -> Facts:
    try:
        facts: Facts = {"free_bytes": free_bytes(service.output_folder.parent)}
    except OSError:
        return {}
    if kept := set_aside_files(service.output_folder.parent):
        facts["damaged_files_kept"] = [path.name for path in kept]
    return facts


def _process(pool: Pool) -> Facts:
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss * 1024
    lived = max(0.001, time.monotonic() - pool.started)
    cpu = 100 * (time.process_time() - pool.cpu_started) / lived
    return {"pid": os.getpid(), "peak_memory_bytes": peak, "cpu_percent": round(cpu, 1)}


def _text(facts: dict[str, Any]) -> str:
    overview, performance, queue, workers = (facts[name] for name in ("overview", "performance", "queue", "workers"))
    rate = f", success rate {100 * overview['success_rate']:.1f}%" if "success_rate" in overview else ""
    took = (
        f", average {performance['average_seconds']} s, p95 {performance['p95_seconds']} s"
        if "average_seconds" in performance
        else ""
    )
    oldest = f", the oldest for {queue['oldest_ready_seconds']} s" if "oldest_ready_seconds" in queue else ""
    following = f", next start {queue['next_run_at']}" if "next_run_at" in queue else ""
    store = facts["store"]
    reads = f"a read takes {store['read_ms']} ms"
    writes = f"a write takes {store['write_ms']} ms" if "write_ms" in store else store.get("error", reads)
    up = f", up {facts['uptime_seconds']} s" if "uptime_seconds" in facts else ""
    slots = f"{workers['busy']} of {workers['slots']} slots busy, " if "slots" in workers else ""
    free = f", {store['free_bytes']} free on its disk" if "free_bytes" in store else ""
    kept = (
        f"; damaged and moved aside: {', '.join(store['damaged_files_kept'])}" if "damaged_files_kept" in store else ""
    )
    frozen = [str(server["pid"]) for server in workers["servers"] if "not_responding_seconds" in server]
    hangs = f", not responding: pid {', '.join(frozen)}" if frozen else ""
    return "\n".join(
        [
            f"taskorch {facts['version']} is {facts['status']}{up}",
            f"tasks: {counts_text(facts['status_distribution'])}{rate}",
            f"by priority: {counts_text(facts['priority_distribution'])}",
            f"last 24 hours: {performance['ended']} ended, {performance['tasks_per_hour']} an hour{took}",
            f"queue: {queue['ready']} ready{oldest}{following}",
            f"workers: {slots}{len(workers['servers'])} server(s){hangs}",
            *_outside_lines(workers.get("outside")),
            f"kinds: {', '.join(workers['kinds']) or 'none'}{' (what they take: tasks://kinds)' if slots else ''}",
            f"store: {writes}, {store['bytes']} bytes{free}{kept}",
        ]
    )
