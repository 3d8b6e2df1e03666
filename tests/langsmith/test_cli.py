"""LangSmith from the command line: the nightly loop as it is documented, outages, people, and silence."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lg_textgrad import cli
from lg_textgrad.approval import approvals
from lg_textgrad.run import Example
from lg_textgrad.store import Store
from tests import desk
from tests.desk import ENDING, GREETING, PARCELS, START_PROMPTS, Script, rows
from tests.langsmith.parts import desk_dataset
from tests.langsmith.test_hub import pushed, system
from tests.langsmith.test_traces import serve_production
from tests.servers.langsmith_server import Fault
from tests.servers.openai_server import OpenAIServer
from tests.test_cli import forget, settle

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def here(server, client, tmp_path, monkeypatch, capsys):
    """A user's folder, models, LangSmith in the environment, and `run(...)`, one command line."""
    desk.project(tmp_path, module="support_app")
    with OpenAIServer(Script(), models=None) as models:
        settle(monkeypatch, tmp_path, models)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
        monkeypatch.setenv("DESK_KEY", "sk-test-0123456789abcdef")
        monkeypatch.setenv("LANGSMITH_ENDPOINT", server.url)
        monkeypatch.setenv("LANGSMITH_API_KEY", server.api_key)
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
        # An outage is tried again like any other, but without the pauses.
        monkeypatch.setattr("urllib3.util.retry.Retry.get_backoff_time", lambda _: 0)
        monkeypatch.setattr("lg_textgrad.langsmith.reporting._PAUSE", 0.001)

        def run(*arguments):
            forget(tmp_path)
            capsys.readouterr()
            try:
                code = cli.main([str(a) for a in arguments])
            except SystemExit as stopped:
                code = stopped.code
            said = capsys.readouterr()
            return SimpleNamespace(code=code, out=said.out, err=said.err)

        yield SimpleNamespace(server=server, client=client, models=models, folder=tmp_path, run=run)
        forget(tmp_path)


GRAPH = ("--graph", "support_app:graph", "--evaluator", "support_app:EVALUATORS", "--model", "m", "--steps", "1", "--batch-size", "3")


def nightly():
    """The commands of the nightly loop, out of the documentation."""
    text = (ROOT / "docs" / "langsmith.md").read_text(encoding="utf-8")
    block = re.search(r"## The nightly loop.*?```sh\n(.*?)```", text, re.S)[1]
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert all(command[0] == "lg-textgrad" for command in commands)
    return [command[1:] for command in commands]


def test_nightly_loop_as_it_is_documented(here):
    client, server = here.client, here.server
    desk_dataset(client, "support")
    for name, text in START_PROMPTS.items():
        client.push_prompt(f"support-{name}", object=_prompt(text), commit_tags=["production"])
    roots = serve_production(server, desk.build(), [r["inputs"]["message"] for r in rows(3, 20)], "support-prod")
    for root, said in zip(roots, (PARCELS, GREETING, None), strict=True):
        client.create_feedback(
            run_id=root["id"], trace_id=root["id"], session_id=root["session_id"], key="thumbs",
            score=0 if said else 1, comment=said,
        )  # fmt: skip
    optimize, sync, diff, promote, rollback = nightly()
    server.requests.clear()

    done = here.run(*optimize, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    after = {name: p["after"] for name, p in document["parameters"].items()}
    assert PARCELS in after["triage"]
    assert GREETING in after["writer"]
    assert document["best"]["val"] > document["baseline"]["val"]
    assert document["langsmith"]["left"] == 0
    assert set(document["langsmith"]["pushed"]) == {"support-triage", "support-writer"}
    assert "traces of support-prod: 2 to learn from" in done.err
    assert "dataset support as of" in done.err
    # Read back with the real client: experiments over the dataset, with feedback.
    dataset = client.read_dataset(dataset_name="support")
    projects = [p for p in client.list_projects(reference_dataset_id=dataset.id)]
    assert {p.name.split("-")[3] for p in projects} == {"val", "test"}
    assert all(p.name.startswith("support-nightly-") and p.end_time for p in projects)
    scored = {f.key for p in projects for f in client.list_feedback(run_ids=[r["id"] for r in server.runs_of(p.name)])}
    assert {"team", "greeting", "ending", "objective"} <= scored
    # Blame on the production steps, and prompts with scores and the experiment.
    assert {server.runs[f["run_id"]]["name"] for f in server.feedback.values() if f["key"] == "blame"} >= {"triage", "writer"}
    for name, text in after.items():
        assert system(client, f"support-{name}:candidate") == text
        assert system(client, f"support-{name}:production") == START_PROMPTS[name]
    told = next(client.list_prompt_commits("support-triage")).description
    assert re.search(r"val: 0\.\d+ -> 0\.\d+", told)
    assert "Experiment: http" in told

    posted = len(server.seen("POST"))
    assert here.run(*sync).code == 0
    assert len(server.seen("POST")) == posted

    shown = here.run(*diff)
    assert (shown.code, PARCELS in shown.out) == (0, True)

    moved = here.run(*promote, "--json")
    assert moved.code == 0, moved.err
    assert f"+ {PARCELS}" in moved.err
    assert json.loads(moved.out)["done"]
    assert all(system(client, f"support-{n}:production") == t for n, t in after.items())

    back = here.run(*rollback)
    assert back.code == 0, back.err
    assert f"- {PARCELS}" in back.err
    assert all(system(client, f"support-{n}:production") == t for n, t in START_PROMPTS.items())
    assert server.repeated == []
    assert all(b"sk-test" not in r.raw and server.api_key.encode() not in r.raw for r in server.requests)


def _prompt(text):
    from langchain_core.prompts import ChatPromptTemplate

    return ChatPromptTemplate([("system", text)])


def test_dataset_and_openevals_judge_with_experiments_and_prompts(here):
    client, server = here.client, here.server
    desk_dataset(client)
    pushed(client)
    done = here.run(
        "optimize", *GRAPH, "--evaluator", "tests.langsmith.judges:polite",
        "--summary-evaluator", "tests.langsmith.judges:share_polite",
        "--dataset", "desk", "--langsmith", "--hub", "desk", "--out", "runs/it", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["best"]["val"] == 1
    dataset = client.read_dataset(dataset_name="desk")
    projects = {p.name: p for p in client.list_projects(reference_dataset_id=dataset.id)}
    assert {name.split("-")[2] for name in projects} == {"train", "val", "test"}
    assert all(name.startswith("it-") for name in projects)
    [best] = [p for p in projects.values() if "-val-" in p.name and p.metadata["parameters"]["writer"] == document["parameters"]["writer"]["after"]]
    roots = [r for r in server.runs_of(best.name) if r["parent_run_id"] is None]
    told = list(client.list_feedback(run_ids=[r["id"] for r in roots]))
    assert {(f.key, f.score) for f in told if f.key == "polite"} == {("polite", 1)}
    assert {f.comment for f in told if f.key == "polite"} == {"It greets."}
    assert {f["key"]: f["score"] for f in server.feedback.values() if f["run_id"] is None and f["session_id"] == str(best.id)} == {"share_polite": 1}
    own = next(s["name"] for s in server.sessions.values() if s["name"].endswith("-optimizer"))
    assert {r["name"] for r in server.runs_of(own)} == {"critic", "rewriter", "judge"}
    for name, parameter in document["parameters"].items():
        assert system(client, f"desk-{name}:candidate") == parameter["after"]


def test_evaluate_reads_a_dataset_and_tells_the_summary(here):
    desk_dataset(here.client)
    done = here.run(
        "evaluate", "--graph", "support_app:graph", "--evaluator", "support_app:EVALUATORS", "--model", "m",
        "--summary-evaluator", "tests.langsmith.judges:share_polite", "--dataset", "desk", "--split", "val", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["rows"], document["summary"]) == (3, {"share_polite": 0.0})
    assert "all of them, share_polite: 0.0" in done.err
    assert here.server.seen("POST /sessions") == here.server.seen("POST /runs") == []


def test_limits_of_rows_hold_for_a_dataset_too(here):
    desk_dataset(here.client)
    first = here.run("optimize", *GRAPH, "--dataset", "desk", "--train-rows", "2", "--val-rows", "1", "--out", "r", "--json")
    assert first.code == 0, first.err
    with Store("r", read_only=True) as store:
        assert {part: len(rows) for part, rows in store.get_meta("details").items() if part.endswith(" data")} == {
            "train data": 2, "val data": 1, "test data": 2,
        }
    assert here.run("resume", "r").code == 0
    done = here.run(
        "evaluate", "--graph", "support_app:graph", "--evaluator", "support_app:EVALUATORS", "--model", "m",
        "--dataset", "desk", "--split", "val", "--val-rows", "2", "--json",
    )  # fmt: skip
    assert json.loads(done.out)["rows"] == 2


def test_settings_in_the_file_and_a_run_that_goes_on_without_langsmith(here):
    desk_dataset(here.client)
    pushed(here.client)
    desk.project(here.folder, module="support_app", train=None, val=None, test=None, dataset="desk",
                 dataset_splits="train=train,val=val", hub="desk", steps=1)  # fmt: skip
    first = here.run("optimize", "optimize.toml", "--out", "r", "--json")
    assert first.code == 0, first.err
    assert json.loads(first.out)["best"]["test"] is None
    here.server.requests.clear()
    paid = len(here.models.requests)
    here.client.update_example(next(here.client.list_examples(dataset_name="desk")).id, inputs={"message": "changed"})
    here.client.push_prompt("desk-triage", object=_prompt("Somebody's."))
    here.server.fault = Fault.answer(500)
    again = here.run("resume", "r", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["parameters"] == json.loads(first.out)["parameters"]
    assert len(here.models.requests) == paid
    here.server.fault = None


def test_outage_costs_nothing_but_the_upload_which_sync_makes_up_for(here):
    desk_dataset(here.client)
    pushed(here.client)
    down = {}

    def fail(request):
        # From the first experiment on, nothing works.
        if down or str(request) == "POST /sessions":
            down["now"] = True
            return Fault.answer(503)
        return None

    here.server.fault = fail
    arguments = ("optimize", *GRAPH, "--dataset", "desk", "--langsmith", "--hub", "desk", "--out", "my run", "--json")
    done = here.run(*arguments)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["best"]["val"] == 1
    assert document["langsmith"]["left"] > 0
    assert document["langsmith"]["pushed"] is None
    assert "The prompts are not on the hub yet" in done.err
    assert "Make up for it with: lg-textgrad sync 'my run'" in done.err
    assert here.server.runs == {}
    still = here.run("sync", "my run")
    assert still.code == 1
    assert "0 sent" in still.err
    here.server.fault = None
    told = here.run("sync", "my run", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["left"] == 0
    assert len(json.loads(told.out)["pushed"]) > 0
    assert here.run("sync", "my run").code == 0
    assert here.server.repeated == []
    for name, parameter in document["parameters"].items():
        assert system(here.client, f"desk-{name}:candidate") == parameter["after"]


def test_hub_that_moved_on_meanwhile_takes_nothing_from_the_result(here):
    pushed(here.client)

    def meanwhile(*_):
        if len(here.server.repos["desk-polish"].commits) == 1:
            here.client.push_prompt("desk-polish", object=_prompt("Somebody's."))

    here.models.handler.rewriter = meanwhile
    done = here.run("optimize", "optimize.toml", "--steps", "1", "--hub", "desk", "--langsmith", "--out", "r", "--json")
    assert (done.code, "'desk-polish' on the hub moved on" in done.err) == (2, True), done.err
    document = json.loads(done.out)
    assert document["best"]["val"] == 1
    assert (document["langsmith"]["left"], document["langsmith"]["pushed"]) == (0, None)
    assert not any("candidate" in repo.tags for repo in here.server.repos.values())


def test_what_a_run_takes_from_the_hub_is_said_and_a_slip_in_the_prefix_is_refused(here):
    pushed(here.client, {"triage": START_PROMPTS["triage"]})
    command = ("optimize", "optimize.toml", "--steps", "1", "--hub-version", "production")
    done = here.run(*command, "--hub", "desk", "--out", "r")
    assert done.code == 0, done.err
    said = r"from the hub: desk-triage at [0-9a-f]{8}; not on the hub, so as the graph has them: desk-writer, desk-polish\n"
    assert re.search(said, done.err), done.err
    asked = len(here.models.chats)
    done = here.run(*command, "--hub", "dsek", "--out", "s")
    assert done.code == 2
    assert "There is no prompt 'dsek-triage' or 'dsek-writer' or 'dsek-polish' on the hub" in done.err
    assert len(here.models.chats) == asked


# Promotion asks.


@pytest.fixture
def finished(here):
    pushed(here.client)
    done = here.run("optimize", "optimize.toml", "--steps", "1", "--hub", "desk", "--hub-version", "production", "--out", "r")
    assert done.code == 0, done.err
    return here


def terminal(monkeypatch, *answers):
    left = list(answers)
    monkeypatch.setattr("builtins.input", lambda *_: left.pop(0))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))


def test_promotion_shows_the_diff_and_asks(finished, monkeypatch):
    nobody = finished.run("promote", "r")
    assert nobody.code == 2
    assert "give --yes" in nobody.err
    terminal(monkeypatch, "n")
    refused = finished.run("promote", "r", "--json")
    assert f"+ {ENDING}" in refused.err
    assert "Nothing was changed." in refused.err
    assert json.loads(refused.out)["done"] is False
    assert system(finished.client, "desk-polish:production") == START_PROMPTS["polish"]
    terminal(monkeypatch, "y")
    assert finished.run("promote", "r").code == 0
    assert ENDING in system(finished.client, "desk-polish:production")
    again = finished.run("promote", "r")
    assert "'production' is there already" in again.err


def test_hub_that_changes_while_the_question_waits_is_left_alone(finished, monkeypatch):
    server, client = finished.server, finished.client

    def meanwhile(*_):
        client.push_prompt("desk-writer", object=_prompt("Urgent."), commit_tags=["urgent"])
        repo = server.repos["desk-writer"]
        repo.tags["production"] = repo.tags["urgent"]
        return "y"

    monkeypatch.setattr("builtins.input", meanwhile)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    refused = finished.run("promote", "r")
    assert (refused.code, "moved on since" in refused.err) == (2, True), refused.err
    assert system(client, "desk-writer:production") == "Urgent."
    assert system(client, "desk-polish:production") == START_PROMPTS["polish"]


def test_nobody_at_the_terminal_is_no_traceback(finished, monkeypatch):
    def gone(*_):
        raise EOFError

    monkeypatch.setattr("builtins.input", gone)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    refused = finished.run("promote", "r")
    assert (refused.code, "give --yes" in refused.err) == (2, True)
    assert system(finished.client, "desk-polish:production") == START_PROMPTS["polish"]


def test_promotion_is_refused_when_the_hub_moved_on(finished):
    finished.client.push_prompt("desk-polish", object=_prompt("Somebody's idea."))
    refused = finished.run("promote", "r", "--yes")
    assert refused.code == 2
    assert "moved on since the run started" in refused.err
    back = finished.run("rollback", "r", "--yes")
    assert (back.code, "has not promoted anything to 'production'" in back.err) == (2, True)


def test_commands_on_what_is_no_run(here):
    for name in ("promote", "rollback", "sync"):
        done = here.run(name, "nowhere")
        assert done.code == 2
        assert "There is no run in 'nowhere'" in done.err
    assert not (here.folder / "nowhere").exists()


# People.


def test_person_at_the_terminal_refuses_with_a_comment_and_then_accepts(here, monkeypatch):
    terminal(monkeypatch, "n", "Keep it shorter.", "y", "y", "y")
    done = here.run("optimize", "optimize.toml", "--approve", "--out", "r", "--json")
    assert done.code == 0, done.err
    assert "A candidate waits for your word" in done.err
    assert "refused by a reviewer: Keep it shorter." in done.err
    with Store("r", read_only=True) as store:
        told = approvals(store)
    assert (told[0]["approved"], told[0]["comment"]) == (False, "Keep it shorter.")
    assert any(t["approved"] for t in told[1:])
    rewriters = [json.dumps(b) for b in here.models.chats if desk.who(b)[0] == "rewriter"]
    assert any("The last proposal was refused by a reviewer: Keep it shorter." in b for b in rewriters)
    assert json.loads(done.out)["accepted"] >= 1
    assert here.server.requests == []


def test_person_at_the_terminal_leaves_out_one_line(here, monkeypatch):
    val = here.folder / "val.jsonl"
    nameless = [{**json.loads(line), "id": None} for line in val.read_text().splitlines()]
    desk.write_jsonl(val, nameless)
    terminal(monkeypatch, "1", "Not this one.", *"y" * 5)
    done = here.run("optimize", "optimize.toml", "--approve", "--steps", "1", "--out", "r", "--json")
    assert done.code == 0, done.err
    assert re.search(r"^won: \w{12} \(val.jsonl, line \d\), ", done.err, re.MULTILINE)
    [number, line] = re.search(r"^ +(\d) \+ (.+)$", done.err, re.MULTILINE).groups()
    assert number == "1"
    assert re.search(rf"refused by a reviewer, who leaves out '\w+: \+ {re.escape(line)}': Not this one\.", done.err)
    texts = [p["after"] for p in json.loads(done.out)["parameters"].values()]
    assert json.loads(done.out)["accepted"] == 1
    assert not any(line in text for text in texts)


def test_annotation_queue_decides_and_the_run_goes_on(here):
    waiting = here.run("optimize", "optimize.toml", "--steps", "1", "--approve", "reviews", "--approve-wait", "0", "--out", "r")
    assert waiting.code == 4
    assert "waits for a decision in the annotation queue 'reviews'" in waiting.err
    assert "lg-textgrad resume r" in waiting.err
    still = here.run("resume", "r")
    assert still.code == 4
    while True:
        [*_, item] = here.server.queued("reviews")
        here.client.create_feedback(run_id=item["run_id"], session_id=item["project_id"], key="approve", score=1)
        done = here.run("resume", "r", "--json")
        if done.code == 0:
            break
        assert done.code == 4, done.err
    assert json.loads(done.out)["accepted"] == 1
    assert here.server.repeated == []


# What may be kept.


PRIVACY = """
import re

def mask(value):
    return re.sub("anna@[a-z.]+", "[email]", value) if isinstance(value, str) else value
"""


def test_nothing_that_is_masked_is_kept_of_traces_and_datasets(here):
    """A run that goes on reads the rows again, in the version that it began with."""
    address = "anna@example.com"
    (here.folder / "privacy.py").write_text(PRIVACY)
    dataset = desk_dataset(here.client)
    examples = list(here.client.list_examples(dataset_id=dataset.id))
    for example in examples:
        here.client.update_example(example.id, inputs={"message": f"{example.inputs['message']} says {address}"})
    [root] = serve_production(here.server, desk.build(), [f"Where is my parcel to Oslo asks {address}"], "prod")
    here.client.create_feedback(
        run_id=root["id"], trace_id=root["id"], session_id=root["session_id"], key="thumbs", score=0,
        comment=f"{PARCELS} {address}",
    )  # fmt: skip
    done = here.run("optimize", *GRAPH, "--dataset", "desk", "--traces", "prod", "--redact", "privacy:mask", "--out", "r", "--json")
    assert done.code == 0, done.err
    assert PARCELS in json.loads(done.out)["parameters"]["triage"]["after"]
    with Store("r", read_only=True) as store:
        trace = store.get_meta("traces")["traces"][0]
        kept = [store.get_meta("dataset"), trace, store.get_run(trace["run"], Example(trace["example"]["id"], {}))]
        assert "[email]" in str(kept[1])
        assert address not in str(kept)
    here.client.update_example(examples[0].id, inputs={"message": "changed"})
    paid = len(here.models.requests)
    again = here.run("resume", "r", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["parameters"] == json.loads(done.out)["parameters"]
    assert len(here.models.requests) == paid


# What makes no sense.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "nope"], "has no dataset 'nope'"),
        (["--dataset", "desk", "--dataset-splits", "50/60"], "make no sense"),
        (["--dataset", "desk", "--hub", "triage=My Prompt"], "'My Prompt' is no name of a prompt"),
        (["--dataset", "desk", "--traces", "nope"], "has no project 'nope'"),
        (["--dataset", "desk", "--traces", "prod", "--since", "soon"], "'soon' is no time"),
        (["--traces", "prod"], "'val' is missing"),
        (["--dataset", "desk", "--since", "7d"], "'since' would have no effect without 'traces'; give that too, with --traces,"),
        (["--dataset", "desk", "--approve-wait", "5"], "'approve_wait' would have no effect without 'approve'"),
        ([], "'train' is missing"),
    ],
)
def test_bad_options(here, arguments, words):
    desk_dataset(here.client)
    done = here.run("optimize", *GRAPH, *arguments, "--out", "r")
    assert (done.code, words in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    "arguments", [["--since", "soon"], ["--feedback", "<1"], ["--feedback-range", "stars"], ["--trace-limit", "0"]]
)
def test_bad_choice_of_traces_is_told_before_a_call_is_paid_for(here, arguments):
    desk_dataset(here.client)
    done = here.run("optimize", *GRAPH, "--dataset", "desk", "--traces", "prod", *arguments, "--discover", "--out", "r")
    assert (done.code, here.models.requests, Path("r").exists()) == (2, [], False), done.err


@pytest.mark.parametrize(("status", "code", "words"), [(404, 2, "has no dataset 'desk'"), (503, 1, "is out of order")])
def test_outage_where_langsmith_is_needed_is_no_bad_input(here, status, code, words):
    here.server.fault = Fault.answer(status)
    done = here.run("evaluate", "optimize.toml", "--test", "", "--dataset", "desk")
    assert (done.code, words in done.err) == (code, True), done.err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LANGSMITH_RUNS_ENDPOINTS", '{"http://127.0.0.1:1": "lsv2_pt_other_0123456789"}', "cannot provide both LANGSMITH_ENDPOINT"),
        ("LANGSMITH_ENDPOINT", "http://[bad", "Invalid IPv6 URL"),
    ],
)
def test_environment_that_langsmiths_client_refuses_is_bad_input(here, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    done = here.run("evaluate", "optimize.toml", "--test", "", "--dataset", "desk")
    assert (done.code, words in done.err, "Correct LANGSMITH_ENDPOINT" in done.err) == (2, True, True), done.err
    assert "lsv2_pt_other" not in done.err


# Silence.

NOISY = '''
import threading
from langsmith import traceable
from tests.desk import EVALUATORS, build
from tests.langsmith.judges import polite, share_polite

@traceable
def helper(text):
    return text

def by_hand(outputs):
    found = []
    thread = threading.Thread(target=lambda: found.append(helper(outputs["answer"])))
    thread.start()
    thread.join()
    return {"key": "by_hand", "score": bool(found)}

graph = build()
ALL = [*EVALUATORS, polite, by_hand]
'''


def test_without_the_option_nothing_is_sent_whatever_the_environment_says(server, tmp_path):
    """A process of its own, with everything in its environment that makes LangChain trace."""
    desk.project(tmp_path, evaluator=["noisy:ALL"], graph="noisy:graph", steps=1)
    (tmp_path / "noisy.py").write_text(NOISY)
    with OpenAIServer(Script()) as models:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300", "OPENAI_API_KEY": "sk-test-0123456789abcdef",
            "DESK_BASE_URL": models.base_url, "OPENAI_BASE_URL": models.base_url, "DESK_KEY": "k",
            "LANGSMITH_TRACING": "true", "LANGCHAIN_TRACING_V2": "true", "LANGSMITH_TRACING_V2": "true",
            "LANGSMITH_API_KEY": server.api_key, "LANGSMITH_ENDPOINT": server.url, "LANGSMITH_PROJECT": "leaks",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "lg_textgrad", "optimize", "optimize.toml", "--out", "r", "--json"],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"]["val"] > json.loads(done.stdout)["baseline"]["val"]
    assert server.requests == []


def test_with_the_option_nothing_but_the_report_is_sent(here):
    desk.project(here.folder, evaluator=["noisy:ALL"], graph="noisy:graph", steps=1)
    (here.folder / "noisy.py").write_text(NOISY)
    done = here.run("optimize", "optimize.toml", "--out", "r", "--langsmith")
    assert done.code == 0, done.err
    assert all(s["name"].startswith("r-") for s in here.server.sessions.values())
    assert {r["name"] for r in here.server.runs.values()} == {
        "LangGraph", "triage", "writer", "polish", "test-model", "critic", "rewriter", "judge",
    }  # fmt: skip
