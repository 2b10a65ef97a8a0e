"""What every answer of the REST API is wrapped in, and the only translation of errors into codes and statuses."""

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from taskorch.calls.wording import Facts, iso
from taskorch.domain.errors import Conflict, Crowded, InvalidInput, NotFound, StoreError, TaskError, cut, shown
from taskorch.http.words import told
from taskorch.storage.rows import dumps
from taskorch.storage.store import now_ms

# Each code and the status that it comes with.
CODES: Mapping[str, int] = {
    "VALIDATION_ERROR": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "CONFLICT": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "RATE_LIMIT_EXCEEDED": 429,
    "INTERNAL_ERROR": 500,
    "SERVICE_UNAVAILABLE": 503,
}
# The first that an error is decides.
OF_ERRORS: Mapping[type[TaskError], str] = {
    InvalidInput: "VALIDATION_ERROR",
    NotFound: "NOT_FOUND",
    Crowded: "SERVICE_UNAVAILABLE",
    Conflict: "CONFLICT",
    StoreError: "SERVICE_UNAVAILABLE",
}
UNEXPECTED = "Internal error; the server's log says more. Other requests still work."

log = logging.getLogger(__name__)


def success(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return _sent(_body(data, None), status, headers)


def failure(
    code: str, message: str, details: Facts | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """`code`: one of CODES. `details`: what a program may want to know of it."""
    return _sent(problem(code, message, details), CODES[code], headers)


def problem(code: str, message: str, details: Facts | None = None) -> Facts:
    """The body of such an answer."""
    return _body(None, {"code": code, "message": message, "details": details or {}})


async def on_refusal(request: Request, error: TaskError) -> Response:
    code = next(code for kind, code in OF_ERRORS.items() if isinstance(error, kind))
    about = request.path_params.get("task_id")
    return failure(code, told(str(error), quote(about, safe="")) if about else told(str(error)))


async def on_http(request: Request, error: HTTPException) -> Response:
    """What the router refuses, or a limit on bodies."""
    code = next((code for code, status in CODES.items() if status == error.status_code), "INTERNAL_ERROR")
    match error.status_code:
        case 404:
            text = f"There is no {shown(request.url.path)}. GET /api/openapi.json says what there is."
            return failure(code, text)
        case 405:
            allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            text = f"{cut(request.method)} is not for {shown(request.url.path)}. It takes {allow}."
            return failure(code, text, {"allow": allow.split(", ")}, {"Allow": allow})
        case _:
            return failure(code, error.detail, headers=error.headers)


async def on_crash(request: Request, error: Exception) -> Response:
    if not isinstance(error, ClientDisconnect):  # which nobody is left to be told of
        log.error("%s %s", request.method, request.url.path, exc_info=error)
    return failure("INTERNAL_ERROR", UNEXPECTED)


# For Starlette's `exception_handlers`: all that an application may raise becomes such an answer.
HANDLERS: dict[Any, ExceptionHandler] = {  # pyright: ignore[reportAssignmentType]
    TaskError: on_refusal,
    HTTPException: on_http,
    Exception: on_crash,
}


def _body(data: Any, error: Facts | None) -> Facts:
    return {"success": error is None, "data": data, "error": error, "timestamp": iso(now_ms())}


def _sent(body: Facts, status: int, headers: Mapping[str, str] | None) -> Response:
    kept = {"Cache-Control": "no-store"} | dict(headers or {})
    return Response(dumps(body).encode("utf-8", "replace"), status, kept, "application/json")
