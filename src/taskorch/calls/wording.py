"""The pieces that replies are made of: times, texts cut to size, absent values."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from taskorch.storage.rows import dumps
from taskorch.work.output import clean

Facts = dict[str, Any]  # structured content: of a reply, or a part of one


def iso(ms: int) -> str:
    """ISO 8601, UTC, milliseconds, of fixed width."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clean_text(text: str) -> str:
    """Text that every wire can carry: lone surrogates become `?`."""
    return text.encode("utf-8", "replace").decode()


def present(**facts: Any) -> Facts:
    """Absent means empty; false, zero, empty lists and empty objects are values."""
    return {name: value for name, value in facts.items() if value is not None}


def cut_bytes(text: str | None, limit: int) -> str | None:
    """At most `limit` bytes of UTF-8, an ellipsis included where something is missing."""
    if text is None or len(text.encode("utf-8", "replace")) <= limit:
        return text
    return text.encode("utf-8", "replace")[: limit - 3].decode("utf-8", "ignore") + "…"


def cut_json(name: str, value: Any, limit: int) -> Facts:
    """The value by that name; if its JSON has more bytes: the beginning of that, and how many there are."""
    text = dumps(value)
    size = len(text.encode())
    return {name: value} if size <= limit else {name: cut_bytes(text, limit), f"{name}_bytes": size}


def counts_text(counts: Mapping[str, int]) -> str:
    """`3 waiting, 1 failed`."""
    return ", ".join(f"{number} {status}" for status, number in counts.items())


def visible(text: str) -> str:
    """A text of others as it may be shown: without what only a terminal understands, or nobody sees."""
    return clean(text.encode("utf-8", "replace"))


def visible_line(text: str) -> str:
    """The same on one line."""
    return " ".join(visible(text).split())


def safe_text(text: str | None, limit: int) -> str | None:
    """A message as it may be shown, cut to size."""
    return cut_bytes(visible(text), limit) if text is not None else None


def seconds_text(ms: int) -> str:
    """Milliseconds as `1.048 s`."""
    return f"{ms / 1000:.3f} s"
