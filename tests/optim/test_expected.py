"""What a node should have replied, read off the reference outputs."""

from __future__ import annotations

import pytest

from lg_textgrad.optim.expected import ReplyForm, asked_and_replied, json_in, learn_form
from lg_textgrad.run import Execution, ModelCall

JSON = ReplyForm(("intent", "slots"), as_json=True)


@pytest.mark.parametrize(
    ("pairs", "form"),
    [
        (
            [('{"intent": "Play"}', {"intent": "Rate", "slots": {"a": "b"}}),
             ('Here: {"slots": {}, "intent": "x"}', {"intent": "Play", "slots": {}})],
            JSON,
        ),
        (
            [('{"intent": "x", "mood": 1}', {"intent": "y", "source": "web"})],
            ReplyForm(("intent",), as_json=True),
        ),
        (
            [("Payments.", {"team": "payments", "topic": "refund"}), ("what?", {"team": "repairs", "topic": "x"})],
            ReplyForm(("team",), as_json=False),
        ),
        ([("You have 9.", {"answer": "8"}), ("Ten", {"answer": 11})], ReplyForm(("answer",), as_json=False)),
        ([("So it is.", {"answer": "x" * 300})], None),
        ([("nobody", {"team": "a", "topic": "b"})], None),
        ([("anything", {})], None),
        ([], None),
    ],
)  # fmt: skip
def test_form_is_learned_from_replies_and_references(pairs, form):
    assert learn_form(pairs) == form


PAIRS = [("nobody", {"team": "a", "topic": "b"}), ("none", {"team": "c", "topic": "d"})]


def test_key_of_an_outputs_name_needs_no_reply_that_matches():
    assert learn_form(PAIRS, ["topic", "reply"]) == ReplyForm(("topic",), as_json=False)
    assert learn_form(PAIRS, ["topic", "team"]) is None


def test_only_key_is_taken_for_a_node_that_is_alone():
    pairs = [("You have 9.", {"answer": "8"})]
    assert learn_form(pairs, ["reply"], alone=False) is None
    assert learn_form(pairs, ["answer"], alone=False) == ReplyForm(("answer",), as_json=False)


@pytest.mark.parametrize(
    ("form", "reference", "reply"),
    [
        (JSON, {"slots": {"b": "ü"}, "intent": "Play", "id": 3}, '{"intent": "Play", "slots": {"b": "ü"}}'),
        (ReplyForm(("answer",), as_json=False), {"answer": 8}, "8"),
        (ReplyForm(("ok",), as_json=False), {"ok": True}, "true"),
        (ReplyForm(("answer",), as_json=False), {"other": 8}, None),
    ],
)
def test_reference_is_written_as_a_reply(form, reference, reply):
    assert form.reply(reference) == reply


@pytest.mark.parametrize(
    ("text", "found"),
    [('```json\n{"a": 1}\n```', {"a": 1}), ("{broken", None), ("[1]", None), ("} {", None), ('{"a": }', None)],
)
def test_object_is_found_in_a_reply(text, found):
    assert json_in(text) == found


def executed(*messages, output="done", **more):
    call = ModelCall("m", messages, {"role": "ai", "content": output, **more})
    return Execution("n#0", "n:1", "n", 1, 0, {}, model_calls=(call,))


def test_only_one_question_with_one_answer_is_a_turn():
    system, human = {"role": "system", "content": "Be."}, {"role": "human", "content": " hi "}
    assert asked_and_replied(executed(system, human)) == ("hi", "done")
    assert asked_and_replied(executed(human, {"role": "ai", "content": "x"}, human)) is None
    assert asked_and_replied(executed(human, tool_calls=[{"name": "t"}])) is None
    assert asked_and_replied(executed({"role": "human", "content": [{"type": "image"}]})) is None
    assert asked_and_replied(Execution("n#0", "n:1", "n", 1, 0, {})) is None
