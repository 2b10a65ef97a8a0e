"""Before something that works is deleted, the person is asked where the client can ask, in both protocol eras."""

from typing import Any

import anyio
import mcp_types as mt
import pytest
from clients import Answer, Facts, Gate, answer, call, connected, raw_call, refused, stored
from mcp import Client
from mcp.shared.exceptions import MCPError

from taskorch.app import App


class Person:
    """Who answers the client's questions."""

    def __init__(self, *answers: mt.ElicitResult | mt.ErrorData) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, context: Any, params: mt.ElicitRequestParams) -> mt.ElicitResult | mt.ErrorData:
        self.asked.append(params.message)
        return self.answers.pop(0)


def accepted(**content: Any) -> mt.ElicitResult:
    return mt.ElicitResult(action="accept", content=content)


async def working(client: Client) -> tuple[Facts, Gate]:
    gate = Gate()
    facts = (await call(client, "create_task", kind="test.gate", payload=gate.payload, name="precious")).facts
    await gate.reached()
    return facts, gate


async def delete(client: Client, task: Facts, **arguments: Any) -> Answer:
    return await call(client, "delete_task", task_id=task["id"], **arguments)


async def test_yes_deletes_it(app: App, era: str) -> None:
    person = Person(accepted(confirm=True))
    async with connected(app.server, era, elicitation_callback=person) as client:
        task, _ = await working(client)
        assert (await delete(client, task)).facts == {"id": task["id"], "deleted": True}
        assert len(person.asked) == 1
        assert task["id"] in person.asked[0] and "precious" in person.asked[0] and "working" in person.asked[0]


async def test_the_question_shows_what_hides_in_a_name(app: App, era: str) -> None:
    person = Person(accepted(confirm=False))
    async with connected(app.server, era, elicitation_callback=person) as client:
        gate = Gate()
        name = "\u202eecho"
        task = (await call(client, "create_task", kind="test.gate", payload=gate.payload, name=name)).facts
        await gate.reached()
        await delete(client, task)
        assert "<U+202E>echo" in person.asked[0] and "\u202e" not in person.asked[0]


@pytest.mark.parametrize(
    "no",
    [
        accepted(confirm=False),
        accepted(),
        accepted(confirm="true"),
        accepted(confirm=1),
        accepted(confirmed=True),
        mt.ElicitResult(action="decline", content={"confirm": True}),
        mt.ElicitResult(action="cancel", content={"confirm": True}),
    ],
    ids=["no", "empty form", "a word", "a number", "another field", "declined", "closed"],
)
async def test_anything_but_yes_keeps_it(app: App, era: str, no: mt.ElicitResult) -> None:
    async with connected(app.server, era, elicitation_callback=Person(no)) as client:
        task, gate = await working(client)
        reply = await delete(client, task)
        assert reply.facts == {"id": task["id"], "deleted": False}
        assert "the user said no" in reply.text and "goes on" in reply.text
        gate.opened.set()
        await stored(app, task["id"], lambda task: task.status == "completed")


async def test_a_client_that_cannot_ask_is_told_to_ask_by_itself(app: App, era: str) -> None:
    async with connected(app.server, era) as client:
        task, _ = await working(client)
        text = await refused(client, "delete_task", task_id=task["id"])
        assert "is working" in text and "confirm=true" in text
        assert (await delete(client, task, confirm=True)).facts["deleted"]


async def test_a_client_that_fails_to_ask_counts_as_one_that_cannot(app: App) -> None:
    person = Person(mt.ErrorData(code=mt.INTERNAL_ERROR, message="no window"))
    async with connected(app.server, "legacy", elicitation_callback=person) as client:
        task, _ = await working(client)
        assert "confirm=true" in await refused(client, "delete_task", task_id=task["id"])


async def test_nobody_is_asked_where_nothing_works_or_it_is_confirmed(app: App, era: str) -> None:
    async with connected(app.server, era, elicitation_callback=Person()) as client:
        waiting = (await call(client, "create_task", kind="echo", delay_seconds=60)).facts
        ended = (await call(client, "create_task", kind="echo", wait_seconds=5)).facts
        task, _ = await working(client)
        for facts, arguments in ((waiting, {}), (ended, {}), (task, {"confirm": True})):
            assert (await delete(client, facts, **arguments)).facts["deleted"]


async def test_a_call_that_is_cancelled_while_it_asks_changes_nothing(app: App) -> None:
    asked = anyio.Event()

    async def silent(context: Any, params: mt.ElicitRequestParams) -> mt.ElicitResult:
        asked.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with connected(app.server, "legacy", elicitation_callback=silent) as client:
        task, gate = await working(client)
        async with anyio.create_task_group() as group:
            group.start_soon(raw_call, client, "delete_task", {"task_id": task["id"]})
            with anyio.fail_after(5):
                await asked.wait()
            group.cancel_scope.cancel()
        gate.opened.set()
        await stored(app, task["id"], lambda task: task.status == "completed")


async def round_of(client: Client, task: Facts, **more: Any) -> Any:
    """One round of the call, as a client sends it that answers the questions by itself."""
    return await client.session.call_tool("delete_task", {"task_id": task["id"]}, allow_input_required=True, **more)


async def test_since_2026_an_answer_counts_for_what_was_asked_and_for_nothing_else(app: App) -> None:
    yes = {"confirm": accepted(confirm=True)}
    async with connected(app.server, "auto", elicitation_callback=Person()) as client:
        task, _ = await working(client)
        other, _ = await working(client)
        asked = await round_of(client, task)
        assert isinstance(asked, mt.InputRequiredResult) and set(asked.input_requests or {}) == {"confirm"}
        assert asked.request_state and task["id"] not in asked.request_state, "sealed"

        again = await round_of(client, other, input_responses=yes)
        assert isinstance(again, mt.InputRequiredResult), "an answer without a question"
        for stolen in (asked.request_state, asked.request_state[:-2] + "xx", f"delete {other['id']} attempt 1"):
            with pytest.raises(MCPError, match="requestState"):
                await round_of(client, other, input_responses=yes, request_state=stolen)
        assert (await call(client, "list_tasks")).facts["counts"]["working"] == 2

        done = await round_of(client, task, input_responses=yes, request_state=asked.request_state)
        assert answer(done).facts == {"id": task["id"], "deleted": True}


async def test_a_yes_to_one_attempt_does_not_delete_the_next(app: App) -> None:
    store = app.service.store

    async def slow_yes(context: Any, params: mt.ElicitRequestParams) -> mt.ElicitResult:
        await store.cancel(task["id"], "", "somebody")
        await stored(app, task["id"], lambda task: task.ended)
        await store.retry(task["id"], None, "somebody")
        await stored(app, task["id"], lambda task: task.status == "working")
        return accepted(confirm=True)

    async with connected(app.server, "legacy", elicitation_callback=slow_yes) as client:
        task, _ = await working(client)
        text = await refused(client, "delete_task", task_id=task["id"])
        assert "started again while the user was asked" in text and "Call delete_task again" in text
        assert (await app.service.queries.get(task["id"])).status == "working"
