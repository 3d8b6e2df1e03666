"""One run in several sessions, runs that take over from others, damaged runs, runs on a server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil

import pytest

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.sessions import fork
from lg_textgrad.store import Store, run_name, store, without_password
from tests import desk
from tests.store.parts import sql
from tests.test_cli import here, one_error  # noqa: F401 - a fixture


def optimized(here, *arguments):
    done = here.run("optimize", "optimize.toml", "--json", *arguments)
    assert done.code == 0, done.err
    return json.loads(done.out)


def texts(document):
    return {name: p["after"] for name, p in document["parameters"].items()}


# Forks.


def test_fork_goes_on_with_other_settings_pays_for_nothing_twice_and_stands_alone(here):
    optimized(here, "--out", "old", "--budget-calls", "30", "--min-gain", "0.01")
    asked = len(here.server.chats)
    options = ["--min-gain", "0", "--budget-calls", "1000", "--json"]
    done = here.run("optimize", "--fork", "old", "--out", "new", *options)
    assert done.code == 0, done.err
    assert f"Took over {asked} replies" in done.err
    assert desk.repeats(here.server) == {}
    more = len(here.server.chats) - asked
    document = json.loads(done.out)
    assert more == document["spent"]["calls"] > 0  # what was taken over counts towards no budget
    with Store("new", read_only=True) as store:
        assert store.get_meta("forked_from") == "old"
        assert sum(u.calls for u in store.paid().values()) == more
    shutil.rmtree("old")
    again = here.run("resume", "new", "--json")
    assert (again.code, len(here.server.chats)) == (0, asked + more)
    assert texts(json.loads(again.out)) == texts(document)
    # Where it ends is where a run of these settings ends.
    assert texts(optimized(here, "--out", "direct")) == texts(document)


def test_password_in_the_servers_address_is_kept_nowhere_and_asked_for_again(here):
    url = here.server.base_url.replace("//", "//tuner:hunter2-and-more@")
    optimized(here, "--out", "run", "--budget-calls", "30", "--base-url", url)
    kept = b"".join(path.read_bytes() for path in (here.folder / "run").iterdir())
    assert b"hunter2" not in kept
    with Store("run", read_only=True) as store:
        masked = store.get_meta("command")["base_url"]
    assert masked == here.server.base_url.replace("//", "//***@")
    asked = len(here.server.chats)
    for arguments in (["resume", "run"], ["optimize", "--fork", "run", "--out", "new"]):
        refused = here.run(*arguments, "--budget-calls", "1000")
        assert refused.code == 2
        assert f"'{masked}' had a user, password or query" in one_error(refused.err)
        assert "again, with --base-url" in one_error(refused.err)
    assert not os.path.exists("new")
    elsewhere = here.run("resume", "run", "--base-url", "https://u:p@elsewhere.example/v1")
    assert (elsewhere.code, "changed are" in one_error(elsewhere.err)) == (2, True)
    assert len(here.server.chats) == asked
    done = here.run("resume", "run", "--budget-calls", "1000", "--base-url", url, "--json")
    assert done.code == 0, done.err
    assert "hunter2" not in done.out + done.err
    assert desk.repeats(here.server) == {}
    assert texts(json.loads(done.out)) == texts(optimized(here, "--out", "direct"))


def test_fork_with_other_data_pays_only_for_what_is_new(here):
    optimized(here, "--out", "old")
    asked = len(here.server.chats)
    rows = desk.rows(3, 3)
    desk.write_jsonl(here.folder / "val.jsonl", [*rows, *desk.rows(1, 8)])
    refused = here.run("resume", "old")
    assert (refused.code, "changed are val data (new: 'e8')" in one_error(refused.err)) == (2, True)
    optimized(here, "--fork", "old", "--out", "new")
    assert desk.repeats(here.server) == {}
    new = {desk.texts_of(b)[-1] for b in here.server.chats[asked:] if desk.who(b)[0] == "rollout"}
    assert any("Malmo" in text for text in new)
    assert len(here.server.chats) > asked


def test_fork_with_a_corrected_label_scores_against_it_and_repays_no_run(here):
    rows = desk.rows(3, 3)
    right = rows[2]["outputs"]["team"]
    rows[2]["outputs"]["team"] = "sales"  # which the desk never says
    desk.write_jsonl(here.folder / "val.jsonl", rows)
    options = ["--steps", "1", "--budget-calls", "9", "--json"]  # room for the baseline alone
    before = here.run("optimize", "optimize.toml", "--out", "old", *options)
    rows[2]["outputs"]["team"] = right
    desk.write_jsonl(here.folder / "val.jsonl", rows)
    after = here.run("optimize", "--fork", "old", "--out", "new", *options)
    assert desk.repeats(here.server) == {}
    direct = here.run("optimize", "optimize.toml", "--out", "direct", *options)
    scores = [json.loads(done.out)["baseline"]["val"] for done in (before, after, direct)]
    assert scores[0] < scores[1] == scores[2]


def test_forks_that_make_no_sense_are_refused(here):
    optimized(here, "--out", "old", "--steps", "1")
    optimized(here, "--out", "other", "--steps", "1", "--seed", "5")
    for arguments, error in (
        (["--fork", "old"], "give it a place with --out"),
        (["--fork", "old", "--out", "old"], "cannot be forked into itself"),
        (["--fork", "old", "--out", "./old"], "cannot be forked into itself"),
        (["--fork", "old", "--out", "other"], "There is a run in 'other' already"),
        (["--fork", "nowhere", "--out", "new"], "There is no run in 'nowhere'"),
    ):
        done = here.run("optimize", *arguments)
        assert (done.code, error in one_error(done.err)) == (2, True), done.err
    assert not os.path.exists("new")


class Killed(BaseException):
    pass


def test_interrupted_fork_is_done_again(here, monkeypatch):
    document = optimized(here, "--out", "old")
    asked = len(here.server.chats)

    def killed(source, target, origin):
        copy(source, target, origin)
        raise Killed

    copy = store.copy
    with monkeypatch.context() as patch:
        patch.setattr(store, "copy", killed)
        with pytest.raises(Killed):
            fork("old", "new")
    assert fork("old", "new") == asked
    assert fork("old", "new") == 0
    assert texts(optimized(here, "--fork", "old", "--out", "new")) == texts(document)
    assert len(here.server.chats) == asked


def test_what_is_reused_is_copied_and_not_counted(here):
    document = optimized(here, "--out", "old", "--steps", "1")
    asked = len(here.server.chats)
    again = optimized(here, "--out", "new", "--steps", "1", "--reuse", "old")
    assert len(here.server.chats) == asked
    assert again["spent"]["calls"] == 0
    assert again["spent"]["cached_calls"] >= document["spent"]["calls"]
    shutil.rmtree("old")
    with Store("new") as store:
        kept = store.get_meta("command")
        store.put_meta("command", {**kept, "reuse": None})
    assert here.run("resume", "new").code == 0
    assert len(here.server.chats) == asked


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_any_kind_of_store_can_be_forked_into_any(tmp_path, request, kind):
    from lg_textgrad.run import Example, Feedback, Run, Usage

    def place(name):
        if kind == "sqlite":
            return str(tmp_path / name)
        return request.getfixturevalue("postgres_server").url(f"{name}-{kind}")

    example = Example("e", {})
    async def fill(store):
        one = Usage(1, 0, 1, 1)
        await asyncio.gather(
            *(store.aput_result(f"k{n}", "critic", {}, n, one, origin="first" if n == 7 else None) for n in range(1100)),
            *(store.aput_feedback("r", f"o{n}", 1.0, [Feedback("k", 1.0)]) for n in range(600)),
        )  # fmt: skip

    with Store(place("a")) as a:
        asyncio.run(fill(a))
        a.put_run(Run("r", example, "c", None))
        a.put_meta("k", 1)
    assert fork(place("a"), str(tmp_path / "b")) == 1100
    with Store(tmp_path / "b") as b:
        assert all(b.get_result(f"k{n}")[0] == n for n in range(1100))
        assert all(b.get_feedback("r", f"o{n}") for n in range(600))
        assert b.get_run("r", example) == Run("r", example, "c", None)
        assert (b.paid(), b.get_meta("k")) == ({}, None)
    origins = dict(sql(tmp_path / "b", "SELECT origin, count(*) FROM results GROUP BY origin"))
    assert origins == {"first": 1, without_password(place("a")): 1099}
    with pytest.raises(ConfigurationError, match="cannot be forked into itself"):
        fork(place("a"), place("a"))
    if kind == "postgres":
        assert fork(str(tmp_path / "b"), place("c")) == 1100


# Damage.


def test_damaged_run_is_told_salvaged_and_gone_on_with_for_the_price_of_what_was_lost(here):
    document = optimized(here, "--out", "r")
    asked = {desk.texts_of(b) for b in here.server.chats}
    count = len(here.server.chats)
    path = here.folder / "r" / "run.sqlite"
    replies = [r for (r,) in sql(here.folder / "r", "SELECT reply FROM results WHERE kind = 'critic'")]
    raw = path.read_bytes()
    with open(path, "r+b") as file:  # its head, and the pages of two of its results
        for at in (0, raw.find(replies[0]), raw.find(replies[-1])):
            file.seek(at // 4096 * 4096)
            file.write(os.urandom(4096))
    for command in ("resume", "show", "diff"):
        told = here.run(command, "r")
        assert told.code == 2
        assert "`lg-textgrad resume r --salvage`" in one_error(told.err)
    done = here.run("resume", "r", "--salvage", "--json")
    assert done.code == 0, done.err
    saved = int(re.search(r"Saved .*results (\d+)", done.err)[1])
    assert saved < count
    assert "The old file is kept as r/run.sqlite.broken-1." in done.err
    again = {desk.texts_of(b) for b in here.server.chats[count:]}
    assert 0 < len(again) == len(here.server.chats) - count <= count - saved
    assert again <= asked
    assert texts(json.loads(done.out)) == texts(document)


# A server.


def test_run_in_a_database_does_all_that_one_in_a_directory_does(here, postgres_server):
    url, shown = postgres_server.url("whole"), f"postgresql://tuner@127.0.0.1:{postgres_server.port}/postgres?run=whole"
    document = optimized(here, "--out", url, "--budget-calls", "30")
    assert (document["stopped_by"], document["run_dir"]) == ("budget_calls", shown)
    runs = [
        here.run("resume", url, "--budget-calls", "1000", "--json"),
        here.run("show", url, "--json"),
        here.run("diff", url),
        here.run("export", url, "--out", "p.toml"),
        here.run("optimize", "optimize.toml", "--out", url, "--seed", "9"),
        here.run("optimize", "--fork", url, "--out", "fork"),
        here.run("optimize", "optimize.toml", "--out", "again", "--reuse", url),
        here.run("resume", url, "--salvage"),
        here.run("resume", postgres_server.url("nothing")),
        here.run("resume", url.replace("@127", "x@127")),  # a wrong password
    ]
    assert [done.code for done in runs] == [0, 0, 0, 0, 2, 0, 0, 2, 2, 2], [done.err for done in runs]
    whole = json.loads(runs[0].out)
    assert desk.repeats(here.server) == {}
    assert texts(whole) == texts(optimized(here, "--out", "directory"))
    assert whole["run_dir"] == shown
    assert json.loads(runs[1].out) == whole
    assert "The accepted prompts of the run in whole." in (here.folder / "p.toml").read_text()
    assert f"changed are optimizer (seed: 0 -> 9)" in one_error(runs[4].err)
    assert "Only run directories can be salvaged" in one_error(runs[7].err)
    assert "There is no run 'nothing' in that database; it has " in one_error(runs[8].err)
    assert "password authentication failed" in one_error(runs[9].err)
    everything = "".join(done.out + done.err for done in runs)
    stored = str(postgres_server.sql('SELECT * FROM "lg_textgrad/whole".meta'))
    for folder in ("fork", "again"):
        stored += str(sql(here.folder / folder, "SELECT * FROM meta"))
    for secret in (postgres_server.password, postgres_server.quoted):
        assert secret not in everything
        assert secret not in stored
    assert shown in stored


def test_names_and_what_may_be_shown_of_a_place():
    url = "postgresql+psycopg://me:secret@db.example:5433/tuning?run=May-3&password=other&sslmode=require"
    assert without_password(url) == "postgresql+psycopg://me@db.example:5433/tuning?run=May-3"
    assert without_password("postgres:///d?host=/tmp/s&run=a") == "postgres:///d?host=%2Ftmp%2Fs&run=a"
    assert (without_password("runs/a"), run_name("runs/a"), run_name(url)) == ("runs/a", "a", "May-3")
