"""What the command line has to do with LangSmith: options, commands, and what they print."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from lg_textgrad._render import COLOURS, Watch, print_diff
from lg_textgrad.approval import Review, Terminal
from lg_textgrad.changes import numbered
from lg_textgrad.cli.output import write_json
from lg_textgrad.cli.status import DONE, FAILED
from lg_textgrad.differences import PLACES
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.loading import Config
from lg_textgrad.objective import Objective
from lg_textgrad.redaction import Redact
from lg_textgrad.run import Example
from lg_textgrad.store import Store, run_name

if TYPE_CHECKING:
    from lg_textgrad.langsmith.promotion import Change
    from lg_textgrad.langsmith.session import Session


def add_dataset(command: argparse.ArgumentParser) -> None:
    """Add the options for what examples and evaluators LangSmith has."""
    command.add_argument(
        "--summary-evaluator", metavar="MODULE:FN", action="append",
        help="looks at all runs at once; reported, without a say",
    )  # fmt: skip
    group = command.add_argument_group("examples from LangSmith")
    group.add_argument("--dataset", metavar="NAME", help="dataset, by name or id")
    group.add_argument(
        "--dataset-splits", metavar="SPEC", help="train=a+b,val=c or shares like 60/20/20"
    )
    group.add_argument("--dataset-version", metavar="TAG", help="a tag, or else a time")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what `optimize` can do with LangSmith."""
    add_dataset(command)
    group = command.add_argument_group("reporting to LangSmith")
    group.add_argument(
        "--langsmith", action="store_true", default=None, help="experiments, feedback, own calls"
    )
    group.add_argument("--langsmith-project", metavar="NAME", help="what their names begin with")
    group.add_argument(
        "--hub", action="append", metavar="PREFIX", help="or PARAMETER=PROMPT, repeatedly"
    )
    group.add_argument("--hub-version", metavar="TAG", help="begin from this tag")
    group = command.add_argument_group("learning from production traces")
    group.add_argument("--traces", metavar="PROJECT")
    for name, meaning in (("since", "24h, 7d, or a time"), ("until", "likewise")):
        group.add_argument(f"--{name}", metavar="TIME", help=meaning)
    group.add_argument("--trace-filter", metavar="EXPR", help="in LangSmith's filter language")
    group.add_argument("--feedback", action="append", metavar="KEY<X", help="repeatable")
    group.add_argument("--feedback-range", action="append", metavar="KEY=WORST..BEST")
    group.add_argument("--queue", metavar="NAME", help="only traces in this annotation queue")
    group.add_argument("--trace-limit", type=int, metavar="N")
    group = command.add_argument_group("people")
    group.add_argument(
        "--approve", nargs="?", const="terminal", metavar="QUEUE", type=_queue,
        help="ask before each acceptance: here, or in an annotation queue of LangSmith",
    )  # fmt: skip
    group.add_argument("--approve-wait", type=float, metavar="S", help="stop when nobody decides")


def _queue(name: str) -> str:
    """Return the queue's name. What follows a bare `--approve` would be taken for one, too."""
    if name.endswith(".toml"):
        raise argparse.ArgumentTypeError(
            f"'{name}' is a configuration, not an annotation queue; name it before --approve, or "
            "write --approve terminal"
        )
    return name


def add_commands(add: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the commands that a run's directory and LangSmith are enough for."""
    for name, run, text in (
        ("promote", _promote, "move a tag on LangSmith's hub to the accepted prompts"),
        ("rollback", _rollback, "take a promotion back"),
    ):
        command = add(name, run, text)
        command.add_argument("run_dir", metavar="RUN_DIR")
        command.add_argument("--tag", default="production", help="(%(default)s)")
        command.add_argument("--yes", action="store_true", help="don't ask after showing the diff")
    sync = add("sync", _sync, "send to LangSmith what an outage has held back")
    sync.add_argument("run_dir", metavar="RUN_DIR")


def check(config: Config) -> None:
    """Raise `ConfigurationError` for what the session would stumble over after calls were paid."""
    from lg_textgrad.langsmith.session import with_settings

    if config.traces is not None:
        with_settings(asdict(config)).choice(config.traces)


def session_for(
    config: Config,
    store: Store,
    graph: TrainableGraph,
    objective: Objective,
    people: Console,
    watch: Watch,
    redact: Redact | None,
) -> Session:
    """Return what LangSmith has to do with a training; without its options that is nothing."""
    from lg_textgrad.langsmith.session import Session, with_settings

    def say(line: str) -> None:
        people.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(review: Review) -> None:
        with watch.paused():
            _show_review(people, review, (store.get_meta("details") or {}).get(PLACES, {}))

    def ask(question: str) -> str:
        with watch.paused():
            people.print(question, end="", markup=False, highlight=False)
            return _typed()

    settings = asdict(config)
    settings["langsmith_project"] = config.langsmith_project or run_name(config.out)
    return Session(
        with_settings(settings), store, graph, objective, say=say, terminal=Terminal(show, ask),
        redact=redact,
    )  # fmt: skip


def _typed() -> str:
    """Return the line that a person types. Raises `EOFError` where there is nobody.

    Not by `input`: it holds a lock without which a process that Ctrl-C stops cannot end.
    """
    try:
        source = sys.stdin.fileno()
    except (AttributeError, OSError):  # no file, as in a notebook
        return input()
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(source, 1)):
        line += byte
    if not line:
        raise EOFError
    return line.decode(sys.stdin.encoding, "replace").rstrip("\r\n")


def rows_of(config: Config, split: str) -> list[Example]:
    """Return the examples of one part of the dataset that the configuration names."""
    from lg_textgrad.langsmith.connection import LangSmith
    from lg_textgrad.langsmith.datasets import divide, read_dataset

    assert config.dataset is not None, "asked only where there is a dataset"
    with LangSmith() as langsmith:
        dataset = read_dataset(langsmith, config.dataset, config.dataset_version)
    found = divide(dataset, config.dataset_splits)[split]
    if not found:
        raise ConfigurationError(f"The dataset '{dataset.name}' has no examples for {split}.")
    return found[: getattr(config, f"{split}_rows")]


def show_told(people: Console, session: Session, told: Mapping[str, Any]) -> None:
    """Print what became of the report to LangSmith."""
    found = told.get("langsmith")
    if not found:
        return
    if "left" in found:
        people.print(
            f"LangSmith: {len(found['experiments'])} experiments, {found['left']} things not sent",
            highlight=False,
        )
    for line in session.delivery.refused:
        people.print(f"LangSmith refused {line}", markup=False, highlight=False, soft_wrap=True)
    if found.get("pushed"):
        people.print(
            f"On the hub, tagged 'candidate': {', '.join(found['pushed'])}", highlight=False
        )
    if found.get("left") or ("pushed" in found and found["pushed"] is None):
        why = f" ({session.delivery.error})" if session.delivery.error else ""
        people.print(
            f"Some of it has to wait{why}. Make up for it with: lg-textgrad sync "
            f"{shlex.quote(str(session.store.where))}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _sync(options: argparse.Namespace, people: Console) -> int:
    from lg_textgrad.langsmith.connection import LangSmith
    from lg_textgrad.langsmith.session import make_up

    _there(options.run_dir)
    with Store(options.run_dir) as store, LangSmith() as langsmith:
        told = make_up(store, langsmith)
    people.print(f"{told['sent']} sent, {told['left']} left", highlight=False)
    if told["pushed"]:
        people.print(f"On the hub: {', '.join(told['pushed'])}", highlight=False)
    for line in (*told["refused"], *([told["error"]] if told["error"] else ())):
        people.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        write_json(options, told)
    return FAILED if told["left"] or told["error"] else DONE


def _promote(options: argparse.Namespace, people: Console) -> int:
    from lg_textgrad.langsmith import promotion
    from lg_textgrad.langsmith.connection import LangSmith
    from lg_textgrad.langsmith.hub import Hub

    _there(options.run_dir)
    with Store(options.run_dir) as store, LangSmith() as langsmith:
        hub = Hub(langsmith)
        if promotion.to_push(store):
            promotion.push_accepted(store, hub, {})
        changes = promotion.plan_promotion(store, hub, options.tag)
        done = _agreed(options, people, changes, f"Move '{options.tag}' to these?")
        if done:
            promotion.promote(store, hub, options.tag, changes)
    return _told(options, people, changes, done, "promoted")


def _rollback(options: argparse.Namespace, people: Console) -> int:
    from lg_textgrad.langsmith import promotion
    from lg_textgrad.langsmith.connection import LangSmith
    from lg_textgrad.langsmith.hub import Hub

    _there(options.run_dir)
    with Store(options.run_dir) as store, LangSmith() as langsmith:
        hub = Hub(langsmith)
        changes = promotion.plan_rollback(store, hub, options.tag)
        done = _agreed(options, people, changes, f"Put '{options.tag}' back?")
        if done:
            promotion.rollback(store, hub, options.tag, changes)
    return _told(options, people, changes, done, "rolled back")


def _there(run_dir: str) -> None:
    """Raise `StoreError` for a directory without a run, rather than make one there."""
    Store(run_dir, read_only=True).close()


def _agreed(
    options: argparse.Namespace, people: Console, changes: Sequence[Change], question: str
) -> bool:
    """Show what would change, and return whether it may."""
    for change in changes:
        people.print(f"\n[bold]{escape(change.prompt)}[/bold]", highlight=False)
        print_diff(people, change.before or "", change.after or "")
    if not changes or options.yes:
        return bool(changes)
    nobody = ConfigurationError("Nobody can be asked here; give --yes to do it without a word.")
    if not sys.stdin.isatty():
        raise nobody
    people.print(f"\n{question} [y/n] ", end="", markup=False, highlight=False)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        raise nobody from None


def _told(
    options: argparse.Namespace,
    people: Console,
    changes: Sequence[Change],
    done: bool,
    word: str,
) -> int:
    if not changes:
        people.print(f"'{options.tag}' is there already; nothing to do.", markup=False)
    elif done:
        names = ", ".join(change.prompt for change in changes)
        people.print(f"\nTag '{options.tag}' {word}: {names}", markup=False, highlight=False)
    else:
        people.print("Nothing was changed.")
    if options.json:
        document = {"tag": options.tag, "done": done, "changes": [asdict(c) for c in changes]}
        write_json(options, document)
    return DONE


def _show_review(people: Console, review: Review, places: Mapping[str, str]) -> None:
    people.print(f"\n[bold]A candidate waits for your word[/bold] (step {review.step})")
    last = None
    for name, sign, text, number in numbered(review.before, review.after):
        if name != last:
            people.print(f"\n[bold]{escape(name)}[/bold]", highlight=False)
        last, colour = name, COLOURS[sign]
        margin = "" if number is None else str(number)
        for line in text.split("\n"):
            people.print(f"{margin:>3} [{colour}]{sign} {escape(line)}[/{colour}]", highlight=False)
            margin = ""
    people.print(
        f"\nval {review.score_before:.3f} → {review.score_after:.3f}; {review.verdict.reason}",
        markup=False, highlight=False,
    )  # fmt: skip
    for word, ids in (("won", review.won), ("lost", review.lost)):
        if ids:
            rows = ", ".join(f"{i} ({places[i]})" if i in places else i for i in ids)
            people.print(f"{word}: {rows}", markup=False, highlight=False)
