"""Example, Execution, ModelCall, Run, Feedback: data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Candidate = dict[str, str]
"""Parameter name -> text. Its hash, `candidate_hash(candidate)`, identifies it everywhere."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls cost. Add usages with `+`."""

    calls: int = 0
    """Calls that were made and answered."""
    cached_calls: int = 0
    """Calls that were answered from the store, for nothing."""
    prompt_tokens: int = 0
    """Tokens sent with calls that were made."""
    completion_tokens: int = 0
    """Tokens received from calls that were made."""
    seconds: float = 0.0
    """How long the models took for those calls, added up; concurrent calls overlap. What a call
    waited for its turn, or after a failed attempt, is not in it."""
    cached_tokens: int = 0
    """Of the prompt tokens those that the server had at hand, which cost less."""
    usd: float = 0.0
    """Dollars for those of the calls whose price is known."""
    unpriced: int = 0
    """How many of the calls have a price that nobody knows."""
    saved_tokens: int = 0
    """Tokens of calls that were answered from the store: what they cost when they were made."""
    saved_usd: float = 0.0
    """Dollars of those whose price was known."""
    saved_seconds: float = 0.0
    """How long they took when they were made."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.cached_calls + other.cached_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            self.cached_tokens + other.cached_tokens,
            self.usd + other.usd,
            self.unpriced + other.unpriced,
            self.saved_tokens + other.saved_tokens,
            self.saved_usd + other.saved_usd,
            self.saved_seconds + other.saved_seconds,
        )

    @property
    def saved(self) -> Usage:
        """What it costs to have the same again from the store: nothing, and this is saved."""
        return Usage(
            cached_calls=self.calls + self.cached_calls,
            saved_tokens=self.tokens + self.saved_tokens,
            saved_usd=self.usd + self.saved_usd,
            saved_seconds=self.seconds + self.saved_seconds,
        )

    @property
    def dollars(self) -> float | None:
        """What the calls cost; None where the price of one is not known."""
        return None if self.unpriced else self.usd

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Example:
    """One row of data, in LangSmith's shape."""

    id: str
    """Unique within its split; made from the content where the data have none."""
    inputs: Mapping[str, Any]
    """What the graph is invoked with."""
    outputs: Mapping[str, Any] | None = None
    """What evaluators get as `reference_outputs`; None where nothing is known."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    """Where a row stands that has no id of its own: `train.jsonl, line 17`."""

    @property
    def named(self) -> str:
        """What people are told: the id in quotes, and where the row stands."""
        return f"'{self.id}' ({self.place})" if self.place else f"'{self.id}'"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool inside an execution."""

    name: str
    inputs: Any
    output: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a chat model inside an execution. Values are plain JSON data."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    """What was sent: `role`, `content`, and `tool_calls` where there are any."""
    output: Mapping[str, Any] | None
    """The reply in the same form; None when the call failed."""
    tools: Sequence[Any] = ()
    """The tools that were offered."""
    usage: Usage = Usage()
    finish_reason: str | None = None
    """`stop`, `length`, `tool_calls`, …, as the server said; None when it did not."""
    error: str | None = None
    format: Mapping[str, Any] | None = None
    """The JSON schema that the reply was asked to have, empty for any JSON; None for free text."""


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of one node."""

    id: str
    """Unique within the run and the same in every repetition: `path#k`, k counting from 0."""
    namespace: str
    """LangGraph's checkpoint namespace, `sub:ID|node:ID`; joins attempts of the same task."""
    path: str
    """The node's path, `sub/writer`."""
    superstep: int
    """LangGraph's step number within the node's own graph."""
    order: int
    """Position among the run's executions by start, from 0."""
    inputs: Any
    """What the node was given, as plain data."""
    writes: Sequence[tuple[str, Any]] = ()
    """State updates as (channel, value), in order, as plain data."""
    overwrites: frozenset[str] = frozenset()
    """Channels whose accumulated value this execution replaced (`Overwrite`)."""
    sends: Sequence[str] = ()
    """Targets of `Send`s that this execution issued, in order."""
    goto: Sequence[str] = ()
    """Nodes of the next superstep that this execution chose: by a conditional edge or `Command`."""
    sent_by: str | None = None
    """The execution whose `Send` started this one; None for ordinary tasks."""
    reads: frozenset[str] | None = None
    """State keys that the node really read; None when that could not be observed."""
    parent: str | None = None
    """The execution that this one ran inside of (a subgraph's host); None at the top level."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Parameters that it read, with the text that it got."""
    model_calls: Sequence[ModelCall] = ()
    tool_calls: Sequence[ToolCall] = ()
    error: str | None = None
    """`Type: message` when the node raised; None otherwise."""
    seconds: float = 0.0
    started: float = 0.0
    """Seconds from the start of the run to its own."""
    attempts: int = 1
    """How often the node's body began: more than once after a retry or a resumed interrupt."""
    interrupts: Sequence[Any] = ()
    """What it asked for by `interrupt(...)`, in order, as plain data."""
    sources: Mapping[str, Sequence[Sequence[str]]] | None = None
    """For what a node's code started (a task, the nodes of a graph that it called): input key ->
    where the value came from, as [place, name]. A place is the id of an execution, and "" the
    node's own input; a name is a channel, and "*" all. None where channels tell, as in a graph that
    is a node."""
    passed: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Channel -> where a value came from that the node handed on as it was; under "*" what all of
    its values were made of, where that is known."""
    erased: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Channel -> executions none of whose messages were left in it after this one's write."""
    called: bool = False
    """Whether it is a `@task` that a node's code called: `inputs` are its arguments."""
    discarded: bool = False
    """Whether the node that it ran inside of began anew, so that nobody got what it wrote."""
    number: int | None = None
    """Which of the `Send`s or calls of its superstep it is, in the order of those; else None."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One evaluator's result, in LangSmith's shape."""

    key: str
    score: float | None
    """In [0, 1], higher is better; None when the evaluator only commented."""
    comment: str = ""
    reads: frozenset[str] | None = None
    """Output keys that the evaluator looked at; None when that could not be observed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation of the graph on one example under one candidate."""

    id: str
    """A hash of graph, candidate, example and sample: the same run has the same id."""
    example: Example
    candidate: str
    """The candidate's hash."""
    outputs: Mapping[str, Any] | None
    """Live objects when recorded, plain data when read back; None when the graph failed."""
    executions: Sequence[Execution] = ()
    error: str | None = None
    """`Type: message` when the run failed; None otherwise."""
    failed_in: str | None = None
    """The id of the execution that raised; None when none did."""
    usage: Usage = Usage()
    seconds: float = 0.0
    sample: int = 0
    """Which repetition of the same example under the same candidate this is, from 0."""
    warnings: Sequence[str] = ()
    """Where the recording could not be exact, by node."""
    accumulating: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Graph path ("" at the top) -> channels whose reducer keeps what every writer wrote."""
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The graph's parameters, for `loss.backward`; not stored."""
    provisional: bool = False
    """Whether a model call failed on its way for good, so that chance had a hand in how the run
    went. Such a run is not stored, nor is what evaluators say of it: a resumed run tries again."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self.example.inputs


def node_path(namespace: str) -> str:
    """Return `sub/writer` for LangGraph's `sub:ID|writer:ID`; counter segments don't count."""
    return "/".join(part.split(":")[0] for part in namespace.split("|") if not part.isdigit())
