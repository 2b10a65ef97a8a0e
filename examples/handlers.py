"""Two handlers of one's own. Start a server with them:

PYTHONPATH=examples TASKORCH_HANDLERS=handlers taskorch
"""

import hashlib
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel, Field

from taskorch import Context, NonRetryable, handler


class Countdown(BaseModel):
    """Payloads are checked against this when a task is created; the model is told what is wrong."""

    steps: int = Field(ge=1, le=1000)
    pause_seconds: float = Field(default=0.1, ge=0, le=60)


@handler("countdown")
async def countdown(payload: Countdown, context: Context) -> dict[str, Any]:
    """An async handler with progress. Cancelling the task cancels it at the next await."""
    for done in range(payload.steps):
        context.progress(done, payload.steps, f"{payload.steps - done} to go")
        await anyio.sleep(payload.pause_seconds)
    return {"counted": payload.steps, "attempt": context.task.attempt}


@handler("checksum", max_attempts=2)
def checksum(payload: dict[str, Any], context: Context) -> dict[str, Any]:
    """A synchronous handler: it runs in a thread, and looks now and then whether it shall end."""
    path = Path(payload.get("path", ""))
    if not path.is_file():
        raise NonRetryable(f"there is no file {path}")  # trying again would not help
    digest, size, read = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while not context.cancelled and (chunk := file.read(1 << 20)):
            digest.update(chunk)
            read += len(chunk)
            context.progress(read, size)
    return {"path": str(path), "sha256": digest.hexdigest(), "bytes": read}
