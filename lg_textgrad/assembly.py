"""From a configuration to the parts that a trainer is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lg_textgrad.acceptance import Acceptance, Better
from lg_textgrad.critics import AutoCritic, Critic, LLMCritic, ProvenCredit, TraceCritic
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.loading import Config
from lg_textgrad.locating import load_object
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Objective
from lg_textgrad.optim import (
    GEPA,
    MIPRO,
    FewShot,
    Optimizer,
    OutputRules,
    Portfolio,
    Promptbreeder,
    Search,
    TextualGradientDescent,
)

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "tgd": TextualGradientDescent,
    "fewshot": FewShot,
    "output_rules": OutputRules,
    "portfolio": Portfolio,
    "mipro": MIPRO,
    "gepa": GEPA,
    "promptbreeder": Promptbreeder,
}
"""What `optimizer = "..."` may name, besides `MODULE:CLASS`."""

CRITICS: Mapping[str, type[Any]] = {
    "node": LLMCritic,
    "trace": TraceCritic,
    "auto": AutoCritic,
    "proven": ProvenCredit,
}
"""What `critic = "..."` may name."""


def make_optimizer(
    name: str, model: ChatModel, seed: int, options: Mapping[str, Any]
) -> Optimizer:
    """Return the optimizer that a configuration names, with its options.

    `name` is one of `OPTIMIZERS`, or `MODULE:CLASS` for one of the user's own. Raises
    `ConfigurationError` for an unknown name or an option that the optimizer doesn't have.
    """
    made: Any = OPTIMIZERS.get(name)
    if made is None:
        if ":" not in name:
            known = ", ".join(f"'{n}'" for n in OPTIMIZERS)
            raise ConfigurationError(
                f"There is no optimizer '{name}'; there are {known}, or name one of your own as "
                "MODULE:CLASS."
            )
        made, _ = load_object(name, "optimizer")
    takes = inspect.signature(made).parameters
    unknown = [option for option in options if option not in takes]
    if unknown:
        has = sorted(n for n in takes if n not in ("model", "parameters", "seed"))
        raise ConfigurationError(
            f"The optimizer '{name}' has no option '{unknown[0]}'; it has {', '.join(has)}."
        )
    given: dict[str, Any] = {"model": model, "seed": seed}
    if "members" in options:
        options = {**options, "members": _members(name, options["members"], model, seed)}
    try:
        optimizer = made(**{n: v for n, v in given.items() if n in takes}, **options)
    except TypeError as error:
        raise ConfigurationError(f"The optimizer '{name}' cannot be made: {error}.") from None
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"'{name}' makes a {type(optimizer).__name__}, which is no lg_textgrad Optimizer."
        )
    return optimizer


def _members(name: str, members: Any, model: ChatModel, seed: int) -> list[Optimizer]:
    """Return the optimizers that another one races, each with its own defaults."""
    if not isinstance(members, list) or not members or not all(isinstance(m, str) for m in members):
        raise ConfigurationError(
            f"The option 'members' of the optimizer '{name}' is a list of names, as in "
            '["fewshot", "tgd"].'
        )
    made = [make_optimizer(member, model, seed, {}) for member in members]
    for member, optimizer in zip(members, made, strict=True):
        if isinstance(optimizer, Search):
            raise ConfigurationError(
                f"The optimizer '{member}' has a loop of its own, so it cannot be a member of "
                f"'{name}'."
            )
    return made


def make_acceptance(min_gain: float) -> Acceptance:
    """Return the acceptance policy that a configuration asks for."""
    return Better(min_gain)


def make_critic(
    config: Config, model: ChatModel, graph: TrainableGraph, objective: Objective
) -> Critic:
    """Return the critic that a configuration names, with its options.

    `proven` proves what another one says: `node`, or the one that its option `around` names. Raises
    `ConfigurationError` for an unknown name or an option that the critic doesn't have.
    """
    options = dict(config.critic_options)
    if config.critic != "proven":
        return _plain_critic(config.critic, config, model, options)
    around = options.pop("around", "node")
    if around == "proven":
        raise ConfigurationError("The critic 'proven' cannot be `around` itself.")
    _check_critic_options("proven", options, ("critic", "graph", "objective", "model"))
    inner = _plain_critic(around, config, model, {})
    return ProvenCredit(inner, graph, objective, model=model, **options)


def _plain_critic(
    name: str, config: Config, model: ChatModel, options: Mapping[str, Any]
) -> Critic:
    if name not in CRITICS:
        known = ", ".join(f"'{n}'" for n in CRITICS)
        raise ConfigurationError(f"There is no critic {name!r}; there are {known}.")
    _check_critic_options(name, options, ("model", "brief"))
    made: Any = CRITICS[name]
    brief = {"brief": config.brief_critic} if "brief" in inspect.signature(made).parameters else {}
    critic: Critic = made(model, **brief, **options)
    return critic


def _check_critic_options(
    name: str, options: Mapping[str, Any], ours: tuple[str, ...]
) -> None:
    """Raise `ConfigurationError` for what the critic doesn't take, or not as that."""
    takes = {
        n: p for n, p in inspect.signature(CRITICS[name]).parameters.items() if n not in ours
    }
    for option, value in options.items():
        if option not in takes:
            has = ", ".join([*sorted(takes), *(["around"] if name == "proven" else [])])
            raise ConfigurationError(
                f"The critic '{name}' has no option '{option}'; it has {has}."
            )
        wanted = type(takes[option].default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ConfigurationError(
                f"The option '{option}' of the critic '{name}' must be a number like "
                f"{takes[option].default}, not {value!r}."
            )
