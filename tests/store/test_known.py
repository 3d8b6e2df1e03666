"""What a store knows of its results and runs without asking the database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

import lg_textgrad as tg
from lg_textgrad.run import Run, Usage
from lg_textgrad.store import known

EXAMPLE = tg.Example("e", {"q": "x"})
RUN = Run("r", EXAMPLE, "c0", {"a": 1})


@pytest.fixture(params=["directory", "memory"])
def store(request, tmp_path):
    with tg.Store(tmp_path / "run" if request.param == "directory" else None) as store:
        yield store


@pytest.fixture
def asked(store):
    """The statements that read results or runs."""
    found = []

    @sa.event.listens_for(store._place.engine, "before_cursor_execute")
    def note(connection, cursor, statement, *_):
        if "FROM results" in statement or "FROM runs" in statement:
            found.append(statement)

    return found


def test_result_that_is_not_there_is_not_looked_up(store, asked):
    store.put_result("k", "rollout", {}, 1, Usage(1, 0, 2, 3))
    assert store.get_result("x") is None
    assert asked == []
    assert store.get_result("k") == (1, Usage(1, 0, 2, 3))
    assert len(asked) == 1


def test_run_that_is_not_there_is_not_looked_up(store, asked):
    store.put_run(RUN)
    assert store.get_run("x", EXAMPLE) is None
    assert asked == []
    assert store.get_run("r", EXAMPLE).outputs == {"a": 1}
    assert len(asked) == 1


async def test_result_is_there_once_it_was_put_beside_the_loop(store):
    assert await store.aget_result("k") is None
    await store.aput_result("k", "rollout", {}, 1, Usage())
    assert (await store.aget_result("k"))[0] == 1


def test_results_of_earlier_and_of_other_stores_are_known(tmp_path):
    with tg.Store(tmp_path / "a") as store:
        store.put_result("k", "rollout", {}, 1, Usage())
        store.put_run(RUN)
    with tg.Store(tmp_path / "a") as store, tg.Store() as other:
        other.take_over(store)
        for each in (store, other):
            assert each.get_result("k")[0] == 1
            assert each.get_run("r", EXAMPLE).outputs == {"a": 1}


def test_who_only_reads_sees_what_another_process_writes(tmp_path):
    with tg.Store(tmp_path) as writer, tg.Store(tmp_path, read_only=True) as reader:
        assert reader.get_result("k") is None
        writer.put_result("k", "rollout", {}, 1, Usage())
        writer.put_run(RUN)
        assert reader.get_result("k")[0] == 1
        assert reader.get_run("r", EXAMPLE).outputs == {"a": 1}


def test_where_they_are_many_the_database_is_asked(monkeypatch, store, asked):
    monkeypatch.setattr(known, "_MOST", 2)
    for n in range(3):
        store.put_result(f"k{n}", "rollout", {}, n, Usage())
    assert store.get_result("x") is None
    assert len(asked) == 1
    assert [store.get_result(f"k{n}")[0] for n in range(3)] == [0, 1, 2]
