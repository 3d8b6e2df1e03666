"""The report: whole, in Markdown that nothing in a run's texts can break out of."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import lg_textgrad as tg
from lg_textgrad.acceptance import Outcome, Verdict
from lg_textgrad.approval import Approval, Review, areviewed
from lg_textgrad.errors import InterruptedRunError
from lg_textgrad.parameter import Edit, candidate_hash
from lg_textgrad.reporting import report
from lg_textgrad.store import Store
from tests.test_approval import Says, adds, rated, trained

NASTY = st.text(st.sampled_from("ab `~|*_#<>[]()!\\\n-+1."), max_size=40)


def parsed(text):
    return MarkdownIt("commonmark").enable("table").parse(text)


def headings(tokens):
    return [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]


def test_report_tells_what_changed_why_who_agreed_and_what_was_before(tmp_path):
    says = Says(Approval(False, "We sell nothing.", "ann", without=(2,)), Approval(True, by="bob"))
    trained([adds("Stay brief.", "Always sell a plan.")], says, rated, schedule=tg.Schedule(steps=1, batch_size=1), store=tmp_path)
    with Store(tmp_path, read_only=True) as store:
        text = report(store)
        accepted = store.get_meta("configuration")
    tokens = parsed(text)
    assert headings(tokens) == [
        f"What tuning changed: {tmp_path.name.replace('_', chr(92) + '_')}", "Prompts", "say", "Decisions", "People",
        "What the run was made of", "To undo it", "say",
    ]  # fmt: skip
    assert "Changed prompts: 1 of 1. Steps: 1. Candidates accepted: 1, refused: 1. Ended by: steps." in text
    assert "| val | 1 | 0.100 | 0.300 | – |" in text
    diff, before = [t.content for t in tokens if t.type == "fence"]
    assert (diff, before) == ("  Be kind.\n+ Stay brief.\n", "Be kind.\n")
    assert "- `+ Stay brief.`\n  - step 1: validation +0.200, better on 1, worse on 0; Stay brief.\n" in text
    rows = [line for line in text.split("\n") if " | ann | " in line or " | bob | " in line]
    assert ["without 2 | We sell nothing." in rows[0], "| yes |" in rows[1]] == [True, True]
    for part, value in accepted.items():
        assert f"| {part} | " in text
        assert not isinstance(value, str) or value in text


def test_run_that_waits_for_a_person_has_its_scores_so_far(tmp_path):
    class Away:
        async def areview(self, review):
            raise InterruptedRunError("Nobody is there.")

    with pytest.raises(InterruptedRunError):
        trained([adds("Stay brief.")], Away(), rated, schedule=tg.Schedule(steps=1, batch_size=1), store=tmp_path)
    with Store(tmp_path, read_only=True) as store:
        text = report(store)
    assert "The run has not ended." in text
    assert "| val | 1 | 0.100 | 0.100 | – |" in text


def test_run_that_nobody_looked_at_and_that_changed_nothing(tmp_path):
    trained([], None, rated, schedule=tg.Schedule(steps=1, batch_size=1), store=tmp_path)
    with Store(tmp_path, read_only=True) as store:
        text = report(store)
    assert "Changed prompts: 0 of 1." in text
    assert "Nobody was asked before an acceptance" in text
    assert [t for t in parsed(text) if t.type == "fence"] == []


@given(old=NASTY, new=NASTY, comment=NASTY, why=NASTY)
def test_no_text_of_a_run_breaks_out_of_its_place(old, new, comment, why):
    before, after = {"a": f"x{old}"}, {"a": f"y{new}"}
    with Store() as store:
        _decided(store, before, after, comment, why)
        tokens = parsed(report(store))
    assert len(headings(tokens)) == 8
    assert [t.content for t in tokens if t.type == "fence"][-1] == f"x{old}\n"
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    assert {child.type for child in inline} <= {"text", "code_inline", "softbreak"}
    assert not any(t.type.startswith("html") or t.type == "code_block" for t in tokens)
    table = [t for t in tokens if t.type == "tr_open"]
    assert len(table) == 8  # four tables of one row each


def _decided(store, before, after, comment, why):
    edit = Edit("a", "add", 1, after["a"].split("\n")[0], why=why)
    store.put_meta("start", before)
    store.put_meta("configuration", {"graph": "0123"})
    first, second = candidate_hash(before), candidate_hash(after)
    store.put_candidate(first, before, parent=None, step=0)
    store.put_candidate(second, after, parent=first, step=1, edits=[edit])
    verdict = Verdict(True, why, 0.5, 1, 0)
    review = Review.of(1, before, after, verdict, {"v": Outcome(0.0)}, {"v": Outcome(0.5)})
    asyncio.run(areviewed(Says(Approval(True, comment, comment)), store, review))
    store.put_decision(1, 1, second, "val", {
        "stage": "val", "kind": "edits", "parents": [], "accepted": True, "reason": why, "gain": 0.5,
        "won": 1, "lost": 0, "val_before": 0.0, "val_after": 0.5,
    })  # fmt: skip
