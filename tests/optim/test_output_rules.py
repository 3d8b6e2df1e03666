"""Rules that all references agree on, as lines."""

from __future__ import annotations

import json

import pytest

import lg_textgrad as tg
from lg_textgrad.optim.collected import Collected, Turn
from lg_textgrad.optim.output_rules import OutputRules, listed_values
from tests.optim.router import OBJECTIVE, build, examples, rows


async def test_values_that_come_again_are_listed_for_the_node_that_writes_them():
    graph = build()
    optimizer = OutputRules(parameters=graph.parameters)
    optimizer.see_examples(examples(rows()))
    optimizer.see((await OBJECTIVE.acall(await graph.arecord(rows(words=["shoe"])))).scored)
    [proposal] = await optimizer.aproposals()
    assert proposal.candidate["answer"] == "You answer."
    assert proposal.candidate["triage"] == (
        "You route.\nName the team.\nReply with one of these and nothing else: advice, delivery, payments, repairs."
    )
    assert proposal.edits[0].why == "all reference outputs agree on it"


SAID = [
    ("play metal by Bo", {"intent": "Play", "slots": {"genre": "metal", "artist": "Bo"}}),
    ("play Bo", {"intent": "Play", "slots": {"artist": "Bo"}}),
    ("rate Ulysses two", {"intent": "Rate", "slots": {"book": "Ulysses", "stars": "two"}}),
    ("rate it five", {"intent": "Rate", "slots": {"stars": "five"}}),
]


async def rules(said, prompt="Find it."):
    named = {"find": tg.Parameter("find", prompt)}
    optimizer = OutputRules(parameters=named)
    optimizer.collected = Collected()
    optimizer.collected.final["find"] = {
        q: Turn(tg.Example(q, {"q": q}, expected), q, json.dumps(expected)) for q, expected in said
    }
    return [p.candidate["find"].split("\n")[1:] for p in await optimizer.aproposals()]


async def test_keys_values_and_what_goes_with_which_value_of_objects():
    full, short = await rules(SAID)
    assert short == [
        'Reply with one JSON object with the keys "intent", "slots".',
        '"intent" is one of: Play, Rate.',
        'Copy the values in "slots" from the message word for word.',
    ]
    assert full == [
        *short,
        'When "intent" is Play, "slots" may have: artist, genre.',
        'When "intent" is Rate, "slots" may have: book, stars.',
    ]


async def test_line_that_the_prompt_has_already_is_not_proposed_again():
    full, _ = await rules(SAID, 'Find it.\n"intent" is one of: Play, Rate.')
    assert '"intent" is one of: Play, Rate.' not in full[1:]


async def test_values_that_are_not_copied_get_no_rule_of_copying():
    changed = [(q, {**e, "slots": {k: v.upper() for k, v in e["slots"].items()}}) for q, e in SAID]
    for lines in await rules(changed):
        assert not any("word for word" in line for line in lines)


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        (["a", "b", "a", "b"], "a, b"),
        (["a", "b", "c", "a"], ""),
        (["a", "a"], ""),
        (["x" * 50, "y" * 50] * 4, ""),
        ([1, 2, 1, 2], ""),
        ([None, "a", "b", "a", "b"], "a, b"),
        ([], ""),
    ],
)
def test_only_few_short_values_that_come_again_are_a_list(values, listed):
    assert listed_values(values) == listed
