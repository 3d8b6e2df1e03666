"""Prompts in a graph's context_schema: found, replaced per run, and read under the right node."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Annotated, NotRequired, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime, get_runtime
from pydantic import BaseModel, Field

import lg_textgrad as tg
from lg_textgrad.bindings.base import Held
from lg_textgrad.bindings.context import ContextBinding, ContextSchema
from lg_textgrad.errors import DataError, GraphError, ParameterError
from lg_textgrad.parameter import observe_reads
from tests.parts import Chat, echo

PROMPT = {"langgraph_type": "prompt"}


@dataclass(frozen=True, slots=True)
class Marked:
    """A context in the way of LangGraph Studio."""

    triage: str = field(default="Triage.", metadata={**PROMPT, "langgraph_nodes": ["one"]})
    answer: Annotated[str, PROMPT] = "Answer."
    user: str = "nobody"
    hint: str = "Hint."


class Model(BaseModel):
    triage: str = Field(
        default="Triage.",
        description="routes a message",
        json_schema_extra={**PROMPT, "langgraph_nodes": ["one"]},
    )
    answer: Annotated[str, Field(json_schema_extra=PROMPT)] = "Answer."
    user: str = "nobody"
    hint: str = "Hint."


class Typed(TypedDict):
    triage: Annotated[str, {**PROMPT, "langgraph_nodes": ["one"]}]
    answer: NotRequired[Annotated[str, PROMPT]]
    user: str
    hint: str


# What a TypedDict cannot say itself.
GIVEN = {"triage": "Triage.", "answer": "Answer.", "user": "nobody", "hint": "Hint."}
SCHEMAS = [(Marked, None), (Model, None), (Typed, GIVEN)]
schemas = pytest.mark.parametrize(("schema", "context"), SCHEMAS, ids=["dataclass", "pydantic", "dict"])


class S(TypedDict, total=False):
    q: str
    one: str
    two: str


def of(context, name):
    return context[name] if isinstance(context, dict) else getattr(context, name)


def two_nodes(schema, sync=False, **compiled):
    """`one` and `two` run at the same time; each reads a prompt of its own and the user."""
    model = Chat(answer=echo)

    def texts(runtime, name):
        return [SystemMessage(of(runtime.context, name)), HumanMessage(of(runtime.context, "user"))]

    if sync:
        def one(s: S, runtime: Runtime):
            return {"one": model.invoke(texts(runtime, "triage")).content}

        def two(s: S, runtime: Runtime):
            return {"two": model.invoke(texts(runtime, "answer")).content}
    else:
        async def one(s: S, runtime: Runtime):
            await asyncio.sleep(0)
            return {"one": (await model.ainvoke(texts(runtime, "triage"))).content}

        async def two(s: S, runtime: Runtime):
            return {"two": (await model.ainvoke(texts(runtime, "answer"))).content}

    builder = StateGraph(S, context_schema=schema).add_node("one", one).add_node("two", two)
    return builder.add_edge(START, "one").add_edge(START, "two").compile(**compiled)


BATCH = [{"inputs": {"q": "q"}}]


def reads(run):
    assert run.error is None, run.error
    return {(e.path, *item) for e in run.executions for item in e.prompts.items()}


@schemas
@pytest.mark.parametrize("sync", [True, False])
async def test_marked_fields_are_parameters_and_each_node_reads_its_own(schema, context, sync):
    graph = tg.TrainableGraph(two_nodes(schema, sync), context=context)
    assert graph.candidate() == {"triage": "Triage.", "answer": "Answer."}
    [run] = await graph.arecord(BATCH, prompts={"answer": "New."})
    assert (run.outputs["one"], run.outputs["two"]) == ("Triage. / nobody", "New. / nobody")
    assert reads(run) == {("one", "triage", "Triage."), ("two", "answer", "New.")}
    assert graph.parameters["answer"].value == "Answer."


@schemas
async def test_hundred_candidates_at_once_without_crosstalk(schema, context):
    graph = tg.TrainableGraph(two_nodes(schema), context=context)
    with tg.use_ledger(tg.Ledger(max_concurrency=100)):
        runs = await asyncio.gather(
            *(graph.arecord(BATCH, prompts={"triage": f"t{i}", "answer": f"a{i}"}) for i in range(100))
        )
    for i, [run] in enumerate(runs):
        assert (run.outputs["one"], run.outputs["two"]) == (f"t{i} / nobody", f"a{i} / nobody")
        assert reads(run) == {("one", "triage", f"t{i}"), ("two", "answer", f"a{i}")}


@schemas
def test_field_that_the_user_names_is_trainable_too(schema, context):
    graph = tg.TrainableGraph(two_nodes(schema), context=context, context_prompts=["hint"])
    assert graph.candidate() == {"hint": "Hint.", "triage": "Triage.", "answer": "Answer."}


def test_empty_context_prompts_leave_the_graph_alone():
    graph = tg.TrainableGraph(two_nodes(Marked), context_prompts=())
    assert graph.parameters == {}


def test_parameter_of_a_fields_name_gives_it_limits():
    limited = tg.Parameter("answer", "Mine.", role="answers", locked=["Mine"])
    graph = tg.TrainableGraph(two_nodes(Marked), context_prompts=[limited])
    assert graph.parameters["answer"] is limited
    [run] = graph.record(BATCH)
    assert run.outputs["two"] == "Mine. / nobody"


def test_demonstrations_reach_the_node_with_the_text():
    shown = tg.Parameter("answer", "Mine.", demos=[tg.Demo("a", "b")])
    [run] = tg.TrainableGraph(two_nodes(Marked), context_prompts=[shown]).record(BATCH)
    assert run.outputs["two"] == f"{shown.full} / nobody"
    assert ("two", "answer", "Mine.\n\nExamples:\n\nInput: a\nOutput: b") in reads(run)


@pytest.mark.parametrize(
    "schema", [Marked, Model, Typed], ids=["dataclass", "pydantic", "dict"]
)
def test_metadata_say_which_nodes_read_a_field(schema):
    graph = tg.TrainableGraph(two_nodes(schema), context=GIVEN)
    held = {n: b.held(n) for b in graph.bindings for n in b.parameters}
    assert held == {"triage": Held("context field", ("one",)), "answer": Held("context field", ())}


def test_description_is_the_role():
    assert tg.TrainableGraph(two_nodes(Model)).parameters["triage"].role == "routes a message"


@pytest.mark.parametrize("context", [{"user": "ann"}, Marked(user="ann"), Model(user="ann")])
async def test_other_fields_are_given_once_or_per_example(context):
    graph = tg.TrainableGraph(two_nodes(Marked), context=context)
    rows = [*BATCH, {**BATCH[0], "metadata": {"context": {"user": "bob"}}}]
    runs = await graph.arecord(rows, prompts={"answer": "New."})
    assert [r.outputs["two"] for r in runs] == ["New. / ann", "New. / bob"]
    assert runs[0].id != runs[1].id


def test_given_values_are_part_of_the_runs_identity():
    example = tg.Example("e", {"q": "q"})

    def run_id(**options):
        return tg.TrainableGraph(two_nodes(Marked), **options).run_id(example, {})

    assert run_id() == run_id(context={"triage": "Text."})  # a candidate's business
    assert len({run_id(), run_id(context={"user": "ann"}), run_id(context={"user": "bob"})}) == 3


def test_context_reaches_a_graph_without_trainable_fields():
    graph = tg.TrainableGraph(two_nodes(Marked), context={"user": "ann"}, context_prompts=())
    [run] = graph.record(BATCH)
    assert run.outputs["two"] == "Answer. / ann"
    assert reads(run) == set()


def test_metadata_named_context_mean_nothing_to_a_graph_without_a_context():
    builder = StateGraph(S).add_node("n", lambda s: {"one": s["q"]}).add_edge(START, "n")
    graph = tg.TrainableGraph(builder.compile())
    [run] = graph.record([{**BATCH[0], "metadata": {"context": "a passage"}}])
    assert run.outputs["one"] == "q"


async def test_field_of_a_graph_that_declares_no_schema_is_named_with_its_text():
    async def node(s: S, runtime: Runtime):
        return {"one": runtime.context["hint"] + runtime.context["user"]}

    compiled = StateGraph(S).add_node("n", node).add_edge(START, "n").compile()
    graph = tg.TrainableGraph(
        compiled, context={"hint": "Old.", "user": "ann"}, context_prompts=["hint"]
    )
    [run] = await graph.arecord(BATCH, prompts={"hint": "New."})
    assert run.outputs["one"] == "New.ann"
    assert reads(run) == {("n", "hint", "New.")}


async def test_reads_inside_subgraphs_are_noted_under_the_inner_node():
    builder = StateGraph(S, context_schema=Marked).add_node("sub", two_nodes(Marked))
    graph = tg.TrainableGraph(builder.add_edge(START, "sub").compile())
    [run] = await graph.arecord(BATCH, prompts={"triage": "New."})
    assert reads(run) == {("sub/one", "triage", "New."), ("sub/two", "answer", "Answer.")}


async def test_context_fields_declared_parameters_and_middleware_in_one_graph():
    declared, tool_user = tg.Parameter("declared", "D"), tg.Parameter("agent", "A")
    model = Chat(answer=echo)
    agent = create_agent(model, [], middleware=[tool_user.middleware()])

    async def one(s: S, runtime: Runtime[Marked]):
        asked = await model.ainvoke([declared.message(), SystemMessage(runtime.context.triage)])
        return {"one": asked.content}

    async def two(s: S):
        said = await agent.ainvoke({"messages": [("user", get_runtime(Marked).context.answer)]})
        return {"two": said["messages"][-1].content}

    builder = StateGraph(S, context_schema=Marked).add_node("one", one).add_node("two", two)
    compiled = builder.add_edge(START, "one").add_edge("one", "two").compile()
    graph = tg.TrainableGraph(compiled, [declared, tool_user])
    new = {"declared": "D2", "agent": "A2", "triage": "T2", "answer": "N2"}
    [run] = await graph.arecord(BATCH, prompts=new)
    assert (run.outputs["one"], run.outputs["two"]) == ("D2 / T2", "A2 / N2")
    assert reads(run) == {
        ("one", "declared", "D2"), ("one", "triage", "T2"),
        ("two", "answer", "N2"), ("two/model", "agent", "A2"),
    }  # fmt: skip


# The object that nodes get is what they expect.


@pytest.mark.parametrize("schema", [Marked, Model], ids=["dataclass", "pydantic"])
def test_context_is_an_instance_of_the_schema_and_copies_as_one(schema):
    binding = ContextBinding(ContextSchema.of(schema), {"user": "ann"})
    context = binding.invocation({"triage": "New."})["context"]
    assert isinstance(context, schema)
    plain = pickle.loads(pickle.dumps(context))
    assert type(plain) is schema
    assert plain == schema(triage="New.", user="ann")
    copied = copy.deepcopy(context)
    assert isinstance(copied, schema)
    assert (copied.triage, copied.user) == ("New.", "ann")
    if schema is Marked:
        assert dataclasses.replace(context, user="bob").user == "bob"
        assert dataclasses.asdict(context) == {**GIVEN, "triage": "New.", "user": "ann"}
        with pytest.raises(dataclasses.FrozenInstanceError):
            context.user = "eve"
    else:
        assert context.model_dump() == {**GIVEN, "triage": "New.", "user": "ann"}


def noted(schema, look):
    context = ContextBinding(ContextSchema.of(schema), GIVEN).invocation({})["context"]
    seen = set()
    with observe_reads(lambda name, text: seen.add(name)):
        look(context)
    return seen


def test_only_prompts_that_were_read_are_noted_and_looking_at_the_whole_reads_all():
    both = {"triage", "answer"}
    assert noted(Marked, lambda c: c.user) == noted(Model, lambda c: c.user) == set()
    assert noted(Typed, lambda c: c["user"]) == set()
    assert noted(Typed, lambda c: c.get("answer")) == {"answer"}
    assert noted(Marked, lambda c: c.answer) == {"answer"}
    assert noted(Marked, dataclasses.asdict) == both
    assert noted(Marked, lambda c: dataclasses.replace(c, user="x")) == both
    assert noted(Model, lambda c: c.model_dump()) == both
    assert noted(Model, vars) == both
    assert noted(Typed, dict) == both
    assert noted(Typed, lambda c: {**c}) == both


def test_default_factories_and_annotated_fields_have_their_defaults():
    class Made(BaseModel):
        p: str = Field(default_factory=lambda: "made", json_schema_extra=PROMPT)

    @dataclass
    class AlsoMade:
        p: str = field(default_factory=lambda: "made", metadata={"json_schema_extra": PROMPT})

    class Given(TypedDict):
        p: Annotated[str, Field(default="made", json_schema_extra=PROMPT)]

    for schema in (Made, AlsoMade, Given):
        [parameter] = ContextBinding(ContextSchema.of(schema)).parameters.values()
        assert parameter.value == "made"


def test_json_schema_of_a_server_reads_like_the_class():
    found = ContextSchema.from_json(Model.model_json_schema())
    live = ContextSchema.of(Model)
    assert (found.name, found.fields) == (live.name, live.fields)


# What cannot work is said.


@dataclass
class Bare:
    p: str = field(metadata=PROMPT)
    user: str


def test_prompt_field_without_a_default_needs_a_text():
    with pytest.raises(ParameterError, match=r"field 'p' of the context schema Bare has no default; give") as caught:
        tg.TrainableGraph(two_nodes(Bare))
    assert caught.value.parameter == "p"
    assert tg.TrainableGraph(two_nodes(Bare), context={"p": "P"}).candidate() == {"p": "P"}


async def test_missing_field_is_said_before_anything_runs():
    graph = tg.TrainableGraph(two_nodes(Bare), context={"p": "P"})
    with pytest.raises(DataError, match=r"does not fit Bare \(.*'user'\); give the fields"):
        await graph.arecord(BATCH)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context_prompts": ["missing"]}, "Marked has no field 'missing'; it has 'triage', 'answer'"),
        ({"context": "ann"}, "must be an object with the schema's fields, not str"),
        ({"context": {"triage": 3}}, "value of parameter 'triage' must be a string, not int"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ParameterError, match=words):
        tg.TrainableGraph(two_nodes(Marked), **options)


def test_parameter_and_marked_field_of_one_name():
    with pytest.raises(ParameterError, match="Two parameters are named 'triage'"):
        tg.TrainableGraph(two_nodes(Marked), [tg.Parameter("triage", "x")])


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("bob", "example 'e' have a 'context' that is no object; the graph takes Marked"),
        ({"triage": "x"}, "example 'e' sets 'triage', which is a trainable prompt"),
    ],
)
async def test_wrong_context_of_an_example(context, words):
    graph = tg.TrainableGraph(two_nodes(Marked))
    with pytest.raises(DataError, match=words):
        await graph.arecord([tg.Example("e", {"q": "q"}, metadata={"context": context})])


# As LangGraph's server hands it on.


@pytest.mark.parametrize("schema", [Marked, Model])
async def test_graph_that_is_given_no_context_gets_the_defaults_of_its_schema(schema):
    def node(s: S, runtime: Runtime):
        return {"one": runtime.context.user}

    compiled = StateGraph(S, context_schema=schema).add_node(node).add_edge(START, "node").compile()
    graph = tg.TrainableGraph(compiled, context_prompts=())
    assert graph.lacking is None
    [run] = await graph.arecord(BATCH)
    assert (run.error, run.outputs["one"]) == (None, "nobody")


async def test_graph_whose_context_needs_values_says_so_when_discovery_fails():
    @dataclass
    class Needs:
        user: str
        hint: str = ""

    async def node(s: S, runtime: Runtime):
        return {"one": runtime.context.user}

    compiled = StateGraph(S, context_schema=Needs).add_node(node).add_edge(START, "node").compile()
    words = r"'NoneType' object has no attribute 'user'. Its nodes get no context: Needs can't be made without 'user'. Give them in each example's metadata"
    with pytest.raises(GraphError, match=words):
        await tg.adiscover(compiled, [{"q": "q"}])
    given = {"inputs": {"q": "q"}, "metadata": {"context": {"user": "ann"}}}
    [run] = await tg.TrainableGraph(compiled).arecord([given])
    assert run.outputs["one"] == "ann"


def configured():
    """`one` and `two` look for their prompts in the run's configuration."""
    model = Chat(answer=echo)

    def texts(config, name):
        found = {"triage": "Triage.", "answer": "Answer.", **config["configurable"]}
        prompt = found[name].format(user=found.get("user", "nobody"))
        return [SystemMessage(prompt), HumanMessage("q")]

    async def one(s: S, config: RunnableConfig):
        return {"one": (await model.ainvoke(texts(config, "triage"))).content}

    async def two(s: S, config: RunnableConfig):
        return {"two": (await model.ainvoke(texts(config, "answer"))).content}

    builder = StateGraph(S, context_schema=Marked).add_node("one", one).add_node("two", two)
    return builder.add_edge(START, "one").add_edge(START, "two").compile()


async def test_fields_reach_nodes_that_look_for_them_in_the_configuration():
    graph = tg.TrainableGraph(configured(), context={"user": "ann"})
    [run] = await graph.arecord(BATCH, prompts={"answer": "Help {user}."})
    assert (run.outputs["one"], run.outputs["two"]) == ("Triage. / q", "Help ann. / q")
    assert reads(run) == {("one", "triage", "Triage."), ("two", "answer", "Help {user}.")}
    runs = await asyncio.gather(*(graph.arecord(BATCH, prompts={"answer": f"a{i}"}) for i in range(20)))
    assert [run.outputs["two"] for [run] in runs] == [f"a{i} / q" for i in range(20)]


async def test_thread_of_a_run_is_its_own_whatever_the_context_names():
    async def node(s: S, config: RunnableConfig):
        return {"one": config["configurable"]["thread_id"]}

    compiled = StateGraph(S).add_node(node).add_edge(START, "node").compile()
    [run] = await tg.TrainableGraph(compiled, context={"thread_id": "t"}).arecord(BATCH)
    assert run.outputs["one"].startswith("lg_textgrad-")
