"""SQL text for whole batches: one statement per table, in a few fixed sizes that stay prepared.

The text is made from the tables' own columns. Rows go in chunks of powers of two, so that a busy
ledger uses nine texts per table however its batches vary.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, Table

CHUNK_ROWS_MAX = 256
_CASTS = {BigInteger: "bigint", Integer: "integer", Boolean: "boolean", LargeBinary: "bytea"}


class Statements:
    """Builds the SQL of one dialect; every text is cached."""

    def __init__(self, *, sqlite: bool) -> None:
        self._mark = "?" if sqlite else "%s"
        self._lock = "" if sqlite else " FOR UPDATE"
        self._sqlite = sqlite
        self._insert = cache(self._insert_text)
        self._select = cache(self._select_text)
        self._update = cache(self._update_text)
        self._delete = cache(self._delete_text)

    def insert(self, table: Table, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, list[Any]]]:
        """Statements that insert ``rows``, each in the order of the table's columns."""
        for chunk in _chunks(rows):
            yield self._insert(table, len(chunk)), [value for row in chunk for value in row]

    def select(
        self, table: Table, columns: tuple[str, ...], *, by: str, values: Sequence[str], lock: bool = False
    ) -> Iterator[tuple[str, list[Any]]]:
        """Statements that read rows by key, locked in key order where the database locks rows."""
        ordered = sorted(values)
        for start in range(0, len(ordered), CHUNK_ROWS_MAX):
            chunk = ordered[start : start + CHUNK_ROWS_MAX]
            size = 1 << (len(chunk) - 1).bit_length()
            yield self._select(table, columns, by, size, lock), chunk + [chunk[-1]] * (size - len(chunk))

    def update(
        self, table: Table, columns: tuple[str, ...], rows: Sequence[Sequence[Any]]
    ) -> Iterator[tuple[str, list[Any], int]]:
        """Conditional updates; a row is ``(id, version read, *values)``. Yields the row count due."""
        for chunk in _chunks(rows):
            yield self._update(table, columns, len(chunk)), [value for row in chunk for value in row], len(chunk)

    def delete(self, table: Table, *, by: str, values: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        """Statements that delete rows by key."""
        for chunk in _chunks(values):
            yield self._delete(table, by, len(chunk)), list(chunk)

    def _insert_text(self, table: Table, rows: int) -> str:
        names = _quoted(column.name for column in table.columns)
        row = "(" + ", ".join([self._mark] * len(table.columns)) + ")"
        return f"INSERT INTO {table.name} ({names}) VALUES {', '.join([row] * rows)}"

    def _select_text(self, table: Table, columns: tuple[str, ...], by: str, count: int, lock: bool) -> str:
        marks = ", ".join([self._mark] * count)
        suffix = self._lock if lock else ""
        return f"SELECT {_quoted(columns)} FROM {table.name} WHERE {by} IN ({marks}) ORDER BY {by}{suffix}"

    def _update_text(self, table: Table, columns: tuple[str, ...], rows: int) -> str:
        names = ("id", "version", *columns)
        if self._sqlite:
            marks = [self._mark] * len(names)
        else:
            marks = [f"%s::{_CASTS.get(type(table.c[name].type), 'text')}" for name in names]
        row = "(" + ", ".join(marks) + ")"
        assignments = ", ".join(f'"{name}" = v.column{index}' for index, name in enumerate(columns, start=3))
        return (
            f"UPDATE {table.name} SET version = {table.name}.version + 1, {assignments} "
            f"FROM (VALUES {', '.join([row] * rows)}) AS v "
            f"WHERE {table.name}.id = v.column1 AND {table.name}.version = v.column2"
        )

    def _delete_text(self, table: Table, by: str, count: int) -> str:
        return f"DELETE FROM {table.name} WHERE {by} IN ({', '.join([self._mark] * count)})"


def _quoted(names: Iterable[str]) -> str:
    """Names in quotes: ``window`` is a reserved word of PostgreSQL's."""
    return ", ".join(f'"{name}"' for name in names)


def _chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start = 0
    while start < len(rows):
        size = min(CHUNK_ROWS_MAX, 1 << (len(rows) - start).bit_length() - 1)
        yield rows[start : start + size]
        start += size
