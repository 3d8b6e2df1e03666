"""Why each line of a prompt is new or gone, as `diff` tells it."""

from __future__ import annotations

import io
import json
from typing import TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph
from rich.console import Console

import lg_textgrad as tg
from lg_textgrad import _render
from lg_textgrad.cli import main
from lg_textgrad.explaining import explain
from lg_textgrad.optim import FewShot, Strategies, TextualGradientDescent
from lg_textgrad.parameter import Edit, apply_edits, candidate_hash
from lg_textgrad.reporting import report
from lg_textgrad.store import Store
from tests.parts import Chat, Scripted, gradient_for


class S(TypedDict, total=False):
    q: str
    a: str


ROWS = [{"id": f"r{n}", "inputs": {"q": q}, "outputs": {"a": "good"}} for n, q in enumerate(["parcel", "bill"])]


def explained(optimizer, answer, start="You name the team.\nBe kind.\nBe brief.", rows=ROWS):
    """Train on one question; return what `explain` and `diff` say of the prompt."""
    prompt = tg.Parameter("p", start)
    model = Chat(answer=answer)

    async def node(state):
        return {"a": (await model.ainvoke([prompt.message(), HumanMessage(state["q"])])).content}

    def right(outputs):
        return {"key": "right", "score": float(outputs["a"] == "good"), "comment": "It must be 'good'."}

    class Critic:
        async def acriticize(self, request):
            return tg.critics.Critique([gradient_for(request, "p", "Say it well.")])

    graph = tg.TrainableGraph(StateGraph(S).add_node(node).add_edge(START, "node").compile(), [prompt])
    store = Store(None)
    trainer = tg.Trainer(
        graph, tg.Objective([right]), critic=Critic(), optimizer=optimizer, store=store,
        schedule=tg.Schedule(steps=1, batch_size=2),
    )  # fmt: skip
    trainer.fit(rows, rows)
    assert report(store).count("(train.jsonl, line 2)") == (0 if rows is ROWS else 1)
    return told(store)


def told(store):
    changes = explain(store)
    people = Console(file=io.StringIO(), width=200)
    _render.show_explained(people, changes)
    return {(line["op"], line["text"]): line["because"] for line in changes["p"]["lines"]}, people.file.getvalue()


def test_line_that_was_taken_out_says_why():
    optimizer = TextualGradientDescent(
        Scripted(lambda _: {"edits": [{"op": "delete", "line": 2, "text": "", "notes": [1]}]}), notes_as_lines=False
    )
    lines, shown = explained(optimizer, lambda m: "bad" if "kind" in m[0].content else "good")
    [reason] = lines["-", "Be kind."]
    assert [g["change"] for g in reason["gradients"]] == ["Say it well.", "Say it well."]
    below = shown.split("- Be kind.\n")[1].splitlines()
    assert "step 1: val +1.000, 2 examples won, 0 lost" in below[0]
    assert "← r0, node#0, weight 1.00: Say it well." in below[1]


def test_row_without_an_id_is_told_by_its_place_in_the_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({**row, "id": None}) + "\n" for row in ROWS))
    optimizer = TextualGradientDescent(
        Scripted(lambda _: {"edits": [{"op": "delete", "line": 2, "text": "", "notes": [1]}]}), notes_as_lines=False
    )
    answer = lambda m: "bad" if "kind" in m[0].content else "good"  # noqa: E731
    lines, shown = explained(optimizer, answer, rows=tg.read_examples(path))
    [reason] = lines["-", "Be kind."]
    assert [g["place"] for g in reason["gradients"]] == ["train.jsonl, line 1", "train.jsonl, line 2"]
    assert f"← {reason['gradients'][1]['example']} (train.jsonl, line 2), node#0, weight" in shown


def test_line_that_no_gradient_asked_for_says_where_it_comes_from():
    lines, shown = explained(Strategies(), lambda m: "good" if "step by step" in m[0].content else "bad")
    assert lines
    for (op, _), [because] in lines.items():
        assert (op, because["gradients"], because["step"]) == ("+", [], 1)
        assert because["why"]
        assert f"← {because['why']}" in shown


def test_demonstrations_say_which_decision_let_them_in():
    lines, shown = explained(FewShot(), lambda m: "good" if "Examples:" in m[0].content else "bad")
    because = lines["+", "Examples:"]
    assert [(r["step"], r["gain"], r["gradients"]) for r in because] == [(1, 1.0, [])]
    assert "demonstrations" in because[0]["why"]
    assert f"← {because[0]['why']}" in shown


START_TEXT = "One.\nTwo.\nThree."


def kept(*candidates, where=None):
    """A store with candidates: name, parent, edits or the text, if it was accepted, what it joins."""
    store = Store(where)
    texts, hashes = {"": START_TEXT}, {"": candidate_hash({"p": START_TEXT})}
    store.put_meta("start", {"p": START_TEXT})
    store.put_candidate(hashes[""], {"p": START_TEXT}, parent=None, step=0)
    for step, (name, parent, edits, is_accepted, joins) in enumerate(candidates, start=1):
        texts[name] = edits if isinstance(edits, str) else apply_edits(texts[parent], edits)
        hashes[name] = candidate_hash({"p": texts[name]})
        own = () if isinstance(edits, str) else edits
        store.put_candidate(hashes[name], {"p": texts[name]}, parent=hashes[parent], step=step, edits=own)
        decision = {
            "stage": "val", "kind": f"made {name}", "parents": [hashes[j] for j in joins], "accepted": is_accepted,
            "reason": "", "gain": 0.1 * step, "won": 1, "lost": 0, "val_before": 0.1, "val_after": 0.2,
        }  # fmt: skip
        store.put_decision(step, step, hashes[name], "val", decision)
    return store


def test_new_blank_line_is_not_told_from_an_edit_that_took_a_line_away():
    edits = [Edit("p", "delete", 1, why="gone"), Edit("p", "add", 3, "", why="air"), Edit("p", "add", 3, "Four.", why="new")]
    lines, _ = told(kept(("a", "", edits, True, ())))
    assert {key: [r["why"] for r in because] for key, because in lines.items()} == {
        ("-", "One."): ["gone"], ("+", ""): ["air"], ("+", "Four."): ["new"],
    }  # fmt: skip


@pytest.mark.parametrize("joined", [False, True])
def test_lines_of_a_candidate_that_was_not_accepted_itself_are_told_to_where_another_was_made_of_it(joined):
    first = ("a", "", [Edit("p", "add", 3, "Four.", why="a's")], False, ())
    second = ("b", "", [Edit("p", "replace", 1, "Uno.", why="b's")], False, ())
    third = [Edit("p", "delete", 2, why="c's")]
    last = ("c", "a", "Uno.\nTwo.\nThree.\nFour.", True, ("a", "b")) if joined else ("c", "a", third, True, ())
    lines, _ = told(kept(first, second, last))
    why = {key: [(r["why"], r["step"]) for r in because] for key, because in lines.items()}
    if joined:
        assert why == {("-", "One."): [("b's", 3)], ("+", "Uno."): [("b's", 3)], ("+", "Four."): [("a's", 3)]}
    else:
        assert why == {("-", "Two."): [("c's", 3)], ("+", "Four."): [("a's", 3)]}


def test_what_a_run_said_gives_no_orders_to_the_terminal(capsys, tmp_path):
    hides = "\x1b[1A\x1b[2K\x1b]0;title\x07\x9b8m\u202eSay it."
    gradient = tg.Gradient("p", "r", "n#0", hides, example_id="row\x1b[8m")
    with kept(("a", "", [Edit("p", "add", 3, "Four.", (gradient.id,))], True, ()), where=tmp_path / "run") as store:
        store.put_gradients(1, [gradient])
        store.put_decision(2, 2, "x" * 16, "batch", {**store.decisions()[0], "stage": "batch", "reason": f"no: {hides}"})
    for command in ("diff", "show"):
        assert main([command, str(tmp_path / "run")]) == 0
        said = capsys.readouterr()
        shown = said.out + said.err
        assert "Say it." in shown
        assert not set("\x1b\x07\x9b\u202e") & set(shown)
        assert "\u241b[2K" in shown
