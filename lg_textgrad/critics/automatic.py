"""The critic that chooses for each run: the whole of it at once, or execution by execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad._given import check_model, check_numbers
from lg_textgrad.critics.base import CriticRequest, Critique, RunRequest
from lg_textgrad.critics.compact import size
from lg_textgrad.critics.node import LLMCritic
from lg_textgrad.critics.whole import TraceCritic
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.models.base import ChatModel
from lg_textgrad.parameter import Gradient

_FRAME = 350
"""Tokens of a call in node mode besides the values that it shows: instructions and reply."""


class AutoCritic:
    """Judges a run at once where that is enough or all that the budget allows, else by nodes.

    A run of one execution is judged by itself. Of those with more, the whole is judged at once when
    it fits `max_trace_tokens` without a cut, or when the calls and tokens of node mode for all runs
    of the reverse pass would be more than `share` of the budget's caps. The caps count, not what is
    left of them, so that a run that was interrupted chooses as it did before.

    Cost: 1 call for a run that is judged at once, else that of `LLMCritic`. Raises
    `ConfigurationError` for a `share` outside (0, 1], and for what is no model.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        brief: bool = False,
        max_trace_tokens: int = 2000,
        share: float = 0.1,
    ) -> None:
        check_numbers("AutoCritic", lambda n: 0 < n <= 1, "above 0 and at most 1", share=share)
        check_model(model, "AutoCritic")
        self.model = model
        self.share = share
        self.node = LLMCritic(model, brief=brief)
        self.trace = TraceCritic(model, brief=brief, max_trace_tokens=max_trace_tokens)

    @property
    def malformed(self) -> int:
        """Replies that failed their schema twice and were skipped."""
        return self.node.malformed + self.trace.malformed

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "critic": "auto",
            "node": dict(self.node.fingerprint),
            "trace": dict(self.trace.fingerprint),
            "share": self.share,
        }

    def at_once(self, request: RunRequest) -> bool:
        """Return whether the whole run is judged in one call."""
        if request.asked_by_node <= 1:
            return False
        return self.trace.fits(request) or self._too_dear(request)

    def _too_dear(self, request: RunRequest) -> bool:
        ledger = ledger_in_scope()
        if ledger is None:
            return False
        budget = ledger.account.budget
        calls = request.asked_by_node * request.beside
        if budget.calls is not None and calls > self.share * budget.calls:
            return True
        if budget.tokens is None:
            return False
        return size(request) * request.beside + calls * _FRAME > self.share * budget.tokens

    async def acriticize(self, request: CriticRequest) -> Critique:
        return await self.node.acriticize(request)

    async def acriticize_run(self, request: RunRequest) -> Sequence[Gradient] | None:
        return await self.trace.acriticize_run(request) if self.at_once(request) else None
