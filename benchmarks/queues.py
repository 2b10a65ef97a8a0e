"""The queues and the versions that are measured, pinned here and nowhere else; a Python that can run each."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.peers.environments import Unavailable, run, venv

PLOTS = ("matplotlib==3.11.2",)
POSTGRES_URL = "BENCH_POSTGRES_URL"


@dataclass(frozen=True)
class Queue:
    """`module`: its adapter in `benchmarks/peers`. Without packages it runs in taskorch's own environment."""

    name: str
    module: str
    durable: str  # what an accepted task survives
    packages: tuple[str, ...] = ()
    oldest: tuple[int, int] = (3, 11)
    needs_postgres: bool = False
    lacks: frozenset[str] = frozenset()  # phases that make no sense for it

    @property
    def about(self) -> str:
        return f"{self.name} ({', '.join(self.packages)})" if self.packages else self.name


SYNCED = "power loss"
LIMIT = frozenset({"remote", "crowd", "kill"})

QUEUES = (
    Queue("raw", "raw", SYNCED, lacks=LIMIT),  # the limit: a bare loop wakes nobody and recovers nothing
    Queue("taskorch", "taskorch", SYNCED),
    Queue("obvious", "aiosqlite", SYNCED, lacks=LIMIT),
    Queue("huey", "huey", SYNCED, ("huey==3.5.4",)),
    Queue("litequeue", "litequeue", "kill -9", ("litequeue==0.14",), oldest=(3, 12)),
    Queue("fastmcp-tasks", "docket", "nothing", ("pydocket==0.27.0",)),
    Queue("pgqueuer", "pgqueuer", SYNCED, ("pgqueuer==1.6.0", "asyncpg==0.32.0"), needs_postgres=True),
    Queue(
        "procrastinate", "procrastinate", SYNCED, ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"),
        needs_postgres=True,
    ),
)  # fmt: skip


def python_of(queue: Queue, cache: Path) -> str:
    """The Python that has the queue. Raises Unavailable."""
    if queue.needs_postgres and POSTGRES_URL not in os.environ:
        raise Unavailable("there is no PostgreSQL")
    if not queue.packages:
        return sys.executable
    return str(venv(cache, *queue.packages, python=_python(queue.oldest)) / "bin" / "python")


def plots_python(cache: Path) -> str:
    return str(venv(cache, *PLOTS) / "bin" / "python")


def _python(oldest: tuple[int, int]) -> str:
    """This Python, or a newer one on the PATH."""
    if sys.version_info >= oldest:
        return sys.executable
    for minor in range(oldest[1], oldest[1] + 4):
        for folder in os.get_exec_path():
            found = shutil.which(f"python3.{minor}", path=folder)
            if found and run(found, "-c", "").returncode == 0:  # not a launcher whose version is not there
                return found
    raise Unavailable(f"it needs Python {oldest[0]}.{oldest[1]}, and this one is {sys.version.split()[0]}")
