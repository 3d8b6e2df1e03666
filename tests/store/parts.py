"""What the tests do to a store behind its back."""

from __future__ import annotations

import sqlite3
from contextlib import closing

COLUMN = {
    "results": ("reply", b'"' + b"y" * 500 + b'"'), "runs": ("candidate", "c1"), "feedback": ("score", 0.75),
    "gradients": ("payload", "{}"), "candidates": ("texts", '{"p": "y"}'), "decisions": ("payload", "{}"),
    "meta": ("value", "7"), "events": ("payload", '{"n": 2}'),
}  # fmt: skip


def sql(folder, statement, *parameters):
    with closing(sqlite3.connect(folder / "run.sqlite")) as db, db:
        return db.execute(statement, parameters).fetchall()


def damage_row(where, table, request):
    """Change what stands in a row, as a bad disk or a careless hand would."""
    column, value = COLUMN[table]
    only = " WHERE key = 'm'" if table == "meta" else ""
    if isinstance(where, str):
        run = where.rpartition("=")[2]
        request.getfixturevalue("postgres_server").sql(
            f'UPDATE "lg_textgrad/{run}".{table} SET {column} = %s{only}', value
        )
    else:
        sql(where, f"UPDATE {table} SET {column} = ?{only}", value)
