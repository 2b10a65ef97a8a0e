"""A person at a terminal: commands in processes of their own on the folders of a place, workers, pseudo-terminals."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from servers import SECONDS, Place
from typer.testing import CliRunner

from taskorch.cli.main import cli

Ran = subprocess.CompletedProcess[str]


class Worker:
    """`taskorch worker`, ready when this is made."""

    def __init__(self, place: Place, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "taskorch", "worker"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=place.work,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr
        self._said: list[str] = []
        while not self._said or "taskorch worker: " not in self._said[-1]:
            self._said.append(self.process.stderr.readline())
            assert self._said[-1], self._said
        self.announced = self._said[-1]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """The exit code and what it said, when it has gone."""
        self.process.send_signal(number)
        said, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said, "".join(self._said) + errors

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Following:
    """A command that goes on: its lines as they come."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def until(self, line: str) -> None:
        with self._came:
            assert self._came.wait_for(lambda: line in self.lines, SECONDS), self.lines

    def end(self) -> int:
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stdout:
            for line in stdout:
                with self._came:
                    self.lines.append(line.rstrip("\n"))
                    self._came.notify_all()


class Terminal:
    """Commands on the folders of a place, with the settings of its servers."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.environment = place.environment | {"XDG_CONFIG_HOME": str(place.folder / "config")}

    def run(self, *arguments: str, stdin: str = "", python: tuple[str, ...] = (), **variables: str) -> Ran:
        return subprocess.run(
            [sys.executable, *python, "-m", "taskorch", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=self.environment | variables,
            cwd=self.place.work,
        )

    def out(self, *arguments: str, **options: Any) -> str:
        """What it says on stdout, when it goes well."""
        ran = self.run(*arguments, **options)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def facts(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.out(*arguments, "--json", **options))

    def add(self, *arguments: str, **options: Any) -> str:
        """The id of a new task."""
        return self.out("add", *arguments, **options).strip()

    def kind(self, name: str, payload: dict[str, Any], *options: str) -> str:
        return self.add("--kind", name, "--payload", json.dumps(payload), *options)

    @contextlib.contextmanager
    def worker(self, **variables: str) -> Generator[Worker]:
        worker = Worker(self.place, self.environment | variables)
        try:
            yield worker
        finally:
            worker.close()

    @contextlib.contextmanager
    def following(self, *arguments: str) -> Generator[Following]:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskorch", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            cwd=self.place.work,
            text=True,
        )
        following = Following(process)
        try:
            yield following
        finally:
            process.kill()
            following.end()

    @contextlib.contextmanager
    def screen(self, *arguments: str, **variables: str) -> Generator["Screen"]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "taskorch", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=self.environment | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"} | variables,
            cwd=self.place.work,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            yield Screen(process, ours)
        finally:
            process.kill()
            process.wait()
            os.close(ours)


class Prompt(Terminal):
    """The same in this process, which takes no start of Python. It has no handlers, and no terminal."""

    def run(self, *arguments: str, stdin: str = "", python: tuple[str, ...] = (), **variables: str) -> Ran:
        assert not python
        ours = dict.fromkeys(name for name in os.environ if name.startswith("TASKORCH_"))
        environment = ours | self.environment | {"TASKORCH_HANDLERS": ""} | variables
        with contextlib.chdir(self.place.work):
            result = CliRunner().invoke(cli, arguments, input=stdin, env=environment)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(arguments, result.exit_code, result.stdout, result.stderr)


class Screen:
    """A command on a pseudo-terminal: all that it has written, and keys."""

    def __init__(self, process: "subprocess.Popen[bytes]", fd: int) -> None:
        self.process = process
        self.text = ""
        self._fd = fd

    def until(self, text: str) -> None:
        """Read until that was written after what was read before."""
        begin, deadline = len(self.text), time.monotonic() + SECONDS
        while text not in self.text[begin:]:
            assert time.monotonic() < deadline and self._more(), self.text[begin:]

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        """The exit code, when it has gone by itself."""
        deadline = time.monotonic() + SECONDS
        while self._more():
            assert time.monotonic() < deadline, "it goes on"
        return self.process.wait(SECONDS)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], SECONDS)
        try:
            data = os.read(self._fd, 65_536) if ready else b""
        except OSError:  # the other side was closed
            data = b""
        self.text += data.decode("utf-8", "replace")
        return bool(data)


def fill(path: Path, names: list[str]) -> None:
    """Store tasks of the kind echo, in the order of their names, as a server would."""
    import anyio

    from taskorch.domain.task import NewTask
    from taskorch.storage.additions import Wish
    from taskorch.storage.database import open_database
    from taskorch.storage.store import Store

    async def store() -> None:
        async with open_database(path) as database:
            wishes = [Wish(NewTask("echo", {}, max_attempts=3, timeout_seconds=60.0, name=name)) for name in names]
            await Store(database).add_all(wishes)

    anyio.run(store)
