"""Who may ask at all: the one place that every request passes before anything else looks at it.

A server on this machine is asked by programs of its user, and by any page that his browser shows. Pages of others are
told apart by `Host` (a name of theirs that leads here), `Origin` and `Sec-Fetch-Site`; programs by the token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs

import anyio
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskorch.http.flights import Flights
from taskorch.http.refusals import PAGE, Refusal, response
from taskorch.http.token import Token

OPEN = {"/health"}  # answered without a token, with less: `request.state.authorised` says whether there was one
SAFE = {"GET", "HEAD", "OPTIONS"}
BODY_BYTES = 1 << 20
READ_BYTES = 16 << 20  # of what is too large: who still sends hears of a closed connection, and not why
BODY_SECONDS = 20.0  # for all of it to arrive
QUERY_BYTES = 8192
ON_EVERYTHING = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}

UNKNOWN_HOST = Refusal(
    HTTPStatus.MISDIRECTED_REQUEST,
    "The Host header names another server; only 127.0.0.1, localhost and [::1] with this port are answered.",
)
FOREIGN = Refusal(HTTPStatus.FORBIDDEN, "Pages of other origins may not ask this server.")
NO_TOKEN = Refusal(
    HTTPStatus.UNAUTHORIZED,
    "A token is needed. None came, or not this server's: open the address that `taskorch http` printed at its last "
    "start, or send `Authorization: Bearer TOKEN`; it is kept in the file http-token in the state folder.",
    {"WWW-Authenticate": "Bearer"},
)
# A link on a page of another site: browsers keep our cookie back, and send it when the page asks for itself once more.
AGAIN = Refusal(HTTPStatus.UNAUTHORIZED, NO_TOKEN.message, {**NO_TOKEN.headers, "Refresh": f"0; url={PAGE}"})
AMBIGUOUS = Refusal(HTTPStatus.BAD_REQUEST, "Content-Length and Transfer-Encoding exclude each other.")
TOO_LARGE = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request's body may have {BODY_BYTES:,} bytes.")
TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, f"The request's body did not arrive in {BODY_SECONDS:.0f} s.")
BUSY = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests are being answered; try again in a second.", {"Retry-After": "1"}
)
STOPPING = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping; nothing is lost that it had accepted.")


@dataclass(frozen=True)
class Head:
    """What of a request decides whether it is answered. Headers may come more than once."""

    method: str
    path: str
    query: str
    headers: Mapping[str, Sequence[str]]

    def all(self, name: str) -> Sequence[str]:
        return self.headers.get(name, ())

    def one(self, name: str) -> str | None:
        """The header's value, if there is one and no other."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None


class Gate:
    """The rules, for a server on that port. `host`: the address that it listens on."""

    def __init__(self, host: str, port: int, token: Token) -> None:
        names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
        self._hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set[str]())
        self._origins = {f"http://{name}" for name in self._hosts}
        self._token = token

    def verdict(self, asked: Head) -> Refusal | bool:
        """Why it is not answered, or whether it has shown the token."""
        if (asked.one("host") or "").lower() not in self._hosts:
            return UNKNOWN_HOST
        if asked.all("origin") and asked.one("origin") not in self._origins:
            return FOREIGN
        if asked.all("authorization"):
            known = self._token.is_borne(asked.one("authorization") or "")
        elif (known := self._token.has_cookie(asked.all("cookie"))) and not self._by_our_page(asked):
            return FOREIGN
        if known or asked.path in OPEN:
            return known
        return AGAIN if asked.path == PAGE and asked.one("sec-fetch-site") == "cross-site" else NO_TOKEN

    def shows_token(self, asked: Head) -> bool:
        """Whether this is the page's address as it was printed."""
        given = parse_qs(asked.query).get("token", ()) if asked.path == PAGE and asked.method in SAFE else ()
        return len(given) == 1 and self._token.is_it(given[0])

    def _by_our_page(self, asked: Head) -> bool:
        """Browsers send a cookie along whichever page of this machine asks, so they must say which one it was."""
        site = asked.one("sec-fetch-site")
        if asked.method in SAFE:
            return asked.path == PAGE or not asked.all("sec-fetch-site") or site in ("same-origin", "none")
        return asked.one("origin") is not None or site == "same-origin"


class Guard:
    """ASGI: lets pass what the gate does, with its body whole and within limits, and puts headers on all answers."""

    def __init__(self, app: ASGIApp, gate: Gate, token: Token, flights: Flights) -> None:
        self._app = app
        self._gate = gate
        self._token = token
        self._flights = flights

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} is served")  # uvicorn was told so
        answer = _Answer(send)
        asked = _asked(scope)
        verdict = self._gate.verdict(asked)
        if verdict not in (UNKNOWN_HOST, FOREIGN) and self._gate.shows_token(asked):
            await RedirectResponse(PAGE, 303, {"Set-Cookie": self._token.set_cookie})(scope, receive, answer.send)
        elif isinstance(verdict, Refusal):
            await _refuse(verdict, scope, receive, answer)
        elif self._flights.full:
            await _refuse(STOPPING if self._flights.ended else BUSY, scope, receive, answer)
        else:
            scope.setdefault("state", {})["authorised"] = verdict
            with self._flights.one() as flight:
                await self._pass(scope, receive, answer)
            if flight.cancelled_caught:
                await answer.cut_off(scope, receive)

    async def _pass(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        body: bytes | Refusal | None = TOO_SLOW
        with anyio.move_on_after(BODY_SECONDS):
            body = await _body(scope, receive) if scope["state"]["authorised"] else b""  # strangers are not waited for
        if isinstance(body, Refusal):
            await _refuse(body, scope, receive, answer)
        elif body is not None:
            unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def whole() -> Message:
                return unread.pop() if unread else await receive()

            await self._app(scope, whole, answer.send)


class _Answer:
    """What is sent, with our headers, and how far it has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._over = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            ours = [(name, value) for name, value in ON_EVERYTHING.items() if name not in given]
            message = self._start = {**message, "headers": [*message["headers"], *ours]}
        else:
            self._over = not message.get("more_body", False)
        await self._send(message)

    async def cut_off(self, scope: Scope, receive: Receive) -> None:
        """The server leaves: what has not begun is refused, a stream ends."""
        if self._start is None:
            await _refuse(STOPPING, scope, receive, self)
        elif not self._over and b"content-length" not in dict(self._start["headers"]):
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _asked(scope: Scope) -> Head:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    query = scope["query_string"][:QUERY_BYTES].decode("latin-1")
    return Head(scope["method"], scope["path"], query, headers)


async def _body(scope: Scope, receive: Receive) -> bytes | Refusal | None:
    """All of it, or why it is not taken; None where the client has gone."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length")
    if length is not None and b"transfer-encoding" in headers:
        return AMBIGUOUS  # a proxy before us may take the one and we the other for the end of the request
    if length is not None and int(length) > (BODY_BYTES if b"expect" in headers else READ_BYTES):
        return TOO_LARGE
    body, size = bytearray(), 0
    while size <= READ_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return None
        size += len(message.get("body", b""))
        if size <= BODY_BYTES:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body) if size <= BODY_BYTES else TOO_LARGE
    return TOO_LARGE


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, answer: _Answer) -> None:
    """What was not read of the request is not waited for."""
    refused: Response = response(refusal, scope["path"])
    refused.headers["Connection"] = "close"
    await refused(scope, receive, answer.send)
