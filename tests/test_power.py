"""A disk after a power cut: the model of it, and that the store loses nothing that it has acknowledged."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from reliability import disk, power, records, trace
from reliability.disk import Disk, everything, nothing, some, torn

SEED = 2026


def synced(**files: bytes) -> Disk:
    """A disk on which these files are for certain."""
    drive = Disk()
    for name, content in files.items():
        drive.open(name)
        drive.write(name, 0, content)
        drive.sync(name)
    drive.sync_folder()
    return drive


# The disk.


def test_what_was_synced_is_there_whatever_the_cut_takes() -> None:
    drive = synced(a=b"one", b=b"two")
    for keep in (nothing, everything, some(random.Random(1)), torn(random.Random(1))):
        assert drive.after_cut(keep) == {"a": b"one", "b": b"two"}


def test_a_write_without_a_sync_may_be_lost_and_may_be_kept() -> None:
    drive = synced(a=b"one")
    drive.write("a", 1, b"ld one")
    assert drive.after_cut(nothing) == {"a": b"one"}
    assert drive.after_cut(everything) == {"a": b"old one"}


def test_a_sync_of_one_file_keeps_no_other() -> None:
    drive = synced(a=b"a", b=b"b")
    drive.write("a", 0, b"A")
    drive.write("b", 0, b"B")
    drive.sync("a")
    assert drive.after_cut(nothing) == {"a": b"A", "b": b"b"}


def test_a_synced_file_has_no_name_before_its_folder_is_synced() -> None:
    drive = Disk()
    drive.open("a")
    drive.write("a", 0, b"one")
    drive.sync("a")
    assert drive.after_cut(nothing) == {}
    assert drive.after_cut(everything) == {"a": b"one"}
    drive.sync_folder()
    assert drive.after_cut(nothing) == {"a": b"one"}


def test_an_unlinked_file_may_come_back_as_it_was() -> None:
    drive = synced(a=b"one")
    drive.unlink("a")
    assert drive.after_cut(nothing) == {"a": b"one"}
    assert drive.after_cut(everything) == {}
    drive.open("a")
    drive.write("a", 0, b"new")
    assert drive.after_cut(nothing) == {"a": b"one"}
    assert drive.after_cut(everything) == {"a": b"new"}
    drive.sync_folder()
    assert drive.after_cut(nothing) == {"a": b""}


def test_a_rename_happens_whole_or_not_at_all() -> None:
    drive = synced(old=b"old", new=b"new")
    drive.rename("new", "old")
    assert drive.after_cut(nothing) == {"old": b"old", "new": b"new"}
    assert drive.after_cut(everything) == {"old": b"new"}


def test_truncating_cuts_and_extends_and_waits_for_the_sync_too() -> None:
    drive = synced(a=b"abc")
    drive.truncate("a", 1)
    drive.truncate("a", 3)
    assert drive.after_cut(nothing) == {"a": b"abc"}
    assert drive.after_cut(everything) == {"a": b"a\0\0"}
    drive.open("a", truncate=True)
    assert drive.after_cut(everything) == {"a": b""}


def test_a_write_behind_the_end_leaves_zeros_between() -> None:
    drive = synced(a=b"a")
    drive.write("a", 3, b"d")
    assert drive.after_cut(everything) == {"a": b"a\0\0d"}


def test_some_keeps_a_late_write_without_an_early_one() -> None:
    drive = synced(a=b"....")
    for place in range(4):
        drive.write("a", place, b"x")
    found = {drive.after_cut(some(random.Random(seed)))["a"] for seed in range(500)}
    assert len(found) == 2**4


def test_a_torn_write_is_torn_at_sectors_and_nowhere_else() -> None:
    old, new = b"." * 2048, b"x" * 1024
    drive = synced(a=old)
    drive.write("a", 256, new)  # three sectors, the first and the last of them in part
    found = {drive.after_cut(torn(random.Random(seed)))["a"] for seed in range(500)}
    assert len(found) == 2**3
    for content in found:
        pieces = [content[256:512], content[512:1024], content[1024:1280]]
        assert all(len(set(piece)) == 1 for piece in pieces)
        assert content[:256] + content[1280:] == old[:256] + old[1280:]


def test_looking_at_a_cut_does_not_change_the_disk() -> None:
    drive = synced(a=b"one")
    drive.write("a", 0, b"two")
    drive.after_cut(everything)
    assert drive.after_cut(nothing) == {"a": b"one"}
    drive.sync("a")
    assert drive.after_cut(nothing) == {"a": b"two"}


def test_parts_of_a_write_make_the_whole() -> None:
    data = bytes(range(256)) * 9
    drive = synced(a=b"")
    drive.write("a", 700, data)
    assert drive.after_cut(lambda pending: [part for one in pending for part in disk.sectors(one)])["a"][700:] == data


# Reading the recording.


def as_hex(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def test_a_recording_tells_what_the_child_did_in_order(tmp_path: Path) -> None:
    base, wal = (f"<{as_hex(str(tmp_path / name))}>" for name in ("taskorch.db", "taskorch.db-wal"))
    opened = f'openat(AT_FDCWD<{as_hex("/")}>, "{as_hex(str(tmp_path / "taskorch.db-wal"))}", O_RDWR|O_CREAT, 0600'
    lines = [
        f"11 {opened}) = 4{wal}\n",
        f'11 pwrite64(4{wal}, "{as_hex("abc")}", 3, 32) = 3\n',
        f'12 pwrite64(3{base}, "{as_hex("d")}", 1, 0 <unfinished ...>\n',
        f"11 fdatasync(4{wal} <unfinished ...>\n",
        "12 <... pwrite64 resumed>) = 1\n",
        f'12 write(1<{as_hex("pipe:[1]")}>, "{as_hex("[1, 2]")}", 6) = 6\n',
        "11 <... fdatasync resumed>) = 0\n",
        f"11 fsync(5<{as_hex(str(tmp_path))}>) = 0\n",
        f"11 ftruncate(4{wal}, 100) = 0\n",
        f"11 fdatasync(4{wal}) = -1 EIO (Input/output error)\n",
        f'11 unlink("{as_hex(str(tmp_path / "taskorch.db-wal"))}") = 0\n',
        f"11 ftruncate(4{wal}(deleted), 100) = 0\n",
        f'11 pwrite64(6<{as_hex(str(tmp_path / "taskorch.db-shm"))}>, "{as_hex("x")}", 1, 0) = 1\n',
    ]
    assert list(trace.Recording(tmp_path, power.is_lasting).events(lines)) == [
        ("open", ("taskorch.db-wal",)),
        ("write", ("taskorch.db-wal", 32, b"abc")),
        ("write", ("taskorch.db", 0, b"d")),
        ("ack", (1, 2)),
        ("sync", ("taskorch.db-wal",)),
        ("sync_folder", ()),
        ("truncate", ("taskorch.db-wal", 100)),
        ("unlink", ("taskorch.db-wal",)),
    ]


def test_a_call_that_the_model_does_not_know_is_not_passed_over(tmp_path: Path) -> None:
    path = as_hex(str(tmp_path / "taskorch.db"))
    for line in (f'11 write(3<{path}>, "{as_hex("a")}", 1) = 1\n', f'11 rename("{path}", "{path}") = 0\n'):
        with pytest.raises(ValueError, match="not in the model"):
            list(trace.Recording(tmp_path, power.is_lasting).events([line]))


@pytest.mark.parametrize(
    ("was", "now", "lost"),
    [
        ((2, "working"), (2, "working"), False),
        ((2, "working"), (3, "completed"), False),
        ((2, "working"), (1, "waiting"), True),
        ((2, "working"), (2, "waiting"), True),
        ((2, "working"), None, True),
        ((power.NEVER, "deleting"), (3, "failed"), False),
        ((power.NEVER, "deleting"), None, False),
        ((power.NEVER, "deleted"), None, False),
        ((power.NEVER, "deleted"), (3, "failed"), True),
    ],
)
def test_a_row_may_be_further_than_acknowledged_but_never_behind(was: object, now: object, lost: bool) -> None:
    assert power.is_lost(was, now) is lost  # pyright: ignore[reportArgumentType]


# The store.


@pytest.fixture
def strace() -> None:
    if reason := trace.why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"strace must run here: {reason}")
        pytest.skip(f"strace cannot run here: {reason}")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(("synchronous", "cuts"), [("FULL", 1200), ("NORMAL", 150), ("OFF", 150)])
def test_only_synchronous_full_keeps_every_acknowledged_row_at_every_cut(synchronous: str, cuts: int) -> None:
    options = ["--cuts", str(cuts), "--synchronous", synchronous, "--seed", str(SEED)]
    run = subprocess.run(
        [sys.executable, "-m", "reliability", "power", *options], cwd=power.ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"cuts={cuts} " in run.stdout


# The supervisors' records.


@pytest.mark.usefixtures("strace")
def test_the_record_of_a_commands_end_is_whole_or_not_there_at_every_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert records.prove(10, SEED, None) == 0
    assert "supervisors=10 " in capsys.readouterr().out


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bug", records.BUGS)
def test_a_step_that_is_left_out_of_writing_it_is_found(bug: str, seed: int) -> None:
    assert records.prove(2, seed, bug) == 0
