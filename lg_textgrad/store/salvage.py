"""The good part of a damaged run directory, in a new file; the damaged one is kept aside.

Rows are read twice: by SQLite, which knows which are current, and then from the pages themselves,
which finds those that SQLite no longer gets to. Only rows that pass their own check are taken.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lg_textgrad.errors import StoreError
from lg_textgrad.store.claims import Claim, sync_directory
from lg_textgrad.store.file import FILE_NAME, NEW_NAME, SPARE_NAME
from lg_textgrad.store.pages import missing_end, rows_in
from lg_textgrad.store.places import cause, create
from lg_textgrad.store.tables import SCHEMA, checksum, results, tables, unpack
from lg_textgrad.store.upgrading import new_row

_BY_HAND = ("schema", "written_by")
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What `Store.salvage` did."""

    rows: Mapping[str, int]
    """Table -> rows that were saved."""
    damaged: int
    """Rows that could be made out but are not as they were written. Others may not even be seen."""
    aside: Path
    """The damaged file."""
    missing: int = 0
    """Bytes that the end of the file lacks, by what its header says."""


def salvage(directory: Path) -> Salvaged:
    """Save every row that is as it was written. Whatever is lost is paid for again on resume.

    Can be interrupted and called again. Raises `StoreError` when there is no store, another process
    is working in it, or nothing of a run is left.
    """
    path = directory / FILE_NAME
    if not path.exists():
        raise StoreError(f"There is no run in '{directory}' to salvage: it has no {FILE_NAME}.")
    claim = Claim(directory)
    try:
        new = directory / NEW_NAME
        # One that was interrupted may have moved the log aside already.
        sources = [path, *(_asides(path)[-1:] if new.exists() else ())]
        (directory / SPARE_NAME).unlink(missing_ok=True)
        _clear(new)
        rows, damaged = _rebuild(new, sources)
        if not any(rows[table.name] for table in (results, *tables.sorted_tables)):
            _clear(new)
            raise StoreError(
                f"Nothing can be saved from '{path}': no row in it is as it was written. Move it "
                "away to start afresh."
            )
        missing = missing_end(path)
        return Salvaged(rows, damaged, _swap(path, new), missing)
    except OSError as error:
        raise StoreError(
            f"The run in '{directory}' cannot be salvaged: {error}. The damaged file is as it was; "
            "mend the cause and try again."
        ) from None
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(
            f"The run in '{directory}' cannot be salvaged: {cause(error)}. The damaged file is as "
            "it was; mend the cause and try again."
        ) from None
    finally:
        claim.release()


def _asides(path: Path) -> list[Path]:
    found = [p for p in path.parent.glob(f"{path.name}.broken-*") if p.suffix[8:].isdigit()]
    return sorted(found, key=lambda p: int(p.suffix[8:]))


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _clear(new: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        new.with_name(new.name + end).unlink(missing_ok=True)


def _rebuild(new: Path, sources: list[Path]) -> tuple[dict[str, int], int]:
    """Fill a new file with the rows of the damaged ones; the first that has a row wins."""
    uri = f"{new.absolute().as_uri()}?mode=rwc"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True))
    try:
        with engine.begin() as connection:
            create(connection)
            taking = _Taking(connection)
            for source in sources:
                for name, row in chain(_by_sqlite(source), _by_page(source)):
                    taking.offer(name, row)
            taking.flush()
            rows = {
                table.name: connection.execute(
                    sa.select(sa.func.count()).select_from(table)
                ).scalar_one()
                for table in tables.sorted_tables
            }
        rows["meta"] -= len(_BY_HAND)
    finally:
        engine.dispose()
    with new.open("rb") as file:
        os.fsync(file.fileno())
    return rows, len(taking.refused - taking.taken)


class _Taking:
    """Takes the rows that are as they were written."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self.taken: set[tuple[Any, ...]] = set()
        self.refused: set[tuple[Any, ...]] = set()

    def offer(self, name: str, row: dict[str, Any]) -> None:
        table = tables.tables[name]
        key = (name, *(row[c.name] for c in table.primary_key))
        if key in self.taken or (name == "meta" and row["key"] in _BY_HAND):
            return
        if not _whole(table, row):
            self.refused.add(key)
            return
        self.taken.add(key)
        waiting = self._waiting.setdefault(name, [])
        waiting.append(row)
        if len(waiting) >= _AT_ONCE:
            self._write(name)

    def _write(self, name: str) -> None:
        rows = self._waiting.pop(name)
        self._connection.execute(sa.insert(tables.tables[name]).prefix_with("OR IGNORE"), rows)

    def flush(self) -> None:
        for name in list(self._waiting):
            self._write(name)


def _whole(table: sa.Table, row: dict[str, Any]) -> bool:
    try:
        if row["crc"] != checksum(table, row):
            return False
    except (KeyError, TypeError, ValueError):
        return False
    if table is results:
        try:
            unpack(row["request"])
        except Exception:  # whatever it is by now, it is only there for people
            row["request"] = b"null"
    return True


_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""SQLite quotes a damaged schema in its errors, and that may be no text any more."""


def _by_sqlite(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (table, row) of what SQLite gets to, in pieces around what it doesn't."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.row_factory = sqlite3.Row
        with suppress(*_UNREADABLE):
            connection.execute("PRAGMA writable_schema=ON")  # takes also a file that is too short
        for table in tables.sorted_tables:
            try:
                (last,) = connection.execute(f"SELECT max(rowid) FROM {table.name}").fetchone()  # noqa: S608
            except _UNREADABLE:
                last = None
            if last is not None:
                yield from _pieces(connection, table, 1, last)


def _pieces(
    connection: sqlite3.Connection, table: sa.Table, first: int, last: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows from `first` to `last`; where one cannot be read, those on both sides."""
    ranges = [(first, last)]
    query = f"SELECT rowid AS at, * FROM {table.name} WHERE rowid BETWEEN ? AND ? ORDER BY rowid"  # noqa: S608
    while ranges:
        first, last = ranges.pop()
        try:
            for row in connection.execute(query, (first, last)):
                first = row["at"] + 1
                if "crc" in row.keys():  # noqa: SIM118 - a Row is not a dict
                    yield table.name, new_row(table, dict(row), SCHEMA)
                else:  # of layout 1, which had no checks: what can be read is taken
                    with suppress(ValueError, TypeError, zlib.error):
                        yield table.name, new_row(table, dict(row), 1)
        except _UNREADABLE:
            if first < last:
                middle = (first + last) // 2
                ranges += [(middle + 1, last), (first, middle)]


def _by_page(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    by_width: dict[int, list[sa.Table]] = {}
    for table in tables.sorted_tables:
        by_width.setdefault(len(table.c), []).append(table)
    by_width.setdefault(len(results.c) - 1, []).append(results)  # of layout 3, without calls
    for number, values in rows_in(path, _log_of(path)):
        for table in by_width.get(len(values), ()):
            names = table.c.keys()
            if len(names) > len(values):
                names.remove("calls")
            row = dict(zip(names, values, strict=True))
            if table is tables.tables["events"]:
                row["number"] = number
            try:
                fits = row["crc"] == checksum(table, row)
            except (TypeError, ValueError):
                continue
            if fits:
                yield table.name, new_row(table, row, SCHEMA)


def _swap(path: Path, new: Path) -> Path:
    """Put the new file into the place of the damaged one, which stays under another name.

    At every moment either all of the damaged run is there, or the new file is in its place.
    """
    number = max((int(p.suffix[8:]) for p in _asides(path)), default=0) + 1
    aside = path.with_name(f"{path.name}.broken-{number}")
    for source in (path, _log_of(path)):
        if source.exists() and source.stat().st_size > 0:
            target = aside if source == path else _log_of(aside)
            try:
                os.link(source, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, target)
    sync_directory(path.parent)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    new.replace(path)
    sync_directory(path.parent)
    return aside
