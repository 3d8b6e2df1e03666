"""From what was given on the command line to a configuration, and to its parts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from lg_textgrad.assembly import read_options
from lg_textgrad.cli import langsmith
from lg_textgrad.data import read_examples
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.loading import Config, load_evaluators, read_config
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Objective
from lg_textgrad.run import Example
from lg_textgrad.sessions import settings_of


def configured(options: argparse.Namespace) -> Config:
    forked = None if options.config else getattr(options, "fork", None)
    if forked and not options.out:
        raise ConfigurationError("A fork is a run of its own; give it a place with --out.")
    if forked:
        config = given(settings_of(forked), options)
    else:
        config = given(read_config(options.config) if options.config else Config(), options)
    if not config.out:
        base = Path(options.config).parent.name if options.config else ""
        config.out = str(Path("runs") / (base or "run"))
    config.check_together()
    return config


def given(config: Config, options: argparse.Namespace) -> Config:
    """Put the options that were given over the configuration."""
    if getattr(options, "optimizer", None) not in (None, config.optimizer):
        config.optimizer_options = {}  # those are the other one's
    if getattr(options, "acceptance", None) not in (None, config.acceptance):
        config.acceptance_options = {}
    config.optimizer_options |= read_options(getattr(options, "optimizer_option", None) or ())
    for f in fields(Config):
        given = getattr(options, f.name, None)
        if given is not None:
            if f.name == "tools" and isinstance(config.tools, dict):
                given = {**config.tools, "default": given}
            setattr(config, f.name, given)
    return config


def made_model(config: Config, name: str, people: Console, held: ExitStack) -> ChatModel:
    """Return the model, started when it is the embedded one."""
    from lg_textgrad import models

    if name != "local":
        key = os.environ.get(config.api_key_env)
        return models.OpenAI(
            name, base_url=config.base_url, api_key=key, api_key_env=config.api_key_env,
            timeout=config.call_timeout,
        )
    from lg_textgrad.models.model_file import rich_progress

    with rich_progress(people) as progress:
        local = models.Local(progress=progress)
        local.start()
    held.callback(local.stop)
    return local


def tell_doubts(people: Console, models: Iterable[ChatModel]) -> None:
    """Say, before anything is paid for, which model its server may not know.

    Raises `ModelUnreachableError` when nobody answers there.
    """
    for model in {id(model): model for model in models}.values():
        doubt = getattr(model, "doubt", None)
        if doubt is not None and (said := doubt()) is not None:
            people.print(said, markup=False, highlight=False, soft_wrap=True)


def first_rows(path: str | None, limit: int | None) -> list[Example]:
    return read_examples(path)[:limit] if path else []


def inputs_at_hand(config: Config, splits: Mapping[str, list[Example]]) -> list[Example]:
    """Return examples to run the graph on before anything else is known of it."""
    if not splits["train"] and config.dataset:
        return langsmith.rows_of(config, "train")
    return splits["train"] or splits["val"]


def made_objective(config: Config) -> Objective:
    summary = load_evaluators(config.summary_evaluator)
    return Objective(load_evaluators(config.evaluator), weights=config.weights, summary=summary)
