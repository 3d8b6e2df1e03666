"""Which results and runs a store has, as far as that is known without asking the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from lg_textgrad.store.places import Place, Write
from lg_textgrad.store.tables import results, runs

_MOST = 100_000
"""Results, and runs, that are remembered; of more it is not known."""


_KEYS: dict[sa.Table, sa.Column[str]] = {results: results.c.key, runs: runs.c.id}


class Known:
    """The hashes of the keys of all results and runs, where nobody else writes and they are few.

    Most results and runs are asked for once, before they are made: then the answer is no, and costs
    nothing. What is near and open for writing is nobody else's to write. Raises what the database
    raises.
    """

    def __init__(self, place: Place) -> None:
        self._hashes: dict[sa.Table, set[int]] = {}
        if not (place.far or place.read_only):
            for table, key in _KEYS.items():
                keys = sa.select(key.label("key"))
                if not place.rows(keys.limit(1).offset(_MOST)):  # counting all would take longer
                    self._hashes[table] = {hash(row.key) for row in place.rows(keys)}

    def lacks(self, table: sa.Table, values: Mapping[str, Any]) -> bool:
        """Return whether a row with such values is certainly not there."""
        hashes = self._hashes.get(table)
        if hashes is None:
            return False
        key = values.get(_KEYS[table].name)
        return key is not None and hash(key) not in hashes

    def note(self, rows: Sequence[Write]) -> None:
        """Take note of rows that are about to be written."""
        for table, row in rows:
            hashes = self._hashes.get(table)
            if hashes is not None:
                hashes.add(hash(row[_KEYS[table].name]))
                if len(hashes) > _MOST:
                    del self._hashes[table]
