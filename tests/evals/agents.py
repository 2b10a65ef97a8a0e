"""An agent without a model: it calls tools, and is shown the replies in one of their two forms only."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clients import Answer, call
from mcp import Client

Found = dict[str, Any]

ROW = re.compile(
    r"(?P<id>t\w{16}) (?P<status>\w+)(?: \((?P<phase>\w+)\))?(?: (?P<reason>[a-z_]+))? (?P<kind>[\w.]+)"
    r'(?: "(?P<name>[^"]*)")? (?P<priority>low|medium|high)(?: attempt (?P<attempt>\d+))? (?P<when>\S+)Z'
)
STARTED = re.compile(r"(\S+) attempt (\d+) started on server (\d+)")
ENDED = re.compile(r"(\S+) attempt (\d+) (\w+)(?: \((\w+): (.*)\))?")
EVENT = re.compile(r"(\S+) (\w+) by (.+?)(?:: (.*))?")
AFTER_ALL = {"completed", "failed", "cancelled", "interrupted"}


@dataclass
class Agent(ABC):
    """What it needed is counted: calls, and the bytes of the form that it reads."""

    client: Client
    calls: int = 0
    bytes: int = 0

    async def call(self, tool: str, **arguments: Any) -> Any:
        """The reply in the form that this agent is shown."""
        reply = await call(self.client, tool, **arguments)
        self.calls += 1
        self.bytes += self.size(reply)
        return self.shown(reply)

    async def pages(self, **filters: Any) -> list[Found]:
        """The rows of a whole list, page by page."""
        found, cursor = await self.page(**filters)
        while cursor:
            more, cursor = await self.page(**filters, cursor=cursor)
            found += more
        return found

    @abstractmethod
    def size(self, reply: Answer) -> int: ...

    @abstractmethod
    def shown(self, reply: Answer) -> Any: ...

    @abstractmethod
    async def page(self, **arguments: Any) -> tuple[list[Found], str | None]:
        """Rows with at least id, status, kind, attempt, and `when`: the day on which it ended, else is due or began."""

    @abstractmethod
    async def counts(self, **filters: Any) -> dict[str, int]: ...

    @abstractmethod
    async def ran(self, task_id: str) -> float:
        """How long the latest attempt ran, in seconds."""

    @abstractmethod
    async def history(self, task_id: str) -> tuple[list[Found], list[Found]]:
        """Attempts and events."""

    @abstractmethod
    async def exit_codes(self, task_ids: list[str]) -> dict[str, int]: ...

    @abstractmethod
    async def output(self, task_id: str, **arguments: Any) -> tuple[list[str], int | None]:
        """Lines, and where to go on."""


class Reader(Agent):
    """Reads the text."""

    def size(self, reply: Answer) -> int:
        return reply.text_bytes

    def shown(self, reply: Answer) -> str:
        return reply.text

    async def page(self, **arguments: Any) -> tuple[list[Found], str | None]:
        text = await self.call("list_tasks", **arguments)
        rows = [match.groupdict() for line in text.splitlines() if (match := ROW.fullmatch(line))]
        more = re.search(r'cursor="(c\d+)"', text.splitlines()[-1])
        return [row | {"attempt": int(row["attempt"] or 1)} for row in rows], more and more[1]

    async def counts(self, **filters: Any) -> dict[str, int]:
        first = (await self.call("list_tasks", **filters, limit=1)).splitlines()[0]
        return {status: int(number) for number, status in re.findall(r"(\d+) (\w+)", first)}

    async def ran(self, task_id: str) -> float:
        return float(re.search(r", ran ([\d.]+) s", await self.call("get_task", task_id=task_id))[1])

    async def history(self, task_id: str) -> tuple[list[Found], list[Found]]:
        text = await self.call("get_task", task_id=task_id, detail="full")
        attempts: dict[str, Found] = {}
        events: list[Found] = []
        for line in text.partition("\nhistory:\n")[2].splitlines():
            if match := STARTED.fullmatch(line.strip()):
                attempts[match[2]] = {"started_at": match[1], "server": int(match[3])}
            elif (match := ENDED.fullmatch(line.strip())) and match[3] in AFTER_ALL:
                attempts[match[2]] |= {"ended_at": match[1], "outcome": match[3], "reason": match[4]}
            elif match := EVENT.fullmatch(line.strip()):
                events.append({"at": match[1], "event": match[2], "by": match[3], "detail": match[4]})
        return list(attempts.values()), events

    async def exit_codes(self, task_ids: list[str]) -> dict[str, int]:
        text = await self.call("wait_for_tasks", task_ids=task_ids)
        return {task: int(code) for task, code in re.findall(r"^(t\w{16}) .*, exit_code (\d+):", text, re.MULTILINE)}

    async def output(self, task_id: str, **arguments: Any) -> tuple[list[str], int | None]:
        head, *lines = (await self.call("get_task_output", task_id=task_id, **arguments)).splitlines()
        more = re.search(r"offset=(\d+)", head)
        return lines, int(more[1]) if more else None


class Program(Agent):
    """Reads the structured form."""

    def size(self, reply: Answer) -> int:
        return reply.facts_bytes

    def shown(self, reply: Answer) -> Found:
        return reply.facts

    async def page(self, **arguments: Any) -> tuple[list[Found], str | None]:
        facts = await self.call("list_tasks", **arguments)
        rows = facts["tasks"]
        when = [row.get("finished_at") or row.get("run_at") or row["created_at"] for row in rows]
        return [row | {"when": time} for row, time in zip(rows, when, strict=True)], facts.get("next_cursor")

    async def counts(self, **filters: Any) -> dict[str, int]:
        return (await self.call("list_tasks", **filters, limit=1))["counts"]

    async def ran(self, task_id: str) -> float:
        facts = await self.call("get_task", task_id=task_id)
        return seconds(facts["started_at"], facts["finished_at"])

    async def history(self, task_id: str) -> tuple[list[Found], list[Found]]:
        facts = await self.call("get_task", task_id=task_id, detail="full")
        return facts.get("attempts", []), facts.get("events", [])

    async def exit_codes(self, task_ids: list[str]) -> dict[str, int]:
        rows = (await self.call("wait_for_tasks", task_ids=task_ids))["tasks"]
        return {row["id"]: row["error"]["exit_code"] for row in rows if "exit_code" in row.get("error", {})}

    async def output(self, task_id: str, **arguments: Any) -> tuple[list[str], int | None]:
        facts = await self.call("get_task_output", task_id=task_id, **arguments)
        more = facts["next_offset"] < facts["total_bytes"]
        return facts["text"].splitlines(), facts["next_offset"] if more else None


def seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
