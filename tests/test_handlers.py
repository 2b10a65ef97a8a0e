"""Handlers: how they are registered and called, and how they end, however strangely they do."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from pools import Gate, Payload, Pool, ok
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from taskorch.domain.errors import InvalidInput, NonRetryable, RetryAfter
from taskorch.domain.readiness import phase
from taskorch.domain.task import BLANK, Completed, Failed, Phase, Reason, Status, with_values
from taskorch.work import handlers
from taskorch.work.attempt import Attempt
from taskorch.work.handlers import Context, Handler, handler, load_handlers

AttemptOf = Callable[[Payload], Attempt]


@pytest.fixture
def attempt_of() -> AttemptOf:
    """An attempt with that payload, which no store knows of."""
    return lambda payload: Attempt(with_values(BLANK, payload=payload, timeout_seconds=10.0), lambda attempt: None)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a test registers is forgotten after it."""
    copy = dict(handlers._REGISTERED)
    monkeypatch.setattr(handlers, "_REGISTERED", copy)
    return copy


# Registering.


def test_a_registered_function_stays_a_plain_function() -> None:
    @handler("double")
    async def double(payload: Payload) -> int:
        return payload["n"] * 2

    assert asyncio.iscoroutinefunction(double)
    assert load_handlers("")["double"].max_attempts == 3


def test_starts_are_the_handlers_own_number_or_else_the_settings(registry: dict[str, Any]) -> None:
    handler("own", max_attempts=7)(ok)
    handler("other")(ok)
    loaded = load_handlers("", max_attempts=5)
    assert (loaded["own"].max_attempts, loaded["other"].max_attempts) == (7, 5)


@pytest.mark.parametrize("name", ["echo", "command", "tool", "mine"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    handler("mine")(ok)
    with pytest.raises(ValueError, match=f"the kind '{name}' is taken"):
        handler(name)(ok)


def no_payload() -> None: ...
def three(payload: Any, context: Any, more: Any) -> None: ...
def by_name(*, payload: Any) -> None: ...
def needs_more(payload: Any, *, size: int) -> None: ...
def anything(**payload: Any) -> None: ...


@pytest.mark.parametrize("function", [no_payload, three, by_name, needs_more, anything])
def test_a_function_that_cannot_be_called_is_refused_where_it_is_written(
    function: Callable[..., Any], registry: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=rf"handler {function.__name__} must take \(payload\) or \(payload, context\)"):
        handler("bad")(function)
    assert "bad" not in registry


async def test_options_of_its_own_do_not_disturb_a_call(pool: Pool) -> None:
    def with_option(payload: Payload, *, size: int = 4) -> int:
        return size

    async with pool.running(work=with_option):
        assert (await pool.ended(await pool.add())).result == 4


def test_modules_are_imported_by_name_and_register_their_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first_handlers", "second_handlers"):
        (tmp_path / f"{name}.py").write_text(
            f"from taskorch.work.handlers import handler\n@handler('{name}')\ndef run(payload): return payload\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_handlers("first_handlers, second_handlers,")
    assert {"first_handlers", "second_handlers", "echo", "sleep"} <= set(loaded)


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(ImportError, match="no_such_handlers"):
        load_handlers("no_such_handlers")


# Payloads.


class Resize(BaseModel):
    width: Annotated[int, Field(ge=1, le=9_999)]
    height: int = 10


class Mail(TypedDict):
    to: str


@dataclass
class Point:
    x: float
    y: float = 0.0


class Odd(BaseModel):
    """A model without a JSON schema."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    when: int
    helper: threading.Thread | None = None


async def resize(payload: Resize) -> Any:
    return type(payload).__name__, payload.width * payload.height


async def mail(payload: Mail) -> Any:
    return payload["to"]


def point(payload: Point) -> Any:
    return type(payload).__name__, payload.x + payload.y


def odd(payload: Odd) -> Any:
    return payload.when


@pytest.mark.parametrize(
    ("function", "payload", "text"),
    [
        (resize, {}, "payload.width is required"),
        (resize, {"width": 0}, "payload.width 0 is not allowed; it must be at least 1."),
        (resize, {"width": "wide"}, "payload.width 'wide' is not allowed; it must be a whole number."),
        (mail, {"to": 5}, "payload.to 5 is not allowed; it must be a string."),
        (point, {}, "payload.x is required"),
        (odd, {"when": "now"}, "payload.when 'now' is not allowed; it must be a whole number."),
    ],
)
def test_a_payload_is_checked_against_the_annotation_in_words(
    function: Callable[..., Any], payload: Payload, text: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        Handler(function).check(payload)
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (resize, ' The payload is {"width": integer, "height"?: integer}.'),
        (mail, ' The payload is {"to": string}.'),
        (point, ' The payload is {"x": number, "y"?: number}.'),
        (odd, "it must be a whole number."),  # JSON schema cannot say what it takes
    ],
)
def test_who_sends_a_wrong_payload_is_told_what_a_right_one_holds(function: Callable[..., Any], line: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Handler(function).check({"width": "wide", "to": 5, "x": "left", "when": "now"})
    assert str(refused.value).endswith(line)


def described(payload: Resize) -> None:
    """Make it fit.

    More about it.
    """


class Endless(BaseModel):
    size: float = float("inf")


def endless(payload: Endless) -> None: ...


def test_a_handler_says_what_it_does_and_takes() -> None:
    kind = Handler(described)
    assert kind.description == "Make it fit."
    assert kind.payload_schema() == Resize.model_json_schema()
    for function in (raising(OSError()), odd, endless):  # nothing that JSON schema, or JSON, could say
        assert (Handler(function).description, Handler(function).payload_schema()) == ("", None)


@pytest.mark.parametrize("function", [ok, lambda payload: payload])
def test_without_a_type_every_payload_is_accepted(function: Callable[..., Any]) -> None:
    Handler(function).check({"anything": [1, {"goes": None}]})


@pytest.mark.parametrize(
    ("function", "payload", "result"),
    [
        (resize, {"width": 4}, ["Resize", 40]),
        (mail, {"to": "a@b"}, "a@b"),
        (point, {"x": 1, "y": 2}, ["Point", 3.0]),
        (odd, {"when": "7"}, 7),
    ],
)
async def test_a_handler_receives_the_type_that_it_asks_for(
    pool: Pool, function: Callable[..., Any], payload: Payload, result: Any
) -> None:
    async with pool.running(work=function):
        assert (await pool.ended(await pool.add(payload=payload))).result == result


async def test_a_payload_that_no_longer_fits_fails_for_good_and_is_not_run(pool: Pool) -> None:
    """It was accepted by an older version of the handler."""
    async with pool.running(work=resize):
        task = await pool.ended(await pool.add(payload={"width": "wide"}, max_attempts=3))
    assert task.error is not None
    assert (task.status, task.error.reason, task.attempt) == (Status.FAILED, Reason.INVALID_PAYLOAD, 1)
    assert "payload.width 'wide'" in task.error.message


async def test_a_pydantic_model_is_a_result(pool: Pool) -> None:
    async with pool.running(work=lambda payload: Resize(width=3)):
        assert (await pool.ended(await pool.add())).result == {"width": 3, "height": 10}


# Results by annotation.


class Report(TypedDict):
    when: datetime
    paths: list[Path]


@dataclass
class Size:
    width: int
    height: int = 10


class Unknown:
    """Pydantic knows nothing of it."""


async def as_model(payload: Payload) -> Resize:
    return payload["value"]


def as_dataclass(payload: Payload) -> Size:
    return payload["value"]


def as_typed_dict(payload: Payload) -> Report:
    return payload["value"]


def as_number(payload: Payload) -> int:
    return payload["value"]


def as_sizes(payload: Payload) -> dict[str, Size | None]:
    return payload["value"]


def as_nothing(payload: Payload) -> None:
    return payload["value"]


def as_text(payload: Payload) -> str:
    return payload["value"]


def as_anything(payload: Payload) -> dict[str, Any]:
    return payload["value"]


def as_unknown(payload: Payload) -> Unknown:
    return payload["value"]


@pytest.mark.parametrize(
    ("function", "value", "result"),
    [
        (as_model, Resize(width=3), {"width": 3, "height": 10}),
        (as_model, {"width": 3}, {"width": 3, "height": 10}),
        (as_dataclass, Size(3), {"width": 3, "height": 10}),
        (
            as_typed_dict,
            {"when": datetime(2026, 1, 2, tzinfo=UTC), "paths": [Path("/tmp/a")]},
            {"when": "2026-01-02T00:00:00Z", "paths": ["/tmp/a"]},
        ),
        (as_number, 7, 7),
        (as_sizes, {"a": Size(1), "b": None}, {"a": {"width": 1, "height": 10}, "b": None}),
        (as_nothing, None, None),
        (as_anything, {"a": Size(1), "b": (1, 2)}, {"a": {"width": 1, "height": 10}, "b": [1, 2]}),
        (as_unknown, {"plain": "json"}, {"plain": "json"}),
    ],
)
async def test_what_a_handler_returns_becomes_json_as_its_annotation_says(
    function: Callable[..., Any], value: Any, result: Any, attempt_of: AttemptOf
) -> None:
    outcome = await Handler(function).run(attempt_of({"value": value}))
    assert isinstance(outcome, Completed)
    assert outcome.text is not None and (outcome.result, json.loads(outcome.text)) == (result, result)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (as_model, {}, "its result is not what its annotation says: result.width is required"),
        (as_model, None, "result None is not allowed; it must be an object."),
        (as_dataclass, {"width": "wide"}, "result.width 'wide' is not allowed; it must be a whole number."),
        (as_typed_dict, {"when": "soon", "paths": []}, "result.when 'soon' is not allowed"),
        (as_number, "many", "result 'many' is not allowed; it must be a whole number."),
        (as_number, None, "result None is not allowed; it must be a whole number."),
        (as_nothing, 5, "result 5 is not allowed; it must be null."),
        (as_text, b"\xff", "result b'\\xff' is not allowed; it must be a string."),
        (as_anything, {"a": object()}, "its result is not JSON: Unable to serialize unknown type: <class 'object'>"),
        (as_anything, {"a": float("inf")}, "its result is not JSON: Out of range float values"),
        (as_text, "x" * 65_535, "its result has 65537 bytes; at most 65536 are kept"),
        (as_unknown, Unknown(), "its result is not JSON: Object of type Unknown"),
    ],
)
async def test_a_result_that_does_not_fit_its_annotation_fails_for_good_in_words(
    function: Callable[..., Any], value: Any, text: str, attempt_of: AttemptOf
) -> None:
    """Running it again would return the same."""
    outcome = await Handler(function).run(attempt_of({"value": value}))
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.retryable) == (Reason.ERROR, False)
    assert text in outcome.message and len(outcome.message) <= 4_000


# The context.


async def test_the_context_says_which_task_and_which_start_this_is(pool: Pool) -> None:
    async def work(payload: Payload, context: Context) -> Any:
        task = context.task
        return [task.id, task.name, task.attempt, task.max_attempts, list(task.labels), context.cancelled]

    async with pool.running(work=work):
        task = await pool.ended(await pool.add(name="nightly", labels=("a",)))
    assert task.result == [task.id, "nightly", 1, 3, ["a"], False]


# The two that ship.


async def test_echo_gives_back_the_payload(pool: Pool) -> None:
    async with pool.running(**load_handlers("")):
        assert (await pool.ended(await pool.add("echo", {"a": 1}))).result == {"a": 1}


async def test_sleep_tells_how_far_it_is(pool: Pool) -> None:
    async with pool.running(**load_handlers("")):
        task = await pool.add("sleep", {"seconds": 0.05})
        working = await pool.seen(task, lambda task: task.progress is not None or task.ended)
        assert (await pool.ended(task)).result == {"slept_seconds": 0.05}
    assert working.progress is not None
    assert working.progress.total == 0.05


@pytest.mark.parametrize("payload", [{}, {"seconds": -1}, {"seconds": 86_401}, {"seconds": 1, "minutes": 2}])
def test_sleep_refuses_what_it_cannot_do(payload: Payload) -> None:
    with pytest.raises(InvalidInput, match=r"payload\.(seconds|minutes)"):
        load_handlers("")["sleep"].check(payload)


def test_a_name_that_a_handler_does_not_take_is_answered_with_those_that_it_takes() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'seconds'") as refused:
        load_handlers("")["sleep"].check({"second": 1, "seconds": 1})
    assert "Allowed: seconds" in str(refused.value)


# Handlers that end strangely.


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fail(payload: Any) -> Any:
        raise error

    return fail


def returning(value: Any) -> Callable[[Payload], Any]:
    return lambda payload: value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


STRANGE: dict[str, tuple[Callable[[Payload], Any], str]] = {
    "sys.exit": (lambda payload: sys.exit(3), "SystemExit: 3"),
    "CancelledError": (raising(asyncio.CancelledError()), "it cancelled itself"),
    "StopIteration": (raising(StopIteration()), "coroutine raised StopIteration"),
    "ExceptionGroup": (raising(ExceptionGroup("several", [OSError("disk"), ValueError()])), "OSError: disk"),
    "BaseExceptionGroup": (raising(BaseExceptionGroup("several", [SystemExit(4)])), "SystemExit: 4"),
    "surrogate in the error": (raising(ValueError("a\ud800b")), "ValueError: a?b"),
    "no text": (raising(AssertionError()), "AssertionError"),
    "NaN": (returning(float("nan")), "its result is not JSON"),
    "bytes": (returning(b"raw"), "its result is not JSON: Object of type bytes"),
    "object": (returning({"a": object()}), "its result is not JSON: Object of type object"),
    "lone surrogate": (returning("a\ud800"), "its result is not JSON"),
    "too long": (returning("x" * 65_535), "its result has 65537 bytes; at most 65536 are kept"),
    "too deep": (returning(nested(33)), "its result is nested more than 32 levels deep"),
    "endless": (returning(nested(100_000)), "its result is not JSON"),
}


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize(("function", "text"), STRANGE.values(), ids=STRANGE.keys())
async def test_a_strange_end_fails_the_attempt_in_words_and_nothing_else(
    pool: Pool, function: Callable[[Payload], Any], text: str, asynchronous: bool
) -> None:
    async def awaited(payload: Payload) -> Any:
        await anyio.lowlevel.checkpoint()
        return function(payload)

    async with pool.running(1, work=awaited if asynchronous else function, fine=ok):
        task = await pool.ended(await pool.add(max_attempts=1))
        fine = await pool.ended(await pool.add("fine"))  # the only slot goes on
    assert task.error is not None
    assert (task.status, task.error.reason) == (Status.FAILED, Reason.ERROR)
    assert text in task.error.message
    assert fine.status is Status.COMPLETED


async def test_the_largest_allowed_results_are_kept(pool: Pool) -> None:
    async def large(payload: Payload) -> Any:
        return "x" * 65_534 if payload["long"] else nested(32)

    async with pool.running(work=large):
        long = await pool.ended(await pool.add(payload={"long": True}))
        deep = await pool.ended(await pool.add(payload={"long": False}))
    assert (len(long.result), deep.result) == (65_534, nested(32))


async def test_a_result_may_be_null(pool: Pool) -> None:
    async with pool.running(work=returning(None)):
        task = await pool.ended(await pool.add())
    assert (task.status, task.result) == (Status.COMPLETED, None)


async def test_a_handler_that_cancels_its_own_asyncio_task_fails_and_the_slot_goes_on(pool: Pool) -> None:
    async def cancel(payload: Payload) -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await anyio.lowlevel.checkpoint()

    async def group(payload: Payload) -> str:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        return "fine"

    async with pool.running(1, cancel=cancel, group=group):
        task = await pool.ended(await pool.add("cancel", max_attempts=1))
        assert (await pool.ended(await pool.add("group"))).result == "fine"
    assert task.error is not None
    assert task.error.message == "it cancelled itself"


# Saying whether and when to try again.


@pytest.mark.parametrize(
    ("error", "wait_ms", "text"),
    [
        (RetryAfter(90, "the API is busy"), 90_000, "RetryAfter: the API is busy"),
        (RetryAfter(0.25), 250, "RetryAfter: again in 0.25 s"),
        (RetryAfter(float("inf")), 86_400_000, "RetryAfter: again in 86400 s"),
        (ExceptionGroup("one of a task group", [RetryAfter(7)]), 7_000, "RetryAfter: again in 7 s"),
    ],
)
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
async def test_a_handler_says_when_it_is_to_be_tried_again(
    pool: Pool, error: Exception, wait_ms: int, text: str, asynchronous: bool
) -> None:
    async def awaited(payload: Payload) -> None:
        raise error

    async with pool.running(work=awaited if asynchronous else raising(error)):
        began = pool.clock.now
        failed = await pool.seen(await pool.add(max_attempts=2), lambda task: task.error is not None)
        assert (failed.status, failed.attempt) == (Status.WAITING, 1)
        assert failed.error is not None and failed.run_at is not None
        assert (failed.run_at - began, failed.error.message) == (wait_ms, text)


def test_a_moment_that_has_passed_is_now() -> None:
    assert RetryAfter(-3).seconds == 0


async def test_a_wait_that_a_handler_asks_for_grants_no_start(pool: Pool) -> None:
    async with pool.running(work=raising(RetryAfter(0))):
        task = await pool.ended(await pool.add(max_attempts=2))
    assert (task.status, task.attempt) == (Status.FAILED, 2)


async def test_what_is_no_number_of_seconds_is_the_handlers_mistake(pool: Pool) -> None:
    def work(payload: Payload) -> None:
        raise RetryAfter(float("nan"))

    async with pool.running(work=work):
        task = await pool.ended(await pool.add(max_attempts=1))
    assert task.error is not None
    assert task.error.message == "ValueError: RetryAfter needs a number of seconds, not nan"


async def test_what_cannot_succeed_is_not_tried_again_from_within_a_group_either(pool: Pool) -> None:
    async def work(payload: Payload) -> None:
        raise ExceptionGroup("one of a task group", [NonRetryable("no such customer")])

    async with pool.running(work=work):
        task = await pool.ended(await pool.add(max_attempts=3))
    assert task.error is not None
    assert (task.attempt, task.error.message) == (1, "NonRetryable: no such customer")


# Synchronous handlers.


async def test_synchronous_handlers_run_in_threads_side_by_side(pool: Pool) -> None:
    together = threading.Barrier(2, timeout=5)

    def meet(payload: Payload) -> str:
        together.wait()
        return str(threading.get_ident())

    async with pool.running(2, work=meet):
        tasks = [await pool.add() for _ in range(2)]
        threads = {(await pool.ended(task)).result for task in tasks}
    assert len(threads) == 2
    assert str(threading.get_ident()) not in threads


async def test_synchronous_handlers_take_no_thread_from_anybody_else(pool: Pool) -> None:
    """anyio shares 40 threads: commands start and output is read in them."""
    release = threading.Event()
    try:
        async with pool.running(41, work=lambda payload: release.wait(10)):
            for task in [await pool.add() for _ in range(41)]:
                await pool.seen(task, lambda task: task.status is Status.WORKING)
            with anyio.fail_after(2):
                await anyio.to_thread.run_sync(threading.current_thread)
            release.set()
    finally:
        release.set()


async def test_a_cancelled_synchronous_handler_ends_when_it_returns_and_its_result_is_dropped(pool: Pool) -> None:
    begun, release = anyio.Event(), threading.Event()

    def stubborn(payload: Payload) -> str:
        anyio.from_thread.run_sync(begun.set)
        release.wait(10)
        return "too late"

    async with pool.running(work=stubborn):
        try:
            task = await pool.add()
            await begun.wait()
            await pool.store.cancel(task.id, "", "client")
            await anyio.wait_all_tasks_blocked()
            assert phase(await pool.get(task), pool.clock.now, {"work"}) is Phase.CANCELLING
        finally:
            release.set()
        task = await pool.ended(task)
    assert (task.status, task.result) == (Status.CANCELLED, None)


async def test_a_synchronous_handler_past_its_time_limit_fails_when_it_returns(pool: Pool) -> None:
    def slow(payload: Payload) -> str:
        time.sleep(0.05)
        return "too late"

    async with pool.running(work=slow):
        task = await pool.ended(await pool.add(max_attempts=1, timeout_seconds=0.01))
    assert task.error is not None
    assert (task.status, task.error.reason, task.result) == (Status.FAILED, Reason.TIMEOUT, None)


async def test_a_synchronous_handler_can_ask_whether_it_should_end(pool: Pool) -> None:
    begun = anyio.Event()

    def patient(payload: Payload, context: Context) -> str:
        anyio.from_thread.run_sync(begun.set)
        while not context.cancelled:
            anyio.from_thread.run(anyio.sleep, 0.001)
        return "half of it"

    async with pool.running(work=patient):
        task = await pool.add()
        await begun.wait()
        await pool.store.cancel(task.id, "", "client")
        assert (await pool.ended(task)).status is Status.CANCELLED


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
async def test_what_a_handler_leaves_that_was_told_to_end_is_no_result(pool: Pool, raises: bool) -> None:
    """It ends within the grace, but only because it was told so: half a result must not pass for one."""
    begun = anyio.Event()

    def patient(payload: Payload, context: Context) -> str:
        anyio.from_thread.run_sync(begun.set)
        while not context.cancelled:
            anyio.from_thread.run(anyio.sleep, 0.001)
        if raises:
            raise RuntimeError("cut short")
        return "half of it"

    async with pool.running(work=patient):
        task = await pool.add()
        await begun.wait()
    task = await pool.get(task)
    assert (task.status, task.attempt, task.interruptions) == (Status.WAITING, 1, 1)


# Progress.


async def test_progress_is_seen_while_the_handler_works(pool: Pool, gate: Gate) -> None:
    async def work(payload: Payload, context: Context) -> None:
        context.progress(2, 5, "second of five")
        await gate(payload)

    async with pool.running(work=work):
        task = await pool.seen(await pool.add(), lambda task: task.progress is not None)
        assert task.progress is not None
        assert (task.progress.value, task.progress.total, task.progress.message) == (2, 5, "second of five")
        assert (task.status, task.version) == (Status.WORKING, 2)
        gate.open.set()
        await pool.ended(task)


async def test_many_reports_are_few_writes_and_the_last_one_is_among_them(pool: Pool, gate: Gate) -> None:
    writes = 0

    def count(changes: Any) -> None:
        nonlocal writes
        writes += sum(task is not None and task.progress is not None for _, task in changes)

    async def work(payload: Payload, context: Context) -> None:
        for n in range(5_000):
            context.progress(n)
            await anyio.lowlevel.checkpoint()
        await gate(payload)

    async with pool.running(work=work):
        with pool.store.listening(count):
            task = await pool.add()
            await pool.seen(task, lambda task: task.progress is not None and task.progress.value == 4_999)
        gate.open.set()
    assert 1 <= writes < 50


async def test_progress_may_be_told_from_any_thread(pool: Pool) -> None:
    asyncio.get_running_loop().set_debug(True)  # it refuses what is not thread-safe
    release = threading.Event()

    def work(payload: Payload, context: Context) -> None:
        context.progress(1, 2)
        helper = threading.Thread(target=context.progress, args=(2, 2))
        helper.start()
        helper.join()
        release.wait(10)

    async with pool.running(work=work):
        try:
            task = await pool.add()
            await pool.seen(task, lambda task: task.progress is not None and task.progress.value == 2)
        finally:
            release.set()


@pytest.mark.parametrize(("value", "total"), [(float("nan"), None), (1, float("inf"))])
async def test_progress_that_json_cannot_hold_is_the_handlers_mistake(
    pool: Pool, value: float, total: float | None
) -> None:
    async def work(payload: Payload, context: Context) -> None:
        context.progress(value, total)

    async with pool.running(1, work=work, fine=ok):
        task = await pool.ended(await pool.add(max_attempts=1))
        await pool.ended(await pool.add("fine"))
    assert task.error is not None
    assert "progress must be finite numbers" in task.error.message


@pytest.mark.parametrize("error", [BaseException, KeyboardInterrupt])
@pytest.mark.parametrize("threaded", [False, True])
async def test_no_exception_of_a_handler_ends_the_pool(pool: Pool, error: type[BaseException], threaded: bool) -> None:
    async def breaks(payload: Payload) -> None:
        raise error("mine")

    def breaks_in_a_thread(payload: Payload) -> None:
        raise error("mine")

    async with pool.running(1, work=breaks_in_a_thread if threaded else breaks, fine=ok):
        task = await pool.ended(await pool.add(max_attempts=1))
        assert task.error is not None
        assert (task.error.reason, task.error.message) == (Reason.ERROR, f"{error.__name__}: mine")
        assert (await pool.ended(await pool.add("fine"))).status is Status.COMPLETED
