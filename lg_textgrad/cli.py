"""The command line: arguments and printing only."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from lg_textgrad import _render, cli_langsmith, inspecting
from lg_textgrad._version import __version__
from lg_textgrad.assembly import make_acceptance, make_optimizer
from lg_textgrad.budget import Budget
from lg_textgrad.critics import LLMCritic
from lg_textgrad.data import read_examples
from lg_textgrad.errors import (
    BudgetTooSmallError,
    ConfigurationError,
    EvaluatorError,
    InterruptedRunError,
    LangSmithError,
    LangSmithUnavailableError,
    LGTextGradError,
    ModelAuthenticationError,
    ModelUnreachableError,
    StoreError,
    UnknownModelError,
)
from lg_textgrad.ledger import Ledger, account_of, use_ledger
from lg_textgrad.loading import (
    Config,
    config_text,
    load_evaluators,
    load_graph,
    read_config,
    read_prompts,
    write_prompts,
    write_text,
)
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Objective
from lg_textgrad.opening import ROWS, open_graph, wants_discovery
from lg_textgrad.planning import Schedule
from lg_textgrad.recording.isolation import untraced_process
from lg_textgrad.run import Example
from lg_textgrad.sessions import fork, resumable, salvage, settings_of
from lg_textgrad.store import Store, run_name, without_password
from lg_textgrad.trainer import Trainer

DONE, FAILED, BAD_INPUT, SMALL_BUDGET, RESUMABLE = 0, 1, 2, 3, 4

_BAD_INPUT = (
    ConfigurationError,
    EvaluatorError,
    LangSmithError,
    ModelAuthenticationError,
    ModelUnreachableError,
    UnknownModelError,
    StoreError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 done, 1 failed, 2 bad configuration or input, 3 budget too small for the baseline, 4 stopped
    and resumable.
    """
    options = _parser().parse_args(arguments)
    people = Console(stderr=True)
    try:
        with untraced_process():
            return int(options.command(options, people))
    except KeyboardInterrupt:
        people.print("\n[yellow]Stopped.[/yellow]", highlight=False)
        _how_to_resume(options, people)
        return RESUMABLE
    except LGTextGradError as error:
        people.print("[red]Error:[/red]", end=" ")
        people.print(str(error), markup=False, highlight=False, soft_wrap=True)
        if isinstance(error, BudgetTooSmallError):
            return SMALL_BUDGET
        later = isinstance(error, LangSmithUnavailableError)
        if isinstance(error, _BAD_INPUT) and not later:
            return BAD_INPUT
        _how_to_resume(options, people)
        return RESUMABLE if isinstance(error, InterruptedRunError) else FAILED


def _how_to_resume(options: argparse.Namespace, people: Console) -> None:
    if options.command not in (_optimize, _resume):
        return
    run_dir = getattr(options, "run_dir", None) or options.out
    if run_dir and resumable(run_dir):
        people.print(
            "Everything that was paid for is kept. Go on with: "
            f"lg-textgrad resume {shlex.quote(without_password(run_dir))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lg-textgrad",
        description="Tune the prompts of a LangGraph agent by backpropagation through text.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument(
            "--json", action="store_true", help="one JSON object on standard output"
        )
        return command

    init = add("init", _init, "write a commented optimize.toml for a graph of yours")
    init.add_argument("graph", metavar="MODULE:GRAPH")
    init.add_argument("--out", default="optimize.toml", help="file to write (%(default)s)")
    _add_inputs(init)

    inspect = add("inspect", _inspect, "draw a graph and show each trainable prompt")
    inspect.add_argument("graph", metavar="MODULE:GRAPH")
    _add_inputs(inspect)
    inspect.add_argument("--mermaid", action="store_true", help="print the drawing as Mermaid text")

    optimize = add("optimize", _optimize, "tune the prompts: the main job")
    _add_settings(optimize)
    cli_langsmith.add_options(optimize)
    optimize.add_argument("--out", help="run directory (runs/<name of the configuration>) or URL")
    optimize.add_argument(
        "--fork", metavar="RUN_DIR", help="take over what this run has paid for, and its settings"
    )

    resume = add("resume", _resume, "go on where a run stopped, paying for nothing twice")
    resume.add_argument("run_dir", metavar="RUN_DIR")
    resume.add_argument(
        "--salvage", action="store_true", help="first save what is good in a damaged run directory"
    )
    _add_limits(resume)

    evaluate = add("evaluate", _evaluate, "score the prompts, without training")
    _add_settings(evaluate)
    cli_langsmith.add_dataset(evaluate)
    evaluate.add_argument("--prompts", help="prompts file to score instead of the graph's own")
    evaluate.add_argument("--split", default="test", choices=("train", "val", "test"))

    show = add("show", _show, "show what happened in a run")
    show.add_argument("run_dir", metavar="RUN_DIR")
    diff = add("diff", _diff, "show each prompt before and after, and why each line changed")
    diff.add_argument("run_dir", metavar="RUN_DIR")

    export = add("export", _export, "write the accepted prompts to a file")
    export.add_argument("run_dir", metavar="RUN_DIR")
    export.add_argument("--out", required=True, help="prompts file to write")

    cli_langsmith.add_commands(add)

    local = add("local", _local, "serve the embedded model on loopback, until Ctrl-C")
    local.add_argument("action", choices=["serve"])
    local.add_argument("--port", type=int, help="a free one when not given")
    return parser


def _add_inputs(command: argparse.ArgumentParser) -> None:
    """Add what a look at a graph may run it on."""
    command.add_argument(
        "--inputs", metavar="FILE", help="JSONL examples: run the graph to see who reads what"
    )
    command.add_argument(
        "--rows", type=int, metavar="N", default=ROWS, help="run the first N of them (%(default)s)"
    )
    _add_discover(command)
    command.add_argument(
        "--local", action="store_true", help="start the embedded model, for a graph that uses it"
    )


def _add_discover(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--discover", action=argparse.BooleanOptionalAction, default=None,
        help="find prompts by running the graph (only where it declares none)",
    )  # fmt: skip
    command.add_argument(
        "--discover-tools", action="store_true", default=None, help="and descriptions of tools"
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", nargs="?", metavar="CONFIG.toml")
    command.add_argument("--graph", metavar="MODULE:GRAPH")
    for name in ("train", "val", "test"):
        command.add_argument(f"--{name}", metavar="FILE", help="JSONL examples")
        command.add_argument(f"--{name}-rows", type=int, metavar="N", help="use the first N rows")
    _add_discover(command)
    command.add_argument("--discover-rows", type=int, metavar="N", help="rows of train for that")
    command.add_argument("--evaluator", metavar="MODULE:FN", action="append")
    command.add_argument("--model", help="critic and rewriter; 'local' is the embedded model")
    command.add_argument("--rewriter-model", metavar="NAME")
    command.add_argument("--base-url", metavar="URL")
    command.add_argument("--api-key-env", metavar="VAR", help="variable that holds the API key")
    command.add_argument("--optimizer", metavar="NAME", help="'tgd' (the default), or MODULE:CLASS")
    for name in ("steps", "batch-size", "seed"):
        command.add_argument(f"--{name}", type=int, metavar="N")
    _add_limits(command)
    command.add_argument(
        "--min-gain", type=float, metavar="X", help="how much better a candidate must be on val"
    )
    command.add_argument(
        "--brief-critic", action="store_true", default=None, help="for small critic models"
    )
    command.add_argument(
        "--reuse", metavar="RUN_DIR", help="take model results that this run has paid for"
    )
    command.add_argument(
        "--reference", metavar="FILE", help="prompts file to score beside the result"
    )


def _add_limits(command: argparse.ArgumentParser) -> None:
    """Add what may change between the sessions of one run."""
    for name in ("budget-calls", "budget-tokens", "max-concurrency"):
        command.add_argument(f"--{name}", type=int, metavar="N")
    command.add_argument("--budget-seconds", type=float, metavar="S")


def _given(config: Config, options: argparse.Namespace) -> Config:
    """Put the options that were given over the configuration."""
    for f in fields(Config):
        given = getattr(options, f.name, None)
        if given is not None:
            setattr(config, f.name, given)
    return config


def _config(options: argparse.Namespace) -> Config:
    forked = None if options.config else getattr(options, "fork", None)
    if forked and not options.out:
        raise ConfigurationError("A fork is a run of its own; give it a place with --out.")
    if forked:
        config = _given(settings_of(forked), options)
    else:
        config = _given(read_config(options.config) if options.config else Config(), options)
    if not config.out:
        base = Path(options.config).parent.name if options.config else ""
        config.out = str(Path("runs") / (base or "run"))
    return config


def _model(config: Config, name: str, people: Console, held: ExitStack) -> ChatModel:
    """Return the model, started when it is the embedded one."""
    from lg_textgrad import models

    if name != "local":
        key = os.environ.get(config.api_key_env)
        return models.OpenAI(
            name, base_url=config.base_url, api_key=key, api_key_env=config.api_key_env, timeout=600
        )
    from lg_textgrad.models.model_file import rich_progress

    with rich_progress(people) as progress:
        local = models.Local(progress=progress)
        local.start()
    held.callback(local.stop)
    return local


def _rows(path: str | None, limit: int | None) -> list[Example]:
    return read_examples(path)[:limit] if path else []


def _inputs(config: Config, splits: Mapping[str, list[Example]]) -> list[Example]:
    """Return examples to run the graph on before anything else is known of it."""
    if not splits["train"] and config.dataset:
        return cli_langsmith.rows_of(config, "train")
    return splits["train"] or splits["val"]


def _objective(config: Config) -> Objective:
    summary = load_evaluators(config.summary_evaluator)
    return Objective(load_evaluators(config.evaluator), weights=config.weights, summary=summary)


def _optimize(options: argparse.Namespace, people: Console) -> int:
    config = _config(options)
    options.out = config.out
    if options.fork:
        config.check()
        taken = fork(options.fork, config.out)
        people.print(f"Took over {taken} replies that were paid for.", highlight=False)
    return _train(config, options.json, people)


def _resume(options: argparse.Namespace, people: Console) -> int:
    if options.salvage:
        _render.show_salvaged(people, salvage(options.run_dir))
    config = _given(settings_of(options.run_dir), options)
    config.out = options.run_dir
    return _train(config, options.json, people)


def _train(config: Config, as_json: bool, people: Console) -> int:
    config.check()
    graph = load_graph(config.graph)
    objective = _objective(config)
    splits = {
        name: _rows(getattr(config, name), getattr(config, f"{name}_rows"))
        for name in ("train", "val", "test")
    }
    reference = read_prompts(config.reference) if config.reference else None
    budget = Budget(config.budget_calls, config.budget_tokens, config.budget_seconds)
    schedule = Schedule(config.steps, config.batch_size, config.seed)
    with ExitStack() as held:
        store = held.enter_context(Store(config.out))
        critic = _model(config, config.model, people, held)
        name = config.rewriter_model or config.model
        rewriter = critic if name == config.model else _model(config, name, people, held)
        reuse = held.enter_context(Store(config.reuse, read_only=True)) if config.reuse else None
        with people.status("finding the graph's prompts"):
            graph = open_graph(graph, config, lambda: _inputs(config, splits), store, reuse)
        inspecting.tell_found(people, graph)
        watch = _render.Watch(people)
        session = held.enter_context(
            cli_langsmith.session_for(config, store, graph, objective, people, watch)
        )
        splits = session.splits(splits)

        def on_event(kind: str, data: Mapping[str, Any]) -> None:
            if kind == "start":  # only now is it known that the directory is this run's
                store.put_meta("command", config.kept())
            session.on_event(kind, data)
            watch(kind, data)

        trainer = Trainer(
            graph,
            objective,
            critic=LLMCritic(critic, brief=config.brief_critic),
            optimizer=session.optimizer(
                make_optimizer(config.optimizer, rewriter, config.seed, config.optimizer_options),
                config.steps,
                config.batch_size,
            ),
            acceptance=make_acceptance(config.min_gain),
            budget=budget,
            schedule=schedule,
            store=store,
            max_concurrency=config.max_concurrency,
            reuse=reuse,
            on_event=on_event,
            approve=session.approver,
        )
        with watch.live():
            result = trainer.fit(
                splits["train"], splits["val"], splits["test"], reference=reference
            )
        _render.show_result(people, result)
        told = session.finish()
        cli_langsmith.show_told(people, session, told)
        if as_json:
            print(json.dumps({**result.to_json(), **told}, ensure_ascii=False, indent=2))
    return DONE


def _evaluate(options: argparse.Namespace, people: Console) -> int:
    config = _config(options)
    config.check(needs=("graph", options.split, "evaluator"))
    graph, objective = load_graph(config.graph), _objective(config)
    prompts = read_prompts(options.prompts) if options.prompts else {}
    rows = _rows(getattr(config, options.split), getattr(config, f"{options.split}_rows"))
    if not rows:
        rows = cli_langsmith.rows_of(config, options.split)
    with ExitStack() as held:
        if config.model == "local":  # the graph may rely on it
            _model(config, "local", people, held)
        store = held.enter_context(Store())
        reuse = held.enter_context(Store(config.reuse, read_only=True)) if config.reuse else None
        if prompts:  # else there is nothing to put in place of what is found
            given = {"train": _rows(config.train, config.train_rows), "val": rows}
            graph = open_graph(graph, config, lambda: _inputs(config, given), store, reuse)
            inspecting.tell_found(people, graph)
        account = account_of(store, Budget())
        ledger = Ledger(store, account, config.max_concurrency, reuse)
        with use_ledger(ledger), people.status(f"scoring {len(rows)} {options.split} examples"):
            loss = objective(graph.record(rows, prompts=prompts))
            summary = {f.key: f.score for f in objective.summarize(loss.scored)}
    _render.show_scores(people, options.split, loss, summary)
    _render.show_spent(people, account.spent, account.by_kind, account.elapsed)
    if options.json:
        document = {
            "split": options.split, "score": loss.score, "feedback": loss.by_key,
            "rows": len(rows), **({"summary": summary} if summary else {}),
        }  # fmt: skip
        print(json.dumps(document, ensure_ascii=False, indent=2))
    return DONE


def _show(options: argparse.Namespace, people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        ended, decisions = store.get_meta("result") is not None, store.decisions()
        result, paid = _render.outcome(store), store.paid()
        where = shlex.quote(str(store.where))
    for d in decisions:
        word = _render.word_for(d["stage"], d["accepted"])
        people.print(
            f"step {d['step']}  {d['candidate'][:8]}  {word} on {d['stage']}: {d['reason']}",
            markup=False, highlight=False,
        )  # fmt: skip
    for kind, usage in paid.items():
        people.print(f"{kind}: {usage.calls} calls, {usage.tokens:,} tokens", highlight=False)
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
        print(json.dumps(result, ensure_ascii=False, indent=2))
    return DONE


def _diff(options: argparse.Namespace, _people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        changes = _render.explain(store)
    if options.json:
        print(json.dumps(changes, ensure_ascii=False, indent=2))
    else:
        _render.show_explained(Console(), changes)
    return DONE


def _export(options: argparse.Namespace, people: Console) -> int:
    with Store(options.run_dir, read_only=True) as store:
        changes, result = _render.explain(store), store.get_meta("result")
    prompts = {name: change["after"] for name, change in changes.items()}
    comment = f"The accepted prompts of the run in {run_name(options.run_dir)}."
    if result is not None:
        scores = [
            f"{n}: {result['baseline'][n]:.3f} -> {result['best'][n]:.3f}"
            for n in ("val", "test")
            if result["baseline"][n] is not None
        ]
        comment += "\n" + "\n".join(scores)
    write_prompts(options.out, prompts, comment)
    people.print(f"Wrote {options.out}.", markup=False)
    if options.json:
        print(json.dumps({"out": options.out, "prompts": prompts}, ensure_ascii=False, indent=2))
    return DONE


def _inspected(
    options: argparse.Namespace, people: Console, held: ExitStack
) -> inspecting.Inspected:
    """Load the graph that is named, and run it on the first rows of `--inputs`, if there are."""
    graph = load_graph(options.graph)
    if options.discover and not options.inputs:
        raise ConfigurationError(
            "Prompts are discovered by running the graph; give --inputs FILE to run it on."
        )
    if options.rows < 1:
        raise ConfigurationError(f"--rows must be at least 1, not {options.rows}.")
    rows = _rows(options.inputs, options.rows)
    if rows and options.local:
        _model(Config(), "local", people, held)
    with people.status(f"running the graph on {len(rows)} inputs"):
        looked = inspecting.inspected(
            graph, rows, discover=options.discover, tools=bool(options.discover_tools)
        )
    inspecting.tell_failures(people, looked)
    return looked


def _inspect(options: argparse.Namespace, people: Console) -> int:
    with ExitStack() as held:
        looked = _inspected(options, people, held)
    document = inspecting.document(options.graph, looked)
    if options.json:
        print(json.dumps(document, ensure_ascii=False, indent=2))
    elif options.mermaid:
        print(document["mermaid"] or "", end="")
    else:
        inspecting.show(Console(), looked, document)
    return DONE


def _init(options: argparse.Namespace, people: Console) -> int:
    target = Path(options.out)
    if target.exists():
        raise ConfigurationError(f"'{target}' is there already; give another --out.")
    with ExitStack() as held:
        looked = _inspected(options, people, held)
    graph = looked.graph
    discover = wants_discovery(load_graph(options.graph), options.discover)
    text = config_text(target.name, options.graph, graph, discover=discover)
    write_text(target, text)
    said = inspecting.written(target.name, graph, discover=discover)
    people.print(said, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        document = {"parameters": list(graph.parameters), "discover": discover}
        print(json.dumps({"out": str(target), **document}, ensure_ascii=False))
    return DONE


def _local(options: argparse.Namespace, people: Console) -> int:
    from lg_textgrad.models.local import Local, serve
    from lg_textgrad.models.model_file import rich_progress

    def ready(local: Local) -> None:
        people.print(f"Serving {local.model} at {local.base_url} until Ctrl-C.", markup=False)
        if options.json:
            print(json.dumps({"base_url": local.base_url, "model": local.model}), flush=True)

    with rich_progress(people) as progress:
        serve(port=options.port, on_ready=ready, progress=progress)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
