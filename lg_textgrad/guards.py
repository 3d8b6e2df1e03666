"""What a text must not bring into a prompt: the words of single examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_UNSHOWN = re.compile("[\xad\u200b-\u200d\u2060\ufe0f\ufeff]")
_WORD = re.compile(r"[^\W_]+(?:[-'.][^\W_]+)*")
# Scripts that set no space between words: Chinese characters and kana, two for a word; Thai, Lao,
# Burmese and Khmer letters, four for a word.
_CHARACTERS = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNIT = re.compile(f"[{_CHARACTERS}{_LETTERS}]|[^{_CHARACTERS}{_LETTERS}]+")
_SHARES = ((re.compile(f"[{_CHARACTERS}]"), 6), (re.compile(f"[{_LETTERS}]"), 3))
_WHOLE = 12
"""Twelfths of a word, so that shares of it add up exactly."""
_UNSPACED = re.compile(f"(?<=[{_CHARACTERS}{_LETTERS}]) (?=[{_CHARACTERS}{_LETTERS}])")
NGRAM = 6
"""So many words in a row that also stand in an example are a quotation, not a rule."""
LABEL = 40
"""A reference output of at most so many characters is one of a list, and no text."""
_IN_MARKS = re.compile(r"(?<!\w)['\"“‘«].*?['\"”’»](?!\w)", re.DOTALL)
_ENDS = (".", "!", "?", "。", "！", "？")


def visible(text: str) -> str:
    """Return a text without joiners and the like, which nobody sees and which part no words."""
    return text if text.isascii() else _UNSHOWN.sub("", text)


def words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(visible(text))]


def ngrams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    return set(_ngrams(text, n))


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """Yield each n words in a row, from the first on.

    Where a script sets no space between words, so many characters as n words mostly have.
    """
    found = words(text)
    if text.isascii():  # each word is one
        yield from zip(*(found[start:] for start in range(n)), strict=False)
        return
    found = [unit for word in found for unit in _UNIT.findall(word)]
    end = size = 0
    sizes = [_share(unit) for unit in found]
    for start, first in enumerate(sizes):
        while size < n * _WHOLE and end < len(found):
            size += sizes[end]
            end += 1
        if size < n * _WHOLE:
            return
        yield tuple(found[start:end])
        size -= first


def _share(unit: str) -> int:
    """Return how much of a word this is, in twelfths."""
    return next((share for script, share in _SHARES if script.match(unit)), _WHOLE)


def _shown(units: Iterable[str]) -> str:
    """Return words as they are read, without a space between characters that have none."""
    return _UNSPACED.sub("", " ".join(units))


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
    """Return the lines that `before` does not have, without those that say nothing.

    A line with other blanks at its end, or another line break, is the same one.
    """
    known = _known_lines(before)
    return [line for line in text.split("\n") if line.rstrip() not in known and line.strip()]


def _known_lines(text: str) -> set[str]:
    return {line.rstrip() for line in text.split("\n")}


def stretches(text: str, before: str) -> list[str]:
    """Return the new lines, those together that can be read as one sentence.

    A reader does not mind line breaks, nor a line of `before` that stands amid a sentence: only
    where a sentence ends at a line that was there already does another stretch begin.
    """
    known = _known_lines(before)
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip():
            continue
        if line.rstrip() not in known:
            found[-1].append(line)
        elif found[-1] and found[-1][-1].rstrip().endswith(_ENDS):
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def seams(text: str, before: str) -> list[str]:
    """Return the new lines with the line of `before` on either side, where a sentence goes on.

    So half of a sentence that was accepted at one step and half of another one are read together.
    """
    known = _known_lines(before)
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    found: list[str] = []
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end] not in known:
            end += 1
        if end > at:
            first = at - 1 if at and not lines[at - 1].endswith(_ENDS) else at
            last = end + 1 if end < len(lines) and not lines[end - 1].endswith(_ENDS) else end
            if (first, last) != (at, end):
                found.append("\n".join(lines[first:last]))
        at = end + 1
    return found


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
        return next((_shown(each) for each in _ngrams(text, self.n) if each in self._known), None)


class Answers:
    """Knows what the reference outputs of single examples say, and finds it in proposed lines.

    What several examples have to say, or a trusted text says, is a rule and no quotation: the
    sentence that every reply ends with, or what an evaluator asks for in the words of a reference.
    Nor is a label one, which rules name.
    """

    def __init__(self, trusted: Iterable[str] = (), n: int = NGRAM) -> None:
        self.n = n
        self._rules: set[tuple[str, ...]] = set()
        for text in trusted:
            self.trust(text)
        self._of: dict[tuple[str, ...], str | None] = {}
        """Words -> the example that they are of; None where several have them."""

    def trust(self, text: str) -> None:
        """Take what a rule may say: a prompt, or an evaluator's comment, but for what it quotes."""
        self._rules |= ngrams(_IN_MARKS.sub("\n", text), self.n)

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
                return _shown(each)
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
