"""A real browser, and a host that shows the board in it as hosts of MCP Apps do: in a sandbox, with their policy."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import Facts, raw_call
from mcp import Client
from playwright.async_api import Browser, Frame, FrameLocator, Page, async_playwright

PACKAGES = ("chromium", "fonts-dejavu-core")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-features=IsolateSandboxedIframes",
]  # fmt: skip
URI = "ui://taskorch/board.html"
# What the specification has hosts apply to a page that names no domains.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' data:; connect-src 'none'"
)
HOST = Path(__file__).with_name("host.html")


@cache
def chromium() -> str:
    """The path of Debian's Chromium, installed when we may; else the test is skipped, which says what is missing."""
    found, why = shutil.which("chromium") or shutil.which("chromium-browser"), ""
    if not found and os.getuid() == 0 and shutil.which("apt-get"):
        why = _install()
        found = shutil.which("chromium")
    if not found:
        pytest.skip(f"there is no Chromium; install it: apt-get install {' '.join(PACKAGES)}{why}")
    return found


def _install() -> str:
    """Once for all of pytest's processes; why it could not be, if so."""
    with open(Path(tempfile.gettempdir()) / "taskorch-tests-chromium.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if shutil.which("chromium"):
            return ""
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        wanted = ("install", "-y", "-qq", "--no-install-recommends", *PACKAGES)
        for words in (("update", "-qq"), wanted):
            ran = subprocess.run(["apt-get", *words], env=env, capture_output=True, text=True)
        return f" (which failed: {ran.stderr.strip()[-300:]})" if ran.returncode else ""


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A browser with a fresh profile."""
    path = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """A page of the browser, and all that went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: line.type in ("error", "warning") and self.errors.append(line.text))
        page.on("request", lambda request: self.requests.append(request.url))


class Host(Tab):
    """A chat window with the board in it, in front of a client of a server. `calls`: what the board called."""

    def __init__(self, page: Page, client: Client) -> None:
        super().__init__(page)
        self.client = client
        self.calls: list[tuple[str, Facts]] = []
        self.down = False
        self.gate: anyio.Event | None = None  # what answers wait for
        self.most = 0  # calls that were under way at once
        self.under_way = 0
        self.called = anyio.Event()
        self.allowed: set[str] = set()
        self.answers: dict[str, Callable[[Facts], Facts]] = {}  # in the place of the server's

    async def show(
        self,
        task_id: str | None = None,
        *,
        width: int = 500,
        height: int = 320,
        capabilities: Facts | None = None,
        **context: Any,
    ) -> None:
        """Open it as show_board would have it; `context`: what the host tells of itself."""
        tools = {tool.name: tool.meta or {} for tool in (await self.client.list_tools()).tools}
        self.allowed = {
            name for name, meta in tools.items() if "app" in meta.get("ui", {}).get("visibility", ["model", "app"])
        }
        (page,) = (await self.client.read_resource(URI)).contents
        head, found, rest = page.text.partition("<head>")
        assert found
        html = f'{head}<head><meta http-equiv="Content-Security-Policy" content="{POLICY}">{rest}'
        given = {"task_id": task_id} if task_id else {}
        result = await raw_call(self.client, "show_board", given)
        await self.page.expose_function("callTool", self._call)
        await self.page.set_content(HOST.read_text())
        options = {
            "context": {"theme": "light", **context},
            "capabilities": {"serverTools": {}, **(capabilities or {})},
            "input": given,
            "result": json.loads(_wire(result)),
            "width": width,
            "height": height,
        }
        await self.page.evaluate("([html, options]) => mount(html, options)", [html, options])

    @property
    def board(self) -> FrameLocator:
        return self.page.frame_locator("iframe[sandbox]")

    @property
    def frame(self) -> Frame:
        """For scripts that look into it."""
        return self.page.frames[1]

    async def post(self, method: str, params: Facts, **more: Any) -> None:
        """Send the board a message, as the host."""
        await self.page.evaluate("m => post(m)", {"method": method, "params": params, **more})

    async def said(self, method: str | None = None) -> list[Facts]:
        """The messages that came from the board."""
        messages = await self.page.evaluate("said")
        return [message for message in messages if method in (None, message.get("method"))]

    async def until_called(self, fits: Callable[[str, Facts], Any], after: int = 0) -> None:
        """Until the board has made such a call, the first `after` calls aside."""
        with anyio.fail_after(15):
            while not any(fits(*call) for call in self.calls[after:]):
                await self.called.wait()

    async def _call(self, name: str, arguments: str) -> str:
        assert name in self.allowed, f"{name} is not for pages"
        given = json.loads(arguments)
        self.calls.append((name, given))
        self.called.set()
        self.called = anyio.Event()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.gate:
                await self.gate.wait()
            if self.down:
                raise ConnectionError("the server is gone")
            if name in self.answers:
                return json.dumps({"content": [], "structuredContent": self.answers[name](given)})
            return _wire(await raw_call(self.client, name, given))
        finally:
            self.under_way -= 1


def _wire(model: Any) -> str:
    return model.model_dump_json(by_alias=True, exclude_none=True)


@asynccontextmanager
async def hosted(browser: Browser, client: Client, scale: int = 1) -> AsyncIterator[Host]:
    """A host in a window of its own; nothing may have gone wrong in it, and nothing have been asked of the network."""
    context = await browser.new_context(
        viewport={"width": 1000, "height": 900}, device_scale_factor=scale, reduced_motion="reduce"
    )
    try:
        host = Host(await context.new_page(), client)
        yield host
        assert host.errors == []
        assert [url for url in host.requests if not url.startswith(("about:", "data:"))] == []
    finally:
        await context.close()
