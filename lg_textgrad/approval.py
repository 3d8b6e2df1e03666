"""A person's word before a candidate is accepted: what they see, what they say, what is kept."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from lg_textgrad._hashing import digest
from lg_textgrad._sync import in_daemon
from lg_textgrad.acceptance import Outcomes, Verdict
from lg_textgrad.errors import InterruptedRunError
from lg_textgrad.parameter import candidate_hash
from lg_textgrad.run import Candidate
from lg_textgrad.store import Store


@dataclass(frozen=True, slots=True)
class Review:
    """A candidate that acceptance would take, for a person to look at."""

    step: int
    proposal: str
    """The candidate's hash."""
    before: Candidate
    after: Candidate
    verdict: Verdict
    score_before: float
    """Mean score in [0, 1] of the incumbent, on the examples that the candidate was tried on."""
    score_after: float
    won: Sequence[str]
    """Ids of the validation examples on which the candidate is better."""
    lost: Sequence[str]

    @classmethod
    def of(
        cls,
        step: int,
        before: Candidate,
        after: Candidate,
        verdict: Verdict,
        incumbent: Outcomes,
        candidate: Outcomes,
    ) -> Review:
        """Return the review of a candidate. `incumbent` has at least the candidate's examples."""
        scores = {e: (incumbent[e].score, candidate[e].score) for e in candidate}
        count = max(1, len(scores))
        return cls(
            step,
            candidate_hash(after),
            dict(before),
            dict(after),
            verdict,
            sum(old for old, _ in scores.values()) / count,
            sum(new for _, new in scores.values()) / count,
            tuple(e for e, (old, new) in scores.items() if new > old),
            tuple(e for e, (old, new) in scores.items() if new < old),
        )

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of the parameters that would change."""
        return tuple(n for n, text in self.after.items() if text != self.before.get(n))

    @property
    def diff(self) -> str:
        """The changes as a unified diff, prompt by prompt."""
        lines: list[str] = []
        for name in self.changed:
            old, new = self.before.get(name, ""), self.after[name]
            lines += difflib.unified_diff(
                old.split("\n"), new.split("\n"), name, name, lineterm="", n=1000
            )
        return "\n".join(lines)

    def to_plain(self) -> dict[str, Any]:
        """Return what a person needs, as plain data."""
        return {
            "step": self.step,
            "candidate": self.proposal,
            "diff": self.diff,
            "verdict": self.verdict.reason,
            "val": {"before": round(self.score_before, 4), "after": round(self.score_after, 4)},
            "won": list(self.won),
            "lost": list(self.lost),
        }


@dataclass(frozen=True, slots=True)
class Approval:
    """What the person said."""

    approved: bool
    comment: str = ""
    """Why; a refusal's is what the next proposal is told."""
    by: str = ""
    """Who, where that is known."""


class Approver(Protocol):
    """Asks a person. It may take as long as it takes."""

    async def areview(self, review: Review) -> Approval:
        """Return the person's decision.

        Raises `InterruptedRunError` when there is none to be had now; the run can be resumed.
        """
        ...


class Terminal:
    """Asks at the terminal. `show` shows a review, `ask` puts a question and returns the answer."""

    def __init__(self, show: Callable[[Review], None], ask: Callable[[str], str]) -> None:
        self._show = show
        self._ask = ask

    async def areview(self, review: Review) -> Approval:
        # A process waits at its end for the loop's own threads, which would outlive Ctrl-C.
        return await asyncio.wrap_future(in_daemon(lambda: self._decide(review)))

    def _decide(self, review: Review) -> Approval:
        self._show(review)
        try:
            while True:
                answer = self._ask("Accept this? [y/n] ").strip().lower()
                if answer in ("y", "yes"):
                    return Approval(True)
                if answer in ("n", "no"):
                    return Approval(False, self._ask("Why not? ").strip())
        except EOFError:
            raise InterruptedRunError(
                "Nobody is there to say whether a candidate is accepted; resume the run at a "
                "terminal, or let an annotation queue decide."
            ) from None


async def areviewed(approver: Approver, store: Store, review: Review) -> Verdict:
    """Return the verdict after a person has seen it: theirs, where they refuse.

    A decision is asked for once and kept in the store, so a run that goes on doesn't ask again.
    """
    before = candidate_hash(review.before)
    key = f"approval/{digest(before, review.proposal)[:32]}"
    kept = store.get_meta(key)
    if kept is None:
        approval = await approver.areview(review)
        kept = {**asdict(approval), "step": review.step, "candidate": review.proposal}
        store.put_meta(key, kept)
        store.add_event("approval", kept)
    if kept["approved"]:
        return review.verdict
    why = f": {kept['comment']}" if kept["comment"] else ""
    return replace(review.verdict, accepted=False, reason=f"refused by a reviewer{why}")


def approvals(store: Store) -> list[dict[str, Any]]:
    """Return the decisions of people in this run: `approved`, `comment`, `by`, `candidate`."""
    return [event for event in store.events() if event["kind"] == "approval"]
