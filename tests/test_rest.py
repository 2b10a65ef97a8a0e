"""The REST API, in process: the same store and rules as for models, in an envelope."""

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from clients import Gate, size
from rests import URL, WITH_TOKEN, closed, guarded

from taskorch import engine
from taskorch.calls.service import CORE
from taskorch.domain.errors import NotFound, StoreError
from taskorch.http.envelope import failure, success
from taskorch.http.operations import OPERATIONS
from taskorch.http.words import REQUESTS, told
from taskorch.mcp.tools import TOOLS
from taskorch.storage import listing
from taskorch.storage.queries import Queries
from taskorch.storage.store import Store

Facts = dict[str, Any]
LATER = {"delay_seconds": 3600}
NOBODY = "t0000000000000000"


class Rest:
    """A client that checks the envelope of every answer on the way."""

    def __init__(self, http: httpx2.AsyncClient, store: Store) -> None:
        self._http = http
        self._store = store

    async def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with anyio.fail_after(30):
            response = await self._http.request(method, path, **options)
        if method != "HEAD" and not path.endswith("openapi.json"):
            self.check(response)
        return response

    def check(self, response: httpx2.Response) -> None:
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        body = response.json()
        assert body.keys() == {"success", "data", "error", "timestamp"}
        assert body["success"] is (response.status_code < 400) is (body["error"] is None) is (body["data"] is not None)
        if body["error"] is not None:
            assert body["error"].keys() == {"code", "message", "details"}
            assert body["error"]["message"] and "Traceback" not in response.text
            assert not any(word in body["error"]["message"] for word in ("list_tasks", "get_task", "update_task"))

    async def data(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        response = await self.ask(method, path, **options)
        assert response.status_code == status, response.text
        return response.json()["data"]

    async def refused(self, method: str, path: str, status: int, code: str, **options: Any) -> str:
        response = await self.ask(method, path, **options)
        assert (response.status_code, response.json()["error"] and response.json()["error"]["code"]) == (status, code)
        return response.json()["error"]["message"]

    async def create(self, **wish: Any) -> Facts:
        return await self.data("POST", "/api/tasks", 201, json={"kind": "echo"} | wish)

    async def names(self, query: str) -> list[str]:
        return [task["name"] for task in (await self.data("GET", f"/api/tasks?{query}"))["tasks"]]

    async def until(self, task: Facts, status: str) -> Facts:
        changed = anyio.Event()
        with anyio.fail_after(10), self._store.listening(lambda _: changed.set()):
            while (now := await self.data("GET", f"/api/tasks/{task['id']}"))["status"] != status:
                await changed.wait()
                changed = anyio.Event()
        return now


@pytest.fixture
def given() -> Facts:
    """Settings of the server under test."""
    return {}


@pytest.fixture
async def rest(tmp_path: Path, given: Facts) -> AsyncIterator[Rest]:
    async with engine.running(closed(tmp_path, **given), tmp_path) as running:
        transport = httpx2.ASGITransport(app=guarded(running.service), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url=URL, headers=WITH_TOKEN) as http:
            yield Rest(http, running.service.store)


# One task.


async def test_a_new_task_is_told_where_it_is_and_is_there(rest: Rest) -> None:
    response = await rest.ask("POST", "/api/tasks", json={"kind": "echo", "payload": {"a": 1}, "name": "né", **LATER})
    task = response.json()["data"]
    assert response.status_code == 201
    assert response.headers["location"] == f"/api/tasks/{task['id']}"
    assert response.headers["etag"] == '"1"'
    assert (task["name"], task["status"], task["phase"], task["payload"]) == ("né", "waiting", "scheduled", {"a": 1})
    assert "next" not in task  # which is a call for a model
    for path in (response.headers["location"], f"/api/v1/tasks/{task['id']}", "/api/tasks/n%C3%A9"):
        assert await rest.data("GET", path) == task


async def test_names_payloads_and_results_are_answered_whole(rest: Rest) -> None:
    """What is cut for models is not cut here."""
    task = await rest.create(name="n" * 200, payload={"text": "x" * 200_000}, labels=["l" * 100], **LATER)
    (row,) = (await rest.data("GET", "/api/tasks"))["tasks"]
    assert task["name"] == row["name"] == "n" * 200
    assert task["payload"] == {"text": "x" * 200_000}
    assert row["labels"] == ["l" * 100]
    wide = await rest.create(name="ق" * 200, **LATER)
    assert wide["name"] == "ق" * 200, "a name has 200 characters, however many bytes"
    done = await rest.until(await rest.create(kind="test.value", payload={"value": "y" * 60_000}), "completed")
    assert done["result"] == "y" * 60_000


async def test_the_same_dedupe_key_gives_the_same_task(rest: Rest) -> None:
    wish = {"kind": "echo", "payload": {"a": 1}, "dedupe_key": "k", **LATER}
    first = await rest.create(**wish)
    again = await rest.ask("POST", "/api/tasks", json=wish)
    assert again.status_code == 200
    assert "location" not in again.headers
    assert again.json()["data"] == first | {"deduplicated": True}
    await rest.refused("POST", "/api/tasks", 409, "CONFLICT", json=wish | {"payload": {"a": 2}})


async def test_a_task_that_runs_ends_with_its_result(rest: Rest) -> None:
    task = await rest.until(await rest.create(payload={"a": [1, None, "ü"]}), "completed")
    assert task["result"] == {"a": [1, None, "ü"]}
    assert [one["outcome"] for one in task["attempts"]] == ["completed"]
    concise = await rest.data("GET", f"/api/tasks/{task['id']}?detail=concise")
    assert concise["result"] == task["result"]
    assert "attempts" not in concise


async def test_a_task_is_found_by_name_or_the_beginning_of_its_id(rest: Rest) -> None:
    task = await rest.create(name="one", **LATER)
    for reference in ("one", task["id"][:8], task["id"]):
        assert (await rest.data("GET", f"/api/tasks/{reference}"))["id"] == task["id"]
    await rest.create(name="one", **LATER)
    assert "several" in await rest.refused("GET", "/api/tasks/one", 400, "VALIDATION_ERROR")


async def test_who_asks_for_a_task_that_is_not_there_is_told_so(rest: Rest) -> None:
    for method, path in [("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry")]:
        body = {"json": {"priority": "low"}} if method == "PUT" else {}
        text = await rest.refused(method, f"/api/tasks/{NOBODY}{path}", 404, "NOT_FOUND", **body)
        assert "GET /api/tasks" in text
    await rest.refused("GET", f"/api/tasks/{NOBODY}/output", 404, "NOT_FOUND")


async def test_an_edit_changes_what_it_names_and_nothing_else(rest: Rest) -> None:
    task = await rest.create(name="a", payload={"a": 1}, **LATER)
    response = await rest.ask("PUT", f"/api/tasks/{task['id']}", json={"priority": "high", "name": None})
    after = response.json()["data"]
    assert response.headers["etag"] == '"2"'
    assert after["events"][-1]["by"] == "the REST API"
    same = {name: value for name, value in task.items() if name not in ("priority", "version", "updated_at")}
    assert same.items() <= after.items()
    assert (after["priority"], after["version"]) == ("high", 2)


async def test_an_edit_of_a_version_that_has_passed_is_a_conflict(rest: Rest) -> None:
    path = f"/api/tasks/{(await rest.create(**LATER))['id']}"
    edit = {"priority": "low"}
    await rest.data("PUT", path, json=edit | {"expected_version": 1})
    await rest.refused("PUT", path, 409, "CONFLICT", json=edit | {"expected_version": 1})
    await rest.refused("PUT", path, 409, "CONFLICT", json=edit, headers={"If-Match": '"1"'})
    await rest.data("PUT", path, json=edit, headers={"If-Match": '"2"'})
    await rest.data("PUT", path, json=edit | {"expected_version": 3}, headers={"If-Match": '"3"'})
    assert (await rest.data("PUT", path, json=edit, headers={"If-Match": "*"}))["version"] == 5


@pytest.mark.parametrize("etag", ['W/"1"', "1", '"1", "2"', '"x"', "", '"' + "9" * 30 + '"', '"-1"', '"0"', '"2"'])
async def test_a_condition_that_is_not_understood_is_not_passed_over(rest: Rest, etag: str) -> None:
    path = f"/api/tasks/{(await rest.create(**LATER))['id']}"
    body = {"priority": "low", "expected_version": 1}
    for method, where, sent in (("PUT", path, {"json": body}), ("DELETE", path, {}), ("POST", f"{path}/cancel", {})):
        text = await rest.refused(method, where, 400, "VALIDATION_ERROR", headers={"If-Match": etag}, **sent)
        assert text.startswith("If-Match")
    assert (await rest.data("GET", path, headers={"If-Match": etag}))["version"] == 1


async def test_what_may_not_change_now_is_a_conflict(rest: Rest) -> None:
    gate = Gate()
    task = await rest.create(kind="test.gate", payload=gate.payload)
    await gate.reached()
    path = f"/api/tasks/{task['id']}"
    await rest.refused("PUT", path, 409, "CONFLICT", json={"name": "other"})
    await rest.refused("POST", f"{path}/retry", 409, "CONFLICT")
    gate.opened.set()
    await rest.until(task, "completed")
    await rest.refused("PUT", path, 409, "CONFLICT", json={"priority": "low"})
    await rest.refused("POST", f"{path}/retry", 409, "CONFLICT")


async def test_a_working_task_is_deleted_only_when_that_is_confirmed(rest: Rest) -> None:
    gate = Gate()
    task = await rest.create(kind="test.gate", payload=gate.payload)
    await gate.reached()
    path = f"/api/tasks/{task['id']}"
    for query in ("", "?confirm=false"):
        text = await rest.refused("DELETE", path + query, 409, "CONFLICT")
        assert f"DELETE {path} again with confirm=true" in text
    assert await rest.data("DELETE", f"{path}?confirm=true") == {"id": task["id"], "deleted": True}
    assert "deleted" in await rest.refused("GET", path, 404, "NOT_FOUND")


async def test_a_task_that_does_not_end_soon_is_deleted_when_it_does(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.calls.actions.DELETE_SECONDS", 0.05)
    gate = Gate()
    task = await rest.create(kind="test.stubborn", payload=gate.payload)
    await gate.reached()
    left = await rest.data("DELETE", f"/api/tasks/{task['id']}?confirm=true", 202)
    assert left == {"id": task["id"], "deleted": False, "phase": "cancelling"}
    gate.opened.set()


async def test_a_waiting_task_is_deleted_and_a_prefix_deletes_nothing(rest: Rest) -> None:
    task = await rest.create(**LATER)
    await rest.refused("DELETE", f"/api/tasks/{task['id'][:8]}", 404, "NOT_FOUND")
    assert (await rest.data("DELETE", f"/api/tasks/{task['id']}"))["deleted"]


async def test_cancelling_needs_no_body_and_may_have_one(rest: Rest) -> None:
    first, second = await rest.create(**LATER), await rest.create(**LATER)
    assert (await rest.data("POST", f"/api/tasks/{first['id']}/cancel"))["status"] == "cancelled"
    after = await rest.data("POST", f"/api/tasks/{second['id']}/cancel", json={"reason": "not today"})
    assert "not today" in after["error"]["message"]
    assert await rest.data("POST", f"/api/tasks/{second['id']}/cancel") == after  # an ended one is answered as it is


async def test_a_failed_task_can_be_retried(rest: Rest) -> None:
    task = await rest.until(await rest.create(kind="test.fail"), "failed")
    again = await rest.data("POST", f"/api/tasks/{task['id']}/retry", json=LATER)
    assert (again["status"], again["phase"]) == ("waiting", "scheduled")


@pytest.mark.parametrize("given", [{"allow_commands": "seq"}])
async def test_what_a_command_wrote_can_be_read_in_large_pieces(rest: Rest) -> None:
    task = await rest.until(await rest.create(kind="command", payload={"argv": ["seq", "20000"]}), "completed")
    path = f"/api/tasks/{task['id']}/output"
    last = await rest.data("GET", path)
    assert last["text"].endswith("19999\n20000\n")
    assert last["total_bytes"] - last["offset"] > 32_768
    first = await rest.data("GET", f"{path}?offset=0")
    assert first["text"].startswith("1\n2\n")
    assert len(first["text"]) > 32_768
    found = await rest.data("GET", f"{path}?grep=1999&attempt=1")
    assert found["text"].splitlines() == [str(n) for n in range(20001) if "1999" in str(n)]
    assert "no attempt 2" in await rest.refused("GET", f"{path}?attempt=2", 400, "VALIDATION_ERROR")
    await rest.refused("GET", f"{path}?offset=1&tail_bytes=5", 400, "VALIDATION_ERROR")


async def test_what_can_have_no_output_says_so(rest: Rest) -> None:
    task = await rest.create(**LATER)
    said = await rest.data("GET", f"/api/tasks/{task['id']}/output")
    assert said["text"] == ""
    assert f"GET /api/tasks/{task['id']}" in said["hint"]


# Lists.


@pytest.fixture
async def three(rest: Rest, given: Facts, tmp_path: Path) -> Rest:
    """With tasks a (low), b (high) and c (medium), in this order; b is a command in a folder."""
    (tmp_path / "pro_ject").mkdir()
    folder = str(tmp_path / "pro_ject")
    for wish in (
        {"name": "a", "priority": "low", "labels": ["x", "50% off"]},
        {"name": "b", "priority": "high", "kind": "command", "payload": {"argv": ["true"], "cwd": folder}},
        {"name": "c", "labels": ["y"], "payload": {"cwd": folder}},
    ):
        await rest.create(**wish, **LATER)
    return rest


LISTS = (
    ("", "cba"),
    ("sort_order=asc", "abc"),
    ("sort_by=name", "cba"),
    ("sort_by=priority", "bca"),
    ("sort_by=priority&sort_order=asc", "acb"),
    ("sort_by=status&sort_order=asc", "abc"),
    ("sort_by=updated_at&sort_order=asc", "abc"),
    ("priority=high", "b"),
    ("kind=echo", "ca"),
    ("kind=nothing", ""),
    ("label=x", "a"),
    ("tags=x", "a"),
    ("label=50%25%20off", "a"),
    ("text=50%25", "a"),
    ("text=%25", "a"),
    ("status=waiting", "cba"),
    ("status=completed", ""),
    ("created_after=2000-01-01T00:00:00Z", "cba"),
    ("created_before=2000-01-01T00:00:00%2B01:00", ""),
    ("work_directory=/pro_j", "b"),  # not that of another kind's payload
    ("work_directory=pro%25ject", ""),
    ("work_directory=pro-ject", ""),
    ("limit=1", "c"),
    ("limit=1&offset=2", "a"),
    ("offset=3", ""),
    ("limit=1000&offset=9007199254740992", ""),
    ("kind=echo&priority=low&label=x&sort_by=name", "a"),
)


@pytest.mark.parametrize("given", [{"allow_commands": "true"}])
async def test_a_list_has_what_fits_in_the_order_that_was_asked_for(three: Rest) -> None:
    for query, names in LISTS:
        assert await three.names(query) == list(names), query


@pytest.mark.parametrize("given", [{"allow_commands": "true"}])
async def test_a_page_says_how_many_there_are_and_whether_more_come(three: Rest) -> None:
    async def page(query: str) -> Facts:
        return (await three.data("GET", f"/api/tasks?{query}"))["pagination"]

    assert await page("") == {"total": 3, "limit": 100, "offset": 0, "has_more": False}
    assert await page("limit=2") == {"total": 3, "limit": 2, "offset": 0, "has_more": True}
    assert await page("limit=2&offset=1") == {"total": 3, "limit": 2, "offset": 1, "has_more": False}
    for query in ("kind=echo", "status=waiting&kind=echo", "text=/&kind=echo"):
        assert (await page(f"{query}&limit=1"))["total"] == (0 if "text" in query else 2)
    assert (await page("priority=high"))["total"] == (await page("priority=high&status=waiting"))["total"] == 1
    assert (await page("priority=high&status=failed"))["total"] == 0


@pytest.mark.parametrize("given", [{"allow_commands": "true"}])
async def test_a_total_that_is_not_of_all_says_so(three: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "EXACT_COUNTS", 2)
    counted = await three.data("GET", "/api/tasks?priority=low&status=waiting")  # from the table of counts
    assert counted["pagination"] == {"total": 1, "limit": 100, "offset": 0, "has_more": False}
    looked_at = await three.data("GET", "/api/tasks?kind=echo")
    assert looked_at["pagination"]["total_partial"] is True
    assert [task["name"] for task in looked_at["tasks"]] == ["c", "a"]  # the page itself leaves nothing out


@pytest.mark.parametrize(("order", "twice"), [("asc", False), ("desc", True)])
async def test_paging_misses_nothing_while_tasks_are_added(rest: Rest, order: str, twice: bool) -> None:
    first = [(await rest.create(**LATER))["id"] for _ in range(12)]
    seen: list[str] = []
    more = True
    while more:
        page = await rest.data("GET", f"/api/tasks?limit=5&offset={len(seen)}&sort_order={order}")
        seen += [task["id"] for task in page["tasks"]]
        more = page["pagination"]["has_more"]
        if len(seen) < 15:
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(partial(rest.create, **LATER))
    assert set(first) <= set(seen)
    assert (len(seen) > len(set(seen))) is twice  # newest first, what comes in between moves the rest down


async def test_a_blocked_task_says_in_a_list_what_it_waits_for(rest: Rest) -> None:
    parent = await rest.create(**LATER)
    await rest.create(name="child", depends_on=[parent["id"]])
    row = (await rest.data("GET", "/api/tasks"))["tasks"][0]
    assert row["waits_for"] == {"unfinished": 1, "of": 1, "tasks": [parent["id"]]}


QUERIES = (
    ("limt=3", "Did you mean 'limit'"),
    ("page=2", "Allowed: "),
    ("limit=1&limit=2", "given twice"),
    ("label=a&tags=b", "given twice"),
    ("limit=0", "at least 1"),
    ("limit=1001", "at most 1000"),
    ("limit=", "whole number"),
    ("limit=many", "whole number"),
    ("limit=NaN", "whole number"),
    ("limit=1.5", "whole number"),
    ("limit=99999999999999999999999999", "at most 1000"),
    ("offset=-1", "at least 0"),
    ("offset=9007199254740993", "at most"),
    ("sort_by=seq;DROP TABLE tasks", "'name'"),
    ("sort_by=id", "'created_at'"),
    ("sort_order=down", "'asc'"),
    ("status=done", "Did you mean 'completed'"),
    ("status=waiting,working", "one status"),
    ("status=all", "leave it out"),
    ("priority=urgent", "Did you mean 'high'"),
    ("created_after=yesterday", "not a time"),
    ("created_after=2026-01-01T00:00:00", "no time zone"),
    ("text=", "1 or more"),
    ("text=%00", "character"),
    ("label=%0A", "control character"),
    ("cursor=c5", "Unknown argument"),
    ("state=waiting", "Unknown argument"),
    ("created_after=2026-01-01T00:00:00+01:00", "not a time"),
    ("task_id=x", "Unknown argument"),
)


async def test_a_query_that_is_not_understood_is_refused(rest: Rest) -> None:
    for query, said in QUERIES:
        assert said in await rest.refused("GET", f"/api/tasks?{query}", 400, "VALIDATION_ERROR"), query


# Bodies.

DEEP = b'{"payload": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"


BODIES = (
    (b"", "empty"),
    (b" ", "not JSON"),
    (b"{", "not JSON"),
    (b"{'kind': 'echo'}", "not JSON"),
    (b'{"kind": "echo"} x', "not JSON"),
    (b"[]", "an array"),
    (b'[{"kind": "echo"}]', "an array"),
    (b'"echo"', "a string"),
    (b"null", "null"),
    (b"true", "true or false"),
    (b"17", "a number"),
    (b'{"kind": "echo", "payload": {"a": NaN}}', "NaN"),
    (b'{"kind": "echo", "payload": {"a": -Infinity}}', "-Infinity"),
    (b'{"kind": "echo", "payload": {"a": 1e999}}', "infinite"),
    (b'{"kind": "echo", "priority": "low", "priority": "high"}', "'priority' stands twice"),
    (b'{"kind": "echo", "payload": {"a": 1, "a": 1}}', "'a' stands twice"),
    (b'{"kind": "echo", "tags": ["a"], "labels": ["b"]}', "given twice"),
    (DEEP, "flatten"),
    (b'{"kind": "echo", "payload": ' + b'{"a":' * 40 + b"1" + b"}" * 41, "flatten"),
    (b'{"kind": "echo", "name": "\xff"}', "UTF-8"),
    (b'\xef\xbb\xbf{"kind": "echo"}', "not JSON"),
    ('{"kind": "echo"}'.encode("utf-16"), "UTF-8"),
    (b'{"kind": "echo", "payload": {"a": ' + b"9" * 5000 + b"}}", "not JSON"),
    (b'{"kind": "echo", "name": "a\\ud800"}', "character"),
    (b'{"kind": "echo", "name": "a\\u0000"}', "character"),
    (b'{"kind": "echo", "name": "a\\nb"}', "one line"),
    (b'{"kind": "echo", "max_attempts": 1e400}', "whole number"),
    (b'{"kind": "ecko"}', "Did you mean 'echo'"),
    (b'{"kind": "outside"}', "TASKORCH_TOOLSETS"),
    (b'{"payload": {"argv": ["true"]}, "kind": "command", "wait_seconds": 1}', "Unknown argument 'wait_seconds'"),
    (b"{}", "payload.argv is required"),
)


async def test_a_body_that_is_not_understood_stores_nothing(rest: Rest) -> None:
    headers = {"Content-Type": "application/json"}
    for body, said in BODIES:
        text = await rest.refused("POST", "/api/tasks", 400, "VALIDATION_ERROR", content=body, headers=headers)
        assert said in text, body[:80]
    assert await rest.names("") == []


VALUES: tuple[Facts, ...] = (
    *({"max_attempts": value} for value in ("3", True, 0, 101, 1.5, [3])),
    *({"timeout_seconds": value} for value in ("60", "5m", True, 0, 86_401)),
    *({"delay_seconds": value} for value in ("1h", -1, {}, 366 * 86_400 + 1)),
    *({"labels": value} for value in ("a", [1], [""], ["a"] * 33, {"a": 1})),
    *({"payload": value} for value in ('{"a": 1}', [], "a")),
    *({"priority": value} for value in (1, "urgent", ["high"])),
    *({"run_at": value} for value in (1_800_000_000, "tomorrow", "2027-01-01")),
    *({"name": value} for value in (1, "", "n" * 201, NOBODY)),
    {"depends_on": "a"},
    {"kind": ""},
    {"retry": {"on_exit": "75"}},
    {"schedule": {}},
    {"schedule": {"cron": "x"}},
    {"max_retries": 3},
    {"timeout_ms": 5000},
    {"run_at": "2027-01-01T00:00:00Z", "delay_seconds": 1},
    {"expires_at": "2001-01-01T00:00:00Z"},
)


async def test_a_value_of_another_type_or_size_is_refused(rest: Rest) -> None:
    """What models write, and tools understand, a program must not."""
    for wrong in VALUES:
        await rest.refused("POST", "/api/tasks", 400, "VALIDATION_ERROR", json={"kind": "echo"} | wrong)
    assert await rest.names("") == []


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "", "json", "a/json/b"],
)
async def test_only_json_is_read(rest: Rest, kind: str) -> None:
    task = await rest.create(**LATER)
    sent = {"content": b'{"kind": "echo"}', "headers": {"Content-Type": kind}}
    for method, path in (("POST", ""), ("PUT", f"/{task['id']}"), ("POST", f"/{task['id']}/cancel")):
        text = await rest.refused(method, f"/api/tasks{path}", 415, "UNSUPPORTED_MEDIA_TYPE", **sent)
        assert "application/json" in text
    assert (await rest.data("GET", f"/api/tasks/{task['id']}"))["version"] == 1


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; Charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_json_may_say_that_it_is_utf_8(rest: Rest, kind: str) -> None:
    sent = {"content": '{"kind": "echo", "name": "日本"}'.encode(), "headers": {"Content-Type": kind}}
    assert (await rest.data("POST", "/api/tasks", 201, **sent))["name"] == "日本"


@pytest.mark.parametrize("body", [{}, {"expected_version": 1}, {"name": None}, {"task_id": "x", "priority": "low"}])
async def test_an_edit_of_nothing_or_of_another_task_is_refused(rest: Rest, body: Facts) -> None:
    task = await rest.create(**LATER)
    await rest.refused("PUT", f"/api/tasks/{task['id']}", 400, "VALIDATION_ERROR", json=body)


async def test_what_has_no_query_is_refused_with_one(rest: Rest) -> None:
    await rest.refused("POST", "/api/tasks?priority=high", 400, "VALIDATION_ERROR", json={"kind": "echo"})
    for path in ("/health", "/api/statistics", "/api/openapi.json"):
        response = await rest.ask("GET", f"{path}?a=b")
        assert response.status_code == 400
    assert await rest.names("") == []


# Prompts.

PROMPT = {"work_directory": "/home/me/p", "prompt": "write tests", "priority": "high", "tags": ["a"]}


@pytest.mark.parametrize("given", [{"toolsets": "core,worker"}])
async def test_a_prompt_in_a_folder_becomes_work_for_an_outside_worker(rest: Rest) -> None:
    task = await rest.data("POST", "/api/v1/tasks", 201, json=PROMPT | {"metadata": {"ticket": 7}})
    assert (task["kind"], task["priority"], task["labels"], task["max_attempts"]) == ("outside", "high", ["a"], 3)
    assert task["payload"] == {"prompt": "write tests", "work_directory": "/home/me/p", "metadata": {"ticket": 7}}
    listed = await rest.data("GET", "/api/tasks?work_directory=/ME/p")
    assert [row["id"] for row in listed["tasks"]] == [task["id"]]


@pytest.mark.parametrize("given", [{"toolsets": "core,worker"}])
@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": " "},
        {"prompt": "x" * 10_001},
        {"prompt": 1},
        {"work_directory": ""},
        {"work_directory": None},
        {"metadata": []},
        {"kind": "echo"},
        {"payload": {}},
        {"max_retries": 3},
    ],
    ids=str,
)
async def test_a_prompt_that_nobody_could_do_is_refused(rest: Rest, wrong: Facts) -> None:
    await rest.refused("POST", "/api/tasks", 400, "VALIDATION_ERROR", json=PROMPT | wrong)


async def test_where_no_outside_work_is_known_a_prompt_is_told_what_switches_it_on(rest: Rest) -> None:
    text = await rest.refused("POST", "/api/tasks", 400, "VALIDATION_ERROR", json=PROMPT)
    assert "TASKORCH_TOOLSETS=core,worker" in text
    document = (await rest.ask("GET", "/api/openapi.json")).json()
    body = document["paths"]["/api/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "anyOf" not in body and "prompt" not in body["properties"]


# How it stands.


async def test_statistics_are_counted(rest: Rest) -> None:
    assert "success_rate" not in (await rest.data("GET", "/api/statistics"))["overview"]
    await rest.until(await rest.create(priority="high"), "completed")
    await rest.until(await rest.create(kind="test.fail"), "failed")
    await rest.create(**LATER)
    said = await rest.data("GET", "/api/v1/statistics")
    assert said["overview"] == {
        "total_tasks": 3,
        "active_tasks": 1,
        "completed_tasks": 1,
        "failed_tasks": 1,
        "cancelled_tasks": 0,
        "success_rate": 0.5,
    }
    assert said["status_distribution"] == {"waiting": 1, "working": 0, "completed": 1, "failed": 1, "cancelled": 0}
    assert said["priority_distribution"] == {"low": 0, "medium": 2, "high": 1}
    assert said["performance_metrics"]["avg_processing_time"] >= 0
    assert sum(hour.get("completed", 0) + hour.get("failed", 0) for hour in said["time_series"]) == 2
    assert said["queue"]["ready"] == 0


async def test_anybody_may_ask_whether_the_server_lives_and_learns_no_more(rest: Rest) -> None:
    said = await rest.data("GET", "/health", headers={"Authorization": "Bearer of nothing"})
    assert said.keys() == {"status", "version"}
    await rest.refused("GET", "/api/tasks", 401, "UNAUTHORIZED", headers={"Authorization": ""})
    known = await rest.data("GET", "/health")
    assert known["status"] == "healthy"
    assert known["components"]["database"]["healthy"] is True
    assert known["components"]["workers"]["slots"] == 2
    assert known["metrics"]["memory_usage"] > 1_000_000


@pytest.mark.parametrize(
    ("broken", "headers"),
    [
        ((Queries, "servers"), {"Authorization": "none"}),
        ((Queries, "stats"), WITH_TOKEN),
        ((Store, "probe"), WITH_TOKEN),
    ],
)
async def test_a_server_whose_store_is_of_no_use_is_not_healthy(
    rest: Rest, monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str], headers: dict[str, str]
) -> None:
    async def busy(*_: Any) -> Any:
        raise StoreError("The store is busy: another program holds its lock.")

    monkeypatch.setattr(*broken, busy)
    assert "busy" in await rest.refused("GET", "/health", 503, "SERVICE_UNAVAILABLE", headers=headers)


# Whatever else.


async def test_what_goes_wrong_inside_is_logged_and_not_told(
    rest: Rest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Queries, "window", broken)
    response = await rest.ask("GET", "/api/tasks")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in response.text
    assert "a secret" in caplog.text


async def test_a_task_that_is_gone_when_its_creation_is_answered_was_created(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any) -> Any:
        raise NotFound("No such task.")

    monkeypatch.setattr(Queries, "seen", gone)
    response = await rest.ask("POST", "/api/tasks", json={"kind": "echo", **LATER})
    assert response.status_code == 201
    assert response.headers["location"] == f"/api/tasks/{response.json()['data']['id']}"


async def test_the_store_that_is_busy_is_unavailable(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(*_: Any) -> Any:
        raise StoreError("The store is busy.")

    monkeypatch.setattr(Queries, "seen", busy)
    await rest.refused("GET", f"/api/tasks/{NOBODY}", 503, "SERVICE_UNAVAILABLE")


@pytest.mark.parametrize(
    "path",
    ["/api/", "/api/nope", "/api/v1/nope", "/api/tasks/", "/api/tasks/a/b", "/api/v2/tasks", "/api/tasks/a%2Fb/x"],
)
async def test_a_path_that_there_is_not_is_answered_in_the_envelope(rest: Rest, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        for end in ("", "/" + "x" * 10_000):
            assert len(await rest.refused(method, path + end, 404, "NOT_FOUND")) < 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/tasks", "GET, HEAD, POST"),
        ("/api/v1/tasks", "GET, HEAD, POST"),
        ("/api/tasks/x", "DELETE, GET, HEAD, PUT"),
        ("/api/tasks/x/cancel", "POST"),
        ("/api/tasks/x/retry", "POST"),
        ("/api/tasks/x/output", "GET, HEAD"),
        ("/api/statistics", "GET, HEAD"),
        ("/api/openapi.json", "GET, HEAD"),
        ("/health", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_for_a_path_is_told_which_are(rest: Rest, path: str, allowed: str) -> None:
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} - set(allowed.split(", ")):
        response = await rest.ask(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_every_get_answers_a_head(rest: Rest) -> None:
    task = await rest.create(**LATER)
    response = await rest.ask("HEAD", f"/api/tasks/{task['id']}")
    assert (response.status_code, response.headers["etag"]) == (200, '"1"')


@pytest.mark.parametrize(
    "reference",
    [
        "%00",
        "%FF%FE",
        "%0A",
        "x%0D%0ASet-Cookie:a=b",
        "..%2F..%2Fetc%2Fpasswd",
        "%2E%2E",
        "'%20OR%201=1--",
        "%25",
        "*",
        "%3Cscript%3E",
        "%F0%9F%98%80",
        "%ED%A0%80",
        "x" * 201,
        "x" * 60_000,
        "t" + "9" * 400,
        NOBODY.upper(),
    ],
    ids=lambda value: value[:20],
)
async def test_a_hostile_reference_finds_nothing_and_harms_nothing(rest: Rest, reference: str) -> None:
    task = await rest.create(name="here", **LATER)
    for method, end in [("GET", ""), ("DELETE", "?confirm=true"), ("POST", "/cancel"), ("GET", "/output")]:
        response = await rest.ask(method, f"/api/tasks/{reference}{end}")
        assert response.status_code in (400, 404)
        assert response.json()["error"]["code"] in ("VALIDATION_ERROR", "NOT_FOUND")
        assert "set-cookie" not in response.headers
        assert size(response.json()) < 1000 + 2 * len(reference.encode()[:2000])
    assert (await rest.data("GET", "/api/tasks/here"))["version"] == task["version"]


def test_half_a_character_does_not_break_an_answer() -> None:
    assert json.loads(success({"text": "a\ud800b"}).body)["data"] == {"text": "a?b"}
    assert json.loads(failure("NOT_FOUND", "a\ud800b").body)["error"]["message"] == "a?b"


async def test_all_that_the_document_tells_is_there(rest: Rest) -> None:
    document = (await rest.ask("GET", "/api/v1/openapi.json")).json()
    told = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    there = {(f"/api{one.path}", one.method) for one in OPERATIONS}
    assert told == there | {("/health", "GET")}
    assert document["openapi"] == "3.1.0"
    body = document["paths"]["/api/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"command", "echo", "sleep"} <= set(body["properties"]["kind"]["examples"])


def test_every_tool_of_all_servers_has_a_request() -> None:
    assert {name for name, tool in TOOLS.items() if tool.toolset == CORE} == REQUESTS.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Call retry_task(task_id='t1') first", "Send POST /api/tasks/t1/retry first"),
        ('see get_task(task_id="t1").', "see GET /api/tasks/t1."),
        ("then call update_task(paused=true).", "then send PUT /api/tasks/{task_id} with paused=true."),
        ("Call list_tasks to see ids; delete_task it.", "Send GET /api/tasks to see ids; DELETE /api/tasks/t9 it."),
        ("my_get_task and claim_task stay", "my_get_task and claim_task stay"),
    ],
)
def test_texts_for_models_are_told_in_requests(text: str, said: str) -> None:
    assert told(text, "t9" if "delete" in text else "{task_id}") == said


@pytest.mark.parametrize("given", [{"max_live_tasks": 1}])
async def test_where_too_many_tasks_wait_no_more_are_taken_for_now(rest: Rest) -> None:
    await rest.create(**LATER)
    wish = {"kind": "echo", **LATER}
    text = await rest.refused("POST", "/api/tasks", 503, "SERVICE_UNAVAILABLE", json=wish)
    assert "POST /api/tasks/{task_id}/cancel" in text
