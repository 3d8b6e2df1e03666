"""What `results.json` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]


def by_task(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    """Return the results by task and number of validation rows: what may be compared."""
    found: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        found.setdefault((result["task"], result["rows"][1]), []).append(result)
    return dict(sorted(found.items()))


def line_of(result: Result) -> str:
    """Return one result for people."""
    score = f"{result['test']:.3f}" if "test" in result else result["failed"][:60]
    return (
        f"{result.get('task', ''):24} {result['method']:12} seed {result['seed']}  {score}  "
        f"{result.get('calls', 0)} calls, {result.get('tokens', 0)} tokens, {result['seconds']} s"
    )
