"""Score an answer of the support desk: right team, right facts, right form."""

from __future__ import annotations

from typing import Any


def team(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """1 when triage chose the team that Fernhill's policy names, else 0."""
    got, expected = str(outputs.get("team", "")), reference_outputs["team"]
    if got == expected:
        return {"key": "team", "score": 1.0, "comment": "The team is right."}
    about = reference_outputs["about"]
    return {
        "key": "team",
        "score": 0.0,
        "comment": f"Team: messages about {about} must go to the team '{expected}'; "
        f"this one went to '{got}'.",
    }


def facts(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """The share of the expected facts that the answer states in any accepted spelling."""
    answer = str(outputs.get("answer", "")).lower()
    expected = reference_outputs["facts"]
    missing = [f[0] for f in expected if not any(spelling.lower() in answer for spelling in f)]
    score = 1 - len(missing) / len(expected)
    comment = "All facts are there."
    if missing:
        comment = f"The answer does not state: {'; '.join(missing)}."
    return {"key": "facts", "score": score, "comment": comment}


def form(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
    """The share of Fernhill's three rules of form that the answer keeps."""
    answer, rules = str(outputs.get("answer", "")).strip(), reference_outputs["form"]
    begins, most = rules["begins"], rules["most_words"]
    ends = rules["ends"]
    words = len(answer.split())
    wrong = []
    if not answer.startswith(begins):
        wrong.append(f"an answer must begin with the words '{begins}'")
    if not answer.rstrip(".!").endswith(ends):
        wrong.append(f"an answer must end with the words '{ends}'")
    if words > most:
        wrong.append(f"an answer must have at most {most} words, this one has {words}")
    comment = f"Form: {'; '.join(wrong)}." if wrong else "The form is right."
    return {"key": "form", "score": 1 - len(wrong) / 3, "comment": comment}


ALL = [team, facts, form]
