"""Lines and messages: what is cut where, what is read as what, and what is said of the rest."""

import json
from typing import Any

import mcp_types as mt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import Told

from taskorch.mcp.lines import MOST_LINE_BYTES, Lines, Malformed, read, written

LONGEST = MOST_LINE_BYTES


def cut(*chunks: bytes) -> list[bytes | None]:
    lines = Lines()
    return [line for chunk in chunks for line in lines.feed(chunk)] + lines.rest()


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"\r"))), st.data())
def test_lines_come_whole_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
    assert cut(*chunks) == lines


def test_what_is_behind_the_last_line_feed_comes_at_the_end() -> None:
    assert cut(b"a\nb") == [b"a", b"b"]
    assert cut(b"a\n") == [b"a"]


def test_a_line_is_taken_up_to_its_limit_and_skipped_beyond_it() -> None:
    assert cut(b"x" * LONGEST + b"\n") == [b"x" * LONGEST]
    assert cut(b"x" * (LONGEST + 1) + b"\nnext\n") == [None, b"next"]
    assert cut(b"x" * LONGEST, b"x", b"x" * LONGEST, b"x\nnext") == [None, b"next"]


def test_a_line_that_is_too_long_is_not_kept() -> None:
    lines = Lines()
    for _ in range(2 * LONGEST // 2**20):
        lines.feed(b"x" * 2**20)
    assert not lines._parts


@pytest.mark.parametrize("message", [{"id": 7, "method": "ping"}, {"id": "a", "result": {}}, {"method": "x"}])
def test_a_message_is_read_and_written_as_it_was(message: dict[str, Any]) -> None:
    line = json.dumps({"jsonrpc": "2.0"} | message, separators=(",", ":")).encode()
    found = read(line)
    assert found is not None
    assert written(found) == line + b"\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[]", "there are no batches"),
        (b"{", "this one is no JSON: Expecting property name"),
        (b'{"id": 1, "method": "x"}', '"jsonrpc": "2.0"'),
        (b'{"jsonrpc": "2.0", "id": 1}', 'a "method"'),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "x", "params": 1}', '"params" of a request are an object'),
        (b'{"jsonrpc": "2.0", "id": 1, "result": 1}', 'A response has an "id"'),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "x"}', "a string or an integer"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": "\\ud800"}}', "cannot be read: "),
        (b'"\xff"', "byte 1 of this one is not"),
        (None, f"at most {MOST_LINE_BYTES} bytes"),
    ],
)
def test_who_sent_what_is_no_message_is_told_why(line: bytes | None, said: str) -> None:
    with pytest.raises(Malformed) as refused:
        read(line)
    assert said in refused.value.answer.error.message
    assert str(refused.value) == refused.value.answer.error.message


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        (b'{"jsonrpc": "2.0", "id": 7}', 7),
        (b'{"jsonrpc": "2.0", "id": "seven"}', "seven"),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "x", "params": {"a": ' + b"9" * 5000 + b"}}", 7),
        (b'{"jsonrpc": "2.0", "id": ' + b"9" * 5000 + b', "method": "x"}', None),
        (b'{"jsonrpc": "2.0", "id": true}', None),
        (b'{"jsonrpc": "2.0", "id": "\\ud800"}', None),
        (b'{"jsonrpc": "2.0", "id": 7, "result": []}', None),
        (b'{"jsonrpc": "2.0", "id": 7, "error": []}', None),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "x", "params": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    ],
)
def test_what_should_be_a_request_is_refused_under_its_id(line: bytes, request_id: object) -> None:
    with pytest.raises(Malformed) as refused:
        read(line)
    assert refused.value.answer.error.code == -32600
    assert json.loads(written(refused.value.answer))["id"] == request_id


@pytest.mark.parametrize("line", [b"", b"\r", b" \t\r", b"\xef\xbb\xbf"])
def test_a_blank_line_is_nothing(line: bytes) -> None:
    assert read(line) is None


def test_a_byte_order_mark_is_no_part_of_a_message() -> None:
    assert read(b'\xef\xbb\xbf{"jsonrpc": "2.0", "id": 1, "method": "ping"}\r') is not None


@given(st.binary())
def test_any_line_is_a_message_or_blank_or_refused_in_words(line: bytes) -> None:
    try:
        assert read(line) is not None or not line.strip()
    except Malformed as refused:
        assert json.loads(written(refused.answer))["error"]["code"] in (-32700, -32600)


def test_an_id_inside_a_notifications_params_is_none_of_its_own() -> None:
    line = b'{"jsonrpc": "2.0", "method": "notifications/x", "params": {"id": 1.5}}'
    assert isinstance(read(line), mt.JSONRPCNotification)


def test_an_answer_with_half_a_character_becomes_an_error_of_that_call(told: Told) -> None:
    line = written(mt.JSONRPCResponse(jsonrpc="2.0", id="a", result={"text": "\ud800"}))
    assert (json.loads(line)["id"], json.loads(line)["error"]["code"]) == ("a", -32603)
    assert "surrogates not allowed" in told.lines[0]


def test_an_error_with_half_a_character_becomes_another_one_of_that_call() -> None:
    error = mt.ErrorData(code=-32602, message="no \udfff")
    answer = json.loads(written(mt.JSONRPCError(jsonrpc="2.0", id=3, error=error)))
    assert (answer["id"], answer["error"]["code"]) == (3, -32603)


def test_a_notification_with_half_a_character_is_left_out_and_a_request_is_the_askers_fault() -> None:
    params = {"uri": "task://\ud800"}
    assert written(mt.JSONRPCNotification(jsonrpc="2.0", method="x", params=params)) == b""
    with pytest.raises(ValueError, match="surrogates"):
        written(mt.JSONRPCRequest(jsonrpc="2.0", id=1, method="x", params=params))
