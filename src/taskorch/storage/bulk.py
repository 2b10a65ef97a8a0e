"""Many rows by one step of SQLite.

sqlite3 gives up the interpreter lock at every step and gets it back late while the event loop is busy, so that a row a
step (`executemany`, a cursor's rows) costs many times its SQL.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

MOST = 64  # rows in a statement; sizes are powers of two, so that few statements are ever compiled

Rows = Sequence[Sequence[Any]]


def insert(connection: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: Rows) -> list[int]:
    """Insert the rows, each in the order of `columns`. The rowids, where SQLite chose them: they rise by one."""
    rowids: list[int] = []
    for some in _chunks(rows):
        last = connection.execute(_insert(table, columns, len(some)), tuple(chain.from_iterable(some))).lastrowid or 0
        rowids += range(last - len(some) + 1, last + 1)
    return rowids


def update(
    connection: sqlite3.Connection, table: str, columns: tuple[str, ...], keys: tuple[str, ...], rows: Rows
) -> int:
    """Set `columns` where all `keys` are as given; a row is the values of the columns, then of the keys.

    The first key finds the row, so it is an indexed one and never None. How many rows were changed.
    """
    return sum(
        connection.execute(_update(table, columns, keys, len(some)), tuple(chain.from_iterable(some))).rowcount
        for some in _chunks(rows)
    )


def select(
    connection: sqlite3.Connection, columns: tuple[str, ...], query: str, values: Sequence[Any], decoded: str = ""
) -> Rows:
    """`columns` of the rows of a query: numbers, text and NULL only, as they pass through JSON.

    `decoded`: the column that holds JSON and comes as what it says.
    """
    return json.loads(connection.execute(_select(columns, query, decoded), values).fetchone()[0])


def _chunks(rows: Rows) -> Iterator[Rows]:
    start = 0
    while left := len(rows) - start:
        size = min(MOST, 1 << left.bit_length() - 1)
        yield rows[start : start + size]
        start += size


# Only names from this program come into these texts, never a caller's.


@cache
def _select(columns: tuple[str, ...], query: str, decoded: str) -> str:
    items = ", ".join(f"json({name})" if name == decoded else name for name in columns)
    return f"SELECT json_group_array(json_array({items})) FROM ({query})"


@cache
def _insert(table: str, columns: tuple[str, ...], rows: int) -> str:
    return f"INSERT INTO {table}({', '.join(columns)}) VALUES {_values(len(columns), rows)}"


@cache
def _update(table: str, columns: tuple[str, ...], keys: tuple[str, ...], rows: int) -> str:
    sets = ", ".join(f"{name} = v.column{place}" for place, name in enumerate(columns, 1))
    first, *others = (f"{table}.{name} {{}} v.column{place}" for place, name in enumerate(keys, len(columns) + 1))
    where = " AND ".join([first.format("="), *(key.format("IS") for key in others)])
    values = _values(len(columns) + len(keys), rows)
    return f"UPDATE {table} SET {sets} FROM (VALUES {values}) AS v WHERE {where}"


def _values(columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * rows)
