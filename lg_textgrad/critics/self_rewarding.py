"""A critic that learns its instruction from how well its verdicts foretold what was measured."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from lg_textgrad import templates
from lg_textgrad._given import check_counts, check_critic
from lg_textgrad._sync import all_at_once
from lg_textgrad.asking import Writer, quoting
from lg_textgrad.critics.base import CriticRequest, Critique
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.showing import shown_values
from lg_textgrad.errors import ConfigurationError, CriticError, ParameterError
from lg_textgrad.guards import stretches
from lg_textgrad.ledger import ledger_in_scope
from lg_textgrad.models.base import ChatModel
from lg_textgrad.parameter import Edit, Gradient, Parameter
from lg_textgrad.planted import outward, planted

logger = logging.getLogger(__name__)

_SHOWN = 3
"""Cases of each kind that the writer sees."""


class Instructed(Protocol):
    """What can learn: a critic whose instruction can be replaced, such as `LLMCritic`."""

    model: ChatModel
    instruction: str | None

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    async def acriticize(self, request: CriticRequest) -> Critique: ...


@dataclass
class Prediction:
    """A verdict, and what the edits that answered it came to."""

    request: CriticRequest
    gradient: Gradient
    gains: list[float] = field(default_factory=list)
    """Mean score over the incumbent's, for each proposal with an edit that answers it."""
    weight: float = 0.0
    """What the critic says with its instruction as it is now."""

    @property
    def gain(self) -> float:
        return math.fsum(self.gains) / len(self.gains)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One attempt to improve the instruction."""

    instruction: str
    before: float
    """How well the instruction before foretold the changes, in [0, 1]; 0.5 is chance."""
    after: float
    kept: bool


class SelfRewardingCritic:
    """Lets `critic` rewrite its own instruction, which is a parameter like any other.

    A gradient's weight says how much one prompt is to blame. When a proposal has edits that answer
    it, the change of the score that the trainer measures says how much it really was. After every
    `every` measured proposals, the critic's model is shown the weights that foretold the changes
    best and worst among the last `history`, and writes another instruction. All of these verdicts
    are then asked for again with it, and it is kept only when its weights put more pairs of changes
    into their true order. Lines of the instruction that name the form of the reply or the data
    marks are locked, unless `locked` says otherwise.

    Cost: every `every` proposals one call of the model (two when the reply is unusable) and at most
    `history` calls of the critic. With fewer than `least` measured verdicts, or when all changes
    are the same, nothing is asked. What was learned is kept in the run under `critic`; a run that
    goes on learns it again from the store. After Yuan et al. 2024 (self-rewarding language models),
    with measured changes in place of the model's own marks. Raises `ConfigurationError` for a
    critic without an `instruction`, `every` below 1, and `least` outside 2 to `history`.
    """

    def __init__(
        self,
        critic: Instructed,
        *,
        every: int = 6,
        history: int = 12,
        least: int = 4,
        locked: Sequence[str] | None = None,
        max_tokens: int = 600,
        seed: int = 0,
    ) -> None:
        check_critic(critic, "SelfRewardingCritic")
        if not hasattr(critic, "instruction"):
            raise ConfigurationError(
                f"A {type(critic).__name__} has no instruction that SelfRewardingCritic could "
                "rewrite; give it tg.LLMCritic(model)."
            )
        check_counts("SelfRewardingCritic", every=every)
        check_counts("SelfRewardingCritic", 2, least=least)
        check_counts("SelfRewardingCritic", least, history=history)
        self.critic = critic
        self.every = every
        self.history = history
        self.least = least
        start = critic.instruction or templates.source("critic")
        if locked is None:
            locked = [ln for ln in start.split("\n") if "JSON" in ln or "data marks" in ln]
        self.start = Parameter(
            "critic", start, role="judges one step of a program", placeholders=(), locked=locked
        )
        self.writer = Writer(critic.model, max_tokens, seed=seed, kind="critic")
        self.reset()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "critic": "self_rewarding",
            "of": dict(self.critic.fingerprint),
            "templates": templates.fingerprint("self_rewarding", "self_rewarding_case", "again"),
            "every": self.every,
            "history": self.history,
            "least": self.least,
            "locked": list(self.start.locked),
            "max_tokens": self.writer.max_tokens,
            "seed": self.writer.seed,
        }

    @property
    def malformed(self) -> int:
        """Replies that failed their schema twice and were skipped."""
        return sum(getattr(critic, "malformed", 0) for critic in self._used)

    def reset(self) -> None:
        """Forget what was learned: a run that goes on is gone through from the top."""
        self.instruction = self.start.at(self.start.value)
        """The instruction as it is now, a parameter with locked lines."""
        self.lessons: list[Lesson] = []
        self.refused: list[str] = []
        self.predictions: dict[str, Prediction] = {}
        """Gradient's id -> what was measured, in the order of the measurements."""
        self._said: dict[str, tuple[CriticRequest, Gradient]] = {}
        self._measured = 0
        self._due: asyncio.Lock | None = None
        self._used: list[Any] = []
        self._now = self._with(self.start.value)

    def _with(self, instruction: str) -> Instructed:
        """Return the critic with another instruction."""
        made = copy.copy(self.critic)
        made.instruction = instruction
        self._used.append(made)
        return made

    async def acriticize(self, request: CriticRequest) -> Critique:
        if (due := self._due) is not None:
            async with due:  # all of a batch wait for the lesson, whoever comes first
                if self._due is due:
                    await self._alearn()
                    self._due = None
        critique = await self._now.acriticize(request)
        for gradient in critique.gradients:
            self._said[gradient.id] = request, gradient
        return critique

    def observe(self, edits: Iterable[Edit], gain: float) -> None:
        """Take note of what a proposal gained over the incumbent, on the same examples."""
        ids = dict.fromkeys(g for edit in edits for g in edit.gradients)
        answered = [i for i in ids if i in self._said]
        for i in answered:
            if i not in self.predictions:
                request, gradient = self._said[i]
                self.predictions[i] = Prediction(request, gradient, [], gradient.weight)
            self.predictions[i].gains.append(gain)
        if answered:
            self._measured += 1
            if self._measured % self.every == 0:
                self._due = asyncio.Lock()

    async def _alearn(self) -> None:
        """Try for a better instruction, and keep it if it foretells better."""
        known = list(self.predictions.values())[-self.history :]
        before = concordance([(p.weight, p.gain) for p in known])
        if len(known) < self.least or before is None or before == 1:
            return
        text = await self._awrite(known)
        if text is None:
            return
        critic = self._with(text)
        weights = await all_at_once(_weight(critic, p) for p in known)
        after = concordance([(w, p.gain) for w, p in zip(weights, known, strict=True)])
        assert after is not None, "the gains are those of before"
        kept = after > before
        self.lessons.append(Lesson(text, before, after, kept))
        logger.info("A new instruction foretells %.2f, the old one %.2f.", after, before)
        if kept:
            self.instruction.adopt(text)
            self._now = critic
            for prediction, weight in zip(known, weights, strict=True):
                prediction.weight = weight
            # Verdicts that it was not asked for again say nothing about it.
            self.predictions = {p.gradient.id: p for p in known}
            self._said.clear()
        if (ledger := ledger_in_scope()) is not None:
            lessons = [asdict(lesson) for lesson in self.lessons]
            learned = {"instruction": self.instruction.value, "lessons": lessons}
            ledger.store.put_meta("critic", learned)

    async def _awrite(self, known: Sequence[Prediction]) -> str | None:
        ranked = sorted(known, key=lambda p: _misplaced(p, known))
        number = min(_SHOWN, len(ranked) // 2)
        best, worst = (_cases(part) for part in (ranked[:number], ranked[::-1][:number]))
        case = templates.fill(
            "self_rewarding_case",
            instruction=self.instruction.value,
            mark=templates.fence(best, worst),
            best=best,
            worst=worst,
            promises="\n".join(f"Keep this line as it is: {line}" for line in self.start.locked),
        )
        messages = [
            {"role": "system", "content": templates.source("self_rewarding")},
            {"role": "user", "content": case},
        ]
        seen = [
            text
            for p in known
            for text in (*shown_values(p.request.execution), _complaint(p.request))
        ]
        quotes = quoting(seen, self.instruction.value)

        def refusal(text: str) -> str | None:
            if text == self.instruction.value:
                return "It is the instruction that there is already."
            try:
                self.instruction.check(text)
            except ParameterError as error:
                return str(error)
            new = stretches(text, self.instruction.value)
            trusted = (self.start.value, self.instruction.value)
            found = (planted(part) or outward(part, trusted) for part in new)
            return quotes(text) or next((why for why in found if why), None)

        try:
            return await self.writer.awrite(messages, refusal, seed=2 * len(self.lessons))
        except ParameterError as error:
            self.refused.append(f"critic: {error}")
            return None


def concordance(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the share of pairs with different gains that the weights put into the same order.

    `pairs` are (weight, gain). In [0, 1]; equal weights count half, so 0.5 is chance. None when all
    gains are equal.
    """
    right = total = 0.0
    for n, (weight, gain) in enumerate(pairs):
        for other, gained in pairs[:n]:
            if gain != gained:
                total += 1
                right += _agree(weight - other, gain - gained)
    return right / total if total else None


def _agree(weights: float, gains: float) -> float:
    return 0.5 if weights == 0 else float((weights > 0) == (gains > 0))


def _misplaced(prediction: Prediction, known: Sequence[Prediction]) -> float:
    """Return with how many of the others a prediction is in the wrong order, less the right."""
    return sum(
        0.5 - _agree(prediction.weight - other.weight, prediction.gain - other.gain)
        for other in known
        if prediction.gain != other.gain
    )


async def _weight(critic: Instructed, prediction: Prediction) -> float:
    """Return how much the critic blames the same prompt for the same execution."""
    try:
        critique = await critic.acriticize(prediction.request)
    except CriticError:
        return 0.0
    name = prediction.gradient.parameter
    return max((g.weight for g in critique.gradients if g.parameter == name), default=0.0)


def _cases(predictions: Sequence[Prediction]) -> str:
    return "\n\n".join(
        f"Step: {p.request.execution.path}\nComplaint: {cut(_complaint(p.request), 300)}\n"
        f"The critic's rule: {p.gradient.change}\nIts weight: {p.weight:.2f}\n"
        f"Measured change of the score: {p.gain:+.3f}"
        for p in predictions
    )


def _complaint(request: CriticRequest) -> str:
    return "\n".join(dict.fromkeys(b.text for b in request.blames))
