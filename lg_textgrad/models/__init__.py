"""How a model is called: `OpenAI`, `LangChain`, `Local`. Each SDK is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lg_textgrad.models.base import ChatModel, Message, ModelReply, ModelRequest

if TYPE_CHECKING:
    from lg_textgrad.models.langchain import LangChain
    from lg_textgrad.models.local import Local
    from lg_textgrad.models.openai import OpenAI

__all__ = ["ChatModel", "LangChain", "Local", "Message", "ModelReply", "ModelRequest", "OpenAI"]

_LAZY = {"OpenAI": "openai", "LangChain": "langchain", "Local": "local"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"lg_textgrad.models.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
