"""From a configuration to the parts that a trainer is made of."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lg_textgrad.acceptance import (
    Acceptance,
    Better,
    Guarded,
    Priced,
    Sequential,
    Significant,
)
from lg_textgrad.critics import (
    AutoCritic,
    Critic,
    LLMCritic,
    ProvenCredit,
    SelfRewardingCritic,
    TraceCritic,
)
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.loading import Config
from lg_textgrad.locating import load_object
from lg_textgrad.models.base import ChatModel, ModelReply, ModelRequest
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
    Strategies,
    TextualGradientDescent,
)

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "tgd": TextualGradientDescent,
    "fewshot": FewShot,
    "output_rules": OutputRules,
    "strategies": Strategies,
    "portfolio": Portfolio,
    "mipro": MIPRO,
    "gepa": GEPA,
    "promptbreeder": Promptbreeder,
}
"""What `optimizer = "..."` may name, besides `MODULE:CLASS`."""

_OURS = ("model", "parameters", "seed")
"""What an optimizer takes that is no option of a configuration."""

# Type of an option's default -> what is expected, in words, and what fits.
_KINDS: Mapping[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda v: isinstance(v, bool)),
    int: ("a whole number", lambda v: type(v) is int),
    float: ("a number", lambda v: type(v) in (int, float)),
    str: ("a text", lambda v: isinstance(v, str)),
    tuple: ("a list", lambda v: isinstance(v, Sequence) and not isinstance(v, str)),
}
CRITICS: Mapping[str, type[Any]] = {
    "node": LLMCritic,
    "trace": TraceCritic,
    "auto": AutoCritic,
    "proven": ProvenCredit,
    "self_rewarding": SelfRewardingCritic,
}
"""What `critic = "..."` may name."""

ACCEPTANCE: Mapping[str, type[Any]] = {
    "better": Better,
    "significant": Significant,
    "sequential": Sequential,
    "guarded": Guarded,
    "priced": Priced,
}
"""What `acceptance = "..."` may name."""

_WITHIN = ("inner", "last")
"""Options of a policy that are another policy."""


def make_optimizer(
    name: str, model: ChatModel, seed: int, options: Mapping[str, Any]
) -> Optimizer:
    """Return the optimizer that a configuration names, with its options.

    `name` is one of `OPTIMIZERS`, or `MODULE:CLASS` for one of the user's own. Raises
    `ConfigurationError` for an unknown name, an option that the optimizer doesn't have or whose
    value doesn't fit, and `MissingExtraError` for a package that it needs.
    """
    made = _named(name)
    takes = inspect.signature(made).parameters
    _check_options(name, takes, options)
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


def check_optimizer(name: str, options: Mapping[str, Any]) -> None:
    """Raise what `make_optimizer` would, before a model is started or anything is paid for.

    One of the user's own is not made, since only they know what that does.
    """
    if name in OPTIMIZERS:
        make_optimizer(name, _NoModel(), 0, options)
    else:
        _check_options(name, inspect.signature(_named(name)).parameters, options)


def read_options(given: Iterable[str]) -> dict[str, Any]:
    """Return the options in `NAME=VALUE`s. A value is TOML, or else a text as it stands.

    Raises `ConfigurationError` where there is no name or no value.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ConfigurationError(
                f"An option is written NAME=VALUE, as in --optimizer-option beam=3, not {text!r}."
            )
        try:
            options[name.strip()] = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            options[name.strip()] = value.strip()
    return options


class _NoModel:
    """Stands for a model where nothing is asked."""

    identity: Mapping[str, Any] = {}

    async def acall(self, request: ModelRequest) -> ModelReply:
        raise ConfigurationError(f"Nothing answers here: {request}.")


def _named(name: str) -> Any:
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if ":" not in name:
        known = ", ".join(f"'{n}'" for n in OPTIMIZERS)
        raise ConfigurationError(
            f"There is no optimizer '{name}'; there are {known}, or name one of your own as "
            "MODULE:CLASS."
        )
    made, _ = load_object(name, "optimizer")
    return made


def _check_options(
    name: str,
    takes: Mapping[str, inspect.Parameter],
    options: Mapping[str, Any],
    what: str = "optimizer",
    more: Iterable[str] = (),
) -> None:
    """Raise `ConfigurationError` for an option that is not taken, or not as that.

    `takes` are the parameters of the class, `more` the names of options that are not among them.
    """
    for option, value in options.items():
        if option not in takes or option in _OURS:
            has = ", ".join([*sorted(n for n in takes if n not in _OURS), *more])
            told = f"it has {has}" if has else "it has none"
            raise ConfigurationError(f"The {what} '{name}' has no option '{option}'; {told}.")
        default = takes[option].default
        kind, fits = _KINDS.get(type(default), ("", lambda _: True))
        if not fits(value):
            example = list(default) if isinstance(default, tuple) else default
            raise ConfigurationError(
                f"The option '{option}' of the {what} '{name}' must be {kind} like {example!r}, "
                f"not {value!r}."
            )


def make_acceptance(config: Config) -> Acceptance:
    """Return the acceptance policy that a configuration names, with its options.

    A policy within another one is given by its name, `better` unless it is, and has `min_gain` and
    else its defaults. Raises `ConfigurationError` for an unknown name or an option that the policy
    doesn't have.
    """
    return _policy(config.acceptance, config, config.acceptance_options)


def _policy(name: Any, config: Config, options: Mapping[str, Any]) -> Acceptance:
    if not isinstance(name, str) or name not in ACCEPTANCE:
        known = ", ".join(f"'{n}'" for n in ACCEPTANCE)
        raise ConfigurationError(f"There is no acceptance policy {name!r}; there are {known}.")
    takes = inspect.signature(ACCEPTANCE[name]).parameters
    own = {n: p for n, p in takes.items() if n != "min_gain"}  # a setting of its own
    _check_options(name, own, options, "acceptance policy")
    ours = {"min_gain": config.min_gain, "seed": config.seed}
    given: dict[str, Any] = {n: v for n, v in ours.items() if n in takes}
    given |= {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    for within in (n for n in _WITHIN if n in takes):
        given[within] = _policy(options.get(within, "better"), config, {})
    policy: Acceptance = ACCEPTANCE[name](**given)
    return policy


def make_critic(
    config: Config, model: ChatModel, graph: TrainableGraph, objective: Objective
) -> Critic:
    """Return the critic that a configuration names, with its options.

    `proven` proves what another one says: `node`, or the one that its option `around` names;
    `self_rewarding` lets `node` rewrite its own instruction. Raises `ConfigurationError` for an
    unknown name or an option that the critic doesn't have.
    """
    options = dict(config.critic_options)
    if config.critic == "self_rewarding":
        _check_critic_options(config.critic, options, ("critic", "locked", "seed"))
        learning = LLMCritic(model, brief=config.brief_critic)
        return SelfRewardingCritic(learning, seed=config.seed, **options)
    if config.critic != "proven":
        return _plain_critic(config.critic, config, model, options)
    around = options.pop("around", "node")
    if around == "proven":
        raise ConfigurationError("The critic 'proven' cannot be `around` itself.")
    if around == "self_rewarding":
        raise ConfigurationError("The critic 'proven' cannot be `around` one that learns.")
    _check_critic_options("proven", options, ("critic", "graph", "objective", "model"))
    inner = _plain_critic(around, config, model, {})
    return ProvenCredit(inner, graph, objective, model=model, **options)


def check_critic(config: Config, graph: TrainableGraph, objective: Objective) -> None:
    """Raise what `make_critic` would, before a model is started or anything is paid for."""
    make_critic(config, _NoModel(), graph, objective)


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
    more = ["around"] if name == "proven" else []
    _check_options(name, takes, options, "critic", more)
