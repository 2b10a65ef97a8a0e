"""How a shim is followed: which wishes reach it and when, without a process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest

from taskorch.domain.task import BLANK, with_values
from taskorch.work import following
from taskorch.work.attempt import Attempt, Ending
from taskorch.work.following import follow
from taskorch.work.supervised import Supervised

SECONDS = 10


class Shim:
    """What is told to a shim that ends only when a test says so."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.over = anyio.Event()
        self.heard = anyio.Event()

    def terminate(self) -> None:
        self._hear("terminate")

    def kill(self) -> None:
        self._hear("kill")

    def wake(self) -> None:
        self._hear("wake")

    async def ended(self) -> None:
        await self.over.wait()

    def _hear(self, what: str) -> None:
        self.told.append(what)
        self.heard.set()


class Followed:
    """An attempt that is being followed. `goes_on`: the work would go on without us."""

    def __init__(self, timeout_seconds: float) -> None:
        self.shim = Shim()
        self.attempt = Attempt(with_values(BLANK, timeout_seconds=timeout_seconds), lambda attempt: None)
        self.goes_on = False
        self.listening = anyio.Event()
        self.ended: bool | None = None

    async def go(self, quiet_seconds: float) -> None:
        shim = cast(Supervised, self.shim)
        self.ended = await follow(self.attempt, shim, 0, lambda: self.goes_on, self._listen, quiet_seconds)

    async def _listen(self) -> None:
        self.listening.set()
        await anyio.sleep_forever()


@asynccontextmanager
async def followed(*, quiet_seconds: float = 0.0, timeout_seconds: float = 60.0) -> AsyncIterator[Followed]:
    """One that has been followed to its end when the block has ended, which has to see to that."""
    one = Followed(timeout_seconds)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(one.go, quiet_seconds)
            await anyio.wait_all_tasks_blocked()
            yield one


async def test_a_wish_said_again_terminates_once() -> None:
    """A second TERM to an adopted shim would mean: kill."""
    async with followed() as one:
        one.attempt.end(Ending.CANCEL)
        one.attempt.end(Ending.CANCEL)
        one.attempt.end(Ending.LOST)
        one.shim.over.set()
    assert (one.shim.told, one.ended) == (["terminate"], True)


async def test_a_wish_that_came_before_is_obeyed() -> None:
    shim, attempt = Shim(), Attempt(BLANK, lambda attempt: None)
    attempt.end(Ending.CANCEL)
    shim.over.set()
    assert await follow(attempt, cast(Supervised, shim), 0, lambda: False, anyio.sleep_forever)
    assert shim.told == ["terminate"]


@pytest.mark.parametrize("quiet_seconds", [0.0, 60.0], ids=["listening", "not yet listening"])
async def test_what_goes_on_without_us_is_let_go_and_told_nothing(quiet_seconds: float) -> None:
    async with followed(quiet_seconds=quiet_seconds) as one:
        one.goes_on = True
        one.attempt.end(Ending.STOP)
    assert (one.shim.told, one.ended) == ([], False)


async def test_a_stop_kills_what_does_not_heed_it_and_only_then() -> None:
    async with followed() as one:
        one.attempt.end(Ending.CANCEL)
        one.shim.heard = anyio.Event()
        one.attempt.end(Ending.STOP)
        assert one.shim.told == ["terminate"]
        asked = anyio.current_time()
        await one.shim.heard.wait()
        assert anyio.current_time() - asked > following.STOP_SECONDS / 2
        one.shim.over.set()
    assert one.shim.told == ["terminate", "kill"]


async def test_a_shim_that_is_long_past_its_limit_is_woken_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "WAKE_SECONDS", 0.01)
    async with followed(timeout_seconds=0.01) as one:
        for _ in range(3):
            await one.shim.heard.wait()
            one.shim.heard = anyio.Event()
        one.shim.over.set()
    assert set(one.shim.told) == {"wake"}


async def test_a_wish_that_comes_after_its_end_signals_nobody() -> None:
    """Its pid may be another's by then."""
    async with followed() as one:
        one.shim.over.set()
    one.attempt.end(Ending.CANCEL)
    assert one.shim.told == []


async def test_what_was_to_be_told_later_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "WAKE_SECONDS", 0.01)
    monkeypatch.setattr(following, "STOP_SECONDS", 0.01)
    async with followed(timeout_seconds=0.0) as one:
        one.attempt.end(Ending.STOP)
        one.shim.over.set()
    told = one.shim.told.copy()
    await anyio.sleep(0.05)  # nothing tells of what does not come
    assert one.shim.told == told


async def test_a_short_one_is_not_listened_to_and_a_long_one_is() -> None:
    async with followed(quiet_seconds=60.0) as one:
        one.shim.over.set()
    assert (one.listening.is_set(), one.ended) == (False, True)
    async with followed(quiet_seconds=0.01) as one:
        await one.listening.wait()
        one.shim.over.set()
    assert one.ended
