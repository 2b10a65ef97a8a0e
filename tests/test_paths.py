"""Paths into results: what they find, and that none of them can keep a server busy or fill its memory."""

import json
from typing import Any

import anyio
import pytest
from clients import call
from mcp import Client

from taskorch.domain import paths
from taskorch.domain.errors import InvalidInput

DOCUMENT: dict[str, Any] = {"items": [{"n": n, "name": f"item {n}"} for n in range(1_500)], "text": "x" * 20_000}
DOUBLED = {
    "lists in lists": "|".join(["[@,@]"] * 60),
    "lists": "|".join(["[@,@][]"] * 60),
    "texts": "|".join(['join(`""`,[to_string(@),to_string(@)])'] * 12),
    "texts of lists in lists": "|".join([*["[@,@]"] * 60, "to_string(@)"]),
    "steps": "|".join(["[@,@]"] * 50) + "[*]" * 50,
    "comparisons": "|".join(["[@,@]"] * 25) + " == " + "|".join(["[@,@]"] * 25),
    "separators": "join(text, items[*].name)",
    "literals": f'items[*].[`"{"x" * 400}"`]',
}


@pytest.mark.parametrize("path", DOUBLED.values(), ids=DOUBLED)
async def test_no_path_makes_much_of_little(path: str) -> None:
    assert len(path) <= paths.CHARACTERS
    paths.check(path)
    with anyio.fail_after(5), pytest.raises(ValueError, match="more than 262144 items and characters"):
        await anyio.to_thread.run_sync(paths.search, path, DOCUMENT)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("floor(`1e999`)", "infinity"),
        ("ceil(`NaN`)", "NaN"),
        ("sum(`[1e308, 1e308]`)", "inf, which JSON cannot hold"),
        ("{a: `NaN`}", "nan, which JSON cannot hold"),
        ("items[0:1:0]", "step cannot be zero"),
        ("&items", "an expression, and no value"),
        ("sort_by(@, &n)", "invalid type"),
        ("text | unknown(@)", "Unknown function"),
    ],
)
def test_what_a_path_cannot_find_is_said_in_a_short_line(path: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        paths.search(path, DOCUMENT)
    assert len(str(raised.value)) <= 100


@pytest.mark.parametrize("path", ["a" * 501, "(" * 400 + "a" + ")" * 400, "", "`", 5, ["a"], {"a": 1}, True])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InvalidInput, match=r"no JMESPath|at most 500"):
        paths.check(path)


def test_all_of_the_largest_result_can_be_taken_apart() -> None:
    largest = json.loads("[" + ",".join(["[1]"] * 16_000) + "]")  # 64 KB
    assert paths.search("items[*][0] | length(@)", {"items": largest}) == 16_000
    assert paths.search("items[][]", {"items": largest}) == [1] * 16_000
    assert paths.search("items[?n >= `1498`].{number: n, words: [name]} | [1].words[0]", DOCUMENT) == "item 1499"


async def test_a_task_whose_path_goes_too_far_has_failed_for_good_and_says_why(client: Client) -> None:
    value = await call(client, "create_task", kind="test.value", payload={"value": [1, 2]}, wait_seconds=10)
    for path in (DOUBLED["lists in lists"], "floor(`1e999`)"):
        payload = {"value": {"$result": value.facts["id"], "path": path}}
        taken = await call(client, "create_task", kind="test.value", payload=payload, wait_seconds=10)
        assert (taken.facts["status"], taken.facts["error"]["reason"]) == ("failed", "invalid_payload")
        assert taken.facts["error"]["message"].startswith("path '") and taken.facts["attempt"] == 1
