"""Changing one member of a JSON file: the rest stays to the byte, and what cannot be changed safely is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskorch.cli.jsontext import NotPlain, lenient, with_member, without_member

ENTRY = {"command": "/bin/taskorch", "env": {"A": "ü"}}
LAID_OUT = """{
  "z": 1.0,
  "mcpServers": {
    "other": {"command":"x",  "args": [ ]}
  },
  "é\\u00e9": [1,
     2]
}
"""

names = st.text(max_size=8) | st.sampled_from(["taskorch", "mcpServers", "}", '"', "//", "a,"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(names, values, max_size=4)
layouts = st.sampled_from([None, 0, 1, 2, 4, "\t", "compact"])


def laid_out(document: Any, layout: Any, ascii_only: bool, crlf: bool) -> str:
    if layout == "compact":
        return json.dumps(document, separators=(",", ":"), ensure_ascii=ascii_only)
    text = json.dumps(document, indent=layout, ensure_ascii=ascii_only)
    return text.replace("\n", "\r\n") if crlf else text


@given(documents, st.dictionaries(names, values, max_size=3), layouts, st.booleans(), st.booleans())
def test_any_document_gets_the_member_and_keeps_the_rest(
    document: dict[str, Any], servers: dict[str, Any], layout: Any, ascii_only: bool, crlf: bool
) -> None:
    document = document | {"mcpServers": servers}
    text = laid_out(document, layout, ascii_only, crlf)
    made = with_member(text, "mcpServers", "taskorch", ENTRY)
    assert json.loads(made) == document | {"mcpServers": servers | {"taskorch": ENTRY}}
    assert list(json.loads(made)) == list(document)
    assert with_member(made, "mcpServers", "taskorch", ENTRY) == made
    if "taskorch" not in servers and servers:
        assert without_member(made, "mcpServers", "taskorch") == text
    gone = json.loads(without_member(made, "mcpServers", "taskorch"))
    assert gone == document | {"mcpServers": {k: v for k, v in servers.items() if k != "taskorch"}}


@given(documents, layouts)
def test_a_document_without_the_section_gets_it(document: dict[str, Any], layout: Any) -> None:
    document.pop("mcpServers", None)
    made = with_member(laid_out(document, layout, False, False), "mcpServers", "taskorch", ENTRY)
    assert json.loads(made) == document | {"mcpServers": {"taskorch": ENTRY}}


def test_it_looks_like_its_neighbours() -> None:
    assert with_member(LAID_OUT, "mcpServers", "taskorch", {"command": "x", "args": ["a"]}) == LAID_OUT.replace(
        '"args": [ ]}\n',
        '"args": [ ]},\n    "taskorch": {\n      "command": "x",\n      "args": [\n        "a"\n      ]\n    }\n',
    )


def test_on_one_line_it_stays_on_one_line() -> None:
    assert with_member('{"s":{"a":1}}', "s", "t", [2]) == '{"s":{"a":1, "t": [2]}}'


@pytest.mark.parametrize("text", ["", " \r\n", "\ufeff"])
def test_an_empty_file_becomes_a_document(text: str) -> None:
    assert json.loads(with_member(text, "servers", "taskorch", ENTRY)) == {"servers": {"taskorch": ENTRY}}


def test_a_byte_order_mark_stays() -> None:
    made = with_member("\ufeff" + LAID_OUT, "mcpServers", "taskorch", ENTRY)
    assert made[0] == "\ufeff" and without_member(made, "mcpServers", "taskorch") == "\ufeff" + LAID_OUT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"servers": {} // mine\n}', "not plain JSON: it has comments or trailing commas"),
        ('{"servers": {},}', "not plain JSON: it has comments or trailing commas"),
        ('{"servers": {}', "not plain JSON: Expecting"),
        ("[" * 100_000, "not plain JSON"),
        ("[]", "not an object"),
        ('{"servers": []}', "servers is not an object"),
        ('{"servers": {}, "servers": {}}', "servers is in it 2 times"),
        ('{"servers": {"taskorch": 1, "\\u0074askorch": 2}}', "taskorch is in it 2 times"),
    ],
)
def test_what_cannot_be_changed_safely_is_refused(text: str, said: str) -> None:
    with pytest.raises(NotPlain, match=said):
        with_member(text, "servers", "taskorch", ENTRY)


def test_comments_and_trailing_commas_are_read() -> None:
    text = '\ufeff{ // "a": 1\n "b": "// no, /* no */, }", /* "c": 2,\n */ "d": [1, 2, // x\n ], }'
    assert lenient(text) == {"b": "// no, /* no */, }", "d": [1, 2]}
    for wrong in ('{"a": 1', "[" * 100_000, "{,}x"):
        with pytest.raises(ValueError):
            lenient(wrong)
