"""Measurements that are true: counted from what was committed, once, whoever asked for the change."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio.to_thread
import pytest
from clients import Gate, call, connected, settings
from fakes import Clock
from pools import Pool, broken, ok
from recording import Recorded, recording

from taskorch.app import App, running
from taskorch.domain.errors import StoreError
from taskorch.domain.task import Failed, Interrupted, NewTask, Priority, Reason
from taskorch.storage import additions
from taskorch.storage.database import Database, Transaction
from taskorch.storage.reading import depth
from taskorch.storage.store import Store
from taskorch.telemetry.instruments import Instruments, Now

DOCUMENT = Path(__file__).parents[1] / "docs" / "how-to" / "observability.md"


def documented() -> set[str]:
    """The instruments that the document has a row for."""
    rows = re.findall(r"^\| (`taskorch\..*?) \|.*(?:counter|histogram|gauge)", DOCUMENT.read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall("`(.*?)`", row)]
    return {f"taskorch.task{name}" if name.startswith(".") else name for name in names}


@pytest.fixture
def counted(database: Database, store: Store) -> Iterator[Recorded]:
    """What the store's changes come to. `store` is made before, as it sets the database's own hook."""
    recorded = Recorded()
    meter = recorded.measures.get_meter("test")
    database.on_moves.append(Instruments(meter, Now(lambda: None, 4, lambda: 3)).count)
    yield recorded
    recorded.measures.shutdown()


async def test_each_task_and_attempt_is_counted_once_whatever_becomes_of_it(
    counted: Recorded, pool: Pool, store: Store, clock: Clock
) -> None:
    async with pool.running(work=ok, fails=broken):
        await pool.ended(await pool.add("work", priority=Priority.HIGH))
        waits = await pool.add("work", run_at=clock.now + 60_000)
        await store.cancel(waits.id, "", "test")
        flaky = await pool.add("fails", max_attempts=2)
        await pool.backing_off(flaky)
        clock.advance(7)  # it waits 1 to 2 s for its second attempt
        await store.promote()
        await pool.ended(flaky)
        await store.delete(flaky.id, False, "test")
        expires = await pool.add("nobody", expires_at=clock.now + 1000)
        clock.advance(2)
        await store.promote()
        await pool.ended(expires)
    points = counted.points()
    assert points["taskorch.task.created"] == {
        ("work", "high"): 1,
        ("work", "medium"): 1,
        ("fails", "medium"): 1,
        ("nobody", "medium"): 1,
    }
    assert points["taskorch.task.acquired"] == {("work",): 1, ("fails",): 2}
    assert points["taskorch.task.attempts"] == {("work", "completed"): 1, ("error", "fails", "failed"): 2}
    assert points["taskorch.task.completed"] == {("work",): 1}
    assert points["taskorch.task.failed"] == {("error", "fails"): 1, ("expired", "nobody"): 1}
    assert points["taskorch.task.cancelled"] == {("work",): 1}
    assert points["taskorch.task.run.duration"] == {("work", "completed"): (1, 0), ("fails", "failed"): (2, 0)}
    waited = points["taskorch.task.queue.wait"]
    assert waited[("work",)] == (1, 0)
    times, seconds = waited[("fails",)]
    assert times == 2 and 5 <= seconds <= 6, "from when the backoff was over, not from the failure"
    assert points["taskorch.slots"] == {(): 4} and points["taskorch.slots.busy"] == {(): 3}


async def test_an_attempt_takes_as_long_as_it_ran_and_one_that_was_given_back_is_no_failure(
    counted: Recorded, pool: Pool, store: Store, clock: Clock
) -> None:
    owner = await store.register("uuid", 1, "0", ["work"])
    task = await pool.add("work", max_attempts=1)
    clock.advance(3)
    [claimed] = await store.claim(owner, {"work": 0}, 1)
    clock.advance(10)
    await store.settle_all([(claimed, Failed(Reason.TIMEOUT, "", retryable=False), clock.now - 8000)])
    points = counted.points()
    assert points["taskorch.task.queue.wait"] == {("work",): (1, 3)}
    assert points["taskorch.task.run.duration"] == {("work", "failed"): (1, 8)}
    assert points["taskorch.task.failed"] == {("timeout", "work"): 1}
    await store.retry(task.id, None, "test")
    [again] = await store.claim(owner, {"work": 0}, 1)
    await store.settle(again, Interrupted("the server stopped"))
    assert counted.points()["taskorch.task.attempts"] == {
        ("timeout", "work", "failed"): 1,
        ("interrupted", "work", "interrupted"): 1,
    }
    assert counted.points()["taskorch.task.failed"] == {("timeout", "work"): 1}, "a retry takes nothing back"


async def test_what_was_not_committed_is_not_counted(
    counted: Recorded, pool: Pool, store: Store, database: Database
) -> None:
    await pool.add("work")

    def add(tx: Transaction) -> None:
        additions.insert(tx, [additions.Wish(NewTask("other", {}, 1, 60.0)).row(store.now(), blocked=False)], 10)
        tx.execute("PRAGMA defer_foreign_keys=ON")  # what the commit itself refuses
        tx.execute("INSERT INTO firings(schedule, at, task) VALUES (98, 0, 99)")

    with pytest.raises(StoreError):
        await database.write(add)
    assert counted.points()["taskorch.task.created"] == {("work", "medium"): 1}


@pytest.fixture
async def observed(tmp_path: Path) -> AsyncIterator[tuple[App, Recorded]]:
    with recording() as recorded:
        async with running(settings(tmp_path)) as app:
            yield app, recorded


async def test_a_server_tells_what_waits_and_works_whenever_somebody_collects(
    observed: tuple[App, Recorded], tmp_path: Path
) -> None:
    app, recorded = observed
    gate = Gate()
    async with connected(app.server, "auto") as client:
        tasks = [{"kind": "test.gate", "payload": gate.payload}] * 3 + [{"kind": "echo", "delay_seconds": 3600}]
        ids = (await call(client, "create_tasks", tasks=tasks)).facts["ids"]
        await gate.reached()
        points = await anyio.to_thread.run_sync(recorded.points)  # collected in a thread, as by exporters
        assert set(points) <= documented()
        assert points["taskorch.active_tasks"] == {("waiting",): 2, ("working",): 2}
        assert points["taskorch.queue_size"] == {(): 1}
        assert points["taskorch.slots.busy"] == {(): 2} and points["taskorch.slots"] == {(): 2}
        gate.opened.set()
        await call(client, "wait_for_tasks", task_ids=ids[:3])
    points = recorded.points()
    assert documented() - points.keys() == {"taskorch.task.failed", "taskorch.task.cancelled"}, "what there was none of"
    assert points["taskorch.task.completed"] == {("test.gate",): 3}
    assert depth(tmp_path / "nowhere" / "taskorch.db") is None
