"""What a run changed and why, read from its store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad.changes import lines_of
from lg_textgrad.differences import PLACES
from lg_textgrad.result import spent_json
from lg_textgrad.run import Usage
from lg_textgrad.store import Store


def explain(store: Store) -> dict[str, Any]:
    """Return each parameter before and after, and for each changed line why it changed.

    A line's reasons are the edit that wrote it or took it away, the gradients that the edit
    answers, and the decision that let it in. A line that no edit tells of, such as one of a
    demonstration, has the decision alone, and what made the candidate.
    """
    start, result = store.get_meta("start") or {}, store.get_meta("result") or {}
    candidates, gradients, decisions = store.candidates(), store.gradients(), store.decisions()
    accepted = {d["candidate"]: d for d in decisions if d["stage"] == "val" and d["accepted"]}
    made_of = {d["candidate"]: d["parents"] for d in decisions if d.get("parents")}
    after = {n: p["after"] for n, p in result.get("parameters", {}).items()} or _latest(
        start, candidates, accepted
    )
    places: Mapping[str, str] = (store.get_meta("details") or {}).get(PLACES, {})
    changes: dict[str, Any] = {}
    for name, before in start.items():
        lines = []
        for sign, line in lines_of(before, after.get(name, before)):
            if sign == " ":
                continue
            reasons = [
                _reason(edit, gradients, decision, places)
                for candidate, decision in accepted.items()
                for one in _unaccepted(candidate, candidates, accepted, made_of)
                for edit in candidates[one]["edits"]
                if edit.parameter == name
                and line == (_new(edit) if sign == "+" else _gone(edit, one, candidates))
            ]
            if not reasons:
                texts = [before, *(candidates[c]["texts"].get(name, "") for c in accepted)]
                reasons = _let_in(sign, line, texts, list(accepted.values()))
            lines.append({"op": sign, "text": line, "because": reasons})
        changes[name] = {"before": before, "after": after.get(name, before), "lines": lines}
    return changes


def outcome(store: Store) -> dict[str, Any]:
    """Return what `Result.to_json` does, also for a run that has not ended (`stopped_by` None)."""
    ended: dict[str, Any] | None = store.get_meta("result")
    if ended is not None:
        return {**ended, "run_dir": store.where}
    decisions = store.decisions()
    accepted = [d for d in decisions if d["stage"] == "val" and d["accepted"]]
    changes = explain(store)
    spent = sum(store.paid().values(), Usage())
    baseline = store.get_meta("baseline")
    if baseline is None and decisions:  # a run of an earlier version
        baseline = decisions[0]["val_before"]
    return {
        "run_dir": store.where,
        "stopped_by": None,
        "baseline": {"val": baseline, "test": None},
        "best": {"val": accepted[-1]["val_after"] if accepted else baseline, "test": None},
        "parameters": {
            name: {
                "before": c["before"], "after": c["after"], "changed": c["before"] != c["after"]
            }
            for name, c in changes.items()
        },
        "steps": max((d["step"] for d in decisions), default=0),
        "accepted": len(accepted),
        "rejected": sum(not d["accepted"] for d in decisions),
        "spent": spent_json(
            spent, float(store.get_meta("elapsed") or 0.0), store.unpriced()
        ),
        "faults": {},
    }  # fmt: skip


def _latest(
    start: Mapping[str, str], candidates: Mapping[str, Any], accepted: Mapping[str, Any]
) -> Mapping[str, str]:
    texts: Mapping[str, str] = start
    for candidate in accepted:
        texts = candidates[candidate]["texts"]
    return texts


def _unaccepted(
    candidate: str,
    candidates: Mapping[str, Any],
    accepted: Mapping[str, Any],
    made_of: Mapping[str, Sequence[str]],
) -> list[str]:
    """Return the candidate and those that it was made from and that were not accepted before."""
    found, waiting = dict[str, None](), [candidate]
    while waiting:
        one = waiting.pop(0)
        if one in found or one not in candidates or (one in accepted and one != candidate):
            continue
        found[one] = None
        waiting += made_of.get(one) or [candidates[one]["parent"]]
    return list(found)


def _let_in(
    sign: str, line: str, texts: Sequence[str], decisions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the decision that first let a line in, or took it away, as the only reason for it."""
    for then, now, decision in zip(texts, texts[1:], decisions, strict=False):
        had, has = (line in text.split("\n") for text in (then, now))
        if (sign == "+") == has and had != has:
            op = "add" if has else "delete"
            return [_decided(decision, op, decision.get("kind", ""))]
    return []


def _new(edit: Any) -> str | None:
    """Return the line that the edit wrote; None when it only took one away."""
    return None if edit.op == "delete" else str(edit.text)


def _gone(edit: Any, candidate: str, candidates: Mapping[str, Any]) -> str | None:
    """Return the line that the edit took away; None when it only added one."""
    parent = candidates.get(candidates[candidate]["parent"])
    if edit.op == "add" or parent is None:
        return None
    return str(parent["texts"][edit.parameter].split("\n")[edit.line - 1])


def _decided(decision: Mapping[str, Any], op: str, why: str) -> dict[str, Any]:
    told = {n: decision[n] for n in ("step", "gain", "won", "lost")}
    return {**told, "op": op, "why": why, "gradients": []}


def _reason(
    edit: Any,
    gradients: Mapping[str, Any],
    decision: Mapping[str, Any],
    places: Mapping[str, str],
) -> dict[str, Any]:
    return {
        **_decided(decision, edit.op, edit.why),
        "gradients": [
            {
                "id": g.id,
                "example": g.example_id,
                "place": places.get(g.example_id, ""),
                "execution": g.execution,
                "run": g.run_id,
                "change": g.change,
                "evidence": g.evidence,
                "weight": g.weight,
            }
            for g in (gradients[i] for i in edit.gradients if i in gradients)
        ],
    }
