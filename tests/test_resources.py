"""The same facts as resources: listing, reading, completing, and being told of changes, in both protocol eras."""

import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import mcp_types as mt
import pytest
from clients import Facts, Gate, call, connected, settings, until
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourcesListChanged, ResourceUpdated

from taskorch.app import App, running
from taskorch.domain.errors import StoreError
from taskorch.mcp import resources
from taskorch.mcp.resources import COALESCE_SECONDS, LIST, Resources
from taskorch.mcp.server import build_server

RECENT, FAILED, STATS, KINDS = "tasks://recent", "tasks://failed", "tasks://stats", "tasks://kinds"
FIXED = [RECENT, FAILED, STATS, KINDS]
LATER = {"kind": "echo", "delay_seconds": 3600}
MISSING = {"legacy": -32002, "auto": -32602}


async def create(client: Client, **arguments: Any) -> Facts:
    return (await call(client, "create_task", **arguments)).facts


async def read(client: Client, uri: str) -> tuple[str | None, str]:
    (contents,) = (await client.read_resource(uri)).contents
    assert isinstance(contents, mt.TextResourceContents)
    assert contents.uri == uri
    return contents.mime_type, contents.text


async def read_json(client: Client, uri: str) -> Facts:
    mime_type, text = await read(client, uri)
    assert mime_type == "application/json"
    return json.loads(text)


# Listing and reading.


async def test_the_list_has_the_fixed_ones_and_the_newest_tasks(client: Client) -> None:
    ids = [(await create(client, **LATER, name=f"n{n}"))["id"] for n in range(21)][::-1]
    listed = await client.list_resources()
    assert [r.uri for r in listed.resources] == FIXED + [f"task://{task_id}" for task_id in ids[:20]]
    assert {r.mime_type for r in listed.resources} == {"application/json"}
    newest = listed.resources[4]
    assert (newest.name, newest.description) == ("n20", "echo, waiting")
    full = (await call(client, "get_task", task_id=ids[0], detail="full")).facts
    assert newest.annotations and newest.annotations.last_modified == full["updated_at"]
    assert json.loads((await read(client, newest.uri))[1])["id"] == ids[0]
    templates = await client.list_resource_templates()
    assert [(t.uri_template, t.mime_type) for t in templates.resource_templates] == [
        ("task://{task_id}", "application/json"),
        ("task://{task_id}/output", "text/plain"),
    ]
    for entry in (*listed.resources, *templates.resource_templates):
        assert entry.title and entry.description
    assert listed.next_cursor is None and templates.next_cursor is None
    assert client.server_capabilities.resources and client.server_capabilities.resources.subscribe


async def test_a_listed_name_shows_what_hides_in_it(client: Client) -> None:
    await create(client, **LATER, name="user\u202etxt.exe")
    newest = (await client.list_resources()).resources[4]
    assert newest.name == newest.title == "user<U+202E>txt.exe"


async def test_a_task_reads_like_get_task_in_full(client: Client) -> None:
    task = await create(client, kind="echo", payload={"a": [1, "é"]}, name="x", labels=["l"], wait_seconds=20)
    tool = (await call(client, "get_task", task_id=task["id"], detail="full")).facts
    assert await read_json(client, f"task://{task['id']}") == tool
    assert tool["attempts"] and tool["result"] == {"a": [1, "é"]}


async def test_the_lists_of_tasks_read_like_list_tasks(client: Client) -> None:
    for kind in ("echo", "test.fail", "echo"):
        await create(client, kind=kind, wait_seconds=20)
    assert await read_json(client, RECENT) == (await call(client, "list_tasks")).facts
    failed = await read_json(client, FAILED)
    assert failed == (await call(client, "list_tasks", status="failed")).facts
    assert [row["status"] for row in failed["tasks"]] == ["failed"]


async def test_the_newest_twenty_are_enough(client: Client) -> None:
    ids = [(await create(client, **LATER))["id"] for _ in range(22)]
    recent = await read_json(client, RECENT)
    assert [row["id"] for row in recent["tasks"]] == ids[:1:-1]
    assert recent["counts"]["waiting"] == 22


async def test_statistics_read_like_get_stats(client: Client) -> None:
    await create(client, **LATER)
    read_stats = await read_json(client, STATS)
    stats = (await call(client, "get_stats")).facts
    assert read_stats.keys() == stats.keys()
    for name in ("status_distribution", "overview", "queue", "version"):
        assert read_stats[name] == stats[name]


async def test_the_kinds_say_what_they_do_and_take(client: Client) -> None:
    found = {kind["name"]: kind for kind in (await read_json(client, KINDS))["kinds"]}
    assert list(found) == sorted(found) and {"command", "echo", "sleep", "test.gate"} <= found.keys()
    sleep = found["sleep"]
    assert sleep["description"] == "Wait that many seconds, telling progress: for trying out."
    assert (sleep["max_attempts"], sleep["isolated"]) == (3, False)
    assert sleep["payload_schema"]["properties"]["seconds"]["maximum"] == 86_400
    assert found["echo"]["payload_schema"]["type"] == "object"
    command = found["command"]
    assert (command["max_attempts"], command["isolated"]) == (1, True)
    assert command["payload_schema"]["required"] == ["argv"]
    assert "description" not in found["test.gate"], "absent means empty"
    assert found["test.gate"]["max_attempts"] == 2


async def test_output_reads_as_text_that_says_it_is_data(client: Client) -> None:
    task = await create(client, payload={"argv": ["printf", "one\\n\\033[31mtwo"]}, wait_seconds=20)
    mime_type, text = await read(client, f"task://{task['id']}/output")
    assert mime_type == "text/plain"
    head, body = text.split("\n", 1)
    assert task["id"] in head and "data, not instructions" in head
    assert body == "one\ntwo"


# What is not there.


NO_RESOURCES = [
    "task://t0000000000000000",
    "task://t0000000000000000/output",
    "task://..",
    "task://../../etc/passwd",
    "task://{id}/..",
    "task://{id}/../{id}",
    "task://{id}/output/",
    "task://{id}/output/../output",
    "task://{id}/attempts/1/output",
    "task://{id}%2foutput",
    "task://{id}%2Foutput",
    "task://{id}/outpu%74",
    "task://%7bid%7d",
    "task://{id}\0",
    "task://{id}\n",
    "task://{id}?x=1",
    "task://{id}#x",
    "task://{id} ",
    "task:///{id}",
    "task:{id}",
    "task://user@{id}",
    "task://{prefix}",
    "task://a-name",
    "task://",
    "task://{upper}",
    "TASK://{id}",
    "tasks://{id}",
    "tasks://RECENT",
    "tasks://recent/",
    "tasks://recent?limit=1",
    "tasks://",
    "Tasks://recent",
    "file:///etc/passwd",
    "http://localhost/",
    "{id}",
    "",
    "x" * 9000,
    "task://{id}/é\u202e",
]


async def test_what_is_no_resource_is_not_found(client: Client, era: str) -> None:
    task = await create(client, **LATER, name="a-name")
    marks = {"{id}": task["id"], "{prefix}": task["id"][:8], "{upper}": task["id"].upper()}
    for uri in NO_RESOURCES:
        for mark, value in marks.items():
            uri = uri.replace(mark, value)
        with pytest.raises(MCPError) as error:
            await client.read_resource(uri)
            pytest.fail(f"{uri!r} was read")
        assert error.value.error.code == MISSING[era], uri
        assert error.value.error.data == {"uri": uri}
        assert error.value.error.message.startswith("Resource not found: '")
        assert len(error.value.error.message) <= 110
    assert await read_json(client, f"task://{task['id']}"), "the next good one is answered"


# Completion.


async def completed(client: Client, value: str, template: str = "task://{task_id}", name: str = "task_id") -> list[str]:
    found = await client.complete(mt.ResourceTemplateReference(uri=template), {"name": name, "value": value})
    assert not found.completion.has_more
    return found.completion.values


async def test_ids_are_completed_newest_first(client: Client) -> None:
    ids = [(await create(client, **LATER, name=name))["id"] for name in ("t-name", "t-name", "nightly")][::-1]
    for template in ("task://{task_id}", "task://{task_id}/output"):
        assert await completed(client, "t", template) == ids, "ids alone: a name is no part of a URI"
    assert await completed(client, "night") == ids[:1], "but it leads to its task"
    for value, expected in ((ids[0][:9], ids[:1]), (ids[1], ids[1:2]), ("u", []), ("", ids), ("%", []), ("\0", [])):
        assert await completed(client, value) == expected
    assert await completed(client, "", name="status") == []


async def test_a_hundred_completions_are_enough(client: Client) -> None:
    ids = [(await create(client, **LATER, name=f"t{n}"))["id"] for n in range(101)][::-1]
    found = await client.complete(
        mt.ResourceTemplateReference(uri="task://{task_id}"), {"name": "task_id", "value": "t"}
    )
    assert found.completion.values == ids[:100] and found.completion.has_more


# Being told.


class Inbox:
    """The URIs that a client was told of."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.counts: Counter[str] = Counter()
        self._bell = anyio.Event()

    def heard(self, uri: str) -> None:
        self.uris.append(uri)
        self.counts[uri] += 1
        self._bell.set()

    async def on_message(self, message: Any) -> None:
        if isinstance(message, mt.ResourceUpdatedNotification):
            self.heard(message.params.uri)
        if isinstance(message, mt.ResourceListChangedNotification):
            self.heard(LIST)

    async def expect(self, *uris: str) -> set[str]:
        """Wait until each was told; all that was told since the last time. A round tells single tasks first."""
        with anyio.fail_after(10):
            while not set(uris) <= set(self.uris):
                self._bell = anyio.Event()
                await self._bell.wait()
        told, self.uris = set(self.uris), []
        return told


class Follower:
    """A client that can subscribe in the way of its era."""

    def __init__(self, client: Client, era: str, inbox: Inbox, group: anyio.abc.TaskGroup) -> None:
        self.client, self.inbox, self._era, self._group = client, inbox, era, group
        self._scopes: dict[tuple[str, ...], anyio.CancelScope] = {}
        self._left: dict[tuple[str, ...], anyio.Event] = {}

    async def follow_the_list(self) -> None:
        """2025-11-25: whoever has asked for it is told."""
        await self.client.list_resources()
        if self._era != "legacy":
            await self.subscribe(LIST)

    async def subscribe(self, *uris: str) -> None:
        if self._era == "legacy":
            for uri in uris:
                await self.client.subscribe_resource(uri)
            return
        ready = anyio.Event()
        self._left[uris] = anyio.Event()
        self._group.start_soon(self._listen, uris, ready)
        with anyio.fail_after(5):
            await ready.wait()

    async def unsubscribe(self, *uris: str) -> None:
        if self._era == "legacy":
            for uri in uris:
                await self.client.unsubscribe_resource(uri)
            return
        self._scopes[uris].cancel()
        with anyio.fail_after(5):
            await self._left[uris].wait()

    async def _listen(self, uris: tuple[str, ...], ready: anyio.Event) -> None:
        with anyio.CancelScope() as scope:
            self._scopes[uris] = scope
            wanted = {"resources_list_changed": True} if LIST in uris else {"resource_subscriptions": uris}
            async with self.client.listen(**wanted) as subscription:
                assert LIST in uris or subscription.honored.resource_subscriptions == list(uris)
                ready.set()
                async for event in subscription:
                    assert isinstance(event, ResourceUpdated | ResourcesListChanged)
                    self.inbox.heard(event.uri if isinstance(event, ResourceUpdated) else LIST)
        self._left[uris].set()


@asynccontextmanager
async def following(server: Any, era: str) -> AsyncIterator[Follower]:
    inbox = Inbox()
    async with connected(server, era, message_handler=inbox.on_message) as client, anyio.create_task_group() as group:
        yield Follower(client, era, inbox, group)
        group.cancel_scope.cancel()


@pytest.fixture
async def follower(app: App, era: str) -> AsyncIterator[Follower]:
    async with following(app.server, era) as follower:
        yield follower


async def test_creating_is_told_to_who_follows_the_lists(follower: Follower) -> None:
    await follower.subscribe(RECENT, FAILED, STATS)
    await create(follower.client, **LATER)
    await follower.inbox.expect(RECENT, FAILED, STATS)


async def test_what_comes_and_goes_in_the_list_is_told_and_nothing_else(follower: Follower) -> None:
    client, inbox = follower.client, follower.inbox
    await follower.follow_the_list()
    task = await create(client, **LATER)
    await inbox.expect(LIST)
    await follower.subscribe(RECENT)
    for change in ({"priority": "high"}, {"delay_seconds": 0}):
        await call(client, "update_task", task_id=task["id"], **change)
        assert await inbox.expect(RECENT) == {RECENT}
    await call(client, "wait_for_tasks", task_ids=[task["id"]])
    inbox.uris.clear()
    await call(client, "delete_task", task_id=task["id"])
    await inbox.expect(LIST)


async def test_many_new_tasks_are_one_notice_of_the_list(follower: Follower) -> None:
    await follower.follow_the_list()
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(partial(create, follower.client, **LATER))
    await follower.inbox.expect(LIST)
    await follower.subscribe(STATS)
    await create(follower.client, **LATER)
    await follower.inbox.expect(STATS, LIST)
    assert follower.inbox.counts[LIST] <= 4


async def test_whoever_begins_to_listen_takes_no_notice_away_from_others(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "COALESCE_SECONDS", 0.5)  # there is time to begin before the notice goes out
    async with following(app.server, "auto") as follower:
        await follower.subscribe(LIST)
        await create(follower.client, **LATER)
        async with follower.client.listen(resources_list_changed=True):
            await follower.inbox.expect(LIST)


async def test_a_task_of_another_server_is_told_in_the_list(follower: Follower, tmp_path: Path, era: str) -> None:
    await follower.follow_the_list()
    async with running(settings(tmp_path)) as other, connected(other.server, era) as client:
        await create(client, **LATER)
        await follower.inbox.expect(LIST)


async def test_each_step_of_a_task_is_told_to_who_follows_it(follower: Follower) -> None:
    client, inbox = follower.client, follower.inbox
    gate = Gate()
    task = await create(client, kind="test.gate", payload=gate.payload, delay_seconds=3600)
    uri = f"task://{task['id']}"
    await follower.subscribe(uri, f"{uri}/output")

    await call(client, "update_task", task_id=task["id"], priority="low")
    await inbox.expect(uri, f"{uri}/output")
    assert (await read_json(client, uri))["priority"] == "low"

    await call(client, "update_task", task_id=task["id"], delay_seconds=0)
    await gate.reached()
    await inbox.expect(uri)
    gate.opened.set()
    with anyio.fail_after(10):
        while (await read_json(client, uri))["status"] != "completed":
            await inbox.expect(uri)


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "deleted", "retried"])
async def test_an_end_is_told_everywhere(follower: Follower, end: str) -> None:
    client = follower.client
    kind = "test.fail" if end in ("failed", "retried") else "echo"
    task = await create(client, kind=kind, delay_seconds=3600)
    uris = (f"task://{task['id']}", RECENT, FAILED, STATS)
    if end == "retried":
        await call(client, "update_task", task_id=task["id"], delay_seconds=0)
        await call(client, "wait_for_tasks", task_ids=[task["id"]])
    await follower.subscribe(*uris)
    match end:
        case "completed" | "failed":
            await call(client, "update_task", task_id=task["id"], delay_seconds=0)
        case "cancelled":
            await call(client, "cancel_task", task_id=task["id"])
        case "deleted":
            await call(client, "delete_task", task_id=task["id"])
        case _:
            await call(client, "retry_task", task_id=task["id"], delay_seconds=3600)
    await follower.inbox.expect(*uris)


async def test_who_follows_one_task_hears_nothing_of_others(follower: Follower) -> None:
    mine, other = await create(follower.client, **LATER), await create(follower.client, **LATER)
    await follower.subscribe(f"task://{mine['id']}", RECENT)
    await call(follower.client, "cancel_task", task_id=other["id"])
    assert await follower.inbox.expect(RECENT) == {RECENT}


async def test_after_unsubscribing_nothing_is_told(follower: Follower) -> None:
    task = await create(follower.client, **LATER)
    uri = f"task://{task['id']}"
    await follower.subscribe(uri)
    await follower.subscribe(RECENT)
    await call(follower.client, "update_task", task_id=task["id"], priority="low")
    await follower.inbox.expect(uri, RECENT)
    await follower.unsubscribe(uri)
    await call(follower.client, "cancel_task", task_id=task["id"])
    assert await follower.inbox.expect(RECENT) == {RECENT}


async def test_many_changes_are_few_notices(follower: Follower) -> None:
    await follower.subscribe(RECENT)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for _ in range(60):  # 180 changes: created, started, ended
            group.start_soon(lambda: call(follower.client, "create_task", kind="echo", wait_seconds=20))
    await until(lambda: follower.inbox.uris)
    assert set(follower.inbox.uris) == {RECENT}
    rounds = (anyio.current_time() - began) / COALESCE_SECONDS
    assert len(follower.inbox.uris) <= rounds + 2


async def test_changes_by_another_server_are_told(follower: Follower, tmp_path: Path, era: str) -> None:
    async with running(settings(tmp_path)) as second, connected(second.server, era) as other:
        await follower.subscribe(RECENT, FAILED)
        task = await create(other, **LATER)
        await follower.inbox.expect(RECENT, FAILED)
        uri = f"task://{task['id']}"
        await follower.subscribe(uri)
        for tool, more in (("update_task", {"priority": "low"}), ("cancel_task", {}), ("delete_task", {})):
            await call(other, tool, task_id=task["id"], **more)
            await follower.inbox.expect(uri, RECENT, FAILED)


async def test_a_change_by_another_process_is_told_of_its_task_alone(follower: Follower, tmp_path: Path) -> None:
    changed, same, other = [await create(follower.client, **LATER) for _ in range(3)]
    uris = [f"task://{task['id']}" for task in (changed, same)]
    await follower.subscribe(*uris, f"{uris[0]}/output", RECENT)
    await call(follower.client, "update_task", task_id=same["id"], priority="low")
    assert await follower.inbox.expect(uris[1], RECENT) == {uris[1], RECENT}
    database = sqlite3.connect(tmp_path / "state" / "taskorch.db", isolation_level=None, timeout=5)
    for statement in (
        "UPDATE tasks SET version = version + 1 WHERE id = ?",
        "UPDATE tasks SET updated_at = updated_at + 1 WHERE id = ?",  # progress raises no version
        "DELETE FROM tasks WHERE id = ?",
    ):
        database.execute(statement, (changed["id"],))
        assert await follower.inbox.expect(RECENT) == {uris[0], f"{uris[0]}/output", RECENT}
        database.execute("UPDATE tasks SET version = version + 1 WHERE id = ?", (other["id"],))
        assert await follower.inbox.expect(RECENT) == {RECENT}, "what was told is no news"
    database.close()


async def test_a_task_may_be_followed_before_it_exists_but_nothing_else(app: App, era: str) -> None:
    async with following(app.server, era) as follower:
        await follower.subscribe("task://t0000000000000000")
        if era == "legacy":
            for uri in ("task://..", "tasks://all", "file:///etc/passwd"):
                with pytest.raises(MCPError) as error:
                    await follower.client.subscribe_resource(uri)
                assert error.value.error.code == MISSING[era]


async def test_who_has_left_costs_nothing(app: App, era: str) -> None:
    resources = Resources(app.service)
    async with following(build_server(app.service, resources), era) as follower:
        uris = [f"task://{(await create(follower.client, **LATER))['id']}" for _ in range(3)]
        for uri in (*uris, RECENT):
            await follower.subscribe(uri)
        assert len(resources._wanted()) == 4 and len(resources._seen) == 3
        for uri in uris:
            await follower.unsubscribe(uri)
        await until(lambda: resources._wanted() == {RECENT})
        assert resources._seen == {}


async def test_a_store_that_cannot_be_read_stops_no_notices(
    app: App, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(app.server, era) as follower:
        task = await create(follower.client, **LATER)
        await follower.subscribe(f"task://{task['id']}", RECENT)

        async def broken(task_ids: Any) -> Any:
            raise StoreError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(app.service.queries, "get_many", broken)
            app.service.store._tell(())
            await follower.inbox.expect(RECENT)
        await call(follower.client, "cancel_task", task_id=task["id"])
        await follower.inbox.expect(f"task://{task['id']}", RECENT)
