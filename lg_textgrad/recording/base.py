"""What a trace source has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lg_textgrad.bindings.base import Binding
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.run import Candidate, Example, Execution


@dataclass(frozen=True, slots=True)
class Recorded:
    """One run of a graph, as a trace source saw it."""

    outputs: Mapping[str, Any] | None
    """The graph's output; None when it failed."""
    executions: Sequence[Execution] = ()
    error: str | None = None
    """`Type: message` when the run failed; None otherwise."""
    warnings: Sequence[str] = ()
    """Where the recording could not be exact, by node."""
    accumulating: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Graph path ("" at the top) -> channels whose reducer keeps what every writer wrote."""


class Executor(Protocol):
    """Makes runs of a graph: in this process, or elsewhere."""

    async def arun(
        self,
        example: Example,
        candidate: Candidate,
        bindings: Sequence[Binding],
        scope: BoundaryScope,
    ) -> Recorded:
        """Run the graph on `example` with `candidate` put in place by the bindings.

        What its model calls cost is added to `scope`. What a node raises is in the result; only
        what would repeat in every run is raised.
        """
        ...


class Source(Executor, Protocol):
    """Runs a graph somewhere and says what happened: live, on a server, from stored traces."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything about the graph that decides what a run does."""
        ...
