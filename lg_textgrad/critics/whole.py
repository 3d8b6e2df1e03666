"""The critic that judges a whole run at once: one model call for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad import templates
from lg_textgrad.critics.asking import RULE, WEIGHT, aask_twice, an_object
from lg_textgrad.critics.base import CriticRequest, Critique, RunRequest
from lg_textgrad.critics.compact import Compact, Step, compacted
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.node import LLMCritic
from lg_textgrad.critics.showing import evidence, general
from lg_textgrad.errors import CriticError, ModelReplyError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.parameter import Gradient

_TEMPLATES = ("critic_run", "critic_run_case", "critic_run_step")


class TraceCritic:
    """Asks `model` about a whole run at once, with a JSON schema for the reply.

    It sees each step's prompt, what it was given and what it wrote, in `max_trace_tokens` tokens:
    what is longer is cut around what the complaint speaks of, and each cut is marked. The reply has
    a verdict for each step whose prompt can be changed: a rule, a quotation as evidence, a weight.
    `max_tokens` caps the reply.
    """

    def __init__(
        self, model: ChatModel, *, max_trace_tokens: int = 2000, max_tokens: int = 800
    ) -> None:
        self.model = model
        self.max_trace_tokens = max_trace_tokens
        self.max_tokens = max_tokens
        self.malformed = 0
        """Replies that failed their schema twice and were skipped."""
        self._alone = LLMCritic(model)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "critic": "trace",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*_TEMPLATES),
            "max_trace_tokens": self.max_trace_tokens,
            "max_tokens": self.max_tokens,
        }

    async def acriticize(self, request: CriticRequest) -> Critique:
        """Judge one execution alone, as `LLMCritic` does. The reverse pass never asks for it."""
        return await self._alone.acriticize(request)

    async def acriticize_run(self, request: RunRequest) -> Sequence[Gradient]:
        """Return gradients for the prompts of a run. One call.

        Raises `CriticError` when the reply is malformed twice; the reverse pass then goes on
        without this run.
        """
        shown = compacted(request, self.max_trace_tokens)
        if not shown.judged:
            return []
        try:
            data = await aask_twice(
                self.model, _messages(shown), _schema(shown.judged), self.max_tokens
            )
        except ModelReplyError as error:
            self.malformed += 1
            raise CriticError(
                f"The critic's reply about run {request.scored.run.id} failed its schema twice: "
                f"{error} The run was skipped; use a stronger critic model if this happens often.",
                run_id=request.scored.run.id,
            ) from None
        return [g for step in shown.judged for g in _gradients(request, shown, step, data)]
