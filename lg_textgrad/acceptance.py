"""Candidate against incumbent, on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.objective import Scored


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one candidate did on one example."""

    score: float
    """In [0, 1], higher is better."""
    feedback: Mapping[str, float] = field(default_factory=dict)
    """Evaluator's key -> its score."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The example's metadata."""
    tokens: int = 0
    """Of the graph's own model calls, prompt and completion together, answered from the store or
    not: what the candidate will cost in production."""
    seconds: float = 0.0
    """Time spent in those calls, added up, when they were made."""

    @classmethod
    def of(cls, scored: Scored) -> Outcome:
        """Return what a scored run came to."""
        calls = [call for e in scored.run.executions for call in e.model_calls]
        return cls(
            scored.score,
            {f.key: f.score for f in scored.feedback if f.score is not None},
            dict(scored.run.example.metadata),
            sum(call.usage.tokens for call in calls),
            math.fsum(call.usage.seconds for call in calls),
        )


Outcomes = Mapping[str, Outcome]
"""Example id -> outcome."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, and why."""

    accepted: bool
    reason: str
    gain: float
    """Mean score of the candidate minus the incumbent's, over the same examples."""
    won: int
    """Examples on which the candidate is better."""
    lost: int


class Acceptance(Protocol):
    """A policy. `incumbent` and `candidate` have the same example ids.

    A policy that can tell early also has `chunk`, how many examples are tried between two looks,
    and `settled(incumbent, candidate, total)`, a verdict on part of `total` examples or None while
    it is open.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Counted:
    """How two candidates compare, example by example."""

    gain: float
    won: int
    lost: int
    total: int

    @classmethod
    def of(cls, incumbent: Outcomes, candidate: Outcomes) -> Counted:
        """Raises `ConfigurationError` unless both have the same examples, at least one."""
        if incumbent.keys() != candidate.keys() or not incumbent:
            raise ConfigurationError(
                "Candidate and incumbent must be scored on the same examples, at least one."
            )
        pairs = [(incumbent[e].score, candidate[e].score) for e in incumbent]
        # Exact sums, so that a tie is a tie in whatever order the scores were added.
        gain = math.fsum(x for before, after in pairs for x in (after, -before)) / len(pairs)
        won = sum(after > before for before, after in pairs)
        return cls(gain, won, sum(after < before for before, after in pairs), len(pairs))

    def verdict(self, accepted: bool, why: str = "") -> Verdict:
        """Return a verdict whose reason has the counts, and `why` behind them."""
        change = f"better by {self.gain:+.3f}" if accepted else f"not better ({self.gain:+.3f})"
        counted = f"{self.won} of {self.total} examples better, {self.lost} worse"
        reason = f"{change}: {counted}" + (f"; {why}" if why else "")
        return Verdict(accepted, reason, self.gain, self.won, self.lost)


@dataclass(frozen=True, slots=True)
class Better:
    """Accept when the mean is better by more than `min_gain`; ties keep the incumbent."""

    min_gain: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_gain < 1:
            raise ConfigurationError(f"min_gain must be in [0, 1), not {self.min_gain}.")

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"acceptance": "better", "min_gain": self.min_gain}

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict:
        counted = Counted.of(incumbent, candidate)
        return counted.verdict(counted.gain > self.min_gain + 1e-9)
