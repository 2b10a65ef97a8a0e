"""What a task wrote, as lines: all that is kept, the last ones, those with a text, or as they come."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import typer

from taskorch.calls.replies import error_facts, error_text, output_reply
from taskorch.calls.service import Service
from taskorch.cli import session
from taskorch.cli.ending import NOBODY
from taskorch.cli.exits import Exit
from taskorch.cli.invocation import hint, say_json
from taskorch.cli.words import told
from taskorch.config import Settings
from taskorch.domain.errors import InvalidInput, NotFound
from taskorch.domain.task import Status, Task
from taskorch.work import output
from taskorch.work.output import Slice

AT_ONCE = 1 << 18  # bytes that are read at once
LOOK_SECONDS = 0.2  # between two looks at what a command writes: no event tells of it


class Lines:
    """Text that comes in pieces: all, as it comes; with `grep` only whole lines that have it, whatever its case."""

    def __init__(self, grep: str | None) -> None:
        self._grep = grep.casefold() if grep else None
        self._rest = ""

    def of(self, text: str) -> str:
        """What of it, and of what was kept back before, can be told now."""
        if self._grep is None:
            self._rest = text[-1:] or self._rest
            return text
        *lines, self._rest = (self._rest + text).split("\n")
        return "".join(f"{line}\n" for line in lines if self._grep in line.casefold())

    def last(self) -> str:
        """What is left at the end, where a line ends in any case."""
        rest, self._rest = self._rest, ""
        if self._grep is None:
            return "" if rest in ("", "\n") else "\n"
        return f"{rest}\n" if self._grep in rest.casefold() else ""


async def print_output(
    settings: Settings, reference: str, attempt: int | None, tail: int | None, grep: str | None, as_json: bool
) -> Exit:
    """Print what is kept of an attempt, or that as get_task_output answers it. Raises TaskError."""
    async with session.looking(settings) as service:
        task = await service.queries.resolve(reference)
        number = _number(task, attempt)
        end = await service.queries.attempt(task, number)  # before what was written: then that is whole
        slices = list(_written(_folder(service, task, number), 0))
    facts = output_reply(task, number, _joined(slices, _whole(slices, grep, tail)), grep, end).facts
    if as_json:
        say_json(facts)
    else:
        _print(facts["text"])
        if "hint" in facts:
            hint(told(facts["hint"]))
    return Exit.OK


async def follow_output(
    settings: Settings, reference: str, attempt: int | None, tail: int | None, grep: str | None
) -> Exit:
    """Print what an attempt and those after it write, until the task has ended. Raises TaskError."""
    async with session.looking(settings) as service:
        task = await service.queries.resolve(reference)
        number, at = _number(task, attempt), 0
        lines = Lines(grep)
        if tail is not None and number:
            slices = list(_written(_folder(service, task, number), 0))
            _print(_whole(slices, grep, tail))
            at = slices[-1].next_offset if slices else 0
        if not task.ended and not await session.is_served(service):
            hint(NOBODY)
        while True:
            task = await _present(service, task.id)
            end = await service.queries.attempt(task, number) if number else {}  # before what was written
            for part in _written(_folder(service, task, number), at):
                typer.echo(lines.of(_marked(part, at)), nl=False)
                at = part.next_offset
            over = task.ended or bool(end.get("outcome")) or task.attempt > number
            if over:
                typer.echo(lines.last(), nl=False)
            if over and ((task.ended and number == task.attempt) or (attempt is not None and number)):
                return _told(task, number, end)
            if task.attempt > number:
                if number:
                    hint(f"attempt {number + 1}")
                number, at = number + 1, 0
                continue
            await anyio.sleep(LOOK_SECONDS)


async def _present(service: Service, task_id: str) -> Task:
    found = await service.queries.get_many([task_id])
    if not found:
        raise NotFound(f"{task_id} was deleted meanwhile.")
    return found[0]


def _number(task: Task, attempt: int | None) -> int:
    if attempt is not None and attempt > task.attempt:
        raise InvalidInput(f"{task.label} has had {task.attempt} attempts; there is no attempt {attempt}.")
    return attempt or task.attempt


def _folder(service: Service, task: Task, number: int) -> Path:
    return output.attempt_folder(service.output_folder, task.id, number)


def _written(folder: Path, at: int) -> Iterator[Slice]:
    """What is kept from there on, in order."""
    while True:
        part = output.read(folder, offset=at, max_bytes=AT_ONCE)
        if part.next_offset <= at:
            return
        yield part
        at = part.next_offset


def _marked(part: Slice, at: int) -> str:
    """With a line where bytes are missing."""
    return part.text if part.offset <= at else f"\n[{part.offset - at} bytes were dropped here]\n{part.text}"


def _whole(slices: list[Slice], grep: str | None, tail: int | None) -> str:
    """All that they hold; the lines of it with a text; the last so many of these."""
    at, text = 0, ""
    for part in slices:
        text += _marked(part, at)
        at = part.next_offset
    if grep is None and tail is None:
        return text
    body, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
    lines = [line for line in body.split("\n") if grep is None or grep.casefold() in line.casefold()]
    lines = lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
    return "\n".join(lines) + (end if lines and grep is None else "")


def _print(text: str) -> None:
    """The next thing on this terminal begins a line."""
    typer.echo(text, nl=bool(text) and not text.endswith("\n"))


def _joined(slices: list[Slice], text: str) -> Slice:
    if not slices:
        return Slice(text, 0, 0, 0, 0)
    last = slices[-1]
    return Slice(text, slices[0].offset, last.next_offset, last.total_bytes, last.dropped_bytes)


def _told(task: Task, number: int, end: dict[str, object]) -> Exit:
    """How it ended, on stderr, and as an exit code."""
    if number != task.attempt or not task.ended:  # one attempt was asked for, and others come after it
        hint(f"attempt {number} of {task.label}: {end.get('outcome')}")
        return Exit.OK if end.get("outcome") == "completed" else Exit.FAILED
    why = f": {error_text(error_facts(task.error, 200))}" if task.error else ""
    hint(f"{task.label} {task.status}{why}")
    return Exit.OK if task.status is Status.COMPLETED else Exit.FAILED
