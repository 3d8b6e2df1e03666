"""Selection over the Pareto front: a candidate that is best somewhere may have children."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim.base import Proposal
from lg_textgrad.selection import Entry


def front(pool: Sequence[Entry]) -> dict[str, set[str]]:
    """Return hash -> the examples on which no candidate is better, for those that matter.

    A candidate is left out when others together are best wherever it is: it adds nothing.
    """
    examples = list(pool[0].outcomes) if pool else []
    best = {e: max(entry.outcomes[e].score for entry in pool) for e in examples}
    wins = {
        entry.hash: {e for e in examples if entry.outcomes[e].score >= best[e]} for entry in pool
    }
    # The weakest goes first; of equals the later one, so that the same pool has the same front.
    order = sorted(range(len(pool)), key=lambda n: (pool[n].score, -n))
    for n in order:
        own = wins[pool[n].hash]
        others = set[str]().union(*(w for h, w in wins.items() if h != pool[n].hash))
        if own <= others:
            del wins[pool[n].hash]
    return wins


@dataclass(frozen=True, slots=True)
class Pareto:
    """Start each step from a candidate of the front, the more often the more examples it leads.

    With `merge_every` n, each nth step also tries two of the front joined: from their last common
    ancestor on, each parameter's text is that of the one that changed it; where both did, that of
    the better. After Agrawal et al. 2025 (GEPA). Cost: no model call; a joined candidate is run on
    the validation examples like any other. Raises `ConfigurationError` for `merge_every` below 0.
    """

    merge_every: int = 2

    def __post_init__(self) -> None:
        if self.merge_every < 0:
            raise ConfigurationError("merge_every must be 0 (never) or more.")

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"selection": "pareto", "merge_every": self.merge_every}

    def parent(
        self, pool: Sequence[Entry], incumbent: Entry, random: random.Random  # noqa: ARG002
    ) -> Entry:
        wins = front(pool)
        leading = [entry for entry in pool if entry.hash in wins]
        return random.choices(leading, [len(wins[e.hash]) for e in leading])[0]

    def merge(
        self, pool: Sequence[Entry], incumbent: Entry, random: random.Random  # noqa: ARG002
    ) -> Proposal | None:
        """Return two candidates of the front joined; None when it is not the time, or none fit."""
        if not self.merge_every or random.random() >= 1 / self.merge_every:
            return None
        wins = front(pool)
        leading = [entry for entry in pool if entry.hash in wins]
        pairs = [(a, b) for n, a in enumerate(leading) for b in leading[n + 1 :]]
        random.shuffle(pairs)
        known = {entry.hash for entry in pool}
        for one, other in pairs:
            ancestor = _common_ancestor(one, other, pool)
            if ancestor is None:
                continue
            better, worse = sorted((one, other), key=lambda e: -e.score)
            candidate = {
                name: better.candidate[name]
                if better.candidate[name] != text
                else worse.candidate[name]
                for name, text in ancestor.candidate.items()
            }
            proposal = Proposal(
                candidate,
                (),
                f"merge of {one.hash[:8]} and {other.hash[:8]}",
                (better.hash, worse.hash),
            )
            if proposal.hash not in known:
                return proposal
        return None


def _ancestors(entry: Entry, by_hash: Mapping[str, Entry]) -> list[Entry]:
    """Return the entry and all that it was made from, the nearest first."""
    found, waiting = dict[str, Entry](), [entry]
    while waiting:
        one = waiting.pop(0)
        if one.hash not in found:
            found[one.hash] = one
            waiting.extend(by_hash[h] for h in one.parents if h in by_hash)
    return list(found.values())


def _common_ancestor(one: Entry, other: Entry, pool: Sequence[Entry]) -> Entry | None:
    """Return the nearest candidate that both were made from; None where one made the other."""
    by_hash = {entry.hash: entry for entry in pool}
    lines = [_ancestors(entry, by_hash) for entry in (one, other)]
    if one in lines[1] or other in lines[0]:
        return None
    theirs = {entry.hash for entry in lines[1]}
    return next((entry for entry in lines[0] if entry.hash in theirs), None)
