"""A text from a model: asked twice at most, and only what nothing speaks against."""

from __future__ import annotations

import re

import pytest

from lg_textgrad.asking import Writer, quoting
from lg_textgrad.errors import ModelReplyError, ParameterError
from tests.parts import Scripted


def writer(*replies):
    said = iter(replies)
    model = Scripted(lambda r: next(said))
    return Writer(model, seed=5), model


def no_shouting(text):
    return "It shouts." if text.isupper() else None


QUESTION = [{"role": "user", "content": "Write."}]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"instruction": "SHOUT"}, "It shouts."),
        ({"instruction": "  \n"}, "It is empty."),
        ({"instruction": "x" * 40}, "cut off at 40 characters"),
        (ModelReplyError("The reply is no JSON."), "The reply is no JSON."),
    ],
)
async def test_unusable_reply_is_asked_for_again_with_the_reason(bad, why):
    by, model = writer(bad, {"instruction": " Speak.\n"})
    assert await by.awrite(QUESTION, no_shouting, longest=40) == "Speak."
    first, second = model.requests
    assert [first.seed, second.seed] == [5, 6]
    assert list(second.messages[:1]) == QUESTION
    assert re.search(rf"<(data-\w+)>\n[^<]*{why}[^<]*\n</\1>", second.messages[-1]["content"])
    by, model = writer(bad, bad)
    with pytest.raises(ParameterError, match=why):
        await by.awrite(QUESTION, no_shouting, longest=40)
    assert len(model.requests) == 2


def test_words_of_a_run_are_quoted_only_in_new_lines():
    said = "please do tell me where my parcel is now"
    refusal = quoting([said], now="Say: tell me where my parcel is.")
    assert refusal("Be kind.\nSay: tell me where my parcel is.") is None
    assert "quotes what was said in a run: 'tell me where my parcel is'" in refusal("Then: Tell me where my parcel is!")
    assert refusal("Tell me where my bill is.") is None
