"""What a candidate changes, line by line, so that a person can refuse one line of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from lg_textgrad.demos import Demo, render_demos, split_demos
from lg_textgrad.guards import words
from lg_textgrad.run import Candidate

_COMPARED = re.compile(r"(?<!\S)[<>=!≤≥≠]+(?!\S)|(?<=\S)\s*[<>=!≤≥≠]+(?=\s*[-+$€£]?\d)")
"""Marks that compare: between words, or before a number. Those of markup and quotations do not."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of an instruction, or one demonstration, that is put in, taken out, or both."""

    number: int
    """From 1 on, over all parameters in their order."""
    parameter: str
    before: str | Demo | None
    """What is taken out; None where something is only put in."""
    after: str | Demo | None

    def __str__(self) -> str:
        gone, new = (None if part is None else shown(part) for part in (self.before, self.after))
        if gone is None:
            return f"{self.parameter}: + {new}"
        if new is None:
            return f"{self.parameter}: - {gone}"
        return f"{self.parameter}: {gone} -> {new}"


def changes_of(before: Candidate, after: Candidate) -> tuple[Change, ...]:
    """Return what `after` changes of `before`. What is not changed has no number."""
    return tuple(one for _, _, _, one in _walk(before, after) if one is not None)


def numbered(before: Candidate, after: Candidate) -> Iterator[tuple[str, str, str, int | None]]:
    """Yield parameter, `+`, `-` or a space, text and number of each line, as a diff has them."""
    for name, old, new, change in _walk(before, after):
        if change is None:
            yield name, " ", shown(new), None
            continue
        for sign, part in _signed(old, new):
            yield name, sign, shown(part), change.number


def lines_of(before: str, after: str) -> Iterator[tuple[str, str]]:
    """Yield `+`, `-` or a space, and the line, of two whole texts: what became what side by side.

    difflib's `ndiff` aligns each line with each other one letter by letter, which takes it several
    times as long.
    """
    for old, new, same in _pairs(split_lines(before), split_lines(after)):
        if same:
            yield " ", old
        else:
            yield from _signed(old, new)


def split_lines(text: str) -> list[str]:
    """Return the lines of a text; an empty one has none."""
    return text.split("\n") if text else []


def _signed(old: Any, new: Any) -> Iterator[tuple[str, Any]]:
    yield from ((sign, part) for sign, part in (("-", old), ("+", new)) if part is not None)


def without(before: Candidate, after: Candidate, numbers: Collection[int]) -> Candidate:
    """Return `after` with the changes of these numbers undone."""
    lines: dict[str, list[str]] = {}
    demos: dict[str, list[Demo]] = {}
    for name, old, new, change in _walk(before, after):
        part = old if change is not None and change.number in numbers else new
        if isinstance(part, Demo):
            demos.setdefault(name, []).append(part)
        elif part is not None:
            lines.setdefault(name, []).append(part)
    texts = {
        name: render_demos("\n".join(lines.get(name, ())), demos.get(name, ()))
        for name, text in after.items()
        if text != before.get(name, "")
    }
    return {**after, **texts}


def shown(part: str | Demo) -> str:
    """Return a line or a demonstration as people read it."""
    return part if isinstance(part, str) else f"Input: {part.inputs}\nOutput: {part.output}"


class Refused:
    """The changes that people refused, which no later candidate may make."""

    def __init__(self) -> None:
        self._changes: dict[str, list[Change]] = {}

    def add(self, changes: Iterable[Change]) -> None:
        """Take changes that were refused. Of a line for another one, the new line is.

        A blank line says nothing that could come back, and stands in prompts of all kinds.
        """
        for change in changes:
            if not (_blank(change.before) and _blank(change.after)):
                self._changes.setdefault(change.parameter, []).append(change)

    def find(self, name: str, before: str, after: str) -> Change | None:
        """Return the refused change that `after` makes of the parameter's text `before`, if any."""
        refused = self._changes.get(name)
        if not refused:
            return None
        made = changes_of({name: before}, {name: after})
        had, has = _parts(before), _parts(after)
        for change in refused:
            if _blank(change.after):
                gone = sense(change.before)
                again = has[gone] < had[gone]
            else:
                again = any(_brings(one, change.after, had) for one in made)
            if again:
                return change
        return None


def _brings(made: Change, refused: Any, had: Counter[Any]) -> bool:
    """Return whether a change puts in what was refused, and not what is the same as it replaces.

    What consists of marks, such as a bracket, comes back only where there was none.
    """
    if made.after is None or sense(made.after) != sense(refused):
        return False
    if isinstance(refused, str) and not words(refused):
        return not had[sense(refused)]
    return made.after == refused or made.before is None or sense(made.before) != sense(refused)


def _parts(text: str) -> Counter[Any]:
    instruction, demos = split_demos(text)
    parts: list[str | Demo] = [*instruction.split("\n"), *demos]
    return Counter(sense(part) for part in parts)


def _blank(part: str | Demo | None) -> bool:
    return part is None or (isinstance(part, str) and not part.strip())


def sense(part: str | Demo | None) -> Any:
    """Return what lines have in common that differ in capitals and spaces, marks and bullets.

    Marks that compare are not dropped: "x > 5" is not "x < 5".
    """
    if not isinstance(part, str):
        return part
    said = " ".join(words(part))
    return (said, *_compared(part)) if said else part.strip()


def _compared(line: str) -> list[str]:
    """Return the marks that compare, in their order; not one that begins the line, as quotes do."""
    return [found.strip() for found in _COMPARED.findall(line.strip().lstrip("<>=!≤≥≠"))]


def _walk(before: Candidate, after: Candidate) -> Iterator[tuple[str, Any, Any, Change | None]]:
    """Yield parameter, what was there, what is there, and the change, in order, part by part."""
    number = 0
    for name, text in after.items():
        if text == before.get(name, ""):
            continue
        (old, old_demos), (new, new_demos) = split_demos(before.get(name, "")), split_demos(text)
        lines = _pairs(split_lines(old), split_lines(new))
        for pairs in (lines, _pairs(old_demos, new_demos)):
            for gone, come, same in pairs:
                number += not same
                yield name, gone, come, None if same else Change(number, name, gone, come)


def _pairs(old: Sequence[Any], new: Sequence[Any]) -> Iterator[tuple[Any, Any, bool]]:
    """Yield what stands side by side, None for nothing, and whether it is the same."""
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for kind, first, last, start, end in steps:
        gone, come = old[first:last], new[start:end]
        if kind == "equal":
            yield from ((part, part, True) for part in gone)
        elif len(gone) == len(come) == 1:
            yield gone[0], come[0], False
        else:
            yield from ((*pair, False) for pair in _aligned(gone, come))


def _aligned(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return what became what, in order: the pairing with the most likeness in all.

    What is like nothing else came or went by itself, so that it can be refused by itself.
    """
    ours, theirs = ([_grams(shown(part)) for part in side] for side in (old, new))
    like = [[_likeness(one, other) for other in theirs] for one in ours]
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in range(len(old) - 1, -1, -1):
        for j in range(len(new) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], like[i][j] + best[i + 1][j + 1])
    found: list[tuple[Any, Any]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        here = best[i][j]
        if i < len(old) and here == best[i + 1][j]:
            found.append((old[i], None))
            i += 1
        elif j < len(new) and here == best[i][j + 1]:
            found.append((None, new[j]))
            j += 1
        else:
            found.append((old[i], new[j]))
            i, j = i + 1, j + 1
    return found


def _grams(text: str) -> frozenset[tuple[str, int]]:
    """Return the runs of three characters, the ends included, numbered where they come again."""
    whole, seen = f" {text.strip()} ", Counter[str]()
    found = set()
    for at in range(max(1, len(whole) - 2)):
        gram = whole[at : at + 3]
        found.add((gram, seen[gram]))
        seen[gram] += 1
    return frozenset(found)


def _likeness(one: frozenset[tuple[str, int]], other: frozenset[tuple[str, int]]) -> float:
    """Return how much two have in common, from 0 to 1; 0 where it is little.

    Counted and not aligned: a person waits for it, and prompts may have long lines.
    """
    share = 2 * len(one & other) / (len(one) + len(other))
    return share if share >= 0.4 else 0.0
