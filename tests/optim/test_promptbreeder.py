"""A population of instructions, and of the requests that change them."""

from __future__ import annotations

import re
from collections import Counter

import pytest

import lg_textgrad as tg
from lg_textgrad import templates
from lg_textgrad.bench import Workbench
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim import Promptbreeder
from lg_textgrad.optim.promptbreeder import OPERATORS, Unit
from lg_textgrad.parameter import candidate_of
from tests.optim import router
from tests.optim.router import OBJECTIVE, build, examples, message, rows
from tests.optim.test_search_contract import RULES, Knows
from tests.parts import Scripted

TRAIN, VAL = rows(words=["shoe", "tent"]), rows(words=["lamp"])
REQUESTS = dict(line.split(": ", 1) for line in templates.source("promptbreeder_requests").split("\n"))


def operator_of(request):
    if "request" in request.schema["properties"]:
        return "hyper"
    asked = request.messages[1]["content"].split("Request: ")[1]
    return next(name for name, text in REQUESTS.items() if asked.startswith(text))


def numbered():
    """A model that writes something new each time: rules in turn, and requests."""
    count = iter(range(999))

    def reply(request):
        n = next(count)
        [key] = request.schema["properties"]
        return {key: f"Write it like poem {n}." if key == "request" else f"{RULES[n % 3]}\nKind regards {n}"}

    return Scripted(reply)


def bench_of(graph):
    return Workbench(
        graph, OBJECTIVE, Knows(), examples(TRAIN), examples(VAL), 0, 8, None, candidate_of(graph.parameters)
    )


async def bred(search, graph, units, gains, names=("triage",)):
    """Return the population after one generation with these gains."""
    bench = bench_of(graph)
    with tg.use_ledger(tg.Ledger()):
        scored = await bench.ascore(bench.train, bench.incumbent)
        for one in scored:
            search.collected.add(one, 1.0)
        return await search._next(bench, bench.incumbent, list(names), units, gains, 0)


def population(count):
    return [Unit({"triage": f"Route {n}.", "answer": f"Answer {n}."}, f"Change it {n}.") for n in range(count)]


async def test_worse_of_each_pair_makes_room_for_a_child_of_the_better():
    units = population(6)
    following = await bred(Promptbreeder(numbered(), operators=["first_order"]), build(), units, [3, 1, 5, 0, 4, 2])
    stayed = [n for n in range(6) if following[n] is units[n]]
    assert len(stayed) == 3
    assert {2, 4} & set(stayed) and 3 not in stayed
    for n in set(range(6)) - set(stayed):
        [parent] = [u for u in units if u.request == following[n].request]
        assert units.index(parent) in stayed
        assert following[n].instructions["answer"] == parent.instructions["answer"]
        assert following[n].instructions["triage"] not in [u.instructions["triage"] for u in units]


@pytest.mark.parametrize(
    ("operator", "asked"),
    [
        ("zero_order", ["zero_order"]),
        ("first_order", ["first_order"]),
        ("eda", ["eda"]),
        ("hypermutation", ["hyper", "first_order"]),
        ("lamarckian", ["lamarckian"]),
        ("crossover", []),
    ],
)
async def test_each_operator_asks_for_what_it_is_named_for(operator, asked):
    model, units = numbered(), population(2)
    following = await bred(Promptbreeder(model, population=2, operators=[operator]), build(), units, [1.0, 0.0])
    assert [operator_of(r) for r in model.requests] == asked
    assert following[0] is units[0]
    child = following[1]
    assert child.instructions["answer"] == "Answer 0."
    text = model.requests[-1].messages[1]["content"] if asked else ""
    if operator == "zero_order":
        assert "Route" not in text
    if operator == "first_order":
        assert "Route 0." in text
        assert "Change it 0." in text
    if operator == "eda":
        assert text.index("Route 1.") < text.index("Route 0.")  # the better one last
    if operator == "hypermutation":
        assert child.request == "Write it like poem 0."
        assert child.request in text
    else:
        assert child.request == "Change it 0."
    if operator == "crossover":
        assert child.instructions["triage"] == "Route 1."


async def test_lamarckian_shows_replies_that_were_right_in_the_fence():
    model, graph = numbered(), build()
    graph.parameters["answer"].value = "Kind regards"
    await bred(Promptbreeder(model, population=2, operators=["lamarckian"]), graph, population(2), [1.0, 0.0])
    text = model.requests[0].messages[1]["content"]
    fenced = re.search(r"<(data-\w+)>(.*)</\1>", text, re.S)[2]
    assert f"Given:\n{message('refund', 'shoe')}\nReplied:\npayments" in fenced
    assert "My refund" not in text.replace(fenced, "")


async def test_without_good_runs_or_others_it_falls_back_to_the_units_own_request():
    model = numbered()
    search = Promptbreeder(model, population=2, operators=["lamarckian", "eda", "crossover"])
    twins = [Unit({"triage": "Route.", "answer": "Answer."}, "Change it.")] * 2
    bench = bench_of(build())
    for number in range(6):
        await search._next(bench, bench.incumbent, ["triage"], twins, [1.0, 0.0], number)
    assert {operator_of(r) for r in model.requests} == {"first_order"}


async def test_child_that_cannot_be_written_leaves_the_unit_in_place():
    search = Promptbreeder(Scripted(lambda r: {"instruction": "Lorem ipsum."}), population=2)
    units = population(2)
    graph = build(forbidden=["lorem"])
    search = Promptbreeder(Scripted(lambda r: {"instruction": "Lorem ipsum."}), population=2, operators=["zero_order"])
    assert await bred(search, graph, units, [1.0, 0.0]) == units
    assert "forbidden text 'lorem'" in search.refused[0]


def test_population_begins_with_what_there_is_and_differs():
    model = numbered()
    search = Promptbreeder(model, population=4, generations=1, minibatch=8)
    events = []
    trainer = tg.Trainer(
        build(), OBJECTIVE, critic=Knows(), optimizer=search, on_event=lambda k, d: events.append((k, d))
    )
    trainer.fit(TRAIN, VAL)
    assert len(model.requests) == 3
    asked = [r.messages[1]["content"].split("Request: ")[1] for r in model.requests]
    assert len(set(asked)) == 3
    nodes = Counter(r.messages[1]["content"].split("\n")[0] for r in model.requests)
    assert nodes == {"The step: answer": 2, "The step: routes": 1}
    tried = {d["scored"].run.candidate for k, d in events if k == "run" and d["purpose"] == "batch"}
    assert len(tried) == 4


def test_best_of_a_generation_is_judged_once_and_only_when_it_is_better():
    search = Promptbreeder(Scripted(lambda r: {n: "Be bold." for n in r.schema["properties"]}), generations=4)
    trainer = tg.Trainer(build(), OBJECTIVE, critic=Knows(), optimizer=search)
    assert trainer.fit(TRAIN, VAL).steps == 0
    kind = Scripted(lambda r: {n: "Kind regards" for n in r.schema["properties"]})
    trainer = tg.Trainer(build(), OBJECTIVE, critic=Knows(), optimizer=Promptbreeder(kind, generations=4, operators=["crossover"]))
    result = trainer.fit(TRAIN, VAL)
    assert (result.steps, result.accepted, result.best.val) == (1, 1, 5 / 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"population": 1}, "`population` of .* at least 2, not 1"),
        ({"generations": 0}, "`generations` of .* at least 1"),
        ({"operators": ["first_order", "magic"]}, "no operator 'magic'; there are zero_order"),
        ({"operators": []}, "at least one operator"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Promptbreeder(Scripted(None), **options)


def test_all_operators_are_used_by_default():
    assert Promptbreeder(Scripted(None)).operators == OPERATORS
