"""The same facts as resources: reading, listing, completing, and telling subscribers of both protocol eras."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence, Set
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as mt
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourcesListChanged, ResourceUpdated
from mcp.shared.exceptions import MCPError

from taskorch.calls.health import stats_reply
from taskorch.calls.history import full_reply
from taskorch.calls.replies import list_reply, output_reply
from taskorch.calls.service import BOARD, Service
from taskorch.calls.wording import Facts, clean_text, iso, present, visible
from taskorch.domain.errors import NotFound, StoreError, shown
from taskorch.domain.kind import Kind
from taskorch.domain.task import Status, Task
from taskorch.mcp import apps
from taskorch.storage.ids import FULL_ID
from taskorch.storage.listing import Filters
from taskorch.storage.rows import dumps
from taskorch.storage.store import Change
from taskorch.work import output

Ctx = ServerRequestContext[Any]
Looks = tuple[int, int] | None  # None: it is not stored

RECENT, FAILED, STATS, KINDS = "tasks://recent", "tasks://failed", "tasks://stats", "tasks://kinds"
TASK, OUTPUT = "task://{task_id}", "task://{task_id}/output"
URI = re.compile(rf"task://({FULL_ID.pattern})(/output)?")
LIST = "tasks://"  # no resource, but the list of them, among the URIs that somebody listens to
ROWS = 20
SUGGESTED = 100  # the protocol's limit
COALESCE_SECONDS = 0.1  # changes that come together are told once

STATIC = (
    (RECENT, "Recent tasks", f"The newest {ROWS} tasks and counts of each status."),
    (FAILED, "Failed tasks", f"The newest {ROWS} failed tasks."),
    (STATS, "Statistics", "Counts, durations, workers, health."),
    (KINDS, "Kinds", "What can be run here, and what each kind takes."),
)
TEMPLATES = (
    (TASK, "A task", "Everything about one task, with its history.", "application/json"),
    (OUTPUT, "A task's output", "The end of what a command wrote.", "text/plain"),
)

log = logging.getLogger(__name__)


class Resources:
    """`run` tells subscribers; the other methods answer requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus)
        self._listeners: Counter[str] = Counter()  # 2026-07-28: how many streams listen to a URI
        self._sessions: dict[str, ServerSession] = {}  # 2025-11-25: who subscribed to it (one connection on stdio)
        self._lister: ServerSession | None = None  # 2025-11-25: who has asked for the list
        self._listed: Sequence[str] = ()  # the tasks that were in it
        self._seen: dict[str, Looks] = {}  # what a subscribed task looked like when it was last told
        self._pending: set[str] = set()
        self._look = False
        self._bell = anyio.Event()

    async def list(self, ctx: Ctx, params: mt.PaginatedRequestParams | None) -> mt.ListResourcesResult:
        """The static ones and the newest tasks; the client is told when others take their place."""
        tasks = await self._newest()
        if ctx.session.can_send_request:
            self._lister = ctx.session
            self._listed = [task.id for task in tasks]
        static = [
            mt.Resource(uri=uri, name=title, title=title, description=text, mime_type="application/json")
            for uri, title, text in STATIC
        ]
        pages = [apps.RESOURCE] if BOARD in self._service.toolsets else []
        return mt.ListResourcesResult(resources=static + pages + [_listed(task) for task in tasks])

    async def templates(self, ctx: Ctx, params: mt.PaginatedRequestParams | None) -> mt.ListResourceTemplatesResult:
        templates = [
            mt.ResourceTemplate(uri_template=uri, name=title, title=title, description=text, mime_type=mime_type)
            for uri, title, text, mime_type in TEMPLATES
        ]
        return mt.ListResourceTemplatesResult(resource_templates=templates)

    async def read(self, ctx: Ctx, params: mt.ReadResourceRequestParams) -> mt.ReadResourceResult:
        uri = str(params.uri)
        if uri == apps.RESOURCE.uri and BOARD in self._service.toolsets:
            return mt.ReadResourceResult(contents=[apps.contents()])
        try:
            mime_type, text = await self._content(uri)
        except NotFound:
            raise _missing(ctx, uri) from None
        contents = mt.TextResourceContents(uri=uri, mime_type=mime_type, text=clean_text(text))
        return mt.ReadResourceResult(contents=[contents])

    async def complete(self, ctx: Ctx, params: mt.CompleteRequestParams) -> mt.CompleteResult:
        found: list[str] = []
        if isinstance(params.ref, mt.ResourceTemplateReference) and params.argument.name == "task_id":
            found = await self._service.queries.suggest_ids(params.argument.value)
        values = found[:SUGGESTED]
        return mt.CompleteResult(completion=mt.Completion(values=values, total=None, has_more=len(found) > SUGGESTED))

    async def subscribe(self, ctx: Ctx, params: mt.SubscribeRequestParams) -> mt.EmptyResult:
        uri = str(params.uri)
        if uri not in (RECENT, FAILED, STATS, KINDS) and not URI.fullmatch(uri):
            raise _missing(ctx, uri)
        self._sessions[uri] = ctx.session
        await self._remember([uri])
        return mt.EmptyResult()

    async def unsubscribe(self, ctx: Ctx, params: mt.UnsubscribeRequestParams) -> mt.EmptyResult:
        self._sessions.pop(str(params.uri), None)
        self._forget()
        return mt.EmptyResult()

    async def listen(self, ctx: Ctx, params: mt.SubscriptionsListenRequestParams) -> mt.SubscriptionsListenResult:
        wanted = [str(uri) for uri in params.notifications.resource_subscriptions or ()]
        if params.notifications.resources_list_changed:
            wanted.append(LIST)
            if LIST not in self._wanted():  # else a change that is about to be told would be taken for known
                self._listed = [task.id for task in await self._newest()]
        self._listeners.update(wanted)
        try:
            await self._remember(wanted)
            return await self._listen(ctx, params)
        finally:
            self._listeners.subtract(wanted)
            self._listeners += Counter()  # forget those at zero
            self._forget()

    async def run(self) -> None:
        """Tell subscribers what changed, in this process or in another; ends by cancellation."""
        with self._service.store.listening(self._heard):
            while True:
                await self._bell.wait()
                await anyio.sleep(COALESCE_SECONDS)
                self._bell = anyio.Event()
                if self._look:
                    self._look = False
                    try:
                        await self._find_foreign()
                    except StoreError as error:
                        log.warning("could not see what another server changed: %s", error)
                pending, self._pending = self._pending, set()
                if LIST in pending:
                    pending.remove(LIST)
                    await self._tell_of_list()
                for uri in sorted(pending):
                    await self._tell(uri)

    # Telling.

    def _heard(self, changes: Sequence[Change]) -> None:
        wanted = self._wanted()
        if not wanted:
            return
        for task_id, task in changes:
            self._touch(task_id, task, wanted)
        self._look = self._look or not changes
        if self._pending or self._look:
            self._bell.set()

    def _touch(self, task_id: str, task: Task | None, wanted: Set[str]) -> None:
        self._pending |= {RECENT, FAILED, STATS} & wanted  # each of them shows counts
        if task is None or task.version == 1:
            self._pending |= {LIST} & wanted
        if own := {f"task://{task_id}", f"task://{task_id}/output"} & wanted:
            self._pending |= own
            self._seen[task_id] = _looks(task)

    async def _find_foreign(self) -> None:
        """Another process changed something: which of the subscribed tasks look other than when they were last told?"""
        wanted = self._wanted()
        self._pending |= {RECENT, FAILED, STATS, LIST} & wanted
        for task_id, task in (await self._stored(wanted)).items():
            if self._seen.get(task_id) != _looks(task):
                self._touch(task_id, task, wanted)

    async def _remember(self, uris: Collection[str]) -> None:
        """Note how the tasks behind new subscriptions look, so that only what changes from now on is told."""
        for task_id, task in (await self._stored(uris)).items():
            self._seen.setdefault(task_id, _looks(task))

    def _forget(self) -> None:
        kept = _task_ids(self._wanted())
        self._seen = {task_id: looks for task_id, looks in self._seen.items() if task_id in kept}

    async def _stored(self, uris: Collection[str]) -> dict[str, Task | None]:
        ids = sorted(_task_ids(uris))
        found = {task.id: task for task in await self._service.queries.get_many(ids)} if ids else {}
        return {task_id: found.get(task_id) for task_id in ids}

    def _wanted(self) -> Set[str]:
        return self._listeners.keys() | self._sessions.keys() | ({LIST} if self._lister else set())

    async def _newest(self) -> Sequence[Task]:
        return (await self._service.queries.page(Filters(), ROWS, None)).tasks

    async def _tell_of_list(self) -> None:
        try:
            newest = [task.id for task in await self._newest()]
        except StoreError as error:
            log.warning("could not see which tasks are listed: %s", error)
            return
        if newest == self._listed:
            return
        self._listed = newest
        await self._bus.publish(ResourcesListChanged())
        if self._lister is not None:
            try:
                await self._lister.send_resource_list_changed()
            except Exception:  # the connection is going away: nobody to tell any more
                log.debug("could not tell of the list", exc_info=True)
                self._lister = None

    async def _tell(self, uri: str) -> None:
        await self._bus.publish(ResourceUpdated(uri=uri))
        if session := self._sessions.get(uri):
            try:
                await session.send_resource_updated(uri)
            except Exception:  # the connection is going away: nobody to tell any more
                log.debug("could not tell of %s", uri, exc_info=True)
                self._sessions.pop(uri, None)

    # Reading.

    async def _content(self, uri: str) -> tuple[str, str]:
        service = self._service
        if uri == STATS:
            return "application/json", dumps((await stats_reply(service)).facts)
        if uri == KINDS:
            return "application/json", dumps(
                {"kinds": [_kind(name, service.kinds[name]) for name in sorted(service.kinds)]}
            )
        if uri in (RECENT, FAILED):
            filters = Filters(status=Status.FAILED if uri == FAILED else None)
            page = await service.queries.page(filters, ROWS, None)
            return "application/json", dumps(list_reply(page, None, await service.view()).facts)
        match = URI.fullmatch(uri)
        if match is None:
            raise NotFound(f"No resource {shown(uri)}.")
        task = await service.queries.get(match[1])
        folder = output.attempt_folder(service.output_folder, task.id, task.attempt)
        if match[2]:
            end = await service.queries.attempt(task, task.attempt)
            part = await anyio.to_thread.run_sync(output.read, folder)
            return "text/plain", output_reply(task, task.attempt, part, None, end).text
        history = await service.queries.history(task)
        view = await service.view([task])
        return "application/json", dumps(full_reply(task, service.shown(task), history, view, None).facts)


def _listed(task: Task) -> mt.Resource:
    name = visible(task.name) if task.name else task.id
    text = f"{task.kind}, {task.status}"
    changed = mt.Annotations(last_modified=iso(task.updated_at))
    uri = f"task://{task.id}"
    return mt.Resource(
        uri=uri, name=name, title=name, description=text, mime_type="application/json", annotations=changed
    )


def _kind(name: str, kind: Kind) -> Facts:
    """What a kind does and takes. `isolated`: in a process of its own, which can be ended at any moment."""
    return present(
        name=name,
        description=kind.description or None,
        max_attempts=kind.max_attempts,
        isolated=not kind.in_process,
        payload_schema=kind.payload_schema(),
    )


def _looks(task: Task | None) -> Looks:
    return (task.version, task.updated_at) if task is not None else None


def _task_ids(uris: Collection[str]) -> set[str]:
    return {match[1] for uri in uris if (match := URI.fullmatch(uri))}


def _missing(ctx: Ctx, uri: str) -> MCPError:
    code = mt.INVALID_PARAMS if ctx.protocol_version >= "2026-07-28" else -32002
    return MCPError(code, f"Resource not found: {shown(uri)}", {"uri": uri})
