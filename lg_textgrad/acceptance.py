"""Candidate against incumbent, on the same examples."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lg_textgrad._given import check_counts, check_numbers
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.objective import Loss, Scored
from lg_textgrad.run import Example
from lg_textgrad.significance import mcnemar, paired, wealth


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one candidate did on one example."""

    score: float
    """In [0, 1], higher is better."""
    feedback: Mapping[str, float] = field(default_factory=dict)
    """Evaluator's key -> its score, the mean where several gave one."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The example's metadata."""
    tokens: int = 0
    """Of the graph's own model calls, prompt and completion together, answered from the store or
    not: what the candidate will cost in production."""
    seconds: float = 0.0
    """How long the models took for those calls, added up, when they were made: answered from the
    store or not, without what a call waited for its turn."""
    failed: bool = False
    """Whether the run ended in an error, so that no evaluator was asked."""

    @classmethod
    def of(cls, scored: Scored) -> Outcome:
        """Return what a scored run came to."""
        calls = [call for e in scored.run.executions for call in e.model_calls]
        return cls(
            scored.score,
            Loss((scored,)).by_key,
            dict(scored.run.example.metadata),
            sum(call.usage.tokens for call in calls),
            math.fsum(call.usage.seconds for call in calls),
            scored.run.error is not None,
        )

    def on(self, key: str) -> float | None:
        """Return the score of one evaluator: 0 for a run that failed, None where it gave none."""
        return 0.0 if self.failed else self.feedback.get(key)


Outcomes = Mapping[str, Outcome]
"""Example id -> outcome."""

_AT_ODDS = (
    "Sequential looks at scores alone, so it would refuse what Priced accepts for its costs; use "
    "one of the two."
)


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

    A policy that can refuse early also has `chunk`, how many examples are tried between two looks
    (None for no looks), and `settled(incumbent, candidate, total)`, a refusal after part of `total`
    examples, in an order that the seed decides, or None while it is open. One that names examples
    or metadata has `check(examples)`, which raises `ConfigurationError` where the validation
    examples don't have them.
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
    """Accept when the mean is better by more than `min_gain`; ties keep the incumbent.

    Raises `ConfigurationError` for a `min_gain` outside [0, 1).
    """

    min_gain: float = 0.0

    def __post_init__(self) -> None:
        _check_part("Better", min_gain=self.min_gain)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"acceptance": "better", "min_gain": self.min_gain}

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict:
        counted = Counted.of(incumbent, candidate)
        return counted.verdict(counted.gain > self.min_gain + 1e-9)


@dataclass(frozen=True, slots=True)
class Significant:
    """Accept when the mean is better and that is unlikely to be chance.

    `alpha` is the one-sided p-value that is low enough: McNemar's test where every score is 0 or 1,
    else a paired test over the signs of the differences. A step compares candidates that were
    picked among many, so `tries` of them share `alpha` (Bonferroni). Of a search over many
    candidates on few examples, `Better` accepts what was lucky; this does so rarely. Raises
    `ConfigurationError` for an `alpha` outside (0, 1), `tries` below 1, and a `min_gain` outside
    [0, 1).
    """

    alpha: float = 0.1
    tries: int = 1
    min_gain: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_alpha("Significant", self.alpha)
        check_counts("Significant", tries=self.tries)
        _check_part("Significant", min_gain=self.min_gain)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "acceptance": "significant",
            "alpha": self.alpha,
            "tries": self.tries,
            "min_gain": self.min_gain,
            "seed": self.seed,
        }

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict:
        counted = Counted.of(incumbent, candidate)
        p = p_value(incumbent, candidate, self.seed)
        better = counted.gain > self.min_gain + 1e-9
        return counted.verdict(better and p <= self.alpha / self.tries, f"p = {p:.3f}")


def _check_alpha(who: str, alpha: Any) -> None:
    check_numbers(who, lambda n: 0 < n < 1, "between 0 and 1", alpha=alpha)


def _check_part(who: str, **parts: Any) -> None:
    check_numbers(who, lambda n: 0 <= n < 1, "of at least 0 and below 1", **parts)


def p_value(incumbent: Outcomes, candidate: Outcomes, seed: int = 0) -> float:
    """Return how likely a mean gain like this is when there is none."""
    scores = [o.score for outcomes in (incumbent, candidate) for o in outcomes.values()]
    counted = Counted.of(incumbent, candidate)
    if all(score in (0.0, 1.0) for score in scores):
        return mcnemar(counted.won, counted.lost) if counted.won else 1.0
    return paired([candidate[e].score - incumbent[e].score for e in incumbent], seed=seed)


@dataclass(frozen=True, slots=True)
class Sequential:
    """Look every `chunk` examples, and stop when it is clear that a candidate is no better.

    Refused early: when the evidence that the gain is at most `hope` reaches 1/`alpha`, which holds
    however often one looks, or when no scores on the examples left could make the mean better.
    All else goes on to the end and is decided by `last`: what is accepted needs its score on every
    example, since the next candidate is compared with it. Raises `ConfigurationError` for a `chunk`
    below 1, an `alpha` outside (0, 1), a `hope` outside [0, 1), and beside `Priced`.
    """

    last: Acceptance = field(default_factory=Better)
    chunk: int = 8
    alpha: float = 0.05
    hope: float = 0.0
    """The smallest gain that is worth waiting for."""

    def __post_init__(self) -> None:
        check_counts("Sequential", chunk=self.chunk)
        _check_alpha("Sequential", self.alpha)
        _check_part("Sequential", hope=self.hope)
        if _has(self.last, Priced):
            raise ConfigurationError(_AT_ODDS)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "acceptance": "sequential",
            "last": dict(self.last.fingerprint),
            "chunk": self.chunk,
            "alpha": self.alpha,
            "hope": self.hope,
        }

    def settled(self, incumbent: Outcomes, candidate: Outcomes, total: int) -> Verdict | None:
        """Return a refusal after part of `total` examples; None while it is open."""
        counted = Counted.of(incumbent, candidate)
        differences = [candidate[e].score - incumbent[e].score for e in incumbent]
        seen = f"after {len(differences)} of {total} examples"
        best = math.fsum(differences) + (total - len(differences))
        if best <= 1e-9:
            return counted.verdict(False, f"no chance left {seen}")
        if wealth([-d for d in differences], -self.hope) >= 1 / self.alpha:
            return counted.verdict(False, f"clear {seen}")
        return _early(self.last, incumbent, candidate, total)

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict:
        return self.last.decide(incumbent, candidate)


@dataclass(frozen=True, slots=True)
class Guarded:
    """Accept what `inner` accepts, unless something that matters by itself gets worse.

    `anchors` are ids of examples whose score must not fall at all. `slices` are metadata keys: the
    mean over the examples that share a value must not fall by more than `tolerance`. `keys` are
    evaluators whose mean must not fall by more than that either; a run that failed counts as 0.
    Raises `ConfigurationError` for a negative `tolerance`, and one text in place of a list of them.
    """

    inner: Acceptance = field(default_factory=Better)
    anchors: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_numbers("Guarded", lambda n: n >= 0, "of at least 0", tolerance=self.tolerance)
        for name in ("anchors", "slices", "keys"):
            if isinstance(one := getattr(self, name), str):
                raise ConfigurationError(f"{name} is a list of names, not one text: ({one!r},).")

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "acceptance": "guarded",
            "inner": dict(self.inner.fingerprint),
            "anchors": list(self.anchors),
            "slices": list(self.slices),
            "keys": list(self.keys),
            "tolerance": self.tolerance,
        }

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict:
        verdict = self.inner.decide(incumbent, candidate)
        if not verdict.accepted:
            return verdict
        self._check_anchors(incumbent)
        both = (*incumbent.values(), *candidate.values())
        known = {key for outcome in both for key in outcome.feedback}
        unheard = [key for key in self.keys if key not in known]
        if unheard:
            raise ConfigurationError(
                f"No evaluator gives a score for '{unheard[0]}', which Guarded watches; the keys "
                f"are {', '.join(sorted(known)) or 'none'}."
            )
        why = self._worse(incumbent, candidate)
        if why is None:
            return verdict
        reason = f"{verdict.reason}; but {why}"
        return Verdict(False, reason, verdict.gain, verdict.won, verdict.lost)

    @property
    def chunk(self) -> int | None:
        """How often `inner` looks; None where it doesn't."""
        found = getattr(self.inner, "chunk", None)
        return None if found is None else int(found)

    def settled(self, incumbent: Outcomes, candidate: Outcomes, total: int) -> Verdict | None:
        """Return the early refusal of `inner`; None while it is open."""
        return _early(self.inner, incumbent, candidate, total)

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `ConfigurationError` for anchors and slices that the examples don't have."""
        self._check_anchors({e.id for e in examples})
        known = {key for e in examples for key in e.metadata}
        unknown = [name for name in self.slices if name not in known]
        if unknown:
            raise ConfigurationError(
                f"No validation example has '{unknown[0]}' in its metadata, so Guarded can't watch "
                f"it as a slice; there are {', '.join(sorted(known)) or 'no metadata'}."
            )

    def _check_anchors(self, ids: Container[str]) -> None:
        missing = [anchor for anchor in self.anchors if anchor not in ids]
        if missing:
            raise ConfigurationError(
                f"The anchor '{missing[0]}' is not among the validation examples; name ids of "
                "examples in the val data."
            )

    def _worse(self, incumbent: Outcomes, candidate: Outcomes) -> str | None:
        for anchor in self.anchors:
            before, after = incumbent[anchor].score, candidate[anchor].score
            if after < before - 1e-9:
                return f"the anchor '{anchor}' falls from {before:.3f} to {after:.3f}"
        for name in self.slices:
            values = {str(o.metadata[name]) for o in incumbent.values() if name in o.metadata}
            for value in sorted(values):
                rows = [e for e, o in incumbent.items() if str(o.metadata.get(name)) == value]
                change = _mean(candidate[e].score - incumbent[e].score for e in rows)
                if change < -self.tolerance - 1e-9:
                    return f"the slice {name}={value} changes by {change:+.3f}"
        for key in self.keys:
            pairs = [(o.on(key), candidate[e].on(key)) for e, o in incumbent.items()]
            change = _mean(b - a for a, b in pairs if a is not None and b is not None)
            if change < -self.tolerance - 1e-9:
                return f"'{key}' changes by {change:+.3f}"
        return None


@dataclass(frozen=True, slots=True)
class Priced:
    """Let score, tokens and seconds decide together.

    An example's utility is its score, less `per_1k_tokens` for each thousand tokens of the graph's
    own calls and `per_second` for each second in them; `inner` decides on utilities, moved into
    [0, 1] by the worse of the two candidates' costs. So a prompt that is as good and shorter wins.
    Raises `ConfigurationError` for a negative price, and beside `Sequential`.
    """

    per_1k_tokens: float = 0.0
    per_second: float = 0.0
    inner: Acceptance = field(default_factory=Better)

    def __post_init__(self) -> None:
        prices = {"per_1k_tokens": self.per_1k_tokens, "per_second": self.per_second}
        check_numbers("Priced", lambda n: 0 <= n < math.inf, "of at least 0, and finite", **prices)
        if _has(self.inner, Sequential):
            raise ConfigurationError(_AT_ODDS)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "acceptance": "priced",
            "per_1k_tokens": self.per_1k_tokens,
            "per_second": self.per_second,
            "inner": dict(self.inner.fingerprint),
        }

    def decide(self, incumbent: Outcomes, candidate: Outcomes) -> Verdict:
        highest = max(self._cost(o) for both in (incumbent, candidate) for o in both.values())

        def useful(outcomes: Outcomes) -> dict[str, Outcome]:
            return {
                e: replace(o, score=(o.score - self._cost(o) + highest) / (1 + highest))
                for e, o in outcomes.items()
            }

        counted = Counted.of(incumbent, candidate)
        verdict = self.inner.decide(useful(incumbent), useful(candidate))
        tokens = [_mean(o.tokens for o in both.values()) for both in (incumbent, candidate)]
        why = f"score {counted.gain:+.3f}, tokens a run {tokens[0]:.0f} → {tokens[1]:.0f}"
        return Verdict(
            verdict.accepted, f"{verdict.reason}; {why}", counted.gain, counted.won, counted.lost
        )

    def _cost(self, outcome: Outcome) -> float:
        return self.per_1k_tokens * outcome.tokens / 1000 + self.per_second * outcome.seconds


def check_policy(policy: Acceptance, examples: Sequence[Example]) -> None:
    """Have a policy, and those within it, look whether the validation examples fit it.

    Before anything is paid. Raises `ConfigurationError` where they don't.
    """
    for each in _within(policy):
        check = getattr(each, "check", None)
        if check is not None:
            check(examples)


def _has(policy: Acceptance, kind: type) -> bool:
    """Return whether a policy is, or wraps, one of this kind."""
    return any(isinstance(each, kind) for each in _within(policy))


def _within(policy: Acceptance) -> Iterator[Acceptance]:
    """Yield a policy and those that it wraps."""
    yield policy
    for name in ("inner", "last"):
        wrapped = getattr(policy, name, None)
        if wrapped is not None:
            yield from _within(wrapped)


def _early(
    policy: Acceptance, incumbent: Outcomes, candidate: Outcomes, total: int
) -> Verdict | None:
    """Return the refusal of a policy after part of the examples; None for one that never looks."""
    settled = getattr(policy, "settled", None)
    refused: Verdict | None = settled(incumbent, candidate, total) if settled else None
    return refused


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else 0.0
