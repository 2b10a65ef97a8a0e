"""Connections to other MCP servers: one each, opened at its first use, shared, opened anew when it was lost.

A session belongs to the task that opened it, so each connection has a task of its own; what is asked of it runs in that
task's group. One that nobody has used for a while is closed.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

from taskorch.work.mcp_servers import Entry
from taskorch.work.remote_answer import Lost, NotConnected

if TYPE_CHECKING:
    from taskorch.work.remote_session import Session

CONNECT_SECONDS = 60.0  # a package runner may have to fetch the server first
IDLE_SECONDS = 300.0

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Connection:
    """One session and those who use it."""

    def __init__(self) -> None:
        self.users = 0
        self.session: Session | None = None
        self.failure = NotConnected("has been closed")
        self.fate = "the connection has ended"
        self.decided = anyio.Event()  # whether there is a session
        self.ended = anyio.Event()
        self.touched = anyio.Event()  # a user has come or gone, or the session has ended
        self._calls: TaskGroup | None = None

    @property
    def is_over(self) -> bool:
        return self.session is not None and self.session.ended.is_set()

    def begin(self, session: "Session", calls: TaskGroup) -> None:
        self.session, self._calls = session, calls
        self.decided.set()

    def close(self) -> None:
        """Take no more calls."""
        self._calls = None

    async def run(self, work: "Callable[[Session], Awaitable[Result]]") -> Result:
        """What `work` makes of the session. Who is cancelled here need not wait for what `work` does then.

        Raises NotConnected, Lost, and what `work` raises.
        """
        await self.decided.wait()
        if self.session is None or self._calls is None:
            raise NotConnected(str(self.failure), self.failure.final)
        session, scope, done = self.session, anyio.CancelScope(), anyio.Event()
        results: list[Result] = []
        errors: list[Exception] = []

        async def call() -> None:
            try:
                with scope:
                    results.append(await work(session))
            except Exception as error:
                errors.append(error)
            finally:
                done.set()

        self._calls.start_soon(call)
        try:
            await done.wait()
        finally:
            scope.cancel()
        if results:
            return results[0]
        if errors and not (isinstance(errors[0], Lost) and self.is_over):
            raise errors[0]
        await self.ended.wait()  # only then it is known how
        raise Lost(self.fate)


class Connections:
    """Connections to the named servers. `run` it while they are used; `variables`: what every program is told."""

    def __init__(
        self,
        servers: Mapping[str, Entry],
        version: str,
        variables: Mapping[str, str],
        connect_seconds: float = CONNECT_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.servers = servers
        self._version = version
        self._variables = variables
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._open: dict[str, Connection] = {}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then every server that was started has ended."""
        async with anyio.create_task_group() as self._owners:
            task_status.started()
            await anyio.sleep_forever()

    async def use(self, name: str, work: "Callable[[Session], Awaitable[Result]]") -> Result:
        """What `work` makes of a session with that server, see `Connection.run`."""
        connection = self._open.get(name)
        if connection is None or connection.is_over:
            connection = self._open[name] = Connection()
            self._owners.start_soon(self._own, name, connection)
        connection.users += 1
        try:
            return await connection.run(work)
        finally:
            connection.users -= 1
            connection.touched.set()

    async def _own(self, name: str, connection: Connection) -> None:
        from taskorch.work.remote_session import opened  # a server without such tasks need not load it

        entry, seconds = self.servers[name], self._connect_seconds
        try:
            async with (
                opened(name, entry, self._variables, self._version, seconds) as session,
                anyio.create_task_group() as calls,
            ):
                calls.start_soon(_watch, session, connection)
                connection.begin(session, calls)
                try:
                    await self._while_used(connection, session)
                finally:  # before anything else: who comes now needs another one
                    self._forget(name, connection)
                    connection.close()
                calls.cancel_scope.cancel()
            connection.fate = session.fate
        except NotConnected as failure:
            connection.failure = failure
        except Lost as lost:
            connection.fate = str(lost)
        except Exception:
            log.exception("the connection to the server %s failed", name)
        finally:
            self._forget(name, connection)
            connection.decided.set()
            connection.ended.set()

    async def _while_used(self, connection: Connection, session: "Session") -> None:
        """Return when nobody has used it for a while, or when it has ended."""
        while not session.ended.is_set():
            connection.touched = anyio.Event()
            with anyio.move_on_after(self._idle_seconds) as idle:
                await connection.touched.wait()
            if idle.cancelled_caught and not connection.users:
                return

    def _forget(self, name: str, connection: Connection) -> None:
        if self._open.get(name) is connection:
            del self._open[name]


async def _watch(session: "Session", connection: Connection) -> None:
    await session.ended.wait()
    connection.touched.set()
