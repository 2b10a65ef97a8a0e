"""JSON lines: bytes cut into lines, a line read as a message, a message written as a line. No I/O."""

import codecs
import json
import logging
from typing import Any, cast

import mcp_types as mt
from pydantic import ValidationError

MOST_LINE_BYTES = 16 * 2**20
LONGEST_NUMBER = 4300  # digits; Python reads no longer ones, and an id has fewer
BLANK = b" \t\r"

log = logging.getLogger(__name__)


class Malformed(ValueError):
    """A line that is no message; `answer` is what its sender is told."""

    def __init__(self, code: int, text: str, request_id: mt.RequestId | None = None) -> None:
        super().__init__(text)
        self.answer = mt.JSONRPCError(jsonrpc="2.0", id=request_id, error=mt.ErrorData(code=code, message=text))


class Lines:
    """Cuts what arrives at line feeds and at nothing else. A line that is too long comes as None and is not kept."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """The lines that are whole now."""
        *ends, begun = chunk.split(b"\n")
        whole: list[bytes | None] = []
        for end in ends:
            self._add(end)
            whole.append(self._take())
        self._add(begun)
        return whole

    def rest(self) -> list[bytes | None]:
        """What came behind the last line feed, at the end of everything."""
        return [self._take()] if self._bytes else []

    def _add(self, part: bytes) -> None:
        self._bytes += len(part)
        if self._bytes <= MOST_LINE_BYTES:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _take(self) -> bytes | None:
        line = b"".join(self._parts) if self._bytes <= MOST_LINE_BYTES else None
        self._parts.clear()
        self._bytes = 0
        return line


def read(line: bytes | None) -> mt.JSONRPCMessage | None:
    """The message that a line of `Lines` holds; None of a blank one. Raises Malformed."""
    if line is None:
        raise Malformed(mt.INVALID_REQUEST, f"A line has at most {MOST_LINE_BYTES} bytes; this one was not read.")
    line = line.removeprefix(codecs.BOM_UTF8)
    try:
        message = mt.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError as error:
        if not line.strip(BLANK):
            return None
        raise _malformed(line, error) from None
    if isinstance(message, mt.JSONRPCNotification) and b'"id"' in line and "id" in json.loads(line):
        raise Malformed(mt.INVALID_REQUEST, "The id of a request is a string or an integer.")  # else nobody answers it
    return message


def written(message: mt.JSONRPCMessage) -> bytes:
    """The message as a line. An answer that JSON cannot hold becomes an error, a notification nothing.

    Raises ValueError when it is a request.
    """
    try:
        return message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
    except ValueError as error:
        if isinstance(message, mt.JSONRPCRequest):
            raise
        log.error("not sent, for JSON cannot hold it: %s", error)
        if isinstance(message, mt.JSONRPCNotification):
            return b""
        text = "The answer holds what JSON cannot; the server's log says more."
        return written(Malformed(mt.INTERNAL_ERROR, text, message.id).answer)


def _malformed(line: bytes, error: ValidationError) -> Malformed:
    """What is wrong with a line that is no message, under the id of the request that it was to be, if that is there."""
    try:
        value = json.loads(line.decode(), parse_int=_integer)
    except UnicodeDecodeError as wrong:
        return Malformed(mt.PARSE_ERROR, f"A line is UTF-8; byte {wrong.start} of this one is not.")
    except RecursionError:
        return Malformed(mt.INVALID_REQUEST, "This line is nested too deeply to be read.")
    except ValueError as wrong:
        return Malformed(mt.PARSE_ERROR, f"Each line is one JSON-RPC message; this one is no JSON: {wrong}.")
    if not isinstance(value, dict):
        text = "Each line is one JSON-RPC message, an object; there are no batches."
        return Malformed(mt.INVALID_REQUEST, text)
    found = cast(dict[str, Any], value)
    return Malformed(mt.INVALID_REQUEST, _wrong(found, error), _request_id(found))


def _wrong(found: dict[str, Any], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":  # grammatical, and yet more than we take: too deep, too long, half a character
        return f"This line cannot be read: {first['msg'].removeprefix('Invalid JSON: ')}."
    if found.get("jsonrpc") != "2.0":
        return 'A message has "jsonrpc": "2.0".'
    if "result" in found or "error" in found:
        return 'A response has an "id", and an object as its "result" or "error".'
    if not isinstance(found.get("method"), str):
        return 'A request has a "method", a string.'
    return 'The "params" of a request are an object.'


def _request_id(found: dict[str, Any]) -> mt.RequestId | None:
    """None for what should be a response: its id is one of ours, and an answer would be taken for that to a request."""
    request_id = found.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, int | str) or found.keys() & {"result", "error"}:
        return None
    encodable = isinstance(request_id, int) or request_id.encode("utf-8", "replace").decode() == request_id
    return request_id if encodable else None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= LONGEST_NUMBER else None
