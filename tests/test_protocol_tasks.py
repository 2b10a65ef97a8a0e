"""Protocol tasks: what a host that speaks `io.modelcontextprotocol/tasks` sees, and that no other host sees them."""

import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import TIME, Gate, settings, stored
from mcp_types import CallToolResult, ErrorData
from protocol import META, TASKS, Body, Refused, Talk, talking

from taskorch.app import App, running
from taskorch.domain.errors import StoreError
from taskorch.domain.task import NewTask, Task
from taskorch.mcp.protocol_tasks import Lives
from taskorch.mcp.resources import Resources
from taskorch.mcp.tasks_extension import ProtocolTask, handle

DAY_MS = 86_400_000
LATER = {"kind": "echo", "delay_seconds": 3600, "wait_seconds": 20}
SUBSCRIPTION = f"{META}subscriptionId"
MISSING = "t0000000000000000"
METHODS = ("tasks/get", "tasks/update", "tasks/cancel")


@pytest.fixture
async def host(app: App) -> AsyncIterator[Talk]:
    """A host that speaks the extension."""
    async with talking(app.server) as talk:
        yield talk


async def begun(host: Talk, **arguments: Any) -> str:
    """The handle of a new task that the host would wait for."""
    handle = await host.call("create_task", **{"kind": "echo", "wait_seconds": 20, **arguments})
    assert handle["resultType"] == "task", handle
    return handle["taskId"]


async def get(host: Talk, task_id: str) -> Body:
    """The protocol task; it is what the wire wants it to be, whatever its status."""
    task = await host.ask("tasks/get", taskId=task_id)
    assert task["resultType"] == "complete" and task["taskId"] == task_id
    check(task)
    return task


def check(task: Body) -> None:
    """The shape of a protocol task, and that a status brings its own fields and no others."""
    required = {"taskId", "status", "createdAt", "lastUpdatedAt", "ttlMs"}
    own = {"completed": {"result"}, "failed": {"error"}, "working": {"pollIntervalMs"}, "cancelled": set[str]()}
    required |= own[task["status"]]
    assert required <= task.keys() <= required | {"statusMessage", "resultType"}
    assert TIME.fullmatch(task["createdAt"]) and TIME.fullmatch(task["lastUpdatedAt"])
    assert (task["ttlMs"] is None) == (task["status"] in ("working", "failed"))
    assert task["ttlMs"] is None or (type(task["ttlMs"]) is int and task["ttlMs"] > 0)
    if task["status"] == "working":
        assert type(task["pollIntervalMs"]) is int and task["pollIntervalMs"] > 0


async def ended(host: Talk, app: App, task_id: str) -> Body:
    await stored(app, task_id.split(".")[0], lambda row: row.ended)
    return await get(host, task_id)


async def refusal(host: Talk, method: str, **params: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        await host.ask(method, **params)
    return refused.value


def ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


# Who gets a handle.


async def test_a_wait_is_answered_with_a_handle(host: Talk, app: App) -> None:
    gate = Gate()
    handle = await host.call("create_task", kind="test.gate", payload=gate.payload, name="build", wait_seconds=20)
    row = await app.service.queries.get(handle["taskId"])
    assert handle == {
        "resultType": "task",
        "taskId": row.id,
        "status": "working",
        "createdAt": handle["createdAt"],
        "lastUpdatedAt": handle["lastUpdatedAt"],
        "ttlMs": None,
        "pollIntervalMs": 500,
    }
    assert ms(handle["createdAt"]) == row.created_at <= ms(handle["lastUpdatedAt"])
    assert row.name == "build"
    gate.opened.set()


async def test_a_handle_names_what_is_already_on_disk(host: Talk, app: App) -> None:
    task_id = await begun(host, **LATER)
    with sqlite3.connect(app.service.output_folder.parent / "taskorch.db") as other:
        assert other.execute("SELECT count(*) FROM tasks WHERE id = ?", (task_id,)).fetchone() == (1,)
    other.close()


async def test_a_handle_says_working_even_if_the_work_is_done_by_then(host: Talk, app: App) -> None:
    """The result has its place in `tasks/get`, where a client looks for it."""
    task_id = await begun(host)
    await ended(host, app, task_id)
    task = await Lives(app.service, 1, 1).begun(task_id)
    assert task is not None
    assert (task.status, task.result, task.updated_at) == ("working", None, task.created_at)


def test_a_handle_carries_nothing_that_belongs_into_tasks_get() -> None:
    error = ErrorData(code=-32603, message="x")
    result = CallToolResult(content=[])
    task = ProtocolTask("t", "failed", 0, 1, "x", 2, 3, result=result, error=error, questions={"q-1": {}})
    always = {"resultType", "taskId", "status", "createdAt", "lastUpdatedAt", "ttlMs", "pollIntervalMs"}
    assert handle(task).keys() == always


async def test_only_a_request_that_declares_the_extension_gets_a_handle(host: Talk) -> None:
    """Whatever requests before it declared."""
    await begun(host)
    result = await host.call("create_task", declares=False, kind="echo", payload={"a": 1}, wait_seconds=20)
    assert result["resultType"] == "complete" and "taskId" not in result
    assert result["structuredContent"]["status"] == "completed", "it waited"
    await begun(host)


async def test_a_host_of_2025_never_meets_the_extension(app: App) -> None:
    async with talking(app.server, "legacy") as host:
        result = await host.call("create_task", kind="echo", wait_seconds=20)
        assert result["structuredContent"]["status"] == "completed"
        task_id = result["structuredContent"]["id"]
        for method in METHODS:
            refused = await refusal(host, method, taskId=task_id, inputResponses={})
            assert refused.code == -32601
    async with talking(app.server, "legacy") as host:
        assert TASKS not in str(await Talk.begin(host))


async def test_a_wait_by_another_name_is_a_wait(host: Talk) -> None:
    handle = await host.call("create_task", kind="echo", waitSeconds=20, title="build")
    assert handle["resultType"] == "task"
    assert (await host.call("get_task", task_id="build"))["structuredContent"]["id"] == handle["taskId"]


@pytest.mark.parametrize("wait", [None, 0, 0.0])
async def test_who_does_not_wait_gets_an_ordinary_answer(host: Talk, wait: float | None) -> None:
    result = await host.call("create_task", kind="echo", wait_seconds=wait)
    assert result["resultType"] == "complete" and result["structuredContent"]["id"]


async def test_no_other_tool_answers_with_a_handle(host: Talk) -> None:
    task_id = await begun(host)
    for tool, arguments in (
        ("wait_for_tasks", {"task_ids": [task_id]}),
        ("get_task", {"task_id": task_id}),
        ("delete_task", {"task_id": task_id}),
    ):
        assert (await host.call(tool, **arguments))["resultType"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "nothing", "wait_seconds": 5}, "Unknown kind"),
        ({"kind": "echo", "wait_seconds": 5, "colour": 1}, "colour"),
        ({"kind": "echo", "wait_seconds": 51}, "wait_seconds 51 is not allowed"),
        ({"kind": "echo", "wait_seconds": -1}, "wait_seconds"),
        ({"kind": "echo", "wait_seconds": True}, "wait_seconds"),
    ],
)
async def test_bad_arguments_are_refused_before_there_is_a_task(host: Talk, arguments: Body, said: str) -> None:
    result = await host.call("create_task", **arguments)
    assert result["isError"] and said in result["content"][0]["text"]
    assert (await host.call("list_tasks"))["structuredContent"]["tasks"] == []


async def test_a_schedule_has_no_end_that_a_handle_could_tell(host: Talk) -> None:
    result = await host.call("create_task", kind="echo", wait_seconds=20, schedule="0 7 * * *")
    assert result["isError"] and "no end to wait for" in result["content"][0]["text"]
    assert (await host.call("list_tasks"))["structuredContent"]["tasks"] == []


async def test_a_task_that_is_stored_is_told_even_if_no_handle_can_be_made(
    host: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Lives, task_id: str) -> None:
        raise StoreError("busy")

    monkeypatch.setattr(Lives, "begun", fail)
    result = await host.call("create_task", **LATER)
    assert result["resultType"] == "complete" and result["structuredContent"]["phase"] == "scheduled"


async def test_what_has_ended_when_the_tool_answers_needs_no_handle(
    host: Talk, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = app.service.store.add

    async def add_and_end(new: NewTask) -> Task:
        task = await add(new)
        await stored(app, task.id, lambda row: row.ended)
        return await app.service.queries.get(task.id)

    monkeypatch.setattr(app.service.store, "add", add_and_end)
    result = await host.call("create_task", kind="echo", wait_seconds=20)
    assert (result["resultType"], result["structuredContent"]["status"]) == ("complete", "completed")


async def test_the_server_announces_an_empty_object(host: Talk) -> None:
    capabilities = (await host.ask("server/discover"))["capabilities"]
    assert capabilities["extensions"] == {TASKS: {}}
    assert "tasks" not in capabilities


# Who may ask, and for what.


async def test_asking_without_declaring_the_extension_says_what_to_declare(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    for method in METHODS:
        refused = await refusal(host, method, declares=False, taskId=task_id, inputResponses={})
        assert refused.code == -32021
        assert refused.data == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
    assert (await get(host, task_id))["status"] == "working", "and nothing was done"


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
@pytest.mark.parametrize(
    "task_id", [MISSING, f"{MISSING}.1", "", "build", "t0", "{}.0", "{}.01", "{}.1", "{}.x", "{} "]
)
async def test_an_id_that_was_never_given_out_is_not_found(host: Talk, method: str, task_id: str) -> None:
    known = await begun(host, **LATER, name="build")
    refused = await refusal(host, method, taskId=task_id.replace("{}", known), inputResponses={})
    assert (refused.code, refused.message) == (-32602, "Task not found")


async def test_a_deleted_task_is_not_found(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    await host.call("delete_task", task_id=task_id)
    assert (await refusal(host, "tasks/get", taskId=task_id)).code == -32602


async def test_there_is_no_list_and_no_result_method(host: Talk) -> None:
    for method in ("tasks/list", "tasks/result"):
        assert (await refusal(host, method, taskId=MISSING)).code == -32601


async def test_an_update_is_acknowledged_and_changes_nothing(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    before = await get(host, task_id)
    ack = await host.ask("tasks/update", taskId=task_id, inputResponses={"q-1": {"action": "accept"}})
    assert ack == {"resultType": "complete"}
    assert await get(host, task_id) == before | {"pollIntervalMs": 15_000}


async def test_internal_errors_are_logged_and_never_told(
    host: Talk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trouble: list[Exception] = [StoreError("The store is busy."), RuntimeError("secret")]

    async def fail(self: Lives, task_id: str) -> None:
        raise trouble.pop()

    monkeypatch.setattr(Lives, "_life", fail)
    refused = await refusal(host, "tasks/get", taskId=MISSING)
    assert refused.code == -32603 and "secret" not in str(refused)
    assert "secret" in caplog.text
    refused = await refusal(host, "tasks/get", taskId=MISSING)
    assert (refused.code, refused.message) == (-32603, "The store is busy."), "which a person can do something about"


# What a task is on the wire.


async def test_a_completed_task_holds_what_the_wait_would_have_answered(host: Talk, app: App) -> None:
    waited = await host.call("create_task", declares=False, kind="echo", payload={"a": "é"}, wait_seconds=20)
    task_id = await begun(host, payload={"a": "é"})
    task = await ended(host, app, task_id)
    assert task["status"] == "completed" and "statusMessage" not in task
    read = await host.call("get_task", task_id=task_id)
    result = task["result"]
    assert result["structuredContent"] == read["structuredContent"]
    assert result["content"][0]["text"] == "Created " + read["content"][0]["text"]
    assert (result["isError"], result["resultType"]) == (False, "complete")
    assert result.keys() == waited.keys() and waited["structuredContent"].keys() == result["structuredContent"].keys()
    assert waited["content"][0]["text"].startswith("Created ")


async def test_a_failed_job_is_a_completed_protocol_task_whose_result_is_an_error(host: Talk, app: App) -> None:
    task = await ended(host, app, await begun(host, kind="test.fail", payload={"text": "no \x1b[31mroom"}))
    assert (task["status"], task["statusMessage"]) == ("completed", "error: NonRetryable: no room")
    assert task["result"]["isError"] is True
    assert task["result"]["structuredContent"]["error"] == {"reason": "error", "message": "NonRetryable: no room"}
    assert task["result"]["structuredContent"]["status"] == "failed"


async def test_a_cancelled_task_says_by_whom_and_has_no_result(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    await host.call("cancel_task", task_id=task_id, reason="enough")
    task = await get(host, task_id)
    assert (task["status"], task["statusMessage"]) == ("cancelled", "cancelled by talk: enough")


async def test_what_waits_is_working_and_says_why(host: Talk, app: App) -> None:
    gates = [Gate(), Gate()]
    for gate in gates:  # all slots
        await begun(host, kind="test.gate", payload=gate.payload)
        await gate.reached()
    queued = await get(host, await begun(host))
    assert (queued["statusMessage"], queued["pollIntervalMs"]) == ("queued", 500)

    soon = await begun(host, kind="echo", delay_seconds=3)
    row = await app.service.queries.get(soon)
    task = await get(host, soon)
    assert task["pollIntervalMs"] <= 3_000, "never past the start"
    assert ms(task["statusMessage"].removeprefix("starts ")) == row.run_at

    scheduled = await begun(host, **LATER)
    assert (await get(host, scheduled))["pollIntervalMs"] == 15_000
    await host.call("update_task", task_id=scheduled, paused=True)
    paused = await get(host, scheduled)
    assert (paused["statusMessage"], paused["pollIntervalMs"]) == ("paused", 5_000)

    with sqlite3.connect(app.service.output_folder.parent / "taskorch.db", isolation_level=None) as other:
        other.execute("UPDATE tasks SET kind = 'elsewhere', paused = 0 WHERE id = ?", (scheduled,))
    other.close()
    blocked = await get(host, scheduled)
    assert (blocked["status"], blocked["pollIntervalMs"]) == ("working", 5_000)
    assert blocked["statusMessage"] == "blocked: no running server can do 'elsewhere'"
    for gate in gates:
        gate.opened.set()


async def test_between_attempts_it_says_what_failed_and_when_the_next_starts(host: Talk, app: App) -> None:
    task_id = await begun(host, kind="test.flaky")
    await stored(app, task_id, lambda row: row.error is not None)
    row = await app.service.queries.get(task_id)
    task = await get(host, task_id)
    said, _, start = task["statusMessage"].partition("; next start ")
    assert said == "attempt 1 failed: error: ValueError: not yet"
    assert ms(start) == row.run_at
    assert task["pollIntervalMs"] <= 2_000


async def test_what_works_tells_its_progress_and_then_that_it_is_cancelling(host: Talk, app: App) -> None:
    gate = Gate()
    task_id = await begun(host, kind="test.gate", payload=gate.payload)
    await stored(app, task_id, lambda row: row.progress)
    task = await get(host, task_id)
    assert (task["statusMessage"], task["pollIntervalMs"]) == ("attempt 1/2: 75% at the gate", 1_000)
    gate.opened.set()

    stubborn = Gate()
    task_id = await begun(host, kind="test.stubborn", payload=stubborn.payload)
    await stubborn.reached()
    assert await host.ask("tasks/cancel", taskId=task_id) == {"resultType": "complete"}
    task = await get(host, task_id)
    assert (task["status"], task["statusMessage"], task["pollIntervalMs"]) == ("working", "cancelling", 500)
    stubborn.opened.set()
    assert (await ended(host, app, task_id))["status"] == "cancelled"


async def test_the_last_change_is_the_rows_own_not_the_time_of_asking(host: Talk, app: App) -> None:
    task_id = await begun(host)
    task = await ended(host, app, task_id)
    row = await app.service.queries.get(task_id)
    assert ms(task["lastUpdatedAt"]) == row.updated_at == row.finished_at
    assert await get(host, task_id) == task


async def test_the_time_to_live_is_unknown_until_the_end_and_then_what_retention_says(tmp_path: Path) -> None:
    async with running(settings(tmp_path, keep_days=2, keep_failed_days=3)) as app, talking(app.server) as host:
        for kind, days in (("echo", 2), ("test.fail", 3)):
            task_id = await begun(host, kind=kind)
            task = await ended(host, app, task_id)
            row = await app.service.queries.get(task_id)
            assert row.finished_at is not None
            assert task["ttlMs"] == row.finished_at - row.created_at + days * DAY_MS
        assert (await get(host, await begun(host, **LATER)))["ttlMs"] is None


async def test_an_end_that_cannot_be_read_is_a_fault_of_the_server(host: Talk, app: App) -> None:
    """The only use of the wire's `failed`."""
    done, waiting = await begun(host), await begun(host, **LATER)
    before = await ended(host, app, done)
    with sqlite3.connect(app.service.output_folder.parent / "taskorch.db", isolation_level=None) as other:
        other.execute("UPDATE tasks SET result = '{' WHERE id = ?", (done,))
        other.execute("UPDATE tasks SET progress = '{' WHERE id = ?", (waiting,))
    other.close()
    task = await get(host, done)
    assert task["status"] == "failed"
    assert task["error"] == {"code": -32603, "message": task["statusMessage"]}
    assert (task["createdAt"], task["lastUpdatedAt"]) == (before["createdAt"], before["lastUpdatedAt"])
    assert (await refusal(host, "tasks/get", taskId=waiting)).code == -32603, "which is no end"


# Cancelling.


async def test_a_cancel_is_acknowledged_with_nothing_and_ends_what_waits(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    for _ in range(2):  # the second time it has ended
        assert await host.ask("tasks/cancel", taskId=task_id) == {"resultType": "complete"}
    task = await get(host, task_id)
    assert (task["status"], task["statusMessage"]) == ("cancelled", "cancelled by talk")


async def test_a_cancel_leaves_what_is_completed(host: Talk, app: App) -> None:
    task_id = await begun(host)
    before = await ended(host, app, task_id)
    assert await host.ask("tasks/cancel", taskId=task_id) == {"resultType": "complete"}
    assert await get(host, task_id) == before


async def test_giving_up_a_call_does_not_cancel_its_task(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    await host.stop(2)  # the call that created it
    assert (await get(host, task_id))["status"] == "working"


# One handle, one life.


async def test_a_handle_keeps_its_end_when_the_task_is_retried(host: Talk, app: App) -> None:
    task_id = await begun(host, kind="test.fail", payload={"text": "first"}, name="build")
    first = await ended(host, app, task_id)
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)

    again = await get(host, task_id)
    assert {**again, "ttlMs": 0} == {**first, "ttlMs": 0}

    second = await get(host, f"{task_id}.1")
    assert second["status"] == "working" and second["statusMessage"].startswith("starts ")
    assert second["createdAt"] == second["lastUpdatedAt"] > first["lastUpdatedAt"]

    await host.call("cancel_task", task_id=task_id)
    await host.call("retry_task", task_id=task_id)
    assert (await ended(host, app, f"{task_id}.2"))["status"] == "completed"
    assert (await get(host, f"{task_id}.1"))["status"] == "cancelled"
    assert {**(await get(host, task_id)), "ttlMs": 0} == {**first, "ttlMs": 0}
    assert (await refusal(host, "tasks/get", taskId=f"{task_id}.3")).code == -32602


async def test_a_retry_of_the_pool_stays_in_the_same_life(host: Talk, app: App) -> None:
    task_id = await begun(host, kind="test.flaky", max_attempts=2)
    await stored(app, task_id, lambda row: row.attempt == 1 and row.error)
    await host.call("update_task", task_id=task_id, delay_seconds=0)
    task = await ended(host, app, task_id)
    assert task["result"]["structuredContent"]["attempt"] == 2
    assert (await refusal(host, "tasks/get", taskId=f"{task_id}.1")).code == -32602


async def test_cancelling_by_an_old_handle_leaves_the_new_life_alone(host: Talk, app: App) -> None:
    task_id = await begun(host, kind="test.fail")
    await ended(host, app, task_id)
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)
    assert await host.ask("tasks/cancel", taskId=task_id) == {"resultType": "complete"}
    assert (await get(host, f"{task_id}.1"))["status"] == "working"
    assert await host.ask("tasks/cancel", taskId=f"{task_id}.1") == {"resultType": "complete"}
    assert (await get(host, f"{task_id}.1"))["status"] == "cancelled"


async def test_a_retry_that_comes_between_looking_and_cancelling_is_not_cancelled(host: Talk, app: App) -> None:
    """The store looks again, in the transaction that cancels."""
    task_id = await begun(host, **LATER)
    await host.call("cancel_task", task_id=task_id)
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)
    left = await app.service.store.cancel(task_id, "", "x", life=0)
    assert not left.ended
    assert (await app.service.store.cancel(task_id, "", "x", life=1)).ended


async def test_a_new_handle_names_the_life_that_begins(host: Talk, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = await begun(host, kind="test.fail")
    await ended(host, app, task_id)
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)
    row = await app.service.queries.get(task_id)
    monkeypatch.setattr(app.service.store, "now", lambda: 1)
    handle = await Lives(app.service, 1, 1).begun(task_id)
    assert handle is not None and handle.id == f"{task_id}.1"
    assert handle.created_at == handle.updated_at == row.updated_at
    assert await Lives(app.service, 1, 1).begun(MISSING) is None


async def test_what_a_retry_keeps_is_no_part_of_the_history(host: Talk, app: App) -> None:
    task_id = await begun(host, kind="test.fail")
    await ended(host, app, task_id)
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)
    full = await host.call("get_task", task_id=task_id, detail="full")
    (event,) = full["structuredContent"]["events"]
    assert event.keys() == {"at", "event", "by"}


async def test_a_life_whose_end_was_not_kept_is_not_found(host: Talk, app: App) -> None:
    """As after a retry by a server that knew no protocol tasks."""
    task_id = await begun(host, kind="test.fail")
    await ended(host, app, task_id)
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)
    with sqlite3.connect(app.service.output_folder.parent / "taskorch.db", isolation_level=None) as other:
        other.execute("UPDATE events SET detail = NULL")
    other.close()
    assert (await refusal(host, "tasks/get", taskId=task_id)).code == -32602
    assert (await get(host, f"{task_id}.1"))["status"] == "working"


async def test_handles_survive_the_server_and_work_at_another(tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as app, talking(app.server) as host:
        failed = await begun(host, kind="test.fail")
        before = await ended(host, app, failed)
        await host.call("retry_task", task_id=failed, delay_seconds=3600)
        waiting = await begun(host, **LATER)
        async with running(settings(tmp_path)) as second, talking(second.server) as other:
            assert (await get(other, waiting))["status"] == "working"
    async with running(settings(tmp_path)) as app, talking(app.server) as host:
        assert {**(await get(host, failed)), "ttlMs": 0} == {**before, "ttlMs": 0}
        assert (await get(host, f"{failed}.1"))["status"] == "working"
        await host.call("update_task", task_id=waiting, delay_seconds=0)
        assert (await ended(host, app, waiting))["status"] == "completed"


# Being told.


async def listening(host: Talk, **wanted: Any) -> int:
    """Listen; the subscription's id, once the server has said what it will tell."""
    number = await host.send("subscriptions/listen", notifications=wanted)
    known = await host.told("notifications/subscriptions/acknowledged")
    assert known[-1]["_meta"] == {SUBSCRIPTION: number}
    return number


async def test_a_listener_is_told_of_its_tasks_and_no_others(host: Talk, app: App) -> None:
    gate = Gate()
    task_id = await begun(host, kind="test.gate", payload=gate.payload)
    other = await begun(host, **LATER)
    await stored(app, task_id, lambda row: row.progress)
    number = await listening(host, taskIds=[task_id, MISSING, "nonsense", task_id])
    acknowledged = await host.told("notifications/subscriptions/acknowledged")
    assert acknowledged[0]["notifications"] == {"taskIds": [task_id]}
    assert host.notifications[0]["method"] == "notifications/subscriptions/acknowledged"

    await host.call("cancel_task", task_id=other)
    await host.call("update_task", task_id=task_id, priority="high")
    (change,) = await host.told("notifications/tasks")
    assert change.pop("_meta") == {SUBSCRIPTION: number}
    assert (change["taskId"], change["status"]) == (task_id, "working")
    check(change)

    gate.opened.set()
    change = (await host.told("notifications/tasks", 2))[1]
    change.pop("_meta")
    assert change == {name: value for name, value in (await get(host, task_id)).items() if name != "resultType"}
    assert change["status"] == "completed" and change["result"]["isError"] is False
    assert len(host.notifications) == 3


async def test_a_listener_is_told_what_another_server_changed(host: Talk, app: App, tmp_path: Path) -> None:
    task_id = await begun(host, **LATER)
    await listening(host, taskIds=[task_id])
    async with running(settings(tmp_path)) as second, talking(second.server) as other:
        await other.ask("tasks/cancel", taskId=task_id)
        (change,) = await host.told("notifications/tasks")
    assert (change["taskId"], change["status"]) == (task_id, "cancelled")


async def test_a_listener_is_not_told_of_what_did_not_change(
    host: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server's commit may be about any task."""
    task_id = await begun(host, **LATER)
    await listening(host, taskIds=[task_id])
    find, looked = Lives.find, anyio.Event()

    async def look(self: Lives, wanted: str) -> Any:
        looked.set()
        return await find(self, wanted)

    monkeypatch.setattr(Lives, "find", look)
    async with running(settings(tmp_path)):
        with anyio.fail_after(5):
            await looked.wait()
    await host.call("cancel_task", task_id=task_id)
    (change,) = await host.told("notifications/tasks")
    assert change["status"] == "cancelled"


async def test_the_acknowledgement_comes_first_whatever_changes_meanwhile(
    host: Talk, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.mcp.tasks_extension.COALESCE_SECONDS", 0)
    task_id = await begun(host, **LATER)
    asked, go = anyio.Event(), anyio.Event()

    async def slow(self: Resources, uris: Any) -> None:
        asked.set()
        await go.wait()

    monkeypatch.setattr(Resources, "_remember", slow)
    await host.send("subscriptions/listen", notifications={"taskIds": [task_id]})
    with anyio.fail_after(5):
        await asked.wait()
    await host.call("update_task", task_id=task_id, priority="high")
    await host.call("list_tasks")
    assert host.notifications == []
    go.set()
    await host.told("notifications/tasks")
    first, second = host.notifications
    assert first["method"] == "notifications/subscriptions/acknowledged" and second["method"] == "notifications/tasks"


async def test_a_stream_that_cannot_begin_says_why(host: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Resources, uris: Any) -> None:
        raise StoreError("The store is busy.")

    task_id = await begun(host, **LATER)
    monkeypatch.setattr(Resources, "_remember", fail)
    refused = await refusal(host, "subscriptions/listen", notifications={"taskIds": [task_id]})
    assert (refused.code, refused.message) == (-32603, "The store is busy.")


async def test_one_stream_tells_of_tasks_and_of_resources(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    uri = f"task://{task_id}"
    number = await listening(host, taskIds=[task_id], resourceSubscriptions=[uri])
    (acknowledged,) = await host.told("notifications/subscriptions/acknowledged")
    assert acknowledged["notifications"] == {"taskIds": [task_id], "resourceSubscriptions": [uri]}
    await host.call("cancel_task", task_id=task_id)
    (updated,) = await host.told("notifications/resources/updated")
    assert updated == {"uri": uri, "_meta": {SUBSCRIPTION: number}}
    (change,) = await host.told("notifications/tasks")
    assert change["status"] == "cancelled"


async def test_who_listens_to_no_task_is_served_as_ever(host: Talk) -> None:
    task_id = await begun(host, **LATER)
    number = await host.send(
        "subscriptions/listen", declares=False, notifications={"resourceSubscriptions": [f"task://{task_id}"]}
    )
    await host.told("notifications/subscriptions/acknowledged")
    await host.call("cancel_task", task_id=task_id)
    (updated,) = await host.told("notifications/resources/updated")
    assert updated["_meta"] == {SUBSCRIPTION: number}


async def test_listening_to_tasks_needs_the_extension_and_a_list_of_ids(host: Talk) -> None:
    refused = await refusal(host, "subscriptions/listen", declares=False, notifications={"taskIds": [MISSING]})
    assert refused.code == -32021
    for wanted in (5, [5], {"a": 1}):
        assert (await refusal(host, "subscriptions/listen", notifications={"taskIds": wanted})).code == -32602


async def test_a_listener_may_leave_and_others_stay(host: Talk, app: App) -> None:
    task_id = await begun(host, **LATER)
    first = await listening(host, taskIds=[task_id])
    second = await host.send("subscriptions/listen", notifications={"taskIds": [task_id]})
    await host.told("notifications/subscriptions/acknowledged", 2)
    await host.stop(first)
    await anyio.wait_all_tasks_blocked()
    await host.call("cancel_task", task_id=task_id)
    (change,) = await host.told("notifications/tasks")
    assert change["_meta"] == {SUBSCRIPTION: second}


async def test_a_store_that_is_busy_for_a_moment_costs_a_listener_nothing(
    host: Talk, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskorch.mcp.tasks_extension.AGAIN_SECONDS", 0.01)
    task_id = await begun(host, **LATER)
    await listening(host, taskIds=[task_id])
    find, failures = Lives.find, iter([StoreError("busy")] * 3)

    async def sometimes(self: Lives, wanted: str) -> Any:
        for failure in failures:
            raise failure
        return await find(self, wanted)

    monkeypatch.setattr(Lives, "find", sometimes)
    await app.service.store.cancel(task_id, "", "x")
    (change,) = await host.told("notifications/tasks")
    assert change["status"] == "cancelled"


# What the lives keep.


async def test_an_end_is_kept_as_long_as_its_time_to_live_said(host: Talk, app: App) -> None:
    """Also when it was retried since, and what came of that is kept for less long."""
    task_id = await begun(host, kind="test.fail")
    assert (await ended(host, app, task_id))["ttlMs"] >= 30 * DAY_MS
    await host.call("retry_task", task_id=task_id, delay_seconds=3600)
    await host.call("cancel_task", task_id=task_id)
    other = await begun(host)
    await ended(host, app, other)
    purge = app.service.store.purge
    assert await purge(-1_000, 30 * DAY_MS) == 1
    assert (await refusal(host, "tasks/get", taskId=other)).code == -32602
    assert (await get(host, task_id))["status"] == "completed"
    assert await purge(-1_000, -1_000) == 1
    assert (await refusal(host, "tasks/get", taskId=task_id)).code == -32602


async def test_an_end_keeps_everything_of_its_attempt(host: Talk, app: App) -> None:
    task_id = await begun(host, **LATER)
    (task,) = await app.service.queries.get_many([task_id])
    await app.service.store.cancel(task_id, "not now", "ann")
    before = await app.service.queries.get(task_id)
    await app.service.store.retry(task_id, None, "bob")
    await stored(app, task_id, lambda row: row.ended)
    life = await app.service.queries.life(task_id, 0)
    assert life is not None and life.ended and not life.latest
    assert life.task == before
    assert (life.began_at, life.updated_at) == (task.created_at, before.updated_at)
