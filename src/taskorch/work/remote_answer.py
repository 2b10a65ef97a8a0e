"""What calling a tool of another MCP server can come to: the answer and what it is worth as a result; the failures.

Values only. Blocks are content as on the wire: {"type": "text", "text": …} and its kin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from taskorch.storage.rows import dumps
from taskorch.work.outcomes import bounded

Block = dict[str, Any]

BINARY_CHARACTERS = 1_024  # base64 longer than this is told of, not kept


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool answered."""

    blocks: Sequence[Block]
    structured: Any = None
    is_error: bool = False


class Caller(Protocol):
    """Who hears how a call comes along."""

    def tell(self, value: float, total: float | None, message: str | None) -> None:
        """Its progress."""
        ...

    def handed(self, task_id: str) -> None:
        """The server has made a protocol task of it, which outlives the connection."""
        ...


class NotConnected(Exception):
    """There is no connection, so nothing was asked for; `final`: another try would not find one."""

    def __init__(self, text: str, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Lost(Exception):
    """The connection ended while the call was under way: whether it had its effect is not known."""


class Refused(Exception):
    """The server answered with an error of the protocol; `final`: the same call would be refused again."""

    def __init__(self, text: str, final: bool) -> None:
        super().__init__(text)
        self.final = final


def value_of(answer: Answer) -> Any:
    """The result: the structured content; else the text, a list of texts if there are several; else the blocks.

    Longer binary content is replaced by its number of bytes.
    """
    if answer.structured is not None:
        return answer.structured
    texts = _texts(answer.blocks)
    if len(texts) == len(answer.blocks):
        return texts[0] if len(texts) == 1 else texts or None
    return [_bounded(block) for block in answer.blocks]


def error_of(answer: Answer) -> str:
    """What the tool says of its failure, bounded."""
    texts = _texts(answer.blocks)
    text = "\n".join(texts).strip()
    if not text and (answer.structured is not None or len(texts) < len(answer.blocks)):
        text = dumps(value_of(answer))
    return cleaned(text) or "the tool reported an error and said nothing about it"


def cleaned(text: str) -> str:
    """What can be stored and encoded, bounded."""
    return bounded(text).strip()


def _texts(blocks: Sequence[Block]) -> list[str]:
    return [block["text"] for block in blocks if block.get("type") == "text"]


def _bounded(block: Block) -> Block:
    if isinstance(inner := block.get("resource"), dict):
        return block | {"resource": _bounded(cast(Block, inner))}
    for name in ("data", "blob"):
        if isinstance(data := block.get(name), str) and len(data) > BINARY_CHARACTERS:
            kept = {key: value for key, value in block.items() if key != name}
            return kept | {"bytes": len(data) * 3 // 4 - data[-2:].count("=")}
    return block
