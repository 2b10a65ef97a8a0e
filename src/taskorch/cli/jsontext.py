"""Changing one member of a JSON document and not a byte of the rest: key order, indentation and line ends stay."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

BOM = "\ufeff"

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=[ \t\r\n]*[}\]])', re.DOTALL)


class NotPlain(ValueError):
    """The text cannot be changed safely; the message says why."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of an object: `key` to `start` is its name, `start` to `end` its value."""

    name: str
    key: int
    start: int
    end: int


def with_member(text: str, section: str, name: str, value: Any) -> str:
    """`text` with `{section: {name: value}}` in it; an empty text becomes a document. Raises NotPlain."""
    if _is_blank(text):
        return json.dumps({section: {name: value}}, indent=2, ensure_ascii=False) + "\n"
    root = _root(text)
    outer = _only(text, root, section)
    if outer is None:
        return _inserted(text, root, section, {name: value}, "")
    if text[outer.start] != "{":
        raise NotPlain(f"{section} is not an object")
    inner = _only(text, outer.start, name)
    if inner is None:
        return _inserted(text, outer.start, name, value, _indent(text, outer.key))
    return text[: inner.start] + _dumped(text, value, _indent(text, inner.key)) + text[inner.end :]


def without_member(text: str, section: str, name: str) -> str:
    """`text` without that member, or as it is if there is none. Raises NotPlain."""
    outer = _only(text, _root(text), section)
    if outer is None or text[outer.start] != "{":
        return text
    members = list(_members(text, outer.start))
    if _only(text, outer.start, name) is None:
        return text
    at = next(place for place, member in enumerate(members) if member.name == name)
    if len(members) == 1:
        return text[: outer.start] + "{}" + text[outer.end :]
    if at == 0:
        return text[: members[0].key] + text[members[1].key :]
    return text[: members[at - 1].end] + text[members[at].end :]


def lenient(text: str) -> Any:
    """The value of a document that may have comments and trailing commas, as VS Code allows; of an empty one `{}`.

    Raises ValueError.
    """
    if _is_blank(text):
        return {}
    plain = _COMMA.sub(_kept, _COMMENT.sub(_kept, text.removeprefix(BOM)))
    try:
        return json.loads(plain)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _is_blank(text: str) -> bool:
    return not text.strip(BOM + " \t\r\n")


def _kept(match: "re.Match[str]") -> str:
    return match[0] if match[0].startswith('"') else " "


def _root(text: str) -> int:
    """Where the object begins that the document is."""
    try:
        value = json.loads(text.removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"it is not plain JSON: {_comments(text) or error}") from None
    if not isinstance(value, dict):
        raise NotPlain("it is not an object")
    return text.index("{")


def _comments(text: str) -> str:
    """What keeps a sound document with comments from being changed; nothing of any other."""
    with suppress(ValueError):
        lenient(text)
        return "it has comments or trailing commas"
    return ""


def _only(text: str, start: int, name: str) -> _Member | None:
    found = [member for member in _members(text, start) if member.name == name]
    if len(found) > 1:
        raise NotPlain(f"{name} is in it {len(found)} times")
    return found[0] if found else None


def _members(text: str, start: int) -> Iterator[_Member]:
    """The members of the object that begins at `start`; the text is known to be sound."""
    at = _skip(text, start + 1)
    while text[at] != "}":
        name, colon = _decoded(text, at)
        value = _skip(text, _skip(text, colon) + 1)
        end = _decoded(text, value)[1]
        yield _Member(str(name), at, value, end)
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at


def _decoded(text: str, at: int) -> tuple[Any, int]:
    return _DECODER.raw_decode(text, at)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _inserted(text: str, start: int, name: str, value: Any, outer: str | None) -> str:
    """A new last member of the object at `start`, laid out as its neighbours are; `outer`: the object's own indent."""
    members = list(_members(text, start))
    if members:
        last = members[-1]
        before = text[_back(text, last.key) : last.key]
        made = f"{json.dumps(name, ensure_ascii=False)}: {_dumped(text, value, _indent(text, last.key))}"
        return f"{text[: last.end]},{before or ' '}{made}{text[last.end :]}"
    close = text.index("}", start)
    if outer is None:  # a document on one line
        return f"{text[: start + 1]}{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}{text[close:]}"
    line = _line_end(text)
    indent = outer + _unit(text)
    made = f"{json.dumps(name, ensure_ascii=False)}: {_dumped(text, value, indent)}"
    return f"{text[: start + 1]}{line}{indent}{made}{line}{outer}{text[close:]}"


def _back(text: str, at: int) -> int:
    return len(text[:at].rstrip(" \t\r\n"))


def _indent(text: str, at: int) -> str | None:
    """The white space before what begins its line at `at`; None if something else stands before it."""
    before = text[_back(text, at) : at]
    return before.rpartition("\n")[2] if "\n" in before else None


def _unit(text: str) -> str:
    """By what the document indents: its first indented member tells."""
    first = next(_members(text, text.index("{")), None)
    return (first and _indent(text, first.key)) or "  "


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _dumped(text: str, value: Any, indent: str | None) -> str:
    """The value as JSON: on one line where the document's own members do not begin lines."""
    if indent is None:
        return json.dumps(value, ensure_ascii=False)
    made = json.dumps(value, indent=_unit(text), ensure_ascii=False)
    return made.replace("\n", _line_end(text) + indent)
