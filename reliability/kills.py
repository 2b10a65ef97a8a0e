"""Servers on one file, killed and stopped at named points and at random, until `--kills` have died.

Then all are left in peace until every task has ended, and an independent checker reads the journal and the tables.
The servers are forked from this process, which has loaded taskorch once; nothing else is shared but the folder.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from reliability import history, mutants, record, victim
from reliability.points import Fate, Journal, Part

POLL_SECONDS = 0.01
LIFE_SECONDS = 0.6  # of a server without a fate, on average; others get a second more for it to come
STOPPED_SECONDS = (0.9, 2.2)  # longer than others need to take over, or to call it hung
AFTERLIFE_SECONDS = 1.2  # so long a stopped server is safe once it goes on
LEAVE_SECONDS = 5.0  # for an orderly exit on a loaded machine
LOOK_SECONDS = 1.0  # between two looks of the checker with --until-caught
SHIM_RATE = 4  # of 256
STRAY_SECONDS = 1.2  # the files of servers that died before they were known are swept after that

# Where a server may kill itself: at which of its first passages.
KILLS = {
    "before commit": 15,
    "after commit": 15,
    "claimed": 4,
    "before spawn": 3,
    "before go": 3,
    "after go": 3,
    "before settle": 5,
    "after settle": 5,
    "take-over": 2,
    "inspected": 2,
    "before take-over settle": 2,
    "before adopt": 2,
    "adopted": 2,
    "taken over": 2,
    "cancel": 2,
    "migrate": 1,
    "migrated": 1,
    "entered": 1,
    "registered": 1,
    "stop": 1,
    "leave": 1,
    "leaving": 1,
    "left": 1,
}
AT_THE_END = {"stop", "leave", "leaving", "left"}  # passed by servers that are told to leave
STOPS = {
    "claimed": 6,
    "before settle": 6,
    "before go": 3,
    "before take-over settle": 2,
    "before adopt": 2,
    "adopted": 2,
}


@dataclass(slots=True)
class Server:
    """A server that lives. Times are of time.monotonic()."""

    pid: int
    fate: Fate | None
    ends_at: float
    orderly: bool
    resumes_at: float | None = None
    told_at: float | None = None


class Run:
    """One run: the servers, what befell them, and what was seen."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._chance = random.Random(options.seed)
        self._journal = Journal(folder / "journal")
        self._servers: dict[int, Server] = {}
        self._born = 0
        self._calm = False
        self._looked_at = time.monotonic()

    def storm(self) -> bool:
        """Until enough have died; True as soon as the checker has found something, if that is asked for."""
        until = time.monotonic() + self.options.seconds
        while self.counts["kills"] < self.options.kills and time.monotonic() < until:
            self._step()
            if self.options.until_caught and self._caught():
                return True
        return False

    def rest(self) -> None:
        """Leave all in peace until every task has ended; then have the servers leave."""
        self._calm = True
        (self.folder / "calm").touch()
        stray_until = time.monotonic() + STRAY_SECONDS
        until = time.monotonic() + self.options.rest
        while self._unfinished() or time.monotonic() < stray_until:
            if time.monotonic() > until:
                self.problems.append(f"tasks have not ended {self.options.rest:g} s after the last kill")
                break
            for _ in range(10):
                self._step()
        self._tell(next(iter(self._servers.values())))  # the next one in its place sweeps
        self._leave_all()

    def _leave_all(self) -> None:
        until = time.monotonic() + LEAVE_SECONDS + 2
        while any(server.told_at for server in self._servers.values()) and time.monotonic() < until:
            self._step()
        settled_at = time.monotonic() + 1.0  # it has started, swept, and noticed who else is dead
        while time.monotonic() < settled_at:
            self._step()
        for server in self._servers.values():
            self._tell(server)
        while self._servers and time.monotonic() < until + LEAVE_SECONDS:
            self._step(again=False)

    def end(self) -> None:
        """End what is left of the servers."""
        for pid in self._servers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _caught(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = now
        with suppress(sqlite3.OperationalError):  # a stopped server may be in the way, and goes on by our hand alone
            return bool(history.check(record.read(self.folder, 0.1)))
        return False

    def _unfinished(self) -> bool:
        with suppress(sqlite3.OperationalError):
            return record.unfinished(self.folder) > 0
        return True

    def _step(self, again: bool = True) -> None:
        self._reap()
        now = time.monotonic()
        for server in list(self._servers.values()):
            if server.resumes_at is not None and (now >= server.resumes_at or self._calm):
                self._resume(server)
            elif server.told_at is not None and now > server.told_at + LEAVE_SECONDS:
                self.problems.append(f"pid {server.pid} did not leave within {LEAVE_SECONDS:g} s of SIGTERM")
                self._kill(server)
            elif not self._calm and server.told_at is None and server.resumes_at is None and now >= server.ends_at:
                self._tell(server) if server.orderly else self._kill(server)
        while again and len(self._servers) < self.options.servers:
            self._start()
        time.sleep(POLL_SECONDS)

    def _start(self) -> None:
        self._born += 1
        fate = None if self._calm else self._draw()
        orderly = fate.point in AT_THE_END if fate else self._chance.random() < 0.12
        part = Part(self.folder, f"{self.options.seed}/{self._born}", fate, self.options.mutant)
        life = min(4.0, self._chance.expovariate(1 / LIFE_SECONDS) + (1.0 if fate else 0.03))
        pid = os.fork()
        if pid == 0:
            _be(part)
        self._servers[pid] = Server(pid, fate, time.monotonic() + life, orderly)

    def _draw(self) -> Fate | None:
        """What the next server does to itself. The first ones die while they make the file."""
        chance = self._chance
        if self._born <= self.options.servers:
            return Fate("migrating", chance.randint(1, 12), "kill")
        focus = mutants.focus(self.options.mutant)
        if focus and chance.random() < 0.7:
            point, nth, action = chance.choice(focus)
            return Fate(point, chance.randint(1, nth), action)
        if chance.random() < 0.3:
            return None
        if chance.random() < 0.25:
            point = chance.choice([*STOPS])
            return Fate(point, chance.randint(1, STOPS[point]), "lose" if chance.random() < 0.3 else "stop")
        point = chance.choice([*KILLS])
        return Fate(point, chance.randint(1, KILLS[point]), "kill")

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
                pid, status = found
                server = self._servers.get(pid)
                if server and os.WIFSTOPPED(status):
                    self.counts["stops"] += 1
                    server.resumes_at = time.monotonic() + self._chance.uniform(*STOPPED_SECONDS)
                elif server:
                    self._buried(server, status)

    def _buried(self, server: Server, status: int) -> None:
        del self._servers[server.pid]
        self._journal.write("dead", detail=status, pid=server.pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.counts["kills"] += 1
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 and server.told_at is not None:
            self.counts["orderly exits"] += 1
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM:
            self.counts["orderly exits"] += 1  # it had not begun to listen
        else:
            self.problems.append(f"pid {server.pid} ended by itself (status {status}): see {self.folder}/stderr")

    def _resume(self, server: Server) -> None:
        server.resumes_at = None
        self.counts["resumes"] += 1
        self._journal.write("resume", pid=server.pid)
        server.ends_at = time.monotonic() + AFTERLIFE_SECONDS
        if server.fate and server.fate.action == "lose":
            server.orderly = False  # without its lock it would be taken over from for ever
            if self._calm:
                self._kill(server)
        os.kill(server.pid, signal.SIGCONT)

    def _kill(self, server: Server) -> None:
        self._journal.write("kill", detail="random", pid=server.pid)
        server.ends_at = float("inf")
        os.kill(server.pid, signal.SIGKILL)

    def _tell(self, server: Server) -> None:
        server.told_at = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)


def _be(part: Part) -> NoReturn:
    code = 1
    try:
        code = victim.run(part)
    finally:
        os._exit(code)


def main(argv: list[str]) -> int:
    options = _options(argv)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="taskorch-kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"{folder} is not empty")
        return 2
    victim.prepare(folder, mutants.shim_rate(options.mutant, options.shim_rate), options.mutant)
    began = time.monotonic()
    run = Run(folder, options)
    try:
        if not run.storm():
            run.rest()
    finally:
        run.end()
    found = _judge(run)
    _report(run, found, time.monotonic() - began)
    failed = bool(found or run.problems)
    if failed or options.folder:
        print(f"seed {options.seed}; the folder {folder} was kept")
    else:
        shutil.rmtree(folder)
    return 1 if failed else 0


def _judge(run: Run) -> list[history.Violation]:
    seen = record.read(run.folder)
    if not (run.folder / "calm").exists():  # caught in the storm: what is left of it goes with us
        return history.check(seen)
    until = time.monotonic() + 1.0  # a supervisor leaves just after its record
    while history.left_behind(run.folder, seen.tasks) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return history.check_end(record.read(run.folder), run.folder)


def _report(run: Run, found: list[history.Violation], seconds: float) -> None:
    seen = record.read(run.folder)
    words = Counter(line.word for line in seen.lines)
    points = Counter(line.detail for line in seen.of("point"))
    points.update(f"shim:{line.detail}" for line in seen.of("shimkill"))
    print(f"{seconds:.1f} s, seed {run.options.seed}, {run.options.servers} servers", end="")
    print(f", mutant {run.options.mutant}" if run.options.mutant else "")
    for name in ("kills", "stops", "resumes", "orderly exits"):
        print(f"  {name:14} {run.counts[name]:6}")
    named = {"random kills": "kill", "starts": "begin", "adoptions": "adopt", "late ends": "refused"}
    named |= {"shim kills": "shimkill", "spawner kills": "spawnerkill", "locks lost": "lost", "creates": "ack"}
    for name, word in named.items():
        print(f"  {name:14} {words[word]:6}")
    statuses = Counter(task.status for task in seen.tasks.values())
    print(f"  {'tasks':14} {len(seen.tasks):6}  ", ", ".join(f"{n} {name}" for name, n in sorted(statuses.items())))
    print("  points:", ", ".join(f"{name} {n}" for name, n in sorted(points.items())))
    print(f"  {'violations':14} {len(found) + len(run.problems):6}")
    for problem in [*run.problems, *found[:20]]:
        print(f"VIOLATION {problem}")
    sys.stdout.flush()


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reliability kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--folder", help="a new or empty folder, which is kept; else a temporary one")
    parser.add_argument("--mutant", default="", choices=["", *mutants.MUTANTS], help="a bug to run with")
    parser.add_argument("--shim-rate", type=int, default=SHIM_RATE, help="of 256 points, a supervisor dies at so many")
    parser.add_argument("--seconds", type=float, default=3600, help="of killing, at most")
    parser.add_argument("--rest", type=float, default=30, help="seconds for all tasks to end after the last kill")
    parser.add_argument("--until-caught", action="store_true", help="stop at the first violation")
    return parser.parse_args(argv)
