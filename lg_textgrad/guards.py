"""What a text must not bring into a prompt: the words of single examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:[-'.][^\W_]+)*")
NGRAM = 6
"""So many words in a row that also stand in an example are a quotation, not a rule."""


def words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(text)]


def ngrams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def strings(value: Any) -> Iterable[str]:
    """Yield every string in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from strings(part)


class Quotations:
    """Knows the texts of examples and finds them again in proposed lines."""

    def __init__(self, values: Iterable[Any], n: int = NGRAM) -> None:
        self.n = n
        self._known: set[tuple[str, ...]] = set()
        for value in values:
            for text in strings(value):
                self._known |= ngrams(text, n)

    def find(self, text: str) -> str | None:
        """Return the first words in `text` that are quoted from an example; None when none are."""
        found = words(text)
        for i in range(len(found) - self.n + 1):
            if tuple(found[i : i + self.n]) in self._known:
                return " ".join(found[i : i + self.n])
        return None


def names_of(values: Iterable[Any]) -> set[str]:
    """Return the words with digits (order numbers, dates, amounts) in the values' texts."""
    return {
        word
        for value in values
        for text in strings(value)
        for word in words(text)
        if any(c.isdigit() for c in word)
    }
