"""A disk that is really full: what is refused and how, what goes on, what is lost (nothing that was answered)."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import Gate, call, connected, refused, settings, stored
from pools import log_lines
from servers import Place, Server, wait_for

from taskorch import app, engine
from taskorch.domain.task import Status
from taskorch.storage.place import free_bytes
from taskorch.work import settler, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")

SIZE = 3 << 20
BIG = "x" * 20_000
FULL = "The disk that holds the state folder is full. Nothing was changed. Free some space on it"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The state folder, on a disk of 3 MiB."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk can be mounted by root alone (with CAP_SYS_ADMIN)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path, left: int = 0) -> Iterator[None]:
    """Somebody else takes the disk's space, all but `left` bytes."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(folder) - left)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def served(folder: Path) -> Iterator[Place]:
    place = Place(folder)
    try:
        yield place
    finally:
        place.close()


def try_to_create(server: Server, name: str, **options: Any) -> dict[str, Any]:
    """The raw result, an error or not."""
    request = server.post_call("create_task", kind="hold", payload={"text": BIG}, name=name, **options)
    return server.answer(request)["result"]


def create_until_refused(server: Server, prefix: str) -> tuple[set[str], str]:
    """The names of those acknowledged, and what was said of the first that was not."""
    made: set[str] = set()
    for number in range(1000):
        result = try_to_create(server, f"{prefix}{number}")
        if result.get("isError"):
            return made, result["content"][0]["text"]
        made.add(result["structuredContent"]["name"])
    raise AssertionError("the disk did not become full")


def names(place: Place) -> set[str]:
    return {row["name"] for row in place.rows().values()}


# The server.


def test_a_full_disk_refuses_in_words_loses_nothing_and_is_recovered_from_without_a_restart(small: Path) -> None:
    with served(small.parent) as place:
        server = place.start()
        with filled(small, 600_000):
            made, said = create_until_refused(server, "early")
            assert said.startswith(FULL)
            assert made
            listed = server.call("list_tasks", limit=100)
            assert {task["name"] for task in listed["tasks"]} >= set(sorted(made)[:1]), "reads go on"
            assert server.call("get_task", task_id="early0")["status"] == "waiting"
            stats = server.call("get_stats")
            assert stats["store"]["free_bytes"] < 4 * len(BIG)
        late = try_to_create(server, "late")["structuredContent"]["name"]
        server.kill()
        assert names(place) == made | {late}, "all that was answered, and nothing that was refused"
        following = place.start()
        assert following.call("list_tasks", limit=1)["counts"]["waiting"] == len(made) + 1
        assert following.end() == 0


def test_a_disk_that_is_filled_again_and_again_loses_nothing(small: Path) -> None:
    with served(small.parent) as place:
        server = place.start()
        made = {try_to_create(server, "first")["structuredContent"]["name"]}
        for turn in range(4):
            with filled(small, 100_000 + 70_000 * turn):
                more, said = create_until_refused(server, f"turn{turn}-")
                assert said.startswith(("The disk that holds", "The store cannot be read or written"))
                made |= more
        assert server.end() == 0
        assert names(place) == made


def test_a_server_that_stops_on_a_full_disk_leaves_in_good_order(small: Path) -> None:
    with served(small.parent) as place:
        server = place.start()
        kept = server.create("hold")
        with filled(small):
            create_until_refused(server, "fill")
            assert server.end() == 0
        following = place.start()
        assert following.get(kept)["status"] == "waiting"
        assert following.end() == 0


def test_a_server_that_starts_on_a_full_disk_says_so(small: Path) -> None:
    with served(small.parent) as place:
        first = place.start()
        assert "name" in try_to_create(first, "kept")["structuredContent"]
        assert first.end() == 0
        with filled(small):
            second = place.start(handshake=False)
            assert second.left(10) == 2
            said = second.errors.read_text()
            assert "taskorch: could not start: " in said and "its disk is full" in said
        third = place.start()
        assert third.call("get_task", task_id="kept")["status"] == "waiting"
        assert third.end() == 0


def test_a_file_that_may_not_grow_is_told_as_a_full_disk_and_recovered_from(tmp_path: Path) -> None:
    """For those who cannot mount: a limit on file sizes stands for the full disk."""
    with served(tmp_path) as place:
        server = place.start()
        kept = try_to_create(server, "kept", delay_seconds=3600)["structuredContent"]["id"]
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (8192, limits[1]))
        result = try_to_create(server, "lost", delay_seconds=3600)
        assert "the disk that holds the state folder is full or failing" in result["content"][0]["text"]
        assert server.get(kept)["status"] == "waiting", "reads go on"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        again = try_to_create(server, "again", delay_seconds=3600)["structuredContent"]["id"]
        server.kill()
        assert place.rows().keys() == {kept, again}


# What runs on it.


async def test_nothing_is_started_on_a_disk_that_is_nearly_full_until_there_is_room(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LEAST_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.05)
    with log_lines() as told:
        async with app.running(settings(small.parent)) as running, connected(running.server, "auto") as client:
            with filled(small, 900_000):
                task_id = (await call(client, "create_task", kind="echo", payload={})).facts["id"]
                await told.line("nearly full: no task is started")
                assert (await running.service.queries.get(task_id)).status is Status.WAITING
            await stored(running, task_id, lambda task: task.status is Status.COMPLETED)


async def test_an_end_that_the_full_disk_refuses_is_stored_when_there_is_room(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LEAST_FREE_BYTES", 0)
    monkeypatch.setattr(settler, "RETRY_SECONDS", 0.05)
    gate = Gate()
    handlers = settings(small.parent, handlers="clients")
    with log_lines() as told:
        async with app.running(handlers) as running, connected(running.server, "auto") as client:
            task_id = (await call(client, "create_task", kind="test.gate", payload=gate.payload)).facts["id"]
            await gate.reached()
            with filled(small):
                assert (await refused(client, "create_task", kind="echo", payload={"text": BIG})).startswith(
                    ("The disk that holds", "The store cannot be")
                )
                gate.opened.set()
                await told.line("the ends of 1 attempts could not be stored")
                assert (await call(client, "get_task", task_id=task_id)).facts["status"] == "working"
            await stored(running, task_id, lambda task: task.result == "passed" and task.attempt == 1)


async def test_a_command_that_fills_the_disk_is_told_how_it_ended(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output costs bytes; its exit code waits for room to be stored, and nothing runs twice."""
    monkeypatch.setattr(engine, "LEAST_FREE_BYTES", 0)
    monkeypatch.setattr(settler, "RETRY_SECONDS", 0.05)
    hog = small / "hog"
    kept = f"until grep -qs begun {small}/output/*/*/output; do sleep 0.01; done"  # no event tells the command
    script = f"echo begun; {kept}; echo run >> {small.parent}/runs; cat /dev/zero > {hog}; seq 200000; exit 3"
    with log_lines() as told:
        async with app.running(settings(small.parent)) as running, connected(running.server, "auto") as client:
            made = await call(client, "create_task", payload={"argv": ["sh", "-c", script]}, max_attempts=2)
            await told.line("could not be stored")
            assert (await call(client, "get_task", task_id=made.facts["id"])).facts["status"] == "working"
            hog.unlink()
            await stored(running, made.facts["id"], lambda task: task.error is not None)
            task = await running.service.queries.get(made.facts["id"])
            assert task.error and (task.error.reason, task.error.exit_code, task.attempt) == ("exit_code", 3, 1)
            assert (small.parent / "runs").read_text() == "run\n"
            output = (await call(client, "get_task_output", task_id=task.id, offset=0)).facts["text"]
            assert output.startswith("begun\n")


def test_the_small_disk_is_small(small: Path) -> None:
    with filled(small), (small / "more").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        file.write(b"x" * 8192)
    wait_for(lambda: free_bytes(small) > SIZE // 2)
