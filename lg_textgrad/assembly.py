"""From a configuration to the parts that a trainer is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lg_textgrad.acceptance import Acceptance, Better
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.locating import load_object
from lg_textgrad.models.base import ChatModel
from lg_textgrad.optim import FewShot, Optimizer, OutputRules, Portfolio, TextualGradientDescent

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "tgd": TextualGradientDescent,
    "fewshot": FewShot,
    "output_rules": OutputRules,
    "portfolio": Portfolio,
}
"""What `optimizer = "..."` may name, besides `MODULE:CLASS`."""


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
    try:
        optimizer = made(**{n: v for n, v in given.items() if n in takes}, **options)
    except TypeError as error:
        raise ConfigurationError(f"The optimizer '{name}' cannot be made: {error}.") from None
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"'{name}' makes a {type(optimizer).__name__}, which is no lg_textgrad Optimizer."
        )
    return optimizer


def make_acceptance(min_gain: float) -> Acceptance:
    """Return the acceptance policy that a configuration asks for."""
    return Better(min_gain)
