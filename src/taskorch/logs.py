"""What goes to stderr: a record is one line whatever text it holds, and no text can pass for a record of its own."""

import logging
import re
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CHARACTERS = 4_000  # of a line
LINES = 200  # of a traceback, the last ones
BELOW = "  | "  # begins each line of a traceback: a record begins with its time
# From here on: below it they tell whole tasks and messages, addresses and session ids, secrets included.
TALKATIVE = {
    "aiosqlite": logging.INFO,
    "mcp": logging.INFO,
    "mcp.client": logging.WARNING,
    "httpx2": logging.WARNING,
    "sse_starlette": logging.INFO,
    "uvicorn": logging.ERROR,  # of bytes that are no HTTP anybody may send as many as he likes
}
# Whatever ends a line, moves a terminal's cursor, or turns the direction of writing.
UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Plain(logging.Formatter):
    """Escapes control characters, cuts what is too long, and marks the lines of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # what another handler made of the traceback is not escaped
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _line(super().formatMessage(record))

    def formatException(self, ei: "tuple[type[BaseException], BaseException, object] | tuple[None, ...]") -> str:
        return _below(super().formatException(ei))  # pyright: ignore[reportArgumentType]

    def formatStack(self, stack_info: str) -> str:
        return _below(super().formatStack(stack_info))


def start(level: str) -> None:
    """Log to stderr, from that level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    for name, least in TALKATIVE.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))


def _below(text: str) -> str:
    return "\n".join(BELOW + _line(line) for line in text.splitlines()[-LINES:])


def _line(text: str) -> str:
    text = text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
