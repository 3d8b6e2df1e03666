"""What a text must not bring into a prompt: the words of single examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:[-'.][^\W_]+)*")
NGRAM = 6
"""So many words in a row that also stand in an example are a quotation, not a rule."""
LABEL = 40
"""A reference output of at most so many characters is one of a list, and no text."""
_ENDS = (".", "!", "?", "。", "！", "？")


def words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(text)]


def ngrams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    return set(_ngrams(text, n))


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Yield each n words in a row, from the first on."""
    found = words(text)
    for i in range(len(found) - n + 1):
        yield tuple(found[i : i + n])


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

    def __init__(self, values: Iterable[Any] = (), n: int = NGRAM) -> None:
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
        return next((" ".join(each) for each in _ngrams(text, self.n) if each in self._known), None)


class Answers:
    """Knows what the reference outputs of single examples say, and finds it in proposed lines.

    What several examples have to say, or a trusted text says, is a rule and no quotation: the
    sentence that every reply ends with. Nor is a label one, which rules name.
    """

    def __init__(self, trusted: Iterable[str] = (), n: int = NGRAM) -> None:
        self.n = n
        self._rules = {each for text in trusted for each in ngrams(text, n)}
        self._of: dict[tuple[str, ...], str | None] = {}
        """Words -> the example that they are of; None where several have them."""

    def add(self, example: str, outputs: Any) -> None:
        """Take the reference outputs of one example; `example` says which one it is."""
        for text in strings(outputs):
            for each in ngrams(text, self.n) if len(text) > LABEL else ():
                known = self._of.setdefault(each, example)
                self._of[each] = example if known == example else None

    def find(self, text: str) -> str | None:
        """Return the first words in `text` that one example's outputs have; None without any."""
        for each in _ngrams(text, self.n):
            if self._of.get(each) is not None and each not in self._rules:
                return " ".join(each)
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
