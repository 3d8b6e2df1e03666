"""The pool of candidates that were tried on validation, and which of them a step starts from."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lg_textgrad.acceptance import Outcomes
from lg_textgrad.optim.base import Proposal
from lg_textgrad.run import Candidate


@dataclass(frozen=True, slots=True)
class Entry:
    """A candidate that was tried on all validation examples."""

    hash: str
    candidate: Candidate
    outcomes: Outcomes
    parents: Sequence[str] = ()
    """Hashes of the candidates that it was made from; empty for the baseline."""

    @property
    def score(self) -> float:
        """Mean score in [0, 1]."""
        return math.fsum(o.score for o in self.outcomes.values()) / len(self.outcomes)


@dataclass
class Progress:
    """Where the loop stands."""

    baseline: Candidate
    incumbent: Entry | None = None
    """The best accepted candidate; None until the baseline is scored."""
    pool: list[Entry] = field(default_factory=list)
    refused_by_people: set[str] = field(default_factory=set)
    lineage: list[str] = field(default_factory=list)
    steps: int = 0
    accepted: int = 0
    rejected: int = 0
    idle: int = 0
    decisions: int = 0

    @property
    def best(self) -> Entry:
        assert self.incumbent is not None, "the baseline is scored before anything is compared"
        return self.incumbent

    def was_tried(self, candidate: str) -> bool:
        """Whether a candidate of this hash is in the pool, or was refused by a person."""
        return candidate in self.refused_by_people or any(e.hash == candidate for e in self.pool)


class Selection(Protocol):
    """A policy. `pool` has every candidate that was tried on all validation examples, in order.

    Those that acceptance refused are among them, those that a person refused are not.

    A policy that joins candidates also has `merge(pool, incumbent, random)`, which returns a
    proposal to try beside the step's own, or None.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    def parent(self, pool: Sequence[Entry], incumbent: Entry, random: random.Random) -> Entry:
        """Return the candidate that the next step starts from."""
        ...


@dataclass(frozen=True, slots=True)
class Incumbent:
    """Every step starts from the best accepted candidate."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"selection": "incumbent"}

    def parent(
        self, pool: Sequence[Entry], incumbent: Entry, random: random.Random  # noqa: ARG002
    ) -> Entry:
        return incumbent


def merging(selection: Selection) -> Any:
    """Return the policy's `merge`, or one that never joins."""

    def never(_pool: Sequence[Entry], _incumbent: Entry, _random: random.Random) -> Proposal | None:
        return None

    return getattr(selection, "merge", never)
