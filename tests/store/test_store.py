"""The store: the same on a real SQLite file and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.errors import CorruptStoreError, StoreError
from lg_textgrad.run import Feedback, Run, Usage
from lg_textgrad.store import tables
from tests.store.parts import damage_row

EXAMPLE = tg.Example("e", {"q": "ü"}, {"a": 1})


@pytest.fixture
def store(where):
    with tg.Store(where) as store:
        yield store


def test_everything_is_there_after_opening_again(where):
    edit = tg.Edit("p", "add", 1, "{new} line", ("g1",))
    gradient = tg.Gradient("p", "r", "n#0", "change ✓", weight=0.5, score=0.0)
    run = Run("r", EXAMPLE, "c0", {"a": "x"}, usage=Usage(1, 2, 3, 4, 5.0), warnings=("w",),
              accumulating={"": ("m",)})  # fmt: skip
    feedback = [Feedback("k", 0.5, "so", frozenset({"a"})), Feedback("l", None, "text")]
    with tg.Store(where) as store:
        store.put_result("key", "critic", {"q": EXAMPLE}, {"text": "ü"}, Usage(1, 0, 2, 3, 0.5))
        store.put_run(run)
        store.put_feedback("r", "o", 0.5, feedback)
        store.put_gradients(1, [gradient])
        store.put_candidate("c0", {"p": "x"}, parent=None, step=0)
        store.put_candidate("c1", {"p": "y"}, parent="c0", step=1, edits=[edit])
        store.put_decision(1, 2, "c1", "val", {"stage": "val", "accepted": True})
        store.put_decision(1, 1, "c1", "batch", {"stage": "batch", "accepted": True})
        store.put_meta("seed", {"a": [1]})
        store.add_event("started", {"n": 1})
        store.add_event("ended", {})
    for read_only in (False, True):
        with tg.Store(where, read_only=read_only) as again:
            assert again.get_result("key") == ({"text": "ü"}, Usage(1, 0, 2, 3, 0.5))
            assert again.paid() == {"critic": Usage(1, 0, 2, 3, 0.5)}
            assert again.get_run("r", EXAMPLE) == run
            assert again.get_feedback("r", "o") == feedback
            assert again.scores() == {("c0", "e"): 0.5}
            assert again.gradients() == {gradient.id: gradient}
            assert again.candidates() == {
                "c0": {"texts": {"p": "x"}, "parent": None, "step": 0, "edits": []},
                "c1": {"texts": {"p": "y"}, "parent": "c0", "step": 1, "edits": [edit]},
            }
            assert [d["stage"] for d in again.decisions()] == ["batch", "val"]
            assert again.get_meta("seed") == {"a": [1]}
            assert [(e["kind"], e.get("n")) for e in again.events()] == [("started", 1), ("ended", None)]


async def test_what_is_awaited_is_the_same(where):
    run = Run("r", EXAMPLE, "c0", {"a": "x"})
    with tg.Store(where) as store:
        await store.aput_result("key", "critic", {}, {"text": "ü"}, Usage(1, 0, 2, 3, 0.5))
        await store.aput_run(run)
        await store.aput_feedback("r", "o", 0.5, [Feedback("k", 0.5)])
        assert await store.aget_result("key") == store.get_result("key") == ({"text": "ü"}, Usage(1, 0, 2, 3, 0.5))
        assert await store.aget_run("r", EXAMPLE) == store.get_run("r", EXAMPLE) == run
        assert await store.aget_feedback("r", "o") == store.get_feedback("r", "o") == [Feedback("k", 0.5)]
        assert await store.aget_result("other") is None


def test_what_is_not_there_is_none(store):
    assert store.get_result("k") is store.get_run("r", EXAMPLE) is store.get_feedback("r", "o") is None
    assert store.get_meta("k") is None
    assert store.paid() == store.candidates() == store.gradients() == store.scores() == {}


def test_writing_again_changes_nothing(store):
    for _ in range(3):
        store.put_result("k", "critic", {}, "r", Usage(1, 0, 2, 3))
        store.put_run(Run("r", EXAMPLE, "c", None))
        store.put_feedback("r", "o", 1.0, [])
        store.put_gradients(1, [])
    assert store.paid() == {"critic": Usage(1, 0, 2, 3)}
    assert len(store.scores()) == 1


def test_meta_and_candidates_are_replaced_and_results_are_not(store):
    for n in (1, 2):
        store.put_meta("k", n)
        store.put_candidate("c", {"p": str(n)}, parent=None, step=n)
        store.put_result("k", "critic", {}, n, Usage(1, 0, n, n))
    assert store.get_meta("k") == 2
    assert (store.candidates()["c"]["texts"], store.candidates()["c"]["step"]) == ({"p": "2"}, 2)
    assert store.get_result("k") == (1, Usage(1, 0, 1, 1))


def test_what_another_run_paid_for_is_there_and_not_counted(store):
    store.put_result("a", "critic", {}, "mine", Usage(1, 0, 2, 3))
    store.put_result("b", "critic", {}, "theirs", Usage(1, 0, 20, 30), origin="runs/other")
    assert store.get_result("b") == ("theirs", Usage(1, 0, 20, 30))
    assert store.paid() == {"critic": Usage(1, 0, 2, 3)}


def test_long_name_of_the_run_that_paid_is_cut_wherever_it_comes_from(store, tmp_path):
    far = tmp_path / ("d" * 120) / ("e" * 120)
    with tg.Store(far) as other:
        other.put_result("a", "critic", {}, "theirs", Usage(1, 0, 20, 30))
        store.put_result("b", "critic", {}, "reused", Usage(1, 0, 2, 3), origin=other.where)
        assert store.take_over(other) == 1
    assert (store.get_result("a")[0], store.get_result("b")[0]) == ("theirs", "reused")
    t = tables.results.c
    origins = {row.origin for row in store._place.rows(sa.select(t.origin))}
    assert origins == {str(far)[:200]}


def test_threads_write_at_once(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.put_result(f"k{i}", "rollout", {}, i, Usage(1, 0, 1, 1)), range(80)))
    assert store.paid() == {"rollout": Usage(80, 0, 80, 80)}
    assert [store.get_result(f"k{i}")[0] for i in range(80)] == list(range(80))


def test_results_of_some_kinds_come_in_the_order_in_which_they_were_paid(store):
    for n, kind in enumerate(("critic", "rollout", "rewriter", "critic", "judge")):
        store.put_result(f"k{9 - n}", kind, {"q": [n]}, "x" * 300 * n, Usage(1, 0, n, n, 0.5))
    found = store.results(["critic", "rewriter"])
    assert [(f["key"], f["kind"]) for f in found] == [("k9", "critic"), ("k7", "rewriter"), ("k6", "critic")]
    assert found[1] == {
        "key": "k7", "kind": "rewriter", "request": {"q": [2]}, "reply": "x" * 600, "usage": Usage(1, 0, 2, 2, 0.5),
        "created": found[1]["created"],
    }  # fmt: skip
    assert store.results(["critic", "rewriter"], after=found[1]["created"]) == found[2:]


async def test_threads_and_coroutines_write_and_read_at_once(store):
    async def one(i):
        await store.aput_result(f"a{i}", "rollout", {}, i, Usage(1, 0, 1, 1))
        return (await store.aget_result(f"a{i}"))[0]

    def other(i):
        store.put_result(f"b{i}", "rollout", {}, i, Usage(1, 0, 1, 1))
        return store.get_result(f"b{i}")[0]

    with ThreadPoolExecutor(4) as pool:
        threads = [asyncio.wrap_future(pool.submit(other, i)) for i in range(40)]
        found = await asyncio.gather(*map(one, range(40)), *threads)
    assert found == [*range(40), *range(40)]
    assert store.paid() == {"rollout": Usage(80, 0, 80, 80)}


TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reply=PLAIN, text=TEXT, seconds=st.floats(0, 1e9), score=st.floats(0, 1))
def test_whatever_is_put_comes_back(store, reply, text, seconds, score):
    key = str(hash((repr(reply), text, seconds, score)))
    store.put_result(key, "critic", {"text": text}, [reply] * 20, Usage(1, 0, 2, 3, seconds))
    assert store.get_result(key) == ([reply] * 20, Usage(1, 0, 2, 3, seconds))
    example = tg.Example(text, {})
    run = Run(key, example, "c", {}, error=text)
    store.put_run(run)
    assert store.get_run(key, example) == run
    store.put_feedback(key, "o", score, [Feedback("k", score, text)])
    assert store.get_feedback(key, "o") == [Feedback("k", score, text)]


@pytest.mark.parametrize("table", [t.name for t in tables.tables.sorted_tables])
def test_row_that_is_not_as_written_is_told_and_not_used(where, table, request):
    long = "x" * 500
    with tg.Store(where) as store:
        store.put_result("key", "critic", {}, long, Usage(1, 0, 2, 3, 0.5))
        store.put_run(Run("r", EXAMPLE, "c0", {"a": long}))
        store.put_feedback("r", "o", 0.5, [Feedback("k", 0.5, "text")])
        store.put_gradients(1, [tg.Gradient("p", "r", "n#0", "change", weight=0.5, score=0.0)])
        store.put_candidate("c0", {"p": "x"}, parent=None, step=0)
        store.put_decision(1, 1, "c0", "val", {"accepted": True})
        store.put_meta("m", 1)
        store.add_event("started", {"n": 1})
    damage_row(where, table, request)
    with tg.Store(where) as store:
        reads = {
            "results": lambda: store.get_result("key"),
            "runs": lambda: store.get_run("r", EXAMPLE),
            "feedback": lambda: store.get_feedback("r", "o"),
            "gradients": store.gradients,
            "candidates": store.candidates,
            "decisions": store.decisions,
            "meta": lambda: store.get_meta("m"),
            "events": store.events,
        }
        for name, read in reads.items():
            if name == table:
                with pytest.raises(CorruptStoreError, match=f"is damaged: row .* of '{table}'"):
                    read()
            else:
                assert read()


def test_second_writer_is_refused_and_reader_is_not(where, store):
    with pytest.raises(StoreError, match="Another Store of this same process is working in"):
        tg.Store(where)
    store.put_meta("k", 1)
    with tg.Store(where, read_only=True) as reader:
        assert reader.get_meta("k") == 1
        store.put_meta("k", 2)
        assert reader.get_meta("k") == 2
        with pytest.raises(StoreError, match="opened for reading only"):
            reader.put_meta("k", 3)


def test_process_that_writes_already_is_named(where):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, lg_textgrad as tg\nwith tg.Store(sys.argv[1]): print(flush=True); input()",
         str(where)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        holder.stdout.readline()
        with pytest.raises(StoreError, match=rf"Process {holder.pid} on '.+' \(since .+\) is working in"):
            tg.Store(where)
        holder.kill()
        holder.wait()
        tg.Store(where).close()  # the dead hold no lock


def test_place_is_free_again_after_closing(where):
    for _ in range(2):
        with tg.Store(where):
            pass


def test_store_may_be_closed_by_another_thread(where):
    store = tg.Store(where)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(store.close).result()
    tg.Store(where).close()


def test_closed_store_takes_nothing_more(store):
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.put_meta("k", 1)


async def test_closing_makes_what_still_waits(where):
    store = tg.Store(where)
    tasks = [
        asyncio.create_task(store.aput_result(f"k{i}", "critic", {}, i, Usage(1, 0, 1, 1))) for i in range(5)
    ]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    store.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    with tg.Store(where) as store:
        assert store.paid() == {"critic": Usage(5, 0, 5, 5)}


@pytest.mark.parametrize("layout", [tables.SCHEMA + 1, 99])
def test_store_of_a_newer_version_is_refused(where, layout):
    with tg.Store(where) as store:
        store.put_meta("schema", layout)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=f"newer lg_textgrad: its layout is {layout}.*pip install -U"):
            tg.Store(where, read_only=read_only)


def test_in_memory_store_that_nobody_closes_closes_itself():
    ledger = tg.Ledger()
    pooled = ledger.store._place.engine.raw_connection()
    connection = pooled.driver_connection
    pooled.close()
    assert connection.execute("SELECT 1").fetchone() == (1,)
    del ledger, pooled
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_in_memory_store_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tg.Store() as store:
        store.put_meta("k", 1)
        assert store.get_meta("k") == 1
        assert (store.where, store.directory) == (None, None)
    assert list(tmp_path.iterdir()) == []
