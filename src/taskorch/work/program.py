"""An MCP server that is a program of ours: its pipes as the SDK's client wants them, its last words, its end.

The SDK has such a transport, but that one may take 4.5 s to end a program, and a stopping server has 1.5 s for all it
does. This one also keeps what tells why a program failed, and holds no endless line in memory.
"""

import json
import logging
import os
import re
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from math import inf
from typing import Any, cast

import anyio
import mcp_types as mt
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from taskorch.work.mcp_servers import Stdio

LINE_BYTES = 1 << 24  # of one message
WORDS_BYTES = 4_000  # of what it has written last to stderr
STRANGE_BYTES = 200
STRANGE_LINES = 1_000  # so many that are no messages, and it is taken for no server
PATIENCE_SECONDS = 2.0  # what the end of its stdin leaves a program to end by itself
HURRY_SECONDS = 0.3  # the same, when this server stops
KILL_SECONDS = 0.2  # between TERM and KILL
POLL_SECONDS = 0.01

Said = MemoryObjectReceiveStream[SessionMessage | Exception]
ToSay = MemoryObjectSendStream[SessionMessage]

log = logging.getLogger(__name__)


class Program:
    """One run of a server's program. `ended` is set as soon as nothing more will come from it."""

    def __init__(self, name: str, server: Stdio, environment: Mapping[str, str]) -> None:
        self._name = name
        self._server = server
        self._environment = dict(environment)
        self._words = b""
        self._strange = b""  # the first line that was no message
        self._strangers = 0  # how many there were
        self._flaw = ""
        self._exit_code: int | None = None
        self.ended = anyio.Event()

    @property
    def fate(self) -> str:
        """How it ended, and what may tell why."""
        return (self._flaw or f"ended ({_exit(self._exit_code)})") + self.last_words

    @property
    def last_words(self) -> str:
        """`: ` and the last line of its stderr, one that speaks of an error if there is, else what was no message."""
        lines = [line for line in self._words.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(rb"error:", line, re.IGNORECASE)]
        said = self._shown((errors or lines or [self._strange])[-1])
        return f": {said}" if said else ""

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[tuple[Said, ToSay]]:
        """Start it: what it says and where to speak to it, until the block ends; then it has ended too.

        Raises OSError when it cannot be started.
        """
        process = await anyio.open_process(
            [self._server.command, *self._server.args],
            env=self._environment,
            cwd=self._server.cwd,
            start_new_session=True,
        )
        assert process.stdin and process.stdout and process.stderr
        said, theirs = anyio.create_memory_object_stream[SessionMessage | Exception]()
        # Without a bound: who gives a call up must not wait for a program that does not read.
        ours, given = anyio.create_memory_object_stream[SessionMessage](inf)
        seconds = PATIENCE_SECONDS
        async with anyio.create_task_group() as group:
            try:
                group.start_soon(self._read, process.stdout, said)
                group.start_soon(self._write, process.stdin, given, said)
                group.start_soon(self._listen, process.stderr)
                yield theirs, ours
            except anyio.get_cancelled_exc_class():
                seconds = HURRY_SECONDS
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await self._end(process, HURRY_SECONDS if self._flaw else seconds)
                for stream in (said, theirs, ours, given):
                    stream.close()
                group.cancel_scope.cancel()

    async def _read(self, stdout: ByteReceiveStream, said: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Hand on its messages until it ends, or is found to be no server."""
        with said, suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            try:
                async with aclosing(self._lines(stdout)) as lines:
                    async for line in lines:
                        await self._hand_on(line, said)
                        if self._strangers > STRANGE_LINES:
                            self._flaw = "writes what is no MCP"
                            break
            finally:
                self.ended.set()

    async def _lines(self, stdout: ByteReceiveStream) -> AsyncGenerator[bytes]:
        """What it writes, until it ends or one line does not."""
        line = bytearray()
        async for data in stdout:
            *whole, rest = data.split(b"\n")
            for part in whole:
                yield bytes(line + part)
                line.clear()
            line += rest
            if len(line) > LINE_BYTES:
                self._flaw = f"wrote a message of more than {LINE_BYTES >> 20} MiB"
                return

    async def _hand_on(self, line: bytes, said: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        try:
            message = mt.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            self._strange = self._strange or line.strip()[:STRANGE_BYTES]
            self._strangers += 1
            message = _unreadable(line)
        if message is not None:
            await said.send(SessionMessage(message))

    async def _write(
        self,
        stdin: ByteSendStream,
        given: MemoryObjectReceiveStream[SessionMessage],
        said: MemoryObjectSendStream[SessionMessage | Exception],
    ) -> None:
        try:
            async for message in given:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await stdin.send(text.encode() + b"\n")
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            self.ended.set()  # it hears nothing any more
            said.close()

    async def _listen(self, stderr: ByteReceiveStream) -> None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async for data in stderr:
                self._words = (self._words + data)[-WORDS_BYTES:]
                log.info("the server %s says: %s", self._name, self._shown(data))

    async def _end(self, process: Process, seconds: float) -> None:
        """Close its stdin, give it so many seconds, and end what is left of it and its children."""
        assert process.stdin
        await process.stdin.aclose()
        with anyio.move_on_after(seconds):
            while process.returncode is None:  # noqa: ASYNC110  (`wait` waits also for children that hold its pipes)
                await anyio.sleep(POLL_SECONDS)
        self._exit_code = process.returncode
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
            with anyio.move_on_after(KILL_SECONDS):
                while True:
                    await anyio.sleep(POLL_SECONDS)
                    os.killpg(process.pid, 0)
            os.killpg(process.pid, signal.SIGKILL)
        with anyio.move_on_after(KILL_SECONDS):  # as long as some stranger holds its pipes
            await process.aclose()

    def _shown(self, data: bytes) -> str:
        return self._server.hide(data.decode("utf-8", "replace")).strip()


def _unreadable(line: bytes) -> mt.JSONRPCError | None:
    """An error in the place of an answer that is no valid message, so that nobody waits for it."""
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fields = cast(dict[str, Any], content) if isinstance(content, dict) else {}
    asked = fields.get("id")
    if "method" in fields or not isinstance(asked, int | str):
        return None
    error = mt.ErrorData(code=mt.PARSE_ERROR, message="its answer is no valid message")
    return mt.JSONRPCError(jsonrpc="2.0", id=asked, error=error)


def _exit(code: int | None) -> str:
    if code is None:
        return "it closed its output"
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code}"
