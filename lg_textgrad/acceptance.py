"""Candidate against incumbent, on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lg_textgrad.errors import ConfigurationError


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
    """A policy. `incumbent` and `candidate` map the same example ids to scores in [0, 1]."""

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    def decide(self, incumbent: Mapping[str, float], candidate: Mapping[str, float]) -> Verdict: ...


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

    def decide(self, incumbent: Mapping[str, float], candidate: Mapping[str, float]) -> Verdict:
        if incumbent.keys() != candidate.keys() or not incumbent:
            raise ConfigurationError(
                "Candidate and incumbent must be scored on the same examples, at least one."
            )
        # Exact sums, so that a tie is a tie in whatever order the scores were added.
        gain = math.fsum(candidate[e] - incumbent[e] for e in incumbent) / len(incumbent)
        won = sum(candidate[e] > incumbent[e] for e in incumbent)
        lost = sum(candidate[e] < incumbent[e] for e in incumbent)
        accepted = gain > self.min_gain + 1e-9
        counted = f"{won} of {len(incumbent)} examples better, {lost} worse"
        change = f"better by {gain:+.3f}" if accepted else f"not better ({gain:+.3f})"
        reason = f"{change}: {counted}"
        return Verdict(accepted, reason, gain, won, lost)
