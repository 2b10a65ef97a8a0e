"""Log lines that programs read: each an object by itself, which says what it is about."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from clients import TIME, call, connected, settings
from pools import written_log
from recording import recording

from taskorch import Context, handler, logs
from taskorch.app import running
from taskorch.domain.task import Completed
from taskorch.storage.store import Store

log = logging.getLogger("a handler's own")
WILD = 'first\r\n{"level": "ERROR"}\x1b[2J\u2028\u202e\x7f\x9b'
Lines = Callable[[], list[dict[str, Any]]]


@handler("test.logs.says", max_attempts=2)
async def _says(payload: dict[str, Any], context: Context) -> None:
    """It logs in the loop and in a thread, and fails at first."""
    log.warning("in the loop")
    await anyio.to_thread.run_sync(log.warning, "in a thread")
    if context.task.attempt == 1:
        raise ValueError(WILD)


@handler("test.logs.lost")
async def _lost(payload: dict[str, Any], context: Context) -> None:
    """While it runs, somebody else settles its attempt."""
    store = _STORES[0]
    assert await store.settle(context.task, Completed())


_STORES: list[Store] = []


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the log says as JSON; every line of it is an object, in ASCII without control characters."""
    with written_log("json") as written:

        def read() -> list[dict[str, Any]]:
            *found, rest = written.getvalue().split("\n")
            assert rest == "" and not [line for line in found if re.search("[^ -~]", line)]
            return [json.loads(line) for line in found]

        yield read


def test_a_record_says_when_how_bad_who_and_what_whatever_it_holds(lines: Lines) -> None:
    logging.getLogger(WILD).error("%s %s", WILD, "x" * 10_000)
    try:
        raise ValueError(WILD + "y\n" * 10_000)
    except ValueError:
        log.exception("it failed", stack_info=True)
    first, second = lines()
    assert first.keys() == {"time", "level", "logger", "message"}
    assert TIME.fullmatch(first["time"])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(first["time"])) < timedelta(minutes=1)
    assert (first["level"], first["logger"]) == ("ERROR", WILD)
    assert first["message"].startswith(f"{WILD} xxx") and len(first["message"]) == logs.CHARACTERS
    assert second["exception"].splitlines()[-1] == "y" and len(second["exception"].splitlines()) == logs.LINES
    assert "Stack (most recent call last)" in second["stack"]


async def test_each_record_of_an_attempt_names_it_wherever_it_comes_from(lines: Lines, tmp_path: Path) -> None:
    given = settings(tmp_path, log_format="json")
    async with running(given) as app, connected(app.server, "auto") as client:
        _STORES[:] = [app.service.store]
        wish = {"kind": "test.logs.says", "retry": {"first_delay_seconds": 0.001}}
        says, lost = (await call(client, "create_tasks", tasks=[wish, {"kind": "test.logs.lost"}])).facts["ids"]
        await call(client, "wait_for_tasks", task_ids=[says, lost])
    found = lines()
    own = [(line["message"], line["task_id"], line["attempt"]) for line in found if line["logger"] == log.name]
    assert own == [(text, says, attempt) for attempt in (1, 2) for text in ("in the loop", "in a thread")]
    [failure] = [line for line in found if "exception" in line]
    assert (failure["task_id"], failure["attempt"], failure["level"]) == (says, 1, "WARNING")
    assert failure["exception"].endswith(f"ValueError: {WILD}".splitlines()[-1])
    [dropped] = [line for line in found if "no longer ours" in line["message"]]
    assert (dropped["task_id"], dropped["attempt"]) == (lost, 1), "what the pool says of an attempt names it too"
    others = [line for line in found if "task_id" not in line]
    assert not [line for line in others if says in line["message"] or lost in line["message"]]
    assert not [line for line in found if "trace_id" in line], "nobody traces"


async def test_a_record_names_the_span_that_it_belongs_to(lines: Lines, tmp_path: Path) -> None:
    with recording() as recorded:
        given = settings(tmp_path, log_format="json")
        async with running(given) as app, connected(app.server, "auto") as client:
            await call(client, "create_task", kind="test.logs.says", max_attempts=1, wait_seconds=10)
        span = recorded.span("task.run test.logs.says").get_span_context()
    own = {(line["trace_id"], line["span_id"]) for line in lines() if line["logger"] == log.name}
    assert span and own == {(f"{span.trace_id:032x}", f"{span.span_id:016x}")}
