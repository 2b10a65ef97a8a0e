"""Reading output: every kept byte can be read, nothing hostile gets through, and a reply never grows too large."""

import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskorch.work import output
from taskorch.work.output import Slice, activity, clean, grep, read

HEAD, SEGMENT = 262_144, 393_216


def lay(folder: Path, data: bytes, head: int = HEAD, segment: int = SEGMENT) -> list[tuple[int, int]]:
    """Write `data` as the shim leaves it; gives the (begin, end) of every kept run."""
    folder.mkdir(exist_ok=True)
    (folder / "output").write_bytes(data[:head])
    starts = list(range(head, len(data), segment))
    for start in starts[-2:]:
        (folder / f"output.{start}").write_bytes(data[start : start + segment])
    if len(starts) <= 2:
        return [(0, len(data))] if data else []
    return [(0, head), (starts[-2], len(data))]


def pages(folder: Path, max_bytes: int, look: Callable[..., Slice] = read) -> Iterator[Slice]:
    """Every slice from the beginning to the end; fails when one makes no progress."""
    page = look(folder, offset=0, max_bytes=max_bytes)
    yield page
    while page.next_offset < page.total_bytes:
        before = page.next_offset
        page = look(folder, offset=before, max_bytes=max_bytes)
        assert page.next_offset > before
        yield page


def json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


# Bytes that have a meaning somewhere, so that chance meets the interesting cases.
hostile = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\x1b[31m", b"\x1b[2K", b"\x1b[K", b"\x1b[1G", b"\x1b]0;t\x07", b"\x1b]8;;u\x1b\\", b"\x1bP", b"\x1b"]
            + [b"\r", b"\n", b"\r\n", b"\x08", b"\0", b'"', b"\\" * 9, b"\x9b31m", b"\xc2\x9b1m", b"\xed\xa0\x80"]
            + [
                text.encode()
                for text in ("\u202e", "\u200b", "\ufeff", "€", "😀", "é", "needle", "NEEDLE", "\U000e0041")
            ]
        ),
    ),
    max_size=60,
).map(b"".join)


# --- clean -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        ("grün €😀".encode(), "grün €😀"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b[38:2::1:2:3mtrue colour\x1b[m", "true colour"),
        (b"\x1b[?25lhidden cursor\x1b[?25h", "hidden cursor"),
        (b"a\x1b]0;title\x07b", "ab"),
        (b"\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"a\xc2\x9d0;title\xc2\x9cb\xc2\x9b31mc", "abc"),
        (b"a\x1bPdevice string\x1b\\b\x1b_app\x1b\\c\x1b^privacy\x1b\\d\x1bXsos\x1b\\e", "abcde"),
        (b"\x1b(Ba\x1b=b\x1b7c\x1bMd\x1b#8e", "abcde"),
        (b"\x1b\x1b[31mx", "x"),
        (b"\x1b\x1b[31m[31mx", "[31mx"),
        (b"\x1b\x00[31mx", "x"),
        (b"cut \x1b[31", "cut "),
        (b"cut \x1b[31\nnext", "cut \nnext"),
        (b"lone \x1b", "lone "),
        (b"\x1b]never closed\nand what follows", "never closed\nand what follows"),
        (b"\x1bPnever closed \x1b[1mand what follows", "never closed and what follows"),
        (b"10%\r20%\r100%\n", "100%\n"),
        (b"10%\r20%\r100%", "100%"),
        (b"10%\r20%\r100%\r\n", "100%\n"),
        (b"downloading\rok\n", "okwnloading\n"),
        (b"downloading\r           \rok\n", "ok\n"),
        (b"downloading\r           \r\nnext\n", "\nnext\n"),
        (b"downloading\r\x1b[Kok\n", "ok\n"),
        (b"downloading\rok\x1b[K\n", "ok\n"),
        (b"downloading\x1b[2K\x1b[1Gok\n", "ok\n"),
        (b"downloading\x1b[2K\rok\n", "ok\n"),
        (b"downloading\r\x1b[K\nnext", "\nnext"),
        (b"10%\x1b[G20%\x1b[1G100%\n", "100%\n"),
        (b"one\r\ntwo  \r\nthree\r\r\n", "one\ntwo  \nthree\n"),
        (b"\r\r\n\r", "\n"),
        (b"pass\x08\x08word", "password"),
        (b"a\x00b\x01c\x07d\x0be\x0cf\x0eg\x1fh\x7fi", "abcdefghi"),
        ("a\x80b\x85c\x9fd".encode(), "abcd"),
        ("user\u202etxt.exe".encode(), "user<U+202E>txt.exe"),
        ("\u2066a\u2069\u200eb\u200fc\u061cd".encode(), "<U+2066>a<U+2069><U+200E>b<U+200F>c<U+061C>d"),
        ("in\u200bvi\u200csi\u200dble\u2060\ufeff".encode(), "in<U+200B>vi<U+200C>si<U+200D>ble<U+2060><U+FEFF>"),
        ("tag\U000e0041\U000e0100".encode(), "tag<U+E0041><U+E0100>"),
        ("a\u2028b\u2029c\u00add".encode(), "a<U+2028>b<U+2029>c<U+00AD>d"),
        (b"bad \xff\xfe utf-8", "bad \ufffd\ufffd utf-8"),
        (b"cut \xe2\x82", "cut \ufffd"),
        (b"surrogate \xed\xa0\x80", "surrogate \ufffd\ufffd\ufffd"),
        (b"overlong \xc0\xaf", "overlong \ufffd\ufffd"),
        (b"", ""),
    ],
)
def test_hostile_bytes_become_safe_text(written: bytes, shown: str) -> None:
    assert clean(written) == shown


@given(hostile)
def test_clean_text_holds_no_control_or_hidden_character(data: bytes) -> None:
    text = clean(data)
    assert all(unicodedata.category(character) not in ("Cc", "Cs") for character in text if character not in "\n\t")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u061c\u2060\ufeff]", text)


@given(hostile)
def test_cleaning_twice_changes_nothing(data: bytes) -> None:
    assert clean(clean(data).encode()) == clean(data)


@given(hostile)
def test_cleaning_keeps_every_line(data: bytes) -> None:
    assert clean(data).count("\n") == data.count(b"\n")


@pytest.mark.parametrize(
    "unit",
    [
        b"\x1b[",
        b"\x1b]",
        b"\xc2\x9d",
        b"\xc2\x9b1",
        b"\x1b]a\x1b",
        b"\x1b[1;",
        b"\x1b ",
        b"\r",
        b"a\r",
        b"\x1b[K",
        b"\x08",
    ],
)
def test_a_megabyte_of_anything_is_cleaned_at_once(unit: bytes) -> None:
    """Nothing measures time here: were one of these quadratic, the test would not end."""
    count = 1_000_000 // len(unit)
    clean(unit * count)
    clean(b"x" * 500_000 + unit * (count // 2))
    clean(b"\x1b]" + unit * count)
    clean(b"\x1b[" + b"1" * 1_000_000 + unit)


# --- read ------------------------------------------------------------------------------------------------------------


def test_a_missing_folder_reads_as_empty(tmp_path: Path) -> None:
    empty = Slice("", 0, 0, 0, 0)
    assert read(tmp_path / "gone") == empty
    assert read(tmp_path / "gone", offset=0) == empty
    assert read(tmp_path / "gone", offset=99) == empty
    assert grep(tmp_path / "gone", "x") == empty
    assert activity(tmp_path / "gone") == (0, None)


def test_a_command_that_wrote_nothing_reads_as_empty(tmp_path: Path) -> None:
    lay(tmp_path, b"")
    (tmp_path / "progress.json").write_text("{}")
    assert read(tmp_path) == read(tmp_path, offset=0) == Slice("", 0, 0, 0, 0)
    assert activity(tmp_path) == (0, None)


def test_short_output_is_read_whole(tmp_path: Path) -> None:
    lay(tmp_path, b"one\ntwo\n")
    assert read(tmp_path) == read(tmp_path, offset=0) == Slice("one\ntwo\n", 0, 8, 8, 0)
    assert read(tmp_path, offset=4) == Slice("two\n", 4, 8, 8, 0)


@pytest.mark.parametrize("offset", [8, 9, 10**30])
def test_an_offset_at_or_beyond_the_end_gives_the_end(tmp_path: Path, offset: int) -> None:
    lay(tmp_path, b"one\ntwo\n")
    assert read(tmp_path, offset=offset) == Slice("", 8, 8, 8, 0)
    assert grep(tmp_path, "o", offset=offset) == Slice("", 8, 8, 8, 0)


def test_the_tail_starts_at_a_line(tmp_path: Path) -> None:
    lay(tmp_path, b"".join(b"line %04d\n" % number for number in range(1000)))
    assert read(tmp_path, max_bytes=95) == Slice(
        "".join(f"line {n:04}\n" for n in range(991, 1000)), 9910, 10000, 10000, 0
    )


def test_a_tail_that_happens_to_start_at_a_line_loses_none(tmp_path: Path) -> None:
    lay(tmp_path, b"".join(b"line %04d\n" % number for number in range(1000)))
    assert read(tmp_path, max_bytes=100).text.startswith("line 0990\n")


def test_the_tail_of_a_giant_line_starts_where_it_must(tmp_path: Path) -> None:
    lay(tmp_path, b"x" * 5000)
    assert read(tmp_path, max_bytes=1000) == Slice("x" * 1000, 4000, 5000, 5000, 0)


def test_the_tail_starts_behind_a_cut_character(tmp_path: Path) -> None:
    lay(tmp_path, ("😀" * 100).encode())
    assert read(tmp_path, max_bytes=39) == Slice("😀" * 9, 364, 400, 400, 0)


def test_a_whole_output_that_starts_with_bad_bytes_shows_them(tmp_path: Path) -> None:
    lay(tmp_path, b"\x80\x80 not text")
    assert read(tmp_path) == Slice("\ufffd\ufffd not text", 0, 11, 11, 0)


def test_an_unfinished_character_is_left_for_the_next_slice(tmp_path: Path) -> None:
    lay(tmp_path, "ab€".encode()[:-1])
    assert read(tmp_path) == read(tmp_path, offset=0) == Slice("ab", 0, 2, 4, 0)
    lay(tmp_path, "ab€".encode())
    assert read(tmp_path, offset=2) == Slice("€", 2, 5, 5, 0)


def test_a_character_that_is_never_finished_is_shown_as_bad(tmp_path: Path) -> None:
    lay(tmp_path, b"ab\xe2\x82")
    assert read(tmp_path, offset=2) == Slice("\ufffd", 2, 4, 4, 0)


@pytest.mark.parametrize("max_bytes", [-1, 0, 1, 4, 5, 7])
def test_the_smallest_slices_cut_no_character(tmp_path: Path, max_bytes: int) -> None:
    text = "a€😀éß" * 20
    lay(tmp_path, text.encode())
    assert "".join(page.text for page in pages(tmp_path, max_bytes)) == text


def test_an_unclosed_escape_string_hides_nothing_at_the_end(tmp_path: Path) -> None:
    lay(tmp_path, b"ok\n\x1bPthe last words")
    assert read(tmp_path).text == "ok\nthe last words"


@pytest.mark.parametrize("max_bytes", range(8, 24))
def test_an_escape_sequence_across_two_slices_leaves_no_rest(tmp_path: Path, max_bytes: int) -> None:
    lay(tmp_path, b"\x1b[31mred\x1b[0m and \x1b(Bplain " * 20)
    assert "".join(page.text for page in pages(tmp_path, max_bytes)) == "red and plain " * 20


@pytest.mark.parametrize(
    "data",
    [b"\\" * 9000, b'"' * 9000, b"\xff" * 9000, b"\t" * 9000, "\u202e".encode() * 3000, b"x" * 4500 + b"\xff" * 4500],
)
def test_text_that_inflates_covers_fewer_bytes_and_skips_none(tmp_path: Path, data: bytes) -> None:
    lay(tmp_path, data)
    seen = list(pages(tmp_path, 2048))
    tail = read(tmp_path, max_bytes=2048)
    assert [page.offset for page in seen[1:]] == [page.next_offset for page in seen[:-1]]
    assert "".join(page.text for page in seen) == clean(data)
    assert all(json_bytes(page.text) <= 2048 * 4 // 3 + 64 for page in (*seen, tail))
    assert tail.next_offset == len(data)
    assert tail.text == clean(data[tail.offset :])
    assert len(tail.text) > 250  # it used its room


def test_an_offset_in_the_dropped_middle_moves_to_the_next_kept_byte(tmp_path: Path) -> None:
    data = os.urandom(2_000_000).hex().encode()[:2_000_000]
    (_, gap), (begin, _) = lay(tmp_path, data)
    assert (gap, begin) == (HEAD, HEAD + 3 * SEGMENT)
    moved = read(tmp_path, offset=gap + 5, max_bytes=100)
    assert moved == Slice(data[begin : begin + 100].decode(), begin, begin + 100, len(data), begin - gap)
    assert read(tmp_path, offset=gap, max_bytes=100) == moved


def test_a_slice_ends_where_bytes_were_dropped(tmp_path: Path) -> None:
    data = b"x" * (HEAD - 2) + "€".encode() * 500_000
    (_, gap), (begin, _) = lay(tmp_path, data)
    last = read(tmp_path, offset=gap - 5)
    assert (last.text, last.next_offset) == ("xxx\ufffd", gap)  # cut for good, so it is not held back
    assert read(tmp_path, offset=last.next_offset).offset == begin


def test_the_tail_never_reaches_across_dropped_bytes(tmp_path: Path) -> None:
    _, (begin, end) = lay(tmp_path, bytes(range(32, 127)) * 10, head=10, segment=50)
    tail = read(tmp_path, max_bytes=900)
    assert (tail.offset, tail.next_offset, tail.total_bytes) == (begin, end, 950)
    assert tail.dropped_bytes == begin - 10


@pytest.mark.parametrize("total", [60, 105, 110, 950, 1020])
def test_the_tail_reaches_across_segments(tmp_path: Path, total: int) -> None:
    data = (bytes(range(32, 127)) * 11)[:total]
    lay(tmp_path, data, head=10, segment=50)
    assert read(tmp_path, max_bytes=57).text == data[-57:].decode()


@given(
    data=hostile,
    head=st.integers(1, 40),
    segment=st.integers(1, 60),
    max_bytes=st.integers(1, 300),
    times=st.integers(1, 6),
)
@example(data=b"\xe2\x82\xac" * 9, head=4, segment=5, max_bytes=1, times=1)
def test_reading_page_by_page_covers_every_kept_byte_once(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: int, segment: int, max_bytes: int, times: int
) -> None:
    data *= times
    folder = tmp_path_factory.mktemp("attempt")
    runs = lay(folder, data, head, segment)
    positions: list[int] = []
    for page in pages(folder, max_bytes):
        assert page.next_offset - page.offset <= max(max_bytes, 4)
        assert page.text == clean(data[page.offset : page.next_offset])
        assert json_bytes(page.text) <= max(max_bytes, 4) * 4 // 3 + 64
        assert page.total_bytes - page.dropped_bytes == sum(end - begin for begin, end in runs)
        assert page.total_bytes == len(data)
        positions += range(page.offset, page.next_offset)
    assert positions == [position for begin, end in runs for position in range(begin, end)]


@given(data=hostile, head=st.integers(1, 40), segment=st.integers(1, 60), max_bytes=st.integers(1, 300))
def test_the_tail_shows_what_it_says_and_never_more_than_allowed(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: int, segment: int, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("attempt")
    lay(folder, data, head, segment)
    tail = read(folder, max_bytes=max_bytes)
    assert tail.text == clean(data[tail.offset : tail.next_offset])
    assert json_bytes(tail.text) <= max(max_bytes, 4) * 4 // 3 + 64
    assert tail.offset < tail.next_offset <= tail.total_bytes or not data
    assert set(clean(data[tail.next_offset :])) <= {"\ufffd"}  # only an unfinished character or escape is left


# --- files that move while we look -----------------------------------------------------------------------------------


def while_listing(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Let `happen` run once, right after the folder was listed and before anything is opened."""
    listing = output._listing
    once = [happen]

    def listed(folder: Path) -> list[tuple[int, str]]:
        found = listing(folder)
        if once:
            once.pop()()
        return found

    monkeypatch.setattr(output, "_listing", listed)


@pytest.mark.parametrize(
    "look", [lambda folder: read(folder, max_bytes=4).next_offset, lambda folder: activity(folder)[0]]
)
def test_a_segment_that_vanishes_after_the_listing_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], int]
) -> None:
    lay(tmp_path, b"x" * 105, head=10, segment=50)

    def rotate() -> None:
        (tmp_path / "output.60").write_bytes(b"y" * 50)
        (tmp_path / "output.110").write_bytes(b"z" * 7)
        (tmp_path / "output.10").unlink()

    while_listing(monkeypatch, rotate)
    assert look(tmp_path) == 117


def test_retention_between_listing_and_opening_reads_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "1", b"text")

    def retention() -> None:
        (tmp_path / "1" / "output").unlink()
        (tmp_path / "1").rmdir()

    while_listing(monkeypatch, retention)
    assert read(tmp_path / "1") == Slice("", 0, 0, 0, 0)


def test_what_is_open_stays_readable_and_as_long_as_it_was(tmp_path: Path) -> None:
    lay(tmp_path, b"before")
    with output._open(tmp_path) as kept:
        with (tmp_path / "output").open("ab") as more:
            more.write(b" and after")
        (tmp_path / "output").unlink()
        assert (kept.bytes(*kept.run(0)), kept.total) == (b"before", 6)


def test_no_file_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, b"x" * 105, head=10, segment=50)
    before = os.listdir("/dev/fd")
    while_listing(monkeypatch, (tmp_path / "output.60").unlink)
    read(tmp_path)
    grep(tmp_path, "x", max_bytes=4)
    assert os.listdir("/dev/fd") == before


def test_growing_output_is_followed_without_a_hole(tmp_path: Path) -> None:
    data = "".join(f"{number}: grün €😀\n" for number in range(300)).encode()
    seen, offset = "", 0
    for size in range(0, len(data) + 1, 7):
        lay(tmp_path, data[:size], head=100_000)
        page = read(tmp_path, offset=offset)
        seen, offset = seen + page.text, page.next_offset
    lay(tmp_path, data)
    assert seen + read(tmp_path, offset=offset).text == data.decode()


def test_a_reader_beside_a_rotating_writer_sees_only_what_was_written(tmp_path: Path) -> None:
    data = b"".join(b"%06d of a line\n" % number for number in range(100_000))
    head, segment = 20_000, 30_000
    started = threading.Event()

    def write() -> None:
        starts = [0, *range(head, len(data), segment)]
        for index, start in enumerate(starts):
            name = f"output.{start}" if start else "output"
            with (tmp_path / name).open("wb", buffering=0) as file:
                for at in range(start, min(len(data), start + segment if start else head), 5_000):
                    file.write(data[at : min(at + 5_000, start + segment if start else head)])
            if index > 2:
                (tmp_path / f"output.{starts[index - 2]}").unlink()
            started.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert started.wait(5)
    offset, total, alive = 0, 0, True
    while alive or offset < total:
        alive = writer.is_alive()
        page = read(tmp_path, offset=offset, max_bytes=3000)
        assert page.text == data[page.offset : page.next_offset].decode()
        assert page.offset == offset or page.dropped_bytes
        assert page.total_bytes >= total
        offset, total = page.next_offset, page.total_bytes
    writer.join()
    assert total == len(data)


@pytest.mark.parametrize(
    "name", ["output.x", "output.", "output.-5", "output.12.tmp", "output.٣", "shim.lock", "exit.json"]
)
def test_other_files_are_not_output(tmp_path: Path, name: str) -> None:
    lay(tmp_path, b"mine")
    (tmp_path / name).write_bytes(b"not mine")
    assert read(tmp_path) == Slice("mine", 0, 4, 4, 0)


def test_links_and_pipes_are_not_output(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "output").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "output.6")
    assert read(tmp_path) == Slice("", 0, 0, 0, 0)
    assert activity(tmp_path) == (0, None)


# --- activity --------------------------------------------------------------------------------------------------------


def test_activity_tells_size_and_time_of_the_last_write(tmp_path: Path) -> None:
    lay(tmp_path, b"x" * 1000, head=10, segment=50)
    for path in tmp_path.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    os.utime(tmp_path / "output.960", (1_700_000_042, 1_700_000_042.5))
    assert activity(tmp_path) == (1000, 1_700_000_042.5)


# --- grep ------------------------------------------------------------------------------------------------------------


def test_grep_gives_the_lines_with_the_needle(tmp_path: Path) -> None:
    lay(tmp_path, b"all good\nERROR one\nfine\nan \x1b[31merr\x1b[0mor two\r\n\nError")
    assert grep(tmp_path, "error") == Slice("ERROR one\nan error two\nError", 0, 53, 53, 0)


def test_grep_takes_the_needle_as_plain_text(tmp_path: Path) -> None:
    lay(tmp_path, b"abc\na.c\n[x\n")
    assert grep(tmp_path, "a.c").text == "a.c"
    assert grep(tmp_path, "[X").text == "[x"


def test_grep_without_a_match_has_searched_everything(tmp_path: Path) -> None:
    lay(tmp_path, b"one\ntwo\n")
    assert grep(tmp_path, "three") == Slice("", 0, 8, 8, 0)


@pytest.mark.parametrize(
    ("line", "needle"),
    [
        ("ÄRGER", "ärger"),
        ("straße", "STRASSE"),
        ("STRASSE", "straße"),
        ("ΟΔΟΣ", "οδος"),
        ("Привет", "пРИВЕТ"),
        ("ŒUVRE", "œuvre"),
    ],
)
def test_grep_ignores_case_in_every_language(tmp_path: Path, line: str, needle: str) -> None:
    lay(tmp_path, f"other\n{line}\nother\n".encode())
    assert grep(tmp_path, needle).text == line


def test_grep_searches_from_the_offset_on(tmp_path: Path) -> None:
    lay(tmp_path, b"hit 1\nhit 2\nhit 3\n")
    assert grep(tmp_path, "hit", offset=6) == Slice("hit 2\nhit 3", 6, 18, 18, 0)


def test_grep_goes_on_at_the_first_line_it_left_out(tmp_path: Path) -> None:
    lay(tmp_path, b"".join(b"%s %04d\n" % (b"miss" if number % 3 else b"hit!", number) for number in range(3000)))
    seen = list(pages(tmp_path, 500, lambda folder, **where: grep(folder, "HIT", **where)))
    assert len(seen) > 10
    assert all(len(page.text.encode()) <= 500 for page in seen)
    assert "\n".join(page.text for page in seen).split("\n") == [f"hit! {number:04}" for number in range(0, 3000, 3)]


def test_grep_gives_a_line_that_is_larger_than_the_room_for_all(tmp_path: Path) -> None:
    lay(tmp_path, b"x" * 300 + b"needle" + b'"' * 300 + b"\nneedle\n")
    first = grep(tmp_path, "needle", max_bytes=4)
    assert "needle" in first.text
    assert json_bytes(first.text) <= 69
    assert grep(tmp_path, "needle", offset=first.next_offset, max_bytes=4) == Slice("needle", 607, 614, 614, 0)


def test_grep_finds_what_lies_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_CHUNK", 10)
    lay(tmp_path, b"".join(b"." * before + b"needle\n" for before in range(25)))
    found = [line.rstrip("…") for line in grep(tmp_path, "needle").text.split("\n")]
    assert found == ["." * before + "needle" for before in range(25)]


@pytest.mark.parametrize("before", [0, 10, 65_533, 65_536, 131_070, 250_000, HEAD - 3, 500_000, 999_990])
def test_grep_finds_a_needle_anywhere_in_a_giant_line(tmp_path: Path, before: int) -> None:
    line = b"x" * before + "nädel".encode() + b"y" * (1_000_000 - before)
    lay(tmp_path, b"first\n" + line + b"\nN\xc3\x84DEL at the end\n", segment=2**20)
    giant, last = grep(tmp_path, "NÄdel").text.split("\n")
    assert "nädel" in giant
    assert giant.startswith("…") == (before > 197)
    assert giant.endswith("y…") or before == 999_990
    assert len(giant) <= 400
    assert last == "NÄDEL at the end"


def test_a_giant_line_with_many_matches_is_given_once(tmp_path: Path) -> None:
    lay(tmp_path, b"needle " * 30_000 + b"\nneedle")
    assert [len(line) for line in grep(tmp_path, "needle").text.split("\n")] == [399, 6]


def test_a_search_holds_only_a_chunk_of_a_giant_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, b"x" * 1_000_000, segment=2**20)
    sizes: list[int] = []
    monkeypatch.setattr(output, "clean", lambda data: sizes.append(len(data)) or clean(data))
    grep(tmp_path, "needle")
    assert sum(sizes) == 1_000_000
    assert max(sizes) <= 65_536


def test_a_long_matching_line_is_cut_around_the_match(tmp_path: Path) -> None:
    lay(tmp_path, b"a" * 1000 + b"needle" + b"b" * 1000 + b"\n" + b"c" * 394 + b"needle\n")
    cut, whole = grep(tmp_path, "Needle").text.split("\n")
    assert cut == "…" + "a" * 196 + "needle" + "b" * 196 + "…"
    assert whole == "c" * 394 + "needle"


def test_the_cut_finds_the_match_although_folding_made_the_line_longer(tmp_path: Path) -> None:
    lay(tmp_path, ("ß" * 1000 + "needle" + "b" * 1000).encode())
    assert grep(tmp_path, "needle").text == "…" + "ß" * 196 + "needle" + "b" * 196 + "…"


def test_grep_searches_on_behind_the_dropped_bytes(tmp_path: Path) -> None:
    data = b"".join(b"line %06d\n" % number for number in range(200_000))
    (_, gap), (begin, _) = lay(tmp_path, data)
    found = grep(tmp_path, "5000")
    assert "line 005000" in found.text
    assert "line 195000" in found.text
    assert found.dropped_bytes == begin - gap
    assert grep(tmp_path, "line", offset=gap, max_bytes=100).offset == begin


def test_lines_cut_by_dropped_bytes_are_not_joined(tmp_path: Path) -> None:
    data = b"0123456nee" + b"-" * 100 + b"dle 89\n" + b"z" * 93
    lay(tmp_path, data, head=10, segment=50)
    assert (tmp_path / "output.110").read_bytes().startswith(b"dle")
    assert grep(tmp_path, "needle").text == ""
    assert grep(tmp_path, "dle").text == "dle 89"
    assert grep(tmp_path, "nee").text == "0123456nee"


@given(
    data=hostile,
    chunk=st.integers(8, 60),
    head=st.integers(1, 40),
    segment=st.integers(1, 60),
    max_bytes=st.integers(1, 300),
)
def test_grep_always_gets_to_the_end_within_its_bounds(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk: int, head: int, segment: int, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("attempt")
    lay(folder, data, head, segment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_CHUNK", chunk)
        for page in pages(folder, max_bytes, lambda where, **rest: grep(where, "needle", **rest)):
            assert json_bytes(page.text) <= max(max_bytes, 4) * 4 // 3 + 64
            assert all("needle" in line.casefold() for line in page.text.split("\n") if page.text)


@given(data=hostile, max_bytes=st.integers(20, 300))
def test_grep_page_by_page_gives_every_matching_line_once(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("attempt")
    lay(folder, data)
    seen = [page.text for page in pages(folder, max_bytes, lambda where, **rest: grep(where, "needle", **rest))]
    lines = [clean(line) for line in data.split(b"\n")]
    expected = [line for line in lines if "needle" in line.casefold()]
    given_lines = "\n".join(text for text in seen if text).split("\n") if any(seen) else []
    assert len(given_lines) == len(expected)
    assert all(got.strip("…") in line for got, line in zip(given_lines, expected, strict=True))
