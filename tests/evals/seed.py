"""A week of a small web shop's background tasks, for the questions in questions.xml.

    python -m tests.evals.seed FOLDER

fills FOLDER/state and prints how a host or a harness starts a server on it. Ids and times are the same each time. A
server that is started with the settings in KEEP changes nothing: it could run none of what waits, and removes nothing.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio

from taskorch.domain.task import Cancelled, Failed, Priority, Reason
from taskorch.storage.database import open_database

if __package__ == "tests.evals":
    from tests.evals.world import Try, World, at
else:
    from evals.world import Try, World, at

KEEP = {"TASKORCH_KEEP_DAYS": "1000000", "TASKORCH_KEEP_FAILED_DAYS": "1000000"}
SERVERS = ("a" * 32, "b" * 32, "c" * 32)
FAR = at("2099-01-01T00:00:00")
DAY_MS, MINUTE_MS = 86_400_000, 60_000
MONDAY = at("2026-03-02T00:00:00")
RESIZES = ((18, 2), (22, 4), (26, 9), (24, 6), (15, 3))  # from Monday on: how many a day, and how many of them failed
BACKUPS = ((1312.48, 0), (1290.1, 900), (1847.305, 0), (1301.77, 0), (1833.96, 20))  # seconds, and seconds in the queue

Story = tuple[int, Callable[[World], Awaitable[None]]]


async def seed(state: Path) -> None:
    """Fill an empty state folder."""
    await anyio.Path(state).mkdir(mode=0o700, parents=True)
    async with open_database(state / "taskorch.db") as database:
        world = World(database, state / "output")
        for uuid in SERVERS:
            await world.store.register(uuid, 1000, "0", ["command", "echo"])
        for _, story in sorted(stories(), key=lambda story: story[0]):
            await story(world)
        for owner, _ in enumerate(SERVERS, 1):
            await world.store.leave(owner)


def stories() -> Iterator[Story]:
    yield from _resizes()
    yield from _nights()
    yield from _tests()
    yield from _release()
    yield from _imports()
    yield from _operations()
    yield from _waiting()


def exit_code(code: int, last: str) -> Failed:
    return Failed(Reason.EXIT_CODE, f"exit code {code}: {last}", code, retryable=code not in (126, 127))


def _plain(when: int, kind: str, name: str, *tries: Try, **wishes: object) -> Story:
    """A task that nobody touches."""

    async def tell(world: World) -> None:
        await world.live(await world.create(when, kind, name, **wishes), tries)

    return when, tell


def _resizes() -> Iterator[Story]:
    broken = Failed(Reason.ERROR, "UnidentifiedImageError: cannot identify image file", retryable=False)
    for day, (number, failures) in enumerate(RESIZES):
        for n in range(number):
            failed = n % 2 == 1 and n < 2 * failures
            wishes = {"labels": ("media",), "priority": Priority.LOW if n % 5 == 0 else Priority.MEDIUM}
            when = MONDAY + day * DAY_MS + 600 * MINUTE_MS + n * 7 * MINUTE_MS
            seconds = 3.2 + (n * 37 + day * 11) % 50 / 4
            name = f"photos of shelf {day + 1}{n:02}"
            yield _plain(when, "resize", name, Try(seconds, broken if failed else None), **wishes)


def _nights() -> Iterator[Story]:
    for day, (seconds, queued) in enumerate(BACKUPS):
        night = MONDAY + day * DAY_MS + 120 * MINUTE_MS
        dump = {"payload": {"argv": ["pg_dump", "shop"]}, "labels": ("nightly", "db")}
        yield _plain(night, "command", "backup", Try(seconds, output="dumped 214 tables\n", queued=queued), **dump)
        links = {"payload": {"argv": ["linkcheck"]}, "labels": ("nightly",), "timeout_seconds": 1800.0}
        slow = Failed(Reason.TIMEOUT, "it ran longer than 1800 s", retryable=False)
        took = Try(1800.2, slow, "checked 5000 links\n") if day == 2 else Try(1500.5 + day, output="0 broken\n")
        yield _plain(night + 60 * MINUTE_MS, "command", "check links", took, **links)


def _tests() -> Iterator[Story]:
    outcomes = {
        "2026-03-03T09:10:00": (
            "search",
            exit_code(2, "1 failed, 214 passed"),
            "FAILED test_search.py::test_umlauts\n",
        ),
        "2026-03-03T15:42:00": ("search", None, "215 passed\n"),
        "2026-03-04T08:55:00": ("checkout", exit_code(1, "E501 line too long"), "E501 line too long\n"),
        "2026-03-04T09:31:00": ("checkout", exit_code(2, "3 failed, 212 passed"), _log_of_tests()),
        "2026-03-04T11:02:00": ("checkout", Failed(Reason.TIMEOUT, "it ran longer than 600 s"), "collecting\n"),
        "2026-03-04T14:20:00": ("checkout", None, "215 passed\n"),
        "2026-03-05T10:05:00": ("newsletter", exit_code(2, "1 failed, 215 passed"), "FAILED test_mail.py::test_bcc\n"),
        "2026-03-05T10:48:00": ("newsletter", None, "216 passed\n"),
    }
    for when, (branch, outcome, output) in outcomes.items():
        wishes = {
            "payload": {"argv": ["make", "check"]},
            "labels": ("ci", f"branch:{branch}"),
            "timeout_seconds": 600.0,
        }
        seconds = 600.1 if outcome and outcome.reason is Reason.TIMEOUT else 187.25
        yield _plain(at(when), "command", "checks", Try(seconds, outcome, output), **wishes)


def _log_of_tests() -> str:
    failed = {61: "test_rounding_of_totals", 118: "test_voucher_twice", 190: "test_vat_of_gift_cards"}
    lines = [
        f"test_checkout.py::{failed[n]} FAILED" if n in failed else f"test_checkout.py::test_case_{n:03} PASSED"
        for n in range(215)
    ]
    return "\n".join([*lines, "3 failed, 212 passed", ""])


def _release() -> Iterator[Story]:
    labels = ("release-4.2",)

    def command(*argv: str) -> dict[str, object]:
        return {"payload": {"argv": list(argv)}, "labels": labels, "priority": Priority.HIGH}

    async def verify(world: World) -> None:
        task = await world.create(at("2026-03-05T13:04:00"), "command", "verify packages", **command("make", "verify"))
        refused = exit_code(3, "signature of shop-4.2.tar.gz is missing")
        task = await world.live(task, [Try(41.5, refused, "signature of shop-4.2.tar.gz is missing\n")])
        world.now += 754_000
        task = await world.store.retry(task.id, None, "claude-desktop")
        await world.live(task, [Try(44.0, output="4 packages verified\n", server=2)])

    async def sign(world: World) -> None:
        task = await world.create(at("2026-03-05T13:10:00"), "command", "sign packages", **command("gpg", "--sign"))
        world.now += 3_500
        await world.store.cancel(task.id, "signed on the build machine already", "claude-code")

    async def upload(world: World) -> None:
        task = await world.create(at("2026-03-05T13:30:00"), "command", "upload packages", **command("aws", "s3", "cp"))
        working = await world.start(task, server=2)
        world.now += 95_000
        working = await world.store.cancel(task.id, "wrong bucket", "cursor")
        await world.end(working, 96.2, Cancelled("2 processes were ended"), "upload: 2 of 4\n")

    async def announce(world: World) -> None:
        later = {"run_at": at("2026-03-06T08:00:00"), "expires_at": at("2026-03-06T09:00:00")}
        await world.create(
            at("2026-03-05T14:00:00"), "mail", "announce", payload={"list": "news"}, labels=labels, **later
        )
        world.now = later["expires_at"] + 5
        await world.store.promote()

    yield _plain(at("2026-03-05T12:30:00"), "command", "build packages", Try(512.0, output="ok\n"), **command("make"))
    yield at("2026-03-05T13:04:00"), verify
    yield at("2026-03-05T13:10:00"), sign
    yield at("2026-03-05T13:30:00"), upload
    yield _plain(at("2026-03-05T13:50:00"), "command", "tag", Try(0.8, output="v4.2\n"), **command("git", "tag"))
    yield at("2026-03-05T14:00:00"), announce


def _imports() -> Iterator[Story]:
    lost = Failed(Reason.WORKER_LOST, "the server that ran it died")
    slow = Failed(Reason.TIMEOUT, "it ran longer than 900 s")
    locked = Failed(Reason.ERROR, "OperationalError: table stock is locked")
    tries = {
        "customers": (Try(120.0),),
        "prices": (Try(20.0, locked), Try(75.5)),
        "stock": (Try(12.0, locked), Try(900.1, slow), Try(310.0, lost), Try(402.0, server=2)),
        "suppliers": (Try(900.1, slow), Try(240.0, server=3)),
        "orders": (Try(9.5, locked), Try(11.0, locked), Try(610.0)),
    }
    for n, (what, tried) in enumerate(tries.items()):
        when = at("2026-03-03T06:00:00") + n * 90 * MINUTE_MS
        wishes = {"payload": {"table": what}, "labels": ("erp",), "max_attempts": 5, "timeout_seconds": 900.0}
        yield _plain(when, "import", f"import {what}", *tried, **wishes)


def _operations() -> Iterator[Story]:
    def deploy(*argv: str) -> dict[str, object]:
        return {"payload": {"argv": ["./deploy.sh", *argv]}, "labels": ("deploy",), "max_attempts": 3}

    def refused(host: str) -> Try:
        lines = ["copying to 4 hosts", f"ssh: connect to host {host} port 22: Connection refused", "rolling back"]
        return Try(63.0, exit_code(255, "deploy.sh: gave up"), "\n".join([*lines, "deploy.sh: gave up", ""]))

    async def migrate(world: World) -> None:
        wishes = {"payload": {"argv": ["./migrate.sh", "orders"]}, "labels": ("db",)}
        task = await world.create(at("2026-03-04T13:00:00"), "command", "migrate orders", **wishes)
        working = await world.start(task, server=2)
        world.now = (working.started_at or 0) + 312_000
        adopted = await world.store.adopt(working, 3)
        assert adopted is not None
        await world.end(adopted, 1290.0, output="migrated 88412 orders\n")

    died = Failed(Reason.WORKER_LOST, "the server that ran it died")
    again = {"payload": {"argv": ["./migrate.sh", "customers"]}, "labels": ("db",), "max_attempts": 2}
    export = {"payload": {"argv": ["./export.sh"]}, "labels": ("audit",)}
    yield _plain(at("2026-03-04T12:00:00"), "command", "migrate customers", Try(77.0, died), Try(300.0), **again)
    yield at("2026-03-04T13:00:00"), migrate
    yield _plain(
        at("2026-03-05T09:00:00"),
        "command",
        "deploy to staging",
        refused("web3.staging.example"),
        refused("web1.staging.example"),
        Try(71.0, output="4 hosts updated\n"),
        **deploy("staging"),
    )
    yield _plain(
        at("2026-03-06T09:30:00"),
        "command",
        "deploy to production",
        Try(80.0, output="9 hosts updated\n"),
        **deploy("production"),
    )
    yield _plain(at("2026-03-06T11:00:00"), "command", "export audit trail", Try(850.0, output=_export()), **export)


def _export() -> str:
    """Three megabytes: of 16 warnings in the middle nothing is kept."""
    lines = [
        f"{n:06} exported record {n * 7919 % 1_000_003:07} to archive/2026/part-{n // 5000:02}" for n in range(52_000)
    ]
    warnings = [*range(100, 1_900, 90), *range(20_000, 21_440, 90), *range(50_000, 51_980, 90)]
    for n in warnings:
        lines[n] = f"{n:06} WARN disk nearly full: {n % 97} MB left on /srv/archive"
    return "\n".join([*lines, ""])


def _waiting() -> Iterator[Story]:
    async def paused(world: World) -> None:
        wishes = {"payload": {"argv": ["./reindex.sh"]}, "labels": ("search",)}
        task = await world.create(at("2026-03-06T15:00:00"), "command", "rebuild index", **wishes)
        world.now += 20_000
        await world.store.edit(task.id, {"priority": Priority.LOW}, None, "claude-code")
        world.now += 41_000
        await world.store.edit(task.id, {"paused": True}, None, "cursor")

    async def delayed(world: World) -> None:
        task = await world.create(at("2026-03-06T15:20:00"), "mail", "send invoices", payload={"month": "2026-02"})
        refused = Failed(Reason.ERROR, "SMTPServerDisconnected: connection unexpectedly closed")
        task = await world.live(task, [Try(4.0, refused)])
        world.now += 1_000
        await world.store.edit(task.id, {"run_at": FAR}, None, "claude-desktop")

    async def scheduled(world: World) -> None:
        await world.create(at("2026-03-06T15:30:00"), "echo", "party", payload={"text": "new century"}, run_at=FAR)

    async def blocked(world: World) -> None:
        await world.create(at("2026-03-06T15:40:00"), "transcribe", "transcribe interview", labels=("media",))

    yield at("2026-03-06T15:00:00"), paused
    yield at("2026-03-06T15:20:00"), delayed
    yield at("2026-03-06T15:30:00"), scheduled
    yield at("2026-03-06T15:40:00"), blocked


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.evals.seed FOLDER")
    state = Path(sys.argv[1]).absolute() / "state"
    if state.exists():
        sys.exit(f"{state} exists already: remove it, or name another folder")
    anyio.run(seed, state)
    command = str(Path(sys.executable).with_name("taskorch"))
    entry = {"command": command, "env": {"TASKORCH_STATE_DIR": str(state), **KEEP}}
    sys.stdout.write(json.dumps({"mcpServers": {"taskorch": entry}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
