"""The command line, as people and machines use it."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

import lg_textgrad as tg
from lg_textgrad import cli, models
from lg_textgrad.assembly import OPTIMIZERS
from lg_textgrad.cli import traffic
from lg_textgrad.cli.settings import configured
from lg_textgrad.data import read_prompts
from lg_textgrad.loading import Config, read_config
from lg_textgrad.store import Store
from tests import desk
from tests.desk import BROKEN, ENDING, GREETING, PARCELS, START_PROMPTS, Script
from tests.servers.openai_server import Fault, OpenAIServer

ROOT = Path(__file__).parent.parent
KEYS = {
    "run_dir", "stopped_by", "baseline", "best", "parameters", "steps", "accepted", "rejected",
    "spent", "faults",
}  # fmt: skip
SECRET = "sk-very-secret-0123456789abcdef"


def settle(monkeypatch, folder, server):
    """Make `folder` the place to run from, and `server` the one that everything asks."""
    for name in ("OPENAI_API_KEY", "DESK_KEY", "DESK_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DESK_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def forget(folder):
    """Let the user's modules be imported anew, as a new process would."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """A project in a folder of its own, a server, and `run(...)`, which is one command line."""
    desk.project(tmp_path)
    with OpenAIServer(Script()) as server:
        settle(monkeypatch, tmp_path, server)

        def run(*arguments):
            forget(tmp_path)
            capsys.readouterr()
            try:
                code = cli.main([str(a) for a in arguments])
            except SystemExit as stopped:
                code = stopped.code
            said = capsys.readouterr()
            return SimpleNamespace(code=code, out=said.out, err=said.err)

        yield SimpleNamespace(server=server, folder=tmp_path, run=run)
        forget(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that a real process made from flags alone."""
    folder = tmp_path_factory.mktemp("finished")
    desk.project(folder)
    with OpenAIServer(Script()) as server:
        done = subprocess.run(
            [
                sys.executable, "-m", "lg_textgrad", "optimize", "--graph", "desk_app:graph",
                "--train", "train.jsonl", "--val", "val.jsonl", "--test", "test.jsonl",
                "--evaluator", "desk_app:EVALUATORS", "--model", "test-model", "--steps", "2",
                "--batch-size", "3", "--base-url", server.base_url, "--out", "runs/it", "--json",
            ],
            cwd=folder, capture_output=True, text=True, timeout=300,
            env={**os.environ, "DESK_BASE_URL": server.base_url, "PYTHONPATH": str(ROOT),
                 "OPENAI_API_KEY": SECRET, "COLUMNS": "300"},
        )  # fmt: skip
    return SimpleNamespace(
        folder=folder, run_dir=str(folder / "runs/it"), code=done.returncode,
        out=done.stdout, err=done.stderr, document=json.loads(done.stdout or "null"),
    )  # fmt: skip


# The main job.


def test_optimize_by_flags_prints_one_object_for_machines_and_progress_for_people(finished):
    assert finished.code == 0, finished.err
    document = finished.document
    assert set(document) == KEYS
    assert set(document["baseline"]) == set(document["best"]) == {"val", "test"}
    assert document["best"] == {"val": 1.0, "test": 1.0}
    assert document["run_dir"] == "runs/it"
    assert set(document["parameters"]) == set(START_PROMPTS)
    for name, parameter in document["parameters"].items():
        assert set(parameter) == {"before", "after", "changed"}
        assert parameter["before"] == START_PROMPTS[name]
        assert parameter["changed"] is (parameter["before"] != parameter["after"])
    assert set(document["spent"]) == {
        "calls", "cached_calls", "prompt_tokens", "completion_tokens", "usd", "seconds",
        "saved_tokens", "saved_usd", "unpriced_calls", "unpriced",
    }  # fmt: skip
    for said in ("baseline: val", "step 1 of 2", "accepted on val", f"+ {ENDING}", "lg-textgrad diff"):
        assert said in finished.err
    assert "Traceback" not in finished.err
    assert "Warning" not in finished.err
    assert SECRET not in finished.out + finished.err
    assert all(
        SECRET.encode() not in f.read_bytes() for f in Path(finished.run_dir).iterdir()
    )


def test_console_script_is_this_main():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["lg-textgrad"] == "lg_textgrad.cli:main"


def test_optimize_by_toml_and_flags_over_it(here):
    desk.write_jsonl(here.folder / "one.jsonl", desk.rows(1, 9))
    done = here.run(
        "optimize", "optimize.toml", "--steps", "1", "--test", "one.jsonl", "--val-rows", "2",
        "--train-rows", "2", "--budget-calls", "500", "--reference", "none.toml", "--json",
    )  # fmt: skip
    assert done.code == 2
    assert "There is no prompts file 'none.toml'" in done.err
    (here.folder / "ref.toml").write_text(f'[prompts]\npolish = "The desk\'s polish.\\n{ENDING}"\n')
    done = here.run(
        "optimize", "optimize.toml", "--steps", "1", "--test", "one.jsonl", "--val-rows", "2",
        "--train-rows", "2", "--budget-calls", "500", "--reference", "ref.toml", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert set(document) == KEYS | {"reference"}
    assert document["steps"] == 1
    assert document["run_dir"] == str(Path("runs/run"))
    assert document["reference"]["test"] == pytest.approx(document["baseline"]["test"] + 1 / 3)
    assert "hand-written reference" in done.err


def test_the_command_that_the_end_names_can_be_copied(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = f"runs of may/{'long-' * 12}name"
    done = here.run("optimize", "optimize.toml", "--steps", "1", "--out", out)
    assert done.code == 0, done.err
    [command] = [line for line in done.err.splitlines() if line.startswith("Look closer with: ")]
    assert here.run(*shlex.split(command)[4:]).code == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_runs_by_its_name_within_the_budget(here, name):
    done = here.run("optimize", "optimize.toml", "--optimizer", name, "--budget-calls", "40", "--json")
    assert done.code == 0, done.err
    assert "within the budget of 40 calls, about 9 of them for the baseline" in done.err
    document = json.loads(done.out)
    assert document["spent"]["calls"] <= 40
    assert document["best"]["val"] >= document["baseline"]["val"]


def test_options_of_the_optimizer_are_flags_too_over_those_of_the_file(here):
    toml = (here.folder / "optimize.toml").read_text()
    (here.folder / "optimize.toml").write_text(f"{toml}\noptimizer_options = {{beam = 2, momentum = 3}}\n")
    flags = ("--optimizer-option", "beam=1", "--optimizer-option", "constraints=['Write English.']")
    done = here.run(
        "optimize", "optimize.toml", *flags, "--optimizer-option", "edits=whole", "--out", "runs/o", "--steps", "1"
    )
    assert done.code == 0, done.err
    with Store("runs/o", read_only=True) as store:
        kept = store.get_meta("command")["optimizer_options"]
    assert kept == {"beam": 1, "momentum": 3, "constraints": ["Write English."], "edits": "whole"}
    rewriter = [c for c in map(json.dumps, here.server.chats) if "`prompt`" in c]
    assert rewriter
    assert all("Write English." in c for c in rewriter)
    done = here.run("optimize", "optimize.toml", "--optimizer", "fewshot", "--budget-calls", "20")
    assert done.code == 0, done.err


def test_acceptance_policy_is_chosen_by_the_file_and_by_a_flag(here):
    toml = (here.folder / "optimize.toml").read_text()
    chosen = 'acceptance = "significant"\nacceptance_options = {alpha = 0.01}\n'
    (here.folder / "optimize.toml").write_text(f"{chosen}{toml}")
    done = here.run("optimize", "optimize.toml", "--steps", "1", "--out", "runs/s")
    assert done.code == 0, done.err
    assert "p = " in done.err  # what it says of each comparison
    done = here.run("optimize", "optimize.toml", "--steps", "1", "--out", "runs/g", "--acceptance", "guarded")
    assert done.code == 0, done.err
    with Store("runs/g", read_only=True) as store:
        kept = store.get_meta("command")
    assert (kept["acceptance"], kept["acceptance_options"]) == ("guarded", {})
    (here.folder / "optimize.toml").write_text(f'acceptance = "best"\n{toml}')
    done = here.run("optimize", "optimize.toml", "--out", "runs/n")
    assert (done.code, "no acceptance policy 'best'" in one_error(done.err)) == (2, True)


def test_missing_extra_is_told_with_its_command_before_anything_is_asked(here, monkeypatch):
    for name, package in (("mipro", "optuna"), ("gepa", "gepa")):
        monkeypatch.setitem(sys.modules, package, None)
        done = here.run("optimize", "optimize.toml", "--optimizer", name, "--model", "local")
        assert done.code == 2
        assert one_error(done.err).endswith(f"needs {package}: pip install 'lg-textgrad[{name}]'.")
    assert here.server.chats == []


@pytest.mark.parametrize("given", ["beam", "=3", "beam=", " = "])
def test_option_without_name_or_value_is_told(here, given):
    done = here.run("optimize", "optimize.toml", "--optimizer-option", given)
    assert done.code == 2
    assert "written NAME=VALUE, as in --optimizer-option beam=3" in one_error(done.err)


def test_budget_too_small_is_status_3_and_more_budget_resumes(here):
    done = here.run("optimize", "optimize.toml", "--out", "small", "--budget-calls", "3")
    assert done.code == 3
    assert one_error(done.err).startswith("Error: The budget does not cover the baseline")
    assert "9 calls" in done.err
    assert "within the budget of 3 calls, though the baseline takes about 9" in done.err
    assert len(here.server.chats) <= 3
    done = here.run("resume", "small", "--budget-calls", "40", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["stopped_by"] == "budget_calls"
    assert len(here.server.chats) <= 40 + 3  # those that were in flight when the first budget ended


def test_a_prompt_that_no_validation_run_read_is_told_once(here):
    (here.folder / "desk_app.py").write_text(
        "import lg_textgrad as tg\n"
        "from langgraph.graph import START, StateGraph\n"
        "from tests.desk import Desk, START_PROMPTS, ask, team\n"
        "triage, polish = (tg.Parameter(n, START_PROMPTS[n]) for n in ('triage', 'polish'))\n"
        "async def route(state): return {'team': await ask(triage, state['message'])}\n"
        "async def escalate(state): return {'answer': await ask(polish, state['message'])}\n"
        "builder = StateGraph(Desk).add_node(route).add_node(escalate)\n"
        "def where(state): return 'escalate' if 'lawyer' in state['message'] else 'route'\n"
        "builder.add_conditional_edges(START, where, ['route', 'escalate'])\n"
        "graph = tg.TrainableGraph(builder.compile(), [triage, polish])\n"
    )
    done = subprocess.run(  # a process in which nobody has set up logging, as a user's
        [
            sys.executable, "-m", "lg_textgrad", "optimize", "optimize.toml",
            "--evaluator", "desk_app:team", "--steps", "1",
        ],
        cwd=here.folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{here.folder}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall("(?i)no validation run read", done.stderr)) == 1, done.stderr


def test_a_weight_of_a_key_that_no_evaluator_gives_is_told(here):
    desk.project(here.folder, weights={"team": 2.0, "greating": 3.0}, steps=1)
    said = "no evaluator said anything of greating, which `weights` names; the keys are ending, greeting, team"
    assert said in here.run("optimize", "optimize.toml", "--out", "r").err
    assert said in here.run("evaluate", "optimize.toml").err
    desk.project(here.folder, weights={"team": 2.0})
    assert "`weights`" not in here.run("evaluate", "optimize.toml").err


def test_ctrl_c_is_status_4_says_how_to_resume_and_resume_goes_on(here, finished, monkeypatch):
    here.server.handler = Script(latency=(0.0, 0.02))
    environment = {k: os.environ[k] for k in ("DESK_BASE_URL", "OPENAI_BASE_URL", "COLUMNS")}
    log = here.folder / "log"
    process = desk.start(
        ["optimize", "optimize.toml", "--out", "my run"], here.folder, log, environment
    )
    desk.wait_for(lambda: len(here.server.chats) >= 25 or not process.is_alive())
    here.server.handler.latency = (2.0, 2.0)  # so that it cannot end before it is stopped
    # Meanwhile the directory is that process's alone, for writing.
    second = here.run("resume", "my run")
    assert second.code == 2
    assert f"Process {process.pid} on " in one_error(second.err)
    assert "is working in 'my run'. Wait for it" in one_error(second.err)
    shown = here.run("show", "my run", "--json")
    assert shown.code == 0
    assert json.loads(shown.out)["stopped_by"] is None
    assert "has not ended; go on with: lg-textgrad resume 'my run'" in shown.err
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(300)
    here.server.handler.latency = None
    said = log.read_text()
    assert process.exitcode == 4, said
    assert "Go on with: lg-textgrad resume 'my run'" in said
    assert "Traceback" not in said
    done = here.run("resume", "my run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] == finished.document["parameters"]
    assert json.loads(done.out)["spent"]["calls"] == finished.document["spent"]["calls"]
    assert len(here.server.chats) == finished.document["spent"]["calls"]  # none was sent twice


def test_second_ctrl_c_leaves_without_waiting_for_calls_under_way(here):
    here.server.handler = Script(latency=(60.0, 60.0))
    environment = {k: os.environ[k] for k in ("DESK_BASE_URL", "OPENAI_BASE_URL", "COLUMNS")}
    log = here.folder / "log"
    process = desk.start(["optimize", "optimize.toml", "--out", "run"], here.folder, log, environment)
    desk.wait_for(lambda: here.server.chats or not process.is_alive())
    os.kill(process.pid, signal.SIGINT)
    desk.wait_for(lambda: "under way, to keep what " in log.read_text())
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    here.server.handler.latency = None
    said = log.read_text()
    assert process.exitcode == 4, said
    assert "Traceback" not in said


def test_ctrl_c_at_the_question_whether_to_accept_ends_the_process(here):
    log = here.folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "lg_textgrad", "optimize", "optimize.toml", "--out", "r",
                "--approve",
            ],
            cwd=here.folder, stdin=subprocess.PIPE, stdout=file, stderr=file,
            env={**os.environ, "PYTHONPATH": f"{here.folder}{os.pathsep}{ROOT}"},
        )  # fmt: skip
    with process:
        desk.wait_for(lambda: "Accept this?" in log.read_text() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
    said = log.read_text()
    assert process.returncode == 4, said
    assert "Go on with: lg-textgrad resume r" in said
    assert "Traceback" not in said
    assert "Fatal" not in said


def test_ctrl_c_without_a_run_promises_nothing(here, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(traffic, "load_graph", stopped)
    done = here.run("optimize", "optimize.toml", "--out", "never")
    assert done.code == 4
    assert "resume" not in done.err


def test_run_whose_evaluator_raised_goes_on_as_the_error_says(here):
    judge = here.folder / "judge.py"
    judge.write_text("def team(outputs): raise KeyError('rule')\n")
    done = here.run("optimize", "optimize.toml", "--evaluator", "judge:team", "--out", "r")
    assert done.code == 2
    assert "lg-textgrad optimize --fork RUN_DIR --out NEW" in one_error(done.err)
    judge.write_text("from tests.desk import team\n")
    done = here.run("optimize", "--fork", "r", "--out", "n")
    assert done.code == 0, done.err
    assert desk.repeats(here.server) == {}


def test_server_that_fails_for_good_is_status_1_and_resumable(here):
    here.server.handler = fail_critic(Fault(503))
    done = here.run("optimize", "optimize.toml", "--out", "broken", "--retries", "1")
    assert done.code == 1
    assert "503" in one_error(done.err)
    assert "lg-textgrad resume broken" in done.err
    here.server.handler = Script()
    assert here.run("resume", "broken").code == 0


def fail_critic(fault):
    script = Script()
    script.critic = lambda *_: fault
    return script


# Bad input: one clear sentence, no traceback, and nothing secret.


def one_error(err):
    """Return the one line that tells the error."""
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert line.rstrip().endswith((".", ")")), line
    return line


BAD = {
    "no such module": ({"graph": "nowhere.agent:graph"}, "no module 'nowhere.agent'.*install it"),
    "no such graph": ({"graph": "desk_app:nothing"}, "has no 'nothing'; check the name after"),
    "no name": ({"graph": "desk_app"}, "write MODULE:NAME"),
    "not compiled": ({"graph": "user:builder"}, r"StateGraph is not a compiled.*call \.compile\(\)"),
    "no graph": ({"graph": "user:number"}, "int is not a compiled LangGraph graph"),
    "raises on import": ({"graph": "raises:graph"}, "importing raises raised ValueError: boom. Mend"),
    "syntax error": ({"graph": "syntax:graph"}, "importing syntax raised SyntaxError"),
    "imports what is missing": ({"graph": "needs:graph"}, "imports 'not_there_at_all'.*not installed"),
    "unread parameter": ({"graph": "user:unread"}, "No node read the parameter 'unread'.*requires_grad"),
    "nothing to train": ({"graph": "user:frozen"}, "nothing to train"),
    "unknown setting": ({"stepz": 3}, r"unknown setting 'stepz'; the nearest is 'steps'"),
    "wrong type": ({"steps": "two"}, "'steps' must be a whole number, not 'two'"),
    "wrong boolean": ({"brief_critic": 1}, "'brief_critic' must be true or false, not 1"),
    "wrong number": ({"min_gain": "much"}, "'min_gain' must be a number"),
    "wrong list": ({"evaluator": [3]}, "'evaluator' must be a list of strings"),
    "wrong table": ({"weights": 3}, "'weights' must be a table of numbers"),
    "unknown optimizer": (
        {"optimizer": "adam"}, "no optimizer 'adam'; there are 'tgd', .*'mipro', 'gepa', 'promptbreeder', or name one"
    ),
    "optimizer not there": ({"optimizer": "user:Mine"}, "has no 'Mine'; check the name"),
    "unknown option": (
        {"optimizer_options": {"beem": 3}}, "'tgd' has no option 'beem'; it has beam, constraints, edits"
    ),
    "wrong option": ({"optimizer_options": {"beam": "three"}}, "'beam' of .* 'tgd' must be a whole number like 1, not"),
    "impossible option": ({"optimizer_options": {"edits": "all"}}, "`edits` is 'lines' or 'whole', not 'all'"),
    "no steps": ({"steps": 0}, "`steps` of Schedule must be .* at least 1"),
    "no rows": ({"val_rows": 0}, "'val_rows' must be at least 1"),
    "no concurrency": ({"max_concurrency": 0}, "`max_concurrency` of .* at least 1"),
    "no budget": ({"budget_calls": 0}, "budget's calls must be positive, not 0; leave it out"),
    "no time": ({"call_timeout": 0}, "'call_timeout' must be more than 0 seconds, not 0"),
    "impossible gain": ({"min_gain": 2}, "`min_gain` of Better must be .* below 1, not 2"),
    "no evaluator": ({"evaluator": []}, "'evaluator' is missing; give --evaluator or set it"),
    "no training data": ({"train": None}, "'train' is missing; give --train"),
    "missing data": ({"val": "nope.jsonl"}, "There is no data file 'nope.jsonl'"),
    "empty data": ({"val": "empty.jsonl"}, "'empty.jsonl' has no examples"),
    "broken line": ({"val": "broken.jsonl"}, "'broken.jsonl', line 17: this is not JSON .*column"),
    "row without inputs": ({"val": "bare.jsonl"}, "'bare.jsonl', line 2: 'inputs' must be an object"),
    "evaluator not there": ({"evaluator": ["user:none"]}, "has no 'none'; check the name"),
    "evaluator's module not there": ({"evaluator": ["judges:all"]}, "no module 'judges' for the evaluator"),
    "evaluator is no function": ({"evaluator": ["user:number"]}, "must be a function, not int"),
    "evaluator raises": ({"evaluator": ["user:raising"]}, "'raising' raised KeyError on example 'e[345]': 'x'.*Mend"),
    "evaluator returns nothing": ({"evaluator": ["user:nothing"]}, "'nothing' returned nothing .*must return a number"),
    "evaluator returns 7": ({"evaluator": ["user:seven"]}, "the score 7, which is not between 0 and 1"),
    "evaluator asks for more": ({"evaluator": ["user:greedy"]}, "asks for 'colour'; evaluators take any"),
    "unknown model": ({"model": "other"}, "has no model 'other'; name one of those that it has: test-model"),
    "bad address": ({"base_url": "localhost"}, "write it like http://127"),
    "reference without prompts": ({"reference": "bare.toml"}, r"needs a table \[prompts\]"),
    "reference to nobody": ({"reference": "stranger.toml"}, "no parameter 'stranger'; the graph has 'triage'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_sentence(here, what):
    settings, expected = BAD[what]
    desk.project(here.folder, **settings)
    (here.folder / "user.py").write_text(
        "import lg_textgrad as tg\n"
        "from langgraph.graph import StateGraph\n"
        "from tests.desk import build\n"
        "builder, number = StateGraph(dict), 3\n"
        "unread = build(extra=[tg.Parameter('unread', 'x')])\n"
        "frozen = build([])\n"
        "def raising(outputs): return {}['x']\n"
        "def nothing(outputs): pass\n"
        "def seven(outputs): return 7\n"
        "def greedy(outputs, colour): return 1\n"
    )
    (here.folder / "raises.py").write_text("raise ValueError('boom')\n")
    (here.folder / "syntax.py").write_text("def f(:\n")
    (here.folder / "needs.py").write_text("import not_there_at_all\n")
    (here.folder / "empty.jsonl").write_text("\n")
    good = json.dumps(desk.rows(1)[0])
    lines = [json.dumps(row) for row in desk.rows(20)]
    (here.folder / "broken.jsonl").write_text("\n".join([*lines[:16], "{'inputs': 1}", *lines[17:]]))
    (here.folder / "bare.jsonl").write_text(f'{good}\n{{"message": "hi"}}\n')
    (here.folder / "bare.toml").write_text('polish = "x"\n')
    (here.folder / "stranger.toml").write_text('[prompts]\nstranger = "x"\n')
    done = here.run("optimize", "optimize.toml", "--json")
    assert re.search(expected, one_error(done.err)), done.err
    assert done.code == 2
    assert done.out == ""


def test_broken_and_missing_configuration(here):
    (here.folder / "broken.toml").write_text("steps = = 3\n")
    done = here.run("optimize", "broken.toml")
    assert done.code == 2
    assert re.search(r"'broken.toml' is not valid TOML: .*line 1", one_error(done.err))
    done = here.run("optimize", "nope.toml")
    assert done.code == 2
    assert "no configuration file 'nope.toml'" in one_error(done.err)
    done = here.run("optimize")
    assert done.code == 2
    assert "'graph' is missing; give --graph" in one_error(done.err)


def test_folder_without_a_run_is_told(here):
    (here.folder / "plain").mkdir()
    for folder in ("plain", "nowhere"):
        for command in ("resume", "show", "diff"):
            done = here.run(command, folder)
            assert done.code == 2
            assert f"There is no run in '{folder}'" in one_error(done.err)
        assert here.run("export", folder, "--out", "p.toml").code == 2
    (here.folder / "plain" / "run.sqlite").write_bytes(b"this is not a database at all" * 100)
    for command in ("resume", "show"):
        done = here.run(command, "plain")
        assert done.code == 2
        assert "is damaged: file is not a database" in one_error(done.err)
    assert not (here.folder / "nowhere").exists()
    (here.folder / "file").write_text("")
    done = here.run("optimize", "optimize.toml", "--out", "file")
    assert (done.code, "cannot be written" in one_error(done.err)) == (2, True)
    with Store(here.folder / "by_hand") as store:
        assert "stopped before the first call" in one_error(here.run("resume", "by_hand").err)
        store.put_meta("configuration", {})
    assert "Trainer.fit" in one_error(here.run("resume", "by_hand").err)


def test_run_directory_of_another_configuration_stays_resumable(here):
    assert here.run("optimize", "optimize.toml", "--out", "r", "--budget-calls", "12").code == 0
    asked = len(here.server.chats)
    done = here.run("optimize", "optimize.toml", "--out", "r", "--steps", "1", "--seed", "4")
    assert done.code == 2
    assert (
        "changed are optimizer (seed: 0 -> 4), schedule (steps: 2 -> 1, seed: 0 -> 4). Change it back"
        in one_error(done.err)
    )
    assert re.search("new run with another --out, or fork .* --fork r --out NEW", one_error(done.err))
    desk.write_jsonl(here.folder / "val.jsonl", desk.rows(4, 3))
    done = here.run("resume", "r")
    assert (done.code, "changed are val data (new: 'e6')" in one_error(done.err)) == (2, True)
    assert len(here.server.chats) == asked
    desk.write_jsonl(here.folder / "val.jsonl", desk.rows(3, 3))
    # What was refused changed nothing: the run goes on with its own configuration.
    assert here.run("resume", "r").code == 0


@pytest.mark.parametrize("whose", ["graph", "critic"])
def test_wrong_key_is_told_without_the_key(here, monkeypatch, whose):
    here.server.api_key = "right"
    monkeypatch.setenv("DESK_KEY", SECRET if whose == "graph" else "right")
    monkeypatch.setenv("OTHER_KEY", SECRET)
    done = here.run("optimize", "optimize.toml", "--out", "r", "--api-key-env", "OTHER_KEY", "--json")
    assert done.code == 2
    error = one_error(done.err)
    assert "refused" in error
    assert ("that the graph" in error) if whose == "graph" else ("set OTHER_KEY" in error)
    assert SECRET not in done.out + done.err
    assert SECRET[:12] not in done.out + done.err
    for file in (here.folder / "r").iterdir():
        assert SECRET.encode() not in file.read_bytes()


def test_missing_key_names_the_variable(here, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    done = here.run("optimize", "optimize.toml", "--api-key-env", "MY_KEY")
    assert (done.code, "set MY_KEY" in one_error(done.err)) == (2, True)
    assert "--api-key-env" in done.err
    assert "--base-url" in done.err


@pytest.mark.parametrize("whose", ["graph", "critic"])
def test_server_that_is_not_there_is_told(here, monkeypatch, whose):
    monkeypatch.setattr(models, "OpenAI", functools.partial(models.OpenAI, max_retries=0))
    with OpenAIServer() as gone:
        address = gone.base_url
    if whose == "graph":
        monkeypatch.setenv("DESK_BASE_URL", address)
    else:
        monkeypatch.setenv("OPENAI_BASE_URL", address)
    done = here.run("optimize", "optimize.toml")
    assert done.code == 2
    assert re.search("Nobody answers at .*(start|correct)", one_error(done.err))
    assert here.server.chats == []  # nothing was paid for


def test_model_that_the_server_does_not_list_is_told_before_anything_is_paid(here):
    done = here.run("optimize", "optimize.toml", "--model", "test-modal", "--out", "r", "--json")
    told = done.err.index("lists other models than 'test-modal': test-model. If it does not know")
    assert told < done.err.index("baseline: val") < done.err.index("Error: The server")
    assert (done.code, done.out) == (2, "")
    done = here.run("resume", "r")  # what it asks for may be there already
    assert "lists other models" not in done.err


@pytest.mark.parametrize("command", ["inspect", "init"])
def test_look_at_a_graph_whose_model_is_not_there_names_the_embedded_one(here, monkeypatch, command):
    with OpenAIServer() as gone:
        monkeypatch.setenv("DESK_BASE_URL", gone.base_url)
    (here.folder / "optimize.toml").unlink()  # init writes none over another
    done = here.run(command, "desk_app:graph", "--inputs", "test.jsonl", "--json")
    assert (done.code, done.out) == (2, "")
    assert re.search("Nobody answers at .* embedded model, add --local", one_error(done.err))


def test_unknown_model_of_the_graph_is_told(here, monkeypatch):
    monkeypatch.setenv("DESK_MODEL", "other")
    done = here.run("evaluate", "optimize.toml")
    assert done.code == 2
    assert "does not have a model that the graph asks for" in one_error(done.err)


def test_argparse_errors_are_status_2(here):
    for arguments in ([], ["optimise"], ["optimize", "--steps", "two"], ["export", "r"]):
        done = here.run(*arguments)
        assert done.code == 2
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate o.toml --split tset", "argument --split: invalid choice: 'tset' (choose from 'train', 'val', 'test'). See: lg-textgrad evaluate --help"),
        ("evaluate o.toml --promts p.toml", "there is no option '--promts'; did you mean --prompts? See: lg-textgrad evaluate --help"),
        ("resume runs/a runs/b", "there is no place for 'runs/b'. See: lg-textgrad resume --help"),
        ("optimize --stepz=3", "there is no option '--stepz'; did you mean --steps? See: lg-textgrad optimize --help"),
        ("local srve", "argument action: invalid choice: 'srve' (choose from 'serve'). See: lg-textgrad local --help"),
        ("--jsn show r", "there is no option '--jsn'. See: lg-textgrad --help"),
        ("", "the following arguments are required: COMMAND. See: lg-textgrad --help"),
    ],
)
def test_slip_on_the_command_line_is_told_alone_with_where_to_look(here, line, said):
    done = here.run(*line.split())
    assert (done.code, done.out) == (2, "")
    assert re.sub(r"invalid choice: (\S+) \(choose from (.*?)\)", _quoted, done.err) == f"Error: {said}\n"


def _quoted(found):
    """Return what argparse says of a choice as Python 3.11 does; later ones quote otherwise."""
    names = ", ".join(repr(n.strip("' ")) for n in found[2].split(","))
    return f"invalid choice: {found[1]} (choose from {names})"


def test_configuration_behind_approve_is_not_taken_for_a_queue(here):
    done = here.run("optimize", "--approve", "optimize.toml")
    assert done.code == 2
    assert "'optimize.toml' is a configuration, not an annotation queue; name it before --approve" in done.err


@pytest.mark.parametrize(
    ("given", "out"),
    [("desk/o.toml", "runs/desk"), ("o.toml", "runs/run"), ("./o.toml", "runs/run"), (None, "runs/run")],
)
def test_run_directory_is_named_after_the_folder_that_the_configuration_is_given_with(here, given, out):
    (here.folder / "desk").mkdir()
    for file in ("o.toml", "desk/o.toml"):
        (here.folder / file).write_text('graph = "desk_app:graph"\n')
    options = cli.parser().parse_args(["optimize", *([given] if given else [])])
    assert Path(configured(options).out) == Path(out)


# Looking at it.


def test_evaluate_scores_prompts_without_training(here):
    done = here.run("evaluate", "optimize.toml", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert set(document) == {"split", "score", "feedback", "rows", "failed", "spent"}
    assert (document["split"], document["rows"], document["failed"]) == ("test", 2, 0)
    assert "failed" not in done.err
    assert document["feedback"] == {"team": 0.0, "greeting": 0.0, "ending": 0.0}
    assert len(here.server.chats) == 6
    (here.folder / "p.toml").write_text(f'[prompts]\npolish = "The desk\'s polish. {ENDING}"\n')
    done = here.run(
        "evaluate", "optimize.toml", "--prompts", "p.toml", "--split", "val", "--val-rows", "1", "--json"
    )
    assert json.loads(done.out)["feedback"]["ending"] == 1
    assert json.loads(done.out)["rows"] == 1
    assert not (here.folder / "runs").exists()
    (here.folder / "p.toml").write_text('[prompts]\nstranger = "x"\n')
    done = here.run("evaluate", "optimize.toml", "--prompts", "p.toml")
    assert (done.code, "no parameter 'stranger'" in one_error(done.err)) == (2, True)


def test_score_below_what_is_asked_for_fails_the_command(here):
    text = f'[prompts]\npolish = "The desk\'s polish. {ENDING}"\n'
    (here.folder / "p.toml").write_text(text)  # of three keys with the same weight, one
    scores = ("evaluate", "optimize.toml", "--prompts", "p.toml", "--json")
    low = here.run(*scores, "--at-least", "0.4")
    assert (low.code, json.loads(low.out)["at_least"], json.loads(low.out)["passed"]) == (1, 0.4, False)
    assert "The test score is 0.333, below --at-least 0.4." in low.err
    enough = here.run(*scores, "--at-least", "0.333")
    assert (enough.code, json.loads(enough.out)["passed"], "below" in enough.err) == (0, True, False)
    assert "passed" not in json.loads(here.run(*scores).out)
    for wrong in ("80", "x", "nan"):
        done = here.run(*scores, "--at-least", wrong)
        assert (done.code, f"a number from 0 to 1, not '{wrong}'" in done.err) == (2, True)


def test_runs_that_fail_are_told_with_the_place_and_the_reason(here):
    (here.folder / "fails.py").write_text(
        "from tests.desk import build\n"
        "graph = build(prompts={'writer': 'You are the desk\\'s writer for {missing}.'})\n"
    )
    done = here.run("evaluate", "optimize.toml", "--graph", "fails:graph", "--json")
    assert (done.code, json.loads(done.out)["failed"]) == (1, 2)
    said = r"2 of 2 runs failed; that of example 'e6' in writer#0 with ParameterError: .*missing"
    assert re.search(said, done.err)
    (here.folder / "partly.py").write_text(
        "import lg_textgrad as tg\n"
        "from langgraph.graph import START, StateGraph\n"
        "from tests.desk import Desk, build\n"
        "desk = build()\n"
        "def look(state):\n"
        "    if 'broken' in state['message']: raise KeyError('stove')\n"
        "builder = StateGraph(Desk).add_node('look', look).add_node('desk', desk.graph)\n"
        "builder.add_edge(START, 'look').add_edge('look', 'desk')\n"
        "graph = tg.TrainableGraph(builder.compile(), desk.parameters.values())\n"
    )
    scored = here.run("evaluate", "optimize.toml", "--graph", "partly:graph", "--split", "val", "--json")
    assert (scored.code, json.loads(scored.out)["failed"]) == (0, 1)
    done = here.run("optimize", "optimize.toml", "--graph", "partly:graph", "--steps", "1")
    assert done.code == 0, done.err
    assert "1 of 3 runs failed; that of example 'e4' in look#0 with KeyError: 'stove'" in done.err


def test_show_tells_what_happened(here, finished):
    done = here.run("show", finished.run_dir, "--json")
    assert done.code == 0
    assert json.loads(done.out) == {**finished.document, "run_dir": finished.run_dir}
    assert re.search(r"step 1 +\w{8} +accepted on val: better by \+0\.\d+: 3 of 3 examples", done.err)
    assert "rollout: " in done.err
    assert re.search(r"val: 0\.111 → 1\.000", done.err)


def test_diff_gives_each_added_line_its_gradients_and_its_measured_change(here, finished):
    done = here.run("diff", finished.run_dir)
    lines = done.out.splitlines()
    for rule in (PARCELS, BROKEN, GREETING, ENDING):
        at = lines.index(f"+ {rule}")
        assert re.search(r"step [12]: val \+0\.\d\d\d, \d examples won, 0 lost", lines[at + 1])
        # The writer's blame came through its consumer, which passed on 0.8 of it.
        weight = "0.72" if rule == GREETING else "0.90"
        assert re.search(rf"← e[012], \w+#0, weight {weight}: {re.escape(rule)}", lines[at + 2])
    document = json.loads(here.run("diff", finished.run_dir, "--json").out)
    for name, change in document.items():
        assert change["before"] == START_PROMPTS[name]
        assert change["after"] == finished.document["parameters"][name]["after"]
        for line in change["lines"]:
            assert line["op"] == "+"
            [reason] = line["because"]
            assert reason["gain"] > 0
            assert reason["won"] > 0
            for gradient in reason["gradients"]:
                assert gradient["example"] in ("e0", "e1", "e2")
                assert gradient["weight"] == (0.72 if name == "writer" else 0.9)
                assert gradient["run"]


def test_diff_knows_which_edit_took_a_line_away(here):
    script = Script()
    script.rewriter = lambda name, _: {
        "edits": [{"op": "replace", "line": 2, "text": ENDING, "notes": [1]}]
        if name == "polish"
        else [{"op": "add", "line": 2, "text": GREETING, "notes": [1]}]
    }
    here.server.handler = script
    (here.folder / "desk_app.py").write_text(
        "from tests.desk import EVALUATORS, build\ngraph = build(['writer', 'polish'])\n"
    )
    done = here.run("optimize", "optimize.toml", "--out", "r", "--steps", "1")
    assert done.code == 0, done.err
    document = json.loads(here.run("diff", "r", "--json").out)
    lines = {(line["op"], line["text"]): line["because"] for line in document["polish"]["lines"]}
    if ("-", "Reply with the text only.") in lines:
        assert len(lines["-", "Reply with the text only."]) == 1
    assert all(len(because) == 1 for because in lines.values())


def test_export_writes_what_read_prompts_reads(here, finished):
    done = here.run("export", finished.run_dir, "--out", "prompts.toml", "--json")
    assert done.code == 0
    after = {n: p["after"] for n, p in finished.document["parameters"].items()}
    assert json.loads(done.out) == {"out": "prompts.toml", "prompts": after}
    assert read_prompts("prompts.toml") == after
    with tg.prompts(tg.read_prompts("prompts.toml")):  # as the documents say
        assert {name: str(tg.Parameter(name, "")) for name in after} == after
    text = Path("prompts.toml").read_text()
    assert text.startswith("# The accepted prompts of the run in it.\n# val: 0.111 -> 1.000\n")
    scored = here.run("evaluate", "optimize.toml", "--prompts", "prompts.toml", "--json")
    assert json.loads(scored.out)["score"] == 1
    done = here.run("export", finished.run_dir, "--out", "no/such/folder/p.toml")
    assert (done.code, "cannot be written" in one_error(done.err)) == (2, True)


def test_export_before_writes_what_undoes_it(here, finished):
    before = {n: p["before"] for n, p in finished.document["parameters"].items()}
    assert here.run("export", finished.run_dir, "--before", "--out", "before.toml").code == 0
    assert read_prompts("before.toml") == before
    assert Path("before.toml").read_text().startswith("# The prompts that the run in it began with.\n\n")


def test_report_goes_to_standard_output_or_a_file(here, finished):
    done = here.run("report", finished.run_dir)
    assert done.code == 0
    assert done.out.startswith("# What tuning changed: it\n")
    assert "| val | 3 | 0.111 | 1.000 | – |" in done.out
    told = here.run("report", finished.run_dir, "--out", "report.md", "--json")
    assert Path("report.md").read_text() == done.out
    assert json.loads(told.out) == {"out": "report.md", "report": done.out}
    assert (here.run("report", "nowhere").code, Path("nowhere").exists()) == (2, False)


def test_init_writes_a_configuration_that_can_be_read(here):
    done = here.run("init", "desk_app:graph", "--out", "new.toml", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "out": "new.toml", "parameters": list(START_PROMPTS), "discover": False
    }  # fmt: skip
    config = read_config("new.toml")
    assert config.graph == "desk_app:graph"
    assert config.check() is None
    text = Path("new.toml").read_text()
    for prompt in START_PROMPTS.values():
        for line in prompt.splitlines():
            assert f"# {line}\n" in text
    # Whatever it shows as a comment is a setting, too.
    Path("all.toml").write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M))
    everything = read_config("all.toml")
    assert everything.budget_calls
    assert everything.rewriter_model
    done = here.run("init", "desk_app:graph", "--out", "new.toml")
    assert (done.code, "is there already; give another --out" in one_error(done.err)) == (2, True)
    done = here.run("init", "desk_app:graph", "--out", "no/folder/x.toml")
    assert (done.code, "cannot be written" in one_error(done.err)) == (2, True)
    assert here.run("init", "nowhere:graph", "--out", "y.toml").code == 2


def test_inspect_draws_the_graph_and_shows_prompts_and_who_reads_them(here):
    done = here.run("inspect", "desk_app:graph")
    assert done.code == 0
    assert "  ● triage\n  │\n  ● writer\n  │\n  ● polish\n" in done.out
    for name, prompt in START_PROMPTS.items():
        assert f"✎ {name}  declared in the node\n" in done.out
        assert all(f"    {line}\n" in done.out for line in prompt.splitlines())
    assert "read by" not in done.out
    assert "Which node reads which prompt shows when the graph runs: --inputs FILE" in done.out
    assert here.server.chats == []
    done = here.run("inspect", "desk_app:graph", "--inputs", "test.jsonl")
    assert re.search(r"● triage +✎ triage, 15 tokens\n", done.out)
    assert "15 tokens; read by triage in 2 of 2 runs\n" in done.out
    document = json.loads(here.run("inspect", "desk_app:graph", "--inputs", "test.jsonl", "--json").out)
    assert document["nodes"] == {"": ["triage", "writer", "polish"]}
    assert {(e["from"], e["to"]) for e in document["edges"][""]} == {
        ("__start__", "triage"), ("triage", "writer"), ("writer", "polish"), ("polish", "__end__")
    }  # fmt: skip
    for name, parameter in document["parameters"].items():
        assert parameter["read_by"] == [name]
        assert parameter["read_in"] == {e: [f"{name}#0"] for e in ("e6", "e7")}
        assert parameter["value"] == START_PROMPTS[name]
        assert parameter["requires_grad"] is True
    assert [run["example"] for run in document["runs"]] == ["e6", "e7"]
    assert document["without_prompt"] == []
    bare = json.loads(here.run("inspect", "desk_app:graph", "--json").out)
    assert bare["parameters"]["triage"]["read_by"] is None
    assert bare["runs"] == []


def test_inspect_prints_mermaid(here):
    done = here.run("inspect", "desk_app:graph", "--mermaid")
    assert done.out.startswith("graph TD\n")
    assert "    triage --> writer\n" in done.out
    document = json.loads(here.run("inspect", "desk_app:graph", "--json").out)
    assert document["mermaid"] == done.out


def test_inspect_runs_no_more_rows_than_asked(here):
    desk.write_jsonl(here.folder / "many.jsonl", desk.rows(6))
    here.run("inspect", "desk_app:graph", "--inputs", "many.jsonl")
    assert len(here.server.chats) == 3 * 3
    here.run("inspect", "desk_app:graph", "--inputs", "many.jsonl", "--rows", "1")
    assert len(here.server.chats) == 3 * 4
    done = here.run("inspect", "desk_app:graph", "--inputs", "many.jsonl", "--rows", "0")
    assert (done.code, "at least 1" in one_error(done.err)) == (2, True)


def test_inspect_tells_runs_that_failed(here):
    (here.folder / "fails.py").write_text(
        "from tests.desk import build\ngraph = build(prompts={'writer': 'The {missing} one.'})\n"
    )
    done = here.run("inspect", "fails:graph", "--inputs", "test.jsonl")
    assert done.code == 0
    assert "The run of example 'e6' failed: ParameterError" in done.err
    assert re.search("All 2 runs failed, the first with ParameterError.*Mend the graph", done.out)
    assert "--discover" not in done.out


def test_init_says_what_inspect_says_of_a_graph_without_prompts(here):
    (here.folder / "promptless.py").write_text(
        "from langgraph.graph import START, StateGraph\n"
        "graph = StateGraph(dict).add_node('n', lambda s: {}).add_edge(START, 'n').compile()\n"
    )
    said = "No prompt was found that can be tuned; declare one with Parameter('name', 'text')."
    assert said in here.run("inspect", "promptless:graph", "--inputs", "test.jsonl").out
    done = here.run("init", "promptless:graph", "--inputs", "test.jsonl", "--out", "n.toml")
    assert said in done.err
    assert "--inputs FILE" not in done.err
    assert "--inputs FILE finds them" in here.run("init", "promptless:graph", "--out", "m.toml").err


LOUD = """
import lg_textgrad as tg
from tests.desk import EVALUATORS, build_plain
print("loud when imported")
class Loud(tg.TrainableGraph):
    async def arecord(self, *args, **options):
        print("loud when run")
        return await super().arecord(*args, **options)
graph = Loud(build_plain(), [])
"""


def test_what_a_graph_prints_is_kept_out_of_what_machines_read(here):
    (here.folder / "loud.py").write_text(LOUD)
    command = ["inspect", "loud:graph", "--inputs", "test.jsonl", "--no-discover"]
    done = here.run(*command, "--json")
    assert json.loads(done.out)["graph"] == "loud:graph"
    assert "loud when imported" in done.err
    assert "loud when run" in done.err
    assert here.run(*command, "--mermaid").out.startswith("graph TD\n")
    assert here.run(*command).out.startswith("loud:graph")


def test_a_reader_that_goes_away_is_no_failure(here):
    started = [sys.executable, "-m", "lg_textgrad", "inspect", "desk_app:graph", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            started, cwd=here.folder, env=environment, stdout=writing, stderr=subprocess.PIPE,
            text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# The commands and what is written about them.

COMMANDS = [
    "init", "inspect", "optimize", "resume", "evaluate", "show", "diff", "report", "export", "promote",
    "rollback", "sync", "local",
]  # fmt: skip


def commands():
    [sub] = [a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return sub.choices


def test_every_command_is_there_and_has_help(here):
    assert list(commands()) == COMMANDS
    for name in COMMANDS:
        done = here.run(name, "--help")
        assert done.code == 0
        assert f"usage: lg-textgrad {name}" in done.out
        assert "--json" in done.out
    assert here.run("local", "serve", "--help").code == 0
    assert re.fullmatch(r"\d+\.\d+\S*\n", here.run("--version").out)


def documentation():
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(f.read_text(encoding="utf-8") for f in files if f.exists())


def test_every_command_option_and_setting_is_documented():
    text = documentation()
    missing = [f"command {name}" for name in commands() if f"`{name}" not in text]
    for name, command in commands().items():
        for action in command._actions:
            missing += [
                f"{name} {option}"
                for option in action.option_strings
                if option.startswith("--") and option != "--help" and option not in text
                # Settings are flags of the same name; docs/cli.md says so above their table.
                and f"| `{action.dest}` |" not in text
            ]
    missing += [f"setting {f.name}" for f in fields(Config) if f"`{f.name}`" not in text]
    missing += [
        f"status {code}"
        for code in (cli.DONE, cli.FAILED, cli.BAD_INPUT, cli.SMALL_BUDGET, cli.RESUMABLE)
        if f"| {code} |" not in text
    ]
    assert missing == []


def test_documented_settings_and_commands_exist():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    settings = re.search(r"## Settings\n(.*?)\n## ", text, re.S)[1]
    listed = set(re.findall(r"^\| `(\w+)`", settings, re.M))
    assert listed == {f.name for f in fields(Config)}
    written = set(re.findall(r"^\| `(\w+)[^|]*\|", text.split("## Settings")[0], re.M))
    assert written == set(COMMANDS)
    parsers = [cli.parser(), *commands().values()]
    options = {o for p in parsers for a in p._actions for o in a.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - options == set()
