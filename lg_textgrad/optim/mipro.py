"""MIPRO: which instruction goes with which demonstrations, searched by Optuna's TPE."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from lg_textgrad import templates
from lg_textgrad._given import check_counts
from lg_textgrad._sync import task_group
from lg_textgrad.asking import Writer, quoting
from lg_textgrad.data import batches
from lg_textgrad.demos import Demo, render_demos, split_demos
from lg_textgrad.errors import MissingExtraError, ParameterError
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Attempt, Bench, Proposal, Search, Sizes
from lg_textgrad.optim.fewshot import FewShot, check_sets
from lg_textgrad.optim.portfolio import varied
from lg_textgrad.optim.writing import (
    all_edits,
    calls_a_run,
    promises,
    shown,
    usable,
    with_instruction,
)
from lg_textgrad.parameter import Parameter
from lg_textgrad.planted import planted
from lg_textgrad.run import Candidate, Example

Demos = tuple[Demo, ...]

_WHY = "written from a summary of the data"
_SHOWN = 8
"""Examples that the summary of the data is made of."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What there is to choose from for one parameter; the first of each is what it has now."""

    instructions: tuple[str, ...]
    demos: tuple[Demos, ...]


class MIPRO(Search):
    """Searches instructions and demonstrations of all nodes together.

    First it runs `bootstrap` training examples and makes several sets of demonstrations for each
    node, as `FewShot` does, of each of `sizes` and `sets` of each. Then `model` sums up the data
    and writes `instructions` new instructions a node, each with another tip, from the summary, the
    program and cases in which the node did well. Then `trials` combinations are tried, `parallel`
    at a time, each time on another `minibatch` of the validation examples and compared with the
    prompts that the search began with, on the same examples. Optuna's TPE chooses the combinations,
    and takes those under way for bad ones so that it asks for others. After every `gate_every`
    trials the best so far goes to acceptance, whose verdict on all validation examples it learns
    from.

    Cost: `bootstrap` runs, 1 + nodes times `instructions` calls of the writer (twice as many when
    all replies break promises), and at most `trials` times `minibatch` runs, besides those of
    acceptance. It stops early enough to pay for a last comparison. After Opsahl-Ong et al. 2024
    (MIPROv2). Raises `MissingExtraError` without the extra `mipro`, `ConfigurationError` for
    numbers that are too small.
    """

    needs_gradients = False

    def __init__(
        self,
        model: ChatModel,
        *,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        instructions: int = 4,
        sizes: Sequence[int] = (3, 6),
        sets: int = 2,
        max_demo_tokens: int = 1200,
        threshold: float = 1.0,
        bootstrap: int = 16,
        trials: int = 24,
        parallel: int = 4,
        minibatch: int = 10,
        gate_every: int = 8,
        max_tokens: int = 600,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtraError("MIPRO needs optuna: pip install 'lg-textgrad[mipro]'.")
        counts = {"bootstrap": bootstrap, "trials": trials, "parallel": parallel}
        check_counts("MIPRO", **counts, minibatch=minibatch, gate_every=gate_every)
        check_counts("MIPRO", 0, instructions=instructions, sets=sets)
        check_sets("MIPRO", sizes, threshold, max_demo_tokens=max_demo_tokens)
        super().__init__(parameters)
        self.model = model
        self.instructions = instructions
        self.few_shot = FewShot(
            sizes=sizes,
            sets=max(1, sets),
            max_tokens=max_demo_tokens,
            threshold=threshold,
            seed=seed,
        )
        self.sets = sets
        self.bootstrap = bootstrap
        self.trials = trials
        self.parallel = parallel
        self.minibatch = minibatch
        self.gate_every = gate_every
        self.writer = Writer(model, max_tokens, temperature, seed)
        self.seed = seed

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        names = ("data", "data_case", "instruction", "instruction_case", "tips")
        return {
            "optimizer": "mipro",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*(f"mipro_{n}" for n in names), "again"),
            "demonstrations": {**self.few_shot.fingerprint, "sets": self.sets},
            "instructions": self.instructions,
            "bootstrap": self.bootstrap,
            "trials": self.trials,
            "parallel": self.parallel,
            "minibatch": self.minibatch,
            "gate_every": self.gate_every,
            "max_tokens": self.writer.max_tokens,
            "temperature": self.writer.temperature,
            "seed": self.seed,
        }

    def reset(self) -> None:
        super().reset()
        self.few_shot.reset()

    def see_examples(self, train: Sequence[Example]) -> None:
        self.few_shot.see_examples(train)

    def most_calls(self, sizes: Sizes) -> int:
        gates = self.trials // self.gate_every + 2
        runs = min(self.bootstrap, sizes.train) + gates * sizes.val
        runs += self.trials * min(self.minibatch, sizes.val)
        written = 1 + self.instructions * sizes.prompts if self.instructions else 0
        return runs * sizes.run + written

    async def asearch(self, bench: Bench) -> AsyncIterator[Proposal]:
        start = dict(bench.incumbent)
        rows = varied(bench.train, f"{self.seed}/train")[: self.bootstrap]
        scored = await bench.ascore(rows, start, "batch")
        choices = await self._choices(bench, start, scored)
        if all(len(c.instructions) == len(c.demos) == 1 for c in choices.values()):
            return
        trials = Trials(bench, start, choices, self.seed, max(2, self.trials // 4))
        minibatches = iter(batches(bench.val, self.minibatch, self.seed))
        gate_calls = calls_a_run(scored) * len(bench.val)
        round_calls = 0
        since_gate = 0
        while trials.count < self.trials:
            left = bench.left
            if left is not None and left < round_calls + gate_calls:
                break
            number = min(self.parallel, self.trials - trials.count)
            self.refused += await trials.arun(number, next(minibatches))
            round_calls = (left or 0) - (bench.left or 0)
            since_gate += number
            if since_gate >= self.gate_every:
                since_gate = 0
                if (best := trials.best()) is not None:
                    yield best
                    await trials.alearn(best, self.history)
        for _ in range(2):  # when acceptance refuses the best, the second has its chance
            before = bench.incumbent
            if (best := trials.best()) is None:
                return
            yield best
            await trials.alearn(best, self.history)
            if bench.incumbent != before:
                return

    async def _choices(
        self, bench: Bench, start: Candidate, scored: Sequence[Scored]
    ) -> dict[str, Choices]:
        """Return what there is to choose from, by parameter."""
        self.few_shot.bind(p.at(start[n]) for n, p in bench.parameters.items())
        self.few_shot.see(scored)
        sets = await demo_sets(self.few_shot, start) if self.sets else {}
        trainable = [n for n, p in bench.parameters.items() if p.requires_grad]
        asked = self.instructions and trainable
        summary = await self._summary([s.run.example for s in scored]) if asked else ""
        program = _program(bench.parameters, scored)
        async with task_group() as group:
            tasks = {
                name: [
                    group.create_task(self._instruction(bench, start, name, tip, program, summary))
                    for tip in enumerate(islice(cycle(_tips()), self.instructions))
                ]
                for name in trainable
            }
        found = {}
        for name in trainable:
            instruction, demos = split_demos(start[name])
            written = [text for task in tasks[name] if (text := task.result()) is not None]
            found[name] = Choices(
                tuple(dict.fromkeys((instruction, *written))),
                tuple(dict.fromkeys((demos, *sets.get(name, ())))),
            )
        return found

    async def _summary(self, examples: Sequence[Example]) -> str:
        """Return what the model says of the data; empty when it says nothing usable."""
        told = "\n\n".join(
            f"Given: {shown(e.inputs)}" + (f"\nExpected: {shown(e.outputs)}" if e.outputs else "")
            for e in examples[:_SHOWN]
        )
        case = templates.fill("mipro_data_case", mark=templates.fence(told), examples=told)
        messages = [
            {"role": "system", "content": templates.source("mipro_data")},
            {"role": "user", "content": case},
        ]
        quotes = quoting([told])
        try:
            return await self.writer.awrite(
                messages, lambda t: quotes(t) or planted(t), key="summary", longest=1200
            )
        except ParameterError as error:
            self.refused.append(f"summary of the data: {error}")
            return ""

    async def _instruction(
        self,
        bench: Bench,
        start: Candidate,
        name: str,
        tip: tuple[int, str],
        program: str,
        summary: str,
    ) -> str | None:
        parameter = bench.parameters[name]
        number, text = tip
        turns = list(self.few_shot.collected.good.get(name, {}).values())[:3]
        cases = [
            "The step did well here.\n"
            f"It was given:\n{shown(t.asked)}\nIt wrote:\n{shown(t.replied)}"
            for t in turns
        ]
        # The summary is fenced too: the model that wrote it had read what users wrote.
        material = "\n\n".join([f"About the data: {summary}", *cases] if summary else cases)
        material = material or "(nothing is known yet)"
        case = templates.fill(
            "mipro_instruction_case",
            program=program,
            role=parameter.role or name,
            mark=templates.fence(material),
            material=material,
            instruction=split_demos(start[name])[0],
            tip=text,
            promises=promises(parameter),
        )
        messages = [
            {"role": "system", "content": templates.source("mipro_instruction")},
            {"role": "user", "content": case},
        ]
        try:
            seen = [text for t in turns for text in (t.asked, t.replied)]
            refusal = usable(bench, start, name, seen)
            return await self.writer.awrite(messages, refusal, seed=2 * number)
        except ParameterError as error:
            self.refused.append(f"{name}: {error}")
            return None


def _tips() -> list[str]:
    return templates.source("mipro_tips").split("\n")


def _program(parameters: Mapping[str, Parameter], scored: Sequence[Scored]) -> str:
    """Return the steps of the program in the order in which the longest run went through them."""
    runs = [s.run for s in scored]
    longest = max(runs, key=lambda run: len(run.executions), default=None)
    steps = []
    for execution in longest.executions if longest else ():
        roles = [parameters[n].role or n for n in execution.prompts if n in parameters]
        steps.append(f"{execution.path} ({'; '.join(roles)})" if roles else execution.path)
    return ", then ".join(dict.fromkeys(steps)) or "one step"


async def demo_sets(few_shot: FewShot, start: Mapping[str, str]) -> dict[str, list[Demos]]:
    """Return the sets of demonstrations that `few_shot` proposes, by parameter."""
    found: dict[str, list[Demos]] = {}
    for proposal in await few_shot.aproposals():
        for name in proposal.changed(start):
            found.setdefault(name, []).append(split_demos(proposal.candidate[name])[1])
    return found


class Trials:
    """Combinations that were tried, and Optuna's study that says which to try next."""

    def __init__(
        self,
        bench: Bench,
        start: Candidate,
        choices: Mapping[str, Choices],
        seed: int,
        random_trials: int,
    ) -> None:
        import optuna

        self.bench = bench
        self.start = start
        self.choices = choices
        self.count = 0
        self._optuna = optuna
        self._space: dict[str, Any] = {
            f"{kind} of {name}": optuna.distributions.CategoricalDistribution(tuple(range(many)))
            for name, c in choices.items()
            for kind, many in (("instruction", len(c.instructions)), ("demos", len(c.demos)))
            if many > 1
        }
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=random_trials, constant_liar=True
        )
        with _quiet(optuna):
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
        # What there is now is known to gain nothing over itself.
        self._add(dict.fromkeys(self._space, 0), 0.0)
        self._gains: dict[str, list[float]] = {}
        """Candidate's hash -> its mean gain over `start`, for each round that it ran in."""
        self._tried: dict[str, tuple[Proposal, dict[str, int]]] = {}
        self._judged: set[str] = set()
        self._reached = 0.0
        """Mean gain of the incumbent over `start`, on all validation examples."""

    def _add(self, params: Mapping[str, int], value: float) -> None:
        made = self._optuna.trial.create_trial(
            params=dict(params), distributions=self._space, value=value
        )
        self._study.add_trial(made)

    def proposal(self, params: Mapping[str, int]) -> Proposal:
        """Return the combination as a candidate."""
        candidate = dict(self.start)
        for name, choice in self.choices.items():
            instruction = choice.instructions[params.get(f"instruction of {name}", 0)]
            demos = choice.demos[params.get(f"demos of {name}", 0)]
            candidate = with_instruction(candidate, name, instruction)
            candidate[name] = render_demos(instruction, demos)
        edits = all_edits(self.start, candidate, why=_WHY)
        return Proposal(candidate, edits, "instructions and demonstrations")

    async def arun(self, number: int, rows: Sequence[Example]) -> list[str]:
        """Try so many combinations on the rows, all at once. Returns why some were refused."""
        asked = [self._study.ask(self._space) for _ in range(number)]
        made = [self.proposal(trial.params) for trial in asked]
        refusals = {p.hash: self.bench.refusal(p) for p in made}
        fit = {p.hash: p.candidate for p in made if refusals[p.hash] is None}
        base, *found = await self.bench.ascore_all(rows, [self.start, *fit.values()], "trial")
        before = math.fsum(s.score for s in base)
        for name, scored in zip(fit, found, strict=True):
            gain = (math.fsum(s.score for s in scored) - before) / len(rows)
            self._gains.setdefault(name, []).append(gain)
        for trial, proposal in zip(asked, made, strict=True):
            self._tried[proposal.hash] = proposal, dict(trial.params)
            # What breaks a promise is no better than what fails everywhere.
            refused = refusals[proposal.hash] is not None
            self._study.tell(trial, -1.0 if refused else self._gains[proposal.hash][-1])
        self.count += number
        return [why for why in refusals.values() if why is not None]

    def best(self) -> Proposal | None:
        """Return what gained most and was not judged yet; None when the incumbent gained more."""
        means = {
            h: round(math.fsum(gains) / len(gains), 9)
            for h, gains in self._gains.items()
            if h not in self._judged and self._tried[h][0].candidate != self.bench.incumbent
        }
        found = max(means, key=lambda h: (means[h], len(self._gains[h])), default=None)
        if found is None or means[found] <= self._reached:
            return None
        self._judged.add(found)
        best = self._tried[found][0]
        # It was made of what the search began with; the edits lead there from what is kept now.
        edits = all_edits(self.bench.incumbent, best.candidate, why=_WHY)
        return replace(best, edits=edits)

    async def alearn(self, proposal: Proposal, history: Sequence[Attempt]) -> None:
        """Tell the study what acceptance measured on the validation examples."""
        for attempt in history:
            if attempt.proposal.hash == proposal.hash and attempt.stage == "val":
                rows = [e for e in self.bench.val if e.id in attempt.scores]
                base = await self.bench.ascore(rows, self.start, "trial")
                before = math.fsum(s.score for s in base)
                gain = (math.fsum(attempt.scores[e.id] for e in rows) - before) / len(rows)
                self._add(self._tried[proposal.hash][1], gain)
                if attempt.accepted:
                    self._reached = round(gain, 9)
                return


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna from printing that a study was created."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
