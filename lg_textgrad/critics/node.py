"""The critic that judges node by node: one model call for one execution."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from lg_textgrad import templates
from lg_textgrad.critics.base import Blame, CriticRequest, Critique
from lg_textgrad.errors import CriticError, ModelReplyError
from lg_textgrad.guards import Quotations, names_of, words
from lg_textgrad.ledger import aask
from lg_textgrad.models.base import ChatModel, ModelRequest
from lg_textgrad.parameter import Gradient

logger = logging.getLogger(__name__)

_MOST_CHANGE = 200  # characters; a rule that needs more is a story about one example

_EXAMPLES = ("critic_example_group", "critic_example_form")
_TEMPLATES = ("critic", "critic_case", "critic_detail", "critic_upstream", *_EXAMPLES)


class LLMCritic:
    """Asks `model` about one execution at a time, with a JSON schema for the reply.

    `max_value_chars` caps each value that is shown; longer ones are cut in the middle and the cut
    is marked. `max_tokens` caps the reply. `brief` asks for the rule and the weight only and
    shows two worked examples: what small models need, in half the tokens; the complaint then is
    the evidence. `instruction` stands in place of the template `critic`. After
    Yuksekgonul et al. 2024 (TextGrad), with credit per producer in the same call.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        brief: bool = False,
        instruction: str | None = None,
        max_value_chars: int = 1500,
        max_tokens: int = 300,
    ) -> None:
        self.model = model
        self.brief = brief
        self.instruction = instruction
        self.max_value_chars = max_value_chars
        self.max_tokens = max_tokens
        self.malformed = 0
        """Replies that failed their schema twice and were skipped."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "critic": "node",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*_TEMPLATES),
            "brief": self.brief,
            **({} if self.instruction is None else {"instruction": self.instruction}),
            "max_value_chars": self.max_value_chars,
            "max_tokens": self.max_tokens,
        }

    async def acriticize(self, request: CriticRequest) -> Critique:
        messages = self._messages(request)
        schema = self._schema(request)
        reason = ""
        for attempt in range(2):
            asked = messages
            if reason:
                again = f"Your last reply was refused: {reason} Reply again."
                asked = [*messages, {"role": "user", "content": again}]
            try:
                reply = await aask(
                    self.model,
                    ModelRequest(asked, schema=schema, max_tokens=self.max_tokens),
                    "critic",
                    attempt=attempt,
                )
            except ModelReplyError as error:
                reason = str(error)
                continue
            return _critique(request, reply.data)
        self.malformed += 1
        raise CriticError(
            f"The critic's reply about {request.execution.id} failed its schema twice: {reason} "
            "It was skipped; use a stronger critic model if this happens often.",
            run_id=request.scored.run.id,
            node=request.execution.path,
        )

    def _messages(self, request: CriticRequest) -> list[dict[str, str]]:
        execution = request.execution
        given, wrote = shown_values(request)
        given, wrote = self._cut(given), self._cut(wrote)
        complaint = self._cut("\n".join(dict.fromkeys(b.text for b in request.blames)))
        more = [] if self.brief else [templates.source("critic_detail")]
        if request.producers:
            names = "; ".join(
                f"{p.execution} gave {', '.join(p.channels)}" for p in request.producers
            )
            more.append(templates.fill("critic_upstream", producers=names))
        prompts = "\n\n".join(
            text if len(request.parameters) == 1 else f"[{name}]\n{text}"
            for name, text in ((n, execution.prompts[n]) for n in request.parameters)
        )
        role = "; ".join(p.role for p in request.parameters.values() if p.role)
        case = templates.fill(
            "critic_case",
            node=execution.path,
            role=role or "a step of the program",
            prompt=prompts or "(this step's prompt is not trainable)",
            mark=templates.fence(given, wrote, complaint),
            inputs=given,
            output=wrote,
            complaint=complaint,
            more="\n".join(more),
        )
        return [
            {"role": "system", "content": self.instruction or templates.source("critic")},
            *(_worked_examples() if self.brief else ()),
            {"role": "user", "content": case},
        ]

    def _schema(self, request: CriticRequest) -> dict[str, Any]:
        verdict: dict[str, Any] = {"general_rule": {"type": "string", "maxLength": _MOST_CHANGE}}
        if not self.brief:
            verdict["keep"] = {"type": "string", "maxLength": 60}
            verdict["evidence"] = {"type": "string", "maxLength": 80}
        weight = {"type": "number", "minimum": 0, "maximum": 1}
        verdict["weight"] = weight
        properties: dict[str, Any] = {}
        if len(request.parameters) == 1:
            properties = dict(verdict)
        elif request.parameters:
            names = {"parameter": {"type": "string", "enum": list(request.parameters)}}
            properties["gradients"] = {
                "type": "array",
                "maxItems": len(request.parameters),
                "items": _object({**names, **verdict}),
            }
        if request.producers:
            steps = {"type": "string", "enum": [p.execution for p in request.producers]}
            complaint = {"type": "string", "maxLength": 120}
            properties["upstream"] = {
                "type": "array",
                "maxItems": len(request.producers),
                "items": _object({"step": steps, "complaint": complaint, "weight": weight}),
            }
        return _object(properties)

    def _cut(self, text: str) -> str:
        return cut(text, self.max_value_chars)


def _worked_examples() -> list[dict[str, str]]:
    """Return the examples as turns: a question above the line `---`, its answer below."""
    turns = []
    for name in _EXAMPLES:
        question, _, answer = templates.source(name).partition("\n---\n")
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return turns


def cut(text: str, limit: int) -> str:
    """Return `text`, its middle cut out and marked when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]} [… {len(text) - limit} characters cut …] {text[-tail:]}"


def shown_values(request: CriticRequest) -> tuple[str, str]:
    """Return what the execution was given and what it wrote, as text for the critic.

    Where it called a model, these are the messages of its last call without the system prompt;
    elsewhere its state.
    """
    execution = request.execution
    if execution.model_calls:
        call = execution.model_calls[-1]
        given = "\n".join(
            f"{'' if m['role'] == 'human' else m['role'] + ': '}{_text(m)}"
            for m in call.messages
            if m["role"] != "system"
        )
        wrote = _text(call.output) if call.output is not None else f"(failed: {call.error})"
        if call.finish_reason == "length":
            wrote += " [cut off: the reply reached its token limit]"
    else:
        given = json.dumps(execution.inputs, ensure_ascii=False)
        wrote = json.dumps(dict(execution.writes), ensure_ascii=False)
    if execution.error:
        wrote += f"\n(then it failed: {execution.error})"
    return given, wrote


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    calls = message.get("tool_calls")
    if calls:
        text += " " + "; ".join(
            f"[calls {c['name']}({json.dumps(c['args'], ensure_ascii=False)})]" for c in calls
        )
    return text.strip()


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _critique(request: CriticRequest, data: Mapping[str, Any]) -> Critique:
    run, execution = request.scored.run, request.execution
    complaint = cut("; ".join(dict.fromkeys(b.text for b in request.blames)), 300)
    verdicts = data.get("gradients")
    if verdicts is None:
        verdicts = [{"parameter": n, **data} for n in request.parameters]
    gradients = tuple(
        Gradient(
            parameter=v["parameter"],
            run_id=run.id,
            execution=execution.id,
            change=_general(" ".join(v["general_rule"].split()), request),
            keep=" ".join(v.get("keep", "").split()),
            evidence=v.get("evidence", complaint).strip(),
            weight=float(v["weight"]),
            example_id=run.example.id,
            score=request.scored.score,
        )
        for v in verdicts
    )
    loss = max((b.weight for b in request.blames), default=1.0)
    upstream = {
        u["step"]: Blame(u["complaint"].strip(), float(u["weight"]) * loss, execution.id)
        for u in data.get("upstream", ())
        if u["complaint"].strip()
    }
    return Critique(tuple(g for g in gradients if g.change or g.keep), upstream)


def _general(change: str, request: CriticRequest) -> str:
    """Return the rule, or nothing where it only tells about this example.

    A rule that quotes the example, repeats its numbers, or was cut off at the limit is no rule.
    """
    example = [request.scored.run.example.inputs, *shown_values(request)]
    quoted = Quotations(example).find(change) is not None
    # Complaints may quote what was expected, so its numbers count as the example's too.
    numbers = names_of([*example, request.scored.run.example.outputs]) & set(words(change))
    known = {w for text in request.execution.prompts.values() for w in words(text)}
    cut_off = len(change) >= _MOST_CHANGE - 1 and not change.endswith((".", "!", "'", '"'))
    return "" if quoted or numbers - known or cut_off else change
