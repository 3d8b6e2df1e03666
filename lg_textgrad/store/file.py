"""One SQLite file in a run directory: WAL, an fsync for each group of writes, one writer."""

from __future__ import annotations

import secrets
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from lg_textgrad.errors import CorruptStoreError, StoreError
from lg_textgrad.store.claims import Claim
from lg_textgrad.store.places import Write, cause, create, inserts, layout, too_new
from lg_textgrad.store.tables import SCHEMA
from lg_textgrad.store.upgrading import upgrade

FILE_NAME = "run.sqlite"
NEW_NAME = "run.sqlite.new"
"""What a salvage writes until it is complete."""
SPARE_NAME = "run.spare"
SPARE_BYTES = 1 << 20


class File:
    """The place of a run that has a directory."""

    far = False

    def __init__(self, directory: Path, *, read_only: bool, busy_seconds: float) -> None:
        self.directory = directory
        self.shown: str | None = str(directory)
        self.read_only = read_only
        self.full: str | None = None
        self._busy = busy_seconds
        self._path = directory / FILE_NAME
        self._spare = directory / SPARE_NAME
        self._resume = f"lg-textgrad resume {shlex.quote(str(directory))}"
        self._claim: Claim | None = None
        self._held = ExitStack()
        self.engine = sa.create_engine("sqlite://")
        try:
            if read_only:
                self._open_to_read()
            else:
                self._claim = Claim(directory)
                self._open_to_write()
        except SQLAlchemyError as error:
            self.close()
            raise self.failure(error) from None
        except BaseException:
            self.close()
            raise

    # Opening.

    def _open_to_write(self) -> None:
        if (self.directory / NEW_NAME).exists():
            raise CorruptStoreError(
                f"A salvage of '{self.directory}' was interrupted; run it again: "
                f"`{self._resume} --salvage`."
            )
        self.engine = self._engine("rwc")
        with self.engine.connect() as connection:
            found = layout(connection)
            self._refuse(found)
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        if found is None:
            with self._transaction() as connection:
                create(connection)
        elif found < SCHEMA:
            with self._transaction() as connection:
                upgrade(connection, found)
        with suppress(OSError):
            self._spare.write_bytes(secrets.token_bytes(SPARE_BYTES))

    def _open_to_read(self) -> None:
        if not self._path.is_file():
            raise StoreError(
                f"There is no run in '{self.directory}': it has no {FILE_NAME}. "
                "Give the directory that `optimize --out` wrote to."
            )
        self.engine = self._engine("ro")
        try:
            found = self._layout()
        except OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            # Beside a database in WAL mode SQLite needs files that it may not make here.
            self._open_unwritable()
            found = self._layout()
        if found is None:
            raise StoreError(f"There is no run in '{self.directory}': its {FILE_NAME} is empty.")
        self._refuse(found)
        if found < SCHEMA:
            self._upgrade_copy(found)

    def _open_unwritable(self) -> None:
        self.engine.dispose()
        log = self._path.with_name(f"{FILE_NAME}-wal")
        if not log.is_file() or log.stat().st_size == 0:
            self.engine = self._engine("ro&immutable=1")
            return
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        for path in (self._path, log):
            shutil.copyfile(path, folder / path.name)
        self._path = folder / FILE_NAME
        self.engine = self._engine("rw")

    def _upgrade_copy(self, found: int) -> None:
        """Read an older layout through a copy in memory, since the file is not ours to change."""
        memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        with self.engine.connect() as connection:
            own: Any = connection.connection.dbapi_connection
            own.backup(memory)
        self.engine.dispose()
        self.engine = sa.create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
        _begin_explicitly(self.engine)
        with self._transaction() as connection:
            upgrade(connection, found)

    def _layout(self) -> int | None:
        with self.engine.connect() as connection:
            return layout(connection)

    def _refuse(self, found: int | None) -> None:
        if found == 0:
            raise StoreError(
                f"The file '{self._path}' is an SQLite database of something else, not a store. "
                "Use another --out."
            )
        if found is not None and found > SCHEMA:
            raise too_new(str(self.directory), found)

    def _engine(self, mode: str) -> sa.Engine:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"

        def connect() -> sqlite3.Connection:
            made = sqlite3.connect(
                uri, uri=True, timeout=self._busy, check_same_thread=False, isolation_level=None
            )
            try:
                # A paid result survives a power failure once its `put` has returned.
                made.execute("PRAGMA synchronous=FULL")
                made.execute("PRAGMA fullfsync=ON")  # on macOS a plain fsync is none
                made.execute("PRAGMA cell_size_check=ON")
            except UnicodeDecodeError:
                made.close()
                raise _unreadable() from None
            except BaseException:
                made.close()  # a file that is no database
                raise
            made.text_factory = _readable
            return made

        # Readers have connections of their own: in WAL mode they don't wait for a write.
        engine = sa.create_engine(
            "sqlite://", creator=connect, poolclass=QueuePool, pool_size=8, max_overflow=56
        )
        _begin_explicitly(engine)
        return engine

    # Working.

    def rows(self, query: sa.Select[Any], **values: Any) -> Sequence[sa.Row[Any]]:
        with self.engine.connect() as connection:
            return connection.execute(query, values).all()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection

    def write(self, rows: Sequence[Write]) -> None:
        try:
            self._write(rows)
        except DatabaseError as error:
            if _code(error) != sqlite3.SQLITE_FULL:
                raise
            self.full = str(self.failure(error))
            if not self._spare.exists():
                raise
            # Room for the replies to calls that were under way when the disk became full.
            self._spare.unlink(missing_ok=True)
            self._write(rows)

    def _write(self, rows: Sequence[Write]) -> None:
        held = self.engine.raw_connection()
        try:
            # Each paid reply waits for this, and SQLAlchemy's way would take twice the CPU.
            own: Any = held.driver_connection
            own.execute("BEGIN IMMEDIATE")
            for statement, values in inserts(rows):
                own.executemany(statement, values)
            own.execute("COMMIT")
        except sqlite3.Error as error:
            raise DBAPIError.instance(None, None, error, sqlite3.Error) from error
        finally:
            held.close()  # takes back what was not committed

    def close(self) -> None:
        self.engine.dispose()
        self._held.close()
        if self._claim is not None:
            with suppress(OSError):
                self._spare.unlink(missing_ok=True)
            self._claim.release()
            self._claim = None

    def failure(self, error: SQLAlchemyError) -> StoreError:
        where, said, code = f"'{self.directory}'", cause(error), _code(error)
        resume = f"`{self._resume}`"
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.damaged(said)
        if code == sqlite3.SQLITE_FULL:
            return StoreError(
                f"The store in {where} cannot grow: {said}. What was stored before is safe; free "
                f"some space and run {resume}."
            )
        if code == sqlite3.SQLITE_BUSY:
            return StoreError(
                f"The store in {where} has been locked by another program for {self._busy:g} s, "
                f"for instance by a database browser in the middle of a change ({said}). Close it "
                f"and run {resume}."
            )
        return StoreError(
            f"The store in {where} failed: {said}. What was stored before is safe; mend the cause "
            f"and run {resume}."
        )

    def damaged(self, said: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"The store in '{self.directory}' is damaged: {said}. Save what is good in it with "
            f"`{self._resume} --salvage`; the damaged file is kept beside it."
        )


def _begin_explicitly(engine: sa.Engine) -> None:
    """Let transactions be ours: sqlite3 would begin them late, and not at all around tables."""

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _unreadable() -> sqlite3.DatabaseError:
    """Return what SQLite says of a damaged schema, where its words quote what is no text."""
    error = sqlite3.DatabaseError("malformed database schema")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _readable(text: bytes) -> str:
    """Return also what is no text any more: the check of the row tells that."""
    return text.decode("utf-8", "replace")


def _code(error: SQLAlchemyError) -> int:
    """Return SQLite's primary result code; 0 where the error is not SQLite's."""
    return int(getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)) & 0xFF
