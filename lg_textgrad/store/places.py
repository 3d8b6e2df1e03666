"""Where a store keeps its tables: the interface of such a place, and the one in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol
from weakref import finalize

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from lg_textgrad._version import __version__
from lg_textgrad.errors import CorruptStoreError, StoreError
from lg_textgrad.store.tables import SCHEMA, checksum, dump, events, meta, results, tables

Write = tuple[sa.Table, dict[str, Any]]
"""One row to be there. Writing it again changes nothing."""


class Place(Protocol):
    """One run's tables in one database. `rows` and `write` raise SQLAlchemy's errors."""

    shown: str | None
    """The run directory, or the URL without its password; None in memory."""
    far: bool
    """Whether reading may take so long that an event loop should not wait for it."""
    read_only: bool
    full: str | None
    """Why nothing new may be begun, though what is under way is written; None while it may."""

    def rows(self, query: sa.Select[Any], **values: Any) -> Sequence[sa.Row[Any]]:
        """Return what the query finds, with all that was written before."""

    def write(self, rows: Sequence[Write]) -> None:
        """Write all of them in one transaction. They are durable when this returns."""

    def failure(self, error: SQLAlchemyError) -> StoreError:
        """Return the error as a sentence that says what to do."""

    def damaged(self, said: str) -> CorruptStoreError:
        """Return the error for a row that is not as it was written."""

    def close(self) -> None:
        """Give back what is held."""


class Memory:
    """Tables that are gone when the store is closed."""

    far = False

    shown: str | None = None
    read_only = False
    full: str | None = None

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self.engine = sa.create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        # A store that nobody closes, as of a ledger that was made without one, closes itself.
        finalize(self, self.engine.dispose)
        with self.engine.begin() as connection:
            create(connection)

    def rows(self, query: sa.Select[Any], **values: Any) -> Sequence[sa.Row[Any]]:
        with self._guard, self.engine.connect() as connection:
            return connection.execute(query, values).all()

    def write(self, rows: Sequence[Write]) -> None:
        with self._guard, self.engine.begin() as connection:
            put(connection, rows)

    def failure(self, error: SQLAlchemyError) -> StoreError:
        return StoreError(f"The store in memory failed: {cause(error)}.")

    def damaged(self, said: str) -> CorruptStoreError:
        return CorruptStoreError(f"The store in memory is damaged: {said}.")

    def close(self) -> None:
        with self._guard:
            self.engine.dispose()


def create(connection: sa.Connection) -> None:
    """Make the tables, and write down which layout they have."""
    tables.create_all(connection)
    put(connection, [note("schema", SCHEMA), note("written_by", __version__)])


def note(key: str, value: Any) -> Write:
    """Return the row of `meta` that holds the value."""
    row = {"key": key, "value": dump(value)}
    return meta, {**row, "crc": checksum(meta, row)}


def put(connection: sa.Connection, rows: Sequence[Write]) -> None:
    """Write rows. Results that this run paid for stay as they are, other rows are replaced."""
    statements = _STATEMENTS[connection.dialect.name]
    for table, values in _by_table(rows):
        connection.execute(statements[table], values)


def inserts(rows: Sequence[Write]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield what `put` does as SQLite's statements, each with the values of its rows."""
    for table, values in _by_table(rows):
        yield _SQLITE_TEXTS[table], values


def _by_table(rows: Sequence[Write]) -> Iterator[tuple[sa.Table, list[dict[str, Any]]]]:
    for table, some in groupby(sorted(rows, key=_table_name), lambda row: row[0]):
        yield table, [values for _, values in some]


def _table_name(row: Write) -> str:
    return str(row[0].name)


def _statements(insert: Any) -> dict[sa.Table, Any]:
    found = {}
    for table in tables.sorted_tables:
        statement = insert(table)
        if table is not events:
            keys, new = list(table.primary_key), statement.excluded
            others = {c.name: new[c.name] for c in table.c if c not in keys}
            # A copy of another run's result may be replaced by another copy, such as a masked one.
            copies = table is results and table.c.origin.is_not(None) & new.origin.is_not(None)
            statement = statement.on_conflict_do_update(
                index_elements=keys, set_=others, where=copies if table is results else None
            )
        found[table] = statement
    return found


_STATEMENTS = {
    "sqlite": _statements(sqlite.insert),
    "postgresql": _statements(postgresql.insert),
}
_SQLITE_TEXTS = {
    table: str(
        statement.compile(
            dialect=sqlite.dialect(paramstyle="named"),
            column_keys=[c.name for c in table.c if c is not events.c.number],  # SQLite counts
        )
    )
    for table, statement in _STATEMENTS["sqlite"].items()
}


def layout(connection: sa.Connection, schema: str | None = None) -> int | None:
    """Return which layout the tables have; None where there are none, 0 for those of others."""
    present = set(sa.inspect(connection).get_table_names(schema))
    if not present:
        return None
    if not {"meta", "results", "decisions"} <= present:
        return 0
    # Only columns that every layout has.
    found = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema")).scalar()
    return 1 if found is None else int(found)


def too_new(shown: str, found: int) -> StoreError:
    return StoreError(
        f"The store in '{shown}' was written by a newer lg_textgrad: its layout is {found}, and "
        f"version {__version__} knows layouts up to {SCHEMA}. Upgrade with `pip install -U "
        "lg-textgrad`, or use another --out."
    )


def cause(error: SQLAlchemyError) -> str:
    """Return what the database itself said, on one line and without SQLAlchemy's additions."""
    said = str(getattr(error, "orig", None) or error)
    return " ".join(said.split()).rstrip(".")
