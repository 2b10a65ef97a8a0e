"""The REST API: requests read, calls made, answers wrapped. The rules are those of every other way to call."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp

from taskorch.calls import arguments as args
from taskorch.calls import metrics
from taskorch.calls.service import Service
from taskorch.domain.errors import InvalidInput
from taskorch.http import asked, standing
from taskorch.http.envelope import HANDLERS, success
from taskorch.http.openapi import document
from taskorch.http.operations import OPERATIONS, Operation


def routes(service: Service) -> list[BaseRoute]:
    """`/health`, `/metrics` and everything under `/api`, which is `/api/v1` as well.

    `/health` tells all where `request.state.authorised` is true, and else that the process lives. `/metrics` is text.
    """

    async def health(request: Request) -> Response:
        asked.refuse_query(request)
        is_known = getattr(request.state, "authorised", False)
        return success(await (standing.health if is_known else standing.alive)(service))

    async def numbers(request: Request) -> Response:
        asked.refuse_query(request)
        return Response(await metrics.text(service), media_type=metrics.CONTENT_TYPE)

    by_path: dict[str, dict[str, Operation]] = defaultdict(dict)
    for operation in OPERATIONS:
        by_path[operation.path][operation.method] = operation
    described = document(service)

    async def openapi(request: Request) -> Response:
        asked.refuse_query(request)
        return JSONResponse(described)

    api = _enveloped(
        [
            *(_route(service, path, operations) for path, operations in by_path.items()),
            Route("/openapi.json", openapi, methods=["GET"]),
        ]
    )
    return [
        Route("/health", _enveloped([Route("/health", health, methods=["GET"])])),
        Route("/metrics", _enveloped([Route("/metrics", numbers, methods=["GET"])])),
        Mount("/api/v1", api),
        Mount("/api", api),
    ]


def _enveloped(routes: list[BaseRoute]) -> ASGIApp:
    """Whatever goes wrong in them is answered in the envelope, a path or method that they do not know too."""
    return ExceptionMiddleware(Router(routes, redirect_slashes=False), handlers=HANDLERS)


def _route(service: Service, path: str, operations: Mapping[str, Operation]) -> Route:
    async def answer(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        found = await operation.run(service, await _read(request, operation))
        return success(found.data, found.status, found.headers)

    return Route(path, answer, methods=list(operations))


async def _read(request: Request, operation: Operation) -> args.Arguments:
    """Everything that the request says, as the arguments of one call. Raises InvalidInput, HTTPException."""
    known = operation.arguments.model_fields.keys() - request.path_params.keys()
    if operation.sends == "nothing":
        raw: Mapping[str, Any] = asked.query(request, known)
    else:
        asked.refuse_query(request)
        raw = operation.meant(await asked.body(request, known, needed=operation.sends == "required"))
    for name in raw.keys() & request.path_params.keys():
        raise InvalidInput(f"{name} stands in the path; leave it out elsewhere.")
    raw = {**raw, **request.path_params, **asked.condition(request, raw, operation.conditional)}
    return args.parse(operation.arguments, raw, strict=operation.sends != "nothing")  # a query has no types
