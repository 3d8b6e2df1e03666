"""Record the runs that you make yourself: `with tg.watch(graph) as watched: ...`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from langgraph.cache.base import BaseCache
from langgraph.pregel import Pregel
from langgraph.types import Command

from lg_textgrad.bindings.patching import paths_by
from lg_textgrad.data import example_from
from lg_textgrad.errors import GraphError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.parameter import Parameter, candidate_hash, observe_reads
from lg_textgrad.recording.caches import WatchedCache
from lg_textgrad.recording.callbacks import Recorder
from lg_textgrad.recording.live import as_outputs
from lg_textgrad.recording.observing import observing
from lg_textgrad.recording.structure import AnyGraph, Structure
from lg_textgrad.recording.tasks import Root
from lg_textgrad.run import Candidate, Example, Run, Usage


class Watched:
    """A graph to run, and what its runs did: `watched.graph.stream(...)`, `watched.runs`."""

    def __init__(self, trainable: TrainableGraph, graph: AnyGraph) -> None:
        self._trainable = trainable
        self.candidate: Candidate = trainable.candidate()
        """The texts that the prompts have in these runs."""
        self._recorder = Recorder(Structure.of(graph))
        observed = observing(graph, saver=lambda one: one, cache=self._watched)
        self.graph: AnyGraph = observed.with_config({"callbacks": [self._recorder]})
        """The graph, recorded. It has its own checkpointer, store, cache and configuration."""
        self.note_read = self._recorder.note_read
        self.path_of = self._recorder.path_of

    @property
    def runs(self) -> list[Run]:
        """The runs so far, in the order in which they began; those under way as far as they are.

        An invocation with `Command(resume=...)`, or with None after a breakpoint, goes on with the
        run before it in the same thread, and is one run with it.
        """
        found: list[Run] = []
        times: dict[str, int] = {}
        for roots in self._invocations():
            given = roots[0].inputs
            inputs = given if isinstance(given, Mapping) else {"__root__": given}
            example = example_from({"inputs": inputs}, "a recorded run")
            sample = times.get(example.id, 0)
            times[example.id] = sample + 1
            found.append(self._run(roots, example, sample))
        return found

    def _watched(self, cache: BaseCache[Any]) -> BaseCache[Any]:
        return WatchedCache(cache, self._recorder.cached)

    def _invocations(self) -> list[list[Root]]:
        found: list[list[Root]] = []
        threads: dict[str, list[Root]] = {}
        for root in self._recorder.roots:
            goes_on = root.inputs is None or isinstance(root.inputs, Command)
            before = threads.get(root.thread) if root.thread is not None and goes_on else None
            if before is None:
                found.append([root])
                if root.thread is not None:
                    threads[root.thread] = found[-1]
            else:
                before.append(root)
        return found

    def _run(self, roots: Sequence[Root], example: Example, sample: int) -> Run:
        last = roots[-1]
        assembled = self._recorder.assembled(roots)
        error = None if last.error is None else f"{type(last.error).__name__}: {last.error}"
        failed = (e.id for e in reversed(assembled.executions) if e.error)
        calls = [call for e in assembled.executions for call in e.model_calls]
        return Run(
            id=self._trainable.run_id(example, self.candidate, sample),
            example=example,
            candidate=candidate_hash(self.candidate),
            outputs=as_outputs(last.outputs),
            executions=assembled.executions,
            error=error,
            failed_in=next(failed, None) if error else None,
            usage=sum((call.usage for call in calls), Usage()),
            seconds=sum(max(0.0, root.ended - root.started) for root in roots),
            sample=sample,
            warnings=assembled.warnings,
            accumulating=assembled.accumulating,
            parameters=self._trainable.parameters,
        )


@contextmanager
def watch(
    graph: AnyGraph | TrainableGraph, parameters: Iterable[Parameter] = ()
) -> Iterator[Watched]:
    """Record what you do with a graph yourself, in any of its ways to run, sync or async.

        with tg.watch(graph) as watched:
            for chunk in watched.graph.stream(inputs):
                ...
        [run] = watched.runs

    The runs are yours: they go through the graph's own checkpointer and cache, nothing is isolated,
    and no model call goes through a ledger. The graph itself stays as it is, and what runs inside
    the block as `graph` is not recorded. With a `TrainableGraph`, or with `parameters`, executions
    say which prompts they read. Raises `GraphError` for a graph that runs elsewhere.
    """
    trainable = graph if isinstance(graph, TrainableGraph) else TrainableGraph(graph, parameters)
    if not isinstance(trainable.graph, Pregel):
        raise GraphError(
            "A graph on a server can only be recorded by graph.record(batch): its callbacks don't "
            "come here."
        )
    watched = Watched(trainable, trainable.graph)
    with ExitStack() as stack:
        stack.enter_context(observe_reads(watched.note_read))
        stack.enter_context(paths_by(watched.path_of))
        for binding in trainable.bindings:
            stack.enter_context(binding.scope(watched.candidate))
        yield watched
