"""`taskorch demo`: sixteen tasks through a real server over stdio, and a check that each came out as announced."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from rich.console import Console
from rich.live import Live
from rich.table import Table

LIMIT_SECONDS = 28
LOOK_SECONDS = 0.3
COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "working": "cyan"}
TREE = "sleep 300 & setsid sleep 300 & echo started a tree; wait"

Facts = dict[str, Any]
Check = Callable[[Facts, Mapping[str, Facts]], bool]


@dataclass
class Step:
    """One task: what is asked for, what is announced, and whether it came out so."""

    name: str
    announced: str
    arguments: Facts
    check: Check
    facts: Facts = field(default_factory=dict[str, Any])


def command(*argv: str, **more: Any) -> Facts:
    return {"kind": "command", "payload": {"argv": list(argv)}, **more}


def pause(seconds: float, **more: Any) -> Facts:
    return {"kind": "sleep", "payload": {"seconds": seconds}, **more}


def ended(status: str, reason: str | None = None, attempt: int | None = None) -> Check:
    def check(facts: Facts, others: Mapping[str, Facts]) -> bool:
        right = facts["status"] == status and facts.get("error", {}).get("reason") == reason
        return right and attempt in (None, facts["attempt"])

    return check


def started_after(other: str) -> Check:
    """Whether it completed and began no earlier than another."""

    def check(facts: Facts, others: Mapping[str, Facts]) -> bool:
        return ended("completed")(facts, others) and facts["started_at"] >= others[other]["started_at"]

    return check


STEPS = [
    Step("slot 1", "holds the first of two slots", pause(1), ended("completed")),
    Step("slot 2", "holds the second", pause(1), ended("completed")),
    Step("low", "was first in the queue, starts last", pause(0.4, priority="low"), started_after("medium")),
    Step("medium", "starts after high", pause(0.4), started_after("high")),
    Step("high", "came last, overtakes both", pause(0.4, priority="high"), ended("completed")),
    Step(
        "echo",
        "a Python handler returns its payload",
        {"kind": "echo", "payload": {"hello": "world"}},
        lambda facts, _: facts.get("result") == {"hello": "world"},
    ),
    Step("hello", "a command; its output is read back", command("echo", "hello from a command"), ended("completed")),
    Step(
        "flaky",
        "fails twice, is retried with backoff, succeeds",
        command("sh", "-c", 'test "$TASKORCH_ATTEMPT" -ge 3', max_attempts=3, priority="high"),
        ended("completed", attempt=3),
    ),
    Step(
        "broken",
        "fails at each of its two attempts",
        command("ls", "/no/such/place", max_attempts=2, priority="high"),
        ended("failed", "exit_code", 2),
    ),
    Step(
        "quote",
        "takes the output of 'hello' when that has completed",
        {"kind": "echo", "payload": {"said": {"$result": "hello"}}},
        lambda facts, _: facts.get("result") == {"said": "hello from a command"},
    ),
    Step(
        "skipped",
        "depends on 'broken', and is cancelled with its failure",
        command("echo", "never", depends_on=["broken"]),
        ended("cancelled", "dependency", 0),
    ),
    Step(
        "tidy",
        "runs after 'broken' whatever became of that",
        command("echo", "tidy", depends_on=["broken"], on_dependency_failure="run"),
        ended("completed"),
    ),
    Step("slow", "runs into its time limit", command("sleep", "60", timeout_seconds=1), ended("failed", "timeout")),
    Step("tree", "a process tree, cancelled whole", command("sh", "-c", TREE), ended("cancelled", "user")),
    Step("progress", "a handler that tells how far it is", pause(3), ended("completed")),
    Step("later", "scheduled two seconds ahead", pause(0, delay_seconds=2), ended("completed")),
]


async def run_demo() -> int:
    """Run the demo; 0 when everything came out as announced within 30 s, else 1."""
    with tempfile.TemporaryDirectory(prefix="taskorch-demo-") as folder:
        server = StdioServerParameters(command=sys.executable, args=["-m", "taskorch"], env=_environment(Path(folder)))
        with anyio.move_on_after(LIMIT_SECONDS):
            async with Client(server) as client:
                return await Demo(client, Console()).run()
    Console(stderr=True).print(f"The demo did not end within {LIMIT_SECONDS} s.")
    return 1


class Demo:
    def __init__(self, client: Client, console: Console) -> None:
        self._client = client
        self._console = console
        self._seen: dict[str, str] = {}
        self._progress_seen = False

    async def run(self) -> int:
        say = self._console.print
        say(f"taskorch over real stdio, protocol {self._client.protocol_version}: {len(STEPS)} tasks, two slots.\n")
        for step in STEPS:
            step.facts = await self._call("create_task", name=step.name, **step.arguments)
        await self._follow()
        return await self._verdict()

    async def _follow(self) -> None:
        """Show the tasks until all have ended: a live table in a terminal, else a line at each change."""
        if not self._console.is_terminal:
            while await self._look():
                self._print_changes()
            self._print_changes()
            return
        with Live(_table(), console=self._console, refresh_per_second=8) as live:
            while await self._look():
                live.update(_table())
            live.update(_table())

    async def _look(self) -> bool:
        """Read every task, cancel the tree once it runs; whether any is still under way."""
        for step in STEPS:
            if step.facts["status"] in ("waiting", "working"):
                step.facts = await self._call("get_task", task_id=step.facts["id"])
        tree = _step("tree").facts
        if tree["status"] == "working" and tree.get("phase") != "cancelling":
            output = await self._call("get_task_output", task_id=tree["id"])
            if "started" in output["text"]:
                await self._call("cancel_task", task_id=tree["id"], reason="the demo has seen enough")
        self._progress_seen |= 0 < _step("progress").facts.get("progress", {}).get("value", 0) < 3
        await anyio.sleep(LOOK_SECONDS)
        return any(step.facts["status"] in ("waiting", "working") for step in STEPS)

    def _print_changes(self) -> None:
        for step in STEPS:
            state = _state(step.facts)
            if self._seen.get(step.name) != state:
                self._seen[step.name] = state
                self._console.print(f"{step.name:<9} {state}", highlight=False)

    async def _verdict(self) -> int:
        others = {step.name: step.facts for step in STEPS}
        output = await self._call("get_task_output", task_id=_step("hello").facts["id"])
        stats = await self._call("get_stats")
        checks = [(f"{step.name}: {step.announced}", step.check(step.facts, others)) for step in STEPS]
        checks += [
            ("the output of 'hello' can be read back", output["text"] == "hello from a command\n"),
            ("progress was seen while 'progress' ran", self._progress_seen),
            ("no process of 'tree' is left", not _alive(_step("tree").facts["id"])),
            ("the statistics agree", stats["overview"]["total"] == len(STEPS) and stats["overview"]["active"] == 0),
        ]
        self._console.print()
        for text, right in checks:
            self._console.print(f"[green]✓[/] {text}" if right else f"[red]✗[/] {text}", highlight=False)
        wrong = sum(not right for _, right in checks)
        self._console.print("\nEverything came out as announced." if not wrong else f"\n{wrong} came out otherwise.")
        return 1 if wrong else 0

    async def _call(self, tool: str, **arguments: Any) -> Facts:
        result = await self._client.call_tool(tool, arguments)
        if result.is_error or result.structured_content is None:
            raise RuntimeError(f"{tool}: {getattr(result.content[0], 'text', result)}")
        return result.structured_content


def _environment(folder: Path) -> dict[str, str]:
    return {
        "TASKORCH_STATE_DIR": str(folder),
        "TASKORCH_CONCURRENCY": "2",
        "TASKORCH_ALLOW_COMMANDS": "sh,ls,echo,sleep",
        "TASKORCH_GRACE_SECONDS": "1",
        "XDG_CONFIG_HOME": str(folder),  # nobody's own config.toml
    }


def _step(name: str) -> Step:
    return next(step for step in STEPS if step.name == name)


def _table() -> Table:
    table = Table("task", "status", "attempt", "what is announced", box=None, pad_edge=False)
    for step in STEPS:
        colour = COLOURS.get(step.facts["status"], "dim")
        attempt = f"{step.facts['attempt']}/{step.facts['max_attempts']}"
        table.add_row(step.name, f"[{colour}]{_state(step.facts)}[/]", attempt, step.announced)
    return table


def _state(facts: Facts) -> str:
    phase = f" ({facts['phase']})" if "phase" in facts else ""
    progress: Facts = facts.get("progress", {}) if facts["status"] == "working" else {}
    share = f" {100 * progress['value'] / progress['total']:.0f}%" if progress.get("total") else ""
    reason = f": {facts['error']['reason']}" if facts.get("error") else ""
    return f"{facts['status']}{phase}{share}{reason}"


def _alive(task_id: str) -> Sequence[int]:
    """Processes that carry the task's marker in their environment (Linux; elsewhere none are found)."""
    mark = f"TASKORCH_TASK_ID={task_id}".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
    return found
