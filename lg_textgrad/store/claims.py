"""Who writes in a run directory: one process at a time, known to the others by name."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lg_textgrad.errors import StoreError

LOCK_NAME, OWNER_NAME = "run.lock", "run.owner"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


class _Lock(FileLock):
    """A lock that a process leaves alone which was forked from the one that made it.

    filelock before 4.0 gives a lock back in the fork as well, where it is garbage collected.
    """

    process = 0

    def __del__(self, *_: Any) -> None:
        if self.process == os.getpid():
            super().__del__()


class Claim:
    """The right to write in a run directory, which one process has at a time.

    Raises `StoreError` when another one has it, naming that process, or when the directory cannot
    be written.
    """

    def __init__(self, directory: Path) -> None:
        self._owner = directory / OWNER_NAME
        try:
            _make(directory)
            # Whichever thread closes the store gives the lock back.
            self._lock = _Lock(str(directory / LOCK_NAME), thread_local=False)
            self._lock.process = os.getpid()
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"{_named(self._owner)} is working in '{directory}'. Wait for it, or use another "
                "--out."
            ) from None
        except OSError as error:
            where = (
                " Its file system has no locks, as some network drives; use a directory on a local "
                "disk, or a PostgreSQL URL."
            )
            raise StoreError(
                f"The run directory '{directory}' cannot be written: {error}."
                f"{where if error.errno in _NO_LOCKS else ''}"
            ) from None
        with suppress(OSError):  # only for the message above
            self._owner.write_text(json.dumps(me()), encoding="utf-8")

    def release(self) -> None:
        with suppress(OSError):
            self._owner.unlink(missing_ok=True)
        self._lock.release()


def me() -> dict[str, Any]:
    """Return what another process is told about this one."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time())}


def describe(owner: Any) -> str:
    """Return `me()` of another process as the subject of a sentence."""
    try:
        if (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname()):
            return "Another Store of this same process"
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["since"]))
        return f"Process {owner['pid']} on '{owner['host']}' (since {since})"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "Another process"


def _named(path: Path) -> str:
    try:
        return describe(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return "Another process"


def _make(directory: Path) -> None:
    """Make the directory, so that it is there after a power failure."""
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the platform can."""
    with suppress(OSError):  # Windows has no such thing
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
