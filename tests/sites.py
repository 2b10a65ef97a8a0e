"""Real processes of `taskorch http`, and requests whose every byte the test chooses."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import mcp_types as mt
from mcp import Client
from mcp.client.extension import ClientExtension
from mcp.client.streamable_http import streamable_http_client
from servers import ENVELOPE, IN_TIME, MODERN, SECONDS, Place, wait_for

Headers = Sequence[tuple[str, str]]
MCP = [
    ("Mcp-Protocol-Version", MODERN),
    ("Content-Type", "application/json"),
    ("Accept", "application/json, text/event-stream"),
]
ADDRESS = re.compile(r"taskorch http: (http://127\.0\.0\.1:(\d+)/)(?:\?token=(\S+))?$", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A process that serves HTTP on a free port of this machine."""

    def __init__(self, place: Place, *options: str, **settings: str) -> None:
        self.errors = place.folder / f"http{len(list(place.folder.glob('http*')))}"
        variables = {f"TASKORCH_{name.upper()}": value for name, value in settings.items()}
        with self.errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskorch", "http", "--port", "0", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=place.environment | variables,
                cwd=place.work,
                start_new_session=True,
            )
        try:
            wait_for(lambda: self._printed() or self.process.poll() is not None)
            printed = self._printed()
            assert printed, self.errors.read_text()
        except BaseException:
            self.close()
            raise
        self.url, self.port, self.token = printed[1], int(printed[2]), printed[3] or settings.get("http_token", "")
        self.bearer = ("Authorization", f"Bearer {self.token}")

    def _printed(self) -> re.Match[str] | None:
        return ADDRESS.search(self.errors.read_text())

    # Asking.

    def send(self, *parts: bytes) -> Answer:
        """The answer to bytes as they are; the connection is new, and closed afterwards."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            with contextlib.suppress(ConnectionError):  # it has been answered before all was sent
                for part in parts:
                    connection.sendall(part)
            return read(connection, parts[0].partition(b" ")[0].decode("latin-1"))

    def ask(self, method: str, path: str, headers: Headers = (), body: bytes = b"", host: str = "") -> Answer:
        return self.send(self.head(method, path, headers, len(body), host), body)

    def head(self, method: str, path: str, headers: Headers = (), length: int = 0, host: str = "") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines += [f"Content-Length: {length}"] if length else []
        return "\r\n".join([*lines, "", ""]).encode()

    def call(self, tool: str, /, *headers: tuple[str, str], **arguments: Any) -> Answer:
        """A tool's call by 2026-07-28, with the token if no headers are given."""
        return self.send(*self.wording(tool, *headers, **arguments))

    def wording(self, tool: str, /, *headers: tuple[str, str], **arguments: Any) -> tuple[bytes, bytes]:
        """The head and the body of such a call."""
        params = {"name": tool, "arguments": arguments, "_meta": ENVELOPE}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        spoken = [*MCP, ("Mcp-Method", "tools/call"), ("Mcp-Name", tool), *(headers or [self.bearer])]
        return self.head("POST", "/mcp", spoken, len(body)), body

    def facts(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured content of a call that must succeed."""
        answer = self.call(tool, **arguments)
        assert answer.status == 200, answer.text
        result = answer.json()["result"]
        assert not result["isError"], answer.text
        return result["structuredContent"]

    @contextmanager
    def events(self) -> Iterator[Iterator[str]]:
        """The stream of events, line by line."""
        with httpx2.stream("GET", f"{self.url}api/events", headers=[self.bearer], timeout=SECONDS) as response:
            assert response.status_code == 200
            yield response.iter_lines()

    @asynccontextmanager
    async def client(self, era: str, *extensions: ClientExtension, **options: Any) -> AsyncIterator[Client]:
        """The SDK's own client."""
        async with httpx2.AsyncClient(headers=[self.bearer], timeout=SECONDS) as http_client:
            transport = streamable_http_client(f"{self.url}mcp", http_client=http_client)
            async with Client(transport, mode=era, extensions=list(extensions), **options) as client:
                yield client

    # Ending.

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.left()

    def left(self) -> int:
        code = self.process.wait(IN_TIME)
        assert "Traceback" not in self.errors.read_text()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def read(connection: socket.socket, method: str = "POST") -> Answer:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    assert len(headers) == len(response.getheaders()), "no header comes twice"
    return Answer(response.status, headers, response.read())


async def says_yes(context: Any, params: mt.ElicitRequestParams) -> mt.ElicitResult:
    return mt.ElicitResult(action="accept", content={"confirm": True})
