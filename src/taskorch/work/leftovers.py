"""What a killed shim has left: whether its command had begun, and the processes that nobody watches any more."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from taskorch.work.supervised import RECORD_BYTES, open_own

LEFTOVER_SECONDS = 2.0
BEGINNING_SECONDS = 0.5  # a process that is becoming the command bears its marker long before that


def never_begun(folder: Path, ordered: bool) -> bool:
    """Whether it is certain that the command did not start: the shim notes that before it starts it.

    `ordered`: the order to start was given, so a lock file must be there to say that nothing came of it. Otherwise a
    missing folder says that its server did not get so far, unless somebody removed all of the output.
    """
    try:
        return len(_lines(folder)) == 1
    except FileNotFoundError:
        return folder.parent.parent.is_dir() and not ordered
    except OSError:
        return False


def end_leftovers(folder: Path, task_id: str, attempt: int) -> tuple[int, list[int]]:
    """Kill what a killed shim left: how many, and who could not be ended (0: one that was about to begin).

    They are found by the marker in their environment; the first of them also by the shim's note in `folder`. A shim
    that was killed while it started the command may leave it without either for a moment: it is waited for. Blocks for
    2 s at most. Linux only; elsewhere nothing is found.
    """
    seen: set[int] = set()
    began, beginning = time.monotonic(), _beginning(folder)
    deadline = began + LEFTOVER_SECONDS
    while True:
        left = _marked(task_id, attempt) | _noted(folder)
        now = time.monotonic()
        awaited = beginning and not seen and now < began + BEGINNING_SECONDS
        if now > deadline or not (left or awaited):
            return len(seen), sorted(left) or [0] * (beginning and not seen)
        for pid in left:
            seen.add(pid)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)  # in a worker thread


def _lines(folder: Path) -> list[bytes]:
    """What the shim has put on record: itself, `begins` before it starts the command, and that. Raises OSError."""
    with os.fdopen(open_own(folder / "shim.lock", os.O_RDONLY), "rb") as file:
        return file.read(RECORD_BYTES).splitlines()


def _beginning(folder: Path) -> bool:
    """Whether the shim has gone while it started the command: nobody knows whether that began."""
    try:
        return _lines(folder)[1:] == [b"begins"]
    except OSError:
        return False


def _noted(folder: Path) -> set[int]:
    """The child that the shim has put on record, if that very process still lives."""
    try:
        pid, started = _lines(folder)[-1].split()
        state = Path(f"/proc/{int(pid)}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, IndexError, ValueError):
        return set()
    return {int(pid)} if state[19] == started and state[0] != b"Z" else set()


def _marked(task_id: str, attempt: int) -> set[int]:
    marks = {f"TASKORCH_TASK_ID={task_id}".encode(), f"TASKORCH_ATTEMPT={attempt}".encode()}
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                found.add(int(entry.name))
    return found
