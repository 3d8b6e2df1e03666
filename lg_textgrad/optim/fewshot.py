"""Demonstrations for each node, from runs that succeeded and from reference outputs."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lg_textgrad._given import check_counts, check_numbers
from lg_textgrad.demos import Demo, readings_of, render_demos
from lg_textgrad.errors import ConfigurationError, ParameterError
from lg_textgrad.guards import words
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Optimizer, Proposal, taken_apart
from lg_textgrad.optim.collected import Collected, Turn
from lg_textgrad.optim.expected import json_in
from lg_textgrad.parameter import Parameter, candidate_of, count_tokens
from lg_textgrad.planted import planted
from lg_textgrad.run import Example


def check_sets(who: str, sizes: Sequence[int], threshold: float, **counts: int) -> None:
    """Raise `ConfigurationError` for sizes and limits that no set of demonstrations can have."""
    if not isinstance(sizes, Collection) or not sizes:  # an iterator could be gone through once
        raise ConfigurationError(
            f"{who} needs a list of one or more `sizes`, such as (4,), not {sizes!r}."
        )
    for size in sizes:
        check_counts(who, sizes=size)
    check_counts(who, **counts)
    check_numbers(who, lambda n: 0 <= n <= 1, "from 0 to 1", threshold=threshold)


class FewShot(Optimizer):
    """Proposes worked examples for each node's prompt. No model call of its own.

    A demonstration is what one execution was asked and what it replied, in a run that scored
    `threshold` or more, or where every evaluator that looked at what the execution wrote gave full
    marks. Where the node's reply becomes the graph's output, another kind has the reference output
    in place of the reply; when the user's turn is made of an example's inputs alone, training
    examples that never ran give some too.

    Proposed are sets of each of `sizes`, spread over different outputs and different words, within
    `max_tokens` a parameter; `sets` is how many different ones of each size and kind.
    After Khattab et al. 2023 (DSPy, BootstrapFewShot). Raises `ConfigurationError` for sizes or
    `sets` below 1.
    """

    needs_gradients = False

    def __init__(
        self,
        *,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        sizes: Sequence[int] = (4, 8, 14),
        sets: int = 1,
        max_tokens: int = 1200,
        threshold: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(parameters)
        check_sets("FewShot", sizes, threshold, max_tokens=max_tokens)
        check_counts("FewShot", sets=sets)
        self.sizes = tuple(sorted(sizes))
        self.sets = sets
        self.max_tokens = max_tokens
        self.threshold = threshold
        self.seed = seed
        self.collected = Collected()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "optimizer": "few_shot",
            "sizes": list(self.sizes),
            "sets": self.sets,
            "max_tokens": self.max_tokens,
            "threshold": self.threshold,
            "seed": self.seed,
        }

    def reset(self) -> None:
        super().reset()
        self.collected = Collected()

    def see_examples(self, train: Sequence[Example]) -> None:
        self.collected.examples = tuple(train)

    def see(self, scored: Sequence[Scored]) -> None:
        for one in scored:
            self.collected.add(one, self.threshold)

    def step_calls(self, prompts: int) -> int:  # noqa: ARG002
        return 0

    def step_proposals(self, prompts: int) -> int:
        return 2 * len(self.sizes) * self.sets * prompts  # of runs, and of references

    async def aproposals(self) -> list[Proposal]:
        self._need_parameters()
        now = candidate_of(self.parameters)
        tried = {a.proposal.hash for a in self.history}
        proposals: dict[str, Proposal] = {}
        for name, parameter in self.parameters.items():
            for kind, turns in self._kinds(name) if parameter.requires_grad else ():
                for demos in self._sets(turns, f"{self.seed}/{name}"):
                    text = render_demos(taken_apart(parameter).value, demos)
                    proposal = Proposal({**now, name: text}, (), kind)
                    if proposal.hash not in tried and fits(parameter, text):
                        proposals.setdefault(proposal.hash, proposal)
        return list(proposals.values())

    def _kinds(self, name: str) -> list[tuple[str, list[Turn]]]:
        """Return the turns of each kind.

        What a node replied shows how it got there, the reference only where it should end: a prompt
        that mixes the two teaches neither.
        """
        expected = {t.example.id: t for t in self.collected.expected(name)}
        good = self.collected.good.get(name, {})
        kinds = [("demonstrations of references", list(expected.values()))]
        if any(e not in expected or expected[e].replied != t.replied for e, t in good.items()):
            kinds.insert(0, ("demonstrations of runs", list(good.values())))
        return kinds

    def _sets(self, turns: Sequence[Turn], seed: str) -> list[list[Demo]]:
        demos = [(t.example.id, demo) for t in turns if (demo := demo_of(t)) is not None]
        found: list[list[Demo]] = []
        for number in range(self.sets):
            order = sorted(demos, key=lambda pair: pair[0])
            random.Random(f"{seed}/{number}").shuffle(order)
            spread = spread_out([demo for _, demo in order], self.max_tokens)
            # Smaller sets begin the larger ones, so that a server's prompt cache serves both.
            found += [spread[:size] for size in self.sizes if spread and len(spread) >= size]
            if spread and len(spread) < self.sizes[0]:
                found.append(spread)
        return found


def demo_of(turn: Turn) -> Demo | None:
    """Return a turn as a demonstration; None when it can't be read back, or may be an attack."""
    demo = Demo(turn.asked, turn.replied)
    if not demo.readable or not demo.output or any(map(planted, readings_of([demo]))):
        return None
    return demo


def fits(parameter: Parameter, text: str) -> bool:
    """Return whether the text is another one that the parameter takes."""
    if text == parameter.full:
        return False
    try:
        parameter.check(text)
    except ParameterError:
        return False
    return True


def spread_out(demos: Sequence[Demo], max_tokens: int) -> list[Demo]:
    """Return the demonstrations in an order whose every beginning is as varied as it can be.

    Each kind of output in turn, then the one with the most words that none before it has. What no
    longer fits into `max_tokens` is left out.
    """
    left = list(demos)
    bags = {d: set(words(d.inputs)) for d in left}
    taken, counts, chosen, spent = set[str](), dict[str, int](), list[Demo](), 0
    while left:

        def rank(d: Demo, taken: set[str] = taken) -> tuple[int, float]:
            return counts.get(_kind(d.output), 0), -len(bags[d] - taken) / (len(bags[d]) + 1)

        best = min(left, key=rank)
        left.remove(best)
        cost = count_tokens(best.inputs) + count_tokens(best.output)
        if spent + cost <= max_tokens:
            spent += cost
            chosen.append(best)
            taken |= bags[best]
            counts[_kind(best.output)] = counts.get(_kind(best.output), 0) + 1
    return chosen


def _kind(output: str) -> str:
    """Return what tells outputs apart: a JSON object's first value, else the first words."""
    found = json_in(output)
    if found:
        return json.dumps(next(iter(found.values())), sort_keys=True)[:80]
    return " ".join(output.split()[:3]).casefold()
