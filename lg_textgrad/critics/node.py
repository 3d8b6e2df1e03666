"""The critic that judges node by node: one model call for one execution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lg_textgrad import templates
from lg_textgrad._given import check_model
from lg_textgrad.critics.asking import RULE, WEIGHT, aask_twice, an_object
from lg_textgrad.critics.base import Blame, CriticRequest, Critique
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.showing import evidence, general, shown_values
from lg_textgrad.errors import CriticError, ModelReplyError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.parameter import Gradient

_EXAMPLES = ("critic_example_group", "critic_example_form")
_TEMPLATES = ("critic", "critic_case", "critic_detail", "critic_upstream", "again", *_EXAMPLES)


class LLMCritic:
    """Asks `model` about one execution at a time, with a JSON schema for the reply.

    `max_value_chars` caps each value that is shown; longer ones are cut around what the complaint
    speaks of and each cut is marked. `max_tokens` caps the reply. `brief` asks for the rule and the
    weight only and shows two worked examples: what small models need, in half the tokens; the
    complaint then is the evidence. `instruction` stands in place of the template `critic`. After
    Yuksekgonul et al. 2024 (TextGrad), with credit per producer in the same call.

    Cost: 1 call for each execution that is blamed, 2 when the reply fails its schema. Raises
    `ConfigurationError` for what is no model.
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
        check_model(model, "LLMCritic")
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
        messages, shown = self._asked(request)
        try:
            data = await aask_twice(self.model, messages, self._schema(request), self.max_tokens)
        except ModelReplyError as error:
            self.malformed += 1
            raise CriticError(
                f"The critic's reply about {request.execution.id} failed its schema twice: {error} "
                "It was skipped; use a stronger critic model if this happens often.",
                run_id=request.scored.run.id,
                node=request.execution.path,
            ) from None
        return _critique(request, data, shown)

    def _asked(self, request: CriticRequest) -> tuple[list[dict[str, str]], tuple[str, ...]]:
        """Return the messages, and the texts among them that may be quoted as evidence."""
        execution = request.execution
        # What is settled stands in the reply anyway: that it was cut off, that it failed.
        open_blames = [b for b in request.blames if not b.settled] or request.blames
        everything = "\n".join(dict.fromkeys(b.text for b in open_blames))
        complaint = cut(everything, self.max_value_chars)
        given, wrote = (
            cut(value, self.max_value_chars, everything) for value in shown_values(execution)
        )
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
        messages = [
            {"role": "system", "content": self.instruction or templates.source("critic")},
            *(_worked_examples() if self.brief else ()),
            {"role": "user", "content": case},
        ]
        return messages, (wrote, complaint, given, prompts)

    def _schema(self, request: CriticRequest) -> dict[str, Any]:
        verdict: dict[str, Any] = {"general_rule": RULE}
        if not self.brief:
            verdict["keep"] = {"type": "string", "maxLength": 60}
            verdict["evidence"] = {"type": "string", "maxLength": 80}
        verdict["weight"] = WEIGHT
        properties: dict[str, Any] = {}
        if len(request.parameters) == 1:
            properties = dict(verdict)
        elif request.parameters:
            names = {"parameter": {"type": "string", "enum": list(request.parameters)}}
            properties["gradients"] = {
                "type": "array",
                "maxItems": len(request.parameters),
                "items": an_object({**names, **verdict}),
            }
        if request.producers:
            steps = {"type": "string", "enum": [p.execution for p in request.producers]}
            complaint = {"type": "string", "maxLength": 120}
            properties["upstream"] = {
                "type": "array",
                "maxItems": len(request.producers),
                "items": an_object({"step": steps, "complaint": complaint, "weight": WEIGHT}),
            }
        return an_object(properties)


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


def _critique(
    request: CriticRequest, data: Mapping[str, Any], shown: tuple[str, ...]
) -> Critique:
    scored, execution = request.scored, request.execution
    complaint = cut("; ".join(dict.fromkeys(b.text for b in request.blames)), 300)
    loss = max((b.weight for b in request.blames), default=1.0)
    verdicts = data.get("gradients")
    if verdicts is None:
        verdicts = [{"parameter": n, **data} for n in request.parameters]
    gradients = tuple(
        Gradient(
            parameter=v["parameter"],
            run_id=scored.run.id,
            execution=execution.id,
            change=general(v["general_rule"], scored, execution),
            keep=" ".join(v.get("keep", "").split()),
            evidence=evidence(v.get("evidence", ""), *shown, instead=complaint),
            weight=round(v["weight"] * loss, 6),
            example_id=scored.run.example.id,
            score=scored.score,
        )
        for v in verdicts
    )
    upstream = {
        u["step"]: Blame(u["complaint"].strip(), round(u["weight"] * loss, 6), execution.id)
        for u in data.get("upstream", ())
        if u["complaint"].strip()
    }
    return Critique(tuple(g for g in gradients if g.change or g.keep), upstream)
