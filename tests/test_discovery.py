"""`discover`: the prompts of unmodified graphs, found by running them and replaced at the boundary."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime

import lg_textgrad as tg
from lg_textgrad.bindings.discovered import Discovered
from lg_textgrad.discovery import find_in
from lg_textgrad.errors import DataError, GraphError, ParameterError
from tests.parts import Chat, ToolChat, echo


class S(TypedDict, total=False):
    q: str
    team: str
    a: str
    b: str
    messages: Annotated[list, add_messages]


def one(node, name="writer"):
    return StateGraph(S).add_node(name, node).add_edge(START, name).compile()


def saying(*asked, model=None):
    """A graph of one node that sends the messages, each a function of the state."""
    model = model or Chat(answer=echo)

    async def writer(state):
        return {"a": (await model.ainvoke([ask(state) for ask in asked])).content}

    return one(writer)


def user(state):
    return HumanMessage(state["q"])


def said(text):
    return lambda state: SystemMessage(text)


TWO = [{"q": "why is it blue", "team": "billing"}, {"q": "who pays for this", "team": "sales"}]


def values(graph):
    return {n: p.value for n, p in graph.parameters.items()}


def sent(run):
    return [m["content"] for e in run.executions for c in e.model_calls for m in c.messages]


# Found.


async def test_constant_system_prompt_is_a_parameter_named_after_its_node():
    graph = await tg.adiscover(saying(said("You write."), user), TWO)
    assert values(graph) == {"writer": "You write."}
    [binding] = [b for b in graph.bindings if "writer" in b.parameters]
    assert (binding.held("writer").how, binding.held("writer").nodes) == (
        "found in the system message", ("writer",),
    )
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "You sing."})
    assert run.outputs["a"] == "You sing. / why is it blue"
    assert sent(run) == ["You sing.", "why is it blue"]
    assert run.executions[0].prompts == {"writer": "You sing."}
    assert run.warnings == ()


def test_sync_twin_and_plain_examples():
    rows = [tg.Example("1", TWO[0]), {"inputs": TWO[1]}]
    assert values(tg.discover(saying(said("You write."), user), rows)) == {"writer": "You write."}


async def test_f_string_is_a_template_with_the_states_names():
    graph = await tg.adiscover(saying(lambda s: SystemMessage(f"You answer for {s['team']}. Be kind."), user), TWO)
    parameter = graph.parameters["writer"]
    assert parameter.value == "You answer for {team}. Be kind."
    assert parameter.placeholders == ("team",)
    [run] = await graph.arecord(
        [{"inputs": {"q": "hi", "team": "the {team}"}}], prompts={"writer": "{team}: be {curt}, {team}."}
    ) if False else await graph.arecord(
        [{"inputs": {"q": "hi", "team": "the {team}"}}], prompts={"writer": "{team}: be curt, {team}."}
    )
    assert run.outputs["a"] == "the {team}: be curt, the {team}. / hi"


async def test_prompt_template_is_known_from_one_run_with_its_own_names():
    model = Chat(answer=echo)
    prompt = ChatPromptTemplate.from_messages(
        [("system", 'Reply as {{"x": 1}} for {group}, {tone}.'), ("user", "{q}")]
    ).partial(tone="kindly")

    async def writer(state):
        return {"a": (await (prompt | model).ainvoke({"group": state["team"], "q": state["q"]})).content}

    graph = await tg.adiscover(one(writer), TWO[:1])
    assert values(graph) == {"writer": 'Reply as {"x": 1} for {group}, {tone}.'}
    [run] = await graph.arecord(
        [{"inputs": TWO[1]}], prompts={"writer": 'Do {"y": 2}, {tone}, as {group}.'}
    )
    assert run.outputs["a"] == 'Do {"y": 2}, kindly, as sales. / who pays for this'


async def test_braces_of_a_constant_prompt_are_no_placeholders_and_stay():
    text = 'Reply with {"team": "x"} or {team} or {{y}}.'
    graph = await tg.adiscover(saying(said(text), user), TWO)
    assert graph.parameters["writer"].placeholders == ()
    [same] = await graph.arecord([{"inputs": TWO[0]}])
    [other] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": text + " {z}"})
    assert sent(same)[0] == text
    assert sent(other)[0] == text + " {z}"


async def test_two_prompts_of_one_node_are_two_parameters_in_order():
    model = Chat(answer=echo)

    async def writer(state):
        first = await model.ainvoke([("system", "You write a draft."), ("user", state["q"])])
        second = await model.ainvoke([("system", f"Correct spelling for {state['team']} readers."), first])
        return {"a": first.content, "b": second.content}

    graph = await tg.adiscover(one(writer), TWO)
    assert values(graph) == {
        "writer": "You write a draft.",
        "writer 2": "Correct spelling for {team} readers.",
    }
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer 2": "Shout, {team}."})
    assert sent(run)[0] == "You write a draft."
    assert sent(run)[2] == "Shout, billing."


async def test_prompts_that_a_node_chooses_between_are_parameters_of_their_own():
    def choose(state):
        text = "Refund the money politely." if state["team"] == "billing" else "Sell more shoes and hats, always."
        return SystemMessage(text)

    graph = await tg.adiscover(saying(choose, user), TWO)
    assert sorted(values(graph).values()) == ["Refund the money politely.", "Sell more shoes and hats, always."]


async def test_calls_in_a_loop_are_one_template():
    model = Chat(answer=echo)

    async def writer(state):
        for word in state["q"].split():
            await model.ainvoke([("system", f"Please translate {word} to German."), ("user", "go")])
        return {"a": ""}

    rows = [{"q": "red green"}, {"q": "black white"}]
    assert values(await tg.adiscover(one(writer), rows)) == {"writer": "Please translate {var1} to German."}


async def test_template_in_the_user_message_is_found_where_there_is_no_system_message():
    graph = await tg.adiscover(
        saying(lambda s: HumanMessage(f"Summarise for {s['team']}:\n{s['q']}", name="x", id="7")), TWO
    )
    assert values(graph) == {"writer": "Summarise for {team}:\n{q}"}
    assert graph.found[0].why == "found in the user message"
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "TL;DR {q} ({team})"})
    assert run.outputs["a"] == "TL;DR why is it blue (billing)"


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%S.%f+00:00", "%B %d, %Y", "%a %b %d, %Y", "%H:%M"])
async def test_date_and_time_in_a_prompt_are_variables_though_all_runs_have_the_same(form):
    clock = [datetime.now(UTC)]
    graph = await tg.adiscover(
        saying(lambda s: SystemMessage(f"You help.\nIt is {clock[0]:{form}}."), user), TWO
    )
    [(name, text)] = values(graph).items()
    kind = "time" if "%H" in form else "date"
    assert (name, text) == ("writer", f"You help.\nIt is {{{kind}}}.")
    [finding] = graph.found
    assert finding.why == "found in the system message, with variables"
    clock[0] += timedelta(days=40, hours=5, minutes=12)  # a run is resumed weeks later
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": f"At {{{kind}}}: help well."})
    assert run.warnings == ()
    assert sent(run)[0] == f"At {clock[0]:{form}}: help well."


async def test_words_that_upstream_replies_share_are_not_the_prompts_own():
    class Notes(TypedDict, total=False):
        q: str
        notes: list[str]
        a: str

    async def reader(state):
        return {"notes": [f"Here is what was found: {state['q']} is so."]}

    async def writer(state):
        notes = "\n".join(f"* {note}" for note in state["notes"])
        return {"a": (await model.ainvoke([SystemMessage(f"You write.\n{notes}\nBe brief.")])).content}

    model = Chat(answer=echo)
    builder = StateGraph(Notes).add_sequence([reader, writer]).add_edge(START, "reader")
    graph = await tg.adiscover(builder.compile(), [{"q": t["q"]} for t in TWO])
    assert values(graph) == {"writer": "You write.\n* {notes}\nBe brief."}

    async def other(state):  # as under a candidate of the reader
        return {"notes": ["Nothing."]}

    builder = StateGraph(Notes).add_node("reader", other).add_node("writer", writer)
    builder.add_edge(START, "reader").add_edge("reader", "writer")
    found = [b for b in graph.bindings if isinstance(b, Discovered)]
    graph = tg.TrainableGraph(builder.compile(), bindings=found)
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "Write: {notes}"})
    assert (run.warnings, sent(run)) == ((), ["Write: Nothing."])


async def test_users_own_words_are_no_prompt():
    rows = [{"q": "how do I reset my password"}, {"q": "how do I change my plan"}]
    graph = await tg.adiscover(saying(user), rows)
    assert graph.parameters == {}
    assert [(f.node, f.parameter) for f in graph.found] == [("writer", None)]
    assert "no system message" in graph.found[0].why


async def test_system_message_without_a_constant_part_is_reported():
    graph = await tg.adiscover(saying(lambda s: SystemMessage(s["q"]), user), TWO)
    assert graph.parameters == {}
    assert "no constant part" in graph.found[0].why


async def test_declared_prompt_is_not_found_again():
    model = Chat(answer=echo)
    answer = tg.Parameter("answer", "You answer {team}.")

    async def first(state):
        return {"a": (await model.ainvoke([answer.message(team=state["team"]), user(state)])).content}

    async def second(state):
        return {"b": (await model.ainvoke([("system", "You check."), user(state)])).content}

    compiled = StateGraph(S).add_sequence([first, second]).add_edge(START, "first").compile()
    graph = await tg.adiscover(compiled, TWO, parameters=[answer])
    assert values(graph) == {"answer": "You answer {team}.", "second": "You check."}
    assert [(f.node, f.parameter) for f in graph.found] == [("first", "answer"), ("second", "second")]
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"answer": "A {team}", "second": "B"})
    assert (run.outputs["a"], run.outputs["b"]) == ("A billing / why is it blue", "B / why is it blue")


async def test_found_name_that_is_taken_gets_a_number():
    graph = await tg.adiscover(saying(said("You write."), user), TWO, parameters=[tg.Parameter("writer", "x")])
    assert list(graph.parameters) == ["writer", "writer 2"]


def agent(name, prompt, model=None):
    return create_agent(model or ToolChat(answer=echo), tools=[], system_prompt=prompt, name=name)


async def test_agents_are_named_after_themselves():
    compiled = (
        StateGraph(S)
        .add_node("math", agent("math", "You add numbers."))
        .add_node("law", agent("law", "You know the law."))
        .add_edge(START, "math")
        .add_edge("math", "law")
        .compile()
    )
    rows = [{"messages": [("user", "hi")]}, {"messages": [("user", "ho")]}]
    graph = await tg.adiscover(compiled, rows)
    assert values(graph) == {"math": "You add numbers.", "law": "You know the law."}
    alone = await tg.adiscover(agent("solo", "You sing."), rows)
    assert values(alone) == {"solo": "You sing."}
    [run] = await graph.arecord([{"inputs": rows[0]}], prompts={"law": "No law."})
    by = {e.path: dict(e.prompts) for e in run.executions if e.model_calls}
    assert by == {"math/model": {"math": "You add numbers."}, "law/model": {"law": "No law."}}
    assert [c for c in sent(run) if c in ("You add numbers.", "No law.")] == ["You add numbers.", "No law."]


async def test_agents_that_one_node_calls_are_told_apart_by_their_names():
    shared = "Reply in one line, in the customer's own language, and name no prices."
    math, law = agent("math", f"You add numbers. {shared}"), agent("law", f"You know the law. {shared}")

    async def desk(state):
        called = math if state["q"] == "sum" else law
        done = await called.ainvoke({"messages": [("user", state["q"])]})
        return {"a": done["messages"][-1].content}

    graph = await tg.adiscover(one(desk, "desk"), [{"q": "sum"}, {"q": "court"}])
    assert values(graph) == {"desk/math": f"You add numbers. {shared}", "desk/law": f"You know the law. {shared}"}
    [run] = await graph.arecord([{"inputs": {"q": "court"}}], prompts={"desk/law": "No law.", "desk/math": "No."})
    assert [dict(e.prompts) for e in run.executions if e.model_calls] == [{"desk/law": "No law."}]
    assert sent(run)[0] == "No law."
    alone = await tg.adiscover(one(desk, "desk"), [{"q": "sum"}])
    assert list(values(alone)) == ["desk"]


async def test_agent_with_parameter_middleware_is_not_found_again():
    p = tg.Parameter("p", "You add.")
    compiled = create_agent(ToolChat(answer=echo), tools=[], middleware=[p.middleware()])
    graph = await tg.adiscover(compiled, [{"messages": [("user", "hi")]}], parameters=[p])
    assert list(graph.parameters) == ["p"]


async def test_result_does_not_depend_on_which_call_comes_back_first():
    gates = [asyncio.Event(), asyncio.Event()]

    def compiled(order):
        model = Chat(answer=echo)

        def node(number):
            async def run(state):
                if number != order[0]:
                    await gates[order[0]].wait()
                text = f"Node {number} works for {state['team']} here."
                out = await model.ainvoke([("system", text), ("user", state["q"])])
                gates[number].set()
                return {"ab"[number]: out.content}

            return run

        return (
            StateGraph(S).add_node("x", node(0)).add_node("y", node(1))
            .add_edge(START, "x").add_edge(START, "y").compile()
        )

    one, other = await tg.adiscover(compiled([0, 1]), TWO), await tg.adiscover(compiled([1, 0]), TWO[::-1])
    assert values(one) == values(other) == {
        "x": "Node 0 works for {team} here.", "y": "Node 1 works for {team} here.",
    }
    assert list(one.parameters) == list(other.parameters)


# Runs of discovery.


async def test_calls_of_discovery_are_paid_once_through_the_ledger():
    model, ledger = Chat(answer=echo), tg.Ledger()
    with tg.use_ledger(ledger):
        for _ in range(2):
            graph = await tg.adiscover(saying(said("You write."), user, model=model), TWO)
        await graph.arecord([{"inputs": TWO[0]}])
    assert len(model.calls) == ledger.account.spent.calls == 2


async def test_failed_run_is_reported_and_a_graph_that_always_fails_is_refused(caplog):
    def system(state):
        if state["team"] == "sales":
            raise ValueError("closed")
        return SystemMessage("You write.")

    graph = await tg.adiscover(saying(system, user), TWO)
    assert values(graph) == {"writer": "You write."}
    assert [(f.node, f.why) for f in graph.found if not f.parameter] == [
        ("writer", "a run failed: ValueError: closed")
    ]
    assert "In discovery, 1 of 2: a run failed: ValueError: closed in 'writer'" in caplog.text
    with pytest.raises(GraphError, match="ValueError: closed"):
        await tg.adiscover(saying(system, user), TWO[1:])


async def test_graph_that_fails_for_want_of_a_store_says_where_one_comes_from():
    async def writer(state, runtime: Runtime):
        return {"a": str(await runtime.store.asearch(("notes",)))}

    with pytest.raises(GraphError, match=r"'asearch'\. Its nodes may miss a store, .*langgraph.json"):
        await tg.adiscover(one(writer), TWO)


async def test_wrong_arguments_are_refused():
    with pytest.raises(DataError, match="at least one input"):
        await tg.adiscover(saying(user), [])
    with pytest.raises(GraphError):
        await tg.adiscover(StateGraph(S), TWO)


async def test_graph_and_classes_are_left_as_they_were():
    compiled = saying(said("You write."), user)
    graph = await tg.adiscover(compiled, TWO)
    await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "new"})
    assert (await compiled.ainvoke(TWO[0]))["a"] == "You write. / why is it blue"


async def test_bare_prompt_template_is_found():
    prompt = PromptTemplate.from_template("You answer for {who} today.")

    async def writer(state):
        system = (await prompt.ainvoke({"who": state["team"]})).text
        return {"a": (await Chat(answer=echo).ainvoke([("system", system), ("user", "x")])).content}

    assert values(await tg.adiscover(one(writer), TWO[:1])) == {"writer": "You answer for {who} today."}


# Replaced.


async def test_candidate_that_loses_a_variable_is_refused():
    graph = await tg.adiscover(saying(lambda s: SystemMessage(f"You answer for {s['team']}."), user), TWO)
    with pytest.raises(ParameterError, match=r"loses the placeholder \{team\}"):
        await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "You answer."})


@pytest.mark.parametrize("lost", ["Reply to {group} now.", "Reply, {tone}.", "Reply."])
async def test_candidate_that_loses_a_variable_of_a_prompt_template_is_refused(lost):
    model = Chat(answer=echo)
    prompt = ChatPromptTemplate.from_messages([("system", "Reply for {group}, {tone}."), ("user", "{q}")])

    async def writer(state):
        given = {"group": state["team"], "tone": "kindly", "q": state["q"]}
        return {"a": (await (prompt | model).ainvoke(given)).content}

    graph = await tg.adiscover(one(writer), TWO[:1])
    with pytest.raises(ParameterError, match=r"loses the placeholder \{(tone|group)\}"):
        await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": lost})
    with pytest.raises(ParameterError, match="brings in the placeholder {more}"):
        await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "{group} {tone} {more}"})
    assert len(model.calls) == 1


async def test_placeholders_in_worked_examples_are_not_filled():
    graph = await tg.adiscover(saying(lambda s: SystemMessage(f"You answer for {s['team']}."), user), TWO)
    parameter = graph.parameters["writer"]
    text = parameter.at("Answer for {team}.").full
    parameter.demos = (tg.Demo("who is {team}", "{team} is a team"),)
    shown = parameter.full.replace(parameter.value, text, 1)
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": shown})
    assert sent(run)[0].startswith("Answer for billing.")
    assert sent(run)[0].endswith("Input: who is {team}\nOutput: {team} is a team")


async def test_text_that_does_not_match_is_left_with_a_warning():
    def system(state):
        return SystemMessage("Something else." if state["q"] == "odd" else "You write.")

    graph = await tg.adiscover(saying(system, user), TWO)
    [run] = await graph.arecord([{"inputs": {"q": "odd"}}], prompts={"writer": "new"})
    assert sent(run)[0] == "Something else."
    [warning] = run.warnings
    assert "'writer'" in warning
    assert run.executions[0].prompts == {}


async def test_accepted_value_is_used_and_the_graphs_own_text_still_recognised():
    graph = await tg.adiscover(saying(lambda s: SystemMessage(f"You answer for {s['team']}."), user), TWO)
    graph.parameters["writer"].value = "Hail {team}."
    [accepted] = await graph.arecord([{"inputs": TWO[0]}])
    [back] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "You answer for {team}."})
    assert (sent(accepted)[0], sent(back)[0]) == ("Hail billing.", "You answer for billing.")


async def test_stored_discovery_needs_no_run():
    compiled = saying(lambda s: SystemMessage(f"You answer for {s['team']}."), user)
    graph = await tg.adiscover(compiled, TWO)
    [binding] = [b for b in graph.bindings if isinstance(b, Discovered)]
    again = tg.TrainableGraph(compiled, bindings=[Discovered.from_plain(binding.to_plain())])
    assert (values(again), again.found) == (values(graph), graph.found)
    [run] = await again.arecord([{"inputs": TWO[1]}], prompts={"writer": "Hail {team}."})
    assert sent(run)[0] == "Hail sales."


@pytest.mark.parametrize("sync", [False, True])
async def test_a_hundred_candidates_at_once_do_not_meet(sync):
    model = Chat(answer=echo)

    def ask(state, n):
        return [("system", f"Part {n} for {state['team']} here."), ("user", state["q"])]

    def node(n):
        async def awaited(state):
            await asyncio.sleep(0)
            return {"ab"[n]: (await model.ainvoke(ask(state, n))).content}

        def plain(state):
            return {"ab"[n]: model.invoke(ask(state, n)).content}

        return plain if sync else awaited

    compiled = (
        StateGraph(S).add_node("x", node(0)).add_node("y", node(1))
        .add_edge(START, "x").add_edge(START, "y").compile()
    )
    graph = await tg.adiscover(compiled, TWO)

    async def one(n):
        prompts = {"x": f"X{n} {{team}}", "y": f"Y{n} {{team}}"}
        [run] = await graph.arecord([{"inputs": TWO[0]}], prompts=prompts)
        read = {e.path: e.prompts for e in run.executions}
        assert read == {"x": {"x": prompts["x"]}, "y": {"y": prompts["y"]}}
        return run.outputs["a"], run.outputs["b"]

    found = await asyncio.gather(*(one(n) for n in range(100)))
    tail = "billing / why is it blue"
    assert list(found) == [(f"X{n} {tail}", f"Y{n} {tail}") for n in range(100)]


async def test_structured_streamed_and_fallen_back_calls_are_found_and_replaced():
    broken = Chat(answer=lambda m: ValueError("down"))
    model = broken.with_fallbacks([Chat(answer=echo)])

    async def writer(state):
        chunks = [c.content async for c in model.astream([("system", "You write."), ("user", "x")])]
        return {"a": "".join(chunks)}

    graph = await tg.adiscover(one(writer), TWO)
    assert values(graph) == {"writer": "You write."}
    [run] = await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "new"})
    assert run.outputs["a"] == "new / x"


async def test_content_blocks_keep_what_is_not_replaced():
    seen = []

    def answer(messages):
        seen.append(messages[0])
        return AIMessage("ok")

    blocks = [
        {"type": "text", "text": "You write.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Never lie to people."},
    ]
    system = SystemMessage(blocks, id="s1", name="boss")
    graph = await tg.adiscover(saying(lambda s: system, user, model=Chat(answer=answer)), TWO)
    assert values(graph) == {"writer": "You write.", "writer 2": "Never lie to people."}
    await graph.arecord([{"inputs": TWO[0]}], prompts={"writer": "new"})
    assert (seen[-1].id, seen[-1].name) == ("s1", "boss")
    assert seen[-1].content == [{**blocks[0], "text": "new"}, blocks[1]]
    assert system.content == blocks


# What the runs of discovery say besides.


async def test_nodes_that_no_run_reached_are_told_a_subgraph_only_once():
    inner = StateGraph(S).add_node("deep", saying(said("You dig."), user)).add_edge(START, "deep")
    builder = StateGraph(S).add_node("writer", saying(said("You write."), user))
    builder.add_node("cellar", inner.compile()).add_edge(START, "writer")
    builder.add_conditional_edges("writer", lambda _: "__end__", ["cellar", "__end__"])
    graph = await tg.adiscover(builder.compile(), TWO)
    missing = [(f.node, f.why) for f in graph.found if f.parameter is None]
    assert missing == [("cellar", "no run reached it; give inputs that lead there")]


@pytest.mark.parametrize(
    "asked",
    [
        [said("You write."), user],
        [lambda s: SystemMessage(f"You write for the {s['team']} team."), user],
        [said("You write."), said("Never lie to people."), user],
        [lambda s: HumanMessage(f"Answer this question: {s['q']}")],
    ],
)
async def test_runs_of_discovery_note_what_a_run_of_its_graph_notes(asked):
    plain = tg.TrainableGraph(saying(*asked))
    found = await find_in(plain, TWO)
    graph = plain.holding(*found.bindings)
    runs = await graph.arecord([{"inputs": row} for row in TWO])
    for seen, run in zip(found.runs, runs, strict=True):
        noted = [e.prompts for e in run.executions]
        assert [e.prompts for e in seen.executions] == noted
        assert any(noted)
    assert plain.parameters == {}
