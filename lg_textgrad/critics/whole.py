"""The critic that judges a whole run at once: one model call for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad import templates
from lg_textgrad._given import check_model
from lg_textgrad.critics.asking import RULE, WEIGHT, aask_twice, an_object
from lg_textgrad.critics.base import CriticRequest, Critique, RunRequest
from lg_textgrad.critics.compact import compacted, fits
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.node import LLMCritic
from lg_textgrad.critics.run_case import Compact, case, targets
from lg_textgrad.critics.showing import evidence, general
from lg_textgrad.errors import CriticError, ModelReplyError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.parameter import Gradient

_TEMPLATES = ("critic_run", "critic_run_case", "critic_run_detail", "critic_run_step", "again")
_MOST_FAULTS = 3
"""Steps that one reply may blame: a fault is mostly in one place."""


class TraceCritic:
    """Asks `model` about a whole run at once, with a JSON schema for the reply.

    It sees each step's prompt, what it was given and what it wrote. All that it is asked has at
    most `max_trace_tokens` tokens besides the instructions, which are the same for every run: what
    is longer is cut around what the complaint speaks of, and each cut is marked. The reply
    names the steps that are to blame, three at most: a quotation as evidence, a rule, a weight.
    `max_tokens` caps the reply. `brief` asks for no quotation: what small models need; the
    complaint then is the evidence. Cost: 1 call for each run below full marks, 2 when the reply
    fails its schema. Raises `ConfigurationError` for what is no model.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        brief: bool = False,
        max_trace_tokens: int = 2000,
        max_tokens: int = 800,
    ) -> None:
        check_model(model, "TraceCritic")
        self.model = model
        self.brief = brief
        self.max_trace_tokens = max_trace_tokens
        self.max_tokens = max_tokens
        self.malformed = 0
        """Replies that failed their schema twice and were skipped."""
        self._alone = LLMCritic(model, brief=brief)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "critic": "trace",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*_TEMPLATES),
            "brief": self.brief,
            "max_trace_tokens": self.max_trace_tokens,
            "max_tokens": self.max_tokens,
            "alone": dict(self._alone.fingerprint),
        }

    def most_calls(self, nodes: int) -> int:
        return min(1, nodes)

    def fits(self, request: RunRequest) -> bool:
        """Return whether the run is shown without a cut."""
        return fits(request, self.max_trace_tokens, brief=self.brief)

    async def acriticize(self, request: CriticRequest) -> Critique:
        """Judge one execution alone, as `LLMCritic` does. The reverse pass never asks for it."""
        return await self._alone.acriticize(request)

    async def acriticize_run(self, request: RunRequest) -> Sequence[Gradient]:
        """Return gradients for the prompts of a run. One call.

        Raises `CriticError` when the reply is malformed twice; the reverse pass then goes on
        without this run.
        """
        shown = compacted(request, self.max_trace_tokens, brief=self.brief)
        if not shown.judged:
            return []
        try:
            messages = [
                {"role": "system", "content": templates.source("critic_run")},
                {"role": "user", "content": case(shown, request, brief=self.brief)},
            ]
            data = await aask_twice(self.model, messages, self._schema(shown), self.max_tokens)
        except ModelReplyError as error:
            self.malformed += 1
            raise CriticError(
                f"The critic's reply about run {request.scored.run.id} failed its schema twice: "
                f"{error} The run was skipped; use a stronger critic model if this happens often.",
                run_id=request.scored.run.id,
            ) from None
        return _gradients(request, shown, data)

    def _schema(self, shown: Compact) -> dict[str, Any]:
        names = list(targets(shown))
        quotation = {} if self.brief else {"evidence": {"type": "string", "maxLength": 80}}
        step = {"step": {"type": "string", "enum": names}}
        fault = an_object({**step, **quotation, "general_rule": RULE, "weight": WEIGHT})
        most = min(_MOST_FAULTS, len(names))
        faults = {"type": "array", "minItems": 1, "maxItems": most, "items": fault}
        return an_object({"faults": faults})


def _gradients(request: RunRequest, shown: Compact, data: Mapping[str, Any]) -> list[Gradient]:
    """Return what the critic said, a gradient for each prompt, in order of execution."""
    scored = request.scored
    loss = max((b.weight for blames in request.blames.values() for b in blames), default=1.0)
    complaint = cut("; ".join(shown.complaint.split("\n")), 300)
    faults: dict[str, Mapping[str, Any]] = {}
    for fault in data["faults"]:
        known = faults.get(fault["step"])
        if known is None or fault["weight"] > known["weight"]:
            faults[fault["step"]] = fault
    others = [text for step in shown.steps for text in (step.given, step.wrote)]
    found = []
    for target, (step, name) in targets(shown).items():
        fault = faults.get(target, {})
        change = general(fault.get("general_rule", ""), scored, step.execution, others)
        if change:
            found.append(
                Gradient(
                    parameter=name,
                    run_id=scored.run.id,
                    execution=step.execution.id,
                    change=change,
                    evidence=evidence(
                        fault.get("evidence", ""), step.wrote, *shown.texts(), instead=complaint
                    ),
                    weight=round(fault["weight"] * loss, 6),
                    example_id=scored.run.example.id,
                    score=scored.score,
                )
            )
    return found
