"""A person's word before a candidate is accepted: what they see, what they say, what is kept."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from lg_textgrad._given import check_kind
from lg_textgrad._hashing import digest
from lg_textgrad._sync import in_daemon
from lg_textgrad.acceptance import Outcomes, Verdict
from lg_textgrad.changes import Change, changes_of, split_lines, without
from lg_textgrad.errors import ConfigurationError, InterruptedRunError
from lg_textgrad.optim.base import Proposal
from lg_textgrad.parameter import Edit, candidate_hash
from lg_textgrad.run import Candidate
from lg_textgrad.store import Store

NUMBERS = r"\d+(?:(?:\s*,\s*|\s+)(?:and\s+)?\d+)*"
"""A pattern: how people write which changes they mean, such as `2, 3 and 5`."""


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
    def changes(self) -> tuple[Change, ...]:
        """What would change, line by line and numbered."""
        return changes_of(self.before, self.after)

    @property
    def diff(self) -> str:
        """The changes as a unified diff, prompt by prompt."""
        lines: list[str] = []
        for name in self.changed:
            old, new = self.before.get(name, ""), self.after[name]
            lines += difflib.unified_diff(
                split_lines(old), split_lines(new), name, name, lineterm="", n=1000
            )
        return "\n".join(lines)

    def to_plain(self) -> dict[str, Any]:
        """Return what a person needs, as plain data."""
        return {
            "step": self.step,
            "candidate": self.proposal,
            "diff": self.diff,
            "changes": {str(change.number): str(change) for change in self.changes},
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
    without: tuple[int, ...] = ()
    """Numbers of the `changes` that are refused, where not all are. What is left of the candidate
    is measured like any other and, when it is still better, shown in its turn; no candidate of
    this run makes these changes again."""


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
        count = len(review.changes)
        some = ", or the numbers of what to leave out" if count > 1 else ""
        question = f"Accept this? [y/n{some}] "
        last = f", or numbers from 1 to {count}" if count > 1 else ""
        try:
            while True:
                answer = self._ask(question).strip().lower()
                if answer in ("y", "yes"):
                    return Approval(True)
                numbers = numbers_in(answer, count)
                if numbers or answer in ("n", "no"):
                    return Approval(False, self._why_not(), without=numbers)
                question = f"That is no answer; type y, n{last}: "
        except EOFError:
            raise InterruptedRunError(
                "Nobody is there to say whether a candidate is accepted; resume the run at a "
                "terminal, or let an annotation queue decide."
            ) from None

    def _why_not(self) -> str:
        """Return the reason; empty where the person ends the input instead, for they said no."""
        try:
            return self._ask("Why not? ").strip()
        except EOFError:
            return ""


def numbers_in(text: str, count: int) -> tuple[int, ...]:
    """Return the numbers of changes that a text consists of, such as `2, 3`; else none.

    There are `count` changes; a number beyond them makes it no such text.
    """
    if re.fullmatch(NUMBERS, text.strip()) is None:
        return ()
    numbers = sorted({int(number) for number in re.findall(r"\d+", text)})
    return tuple(numbers) if numbers[0] >= 1 and numbers[-1] <= count else ()


async def areviewed(
    approver: Approver | None, store: Store, review: Review, mask: Callable[[str], str] = str
) -> tuple[Verdict, tuple[Change, ...]]:
    """Return the verdict after a person has seen it, theirs where they refuse, and what of it.

    A decision is asked for once and kept in the store, so a run that goes on doesn't ask again.
    `mask` sees their comment before it is kept, shown or told to the rewriter.
    Without an approver, as where it goes on without one, what was decided before still holds.
    Raises `ConfigurationError` when the approver names changes that are not there.
    """
    before = candidate_hash(review.before)
    key = f"approval/{digest(before, review.proposal)[:32]}"
    kept = store.get_meta(key)
    if kept is None:
        if approver is None:
            return review.verdict, ()
        approval = await approver.areview(review)
        check_kind(approval, Approval, "`approve`", "return tg.Approval(True)")
        count = len(review.changes)
        if not set(approval.without) <= set(range(1, count + 1)):
            raise ConfigurationError(
                f"The approver leaves out the changes {list(approval.without)}, but this candidate "
                f"has {count}, numbered from 1; see Review.changes."
            )
        approval = replace(approval, comment=mask(approval.comment))
        kept = {**asdict(approval), "step": review.step, "candidate": review.proposal}
        store.put_meta(key, kept, event="approval")  # the report names who said what is kept
    refused = tuple(c for c in review.changes if c.number in kept.get("without", ()))
    if kept["approved"] and not refused:
        return review.verdict, ()
    what = f", who leaves out {', '.join(repr(str(c)) for c in refused)}" if refused else ""
    why = f": {kept['comment']}" if kept["comment"] else ""
    reason = f"refused by a reviewer{what}{why}"
    return replace(review.verdict, accepted=False, reason=reason), refused


def left_of(
    proposal: Proposal, base: Candidate, review: Review, refused: Sequence[Change]
) -> Proposal:
    """Return what is left of a proposal, made of `base`, when changes of it are refused.

    Of its edits, those stay that still show.
    """
    rest = without(review.before, review.after, {c.number for c in refused})
    gone = {(c.parameter, c.before) for c in refused}
    come = {(c.parameter, c.after) for c in refused}

    def undone(edit: Edit) -> bool:
        if edit.op == "delete":
            return (edit.parameter, base[edit.parameter].split("\n")[edit.line - 1]) in gone
        return (edit.parameter, edit.text) in come

    edits = tuple(e for e in proposal.edits if not undone(e))
    return replace(proposal, candidate=rest, edits=edits)


def approvals(store: Store) -> list[dict[str, Any]]:
    """Return the decisions of people in this run: `approved`, `comment`, `by`, `candidate`."""
    return [event for event in store.events() if event["kind"] == "approval"]
