"""What the command line shows people: progress while a run goes on, and what came of it."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from lg_textgrad.changes import lines_of
from lg_textgrad.noticing import Notices, counted, name_of, word_for
from lg_textgrad.objective import Loss
from lg_textgrad.result import Result, Spent
from lg_textgrad.run import Usage
from lg_textgrad.store import Salvaged

COLOURS = {"+": "green", "-": "red", " ": "dim"}
"""Of the lines of a diff."""
_FAULTS = {"violation": "against the schema asked for", "truncated": "cut off"}
"""Kinds of faults that people know by other words."""


class Watch:
    """Shows a run's events: a line for what is settled, a live line for what goes on."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status: Status | None = None
        self._account: Any = None
        self._faults: Mapping[str, int] = {}
        self._started = time.monotonic()
        self._best: float | None = None
        self._calls = 0
        self._where = "starting"
        self._work: tuple[float, float] = (0.0, 0.0)
        self._notices = Notices()
        self._refused = 0

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the live line while the run goes on, where there is a terminal to show it on."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status("starting") as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the live line away, while a person is asked something."""
        if self._status is not None:
            self._status.stop()
        try:
            yield
        finally:
            if self._status is not None:
                self._status.start()

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        for told in self._notices.of_event(kind, data):
            self._say(f"[yellow]{escape(told)}[/yellow]")
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(**data)
        self._refresh()

    def _say(self, text: str) -> None:
        spent = time.monotonic() - self._started
        self.console.print(
            f"[dim]{int(spent // 60):3d}:{int(spent % 60):02d}[/dim]  {text}", highlight=False
        )

    def _refresh(self) -> None:
        if self._status is None:
            return
        parts = [self._where]
        if self._best is not None:
            parts.append(f"val {self._best:.3f}")
        if self._account is not None:
            spent = self._account.spent
            parts.append(f"{counted(spent.calls, 'call')}, {spent.cached_calls:,} cached")
            parts[-1] += f", {counted(spent.tokens, 'token')}"
            if self._faults:
                parts.append(counted(sum(self._faults.values()), "fault"))
            if (left := self._left()) is not None:
                parts.append(f"at most {int(left // 60)} min {int(left % 60):02d} s left")
        self._status.update(escape(" · ".join(parts)))

    def _left(self) -> float | None:
        """Seconds left if every remaining call of the estimate were made at the pace so far."""
        done, total = self._account.spent.calls, self._work[1]
        elapsed = time.monotonic() - self._started
        if not total or done < 8 or done >= total:
            return None
        return float(elapsed / done * (total - done))

    def _on_start(
        self,
        resumed: bool,
        estimate: Mapping[str, int | None],
        parameters: list[str],
        account: Any,
        faults: Mapping[str, int],
        prices: Mapping[str, str],
        **_: Any,
    ) -> None:
        self._account, self._faults, self._calls = account, faults, estimate["calls"] or 0
        self._work = (0.0, float(self._calls))
        word = "going on" if resumed else "starting"
        self._say(
            f"{word} with {', '.join(escape(p) for p in parameters)}; {_bounds(estimate)}"
        )
        for model, price in prices.items():
            self._say(f"[dim]{escape(model)}: {price}[/dim]")

    def _on_run(self, purpose: str, done: int, total: int, **_: Any) -> None:
        self._where = f"{purpose} {done}/{total}"
        if self._status is None and done == total:
            self._say(f"[dim]{escape(purpose)}: {counted(total, 'run')} done[/dim]")

    def _on_baseline(self, val: float, **_: Any) -> None:
        self._best = val
        spent = self._account.spent
        cost = ""
        if spent.usd and spent.dollars is not None:
            cost = f", ${spent.usd:.4f}"
            if self._calls:
                whole = spent.usd / spent.calls * max(self._calls, spent.calls)
                cost += f"; the whole run at most about ${whole:.2f} at this rate"
        self._say(f"baseline: val [bold]{val:.3f}[/bold]{cost}")

    def _on_step(self, step: int, steps: int) -> None:
        self._say(f"[bold]step {step} of {steps}[/bold]")

    def _on_batch(self, step: int, score: float) -> None:
        self._where = f"step {step}: asking the critic"
        self._say(f"batch: {score:.3f}")

    def _on_gradients(self, step: int, gradients: list[Any]) -> None:
        self._where = f"step {step}: rewriting"
        by_name: dict[str, int] = {}
        for gradient in (g for g in gradients if g.change):
            by_name[gradient.parameter] = by_name.get(gradient.parameter, 0) + 1
        self._say(
            "gradients: " + (", ".join(f"{escape(n)} {c}" for n, c in by_name.items()) or "none")
        )

    def _on_proposals(self, proposals: list[Any], refused: list[str], **_: Any) -> None:
        # All so far come each time; without them a step that tries nothing would say nothing.
        new, self._refused = Counter(refused[self._refused :]), len(refused)
        for why, times in new.items():
            again = f" ({times} times)" if times > 1 else ""
            self._say(f"[yellow]not tried[/yellow]: {escape(why)}{again}")
        for proposal in proposals:
            for edit in proposal.edits:
                sign = {"add": "+", "replace": "~", "delete": "-"}[edit.op]
                self._say(f"  {escape(edit.parameter)} {sign} [dim]{escape(edit.text)}[/dim]")

    def _on_decision(
        self, proposal: Any, stage: str, accepted: bool, reason: str, **more: Any
    ) -> None:
        colour = "green" if accepted else "yellow"
        word = word_for(stage, accepted)
        self._say(
            f"[{colour}]{word}[/{colour}] on {stage}: {escape(name_of(proposal))} "
            f"({proposal.hash[:8]}), {escape(reason)}"
        )
        if stage == "val" and accepted:
            self._best = more["val_after"]

    def _on_finishing(self, calls: int) -> None:
        kept = "it costs" if calls == 1 else "they cost"
        self._say(
            f"waiting for {counted(calls, 'call')} under way, to keep what {kept} (Ctrl-C: don't)"
        )

    def _on_test(self, scores: Mapping[str, float]) -> None:
        self._say("test: " + ", ".join(f"{n} {s:.3f}" for n, s in scores.items()))


def _bounds(estimate: Mapping[str, int | None]) -> str:
    """Return what the run takes at most, in words; a search need not know it."""
    baseline = f"{estimate['baseline_calls']} of them for the baseline"
    if estimate["calls"] is None:
        return f"calls are not capped, about {baseline}"
    if estimate["budget_calls"] is not None:
        within = f"within the budget of {counted(estimate['calls'], 'call')}"
        if (estimate["baseline_calls"] or 0) > estimate["budget_calls"]:
            return f"{within}, though the baseline takes about {estimate['baseline_calls']}"
        return f"{within}, about {baseline}"
    return f"at most about {counted(estimate['calls'], 'call')}, {baseline}"


def show_result(console: Console, result: Result) -> None:
    """Print scores before and after, the accepted prompts, and what it cost."""

    def score(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    console.print()
    console.print(f"[bold]val[/bold]   {score(result.baseline.val)} → {score(result.best.val)}")
    if result.baseline.test is not None:
        line = f"[bold]test[/bold]  {score(result.baseline.test)} → {score(result.best.test)}"
        if result.reference is not None:
            line += f"   (hand-written reference: {score(result.reference.test)})"
        seen = "rows that training never saw"
        if count := result.shared.get("test"):
            seen = f"{count} of its rows are in train or val"
        console.print(f"{line}   [dim]{seen}[/dim]")
    for name, before in result.before.items():
        if before != result.after[name]:
            console.print(f"\n[bold]{escape(name)}[/bold]")
            print_diff(console, before, result.after[name])
    console.print()
    show_spent(console, result.spent)
    console.print(
        f"{counted(result.steps, 'step')}, {result.accepted} accepted, "
        f"{result.rejected} rejected; stopped by {result.stopped_by}"
    )
    decided = result.accepted or result.rejected
    if result.steps and not decided and not result.stopped_by.startswith("budget"):
        console.print("Nothing was proposed that could be tried.")
    if result.run_dir is not None:
        console.print(
            f"Look closer with: lg-textgrad diff {shlex.quote(result.run_dir)}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def show_scores(
    console: Console, split: str, loss: Loss, summary: Mapping[str, float | None]
) -> None:
    """Print the score of a split, the mean of each feedback key, and what is said of all rows."""
    rows = counted(len(loss.scored), "example")
    console.print(f"[bold]{split}[/bold]  {loss.score:.3f}  ({rows})")
    for key, mean in loss.by_key.items():
        console.print(f"  {escape(key)}: {mean:.3f}", highlight=False)
    for key, score in summary.items():
        console.print(f"  all of them, {escape(key)}: {score}", highlight=False)
    for told in Notices().of_all(loss.scored):
        console.print(f"  {told}", markup=False, highlight=False, soft_wrap=True)


def show_salvaged(console: Console, salvaged: Salvaged) -> None:
    """Print how many rows of each table were saved."""
    rows = ", ".join(f"{table} {count}" for table, count in salvaged.rows.items() if count)
    end = counted(salvaged.missing, "byte")
    gone = f", and the file's end is missing, {end}" if salvaged.missing else ""
    console.print(
        f"Saved {rows}; {counted(salvaged.damaged, 'row')} "
        f"{'was' if salvaged.damaged == 1 else 'were'} damaged{gone}. The old file is kept as "
        f"{salvaged.aside}.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def show_spent(console: Console, spent: Spent) -> None:
    """Print what was paid, what the store has saved, and what went wrong on the way."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    usage = spent.usage
    say(
        f"spent: {counted(usage.calls, 'call')}, {usage.prompt_tokens:,} + "
        f"{usage.completion_tokens:,} tokens{_dollars(usage)}, {spent.seconds:.0f} s"
    )
    for kind, part in sorted(spent.by_kind.items()):
        of_kind = f"{counted(part.calls, 'call')}, {counted(part.tokens, 'token')}"
        say(f"  [dim]{kind}: {of_kind}{_dollars(part)}[/dim]")
    if usage.cached_calls:
        saved = f", ${usage.saved_usd:.4f}" if usage.saved_usd else ""
        say(
            f"saved: {counted(usage.cached_calls, 'call')}, "
            f"{counted(usage.saved_tokens, 'token')}{saved} answered from the store "
            "in place of paid for again"
        )
    if spent.unpriced:
        say(f"price unknown: {escape(', '.join(spent.unpriced))}")
    if spent.faults:
        faults = sorted(spent.faults.items())
        told = [f"{n} {_FAULTS.get(kind, kind.replace('_', ' '))}" for kind, n in faults]
        say(f"faults of the models or on the way to them: {', '.join(told)}")


def _dollars(usage: Usage) -> str:
    """Return `, $0.0123`; with what is not in it where not every call has a known price."""
    if usage.unpriced:
        known = f", ${usage.usd:.4f} and" if usage.usd else ","
        return f"{known} {counted(usage.unpriced, 'call')} of unknown price"
    return f", ${usage.usd:.4f}" if usage.usd else ""


def print_diff(console: Console, before: str, after: str) -> None:
    """Print both texts as one, each line marked as gone, new or as it was."""
    for sign, text in lines_of(before, after):
        colour = COLOURS[sign]
        console.print(f"[{colour}]{escape(f'{sign} {text}')}[/{colour}]", highlight=False)


def show_explained(console: Console, changes: Mapping[str, Any]) -> None:
    for name, change in changes.items():
        if change["before"] == change["after"]:
            console.print(f"[bold]{escape(name)}[/bold] unchanged")
            continue
        console.print(f"\n[bold]{escape(name)}[/bold]")
        reasons = {(line["op"], line["text"]): line["because"] for line in change["lines"]}
        for sign, text in lines_of(change["before"], change["after"]):
            colour = COLOURS[sign]
            console.print(f"[{colour}]{escape(f'{sign} {text}')}[/{colour}]", highlight=False)
            for reason in reasons.get((sign, text), ()):
                if sign == "-" and reason["op"] != "delete":
                    continue  # it stands under the new line
                console.print(
                    f"      [dim]step {reason['step']}: val {reason['gain']:+.3f}, "
                    f"{counted(reason['won'], 'example')} won, {reason['lost']} lost[/dim]",
                    highlight=False,
                )
                if reason["why"]:
                    why = " ".join(reason["why"].split())
                    console.print(f"      [dim]← {escape(why)}[/dim]", highlight=False)
                for g in reason["gradients"]:
                    example = f"{g['example']} ({g['place']})" if g["place"] else g["example"]
                    console.print(
                        f"      [dim]← {escape(example)}, {escape(g['execution'])}, "
                        f"weight {g['weight']:.2f}: {escape(g['change'])}[/dim]",
                        highlight=False,
                    )
