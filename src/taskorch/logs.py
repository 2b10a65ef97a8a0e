"""What goes to stderr: a record is one line whatever text it holds, and no text can pass for a record of its own.

As text a traceback stands below its record, a line each; as JSON it is in it.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime

from taskorch.telemetry.context import ATTEMPT, ids, on_record

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


class Json(logging.Formatter):
    """An object a line, in ASCII; a traceback is one of its texts. What is not known of a record is left out."""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # what another handler made of the traceback may be longer
        attempt, trace = ATTEMPT.get(), ids()
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage()),
            **(on_record(*attempt) if attempt else {}),
            **{name: record.__dict__[name] for name in ("task_id", "attempt") if name in record.__dict__},
            **(dict(zip(("trace_id", "span_id"), trace, strict=True)) if trace else {}),
            **({"exception": _last(self.formatException(record.exc_info))} if record.exc_info else {}),
            **({"stack": _last(self.formatStack(record.stack_info))} if record.stack_info else {}),
        }
        return json.dumps(fields, default=str)


FORMATS = {"text": Plain(FORMAT), "json": Json()}


def start(level: str, form: str = "text") -> None:
    """Log to stderr, from that level on. `form`: one of FORMATS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form])
    logging.basicConfig(level=level, handlers=[handler])
    for name, least in TALKATIVE.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))


def _below(text: str) -> str:
    return "\n".join(BELOW + _line(line) for line in text.splitlines()[-LINES:])


def _last(text: str) -> str:
    return "\n".join(map(_cut, text.splitlines()[-LINES:]))


def _line(text: str) -> str:
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), _cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
