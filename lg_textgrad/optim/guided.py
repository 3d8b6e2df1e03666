"""Worked examples of how to think: from runs that a general line of advice has helped."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lg_textgrad.demos import render_demos, split_demos
from lg_textgrad.objective import Scored
from lg_textgrad.optim.base import Attempt, Bench, Proposal
from lg_textgrad.optim.collected import Collected
from lg_textgrad.optim.fewshot import demo_of, fits, spread_out

_SIZES = (2, 4)
_MOST_LINES = 2
"""Lines of advice whose runs become examples."""


def free_replies(seen: Collected, name: str) -> bool:
    """Return whether a node may say more than the reference does, its reasons for instance.

    So where its reply becomes the graph's output and replies had full marks that are longer than
    what the reference asks for. Where the reply has to be an object, or the bare value, it may not.
    """
    form = seen.form(name)
    if form is None or form.as_json:
        return False
    for turn in seen.good.get(name, {}).values():
        asked = form.reply(turn.example.outputs or {})
        if asked and len(turn.replied.split()) > len(asked.split()):
            return True
    return False


async def with_their_own_runs(
    bench: Bench,
    advice: Sequence[Proposal],
    scored: Sequence[Scored],
    *,
    threshold: float = 1.0,
    max_tokens: int = 1200,
) -> tuple[list[Proposal], list[Attempt]]:
    """Return each line of advice with examples of what it led to, and the lines that did harm.

    `advice` are proposals that add one line to one prompt, `scored` the incumbent's runs of some
    training examples. Each is tried on the same examples, which costs their runs; the replies with
    full marks under the best two become its demonstrations. A small model seldom follows advice on
    how to think, and does what it is shown. After Zelikman et al. 2022 (STaR) and Zhang et al. 2022
    (Auto-CoT).
    """
    examples = [s.run.example for s in scored]
    found = await bench.ascore_all(examples, [p.candidate for p in advice], "batch")
    before = math.fsum(s.score for s in scored)
    gains = [(math.fsum(s.score for s in runs) - before) / len(scored) for runs in found]
    order = sorted(range(len(advice)), key=lambda n: -gains[n])
    shown: list[Proposal] = []
    for n in order:
        own = _shown(bench, advice[n], found[n], threshold, max_tokens)
        shown += own
        if len({p.edits for p in shown}) == _MOST_LINES:
            break
    harmful = [
        Attempt(advice[n], False, f"lost on the batch ({gains[n]:+.3f})", "batch", gains[n])
        for n in order
        if gains[n] < 0
    ]
    return shown, harmful


def _shown(
    bench: Bench, advice: Proposal, runs: Sequence[Scored], threshold: float, max_tokens: int
) -> list[Proposal]:
    seen = Collected()
    for scored in runs:
        seen.add(scored, threshold)
    [name] = advice.changed(bench.incumbent)
    good = seen.good.get(name, {}).values()
    spread = spread_out([demo for t in good if (demo := demo_of(t)) is not None], max_tokens)
    instruction, _ = split_demos(advice.candidate[name])
    proposals = []
    for size in _SIZES:
        text = render_demos(instruction, spread[:size])
        if len(spread) >= size and fits(bench.parameters[name], text):
            candidate = {**advice.candidate, name: text}
            proposals.append(Proposal(candidate, advice.edits, "strategy with its own runs"))
    return proposals
