"""Many gradients of one parameter -> the few things that they say. Pure.

Gradients that say the same in other words become one note that knows all of them; those that
contradict each other stay, and say so. What counts as the same, or as a contradiction, is told by
the words alone: of two notes about the same things, one that forbids what the other asks for, or
another number or quoted word in the same place, or the same words in each other's places. A note
whose every clause stands in another one is part of it. What a note counts in the one reply that it
judges ("this one has 63") is no part of the rule, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lg_textgrad.guards import words
from lg_textgrad.parameter import Gradient, count_tokens

_MORE = 0.6
"""Share of its words that a note has in one that says the same and more."""
_ALIKE = 0.85
"""Share of their words that two notes have in common when each has words of its own.

High, since "refunds go to ..." and "bills go to ..." share most of theirs; one note too many costs
a line, one too few a rule.
"""
_QUOTED = re.compile(r"(?<!\w)['\"“‘«`](.{1,80}?)['\"”’»`](?!\w)")
_FORBIDS = re.compile(
    r"\b(?:never|not|don['’]t|doesn['’]t|mustn['’]t|shouldn['’]t|cannot|can['’]t|without|avoid\w*"
    r"|no|omit\w*|leave out|refrain\w*|stop"
    # Notes are written in the language of the prompts: German, French, Italian, Spanish, …
    r"|nicht|kein\w*|nie|niemals|ohne|vermeide\w*|ne|pas|jamais|aucun\w*|évite\w*|non|mai|senza"
    r"|evit\w*|nunca|jamás|ningun\w*|não|sem|niet|geen|nooit|zonder|vermijd\w*|nigdy|bez"
    r"|не|нельзя|никогда|без|избега\w*)\b|\bn['’](?=\w)",
    re.IGNORECASE,
)
_DIRECTED = re.compile(
    r"\b(?:before|after|into|from|than|over|instead of|in place of|vor|nach|avant|après)\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    # After other words, or a colon, "this ..." may be what the rule is about, or what to say.
    r"\s*(?:[,;(]|:(?=\s*this one\b))\s*(?:but |and |while |whereas )?"
    r"this(?: (?:one|reply|answer|response|output|text|label|message|summary|draft|version))?"
    r" (?:has|had|is|was|contain(?:s|ed))\b[^,.;:()]*\d[^,.;:()]*\)?",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;:]|\.(?:\s|$)|\band\b", re.IGNORECASE)
_WHEN = re.compile(r"\b(?:if|when|whenever|unless|where|for)\b[^,.;:]*[,;:]", re.IGNORECASE)
# What a rule is made of besides what it is about.
_FRAME = frozenset(
    words(
        "a an and any all always are as at be been before by can cannot do does doesn't don't each"
        " every for from has have if in into is it its just leave may must mustn't need needs never"
        " no nor not of omit on only or out own refrain should shouldn't so such than that the"
        " their them then there these they this those to use when where which will with without"
        " would avoid stop you your can't make sure please"
    )
)


@dataclass(frozen=True, slots=True)
class Note:
    """What one or more gradients ask for, in the words of the fullest, the heaviest of those."""

    change: str
    gradients: tuple[Gradient, ...]
    """All that say it, the heaviest first."""
    against: tuple[int, ...] = ()
    """Positions, counted from 0, of the notes that it contradicts."""

    @property
    def weight(self) -> float:
        """The blame of all its gradients together: of one note in many runs more than 1."""
        return sum(g.weight for g in self.gradients)

    @property
    def is_rule(self) -> bool:
        """Whether it can stand in a prompt as it is."""
        return all(g.is_rule for g in self.gradients)

    @property
    def ids(self) -> tuple[str, ...]:
        """The gradients' ids, for the edits that answer the note."""
        return tuple(dict.fromkeys(g.id for g in self.gradients))

    @property
    def keep(self) -> str:
        """What the heaviest that names anything wants to keep; empty when none does."""
        return next((g.keep for g in self.gradients if g.keep), "")


@dataclass(frozen=True, slots=True)
class Reduced:
    """What the gradients of one parameter say."""

    notes: tuple[Note, ...]
    """The heaviest first; what contradicts a note stands right behind it."""
    keeps: tuple[Note, ...]
    """What to keep as it is, most often named first: gradients that ask for no change."""
    left_out: int
    """How many notes had no room."""

    @property
    def contradictions(self) -> list[tuple[int, int]]:
        """Pairs of positions in `notes`."""
        return [(n, m) for n, note in enumerate(self.notes) for m in note.against if n < m]

    def consistent(self) -> list[Note]:
        """Return the notes without those that a heavier one contradicts."""
        return [
            note
            for number, note in enumerate(self.notes)
            if not any(other < number for other in note.against)
        ]


def reduce_gradients(
    gradients: Sequence[Gradient],
    *,
    max_notes: int = 8,
    max_tokens: int = 800,
    max_keeps: int = 2,
) -> Reduced:
    """Return what `gradients` say in at most `max_notes` notes of `max_tokens` tokens together.

    The heaviest notes stay; the first always does. The order of gradients of one weight decides
    between them, so the same gradients make the same notes.
    """
    notes = _grouped([g for g in gradients if g.change], lambda g: g.change)
    keeps = _grouped([g for g in gradients if not g.change and g.keep], lambda g: g.keep)
    chosen: list[Note] = []
    room = max_tokens
    for note in _with_their_opposites(notes):
        size = count_tokens(note.change)
        if len(chosen) == max_notes or (chosen and size > room):
            break
        chosen.append(note)
        room -= size
    against = [
        tuple(m for m, b in enumerate(chosen) if m != n and _at_odds(a, b))
        for n, a in enumerate(chosen)
    ]
    return Reduced(
        tuple(Note(n.change, n.gradients, a) for n, a in zip(chosen, against, strict=True)),
        tuple(sorted(keeps, key=lambda note: -len(note.gradients)))[:max_keeps],
        len(notes) - len(chosen),
    )


def _at_odds(one: Note, other: Note) -> bool:
    """Return whether two rules contradict each other; what two runs tell of is true of both."""
    return one.is_rule and other.is_rule and contradict(one.change, other.change)


def _with_their_opposites(notes: Sequence[Note]) -> Iterator[Note]:
    """Yield the notes, each followed at once by those that contradict it."""
    waiting = list(notes)
    while waiting:
        note = waiting.pop(0)
        yield note
        opposed = [other for other in waiting if _at_odds(note, other)]
        yield from opposed
        waiting = [other for other in waiting if all(other is not o for o in opposed)]


def _grouped(gradients: Sequence[Gradient], said: Callable[[Gradient], str]) -> list[Note]:
    """Return one note for all gradients that say the same, the heaviest note first."""
    heaviest = sorted(gradients, key=lambda g: -g.weight)
    texts = [rule(said(gradient)) for gradient in heaviest]
    groups: list[tuple[str, list[int]]] = []
    # The fullest first, so that what is part of it finds it.
    for place in sorted(range(len(texts)), key=lambda place: -len(_clauses(texts[place]))):
        for fullest, group in groups:
            if same(fullest, texts[place]):
                group.append(place)
                break
        else:
            groups.append((texts[place], [place]))
    notes = [Note(text, tuple(heaviest[n] for n in sorted(group))) for text, group in groups]
    return sorted(notes, key=lambda note: -note.weight)


@lru_cache(maxsize=4096)
def rule(text: str) -> str:
    """Return a note without what it counts in the one reply that it judges."""
    return _COUNTED.sub("", text).strip() or text


def same(one: str, other: str) -> bool:
    """Return whether two notes ask for the same, or one for a part of the other. Symmetric."""
    one, other = rule(one), rule(other)
    a, b = set(_about(one)), set(_about(other))
    if not a or not b:
        return words(one) == words(other)
    if _when(one) != _when(other):
        return False
    parts, others = _clauses(one), _clauses(other)
    if parts <= others or others <= parts:
        return not contradict(one, other)
    if _values(one) != _values(other):
        return False
    if len(a - b) == len(b - a) == 1 and a - b <= _ends(one) and b - a <= _ends(other):
        return False  # "... go to the team refunds", "... go to the team repairs"
    enough = _MORE if a <= b or b <= a else _ALIKE
    return len(a & b) >= enough * len(a | b) and not contradict(one, other)


def contradict(one: str, other: str) -> bool:
    """Return whether two notes about the same things ask for what cannot both be. Symmetric.

    One forbids what the other asks for, or they name other numbers or other quoted words in the
    same place, or have the same words in each other's places. Two notes are about the same things
    when one has all the words of the other: each having words of its own, they may speak of
    different cases, and so may two that say when.
    """
    one, other = rule(one), rule(other)
    if _when(one) and _when(other) and _when(one) != _when(other):
        return False
    a, b = _values(one), _values(other)
    about_a = _about(_QUOTED.sub(" ", one)) - a
    about_b = _about(_QUOTED.sub(" ", other)) - b
    if not about_a or not about_b or not (about_a <= about_b or about_b <= about_a):
        return False
    if bool(_FORBIDS.search(_QUOTED.sub(" ", one))) != bool(
        _FORBIDS.search(_QUOTED.sub(" ", other))
    ):
        return True
    if _swapped(one, other):
        return True
    return len(about_a & about_b) > 1 and bool(a and b) and a.isdisjoint(b)


def _swapped(one: str, other: str) -> bool:
    """Return whether two notes of the same words may give them to each other.

    "Refunds go to A, bills go to B", or "A before B". Notes that only put it otherwise may do so
    too; then one of the two is a line, as it would be if they were known to be the same.
    """
    if _about(one) != _about(other):
        return False
    parts, others = _clauses(one), _clauses(other)
    if len(parts) > 1 and parts != others:
        sizes, theirs = (sorted(len(words) for words, _ in p) for p in (parts, others))
        return sizes == theirs
    first, second = ([m.lower() for m in _DIRECTED.findall(text)] for text in (one, other))
    return bool(first) and first == second and _in_order(one) != _in_order(other)


@lru_cache(maxsize=4096)
def _about(text: str) -> frozenset[str]:
    """Return the words that say what a note is about, without their endings."""
    return frozenset(_stem(w) for w in words(text) if w not in _FRAME)


@lru_cache(maxsize=4096)
def _ends(text: str) -> frozenset[str]:
    """Return the word that each clause ends with, which mostly is what it asks for."""
    return frozenset(found[-1] for part in _CLAUSE.split(text) if (found := _in_order(part)))


def _in_order(text: str) -> list[str]:
    return list(dict.fromkeys(_stem(w) for w in words(text) if w not in _FRAME))


@lru_cache(maxsize=4096)
def _clauses(text: str) -> frozenset[tuple[frozenset[str], bool]]:
    """Return what each clause is about, and whether it forbids; quoted words are never cut."""
    spans: list[str] = []

    def hidden(found: re.Match[str]) -> str:
        spans.append(found[1])
        return f" quoted{len(spans) - 1}x "

    def shown(clause: str) -> str:
        return re.sub(r"quoted(\d+)x", lambda n: spans[int(n[1])], clause)

    found = _CLAUSE.split(_QUOTED.sub(hidden, text))
    return frozenset(
        (_about(shown(clause)), bool(_FORBIDS.search(clause))) for clause in found if _about(clause)
    )


@lru_cache(maxsize=4096)
def _when(text: str) -> tuple[tuple[str, ...], ...]:
    """Return in which cases a note holds, clause by clause, as far as it says so first."""
    return tuple(tuple(words(m[0])) for m in _WHEN.finditer(text))


@lru_cache(maxsize=4096)
def _values(text: str) -> frozenset[str]:
    """Return the numbers and the quoted words in a note."""
    numbers = {w for w in words(_QUOTED.sub(" ", text)) if any(c.isdigit() for c in w)}
    return frozenset(numbers | {" ".join(words(span)) for span in _QUOTED.findall(text)})


def _stem(word: str) -> str:
    return word if len(word) < 5 else re.sub(r"(?:ies|es|s|ed|ing|ly|y)$", "", word)
