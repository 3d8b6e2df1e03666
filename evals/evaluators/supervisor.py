"""Score an answer of Skerry Line's counter: right desk, right facts, right form."""

from __future__ import annotations

from typing import Any


def desk(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """1 when the supervisor handed the message to the desk that the house rules name, else 0."""
    got, expected = outputs.get("desk") or "none", reference_outputs["desk"]
    if got == expected:
        return {"key": "desk", "score": 1.0, "comment": "The desk is right."}
    return {
        "key": "desk",
        "score": 0.0,
        "comment": f"Desk: messages about {reference_outputs['about']} must go to the "
        f"{expected} desk; this one went to {got}.",
    }


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
    """The share of Skerry Line's three rules of form that the answer keeps."""
    answer, rules = str(outputs.get("answer") or "").strip(), reference_outputs["form"]
    words, most = len(answer.split()), rules["most_words"]
    wrong = []
    if not answer.startswith(rules["begins"]):
        wrong.append(f"an answer must begin with the words '{rules['begins']}'")
    if not answer.endswith(rules["ends"]):
        wrong.append(f"an answer must end with the words '{rules['ends']}'")
    if not 0 < words <= most:
        wrong.append(f"an answer must have at most {most} words, this one has {words}")
    comment = f"Form: {'; '.join(wrong)}." if wrong else "The form is right."
    return {"key": "form", "score": 1 - len(wrong) / 3, "comment": comment}


ALL = [desk, facts, form]
