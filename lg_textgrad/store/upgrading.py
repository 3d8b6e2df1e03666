"""From an older layout to the present one, in one transaction."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from lg_textgrad._version import __version__
from lg_textgrad.store.places import note, put
from lg_textgrad.store.tables import SCHEMA, checksum, pack, tables

_ROWS = 500


def upgrade(connection: sa.Connection, found: int) -> None:
    """Bring the tables of an older layout, which only SQLite files have, to the present one."""
    for index in ("ix_runs_candidate", "results_cost"):
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {index}")
    for name in tables.tables:
        connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO old_{name}")
    tables.create_all(connection)
    for table in tables.sorted_tables:
        old = connection.exec_driver_sql(f"SELECT * FROM old_{table.name}")  # noqa: S608 - ours
        names = list(old.keys())
        while rows := old.fetchmany(_ROWS):
            made = [new_row(table, dict(zip(names, row, strict=True)), found) for row in rows]
            connection.execute(sa.insert(table), made)
        connection.exec_driver_sql(f"DROP TABLE old_{table.name}")
    put(connection, [note("schema", SCHEMA), note("written_by", __version__)])


def new_row(table: sa.Table, old: Mapping[str, Any], found: int) -> dict[str, Any]:
    """Return the row of an older layout as it is now.

    Raises what JSON and zlib raise for nonsense in layout 1; later ones have checks, which stay.
    """
    row = {c.name: old.get(c.name) for c in table.c}
    if found > 1:
        return row
    for name, change in _CHANGED.get(table.name, {}).items():
        row[name] = change(row[name])
    return {**row, "crc": checksum(table, row)}


_CHANGED: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "results": {"reply": lambda t: pack(json.loads(t)), "request": lambda t: pack(json.loads(t))},
    "runs": {"payload": lambda data: pack(json.loads(zlib.decompress(data)))},
}
