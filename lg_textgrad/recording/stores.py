"""A run's own view of the graph's store: it reads what is there, and keeps what it writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import Any

from langgraph.store.base import BaseStore, GetOp, ListNamespacesOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from lg_textgrad.bindings.nesting import note_written
from lg_textgrad.copies import anew


class RunStore(BaseStore):
    """Behaves as the store that it is made from, in which nothing is written or deleted."""

    def __init__(self, store: BaseStore, *, told: bool = False) -> None:
        self._store = store
        self._told = told
        """Whether what a tool writes is told, to be written again where its answer is replayed."""
        self._own = InMemoryStore(index=_index_of(store))
        self._changed: set[tuple[tuple[str, ...], str]] = set()
        """What the run has written or deleted: namespace and key."""
        self.supports_ttl = store.supports_ttl
        self.ttl_config = store.ttl_config

    def __getattr__(self, name: str) -> Any:
        if name == "_store":  # asked while a copy is made, which has nothing yet
            raise AttributeError(name)
        return getattr(self._store, name)

    def batch(self, ops: Iterable[Any]) -> list[Any]:
        ops = list(ops)
        asked = list(self._asked(ops))
        theirs = self._store.batch(asked) if asked else []
        ours = self._unwritten(ops) or self._own.batch(_whole(ops))
        return self._joined(ops, theirs, ours)

    async def abatch(self, ops: Iterable[Any]) -> list[Any]:
        ops = list(ops)
        asked = list(self._asked(ops))
        theirs = await self._store.abatch(asked) if asked else []
        ours = self._unwritten(ops) or await self._own.abatch(_whole(ops))
        return self._joined(ops, theirs, ours)

    def _unwritten(self, ops: Sequence[Any]) -> list[Any]:
        """Return what the run's own store says as long as it is empty; nothing once it isn't.

        Asking it would only pay for the embedding of a query again.
        """
        if self._changed or any(isinstance(op, PutOp) for op in ops):
            return []
        return [None if isinstance(op, GetOp) else [] for op in ops]

    def _asked(self, ops: Iterable[Any]) -> Iterator[Any]:
        """Yield what the user's store is asked: enough, should some of it be replaced."""
        for op in ops:
            if isinstance(op, SearchOp | ListNamespacesOp):
                yield op._replace(limit=op.limit + op.offset + len(self._changed), offset=0)
            elif not isinstance(op, PutOp):
                yield op

    def _joined(self, ops: Sequence[Any], theirs: Sequence[Any], ours: Sequence[Any]) -> list[Any]:
        left, found = iter(theirs), list[Any]()
        for op, own in zip(ops, ours, strict=True):
            if isinstance(op, PutOp):
                found.append(None)
                continue
            there = next(left)
            if isinstance(op, GetOp):
                changed = (tuple(op.namespace), op.key) in self._changed
                found.append(own if changed else _apart(there))
            elif isinstance(op, SearchOp):
                found.append(self._searched(op, there, own)[op.offset : op.offset + op.limit])
            else:
                names = list(dict.fromkeys([*there, *own]))
                found.append(names[op.offset : op.offset + op.limit])
        for op in ops:
            if isinstance(op, PutOp):
                self._changed.add((tuple(op.namespace), op.key))
                if self._told:
                    note_written(op)
        return found

    def _searched(self, op: SearchOp, theirs: Sequence[Any], ours: Sequence[Any]) -> list[Any]:
        kept = [_apart(i) for i in theirs if (tuple(i.namespace), i.key) not in self._changed]
        if op.query:
            return sorted([*kept, *ours], key=lambda item: -(item.score or 0.0))
        if type(self._store) is InMemoryStore:  # which gives them as they came
            return [*kept, *ours]
        # The run's are the latest. Theirs stay as they came: not all stores' dates can be compared.
        return [*sorted(ours, key=lambda item: item.updated_at, reverse=True), *kept]


def _index_of(store: BaseStore) -> Any:
    """Return how a store finds by meaning; None where it doesn't.

    With its own embeddings: of those that it has by name, each run would make a client anew.
    """
    config, own = getattr(store, "index_config", None), getattr(store, "embeddings", None)
    return {**config, "embed": own} if config and own is not None else config


def _whole(ops: Iterable[Any]) -> list[Any]:
    return [
        op._replace(limit=op.limit + op.offset, offset=0)
        if isinstance(op, SearchOp | ListNamespacesOp)
        else op
        for op in ops
    ]


def _apart(item: Any) -> Any:
    """Return an item whose value may be changed without the store's."""
    if item is None:
        return None
    same = copy(item)
    same.value = anew(item.value)
    return same
