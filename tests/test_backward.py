"""The reverse pass, on runs of real graphs with scripted critics."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph

import lg_textgrad as tg
from lg_textgrad.critics import Blame, Critique
from lg_textgrad.errors import CriticError, ModelReplyError, ModelUnreachableError
from lg_textgrad.run import Example, Execution, Feedback, ModelCall, Run
from tests.parts import BlamesUpstream, Chat, Scripted, echo, gradient_for


class S(TypedDict, total=False):
    q: str
    a: str
    b: str
    c: str
    d: str
    items: Annotated[list, operator.add]


def prompted(model, parameter, reads, writes):
    """A node that calls the model with its prompt."""

    async def node(s):
        said = await model.ainvoke([parameter.message(), ("user", str(s.get(reads)))])
        return {writes: [said.content] if writes == "items" else said.content}

    return node


def parameters(*names):
    return {n: tg.Parameter(n, f"You are {n}.") for n in names}


def chain(*steps, named):
    """A graph of nodes one after another. A step: (node, reads, writes), or (node, function)."""
    model = Chat(answer=echo)
    builder = StateGraph(S)
    before = START
    for name, *how in steps:
        builder.add_node(name, how[0] if len(how) == 1 else prompted(model, named[name], *how))
        builder.add_edge(before, name)
        before = name
    return tg.TrainableGraph(builder.compile(), named.values())


async def loss_of(graph, evaluator, n=1):
    runs = await graph.arecord([{"inputs": {"q": f"q{i}"}} for i in range(n)])
    return await tg.Objective([evaluator]).acall(runs)


def always_wrong(outputs):
    return {"key": "team", "score": 0, "comment": f"{outputs['d']} is wrong"}


async def test_blame_walks_back_to_the_node_at_fault():
    named = parameters("w", "x", "y", "z")
    graph = chain(("w", "q", "a"), ("x", "a", "b"), ("y", "b", "c"), ("z", "c", "d"), named=named)
    critic = BlamesUpstream()
    gradients = await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [g.parameter for g in gradients] == ["w"]
    assert named["w"].grad == gradients
    assert all(not named[n].grad for n in "xyz")
    assert [r.execution.id for r in critic.asked] == ["z#0", "y#0", "x#0", "w#0"]
    assert critic.asked[0].blames[0].text.endswith("is wrong")
    assert [b.source for r in critic.asked for b in r.blames] == ["team", "z#0", "y#0", "x#0"]
    assert [p.channels for p in critic.asked[0].producers] == [["c"]]
    assert gradients[0].execution == "w#0"


async def test_code_nodes_hand_blame_on_without_a_call():
    named = parameters("w", "z")
    graph = chain(
        ("w", "q", "a"),
        ("code", lambda s: {"b": s["a"].upper()}),
        ("more", lambda s: {"c": s["b"]}),
        ("z", "c", "d"),
        named=named,
    )
    critic = BlamesUpstream()
    await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["z#0", "w#0"]
    assert critic.asked[1].blames == [Blame("z#0 says: wrong", 1.0, "code#0")]
    assert len(named["w"].grad) == 1


async def test_code_at_the_end_passes_the_evaluators_words_on():
    named = parameters("w")
    graph = chain(("w", "q", "a"), ("code", lambda s: {"d": s["a"]}), named=named)
    critic = BlamesUpstream()
    await (await loss_of(graph, always_wrong)).abackward(critic)
    [asked] = critic.asked
    assert asked.execution.id == "w#0"
    assert "is wrong" in asked.blames[0].text


async def test_node_visited_k_times_gets_k_attributions_and_unvisited_none():
    named = parameters("step", "never")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    builder.add_node("step", prompted(model, named["step"], "q", "items"))
    builder.add_node("never", prompted(model, named["never"], "q", "a"))
    builder.add_node("end", lambda s: {"d": str(s["items"])})
    builder.add_edge(START, "step")
    builder.add_conditional_edges(
        "step", lambda s: "end" if len(s["items"]) == 3 else "step", ["step", "end", "never"]
    )
    graph = tg.TrainableGraph(builder.compile(), named.values())
    critic = BlamesUpstream(also_self=True)
    await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [g.execution for g in named["step"].grad] == ["step#0", "step#1", "step#2"]
    assert named["never"].grad == []
    assert sorted(r.execution.id for r in critic.asked) == ["step#0", "step#1", "step#2"]


async def test_full_marks_say_what_to_keep_and_cost_nothing():
    named = parameters("w", "frozen")
    named["frozen"].requires_grad = False
    graph = chain(("frozen", "q", "a"), ("w", "a", "d"), named=named)

    def team(outputs):
        return {"key": "team", "score": 1}

    critic = BlamesUpstream()
    loss = await loss_of(graph, team, n=3)
    gradients = await loss.abackward(critic)
    assert critic.asked == named["frozen"].grad == []
    assert named["w"].grad == gradients
    assert [(g.run_id, g.change, g.keep, g.weight) for g in gradients] == [
        (s.run.id, "", "what earns full marks for team", 0.0) for s in loss.scored
    ]
    assert all(g.evidence in loss.scored[n].run.outputs["d"] for n, g in enumerate(gradients))


async def test_loop_with_full_marks_gives_one_gradient_for_its_prompt():
    named = parameters("step")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    builder.add_node("step", prompted(model, named["step"], "q", "items")).add_edge(START, "step")
    builder.add_conditional_edges("step", lambda s: END if len(s["items"]) == 3 else "step")
    graph = tg.TrainableGraph(builder.compile(), named.values())
    await (await loss_of(graph, lambda outputs: 1.0)).abackward(BlamesUpstream())
    assert [g.execution for g in named["step"].grad] == ["step#2"]


async def test_only_runs_below_full_marks_are_asked_about():
    named = parameters("w")
    critic = BlamesUpstream()
    loss = await loss_of(chain(("w", "q", "d"), named=named), lambda inputs: inputs["q"] != "q1", n=3)
    await loss.abackward(critic)
    assert [r.scored.run.inputs["q"] for r in critic.asked] == ["q1"]


async def test_frozen_parameters_and_what_hangs_on_them_alone_cost_nothing():
    named = parameters("w", "x")
    named["w"].requires_grad = False
    graph = chain(("w", "q", "a"), ("x", "a", "d"), named=named)
    critic = BlamesUpstream(also_self=True)
    await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["x#0"]
    assert critic.asked[0].producers == []
    assert named["w"].grad == []


async def test_blame_below_the_threshold_stops():
    named = parameters("w", "x")
    graph = chain(("w", "q", "a"), ("x", "a", "d"), named=named)
    critic = BlamesUpstream(weight=0.05)
    await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["x#0"]


async def test_unblamed_branch_costs_nothing():
    named = parameters("l", "r")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    builder.add_node("l", prompted(model, named["l"], "q", "a"))
    builder.add_node("r", prompted(model, named["r"], "q", "b"))
    builder.add_edge(START, "l").add_edge(START, "r")
    graph = tg.TrainableGraph(builder.compile(), named.values())
    critic = BlamesUpstream()
    # The evaluator looks at `b` alone, so only its writer is to blame.
    loss = await loss_of(graph, lambda outputs: {"score": 0, "comment": outputs["b"][:0] + "bad b"})
    await loss.abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["r#0"]
    assert named["l"].grad == []


async def test_each_evaluator_blames_what_it_looked_at():
    named = parameters("l", "r")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    builder.add_node("l", prompted(model, named["l"], "q", "a"))
    builder.add_node("r", prompted(model, named["r"], "q", "b"))
    builder.add_edge(START, "l").add_edge(START, "r")
    graph = tg.TrainableGraph(builder.compile(), named.values())
    [run] = await graph.arecord([{"inputs": {"q": "q"}}])

    def first(outputs):
        return {"key": "first", "score": 0.2, "comment": outputs["a"] and "bad a"}

    def second(outputs):
        return {"key": "second", "score": 0.5, "comment": outputs["b"] and "bad b"}

    critic = BlamesUpstream()
    await (await tg.Objective([first, second]).acall([run])).abackward(critic)
    assert {r.execution.id: r.blames for r in critic.asked} == {
        "l#0": [Blame("bad a", 0.8, "first")],
        "r#0": [Blame("bad b", 0.5, "second")],
    }


async def test_failed_run_blames_the_execution_that_failed():
    named = parameters("w", "x")

    def bad(s):
        raise ValueError("the team must be one word")

    graph = chain(("w", "q", "a"), ("x", "q", "b"), ("bad", lambda s: bad(s["a"])), named=named)
    critic = BlamesUpstream()
    loss = await loss_of(graph, always_wrong)
    await loss.abackward(critic)
    assert loss.score == 0
    assert [r.execution.id for r in critic.asked] == ["w#0"]
    assert "the team must be one word" in critic.asked[0].blames[0].text


async def test_model_calling_executions_are_asked_about_once_at_most():
    named = parameters("w", "x", "y")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    builder.add_node("w", prompted(model, named["w"], "q", "a"))
    for n in "xy":
        builder.add_node(n, prompted(model, named[n], "a", "items"))
        builder.add_edge("w", n)
    builder.add_node("end", lambda s: {"d": str(s["items"])})
    builder.add_edge(START, "w").add_edge(["x", "y"], "end")
    graph = tg.TrainableGraph(builder.compile(), named.values())
    critic = BlamesUpstream()
    await (await loss_of(graph, always_wrong, n=2)).abackward(critic)
    asked = [(r.scored.run.id, r.execution.id) for r in critic.asked]
    assert len(asked) == len(set(asked)) == 6
    # Two consumers blamed `w`: both complaints arrive in its one call.
    assert sorted(b.source for b in critic.asked[-1].blames) == ["x#0", "y#0"]


async def test_one_depth_and_all_runs_go_at_once():
    width, runs = 3, 4
    barrier = asyncio.Barrier(width * runs)
    named = parameters(*"abc")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    for n in named:
        builder.add_node(n, prompted(model, named[n], "q", "items"))
        builder.add_edge(START, n)
    builder.add_node("end", lambda s: {"d": str(s["items"])})
    builder.add_edge(list(named), "end")
    graph = tg.TrainableGraph(builder.compile(), named.values())

    class Waits:
        async def acriticize(self, request):
            await barrier.wait()  # one after another, this would wait for ever
            return Critique([gradient_for(request, n) for n in request.parameters])

    loss = await loss_of(graph, always_wrong, n=runs)
    async with asyncio.timeout(10):
        gradients = await loss.abackward(Waits())
    assert [(g.example_id, g.parameter) for g in gradients] == [
        (s.run.example.id, n) for s in loss.scored for n in "abc"
    ]


async def test_gradients_come_in_the_same_order_whoever_answers_first():
    named = parameters("w")
    loss = await loss_of(chain(("w", "q", "d"), named=named), always_wrong, n=4)

    class Slow:
        async def acriticize(self, request):
            await asyncio.sleep(0.002 * (4 - int(request.scored.run.inputs["q"][1:])))
            return Critique([gradient_for(request, "w")])

    gradients = await loss.abackward(Slow())
    assert [g.run_id for g in gradients] == [s.run.id for s in loss.scored]
    assert named["w"].grad == gradients


async def test_critic_error_skips_that_execution_alone(caplog):
    named = parameters("w")

    class Stumbles(BlamesUpstream):
        async def acriticize(self, request):
            if request.scored.run.inputs["q"] == "q1":
                raise CriticError("twice malformed")
            return await super().acriticize(request)

    loss = await loss_of(chain(("w", "q", "d"), named=named), always_wrong, n=3)
    gradients = await loss.abackward(Stumbles())
    assert [g.run_id for g in gradients] == [loss.scored[0].run.id, loss.scored[2].run.id]
    assert "twice malformed" in caplog.text


async def test_unreachable_critic_is_raised_as_it_is_and_touches_no_parameter():
    named = parameters("w")
    loss = await loss_of(chain(("w", "q", "d"), named=named), always_wrong, n=3)

    def reply(request):
        if len(model.requests) == 3:
            return ModelUnreachableError("nobody there")
        return {"general_rule": "c", "evidence": "e", "keep": "", "weight": 1}

    model = Scripted(reply)
    with pytest.raises(ModelUnreachableError, match="nobody there"):
        await loss.abackward(tg.LLMCritic(model))
    assert named["w"].grad == []


async def test_malformed_reply_is_asked_for_again_and_then_skipped():
    named = parameters("w")
    loss = await loss_of(chain(("w", "q", "d"), named=named), always_wrong)
    model = Scripted(lambda r: ModelReplyError("not JSON", reply="oops"))
    critic = tg.LLMCritic(model)
    assert await loss.abackward(critic) == []
    assert (len(model.requests), critic.malformed) == (2, 1)


def test_backward_works_from_sync_code():
    named = parameters("w")
    graph = chain(("w", "q", "d"), named=named)
    loss = tg.Objective([always_wrong])(graph.record([{"inputs": {"q": "x"}}]))
    assert loss.backward(BlamesUpstream()) == named["w"].grad != []


async def test_gradients_add_up_until_they_are_zeroed():
    named = parameters("w")
    loss = await loss_of(chain(("w", "q", "d"), named=named), always_wrong)
    await loss.abackward(BlamesUpstream())
    await loss.abackward(BlamesUpstream())
    assert len(named["w"].grad) == 2


async def test_model_calls_without_a_trainable_prompt_are_asked_about_but_get_no_gradient():
    named = parameters("w")
    model = Chat(answer=echo)

    async def fixed(s):
        return {"d": (await model.ainvoke(["Fixed.", ("user", s["a"])])).content}

    graph = chain(("w", "q", "a"), ("fixed", fixed), named=named)
    critic = BlamesUpstream()
    gradients = await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [(r.execution.id, list(r.parameters)) for r in critic.asked] == [("fixed#0", []), ("w#0", ["w"])]
    assert [g.parameter for g in gradients] == ["w"]


async def test_blame_for_a_subgraph_reaches_the_node_inside():
    named = parameters("w")
    model = Chat(answer=echo)
    inner = (
        StateGraph(S).add_node("w", prompted(model, named["w"], "q", "d")).add_edge(START, "w")
        .add_edge("w", END).compile()
    )  # fmt: skip
    outer = StateGraph(S).add_node("sub", inner).add_edge(START, "sub").compile()
    critic = BlamesUpstream()
    await (await loss_of(tg.TrainableGraph(outer, named.values()), always_wrong)).abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["sub/w#0"]
    assert len(named["w"].grad) == 1


async def test_long_runs_do_not_recurse():
    p = tg.Parameter("p", "x")
    call = ModelCall("m", (), {"role": "ai", "content": ""})
    executions = tuple(
        Execution(f"n#{i}", f"n:{i}", "n", i, i, {"a": 0}, (("a", 0),), prompts={"p": "x"}, model_calls=(call,))
        for i in range(1500)
    )
    run = Run("r", Example("e", {}), "c", {"a": 1}, executions, parameters={"p": p})
    scored = tg.Scored(run, 0.0, (Feedback("k", 0.0, "bad"),))
    gradients = await tg.Loss((scored,)).abackward(BlamesUpstream(also_self=True))
    assert len(gradients) == 1500


def says(text, **metadata):
    return AIMessage(text, response_metadata=metadata, usage_metadata={"input_tokens": 1, "output_tokens": 80, "total_tokens": 81})


def answering(parameter, message, writes="d"):
    async def node(s):
        reply = await Chat(answer=lambda _: message).ainvoke([parameter.message(), ("user", "x")])
        return {writes: reply.content}

    return node


async def test_cut_off_reply_gives_a_gradient_without_a_call_of_its_own():
    named = parameters("w", "x")
    graph = chain(
        ("w", answering(named["w"], says("half a", finish_reason="length"), "a")), ("x", "a", "d"), named=named
    )

    class BlamesNobody(BlamesUpstream):
        async def acriticize(self, request):
            self.asked.append(request)
            return Critique()

    critic = BlamesNobody()
    loss = await loss_of(graph, always_wrong)
    [gradient] = await loss.abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["x#0"]  # nobody asked about w
    assert (gradient.parameter, gradient.execution, gradient.evidence) == ("w", "w#0", "half a")
    assert gradient.change.startswith("Keep the whole reply under 45 words")
    assert gradient.weight == 0.5
    assert named["w"].grad == [gradient]


async def test_what_visibly_went_wrong_is_told_where_the_execution_is_asked_about():
    named = parameters("w")
    graph = chain(("w", answering(named["w"], says("half a", finish_reason="length"))), named=named)
    critic = BlamesUpstream(also_self=True)
    gradients = await (await loss_of(graph, always_wrong)).abackward(critic)
    [asked] = critic.asked
    assert [(b.source, b.settled) for b in asked.blames] == [("team", False), ("cut_off", True)]
    assert [g.change for g in gradients] == [
        "Keep the whole reply under 45 words: a longer one is cut off before its end.", "Say more.",
    ]  # fmt: skip


async def test_refusal_before_the_end_is_asked_about_though_no_consumer_blames_it():
    named = parameters("w", "x")
    graph = chain(("w", answering(named["w"], says("I can't help with that."), "a")), ("x", "a", "d"), named=named)

    class OnlySelf(BlamesUpstream):
        async def acriticize(self, request):
            self.asked.append(request)
            return Critique([gradient_for(request, n) for n in request.parameters])

    critic = OnlySelf()
    await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["x#0", "w#0"]
    assert [b.text for b in critic.asked[1].blames] == ["The model refused to do its work."]


async def test_symptoms_where_nothing_hangs_on_them_or_in_runs_with_full_marks_are_no_evidence():
    named = parameters("w", "aside")
    model = Chat(answer=echo)
    builder = StateGraph(S)
    builder.add_node("aside", answering(named["aside"], says("half", finish_reason="length"), "b"))
    builder.add_node("w", prompted(model, named["w"], "q", "d"))
    builder.add_edge(START, "aside").add_edge(START, "w")
    graph = tg.TrainableGraph(builder.compile(), named.values())
    await (await loss_of(graph, always_wrong)).abackward(BlamesUpstream())
    assert [g.change for g in named["aside"].grad] == []
    await (await loss_of(graph, lambda outputs: 1.0)).abackward(BlamesUpstream())
    assert [g.change for g in named["aside"].grad] == [""]


async def test_tool_that_failed_blames_who_called_it():
    from langchain_core.tools import tool

    @tool
    def look(x: int) -> str:
        """Look."""
        raise ValueError("no such x")

    named = parameters("w", "x")

    async def tools(s):
        try:
            return {"b": await look.ainvoke({"x": len(s["a"]) and 3})}
        except ValueError:
            return {"b": "nothing"}

    graph = chain(("w", "q", "a"), ("tools", tools), ("x", "b", "d"), named=named)

    class Silent(BlamesUpstream):
        async def acriticize(self, request):
            self.asked.append(request)
            return Critique()

    critic = Silent()
    await (await loss_of(graph, always_wrong)).abackward(critic)
    assert [r.execution.id for r in critic.asked] == ["x#0", "w#0"]
    assert critic.asked[1].blames[0].text == "The tool 'look' failed when it was called with {\"x\": 3}: ValueError: no such x"


async def test_evaluator_that_counts_less_blames_less_and_one_that_counts_nothing_nobody():
    named = parameters("a")
    graph = chain(("a", "q", "a"), named=named)

    def half(outputs):
        return {"key": "right", "score": 0.5}

    def zero(outputs):
        return {"key": "length", "score": 0.0}

    async def blamed(**weights):
        runs = await graph.arecord([{"inputs": {"q": "x"}}])
        loss = await tg.Objective([half, zero], weights=weights).acall(runs)
        critic = BlamesUpstream()
        await loss.abackward(critic)
        return {b.source: b.weight for request in critic.asked for b in request.blames}

    assert await blamed() == {"right": 0.5, "length": 1.0}
    assert await blamed(right=4) == {"right": 0.5, "length": 0.25}
    assert await blamed(length=0) == {"right": 0.5}
