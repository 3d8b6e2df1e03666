"""Older run directories are brought up to date: layout 1 had no checks, 2 no prices, 3 no calls."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zlib
from contextlib import closing

import pytest

import lg_textgrad as tg
from lg_textgrad.errors import CorruptStoreError, StoreError
from lg_textgrad.run import Feedback, Run, Usage
from lg_textgrad.store import salvage, tables, upgrading
from lg_textgrad.store.records import encode_run
from tests.store.parts import sql

EXAMPLE = tg.Example("e", {})
RUN = Run("r", EXAMPLE, "c0", {"a": "ü"})
LAYOUT_1 = """
CREATE TABLE meta ("key" VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE results ("key" VARCHAR(80) NOT NULL, kind VARCHAR(16) NOT NULL, request TEXT NOT NULL,
    reply TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    seconds FLOAT NOT NULL, created FLOAT NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE runs (id VARCHAR(64) NOT NULL, candidate VARCHAR(16) NOT NULL, example VARCHAR(200) NOT NULL,
    error TEXT, payload BLOB NOT NULL, PRIMARY KEY (id));
CREATE INDEX ix_runs_candidate ON runs (candidate);
CREATE TABLE feedback (run VARCHAR(64) NOT NULL, objective VARCHAR(64) NOT NULL, score FLOAT NOT NULL,
    payload TEXT NOT NULL, PRIMARY KEY (run, objective));
CREATE TABLE gradients (id VARCHAR(16) NOT NULL, step INTEGER NOT NULL, parameter VARCHAR(200) NOT NULL,
    payload TEXT NOT NULL, PRIMARY KEY (id, step));
CREATE TABLE candidates (hash VARCHAR(16) NOT NULL, parent VARCHAR(16), step INTEGER NOT NULL,
    texts TEXT NOT NULL, edits TEXT NOT NULL, PRIMARY KEY (hash));
CREATE TABLE decisions (step INTEGER NOT NULL, candidate VARCHAR(16) NOT NULL, stage VARCHAR(16) NOT NULL,
    number INTEGER NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (step, candidate, stage));
CREATE TABLE events (number INTEGER NOT NULL, at FLOAT NOT NULL, kind VARCHAR(32) NOT NULL,
    payload TEXT NOT NULL, PRIMARY KEY (number));
"""


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "run.sqlite")) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(LAYOUT_1)
        db.execute("INSERT INTO meta VALUES ('configuration', '{}')")
        for n in range(1200):
            reply = json.dumps({"text": f"ü{n}" * (n % 200)}, ensure_ascii=False)
            db.execute("INSERT INTO results VALUES (?, 'critic', '{\"q\": 1}', ?, 2, 3, 0.5, 1.0)", (f"k{n}", reply))
        payload = zlib.compress(json.dumps(encode_run(RUN)).encode(), 1)
        db.execute("INSERT INTO runs VALUES ('r', 'c0', 'e', NULL, ?)", (payload,))
        db.execute("""INSERT INTO feedback VALUES ('r', 'o', 1,
            '[{"key": "k", "score": 1.0, "comment": "", "reads": null}]')""")
        db.execute("INSERT INTO candidates VALUES ('c0', NULL, 0, '{\"p\": \"x\"}', '[]')")
        db.execute("INSERT INTO decisions VALUES (1, 'c0', 'val', 1, '{\"accepted\": true}')")
        db.execute("INSERT INTO events VALUES (7, 1.0, 'began', '{}')")
    return folder


def check(store):
    assert store.paid() == {"critic": Usage(1200, 0, 2400, 3600, 600.0, unpriced=1200)}
    assert all(store.get_result(f"k{n}")[0] == {"text": f"ü{n}" * (n % 200)} for n in range(1200))
    assert store.get_run("r", EXAMPLE) == RUN
    assert store.get_feedback("r", "o") == [Feedback("k", 1.0)]
    assert store.get_meta("configuration") == {}
    assert list(store.candidates()) == ["c0"]
    assert [d["accepted"] for d in store.decisions()] == [True]
    assert [e["kind"] for e in store.events()] == ["began"]


def test_older_store_is_brought_up_to_date_when_it_is_opened(old):
    for _ in range(2):
        with tg.Store(old) as store:
            check(store)
            assert store.get_meta("schema") == tables.SCHEMA
    with tg.Store(old) as store:
        store.add_event("went on", {})
        assert [e["kind"] for e in store.events()] == ["began", "went on"]
    names = {row[0] for row in sql(old, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == set(tables.tables.tables)
    tg.Store.salvage(old)
    with tg.Store(old) as store:
        assert store.paid()["critic"].calls == 1200


def test_older_store_is_read_without_changing_it(old):
    before = (old / "run.sqlite").read_bytes()
    with tg.Store(old, read_only=True) as store:
        check(store)
        with pytest.raises(StoreError, match="reading only"):
            store.put_meta("k", 1)
    assert (old / "run.sqlite").read_bytes() == before


def test_older_store_that_is_damaged_is_salvaged_as_far_as_it_can_be_read(old):
    sql(old, "UPDATE results SET reply = '{\"broken' WHERE key IN ('k1', 'k2')")
    sql(old, "UPDATE runs SET payload = 'x'")
    with open(old / "run.sqlite", "r+b") as file:
        file.seek(4096 * 30)
        file.write(bytes(4096))
    done = tg.Store.salvage(old)
    assert 1100 < done.rows["results"] < 1198
    assert (done.rows["runs"], done.rows["feedback"], done.rows["meta"]) == (0, 1, 1)
    with tg.Store(old) as store:
        found = {n: store.get_result(f"k{n}") for n in range(1200)}
    assert all(r[0] == {"text": f"ü{n}" * (n % 200)} for n, r in found.items() if r is not None)
    assert sum(r is not None for r in found.values()) == done.rows["results"]


def test_interrupted_upgrade_changes_nothing(old, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(upgrading, "put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tg.Store(old)
    shutil.copytree(old, tmp_path / "copy")
    with tg.Store(tmp_path / "copy") as store:
        check(store)


# Layout 2: checks and origins; no prices, no models.

LAYOUT_2 = """
CREATE TABLE meta ("key" VARCHAR(64) NOT NULL, value TEXT NOT NULL, crc BIGINT, PRIMARY KEY ("key"));
CREATE TABLE results ("key" VARCHAR(80) NOT NULL, kind VARCHAR(16) NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, seconds FLOAT NOT NULL, created FLOAT NOT NULL, origin VARCHAR(200),
    reply BLOB NOT NULL, request BLOB NOT NULL, crc BIGINT, PRIMARY KEY ("key"));
CREATE INDEX results_cost ON results (origin, kind, prompt_tokens, completion_tokens, seconds);
CREATE TABLE runs (id VARCHAR(64) NOT NULL, candidate VARCHAR(16) NOT NULL, example VARCHAR(200) NOT NULL,
    error TEXT, payload BLOB NOT NULL, crc BIGINT, PRIMARY KEY (id));
CREATE INDEX ix_runs_candidate ON runs (candidate);
CREATE TABLE feedback (run VARCHAR(64) NOT NULL, objective VARCHAR(64) NOT NULL, score FLOAT NOT NULL,
    payload TEXT NOT NULL, crc BIGINT, PRIMARY KEY (run, objective));
CREATE TABLE gradients (id VARCHAR(16) NOT NULL, step INTEGER NOT NULL, parameter VARCHAR(200) NOT NULL,
    payload TEXT NOT NULL, crc BIGINT, PRIMARY KEY (id, step));
CREATE TABLE candidates (hash VARCHAR(16) NOT NULL, parent VARCHAR(16), step INTEGER NOT NULL,
    texts TEXT NOT NULL, edits TEXT NOT NULL, crc BIGINT, PRIMARY KEY (hash));
CREATE TABLE decisions (step INTEGER NOT NULL, candidate VARCHAR(16) NOT NULL, stage VARCHAR(16) NOT NULL,
    number INTEGER NOT NULL, payload TEXT NOT NULL, crc BIGINT, PRIMARY KEY (step, candidate, stage));
CREATE TABLE events (number INTEGER NOT NULL, at FLOAT NOT NULL, kind VARCHAR(32) NOT NULL,
    payload TEXT NOT NULL, crc BIGINT, PRIMARY KEY (number));
"""


def put_2(db, table, **row):
    """Insert a row as layout 2 wrote it, its check over all that matters."""
    crc = zlib.crc32(table.encode())
    for name, value in row.items():
        if name == "request" or (table, name) == ("events", "number"):
            continue
        data = value
        if not isinstance(value, bytes):
            data = f"{type(value).__name__[0]}{value!r}".encode()
        crc = zlib.crc32(b"%d:" % len(data) + data, crc)
    marks = ", ".join("?" * (len(row) + 1))
    db.execute(f"INSERT INTO {table} VALUES ({marks})", (*row.values(), crc))


def reply_2(n):
    plain = json.dumps({"text": f"ü{n}" * (n % 200)}, ensure_ascii=False).encode()
    return zlib.compress(plain, 1) if len(plain) >= 256 else plain


@pytest.fixture
def second(tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "run.sqlite")) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(LAYOUT_2)
        for key, value in (("schema", "2"), ("written_by", '"0.2.0.dev"'), ("configuration", "{}")):
            put_2(db, "meta", key=key, value=value)
        for n in range(1201):
            put_2(
                db, "results", key=f"k{n}", kind="critic", prompt_tokens=2, completion_tokens=3, seconds=0.5,
                created=1.0, origin="other" if n == 1200 else None, reply=reply_2(n), request=b'{"q": 1}',
            )  # fmt: skip
        payload = json.dumps(encode_run(RUN)).encode()
        put_2(db, "runs", id="r", candidate="c0", example="e", error=None, payload=payload)
        said = '[{"key": "k", "score": 1.0, "comment": "", "reads": null}]'
        put_2(db, "feedback", run="r", objective="o", score=1.0, payload=said)
        put_2(db, "candidates", hash="c0", parent=None, step=0, texts='{"p": "x"}', edits="[]")
        put_2(db, "decisions", step=1, candidate="c0", stage="val", number=1, payload='{"accepted": true}')
        put_2(db, "events", number=7, at=1.0, kind="began", payload="{}")
    return folder


def check_2(store):
    check(store)
    assert store.get_result("k1200") is not None  # another run paid for it


def test_store_without_prices_is_brought_up_to_date_and_its_checks_stay(second):
    before = dict(sql(second, "SELECT key, crc FROM results"))
    with tg.Store(second) as store:
        check_2(store)
        assert store.get_meta("schema") == tables.SCHEMA
        store.put_result("new", "critic", {}, 1, Usage(1, 0, 2, 3, 0.5, 1, 0.25), model="m")
    with tg.Store(second) as store:
        assert store.paid()["critic"] == Usage(1201, 0, 2402, 3603, 600.5, 1, 0.25, unpriced=1200)
        assert store.get_result("new")[1].dollars == 0.25
    after = dict(sql(second, "SELECT key, crc FROM results WHERE key != 'new'"))
    assert after == before
    assert {row[0] for row in sql(second, "SELECT model FROM results")} == {None, "m"}


def test_damage_that_was_there_before_the_upgrade_is_told_after_it(second):
    sql(second, "UPDATE results SET prompt_tokens = 9 WHERE key = 'k5'")
    with tg.Store(second) as store:
        assert store.get_result("k6") is not None
        with pytest.raises(CorruptStoreError, match="resume .* --salvage"):
            store.get_result("k5")
    tg.Store.salvage(second)
    with tg.Store(second) as store:
        assert store.get_result("k5") is None
        assert store.paid()["critic"].calls == 1199


def test_store_without_prices_is_read_without_changing_it(second):
    before = (second / "run.sqlite").read_bytes()
    with tg.Store(second, read_only=True) as store:
        check_2(store)
    assert (second / "run.sqlite").read_bytes() == before


def test_store_without_prices_is_salvaged(second):
    sql(second, "UPDATE results SET reply = x'00' WHERE key IN ('k1', 'k2')")
    done = tg.Store.salvage(second)
    assert done.rows["results"] == 1199
    with tg.Store(second) as store:
        assert store.get_result("k1") is None
        assert store.paid()["critic"].calls == 1198
        assert store.get_meta("schema") == tables.SCHEMA


# Layout 3: the present one without calls.


@pytest.fixture
def third(tmp_path):
    folder = tmp_path / "third"
    with tg.Store(folder) as store:
        for n in range(3):
            store.put_result(f"k{n}", "critic", {}, n, Usage(1, 0, 2, 3, 0.5, unpriced=1))
    kept = {"key": "schema", "value": "3"}
    sql(folder, "DROP INDEX results_cost")
    sql(folder, "ALTER TABLE results DROP COLUMN calls")
    sql(folder, f"UPDATE meta SET value = '3', crc = {tables.checksum(tables.meta, kept)} WHERE key = 'schema'")
    return folder


@pytest.mark.parametrize("salvaged", [False, True])
def test_store_without_calls_is_brought_up_to_date(third, salvaged):
    if salvaged:
        assert tg.Store.salvage(third).rows["results"] == 3
    with tg.Store(third) as store:
        assert store.get_meta("schema") == tables.SCHEMA
        store.put_result("on a server", "critic", {}, 9, Usage(5, 0, 20, 10, unpriced=5))
        assert store.get_result("on a server")[1] == Usage(5, 0, 20, 10, unpriced=5)
        assert store.get_result("k1") == (1, Usage(1, 0, 2, 3, 0.5, unpriced=1))
        assert store.paid()["critic"] == Usage(8, 0, 26, 19, 1.5, unpriced=8)


def test_pages_of_a_store_without_calls_are_read(third):
    found = [row for name, row in salvage._by_page(third / "run.sqlite") if name == "results"]
    assert {(row["key"], row["calls"]) for row in found} == {("k0", None), ("k1", None), ("k2", None)}
