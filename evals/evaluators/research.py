"""Score research in Holm Island's archive: right boxes, right facts, right form."""

from __future__ import annotations

from typing import Any

ABOUT = {
    "attic": "people",
    "chapel": "events and their dates",
    "harbour": "money and cargo",
    "school": "measures",
}
"""Box of the archive -> what is in it, which the graph's prompts don't say."""


def boxes(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """How many of the boxes that were read or had to be are in both sets, as a share."""
    got, expected = set(outputs.get("boxes") or ()), set(reference_outputs["boxes"])
    wrong = [
        f"questions about {ABOUT[box]} must be looked up in the box '{box}'"
        for box in sorted(expected - got)
    ]
    spare = sorted(got - expected)
    if spare:
        wrong.append(f"boxes that the question does not need must be left out, here {spare}")
    comment = f"Boxes: {'; '.join(wrong)}." if wrong else "The boxes are right."
    score = len(got & expected) / len(got | expected)
    return {"key": "boxes", "score": score, "comment": comment}


def facts(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """The share of the expected facts that the answer states in any accepted spelling."""
    answer = str(outputs.get("answer") or "").lower()
    expected = reference_outputs["facts"]
    missing = [f[0] for f in expected if not any(spelling.lower() in answer for spelling in f)]
    comment = "All facts are there."
    if missing:
        comment = f"The answer does not state: {'; '.join(missing)}."
    return {"key": "facts", "score": 1 - len(missing) / len(expected), "comment": comment}


def form(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """The share of the archive's three rules of form that the answer keeps."""
    answer, rules = str(outputs.get("answer") or "").strip(), reference_outputs["form"]
    read = outputs.get("boxes") or ()
    words, most = len(answer.split()), rules["most_words"]
    wrong = []
    if not answer.startswith(rules["begins"]):
        wrong.append(f"an answer must begin with the words '{rules['begins']}'")
    if not read or not all(f"[{box}]" in answer for box in read):
        wrong.append("an answer must name each box of its notes in square brackets, as in [attic]")
    if not 0 < words <= most:
        wrong.append(f"an answer must have at most {most} words, this one has {words}")
    comment = f"Form: {'; '.join(wrong)}." if wrong else "The form is right."
    return {"key": "form", "score": 1 - len(wrong) / 3, "comment": comment}


ALL = [boxes, facts, form]
