"""From one store to another: what means the same in whichever run, masked as this one's is."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from lg_textgrad.redaction import Redaction
from lg_textgrad.run import Example, Feedback
from lg_textgrad.store.places import Place, note
from lg_textgrad.store.records import decode_run, encode_run
from lg_textgrad.store.tables import (
    CONTENT_ADDRESSED,
    checksum,
    dump,
    fitting,
    meta,
    pack,
    results,
    runs,
    unpack,
)

_AT_ONCE = 500
_COPIED, _MASKED, _BEGUN = "copied", "copied_masked", "configuration"
_NONE = Example("", {})


def copy(source: Place, put: Callable[..., None], origin: str | None) -> int:
    """Copy results, runs and feedback. Returns how many results; damaged rows are left out.

    `put` writes rows; `origin` is noted for results that the source paid for itself. Raises
    `StoreError`.
    """
    count = 0
    put(note(_COPIED, secrets.token_hex(8)))  # first: what is copied has to be masked
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


def mask(place: Place, put: Callable[..., None], redaction: Redaction) -> None:
    """Mask what was copied, once: the run that it comes from may have had no hook, or another.

    Damaged rows stay damaged. `put` writes rows. Raises `StoreError`, and `RedactionError` for a
    hook that fails.
    """
    query = sa.select(meta.c.key, meta.c.value).where(meta.c.key.in_([_COPIED, _MASKED, _BEGUN]))
    try:
        noted: dict[str, str] = {row.key: row.value for row in place.rows(query)}
    except SQLAlchemyError as error:
        raise place.failure(error) from None
    copied = noted.get(_COPIED)
    # Until the run has begun, its hook may be another one the next time.
    if copied is None or (copied == noted.get(_MASKED) and _BEGUN in noted):
        return
    for table in CONTENT_ADDRESSED:
        for rows in _batches(place, table):
            whole = (row for row in rows if row["crc"] == checksum(table, row))
            changed = [{**row, **new} for row in whole if (new := _masked(table, row, redaction))]
            put(*((table, {**row, "crc": checksum(table, row)}) for row in changed))
    put(note(_MASKED, json.loads(copied)))


def _masked(table: sa.Table, row: dict[str, Any], redaction: Redaction) -> dict[str, Any]:
    """Return the columns of a row that are others when it is masked."""
    if table is results:
        if row["origin"] is None:  # this run's own, which was masked before it was kept
            return {}
        old = {name: unpack(row[name]) for name in ("reply", "request")}
        new = {name: redaction.answer(value) for name, value in old.items()}
        return {name: pack(value) for name, value in new.items() if value is not old[name]}
    if table is runs:
        kept = encode_run(decode_run(unpack(row["payload"]), _NONE))
        run = redaction.run(decode_run(unpack(row["payload"]), _NONE))
        if (again := encode_run(run)) == kept:
            return {}
        return {"payload": pack(again), "error": fitting(run.error)}
    said = [Feedback(**one) for one in json.loads(row["payload"])]
    told = [replace(one, comment=redaction.text(one.comment)) for one in said]
    return {} if told == said else {"payload": dump([asdict(one) for one in told])}


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
