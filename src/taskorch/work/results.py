"""Results of the tasks before: filled into a payload when its attempt starts."""

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import anyio.to_thread

from taskorch.domain import references
from taskorch.domain.errors import InvalidInput, shown
from taskorch.domain.references import FILLED_BYTES, Reference
from taskorch.domain.task import COMMAND, Failed, Outcome, Reason, Status, Task, with_values
from taskorch.storage.rows import dumps
from taskorch.work import output
from taskorch.work.attempt import Attempt

OUTPUT_BYTES = 65_536  # of a command's output that can be handed on


class Results:
    """`read`: the tasks of these ids, those that are stored. `folder`: where commands keep their output."""

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[list[Task]]], folder: Path) -> None:
        self._read = read
        self._folder = folder

    async def fill(self, attempt: Attempt) -> Outcome | None:
        """Put results in the place of the payload's references to them; how the attempt ends if that cannot be."""
        try:
            attempt.task = await self.filled(attempt.task)
        except InvalidInput as error:
            return Failed(Reason.INVALID_PAYLOAD, str(error), retryable=False)
        return None

    async def filled(self, task: Task) -> Task:
        """The task with results in the place of its payload's references to them. Raises InvalidInput."""
        wanted = references.find(task.payload)
        if not wanted:
            return task
        tasks = {found.id: found for found in await self._read(list({reference.task for reference in wanted}))}
        return with_values(task, payload=await anyio.to_thread.run_sync(self._payload, task, tasks))

    def _payload(self, task: Task, tasks: dict[str, Task]) -> dict[str, Any]:
        def value(reference: Reference) -> Any:
            found = self._value(reference, tasks.get(reference.task))
            return found if isinstance(found, str) or task.kind != COMMAND else dumps(found)  # programs take texts

        payload: Any = references.filled(task.payload, value)
        if not isinstance(payload, dict):  # it is a result itself
            raise InvalidInput(f"The payload must be an object, which the result {shown(payload)} is not.")
        try:
            size = len(dumps(payload).encode())
        except UnicodeEncodeError as error:  # JSON can write what no text may hold
            what = f"the character {error.object[error.start]!a}, which no text may hold"
            raise InvalidInput(f"The payload has {what}, in a result that it takes.") from None
        if size > FILLED_BYTES:
            raise InvalidInput(
                f"The payload has {size} bytes with the results that it takes; at most {FILLED_BYTES} are allowed. "
                "Take a part of them by path, or hand on a file."
            )
        return cast(dict[str, Any], payload)

    def _value(self, reference: Reference, task: Task | None) -> Any:
        if task is None:
            raise InvalidInput(f"{reference.task}, whose result it takes, is no longer stored.")
        if not task.ended:
            raise InvalidInput(f"{reference.task}, whose result it takes, is {task.status}.")
        if task.is_command:
            return references.part(self._left_by(task, reference), reference)
        if task.status is Status.COMPLETED:
            return references.part(task.result, reference)
        error = task.error
        return references.part({"status": str(task.status), "error": error and error.message}, reference)

    def _left_by(self, task: Task, reference: Reference) -> Any:
        """The output of a command; for a path, an object of that and the rest."""
        text = self._output(task)
        if reference.path is None:
            return text
        code = 0 if task.status is Status.COMPLETED else task.error and task.error.exit_code
        document = {"status": str(task.status), "exit_code": code, "error": task.error and task.error.message}
        return document | {"output": text} | _parsed(text)

    def _output(self, task: Task) -> str:
        """All of it, without the line ends at its end, as a shell's $(…) would have it."""
        data, total = output.news(output.attempt_folder(self._folder, task.id, task.attempt), 0, OUTPUT_BYTES)
        if total > OUTPUT_BYTES:
            raise InvalidInput(
                f"The output of {task.label} has {total} bytes; at most {OUTPUT_BYTES} can be handed on. "
                "Have it write a file, and its path to its output."
            )
        return data.decode("utf-8", "replace").rstrip("\r\n")


def _parsed(text: str) -> dict[str, Any]:
    try:
        return {"json": json.loads(text)}
    except (ValueError, RecursionError):
        return {}
