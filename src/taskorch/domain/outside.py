"""Work that no server runs: outside workers, agents for the most part, claim it and say how it ended. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any

from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.task import Failed, Reason, Task

OUTSIDE = "outside"
OWNER = 0  # what rows name as the owner of an attempt of theirs: no server's number
PAYLOAD_BYTES = 16_384  # a claim shows all of it
NAME = re.compile("[a-z0-9][a-z0-9_-]{0,39}")


class Outside:
    """What creating such a task needs to know. It may run again after a failure or a silence: make it idempotent."""

    description = "Work that no server runs: outside workers claim it, and say how it ended."
    max_attempts = 3
    timeout_seconds: float | None = None
    in_process = False

    def payload_schema(self) -> dict[str, Any] | None:
        return None

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput for a payload that no reply could show whole to the worker."""
        size = len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
        if size > PAYLOAD_BYTES:
            raise InvalidInput(
                f"payload has {size} bytes; for an outside worker at most {PAYLOAD_BYTES} are allowed, which a claim "
                "can show. Put large data in a file, pass its path."
            )

    def shown(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return payload  # it is there to be read


def is_outside(kind: str) -> bool:
    """Whether outside workers do it: `outside`, or `outside:` and a name of theirs."""
    return kind == OUTSIDE or kind.startswith(f"{OUTSIDE}:")


def check_kind(kind: str) -> None:
    """Raise InvalidInput for the kind of an outside worker whose name is none."""
    if kind != OUTSIDE and not NAME.fullmatch(kind.removeprefix(f"{OUTSIDE}:")):
        raise InvalidInput(
            f"kind {shown(kind)} is not allowed; after 'outside:' write a name of small letters, digits, - and _, "
            "40 characters at most, as in 'outside:review'."
        )


def lapses_at(task: Task, claim_ms: int, now: int) -> int:
    """When silence from `now` on ends the attempt (ms): after `claim_ms`, but within the task's own time limit."""
    return min(now + claim_ms, _limit(task))


def lapsed(task: Task, worker: str, claim_ms: int) -> Failed:
    """How an attempt ended whose claim has run out."""
    if task.claim_expires_at == _limit(task):
        return Failed(Reason.TIMEOUT, f"its outside worker {worker} took longer than {task.timeout_seconds:g} s")
    return Failed(Reason.WORKER_LOST, f"its outside worker {worker} fell silent for {claim_ms / 1000:g} s")


def _limit(task: Task) -> int:
    return (task.started_at or 0) + round(task.timeout_seconds * 1000)
