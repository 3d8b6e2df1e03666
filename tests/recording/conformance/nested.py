"""Constructs with more than one graph: subgraphs, agents, tasks, interrupts; and what has limits."""

from __future__ import annotations

import operator
import threading
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.cache.memory import InMemoryCache
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import CachePolicy, Command, RetryPolicy, Send, interrupt

from tests.recording.conformance.kit import Ask, Call, Construct, Start, Wait
from tests.recording.conformance.plain import M, S, graph


class Inner(TypedDict, total=False):
    q: str
    b: str


def pair(k, v="v", w="w", schema=Inner):
    """A subgraph of two nodes, of which the second reads what the first wrote."""

    def first(s):
        return {"b": (yield Ask(v, s["q"]))}

    def second(s):
        return {"b": (yield Ask(w, s["b"]))}

    return sub(k, {"v": first, "w": second}, [(START, "v"), ("v", "w")], schema)


def sub(k, nodes, edges, schema=Inner, conditional=()):
    builder = StateGraph(schema)
    for name, body in nodes.items():
        builder.add_node(name, k.node(body) if callable(body) and not hasattr(body, "invoke") else body)
    for edge in edges:
        builder.add_edge(*edge)
    for where in conditional:
        builder.add_conditional_edges(*where)
    return builder.compile()


def compiled(k, nodes, edges, conditional=(), schema=S, options=None):
    """Compile a graph whose nodes may be graphs, and functions that are what they are."""
    builder = StateGraph(schema)
    for name, node in nodes.items():
        builder.add_node(name, node, **(options or {}).get(name, {}))
    for edge in edges:
        builder.add_edge(*edge)
    for where in conditional:
        builder.add_conditional_edges(*where)
    return builder.compile(checkpointer=k.saver)


def as_node(k):
    def first(s):
        return {"q": "new", "a": (yield Ask("first", s["q"]))}

    def last(s):
        return {"c": s["b"] + s["q"]}

    nodes = {"first": k.node(first), "sub": pair(k), "last": k.node(last)}
    return compiled(k, nodes, [(START, "first"), ("first", "sub"), ("sub", "last")])


def two_deep(k):
    middle = sub(k, {"deep": pair(k), "x": lambda s: {"b": s["b"] + "x"}}, [(START, "deep"), ("deep", "x")])
    nodes = {"sub": middle, "last": k.node(lambda s: {"c": s["b"]})}
    return compiled(k, nodes, [(START, "sub"), ("sub", "last")])


def routed_to_sub(k):
    nodes = {"judge": k.node(lambda s: {"a": "x"}), "sub": pair(k), "other": k.node(lambda s: {})}
    return compiled(
        k, nodes, [(START, "judge")], [("judge", lambda s: "sub", ["sub", "other"])]
    )


def sent_to_sub(k):
    def spread(s):
        return [Send("sub", {"q": part}) for part in ("x", "y")]

    class Found(TypedDict, total=False):
        items: Annotated[list, operator.add]

    class Items(Found, total=False):
        q: str

    def work(s):
        return {"items": [(yield Ask("work", s["q"]))]}

    builder = StateGraph(Items, output_schema=Found).add_node("work", k.node(work))
    nodes = {"plan": k.node(lambda s: {}), "sub": builder.add_edge(START, "work").compile()}
    nodes["join"] = k.node(lambda s: {"a": "".join(s["items"])})
    return compiled(
        k, nodes, [(START, "plan"), ("sub", "join")], [("plan", spread, ["sub"])]
    )


def to_parent(k):
    def hand(s):
        said = yield Ask("hand", s["q"])
        return Command(graph=Command.PARENT, goto="two", update={"a": said, "items": ["hand"]})

    hands = sub(k, {"see": lambda s: {"b": "seen"}, "hand": hand}, [(START, "see"), ("see", "hand")])

    def two(s):
        return {"b": s["a"]}

    return compiled(k, {"sub": hands, "two": k.node(two)}, [(START, "sub")])


class Other(TypedDict, total=False):
    question: str
    answer: str


def asks(k, name):
    def answer(s):
        return {"answer": (yield Ask(name, s["question"]))}

    return sub(k, {name: answer}, [(START, name)], Other)


def inside(k):
    def w(s):
        return {"draft": (yield Ask("w", s["question"]))}

    def x(s):
        return {"answer": s["draft"] + "!"}

    class Steps(Other, total=False):
        draft: str

    called = sub(k, {"w": w, "x": x}, [(START, "w"), ("w", "x")], Steps)

    def plain(s):
        return {"b": called.invoke({"question": s["a"]})["answer"]}

    async def awaited(s):
        return {"b": (await called.ainvoke({"question": s["a"]}))["answer"]}

    nodes = {
        "first": k.node(lambda s: {"a": "x", "q": "unread"}),
        "host": plain if k.sync else awaited,
        "last": k.node(lambda s: {"c": s["b"]}),
    }
    return compiled(k, nodes, [(START, "first"), ("first", "host"), ("host", "last")])


def inside_twice(k):
    called, other = asks(k, "w"), asks(k, "other")

    def plain(s):
        first = called.invoke({"question": s["a"]})["answer"]
        second = called.invoke({"question": f"{first}?"})["answer"]
        apart = other.invoke({"question": "constant"})["answer"]
        return {"b": second, "c": apart}

    async def awaited(s):
        first = (await called.ainvoke({"question": s["a"]}))["answer"]
        second = (await called.ainvoke({"question": f"{first}?"}))["answer"]
        apart = (await other.ainvoke({"question": "constant"}))["answer"]
        return {"b": second, "c": apart}

    nodes = {
        "first": k.node(lambda s: {"a": "x"}),
        "host": plain if k.sync else awaited,
        "last": k.node(lambda s: {"q": s["b"]}),
        "side": k.node(lambda s: {"items": [s["c"]]}),
    }
    edges = [(START, "first"), ("first", "host"), ("host", "last"), ("host", "side")]
    return compiled(k, nodes, edges)


def inside_unseen(k):
    class Kept(TypedDict, total=False):
        question: str
        notes: Annotated[list, operator.add]
        draft: str

    def v(s):
        return {"notes": [(yield Ask("v", s["question"]))], "draft": "first"}

    def w(s):
        return {"notes": ["w"], "draft": "second"}

    def x(s):
        return {"notes": [s["draft"] + "".join(s["notes"])]}

    def onward(s):
        return "w" if s["notes"] else "x"

    edges = [(START, "v"), ("w", "x")]
    # In a dict, where LangGraph does not look for graphs.
    graphs = {"helper": sub(k, {"v": v, "w": w, "x": x}, edges, Kept, [("v", onward)])}

    def host(s):
        found = yield Call(graphs["helper"], {"question": s["q"]})
        return {"a": found["notes"][-1].upper()}

    return compiled(k, {"host": k.node(host), "last": k.node(lambda s: {"c": s["a"]})},
                    [(START, "host"), ("host", "last")])  # fmt: skip


def retried_host(k):
    called = asks(k, "w")
    tried = []

    def again(s):
        if s["q"] in tried:
            tried.remove(s["q"])
            return
        tried.append(s["q"])
        raise ValueError("not yet")

    def plain(s):
        found = called.invoke({"question": s["q"]})
        again(s)
        return {"b": found["answer"]}

    async def awaited(s):
        found = await called.ainvoke({"question": s["q"]})
        again(s)
        return {"b": found["answer"]}

    retry = RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False, retry_on=ValueError)
    nodes = {"host": plain if k.sync else awaited, "last": k.node(lambda s: {"c": s["b"]})}
    return compiled(
        k, nodes, [(START, "host"), ("host", "last")], options={"host": {"retry_policy": retry}}
    )


# Agents.


class Tooled(BaseChatModel):
    """Calls its tools first, each once, then answers with what they said."""

    calls: Any = None
    answers: Any = None

    @property
    def _llm_type(self):
        return "tooled"

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[{"name": t.name} for t in tools])

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        said = [m for m in messages if m.type == "tool"]
        usage = {"input_tokens": len(messages), "output_tokens": 1, "total_tokens": len(messages) + 1}
        if len(said) < len(self.calls):
            name, args = self.calls[len(said)]
            call = {"name": name, "args": args, "id": f"c{len(said)}"}
            message = AIMessage("", tool_calls=[call], usage_metadata=usage)
        else:
            message = AIMessage("So: " + " ".join(m.content for m in said), usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


@tool
def look(word: str) -> str:
    """Look a word up."""
    return f"found {word}"


HI = {"messages": [HumanMessage("hi", id="0")], "summary": ""}


def react(k):
    model = Tooled(calls=[("look", {"word": "x"}), ("look", {"word": "y"})]).bind_tools([look])

    def plain(s):
        return {"messages": [model.invoke([k.prompt("agent"), *s["messages"]])]}

    async def awaited(s):
        return {"messages": [await model.ainvoke([k.prompt("agent"), *s["messages"]])]}

    nodes = {"agent": plain if k.sync else awaited, "tools": ToolNode([look])}
    return compiled(
        k, nodes, [(START, "agent"), ("tools", "agent")], [("agent", tools_condition)], schema=M
    )


class Watches(AgentMiddleware):
    """Has a node of its own before and after each model call."""

    def before_model(self, state, runtime):
        return None

    def after_model(self, state, runtime):
        return {"messages": []}


def agent_of(k, calls=(("look", {"word": "x"}),), tools=(look,), prompt="agent", **options):
    middleware = [*options.pop("middleware", ())]
    text = k.prompt(prompt).content
    if k.declared:
        middleware.append(k.parameters[prompt].middleware())
    return create_agent(
        Tooled(calls=list(calls)), list(tools), system_prompt=text, middleware=middleware, **options
    )


def agent(k):
    return agent_of(k, middleware=[Watches()], checkpointer=k.saver)


def agent_as_node(k):
    nodes = {
        "first": k.node(lambda s: {"summary": "x"}),
        "helper": agent_of(k),
        "last": k.node(lambda s: {"summary": s["messages"][-1].content}),
    }
    edges = [(START, "first"), ("first", "helper"), ("helper", "last")]
    return compiled(k, nodes, edges, schema=M)


def agent_in_tool(k):
    helper = agent_of(k, prompt="helper")

    def plain(request: str) -> str:
        """Ask the helper."""
        return helper.invoke({"messages": [HumanMessage(request)]})["messages"][-1].content

    async def awaited(request: str) -> str:
        """Ask the helper."""
        return (await helper.ainvoke({"messages": [HumanMessage(request)]}))["messages"][-1].content

    ask = tool("ask")(plain if k.sync else awaited)
    calls = [("ask", {"request": "what is x?"})]
    return agent_of(k, calls, [ask], "supervisor", checkpointer=k.saver)


def command_of_tool(k):
    @tool
    def file(word: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
        """File a word."""
        said = ToolMessage(f"filed {word}", tool_call_id=tool_call_id)
        return Command(update={"messages": [said], "summary": word}, goto="last")

    model = Tooled(calls=[("file", {"word": "x"})]).bind_tools([file])

    def plain(s):
        return {"messages": [model.invoke([k.prompt("agent"), *s["messages"]])]}

    async def awaited(s):
        return {"messages": [await model.ainvoke([k.prompt("agent"), *s["messages"]])]}

    def last(s):
        return {"summary": s["summary"] + "!"}

    nodes = {"agent": plain if k.sync else awaited, "tools": ToolNode([file]), "last": k.node(last)}
    return compiled(k, nodes, [(START, "agent"), ("agent", "tools")], schema=M)


def chain_as_node(k):
    def ask(text):
        return (yield Ask("one", text))

    def result(text):
        return {"a": text}

    one = RunnableLambda(lambda s: s["q"]) | RunnableLambda(k.node(ask)) | RunnableLambda(result)
    nodes = {"zero": k.node(lambda s: {"q": "new", "b": "b"}), "one": one, "two": k.node(lambda s: {"b": s["a"]})}
    return compiled(k, nodes, [(START, "zero"), ("zero", "one"), ("one", "two")])


# The functional API.


def flow(k):
    def draft(topic, style="plain"):
        return (yield Ask("draft", f"{topic} {style}"))

    def check(text):
        return (yield Ask("check", text))

    def join(parts, title):
        return title + ": " + " / ".join(parts)

    made = {b.__name__: task(k.node(b)) for b in (draft, check, join)}

    def steps(inputs):
        first = yield Wait((yield Start(made["draft"], (inputs["q"],))))
        apart = yield Wait((yield Start(made["check"], (f"Is {first} right?",))))
        both = yield Wait((yield Start(made["join"], ([first, apart], "constant"))))
        return {"a": both, "b": apart}

    return entrypoint(checkpointer=k.saver)(k.node(steps))


def flow_at_once(k):
    def part(n, topic):
        return (yield Ask("part", f"{topic} {n}"))

    def score(text):
        return len(text)

    part, score = task(k.node(part)), task(k.node(score))

    def steps(topic):
        started = []
        for n in range(2):
            started.append((yield Start(part, (n, topic))))
        said = []
        for future in started:
            said.append((yield Wait(future)))
        # Computed, so it may be made of all that had come back, and nothing later is.
        best = yield Wait((yield Start(score, (max(said, key=len).upper(),))))
        return best + 1

    return entrypoint(checkpointer=k.saver)(k.node(steps))


def flow_in_node(k):
    def shout(text):
        return (yield Ask("shout", text))

    shout = task(k.node(shout))

    def host(s):
        said = yield Wait((yield Start(shout, (s["a"],))))
        return {"b": said}

    nodes = {"first": lambda s: {"a": "x"}, "host": host, "last": lambda s: {"c": s["b"]}}
    edges = [(START, "first"), ("first", "host"), ("host", "last")]
    return graph(k, nodes, edges)


def flow_inside(k):
    def draft(topic):
        return (yield Ask("draft", topic))

    draft = task(k.node(draft))

    def steps(inputs):
        return {"text": (yield Wait((yield Start(draft, (inputs["topic"],)))))}

    called = entrypoint()(k.node(steps))

    def host(s):
        return {"b": (yield Call(called, {"topic": s["a"]}))["text"]}

    nodes = {"first": lambda s: {"a": "x"}, "host": host, "last": lambda s: {"c": s["b"]}}
    edges = [(START, "first"), ("first", "host"), ("host", "last")]
    return graph(k, nodes, edges)


def flow_of_flows(k):
    def inner(text):
        return (yield Ask("inner", text))

    inner = task(k.node(inner))

    def outer(text):
        return (yield Wait((yield Start(inner, (text,)))))

    outer = task(k.node(outer))

    def after(text):
        return (yield Ask("after", text))

    after = task(k.node(after))

    def steps(inputs):
        said = yield Wait((yield Start(outer, (inputs["q"],))))
        return {"a": (yield Wait((yield Start(after, (said,)))))}

    return entrypoint(checkpointer=k.saver)(k.node(steps))


# Interrupts.


def asks_back(k):
    def ask(s):
        said = yield Ask("ask", s["q"])
        return {"a": f"{said}, {interrupt('fine?')}"}

    nodes = {"ask": ask, "side": lambda s: {"c": "side"}, "end": lambda s: {"b": s["a"] + s["c"]}}
    return graph(k, nodes, [(START, "ask"), (START, "side"), (["ask", "side"], "end")])


def asks_back_inside(k):
    def ask(s):
        return {"b": (yield Ask("ask", s["b"])) + interrupt("fine?")}

    inner = sub(k, {"v": lambda s: {"b": s["q"]}, "ask": ask}, [(START, "v"), ("v", "ask")])
    nodes = {"sub": inner, "end": k.node(lambda s: {"c": s["b"]})}
    return compiled(k, nodes, [(START, "sub"), ("sub", "end")])


def flow_asks_back(k):
    def draft(topic):
        return (yield Ask("draft", topic))

    def send(text, answer):
        return f"{text} {answer}"

    draft, send = task(k.node(draft)), task(k.node(send))

    def steps(inputs):
        text = yield Wait((yield Start(draft, (inputs["q"],))))
        answer = interrupt("fine?")
        return {"a": (yield Wait((yield Start(send, (text, answer)))))}

    return entrypoint(checkpointer=k.saver)(k.node(steps))


def breakpoint_(k):
    def one(s):
        return {"a": (yield Ask("one", s["q"]))}

    nodes = {"one": one, "two": lambda s: {"b": s["a"]}}
    return graph(k, nodes, [(START, "one"), ("one", "two")], interrupt_before=["two"])


# What has limits.


def cached(k):
    def slow(s):
        return {"a": (yield Ask("slow", s["q"]))}

    nodes = {"slow": (slow, {"cache_policy": CachePolicy()}), "last": lambda s: {"b": s["a"]}}
    return graph(k, nodes, [(START, "slow"), ("slow", "last")], cache=InMemoryCache())


def in_place(k):
    def one(s):
        return {"items": [(yield Ask("one", s["q"]))]}

    def two(s):
        s["items"].append("by two")
        return {"a": "x"}

    nodes = {"one": one, "two": two, "last": lambda s: {"b": "".join(s["items"])}}
    return graph(k, nodes, [(START, "one"), ("one", "two"), ("two", "last")])


def raw_thread(k):
    said: dict[str, Any] = {}

    def one(s):
        def work():
            said["one"] = k.model.invoke(s["q"]).content

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return {"a": said["one"]}

    nodes = {"one": one, "two": lambda s: {"b": s["a"]}}
    return graph(k, nodes, [(START, "one"), ("one", "two")])


def hidden(k):
    def plain(s):
        return {"a": k.model.invoke([HumanMessage(s["q"])], {"callbacks": []}).content}

    async def awaited(s):
        return {"a": (await k.model.ainvoke([HumanMessage(s["q"])], {"callbacks": []})).content}

    nodes = {"one": plain if k.sync else awaited, "two": k.node(lambda s: {"b": s["a"]})}
    return compiled(k, nodes, [(START, "one"), ("one", "two")])


UNOBSERVED = (
    "What the nodes of a graph read that another node's code calls is not observed: the code calls "
    "the graph itself, not the copy that notes reads. Every key that their schema hands them counts."
)
UNNOTICED = (
    "`tg.watch` leaves models as they are, so nothing tells of a call that callbacks don't tell of."
)
TOPIC = {"q": "topic"}
ROWS = [
    Construct(
        "Subgraph as a node", as_node, TOPIC,
        """
        first#0 > sub/v#0 q
        sub/v#0 > sub/w#0 b
        sub/w#0 > sub#0 __return__
        sub/w#0 > last#0 b
        first#0 > last#0 q
        """,
        {"first#0": "first", "sub/v#0": "v", "sub/w#0": "w"},
    ),
    Construct(
        "Subgraph in a subgraph", two_deep, TOPIC,
        """
        sub/deep/v#0 > sub/deep/w#0 b
        sub/deep/w#0 > sub/deep#0 __return__
        sub/deep/w#0 > sub/x#0 b
        sub/deep#0 > sub#0 __return__
        sub/x#0 > sub#0 __return__
        sub/x#0 > last#0 b
        """,
        {"sub/deep/v#0": "v", "sub/deep/w#0": "w"},
    ),
    Construct(
        "Subgraph that a conditional edge leads to", routed_to_sub, TOPIC,
        """
        judge#0 > sub#0 __route__
        judge#0 > sub/v#0 __route__
        sub/v#0 > sub/w#0 b
        sub/w#0 > sub#0 __return__
        """,
        {"sub/v#0": "v", "sub/w#0": "w"},
    ),
    Construct(
        "`Send` to a subgraph", sent_to_sub, TOPIC,
        """
        plan#0 > sub#0 __send__
        plan#0 > sub#1 __send__
        plan#0 > sub/work#0 q
        plan#0 > sub/work#1 q
        sub/work#0 > sub#0 __return__
        sub/work#1 > sub#1 __return__
        sub/work#0 > join#0 items
        sub/work#1 > join#0 items
        """,
        {"sub/work#0": "work", "sub/work#1": "work"},
    ),
    Construct(
        "`Command.PARENT`", to_parent, TOPIC,
        """
        sub/hand#0 > sub#0 __return__
        sub/see#0 > sub#0 __return__
        sub/hand#0 > two#0 a
        sub/hand#0 > two#0 __route__
        """,
        {"sub/hand#0": "hand"},
    ),
    Construct(
        "Graph called inside a node", inside, TOPIC,
        """
        first#0 > host#0 a
        first#0 > host/w#0 question
        host/w#0 > host/x#0 draft
        first#0 > host/x#0 question
        host/x#0 > host#0 __return__
        host/x#0 > last#0 b
        """,
        {"host/w#0": "w"},
        limit=UNOBSERVED,
    ),
    Construct(
        "Graphs called inside a node, one of them twice", inside_twice, TOPIC,
        """
        first#0 > host#0 a
        first#0 > host/w#0 question
        host/w#0 > host/w#1 question
        host/w#1 > host#0 __return__
        host/other#0 > host#0 __return__
        host/w#1 > last#0 b
        host/other#0 > side#0 c
        """,
        {"host/w#0": "w", "host/w#1": "w", "host/other#0": "other"},
    ),
    Construct(
        "Graph called inside a node, that LangGraph cannot see", inside_unseen, TOPIC,
        """
        host/v#0 > host/w#0 __route__
        host/v#0 > host/w#0 draft
        host/v#0 > host/w#0 notes
        host/w#0 > host/x#0 draft
        host/v#0 > host/x#0 notes
        host/w#0 > host/x#0 notes
        host/x#0 > host#0 __return__
        host/v#0 > host#0 __return__
        host/w#0 > host#0 __return__
        host#0 > last#0 a
        """,
        {"host/v#0": "v"},
        limit=UNOBSERVED,
    ),
    Construct(
        "Retry of a node that calls a graph", retried_host, TOPIC,
        """
        host/w#1 > host#0 __return__
        host/w#1 > last#0 b
        """,
        {"host/w#0": "w", "host/w#1": "w"},
        executions="host/w#0",
    ),
    Construct(
        "`ToolNode` in a loop with a model", react, HI,
        """
        agent#0 > tools#0 messages
        agent#0 > tools#0 __route__
        agent#0 > agent#1 messages
        tools#0 > agent#1 messages
        agent#0 > tools#1 messages
        tools#0 > tools#1 messages
        agent#1 > tools#1 messages
        agent#1 > tools#1 __route__
        agent#0 > agent#2 messages
        tools#0 > agent#2 messages
        agent#1 > agent#2 messages
        tools#1 > agent#2 messages
        """,
        {"agent#0": "agent", "agent#1": "agent", "agent#2": "agent"},
    ),
    Construct(
        "Tool that returns a `Command`", command_of_tool, HI,
        """
        agent#0 > tools#0 messages
        tools#0 > last#0 summary
        tools#0 > last#0 __route__
        """,
        {"agent#0": "agent"},
    ),
    Construct(
        "Chain of runnables as a node", chain_as_node, TOPIC,
        """
        zero#0 > one#0 q
        one#0 > two#0 a
        """,
        {"one#0": "one"},
    ),
    Construct(
        "`create_agent` with tools and middleware", agent, {"messages": [HumanMessage("hi", id="0")]},
        """
        model#0 > Watches.after_model#0 messages
        Watches.after_model#0 > tools#0 __send__
        tools#0 > Watches.before_model#1 __route__
        model#0 > model#1 messages
        tools#0 > model#1 messages
        model#0 > Watches.after_model#1 messages
        tools#0 > Watches.after_model#1 messages
        model#1 > Watches.after_model#1 messages
        """,
        {"model#0": "agent", "model#1": "agent"},
        executions="Watches.before_model#0",
    ),
    Construct("Agent as a node", agent_as_node, HI, """
        helper/model#0 > helper/tools#0 __send__
        helper/model#0 > helper/model#1 messages
        helper/tools#0 > helper/model#1 messages
        helper/tools#0 > helper/model#1 __route__
        helper/model#1 > helper#0 __return__
        helper/model#0 > last#0 messages
        helper/tools#0 > last#0 messages
        helper/model#1 > last#0 messages
        """, {"helper/model#0": "agent", "helper/model#1": "agent"}, executions="first#0"),
    Construct("Agent called in a tool of an agent", agent_in_tool, {"messages": [HumanMessage("hi", id="0")]}, """
        model#0 > tools#0 __send__
        model#0 > tools/model#0 messages
        tools/model#0 > tools/tools#0 __send__
        model#0 > tools/model#1 messages
        tools/model#0 > tools/model#1 messages
        tools/tools#0 > tools/model#1 messages
        tools/model#1 > tools#0 __return__
        model#0 > model#1 messages
        tools#0 > model#1 messages
        tools#0 > model#1 __route__
        """,
        {"model#0": "supervisor", "model#1": "supervisor", "tools/model#0": "helper", "tools/model#1": "helper"},),
    Construct(
        "`@entrypoint` with `@task`s", flow, TOPIC,
        """
        steps/draft#0 > steps/check#0 text
        steps/draft#0 > steps/join#0 parts
        steps/check#0 > steps/join#0 parts
        steps/join#0 > steps#0 __return__
        steps/check#0 > steps#0 __return__
        """,
        {"steps/draft#0": "draft", "steps/check#0": "check"},
        sinks={"a": "steps/join#0", "b": "steps/check#0"},
    ),
    Construct(
        "`@task`s at once, and a value computed from theirs", flow_at_once, {"__root__": "topic"},
        """
        steps/part#0 > steps/score#0 text
        steps/part#1 > steps/score#0 text
        steps/part#0 > steps#0 __return__
        steps/part#1 > steps#0 __return__
        steps/score#0 > steps#0 __return__
        """,
        {"steps/part#0": "part", "steps/part#1": "part"},
        sinks={"output": "steps#0"},
    ),
    Construct(
        "`@task` called inside a node", flow_in_node, TOPIC,
        """
        first#0 > host#0 a
        first#0 > host/shout#0 text
        host/shout#0 > host#0 __return__
        host/shout#0 > last#0 b
        """,
        {"host/shout#0": "shout"},
    ),
    Construct(
        "`@entrypoint` called inside a node", flow_inside, TOPIC,
        """
        first#0 > host#0 a
        first#0 > host/steps#0 topic
        first#0 > host/steps/draft#0 topic
        host/steps/draft#0 > host/steps#0 __return__
        host/steps#0 > host#0 __return__
        host/steps/draft#0 > host#0 __return__
        host/steps/draft#0 > last#0 b
        """,
        {"host/steps/draft#0": "draft"},
    ),
    Construct(
        "`@task` called inside a `@task`", flow_of_flows, TOPIC,
        """
        steps/outer/inner#0 > steps/outer#0 __return__
        steps/outer/inner#0 > steps/after#0 text
        steps/outer#0 > steps#0 __return__
        steps/after#0 > steps#0 __return__
        """,
        {"steps/outer/inner#0": "inner", "steps/after#0": "after"},
        sinks={"a": "steps/after#0"},
    ),
    Construct(
        "Interrupt, resumed", asks_back, TOPIC,
        """
        ask#0 > end#0 a
        side#0 > end#0 c
        """,
        {"ask#0": "ask ask"},
        metadata={"resume": ["yes"]},
    ),
    Construct(
        "Interrupt in a subgraph, resumed", asks_back_inside, TOPIC,
        """
        sub/v#0 > sub/ask#0 b
        sub/ask#0 > sub#0 __return__
        sub/ask#0 > end#0 b
        """,
        {"sub/ask#0": "ask ask"},
        metadata={"resume": ["yes"]},
    ),
    Construct(
        "Interrupt in an `@entrypoint`, resumed", flow_asks_back, TOPIC,
        """
        steps/draft#0 > steps/send#0 text
        steps/send#0 > steps#0 __return__
        """,
        {"steps/draft#0": "draft"},
        metadata={"resume": ["yes"]},
        sinks={"a": "steps/send#0"},
    ),
    Construct(
        "Breakpoint, passed", breakpoint_, TOPIC,
        "one#0 > two#0 a",
        {"one#0": "one"},
        metadata={"resume": [None]},
    ),
    Construct(
        "Node cache", cached, TOPIC,
        "slow#0 > last#0 a",
        {"slow#0": "slow"},
        warm=True,
        watched={
            "edges": "", "executions": "last#0", "prompts": {}, "unseen": "slow",
            "warns": "The node 'slow' was answered from its cache, so it is not in the trace",
            "limit": (
                "A cache answers without a callback. `arecord` runs graphs without their node "
                "caches; under `tg.watch` the graph has its own, and a warning names the node."
            ),
        },
    ),
    Construct(
        "State changed in place", in_place, TOPIC,
        """
        one#0 > two#0 items
        one#0 > last#0 items
        """,
        {"one#0": "one"},
        warns="While the node 'two' ran, the value of 'items' that it was given was changed in place",
        limit="There is no write to lead back to; a warning names the node.",
    ),
    Construct(
        "Model called in a raw thread", raw_thread, TOPIC,
        "one#0 > two#0 a",
        warns="While the node 'one' ran, a model was called in a thread",
        limit="Callbacks and candidates don't reach a thread by themselves; a warning names the node.",
        watched={"warns": "", "limit": UNNOTICED},
    ),
    Construct(
        "Model called with `callbacks: []`", hidden, TOPIC,
        "one#0 > two#0 a",
        warns="The node 'one' called a model with callbacks of its own",
        limit="The call is not in the trace; a warning names the node.",
        watched={"warns": "", "limit": UNNOTICED},
    ),
]  # fmt: skip
