"""Parameters are found wherever a node's function can reach them."""

from __future__ import annotations

import functools
import sys
import types

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.reachable import reachable_parameters

HERE = tg.Parameter("here", "A global.")
TABLE = {"a": tg.Parameter("in a table", "A value of a dict.")}
UNUSED = tg.Parameter("unused", "No node uses it.")


@pytest.fixture
def prompts(monkeypatch):
    module = types.ModuleType("prompts_of_mine")
    module.other = tg.Parameter("elsewhere", "In another module.")
    module.unused = tg.Parameter("unused elsewhere", "No node uses it.")
    monkeypatch.setitem(sys.modules, "prompts_of_mine", module)
    monkeypatch.setitem(globals(), "prompts_of_mine", module)
    return module


def names(*nodes, inside=()):
    builder = StateGraph(dict)
    for number, node in enumerate(nodes):
        builder.add_node(f"n{number}", node)
        builder.add_edge(START, f"n{number}")
    for graph in inside:
        builder.add_node("inside", graph)
        builder.add_edge(START, "inside")
    return [p.name for p in reachable_parameters(builder.compile())]


def helper():
    return HERE.text()


def test_global_of_a_function_that_the_node_calls():
    assert names(lambda state: {"a": helper()}) == ["here"]


def test_attribute_of_a_module_that_the_node_names(prompts):
    def node(state):
        return {"a": prompts_of_mine.other.text()}  # noqa: F821

    assert names(node) == ["elsewhere"]


def test_closure_inner_function_partial_and_table():
    local = tg.Parameter("local", "In a closure.")
    given = tg.Parameter("given", "An argument of a partial.")

    def node(state):
        def inner():
            return local.text()

        return {"a": inner()}

    async def takes(prompt, state):
        return {"a": prompt.text(), "b": TABLE["a"].text()}

    assert names(node, functools.partial(takes, given)) == ["local", "in a table", "given"]


def test_attribute_of_the_object_whose_method_the_node_is():
    class Writer:
        def __init__(self):
            self.prompt = tg.Parameter("mine", "An attribute.")

        def write(self, state):
            return {"a": self.prompt.text()}

        def __call__(self, state):
            return self.write(state)

    assert names(Writer().write) == ["mine"]
    assert names(RunnableLambda(lambda s: s) | RunnableLambda(Writer().write)) == ["mine"]


def test_nodes_of_a_subgraph_count_and_each_parameter_once():
    builder = StateGraph(dict)
    builder.add_node("n", lambda state: {"a": HERE.text()})
    builder.add_edge(START, "n")
    assert names(lambda state: {"a": helper()}, inside=[builder.compile()]) == ["here"]
