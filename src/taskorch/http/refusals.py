"""What is answered instead of what was asked for: the envelope of the REST API, or an error as MCP clients read it."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from taskorch.http.envelope import CODES, problem

MCP, PAGE = "/mcp", "/"
INVALID_REQUEST, SERVER_ERROR = -32600, -32000
NAMES = {status: name for name, status in CODES.items()} | {HTTPStatus.MISDIRECTED_REQUEST: "FORBIDDEN"}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: an HTTP status, a sentence, further headers."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict[str, str])


def response(refusal: Refusal, path: str) -> Response:
    """The refusal as whoever asks for that path reads it."""
    status, headers = refusal.status, refusal.headers
    if path == PAGE:
        return PlainTextResponse(f"{refusal.message}\n", status, headers)
    body = _mcp(refusal) if path == MCP else problem(NAMES.get(status, "INTERNAL_ERROR"), refusal.message)
    return JSONResponse(body, status, headers)


def _mcp(refusal: Refusal) -> dict[str, Any]:
    code = SERVER_ERROR if refusal.status >= 500 else INVALID_REQUEST
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": refusal.message}}
