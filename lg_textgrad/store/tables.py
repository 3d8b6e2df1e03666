"""The tables of a store, how values are packed, and the check that every row carries.

SQLite notices when a page of its trees makes no sense, but not when a disk gives back other bytes
inside a text. So each row has a checksum over all that matters in it, which is verified whenever
the row is read: what is damaged is told, never used. Only sums and overviews that the database
makes of single columns are not, since every reply would have to be read for them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from lg_textgrad._hashing import to_plain

SCHEMA = 4
"""The layout below. 1 was 0.1.0's: no checks, no origins, texts as they were. 2 had no prices, 3 no
calls."""

_COMPRESSED_FROM = 1024
"""Bytes: below, compression gains less than it costs, waiting for the interpreter included."""

tables = sa.MetaData()
meta = sa.Table(
    "meta",
    tables,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
results = sa.Table(
    "results",
    tables,
    sa.Column("key", sa.String(80), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("origin", sa.String(200)),  # the run that paid for it; None for this one
    sa.Column("model", sa.String(200)),  # which was asked, and where; only for people
    sa.Column("cached_tokens", sa.Integer),
    sa.Column("usd", sa.Float),  # None where the price is not known
    sa.Column("calls", sa.Integer),  # None for one; a run on a server is several
    sa.Column("reply", sa.LargeBinary, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
# All that `paid()` adds up, so that it reads no reply; and where the latest of a kind are.
sa.Index(
    "results_cost",
    results.c.kind,
    results.c.created,
    results.c.origin,
    results.c.prompt_tokens,
    results.c.completion_tokens,
    results.c.seconds,
    results.c.cached_tokens,
    results.c.usd,
    results.c.calls,
)
runs = sa.Table(
    "runs",
    tables,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("candidate", sa.String(16), nullable=False, index=True),
    sa.Column("example", sa.String(200), nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
feedback = sa.Table(
    "feedback",
    tables,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("objective", sa.String(64), primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
gradients = sa.Table(
    "gradients",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("parameter", sa.String(200), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
candidates = sa.Table(
    "candidates",
    tables,
    sa.Column("hash", sa.String(16), primary_key=True),
    sa.Column("parent", sa.String(16)),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("texts", sa.Text, nullable=False),
    sa.Column("edits", sa.Text, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
decisions = sa.Table(
    "decisions",
    tables,
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("candidate", sa.String(16), primary_key=True),
    sa.Column("stage", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("crc", sa.BigInteger),
)
events = sa.Table(
    "events",
    tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("crc", sa.BigInteger),
)

TOOL = "tool"
"""The kind of results that are no model's and cost nothing: what the graph's tools answered."""

CONTENT_ADDRESSED = (results, runs, feedback)
"""The same key always means the same, in whichever run: these may go from one to another."""


def paid_here() -> tuple[sa.ColumnElement[bool], ...]:
    """Return what holds for results that are calls which the run itself has paid for."""
    c = results.c
    # A request that a filter refused is kept, took nothing, and was no call when it was made.
    tokens = c.prompt_tokens + c.completion_tokens
    counts = sa.or_(sa.func.coalesce(c.usd, 1) != 0, tokens > 0, c.seconds > 0)
    return c.origin.is_(None), c.kind != TOOL, counts


_ADDED = frozenset({"model", "cached_tokens", "usd", "calls"})
"""Columns of results that earlier layouts didn't have. Without a value they don't count for the
check."""

_CHECKED = {
    table.name: [
        (c.name, isinstance(c.type, sa.Float))
        for c in table.c
        if c.name != "crc" and c is not results.c.request and c is not events.c.number
    ]
    for table in tables.sorted_tables
}


def checksum(table: sa.Table, row: Mapping[str, Any]) -> int:
    """Return the check of a row, the same on every database and in every layout that has checks.

    A result's request is left out: it is only for people, has a check of its own where it is
    compressed, and need not be read for the reply.
    """
    said: list[bytes] = []
    for name, is_float in _CHECKED[table.name]:
        value = row.get(name) if name in _ADDED else row[name]
        if value is None and name in _ADDED:
            continue
        if is_float and value is not None:
            value = float(value)  # SQLite hands whole ones back as it likes
        if not isinstance(value, bytes):
            value = f"{type(value).__name__[0]}{value!r}".encode("utf-8", "surrogatepass")
        said.append(b"%d:%b" % (len(value), value))
    return zlib.crc32(b"".join(said), zlib.crc32(table.name.encode()))


def fitting(text: Any, limit: int | None = None) -> Any:
    """Return the text as every database takes it: no half characters, no zero bytes."""
    if text is None:
        return None
    return to_plain(str(text)).replace("\0", "\N{SYMBOL FOR NULL}")[:limit]


def dump(value: Any) -> str:
    """Return JSON that people can read; with escapes where the text has no UTF-8 form."""
    text = json.dumps(value, ensure_ascii=False, default=to_plain)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=to_plain)
    return text


def pack(value: Any) -> bytes:
    """Return JSON data as bytes, compressed where that helps."""
    plain = dump(value).encode()
    return zlib.compress(plain, 1) if len(plain) >= _COMPRESSED_FROM else plain


def unpack(data: bytes) -> Any:
    """Return what `pack` was given. No JSON text begins with zlib's first byte, an `x`."""
    return json.loads(zlib.decompress(data) if data[:1] == b"x" else data)
