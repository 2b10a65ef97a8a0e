"""The tools of the board: for whom they are, what the page is told, what hosts and models without pages get."""

import json
from pathlib import Path
from typing import Any

import pytest
from clients import call, connected, raw_call, refused, settings, size
from mcp import Client, MCPError

from taskorch.app import App, running
from taskorch.mcp.tools import TOOLS

URI = "ui://taskorch/board.html"


@pytest.fixture
async def app(tmp_path: Path) -> Any:
    async with running(settings(tmp_path, toolsets="core,board")) as app:
        yield app


async def test_hosts_are_told_which_page_belongs_to_which_tool_and_who_may_call_it(client: Client, era: str) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert [*tools][-2:] == ["show_board", "board_data"]
    told = {name: tool.meta for name, tool in tools.items() if tool.meta}
    assert told == {
        "show_board": {"ui": {"resourceUri": URI, "visibility": ["model", "app"]}, "ui/resourceUri": URI},
        "board_data": {"ui": {"visibility": ["app"]}},
    }
    if era == "auto":  # the older handshake has no place for it
        assert "io.modelcontextprotocol/ui" in (client.server_capabilities.extensions or {})


async def test_its_tools_cost_little(client: Client) -> None:
    listed = [
        tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in (await client.list_tools()).tools
    ]
    assert size(listed) - size([tool for tool in listed if TOOLS[tool["name"]].toolset == "core"]) <= 1_100


async def test_the_page_is_a_resource_of_the_kind_that_hosts_show(client: Client) -> None:
    (listed,) = [one for one in (await client.list_resources()).resources if str(one.uri) == URI]
    (page,) = (await client.read_resource(URI)).contents
    assert listed.mime_type == page.mime_type == "text/html;profile=mcp-app"
    assert page.text.lower().startswith("<!doctype html>")


async def test_where_it_is_switched_off_there_is_no_page_and_models_are_told_who_can_switch_it_on(
    tmp_path: Path, era: str
) -> None:
    async with running(settings(tmp_path / "plain")) as app, connected(app.server, era) as client:
        assert not {tool.name for tool in (await client.list_tools()).tools} & {"show_board", "board_data"}
        assert URI not in [str(one.uri) for one in (await client.list_resources()).resources]
        with pytest.raises(MCPError):
            await client.read_resource(URI)
        for name in ("show_board", "board_data", "board"):
            with pytest.raises(MCPError, match="TASKORCH_TOOLSETS=core,board"):
                await raw_call(client, name, {})


async def test_show_board_tells_who_sees_no_page_the_numbers(client: Client) -> None:
    task = (await call(client, "create_task", kind="echo", name="hello")).facts
    shown, stats = await call(client, "show_board"), await call(client, "get_stats")
    assert shown.facts.keys() == {*stats.facts, "hint"}
    assert "list_tasks" in shown.facts["hint"] and shown.facts["hint"] in shown.text
    assert shown.text.splitlines()[0].startswith("taskorch ") and "[rendered]" not in shown.text
    opened = await call(client, "show_board", task_id="hello")
    assert opened.facts["task_id"] == task["id"] and task["id"] in opened.text
    assert "No task" in await refused(client, "show_board", task_id="t0000000000000000")


async def test_a_row_says_what_the_page_shows(client: Client) -> None:
    build = (await call(client, "create_task", kind="sleep", payload={"seconds": 60}, name="build")).facts["id"]
    wish = {
        "kind": "echo",
        "name": "test",
        "depends_on": ["build"],
        "labels": ["ci"],
        "payload": {"secret": "x" * 9_000},
    }
    test = (await call(client, "create_task", **wish)).facts["id"]
    board = (await call(client, "board_data")).facts
    rows = {row["id"]: row for row in board["tasks"]}
    assert board["counts"] == {"waiting": 1, "working": 1, "completed": 0, "failed": 0, "cancelled": 0}
    assert board["servers"] == 1 and "next_cursor" not in board
    assert rows[test]["depends_on"] == [build] and rows[test]["labels"] == ["ci"]
    assert rows[test]["phase"] == "blocked" and rows[test]["waits_for"] == {"unfinished": 1, "of": 1, "tasks": [build]}
    assert rows[build]["started_at"] and not {"runs", "result", "next", "payload"} & rows[build].keys()
    assert size(rows[test]) < 600
    await call(client, "cancel_task", task_id=build)
    await call(client, "wait_for_tasks", task_ids=[build])
    changed = (await call(client, "board_data", since=board["since"])).facts
    assert {row["id"]: row["status"] for row in changed["tasks"]} == {build: "cancelled", test: "cancelled"}
    assert changed["gone"] == []


async def test_the_page_comes_in_parts_and_each_task_once(client: Client) -> None:
    await call(
        client, "create_tasks", tasks=[{"kind": "echo", "name": f"n{n}", "delay_seconds": 900} for n in range(7)]
    )
    names: list[str] = []
    part: dict[str, Any] = {"next_cursor": None}
    while "next_cursor" in part:
        part = (await call(client, "board_data", limit=3, cursor=part["next_cursor"])).facts
        names += [row["name"] for row in part["tasks"]]
    assert names == [f"n{n}" for n in reversed(range(7))]


async def test_what_fits_a_filter_no_more_is_gone(client: Client) -> None:
    one = (await call(client, "create_task", kind="echo", name="one", delay_seconds=900)).facts["id"]
    two = (await call(client, "create_task", kind="echo", name="two", delay_seconds=900)).facts["id"]
    seen = (await call(client, "board_data", status="waiting")).facts
    await call(client, "cancel_task", task_id=one)
    await call(client, "delete_task", task_id=two)
    changed = (await call(client, "board_data", status="waiting", since=seen["since"])).facts
    assert changed["tasks"] == [] and sorted(changed["gone"]) == sorted([one, two])
    only = (await call(client, "board_data", text="on")).facts
    assert [row["id"] for row in only["tasks"]] == [one]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"since": "yesterday"}, "since 'yesterday' is not one of board_data; leave it out to load everything"),
        ({"since": "m1.1.1.1", "cursor": "c3"}, "since and cursor exclude each other"),
        ({"cursor": "3"}, "cursor '3' is none that was given"),
        ({"limit": 501}, "limit 501 is not allowed"),
        ({"status": "done"}, "status 'done' is not allowed"),
        ({"sort": "name"}, "Unknown argument 'sort'"),
    ],
)
async def test_a_wrong_argument_is_answered_with_what_is_right(client: Client, arguments: Any, said: str) -> None:
    assert said in await refused(client, "board_data", **arguments)


async def test_five_thousand_tasks_are_loaded_in_ten_parts(app: App, client: Client) -> None:
    for _ in range(5):
        wishes = [{"kind": "echo", "name": "x" * 200, "delay_seconds": 900, "labels": ["a"]}] * 1_000
        await call(client, "create_tasks", tasks=wishes)
    parts, cursor = 0, None
    rows = 0
    while parts == 0 or cursor:
        part = (await call(client, "board_data", cursor=cursor)).facts
        parts, cursor, rows = parts + 1, part.get("next_cursor"), rows + len(part["tasks"])
        assert len(json.dumps(part)) < 400_000
    assert (parts, rows) == (10, 5_000)
