"""What a line of advice leads to is shown to the model as worked examples."""

from __future__ import annotations

from typing import TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.demos import split_demos
from lg_textgrad.optim import OutputRules, Portfolio, Strategies
from tests.parts import Chat

STEPS, ALOUD = "Add up one by one.", "Shout."


class S(TypedDict, total=False):
    question: str
    reply: str


def worked(numbers):
    return f"{' + '.join(map(str, numbers))} = {sum(numbers)}"


def answer(messages):
    """A model that adds up rightly when it is shown how, and on its own only what is short."""
    prompt, asked = messages[0].content, messages[1].content
    numbers = [int(word) for word in asked.split() if word.isdigit()]
    _, demos = split_demos(prompt)
    if STEPS in prompt and any("=" in demo.output for demo in demos):
        return worked(numbers)
    if ALOUD in prompt:
        return "AH!"
    if STEPS in prompt:
        return worked(numbers) if len(numbers) <= 3 else "Let me see."
    return f"It makes {sum(numbers) if len(numbers) == 2 else 0} in all."


def build(said=answer):
    parameter = tg.Parameter("sum", "You add up.")
    model = Chat(answer=said)

    async def node(state):
        reply = await model.ainvoke([parameter.message(), HumanMessage(state["question"])])
        return {"reply": reply.content}

    return tg.TrainableGraph(StateGraph(S).add_node(node).add_edge(START, "node").compile(), [parameter])


def rows(count, first=0):
    sums = [[n + k for k in range(2 + n % 4)] for n in range(first, first + count)]
    return [
        {"id": str(numbers), "inputs": {"question": f"How much is {' and '.join(map(str, numbers))} ?"},
         "outputs": {"sum": str(sum(numbers))}}
        for numbers in sums
    ]  # fmt: skip


def last_number(outputs, reference_outputs):
    return {"key": "sum", "score": outputs["reply"].rstrip(" inal.").split()[-1] == reference_outputs["sum"]}


def fit(graph, lines=(STEPS, ALOUD), budget=None, evaluator=last_number):
    events = []
    trainer = tg.Trainer(
        graph, tg.Objective([evaluator]), critic=None, budget=budget,
        optimizer=Portfolio(members=[OutputRules(), Strategies(lines=lines)], rounds=1, heat=4),
        on_event=lambda kind, data: events.append((kind, data)),
    )  # fmt: skip
    return trainer.fit(rows(8), rows(12, 100)), trainer, events


def test_replies_that_advice_led_to_are_its_examples():
    result, trainer, _ = fit(build())
    instruction, demos = split_demos(result.after["sum"])
    assert instruction == f"You add up.\n{STEPS}"
    assert len(demos) in (2, 4)
    assert all(demo.output == worked([int(w) for w in demo.inputs.split() if w.isdigit()]) for demo in demos)
    assert (result.baseline.val, result.best.val) == (pytest.approx(0.25), 1.0)
    [lost] = [a for a in trainer.optimizer.history if a.stage == "batch"]
    assert lost.proposal.edits[0].text == ALOUD


def test_advice_that_did_harm_on_the_batch_does_not_race():
    _, _, events = fit(build())
    raced = {d["scored"].run.executions[0].prompts["sum"] for k, d in events if k == "run" and d["purpose"] == "race"}
    assert raced
    assert not any(ALOUD in prompt for prompt in raced)


def test_where_the_reply_must_be_the_bare_value_advice_is_not_tried_on_the_batch():
    def bare(outputs, reference_outputs):
        return {"key": "sum", "score": outputs["reply"] == reference_outputs["sum"]}

    def says(messages):
        return answer(messages).removeprefix("It makes ").removesuffix(" in all.")

    _, _, events = fit(build(says), evaluator=bare)
    batch = {d["scored"].run.executions[0].prompts["sum"] for k, d in events if k == "run" and d["purpose"] == "batch"}
    assert batch == {"You add up."}


def test_budget_that_has_no_room_for_it_races_the_advice_alone():
    _, _, events = fit(build(), budget=tg.Budget(calls=12 + 8 + 40))
    batch = {d["scored"].run.executions[0].prompts["sum"] for k, d in events if k == "run" and d["purpose"] == "batch"}
    assert batch == {"You add up."}
