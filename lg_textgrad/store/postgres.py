"""A run in a PostgreSQL database: a schema for each run, one writer by an advisory lock.

Everything is written on the connection that holds the lock. So who has lost the lock, for instance
with the network, cannot write either.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from lg_textgrad.errors import (
    ConfigurationError,
    CorruptStoreError,
    MissingExtraError,
    StoreError,
)
from lg_textgrad.store.claims import describe, me
from lg_textgrad.store.places import Write, cause, create, layout, note, put, too_new
from lg_textgrad.store.tables import SCHEMA, meta

T = TypeVar("T")

DRIVERS = ("postgres", "postgresql", "postgresql+psycopg")
PREFIX = "lg_textgrad/"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|postgres(ql)?(\+\w+)?:")
_SECRET = ("password", "sslpassword")
_USER = re.compile(r"[A-Za-z0-9+.-]+://[^:/]*:(?P<password>[^@]*)@")
_SETTING = re.compile(r"[?&]\w+=")
_SILENT = logging.NullHandler()
_GONE_SECONDS = 2.0
"""How long the server may take to notice that a killed process holds a lock no more."""
_SESSION = (
    # A client whose machine or network is gone is noticed within a minute, and its lock is free.
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
    # What a commit has acknowledged is on disk, also where the server's default is laxer.
    """SELECT set_config('synchronous_commit', 'on', false)
       WHERE current_setting('synchronous_commit') = 'off'""",
)


def is_url(where: object) -> bool:
    """Whether this is a database's URL, if with a slip in it, rather than a directory."""
    return isinstance(where, str) and _URL.match(where) is not None


def without_password(where: str) -> str:
    """Return the URL as it may be shown and stored; a directory as it is."""
    return _shown(_parsed(where)[0]) if is_url(where) else where


def run_name(where: str | Path) -> str:
    """Return a run's short name: that of its directory, or the one in its URL."""
    return _parsed(where)[1] if isinstance(where, str) and is_url(where) else Path(where).name


def _parsed(where: str) -> tuple[sa.URL, str]:
    if (found := _USER.match(where)) and (
        "@" in where[found.end() :] or _SETTING.search(found["password"])
    ):
        # It would be read as a host, and shown as one, where it is the rest of a password.
        raise ConfigurationError(
            "The store's URL has an '@' that leaves open where its password ends. Write a "
            "password's own '@' as %40, and other special characters percent-encoded too: "
            "postgresql://USER:PASSWORD@HOST/DATABASE?run=NAME."
        )
    try:
        url = sa.make_url(where)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "The store's URL cannot be read. Write it as postgresql://USER@HOST/DATABASE?run=NAME, "
            "with special characters percent-encoded."
        ) from None
    if url.drivername not in DRIVERS:
        raise ConfigurationError(
            f"A store cannot be at a URL that begins with '{url.drivername}://'; give a directory, "
            "or postgresql://USER@HOST/DATABASE?run=NAME."
        )
    run = url.query.get("run", "")
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise ConfigurationError(
            f"The URL '{_shown(url)}' needs a run's name, as ?run=NAME at its end: at most 41 "
            "letters, digits, dots, hyphens and underscores."
        )
    return url, run


def _shown(url: sa.URL) -> str:
    kept = {k: v for k, v in url.query.items() if k in ("run", "host", "port")}
    # Set to None, a password would stay.
    bare = sa.URL.create(url.drivername, url.username, None, url.host, url.port, url.database, kept)
    return bare.render_as_string()


class Postgres:
    """The place of a run that is on a server."""

    far = True
    full: str | None = None  # the server's disk is not ours to keep a spare on

    def __init__(self, where: str, *, read_only: bool, busy_seconds: float) -> None:
        url, self.run = _parsed(where)
        self.shown: str | None = _shown(url)
        self.read_only = read_only
        self._busy = busy_seconds
        self._away: float | None = None
        self._schema = PREFIX + self.run
        self._secrets = _secrets(url)
        self._writer: sa.Connection | None = None
        self.engine = self._engine(url)
        self._reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            if read_only:
                with self._reading.connect() as connection:
                    self._check(connection)
            else:
                self._writer = self._claimed(_GONE_SECONDS)
                self._prepare(self._writer)
        except SQLAlchemyError as error:
            self.close()
            raise self.failure(error) from None
        except BaseException:
            self.close()
            raise

    def _engine(self, url: sa.URL) -> sa.Engine:
        arguments: dict[str, Any] = {}
        if "connect_timeout" not in url.query:
            arguments["connect_timeout"] = max(2, round(self._busy))
        if "application_name" not in url.query:
            arguments["application_name"] = "lg_textgrad"
        # It warns of each rollback on a connection that is gone, which our errors tell once. With a
        # handler its warnings go to whom logging was set up for, and else not to the screen.
        logging.getLogger("psycopg").addHandler(_SILENT)
        url = url.difference_update_query(["run"]).set(drivername="postgresql+psycopg")
        try:
            engine = sa.create_engine(
                url, poolclass=QueuePool, pool_size=9, max_overflow=56, connect_args=arguments
            ).execution_options(schema_translate_map={None: self._schema})
        except ImportError:
            raise MissingExtraError(
                "A store on PostgreSQL needs the driver: pip install 'lg-textgrad[postgres]'."
            ) from None

        @sa.event.listens_for(engine, "connect")
        def connect(connection: Any, _: Any) -> None:
            for statement in _SESSION:
                connection.execute(statement)
            if self.read_only:
                connection.execute("SET default_transaction_read_only = on")
            connection.commit()

        return engine

    def _check(self, connection: sa.Connection) -> int | None:
        found = layout(connection, self._schema)
        if found is None and self.read_only:
            others = connection.exec_driver_sql(
                "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname LIKE %s ORDER BY 1",
                (PREFIX + "%",),
            )
            names = ", ".join(f"'{row[0].removeprefix(PREFIX)}'" for row in others)
            raise StoreError(
                f"There is no run '{self.run}' in that database; it has {names or 'no run at all'}."
            )
        if found is not None and found > SCHEMA:
            raise too_new(str(self.shown), found)
        if found is not None and found < SCHEMA:
            raise StoreError(
                f"The run in '{self.shown}' was written by a version that was never released. "
                "Use another ?run=NAME."
            )
        return found

    def _prepare(self, connection: sa.Connection) -> None:
        with connection.begin():
            if self._check(connection) is None:
                connection.execute(sa.schema.CreateSchema(self._schema, if_not_exists=True))
                create(connection)
            put(connection, [note("owner", me())])

    # The lock.

    def _claimed(self, patience: float) -> sa.Connection:
        """Return a connection that holds the run's lock."""
        key = int.from_bytes(hashlib.sha256(self._schema.encode()).digest()[:8], signed=True)
        deadline = time.monotonic() + patience
        connection = self.engine.connect()
        try:
            while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar():
                connection.rollback()
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{self._owner(connection)} is working in '{self.shown}'. Wait for it, or "
                        "use another ?run=NAME. If that process is gone, the server notices it "
                        "within a minute."
                    )
                time.sleep(0.05)
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _owner(connection: sa.Connection) -> str:
        with suppress(SQLAlchemyError, ValueError):
            query = sa.select(meta.c.value).where(meta.c.key == "owner")
            return describe(json.loads(connection.execute(query).scalar() or ""))
        return "Another process"

    # Working.

    def rows(self, query: sa.Select[Any], **values: Any) -> Sequence[sa.Row[Any]]:
        def read() -> Sequence[sa.Row[Any]]:
            with self._reading.connect() as connection:
                return connection.execute(query, values).all()

        return self._persist(read)

    def write(self, rows: Sequence[Write]) -> None:
        def write() -> None:
            if self._writer is None:
                self._writer = self._claimed(self._busy)
            try:
                with self._writer.begin():
                    put(self._writer, rows)
            except DBAPIError as error:
                if error.connection_invalidated:
                    self._drop()
                raise

        # Once more is no harm where the answer to a commit was lost: each write is one of a kind.
        self._persist(write)

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Return what the attempt does; again for a while when the server went away in it.

        All wait together for one server: what comes later does not wait that long once more.
        """
        pause = 0.05
        while True:
            try:
                done = attempt()
            except DBAPIError as error:
                if not _lost(error):
                    raise
                now = time.monotonic()
                self._away = now if self._away is None else self._away
                if now + pause > self._away + self._busy:
                    raise
            else:
                self._away = None
                return done
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(SQLAlchemyError):
                writer.close()

    def close(self) -> None:
        if self._writer is not None:
            with suppress(SQLAlchemyError), self._writer.begin():
                put(self._writer, [note("owner", None)])
            self._drop()
        self.engine.dispose()

    # Saying what is wrong.

    def failure(self, error: SQLAlchemyError) -> StoreError:
        said = cause(error)
        for secret in self._secrets:
            said = said.replace(secret, "***")
        hint = ""
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "42501":
            hint = (
                " The first writer of a run makes a schema, so its user needs CREATE on the "
                "database."
            )
        if "no password supplied" in said:
            hint = " Passwords of URLs are not kept; give it by PGPASSWORD or ~/.pgpass."
        after = (
            "Mend the cause and try again."
            if self.read_only
            else "What was stored before is safe; mend the cause and run "
            f"`lg-textgrad resume '{self.shown}'`."
        )
        return StoreError(f"The store in '{self.shown}' failed: {said}.{hint} {after}")

    def damaged(self, said: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"The store in '{self.shown}' is damaged: {said}. Restore the database from a backup."
        )


def _lost(error: DBAPIError) -> bool:
    """Whether the server could not be reached, rather than refused something."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    # Shutting down, starting up, or no answer at all.
    going = state.startswith(("57P", "08"))
    return error.connection_invalidated or going or (state == "" and _connecting(error))


def _connecting(error: DBAPIError) -> bool:
    return error.statement is None and "password" not in str(error.orig)


def _secrets(url: sa.URL) -> list[str]:
    given = [url.password, *(url.query.get(name) for name in _SECRET)]
    plain = [str(secret) for secret in given if secret]
    return sorted({*plain, *(quote(s, safe="") for s in plain)}, key=len, reverse=True)
