"""What a server adds: URLs, passwords, crashes of the server, locks that are lost with a connection."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
import zlib
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError, LGTextGradError, MissingExtraError, StoreError
from lg_textgrad.run import Usage
from lg_textgrad.store.postgres import run_name, without_password
from tests.servers.postgres import PostgresServer
from tests.store.test_file import acknowledged, writing
from tests.store.writer import reply

USAGE = Usage(1, 0, 1, 1)
SECRET = "s3cret/pass"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://u:{}@h/d", r"'postgresql://u@h/d' needs a run's name, as \?run=NAME"),
        ("postgresql://u:{}@h/d?run=", "needs a run's name"),
        ("postgresql://u:{}@h/d?run=a/b", "needs a run's name"),
        ("postgresql://u:{}@h/d?run=" + "x" * 60, "at most 41"),
        ("postgresql://u:{}@h/d?run=a&run=b", "needs a run's name"),
        ("mysql://u:{}@h/d?run=a", "begins with 'mysql://'; give a directory, or postgresql://"),
        ("sqlite:///x.db", "begins with 'sqlite://'"),
        ("postgresql+asyncpg://u:{}@h/d?run=a", r"begins with 'postgresql\+asyncpg://'"),
        ("postgresql://u:{}@h:port/d?run=a", "cannot be read"),
        ("postgresql:/u:{}@h/d?run=a", "cannot be read"),
        ("postgresql+psycopg:u:{}@h/d?run=a", "cannot be read"),
    ],
)
def test_url_that_will_not_do_is_refused_without_its_password(url, error):
    for read_only in (False, True):
        with pytest.raises(ConfigurationError, match=error) as refused:
            tg.Store(url.format(SECRET), read_only=read_only)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            f"postgresql://u:{password}@127.0.0.1:1/d?run=a"
            for password in ("a@s3cret", "a@s3cret/b", "a@s3cret?b", "a@b@s3cret", "a@s3cret?b=c")
        ),
        "postgresql://127.0.0.1:1/d?user=u&password=a@s3cret&run=a",
    ],
)
def test_password_with_an_at_sign_that_is_not_encoded_is_not_taken_for_the_host(url):
    for attempt in (lambda: tg.Store(url), lambda: without_password(url), lambda: run_name(url)):
        with pytest.raises(ConfigurationError, match="password's own '@' as %40") as refused:
            attempt()
        assert "s3cret" not in str(refused.value)


def test_server_that_is_not_there_is_told(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match=r"'postgresql://u@127.0.0.1:\d+/d\?run=a' failed: .*refused") as refused:
        tg.Store(f"postgresql://u:{SECRET}@127.0.0.1:{port}/d?run=a")
    assert SECRET not in str(refused.value)


def test_warnings_of_the_driver_are_kept_off_the_screen():
    """psycopg warns of each rollback on a connection that is gone; nobody set up logging here."""
    pytest.importorskip("psycopg")
    code = (
        "import contextlib, logging\n"
        "import lg_textgrad as tg\n"
        "with contextlib.suppress(tg.errors.StoreError): tg.Store('postgresql://u@127.0.0.1:1/d?run=a')\n"
        "logging.getLogger('psycopg').warning('error ignored in rollback')\n"
        "logging.getLogger('other').warning('shown')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == "shown\n"


def test_missing_driver_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lg-textgrad\[postgres\]'"):
        tg.Store("postgresql://u@localhost/d?run=a")


def test_no_error_shows_the_password(postgres_server):
    server = postgres_server
    good = server.url("shown")
    for url in (
        good.replace("tuner", "stranger"),
        good.replace("/postgres", "/no_such_database"),
        good + "&sslmode=require",
        good + "&no_such_option=1",
        good.replace(f":{server.quoted}@", "@") + f"&password={server.quoted}&sslmode=require",
    ):
        with pytest.raises(LGTextGradError) as refused:
            tg.Store(url)
        for text in (str(refused.value), repr(refused.value)):
            assert server.password not in text
            assert server.quoted not in text
    with tg.Store(good.replace(f":{server.quoted}@", "@") + f"&password={server.quoted}") as store:
        assert store.where.endswith("/postgres?run=shown")


def test_runs_of_one_database_know_nothing_of_each_other(postgres_server):
    with tg.Store(postgres_server.url("one")) as one, tg.Store(postgres_server.url("two")) as two:
        one.put_meta("k", 1)
        one.put_result("k", "critic", {}, 1, USAGE)
        assert (two.get_meta("k"), two.get_result("k"), two.paid()) == (None, None, {})
        two.put_result("k", "critic", {}, 2, USAGE)
        assert (one.get_result("k")[0], two.get_result("k")[0]) == (1, 2)


def test_run_of_an_unreleased_layout_is_refused_and_left_as_it_is(postgres_server):
    url = postgres_server.url("second")
    tg.Store(url).close()
    meta = '"lg_textgrad/second".meta'
    kept = postgres_server.sql(f"SELECT value, crc FROM {meta} WHERE key = 'schema'")[0]
    crc = zlib.crc32(b"meta")
    for data in (b"s'schema'", b"s'2'"):
        crc = zlib.crc32(b"%d:" % len(data) + data, crc)
    postgres_server.sql(f"UPDATE {meta} SET value = '2', crc = %s WHERE key = 'schema'", crc)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"run=second' was written by a version .* Use another \?run=NAME"):
            tg.Store(url, read_only=read_only)
    postgres_server.sql(f"UPDATE {meta} SET value = %s, crc = %s WHERE key = 'schema'", *kept)
    tg.Store(url).close()


def test_user_without_the_right_to_make_a_schema_is_told(postgres_server):
    postgres_server.sql("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    url = f"postgresql://guest:guest@127.0.0.1:{postgres_server.port}/postgres?run=guest"
    with pytest.raises(StoreError, match="permission denied.* needs CREATE on the database"):
        tg.Store(url)


def test_commits_are_durable_where_the_database_is_laxer(postgres_server):
    def setting():
        with tg.Store(postgres_server.url("lax")) as store, store._place.engine.connect() as connection:
            return connection.execute(sa.text("SHOW synchronous_commit")).scalar()

    assert setting() == "on"
    try:
        postgres_server.sql("ALTER ROLE tuner SET synchronous_commit = off")
        assert setting() == "on"
        postgres_server.sql("ALTER ROLE tuner SET synchronous_commit = remote_apply")
        assert setting() == "remote_apply"  # stricter is not ours to weaken
    finally:
        postgres_server.sql("ALTER ROLE tuner RESET synchronous_commit")


def test_killed_writer_leaves_every_result_that_it_acknowledged(postgres_server):
    url = postgres_server.url("killed")
    with writing(url) as process:
        told = acknowledged(process, random.Random().randrange(1, 100))
        process.kill()
        told += [int(line) for line in process.stdout]
    with tg.Store(url) as store:
        assert all(store.get_result(f"k{n}") == (reply(n), USAGE) for n in told)


# The server goes away.


@pytest.fixture
def server(postgres_server):
    """A server that the test may crash."""
    with PostgresServer() as server:
        yield server


async def test_server_that_crashes_and_comes_back_costs_nothing(server):
    told = []
    with tg.Store(server.url("r"), busy_seconds=60) as store:

        async def put(n):
            await store.aput_result(f"k{n}", "rollout", {}, n, USAGE)
            told.append(n)

        tasks = [asyncio.create_task(put(n)) for n in range(60)]
        while len(told) < 10:
            await asyncio.sleep(0)
        server.kill()
        tasks += [asyncio.create_task(put(n)) for n in range(60, 80)]
        read = asyncio.create_task(store.aget_result(f"k{told[0]}"))
        await asyncio.sleep(0)
        await asyncio.to_thread(server.start)
        assert await read == (told[0], USAGE)
        await asyncio.gather(*tasks)
        assert store.paid() == {"rollout": Usage(80, 0, 80, 80)}
    with tg.Store(server.url("r"), read_only=True) as store:
        assert all(store.get_result(f"k{n}") == (n, USAGE) for n in range(80))


def test_server_that_stays_away_is_told(server):
    with tg.Store(server.url("r"), busy_seconds=0.2) as store:
        store.put_meta("k", 1)
        server.kill()
        for attempt in (lambda: store.put_meta("k", 2), lambda: store.get_meta("k")):
            with pytest.raises(StoreError, match=r"'postgresql://tuner@.*\?run=r' failed: .*safe; mend the cause"):
                attempt()
        server.start()
        assert store.get_meta("k") == 1
        store.put_meta("k", 3)
        assert store.get_meta("k") == 3


def test_server_that_stays_away_is_waited_for_once_and_what_is_lost_is_told(server, caplog, monkeypatch):
    clock, slept = time.monotonic(), []
    ours = SimpleNamespace(monotonic=lambda: clock + sum(slept), sleep=slept.append)
    with tg.Store(server.url("r"), busy_seconds=20) as store:
        server.kill()
        monkeypatch.setattr("lg_textgrad.store.postgres.time", ours)
        for n in range(4):
            with pytest.raises(StoreError):
                store.put_result(f"k{n}", "rollout", {}, n, USAGE)
            assert 19 <= sum(slept) < 20.1  # for the first; the others do not wait as long once more
        monkeypatch.undo()
    assert "4 results that were paid for could not be written" in caplog.text
    server.start()


def test_password_of_a_run_that_is_read_is_asked_for_where_it_can_be_given(postgres_server, monkeypatch):
    monkeypatch.delenv("PGPASSWORD", raising=False)
    url = postgres_server.url("reused")
    tg.Store(url).close()
    bare = url.replace(f":{postgres_server.quoted}@", "@")
    with pytest.raises(StoreError, match="Passwords of URLs are not kept; give it by PGPASSWORD") as refused:
        tg.Store(bare, read_only=True)
    assert "Mend the cause and try again." in str(refused.value)
    assert "resume" not in str(refused.value)
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    tg.Store(bare, read_only=True).close()


def test_writer_that_lost_its_lock_to_another_cannot_write(postgres_server):
    url = postgres_server.url("lost")
    with tg.Store(url, busy_seconds=0.2) as first:
        first.put_meta("k", 1)
        # What a network does that is gone for a minute.
        postgres_server.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        with tg.Store(url) as second:
            second.put_meta("k", 2)
            with pytest.raises(StoreError, match="is working in"):
                first.put_meta("k", 3)
            assert first.get_meta("k") == second.get_meta("k") == 2
        first.put_meta("k", 4)  # the other one has gone
        assert first.get_meta("k") == 4
