"""What is wrong with runs, in words: failures, warnings, and weights that nothing has."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lg_textgrad.objective import Scored

logger = logging.getLogger(__name__)

MOST_WARNINGS = 5
"""So many different warnings of runs are told: some name arguments, and differ in each run."""


class Notices:
    """Says each thing that runs warned of once, and no more than a few such things."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def of_event(self, kind: str, data: Mapping[str, Any]) -> Iterator[str]:
        """Yield what a trainer's event gives reason to say."""
        if kind == "start":
            yield from of_shared(data["shared"])
        elif kind == "baseline":
            yield from self.of_all(data["scored"])
        elif kind == "run" and data["purpose"] != "baseline":  # of which all is told at its end
            run = data["scored"].run
            for warning in run.warnings:
                told = f"in the run of example {run.example.named}: {warning}"
                yield from self._once(warning, told)

    def of_all(self, scored: Sequence[Scored]) -> Iterator[str]:
        """Yield what there is to say of all runs of a scoring."""
        if failed := [s.run for s in scored if s.run.error]:
            first = failed[0]
            where = f" in {first.failed_in}" if first.failed_in else ""
            yield (
                f"{len(failed)} of {len(scored)} runs failed; that of example "
                f"{first.example.named}{where} with {first.error}"
            )
        count = Counter(warning for s in scored for warning in s.run.warnings)
        for warning, number in count.most_common():
            yield from self._once(warning, f"in {number} of {len(scored)} runs: {warning}")
        keys = {f.key for s in scored if not s.run.error for f in s.feedback}
        unknown = sorted({key for s in scored for key in s.weights} - keys)
        if keys and unknown:
            yield (
                f"no evaluator said anything of {', '.join(unknown)}, which `weights` names; the "
                f"keys are {', '.join(sorted(keys))}"
            )

    def _once(self, warning: str, text: str) -> Iterator[str]:
        if warning in self._told:
            return
        self._told.add(warning)
        if len(self._told) <= MOST_WARNINGS:
            yield text
        elif len(self._told) == MOST_WARNINGS + 1:
            yield "what else runs warn of is not told"


def of_shared(shared: Mapping[str, int]) -> Iterator[str]:
    """Yield what `Result.shared` means for the scores."""
    if count := shared.get("val"):
        yield (
            f"{count} of the val examples {_have(count)} the inputs of train examples, so what is "
            "learned by heart looks better there; take other rows for val"
        )
    if count := shared.get("test"):
        yield (
            f"{count} of the test examples {_have(count)} the inputs of train or val examples, so "
            "the test score doesn't tell how other rows fare; take other rows for test"
        )


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


class Logged:
    """The listener of a trainer that was given none: what is wrong with runs goes to the log.

    How the training goes on is logged too, at the level INFO.
    """

    def __init__(self) -> None:
        self._notices = Notices()

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        for text in self._notices.of_event(kind, data):
            logger.warning("%s", text)
        if kind == "baseline":
            logger.info("baseline: val %.3f", data["val"])
        elif kind == "step":
            logger.info("step %d of %d", data["step"], data["steps"])
        elif kind == "decision":
            stage, accepted = data["stage"], data["accepted"]
            what = name_of(data["proposal"])
            logger.info("%s on %s: %s, %s", word_for(stage, accepted), stage, what, data["reason"])
        elif kind == "test":
            logger.info("test: %s", ", ".join(f"{n} {s:.3f}" for n, s in data["scores"].items()))


def name_of(proposal: Any) -> str:
    """Return what a proposal is called: the parameters that it edits, else what made it."""
    return ", ".join(dict.fromkeys(e.parameter for e in proposal.edits)) or str(proposal.kind)


def counted(number: int, noun: str) -> str:
    """Return how many there are of what, in words: `1 call`, `1,024 calls`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def word_for(stage: str, accepted: bool) -> str:
    """Return what a decision is called: a candidate that helps on the batch is not yet accepted."""
    return {("batch", True): "helps", ("val", True): "accepted"}.get((stage, accepted), "refused")
