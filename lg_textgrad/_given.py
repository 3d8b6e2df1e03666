"""Whether a part was given what it works with; where not, the error says how to make it so."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lg_textgrad.errors import ConfigurationError


def check_model(model: Any, who: str) -> None:
    """Raise `ConfigurationError` for what `who` cannot ask: most often a model without its wrap."""
    if hasattr(model, "acall") and hasattr(model, "identity") and not isinstance(model, type):
        return
    if any(base.__name__ == "BaseChatModel" for base in type(model).__mro__):
        hint = "wrap it: tg.models.LangChain(chat_model)"
    elif isinstance(model, str):
        hint = f"name it so: tg.models.OpenAI({model!r})"
    else:
        hint = "give tg.models.OpenAI(NAME), tg.models.LangChain(chat_model) or tg.models.Local()"
    raise _refused(who, "a model of tg.models", model, hint)


def check_critic(critic: Any, who: str) -> None:
    """Raise `ConfigurationError` for what cannot judge: most often a model."""
    judges = hasattr(critic, "acriticize") or hasattr(critic, "acriticize_run")
    if not judges or isinstance(critic, type):
        raise _refused(who, "a critic", critic, "a model judges as tg.LLMCritic(model)")


def check_kind(given: Any, kind: type[Any], who: str, hint: str) -> None:
    """Raise `ConfigurationError` for what is no `kind`."""
    if not isinstance(given, kind):
        raise _refused(who, _article(kind.__name__), given, hint)


def check_counts(who: str, least: int = 1, /, **counts: Any) -> None:
    """Raise `ConfigurationError` for what is no whole number of at least `least`."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or count < least:
            raise ConfigurationError(
                f"`{name}` of {who} must be a whole number of at least {least}, not {count!r}."
            )


def check_numbers(
    who: str, fits: Callable[[Any], bool], words: str, /, **numbers: Any
) -> None:
    """Raise `ConfigurationError` for what is no number, or does not fit, which `words` say."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or isinstance(number, bool) or not fits(number):
            raise ConfigurationError(
                f"`{name}` of {who} must be a number {words}, not {number!r}."
            )


def check_store(store: Any, who: str) -> None:
    """Raise `ConfigurationError` for what no results can be kept in; None is in memory."""
    if store is not None and not (isinstance(store, (str, Path)) or hasattr(store, "get_meta")):
        raise _refused(who, "a run directory, a URL or a Store", store, "leave it out to keep none")


def check_function(given: Any, name: str, who: str) -> None:
    """Raise `ConfigurationError` for what cannot be called; None is none."""
    if given is not None and not callable(given):
        raise ConfigurationError(
            f"`{name}` of {who} must be a function, not {_article(type(given).__name__)}; "
            "`MODULE:NAME` is for the command line and files."
        )


def _refused(who: str, wanted: str, given: Any, hint: str) -> ConfigurationError:
    name = given.__name__ if isinstance(given, type) else type(given).__name__
    found = f"the class {name}" if isinstance(given, type) else _article(name)
    return ConfigurationError(f"{who} needs {wanted}, not {found}; {hint}.")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
