"""Tools of real graphs: called, recorded, or answered from the recording."""

from __future__ import annotations

import asyncio
import operator
import threading
import time
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command, Send, interrupt

import lg_textgrad as tg
from lg_textgrad._hashing import digest
from lg_textgrad.bindings.recorded import encode
from lg_textgrad.errors import ConfigurationError, ToolReplayError
from tests.parts import Chat


class S(TypedDict, total=False):
    q: str
    a: Any


class Bench:
    """Tools that note each real call, and a graph that calls them as told."""

    def __init__(self):
        self.calls = []

        @tool
        def refund(order: str) -> str:
            """Refund an order."""
            self.calls.append(("refund", order))
            return f"refunded {order} ({len(self.calls)})"

        @tool
        async def look_up(order: str) -> dict:
            """Look an order up."""
            self.calls.append(("look_up", order))
            await asyncio.sleep(0)
            return {"order": order, "number": len(self.calls)}

        self.refund, self.look_up = refund, look_up


@pytest.fixture
def bench():
    return Bench()


def graph_of(node, tools=None, parameters=()):
    built = StateGraph(S).add_node("n", node).add_edge(START, "n").compile()
    return tg.TrainableGraph(built, parameters, tools=tools)


def rows(*questions):
    return [{"id": q, "inputs": {"q": q}} for q in questions]


@pytest.fixture
def ledger():
    ledger = tg.Ledger()
    with tg.use_ledger(ledger):
        yield ledger


# How a tool may be called.


def by_node(bench, how):
    async def direct(s):
        if how == "invoke":
            return {"a": bench.refund.invoke({"order": s["q"]})}
        if how == "ainvoke":
            return {"a": await bench.refund.ainvoke({"order": s["q"]})}
        if how == "async":
            return {"a": await bench.look_up.ainvoke({"order": s["q"]})}
        return {"a": await asyncio.to_thread(bench.refund.invoke, {"order": s["q"]})}

    return direct


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "async", "thread"])
async def test_tool_that_a_node_calls_is_called_once_for_all_candidates(bench, ledger, how):
    prompt = tg.Parameter("p", "first")
    node = by_node(bench, how)

    async def reading(s):
        str(prompt)
        return await node(s)

    graph = graph_of(reading, parameters=[prompt])
    outputs = []
    for text in ("first", "second", "third"):
        [run] = await graph.arecord(rows("o1"), prompts={"p": text})
        outputs.append(run.outputs["a"])
        [call] = run.executions[0].tool_calls
        assert (call.inputs, call.error) == ({"order": "o1"}, None)
    assert len(bench.calls) == 1
    assert outputs[0] == outputs[1] == outputs[2]
    assert ledger.account.spent.calls == 0  # tools are no model calls


def test_sync_graph_node_is_answered_too(bench, ledger):
    graph = graph_of(lambda s: {"a": bench.refund.invoke({"order": s["q"]})})
    for sample in range(3):
        [run] = graph.record(rows("o1"), sample=sample)
        assert run.outputs["a"] == "refunded o1 (1)"
    assert len(bench.calls) == 1


def agent_model(*calls):
    """Ask for the tools, then say what they returned. The ids differ from run to run."""
    numbers = iter(range(1000))

    def answer(messages):
        results = [m for m in messages if isinstance(m, ToolMessage)]
        if results:
            return " | ".join(str(m.content) for m in results)
        asked = [{"name": n, "args": a, "id": f"call_{next(numbers)}"} for n, a in calls]
        return AIMessage("", tool_calls=asked)

    class WithTools(Chat):
        def bind_tools(self, tools, **kwargs):
            return self

    return WithTools(answer=answer)


@pytest.mark.parametrize("kind", ["create_agent", "ToolNode"])
async def test_agents_tools_are_answered_with_the_id_of_the_present_call(bench, kind):
    model = agent_model(("refund", {"order": "o1"}), ("look_up", {"order": "o2"}))
    if kind == "create_agent":
        built = create_agent(model, [bench.refund, bench.look_up])
    else:

        async def ask(s):
            return {"messages": [await model.ainvoke(s["messages"])]}

        builder = StateGraph(MessagesState).add_node("ask", ask)
        builder.add_node("tools", ToolNode([bench.refund, bench.look_up]))
        builder.add_edge(START, "ask").add_edge("ask", "tools").add_edge("tools", "say")
        built = builder.add_node("say", ask).compile()
    graph = tg.TrainableGraph(built)
    said, ids = [], []
    batch = [{"inputs": {"messages": [HumanMessage("hi", id="h")]}}]
    store = tg.Store()
    for sample in (0, 1):
        with tg.use_ledger(tg.Ledger(store)):
            [run] = await graph.arecord(batch, sample=sample)
        assert run.error is None
        messages = run.outputs["messages"]
        said.append(messages[-1].content)
        ids.append([m.tool_call_id for m in messages if isinstance(m, ToolMessage)])
        assert ids[-1] == [c["id"] for c in messages[1].tool_calls]
    assert said[0] == said[1]
    assert ids[0] != ids[1]
    assert sorted(bench.calls) == [("look_up", "o2"), ("refund", "o1")]


async def test_classes_that_are_made_during_a_run_are_answered_too(ledger):
    made = []

    def node(s):
        class Late(BaseTool):
            name: str = "late"
            description: str = "Comes late."

            def _run(self, order: str) -> str:
                made.append(order)
                return "late " + order

        return {"a": Late().invoke({"order": s["q"]})}

    graph = graph_of(node)
    for sample in (0, 1):
        [run] = await graph.arecord(rows("o1"), sample=sample)
        assert run.outputs["a"] == "late o1"
    assert made == ["o1"]


async def test_subclass_that_hands_on_to_its_super_class_is_one_call(ledger):
    made = []

    class Logged(StructuredTool):
        def _run(self, *args, config: RunnableConfig, run_manager=None, **kwargs):
            made.append("outer")
            return super()._run(*args, config=config, run_manager=run_manager, **kwargs)

    logged = Logged.from_function(lambda order: made.append("inner") or order, name="l", description="d")
    graph = graph_of(lambda s: {"a": logged.invoke({"order": s["q"]})})
    for sample in (0, 1):
        [run] = await graph.arecord(rows("o1"), sample=sample)
        assert run.error is None
        assert run.outputs["a"] == "o1"
    assert made == ["outer", "inner"]


async def test_outside_of_runs_tools_are_as_ever(bench):
    before = (BaseTool.run, BaseTool._run, StructuredTool._run, StructuredTool._arun)
    gate, inside = asyncio.Event(), asyncio.Event()

    async def node(s):
        inside.set()
        await gate.wait()
        return {"a": bench.refund.invoke({"order": s["q"]})}

    with tg.use_ledger(tg.Ledger()):
        task = asyncio.create_task(graph_of(node).arecord(rows("o1")))
        await inside.wait()
        for _ in range(2):
            bench.refund.invoke({"order": "o1"})
        gate.set()
        await task
    assert len(bench.calls) == 3
    assert (BaseTool.run, BaseTool._run, StructuredTool._run, StructuredTool._arun) == before


# What is one and the same call.


async def test_what_decides_whether_it_is_the_same_call(bench, ledger):
    graph = graph_of(by_node(bench, "ainvoke"))
    await graph.arecord([*rows("o1", "o2"), {"id": "again", "inputs": {"q": "o1"}}])
    assert sorted(bench.calls) == [("refund", "o1"), ("refund", "o1"), ("refund", "o2")]


async def test_tool_is_called_anew_for_another_context_or_other_resumed_values(bench, ledger):
    graph = graph_of(by_node(bench, "ainvoke"))
    [row], answers = rows("o1"), []
    for metadata in (
        {}, {"context": {"user": "ann"}}, {"context": {"user": "bob"}}, {"resume": ["yes"]},
        {"context": {"user": "ann"}, "slice": "vip"}, {"context": None},
    ):  # fmt: skip
        [run] = await graph.arecord([{**row, "metadata": metadata}], sample=len(answers))
        answers.append(run.outputs["a"])
    assert answers == [f"refunded o1 ({n})" for n in (1, 2, 3, 4, 2, 1)]


async def test_shared_tools_are_recorded_once_for_all_examples(bench, ledger):
    graph = graph_of(by_node(bench, "ainvoke"), tg.Tools(shared=["refund"]))
    await graph.arecord([*rows("o1"), {"id": "again", "inputs": {"q": "o1"}}])
    assert bench.calls == [("refund", "o1")]


async def test_tool_that_is_asked_the_same_twice_in_a_run_is_called_twice_and_stays_so(bench, ledger):
    def node(s):
        return {"a": [bench.refund.invoke({"order": "o"}) for _ in range(2)]}

    for sample in (0, 1):
        [run] = await graph_of(node).arecord(rows("q"), sample=sample)
        assert run.outputs["a"] == ["refunded o (1)", "refunded o (2)"]
    assert len(bench.calls) == 2


class Hurried:
    """A tool that counts its calls, for branches that come to it in the order that is told."""

    def __init__(self):
        self.made = 0
        self.order = []

        @tool
        def ticket(desk: str) -> str:
            """Draw a ticket."""
            self.made += 1
            return f"{desk} {self.made}"

        self.ticket = ticket

    async def draw(self, who):
        for _ in range(20 * self.order.index(who)):
            await asyncio.sleep(0)
        return [(who, await self.ticket.ainvoke({"desk": "a"}))]

    def sent(self, senders):
        """A graph that sends each of `senders` to one node."""

        async def work(s):
            return {"a": await self.draw(s["q"])}

        builder = StateGraph(Drawn).add_node("work", work)
        builder.add_conditional_edges(START, lambda _: [Send("work", {"q": w}) for w in senders])
        return builder.compile()

    def parallel(self):
        builder = StateGraph(Drawn)
        for who in ("x", "y"):

            async def work(_, who=who):
                return {"a": await self.draw(who)}

            builder.add_node(who, work).add_edge(START, who)
        return builder.compile()


class Drawn(TypedDict, total=False):
    q: str
    a: Annotated[list, operator.add]


@pytest.mark.parametrize("how", ["sent", "parallel"])
@pytest.mark.parametrize("mode", ["replay", "replay-else-live"])
async def test_who_comes_first_does_not_decide_who_gets_which_recording(ledger, how, mode):
    hurried = Hurried()
    built = hurried.parallel() if how == "parallel" else hurried.sent(["x", "y"])
    found = []
    for order, tools in (("xy", "replay-else-live"), ("yx", mode), ("xy", mode)):
        hurried.order = list(order)
        graph = tg.TrainableGraph(built, tools=tg.Tools(tools))
        [run] = await graph.arecord(rows("o"), sample=len(found))
        assert run.error is None
        found.append(dict(run.outputs["a"]))
    assert found == [{"x": "a 1", "y": "a 2"}] * 3
    assert hurried.made == 2


@pytest.mark.parametrize("senders", [["y", "x"], ["new", "x", "y"]])
async def test_candidate_that_sends_otherwise_does_nothing_twice(bench, ledger, senders):
    async def work(s):
        return {"a": [await bench.refund.ainvoke({"order": s["q"]})]}

    def graph(sent):
        builder = StateGraph(Drawn).add_node("work", work)
        builder.add_conditional_edges(START, lambda _: [Send("work", {"q": w}) for w in sent])
        return tg.TrainableGraph(builder.compile())

    await graph(["x", "y"]).arecord(rows("o"))
    [run] = await graph(senders).arecord(rows("o"), sample=1)
    assert run.error is None
    assert sorted(bench.calls) == sorted(("refund", w) for w in {"x", "y", *senders})


async def test_agent_that_asks_for_its_tools_in_another_order_does_nothing_twice(bench, ledger):
    calls = [("refund", {"order": "o1"}), ("look_up", {"order": "o2"})]
    for sample, asked in enumerate((calls, calls[::-1])):
        graph = tg.TrainableGraph(
            create_agent(agent_model(*asked), [bench.refund, bench.look_up])
        )
        example = {"id": "e", "inputs": {"messages": [HumanMessage("hi", id="h")]}}
        [run] = await graph.arecord([example], sample=sample)
        assert run.error is None
    assert sorted(bench.calls) == [("look_up", "o2"), ("refund", "o1")]


@pytest.mark.parametrize("mode", ["replay", "replay-else-live"])
@pytest.mark.parametrize("how", ["invoke", "async"])
async def test_what_an_earlier_version_recorded_is_found(bench, ledger, how, mode):
    name = "refund" if how == "invoke" else "look_up"
    asked = {"tool": name, "args": {"order": "o1"}, "example": digest("o1", {"q": "o1"})}
    ledger.keep(f"{digest('tool', asked)}.0", asked, lambda: {"output": encode("as it was", None)})
    graph = graph_of(by_node(bench, how), tg.Tools(mode))
    for sample in (0, 1):
        [run] = await graph.arecord(rows("o1"), sample=sample)
        assert (run.error, run.outputs["a"]) == (None, "as it was")
    assert bench.calls == []


async def test_candidates_that_come_at_the_same_time_share_one_call(bench, ledger):
    prompt = tg.Parameter("p", "x")
    node = by_node(bench, "async")

    async def reading(s):
        str(prompt)
        return await node(s)

    graph = graph_of(reading, parameters=[prompt])
    found = await asyncio.gather(
        *(graph.arecord(rows("o1"), prompts={"p": str(n)}) for n in range(8))
    )
    assert bench.calls == [("look_up", "o1")]
    assert {run.outputs["a"]["number"] for [run] in found} == {1}


async def test_injected_arguments_do_not_make_it_another_call(ledger):
    made = []

    @tool
    def book(
        day: str,
        state: Annotated[dict, InjectedState],
        call: Annotated[str, InjectedToolCallId],
        runtime: ToolRuntime,
    ) -> Command:
        """Book a day."""
        made.append(day)
        return Command(update={"messages": [ToolMessage(f"booked {day}", tool_call_id=call)]})

    model = agent_model(("book", {"day": "monday"}))
    graph = tg.TrainableGraph(create_agent(model, [book]))
    for text in ("please", "now"):
        example = {"id": "e", "inputs": {"messages": [HumanMessage("book", id="h")]}}
        [run] = await graph.arecord([example], sample=len(text))
        assert run.error is None
        assert run.outputs["messages"][-1].content == "booked monday"
    assert made == ["monday"]


class Shop(TypedDict, total=False):
    cart: list[str]
    note: str
    messages: Annotated[list, add_messages]


def shop_of(way):
    """Return a graph whose tool is given the state, one `way` or another; `pick` decides the cart."""
    pick = tg.Parameter("pick", "apples")

    @tool
    def whole(state: Annotated[dict, InjectedState]) -> str:
        """Say what is in the cart."""
        return "bought " + state["cart"][0]

    @tool
    def named(cart: Annotated[list, InjectedState("cart")]) -> str:
        """Say what is in the cart."""
        return "bought " + cart[0]

    @tool
    def runtime(runtime: ToolRuntime) -> str:
        """Say what is in the cart."""
        return "bought " + runtime.state["cart"][0]

    def choose(state):
        call = {"name": way, "args": {}, "id": uuid4().hex}
        return {"cart": [str(pick)], "messages": [AIMessage("", tool_calls=[call])]}

    builder = StateGraph(Shop).add_node(choose).add_node("tools", ToolNode([whole, named, runtime]))
    builder.add_edge(START, "choose").add_edge("choose", "tools")
    return tg.TrainableGraph(builder.compile(), [pick])


@pytest.mark.parametrize("way", ["whole", "named", "runtime"])
async def test_answer_that_was_recorded_for_another_state_is_told(ledger, way):
    graph = shop_of(way)
    example = {"id": "e", "inputs": {"messages": [HumanMessage("?", id="h")]}}
    [first] = await graph.arecord([example])
    [same] = await graph.arecord([example], sample=1)
    [other] = await graph.arecord([example], prompts={"pick": "pears"})
    assert [r.outputs["messages"][-1].content for r in (first, same, other)] == ["bought apples"] * 3
    assert (first.warnings, same.warnings) == ((), ())
    [said] = other.warnings
    assert f"'{way}' is given the graph's state, which is not what it was" in said


@pytest.mark.parametrize("way", ["whole", "named", "runtime"])
async def test_looking_at_a_tools_state_for_the_recording_is_no_read_of_it(ledger, way):
    shop = shop_of(way)
    example = {"id": "e", "inputs": {"note": "seen by nobody", "messages": [HumanMessage("?", id="h")]}}
    reads = []
    for mode in ("live", "replay-else-live"):
        [run] = await tg.TrainableGraph(shop.graph, tools=tg.Tools(mode)).arecord([example])
        reads.append([e.reads for e in run.executions])
    assert reads[0] == reads[1]


@pytest.mark.parametrize("way", ["whole", "named"])
async def test_messages_that_a_tool_is_given_are_no_other_state(ledger, way):
    said = tg.Parameter("said", "one")

    @tool
    def whole(state: Annotated[dict, InjectedState]) -> str:
        """Count."""
        return "2"

    @tool
    def named(said: Annotated[list, InjectedState("messages")]) -> str:
        """Count."""
        return "2"

    def ask(state):
        call = {"name": way, "args": {}, "id": "1"}
        return {"messages": [HumanMessage(str(said)), AIMessage("", tool_calls=[call])]}

    builder = StateGraph(MessagesState).add_node(ask).add_node("tools", ToolNode([whole, named]))
    graph = tg.TrainableGraph(builder.add_edge(START, "ask").add_edge("ask", "tools").compile(), [said])
    for text in ("one", "two"):
        [run] = await graph.arecord([{"id": "e", "inputs": {"messages": []}}], prompts={"said": text})
        assert (run.error, run.warnings) == (None, ())


class Column:
    """As arrays and data frames are: comparing it says something about each value."""

    def __eq__(self, other):
        return Column()

    __hash__ = None

    def __bool__(self):
        raise ValueError("The truth value of a column is ambiguous.")

    def __repr__(self):
        return "Column"


async def test_tool_that_is_given_what_has_no_truth_value_is_answered_like_any_other(ledger):
    made = []

    @tool
    def total(cart: Annotated[Any, InjectedState("cart")]) -> str:
        """Say what it comes to."""
        made.append(cart)
        return "12"

    call = {"name": "total", "args": {}, "id": "1"}
    builder = StateGraph(Shop)
    builder.add_node("fill", lambda _: {"cart": Column(), "messages": [AIMessage("", tool_calls=[call])]})
    builder.add_node("tools", ToolNode([total]))
    builder.add_edge(START, "fill").add_edge("fill", "tools")
    for sample in (0, 1):
        [run] = await tg.TrainableGraph(builder.compile()).arecord(rows("a"), sample=sample)
        assert (run.error, run.warnings) == (None, ())
        assert run.outputs["messages"][-1].content == "12"
    assert len(made) == 1


async def test_resumed_run_calls_no_tool_again(bench, tmp_path):
    for sample in (0, 1):
        with tg.Store(tmp_path) as store, tg.use_ledger(tg.Ledger(store)):
            [run] = await graph_of(by_node(bench, "async")).arecord(rows("o1"), sample=sample)
            assert run.outputs["a"] == {"order": "o1", "number": 1}
            assert store.paid() == {}
    assert len(bench.calls) == 1


# Modes.


@pytest.mark.parametrize("is_async", [True, False])
async def test_tool_that_is_under_way_when_the_run_is_stopped_is_not_called_again_on_resume(tmp_path, is_async):
    mails, begun = [], threading.Event()

    def post(text):
        mails.append(text)
        begun.set()

    @tool
    async def asend(text: str) -> str:
        """Send a mail."""
        post(text)
        await asyncio.sleep(0.05)
        return "sent"

    @tool
    def send(text: str) -> str:
        """Send a mail."""
        post(text)
        time.sleep(0.05)
        return "sent"

    async def node(s):
        return {"a": await (asend if is_async else send).ainvoke({"text": s["q"]})}

    with tg.Store(tmp_path) as store:
        ledger = tg.Ledger(store)
        with tg.use_ledger(ledger):
            task = asyncio.create_task(graph_of(node).arecord(rows("hello")))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ledger.aclose()
    with tg.Store(tmp_path) as store, tg.use_ledger(tg.Ledger(store)):
        [run] = await graph_of(node).arecord(rows("hello"))
    assert (run.outputs["a"], mails) == ("sent", ["hello"])


async def test_agent_behind_a_tool_stops_when_nobody_waits_and_its_mail_is_kept(tmp_path):
    asked, mails, ledger = [], [], tg.Ledger(tg.Store(tmp_path))
    model = Chat(answer=lambda messages: asked.append(1) or "go on")

    @tool
    async def send(text: str) -> str:
        """Send a mail."""
        mails.append(text)
        await asyncio.sleep(0.05)
        return "sent"

    @tool
    async def assistant(text: str) -> str:
        """Do it all."""
        await model.ainvoke(text)
        await send.ainvoke({"text": text})
        return (await model.ainvoke("and now?")).content

    async def node(s):
        return {"a": await assistant.ainvoke({"text": s["q"]})}

    with tg.use_ledger(ledger):
        task = asyncio.create_task(graph_of(node).arecord(rows("hello")))
        while not mails:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while ledger.sent:
            await asyncio.sleep(0.001)
        assert len(asked) == 1
        [run] = await graph_of(node).arecord(rows("hello"))
    assert (run.outputs["a"], mails, len(asked)) == ("go on", ["hello"], 2)
    ledger.store.close()


@pytest.mark.parametrize("asks", ["a tool", "a model"])
async def test_end_of_the_run_is_no_answer_of_a_tool(asks):
    ledger, inside, go_on = tg.Ledger(), asyncio.Event(), asyncio.Event()
    model = Chat(answer=lambda messages: "go on")

    @tool
    async def send(text: str) -> str:
        """Send a mail."""
        return "sent"

    @tool
    async def outer(text: str) -> str:
        """Send a mail, later."""
        inside.set()
        await go_on.wait()
        if asks == "a model":
            return (await model.ainvoke(text)).content
        return await send.ainvoke({"text": text})

    async def node(s):
        return {"a": await outer.ainvoke({"text": s["q"]})}

    with tg.use_ledger(ledger):
        task = asyncio.create_task(graph_of(node).arecord(rows("hello")))
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    closing = asyncio.create_task(ledger.aclose())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert [kept["reply"] for kept in ledger.store.results(["tool"])] in ([], [{"agent": True}])
    assert model.calls == []


async def test_live_tools_are_called_each_time_and_nothing_is_kept(bench, ledger):
    graph = graph_of(by_node(bench, "ainvoke"), tg.Tools("live"))
    for sample in (0, 1):
        await graph.arecord(rows("o1"), sample=sample)
    await graph_of(by_node(bench, "ainvoke")).arecord(rows("o1"))
    assert len(bench.calls) == 3


async def test_recorded_tools_are_called_each_time_and_replayed_later(bench, ledger):
    recording = graph_of(by_node(bench, "ainvoke"), tg.Tools("record"))
    for sample in (0, 1):
        [run] = await recording.arecord(rows("o1"), sample=sample)
    assert run.outputs["a"] == "refunded o1 (2)"
    [run] = await graph_of(by_node(bench, "ainvoke"), tg.Tools("replay")).arecord(rows("o1"))
    assert run.outputs["a"] == "refunded o1 (1)"
    assert len(bench.calls) == 2


async def test_replayed_tool_refuses_what_it_cannot_answer(bench, ledger):
    graph = graph_of(by_node(bench, "ainvoke"), tg.Tools(modes={"refund": "replay"}))
    [run] = await graph.arecord(rows("o1"))
    assert run.failed_in == "n#0"
    assert "ToolReplayError: The tool 'refund' may only be replayed, and nothing is recorded" in run.error
    assert "{'order': 'o1'}" in run.warnings[0]
    [run] = await graph_of(by_node(bench, "async"), graph.tools).arecord(rows("o2"))
    assert run.error is None
    assert bench.calls == [("look_up", "o2")]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    "error", [ToolException("out of stock"), ValueError("bad", 3), type("Own", (Exception,), {})("x")]
)
async def test_errors_are_answers_too(ledger, error, is_async):
    made = []

    def fails(order: str) -> str:
        made.append(order)
        raise error

    async def afails(order: str) -> str:
        return fails(order)

    failing = StructuredTool.from_function(
        None if is_async else fails, afails if is_async else None, name="f", description="Fails."
    )

    async def node(s):
        try:
            await failing.ainvoke({"order": s["q"]})
        except Exception as caught:
            return {"a": f"{type(caught).__name__}: {caught}"}

    for sample in (0, 1):
        [run] = await graph_of(node).arecord(rows("o1"), sample=sample)
        assert run.outputs["a"] == f"{type(error).__name__}: {error}"
        assert run.executions[0].tool_calls[0].error == run.outputs["a"]
    assert made == ["o1"]


async def test_error_that_the_tool_node_tells_the_model_is_told_again(bench, ledger):
    @tool
    def buy(order: str) -> str:
        """Buy."""
        bench.calls.append(order)
        raise ToolException("sold out")

    buy.handle_tool_error = True
    graph = tg.TrainableGraph(create_agent(agent_model(("buy", {"order": "o"})), [buy]))
    for sample in (0, 1):
        example = {"id": "e", "inputs": {"messages": [HumanMessage("hi", id="h")]}}
        [run] = await graph.arecord([example], sample=sample)
        assert run.outputs["messages"][2].status == "error"
        assert run.outputs["messages"][-1].content == "sold out"
    assert bench.calls == ["o"]


async def test_value_that_cannot_be_kept_is_told_and_made_again(bench, ledger):
    @tool
    def odd(order: str) -> object:
        """Return something odd."""
        bench.calls.append(order)
        return object()

    def node(s):
        return {"a": type(odd.invoke({"order": s["q"]})).__name__}

    for sample in (0, 1):
        [run] = await graph_of(node).arecord(rows("o1"), sample=sample)
        assert run.outputs["a"] == "object"
    assert len(bench.calls) == 2
    [run] = await graph_of(node, tg.Tools("replay")).arecord(rows("o1"))
    assert "a builtins.object could not be recorded" in run.error
    assert len(bench.calls) == 2


async def test_first_run_tells_that_a_value_cannot_be_kept(ledger):
    odd = StructuredTool.from_function(lambda order: object(), name="odd", description="d")
    [run] = await graph_of(lambda s: {"a": str(type(odd.invoke({"order": "x"})))}).arecord(rows("o"))
    assert "The tool 'odd' returns a builtins.object, which cannot be recorded" in run.warnings[0]


# Agents in tools.


async def test_agent_behind_a_tool_is_no_recording_but_its_own_tools_are(bench, ledger):
    """A candidate for the inner prompt must have an effect."""
    prompt = tg.Parameter("inner", "be kind")
    model = Chat(answer=lambda m: f"[{m[0].content}]")

    @tool
    async def expert(question: str) -> str:
        """Ask an expert."""
        found = await bench.look_up.ainvoke({"order": question})
        reply = await model.ainvoke([prompt.message(), HumanMessage(str(found["number"]))])
        return str(reply.content)

    async def node(s):
        return {"a": await expert.ainvoke({"question": s["q"]})}

    graph = graph_of(node, parameters=[prompt])
    for text in ("be kind", "be brief", "be kind"):
        [run] = await graph.arecord(rows("o1"), prompts={"inner": text})
        assert run.outputs["a"] == f"[{text}]"
    assert bench.calls == [("look_up", "o1")]


async def test_tool_that_reads_a_parameter_is_no_recording(ledger):
    policy = tg.Parameter("policy", "no refunds")

    @tool
    def rules(topic: str) -> str:
        """Return the rules."""
        return f"{topic}: {policy}"

    graph = graph_of(lambda s: {"a": rules.invoke({"topic": s["q"]})}, parameters=[policy])
    for text in ("no refunds", "refunds"):
        [run] = await graph.arecord(rows("t"), prompts={"policy": text})
        assert run.outputs["a"] == f"t: {text}"


# Interrupts.


async def test_tool_that_asks_a_person_asks_again_in_each_run_and_acts_once(ledger):
    made = []

    @tool
    def pay(order: str) -> str:
        """Pay, when a person agrees."""
        agreed = interrupt({"pay": order})
        made.append(order)
        return f"paid {order}: {agreed}"

    built = (
        StateGraph(S)
        .add_node("n", lambda s: {"a": pay.invoke({"order": s["q"]})})
        .add_edge(START, "n")
        .compile(checkpointer=InMemorySaver())
    )
    graph = tg.TrainableGraph(built)
    example = {"id": "e", "inputs": {"q": "o1"}, "metadata": {"resume": ["yes"]}}
    for sample in (0, 1):
        [run] = await graph.arecord([example], sample=sample)
        assert (run.error, run.outputs.get("a")) == (None, "paid o1: yes")
        assert run.warnings == ()
    assert made == ["o1"]


# The policy.


@pytest.mark.parametrize("given", ["lively", {"modes": {"refund": "never"}}, {"tool": "live"}, {"modes": "live"}, {"shared": "x"}])
def test_policy_that_makes_no_sense_is_refused(given):
    with pytest.raises(ConfigurationError):
        tg.Tools.of(given)
    with pytest.raises(ConfigurationError, match=r"list of names, not one text; write \['x'\]"):
        tg.Tools(shared="x")


def test_policy_of_a_configuration():
    assert tg.Tools.of("live") == tg.Tools("live")
    given = {"default": "replay", "modes": {"search": "live"}, "shared": ["search"]}
    assert tg.Tools.of(given) == tg.Tools("replay", {"search": "live"}, ["search"])


def test_another_policy_makes_other_runs_and_the_usual_one_does_not(bench):
    graph = graph_of(by_node(bench, "invoke"))
    usual = graph.fingerprint
    assert graph_of(by_node(bench, "invoke"), tg.Tools()).fingerprint == usual
    graph.tools = tg.Tools("live")
    assert graph.fingerprint != usual


def test_refusal_is_an_error_of_the_tree():
    assert issubclass(ToolReplayError, tg.LGTextGradError)
