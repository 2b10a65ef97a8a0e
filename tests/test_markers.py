"""What a command writes of its progress is heard, whatever the pieces it comes in and whatever stands around it."""

import random

import pytest

from taskorch.domain.task import Progress
from taskorch.work.markers import LONGEST, Markers

HEARD = [
    (b"::progress 40\n", Progress(40, 100)),
    (b"::progress 40%\n", Progress(40, 100)),
    (b"::progress 40 linking the program\n", Progress(40, 100, "linking the program")),
    (b"::progress 3/12 files\r\n", Progress(3, 12, "files")),
    (b"::progress 2.5/10\n", Progress(2.5, 10)),
    (b"::progress 400\n", Progress(100, 100)),
    (b"before\n::progress 1 a\nbetween\n::progress 2 b\nafter\n", Progress(2, 100, "b")),
    (b"\x1b]9;4;1;73\x07", Progress(73, 100)),
    (b"half a line \x1b]9;4;1;73\x1b\\ goes on", Progress(73, 100)),
    (b"\x1b]9;4;2;20\x07", Progress(20, 100)),
    (b"::progress 5\n\x1b]9;4;1;6\x07", Progress(6, 100)),
    (b"::progress 7 \xff\xfe\n", Progress(7, 100, "\ufffd\ufffd")),
]
NOTHING = [
    b"::progress\n",
    b"::progress forty\n",
    b" ::progress 40\n",
    b"say ::progress 40\n",
    b"::progress 40",  # the line has not ended
    b"::progress -1\n",
    b"::progress 1e9\n",
    b"\x1b]9;4;0\x07",
    b"\x1b]9;4;3\x07",
    b"\x1b]9;1;40\x07",
    b"::progress " + b"9" * 5_000 + b"\n",
    bytes(range(256)) * 20,
    b"",
]


@pytest.mark.parametrize(("written", "told"), HEARD)
def test_a_marker_is_heard_in_one_piece_and_in_many(written: bytes, told: Progress) -> None:
    assert Markers().read(written) == told
    for seed in range(20):
        chance, markers, rest, heard = random.Random(seed), Markers(), written, []
        while rest:
            size = chance.randint(1, 6)
            heard.append(markers.read(rest[:size]))
            rest = rest[size:]
        assert [progress for progress in heard if progress][-1] == told


@pytest.mark.parametrize("written", NOTHING)
def test_what_is_no_marker_says_nothing(written: bytes) -> None:
    assert Markers().read(written) is None


def test_nothing_is_heard_twice_and_little_is_kept() -> None:
    markers = Markers()
    assert markers.read(b"x" * 100_000 + b"\n::progress 40 a\n") == Progress(40, 100, "a")
    assert markers.read(b"more\n") is None
    markers.read(b"y" * 1_000_000)
    assert len(markers._rest) <= LONGEST
