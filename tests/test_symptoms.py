"""What visibly went wrong in an execution, told without a critic."""

from __future__ import annotations

import json

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage

import lg_textgrad as tg
from lg_textgrad.recording.formats import reply_format
from lg_textgrad.run import Execution, ModelCall, ToolCall, Usage
from lg_textgrad.symptoms import remark_in, symptoms_of

SCHEMA = {"type": "object", "properties": {"team": {"type": "string"}}, "required": ["team"]}


def call(said="Fine.", system="You are kind.", **more):
    messages = ({"role": "system", "content": system}, {"role": "human", "content": "Reply in JSON."})
    output = said if said is None or isinstance(said, dict) else {"role": "ai", "content": said}
    return ModelCall("m", messages, output, **more)


def execution(*calls, **more):
    return Execution("n#0", "n:1", "n", 1, 0, {}, model_calls=calls, **more)


def kinds(*calls, **more):
    return [s.kind for s in symptoms_of(execution(*calls, **more))]


def test_nothing_wrong_nothing_found():
    assert kinds(call()) == kinds(call(finish_reason="stop")) == kinds() == []


def test_exceptions_and_failed_calls_are_told_with_their_words():
    [failed] = symptoms_of(execution(error="ValueError: no team"))
    assert (failed.kind, failed.text, failed.evidence, failed.rule) == (
        "exception", "It failed: ValueError: no team", "ValueError: no team", "",
    )  # fmt: skip
    assert kinds(call(None, error="APIError: boom")) == ["model_error"]


def test_tools_that_failed_are_told_with_what_they_were_asked():
    raised = ToolCall("look", {"x": 1}, error="KeyError: 1")
    answered = ToolCall("look", {"x": 2}, {"role": "tool", "content": "Error: no x", "status": "error"})
    fine = ToolCall("look", {"x": 3}, {"role": "tool", "content": "Error: is a word like others"})
    [symptom] = symptoms_of(execution(tool_calls=(raised,)))
    assert symptom.text == "The tool 'look' failed when it was called with {\"x\": 1}: KeyError: 1"
    assert kinds(tool_calls=(answered,)) == ["tool_error"]
    assert kinds(tool_calls=(fine,)) == []


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS"])
def test_cut_off_reply_is_seen_and_its_rule_knows_the_room(reason):
    [symptom] = symptoms_of(execution(call("It was a dark and", finish_reason=reason)))
    assert (symptom.kind, symptom.evidence) == ("cut_off", "It was a dark and")
    assert symptom.rule == "Keep the reply short: a long one is cut off before its end."
    long = call("x", finish_reason=reason, usage=Usage(1, completion_tokens=80))
    assert symptoms_of(execution(long))[0].rule == (
        "Keep the whole reply under 45 words: a longer one is cut off before its end."
    )
    short = call("x", finish_reason=reason, usage=Usage(1, completion_tokens=8))
    assert "a few words only" in symptoms_of(execution(short))[0].rule


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "As an AI language model, I am unable to comply.",
        "Sorry, I won't do that",
        "Unfortunately, I’m not able to assist you here.",
    ],
)
def test_refusals_are_seen(said):
    assert kinds(call(said)) == ["refusal"]


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry that your parcel is late.",
        "I cannot find order F-1234 in our books.",
        "Sorry, the shop is closed.",
        "We can't help it: the tent is sold out.",
    ],
)
def test_polite_words_are_no_refusal(said):
    assert kinds(call(said)) == []


def test_server_that_filtered_the_reply_refused():
    assert kinds(call("", finish_reason="content_filter")) == ["refusal"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"team": "a"}', []),
        ('```json\n{"team": "a"}\n```', []),
        ("Here you are: {team: a}", ["format"]),
        ("", ["format"]),
        ({"role": "ai", "content": "", "tool_calls": [{"name": "t", "args": {}}]}, []),
    ],
)
def test_reply_that_should_be_json_and_is_not(said, found):
    for asked in (call(said, "Reply with JSON only."), call(said, format={})):
        assert kinds(asked) == found
    for asked in (call(said), call(said, "Never reply with JSON.")):
        assert kinds(asked) == []


@pytest.mark.parametrize(
    ("system", "found"),
    [
        ("If the user asks for a list, reply with JSON. Otherwise write a sentence.", []),
        ("Answer with a sentence, or when asked for data with a JSON object.", []),
        ("You may reply in JSON.", []),
        ("If the team is unknown, say so.\nReply with JSON only.", ["format"]),
        ("Whatever the user writes, return a JSON object. If there is no team, use null.", ["format"]),
    ],
)
def test_json_that_is_asked_for_in_some_cases_only_is_not_missed_in_others(system, found):
    assert kinds(call("It goes to the harbour.", system)) == found


def test_what_a_schema_says_against_a_long_reply_is_told():
    said = json.dumps({"team": "a" * 300})
    short = {**SCHEMA, "properties": {"team": {"type": "string", "maxLength": 5}}}
    [symptom] = symptoms_of(execution(call(said, format=short)))
    assert "characters cut" in symptom.text
    assert "is too long at 'team'" in symptom.text


def test_reply_is_held_against_its_schema():
    assert kinds(call('{"team": "a"}', format=SCHEMA)) == []
    [symptom] = symptoms_of(execution(call('{"team": 3}', format=SCHEMA)))
    assert (symptom.kind, symptom.rule) == ("format", "")
    assert "3 is not of type 'string' at 'team'" in symptom.text


def test_half_a_reply_is_only_cut_off():
    assert kinds(call('{"team": "a', format=SCHEMA, finish_reason="length")) == ["cut_off"]


def test_one_symptom_of_a_kind():
    assert kinds(call("x", finish_reason="length"), call("y", finish_reason="length")) == ["cut_off"]


def test_content_blocks_are_read():
    blocks = {"role": "ai", "content": [{"type": "text", "text": "I can't help with that."}, "more"]}
    assert kinds(call(blocks)) == ["refusal"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"format": "json"}, {}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, SCHEMA),
        ({"response_format": SCHEMA}, SCHEMA),
    ],
)
def test_format_is_told_from_how_the_model_was_called(asked, found):
    assert reply_format(asked) == found


async def test_format_that_a_node_asked_for_is_recorded_and_kept(tmp_path):
    from langgraph.graph import START, StateGraph

    model = FakeListChatModel(responses=["no JSON"]).bind(response_format={"type": "json_object"})

    async def node(state):
        return {"a": (await model.ainvoke("x")).content}

    builder = StateGraph(dict)
    compiled = builder.add_node("node", node).add_edge(START, "node").compile()
    graph = tg.TrainableGraph(compiled, [tg.Parameter("p", "x")])
    with tg.Store(tmp_path) as store, tg.use_ledger(tg.Ledger(store)):
        [first] = await graph.arecord([{"inputs": {}}])
        [second] = await graph.arecord([{"inputs": {}}])
    for run in (first, second):
        [made] = run.executions[0].model_calls
        assert made.format == {}
        assert [s.kind for s in symptoms_of(run.executions[0])] == ["format"]
    assert isinstance(model.bound.invoke("x"), AIMessage)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("I'm sorry, but I can't assist with that.", "I'm sorry, but I can't assist with that."),
        ("Good day. I cannot help with that request. Warm regards.", "I cannot help with that request."),
        ("As an AI language model, I am unable to comply.", "As an AI language model, I am unable to comply."),
        ("Certainly! Based on the examples, here is one.", "Certainly!"),
        ("Sure, here is the prompt:", "Sure, here is the prompt:"),
        ("Here's the revised system prompt for the desk:", "Here's the revised system prompt for the desk:"),
        ("Here is a more improved version of it.", "Here is a more improved version of it."),
        ("As an AI, I have no opinion.", "As an AI, I have no opinion."),
        ("As an AI assistant of the shop, you reply in JSON.", None),
        ("Certainly name the team.", None),
        ("Surely nobody waits.", None),
        ("Here is a list of teams: delivery, repairs.", None),
        ("Begin with 'Certainly!'", None),
        ("Be sure, then reply.", None),
        ("- Be kind.", None),
        ("To threats, reply: I'm sorry, but I can't assist with that.", None),
        ("Never say 'I can't help with that.'", None),
        ('"I can\'t help with that." is what you say to threats.', None),
        ("You cannot help with the law; say so.", None),
        ("", None),
    ],
)
def test_remark_in_a_line_is_one_in_its_own_name(line, found):
    assert remark_in(line) == found
