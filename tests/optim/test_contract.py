"""What each optimizer has to do. A new one is a line in `OPTIMIZERS`."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.errors import ModelUnreachableError, ParameterError
from lg_textgrad.optim import Attempt
from tests.parts import Scripted

OPTIMIZERS = {
    "textual_gradient_descent": tg.optim.TextualGradientDescent,
    "whole_rewrites": partial(tg.optim.TextualGradientDescent, edits="whole"),
    "beam_with_momentum": partial(
        tg.optim.TextualGradientDescent, beam=3, momentum=4, in_context_examples=["Name the floor."]
    ),
}


def parameters():
    return {
        "triage": tg.Parameter(
            "triage", "Route the message of {user}.\nName one team.\nNever guess.",
            locked=["Never guess."], forbidden=["lorem"], max_tokens=40, role="routes",
        ),
        "answer": tg.Parameter("answer", 'Answer as {"text": ...}.\nBe kind.'),
        "frozen": tg.Parameter("frozen", "Fixed.", requires_grad=False),
    }  # fmt: skip


def gradient(name, n, weight=0.5):
    return tg.Gradient(name, "r", f"{name}#{n}", f"Name the team in one word ({n}).", weight=weight)


def fill_grads(named):
    for name in named:
        named[name].grad += [gradient(name, n) for n in range(3)]


def from_schema(schema, pick):
    """Return data that satisfies the schema; `pick(low, high)` decides."""
    if "enum" in schema:
        return schema["enum"][pick(0, len(schema["enum"]) - 1)]
    kind = schema["type"]
    if kind == "object":
        return {n: from_schema(s, pick) for n, s in schema["properties"].items()}
    if kind == "array":
        count = pick(schema.get("minItems", 0), min(schema.get("maxItems", 3), 3))
        return [from_schema(schema["items"], pick) for _ in range(count)]
    if kind in ("integer", "number"):
        return pick(schema.get("minimum", 0), schema.get("maximum", 9))
    texts = [
        "Use one word.", "", "Ask {user} kindly.", "Ask {stranger}.", "Lorem ipsum.", "Never guess.",
        "x" * 170, "Two\nlines.", 'JSON {"a": 1}', "Route the message of {user}.",
    ]  # fmt: skip
    return texts[pick(0, len(texts) - 1)][: schema.get("maxLength", 999)]


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def helpful(r):
    """Adds one line that answers the first note."""
    if "prompt" in r.schema["properties"]:
        prompt = re.search(r"^Prompt:\n(.*?)\n\n<data-", r.messages[1]["content"], re.S | re.M)[1]
        return {"prompt": prompt.replace("\n", "\nUse one word.\n", 1)}
    return from_schema(r.schema, lambda low, high: max(low, min(high, 1)) if high < 9 else low) | {
        "edits": [{"op": "add", "line": 1, "text": "Use one word.", "notes": [1]}]
    }


def check(named, proposals):
    """What holds for proposals, whatever the model says."""
    known = {g.id for p in named.values() for g in p.grad}
    now = {n: p.value for n, p in named.items()}
    assert len({p.hash for p in proposals}) == len(proposals)
    for proposal in proposals:
        assert proposal.candidate.keys() == named.keys()
        assert proposal.candidate != now
        assert proposal.candidate["frozen"] == "Fixed."
        for name, text in proposal.candidate.items():
            named[name].check(text)
            if text != now[name]:
                assert any(e.parameter == name for e in proposal.edits)
        for edit in proposal.edits:
            assert set(edit.gradients) <= known


async def test_proposals_change_no_parameter(make):
    named = parameters()
    fill_grads(named)
    before = {n: (p.value, list(p.grad), p.demos) for n, p in named.items()}
    proposals = await make(Scripted(helpful), parameters=named).aproposals()
    assert proposals
    assert {n: (p.value, p.grad, p.demos) for n, p in named.items()} == before
    check(named, proposals)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(OPTIMIZERS)), st.data())
def test_promises_hold_whatever_the_model_replies(name, data):
    named = parameters()
    fill_grads(named)
    model = Scripted(lambda r: from_schema(r.schema, lambda a, b: data.draw(st.integers(a, b))))
    optimizer = OPTIMIZERS[name](model, parameters=named)
    check(named, asyncio.run(optimizer.aproposals()))


async def test_same_inputs_make_the_same_proposals(make):
    def sent_and_got():
        named = parameters()
        fill_grads(named)
        model = Scripted(helpful)
        proposals = asyncio.run(make(model, parameters=named).aproposals())
        return proposals, sorted(json.dumps([dict(m) for m in r.messages]) for r in model.requests)

    assert await asyncio.to_thread(sent_and_got) == await asyncio.to_thread(sent_and_got)


async def test_order_in_which_replies_come_changes_nothing(make):
    async def run(delays):
        named = parameters()
        fill_grads(named)
        model = Scripted(helpful)
        ask = model.acall

        async def slow(request):
            await asyncio.sleep(0.001 * delays["team" in str(request.messages[1])])
            return await ask(request)

        model.acall = slow
        return await make(model, parameters=named).aproposals()

    assert await run([1, 5]) == await run([5, 1])


async def test_no_gradients_no_proposals_and_no_call(make):
    model = Scripted(helpful)
    assert await make(model, parameters=parameters()).aproposals() == []
    only_keep = parameters()
    only_keep["triage"].grad.append(tg.Gradient("triage", "r", "t#0", "", keep="the tone"))
    assert await make(model, parameters=only_keep).aproposals() == []
    frozen = parameters()
    frozen["frozen"].grad.append(gradient("frozen", 0))
    assert await make(model, parameters=frozen).aproposals() == []
    assert model.requests == []


async def test_resumed_optimizer_pays_nothing_again(make):
    model = Scripted(helpful)
    found = []
    with tg.use_ledger(tg.Ledger()):
        for _ in range(2):
            named = parameters()
            fill_grads(named)
            found.append(await make(model, parameters=named).aproposals())
            asked = len(model.requests)
    assert found[0] == found[1]
    assert len(model.requests) == asked <= 2 * getattr(make, "keywords", {}).get("beam", 1)


async def test_what_was_refused_is_not_proposed_again(make):
    named = parameters()
    fill_grads(named)
    optimizer = make(Scripted(helpful), parameters=named)
    first = await optimizer.aproposals()
    for proposal in first:
        optimizer.observe(Attempt(proposal, accepted=False, reason="not better"))
    tried = {p.hash for p in first}
    assert not tried & {p.hash for p in await optimizer.aproposals()}


async def test_unreachable_model_is_raised_as_it_is(make):
    named = parameters()
    fill_grads(named)
    with pytest.raises(ModelUnreachableError):
        await make(Scripted(lambda r: ModelUnreachableError("gone")), parameters=named).aproposals()
    assert named["triage"].value == parameters()["triage"].value


async def test_without_parameters_it_says_how_to_pass_them(make):
    with pytest.raises(ParameterError, match="parameters=graph.parameters"):
        await make(Scripted(helpful)).aproposals()


def test_zero_grad_and_step_by_hand(make):
    named = parameters()
    fill_grads(named)
    optimizer = make(Scripted(helpful), parameters=named.values())
    [first, *_] = optimizer.propose()
    assert optimizer.step() == first == {n: p.value for n, p in named.items()}
    optimizer.zero_grad()
    assert all(p.grad == [] for p in named.values())
    assert optimizer.step() == first


def test_fingerprint_is_plain_data_and_follows_the_model(make):
    a, b = (make(Scripted(None, n)).fingerprint for n in "ab")
    assert json.loads(json.dumps(a)) == a != b
