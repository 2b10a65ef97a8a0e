"""Real server processes with three pipes, clients that speak raw lines to them, and what they leave behind."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import taskorch

LEGACY, MODERN = "2025-11-25", "2026-07-28"
SECONDS = 30.0  # for what should take a moment, beside other tests
IN_TIME = 1.9  # for leaving; 1.5 are promised, and after 2.0 the SDK's client sends SIGTERM
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
HELLO = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}

HANDLERS = '''
import os, subprocess, sys, time
from typing import Any
import anyio
from taskorch import Context, handler

print('{"jsonrpc": "2.0", "id": 1, "result": "printed while importing"}')
os.write(1, b"written while importing")

@handler("hold")
async def hold(payload: dict[str, Any], context: Context) -> int:
    """The first attempt never ends by itself; the next one does."""
    if context.task.attempt == 1:
        await anyio.sleep_forever()
    return context.task.attempt

@handler("note")
async def note(payload: dict[str, Any], context: Context) -> None:
    """Put on record that it ran."""
    with open(payload["file"], "a") as file:
        file.write(f"{context.task.id}\\n")

@handler("stuck")
def stuck(payload: dict[str, Any]) -> None:
    """Synchronous code that nobody can interrupt."""
    time.sleep(60)

@handler("flood")
def flood(payload: dict[str, Any]) -> None:
    """Say more on stderr than a pipe holds."""
    sys.stderr.write("x" * 1_000_000)

@handler("loud")
def loud(payload: dict[str, Any]) -> str:
    """Write to everything that might be the wire."""
    print("printed by a handler", flush=True)
    os.write(1, b"written by a handler\\n")
    subprocess.run(["sh", "-c", "echo echoed by its child"], check=True)
    return sys.stdin.read()
'''


class Server:
    """A server process, and a client of one protocol era that speaks raw lines to it."""

    def __init__(
        self, era: str, environment: dict[str, str], folder: Path, errors: Path, stderr: int | None, handshake: bool
    ) -> None:
        self.era = era
        self.errors = errors
        self.lines: list[bytes] = []
        self._answers: dict[Any, list[dict[str, Any]]] = {}
        self._arrived = threading.Condition()
        self._count = 0
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskorch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file if stderr is None else stderr,
                env=environment,
                cwd=folder,
                bufsize=0,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if handshake and era == LEGACY:
            self.post("initialize", **HELLO)
            self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    # Speaking.

    def send(self, message: dict[str, Any] | bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")

    def post(self, method: str, **params: Any) -> int:
        """Send a request, its answer to be read later."""
        self._count += 1
        envelope = {"_meta": ENVELOPE} if self.era == MODERN else {}
        self.send({"jsonrpc": "2.0", "id": self._count, "method": method, "params": params | envelope})
        return self._count

    def post_call(self, tool: str, **arguments: Any) -> int:
        return self.post("tools/call", name=tool, arguments=arguments)

    def answer(self, request_id: Any) -> dict[str, Any]:
        """The whole answer to a request, when it has come."""
        with self._arrived:
            come = self._arrived.wait_for(lambda: self._answers.get(request_id), SECONDS)
            assert come, f"no answer to {request_id!r}; the server said: {self.errors.read_text()[-2000:]}"
            return self._answers[request_id].pop(0)

    def answered(self) -> set[Any]:
        """The ids whose answers have come and were not read yet."""
        with self._arrived:
            return {request_id for request_id, found in self._answers.items() if found}

    def facts(self, request_id: int) -> dict[str, Any]:
        """The structured content of a tool's answer."""
        answer = self.answer(request_id)
        assert not answer.get("error") and not answer["result"].get("isError"), answer
        return answer["result"]["structuredContent"]

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.facts(self.post_call(tool, **arguments))

    def create(self, kind: str, **payload: Any) -> str:
        return self.call("create_task", kind=kind, payload=payload)["id"]

    def command(self, *argv: str, **options: Any) -> str:
        return self.call("create_task", payload={"argv": argv}, **options)["id"]

    def get(self, task_id: str) -> dict[str, Any]:
        return self.call("get_task", task_id=task_id, detail="full")

    def until_working(self, *task_ids: str) -> None:
        wait_for(lambda: all(self.get(task_id)["status"] == "working" for task_id in task_ids))

    def until_ended(self, *task_ids: str) -> None:
        assert self.call("wait_for_tasks", task_ids=task_ids, timeout_seconds=SECONDS)["done"]

    # Ending.

    def hang_up(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def left(self, seconds: float = IN_TIME) -> int:
        """The exit code, when it has gone by itself in time."""
        code = self.process.wait(seconds)
        self._reader.join(SECONDS)
        assert "Traceback" not in self.errors.read_text()
        return code

    def end(self) -> int:
        """End of stdin, as a host does it."""
        self.hang_up()
        return self.left()

    def kill(self) -> None:
        self.process.kill()
        self.left()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._arrived:
                self.lines.append(line)
                with contextlib.suppress(ValueError):
                    message = json.loads(line)
                    if "method" not in message:
                        self._answers.setdefault(message.get("id"), []).append(message)
                self._arrived.notify_all()


class Place:
    """A state folder, a working folder, and the servers started on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.work = folder / "work"
        self.work.mkdir()
        (folder / "handlers").mkdir()
        (folder / "handlers" / "probe.py").write_text(HANDLERS)
        self.servers: list[Server] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": f"{Path(taskorch.__file__).parents[1]}:{folder / 'handlers'}",
            "TASKORCH_STATE_DIR": str(self.state),
            "TASKORCH_HANDLERS": "probe",
            "TASKORCH_ALLOW_COMMANDS": "*",
            "TASKORCH_CONCURRENCY": "4",
        }

    def start(self, era: str = LEGACY, handshake: bool = True, stderr: int | None = None, **settings: str) -> Server:
        """Start a server; what is sent to it waits in the pipe until it reads."""
        environment = self.environment | {f"TASKORCH_{name.upper()}": value for name, value in settings.items()}
        errors = self.folder / f"stderr{len(self.servers)}"
        self.servers.append(Server(era, environment, self.work, errors, stderr, handshake))
        return self.servers[-1]

    def rows(self) -> dict[str, dict[str, Any]]:
        """What is stored, read without any server."""
        with contextlib.closing(sqlite3.connect(self.state / "taskorch.db")) as connection:
            connection.row_factory = sqlite3.Row
            return {row["id"]: dict(row) for row in connection.execute("SELECT * FROM tasks")}

    def row(self, task_id: str) -> dict[str, Any]:
        return self.rows()[task_id]

    def fifo(self, name: str) -> "Fifo":
        return Fifo(self.folder / name)

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for task_id in self.rows() if (self.state / "taskorch.db").exists() else []:
            for pid in alive(task_id):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Fifo:
    """What a command can wait for: `cat` on it ends when `release` has written to it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)

    def release(self, text: str) -> None:
        def write() -> int:
            try:
                return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # the command has not opened it yet
                return 0

        fd = cast(int, wait_for(write))
        os.write(fd, text.encode())
        os.close(fd)


def wait_for(condition: Callable[[], object], seconds: float = SECONDS) -> object:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)  # other processes set no events
    return found


def alive(task_id: str) -> list[int]:
    """The living processes of a task's command, wherever they hide."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            marked = f"TASKORCH_TASK_ID={task_id}".encode() in (folder / "environ").read_bytes()
            if marked and lives(int(folder.name)):
                found.append(int(folder.name))
    return found


def names(task_id: str) -> list[str]:
    """What the living processes of a task's command are called, in alphabetical order."""
    found: list[str] = []
    for pid in alive(task_id):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return sorted(found)


def lives(pid: int) -> bool:
    """The dead whom nobody has collected do not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it ended just now, or there is no /proc
        return not Path("/proc/self").exists()
    return state != "Z"
