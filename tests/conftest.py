"""What several test modules start: one PostgreSQL server a test run, where there can be one."""

from __future__ import annotations

import itertools
import signal

import pytest

# A shell starts what goes into the background with SIGINT ignored, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server():
    from tests.servers import postgres

    if reason := postgres.why_not():
        pytest.skip(reason)
    pytest.importorskip("psycopg")
    with postgres.PostgresServer() as server:
        yield server


_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def where(request, tmp_path):
    """Where a store of this test can be: a directory that is not there yet, or a run's URL."""
    if request.param == "sqlite":
        return tmp_path / "run"
    return request.getfixturevalue("postgres_server").url(f"test-{next(_numbers)}")
