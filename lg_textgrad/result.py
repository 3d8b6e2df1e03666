"""What came of a run: scores before and after, prompts, lineage, cost. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lg_textgrad.run import Candidate, Usage


@dataclass(frozen=True, slots=True)
class Scores:
    """A candidate's mean scores in [0, 1]; None where it was not scored."""

    val: float | None = None
    test: float | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What the whole run cost, earlier sessions of a resumed run included."""

    usage: Usage
    by_kind: Mapping[str, Usage]
    seconds: float
    """Wall-clock time, in seconds."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """What went wrong on the way to models in this session, by kind; see `Traffic.faults`."""
    unpriced: Sequence[str] = ()
    """Names of models that were asked and whose price is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return the `spent` of `lg-textgrad optimize --json`."""
        return spent_json(self.usage, self.seconds, self.unpriced)


def spent_json(usage: Usage, seconds: float, unpriced: Sequence[str] = ()) -> dict[str, Any]:
    """Return what was spent, and what the store has saved, as JSON data."""
    usd = usage.dollars
    return {
        "calls": usage.calls,
        "cached_calls": usage.cached_calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "usd": None if usd is None else round(usd, 6),
        "seconds": round(seconds, 1),
        "saved_tokens": usage.saved_tokens,
        "saved_usd": round(usage.saved_usd, 6),
        "unpriced_calls": usage.unpriced,
        "unpriced": list(unpriced),
    }


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    run_dir: str | None
    stopped_by: str
    """`steps`, `full_marks`, `patience`, or the cap that was reached: `budget_calls`, …"""
    baseline: Scores
    best: Scores
    reference: Scores | None
    """Scores of the prompts given as reference; None when none were given."""
    before: Candidate
    after: Candidate
    candidates: Mapping[str, Mapping[str, Any]]
    """Hash -> `texts`, `parent`, `step`, `edits`."""
    lineage: Sequence[str]
    """Hashes from the baseline to the best, each accepted over the one before."""
    steps: int
    accepted: int
    rejected: int
    spent: Spent
    shared: Mapping[str, int] = field(default_factory=dict)
    """`val`, `test` -> how many of its examples have the inputs of one that training saw; those of
    `test` also the inputs of one that validation decided with. Only what has some."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that `lg-textgrad optimize --json` ends with."""
        document: dict[str, Any] = {
            "run_dir": self.run_dir,
            "stopped_by": self.stopped_by,
            "baseline": {"val": self.baseline.val, "test": self.baseline.test},
            "best": {"val": self.best.val, "test": self.best.test},
            "parameters": {
                name: {
                    "before": before,
                    "after": self.after[name],
                    "changed": before != self.after[name],
                }
                for name, before in self.before.items()
            },
            "steps": self.steps,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "spent": self.spent.to_json(),
            "faults": dict(self.spent.faults),
        }
        if self.reference is not None:
            document["reference"] = {"val": self.reference.val, "test": self.reference.test}
        if self.shared:
            document["shared"] = dict(self.shared)
        return document
