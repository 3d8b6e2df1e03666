"""Promptbreeder: a population of instructions, and of the requests that change them."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lg_textgrad import templates
from lg_textgrad._given import check_counts, check_numbers
from lg_textgrad._sync import all_at_once
from lg_textgrad.asking import Writer
from lg_textgrad.data import batches
from lg_textgrad.errors import ConfigurationError, ParameterError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Bench, Proposal, Search, Sizes
from lg_textgrad.optim.collected import Collected
from lg_textgrad.optim.writing import (
    all_edits,
    calls_a_run,
    instructions_of,
    promises,
    shown,
    usable,
    with_instruction,
)
from lg_textgrad.parameter import Parameter
from lg_textgrad.planted import planted
from lg_textgrad.run import Candidate

OPERATORS = ("zero_order", "first_order", "eda", "hypermutation", "crossover", "lamarckian")
_TEMPLATES = ("", "_case", "_requests", "_mutations", "_styles", "_hyper", "_hyper_case")
_CASES = 3
_MOST_REQUEST = 300


@dataclass(frozen=True, slots=True)
class Unit:
    """One of the population."""

    instructions: Candidate
    """Parameter -> its instruction, without demonstrations."""
    request: str
    """How its instructions are changed, in words; changes too."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a winner is changed: drawn before anything is asked, so that replies decide nothing."""

    operator: str
    name: str
    style: str
    other: Unit
    seed: int


class Promptbreeder(Search):
    """Breeds instructions: a binary tournament on training examples, and mutations that mutate too.

    A unit has an instruction for each node and a request that says in words how to change one. In
    each generation all units run on the same `minibatch` of training examples; of each random pair
    the worse one is replaced by the better one with the instruction of one node changed: written
    anew from the node's role (zero-order), changed as the unit's request says (first-order),
    written as one more beside those of the population (estimation of distribution), changed by a
    request that was changed itself (hypermutation), taken from another unit (crossover), or
    inferred from replies that were right (Lamarckian). The best unit of a generation goes to
    acceptance when it was better than the incumbent on the minibatch. Demonstrations stay.

    Cost: `population` - 1 calls of `model`, and each generation `population` + 1 times `minibatch`
    runs and at most `population` calls (twice as many where replies break promises), besides the
    runs of acceptance. It stops early enough to pay for a last comparison. After Fernando et al.
    2023. Raises `ConfigurationError` for numbers that are too small and for an unknown operator.
    """

    needs_gradients = False

    def __init__(
        self,
        model: ChatModel,
        *,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        population: int = 6,
        generations: int = 6,
        minibatch: int = 6,
        operators: Sequence[str] = OPERATORS,
        threshold: float = 1.0,
        max_tokens: int = 600,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> None:
        check_counts("Promptbreeder", 2, population=population)
        check_counts("Promptbreeder", generations=generations, minibatch=minibatch)
        check_numbers(
            "Promptbreeder", lambda n: 0 <= n <= 1, "from 0 to 1", threshold=threshold
        )
        unknown = [name for name in operators if name not in OPERATORS]
        if unknown or not operators:
            raise ConfigurationError(
                f"Promptbreeder has no operator {unknown[0]!r}; there are {', '.join(OPERATORS)}."
                if unknown
                else "Promptbreeder needs at least one operator."
            )
        super().__init__(parameters)
        self.model = model
        self.population = population
        self.generations = generations
        self.minibatch = minibatch
        self.operators = tuple(operators)
        self.threshold = threshold
        self.writer = Writer(model, max_tokens, temperature, seed)
        self.seed = seed
        self.collected = Collected()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "optimizer": "promptbreeder",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*(f"promptbreeder{n}" for n in _TEMPLATES), "again"),
            "population": self.population,
            "generations": self.generations,
            "minibatch": self.minibatch,
            "operators": list(self.operators),
            "threshold": self.threshold,
            "max_tokens": self.writer.max_tokens,
            "temperature": self.writer.temperature,
            "seed": self.seed,
        }

    def reset(self) -> None:
        super().reset()
        self.collected = Collected()

    def most_calls(self, sizes: Sizes) -> int:
        runs = (self.population + 1) * min(self.minibatch, sizes.train) + sizes.val
        written = self.population - 1 + (self.generations - 1) * 2 * (self.population // 2)
        return self.generations * runs * sizes.run + written

    async def asearch(self, bench: Bench) -> AsyncIterator[Proposal]:
        base = dict(bench.incumbent)
        names = [n for n, p in bench.parameters.items() if p.requires_grad]
        if not names:
            return
        units = await self._first(bench, base, names)
        stream = iter(batches(bench.train, self.minibatch, self.seed))
        judged: set[str] = set()
        round_calls = 0
        for number in range(self.generations):
            rows = next(stream)
            before = await bench.ascore(rows, bench.incumbent, "batch")
            left = bench.left
            gate_calls = calls_a_run(before) * len(bench.val)
            if left is not None and left < round_calls + gate_calls:
                return
            candidates = [_whole(base, unit) for unit in units]
            # "batch", since the writer reads what was right in them.
            found = await bench.ascore_all(rows, candidates, "batch")
            round_calls = (left or 0) - (bench.left or 0)
            for scored in (before, *found):
                for one in scored:
                    self.collected.add(one, self.threshold)
            gains = [_total(scored) - _total(before) for scored in found]
            best = max(range(len(units)), key=lambda n: (gains[n], -n))
            proposal = self._proposal(base, units[best], bench.incumbent)
            if gains[best] > 1e-9 and proposal.hash not in judged:
                judged.add(proposal.hash)
                yield proposal
            if number + 1 < self.generations:
                units = await self._next(bench, base, names, units, gains, number)

    def _proposal(self, base: Candidate, unit: Unit, incumbent: Candidate) -> Proposal:
        candidate = _whole(base, unit)
        edits = all_edits(incumbent, candidate, why=f"bred: {unit.request}")
        return Proposal(candidate, edits, "bred")

    async def _first(self, bench: Bench, base: Candidate, names: Sequence[str]) -> list[Unit]:
        """Return the first population: what there is now, and variants of one node each."""
        requests, styles = _lines("mutations"), _lines("styles")
        random.Random(f"{self.seed}/first").shuffle(requests)
        seed = Unit(instructions_of(base), requests[0])
        plans = [
            _Plan("first_order", names[n % len(names)], styles[n % len(styles)], seed, n)
            for n in range(1, self.population)
        ]
        units = [replace(seed, request=requests[p.seed % len(requests)]) for p in plans]
        made = await self._children(bench, base, list(zip(units, plans, strict=True)), {})
        return [seed, *(child or unit for child, unit in zip(made, units, strict=True))]

    async def _next(
        self,
        bench: Bench,
        base: Candidate,
        names: Sequence[str],
        units: Sequence[Unit],
        gains: Sequence[float],
        number: int,
    ) -> list[Unit]:
        """Return the next population: the worse of each pair makes room for the better's child."""
        dice = random.Random(f"{self.seed}/{number}")
        order = list(range(len(units)))
        dice.shuffle(order)
        rooms, changes = [], []
        for one, other in zip(order[::2], order[1::2], strict=False):
            won, lost = (one, other) if gains[one] >= gains[other] else (other, one)
            plan = _Plan(
                dice.choice(self.operators),
                dice.choice(names),
                dice.choice(_lines("styles")),
                units[dice.choice([n for n in range(len(units)) if n != won])],
                self.population * (number + 1) + lost,
            )
            rooms.append(lost)
            changes.append((units[won], plan))
        ranked = [units[n] for n in sorted(range(len(units)), key=lambda n: (gains[n], -n))]
        known = {n: list(dict.fromkeys(u.instructions[n] for u in ranked)) for n in names}
        children = await self._children(bench, base, changes, known)
        following = list(units)
        for room, child in zip(rooms, children, strict=True):
            following[room] = child or following[room]
        return following

    async def _children(
        self,
        bench: Bench,
        base: Candidate,
        changes: Sequence[tuple[Unit, _Plan]],
        known: Mapping[str, Sequence[str]],
    ) -> list[Unit | None]:
        children = await all_at_once(
            self._child(bench, base, unit, plan, known) for unit, plan in changes
        )
        found: list[Unit | None] = []
        for made in children:  # in the order of the pairs, not of the replies
            if isinstance(made, str):
                self.refused.append(made)
            found.append(None if isinstance(made, str) else made)
        return found

    async def _child(
        self,
        bench: Bench,
        base: Candidate,
        unit: Unit,
        plan: _Plan,
        known: Mapping[str, Sequence[str]],
    ) -> Unit | str:
        """Return the unit with one instruction changed, or why it could not be."""
        name, operator = plan.name, plan.operator
        told = dict(line.split(": ", 1) for line in _lines("requests"))
        turns = list(self.collected.good.get(name, {}).values())[-_CASES:]
        taken = plan.other.instructions[name]
        if operator == "crossover" and taken != unit.instructions[name]:
            return replace(unit, instructions={**unit.instructions, name: taken})
        material, request = unit.instructions[name], unit.request
        seen: list[str] = []
        try:
            if operator == "hypermutation":
                request = await self._request(unit.request, plan)
            ask = f"{told['first_order']} {request} {plan.style}"
            if operator == "zero_order":
                material, ask = "(none)", f"{told['zero_order']} {plan.style}"
            elif operator == "eda" and len(known.get(name, ())) > 1:
                material = "\n\n".join(f"[{n}] {text}" for n, text in enumerate(known[name], 1))
                ask = told["eda"]
            elif operator == "lamarckian" and turns:
                material = "\n\n".join(
                    f"Given:\n{shown(t.asked)}\nReplied:\n{shown(t.replied)}" for t in turns
                )
                ask = told["lamarckian"]
                seen = [text for t in turns for text in (t.asked, t.replied)]
            text = await self.writer.awrite(
                _messages(bench.parameters[name], ask, material),
                usable(bench, _whole(base, unit), name, seen),
                seed=2 * plan.seed,
            )
        except ParameterError as error:
            return f"{name}: {error}"
        return Unit({**unit.instructions, name: text}, request)

    async def _request(self, request: str, plan: _Plan) -> str:
        """Return another request for changes, in place of a unit's own."""
        case = templates.fill("promptbreeder_hyper_case", request=request, hint=plan.style)
        messages = [
            {"role": "system", "content": templates.source("promptbreeder_hyper")},
            {"role": "user", "content": case},
        ]
        written = await self.writer.awrite(
            messages, planted, key="request", longest=_MOST_REQUEST, seed=2 * plan.seed
        )
        return " ".join(written.split())


def _messages(parameter: Parameter, request: str, material: str) -> list[dict[str, str]]:
    case = templates.fill(
        "promptbreeder_case",
        role=parameter.role or parameter.name,
        mark=templates.fence(material),
        material=material,
        request=request,
        promises=promises(parameter),
    )
    return [
        {"role": "system", "content": templates.source("promptbreeder")},
        {"role": "user", "content": case},
    ]


def _lines(name: str) -> list[str]:
    return templates.source(f"promptbreeder_{name}").split("\n")


def _whole(base: Candidate, unit: Unit) -> Candidate:
    """Return the unit as a candidate, with the demonstrations of `base`."""
    found = dict(base)
    for name, instruction in unit.instructions.items():
        found = with_instruction(found, name, instruction)
    return found


def _total(scored: Sequence[Scored]) -> float:
    return math.fsum(s.score for s in scored)
