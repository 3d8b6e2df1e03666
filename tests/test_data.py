"""Examples from dicts and JSONL files."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.data import batches, unique
from lg_textgrad.errors import DataError
from lg_textgrad.graph import as_examples


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    return path


def test_rows_become_examples_and_empty_lines_do_not_count(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        {"id": 7, "inputs": {"q": "ü"}, "outputs": {"a": 1}, "metadata": {"m": 2}},
        "", "   ",
        {"inputs": {"q": 2}, "outputs": None, "metadata": None},
    )  # fmt: skip
    first, second = tg.read_examples(path)
    assert first == tg.Example("7", {"q": "ü"}, {"a": 1}, {"m": 2})
    assert (second.inputs, second.outputs, second.metadata) == ({"q": 2}, None, {})
    assert second.id == tg.read_examples(str(path))[1].id
    # Where a row without an id stands is for people; it makes it no other row.
    assert (first.named, second.named) == ("'7'", f"'{second.id}' (d.jsonl, line 4)")
    [same] = as_examples([{"inputs": {"q": 2}}])
    assert (same, same.named) == (second, f"'{second.id}' (row 0)")


def test_broken_line_is_named(tmp_path):
    rows = [{"inputs": {"q": i}} for i in range(16)]
    path = write(tmp_path / "d.jsonl", *rows, '{"inputs": {"q": 17}')
    with pytest.raises(DataError, match=r"d\.jsonl', line 17: this is not JSON \(.* at column \d+\)"):
        tg.read_examples(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"q": 1}, "line 2: 'inputs' must be an object with the graph's input, but it is missing"),
        ({"inputs": [1]}, "line 2: .*it is a list"),
        ({"inputs": None}, "line 2: .*it is null"),
        ([1], "line 2: a row must be an object with 'inputs', not a list"),
        (7, "line 2: a row must be an object with 'inputs', not a number"),
        ({"inputs": {}, "outputs": "x"}, "line 2: 'outputs' must be an object, not a string"),
        ({"inputs": {}, "metadata": True}, "line 2: 'metadata' must be an object, not a boolean"),
    ],
)
def test_row_that_is_no_example(tmp_path, row, words):
    with pytest.raises(DataError, match=words):
        tg.read_examples(write(tmp_path / "d.jsonl", {"inputs": {}}, row))


def test_two_examples_of_one_id(tmp_path):
    rows = [{"id": "a", "inputs": {"q": i}} for i in range(2)]
    with pytest.raises(DataError, match="two examples have the id 'a'"):
        tg.read_examples(write(tmp_path / "d.jsonl", *rows))
    with pytest.raises(DataError, match="In train, number 2 and number 3: two examples have the id"):
        unique([tg.Example("w", {}), tg.Example("x", {}), tg.Example("x", {})], "train")


def test_copied_row_is_noticed(tmp_path):
    same = {"inputs": {"q": 1}}
    with pytest.raises(DataError, match="line 1 and line 3: .* or remove the copy"):
        tg.read_examples(write(tmp_path / "d.jsonl", same, {"inputs": {"q": 2}}, same))


def test_file_that_is_not_there_empty_or_not_text(tmp_path):
    with pytest.raises(DataError, match=r"There is no data file '.*gone\.jsonl'"):
        tg.read_examples(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="has no examples"):
        tg.read_examples(write(tmp_path / "d.jsonl", ""))
    with pytest.raises(DataError, match="cannot be read"):
        tg.read_examples(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="cannot be read"):
        tg.read_examples(tmp_path / "b")


def test_line_separators_inside_a_string_do_not_end_the_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"inputs": {"q": "a\u2028b\x85c"}}, ensure_ascii=False) + "\n", "utf-8")
    assert tg.read_examples(path)[0].inputs["q"] == "a\u2028b\x85c"


def test_files_that_begin_with_a_byte_order_mark_are_read_without_it(tmp_path):
    rows, prompts = tmp_path / "d.jsonl", tmp_path / "p.toml"
    rows.write_text('{"inputs": {"q": "a"}}\n', "utf-8-sig")
    prompts.write_text('[prompts]\na = "One."\n', "utf-8-sig")
    assert tg.read_examples(rows)[0].inputs == {"q": "a"}
    assert tg.read_prompts(prompts) == {"a": "One."}


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_batches_have_no_example_twice_and_visit_all_equally(n, size, seed):
    examples = [tg.Example(str(i), {}) for i in range(n)]
    drawn = list(islice(batches(examples, size, seed), 3 * n))
    assert drawn == list(islice(batches(examples, size, seed), 3 * n))
    counts = dict.fromkeys((e.id for e in examples), 0)
    for batch in drawn:
        assert len(batch) == len({e.id for e in batch}) == min(n, size)
        for e in batch:
            counts[e.id] += 1
    assert max(counts.values()) - min(counts.values()) <= 1
