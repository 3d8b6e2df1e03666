"""What a run is made of: how long it trains, what it is expected to cost, whether it may go on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad.errors import ConfigurationError, ParameterError, RunMismatchError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.objective import Scored
from lg_textgrad.run import Candidate, Example
from lg_textgrad.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train, and on how much at a time."""

    steps: int = 4
    batch_size: int = 6
    seed: int = 0
    patience: int | None = None
    """Stop after this many steps in a row without an accepted candidate; None never does."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}.")


def match(store: Store, now: Mapping[str, Any], start: Candidate) -> None:
    """Write down what this run is made of, or refuse a store that was made of other things.

    `now` is part of the run -> its fingerprint. Raises `RunMismatchError`.
    """
    then = store.get_meta("configuration")
    if then is None:
        store.put_meta("configuration", now)
        store.put_meta("start", start)
        return
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        raise RunMismatchError(
            f"The run directory '{store.directory}' was made with another configuration: "
            f"changed are {', '.join(changed)}. Change it back to go on, or start a new run "
            "with another --out."
        )


def estimate(
    parameters: int, schedule: Schedule, splits: Mapping[str, Sequence[Example]]
) -> dict[str, int]:
    """Return upper bounds in model calls, taking one call for each parameter and run."""
    nodes = max(1, parameters)
    batch = min(schedule.batch_size, len(splits["train"]))
    rollouts = batch * (2 + nodes) + len(splits["val"])
    step = nodes * rollouts + nodes * batch + nodes
    tests = 2 * nodes * len(splits["test"])
    baseline = nodes * len(splits["val"])
    return {
        "baseline_calls": baseline,
        "calls": baseline + schedule.steps * step + tests,
    }


def check_reads(graph: TrainableGraph, scored: Sequence[Scored]) -> tuple[list[str], list[str]]:
    """Return the parameters that no run read, and the nodes that never ran.

    A node that the validation examples never reached may still read one on others. Raises
    `ParameterError` for a parameter that no node reads.
    """
    runs = [s.run for s in scored]
    unread = graph.unread(runs)
    if not unread:
        return [], []
    ran = {e.path for r in runs for e in r.executions if not e.path.startswith("__")}
    skipped = [n for n in graph.nodes if n not in ran]
    trainable = [n for n, p in graph.parameters.items() if p.requires_grad]
    failed = [r.error for r in runs if r.error]
    hopeless = len(unread) == len(trainable) or len(failed) == len(runs)
    if graph.nodes and (not skipped or hopeless):
        name = unread[0]
        also = f" {len(failed)} runs failed, the first with {failed[0]}." if failed else ""
        raise ParameterError(
            f"No node read the parameter '{name}' in any of {len(runs)} runs "
            f"(nodes that ran: {', '.join(sorted(ran)) or 'none'}).{also} Read it inside the "
            f"node with {name}.message() or str(...), or give it requires_grad=False.",
            parameter=name,
        )
    logger.warning(
        "No validation run read %s; the nodes that never ran are %s.",
        ", ".join(unread), ", ".join(skipped) or "not known",
    )  # fmt: skip
    return unread, skipped
