"""General lines that help some models with some tasks; only trying tells which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lg_textgrad import templates
from lg_textgrad.demos import render_demos
from lg_textgrad.errors import ConfigurationError, ParameterError
from lg_textgrad.optim.base import Optimizer, Proposal, taken_apart
from lg_textgrad.parameter import Edit, Parameter, apply_edits, candidate_of

ADVICE = "strategy"
"""The kind of proposals that add one line of advice to one prompt."""


class Strategies(Optimizer):
    """Proposes each line of the template `strategies` for each parameter. No model call.

    A small model does not find out by itself that it should work step by step. Where gradients are
    given, only blamed parameters get proposals. Source: the tips of MIPROv2 (Opsahl-Ong et al.
    2024) and zero-shot chain of thought (Kojima et al. 2022). Raises `ConfigurationError` for
    `lines` that are one text.
    """

    needs_gradients = False

    def __init__(
        self,
        *,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        lines: Iterable[str] | None = None,
    ) -> None:
        super().__init__(parameters)
        if isinstance(lines, str):
            raise ConfigurationError(
                "`lines` of Strategies is one text; give a list of lines, each is proposed alone."
            )
        self.lines = tuple(
            templates.source("strategies").split("\n") if lines is None else lines
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"optimizer": "strategies", "lines": list(self.lines)}

    def step_calls(self, prompts: int) -> int:  # noqa: ARG002
        return 0

    def step_proposals(self, prompts: int) -> int:
        return len(self.lines) * prompts

    async def aproposals(self) -> list[Proposal]:
        self._need_parameters()
        now = candidate_of(self.parameters)
        tried = {(e.parameter, e.text) for a in self.history for e in a.proposal.edits}
        trainable = [p for p in self.parameters.values() if p.requires_grad]
        blamed = [p for p in trainable if any(g.change for g in p.grad)]
        proposals = []
        for parameter in map(taken_apart, blamed or trainable):
            for line in self.lines:
                if line in parameter.value or (parameter.name, line) in tried:
                    continue
                end = len(parameter.value.split("\n"))
                edit = Edit(parameter.name, "add", end, line, (), "a general strategy")
                text = render_demos(apply_edits(parameter.value, [edit]), parameter.demos)
                try:
                    parameter.check(text)
                except ParameterError:
                    continue
                proposals.append(Proposal({**now, parameter.name: text}, (edit,), ADVICE))
        return proposals
