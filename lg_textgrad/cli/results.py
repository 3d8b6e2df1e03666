"""`show`, `diff`, `report` and `export`: what a run directory tells."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import Any

from rich.console import Console

from lg_textgrad import _render
from lg_textgrad.cli.output import console, write, write_json
from lg_textgrad.cli.status import DONE
from lg_textgrad.explaining import explain, outcome
from lg_textgrad.loading import write_prompts, write_text
from lg_textgrad.noticing import counted, word_for
from lg_textgrad.reporting import report as report_of
from lg_textgrad.store import Store, run_name


def add_commands(add: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the commands that a run directory is enough for."""
    show = add("show", _show, "show what happened in a run")
    show.add_argument("run_dir", metavar="RUN_DIR")
    diff = add("diff", _diff, "show each prompt before and after, and why each line changed")
    diff.add_argument("run_dir", metavar="RUN_DIR")
    report = add("report", _report, "write a run up as a document: what, why, who, how to undo it")
    report.add_argument("run_dir", metavar="RUN_DIR")
    report.add_argument("--out", help="Markdown file to write (standard output)")
    export = add("export", _export, "write the accepted prompts to a file")
    export.add_argument("run_dir", metavar="RUN_DIR")
    export.add_argument("--out", required=True, help="prompts file to write")
    export.add_argument(
        "--before", action="store_true", help="those that the run began with, to undo it"
    )


def _show(options: argparse.Namespace, people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        ended, decisions = store.get_meta("result") is not None, store.decisions()
        result, paid = outcome(store), store.paid()
        where = shlex.quote(str(store.where))
    for d in decisions:
        word = word_for(d["stage"], d["accepted"])
        people.print(
            f"step {d['step']}  {d['candidate'][:8]}  {word} on {d['stage']}: {d['reason']}",
            markup=False, highlight=False,
        )  # fmt: skip
    for kind, usage in paid.items():
        calls, tokens = counted(usage.calls, "call"), counted(usage.tokens, "token")
        people.print(f"{kind}: {calls}, {tokens}", highlight=False)
    for name in ("val", "test"):
        before, after = result["baseline"][name], result["best"][name]
        if before is not None:
            people.print(f"{name}: {before:.3f} → {after:.3f}", highlight=False)
    if not ended:
        people.print(
            f"The run has not ended; go on with: lg-textgrad resume {where}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if options.json:
        write_json(options, result)
    return DONE


def _diff(options: argparse.Namespace, _people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        changes = explain(store)
    if options.json:
        write_json(options, changes)
    else:
        _render.show_explained(console(options), changes)
    return DONE


def _report(options: argparse.Namespace, people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        text = report_of(store)
    if options.out:
        write_text(options.out, text)
        people.print(f"Wrote {options.out}.", markup=False)
    elif not options.json:
        write(options, text)
    if options.json:
        write_json(options, {"out": options.out, "report": text})
    return DONE


def _export(options: argparse.Namespace, people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        changes, result = explain(store), store.get_meta("result")
    which = "before" if options.before else "after"
    prompts = {name: change[which] for name, change in changes.items()}
    name = run_name(options.run_dir)
    comment = f"The accepted prompts of the run in {name}."
    if options.before:
        comment = f"The prompts that the run in {name} began with."
    elif result is not None:
        scores = [
            f"{n}: {result['baseline'][n]:.3f} -> {result['best'][n]:.3f}"
            for n in ("val", "test")
            if result["baseline"][n] is not None
        ]
        comment += "\n" + "\n".join(scores)
    write_prompts(options.out, prompts, comment)
    people.print(f"Wrote {options.out}.", markup=False)
    if options.json:
        write_json(options, {"out": options.out, "prompts": prompts})
    return DONE
