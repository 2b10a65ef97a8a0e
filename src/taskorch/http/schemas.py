"""What is answered, as JSON schemas. They are closed: a field that is not told here is a mistake here or there."""

from collections.abc import Mapping, Sequence
from typing import Any

from taskorch.domain.task import Phase, Priority, Reason, Status
from taskorch.http.envelope import CODES
from taskorch.storage.ids import FULL_ID

Schema = dict[str, Any]


def _object(optional: Sequence[str] = (), /, **fields: Any) -> Schema:
    """Closed; all fields are required but the optional ones."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def _all_optional(**fields: Any) -> Schema:
    return _object([*fields], **fields)


def _array(items: Any) -> Schema:
    return {"type": "array", "items": items}


def _one_of(words: Sequence[str]) -> Schema:
    return {"type": "string", "enum": [*words]}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NATURAL: Schema = {"type": "integer", "minimum": 1}
CODE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
TRUE: Schema = {"const": True}
TIME: Schema = {"type": "string", "format": "date-time"}
ID: Schema = {"type": "string", "pattern": f"^{FULL_ID.pattern}$", "examples": ["t69az46cfe84017ff"]}
STATUS = _one_of([*map(str, Status)])
PRIORITY = _one_of([priority.name.lower() for priority in Priority])
REASON = _one_of([*map(str, Reason)])
ANY_OBJECT: Schema = {"type": "object"}
ANY: Schema = {}

_OTHERS = _array(_object(["name"], id=ID, name=TEXT, status=STATUS))
_ERROR = _object(["exit_code"], reason=REASON, message=TEXT, exit_code=CODE)
_ATTEMPT = _object(
    ["server", "by", "ended_at", "outcome", "reason", "message", "exit_code"],
    attempt=NATURAL,
    server=COUNT,
    by=TEXT,
    started_at=TIME,
    ended_at=TIME,
    outcome=_one_of(["completed", "failed", "cancelled", "interrupted"]),
    reason=REASON,
    message=TEXT,
    exit_code=CODE,
)
_PLAN = _object(
    ["cron", "every_seconds", "start"],
    cron=TEXT,
    every_seconds=NUMBER,
    start=TIME,
    time_zone=TEXT,
    catch_up=TEXT,
    overlap=TEXT,
)
_WAITS = {
    "oneOf": [
        _object(unfinished=COUNT, of=COUNT, tasks=_array(ID)),
        _object(concurrency_key=TEXT, limit=NATURAL, working=_array(ID)),
    ]
}
_CONCISE: Mapping[str, Schema] = {
    "name": TEXT,
    "phase": _one_of([*map(str, Phase)]),
    "waits_for": _WAITS,
    "progress": _object(["total", "message"], value=NUMBER, total=NUMBER, message=TEXT),
    "result": ANY,
    "result_bytes": COUNT,
    "error": _ERROR,
    "run_at": TIME,
    "next_runs": _array(TEXT),
    "time_zone": TEXT,
    "started_at": TIME,
    "finished_at": TIME,
    "labels": _array(TEXT),
    "updated_at": TIME,
}
_FULL: Mapping[str, Schema] = {
    "deduplicated": TRUE,
    "concurrency_key": TEXT,
    "timeout_seconds": NUMBER,
    "expires_at": TIME,
    "on_server_exit": _one_of(["survive", "stop"]),
    "retry": _all_optional(
        on_exit=_array(CODE),
        fail_on_exit=_array(CODE),
        first_delay_seconds=NUMBER,
        factor=NUMBER,
        max_delay_seconds=NUMBER,
    ),
    "interruptions": NATURAL,
    "paused": TRUE,
    "depends_on": _OTHERS,
    "on_dependency_failure": _one_of(["cancel", "fail", "run"]),
    "dependents": _OTHERS,
    "schedule": {"oneOf": [_PLAN, ID]},
    "firings": _array(_object(at=TIME, task=ID, status=STATUS)),
    "cancel_requested_at": TIME,
    "claim_expires_at": TIME,
    "output_folder": TEXT,
    "payload": ANY_OBJECT,
    "attempts": _array(_ATTEMPT),
    "events": _array(_object(["detail"], at=TIME, event=TEXT, by=TEXT, detail=TEXT)),
}


def _task(more: Mapping[str, Schema]) -> Schema:
    return _object(
        [*_CONCISE, *more],
        id=ID,
        kind=TEXT,
        status=STATUS,
        priority=PRIORITY,
        attempt=COUNT,
        max_attempts=NATURAL,
        created_at=TIME,
        version=NATURAL,
        **_CONCISE,
        **more,
    )


_SERVER = _object(["not_responding_seconds"], pid=COUNT, started_at=TIME, not_responding_seconds=NUMBER)
_CLAIMS = _object(working=COUNT, oldest=_array(_object(id=ID, worker=TEXT, since=TIME)))
_HOUR = _object(["completed", "failed", "cancelled"], hour=TIME, completed=COUNT, failed=COUNT, cancelled=COUNT)

DATA: Mapping[str, Schema] = {
    "Task": _task(_FULL),
    "TaskList": _object(
        tasks=_array(_task({})),
        pagination=_object(
            ["total_partial"], total=COUNT, limit=NATURAL, offset=COUNT, has_more=FLAG, total_partial=TRUE
        ),
    ),
    "Deleted": _object(["phase"], id=ID, deleted=FLAG, phase={"const": "cancelling"}),
    "Output": _object(
        ["outcome", "reason", "exit_code", "hint"],
        id=ID,
        attempt=COUNT,
        text=TEXT,
        offset=COUNT,
        next_offset=COUNT,
        total_bytes=COUNT,
        dropped_bytes=COUNT,
        outcome=TEXT,
        reason=REASON,
        exit_code=CODE,
        hint=TEXT,
    ),
    "Statistics": _object(
        overview=_object(
            ["success_rate"],
            total_tasks=COUNT,
            active_tasks=COUNT,
            completed_tasks=COUNT,
            failed_tasks=COUNT,
            cancelled_tasks=COUNT,
            success_rate={"type": "number", "minimum": 0, "maximum": 1},
        ),
        status_distribution=_object(**dict.fromkeys(map(str, Status), COUNT)),
        priority_distribution=_object(**dict.fromkeys([p.name.lower() for p in Priority], COUNT)),
        performance_metrics=_object(
            ["avg_processing_time", "p95_processing_time"],
            avg_processing_time=NUMBER,
            p95_processing_time=NUMBER,
            tasks_per_hour=NUMBER,
        ),
        time_series=_array(_HOUR),
        queue=_object(
            ["oldest_ready_seconds", "next_run_at"], ready=COUNT, oldest_ready_seconds=NUMBER, next_run_at=TIME
        ),
        workers=_object(
            ["slots", "busy", "outside"],
            slots=COUNT,
            busy=COUNT,
            servers=_array(_SERVER),
            kinds=_array(TEXT),
            outside=_CLAIMS,
        ),
    ),
    "Health": _object(
        ["timestamp", "uptime", "components", "metrics"],
        status=_one_of(["healthy", "degraded"]),
        version=TEXT,
        timestamp=TIME,
        uptime=NUMBER,
        components=_object(
            database=_object(healthy=FLAG, response_time=NUMBER, last_checked=TIME),
            workers=_object(["slots", "busy"], healthy=FLAG, slots=COUNT, busy=COUNT, last_checked=TIME),
        ),
        metrics=_all_optional(
            memory_usage=COUNT, cpu_usage=NUMBER, queue_size=COUNT, store_bytes=COUNT, free_bytes=COUNT
        ),
    ),
}
_PROBLEM = _object(code=_one_of([*CODES]), message=TEXT, details=ANY_OBJECT)


def enveloped(data: str) -> Schema:
    return _object(
        success={"const": True},
        data={"$ref": f"#/components/schemas/{data}"},
        error={"type": "null"},
        timestamp=TIME,
    )


FAILURE = _object(success={"const": False}, data={"type": "null"}, error=_PROBLEM, timestamp=TIME)
