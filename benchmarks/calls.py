"""Tool calls per second over real stdio, by a client that writes and reads bytes: whole servers, and transports alone.

    python -m benchmarks.calls [--rounds 7] [--seconds 0.5] [--folder DIR]

Each row is a server process that answers `tools/call`: a loop of `json.loads` and `json.dumps`; the SDK's `MCPServer`
and lowlevel `Server` over the SDK's transport, and the lowlevel one over ours, with a tool that adds two numbers;
taskorch, with the state of a task, and with a new task, which is on disk when it is answered. With 1 and 64 calls in
flight; rounds are interleaved, and the ratio is to `MCPServer` on the SDK's transport in the same round.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from benchmarks.table import Row, markdown, row

BASE = "MCPServer, SDK's stdio"
IN_FLIGHT = (1, 64)
CPU = ": CPU a call"
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "calls", "version": "0"}}
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
CREATE = {"name": "create_task", "arguments": {"kind": "echo", "payload": {"k": "x" * 191}, "delay_seconds": 86_400}}


class Caller:
    """A client of one server process, with `in_flight` calls under way at any time."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str], handshake: bool = True) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
            bufsize=0,
        )
        self._count = 0
        self._rest = b""
        if handshake:
            self.ask("initialize", HELLO)
            self._write([{"jsonrpc": "2.0", "method": "notifications/initialized"}])

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """The answer to one request. Raises SystemExit when it is an error."""
        self._write([self._request(method, params)])
        (line,) = self._read()
        answer = json.loads(line)
        if "error" in answer or answer["result"].get("isError"):
            raise SystemExit(f"{method}: {line.decode()[:500]}")
        return answer["result"]

    def calls(self, params: dict[str, Any], in_flight: int, seconds: float) -> tuple[float, float]:
        """Calls per second, and the microseconds of CPU that each took the server."""
        began, cpu, done = time.perf_counter(), self._cpu(), 0
        self._write([self._request("tools/call", params) for _ in range(in_flight)])
        open_calls = in_flight
        while open_calls:
            lines = self._read()
            done += len(lines)
            open_calls -= len(lines)
            if bad := next((line for line in lines if b'"error":' in line or b'"isError":true' in line), None):
                raise SystemExit(bad.decode()[:500])
            if time.perf_counter() < began + seconds:
                self._write([self._request("tools/call", params) for _ in lines])
                open_calls += len(lines)
        return done / (time.perf_counter() - began), (self._cpu() - cpu) / done * 1e6

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        return {"jsonrpc": "2.0", "id": self._count, "method": method, "params": params}

    def _write(self, messages: list[dict[str, Any]]) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def _read(self) -> list[bytes]:
        """The lines that have come, at least one."""
        assert self._process.stdout
        lines: list[bytes] = []
        while not lines:
            chunk = os.read(self._process.stdout.fileno(), 2**20)
            if not chunk:
                raise SystemExit(f"the server has left: {self._process.args}")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines

    def _cpu(self) -> float:
        if not Path("/proc").exists():
            return float("nan")
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """A server, and the call that it is asked."""

    name: str
    caller: Caller
    params: dict[str, Any]


@contextlib.contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))

        def started(argv: Sequence[str], handshake: bool = True) -> Caller:
            caller = Caller([sys.executable, *argv], {"TASKORCH_STATE_DIR": state}, handshake)
            stack.callback(caller.close)
            return caller

        def empty(kind: str, handshake: bool = True) -> Caller:
            return started(["-m", "benchmarks.calls", "--serve", kind], handshake)

        taskorch = started(["-m", "taskorch"])
        task_id = taskorch.ask("tools/call", CREATE)["structuredContent"]["id"]
        yield [
            Target("JSON lines alone", empty("echo", handshake=False), ADD),
            Target(BASE, empty("mcpserver"), ADD),
            Target("lowlevel, SDK's stdio", empty("lowlevel"), ADD),
            Target("lowlevel, our stdio", empty("ours"), ADD),
            Target("taskorch get_task", taskorch, {"name": "get_task", "arguments": {"task_id": task_id}}),
            Target("taskorch create_task", taskorch, CREATE),
        ]


def measure(rounds: int, folder: Path, seconds: float = 0.5) -> list[Row]:
    """Calls per second and CPU a call of every target, for each number of calls in flight; `folder`: on which disk."""
    values: list[dict[str, float]] = []
    with targets(folder) as all_targets:
        for _ in range(rounds):
            values.append({})
            for in_flight in IN_FLIGHT:
                for target in all_targets:
                    name = _name(target.name, in_flight)
                    rate, cost = target.caller.calls(target.params, in_flight, seconds)
                    values[-1] |= {name: rate, name + CPU: cost}
    both = [(target.name, in_flight) for in_flight in IN_FLIGHT for target in all_targets]
    rates = [row(_name(*one), "/s", values, _name(BASE, one[1])) for one in both]
    return rates + [row(_name(*one) + CPU, "us", values, _name(BASE, one[1]) + CPU) for one in both]


def _name(target: str, in_flight: int) -> str:
    return f"{target}, {in_flight} in flight"


# The servers that do next to nothing.


def echo() -> None:
    for line in sys.stdin.buffer:
        answer = {"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": {"content": []}}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def mcpserver() -> None:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("empty")

    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    server.run("stdio")


async def lowlevel(ours: bool) -> None:
    import mcp_types as mt
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel.server import Server
    from mcp.server.stdio import stdio_server

    from taskorch.mcp.descriptors import claim_stdio
    from taskorch.mcp.wire import opened

    async def add(ctx: ServerRequestContext[Any], params: mt.CallToolRequestParams) -> mt.CallToolResult:
        given = params.arguments or {}
        return mt.CallToolResult(content=[mt.TextContent(text=str(given["a"] + given["b"]))])

    server: Server[Any] = Server("empty", on_call_tool=add)
    options = server.create_initialization_options()
    if ours:
        async with opened(*claim_stdio()) as wire:
            await server.run(wire, wire, options)
    else:
        async with stdio_server() as (read, write):
            await server.run(read, write, options)


def serve(kind: str) -> None:
    match kind:
        case "echo":
            echo()
        case "mcpserver":
            mcpserver()
        case _:
            anyio.run(lowlevel, kind == "ours")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure (%(default)s)")
    parser.add_argument("--serve", choices=["echo", "mcpserver", "lowlevel", "ours"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
    else:
        print(markdown(measure(given.rounds, given.folder, given.seconds)))
