"""Scorings become experiments, gradients feedback on the steps that they blame; outages cost nothing."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

import lg_textgrad as tg
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.datasets import divide, read_dataset
from lg_textgrad.langsmith.journal import Journal, Reporting
from lg_textgrad.langsmith.outbox import Outbox
from lg_textgrad.langsmith.reporting import Reporter
from lg_textgrad.store import Store
from lg_textgrad.trainer import Schedule, Trainer
from tests import desk
from tests.desk import ENDING, PARCELS, Script
from tests.langsmith.parts import REFERENCE, desk_dataset
from tests.servers.langsmith_server import Fault, LangSmithServer
from tests.servers.openai_server import OpenAIServer

SECRET = "sk-proj-never-to-be-sent-0123456789"


@pytest.fixture
def models(monkeypatch):
    with OpenAIServer(Script()) as server:
        monkeypatch.setenv("DESK_BASE_URL", server.base_url)
        monkeypatch.setenv("DESK_KEY", SECRET)
        yield server


def train(models, langsmith, store, *, dataset=True, seconds=30.0, pause=0.01, during=None, **options):
    """Train the desk and report it. Returns the result, the reporter and what it has sent."""
    found = read_dataset(langsmith, "desk") if dataset is True else dataset
    if found is None:
        splits = {"train": desk.rows(3), "val": desk.rows(3, 3), "test": desk.rows(2, 6)}
    else:
        splits = divide(found)
    model = tg.models.OpenAI("test-model", base_url=models.base_url, api_key=SECRET, max_retries=0)
    objective = tg.Objective(desk.EVALUATORS, **options)
    reporting = Reporting(
        "nightly", objective.fingerprint,
        found.named() if found else None, ("train", "val", "test") if found else (),
    )  # fmt: skip
    reporter = Reporter(store, reporting, langsmith, pause=pause)

    def on_event(kind, data):
        reporter(kind, data)
        if during is not None:
            during(kind, data)

    trainer = Trainer(
        desk.build(), objective, critic=tg.LLMCritic(model),
        optimizer=tg.optim.TextualGradientDescent(model), schedule=Schedule(steps=2, batch_size=3),
        store=store, on_event=on_event,
    )  # fmt: skip
    try:
        result = trainer.fit(splits["train"], splits["val"], splits["test"])
    finally:
        delivery = reporter.close(seconds)
    return SimpleNamespace(result=result, reporter=reporter, delivery=delivery, splits=splits)


@contextmanager
def surroundings():
    """A LangSmith with the desk's rows, models, and the connections to both."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        server, models = stack.enter_context(LangSmithServer()), stack.enter_context(OpenAIServer(Script()))
        patch.setenv("DESK_BASE_URL", models.base_url)
        patch.setenv("DESK_KEY", SECRET)
        langsmith = stack.enter_context(LangSmith(server.url, server.api_key, patient=False))
        yield SimpleNamespace(server=server, models=models, langsmith=langsmith, client=langsmith.client)


def all_polite(outputs):
    return {"key": "all_polite", "score": 100 * sum("Dear" in o["answer"] for o in outputs) / len(outputs)}


@pytest.fixture(scope="module")
def reported():
    """One training that several tests look at: what it left on the server and in the store."""
    with surroundings() as all_, Store() as store:
        all_.dataset = desk_dataset(all_.client)
        done = train(all_.models, all_.langsmith, store, summary=[all_polite])
        yield SimpleNamespace(**vars(all_), **vars(done), store=store, left=everything(all_.server))


def named(server, split, candidate):
    [found] = [
        s for s in server.sessions.values()
        if f"-{split}-{candidate[:8]}" in s["name"] and s["name"].startswith("nightly-")
    ]  # fmt: skip
    return found


def everything(server):
    """What is on the server, without the ids that hang on the run directory."""
    return {
        "sessions": sorted(s["name"].split("-", 2)[2] for s in server.sessions.values()),
        "runs": sorted(
            (r["name"], json.dumps([r["inputs"], r["outputs"]], sort_keys=True)) for r in server.runs.values()
        ),
        "feedback": sorted(
            (f["key"], f["score"], f["comment"] or "", str(f["value"])) for f in server.feedback.values()
        ),
    }  # fmt: skip


def test_each_scoring_is_an_experiment_over_the_dataset(reported):
    done, server, client = reported, reported.server, reported.client
    made, candidates = reported.dataset, reported.store.candidates()
    assert (done.delivery.left, done.delivery.refused, done.delivery.error) == (0, [], None)
    first, best = done.result.lineage[0], done.result.lineage[-1]
    tried = {d for d in candidates if d != first}
    for split, candidate, count in (("val", first, 3), ("val", best, 3), ("test", first, 2), ("test", best, 2)):
        session = named(server, split, candidate)
        project = client.read_project(project_id=session["id"], include_stats=True)
        assert (str(project.reference_dataset_id), project.end_time is not None) == (str(made.id), True)
        assert project.metadata["candidate"] == candidate
        assert project.metadata["parameters"] == candidates[candidate]["texts"]
        assert project.metadata["step"] == candidates[candidate]["step"]
        assert project.metadata["parent"] == candidates[candidate]["parent"]
        assert project.metadata["dataset_splits"] == [split]
        roots = [r for r in server.runs_of(session["name"]) if r["parent_run_id"] is None]
        assert len(roots) == count
        examples = {e.id: e for e in done.splits[split]}
        for root in roots:
            example = examples.pop(root["reference_example_id"])
            assert root["inputs"] == example.inputs
            told = {f["key"]: f for f in server.feedback_on(root["id"])}
            assert set(told) == {"team", "greeting", "ending", "objective"}
            mean = sum(told[k]["score"] for k in ("team", "greeting", "ending")) / 3
            assert told["objective"]["score"] == pytest.approx(mean, abs=1e-4)
        assert examples == {}
    best_val = server._shown_session(named(server, "val", best)["id"])
    assert best_val["feedback_stats"]["objective"]["avg"] == done.result.best.val == 1
    assert named(server, "val", best)["extra"]["metadata"]["parent_experiment"] == named(
        server, "val", candidates[best]["parent"]
    )["name"]
    on_val = {s["name"].rsplit("-", 1)[1] for s in server.sessions.values() if "-val-" in s["name"]}
    assert on_val <= {c[:8] for c in {first, *tried}}
    assert server.repeated == []


def test_executions_and_model_calls_are_child_runs(reported):
    server = reported.server
    session = named(server, "val", reported.result.lineage[-1])
    runs = server.runs_of(session["name"])
    root = next(r for r in runs if r["parent_run_id"] is None and r["outputs"]["team"] == "delivery")
    children = [r for r in runs if r["parent_run_id"] == root["id"]]
    assert [(c["name"], c["run_type"]) for c in children] == [("triage", "chain"), ("writer", "chain"), ("polish", "chain")]
    triage = children[0]
    assert triage["outputs"] == {"team": "delivery"}
    assert PARCELS in triage["extra"]["metadata"]["prompts"]["triage"]
    assert (triage["extra"]["metadata"]["langgraph_node"], triage["extra"]["metadata"]["langgraph_step"]) == ("triage", 1)
    [call] = [r for r in runs if r["parent_run_id"] == triage["id"]]
    assert call["run_type"] == "llm"
    assert [m["role"] for m in call["inputs"]["messages"]] == ["system", "user"]
    assert (call["outputs"]["role"], call["outputs"]["content"]) == ("assistant", "delivery")
    assert call["outputs"]["usage_metadata"]["total_tokens"] > 0


def test_gradients_are_feedback_on_the_very_steps_that_they_blame(reported):
    server, gradients = reported.server, list(reported.store.gradients().values())
    told = [f for f in server.feedback.values() if f["key"] == "blame"]
    assert len(told) == len(gradients) > 0
    by_id = {f["feedback_source"]["metadata"]["gradient"]: f for f in told}
    for gradient in gradients:
        blame = by_id[gradient.id]
        blamed = server.runs[blame["run_id"]]
        assert blamed["extra"]["metadata"]["execution"] == gradient.execution
        assert server.runs[blamed["trace_id"]]["extra"]["metadata"]["lg_textgrad_run"] == gradient.run_id
        assert (blame["value"], blame["score"]) == (gradient.parameter, gradient.weight)
        assert gradient.change in (blame["comment"] or gradient.change)
    assert any(ENDING in (f["comment"] or "") for f in told)


def test_optimizers_own_calls_are_in_a_project_of_their_own(reported):
    server, paid = reported.server, reported.store.paid()
    project = reported.reporter.outbox.optimizer_project
    runs = server.runs_of(project)
    assert {r["name"] for r in runs} == {"critic", "rewriter"}
    assert len(runs) == paid["critic"].calls + paid["rewriter"].calls
    assert all(r["run_type"] == "llm" and r["parent_run_id"] is None for r in runs)
    assert all(r["outputs"]["content"] for r in runs)
    assert server.project(project)["reference_dataset_id"] is None


def test_calls_that_another_run_paid_for_are_not_told_again(server, langsmith):
    with Store() as store:
        asked = {"model": {"model": "m"}, "messages": [{"role": "user", "content": "?"}]}
        for key, origin in (("own", None), ("taken", "runs/other")):
            store.put_result(key, "critic", asked, {"text": key, "data": None}, tg.Usage(1), origin=origin)
        reporter = Reporter(store, Reporting("nightly", "o"), langsmith)
        reporter("start", {})
        assert reporter.close().left == 0
    assert [r["outputs"]["content"] for r in server.runs.values()] == ["own"]


def test_judges_model_calls_are_traced_too(client, server, langsmith, models):
    desk_dataset(client)

    async def judged(outputs):
        reply = await desk.ask(tg.Parameter("judge", "You are the desk's polisher."), outputs["answer"])
        return {"key": "judged", "score": 0.5, "comment": reply}

    with Store() as store:
        found = read_dataset(langsmith, "desk")
        objective = tg.Objective([judged, *desk.EVALUATORS])
        reporter = Reporter(store, Reporting("nightly", objective.fingerprint, found.named(), ("val",)), langsmith)
        reporter("start", {})
        with tg.use_ledger(tg.Ledger(store)):
            runs = desk.build().record(divide(found)["val"])
            for scored in objective(runs).scored:
                reporter("run", {"purpose": "val", "scored": scored})
        assert reporter.close().left == 0
        told = server.runs_of(reporter.outbox.optimizer_project)
    assert {r["name"] for r in told} == {"judge"}
    assert all("You are the desk's polisher." in json.dumps(r["inputs"]) for r in told)
    assert [f["comment"] for f in server.feedback.values() if f["key"] == "judged"][0]


def test_files_that_are_no_dataset_are_reported_as_plain_projects(server, langsmith, models):
    with Store() as store:
        objective = tg.Objective(desk.EVALUATORS)
        reporter = Reporter(store, Reporting("nightly", objective.fingerprint), langsmith)
        reporter("start", {})
        with tg.use_ledger(tg.Ledger(store)):
            [scored] = objective(desk.build().record(desk.rows(1))).scored
        reporter("run", {"purpose": "val", "scored": scored})
        assert reporter.close().left == 0
    session = named(server, "val", scored.run.candidate)
    assert session["reference_dataset_id"] is None
    assert len(server.runs_of(session["name"])) == 7
    assert all(r["reference_example_id"] is None for r in server.runs_of(session["name"]))


def test_feedback_that_an_older_version_kept_is_found_and_sent(server, langsmith, models):
    with Store() as store:
        objective = tg.Objective(desk.EVALUATORS)
        reporter = Reporter(store, Reporting("nightly", objective.fingerprint), langsmith)
        reporter("start", {})
        with tg.use_ledger(tg.Ledger()):
            [scored] = objective(desk.build().record(desk.rows(1))).scored
        store.put_run(scored.run)
        store.put_feedback(scored.run.id, objective.fingerprint, scored.score, scored.feedback)
        reporter("run", {"purpose": "val", "scored": scored})
        assert reporter.close().left == 0
    assert "team" in {f["key"] for f in server.feedback.values()}


def test_summary_evaluators_are_feedback_on_the_experiment(reported):
    server = reported.server
    for candidate, expected in ((reported.result.lineage[0], 0), (reported.result.lineage[-1], 100)):
        session = named(server, "val", candidate)
        [told] = [f for f in server.feedback.values() if f["session_id"] == session["id"] and f["run_id"] is None]
        assert (told["key"], told["score"]) == ("all_polite", expected)


def test_nothing_secret_is_in_any_body(client, server, langsmith, models, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "hunter2-hunter2-hunter2")
    monkeypatch.setenv("OTHER_API_KEY", SECRET)
    forgotten = "ghp_0123456789abcdefghij"  # prompts are stored as they are, but not sent so
    monkeypatch.setitem(desk.START_PROMPTS, "writer", f"{desk.START_PROMPTS['writer']}\nNever tell {forgotten}.")
    made = client.create_dataset("desk")
    leaky = [
        {"inputs": {"message": f"{row['inputs']['message']} key {SECRET} and hunter2-hunter2-hunter2 lsv2_pt_abcdefgh"},
         REFERENCE: row["outputs"], "split": split}
        for split, row in zip(("train", "train", "val", "val", "test"), desk.rows(5))
    ]  # fmt: skip
    client.create_examples(dataset_id=made.id, examples=leaky)
    server.requests.clear()
    with Store() as store:
        done = train(models, langsmith, store)
    assert done.delivery.left == 0
    assert len(server.runs) > 30
    for request in server.requests:
        for secret in (SECRET, "hunter2", server.api_key, "lsv2_pt_abcdefgh", forgotten):
            assert secret.encode() not in request.raw, request


# Outages.


def counted(fault, every=3):
    """The fault for every third request, whatever it is."""
    seen = iter(range(10**9))
    return lambda request: fault if next(seen) % every == 0 else None


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A training for which LangSmith was down from the start to the end."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    with surroundings() as all_:
        desk_dataset(all_.client)

        def during(kind, data):
            if kind == "start":
                all_.server.fault = Fault.down()

        with Store(folder) as store:
            done = train(all_.models, all_.langsmith, store, during=during, seconds=0, summary=[all_polite])
        yield SimpleNamespace(**vars(all_), **vars(done), folder=folder)


def test_server_that_is_down_costs_nothing_but_the_upload(kept, reported):
    assert kept.delivery.left > 20
    assert "does not answer" in str(kept.delivery.error)
    assert kept.server.runs == {}
    assert kept.result.after == reported.result.after
    assert kept.result.spent.usage.calls == reported.result.spent.usage.calls


FAULTS = {
    "down": Fault.down(), "lost": Fault.lost(), "429": Fault.answer(429), "500": Fault.answer(500),
    "503": Fault.answer(503), "slow": Fault.slow(0.005), "none": None,
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_upload_is_made_up_for_from_the_store_and_everything_is_there_once(
    client, server, langsmith, kept, reported, tmp_path, name
):
    """In another process, at another time, whatever fails now and then."""
    desk_dataset(client)
    shutil.copytree(kept.folder, tmp_path / "run")
    server.fault = counted(FAULTS[name])
    with Store(tmp_path / "run") as store:
        for _ in range(100):
            delivery = Outbox(store, Journal(store), langsmith).deliver()
            if not delivery.left:
                break
        assert (delivery.left, delivery.refused, delivery.error) == (0, [], None)
        asked = len(server.requests)
        assert Outbox(store, Journal(store), langsmith).deliver().sent == 0
    assert len(server.requests) == asked
    assert everything(server) == reported.left
    if name != "lost":
        assert server.repeated == []


def test_server_that_fails_in_every_way_changes_nothing(client, server, langsmith, models, reported):
    desk_dataset(client)
    seen, faults = iter(range(10**9)), [f for f in FAULTS.values() if f]

    def fail(request):
        number = next(seen)
        return faults[number // 2 % len(faults)] if number % 2 else None

    def during(kind, data):
        if kind == "start":
            server.fault = fail

    with Store() as store:
        done = train(models, langsmith, store, during=during, pause=0.001, summary=[all_polite])
    assert done.delivery.left == 0, done.delivery
    assert done.result.after == reported.result.after
    assert everything(server) == reported.left


def test_run_that_was_killed_half_way_sends_the_rest_and_nothing_twice(
    client, server, langsmith, models, reported, tmp_path
):
    desk_dataset(client)

    class Killed(Exception):
        pass

    def die(kind, data):
        if kind == "gradients" and data["step"] == 1:
            raise Killed

    with Store(tmp_path / "run") as store, pytest.raises(Killed):
        train(models, langsmith, store, during=die, summary=[all_polite])
    half = len(server.runs)
    assert 0 < half
    with Store(tmp_path / "run") as store:
        done = train(models, langsmith, store, summary=[all_polite])
        assert done.delivery.left == 0
    assert len(server.runs) > half
    assert everything(server) == reported.left
    assert server.repeated == []


def test_run_goes_on_while_langsmith_is_asked(client, server, langsmith, models):
    """The first upload is held back until the training is over."""
    desk_dataset(client)
    over = threading.Event()

    def hold(request):
        if request.method == "POST":
            # The server's own loop stands still here, as one that never answers would.
            assert over.wait(60)
        return None

    def during(kind, data):
        if kind == "start":
            server.fault = hold
        if kind == "end":
            over.set()

    with Store() as store:
        done = train(models, langsmith, store, during=during)
    assert done.delivery.left == 0


def test_what_langsmith_refuses_is_told_and_does_not_hold_up_the_rest(client, server, langsmith, kept, tmp_path):
    desk_dataset(client)
    shutil.copytree(kept.folder, tmp_path / "run")
    with Store(tmp_path / "run") as store:
        server.fault = lambda request: Fault.answer(422) if str(request) == "POST /feedback" else None
        delivery = Outbox(store, Journal(store), langsmith).deliver()
        assert delivery.left > 0
        assert delivery.error is None
        assert len(delivery.refused) >= 8
        assert "refused a request" in delivery.refused[0]
        assert len([r for r in server.runs.values() if r["reference_example_id"]]) >= 10
        server.fault = None
        again = Outbox(store, Journal(store), langsmith).deliver()
    assert (again.left, again.refused) == (0, [])
    assert server.repeated == []


def test_refused_key_is_told_in_the_end(server, models):
    with LangSmith(server.url, "lsv2_pt_wrong_0123456789", patient=False) as langsmith, Store() as store:
        objective = tg.Objective(desk.EVALUATORS)
        reporter = Reporter(store, Reporting("nightly", objective.fingerprint), langsmith, pause=0.001)
        reporter("start", {})
        with tg.use_ledger(tg.Ledger(store)):
            [scored] = objective(desk.build().record(desk.rows(1))).scored
        reporter("run", {"purpose": "val", "scored": scored})
        delivery = reporter.close()
    assert "refused the API key" in str(delivery.error)
    assert delivery.left == 1
