"""A node cache that tells when it answers in a node's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langgraph.cache.base import BaseCache, FullKey, Namespace


class WatchedCache(BaseCache[Any]):
    """Behaves as the cache that it is made from, and calls `hit` with each key that it answered.

    A node that a cache answers for starts no callback run: nothing else tells that it was there.
    """

    def __init__(self, cache: BaseCache[Any], hit: Callable[[str], None]) -> None:
        super().__init__(serde=cache.serde)
        self._cache = cache
        self._hit = hit

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, Any]:
        return self._told(self._cache.get(keys))

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, Any]:
        return self._told(await self._cache.aget(keys))

    def _told(self, found: dict[FullKey, Any]) -> dict[FullKey, Any]:
        for namespace, _ in found:
            self._hit(namespace[-1])  # a node's name, or the path of a task's function
        return found

    def set(self, pairs: Mapping[FullKey, tuple[Any, int | None]]) -> None:
        self._cache.set(pairs)

    async def aset(self, pairs: Mapping[FullKey, tuple[Any, int | None]]) -> None:
        await self._cache.aset(pairs)

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        self._cache.clear(namespaces)

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        await self._cache.aclear(namespaces)


def cached(node: str) -> str:
    """Return the warning for a node that a cache answered for."""
    return (
        f"The node '{node}' was answered from its cache, so it is not in the trace, and who read "
        "what it wrote seems to have read what was there before. Record the graph without its "
        "cache to see it run."
    )
