"""How the server and its tasks stand, in the shapes that monitors of a REST service read."""

import time
from typing import Any

from taskorch.calls.health import stats_reply
from taskorch.calls.service import Service
from taskorch.calls.wording import Facts, iso, present
from taskorch.domain.errors import StoreError

ENDS = ("completed", "failed", "cancelled")


async def statistics(service: Service) -> Facts:
    """Counted from rows; times in seconds, of what ended in the last 24 hours. Raises StoreError."""
    facts = (await stats_reply(service)).facts
    overview, performance = facts["overview"], facts["performance"]
    return {
        "overview": {
            "total_tasks": overview["total"],
            "active_tasks": overview["active"],
            **{f"{status}_tasks": overview[status] for status in ENDS},
            **present(success_rate=overview.get("success_rate")),
        },
        "status_distribution": facts["status_distribution"],
        "priority_distribution": facts["priority_distribution"],
        "performance_metrics": present(
            avg_processing_time=performance.get("average_seconds"),
            p95_processing_time=performance.get("p95_seconds"),
            tasks_per_hour=performance["tasks_per_hour"],
        ),
        "time_series": facts["hours"],
        "queue": facts["queue"],
        "workers": facts["workers"],
    }


async def alive(service: Service) -> Facts:
    """What anybody may know: that the process answers, and its file can be read. Raises StoreError."""
    await service.queries.servers()
    return {"status": "healthy", "version": service.version}


async def health(service: Service) -> Facts:
    """Measured now; what this process cannot measure is left out. Raises StoreError where the store is of no use.

    Milliseconds, bytes, percent of one processor since the start. `degraded`: a write takes more than a second.
    """
    looked = time.time()
    facts = (await stats_reply(service)).facts
    store, workers, process = facts["store"], facts["workers"], facts.get("process", {})
    if "error" in store:
        raise StoreError(store["error"])
    silent = [server for server in workers["servers"] if "not_responding_seconds" in server]
    checked = {"last_checked": iso(round(looked * 1000))}
    database = {"healthy": facts["status"] == "healthy", "response_time": store.get("write_ms", store["read_ms"])}
    components: dict[str, Any] = {
        "database": database | checked,
        "workers": {"healthy": not silent, **present(slots=workers.get("slots"), busy=workers.get("busy")), **checked},
    }
    metrics = present(
        memory_usage=process.get("peak_memory_bytes"),
        cpu_usage=process.get("cpu_percent"),
        queue_size=facts["queue"]["ready"],
        store_bytes=store["bytes"],
        free_bytes=store.get("free_bytes"),
    )
    uptime = present(uptime=facts.get("uptime_seconds"))
    named = {name: facts[name] for name in ("status", "timestamp", "version")}
    return {**named, **uptime, "components": components, "metrics": metrics}
