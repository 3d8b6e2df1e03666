"""What a text must not bring into a prompt: the words of single examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:[-'.][^\W_]+)*")
NGRAM = 6
"""So many words in a row that also stand in an example are a quotation, not a rule."""
_ENDS = (".", "!", "?", "。", "！", "？")


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


def new_lines(text: str, before: str) -> list[str]:
    """Return the lines that `before` does not have, without those that say nothing."""
    known = set(before.split("\n"))
    return [line for line in text.split("\n") if line not in known and line.strip()]


def stretches(text: str, before: str) -> list[str]:
    """Return the new lines, those together that can be read as one sentence.

    A reader does not mind line breaks, nor a line of `before` that stands amid a sentence: only
    where a sentence ends at a line that was there already does another stretch begin.
    """
    known = set(before.split("\n"))
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip():
            continue
        if line not in known:
            found[-1].append(line)
        elif found[-1] and found[-1][-1].rstrip().endswith(_ENDS):
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


class Quotations:
    """Knows the texts of examples and finds them again in proposed lines."""

    def __init__(self, values: Iterable[Any], n: int = NGRAM) -> None:
        self.n = n
        self._known: set[tuple[str, ...]] = set()
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """Take the texts of one more example."""
        for text in strings(value):
            self._known |= ngrams(text, self.n)

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
