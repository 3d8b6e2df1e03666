"""Single examples stay out of prompts: quotations are found, rules pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg_textgrad.guards import NGRAM, Answers, Quotations, names_of, new_lines, ngrams, stretches, strings, words

MESSAGE = "Hi, my order F-1234 didn't arrive on Tuesday; can you please check?"


def test_words_are_compared_without_case_and_punctuation():
    assert words("Can you — PLEASE — check?!") == ["can", "you", "please", "check"]
    assert words("F-1234 didn't cost 3.50") == ["f-1234", "didn't", "cost", "3.50"]
    assert words("snake_case Straße") == ["snake", "case", "straße"]
    assert words("PW\u200dNED نمی\u200cشود") == words("PWNED نمیشود")


def test_strings_are_found_in_nested_data():
    data = {"a": ["x", {"b": ("y", 3, None)}], "c": b"bytes", "d": True}
    assert sorted(strings(data)) == ["x", "y"]


def test_quotation_is_found_in_whatever_disguise():
    known = Quotations([{"messages": [{"role": "user", "content": MESSAGE}]}])
    assert known.find("If they ask 'F-1234 DIDN'T arrive, on Tuesday: can', say no.") == (
        "f-1234 didn't arrive on tuesday can"
    )
    assert known.find(f"Answer {MESSAGE} with sorry.") is not None
    assert known.find("If they ask 'F-1234 di\u200bdn't ar\xadrive on Tues\u200cday can', say no.") is not None


def test_rules_and_short_phrases_pass():
    known = Quotations([MESSAGE])
    assert known.find("When an order didn't arrive, the team is delivery.") is None
    assert known.find("arrive on Tuesday can you") is None  # five words in a row
    assert known.find("") is None
    assert Quotations([]).find(MESSAGE) is None


def test_words_of_two_examples_do_not_join_into_a_quotation():
    known = Quotations(["one two three four", "five six seven eight"])
    assert known.find("one two three four five six seven eight") is None


def test_length_of_a_quotation_can_be_set():
    assert Quotations([MESSAGE], n=3).find("it did not arrive on Tuesday") == "arrive on tuesday"


def test_ngrams_of_short_texts_are_none():
    assert ngrams("one two three four five") == set()
    assert len(ngrams("one two three four five six seven")) == 2


@given(st.lists(st.sampled_from(["a", "Don't", "F-12", "x_y", "3.50", "—", "...", "Ω"]), max_size=20), st.integers(1, 7))
def test_ngrams_are_all_runs_of_so_many_words(parts, n):
    text = " ".join(parts)
    found = words(text)
    assert ngrams(text, n) == {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


UNSPACED = {
    "Chinese": ("我昨天在你们店里买的黄色灯笼到现在还没有送到家里", "如果灯笼没有送到,请客户联系送货组。"),
    "Japanese": ("先週の火曜日に注文した黄色いランプがまだ届いていません", "ランプが届かないときは配送チームに回す。"),
    "Thai": ("โคมไฟสีเหลืองที่ฉันสั่งซื้อเมื่อวันอังคารที่แล้วยังไม่มาถึงบ้านเลย", "ถ้าโคมไฟยังไม่มา ให้ส่งต่อทีมจัดส่ง"),
}


@pytest.mark.parametrize(("message", "rule"), UNSPACED.values(), ids=UNSPACED)
def test_quotation_in_a_language_without_spaces_is_found(message, rule):
    known = Quotations([f"你好! {message}。"])
    quoted = known.find(f"规则:{message[2:]},好的")
    assert quoted is not None
    assert quoted in "".join(words(message))  # the marks over and under letters do not count
    assert known.find(rule) is None


def test_characters_and_words_add_up_in_one_quotation():
    known = Quotations(["订单 F-1234 的黄色灯笼 was sent on Tuesday"])
    assert known.find("黄色灯笼 was sent on Tuesday") == "黄色灯笼 was sent on tuesday"
    assert known.find("黄色 was sent on Tuesday") is None


ANSWER = "Your parcel waits at the harbour office until Friday noon, bring the paper slip with you."
CLOSING = "We are happy to help you again at any time, your harbour office."


def answers(*texts, trusted=()):
    known = Answers(trusted)
    for number, text in enumerate(texts):
        known.add(f"row {number}", {"answer": [text]})
    return known


def test_reference_output_of_one_example_is_a_quotation():
    known = answers(ANSWER, "It is open from eight to five on weekdays, and closed at Easter.")
    assert known.find(f"Say: {ANSWER}") == "your parcel waits at the harbour"
    assert known.find("Say where the parcel waits and until when.") is None


def test_what_several_reference_outputs_say_is_a_rule():
    known = answers(f"{ANSWER} {CLOSING}", f"It is open today. {CLOSING}")
    assert known.find(f"End with: {CLOSING}") is None
    assert known.find(f"Say: {ANSWER}") is not None


def test_one_example_that_is_known_twice_is_still_one():
    known = Answers()
    known.add("row", {"answer": ANSWER})
    known.add("row", {"answer": ANSWER, "more": ANSWER})
    assert known.find(ANSWER) is not None


def test_reference_output_that_a_prompt_says_or_that_is_a_label_is_no_quotation():
    assert answers(ANSWER, trusted=[f"Say: {ANSWER}"]).find(ANSWER) is None
    label = "a repair, a spare part or the warranty"
    assert answers(label).find(f'"about" may be: {label}') is None


def test_what_an_evaluator_asks_for_in_the_words_of_a_reference_is_a_rule_and_what_it_quotes_is_none():
    known = answers(ANSWER)
    known.trust(f"Expected: '{ANSWER}', got 'no'.")
    assert known.find(ANSWER) is not None
    known.trust(f"Say where it is. {ANSWER}")
    assert known.find(ANSWER) is None


def test_new_lines_are_those_that_were_not_there_and_say_something():
    assert new_lines("one\n\nold\ntwo\n \nold", "old\nolder") == ["one", "two"]


def test_new_lines_are_read_together_until_a_sentence_ends_at_a_line_that_was_there():
    before = "old\nolder"
    assert stretches("one\n\ntwo.\nthree\nold\nfour.\nolder\nfive", before) == [
        "one\ntwo.\nthree\nfour.",
        "five",
    ]
    assert stretches("old", before) == stretches("", before) == []


def test_line_that_only_ends_otherwise_is_not_new():
    before = "You route.\r\nName one team. \r\nBe kind."
    after = "You route.\nName one team.\nNever guess.\nBe kind. "
    assert new_lines(after, before) == ["Never guess."]
    assert stretches(after, before) == ["Never guess."]


def test_names_are_words_with_digits():
    data = {"q": MESSAGE, "when": ["on 2024-05-01", "at 10.30"], "n": 7}
    assert names_of([data, None]) == {"f-1234", "2024-05-01", "10.30"}


pieces = st.lists(st.sampled_from("alpha beta gamma delta epsilon zeta eta theta".split()), max_size=14)


@given(pieces, pieces, pieces)
def test_every_long_enough_quotation_is_found_and_nothing_else(example, before, after):
    known = Quotations([" ".join(example)])
    line = [*before, *after]
    expected = any(
        line[i : i + NGRAM] == example[j : j + NGRAM]
        for i in range(len(line) - NGRAM + 1)
        for j in range(len(example) - NGRAM + 1)
    )
    assert (known.find(" ".join(line)) is not None) == expected
    if len(example) >= NGRAM:
        assert known.find(" ".join([*before, *example, *after])) is not None


@given(st.text(max_size=200), st.text(max_size=50))
def test_any_text_can_be_searched(text, line):
    found = Quotations([{"t": text}]).find(line)
    assert found is None or ngrams(found)
