"""How a model is called: `OpenAI`, `LangChain`, `Local`. Each SDK is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from lg_textgrad.models.base import ChatModel, Message, ModelReply, ModelRequest

if TYPE_CHECKING:
    from lg_textgrad.models.langchain import LangChain
    from lg_textgrad.models.local import Local
    from lg_textgrad.models.openai import OpenAI

__all__ = [
    "ChatModel",
    "LangChain",
    "Local",
    "Message",
    "ModelReply",
    "ModelRequest",
    "OpenAI",
    "wrap_openai",
]

C = TypeVar("C")

_LAZY = {"OpenAI": "openai", "LangChain": "langchain", "Local": "local"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lg_textgrad.models.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def wrap_openai(client: C) -> C:
    """Return an `openai.OpenAI` or `AsyncOpenAI` client whose calls in a graph can be tuned.

    In recorded runs its chat completions and responses are model calls of the node that makes them:
    recorded, paid for once, and with a candidate's texts in place of the prompts that `discover`
    has found. Outside of runs it does what `client` does, and shares its connections. Raises
    `ConfigurationError` for anything else.
    """
    from lg_textgrad.bindings.openai import wrap

    wrapped: C = wrap(client)
    return wrapped
