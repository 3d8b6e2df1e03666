"""A graph on a real LangGraph server: recorded as a live run of the same graph is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from langgraph.pregel.remote import RemoteGraph
from langgraph_sdk import get_client

import lg_textgrad as tg
from lg_textgrad.bindings.base import Held
from lg_textgrad.errors import (
    BudgetExceededError,
    ConfigurationError,
    DataError,
    GraphError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelUnreachableError,
    ParameterError,
)
from lg_textgrad.graph import as_examples
from lg_textgrad.ledger import account_of
from lg_textgrad.recording.remote import RemoteSource
from lg_textgrad.trace import Trace
from tests.servers import free_port
from tests.recording import remote_graphs

GRAPHS = ("chain", "nested", "agent", "fan", "choice", "handoff", "stops")


def serve(folder):
    """Start `langgraph dev` on the graphs of this folder; nothing of it leaves the machine."""
    shutil.copy(remote_graphs.__file__, folder / "served.py")
    graphs = {name: f"./served.py:{name}" for name in GRAPHS}
    config = {"dependencies": ["."], "graphs": graphs, "disable_persistence": True}
    (folder / "langgraph.json").write_text(json.dumps(config))
    unset = ("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_", "PYTEST_")
    environment = {
        **{n: v for n, v in os.environ.items() if not n.startswith(unset)},
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        "NO_PROXY": "127.0.0.1",
    }
    port = free_port()
    command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser", "--no-reload",
               "--host", "127.0.0.1", "--port", str(port), "--n-jobs-per-worker", "8"]  # fmt: skip
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    log.close()
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("langgraph")
    process, url = serve(folder)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with opener.open(f"{url}/ok", timeout=5):
                    break
            except OSError:
                log = (folder / "log").read_text(errors="replace")[-3000:]
                assert process.poll() is None, log
                assert time.monotonic() < deadline, log
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def remote(server, name, **options):
    return tg.TrainableGraph(RemoteSource(server, name), context_prompts=["answer"], **options)


def live(name, **options):
    compiled = getattr(remote_graphs, name)
    return tg.TrainableGraph(compiled, context_prompts=["answer"], **options)


def comparable(execution):
    """What must be the same; times differ from run to run, what is left out is in docs/remote.md."""
    calls = tuple(replace(c, tools=(), usage=replace(c.usage, seconds=0)) for c in execution.model_calls)
    same = {name: getattr(execution, name) for name in (
        "id", "path", "superstep", "order", "inputs", "writes", "overwrites", "sends", "goto",
        "sent_by", "parent", "prompts", "tool_calls", "error",
    )}  # fmt: skip
    return {**same, "model_calls": calls}


def edges(run):
    return {(e.producer, e.consumer, e.channel) for e in Trace.of(run).edges}


ROW = [{"inputs": {"q": "q"}}]
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
INPUTS = [
    ("chain", {"q": "hi"}),
    ("nested", {"q": "hi"}),
    ("agent", MESSAGES),
    ("fan", {"q": "aba"}),
    ("choice", {"q": "long"}),
    ("handoff", {"q": "hi"}),
]


@pytest.mark.parametrize(("name", "inputs"), INPUTS, ids=[name for name, _ in INPUTS])
async def test_run_on_a_server_is_recorded_as_a_live_run_is(server, name, inputs):
    batch, texts = [{"inputs": inputs}], {"triage": 'Sort "it".', "answer": "Say\nit."}
    [there] = await remote(server, name).arecord(batch, prompts=texts)
    [here] = await live(name).arecord(batch, prompts=texts)
    assert there.error is here.error is None
    assert [comparable(e) for e in there.executions] == [comparable(e) for e in here.executions]
    assert [e.namespace.count("|") for e in there.executions] == [
        e.namespace.count("|") for e in here.executions
    ]
    # Reads are not visible there, so edges can be more, never fewer.
    assert edges(there) >= edges(here)
    assert replace(there.usage, seconds=0) == replace(here.usage, seconds=0)
    last = {k: v for k, v in there.outputs.items() if k != "messages"}
    assert last == {k: v for k, v in here.outputs.items() if k != "messages"}
    assert [m.content for m in there.outputs.get("messages", [])] == [
        m.content for m in here.outputs.get("messages", [])
    ]


async def test_edges_of_accumulating_channels_lead_to_every_writer(server):
    [run] = await remote(server, "fan").arecord([{"inputs": {"q": "ab"}}])
    found = edges(run)
    assert {("work#0", "join#0", "items"), ("work#1", "join#0", "items")} <= found
    assert run.accumulating == {"": ("items",)}


async def test_interrupted_run_ends_where_a_live_one_does(server):
    batch = [{"inputs": {"q": "hi"}}]
    [there], [here] = [await g("stops").arecord(batch) for g in (lambda n: remote(server, n), live)]
    assert there.error is here.error is None
    assert [comparable(e) for e in there.executions] == [comparable(e) for e in here.executions]
    assert there.outputs["__interrupt__"][0]["value"] == "who?"


async def test_a_nodes_exception_is_data(server):
    rows = [{"inputs": {"q": "fail"}}, {"inputs": {"q": "refuse"}}]
    runs = await remote(server, "chain").arecord(rows)
    expected = await live("chain").arecord(rows)
    assert [r.error for r in runs] == ["KeyError: 'team'", "ValueError: the model refuses"]
    assert [r.failed_in for r in runs] == ["two#0", "one#0"]
    for there, here in zip(runs, expected, strict=True):
        assert there.outputs is None
        assert [comparable(e) for e in there.executions] == [comparable(e) for e in here.executions]


async def test_candidates_run_at_once_each_with_its_own_texts_and_context(server):
    graph = remote(server, "chain", context={"user": "ann"})
    rows = [
        {"inputs": {"q": "q"}},
        {"inputs": {"q": "q"}, "metadata": {"context": {"user": "bob"}}},
    ]
    found = await asyncio.gather(*(graph.arecord(rows, prompts={"answer": f"A{i}"}) for i in range(4)))
    said = [[run.outputs["b"] for run in runs] for runs in found]
    assert said == [[f"A{i} / Triage. / q{user}" for user in ("ann", "bob")] for i in range(4)]


async def test_run_is_paid_once_and_counted_in_the_account(server, tmp_path):
    batch, graph = [{"inputs": {"q": "q"}}], remote(server, "chain")
    with tg.Store(tmp_path) as store:
        ledger = tg.Ledger(store)
        with tg.use_ledger(ledger):
            [first] = await graph.arecord(batch)
            spent = ledger.account.spent
            [again] = await graph.arecord(batch)
        assert again.executions == first.executions
        assert ledger.account.spent == spent + first.usage.saved
        assert (first.usage.calls, first.usage.prompt_tokens, first.usage.completion_tokens) == (2, 4, 2)
        assert ledger.account.by_kind == {"rollout": first.usage + first.usage.saved}
        # Where only the stream was stored, as after a kill, it is told again without the server.
        with tg.use_ledger(tg.Ledger(tg.Store(), reuse=store)):
            [told] = await graph.arecord(batch)
        # A session that goes on knows how many calls the run was.
        assert account_of(store, tg.Budget()).spent == replace(spent, seconds=0)
    assert told.usage == tg.Usage(cached_calls=2, saved_tokens=6)
    assert told.executions == first.executions


async def test_budget_is_asked_before_the_server(server):
    from lg_textgrad.budget import Account

    ledger = tg.Ledger(account=Account(tg.Budget(calls=1), spent=tg.Usage(calls=1)))
    with tg.use_ledger(ledger), pytest.raises(BudgetExceededError, match="budget of 1 call "):
        await remote(server, "chain").arecord([{"inputs": {"q": "q"}}])


async def test_key_that_a_model_refused_stops_the_batch(server):
    with pytest.raises(ModelAuthenticationError, match="set the key in the environment of the"):
        await remote(server, "chain").arecord([{"inputs": {"q": "key"}}])


def test_prompts_come_from_the_servers_schema(server):
    graph = tg.TrainableGraph(RemoteSource(server, "chain"))
    assert graph.candidate() == {"triage": "Triage."}
    assert graph.bindings[1].held("triage") == Held("context field", ("one", "inner"))
    assert remote(server, "chain").candidate() == {"triage": "Triage.", "answer": "Answer."}
    assert graph.graph is None


def test_remote_graph_is_taken_as_it_is(server):
    graph = tg.TrainableGraph(RemoteGraph("chain", url=server))
    [run] = graph.record([{"inputs": {"q": "q"}}], prompts={"triage": "New."})
    assert run.outputs["a"] == "New. / q"


def test_fingerprint_tells_graphs_and_revisions_apart(server):
    same = [RemoteSource(server, "chain").fingerprint for _ in range(2)]
    others = [
        RemoteSource(server, "nested").fingerprint,
        RemoteSource(server, "chain", revision="2").fingerprint,
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 3


def test_assistant_by_its_id(server):
    by_name = RemoteSource(server, "chain")
    by_id = RemoteSource(server, by_name._described().assistant_id)
    assert by_id.fingerprint == by_name.fingerprint


async def test_assistant_with_values_of_its_own(server):
    async with get_client(url=server) as client:
        made = await client.assistants.create("chain", context={"answer": "Own.", "user": "kim"})
    graph = remote(server, made["assistant_id"])
    assert graph.candidate() == {"answer": "Own.", "triage": "Triage."}
    [own], [new] = await asyncio.gather(
        graph.arecord(ROW), graph.arecord(ROW, prompts={"answer": "New."})
    )
    assert own.outputs["b"] == "Own. / Triage. / qkim"
    assert new.outputs["b"] == "New. / Triage. / qkim"
    assert graph.fingerprint != remote(server, "chain").fingerprint


# What cannot work is said.


@pytest.mark.parametrize("name", ["support", "608f7b9c-04e5-5cf2-a3f7-000000000000"])
def test_unknown_assistant(server, name):
    with pytest.raises(GraphError, match=f"has no assistant '{name}'") as caught:
        tg.TrainableGraph(RemoteSource(server, name))
    assert name != "support" or "'agent', 'chain', 'choice'" in str(caught.value)


def test_nobody_answers(monkeypatch):
    # The client tries again five times; here without the pauses.
    monkeypatch.setattr("httpcore._async.connection.RETRIES_BACKOFF_FACTOR", 0.0)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ModelUnreachableError, match=f"Nobody answers at {url} .*start the LangGraph"):
        tg.TrainableGraph(RemoteSource(url, "chain"))
    with pytest.raises(ModelUnreachableError, match=r"Nobody answers at http://\*\*\*@127") as caught:
        tg.TrainableGraph(RemoteSource(url.replace("//", "//tuner:hunter2@"), "chain"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:2024", "localhost:2024", "ws://u:hunter2@host", ""])
def test_address_without_http_is_told_at_once(url):
    with pytest.raises(ConfigurationError, match=r"begins with http:// or https://") as caught:
        RemoteSource(url, "chain")
    assert "hunter2" not in str(caught.value)


@contextmanager
def serving(server):
    """Let a server run in a thread; its port."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(statuses, stream='event: values\ndata: {"a": 1}\n\n', missing=0):
    """A server that knows one assistant, and answers its runs with these statuses, the last for good.

    A stream ends before its last `missing` bytes.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, body, more = 200, "application/json", {}, 0
            if self.path == "/assistants/search":
                body = [{"assistant_id": "a1", "graph_id": "g", "metadata": {"created_by": "system"}}]
            elif self.path == "/runs/stream":
                asked.append(self.headers.get("x-api-key"))
                status = statuses[min(len(asked), len(statuses)) - 1]
                if status == 200:
                    kind, body, more = "text/event-stream", None, missing
            elif self.path.startswith("/runs/"):
                asked.append(self.path)
            said = (stream if body is None else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(said) + more))
            if body is None:
                self.send_header("Location", "/runs/r/stream")
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = reply

        def log_message(self, *args):
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}", asked


@contextmanager
def saying(reply):
    """A server that answers each connection with these bytes, and ends it."""

    class Handler(BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(reply)
            self.request.shutdown(socket.SHUT_WR)
            while self.request.recv(65536):  # closed with bytes unread, it would be reset
                pass

    with serving(ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("reply", "error", "told"),
    [
        (b"SSH-2.0-OpenSSH\r\n", ModelUnreachableError, r"The connection to http://127\S+ broke off \(R"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html></html>", ConfigurationError, "is no LangGraph server: .* no JSON"),
        (b"HTTP/1.0 501 No\r\n\r\n", ConfigurationError, "is no LangGraph server: status 501"),
    ],
)
def test_server_of_another_kind_is_told_as_one(reply, error, told):
    with saying(reply) as url, pytest.raises(error, match=told):
        tg.TrainableGraph(RemoteSource(url, "g", api_key="k"))


async def test_stream_that_breaks_is_no_run_and_is_not_joined_again():
    """What a server says while nobody listens would be missing in the trace."""
    with answering([200], missing=10) as (url, asked):
        with tg.use_ledger(tg.Ledger()), pytest.raises(ModelUnreachableError, match="broke off"):
            await tg.TrainableGraph(RemoteSource(url, "g", api_key="k")).arecord(ROW)
    assert asked == ["k"]


async def test_stream_that_ends_in_half_an_event_is_no_run():
    with answering([200], stream='event: values\ndata: {"a": 1}\n\nevent: values\ndata: {"a"') as (url, asked):
        with tg.use_ledger(tg.Ledger()), pytest.raises(ModelBusyError, match="ended before the run did"):
            await tg.TrainableGraph(RemoteSource(url, "g", api_key="k")).arecord(ROW)
    assert asked == ["k"]


async def test_busy_server_is_asked_again(monkeypatch):
    monkeypatch.setattr("lg_textgrad.recording.remote._PAUSES", (0, 0))
    with answering([503, 429, 200]) as (url, asked):
        [run] = await tg.TrainableGraph(RemoteSource(url, "g", api_key="k")).arecord(ROW)
    assert run.outputs == {"a": 1}
    assert asked == ["k"] * 3


async def test_gateway_that_ran_out_of_time_is_not_asked_for_a_second_run(monkeypatch):
    monkeypatch.setattr("lg_textgrad.recording.remote._PAUSES", (0, 0))
    with answering([504, 200]) as (url, asked):
        with tg.use_ledger(tg.Ledger()), pytest.raises(ModelBusyError, match="status 504.*wait and resume"):
            await tg.TrainableGraph(RemoteSource(url, "g", api_key="k")).arecord(ROW)
    assert len(asked) == 1  # the first may be under way, and is paid for


BEGUN = 'event: debug\ndata: {"type": "task", "payload": {"id": "t1", "name": "answer"}}\n\n'


@pytest.mark.parametrize("stream", ["", f'event: values\ndata: {{"a": 1}}\n\n{BEGUN}'])
async def test_stream_that_ends_before_its_run_is_no_run(stream):
    ledger = tg.Ledger()
    with answering([200], stream) as (url, asked):
        graph = tg.TrainableGraph(RemoteSource(url, "g", api_key="k"))
        with tg.use_ledger(ledger), pytest.raises(ModelBusyError, match="ended before the run did.*resume"):
            await graph.arecord(ROW)
    assert len(asked) == 1  # what ran may be paid for
    assert ledger.store.get_run(graph.run_id(as_examples(ROW)[0], {}), None) is None


async def test_server_that_stays_busy_stops_the_run_and_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr("lg_textgrad.recording.remote._PAUSES", (0, 0))
    ledger = tg.Ledger()
    with answering([503]) as (url, asked):
        graph = tg.TrainableGraph(RemoteSource(url, "g", api_key="k"))
        with tg.use_ledger(ledger), pytest.raises(ModelBusyError, match="status 503.*wait and resume"):
            await graph.arecord(ROW)
    assert len(asked) == 3
    assert ledger.account.spent == tg.Usage()
    assert ledger.store.get_run(graph.run_id(as_examples(ROW)[0], {}), None) is None


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, ModelAuthenticationError, r"refused the API key; give RemoteSource"),
        (422, ConfigurationError, r"refused the request \(status 422.*check the inputs and the context"),
    ],
)
async def test_refusal_is_not_asked_again(status, error, words):
    with answering([status]) as (url, asked):
        with pytest.raises(error, match=words):
            await tg.TrainableGraph(RemoteSource(url, "g", api_key="k")).arecord(ROW)
    assert len(asked) == 1


def test_key_and_headers_of_a_remote_graph_go_along():
    with answering([200]) as (url, asked):
        client = RemoteGraph("g", url=url, api_key="of-the-user", headers={"x-team": "7"})
        graph = tg.TrainableGraph(client)
        assert graph.source._options["headers"]["x-team"] == "7"
        graph.record(ROW)
    assert asked == ["of-the-user"]


async def test_declared_parameter_cannot_reach_a_server(server):
    graph = tg.TrainableGraph(RemoteSource(server, "chain"), [tg.Parameter("p", "v")])
    with pytest.raises(ParameterError, match="'p' cannot reach a graph on a server; make it a field"):
        await graph.arecord([{"inputs": {"q": "q"}}])


async def test_context_of_an_example_is_checked_like_that_of_a_live_run(server):
    with pytest.raises(DataError, match="sets 'answer', which is a trainable prompt"):
        await remote(server, "chain").arecord(
            [{"inputs": {"q": "q"}, "metadata": {"context": {"answer": "x"}}}]
        )
