"""Handlers of one's own. Start a server with them:

PYTHONPATH=examples TASKORCH_HANDLERS=handlers taskorch
"""

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import anyio
from pydantic import BaseModel, Field, HttpUrl

from taskorch import Context, NonRetryable, RetryAfter, handler


class Countdown(BaseModel):
    """Payloads are checked against this when a task is created; the model is told what is wrong, and what is right."""

    steps: int = Field(ge=1, le=1000)
    pause_seconds: float = Field(default=0.1, ge=0, le=60)


@handler("countdown")
async def countdown(payload: Countdown, context: Context) -> dict[str, Any]:
    """An async handler with progress. Cancelling the task cancels it at the next await."""
    for done in range(payload.steps):
        context.progress(done, payload.steps, f"{payload.steps - done} to go")
        await anyio.sleep(payload.pause_seconds)
    return {"counted": payload.steps, "attempt": context.task.attempt}


@dataclass
class File:
    path: Path


@dataclass
class Checksum:
    """Results are checked too, and become JSON by their type."""

    path: Path
    sha256: str
    bytes: int


@handler("checksum", max_attempts=2)
def checksum(payload: File, context: Context) -> Checksum:
    """A synchronous handler: it runs in a thread, and looks now and then whether it shall end."""
    if not payload.path.is_file():
        raise NonRetryable(f"there is no file {payload.path}")  # trying again would not help
    digest, size, read = hashlib.sha256(), payload.path.stat().st_size, 0
    with payload.path.open("rb") as file:
        while not context.cancelled and (chunk := file.read(1 << 20)):
            digest.update(chunk)
            read += len(chunk)
            context.progress(read, size)
    return Checksum(payload.path, digest.hexdigest(), read)


class Limit(BaseModel):
    below: int = Field(ge=2, le=100_000_000)


@handler("primes", isolate=True)
def primes(payload: Limit) -> dict[str, int]:
    """A handler with a process of its own: it computes, never looks up, and still ends the moment it is cancelled."""
    sieve = bytearray([1]) * payload.below
    sieve[:2] = b"\0\0"
    for n in range(2, int(payload.below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, payload.below, n)))
    return {"below": payload.below, "primes": sum(sieve)}


class Page(BaseModel):
    url: HttpUrl


@handler("fetch", max_attempts=5)
def fetch(payload: Page) -> dict[str, Any]:
    """A handler that knows which failures are worth another start, and when."""
    try:
        with urllib.request.urlopen(str(payload.url), timeout=30) as answer:
            return {"status": answer.status, "bytes": len(answer.read())}
    except HTTPError as error:
        wait = error.headers.get("Retry-After", "")
        if error.code in (429, 503) and wait.isdecimal():
            raise RetryAfter(int(wait), f"{payload.url} is busy") from None
        if 400 <= error.code < 500:
            raise NonRetryable(f"{payload.url} answers {error.code}") from None
        raise  # tried again after the usual pause
