"""Rules about a node's reply that all reference outputs agree on. Costs no call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lg_textgrad.demos import render_demos
from lg_textgrad.errors import ParameterError
from lg_textgrad.guards import LABEL
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Optimizer, Proposal, taken_apart
from lg_textgrad.optim.collected import Collected, Turn
from lg_textgrad.parameter import Edit, Parameter, apply_edits, candidate_of
from lg_textgrad.run import Example

_MOST_VALUES = 30


class OutputRules(Optimizer):
    """Proposes lines that say what replies may be, as far as the training references agree on it.

    Where a node's reply becomes the graph's output, the references of all training examples are
    looked through: which values there are, when there are few and each comes again; which keys an
    object has, and which with which value; that values are copied from the input word for word. A
    person who labels data writes the same rules down first. Two proposals a parameter: the short
    one without what depends on other values. Cost: no model call of its own.
    """

    needs_gradients = False

    def __init__(
        self, *, parameters: Mapping[str, Parameter] | Iterable[Parameter] = ()
    ) -> None:
        super().__init__(parameters)
        self.collected = Collected()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"optimizer": "output_rules", "version": 1}

    def reset(self) -> None:
        super().reset()
        self.collected = Collected()

    def see_examples(self, train: Sequence[Example]) -> None:
        self.collected.examples = tuple(train)

    def see(self, scored: Sequence[Scored]) -> None:
        for one in scored:
            self.collected.add(one, 1.0)

    def step_calls(self, prompts: int) -> int:  # noqa: ARG002
        return 0

    def step_proposals(self, prompts: int) -> int:
        return 2 * prompts

    async def aproposals(self) -> list[Proposal]:
        self._need_parameters()
        now = candidate_of(self.parameters)
        proposals: dict[str, Proposal] = {}
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                continue
            always, given = self._rules(name)
            for lines in ([*always, *given], always) if given else (always,):
                proposal = self._proposal(now, taken_apart(parameter), lines)
                if proposal is not None and all(
                    proposal.hash != a.proposal.hash for a in self.history
                ):
                    proposals.setdefault(proposal.hash, proposal)
        return list(proposals.values())

    def _proposal(
        self, now: Mapping[str, str], parameter: Parameter, lines: Sequence[str]
    ) -> Proposal | None:
        new = [line for line in lines if line not in parameter.value]
        end = len(parameter.value.split("\n"))
        edits = [
            Edit(parameter.name, "add", end, line, (), "all reference outputs agree on it")
            for line in new
        ]
        text = render_demos(apply_edits(parameter.value, edits), parameter.demos)
        if not edits:
            return None
        try:
            parameter.check(text)
        except ParameterError:
            return None
        return Proposal({**now, parameter.name: text}, tuple(edits), "output rules")

    def _rules(self, name: str) -> tuple[list[str], list[str]]:
        """Return the rules that always hold, and those for one value of another key."""
        form = self.collected.form(name)
        turns = self.collected.expected(name)
        if form is None or len(turns) < 2:
            return [], []
        values = [
            {k: (t.example.outputs or {})[k] for k in form.keys if k in (t.example.outputs or {})}
            for t in turns
        ]
        if not form.as_json:
            [key] = form.keys
            listed = listed_values(v.get(key) for v in values)
            return ([f"Reply with one of these and nothing else: {listed}."] if listed else []), []
        return _object_rules(values, turns)


def listed_values(values: Iterable[Any]) -> str:
    """Return the values as a list in words when they are few and come again; empty otherwise."""
    found = [v for v in values if v is not None]
    if not found or not all(isinstance(v, str) and 0 < len(v) <= LABEL for v in found):
        return ""
    counts = Counter(found)
    # Each must come twice on average: where most are new, the next one will be new too.
    if not 1 < len(counts) <= _MOST_VALUES or len(found) < 2 * len(counts):
        return ""
    return ", ".join(sorted(counts))


def _object_rules(
    values: Sequence[Mapping[str, Any]], turns: Sequence[Turn]
) -> tuple[list[str], list[str]]:
    keys = list(dict.fromkeys(k for v in values for k in v))
    always = ["Reply with one JSON object with the keys " + ", ".join(f'"{k}"' for k in keys) + "."]
    given: list[str] = []
    choices = {k: listed_values(v.get(k) for v in values) for k in keys}
    always += [f'"{k}" is one of: {listed}.' for k, listed in choices.items() if listed]
    deciding = min(
        (k for k, listed in choices.items() if listed),
        key=lambda k: len(choices[k].split(", ")),
        default=None,
    )
    for key in keys:
        inner = [v.get(key) for v in values]
        if not all(isinstance(part, Mapping) for part in inner if part is not None):
            continue
        names = sorted({n for part in inner if part for n in part})
        if not 1 < len(names) <= 2 * _MOST_VALUES or len(names) > 2 * len(turns):
            continue
        by_value: dict[str, set[str]] = {}
        if deciding is not None:
            for value, part in zip(values, inner, strict=True):
                by_value.setdefault(str(value.get(deciding)), set()).update(part or ())
        if any(own != set(names) for own in by_value.values()):
            given += [
                f'When "{deciding}" is {value}, "{key}" may have: {", ".join(sorted(own))}.'
                for value, own in sorted(by_value.items())
                if own
            ]
        else:
            always.append(f'"{key}" may have: {", ".join(names)}.')
        if _copied(inner, turns):
            always.append(f'Copy the values in "{key}" from the message word for word.')
    return always, given


def _copied(parts: Sequence[Any], turns: Sequence[Turn]) -> bool:
    """Return whether nearly all values in an object stand in the user's turn as they are."""
    found = [
        str(value) in turn.asked
        for part, turn in zip(parts, turns, strict=True)
        for value in (part or {}).values()
        if isinstance(value, str | int | float)
    ]
    return len(found) > 3 and sum(found) >= 0.9 * len(found)
