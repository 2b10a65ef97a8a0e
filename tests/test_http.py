"""`taskorch http` as browsers and clients meet it: a process on a port of this machine."""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import mcp_types as mt
import pytest
from clients import ERAS, call, until
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from peers.handles import TASKS, Handle, ProtocolTasks, get
from servers import ENVELOPE, Place, wait_for
from sites import MCP, Site, read, says_yes
from starlette.types import Message

from taskorch.cli.configured import shown
from taskorch.cli.http import listener
from taskorch.config import load_settings
from taskorch.domain.errors import StoreError
from taskorch.http import events, guard, serving, token
from taskorch.http.flights import MOST, Flights
from taskorch.http.guard import BODY_BYTES, Gate, Guard
from taskorch.http.serving import PatientServer
from taskorch.http.token import Token, kept_token

EVENT = ["event: change", "data: {}", ""]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("http"))
    yield place
    place.close()


@pytest.fixture(scope="module")
def site(shared: Place) -> Iterator[Site]:
    site = Site(shared)
    yield site
    site.close()


@pytest.fixture
def own(place: Place) -> Iterator[Callable[..., Site]]:
    """Sites that a test may end."""
    sites: list[Site] = []

    def start(*options: str, **settings: str) -> Site:
        sites.append(Site(place, *options, **settings))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


def filled(text: str, site: Site) -> str:
    return text.replace("PORT", str(site.port)).replace("TOKEN", site.token)


def cookie(site: Site) -> tuple[str, str]:
    answer = site.ask("GET", f"/?token={site.token}")
    return "Cookie", answer.headers["set-cookie"].partition(";")[0]


# Who may ask.


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LocalHost:PORT", "[::1]:PORT"])
def test_a_name_of_this_machine_is_answered(host: str, site: Site) -> None:
    assert site.ask("GET", "/", [site.bearer], host=filled(host, site)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:PORT", "localhost.evil.example:PORT", "127.0.0.1.evil.example:PORT"),
        *("127.0.0.1", "localhost", "[::1]", "127.0.0.1:1", "127.0.0.1:PORT0", "127.0.0.1:PORT.evil.example"),
        *(
            "localhost:PORT@evil.example",
            "localhost.:PORT",
            "0.0.0.0:PORT",
            "127.1:PORT",
            "[::]:PORT",
            "::1:PORT",
            ":PORT",
        ),
    ],
)
def test_a_name_that_somebody_else_made_lead_here_is_not_answered(host: str, site: Site) -> None:
    answer = site.ask("GET", "/nowhere", [site.bearer], host=filled(host, site))
    assert answer.status == 421
    assert answer.json()["error"]["code"] == "FORBIDDEN"


def test_a_request_without_a_host_or_with_two_is_not_answered(site: Site) -> None:
    token = f"Authorization: Bearer {site.token}\r\n"
    host = f"Host: 127.0.0.1:{site.port}\r\n"
    assert site.send(f"GET / HTTP/1.0\r\n{token}\r\n".encode()).status == 421
    assert site.send(f"GET / HTTP/1.1\r\n{token}\r\n".encode()).status == 400
    assert site.send(f"GET / HTTP/1.1\r\n{host}{host}{token}\r\n".encode()).status == 400
    assert site.send(f"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n{token}\r\n".encode()).status == 421


@pytest.mark.parametrize(
    ("origins", "status"),
    [
        ([], 200),
        (["http://127.0.0.1:PORT"], 200),
        (["http://localhost:PORT"], 200),
        (["http://[::1]:PORT"], 200),
        (["null"], 403),
        ([""], 403),
        (["http://evil.example"], 403),
        (["https://127.0.0.1:PORT"], 403),
        (["http://127.0.0.1"], 403),
        (["http://127.0.0.1:1"], 403),
        (["http://127.0.0.1:PORT.evil.example"], 403),
        (["http://127.0.0.1:PORT", "http://evil.example"], 403),
    ],
)
def test_pages_of_others_are_refused_even_with_the_token(origins: list[str], status: int, site: Site) -> None:
    headers = [site.bearer, *(("Origin", filled(origin, site)) for origin in origins)]
    answer = site.ask("GET", "/", headers)
    assert answer.status == status
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("headers", "is_known"),
    [
        ([("Authorization", "Bearer TOKEN")], True),
        ([("Authorization", "bearer  TOKEN ")], True),
        ([], False),
        ([("Authorization", "Bearer ")], False),
        ([("Authorization", "TOKEN")], False),
        ([("Authorization", "Basic TOKEN")], False),
        ([("Authorization", "Bearer TOKENx")], False),
        ([("Authorization", "Bearer wrong")], False),
        ([("Authorization", "Bearer tök\u00a0en")], False),
        ([("Authorization", "Bearer TOKEN"), ("Authorization", "Bearer TOKEN")], False),
        ([("Cookie", "taskorch-PORT=TOKEN")], False),
        ([("X-Token", "TOKEN")], False),
    ],
)
@pytest.mark.parametrize("path", ["/", "/mcp", "/api/events", "/api/tasks", "/metrics", "/nowhere"])
def test_nothing_is_answered_without_the_token(
    path: str, headers: list[tuple[str, str]], is_known: bool, site: Site
) -> None:
    answer = site.ask("HEAD", path, [(name, filled(value, site)) for name, value in headers])
    assert (answer.status != 401) is is_known
    assert is_known or answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/mcp?token=TOKEN", "/api/events?token=TOKEN", "/health/?token=TOKEN", "//?token=TOKEN"]
)
def test_the_token_in_an_address_opens_the_page_alone(path: str, site: Site) -> None:
    assert site.ask("GET", filled(path, site)).status == 401


def test_whether_it_lives_is_told_without_a_token(site: Site) -> None:
    health = site.ask("GET", "/health").json()["data"]
    assert health.keys() < site.ask("GET", "/health", [site.bearer]).json()["data"].keys()
    assert site.ask("GET", "/health", host="evil.example").status == 421
    assert site.ask("GET", "/health", [("Origin", "http://evil.example")]).status == 403


def test_a_stranger_holds_no_place_by_a_body_that_does_not_come(site: Site) -> None:
    """Else those who know the token would be told for 20 s that too many requests are being answered."""
    assert site.send(site.head("GET", "/health", length=10)).status == 200
    assert site.send(site.head("POST", "/health", length=10)).status == 405


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", [], 200),
        ("GET", [("Sec-Fetch-Site", "same-origin")], 200),
        ("GET", [("Sec-Fetch-Site", "none")], 200),
        ("GET", [("Sec-Fetch-Site", "same-site")], 403),
        ("GET", [("Sec-Fetch-Site", "cross-site")], 403),
        ("POST", [], 403),
        ("POST", [("Sec-Fetch-Site", "same-site")], 403),
        ("POST", [("Sec-Fetch-Site", "none")], 403),
        ("POST", [("Sec-Fetch-Site", "same-origin")], 200),
        ("POST", [("Origin", "http://127.0.0.1:PORT")], 200),
        ("POST", [("Origin", "http://127.0.0.1:3000")], 403),
    ],
)
def test_another_page_of_this_machine_cannot_use_the_pages_cookie(
    method: str, headers: list[tuple[str, str]], status: int, site: Site
) -> None:
    """A cookie is sent to all ports of a host, by whichever page asks."""
    given = [cookie(site), *((name, filled(value, site)) for name, value in headers)]
    if method == "POST":
        assert site.call("get_stats", *given).status == status
    else:
        assert site.ask("HEAD", "/api/events", given).status == status
        assert site.ask("GET", "/", given).status == 200, "a link to the page is no harm"


# The page.


def test_the_printed_address_opens_the_page_and_leaves_no_token_in_it(site: Site) -> None:
    answer = site.ask("GET", f"/?token={site.token}")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    name, *attributes = answer.headers["set-cookie"].split("; ")
    assert name.startswith(f"taskorch-{site.port}=")
    assert site.token not in name
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    page = site.ask("GET", "/", [cookie(site)])
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert site.ask("GET", "/?token=wrong").status == 401
    assert site.ask("GET", "/").text.startswith("A token is needed.")


def test_a_link_on_another_site_opens_the_page_although_browsers_keep_the_cookie_back_at_first(site: Site) -> None:
    linked = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")]
    assert site.ask("GET", f"/?token={site.token}", linked).status == 303
    first = site.ask("GET", "/", linked)
    assert (first.status, first.headers["refresh"]) == (401, "0; url=/")
    assert site.ask("GET", "/", [("Sec-Fetch-Site", "same-origin"), cookie(site)]).status == 200
    assert "refresh" not in site.ask("GET", "/", [("Sec-Fetch-Site", "same-origin")]).headers, "not for ever"
    assert "refresh" not in site.ask("GET", "/api/tasks", linked).headers


def test_the_page_may_run_its_own_scripts_and_reach_this_server_alone(site: Site) -> None:
    page = site.ask("GET", "/", [site.bearer])
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("script", "style"):
        inline = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", page.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
        assert policy.get(f"{kind}-src", "").split() == [f"'sha256-{found}'" for found in hashes]


def test_every_answer_says_that_it_is_for_nobody_else(site: Site) -> None:
    for answer in (
        site.ask("GET", "/"),
        site.ask("GET", "/", [site.bearer]),
        site.ask("GET", "/nowhere", [site.bearer]),
        site.ask("HEAD", "/api/events", [site.bearer]),
        site.ask("OPTIONS", "/mcp", [site.bearer]),
        site.ask("GET", "/", host="evil.example"),
        site.ask("GET", "/api/tasks", [site.bearer]),
        site.call("get_stats"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not {"server", "x-powered-by", "access-control-allow-origin"} & answer.headers.keys()


# What is asked.


def test_a_body_over_a_mebibyte_is_refused_however_it_comes(site: Site) -> None:
    start = f"POST /mcp HTTP/1.1\r\nHost: localhost:{site.port}\r\nAuthorization: Bearer {site.token}\r\n"
    over = BODY_BYTES + 1
    assert site.send(f"{start}Content-Length: {1 << 40}\r\n\r\n".encode()).status == 413
    assert site.send(f"{start}Expect: 100-continue\r\nContent-Length: {over}\r\n\r\n".encode()).status == 413
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    chunked = f"{start}Transfer-Encoding: chunked\r\n\r\n".encode()
    assert site.send(chunked, *[chunk] * 17, b"0\r\n\r\n").status == 413
    assert site.send(chunked, *[chunk] * (guard.READ_BYTES // 0x10000 + 1)).status == 413
    assert site.send(f"{start}Content-Length: {over}\r\n\r\n".encode(), b"x" * over).status == 413
    assert site.ask("POST", "/mcp", [site.bearer], b"x" * over).json()["error"]["code"] == -32600
    assert site.ask("POST", "/api/events", [site.bearer], b"x" * over).json()["error"]["code"] == "PAYLOAD_TOO_LARGE"
    long = "n" * (BODY_BYTES - 600)
    assert site.call("get_task", task_id=long).status == 200, "the largest body is read"


def test_a_request_whose_end_is_a_matter_of_opinion_is_refused(site: Site) -> None:
    start = f"POST /mcp HTTP/1.1\r\nHost: localhost:{site.port}\r\nAuthorization: Bearer {site.token}\r\n"
    hidden = f"0\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost:{site.port}\r\n\r\n"
    for lines in (
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
    ):
        answer = site.send(f"{start}{lines}\r\n{hidden}".encode())
        assert (answer.status, answer.headers["connection"]) == (400, "close")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", {"GET", "HEAD"}),
        ("OPTIONS", "/", {"GET", "HEAD"}),
        ("DELETE", "/api/events", {"GET", "HEAD"}),
        ("GET", "/mcp", {"POST"}),
        ("DELETE", "/mcp", {"POST"}),
        ("OPTIONS", "/mcp", {"POST"}),
        ("BREW", "/mcp", {"POST"}),
    ],
)
def test_a_method_that_means_nothing_is_answered_with_those_that_do(
    method: str, path: str, allowed: set[str], site: Site
) -> None:
    answer = site.ask(method, path, [site.bearer])
    assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, allowed)
    assert all(word in answer.text for word in allowed)


@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere", "//", "/index.html", "/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/", "/mcp/", "/%00"),
        *("/board.html", "/http-token", "/taskorch.db", "/%E2%82%AC/%ff", "/;/", "/\\..\\..", "*", "/" + "a" * 5000),
    ],
)
def test_no_other_path_is_served(path: str, site: Site) -> None:
    answer = site.ask("GET", path, [site.bearer])
    assert answer.status == 404
    assert answer.json()["error"]["code"] == "NOT_FOUND"
    assert site.ask("GET", path).status == 401


def test_what_is_no_request_is_refused_and_the_next_one_answered(site: Site) -> None:
    logged = site.errors.read_text()
    for bytes_ in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"{}\r\n\r\n",
    ):
        assert site.send(bytes_).status == 400
    head = f"Host: localhost:{site.port}\r\nAuthorization: Bearer {site.token}\r\n"
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
    assert site.send(f"GET /api/events/ HTTP/1.1\r\n{head}{upgrade}\r\n".encode()).status == 404
    assert site.send(f"GET / HTTP/1.1\r\n{head}X: {'y' * 80_000}".encode()).status == 400
    three = f"GET / HTTP/1.1\r\n{head}\r\n" * 2 + f"GET /nowhere HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", site.port)) as pipeline:
        pipeline.sendall(three.encode())
        answers = b"".join(iter(lambda: pipeline.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"404"]
    assert site.errors.read_text() == logged, "bytes of strangers write no log"


# Events.


def test_a_change_by_another_server_is_told_on_the_stream(site: Site, shared: Place) -> None:
    other = shared.start()
    with site.events() as lines:
        assert [next(lines) for _ in range(4)] == ["retry: 2000", *EVENT]
        task_id = other.create("echo")
        assert [next(lines) for _ in range(3)] == EVENT
    other.until_ended(task_id)
    assert site.facts("get_task", task_id=task_id)["status"] == "completed"
    mine = site.facts("create_task", kind="echo", payload={"text": "over HTTP"})["id"]
    other.until_ended(mine)
    assert other.end() == 0


def test_a_client_that_goes_makes_room_for_another(site: Site) -> None:
    request = f"GET /api/events HTTP/1.1\r\nHost: localhost:{site.port}\r\nAuthorization: Bearer {site.token}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(events.STREAMS)
        ]
        for stream in streams:
            stream.sendall(request.encode())
            assert stream.recv(100).startswith(b"HTTP/1.1 200")
        refused = site.ask("HEAD", "/api/events", [site.bearer])
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        streams[0].close()
        wait_for(lambda: site.ask("HEAD", "/api/events", [site.bearer]).status == 200)


async def test_many_changes_are_one_event_and_a_quiet_stream_gives_signs_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.02)
    told: list[Callable[..., None]] = []

    class Store:
        @contextlib.contextmanager
        def listening(self, heard: Callable[..., None]) -> Iterator[None]:
            told.append(heard)
            try:
                yield
            finally:
                told.remove(heard)

    class Service:
        store = Store()

    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async with anyio.create_task_group() as group:
        stream = events.Events(Service())  # type: ignore[arg-type]
        group.start_soon(stream, {"method": "GET", "path": "/api/events"}, anyio.sleep_forever, send)
        await until(lambda: sent[-1:] == [events.FIRST])
        for _ in range(100):
            told[0]([])
        await until(lambda: events.BEAT in sent)
        group.cancel_scope.cancel()
    assert sent == [b"", events.FIRST, events.CHANGED, events.BEAT]
    assert not told


# MCP.


@pytest.mark.parametrize("era", ERAS)
async def test_an_mcp_client_has_everything_over_http(era: str, site: Site) -> None:
    told: list[Any] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        told.append((value, total, message))

    with anyio.fail_after(30):
        async with site.client(era) as client:
            assert {"create_task", "board_data"} <= {tool.name for tool in (await client.list_tools()).tools}
            task_id = (await call(client, "create_task", payload={"argv": ["sleep", "0.2"]})).facts["id"]
            waited = await client.call_tool(
                "wait_for_tasks", {"task_ids": [task_id], "timeout_seconds": 20}, progress_callback=progress
            )
            assert isinstance(waited, CallToolResult) and waited.structured_content is not None
            assert waited.structured_content["done"]
            assert told[0] == (0, 20, "0 of 1 tasks have ended")
            contents = (await client.read_resource(f"task://{task_id}")).contents[0]
            assert isinstance(contents, mt.TextResourceContents) and '"completed"' in contents.text
            assert task_id in {str(found.uri).rpartition("/")[2] for found in (await client.list_resources()).resources}
            found = await client.complete(
                mt.ResourceTemplateReference(uri="task://{task_id}"), {"name": "task_id", "value": task_id[:6]}
            )
            assert found.completion.values == [task_id]
            assert (await client.get_prompt("standup", {})).messages


async def test_a_client_of_2026_hears_of_changes_and_is_asked_before_something_is_lost(site: Site) -> None:
    with anyio.fail_after(30):
        async with site.client("auto", elicitation_callback=says_yes) as client:
            task_id = (await call(client, "create_task", payload={"argv": ["sleep", "60"]})).facts["id"]
            async with client.listen(resource_subscriptions=[f"task://{task_id}"]) as listening:
                answer = await call(client, "delete_task", task_id=task_id)
                assert answer.facts["deleted"]
                async for event in listening:
                    assert event.uri == f"task://{task_id}"  # type: ignore[union-attr]
                    break


async def test_a_client_of_2025_is_not_promised_what_http_cannot_keep(site: Site) -> None:
    with anyio.fail_after(30):
        async with site.client("legacy", elicitation_callback=says_yes) as client:
            assert client.server_capabilities is not None and client.server_capabilities.resources is not None
            assert not client.server_capabilities.resources.subscribe
            assert not client.server_capabilities.resources.list_changed
            with pytest.raises(MCPError, match="2026-07-28"):
                await client.subscribe_resource("tasks://recent")
            task_id = (await call(client, "create_task", payload={"argv": ["sleep", "60"]})).facts["id"]
            refused = await client.call_tool("delete_task", {"task_id": task_id})
            assert refused.is_error and "confirm=true" in refused.content[0].text  # type: ignore[union-attr]
            await call(client, "cancel_task", task_id=task_id)


async def test_protocol_tasks_are_served_and_the_header_must_name_the_task(site: Site) -> None:
    extension = ProtocolTasks()
    with anyio.fail_after(30):
        async with site.client("auto", extension) as client:
            result = await client.call_tool("create_task", {"payload": {"argv": ["sleep", "0.2"]}, "wait_seconds": 20})
            assert isinstance(result, CallToolResult) and result.structured_content is not None
            assert (result.structured_content["status"], extension.asked >= 1) == ("completed", True)
            arguments = {"kind": "sleep", "payload": {"seconds": 60}, "wait_seconds": 20}
            handle = await client.session.call_tool("create_task", arguments, allow_claimed=True)
            assert isinstance(handle, Handle)
            assert (await get(client.session, handle.task_id)).status == "working"
    meta = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}}}
    for named in ("", "t0000000000000000"):
        message = {"jsonrpc": "2.0", "id": 1, "method": "tasks/cancel"}
        params = {"taskId": handle.task_id, "_meta": ENVELOPE | meta}
        headers = [site.bearer, *MCP, ("Mcp-Method", "tasks/cancel"), *([("Mcp-Name", named)] if named else [])]
        answer = site.ask("POST", "/mcp", headers, json.dumps(message | {"params": params}).encode())
        assert (answer.status, answer.json()["error"]["code"]) == (400, -32020)
    assert site.facts("get_task", task_id=handle.task_id)["status"] == "working"
    site.facts("cancel_task", task_id=handle.task_id)


def test_calls_whose_clients_have_gone_make_room_for_others(site: Site) -> None:
    task_id = site.facts("create_task", kind="echo", delay_seconds=3600)["id"]
    modern = b"".join(site.wording("wait_for_tasks", task_ids=[task_id], timeout_seconds=50))
    legacy = modern.replace(b"Mcp-Protocol-Version: 2026-07-28", b"Mcp-Protocol-Version: 2025-11-25")
    with contextlib.ExitStack() as stack:
        for request in (modern, legacy) * (MOST // 2 + 4):  # a few are refused
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", site.port)))
            connection.sendall(request)
        wait_for(lambda: site.call("get_stats").status == 503)
    wait_for(lambda: site.call("get_stats").status == 200)
    site.facts("cancel_task", task_id=task_id)


# Ends.


def test_a_signal_gives_back_what_works_and_ends_what_waits(own: Callable[..., Site], place: Place) -> None:
    site = own()
    held = site.facts("create_task", kind="hold")["id"]
    wait_for(lambda: site.facts("get_task", task_id=held)["status"] == "working")
    with (
        site.events() as lines,
        socket.create_connection(("127.0.0.1", site.port)) as waiting,
        socket.create_connection(("127.0.0.1", site.port)) as idle,
    ):
        waiting.sendall(b"".join(site.wording("wait_for_tasks", task_ids=[held], timeout_seconds=50)))
        assert site.call("get_stats").status == 200, "what came before has been heard"
        assert site.stop() == 0
        assert [*lines][-3:] == EVENT, "the stream has ended, not broken off"
        answer = read(waiting)
        assert (answer.status, answer.json()["error"]["code"]) == (503, -32000)
        assert idle.recv(1) == b""
    row = place.row(held)
    assert (row["status"], row["interruptions"]) == ("waiting", 1)


def test_a_task_that_was_created_over_http_survives_the_server(own: Callable[..., Site], place: Place) -> None:
    site = own()
    task_id = site.facts("create_task", kind="echo", delay_seconds=3600)["id"]
    site.process.kill()
    site.process.wait()
    second = own()
    assert second.token == site.token, "clients that are configured go on"
    assert second.facts("get_task", task_id=task_id)["phase"] == "scheduled"
    assert second.stop(signal.SIGINT) == 0


def test_clients_that_do_not_read_or_never_finish_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where patience can be shortened."""
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.05)

    flights = Flights()

    async def run() -> None:
        async def pours(scope: Any, receive: Any, send: Any) -> None:
            with flights.one():
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
                    await anyio.lowlevel.checkpoint()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async with served(pours, flights) as (port, stop):
            reader = await anyio.connect_tcp("127.0.0.1", port)
            await reader.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            silent = await anyio.connect_tcp("127.0.0.1", port)
            half = await anyio.connect_tcp("127.0.0.1", port)
            await half.send(b"GET / HTTP/1.1\r\nHost")
            for stream in (silent, half):
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
                await stream.aclose()
            assert await reader.receive(10)
            stop.set()
        await reader.aclose()

    anyio.run(run)


@asynccontextmanager
async def served(app: Any, flights: Flights) -> AsyncIterator[tuple[int, anyio.Event]]:
    """The server alone, around an application."""
    stop, begun = anyio.Event(), anyio.Event()
    listening = listener("127.0.0.1", 0)
    server = PatientServer(app, stop, begun.set, flights)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, [listening])
            await begun.wait()
            yield listening.getsockname()[1], stop
            stop.set()


# The guard, with an application that does as the test wants.


async def guarded(app: Any, receive: Callable[[], Awaitable[Message]], flights: Flights) -> list[Message]:
    token = Token("x" * 20, 80)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer " + b"x" * 20)],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with anyio.fail_after(5):
        await Guard(app, Gate("127.0.0.1", 80, token), token, flights)(scope, receive, send)
    return sent


async def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.02)

    async def never(*_: Any) -> Any:
        await anyio.sleep_forever()

    start, body = await guarded(never, never, Flights())
    assert (start["status"], dict(start["headers"])[b"connection"]) == (408, b"close")
    assert b"did not arrive" in body["body"]


async def test_no_more_requests_are_answered_than_may_be_and_none_when_the_server_stops() -> None:
    flights, entered = Flights(1), anyio.Event()
    answers: list[list[Message]] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def holds(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        await anyio.sleep_forever()

    async def ask() -> None:
        answers.append(await guarded(holds, receive, flights))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await entered.wait()
        busy = await guarded(holds, receive, flights)
        assert (busy[0]["status"], dict(busy[0]["headers"])[b"retry-after"]) == (503, b"1")
        flights.end()
    assert (answers[0][0]["status"], b"stopping" in answers[0][1]["body"]) == (503, True)
    late = await guarded(holds, receive, flights)
    assert b"stopping" in late[1]["body"]


# The token and the port.


def test_the_token_is_made_once_and_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = kept_token(tmp_path)
    finally:
        os.umask(before)
    path = tmp_path / token.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made) >= 43
    token.make(path)  # as another server that started at the same moment
    assert kept_token(tmp_path) == made
    assert [found.name for found in tmp_path.iterdir()] == [token.FILE]


@pytest.mark.parametrize("harm", ["rights", "link", "empty", "folder"])
def test_a_token_that_may_be_known_to_others_is_not_used(harm: str, tmp_path: Path) -> None:
    made = kept_token(tmp_path)
    path = tmp_path / token.FILE
    if harm == "rights":
        path.chmod(0o640)
    elif harm == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        path.write_text("") if harm == "empty" else path.mkdir()
        path.chmod(0o600)
    with pytest.raises(StoreError) as refused:
        kept_token(tmp_path)
    assert str(path) in str(refused.value) and "Remove it" in str(refused.value)
    assert made not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "", "127.0.0.1.example.com", "127.1"])
def test_only_this_machine_is_listened_to(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        listener(host, 0)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and repr(host) in said and "ssh -L" in said


def test_a_port_that_is_taken_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with listener("localhost", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as left:
            listener("127.0.0.1", port)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"port {port} " in said
    assert "TASKORCH_HTTP_PORT" in said


def test_a_token_of_the_operators_own_is_used_and_never_shown(
    own: Callable[..., Site], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "the.operators-own_token"
    site = own(http_token=secret)
    assert site.ask("GET", "/", [site.bearer]).status == 200
    assert site.ask("GET", "/").status == 401
    assert secret not in site.errors.read_text()
    assert not (place.state / token.FILE).exists()
    monkeypatch.setenv("TASKORCH_HTTP_TOKEN", secret)
    assert secret not in json.dumps(shown(load_settings(), {}))
