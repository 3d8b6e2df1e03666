"""What a construct is built with, so that one text serves sync and async, declared and discovered.

Node bodies are generators: they yield what has to be waited for (a model, a graph, a task) and are
driven with or without `await`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver

import lg_textgrad as tg
from tests.parts import Chat


def reply(messages):
    """Answer with what was sent last, in brackets of the prompt, so that it is seen in the output."""
    system = "".join(str(m.content) for m in messages if m.type == "system")
    return f"{system}({messages[-1].content})"


@dataclass(frozen=True)
class Ask:
    """A model call with the prompt of this name."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Call:
    """A graph that is called inside a node, as it stands."""

    graph: Any
    inputs: Any


@dataclass(frozen=True)
class Start:
    """A `@task` that is called; what comes back is its future."""

    task: Any
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Wait:
    future: Any


class Kit:
    """`sync` and `declared` say which column of the matrix is built."""

    def __init__(self, *, sync: bool, declared: bool) -> None:
        self.sync, self.declared = sync, declared
        self.model = Chat(answer=reply)
        self.parameters: dict[str, tg.Parameter] = {}
        self.saver = InMemorySaver()

    def prompt(self, name: str) -> SystemMessage:
        if not self.declared:
            return SystemMessage(text_of(name))
        if name not in self.parameters:
            self.parameters[name] = tg.Parameter(name, text_of(name))
        return self.parameters[name].message()

    def node(self, body: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
        """Return `body`, a generator function or a plain one, as a node or as a task's function."""
        if not inspect.isgeneratorfunction(body):
            if self.sync:
                return body

            @functools.wraps(body)
            async def awaited_plain(*args: Any, **kwargs: Any) -> Any:
                return body(*args, **kwargs)

            return awaited_plain

        @functools.wraps(body)
        def plain(*args: Any, **kwargs: Any) -> Any:
            run, sent = body(*args, **kwargs), None
            while True:
                try:
                    sent = self._do(run.send(sent))
                except StopIteration as stop:
                    return stop.value

        @functools.wraps(body)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            run, sent = body(*args, **kwargs), None
            while True:
                try:
                    sent = await self._ado(run.send(sent))
                except StopIteration as stop:
                    return stop.value

        # The body is what has the code; `wraps` would hide that this is a coroutine function.
        return plain if self.sync else awaited

    def _messages(self, asked: Ask) -> list[Any]:
        return [self.prompt(asked.prompt), HumanMessage(asked.text)]

    def _do(self, asked: Any) -> Any:
        if isinstance(asked, Ask):
            return self.model.invoke(self._messages(asked)).content
        if isinstance(asked, Call):
            return asked.graph.invoke(asked.inputs)
        if isinstance(asked, Start):
            return asked.task(*asked.args)
        return asked.future.result()

    async def _ado(self, asked: Any) -> Any:
        if isinstance(asked, Ask):
            return (await self.model.ainvoke(self._messages(asked))).content
        if isinstance(asked, Call):
            return await asked.graph.ainvoke(asked.inputs)
        if isinstance(asked, Start):
            return asked.task(*asked.args)
        return await asked.future


def text_of(prompt: str) -> str:
    return f"You are {prompt}."


@dataclass(frozen=True)
class Construct:
    """One row of the matrix."""

    title: str
    build: Callable[[Kit], Any]
    inputs: Any
    edges: str
    """One a line, `producer > consumer channel`; everything else that is expected comes with it."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Execution -> the prompt of each of its model calls; those that are not named made none."""
    executions: str = ""
    """Ids of executions that no edge names."""
    sinks: dict[str, str] = field(default_factory=dict)
    """Output key -> the executions that wrote it, where that says more than the edges."""
    metadata: dict[str, Any] = field(default_factory=dict)
    discovered_on: dict[str, Any] | None = None
    """What the prompts are discovered on, where that is not `inputs`."""
    unseen: str = ""
    """Executions whose `Send`s nothing tells of, and nodes that leave no execution at all."""
    raises: str = ""
    """How the run's error begins; empty where it must have none."""
    warns: str = ""
    """A piece of the one warning that the run must have."""
    limit: str = ""
    """Why the trace is not exact here, for the document; empty where it is."""
    warm: bool = False
    """Whether the graph has run on the inputs before."""
    watched: dict[str, Any] = field(default_factory=dict)
    """What is different where the user runs the graph, under `tg.watch`."""

    def under(self, *, watched: bool) -> Construct:
        return replace(self, watched={}, **self.watched) if watched else self

    @property
    def expected(self) -> set[tuple[str, str, str]]:
        return edges_of(self.edges)

    def ids(self) -> set[str]:
        named = {e for producer, consumer, _ in self.expected for e in (producer, consumer)}
        return named | set(self.executions.split())

    def prompt_names(self) -> list[str]:
        return list(dict.fromkeys(n for names in self.prompts.values() for n in names.split()))


def edges_of(text: str) -> set[tuple[str, str, str]]:
    found = set()
    for line in filter(None, map(str.strip, text.splitlines())):
        producer, _, consumer, channel = line.split()
        found.add((producer, consumer, channel))
    return found
