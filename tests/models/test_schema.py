"""Replies under a schema: what passes, and what each failure says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lg_textgrad.errors import ConfigurationError, ModelReplyError
from lg_textgrad.models.schema import checked_reply, in_words, parse_reply

SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "number"}, "why": {"type": "string"}},
    "required": ["score", "why"],
    "additionalProperties": False,
}
GOOD = {"score": 0.5, "why": "ok"}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_valid_reply_is_returned_as_data():
    assert parse_reply(json.dumps(GOOD), SCHEMA) == GOOD


@settings(deadline=None)
@given(values)
def test_any_json_value_comes_back_unchanged(value):
    assert parse_reply(json.dumps(value), {}) == value


@settings(deadline=None)
@given(st.text())
def test_any_text_gives_data_or_a_reply_error(text):
    try:
        json.dumps(parse_reply(text, {}), allow_nan=False, ensure_ascii=False).encode()
    except ModelReplyError as error:
        assert error.reply == text


WEIGHT = {"type": "number", "minimum": 0, "maximum": 1}


@pytest.mark.parametrize(
    ("text", "number"), [("1.0000000000000002", 1.0), ("-0.00000000000000000001", 0.0), ("0.25", 0.25)]
)
def test_number_that_misses_a_bound_by_its_last_digits_is_at_the_bound(text, number):
    assert parse_reply(f'{{"weight": {text}}}', {"properties": {"weight": WEIGHT}}) == {"weight": number}


@pytest.mark.parametrize("text", ["1.001", "-0.5", "1e300"])
def test_number_beyond_a_bound_breaks_the_schema(text):
    with pytest.raises(ModelReplyError, match="violates the schema at"):
        parse_reply(text, WEIGHT)


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}\n```", "  ```JSON\n{}\n``` \n"])
def test_one_fence_around_the_whole_reply_is_ignored(fence):
    assert parse_reply(fence.replace("{}", json.dumps(GOOD)), SCHEMA) == GOOD


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD)[:-1],
        "```json\n" + json.dumps(GOOD),
        "Here it is: " + json.dumps(GOOD),
        json.dumps(GOOD) + " Anything else?",
        '{"score": NaN, "why": "x"}',
        '{"score": 1e999, "why": "x"}',
        '{"score": 1, "why": "\\ud83d"}',
        "[" * 100_000,
    ],
)
def test_malformed_json_is_never_repaired(text):
    with pytest.raises(ModelReplyError, match="malformed JSON") as caught:
        parse_reply(text, SCHEMA)
    assert caught.value.reply == text


def test_violation_names_the_place_and_the_rule():
    with pytest.raises(ModelReplyError, match=r"violates the schema at \$\.score: 'high'"):
        parse_reply('{"score": "high", "why": "x"}', SCHEMA)
    with pytest.raises(ModelReplyError, match="'why' is a required property"):
        parse_reply('{"score": 1}', SCHEMA)


def test_violation_message_stays_short():
    with pytest.raises(ModelReplyError) as caught:
        parse_reply(json.dumps({"score": "x" * 10_000, "why": ""}), SCHEMA)
    assert len(str(caught.value)) < 400
    assert "(breaks type: number)" in str(caught.value)
    assert len(caught.value.reply) > 10_000


def test_broken_schema_is_the_callers_mistake():
    with pytest.raises(ConfigurationError, match="schema is itself invalid"):
        parse_reply("{}", {"type": "objekt"})


def test_reference_out_of_the_schema_is_not_downloaded():
    with pytest.raises(ConfigurationError, match="references must stay inside"):
        parse_reply("{}", {"$ref": "http://127.0.0.1:1/schema.json"})


def test_reference_inside_the_schema_is_followed():
    schema = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert parse_reply("[1, 2]", schema) == [1, 2]
    with pytest.raises(ModelReplyError):
        parse_reply('["a"]', schema)


def test_each_failure_says_which_it_is():
    text = json.dumps(GOOD)
    assert checked_reply(text, schema=SCHEMA) == GOOD
    assert checked_reply("cut", schema=None, finish_reason="length") is None
    with pytest.raises(ModelReplyError, match="cut off at max_tokens=5 before it was complete"):
        checked_reply(text, schema=SCHEMA, finish_reason="length", max_tokens=5)
    with pytest.raises(ModelReplyError, match="cut off at the server's limit before it said any"):
        checked_reply("", schema=None, finish_reason="length")
    with pytest.raises(ModelReplyError, match="empty"):
        checked_reply(" \n", schema=None)
    for filtered in ("", '{"ok": tr', text):
        with pytest.raises(ModelReplyError, match="withheld by a content filter") as caught:
            checked_reply(filtered, schema=SCHEMA, finish_reason="content_filter")
        assert (caught.value.kind, caught.value.reply) == ("refused", filtered)
    assert checked_reply("so far", schema=None, finish_reason="content_filter") is None
    with pytest.raises(ModelReplyError, match="refused to answer: I cannot") as caught:
        checked_reply("", schema=None, refusal="I cannot.")
    assert caught.value.reply == "I cannot."


def test_schema_in_words_goes_to_the_end_and_leaves_the_request_alone():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "{braces}"}]
    said = in_words(messages, SCHEMA)
    assert said[0] == messages[0]
    assert said[1]["content"].startswith("{braces}\n\n")
    assert said[1]["content"].endswith(json.dumps(SCHEMA))
    assert messages[1]["content"] == "{braces}"


def test_schema_in_words_is_not_put_into_the_assistants_mouth():
    said = in_words([{"role": "assistant", "content": "hi"}], SCHEMA)
    assert [m["role"] for m in said] == ["assistant", "user"]
    assert [m["role"] for m in in_words([], SCHEMA)] == ["user"]
