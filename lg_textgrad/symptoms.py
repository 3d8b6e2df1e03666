"""What went wrong in an execution as anybody can see: no critic has to be asked. Pure.

Exceptions, tools that failed, refusals, replies that were cut off or are not in the format that
was asked for. Each comes with a complaint for critics; where it is clear what a prompt has to say
about it, with that rule too. How a refusal reads is known here, so this also tells where a line
that was proposed for a prompt is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema

from lg_textgrad.run import Execution, ModelCall

Kind = Literal["exception", "model_error", "tool_error", "refusal", "cut_off", "format"]

_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens"})
_BLOCKED = frozenset({"content_filter", "refusal", "safety", "blocklist", "prohibited_content"})
_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]m|i am) (?:very |so |truly )?sorry,?\s*(?:but\s*)?|sorry,?\s*(?:but\s*)?"
    r"|unfortunately,?\s*|i apologi[sz]e,?\s*(?:but\s*)?)?"
    r"(?:as an ai(?: language)?(?: model| assistant)?,?\s*)?"
    r"(?:i (?:can['’]?t|cannot|can not|am unable to|am not able to|['’]m unable to"
    r"|['’]m not able to|won['’]?t|will not|must decline)"
    r"|i['’]m (?:unable|not able) to|i must decline)"
    r"\s*(?:to\s+)?(?:help|assist|comply|fulfil|fulfill|do that|continue with|provide that|with|"
    r"answer that|support|engage|participate)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"(?:certainly|sure|absolutely|of course|sure thing|got it|understood)(?:[!,.]|$)"
    r"|here(?:['’]s| is| are) (?:the|a|an|your|my) (?:\w+ ){0,2}?"
    r"(?:new|revised|updated|improved|rewritten|edited|modified|refined|corrected|optimi[sz]ed)\b"
    r"[^.!?\n]{0,40}\b(?:prompt|instruction|version|text|line)s?\b"
    r"|as an ai\b[^.!?\n]{0,30}?\bi\b",
    re.IGNORECASE,
)
"""How models begin a reply, whatever they were asked for."""
_WANTS_JSON = re.compile(
    r"\b(?:reply|respond|answer|return|output|write|give|produce|print|format)\w*\b[^.!?\n]{0,60}"
    r"\bJSON\b|\bJSON (?:only|object|array|format)\b|\bonly (?:valid )?JSON\b",
    re.IGNORECASE,
)
_NO_JSON = re.compile(r"\b(?:not?|never|without|don['’]t)\b[^.!?\n]{0,30}\bJSON\b", re.IGNORECASE)
_SOMETIMES = re.compile(
    r"\b(?:if|when|whenever|where|unless|otherwise|in case|either|may)\b", re.IGNORECASE
)
_FENCED = re.compile(r"^```[\w-]*\s*\n(.*?)\n?```$", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_FEW_TOKENS = 24
_END = 80
"""Characters that are shown of each end of what a schema says against a reply."""
_MOST_SPAN = 120
"""Characters of a span that is quoted as evidence."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that visibly went wrong."""

    kind: Kind
    text: str
    """The complaint, one sentence or two."""
    evidence: str
    """A span of what the execution did, as it stands there."""
    rule: str = ""
    """What a prompt has to say so that it cannot happen again; empty where that isn't clear."""


def symptoms_of(execution: Execution) -> tuple[Symptom, ...]:
    """Return what visibly went wrong in an execution, at most one symptom of each kind."""
    found: dict[str, Symptom] = {}
    for symptom in _found(execution):
        found.setdefault(symptom.kind, symptom)
    return tuple(found.values())


def _found(execution: Execution) -> Iterator[Symptom]:
    if execution.error is not None:
        yield Symptom("exception", f"It failed: {execution.error}", _span(execution.error))
    for call in execution.model_calls:
        if call.error is not None:
            text = f"The call of the model failed: {call.error}"
            yield Symptom("model_error", text, _span(call.error))
        elif call.output is not None:
            yield from _in_reply(call, call.output)
    for tool in execution.tool_calls:
        said = tool.error or _error_of(tool.output)
        if said is not None:
            asked = json.dumps(tool.inputs, ensure_ascii=False)
            text = f"The tool '{tool.name}' failed when it was called with {asked}: {said}"
            yield Symptom("tool_error", text, _span(said))


def is_cut_off(call: ModelCall) -> bool:
    """Return whether the reply ended at its token limit, whatever the server calls that."""
    return (call.finish_reason or "").lower() in _CUT_OFF


def _in_reply(call: ModelCall, output: Mapping[str, Any]) -> Iterator[Symptom]:
    text = text_of(output)
    reason = (call.finish_reason or "").lower()
    if is_cut_off(call):
        yield Symptom(
            "cut_off",
            "The reply was cut off: it reached its token limit.",
            _span(text, last=True),
            _shorter(call.usage.completion_tokens),
        )
        return  # half a reply is in no format, and refuses nothing
    if reason in _BLOCKED or _REFUSAL.match(text):
        yield Symptom("refusal", "The model refused to do its work.", _span(text) or reason)
        return
    if output.get("tool_calls"):
        return
    wrong = _not_in_format(call, text)
    if wrong is not None:
        what, rule = wrong
        complaint = f"The reply is not in the format asked for: {what}."
        yield Symptom("format", complaint, _span(text), rule)


def remark_in(line: str) -> str | None:
    """Return the sentence of a line that a model says to whoever asked it; None without one.

    That it won't do its work, or "Certainly! Here is the new prompt:". What stands in quotation
    marks, or behind words that say when to say it, is an instruction.
    """
    for sentence in _SENTENCE.split(line.strip()):
        if sentence[:1].isalpha() and (_REFUSAL.match(sentence) or _REMARK.match(sentence)):
            return sentence
    return None


def _shorter(tokens: int) -> str:
    """Return the rule for replies that end at `tokens` tokens; 0 where that isn't known."""
    if tokens == 0:
        return "Keep the reply short: a long one is cut off before its end."
    if tokens <= _FEW_TOKENS:
        return "Reply with a few words only: a longer reply is cut off."
    # Three quarters of a token's word are usual in English; less leaves room for names and numbers.
    most = tokens * 3 // 5 // 5 * 5
    return f"Keep the whole reply under {most} words: a longer one is cut off before its end."


def _not_in_format(call: ModelCall, text: str) -> tuple[str, str] | None:
    """Return what is wrong with the reply's format, and the rule; None when nothing is."""
    if call.format is None and not _asks_for_json(call):
        return None
    bare = text.strip()
    fenced = _FENCED.match(bare)
    try:
        data = json.loads(fenced[1] if fenced else bare)
    except ValueError:
        if not bare:
            return "it is empty", "Always reply with JSON, and never with nothing."
        rule = "Reply with valid JSON only: no words before or after it and nothing left open."
        return "it is no JSON", rule
    if call.format:
        try:
            jsonschema.validate(data, call.format)
        except jsonschema.ValidationError as error:
            where = "/".join(str(part) for part in error.absolute_path)
            at = f" at '{where}'" if where else ""
            return f"{_both_ends(error.message)}{at}", ""
        except jsonschema.SchemaError:
            return None
    return None


def _asks_for_json(call: ModelCall) -> bool:
    """Return whether the system prompt asks for JSON. What users write asks for nothing.

    One that asks for it in some cases only does not, since nobody sees which case this is.
    """
    prompts = [text_of(m) for m in call.messages if m.get("role") == "system"]
    return any(
        not _NO_JSON.search(prompt)
        and any(
            _WANTS_JSON.search(sentence) and not _SOMETIMES.search(sentence)
            for sentence in re.split(r"[.!?]\s|\n", prompt)
        )
        for prompt in prompts
    )


def _error_of(output: Any) -> str | None:
    """Return what a tool's message says, when it reports an error."""
    if isinstance(output, Mapping) and output.get("status") == "error":
        return text_of(output)
    return None


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text in a message's content."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [p if isinstance(p, str) else str(p.get("text", "")) for p in content]
        return "\n".join(part for part in parts if part)
    return content if isinstance(content, str) else ""


def _both_ends(text: str) -> str:
    """Return a long text without its middle: what is wrong with a value stands behind it."""
    gone = len(text) - 2 * _END
    return f"{text[:_END]} [… {gone} characters cut …] {text[-_END:]}" if gone > 0 else text


def _span(text: str, *, last: bool = False) -> str:
    line = text.strip()
    return line[-_MOST_SPAN:].strip() if last else line[:_MOST_SPAN].strip()
