"""What the user names as a graph is found: in modules, in files, and through langgraph.json."""

from __future__ import annotations

import json
import os
import sys

import pytest

from lg_textgrad.errors import GraphError
from lg_textgrad.loading import load_graph

AGENT = """
from contextlib import asynccontextmanager, contextmanager
import functools
import os
from langgraph.graph import START, StateGraph
import lg_textgrad as tg
import wording

def node(state):
    return {"a": wording.answer.text()}

def draw():
    builder = StateGraph(dict)
    builder.add_node("answer", node)
    builder.add_edge(START, "answer")
    return builder

builder = draw()
graph = builder.compile()
def make(): return builder.compile()
def make_with_config(config): return builder if config["configurable"] == {} else None
async def make_async(*, config=None): return graph
@contextmanager
def opened(): yield graph
@asynccontextmanager
async def opened_async(config): yield builder
partial = functools.partial(draw)
class Factory:
    def __call__(self, config): return graph
instance = Factory()
def greedy(config, color): return graph
def raising(): raise ValueError("no database")
def nothing(): return 7
secret = os.environ.get("APP_SECRET")
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    source = tmp_path / "app" / "source"
    source.mkdir(parents=True)
    (source / "the-agent.py").write_text(AGENT)
    (tmp_path / "app" / "wording.py").write_text(
        "import lg_textgrad as tg\nanswer = tg.Parameter('answer', 'You answer.')\n"
    )
    (tmp_path / "app" / ".env").write_text("# keys\nexport APP_SECRET='s3cret'\nEMPTY\nAPP_MODE=x\n")
    document = {
        "dependencies": [".", "langchain"],
        "graphs": {"agent": "./source/the-agent.py:builder", "made": {"path": "./source/the-agent.py:make"}},
        "env": ".env",
    }
    (tmp_path / "app" / "langgraph.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "app"), *sys.path])
    monkeypatch.setenv("APP_MODE", "mine")
    monkeypatch.setenv("APP_SECRET", "")  # so that it is put back at the end
    monkeypatch.delenv("APP_SECRET")
    before = set(sys.modules)
    yield tmp_path / "app"
    for name in set(sys.modules) - before:
        del sys.modules[name]
    os.environ.pop("APP_SECRET", None)


@pytest.mark.parametrize(
    "name",
    ["graph", "make", "make_with_config", "make_async", "opened", "opened_async", "partial", "instance"],
)
def test_file_and_factory_are_loaded_and_run(app, name):
    graph = load_graph(f"app/source/the-agent.py:{name}")
    assert list(graph.parameters) == ["answer"]
    [run] = graph.record([{"inputs": {}}], prompts={"answer": "Tried."})
    assert run.outputs == {"a": "Tried."}


def test_graph_of_a_server_file_is_loaded_with_its_environment(app):
    graph = load_graph("app/langgraph.json:agent")
    assert list(graph.parameters) == ["answer"]
    assert (os.environ["APP_SECRET"], os.environ["APP_MODE"]) == ("s3cret", "mine")
    assert list(load_graph("app/langgraph.json:made").parameters) == ["answer"]


def test_server_file_and_environment_may_begin_with_a_byte_order_mark(app):
    for name in ("langgraph.json", ".env"):
        text = (app / name).read_text().replace("# keys\n", "")
        (app / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(load_graph("app/langgraph.json:agent").parameters) == ["answer"]
    assert os.environ["APP_SECRET"] == "s3cret"


SHELF = """
from langgraph.graph import START, StateGraph
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

async def node(state, *, store: BaseStore):
    known = await store.asearch(("notes",), query="tea")
    await store.aput(("notes",), "a", {"text": "likes tea"})
    found = await store.asearch(("notes",), query="tea")
    return {"before": len(known), "after": [(n.value["text"], n.score) for n in found]}

def embed(texts):
    return [[1.0, 0.0] for _ in texts]

builder = StateGraph(dict).add_node("node", node).add_edge(START, "node")
graph = builder.compile()
own = builder.compile(store=InMemoryStore())
"""


@pytest.mark.parametrize(
    ("store", "score"),
    [
        (None, None),
        ({"index": {"dims": 2, "embed": "./source/shelf.py:embed"}}, 1.0),
        ({"ttl": {"default_ttl": 60}}, None),
    ],
)
def test_graph_of_a_server_file_gets_the_store_that_a_server_gives_it(app, store, score):
    (app / "source" / "shelf.py").write_text(SHELF)
    document = {
        "graphs": {n: f"./source/shelf.py:{n}" for n in ("graph", "own", "builder")}, "store": store,
    }  # fmt: skip
    (app / "langgraph.json").write_text(json.dumps(document))
    for name in ("graph", "builder"):
        for _ in range(2):  # each run's notes are its own
            [run] = load_graph(f"app/langgraph.json:{name}").record([{"inputs": {}}])
            assert (run.error, run.outputs) == (None, {"before": 0, "after": [("likes tea", score)]})
    own = load_graph("app/langgraph.json:own").graph.store
    assert getattr(own, "index_config", None) is None


def test_store_that_cannot_be_made_is_told(app):
    (app / "source" / "shelf.py").write_text(SHELF)
    document = {
        "graphs": {"graph": "./source/shelf.py:graph"},
        "store": {"index": {"dims": 2, "embed": "nobody:model"}},
    }
    (app / "langgraph.json").write_text(json.dumps(document))
    with pytest.raises(GraphError, match=r"(?s)is to have cannot be made: .*Correct 'store' in its"):
        load_graph("app/langgraph.json:graph")


def test_bare_name_is_looked_up_in_the_folder_s_server_file(app, monkeypatch):
    monkeypatch.chdir(app)
    assert list(load_graph("agent").parameters) == ["answer"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("app/source/the-agent.py:builder", r"call \.compile\(\) on it first"),
        ("app/source/nowhere.py:graph", "no file '.*nowhere.py'.*check the path"),
        ("app/source/the-agent.py:absent", "has no 'absent'"),
        ("app/source/the-agent.py:greedy", "asks for config, color; a factory takes nothing, or one"),
        ("app/source/the-agent.py:raising", "raised ValueError: no database. Mend it"),
        ("app/source/the-agent.py:nothing", "int is not a compiled LangGraph graph"),
        ("app/langgraph.json:other", "has no graph 'other'; it has 'agent', 'made'"),
        ("nowhere/langgraph.json:agent", "no file 'nowhere/langgraph.json'"),
        ("app/.env:agent", "'app/.env' is neither a Python module nor a file that ends in .py"),
        ("./agent.js:graph", "'./agent.js' is neither a Python module nor a file"),
        ("agent", "write MODULE:NAME"),
    ],
)
def test_what_is_not_there_is_told(app, spec, said):
    with pytest.raises(GraphError, match=said):
        load_graph(spec)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "names no graphs"),
        ('{"graphs": {"agent": 3}}', 'must be written as "FILE.py:NAME"'),
        ('{"graphs": {"agent": "./a.py:g"}, "env": "none.env"}', "'none.env', which cannot be read"),
    ],
)
def test_broken_server_file_is_told(app, text, said):
    (app / "langgraph.json").write_text(text)
    with pytest.raises(GraphError, match=said):
        load_graph("app/langgraph.json:agent")
