"""What a run is made of: how long it trains, what it is expected to cost, whether it may go on."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad._given import check_counts, check_critic, check_function, check_kind
from lg_textgrad._hashing import digest
from lg_textgrad.budget import Account, Budget
from lg_textgrad.critics.base import Critic, most_calls
from lg_textgrad.differences import Details, changes
from lg_textgrad.discovery import FOUND
from lg_textgrad.errors import (
    ConfigurationError,
    GraphError,
    ParameterError,
    RunMismatchError,
)
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.objective import Objective, Scored
from lg_textgrad.optim.base import Optimizer, Search, Sizes
from lg_textgrad.redaction import Redaction
from lg_textgrad.run import Candidate, Example, Run
from lg_textgrad.screening import OnBatch, Screening
from lg_textgrad.selection import Incumbent, Selection
from lg_textgrad.store import Store
from lg_textgrad.traffic import Patience, Route

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train, and on how much at a time.

    Raises `ConfigurationError` for `steps`, a `batch_size` or `patience` below 1.
    """

    steps: int = 4
    batch_size: int = 6
    seed: int = 0
    patience: int | None = None
    """Stop after this many steps in a row without an accepted candidate; None never does."""

    def __post_init__(self) -> None:
        check_counts("Schedule", steps=self.steps, batch_size=self.batch_size)
        if self.patience is not None:
            check_counts("Schedule", patience=self.patience)


def check_parts(graph: Any, objective: Any, critic: Any, optimizer: Any) -> None:
    """Raise `ConfigurationError` for a part of a trainer that is of another kind.

    An optimizer that needs no gradients may have no critic.
    """
    make = "make one: tg.TrainableGraph(graph, parameters)"
    check_kind(graph, TrainableGraph, "Trainer", make)
    check_kind(objective, Objective, "Trainer", "make one: tg.Objective([evaluator])")
    check_kind(optimizer, Optimizer, "Trainer", "make one of tg.optim")
    if critic is not None:
        check_critic(critic, "Trainer")


def check_options(
    budget: Any, schedule: Any, patience: Any, reuse: Any, approve: Any, **hooks: Any
) -> None:
    """Raise `ConfigurationError` for an option of a trainer that is of another kind; None is none.

    Before the first call: a store to reuse that is none would be met by each run by itself.
    """
    for name, given, kind, hint in (
        ("budget", budget, Budget, "make one: tg.Budget(calls=500)"),
        ("schedule", schedule, Schedule, "make one: tg.Schedule(steps=2)"),
        ("patience", patience, Patience, "make one: tg.Patience(attempts=10)"),
        ("reuse", reuse, Store, "open it: tg.Store(RUN_DIR, read_only=True)"),
    ):
        if given is not None:
            check_kind(given, kind, f"`{name}` of Trainer", hint)
    if approve is not None and (isinstance(approve, type) or not hasattr(approve, "areview")):
        raise ConfigurationError(
            "`approve` of Trainer must be an object with `areview`, such as "
            f"lg_textgrad.approval.Terminal(show, ask), not {approve!r}."
        )
    for name, hook in hooks.items():
        check_function(hook, name, "Trainer")


def check_policies(acceptance: Any, selection: Any, screening: Any) -> None:
    """Raise `ConfigurationError` for a policy that is a name or a class; None is the default.

    The first of them would be asked only after the baseline was paid for.
    """
    for name, given, method, example in (
        ("acceptance", acceptance, "decide", "tg.Significant()"),
        ("selection", selection, "parent", "tg.Pareto()"),
        ("screening", screening, "ascreen", "tg.OnBatch()"),
    ):
        if given is not None and (isinstance(given, type) or not hasattr(given, method)):
            raise ConfigurationError(
                f"`{name}` of Trainer must be an object with `{method}`, such as {example}, "
                f"not {given!r}."
            )


def match(
    store: Store, now: Mapping[str, Any], start: Candidate, details: Details | None = None
) -> None:
    """Write down what this run is made of, or refuse a store that was made of other things.

    `now` is part of the run -> its fingerprint; `details` name what in a part differs. Raises
    `RunMismatchError`.
    """
    details = details or {}
    then = store.get_meta("configuration")
    if then is None:
        store.put_meta("details", details)
        store.put_meta("start", start)
        store.put_meta("configuration", now)  # last: it says that the run has begun
        return
    before = {"prompts at the start": store.get_meta("start"), **(store.get_meta("details") or {})}
    after = {"prompts at the start": start, **details}
    changed = changes(then, now, before, after)
    if changed:
        raise RunMismatchError(
            f"The run in '{store.where}' was made with another configuration: changed are "
            f"{', '.join(changed)}. Change it back to go on, start a new run with another --out, "
            "or fork this one into a new run that takes over what it has paid for: "
            f"`lg-textgrad optimize CONFIG.toml --fork {shlex.quote(str(store.where))} --out NEW`."
        )


def estimate(
    parameters: int,
    schedule: Schedule,
    splits: Mapping[str, Sequence[Example]],
    critic: Critic | None = None,
    calls_a_run: int | None = None,
    *,
    optimizer: Optimizer | None = None,
    budget: int | None = None,
    before: int = 0,
    joins: bool = False,
    tested: int = 2,
) -> dict[str, int | None]:
    """Return upper bounds in model calls: `baseline_calls`, and `calls` of the whole run.

    A run of the graph takes `calls_a_run`, or one for each parameter where nothing is known of it.
    A search says itself what it takes. `before` are calls that the run has made already, to find
    its prompts; they are in `calls`. `joins` says that a step may also try a joined candidate,
    `tested` how many candidates are scored on the test examples. No run takes more than the
    `budget`, which is given back where it is the limit. `calls` is None where nobody can tell.
    """
    prompts = max(1, parameters)
    calls = calls_a_run or prompts
    batch = min(schedule.batch_size, len(splits["train"]))
    blame = most_calls(critic, calls)
    learning: int | None
    if isinstance(optimizer, Search):
        sizes = Sizes(prompts, len(splits["train"]), len(splits["val"]), calls, blame)
        learning = optimizer.most_calls(sizes)
    else:
        own = prompts if optimizer is None else optimizer.step_calls(prompts)
        proposals = prompts if optimizer is None else optimizer.step_proposals(prompts)
        # What helped together, and when that is refused the best alone.
        compared = min(2, proposals) + joins
        rollouts = batch * (1 + proposals) + compared * len(splits["val"])
        learning = schedule.steps * (calls * rollouts + blame * batch + own)
    tests = tested * calls * len(splits["test"])
    baseline = calls * len(splits["val"])
    bounds = [budget, None if learning is None else before + baseline + learning + tests]
    most = min((bound for bound in bounds if bound is not None), default=None)
    return {
        "baseline_calls": baseline,
        "calls": most,
        "budget_calls": budget if budget is not None and most == budget else None,
    }


def shared_inputs(splits: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    """Return how many examples of `val` and `test` have the inputs of one before them, if any do.

    Those of `test` count where training has them, or validation, which decides.
    """
    seen = {digest(e.inputs) for e in splits["train"]}
    found = {}
    for name in ("val", "test"):
        inputs = [digest(e.inputs) for e in splits[name]]
        found[name] = sum(one in seen for one in inputs)
        seen.update(inputs)
    return {name: count for name, count in found.items() if count}


def tell_unused(
    optimizer: Optimizer, schedule: Schedule, selection: Selection, screening: Screening
) -> None:
    """Warn of settings of the trainer's loop that a search, which has its own, does not heed."""
    if not isinstance(optimizer, Search):
        return
    usual = Schedule()
    unused = [
        name
        for name in ("steps", "batch_size", "patience")
        # What a search has of the same name and value was meant for it.
        if getattr(schedule, name) not in (getattr(usual, name), getattr(optimizer, name, None))
    ]
    given: tuple[tuple[str, Any, Any], ...] = (
        ("selection", selection, Incumbent()),
        ("screening", screening, OnBatch()),
    )
    unused += [name for name, one, other in given if one.fingerprint != other.fingerprint]
    if unused:
        takes = inspect.signature(type(optimizer)).parameters
        own = ", ".join(n for n in takes if n not in ("model", "parameters", "seed"))
        logger.warning(
            "The optimizer '%s' has a loop of its own, on which %s %s no effect; %s.",
            type(optimizer).__name__,
            " and ".join([", ".join(unused[:-1]), unused[-1]]) if unused[1:] else unused[0],
            "have" if unused[1:] else "has",
            f"its own options are {own}" if own else "it has no options",
        )


def check_secrets(redaction: Redaction, candidate: Candidate) -> None:
    """Raise `ParameterError` for a prompt that has a secret of the environment in it.

    Prompts are stored, exported and sent to the rewriter as they are.
    """
    for name, text in candidate.items():
        variable = redaction.variable_in(text)
        if variable is not None:
            raise ParameterError(
                f"The prompt '{name}' contains the value of the environment variable {variable}. "
                "Prompts are stored, exported and sent to the rewriter as they are, so take it out "
                "and let the node's code add it.",
                parameter=name,
            )


def told_prices(account: Account, askers: Sequence[Any]) -> dict[str, str]:
    """Return model -> its price in words, of those that are known before the first call.

    `askers` ask their `model`. Raises `ConfigurationError` under a cap in dollars for a model whose
    price is not known.
    """
    routes = [getattr(getattr(asker, "model", None), "route", None) for asker in askers]
    told = {}
    for route in dict.fromkeys(r for r in routes if isinstance(r, Route)):
        account.check_price(route)
        told[str(route)] = account.prices.said(route)
    return told


def all_failed(errors: Sequence[str | None]) -> str | None:
    """Return what to say when no run got through, given the error of each; else None."""
    first = next((error for error in errors if error), None)
    if first is None or not all(errors):
        return None
    several = f"All {len(errors)} runs failed, the first with"
    which = several if len(errors) > 1 else "The run failed:"
    return f"{which} {first.rstrip('.')}. Mend the graph, its keys or the inputs."


def check_reads(graph: TrainableGraph, scored: Sequence[Scored]) -> tuple[list[str], list[str]]:
    """Return the parameters that no run read, and the nodes that never ran.

    A node that the validation examples never reached may still read one on others. Raises
    `ParameterError` for a parameter that no node reads, `GraphError` where no run got that far.
    """
    runs = [s.run for s in scored]
    unread = graph.unread(runs)
    if not unread:
        return [], []
    failed = all_failed([r.error for r in runs])
    if failed is not None:
        raise GraphError(failed)
    ran = {e.path for r in runs for e in r.executions if not e.path.startswith("__")}
    skipped = [n for n in graph.nodes if n not in ran]
    trainable = [n for n, p in graph.parameters.items() if p.requires_grad]
    if graph.nodes and (not skipped or len(unread) == len(trainable)):
        name = unread[0]
        errors = [r.error for r in runs if r.error]
        also = f" {len(errors)} runs failed, the first with {errors[0]}." if errors else ""
        raise ParameterError(
            f"No node read the parameter '{name}' in any of {len(runs)} runs "
            f"(nodes that ran: {', '.join(sorted(ran)) or 'none'}).{also} "
            f"{_how_to_read(graph, name, runs)}",
            parameter=name,
        )
    logger.warning(
        "No validation run read %s; the nodes that never ran are %s.",
        ", ".join(unread), ", ".join(skipped) or "not known",
    )  # fmt: skip
    return unread, skipped


def _how_to_read(graph: TrainableGraph, name: str, runs: Sequence[Run]) -> str:
    """Return what to do about a parameter that no node reads."""
    holds = next(binding for binding in graph.bindings if name in binding.parameters)
    if not isinstance(holds, tuple(FOUND.values())):
        return (
            f"Read it inside the node with {name}.message() or str(...), or give it "
            "requires_grad=False."
        )
    why = next((f"{w} " for run in runs for w in run.warnings if f"'{name}'" in w), "")
    return (
        f"{why}Find the prompts anew, in another run, on more rows that differ as these do: "
        "discover_rows = 10, say, or such rows at the top of the training data."
    )
