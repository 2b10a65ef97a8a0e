"""A PostgreSQL for the queues that need one: BENCH_POSTGRES_URL's, or one of our own while the run lasts."""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from benchmarks.queues import POSTGRES_URL

DEBIAN = Path("/usr/lib/postgresql")
OTHER_USER = "postgres"  # PostgreSQL refuses to run as root


@contextmanager
def postgres(parent: Path) -> Generator[str]:
    """Have BENCH_POSTGRES_URL set while the block lasts; gives the reason when there is none, otherwise "".

    A server of ours has its data below `parent`, its own defaults (fsync on) and a port of its own on loopback.
    Tables are truncated, so the name of a given database must contain "bench".
    """
    given = os.environ.get(POSTGRES_URL)
    if given:
        name = urlsplit(given).path.lstrip("/")
        if "bench" not in name:
            del os.environ[POSTGRES_URL]
            yield f"the database of {POSTGRES_URL} is emptied, so its name must contain 'bench'; it is {name!r}"
            return
        yield ""
        return
    programs = _programs()
    user = getpass.getuser() if os.getuid() else OTHER_USER
    if programs is None or not _exists(user):
        yield f"initdb was not found; install PostgreSQL or set {POSTGRES_URL}"
        return
    with TemporaryDirectory(dir=parent, prefix="postgres-") as name:
        if not os.getuid():
            shutil.chown(name, user)
        data, port = Path(name) / "data", _free_port()

        def call(program: str, *arguments: str) -> None:
            as_user = {} if os.getuid() else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
            command = [str(programs / program), *arguments]
            subprocess.run(command, check=True, cwd=name, stdout=subprocess.DEVNULL, timeout=60, **as_user)  # type: ignore[arg-type]

        call("initdb", "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale", "C")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="
        call("pg_ctl", "-D", str(data), "-l", str(Path(name) / "log"), "-w", "-o", options, "start")
        try:
            os.environ[POSTGRES_URL] = f"postgresql://bench@127.0.0.1:{port}/postgres"
            yield ""
        finally:
            del os.environ[POSTGRES_URL]
            call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def _programs() -> Path | None:
    """The folder of initdb and its like."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
