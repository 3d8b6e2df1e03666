"""`optimize` and `resume`: the main job."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from lg_textgrad import _render, inspecting
from lg_textgrad.assembly import (
    check_critic,
    check_optimizer,
    make_acceptance,
    make_critic,
    make_optimizer,
)
from lg_textgrad.cli import langsmith, traffic
from lg_textgrad.cli.options import add_limits, add_settings
from lg_textgrad.cli.output import write_json
from lg_textgrad.cli.settings import (
    configured,
    first_rows,
    given,
    inputs_at_hand,
    made_model,
    made_objective,
    tell_doubts,
)
from lg_textgrad.cli.status import DONE
from lg_textgrad.data import read_prompts
from lg_textgrad.loading import Config, load_redact
from lg_textgrad.opening import open_graph
from lg_textgrad.planning import Schedule
from lg_textgrad.redaction import Redaction
from lg_textgrad.sessions import fork, salvage, settings_of
from lg_textgrad.store import Store
from lg_textgrad.trainer import Trainer


def add_commands(add: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the commands that train; `trains` is set where they were asked for.

    `begun` is set when `resume` can go on with it.
    """
    optimize = add("optimize", _optimize, "tune the prompts: the main job")
    add_settings(optimize)
    langsmith.add_options(optimize)
    optimize.add_argument(
        "--out", help="run directory (runs/FOLDER for FOLDER/CONFIG.toml, else runs/run) or URL"
    )
    optimize.add_argument(
        "--fork", metavar="RUN_DIR", help="take over what this run has paid for, and its settings"
    )
    resume = add("resume", _resume, "go on where a run stopped, paying for nothing twice")
    resume.add_argument("run_dir", metavar="RUN_DIR")
    resume.add_argument(
        "--salvage", action="store_true", help="first save what is good in a damaged run directory"
    )
    add_limits(resume)
    for command in (optimize, resume):
        command.set_defaults(trains=True, begun=command is resume)


def _optimize(options: argparse.Namespace, people: Console) -> int:
    config = configured(options)
    options.out = config.out
    if options.fork:
        config.check()
        taken = fork(options.fork, config.out)
        word = "reply that was" if taken == 1 else "replies that were"
        people.print(f"Took over {taken:,} {word} paid for.", highlight=False)
    return _train(config, options, people)


def _resume(options: argparse.Namespace, people: Console) -> int:
    if options.salvage:
        _render.show_salvaged(people, salvage(options.run_dir))
    config = given(settings_of(options.run_dir), options)
    config.out = options.run_dir
    return _train(config, options, people)


def _train(config: Config, options: argparse.Namespace, people: Console) -> int:
    config.check()
    langsmith.check(config)
    check_optimizer(config.optimizer, config.optimizer_options)
    acceptance = make_acceptance(config)
    redact = load_redact(config.redact)
    options.redaction = Redaction(redact)
    graph = traffic.graph_of(config)
    objective = made_objective(config)
    check_critic(config, graph, objective)
    traffic.tell_tools(people, graph)
    traffic.executor_of(config, graph)  # made once more for the graph with its prompts
    splits = {
        name: first_rows(getattr(config, name), getattr(config, f"{name}_rows"))
        for name in ("train", "val", "test")
    }
    reference = read_prompts(config.reference) if config.reference else None
    schedule = Schedule(config.steps, config.batch_size, config.seed)
    with ExitStack() as held:
        store = held.enter_context(Store(config.out))
        critic = made_model(config, config.model, people, held)
        name = config.rewriter_model or config.model
        rewriter = critic if name == config.model else made_model(config, name, people, held)
        reuse = traffic.reused(config, held)
        if not store.paid() and reuse is None:  # else the answers may be there already
            tell_doubts(people, (critic, rewriter))
        with people.status("finding the graph's prompts"):
            graph = open_graph(
                graph,
                config,
                lambda: inputs_at_hand(config, splits),
                store,
                reuse=reuse,
                redaction=options.redaction,
            )
        inspecting.tell_found(people, graph)
        held.enter_context(traffic.executor_of(config, graph))
        watch = _render.Watch(people)
        session = held.enter_context(
            langsmith.session_for(config, store, graph, objective, people, watch, redact)
        )
        splits = session.splits(splits)

        def on_event(kind: str, data: Mapping[str, Any]) -> None:
            if kind == "start":  # only now is it known that the directory is this run's
                store.put_meta("command", config.kept())
                options.begun = True
            session.on_event(kind, data)
            watch(kind, data)

        trainer = Trainer(
            graph,
            objective,
            critic=make_critic(config, critic, graph, objective),
            optimizer=session.optimizer(
                make_optimizer(config.optimizer, rewriter, config.seed, config.optimizer_options),
                config.steps,
                config.batch_size,
            ),
            acceptance=acceptance,
            budget=config.budget,
            schedule=schedule,
            store=store,
            max_concurrency=config.max_concurrency,
            patience=config.patience,
            reuse=reuse,
            on_event=on_event,
            approve=session.approver,
            redact=redact,
        )
        with watch.live():
            result = trainer.fit(
                splits["train"], splits["val"], splits["test"], reference=reference
            )
        _render.show_result(people, result)
        try:
            langsmith.show_told(people, session, session.finish())
        finally:  # the result is there and paid for, whatever the hub says to it
            if options.json:
                write_json(options, {**result.to_json(), **session.told})
    return DONE
