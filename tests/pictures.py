"""The pictures of the board in docs/images, taken of the page itself over a store in which an hour has passed.

python -m tests.pictures [folder]
"""

import struct
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).parent))

from browsers import Host, hosted, launched
from clients import call, connected, settings
from fakes import Clock
from mcp import Client

from taskorch import __version__, engine
from taskorch.domain.task import Cancelled, Completed, Failed, Progress, Reason, Task
from taskorch.mcp.resources import Resources
from taskorch.mcp.server import build_server
from taskorch.storage.store import Store

FOLDER = Path(__file__).parent.parent / "docs" / "images"
BEGIN = 1_795_529_400_000  # a Tuesday in November 2026, 14:10 UTC
MOST_BYTES = 200_000
CRASH = """Traceback (most recent call last):
  File "/srv/shop/migrate.py", line 88, in upgrade
    connection.execute(step.sql)
psycopg.errors.UndefinedColumn: column "region" of relation "orders" does not exist
HINT: Perhaps you meant to reference the column "orders.regions"."""
OUTPUT = """connected to shop@db.internal, schema version 41
42_split_addresses.sql      ok    1.9 s
43_order_regions.sql        ok    0.4 s
44_backfill_regions.sql     failed
rolled back to version 43
"""


class Scene:
    """A store whose time we tell, and a server's part in it: what is ready starts at once."""

    def __init__(self, store: Store, client: Client, clock: Clock, owner: int, kinds: Any, output: Path) -> None:
        self.store = store
        self.client = client
        self.clock = clock
        self.owner = owner
        self.kinds = dict.fromkeys(kinds, 50)
        self.output = output
        self.working: dict[str, Task] = {}

    async def at(self, minutes: float) -> None:
        """Let time pass until so many minutes have since the beginning."""
        self.clock.now = BEGIN + round(minutes * 60_000)
        await self.store.promote()
        await self._start()

    async def _start(self) -> None:
        for task in await self.store.claim(self.owner, self.kinds, 50):
            self.working[task.name or task.id] = task
            self.clock.advance(0.4)

    async def add(self, name: str, kind: str = "command", *, argv: str = "", **wish: Any) -> None:
        payload = {"argv": ["sh", "-c", argv]} if argv else wish.pop("payload", {})
        await call(self.client, "create_task", kind=kind, payload=payload, name=name, **wish)
        self.clock.advance(0.2)
        await self._start()

    async def done(self, *names: str, result: Any = None) -> None:
        for name in names:
            await self.store.settle(self.working.pop(name), Completed(result))
            self.clock.advance(0.7)
        await self._start()

    async def fail(self, name: str, reason: Reason, message: str, code: int | None = None) -> None:
        await self.store.settle(self.working.pop(name), Failed(reason, message, code))

    async def cancel(self, name: str) -> None:
        await call(self.client, "cancel_task", task_id=name)
        await self.store.settle(self.working.pop(name), Cancelled("1 process was ended"))

    async def progress(self, name: str, value: float, total: float, message: str) -> None:
        await self.store.report([(self.working[name], Progress(value, total, message))])

    def wrote(self, task: Task, text: str) -> None:
        folder = self.output / task.id / str(task.attempt)
        folder.mkdir(parents=True)
        (folder / "output").write_text(text)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    given = settings(folder, toolsets="core,board")
    kinds = engine.load_kinds(given).all
    async with engine.opened(given) as database:
        clock = Clock(BEGIN)
        store = Store(database, clock)
        owner = await store.register("0" * 32, 1, __version__, sorted(kinds))
        service = engine.serving(given, database, store, kinds)
        async with connected(build_server(service, Resources(service)), "auto") as client:
            yield Scene(store, client, clock, owner, kinds, given.state_dir / "output")


async def an_hour(s: Scene) -> None:
    """What is to be seen, up to now."""
    patient = {"max_attempts": 5, "retry": {"first_delay_seconds": 60}}
    await s.add("nightly backup", argv="restic backup /srv", schedule={"cron": "0 3 * * *", "time_zone": "UTC"})
    await s.add("send invoices", argv="python invoices.py", run_at="2026-11-24T18:00:00Z")
    await s.add("thumbnails", argv="make thumbnails", labels=["media"])
    await s.add("fetch orders", argv="fetch orders", labels=["nightly"], **patient)
    await s.add("fetch customers", argv="fetch customers", labels=["nightly"])
    await s.add("clean", argv="python clean.py", depends_on=["fetch orders", "fetch customers"])
    await s.add("train churn model", argv="python train.py", depends_on=["clean"], priority="high", labels=["gpu"])
    await s.add("weekly report", argv="python report.py", depends_on=["train churn model"])
    await s.at(2)
    await s.fail("fetch orders", Reason.EXIT_CODE, "curl: (28) operation timed out after 30001 ms", 28)
    await s.at(3.4)
    await s.done("thumbnails")
    await s.at(4.5)
    await s.done("fetch customers")
    await s.fail("fetch orders", Reason.EXIT_CODE, "curl: (28) operation timed out after 30001 ms", 28)
    await s.at(6.8)
    await s.add("reindex search", argv="bin/reindex --all", priority="low")
    await s.at(9.5)
    await s.done("fetch orders")
    await s.at(12)
    await s.cancel("reindex search")
    await s.at(14)
    await s.done("clean")
    await s.add("embed handbook", "echo", payload={"pages": 412}, labels=["docs"])
    await s.at(23)
    await s.done("embed handbook", result={"chunks": 4120, "index": "handbook-v7"})
    await s.at(26)
    await release(s)
    await s.at(34)
    await s.add("migrate database", argv="python migrate.py --to 45", max_attempts=2, retry={"first_delay_seconds": 90})
    await s.at(34.7)
    await s.fail("migrate database", Reason.EXIT_CODE, "server closed the connection unexpectedly", 1)
    await s.at(36.2)
    s.wrote(s.working["migrate database"], OUTPUT + CRASH + "\n")
    await s.done("image")
    await s.at(37.2)
    await s.fail("migrate database", Reason.EXIT_CODE, CRASH, 1)
    await s.at(38)
    await s.done("scan")
    await s.at(38.6)
    await s.done("sign")
    await s.add("sync CRM", argv="python sync_crm.py", **patient | {"retry": {"first_delay_seconds": 200}})
    await s.at(41.3)
    await s.fail("sync CRM", Reason.TIMEOUT, "timed out after 120 s", None)
    await s.add("resize archive", argv="make archive", priority="low", delay_seconds=3600)
    await call(s.client, "update_task", task_id="resize archive", paused=True)
    await s.at(42)
    await s.add("transcribe interview 07", argv="whisper 07.wav", labels=["media"])
    await s.at(43)
    await s.progress("train churn model", 31, 50, "epoch 31 of 50, loss 0.214")
    await s.progress("integration tests", 96, 120, "96 of 120 passed")
    await s.progress("transcribe interview 07", 4, 22, "minute 4 of 22")


async def release(s: Scene) -> None:
    """A pipeline that people know, half of it done."""
    await s.add("checkout", argv="git clone shop", labels=["release 2.4"])
    for name, after in (
        ("lint", ["checkout"]),
        ("unit tests", ["checkout"]),
        ("build", ["checkout"]),
        ("docs", ["checkout"]),
        ("image", ["build"]),
        ("integration tests", ["build"]),
        ("scan", ["image"]),
        ("sign", ["image"]),
        ("deploy staging", ["lint", "unit tests", "integration tests", "scan", "sign"]),
        ("smoke test", ["deploy staging"]),
        ("publish docs", ["docs", "smoke test"]),
        ("deploy production", ["smoke test"]),
    ):
        await s.add(name, argv=f"make {name}", depends_on=after, labels=["release 2.4"])
    await s.at(26.6)
    await s.done("checkout")
    await s.at(28)
    await s.done("lint")
    await s.at(29.5)
    await s.done("docs")
    await s.at(31)
    await s.done("build")
    await s.at(33)
    await s.done("unit tests")


async def take(host: Host, path: Path, height: int = 640) -> None:
    """What the frame shows, as a PNG of `MOST_BYTES` at most."""
    await host.page.evaluate("height => document.querySelector('iframe').style.height = height + 'px'", height)
    await anyio.sleep(0.4)  # until what is drawn a frame later is there
    taken = b64encode(await host.page.locator("iframe").screenshot()).decode()
    width, height, colours, pixels = await host.page.evaluate(FEW_COLOURS, taken)
    picture = png(width, height, bytes(colours), b64decode(pixels))
    print(f"{path.name}: {len(picture):,} bytes")  # noqa: T201 - for who runs this file by hand
    assert len(picture) <= MOST_BYTES
    await anyio.Path(path).write_bytes(picture)


# A page has few colours, and the rest are shades between two of them: 256 do, and a third of the bytes.
FEW_COLOURS = """async taken => {
  const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + taken)).blob());
  const context = new OffscreenCanvas(image.width, image.height).getContext('2d');
  context.drawImage(image, 0, 0);
  const rgba = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer), counts = new Map();
  for (const colour of rgba) counts.set(colour, (counts.get(colour) || 0) + 1);
  const channels = colour => [colour & 255, colour >> 8 & 255, colour >> 16 & 255];
  const usual = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  const kinds = new Map(); // the most usual of each kind first: else greys would take all
  for (const colour of usual) if (!kinds.has(colour & 0xf0f0f0)) kinds.set(colour & 0xf0f0f0, colour);
  const chosen = [...new Set([...[...kinds.values()].slice(0, 200), ...usual])].slice(0, 256).map(channels);
  const near = colour => {
    const [r, g, b] = channels(colour), far = chosen.map(([x, y, z]) => (r - x) ** 2 + (g - y) ** 2 + (b - z) ** 2);
    return far.indexOf(Math.min(...far));
  };
  const place = new Map([...counts.keys()].map(colour => [colour, near(colour)]));
  const pixels = Uint8Array.from(rgba, colour => place.get(colour));
  let text = '';
  for (let at = 0; at < pixels.length; at += 32768) text += String.fromCharCode(...pixels.subarray(at, at + 32768));
  return [image.width, image.height, chosen.flat(), btoa(text)];
}"""


def png(width: int, height: int, colours: bytes, pixels: bytes) -> bytes:
    """A picture of at most 256 colours (three bytes each), one byte a pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + pixels[row * width : (row + 1) * width] for row in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", head), (b"PLTE", colours), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


async def tour(host: Host, folder: Path) -> None:
    """Each view in turn."""
    board = host.board
    rows = board.locator("#view-board .rows [role=row]")
    await rows.first.wait_for()
    await board.locator("#order").select_option("newest")
    await take(host, folder / "board-light.png")
    await host.post("ui/notifications/host-context-changed", {"theme": "dark"})
    await take(host, folder / "board-dark.png")
    await host.post("ui/notifications/host-context-changed", {"theme": "light"})
    await board.get_by_role("tab", name="Timeline").click()
    await take(host, folder / "timeline.png")
    await board.get_by_role("tab", name="Graph").click()
    await board.get_by_role("button", name="Fit").click()
    await take(host, folder / "graph.png", 275)
    await board.get_by_role("tab", name="Board").click()
    await board.locator("#text").fill("migrate")
    await rows.first.click()
    await board.get_by_text("42_split").wait_for()
    await take(host, folder / "task.png")


async def main(folder: Path) -> None:
    with TemporaryDirectory() as state:
        async with scene(Path(state)) as s, launched() as browser:
            await an_hour(s)
            async with hosted(browser, s.client, scale=2) as host:
                size = {"width": 960, "height": 640}
                await host.show(**size, timeZone="UTC", locale="en-GB", containerDimensions=size)
                await tour(host, folder)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
