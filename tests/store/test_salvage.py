"""A damaged run directory: noticed, never believed, and all that is whole in it saved."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import lg_textgrad as tg
from lg_textgrad._render import show_salvaged
from lg_textgrad.errors import ConfigurationError, CorruptStoreError, StoreError
from lg_textgrad.run import Feedback, Run, Usage
from lg_textgrad.store import salvage as module
from tests.store.parts import sql

PAGE = 4096
EXAMPLE = tg.Example("e", {})
USAGE = Usage(1, 0, 2, 3, 0.5)
COUNT = 150


def reply(number):
    """Most are short enough to stand in the file as they are; some go over several pages."""
    if number % 10 == 9:
        return random.Random(number).randbytes(9000).hex()
    return f"<marker {number:06}> " + "x" * (number % 170)


def fill(store, numbers):
    async def one(number):
        await store.aput_result(f"k{number:064}", "rollout", {"n": number}, reply(number), USAGE)
        await store.aput_run(Run(f"r{number}", EXAMPLE, "c0", {"a": number}))
        await store.aput_feedback(f"r{number}", "o", 0.5, [Feedback("k", 0.5)])

    async def every():
        for first in range(0, len(numbers), 15):  # in several transactions
            await asyncio.gather(*map(one, numbers[first : first + 15]))

    asyncio.run(every())


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Two runs: one that was closed, and one as a killed process leaves it, with half in its log."""
    folder = tmp_path_factory.mktemp("filled")
    with tg.Store(folder / "run") as store:
        store.put_meta("configuration", {"graph": "g"})
        store.put_candidate("c0", {"p": "x"}, parent=None, step=0)
        store.put_decision(1, 1, "c0", "val", {"accepted": True})
        store.add_event("began", {})
        store.add_event("went on", {"n": 1})
        fill(store, range(COUNT // 2))
        sql(folder / "run", "PRAGMA wal_checkpoint(TRUNCATE)")
        fill(store, range(COUNT // 2, COUNT))
        store.put_meta("configuration", {"graph": "h"})
        (folder / "killed").mkdir()
        for name in ("run.sqlite", "run.sqlite-wal"):
            shutil.copyfile(folder / "run" / name, folder / "killed" / name)
    shutil.copytree(folder / "run", folder / "closed")
    return folder


def copied(filled, kind, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(filled / kind, folder)
    return folder


def overwrite(path, start, data):
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


def untouched(path, damaged_pages):
    """Return the short results that stand on none of the damaged pages, by looking for their text."""
    pages = {}
    for found in re.finditer(rb"<marker (\d{6})>", path.read_bytes()):
        start = found.start()
        pages.setdefault(int(found[1]), set()).update(at // PAGE for at in (start - 300, start, start + 300))
    return [number for number, its in pages.items() if not its & damaged_pages]


def found_in(folder):
    with tg.Store(folder) as store:
        found = [n for n in range(COUNT) if store.get_result(f"k{n:064}") is not None]
        assert all(store.get_result(f"k{n:064}") == (reply(n), USAGE) for n in found)
    assert sql(folder, "PRAGMA integrity_check") == [("ok",)]
    return found


# Noticed.


def garbage(path):
    path.write_bytes(b"certainly not a database" * 1000)


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def beheaded(path):
    overwrite(path, 0, bytes(100))


def misspelt(path):
    """What SQLite quotes of the schema in its error is no text."""
    whole = path.read_bytes()
    assert b"CREATE TABLE results" in whole
    path.write_bytes(whole.replace(b"CREATE TABLE results", b"CREATE \xb6\xb6BLE results"))


@pytest.mark.parametrize("harm", [garbage, half, beheaded, misspelt])
@pytest.mark.parametrize("read_only", [False, True])
def test_damage_is_noticed_on_opening(filled, tmp_path, harm, read_only):
    folder = copied(filled, "closed", tmp_path / "run")
    harm(folder / "run.sqlite")
    before = (folder / "run.sqlite").read_bytes()
    with pytest.raises(CorruptStoreError, match=r"is damaged: .* Save what is good .*lg-textgrad resume .* --salvage"):
        tg.Store(folder, read_only=read_only)
    assert (folder / "run.sqlite").read_bytes() == before
    with pytest.raises(CorruptStoreError):  # the failed attempt keeps no lock
        tg.Store(folder)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_anywhere_is_never_believed(filled, tmp_path_factory, seed):
    dice = random.Random(seed)
    folder = copied(filled, dice.choice(["closed", "killed"]), tmp_path_factory.getbasetemp() / "anywhere")
    path = dice.choice(list(folder.glob("run.sqlite*")))
    for _ in range(dice.randrange(1, 6)):
        overwrite(path, dice.randrange(path.stat().st_size), dice.randbytes(dice.randrange(1, 200)))
    try:
        store = tg.Store(folder)
    except StoreError as error:
        assert isinstance(error, CorruptStoreError) or "something else" in str(error)
        return
    with store:
        for n in range(COUNT):
            try:
                assert store.get_result(f"k{n:064}") in (None, (reply(n), USAGE))
                assert store.get_run(f"r{n}", EXAMPLE) in (None, Run(f"r{n}", EXAMPLE, "c0", {"a": n}))
            except CorruptStoreError:
                pass


# Saved.


def test_salvage_of_what_is_whole_saves_everything(filled, tmp_path):
    for kind in ("closed", "killed"):
        folder = copied(filled, kind, tmp_path / kind)
        before = {p.name: p.read_bytes() for p in folder.glob("run.sqlite*")}
        done = tg.Store.salvage(folder)
        assert done.rows == {
            "meta": 1, "results": COUNT, "runs": COUNT, "feedback": COUNT, "gradients": 0, "candidates": 1,
            "decisions": 1, "events": 2,
        }  # fmt: skip
        assert (done.damaged, done.aside) == (0, folder / "run.sqlite.broken-1")
        assert {p.name: p.read_bytes() for p in folder.glob("run.sqlite.broken*")} == {
            name.replace("run.sqlite", "run.sqlite.broken-1"): data for name, data in before.items()
        }
        assert found_in(folder) == list(range(COUNT))
        with tg.Store(folder) as store:
            assert store.get_meta("configuration") == {"graph": "h"}  # the latest
            assert [e["kind"] for e in store.events()] == ["began", "went on"]
            assert store.paid() == {"rollout": Usage(COUNT, 0, 2 * COUNT, 3 * COUNT, COUNT / 2)}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_row_on_an_untouched_page_is_saved(filled, tmp_path_factory, seed):
    dice = random.Random(seed)
    folder = copied(filled, "closed", tmp_path_factory.getbasetemp() / "pages")
    path = folder / "run.sqlite"
    pages = path.stat().st_size // PAGE
    damaged = set(dice.sample(range(pages), dice.choice([1, 2, pages // 4, pages // 2])))
    if dice.random() < 0.3:
        damaged.add(0)  # with it goes all that SQLite knows of the file
    safe = untouched(path, damaged)
    for page in damaged:
        overwrite(path, page * PAGE, dice.choice([bytes(PAGE), dice.randbytes(PAGE)]))
    if dice.random() < 0.3:
        end = dice.randrange(pages // 2, pages)
        still = untouched(path, damaged | set(range(end, pages)))
        safe = [n for n in safe if n in still]
        os.truncate(path, end * PAGE + dice.randrange(PAGE))
    try:
        done = tg.Store.salvage(folder)
    except StoreError as error:
        assert "Nothing can be saved" in str(error)
        assert safe == []
        return
    found = found_in(folder)
    assert set(safe) <= set(found)
    assert done.rows["results"] == len(found)


def test_rows_in_a_log_beside_a_broken_file_are_saved(filled, tmp_path):
    folder = copied(filled, "killed", tmp_path / "run")
    (folder / "run.sqlite").write_bytes(bytes(PAGE * 3))
    tg.Store.salvage(folder)
    assert set(range(COUNT // 2, COUNT)) <= set(found_in(folder))


def test_rows_in_a_file_beside_a_broken_log_are_saved(filled, tmp_path):
    folder = copied(filled, "killed", tmp_path / "run")
    overwrite(folder / "run.sqlite-wal", 0, random.Random(0).randbytes(PAGE))
    tg.Store.salvage(folder)
    assert set(range(COUNT // 2)) <= set(found_in(folder))


def test_missing_end_of_a_file_is_told(filled, tmp_path, capsys):
    folder = copied(filled, "closed", tmp_path / "run")
    size = (folder / "run.sqlite").stat().st_size
    os.truncate(folder / "run.sqlite", size - PAGE - 7)
    done = tg.Store.salvage(folder)
    assert done.missing == PAGE + 7
    show_salvaged(Console(), done)
    assert f", and the file's end is missing, {PAGE + 7:,} bytes. " in capsys.readouterr().out.replace("\n", " ")
    assert tg.Store.salvage(folder).missing == 0


def test_damaged_rows_are_counted_and_left_out(filled, tmp_path):
    folder = copied(filled, "closed", tmp_path / "run")
    sql(folder, "UPDATE results SET reply = 'other' WHERE key = ?", f"k{3:064}")
    sql(folder, "UPDATE feedback SET score = 1 WHERE run IN ('r1', 'r2')")
    sql(folder, "UPDATE results SET request = 'no JSON' WHERE key = ?", f"k{4:064}")  # only for people
    done = tg.Store.salvage(folder)
    assert (done.damaged, done.rows["results"], done.rows["feedback"]) == (3, COUNT - 1, COUNT - 2)
    assert found_in(folder) == [n for n in range(COUNT) if n != 3]


def test_salvage_where_nothing_is_left_leaves_the_file_alone(tmp_path):
    (tmp_path / "run.sqlite").write_bytes(b"certainly not a database" * 1000)
    with pytest.raises(StoreError, match="Nothing can be saved"):
        tg.Store.salvage(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["run.lock", "run.sqlite"], ["run.sqlite"])
    assert (tmp_path / "run.sqlite").read_bytes() == b"certainly not a database" * 1000
    with pytest.raises(StoreError, match="There is no run in"):
        tg.Store.salvage(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="Only run directories can be salvaged"):
        tg.Store.salvage("postgresql://localhost/db?run=r")


def test_run_that_somebody_works_in_is_not_salvaged(tmp_path):
    with tg.Store(tmp_path), pytest.raises(StoreError, match="is working in"):
        tg.Store.salvage(tmp_path)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["_rebuild", "link", "unlink", "replace"])
def test_interrupted_salvage_loses_nothing_and_is_done_again(filled, tmp_path, monkeypatch, moment):
    folder = copied(filled, "killed", tmp_path / "run")

    def killed(*_, **__):
        raise Killed

    def unlink(self, missing_ok=False):
        if self.name == "run.sqlite-shm":  # the log is gone already
            raise Killed
        os.unlink(self) if self.exists() else None

    with monkeypatch.context() as patch:
        if moment == "_rebuild":
            patch.setattr(module._Taking, "flush", killed)
        elif moment == "unlink":
            patch.setattr(Path, "unlink", unlink)
        else:
            patch.setattr(os, moment, killed)
        with pytest.raises(Killed):
            tg.Store.salvage(folder)
    if (folder / "run.sqlite.new").exists():
        with pytest.raises(CorruptStoreError, match="was interrupted; run it again"):
            tg.Store(folder)
    tg.Store.salvage(folder)
    assert found_in(folder) == list(range(COUNT))
    assert not (folder / "run.sqlite.new").exists()
    aside = folder / f"run.sqlite.broken-{2 if moment in ('unlink', 'replace') else 1}"
    assert aside.exists()
