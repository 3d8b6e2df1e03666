"""What several test modules start: one PostgreSQL server a test run, where there can be one."""

from __future__ import annotations

import functools
import itertools
import signal

import pytest
from langchain_openai.chat_models import _client_utils

# A shell starts what goes into the background with SIGINT ignored, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# It drops the clients of all but the last 128 addresses with their connections open, and almost every
# test has an address of its own: the warning of that would fail whichever test is running.
for _name in ("_cached_sync_httpx_client", "_cached_async_httpx_client"):
    _cached = getattr(_client_utils, _name)
    setattr(_client_utils, _name, functools.lru_cache(maxsize=None)(_cached.__wrapped__))


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
