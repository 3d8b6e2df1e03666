"""Runs that are made elsewhere go through the ledger at home; without Ray, over a line of bytes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

import lg_textgrad as tg
from lg_textgrad._hashing import digest
from lg_textgrad._sync import run_sync
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.budget import Account
from lg_textgrad.errors import (
    BudgetExceededError,
    ConfigurationError,
    ExecutorError,
    GraphError,
    ModelAuthenticationError,
    ModelDownError,
)
from lg_textgrad.executors import make_executor
from lg_textgrad.executors.distant import Home
from lg_textgrad.executors.home import Line, WorkerLostError
from lg_textgrad.executors.luggage import pack, unpack
from lg_textgrad.executors.wire import (
    KEEP,
    Ask,
    Begin,
    Cancel,
    Failed,
    Go,
    Gone,
    Refused,
    packed,
    unpacked,
)
from tests.executors import far_app
from tests.executors.loopback import Loopback
from tests.parts import QUICK
from tests.servers.openai_server import Fault, OpenAIServer


@pytest.fixture
def server(monkeypatch, tmp_path):
    with OpenAIServer(far_app.play) as running:
        monkeypatch.setenv("FAR_URL", running.base_url)
        monkeypatch.setenv("FAR_LOG", str(tmp_path / "log"))
        (tmp_path / "log").touch()
        yield running
        run_sync(far_app.aclose())


@pytest.fixture
def graph():
    return far_app.build()


def record(graph, rows, ledger, **options):
    async def run():
        try:
            with tg.use_ledger(ledger):
                return await graph.arecord(rows, **options)
        finally:
            await ledger.aclose()

    # Home is never in the loop of its own worker.
    return run_sync(run()) if graph.executor is None else asyncio.run(run())


def asked(server):
    return Counter(json.dumps(body, sort_keys=True) for body in server.chats)


def test_runs_traces_scores_and_store_are_those_of_a_run_in_process(server, graph, tmp_path):
    rows, objective = far_app.rows(5), tg.Objective([far_app.long_answers])
    prompts = {"plan": "You plan well.", "tone": "Be brief."}
    with tg.Store(tmp_path / "here") as here, tg.Store(tmp_path / "there") as there:
        near = record(graph, rows, tg.Ledger(here), prompts=prompts)
        at_home = asked(server)
        server.requests.clear()
        with Loopback(graph, far_app.SPEC):
            far = record(graph, rows, tg.Ledger(there), prompts=prompts)
        assert asked(server) == at_home
        assert [far_app.told(run) for run in far] == [far_app.told(run) for run in near]
        assert [run.usage.calls for run in far] == [4] * 5 == [run.usage.calls for run in near]
        assert [tg.Trace.of(run).edges for run in far] == [tg.Trace.of(run).edges for run in near]
        assert [type(run.outputs["messages"][0]).__name__ for run in far] == ["AIMessage"] * 5
        assert objective(far).score == objective(near).score > 0
        assert far_app.kept(there) == far_app.kept(here)
        assert len(far_app.kept(here)) == 5 * 5
        assert {r.id for r in far} == {r.id for r in near}
        assert all(there.get_run(r.id, r.example) is not None for r in far)
        assert "You plan well." in far[0].executions[0].prompts["plan"]


def test_what_is_known_at_home_is_neither_asked_nor_called_again(server, graph, tmp_path):
    rows = far_app.rows(3)
    with tg.Store(tmp_path / "run") as store, Loopback(graph, far_app.SPEC):
        record(graph, rows, tg.Ledger(store))
        first = len(server.chats)
        record(graph, rows, tg.Ledger(store), prompts={"answer": "You reply."})
    assert first == 12
    assert len(server.chats) == first + 3  # the one node whose prompt changed
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["Parcels", "Stoves", "Tents"]


def test_calls_of_a_worker_are_reserved_at_home_before_they_start(server, graph):
    account = Account(tg.Budget(calls=7))
    with Loopback(graph, far_app.SPEC), pytest.raises(BudgetExceededError) as reached:
        record(graph, far_app.rows(4), tg.Ledger(account=account, max_concurrency=4))
    assert reached.value.limit == "calls"
    assert len(server.chats) == account.spent.calls == 7


async def test_question_of_a_run_that_home_has_left_is_refused_whenever_it_comes():
    told = []
    line = Line(told.append)
    scope = BoundaryScope(tg.Ledger())
    # A node that asks in a sync call stops its worker's loop until it is answered.
    asks = [Ask(0, number, KEEP, "k", "", {}) for number in range(2)]
    visit = asyncio.create_task(line.arun(tg.Example("e", {}), {}, scope, {}))
    await asyncio.sleep(0)
    visit.cancel()
    line.hear(asks[0])  # on its way when the run was left
    with pytest.raises(asyncio.CancelledError):
        await visit
    line.hear(asks[1])
    await asyncio.sleep(0.01)
    assert [type(m) for m in told] == [Begin, Cancel, Refused, Refused]
    assert {m.call for m in told[2:]} == {0, 1}
    with pytest.raises(ExecutorError, match="Nobody waits for the run any more"):
        raise unpacked(told[-1].error)


@pytest.mark.parametrize("begun", [False, True], ids=["refused", "refused after an attempt"])
def test_go_behind_a_refusal_is_told_that_nobody_makes_it_also_by_a_sync_call(begun):
    told = []

    def tell(message):
        told.append(message)
        if isinstance(message, Ask):
            if begun:
                home.hear(Go(message.call, 0))
            else:
                after(message.call)
        elif isinstance(message, Failed):
            after(message.call)

    def after(call):
        home.hear(Refused(call, packed(ValueError("no"))))
        home.hear(Go(call, 1))

    def fails():
        raise ValueError("not made")

    home = Home(tell)
    with pytest.raises(ExecutorError, match="ValueError: no"):
        home.ask(lambda number: Ask(0, number, KEEP, "k", "", {}, None, False, False), fails)
    assert [type(m) for m in told] == [Ask, *([Failed] if begun else []), Gone]
    assert told[-1] == Gone(told[0].call, 1)


@pytest.mark.parametrize("limit", [1, 2])
def test_limit_holds_and_a_sync_call_in_a_coroutine_does_not_wait_for_ever(server, graph, limit):
    server.latency = 0.01
    with Loopback(graph, far_app.SPEC):
        runs = record(graph, far_app.rows(4), tg.Ledger(max_concurrency=limit))
    assert [run.error for run in runs] == [None] * 4
    # One such call at a time stops the worker's loop, and goes without a place.
    assert server.peak <= limit + 1


def test_faults_are_counted_and_asked_again_as_in_process(server, graph):
    failed = Counter()

    def faulty(body):
        said = json.dumps(body["messages"])
        failed[said] += 1
        if failed[said] == 1:
            return Fault(429, headers={"retry-after-ms": "1"})
        return Fault(500) if failed[said] == 2 else far_app.play(body)

    near = record(graph, far_app.rows(2), tg.Ledger(patience=QUICK))
    server.handler = faulty
    ledger = tg.Ledger(patience=QUICK)
    with Loopback(graph, far_app.SPEC):
        far = record(graph, far_app.rows(2), ledger)
    assert [far_app.told(run) for run in far] == [far_app.told(run) for run in near]
    assert ledger.traffic.faults == {"rate_limited": 8, "server_error": 8}


def test_node_gets_the_exception_of_its_own_sdk_and_the_run_is_not_kept(server, graph, tmp_path):
    server.handler = lambda body: (
        Fault(500) if "Stoves" in str(body) else far_app.play(body)
    )
    with tg.Store(tmp_path / "run") as store, Loopback(graph, far_app.SPEC):
        runs = record(graph, far_app.rows(3), tg.Ledger(store, patience=QUICK))
        assert [run.error and run.error.split(":")[0] for run in runs] == [
            None, "OpenAIAPIError", None
        ]  # fmt: skip
        assert runs[1].provisional
        assert store.get_run(runs[1].id, runs[1].example) is None


def test_refused_key_stops_everything_as_the_error_that_it_is(server, graph):
    server.api_key = "another"
    with Loopback(graph, far_app.SPEC), pytest.raises(ModelAuthenticationError, match="refused its API key"):
        record(graph, far_app.rows(16), tg.Ledger(max_concurrency=2))
    assert len(server.requests) <= 4


def test_server_that_is_down_for_all_stops_the_run(server, graph):
    server.handler = lambda body: Fault(503)
    with Loopback(graph, far_app.SPEC), pytest.raises(ModelDownError) as down:
        record(graph, far_app.rows(8), tg.Ledger(patience=QUICK))
    assert "The last failure was OpenAIAPIError" in str(down.value)


def test_call_that_was_sent_is_kept_when_the_one_who_waits_is_cancelled(server, graph, tmp_path):
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(body):
        server._loop.call_soon_threadsafe(arrived.set)
        await go_on.wait()
        return far_app.play(body)

    server.handler = slow

    async def cancelled(ledger):
        with tg.use_ledger(ledger):
            task = asyncio.create_task(graph.arecord(far_app.rows(1)))
        while not server.chats:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ledger.sent == 1
        server._loop.call_soon_threadsafe(go_on.set)
        await ledger.aclose()

    with tg.Store(tmp_path / "run") as store, Loopback(graph, far_app.SPEC):
        asyncio.run(cancelled(tg.Ledger(store)))
        assert len(far_app.kept(store)) == 1
        record(graph, far_app.rows(1), tg.Ledger(store))
    assert max(asked(server).values()) == 1


def test_tool_that_is_under_way_on_a_worker_is_kept_when_the_run_is_cancelled(server, graph, tmp_path, monkeypatch):
    monkeypatch.setenv("FAR_PAUSE", "0.1")

    async def cancelled(ledger):
        with tg.use_ledger(ledger):
            task = asyncio.create_task(graph.arecord(far_app.rows(1)))
        while not (tmp_path / "log").read_text():
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (task.cancelled(), ledger.sent) == (True, 1)
        await ledger.aclose()

    with tg.Store(tmp_path / "run") as store, Loopback(graph, far_app.SPEC):
        asyncio.run(cancelled(tg.Ledger(store)))
        [run] = record(graph, far_app.rows(1), tg.Ledger(store))
    assert run.error is None
    assert (tmp_path / "log").read_text().splitlines() == ["Parcels"]


def test_call_that_hangs_is_given_up_at_home_and_made_again(server, graph):
    seen = Counter()

    def hangs_once(body):
        seen[str(body["messages"])] += 1
        first = "You plan" in str(body) and seen[str(body["messages"])] == 1
        return Fault.hang(30) if first else far_app.play(body)

    server.handler = hangs_once
    patience = tg.Patience(attempts=3, timeout=0.5, first_pause=0.001, longest_pause=0.01)
    ledger = tg.Ledger(patience=patience)
    with Loopback(graph, far_app.SPEC):
        [run] = record(graph, far_app.rows(1), ledger)
    assert run.error is None
    assert ledger.traffic.faults == {"timeout": 1}


def test_lost_worker_says_nothing_about_the_server_and_gives_reservations_back(server, graph):
    arrived = asyncio.Event()

    async def silent(body):
        await asyncio.Event().wait()

    server.handler = silent
    ledger = tg.Ledger()

    async def lost(far):
        with tg.use_ledger(ledger):
            task = asyncio.create_task(graph.arecord(far_app.rows(3)))
        while len(server.chats) < 3:
            await asyncio.sleep(0.005)
        far.line.lose("it was killed")
        with pytest.raises(WorkerLostError, match="it was killed"):
            await task
        await ledger.aclose()

    with Loopback(graph, far_app.SPEC) as far:
        asyncio.run(lost(far))
        server.handler = far_app.play
    assert ledger.sent == 0
    assert ledger.account.spent.calls == 0
    assert ledger.account._reserved == 0
    assert ledger.traffic.faults == {}
    assert not arrived.is_set()


def test_replayed_tool_is_refused_where_nothing_is_recorded(server, graph):
    graph.tools = tg.Tools("replay")
    with Loopback(graph, far_app.SPEC):
        [run] = record(graph, far_app.rows(1), tg.Ledger())
    assert run.error.startswith("ToolReplayError: The tool 'look_up' may only be replayed")
    assert any("look_up" in warning for warning in run.warnings)


def test_tools_of_what_was_sent_are_called_once_for_home_and_worker(tmp_path, monkeypatch):
    (tmp_path / "sent_app.py").write_text(
        "import operator\n"
        "from typing import Annotated, TypedDict\n"
        "from langgraph.graph import START, StateGraph\n"
        "from langgraph.types import Send\n"
        "import lg_textgrad as tg\n"
        "from tests.executors.far_app import look_up\n"
        "class S(TypedDict, total=False):\n"
        "    q: str\n"
        "    a: Annotated[list, operator.add]\n"
        "async def work(s):\n"
        "    return {'a': [(s['q'], await look_up.ainvoke({'word': 'same'}))]}\n"
        "def build():\n"
        "    builder = StateGraph(S).add_node('work', work)\n"
        "    builder.add_conditional_edges(START, lambda s: [Send('work', {'q': q}) for q in 'xy'])\n"
        "    return tg.TrainableGraph(builder.compile())\n"
        "graph = build()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAR_LOG", str(tmp_path / "log"))
    from lg_textgrad.loading import load_graph

    graph, store, row = load_graph("sent_app.py:graph"), tg.Store(), tg.Example("e", {"q": "q"})
    with Loopback(graph, "sent_app.py:graph"):
        [far] = record(graph, [row], tg.Ledger(store))
    graph.executor = None
    [near] = record(graph, [row], tg.Ledger(store), sample=1)
    assert far.error is near.error is None
    assert near.outputs["a"] == [tuple(pair) for pair in far.outputs["a"]]
    assert (tmp_path / "log").read_text() == "same\nsame\n"


# What travels.


def test_worker_discovers_nothing_again(server, tmp_path, monkeypatch):
    (tmp_path / "found_app.py").write_text(
        "import lg_textgrad as tg\nfrom tests.executors import far_app\n"
        "graph = tg.discover(far_app.build().graph, [r.inputs for r in far_app.rows(2)],\n"
        "                    parameters=[far_app.plan, far_app.answer])\n"
    )
    monkeypatch.chdir(tmp_path)
    from lg_textgrad.loading import load_graph

    graph = load_graph("found_app.py:graph")
    [found] = [name for name in graph.parameters if name.startswith("left")]
    first = len(server.chats)
    ready = unpack(pack(graph, "found_app.py:graph"))
    assert len(server.chats) == first
    assert set(graph.parameters) == {n for b in ready.bindings for n in b.parameters}
    with Loopback(graph, "found_app.py:graph"):
        [run] = record(graph, far_app.rows(1), tg.Ledger(), prompts={found: "You are new."})
    assert any("You are new." in str(body) for body in server.chats)
    assert {n: t for e in run.executions for n, t in e.prompts.items()}[found] == "You are new."


def test_context_of_the_example_and_that_given_in_python_travel(server):
    graph = tg.TrainableGraph(
        far_app.graph.graph, [far_app.plan, far_app.answer], context={"house": "Moor"},
        context_prompts=["tone"],
    )  # fmt: skip
    [row] = far_app.rows(1)
    own = tg.Example(row.id, row.inputs, metadata={"context": {"house": "Dale"}})
    ledger = tg.Ledger()
    with Loopback(graph, far_app.SPEC):
        [run] = record(graph, [own], ledger, prompts={"tone": "Sing."})
    assert "Sing." in str(server.chats[-1])
    [kept] = ledger.store.results(["tool"])
    assert kept["request"]["example"] == digest(row.id, row.inputs, {"context": {"house": "Dale"}})
    assert {n: t for e in run.executions for n, t in e.prompts.items()}["tone"] == "Sing."


def test_text_in_the_state_travels(server):
    text = tg.StateText(tg.Parameter("note", "Note."), "message")
    graph = tg.TrainableGraph(
        far_app.graph.graph, [far_app.plan, far_app.answer], bindings=[text]
    )
    with Loopback(graph, far_app.SPEC):
        record(graph, far_app.rows(1), tg.Ledger(), prompts={"note": "Something else."})
    assert server.chats[0]["messages"][-1]["content"] == "Something else."


def test_graph_without_a_name_to_import_it_by_is_refused(graph):
    for spec in ("", "far_app", None):
        with pytest.raises(GraphError, match="give the MODULE:GRAPH"):
            pack(graph, spec)


def test_other_graph_of_that_name_is_refused_and_the_node_named(server, tmp_path, monkeypatch):
    (tmp_path / "other_app.py").write_text(
        "from tests.executors import far_app\n\n\nasync def answer_node(state):\n    return {}\n\n\n"
        "far = far_app.build()\nfrom langgraph.graph import StateGraph\n"
        "builder = far.graph.builder\nbuilder.nodes.pop('answer')\n"
        "graph = builder.add_node('answer', answer_node).compile()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GraphError, match="not the one of this process.*'answer'"):
        unpack(pack(far_app.build(), "other_app.py:graph"))


def test_context_that_cannot_travel_is_refused():
    context = {"house": lambda: "Moor"}
    graph = tg.TrainableGraph(far_app.graph.graph, [far_app.plan], context=context)
    with pytest.raises(GraphError, match="ContextBinding holds cannot travel"):
        pack(graph, far_app.SPEC)


def test_variable_that_is_not_set_is_refused_and_values_are_never_shown(graph, monkeypatch):
    with pytest.raises(ConfigurationError, match="'FAR_KEY', which workers should get, is not set"):
        pack(graph, far_app.SPEC, env=["FAR_KEY"])
    monkeypatch.setenv("FAR_KEY", "sk-very-secret-value")
    luggage = pack(graph, far_app.SPEC, env=["FAR_KEY"])
    assert luggage.environment["FAR_KEY"] == "sk-very-secret-value"
    assert "secret" not in repr(luggage)


def test_executor_is_this_process_or_ray_and_options_are_its_own(graph):
    with make_executor("local", {"runs_per_worker": 2}, graph, far_app.SPEC):
        assert graph.executor is None
    found = make_executor("ray:10.0.0.5:6379", {"runs_per_worker": 2}, graph, far_app.SPEC)
    assert isinstance(found, tg.executors.Ray)
    assert found.address == "10.0.0.5:6379"
    assert make_executor("ray", {}, graph, far_app.SPEC).address is None
    with pytest.raises(ConfigurationError, match="no executor 'dask'; there are 'local', 'ray'"):
        make_executor("dask", {}, graph, far_app.SPEC)
    with pytest.raises(ConfigurationError, match="no option 'nodes'; it has env, runs_per_worker"):
        make_executor("ray", {"nodes": 2}, graph, far_app.SPEC)
