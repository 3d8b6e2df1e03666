"""Instructions and demonstrations of all nodes, searched together."""

from __future__ import annotations

import itertools
import sys

import optuna
import pytest

import lg_textgrad as tg
from lg_textgrad.bench import Workbench
from lg_textgrad.demos import split_demos
from lg_textgrad.errors import ConfigurationError, MissingExtraError
from lg_textgrad.optim import MIPRO
from lg_textgrad.optim.mipro import Choices, Trials
from lg_textgrad.parameter import apply_edits, candidate_of
from tests.optim.router import OBJECTIVE, TEAMS, build, examples, message, rows
from tests.optim.test_search_contract import Knows
from tests.parts import Scripted

TRAIN, VAL = rows(words=["shoe", "tent"]), rows(words=["lamp", "rope"])


def writes(request):
    """A summary, or for each tip another instruction."""
    if "summary" in request.schema["properties"]:
        return {"summary": "Customers write about their orders."}
    text = request.messages[1]["content"]
    if "The step to write for: routes" in text:
        return {"instruction": "You route.\n" + ("size goes to advice" if "clear and" in text else "Be kind.")}
    return {"instruction": "You answer.\n" + ("Say Kind regards" if "what form" in text else "Be brief.")}


def fit(search, *, graph=None, val=VAL, **options):
    events = []
    trainer = tg.Trainer(
        graph or build(), OBJECTIVE, critic=Knows(), optimizer=search,
        on_event=lambda kind, data: events.append((kind, data)), **options,
    )  # fmt: skip
    return trainer.fit(TRAIN, val), events


def tried(events, purpose="trial"):
    return [d["scored"].run for k, d in events if k == "run" and d["purpose"] == purpose]


SMALL = {"instructions": 2, "sizes": [4], "sets": 1, "trials": 16, "minibatch": 8, "gate_every": 8}


def test_instruction_and_demonstrations_of_several_nodes_are_found_together():
    result, _ = fit(MIPRO(Scripted(writes), **SMALL))
    _, demos = split_demos(result.after["triage"])
    assert len(demos) == 4
    assert all(d.output == TEAMS[d.inputs.split()[1]] for d in demos)
    assert split_demos(result.after["answer"])[0] == "You answer.\nSay Kind regards"
    assert (result.baseline.val, result.best.val) == (1 / 8, 1.0)


def bench_of(graph, val=VAL):
    return Workbench(
        graph, OBJECTIVE, Knows(), examples(TRAIN), examples(val), 0, 8, None, candidate_of(graph.parameters)
    )


def demos(*topics):
    return tuple(tg.Demo(message(t, "boot"), TEAMS[t]) for t in topics)


CHOICES = {
    "triage": Choices(
        ("You route.\nName the team.", "parcel goes to delivery", "size goes to advice"),
        ((), demos("parcel"), demos("broken", "size"), demos("size")),
    ),
    "answer": Choices(("You answer.", "Kind regards", "Bye."), ((),)),
}


async def test_search_finds_what_trying_every_combination_finds():
    graph = build()
    bench, start = bench_of(graph), candidate_of(graph.parameters)
    trials = Trials(bench, start, CHOICES, seed=1, random_trials=8)
    with tg.use_ledger(tg.Ledger()):
        for _ in range(6):
            await trials.arun(6, bench.val)
        scores = {}
        for i, d, a in itertools.product(range(3), range(4), range(3)):
            made = trials.proposal({"instruction of triage": i, "demos of triage": d, "instruction of answer": a})
            scored = await bench.ascore(bench.val, made.candidate)
            scores[made.hash] = sum(s.score for s in scored) / len(scored)
    best = trials.best()
    assert scores[best.hash] == max(scores.values()) == 1.0
    assert list(scores.values()).count(1.0) == 1


async def test_gains_are_measured_against_the_first_prompts_on_the_same_rows():
    graph = build()
    bench, start = bench_of(graph), candidate_of(graph.parameters)
    trials = Trials(bench, start, {"answer": Choices(("You answer.", "Kind regards"), ((),))}, seed=0, random_trials=2)
    with tg.use_ledger(tg.Ledger()):
        for row in bench.val:  # each alone: what it takes to be right differs, the gain does not
            await trials.arun(2, [row])
    values = {t.params["instruction of answer"]: set() for t in trials._study.trials}
    for trial in trials._study.trials:
        values[trial.params["instruction of answer"]].add(trial.value)
    assert values == {0: {0.0}, 1: {0.5}}


async def test_combination_that_is_too_long_together_costs_no_run():
    graph = build(max_tokens=40)
    bench, start = bench_of(graph), candidate_of(graph.parameters)
    choices = {"triage": Choices(("You route.", "Route. " + "Be kind. " * 13), ((), demos("parcel", "size")))}
    trials = Trials(bench, start, choices, seed=0, random_trials=4)
    with tg.use_ledger(tg.Ledger()):
        refused = [why for _ in range(4) for why in await trials.arun(4, bench.val[:2])]
    assert refused
    assert all("more than the limit of 40" in why for why in refused)
    found = {(t.params["instruction of triage"], t.params["demos of triage"]): t.value for t in trials._study.trials}
    assert found[1, 1] == -1.0
    assert all(value > -1 for key, value in found.items() if key != (1, 1))


def test_what_acceptance_measured_is_learned_and_not_judged_twice():
    search = MIPRO(Scripted(writes), **{**SMALL, "minibatch": 2, "gate_every": 4})
    _, events = fit(search)
    judged = [d["proposal"].hash for k, d in events if k == "decision"]
    assert len(judged) > 1
    assert len(set(judged)) == len(judged)


def test_writer_sees_the_program_the_data_good_cases_and_another_tip_each_time():
    model = Scripted(writes)
    graph = build()
    graph.parameters["answer"].value = "Kind regards"  # so that a refund is a success
    fit(MIPRO(model, **SMALL), graph=graph)
    summary, *asked = [r.messages[1]["content"] for r in model.requests]
    assert all(message(topic, "shoe") in summary or message(topic, "tent") in summary for topic in TEAMS)
    assert len(asked) == 4
    for text in asked:
        assert "The program: first (routes), then second (answer)" in text
        assert "About the data: Customers write about their orders." in text
    routing = [text for text in asked if "The step to write for: routes" in text]
    assert len({text.split("Tip: ")[1] for text in routing}) == 2
    assert all("The step did well here.\nIt was given:\nMy refund of" in text for text in routing)


def test_summary_that_quotes_the_data_is_refused():
    model = Scripted(lambda r: {n: "They say: my parcel of the shoe, please." for n in r.schema["properties"]})
    search = MIPRO(model, **SMALL)
    fit(search)
    assert "summary of the data: It quotes what was said in a run" in search.refused[0]
    assert "About the data" not in "".join(r.messages[1]["content"] for r in model.requests)


def test_without_instructions_only_demonstrations_are_searched_and_the_model_is_not_asked():
    model = Scripted(writes)
    result, events = fit(MIPRO(model, **{**SMALL, "instructions": 0}))
    assert model.requests == []
    assert split_demos(result.after["triage"])[1]
    assert split_demos(result.after["triage"])[0] == "You route.\nName the team."


def test_without_sets_only_instructions_are_searched():
    result, events = fit(MIPRO(Scripted(writes), **{**SMALL, "sets": 0}))
    assert result.accepted
    assert not any(split_demos(t)[1] for c in result.candidates.values() for t in c["texts"].values())


def test_search_stops_early_enough_to_have_its_best_judged():
    baseline, bootstrap = 2 * len(VAL), 2 * len(TRAIN)
    calls = baseline + bootstrap + 5 + 40
    result, events = fit(MIPRO(Scripted(writes), **{**SMALL, "gate_every": 99}), budget=tg.Budget(calls=calls))
    assert tried(events)
    assert (result.stopped_by, result.accepted) == ("steps", 1)


def test_prints_nothing_and_leaves_the_verbosity_of_optuna(capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    fit(MIPRO(Scripted(writes), **{**SMALL, "trials": 4}))
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_without_optuna_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lg-textgrad\[mipro\]'"):
        MIPRO(Scripted(writes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "`trials` of MIPRO .* at least 1"),
        ({"minibatch": 0}, "`minibatch` of MIPRO"),
        ({"instructions": -1}, "`instructions` of MIPRO .* at least 0"),
        ({"gate_every": 0}, "`gate_every` of MIPRO .* at least 1"),
        ({"sizes": []}, r"MIPRO needs a list of one or more `sizes`, .* not \[\]"),
        ({"sizes": 4}, "MIPRO needs a list of one or more `sizes`, .* not 4"),
        ({"sizes": iter([4])}, "MIPRO needs a list of one or more `sizes`"),
        ({"sizes": [0]}, "`sizes` of MIPRO .* at least 1"),
        ({"max_demo_tokens": 0}, "`max_demo_tokens` of MIPRO .* at least 1"),
        ({"threshold": 90}, "`threshold` of MIPRO .* from 0 to 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        MIPRO(Scripted(writes), **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stored_edits_lead_from_the_recorded_parent_to_each_candidate(seed):
    result, _ = fit(MIPRO(Scripted(writes), **{**SMALL, "gate_every": 2}), schedule=tg.Schedule(seed=seed))
    led = 0
    for candidate in result.candidates.values():
        if candidate["parent"] is None:
            continue
        before = result.candidates[candidate["parent"]]["texts"]
        for name, text in candidate["texts"].items():
            edits = [e for e in candidate["edits"] if e.parameter == name]
            assert apply_edits(split_demos(before[name])[0], edits) == split_demos(text)[0]
            led += bool(edits)
    assert led
