"""Handlers with a process of their own, which imports this module: they show who they are, and end in every way."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel

from taskorch import Context, NonRetryable, RetryAfter, handler

HELPER = "import os, time; os.setsid(); time.sleep(1000)"


class Frame(BaseModel):
    width: int
    height: int = 10


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def raises(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


ENDS: dict[str, Callable[[], Any]] = {
    "null": lambda: None,
    "number": lambda: 0.1,
    "large number": lambda: 10**40,
    "text": lambda: 'é \n "𝄞" \u2028',
    "deepest": lambda: nested(32),
    "longest": lambda: "x" * 65_534,
    "longest in bytes": lambda: "é" * 32_767,
    "numbers as names": lambda: {1: "one", None: "none", 2.5: "more"},
    "tuple": lambda: (1, (2, 3)),
    "model": lambda: Frame(width=3),
    "too long": lambda: "x" * 65_535,
    "much too long": lambda: "x" * 50_000_000,
    "too deep": lambda: nested(33),
    "not JSON": lambda: object(),
    "NaN": lambda: float("nan"),
    "error": raises(ValueError("no\nway é")),
    "error without text": raises(AssertionError()),
    "long error": raises(ValueError("é" * 9_000)),
    "surrogate in the error": raises(ValueError("a\ud800b")),
    "group": raises(ExceptionGroup("several", [OSError("disk"), ValueError()])),
    "final": raises(NonRetryable("no such customer")),
    "later": raises(RetryAfter(90, "the API is busy")),
    "exit": lambda: sys.exit(3),
    "interrupt": raises(KeyboardInterrupt("mine")),
    "cancels itself": raises(asyncio.CancelledError()),
}


@handler("test.isolated.end", isolate=True)
def end(payload: dict[str, Any]) -> Any:
    """Ends as the payload says."""
    return ENDS[payload["end"]]()


@handler("test.isolated.frame", isolate=True)
async def frame(payload: Frame) -> Frame:
    return Frame(width=payload.width + 1)


@handler("test.isolated.where", isolate=True, max_attempts=1)
async def where(payload: dict[str, Any], context: Context) -> dict[str, Any]:
    task = context.task
    marks = {name: value for name, value in os.environ.items() if name in ("TASKORCH_TASK_ID", "MARK")}
    return {
        "pid": os.getpid(),
        "cwd": str(Path.cwd()),
        "task": [task.id, task.name, task.attempt, list(task.labels), dict(task.payload)],
        "environment": marks,
        "stdin": sys.stdin.read(),
    }


@handler("test.isolated.spin", isolate=True)
def spin(payload: dict[str, Any]) -> None:
    """Computes for ever and cannot be told anything."""
    Path(payload["file"]).write_text(str(os.getpid()))
    while True:
        pass


@handler("test.isolated.deaf", isolate=True)
def deaf(payload: dict[str, Any], context: Context) -> None:
    """Could ask whether it should end, and does not."""
    context.progress(1, message=str(os.getpid()))
    time.sleep(1000)


@handler("test.isolated.polite", isolate=True)
def polite(payload: dict[str, Any], context: Context) -> str:
    context.progress(1, message=str(os.getpid()))
    while not context.cancelled:
        time.sleep(0.001)
    note(payload, "asked")
    return "half of it"


@handler("test.isolated.wait", isolate=True)
async def wait(payload: dict[str, Any], context: Context) -> int:
    """The first attempt waits to be cancelled; the next one is done at once."""
    if context.task.attempt > 1:
        return context.task.attempt
    context.progress(1, message=str(os.getpid()))
    try:
        await anyio.sleep_forever()
    finally:
        note(payload, "cleaned up")
    return 0


def note(payload: dict[str, Any], text: str) -> None:
    if "file" in payload:
        Path(payload["file"]).write_text(text)


@handler("test.isolated.family", isolate=True)
def family(payload: dict[str, Any], context: Context) -> list[int]:
    """Starts a process beside it, and one in a session of its own; returns or waits."""
    pids = [subprocess.Popen(["sleep", "1000"]).pid, subprocess.Popen([sys.executable, "-c", HELPER]).pid]
    while len({os.getsid(pid) for pid in pids}) < 2:
        time.sleep(0.001)
    context.progress(len(pids), message=" ".join(map(str, [os.getpid(), *pids])))
    if payload.get("waits"):
        time.sleep(1000)
    return pids


@handler("test.isolated.report", isolate=True)
def report(payload: dict[str, Any], context: Context) -> None:
    for n in range(200_000):
        context.progress(n, 200_000, "counting")
    raise ValueError("that was all")


@handler("test.isolated.crash", isolate=True, max_attempts=1)
def crash(payload: dict[str, Any]) -> None:
    """Ends its process in a way that Python does not notice."""
    match payload["by"]:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case code:
            print("last words")  # noqa: T201  (what handlers print is what is tried)
            os._exit(code)


@handler("test.isolated.loud", isolate=True)
def loud(payload: dict[str, Any]) -> str:
    """Writes to everything that might be the wire."""
    print('{"jsonrpc": "2.0", "id": 1, "result": "printed"}')  # noqa: T201  (what handlers print is what is tried)
    os.write(1, b"written\n")
    os.write(2, b"\x1b[31mto stderr\n")
    subprocess.run(["sh", "-c", "echo by its child"], check=True)
    return "quiet"


@handler("test.isolated.thread", isolate=True)
def thread(payload: dict[str, Any]) -> str:
    """Leaves a thread behind that would keep an interpreter alive."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return "left"
