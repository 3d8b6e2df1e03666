"""Small real parts that several tests use: chat models written by hand, and scripted critics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from lg_textgrad.critics import Blame, Critique
from lg_textgrad.models import ModelReply
from lg_textgrad.parameter import Gradient
from lg_textgrad.run import Usage
from lg_textgrad.traffic import Patience


QUICK = Patience(attempts=4, timeouts=2, first_pause=0.001, longest_pause=0.01, longest_wait=5)
"""For servers that fail in tests."""


class Chat(BaseChatModel):
    """A LangChain chat model whose answer is a function of the messages."""

    answer: Callable[[list[Any]], Any]
    temperature: float | None = None
    _calls: list[Any] = PrivateAttr(default_factory=list)

    @property
    def calls(self):
        return self._calls

    @property
    def _llm_type(self):
        return "by-hand"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self._calls.append(messages)
        said = self.answer(messages)
        if isinstance(said, Exception):
            raise said
        message = AIMessage(said) if isinstance(said, str) else said
        return ChatResult(generations=[ChatGeneration(message=message)])


class InOrder(Chat):
    """One that answers in the loop: threads would take the questions in an order of their own."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._generate(messages, stop, run_manager, **kwargs)


class ToolChat(Chat):
    """One that is told of tools."""

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, **kwargs)


def echo(messages):
    """Answer with everything that was sent, so that a test sees which prompt reached the model."""
    return " / ".join(str(m.content) for m in messages)


class Scripted:
    """A `tg.models.ChatModel` whose reply is a function of the request."""

    def __init__(self, reply, name="scripted"):
        self.reply = reply
        self.requests = []
        self.name = name

    @property
    def identity(self):
        return {"model": self.name}

    async def acall(self, request):
        self.requests.append(request)
        said = self.reply(request)
        if isinstance(said, Exception):
            raise said
        usage = Usage(1, 0, 10, 5)
        if isinstance(said, str):
            return ModelReply(said, usage=usage, finish_reason="stop")
        return ModelReply("", said, usage, "stop")


def gradient_for(request, name, change="Say more.", weight=1.0):
    return Gradient(
        name,
        request.scored.run.id,
        request.execution.id,
        change,
        weight=weight,
        example_id=request.scored.run.example.id,
        score=request.scored.score,
    )


class BlamesUpstream:
    """A critic that blames every producer, and the prompt only where nobody stands before it."""

    def __init__(self, weight=1.0, also_self=False):
        self.asked = []
        self.weight = weight
        self.also_self = also_self

    async def acriticize(self, request):
        self.asked.append(request)
        upstream = {
            p.execution: Blame(f"{request.execution.id} says: wrong", self.weight, request.execution.id)
            for p in request.producers
        }
        own = () if upstream and not self.also_self else request.parameters
        return Critique(tuple(gradient_for(request, n) for n in own), upstream)
