"""The paths that are served, and what answers each."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from taskorch.calls.service import Service
from taskorch.http import events, page
from taskorch.http.envelope import UNEXPECTED, on_http
from taskorch.http.refusals import MCP, PAGE, Refusal, response
from taskorch.http.rest import routes


def site(service: Service, mcp: ASGIApp) -> ASGIApp:
    """Everything behind the guard. `mcp` answers POSTs of MCP."""
    served = Starlette(
        routes=[
            Route(PAGE, page.answer, methods=["GET"]),
            Route(events.PATH, events.Events(service)),
            Route(MCP, mcp, methods=["POST"]),  # no stream of its own for a client, and no session to end
            *routes(service),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    served.router.redirect_slashes = False
    return served


async def _refused(request: Request, error: Exception) -> Response:
    """A path or method that nothing here answers: as the REST API says it, where that is read."""
    assert isinstance(error, HTTPException)
    if request.url.path not in (MCP, PAGE):
        return await on_http(request, error)
    allowed = dict(error.headers or {})
    text = f"{request.method} is not possible here; use {allowed.get('Allow', 'GET')}."
    return response(Refusal(error.status_code, text, allowed), request.url.path)


async def _failed(request: Request, error: Exception) -> Response:
    return response(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, UNEXPECTED), request.url.path)
