"""docs/reference/tools.md says of each tool's arguments what the code says, and of each argument what it means.

`PYTHONPATH=tests python tests/test_tool_reference.py` renews what is taken from the code: the table of tools, and all
columns but the last one in the table of each tool. What is new gets an empty last cell, for you to fill in.
"""

from pathlib import Path
from typing import Any

import pytest
from bounds import allowed

from taskorch.mcp.tools import TOOLS, Tool

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "tools.md"
HEAD = ["argument", "type", "default", "meaning"]
WHOLE = ["tool", "title", "toolset", "hints"]
HINTS = ("read_only", "destructive", "idempotent", "open_world")


def test_the_reference_says_what_the_code_says() -> None:
    text = REFERENCE.read_text("utf-8")
    assert renewed(text) == text, "Run `PYTHONPATH=tests python tests/test_tool_reference.py`, look at the difference."


@pytest.mark.parametrize("name", TOOLS)
def test_the_reference_has_each_tool_and_says_what_each_argument_means(name: str) -> None:
    text = REFERENCE.read_text("utf-8")
    assert f"\n## {name}\n" in text
    told = meanings(sections(text)[name])
    assert told.keys() == TOOLS[name].arguments.model_fields.keys()
    assert [argument for argument, meaning in told.items() if not meaning] == []


def renewed(text: str) -> str:
    """The document with the tables of this code."""
    kept = {name: meanings(section) for name, section in sections(text).items()}
    whole = [[f"`{name}`", tool.title, tool.toolset, hints(tool)] for name, tool in TOOLS.items()]
    text = with_table(text, WHOLE, whole)
    for name in TOOLS:
        section = sections(text).get(name, "")
        text = text.replace(section, with_table(section, HEAD, rows(TOOLS[name], kept.get(name, {}))), 1)
    return text


def sections(text: str) -> dict[str, str]:
    """What stands under each heading, by the heading."""
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part}" for part in parts}


def meanings(section: str) -> dict[str, str]:
    """The last cells of the table of arguments, by argument."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    return {row[0].strip("`"): row[-1] for row in cells if len(row) == len(HEAD) and row[0].startswith("`")}


def with_table(text: str, head: list[str], table: list[list[str]]) -> str:
    """The text with these rows in the place of those of the first table with that head."""
    before, found, after = text.partition(f"| {' | '.join(head)} |\n")
    if not found:
        return text
    lines = after.splitlines(keepends=True)
    end = next((count for count, line in enumerate(lines) if not line.startswith("|")), len(lines))
    rows = [["---"] * len(head), *table]
    return before + found + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "".join(lines[end:])


def rows(tool: Tool, kept: dict[str, str]) -> list[list[str]]:
    schema = tool.arguments.model_json_schema()
    required = schema.get("required", [])
    return [
        [f"`{name}`", allowed(one), "required" if name in required else default(one.get("default")), kept.get(name, "")]
        for name, one in schema["properties"].items()
    ]


def hints(tool: Tool) -> str:
    return ", ".join(name.replace("_", " ") for name in HINTS if getattr(tool, name))


def default(value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    REFERENCE.write_text(renewed(REFERENCE.read_text("utf-8")), "utf-8")
