"""Demonstrations from runs that succeeded and from references, on a real graph."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.demos import Demo, split_demos
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim.fewshot import spread_out
from tests.optim.router import OBJECTIVE, TEAMS, build, examples, message, rows


async def proposed(optimizer, graph, ran, train=()):
    optimizer.bind(graph.parameters)
    optimizer.see_examples(examples(train))
    optimizer.see((await OBJECTIVE.acall(await graph.arecord(ran))).scored)
    return await optimizer.aproposals()


def of(proposals, name, kind=None):
    return [
        split_demos(p.candidate[name])[1]
        for p in proposals
        if split_demos(p.candidate[name])[1] and kind in (None, p.kind)
    ]


async def test_references_give_demonstrations_of_examples_that_never_ran():
    graph = build()
    found = of(await proposed(tg.optim.FewShot(sizes=[8]), graph, rows(words=["shoe"]), rows()), "triage")
    [demos] = found
    assert len(demos) == 8
    assert all(d.output == TEAMS[d.inputs.split()[1]] for d in demos)
    assert {d.output for d in demos} == set(TEAMS.values())
    assert len({d.inputs for d in demos}) == 8


async def test_node_whose_reply_is_no_output_with_a_reference_gets_none():
    graph = build()
    assert of(await proposed(tg.optim.FewShot(), graph, rows(words=["shoe"]), rows()), "answer") == []


async def test_runs_that_succeeded_give_what_the_node_really_replied():
    graph = build()
    graph.parameters["answer"].value = "You answer.\nEnd with Kind regards."
    found = await proposed(tg.optim.FewShot(sizes=[2]), graph, rows(words=["shoe", "tent"]))
    [demos] = of(found, "answer", "demonstrations of runs")
    assert [d.output for d in demos] == ["We will see to it. Kind regards"] * 2
    assert all(d.inputs.startswith("For ") and message("", "")[:2] in d.inputs for d in demos)


async def test_execution_that_its_evaluators_praised_is_shown_though_the_run_failed_elsewhere():
    graph = build()
    optimizer = tg.optim.FewShot()
    await proposed(optimizer, graph, rows(words=["shoe"]))
    assert list(optimizer.collected.good["triage"]) == ["refund-shoe"]
    assert "answer" not in optimizer.collected.good
    graph.parameters["answer"].value = "Kind regards"
    await proposed(optimizer, graph, rows(words=["shoe"]))
    assert len(optimizer.collected.good["answer"]) == 4
    assert list(optimizer.collected.good["triage"]) == ["refund-shoe"]


async def test_turn_that_is_not_made_of_inputs_alone_gives_only_what_ran():
    graph = build()
    optimizer = tg.optim.FewShot()
    await proposed(optimizer, graph, rows(words=["shoe", "tent"]), rows())
    assert len(optimizer.collected.expected("triage")) == len(rows())
    seen = optimizer.collected.final["triage"]
    optimizer.collected.final["triage"] = {
        e: type(t)(t.example, t.asked + f" (found {len(e)})", t.replied) for e, t in seen.items()
    }
    assert len(optimizer.collected.expected("triage")) == 8


async def test_proposals_keep_the_token_limit_and_differ_by_size():
    graph = build(max_tokens=90)
    found = of(await proposed(tg.optim.FewShot(sizes=[2, 4, 30]), graph, rows(words=["shoe"]), rows()), "triage")
    assert [len(demos) for demos in found] == [2, 4]
    assert found[1][:2] == found[0]


async def test_seed_chooses_the_set():
    graph, ran = build(), rows(words=["shoe"])
    one, again, other = [
        of(await proposed(tg.optim.FewShot(sizes=[4], seed=seed), graph, ran, rows()), "triage") for seed in (1, 1, 2)
    ]
    assert one == again != other


async def test_forgets_what_earlier_runs_have_shown():
    graph = build()
    optimizer = tg.optim.FewShot()
    assert await proposed(optimizer, graph, rows(words=["shoe"]), rows())
    optimizer.reset()
    assert await optimizer.aproposals() == []


@pytest.mark.parametrize("options", [{"sizes": []}, {"sizes": [0]}, {"sets": 0}])
def test_options_that_propose_nothing_are_refused(options):
    with pytest.raises(ConfigurationError, match="at least 1|one or more"):
        tg.optim.FewShot(**options)


def test_few_shot_alone_trains_a_graph():
    graph = build()
    trainer = tg.Trainer(
        graph, OBJECTIVE, critic=None, optimizer=tg.optim.FewShot(sizes=[4]), schedule=tg.Schedule(steps=1, batch_size=4)
    )
    result = trainer.fit(rows(words=["shoe", "tent"]), rows(words=["lamp", "rope"]))
    assert (result.baseline.val, result.best.val) == (1 / 8, 1 / 2)
    assert len(graph.parameters["triage"].demos) == 4
    assert graph.parameters["triage"].value == "You route.\nName the team."


TEXT = st.text("ab c", max_size=6)


@given(st.lists(st.builds(Demo, TEXT, st.sampled_from("xyz")), max_size=9), st.integers(1, 12))
def test_spread_takes_each_output_in_turn_within_the_limit(demos, limit):
    chosen = spread_out(demos, limit)
    assert sum(-(-len(d.inputs) // 4) - (-len(d.output) // 4) for d in chosen) <= limit
    everything = spread_out(demos, 10**6)
    assert sorted(everything, key=repr) == sorted(demos, key=repr)
    for n in range(1, len(everything) + 1):
        counts = {kind: sum(d.output == kind for d in everything[:n]) for kind in {d.output for d in demos}}
        exhausted = [k for k in counts if counts[k] == sum(d.output == k for d in demos)]
        assert max(counts.values()) - min((counts[k] for k in counts if k not in exhausted), default=99) <= 1
