"""The store: real SQLite files."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

import lg_textgrad as tg
from lg_textgrad.errors import StoreError
from lg_textgrad.run import Feedback, Run, Usage

EXAMPLE = tg.Example("e", {"q": "ü"}, {"a": 1})


@pytest.fixture
def store(tmp_path):
    with tg.Store(tmp_path / "run") as store:
        yield store


def test_everything_is_there_after_opening_again(tmp_path):
    edit = tg.Edit("p", "add", 1, "{new} line", ("g1",))
    gradient = tg.Gradient("p", "r", "n#0", "change ✓", weight=0.5, score=0.0)
    run = Run("r", EXAMPLE, "c0", {"a": "x"}, usage=Usage(1, 2, 3, 4, 5.0), warnings=("w",),
              accumulating={"": ("m",)})  # fmt: skip
    feedback = [Feedback("k", 0.5, "so", frozenset({"a"})), Feedback("l", None, "text")]
    with tg.Store(tmp_path) as store:
        store.put_result("key", "critic", {"q": EXAMPLE}, {"text": "ü"}, Usage(1, 0, 2, 3, 0.5))
        store.put_run(run)
        store.put_feedback("r", "o", 0.5, feedback)
        store.put_gradients(1, [gradient])
        store.put_candidate("c0", {"p": "x"}, parent=None, step=0)
        store.put_candidate("c1", {"p": "y"}, parent="c0", step=1, edits=[edit])
        store.put_meta("seed", {"a": [1]})
        store.add_event("started", {"n": 1})
    for again in (tg.Store(tmp_path), tg.Store(tmp_path, read_only=True)):
        with again:
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
            assert again.get_meta("seed") == {"a": [1]}
            [event] = again.events()
            assert (event["kind"], event["n"]) == ("started", 1)


def test_what_is_not_there_is_none(store):
    assert store.get_result("k") is store.get_run("r", EXAMPLE) is store.get_feedback("r", "o") is None
    assert store.get_meta("k") is None
    assert store.paid() == store.candidates() == store.gradients() == store.scores() == {}


def test_writing_again_changes_nothing(store):
    for _ in range(3):
        store.put_result("k", "critic", {}, "r", Usage(1, 0, 2, 3))
        store.put_run(Run("r", EXAMPLE, "c", None))
        store.put_feedback("r", "o", 1.0, [])
    assert store.paid() == {"critic": Usage(1, 0, 2, 3)}
    assert len(store.scores()) == 1


def test_threads_write_at_once(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.put_result(f"k{i}", "rollout", {}, i, Usage(1, 0, 1, 1)), range(80)))
    assert store.paid() == {"rollout": Usage(80, 0, 80, 80)}
    assert [store.get_result(f"k{i}")[0] for i in range(80)] == list(range(80))


def test_in_memory_store_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tg.Store() as store:
        store.put_meta("k", 1)
        assert store.get_meta("k") == 1
    assert list(tmp_path.iterdir()) == []


def test_second_writer_is_refused_and_reader_is_not(store):
    with pytest.raises(StoreError, match="Another process is working in"):
        tg.Store(store.directory)
    store.put_meta("k", 1)
    with tg.Store(store.directory, read_only=True) as reader:
        assert reader.get_meta("k") == 1


def test_directory_is_free_again_after_closing(tmp_path):
    for _ in range(2):
        with tg.Store(tmp_path):
            pass


def test_reading_where_no_run_is(tmp_path):
    with pytest.raises(StoreError, match=r"it has no run\.sqlite"):
        tg.Store(tmp_path, read_only=True)


def test_file_that_is_no_store(tmp_path):
    (tmp_path / "run.sqlite").write_bytes(b"certainly not a database" * 100)
    with pytest.raises(StoreError, match="cannot be used: file is not a database"):
        tg.Store(tmp_path)
    # The failed attempt keeps no lock.
    (tmp_path / "run.sqlite").unlink()
    tg.Store(tmp_path).close()


def test_directory_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        tg.Store(tmp_path / "f")


def test_failing_database_is_a_store_error(store):
    other = sqlite3.connect(store.directory / "run.sqlite")
    other.execute("drop table results")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="no such table: results"):
        store.get_result("k")
