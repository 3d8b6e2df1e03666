"""Which results a store has, as far as that is known without asking the database."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from lg_textgrad.store.places import Place, Write
from lg_textgrad.store.tables import results

_MOST = 100_000
"""Results that are remembered; of more it is not known."""


class KnownResults:
    """The hashes of the keys of all results, where nobody else writes and they are few.

    Most results are asked for once, before they are paid for: then the answer is no, and costs
    nothing. What is near and open for writing is nobody else's to write. Raises what the database
    raises.
    """

    def __init__(self, place: Place) -> None:
        self._hashes: set[int] | None = None
        if not (place.far or place.read_only):
            keys = sa.select(results.c.key)
            if not place.rows(keys.limit(1).offset(_MOST)):  # counting them all would take longer
                self._hashes = {hash(row.key) for row in place.rows(keys)}

    def lacks(self, key: str) -> bool:
        """Return whether the result is certainly not there."""
        hashes = self._hashes
        return hashes is not None and hash(key) not in hashes

    def note(self, rows: Sequence[Write]) -> None:
        """Take note of rows that are about to be written."""
        hashes = self._hashes
        if hashes is not None:
            hashes.update(hash(row["key"]) for table, row in rows if table is results)
            if len(hashes) > _MOST:
                self._hashes = None
