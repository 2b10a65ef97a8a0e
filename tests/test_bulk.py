"""bulk.py: many rows by few steps give what one row a step would."""

import sqlite3
from collections.abc import Iterator

import pytest

from taskorch.storage import bulk

SIZES = (0, 1, 2, 3, 63, 64, 65, 200)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE things(seq INTEGER PRIMARY KEY, name TEXT, owner INTEGER)")
    yield db
    db.close()


def everything(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    return db.execute("SELECT seq, name, owner FROM things ORDER BY seq").fetchall()


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_inserted_in_order_and_their_rowids_told(db: sqlite3.Connection, size: int) -> None:
    db.execute("INSERT INTO things VALUES (41, 'there already', NULL)")
    rows = [(f"n{place}", None) for place in range(size)]
    places = bulk.insert(db, "things", ("name", "owner"), rows)
    assert places == list(range(42, 42 + size))
    assert everything(db)[1:] == [(42 + place, f"n{place}", None) for place in range(size)]


@pytest.mark.parametrize("size", SIZES)
def test_an_update_changes_the_rows_that_are_as_given_and_counts_them(db: sqlite3.Connection, size: int) -> None:
    bulk.insert(db, "things", ("name", "owner"), [("free", None), ("held", 7)] * 100)
    rows = [("taken", 9, seq, None) for seq in range(1, size + 1)]
    assert bulk.update(db, "things", ("name", "owner"), ("seq", "owner"), rows) == (size + 1) // 2
    for seq, name, owner in everything(db):
        free = isinstance(seq, int) and seq % 2 == 1
        assert (name, owner) == (("taken", 9) if free and seq <= size else ("free", None) if free else ("held", 7))


def test_the_same_row_twice_is_changed_once(db: sqlite3.Connection) -> None:
    bulk.insert(db, "things", ("name",), [("one",)])
    assert bulk.update(db, "things", ("name",), ("seq",), [("two", 1), ("two", 1)]) == 1


def test_a_row_that_is_refused_takes_its_whole_statement_with_it(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        bulk.insert(db, "things", ("seq", "name"), [(1, "a"), (2, "b"), (1, "c"), (4, "d")])
    assert everything(db) == []


@pytest.mark.parametrize("size", SIZES)
def test_a_query_gives_its_rows_in_order(db: sqlite3.Connection, size: int) -> None:
    names = ['"quoted"', "snow ☃ \U0001f600", "line\nbreak\t\x01", "", "[1, 2]"]
    rows = [(names[place % 5], None if place % 3 else 2**53 + place) for place in range(size)]
    bulk.insert(db, "things", ("name", "owner"), rows)
    query = "SELECT seq, name, owner FROM things WHERE seq > ? ORDER BY seq DESC"
    found = bulk.select(db, ("seq", "name", "owner"), query, (0,))
    assert [tuple(row) for row in found] == db.execute(query, (0,)).fetchall()


def test_few_statements_are_run_and_few_texts_made(db: sqlite3.Connection) -> None:
    seen: list[str] = []
    db.set_trace_callback(seen.append)
    for size in range(1, 130):
        bulk.insert(db, "things", ("name",), [("x",)] * size)
    inserts = [text for text in seen if text.startswith("INSERT")]
    assert len(set(inserts)) == 7  # 1, 2, 4 ... 64 rows
    assert len(inserts) <= 129 * 7
