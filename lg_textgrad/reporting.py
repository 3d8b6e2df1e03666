"""A run as a document that a person can sign: what changed, why, who agreed, how to undo it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lg_textgrad._version import __version__
from lg_textgrad.approval import approvals
from lg_textgrad.changes import lines_of
from lg_textgrad.explaining import explain, outcome
from lg_textgrad.noticing import counted, of_shared, word_for
from lg_textgrad.store import Store, run_name

_SHORT = 16
"""Characters of a hash that are enough to tell one from another."""


def report(store: Store) -> str:
    """Return what a run did as a Markdown document, also of one that has not ended."""
    result, changes = outcome(store), explain(store)
    parts = (
        _summary(store, result, changes),
        _prompts(changes),
        _decisions(store.decisions()),
        _people(approvals(store)),
        _made_of(store),
        _before(changes),
    )
    return "\n".join(line for part in parts for line in part)


def _summary(
    store: Store, result: Mapping[str, Any], changes: Mapping[str, Any]
) -> Iterator[str]:
    details: Mapping[str, Any] = store.get_meta("details") or {}
    reference = result.get("reference") or {}
    changed = [name for name, change in changes.items() if change["before"] != change["after"]]
    yield f"# What tuning changed: {_inline(run_name(store.where or 'a run in memory'))}"
    yield ""
    ended = result["stopped_by"]
    yield (
        f"Changed prompts: {len(changed)} of {len(changes)}. Steps: {result['steps']}. Candidates "
        f"accepted: {result['accepted']}, refused: {result['rejected']}. "
        + (f"Ended by: {ended}." if ended else "The run has not ended.")
    )
    yield ""
    yield from _table(
        ("score", "examples", "before", "after", "hand-written reference"),
        [
            (name, len(details.get(f"{name} data", ())), result["baseline"][name],
             result["best"][name], reference.get(name))
            for name in ("val", "test")
            if result["baseline"][name] is not None
        ],
    )  # fmt: skip
    spent = result["spent"]
    money = "" if not spent.get("usd") else f", {spent['usd']:.4f} dollars"
    yield (
        f"Paid for: {counted(spent['calls'], 'model call')}, {spent['prompt_tokens']} + "
        f"{spent['completion_tokens']} tokens{money}. {_decided(result)}"
    )
    yield ""


def _decided(result: Mapping[str, Any]) -> str:
    """Return what the examples of each score had to do with the training."""
    if told := list(of_shared(result.get("shared") or {})):
        return f"Validation decided. Note that {'; '.join(told)}."
    return "Validation decided; test examples decided nothing and were in no training."


def _prompts(changes: Mapping[str, Any]) -> Iterator[str]:
    yield "## Prompts"
    yield ""
    for name, change in changes.items():
        yield f"### {_inline(name)}"
        yield ""
        if change["before"] == change["after"]:
            yield "Unchanged."
            yield ""
            continue
        lines = lines_of(change["before"], change["after"])
        yield from _fenced("\n".join(f"{sign} {text}" for sign, text in lines), "diff")
        for line in change["lines"]:
            yield from _why(line)
        yield ""


def _why(line: Mapping[str, Any]) -> Iterator[str]:
    """Yield why one line changed. An exchanged one has its reasons with the new line."""
    reasons = [r for r in line["because"] if line["op"] == "+" or r["op"] == "delete"]
    if not reasons:
        return
    yield f"- {_code(line['op'] + ' ' + line['text'])}"
    for reason in reasons:
        why = f"; {_inline(reason['why'])}" if reason["why"] else ""
        yield (
            f"  - step {reason['step']}: validation {reason['gain']:+.3f}, better on "
            f"{reason['won']}, worse on {reason['lost']}{why}"
        )
        for g in reason["gradients"]:
            yield (
                f"  - example {_code(g['example'])}{_at(g['place'])}, execution "
                f"{_code(g['execution'])}, run {_code(g['run'][:_SHORT])}, weight "
                f"{g['weight']:.2f}: {_inline(g['change'])}"
                + (f" Evidence: {_code(g['evidence'])}" if g["evidence"] else "")
            )


def _at(place: str) -> str:
    return f" ({_inline(place)})" if place else ""


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Decisions"
    yield ""
    yield from _table(
        ("step", "candidate", "on", "decision", "gain", "reason"),
        [
            (d["step"], _code(d["candidate"][:8]), d["stage"], word_for(d["stage"], d["accepted"]),
             f"{d['gain']:+.3f}", _inline(d["reason"]))
            for d in decisions
        ],
    )  # fmt: skip


def _people(told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## People"
    yield ""
    if not told:
        yield "Nobody was asked before an acceptance (`approve`)."
        yield ""
        return
    yield from _table(
        ("when", "who", "candidate", "said", "comment"),
        [
            (datetime.fromtimestamp(t["at"], UTC).strftime("%Y-%m-%d %H:%M UTC"),
             _inline(t["by"] or "at the terminal"), _code(t["candidate"][:8]), _said(t),
             _inline(t["comment"]))
            for t in told
        ],
    )  # fmt: skip


def _said(told: Mapping[str, Any]) -> str:
    if left_out := told.get("without"):
        return f"without {', '.join(map(str, left_out))}"
    return "yes" if told["approved"] else "no"


def _made_of(store: Store) -> Iterator[str]:
    """Yield the hashes by which the same run can be told from another one."""
    configuration: Mapping[str, Any] = store.get_meta("configuration") or {}
    yield "## What the run was made of"
    yield ""
    yield f"The parts of the run, by their hashes; lg_textgrad {__version__} wrote this down."
    yield ""
    yield from _table(
        ("part", "what"),
        [(_inline(part), _code(_told(value))) for part, value in configuration.items()],
    )


def _told(value: Any) -> str:
    """Return a fingerprint in a few words: names and numbers, and hashes."""
    if isinstance(value, Mapping):
        named = (f"{name}={_told(part)}" for name, part in value.items() if part is not None)
        text = ", ".join(named)
        return text if len(text) <= 200 else f"{text[:200]} …"
    return "–" if value is None else str(value)


def _before(changes: Mapping[str, Any]) -> Iterator[str]:
    yield "## To undo it"
    yield ""
    yield (
        "These are the prompts before, in full; `lg-textgrad export RUN_DIR --before --out FILE` "
        "writes them as a prompts file. `lg-textgrad rollback RUN_DIR` puts LangSmith's hub back."
    )
    yield ""
    for name, change in changes.items():
        if change["before"] != change["after"]:
            yield f"### {_inline(name)}"
            yield ""
            yield from _fenced(change["before"])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    if not rows:
        yield "None."
        yield ""
        return
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"
    yield ""


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _fenced(text: str, language: str = "") -> Iterator[str]:
    """Yield a block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}{language}"
    yield text
    yield fence
    yield ""


def _code(text: str) -> str:
    """Return text in one line, as it is, which nothing in it can end."""
    text = " ".join(text.split())
    if not text:
        return "–"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * (longest + 1)
    return f"{marks} {text} {marks}" if longest else f"`{text}`"


def _inline(text: str) -> str:
    """Return text in one line that Markdown takes for nothing but text."""
    return re.sub(r"([\\`*_{}\[\]<>#~!])", r"\\\1", " ".join(text.split()))
