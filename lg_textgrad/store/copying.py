"""From one store to another: what means the same in whichever run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from lg_textgrad.store.places import Place
from lg_textgrad.store.tables import CONTENT_ADDRESSED, checksum, fitting, results

_AT_ONCE = 500


def copy(source: Place, put: Callable[..., None], origin: str | None) -> int:
    """Copy results, runs and feedback. Returns how many results; damaged rows are left out.

    `put` writes rows; `origin` is noted for results that the source paid for itself. Raises
    `StoreError`.
    """
    count = 0
    for table in CONTENT_ADDRESSED:
        for rows in _batches(source, table):
            whole = [row for row in rows if row["crc"] == checksum(table, row)]
            if table is results:
                count += len(whole)
                for row in whole:
                    row["origin"] = fitting(row["origin"] or origin or "memory", 200)
                    row["crc"] = checksum(table, row)
            put(*((table, row) for row in whole))
    return count


def _batches(place: Place, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    keys = list(table.primary_key)
    query = sa.select(table).order_by(*keys).limit(_AT_ONCE)
    after: sa.Select[Any] = query
    while True:
        try:
            rows = place.rows(after)
        except SQLAlchemyError as error:
            raise place.failure(error) from None
        if not rows:
            return
        yield [row._asdict() for row in rows]
        last = [sa.literal(getattr(rows[-1], key.name)) for key in keys]
        after = query.where(sa.tuple_(*keys) > sa.tuple_(*last))
