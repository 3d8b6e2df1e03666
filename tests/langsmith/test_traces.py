"""Learning from production traces: chosen by feedback, rebuilt, gone over backwards, gated."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from langchain_core.tracers import LangChainTracer
from langsmith import Client

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError, DataError, LangSmithError
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.journal import Reporting
from lg_textgrad.langsmith.queries import Queries
from lg_textgrad.langsmith.reporting import Reporter
from lg_textgrad.langsmith.traces import (
    Choice,
    Traces,
    _filter,
    _parsed,
    keep_traces,
    kept_traces,
    need_traces,
    parse_ranges,
    parse_since,
    read_traces,
)
from lg_textgrad.optim import FromRuns, TextualGradientDescent
from lg_textgrad.store import Store
from lg_textgrad.trainer import Schedule, Trainer
from tests import desk
from tests.desk import BROKEN, ENDING, GREETING, PARCELS, Script, rows
from tests.servers.langsmith_server import LangSmithServer
from tests.servers.openai_server import OpenAIServer


def serve_production(server, graph, messages, project="desk-prod"):
    """Answer these messages as production does: the plain graph, traced by LangSmith's own tracer."""
    client = Client(server.url, api_key=server.api_key)
    try:
        for message in messages:
            config = {"callbacks": [LangChainTracer(project_name=project, client=client)]}
            tg._sync.run_sync(graph.graph.ainvoke({"message": message}, config))
    finally:
        client.flush()
        client.close()
    return [r for r in server.runs_of(project) if r["parent_run_id"] is None]


def step_of(server, root, name):
    [found] = [r for r in server.runs.values() if r["trace_id"] == root["id"] and r["name"] == name]
    return found


@pytest.fixture(scope="module")
def production():
    """Six traces of the desk, with what users and reviewers said of them."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        server = stack.enter_context(LangSmithServer(page=4))
        models = stack.enter_context(OpenAIServer(Script()))
        patch.setenv("DESK_BASE_URL", models.base_url)
        patch.setenv("DESK_KEY", "k")
        messages = [row["inputs"]["message"] for row in rows(6, 20)]
        roots = serve_production(server, desk.build(), messages)
        langsmith = stack.enter_context(LangSmith(server.url, server.api_key, patient=False))
        client, session = langsmith.client, roots[0]["session_id"]

        def told(root, key, score=None, run=None, **more):
            client.create_feedback(
                run_id=(run or root)["id"], trace_id=root["id"], session_id=session, key=key, score=score, **more
            )

        told(roots[0], "thumbs", 0, comment=PARCELS)
        told(roots[1], "thumbs", 0, comment=GREETING)
        told(roots[2], "thumbs", 1, comment="Nice.")
        told(roots[3], "stars", 2, comment="Too short.")
        told(roots[3], "quality", 3, feedback_config={"type": "continuous", "min": 1, "max": 5})
        told(roots[4], "thumbs", 0, run=step_of(server, roots[4], "triage"), comment=BROKEN, correction={"team": "repairs"})
        told(roots[4], "thumbs", 0, value="no")
        told(roots[0], "blame", 1.0, comment="ours, from yesterday", source_info={"gradient": "g1"})
        yield SimpleNamespace(server=server, models=models, langsmith=langsmith, client=client, roots=roots, messages=messages)


def read(production, feedback=("thumbs<1",), graph=None, **more):
    return read_traces(production.langsmith, Choice("desk-prod", feedback=feedback, **more), graph or desk.build())


def test_thumbs_down_gives_the_runs_with_the_users_words_as_the_loss(production):
    asked = len(production.models.requests)
    traces = read(production)
    assert len(production.models.requests) == asked
    assert [s.run.example.id for s in traces.scored] == [production.roots[n]["id"] for n in (4, 1, 0)]
    first = traces.scored[-1]
    assert (first.score, first.text) == (0, f"thumbs: {PARCELS}")
    assert first.run.inputs == {"message": production.messages[0]}
    assert [e.id for e in first.run.executions] == ["triage#0", "writer#0", "polish#0"]
    assert {e.id: set(e.prompts) for e in first.run.executions} == {
        "triage#0": {"triage"}, "writer#0": {"writer"}, "polish#0": {"polish"},
    }  # fmt: skip
    assert first.run.outputs["team"] == "payments"
    assert first.run.usage.calls == 3
    assert first.run.seconds > 0


def test_feedback_on_a_step_says_which_step_and_a_correction_is_the_reference(production):
    [told] = [s for s in read(production).scored if "Turin" in str(s.run.inputs) or s.run.example.outputs]
    assert told.run.example.outputs == {"team": "repairs"}
    assert f"About the step triage#0:\n{BROKEN}\nIt should have been: {{\"team\":\"repairs\"}}" in told.text
    assert "thumbs: no" in told.text


def test_reverse_pass_goes_over_traces_without_running_the_graph(production):
    graph = desk.build()
    traces = read(production, graph=graph)
    model = tg.models.OpenAI("test-model", base_url=production.models.base_url, api_key="k", max_retries=0)
    asked = len(production.models.chats)
    gradients = traces.loss.backward(tg.LLMCritic(model))
    new = production.models.chats[asked:]
    assert {desk.who(body)[0] for body in new} == {"critic"}
    assert PARCELS in [g.change for g in graph.parameters["triage"].grad]
    assert BROKEN in [g.change for g in graph.parameters["triage"].grad]
    assert GREETING in [g.change for g in graph.parameters["writer"].grad]
    assert {g.run_id for g in gradients} <= {s.run.id for s in traces.scored}


@pytest.mark.parametrize(
    ("feedback", "more", "expected"),
    [
        (["thumbs<1"], {"limit": 1}, [4]),
        (["thumbs"], {}, [4, 2, 1, 0]),
        (["thumbs>=1"], {}, [2]),
        (["thumbs=0"], {"where": 'gt(start_time, "2000-01-01")'}, [4, 1, 0]),
        (["stars<=2"], {"ranges": {"stars": (1, 5)}}, [3]),
        (["quality"], {"ranges": {"quality": (1, 5)}}, [3]),
        (["thumbs<1"], {"since": datetime(2999, 1, 1, tzinfo=UTC)}, []),
        (["thumbs<1"], {"until": datetime(2000, 1, 1, tzinfo=UTC)}, []),
        (["thumbs<1", "stars<5"], {}, []),
    ],
)  # fmt: skip
def test_traces_are_chosen_by_feedback_time_and_filter(production, feedback, more, expected):
    traces = read(production, feedback, **more)
    assert [s.run.example.id for s in traces.scored] == [production.roots[n]["id"] for n in expected]


def test_without_conditions_all_feedback_counts_and_what_has_none_is_left_out(production):
    traces = read(production, (), ranges={"stars": (1, 5), "quality": (1, 5)})
    assert len(traces.scored) == 5
    assert traces.skipped == {"no score": 1}
    [stars] = [s for s in traces.scored if s.run.example.id == production.roots[3]["id"]]
    assert {f.key: f.score for f in stars.feedback} == {"stars": 0.25, "quality": 0.5}
    assert stars.score == pytest.approx(0.375)
    assert all(f.key != "blame" for s in traces.scored for f in s.feedback)


def test_score_without_a_known_range_is_named(production):
    with pytest.raises(ConfigurationError, match="'stars' has the score 2, which is not between 0 and 1; .*stars=1..5"):
        read(production, ["stars"])


@pytest.mark.parametrize(
    ("key", "config", "lower", "expected"),
    [
        ("quality", {"type": "continuous", "min": 1, "max": 5}, True, 0.5),
        ("stars", {"type": "categorical", "categories": [{"value": n, "label": f"{n} stars"} for n in range(1, 6)]}, False, 0.25),
        # No range, but a direction: 1 is the worst of 0 to 1.
        ("harmful", {"type": "continuous"}, True, 0),
        ("harmful", {"type": "categorical", "categories": [{"value": 0, "label": "no"}, {"value": 1, "label": "yes"}]}, True, 0),
        ("harmful", {"type": "categorical", "categories": [{"value": n, "label": str(n)} for n in (1, 2, 3)]}, False, 0),
    ],
)  # fmt: skip
def test_range_and_direction_that_langsmith_knows_are_taken(production, key, config, lower, expected):
    root = production.roots[5]
    told = production.client.create_feedback(
        run_id=root["id"], trace_id=root["id"], session_id=root["session_id"], key="harmful", score=1
    )
    production.server.configs[key] = {
        "feedback_key": key, "feedback_config": config,
        "tenant_id": "00000000-0000-0000-0000-0000000000aa", "modified_at": "2030-01-01T00:00:00Z",
        "is_lower_score_better": lower,
    }  # fmt: skip
    try:
        [scored] = read(production, [key]).scored
    finally:
        del production.server.configs[key], production.server.feedback[str(told.id)]
    assert scored.score == expected


def test_traces_of_an_annotation_queue(production):
    queue = production.client.create_annotation_queue(name="look-at-these")
    queries = Queries(production.langsmith)
    for n in (0, 2):
        root = production.roots[n]
        queries.enqueue(str(queue.id), root["id"], root["session_id"], datetime.fromisoformat(root["start_time"]))
    traces = read(production, (), queue="look-at-these")
    assert {s.run.example.id for s in traces.scored} == {production.roots[n]["id"] for n in (0, 2)}
    production.client.create_annotation_queue(name="empty")
    assert read(production, (), queue="empty").scored == ()
    with pytest.raises(DataError, match="no annotation queue 'nope'"):
        read(production, (), queue="nope")


def test_traces_of_other_prompts_are_left_out_and_say_so(production):
    other = desk.build(prompts={name: f"Another {name}.\n" for name in desk.START_PROMPTS})
    traces = read(production, graph=other)
    assert (traces.scored, traces.skipped) == ((), {"ran under other prompts": 3})
    with pytest.raises(DataError, match=r"left out: 3 ran under other prompts.*pull those with --hub"):
        need_traces(traces, Choice("desk-prod"))
    with pytest.raises(DataError, match="none fits the time, filter and feedback"):
        need_traces(Traces((), {}), Choice("desk-prod"))


def test_failed_trace_scores_nothing_and_says_why(production):
    graph = desk.build()
    production.models.handler.node = lambda name, *_: None if name != "writer" else 1 / 0
    try:
        with pytest.raises(Exception, match="500"):
            serve_production(production.server, graph, ["Where is my parcel to Oslo"], "broken-prod")
    finally:
        production.models.handler.node = lambda *_: None
        production.models.errors.clear()
    traces = read_traces(production.langsmith, Choice("broken-prod", where='eq(status, "error")'), graph)
    [told] = traces.scored
    assert (told.score, told.run.failed_in, told.run.outputs) == (0, "writer#0", None)
    assert told.text.startswith("error: The run failed: OpenAI") or "InternalServerError" in told.text
    assert "Error code: 500" in told.text


@pytest.mark.parametrize(("new", "old"), [(True, True), (True, False), (False, True)])
def test_new_and_deprecated_endpoints_give_the_same(production, new, old):
    expected = [s.run for s in read(production).scored]
    production.server.new, production.server.old = new, old
    production.server.requests.clear()
    try:
        with LangSmith(production.server.url, production.server.api_key, patient=False) as langsmith:
            found = read_traces(langsmith, Choice("desk-prod", feedback=["thumbs<1"]), desk.build())
            queue = production.client.create_annotation_queue(name=f"queue-{new}-{old}")
            queries = Queries(langsmith)
            for root in production.roots:
                start = datetime.fromisoformat(root["start_time"])
                queries.enqueue(str(queue.id), root["id"], root["session_id"], start)
            assert len(queries.queued(f"queue-{new}-{old}")) == 6
    finally:
        production.server.new = production.server.old = True
    assert [s.run for s in found.scored] == expected
    asked = {r.path for r in production.server.requests if r.path.endswith("/runs/query")}
    assert asked == ({"/api/v2/runs/query"} if new else {"/api/v2/runs/query", "/runs/query"})


def test_our_query_is_the_one_that_the_sdk_sends(production):
    """The SDK's own method, in its own loop, finds what ours finds."""
    from langsmith import AsyncClient

    project = production.roots[0]["session_id"]
    since = datetime(2020, 1, 1, tzinfo=UTC)

    async def by_sdk():
        async with AsyncClient(production.server.url, api_key=production.server.api_key) as client:
            found = [
                run.id async for run in client.runs.query(
                    project_ids=[project], min_start_time=since, is_root=True, selects=["ID", "NAME"], page_size=4,
                )
            ]  # fmt: skip
            await client.runs._client.close()
            return found

    ours = Queries(production.langsmith).runs(project, root=True)
    assert tg._sync.run_sync(by_sdk()) == [run["id"] for run in ours]


def test_filter_that_langsmith_does_not_understand(production):
    production.server.errors.clear()
    with pytest.raises(LangSmithError, match="refused a request"):
        read(production, where="nonsense(")
    assert "no filter" in str(production.server.errors.pop())
    production.server.errors.clear()
    with pytest.raises(DataError, match="no project 'nope'"):
        read_traces(production.langsmith, Choice("nope"), desk.build())


@pytest.mark.parametrize("text", ["<1", "thumbs<", "a<b", ""])
def test_condition_that_is_none(production, text):
    with pytest.raises(ConfigurationError, match="is no condition on feedback"):
        read(production, [text])


def test_score_of_a_condition_is_asked_for_to_the_last_digit():
    assert _filter(*_parsed("tokens<1234567")).endswith("lt(feedback_score, 1234567))")
    assert _filter(*_parsed("share>=0.12345678")).endswith("gte(feedback_score, 0.12345678))")


def test_limit_of_no_traces_is_refused(production):
    with pytest.raises(ConfigurationError, match="'trace_limit' must be at least 1, not 0"):
        read(production, limit=0)


def test_times_and_ranges():
    now = datetime(2026, 1, 31, 6, tzinfo=UTC)
    assert parse_since("24h", now) == now - timedelta(days=1)
    assert parse_since(" 2w", now) == now - timedelta(weeks=2)
    assert parse_since("90m", now) == now - timedelta(minutes=90)
    assert parse_since("2026-01-30", now) == datetime(2026, 1, 30, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="'yesterday' is no time"):
        parse_since("yesterday", now)
    assert parse_ranges(["stars=1..5", "cost = 10..0.5"]) == {"stars": (1, 5), "cost": (10, 0.5)}
    for text in ("stars", "stars=1", "stars=1..1", "=1..2"):
        with pytest.raises(ConfigurationError, match="is no range of scores"):
            parse_ranges([text])


# Training.


def train(production, store, traces, graph, *, screen=(), on_event=None, reporter=None):
    model = tg.models.OpenAI("test-model", base_url=production.models.base_url, api_key="k", max_retries=0)
    seen = []

    def watch(kind, data):
        seen.append((kind, data))
        if reporter is not None:
            reporter(kind, data)

    trainer = Trainer(
        graph, tg.Objective(desk.EVALUATORS), critic=tg.LLMCritic(model),
        optimizer=FromRuns(TextualGradientDescent(model), traces.scored, steps=2, batch_size=3, screen=screen),
        schedule=Schedule(steps=2, batch_size=3), store=store, on_event=on_event or watch,
    )  # fmt: skip
    result = trainer.fit([s.run.example for s in traces.scored], [tg.Example(**r) for r in rows(6, 3)])
    return result, seen


@pytest.fixture(scope="module")
def learned(production, tmp_path_factory):
    """A training on the traces, reported to LangSmith."""
    folder, graph = tmp_path_factory.mktemp("learned") / "run", desk.build()
    traces = read(production, graph=graph)
    asked, before = len(production.models.chats), set(production.server.feedback)
    with Store(folder) as store, LangSmith(production.server.url, production.server.api_key) as langsmith:
        keep_traces(store, traces)
        reporting = Reporting("nightly", tg.Objective(desk.EVALUATORS).fingerprint)
        reporter = Reporter(store, reporting, langsmith)
        result, seen = train(production, store, traces, graph, reporter=reporter)
        delivery = reporter.close()
        gradients = {g.id: g for g in store.gradients().values()}
    new = set(production.server.feedback) - before
    yield SimpleNamespace(
        folder=folder, traces=traces, result=result, seen=seen, delivery=delivery, gradients=gradients,
        chats=production.models.chats[asked:], told=[production.server.feedback[i] for i in new],
    )  # fmt: skip
    for identifier in new:
        del production.server.feedback[identifier]


def test_production_feedback_becomes_a_prompt_that_is_gated_on_examples(production, learned):
    result = learned.result
    assert result.best.val > result.baseline.val
    for line in (PARCELS, BROKEN, GREETING):
        assert any(line in text for text in result.after.values())
    assert not any(ENDING in text for text in result.after.values())  # nobody complained of that
    rollouts = [desk.texts_of(b)[1] for b in learned.chats if desk.who(b) == ("rollout", "triage")]
    assert not set(rollouts) & set(production.messages)  # no trace was run again
    assert {"gradients", "proposals", "decision"} <= {kind for kind, _ in learned.seen}


def test_gradients_are_feedback_on_the_production_steps_that_they_blame(production, learned):
    assert learned.delivery.left == 0
    told = [f for f in learned.told if f["key"] == "blame"]
    assert {f["feedback_source"]["metadata"]["gradient"] for f in told} == set(learned.gradients)
    for feedback in told:
        gradient = learned.gradients[feedback["feedback_source"]["metadata"]["gradient"]]
        run = production.server.runs[feedback["run_id"]]
        assert run["name"] == gradient.execution.split("#")[0]
        assert run["trace_id"] in {r["id"] for r in production.roots}
        assert feedback["extend_trace_retention"] is False  # production's data is not kept for longer


def test_run_goes_on_with_the_traces_that_it_began_with(production, learned):
    graph = desk.build()
    asked, paid = len(production.server.requests), len(production.models.requests)
    with Store(learned.folder) as store:
        kept = kept_traces(store, graph)
        assert [(s.run.id, s.score, s.text) for s in kept.scored] == [
            (s.run.id, s.score, s.text) for s in learned.traces.scored
        ]
        assert [s.run.executions for s in kept.scored] == [s.run.executions for s in learned.traces.scored]
        assert kept.places == learned.traces.places
        again, _ = train(production, store, kept, graph)
    with Store() as store:
        assert kept_traces(store, graph) is None
    assert (again.after, again.best) == (learned.result.after, learned.result.best)
    assert len(production.server.requests) == asked
    assert len(production.models.requests) == paid


def test_proposals_are_tried_on_training_examples_where_there_are_any(production):
    graph = desk.build()
    traces = read(production, graph=graph)
    with Store() as store:
        result, _ = train(production, store, traces, graph, screen=[tg.Example(**r) for r in rows(3, 40)])
        tried = store.decisions()
    assert all(d["stage"] == "val" for d in tried)
    assert result.best.val > result.baseline.val


@pytest.mark.parametrize(
    ("optimizer", "scored", "words"),
    [(tg.optim.FewShot(), "some", "makes nothing of gradients"), (None, (), "no recorded runs to learn from")],
)
def test_what_cannot_learn_from_recorded_runs(production, optimizer, scored, words):
    model = tg.models.OpenAI("test-model", base_url=production.models.base_url, api_key="k")
    with pytest.raises(ConfigurationError, match=words):
        FromRuns(optimizer or TextualGradientDescent(model), scored and read(production).scored)


def test_other_traces_are_another_configuration(production):
    model = tg.models.OpenAI("test-model", base_url=production.models.base_url, api_key="k")
    traces = read(production)
    told = [
        json.dumps(FromRuns(TextualGradientDescent(model), scored).fingerprint, sort_keys=True)
        for scored in (traces.scored, traces.scored[:1], traces.scored)
    ]
    assert told[0] == told[2] != told[1]
