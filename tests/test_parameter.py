"""Parameters, edits and the candidate in scope."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.errors import ParameterError
from lg_textgrad.parameter import (
    apply_edits,
    candidate_of,
    count_tokens,
    fill,
    find_placeholders,
    observe_reads,
)

# Edits.

ops = st.sampled_from(["add", "replace", "delete"])
lines = st.lists(st.text(alphabet="ab {}", max_size=4), min_size=1, max_size=6)
edits = st.lists(
    st.builds(lambda op, n, t: tg.Edit("p", op, n, t), ops, st.integers(-1, 8), st.text("xyz", max_size=3)),
    max_size=6,
)


def naive(text, edits):
    """One edit after another on a list of slots, one slot a line; None where it must be refused."""
    slots = [["", []]] + [[line, []] for line in text.split("\n")]  # slot 0 is the top
    gone, touched = set(), set()
    if not text and any(e.op == "add" for e in edits) and not any(e.op == "replace" for e in edits):
        gone.add(1)  # a text of nothing has no line that could stay
    for e in edits:
        if e.op == "add":
            if not 0 <= e.line < len(slots):
                return None
            slots[e.line][1].append(e.text)
            continue
        if not 1 <= e.line < len(slots) or e.line in touched:
            return None
        touched.add(e.line)
        if e.op == "delete":
            gone.add(e.line)
        else:
            slots[e.line][0] = e.text
    result = []
    for number, (line, after) in enumerate(slots):
        if number and number not in gone:
            result.append(line)
        result += after
    return "\n".join(result)


@settings(max_examples=300, deadline=None)
@given(lines, edits)
def test_apply_edits_equals_a_naive_reference(lines, edits):
    text = "\n".join(lines)
    expected = naive(text, edits)
    if expected is None:
        with pytest.raises(ParameterError):
            apply_edits(text, edits)
    else:
        assert apply_edits(text, edits) == expected


@pytest.mark.parametrize("line", [0, 1])
def test_line_added_to_an_empty_text_is_its_first(line):
    added = [tg.Edit("p", "add", line, "Be brief."), tg.Edit("p", "add", line, "Be kind.")]
    assert apply_edits("", added) == "Be brief.\nBe kind."
    assert apply_edits("\n", added[:1]) == ("Be brief.\n\n", "\nBe brief.\n")[line]


def test_line_numbers_count_in_the_text_as_given():
    text = "one\ntwo\nthree"
    changed = apply_edits(
        text,
        [
            tg.Edit("p", "delete", 1),
            tg.Edit("p", "replace", 3, "THREE"),
            tg.Edit("p", "add", 1, "after one"),
            tg.Edit("p", "add", 0, "top"),
            tg.Edit("p", "add", 1, "and again"),
        ],
    )
    assert changed == "top\nafter one\nand again\ntwo\nTHREE"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (tg.Edit("p", "replace", 0, "x"), "names line 0, but the text has lines 1 to 2"),
        (tg.Edit("p", "delete", 3), "names line 3, but the text has lines 1 to 2"),
        (tg.Edit("p", "add", 3, "x"), "names line 3, but the text has lines 0 to 2"),
    ],
)
def test_edit_out_of_range(edit, words):
    with pytest.raises(ParameterError, match=words) as caught:
        apply_edits("a\nb", [edit])
    assert caught.value.parameter == "p"


def test_two_edits_of_one_line():
    with pytest.raises(ParameterError, match="Two edits of 'p' change line 1"):
        apply_edits("a", [tg.Edit("p", "delete", 1), tg.Edit("p", "replace", 1, "b")])


# Placeholders.

NAMES = st.sampled_from(["a", "b", "long_name", "user.name"])
pieces = st.lists(
    NAMES.map(lambda n: f"{{{n}}}") | st.text(alphabet='{}"ab: ', max_size=5), max_size=6
).map("".join)


@settings(max_examples=300, deadline=None)
@given(pieces, st.dictionaries(NAMES, pieces), st.lists(NAMES, unique=True))
def test_fill_replaces_each_placeholder_once_and_nothing_else(text, variables, names):
    wanted = [n for n in find_placeholders(text) if n in names]
    if any(n not in variables for n in wanted):
        with pytest.raises(ParameterError, match="no value was given"):
            fill(text, variables, names, "p")
        return
    # Independent: cut the text at the placeholders first, then join what stands for each piece.
    parts = re.split(r"((?<!\{)\{[A-Za-z_][A-Za-z0-9_.]*\}(?!\}))", text)
    expected = "".join(
        variables[p[1:-1]] if i % 2 and p[1:-1] in wanted else p for i, p in enumerate(parts)
    )
    assert fill(text, variables, names, "p") == expected


def test_json_braces_are_no_placeholders_and_stay_as_they_are():
    text = 'Reply as {"team": "x"} or {} or {{literal}} to {user}.'
    p = tg.Parameter("p", text)
    assert p.placeholders == ("user",)
    assert p.message(user="{user} {other}").content == (
        'Reply as {"team": "x"} or {} or {{literal}} to {user} {other}.'
    )


def test_missing_variable_says_how_to_give_it():
    with pytest.raises(ParameterError, match=r"placeholder \{user\} but no value was given; call message\(user=...\)"):
        tg.Parameter("p", "Hi {user}").message()


def test_demonstrations_are_never_formatted():
    p = tg.Parameter("p", "Hi {user}", demos=[tg.Demo("say {user}", "{user}!")])
    assert p.message(user="Ada").content == "Hi Ada\n\nExamples:\n\nInput: say {user}\nOutput: {user}!"
    with tg.prompts({"p": "Hello {user}\n\nExamples:\n\nInput: {user}\nOutput: 1"}):
        assert p.message(user="Ada").content == "Hello Ada\n\nExamples:\n\nInput: {user}\nOutput: 1"


FEW = "Classify.\n\nExamples:\n\nInput: great\nOutput: pos\n\nInput: {text}\nOutput: "


def test_examples_that_the_user_wrote_around_a_placeholder_are_part_of_the_instruction():
    p = tg.Parameter("p", FEW, locked=["Output: pos"])
    assert p.message(text="{bad}").content == FEW.replace("{text}", "{bad}")
    p.check(FEW.replace("Classify", "Label"))
    with pytest.raises(ParameterError, match="loses the placeholder {text}"):
        p.check("Classify.\n\nExamples:\n\nInput: great\nOutput: pos")
    with pytest.raises(ParameterError, match="changes the locked span 'Output: pos'"):
        p.check(FEW.replace("Output: pos", "Output: good"))
    again = p.at(FEW.replace("Classify", "Label"))
    assert again.demos == ()
    assert again.message(text="x").content.endswith("Input: x\nOutput: ")
    again.adopt(f"{again.value}\n\nExamples:\n\nInput: {{text}}\nOutput: b")
    assert again.demos == (tg.Demo("{text}", "b"),)


def test_candidates_text_is_taken_apart_into_instruction_and_demonstrations():
    p = tg.Parameter("p", "Hi {user}.", locked=["Hi"], max_tokens=20)
    text = "Hi {user}!\n\nExamples:\n\nInput: a {x}\nOutput: b"
    p.check(text)
    p.adopt(text)
    assert (p.value, p.demos, p.full) == ("Hi {user}!", (tg.Demo("a {x}", "b"),), text)
    with pytest.raises(ParameterError, match="loses the placeholder"):
        p.check("Hi.\n\nExamples:\n\nInput: {user}\nOutput: b")
    with pytest.raises(ParameterError, match="more than the limit of 20"):
        p.check(text + "b" * 40)


# Promises.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Obey. Never lie.", r"loses the placeholder \{user\}"),
        ("Obey {user}. Never lie. {city}", r"brings in the placeholder \{city\}, which nothing fills"),
        ("Obey {user}. Don't lie.", "changes the locked span 'Never lie.'"),
        ("Obey {user}. Never lie. ChatGPT", "brings in the forbidden text 'chatgpt'"),
        ("Obey {user}. Never lie." + "x" * 80, "about 26 tokens, more than the limit of 20"),
    ],
)
def test_broken_promise_is_refused(text, words):
    p = tg.Parameter("p", "Serve {user}. Never lie.", locked=["Never lie."], forbidden=["chatgpt"], max_tokens=20)
    p.check("Obey {user}. Never lie.")
    with pytest.raises(ParameterError, match=words) as caught:
        p.check(text)
    assert caught.value.parameter == "p"
    assert p.value == "Serve {user}. Never lie."


def test_empty_text_is_refused():
    with pytest.raises(ParameterError, match="it is empty"):
        tg.Parameter("p", "x").check(" \n")


def test_braces_are_free_where_there_are_no_placeholders():
    tg.Parameter("p", "x").check("Use {name} in what you write.")


def test_forbidden_text_that_was_there_before_may_stay():
    tg.Parameter("p", "We are ACME.", forbidden=["acme"]).check("We are Acme!")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.Parameter("", "x"), "A parameter needs a name"),
        (lambda: tg.Parameter(None, "x"), "A parameter needs a name"),
        (lambda: tg.Parameter("p", None), "must be a string, not NoneType"),
        (lambda: tg.Parameter("p", "x", locked=["y"]), "locked span 'y' is not in the value"),
        (lambda: tg.Parameter("p", "Never lie.", locked="Never lie."), r"`locked`.*locked=\['Never lie.'\]"),
        (lambda: tg.Parameter("p", "x", forbidden="ACME"), "`forbidden` of parameter 'p' is a list"),
        (lambda: tg.Parameter("p", "{a}", placeholders="a"), "`placeholders` of parameter 'p' is a list"),
    ],
)
def test_what_makes_no_parameter(make, words):
    with pytest.raises(ParameterError, match=words):
        make()


def test_tokens_are_counted_up():
    assert [count_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


# Scope.


def test_scope_shows_the_candidate_and_changes_nothing():
    p = tg.Parameter("p", "value")
    with tg.prompts({"p": "outer", "q": "stranger"}):
        assert str(p) == p.text() == p.message().content == "outer"
        with tg.prompts({"p": "inner"}):
            assert p.text() == "inner"
        assert p.text() == "outer"
        assert p.value == "value"
    assert p.text() == "value"


def test_scope_ends_when_an_error_leaves_it():
    p = tg.Parameter("p", "value")
    with pytest.raises(ValueError), tg.prompts({"p": "x"}):
        raise ValueError
    assert p.text() == "value"


def test_scope_is_invisible_to_other_threads():
    p, seen = tg.Parameter("p", "value"), []
    with tg.prompts({"p": "x"}):
        thread = threading.Thread(target=lambda: seen.append(p.text()))
        thread.start()
        thread.join()
    assert seen == ["value"]


async def test_scopes_of_concurrent_tasks_stay_apart():
    p = tg.Parameter("p", "value")

    async def task(i):
        with tg.prompts({"p": str(i)}):
            await asyncio.sleep(0)
            return p.text()

    assert await asyncio.gather(*map(task, range(20))) == [str(i) for i in range(20)]


def test_scope_takes_strings_only():
    with pytest.raises(ParameterError, match="text for 'p' must be a string, not int"), tg.prompts({"p": 1}):
        pass


def test_reads_are_observed_with_the_text_that_was_read():
    p, seen = tg.Parameter("p", "value", demos=[tg.Demo("i", "o")]), []
    with observe_reads(lambda *read: seen.append(read)):
        p.text()
        with tg.prompts({"p": "x"}):
            p.message()
    p.text()
    assert seen == [("p", "value\n\nExamples:\n\nInput: i\nOutput: o"), ("p", "x")]


def test_candidates_are_identified_by_content():
    a = candidate_of({"p": tg.Parameter("p", "x"), "q": tg.Parameter("q", "y")})
    assert a == {"p": "x", "q": "y"}
    assert tg.candidate_hash(a) == tg.candidate_hash({"q": "y", "p": "x"})
    assert tg.candidate_hash(a) != tg.candidate_hash({"p": "y", "q": "x"})
    assert re.fullmatch("[0-9a-f]{16}", tg.candidate_hash(a))


def test_gradient_has_the_same_id_in_a_resumed_run():
    one, two = (tg.Gradient("p", "r", "n#0", "change", weight=w) for w in (0.1, 0.9))
    assert one.id == two.id != tg.Gradient("p", "r", "n#1", "change").id
