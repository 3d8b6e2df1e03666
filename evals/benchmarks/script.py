"""The words of the server that plays the models of the chain in `chain.py`.

A node adds the right word when its prompt has the rule for it. The evaluator names the rules that
are missing, the critic repeats that of its node, and the rewriter makes a line of it. All is a
function of the request, so runs repeat exactly. Imports nothing that is slow to import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MODEL = "bench"
WORDS = ("amber", "birch", "cedar", "daisy", "elder", "fjord", "grove", "hazel")


def prompt(step: int) -> str:
    return f"You are step {step} of the chain.\nReply with the text and one more sentence."


def rule(step: int) -> str:
    return f"Step {step} says {WORDS[step]}."


def reply(request: Mapping[str, Any]) -> str:
    """Return the answer to a chat request, whoever asks."""
    texts = [_text(m["content"]) for m in request["messages"]]
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is not None:
        write = _rewritten if "edits" in schema["properties"] else _judged
        return json.dumps(write(texts, schema))
    whole = "\n".join(texts)
    if "IMPROVED_VARIABLE" in whole:  # TextGrad's optimizer
        found = re.search(r"You are step (\d) of the chain", whole)
        step = int(found[1]) if found else 0
        return f"<IMPROVED_VARIABLE>{prompt(step)}\n{rule(step)}</IMPROVED_VARIABLE>"
    found = re.search(r"You are step (\d) of the chain", texts[0])
    if found and len(texts) > 1:
        step = int(found[1])
        said = WORDS[step] if rule(step) in texts[0] else "nothing"
        return f"{texts[1]} Then {said}."
    return "The text lacks a word; say it in the last sentence."


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def _judged(texts: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    if "faults" in schema["properties"]:
        return _judged_whole(texts, schema)
    found = re.search(r"You are step (\d) of the chain", texts[-1])
    complaint = texts[-1].split("Complaint:")[-1]
    lacks = found is not None and WORDS[int(found[1])] in complaint
    said: dict[str, Any] = {
        "general_rule": rule(int(found[1])) if found and lacks else "",
        "keep": "",
        "evidence": "",
        "weight": 0.8,
        "upstream": [],
    }
    if "upstream" in schema["properties"]:
        steps = schema["properties"]["upstream"]["items"]["properties"]["step"]["enum"]
        most = schema["properties"]["upstream"]["items"]["properties"]["complaint"]["maxLength"]
        passed_on = _passed_on(complaint, most)
        said["upstream"] = [{"step": s, "complaint": passed_on, "weight": 0.9} for s in steps]
    return {name: said[name] for name in schema["required"]}


def _passed_on(complaint: str, most: int) -> str:
    """Return the rules that are missing; where a long chain leaves no room for them, the words."""
    rules = " ".join(dict.fromkeys(re.findall(r"Step \d says \w+\.", complaint)))
    if rules and len(rules) <= most:
        return rules
    return f"Missing: {' '.join(word for word in WORDS if word in complaint)}"


def _judged_whole(texts: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    faults = schema["properties"]["faults"]
    fields = faults["items"]["properties"]
    complaint = texts[-1].split("Complaint about")[-1]
    steps = [s for s in fields["step"]["enum"] if rule(int(s[1])) in complaint]
    said = {"evidence": "", "weight": 0.9}
    return {
        "faults": [
            {name: {**said, "step": s, "general_rule": rule(int(s[1]))}[name] for name in fields}
            for s in steps[: int(faults["maxItems"])]
        ]
    }


def _rewritten(texts: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    notes = re.findall(r"^(\d+)\. (.+)$", texts[-1], re.MULTILINE)
    most = int(schema["properties"]["edits"]["maxItems"])
    edits = [
        {"op": "add", "line": 1, "text": note, "notes": [int(number)]}
        for number, note in notes[:most]
    ]
    return {"edits": edits}
