"""The constant part of a prompt, and the variables between."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from lg_textgrad.parameter import find_placeholders

_TOKEN = re.compile(r"\x00[^\x00]+\x00|\w+|\s+|[^\w\s]")
_NAME = re.compile(r"[^A-Za-z0-9_]")
_MOST_PARTS = 200
"""More parts of a state are not looked for in a text."""
_MOST_TOKENS = 4_000
"""Texts that differ in more than this are not aligned inside: the work is quadratic."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A template: `constants[0] {names[0]} constants[1] {names[1]} … constants[-1]`.

    A name may stand in it more than once; then its spans have to be equal for a text to match.
    """

    constants: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The template with its variables in braces; other braces are as they are."""
        return self.fill({name: f"{{{name}}}" for name in self.names})

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.names))

    @property
    def words(self) -> int:
        """How many words of it are constant."""
        return sum(len(re.findall(r"\w+", constant)) for constant in self.constants)

    @property
    def longest(self) -> int:
        """How many words its longest constant stretch has."""
        return max(len(re.findall(r"\w+", constant)) for constant in self.constants)

    def match(self, text: str) -> dict[str, str] | None:
        """Return the variables of `text`; None when it is not made from this template.

        Each constant is taken where it comes first, so the time is linear in the text.
        """
        spans = self.spans(text)
        if spans is None:
            return None
        found: dict[str, str] = {}
        for name, span in zip(self.names, spans, strict=True):
            if found.setdefault(name, span) != span:
                return None
        return found

    def spans(self, text: str) -> tuple[str, ...] | None:
        """Return what stands in the place of each name, in order; None without a match."""
        first, *rest = self.constants
        if not rest:
            return () if text == first else None
        last = rest.pop()
        end = len(text) - len(last)
        if not (text.startswith(first) and text.endswith(last)) or end < len(first):
            return None
        spans, position = [], len(first)
        for constant in rest:
            start = text.find(constant, position, end)
            if start < 0:
                return None
            spans.append(text[position:start])
            position = start + len(constant)
        return (*spans, text[position:end])

    def fill(self, variables: Mapping[str, str]) -> str:
        """Return the text that the template makes of `variables`."""
        values = [variables[name] for name in self.names]
        return "".join(
            part for pair in zip(self.constants, [*values, ""], strict=True) for part in pair
        )


def from_format(template: str) -> Skeleton | None:
    """Return the skeleton of a template in Python's format syntax; None where it is none.

    Doubled braces become the single ones that stand in the text.
    """
    constants, names = [""], []
    try:
        for literal, name, _spec, _conversion in string.Formatter().parse(template):
            constants[-1] += literal
            if name is not None:
                names.append(name)
                constants.append("")
    except ValueError:
        return None
    return tidy(constants, names)


def from_placeholders(text: str, placeholders: Sequence[str]) -> Skeleton:
    """Return the skeleton of a parameter's text, of whose braces `placeholders` are variables."""
    if not placeholders:
        return Skeleton((text,))
    parts = re.split("{(" + "|".join(map(re.escape, placeholders)) + ")}", text)
    return Skeleton(tuple(parts[::2]), tuple(parts[1::2]))


def anywhere(skeleton: Skeleton) -> Skeleton:
    """Return the skeleton of texts that have this one somewhere in them."""
    names = tuple(str(n) for n in range(len(skeleton.names) + 2))
    return Skeleton(("", *skeleton.constants, ""), names)


def from_mustache(template: str) -> Skeleton | None:
    """Return the skeleton of a mustache template; None where it has more than variables."""
    parts = re.split(r"\{\{\{?\s*([\w.]+)\s*\}\}\}?", template)
    if any("{{" in constant for constant in parts[::2]):
        return None
    return tidy(parts[::2], parts[1::2])


def align(samples: Iterable[tuple[str, Mapping[str, str]]]) -> Skeleton:
    """Return the template that the texts were made from, as far as they tell.

    Each sample is a text and the state that its node had. A span that varies is named after the
    state's key whose value it equals or contains, else `var1`, `var2`, …. Spans that can't be told
    apart are one. One text alone is constant.
    """
    known = sorted({(text, tuple(sorted(state.items()))) for text, state in samples})
    texts, states = [text for text, _ in known], [dict(state) for _, state in known]
    if len(set(texts)) == 1:
        return Skeleton((texts[0],))
    marked = _mark(texts, states)
    tokens: list[str | None] = list(_TOKEN.findall(marked[0]))
    for text in dict.fromkeys(marked[1:]):
        tokens = _common(tokens, _TOKEN.findall(text))
    constants, names = _pieces(tokens)
    constants, names = _told_apart(constants, names, texts)
    found = tidy(constants, _named(constants, names, texts, states))
    if all(found.match(text) is not None for text in texts):
        return found
    return Skeleton(found.constants, tuple(f"var{n + 1}" for n in range(len(found.names))))


def _mark(texts: Sequence[str], states: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the texts with the values of the state in them replaced by marks.

    Only values that differ between texts, that stand in every one, and equally often.
    """
    shared = set.intersection(*(set(state) for state in states))
    varying = [k for k in sorted(shared) if len({state[k] for state in states}) > 1]
    chosen: dict[str, int] = {}
    for key in varying:
        counts = {len(_places(text, state[key])) for text, state in zip(texts, states, strict=True)}
        if len(counts) == 1 and counts != {0}:
            chosen[key] = min(len(state[key]) for state in states)
    marked = list(texts)
    # The longest first: a question may have the name of a team in it.
    for key in sorted(chosen, key=lambda k: (-chosen[k], k)):
        places = [_places(t, s[key]) for t, s in zip(marked, states, strict=True)]
        if len({len(p) for p in places}) == 1:
            marked = [
                _put(text, found, f"\x00{key}\x00")
                for text, found in zip(marked, places, strict=True)
            ]
    return marked


def _places(text: str, value: str) -> list[tuple[int, int]]:
    """Return where `value` stands in `text` as whole words, outside of marks."""
    if not value.strip() or "\x00" in value:
        return []
    found = re.compile(rf"\x00[^\x00]+\x00|(?<!\w){re.escape(value)}(?!\w)")
    if not (value[0].isalnum() and value[-1].isalnum()):
        found = re.compile(rf"\x00[^\x00]+\x00|{re.escape(value)}")
    return [m.span() for m in found.finditer(text) if m[0][0] != "\x00"]


def _put(text: str, places: Sequence[tuple[int, int]], mark: str) -> str:
    for start, end in reversed(places):
        text = text[:start] + mark + text[end:]
    return text


def _common(one: Sequence[str | None], other: Sequence[str]) -> list[str | None]:
    """Return the tokens that both have in this order; None stands for what is between."""
    first = 0
    while first < min(len(one), len(other)) and one[first] == other[first]:
        first += 1
    last = 0
    while last < min(len(one), len(other)) - first and one[-1 - last] == other[-1 - last]:
        last += 1
    inner, against = one[first : len(one) - last], other[first : len(other) - last]
    middle: list[str | None] = []
    if not inner and not against:
        return list(one)
    if max(len(inner), len(against)) > _MOST_TOKENS:
        middle = [None]
    else:
        at = to = 0
        matcher = SequenceMatcher(
            lambda t: t is None or t.isspace(), inner, list(against), autojunk=False
        )
        for block in matcher.get_matching_blocks():
            if block.a > at or block.b > to:
                middle.append(None)
            middle.extend(inner[block.a : block.a + block.size])
            at, to = block.a + block.size, block.b + block.size
    return [*one[:first], *middle, *one[len(one) - last :]]


def _pieces(tokens: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """Return constants and names; the name of what alignment alone has found is empty."""
    constants, names = [""], []
    for token in tokens:
        if token is None or token.startswith("\x00"):
            names.append("" if token is None else token.strip("\x00"))
            constants.append("")
        else:
            constants[-1] += token
    return constants, names


def _told_apart(
    constants: list[str], names: list[str], texts: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Merge variables that nothing reliable stands between."""
    constants, names = list(constants), list(names)
    place = 1
    while place < len(constants) - 1:
        between, sure = constants[place], bool(names[place - 1] and names[place])
        weak = not re.search(r"\w|\n", between) and not (sure and between.strip())
        if weak:
            _join(constants, names, place)
        else:
            place += 1
    while len(names) > 1:
        spans = [Skeleton(tuple(constants), tuple(names)).spans(text) for text in texts]
        if all(s is not None for s in spans):
            # What stands in the span before it, too, could end that one anywhere.
            doubtful = [
                place
                for place in range(1, len(constants) - 1)
                if any(constants[place] in found[place] for found in spans if found is not None)
            ]
        else:
            doubtful = list(range(1, len(constants) - 1))
        if not doubtful:
            break
        _join(constants, names, min(doubtful, key=lambda p: (len(constants[p]), p)))
    return constants, names


def _join(constants: list[str], names: list[str], place: int) -> None:
    """Make one variable of the two around the constant at `place`."""
    del constants[place]
    names[place - 1 : place + 1] = [names[place - 1] or names[place]]


def _named(
    constants: Sequence[str],
    names: Sequence[str],
    texts: Sequence[str],
    states: Sequence[Mapping[str, str]],
) -> list[str]:
    spans = [Skeleton(tuple(constants), tuple(names)).spans(text) or () for text in texts]
    shared = sorted(set.intersection(*(set(state) for state in states)))
    chosen: list[str] = []
    values_of: dict[str, tuple[str, ...]] = {}
    for place, name in enumerate(names):
        values = tuple(found[place] if found else "" for found in spans)
        same = next((n for n, v in values_of.items() if v == values), None)
        equal = (k for k in shared if all(s[k] == v for s, v in zip(states, values, strict=True)))
        within = (
            k
            for k in shared
            if all(len(s[k]) > 2 and s[k] in v for s, v in zip(states, values, strict=True))
        )
        new = same or name or next(equal, None) or next(within, None) or ""
        if not new or (new in values_of and values_of[new] != values):
            new = f"var{sum(n.startswith('var') for n in values_of) + 1}"
        values_of.setdefault(new, values)
        chosen.append(new)
    return chosen


def tidy(constants: Sequence[str], names: Sequence[str]) -> Skeleton:
    """Return the skeleton with names that placeholders may have, and no two variables in touch.

    A brace next to a variable becomes part of it: doubled braces are not placeholders.
    """
    own, called = [constants[0]], list[str]()
    for name, constant in zip(names, constants[1:], strict=True):
        clean = _NAME.sub("_", name) or "var"
        clean = clean if not clean[0].isdigit() else f"_{clean}"
        if called and not own[-1].strip("{}"):
            called[-1] = clean if called[-1] == clean else f"{called[-1]}_{clean}"
            own[-1] = constant.lstrip("}")
        else:
            own[-1] = own[-1].rstrip("{")
            own.append(constant.lstrip("}"))
            called.append(clean)
    literal = {"self", *(n for constant in own for n in find_placeholders(constant))}
    final = [f"{n}_value" if n in literal else n for n in called]
    return Skeleton(tuple(own), tuple(final))


def state_of(inputs: Any) -> dict[str, str]:
    """Return what a node's input has by key, as the text that a prompt would show.

    Of a list of messages that is the last one's text.
    """
    if not isinstance(inputs, Mapping):
        return {}
    found: dict[str, str] = {}
    for key, given in inputs.items():
        value = given[-1].get("content") if _messages(given) else given
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            found[str(key)] = str(value)
    return found


def shown_in(text: str, inputs: Any) -> dict[str, str]:
    """Return `state_of` a node's input, and what of its lists and objects stands in `text`.

    Of an object or list that is the whole of it, in the first of the usual ways to write one that
    the text has, else its parts: `order_id`, `notes_0`. A part in an upstream reply would else be
    taken for the node's own words where several replies have it.
    """
    found = state_of(inputs)
    if isinstance(inputs, Mapping):
        left = [_MOST_PARTS]
        for key, value in inputs.items():
            if isinstance(value, Mapping | list) and not _messages(value):
                for name, part in _parts(str(key), value, text, left):
                    found.setdefault(name, part)
    return found


def _parts(name: str, value: Any, text: str, left: list[int]) -> Iterator[tuple[str, str]]:
    left[0] -= 1
    if left[0] < 0:
        return
    if isinstance(value, str):
        if value.strip() and value in text:
            yield name, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, str(value)
    elif isinstance(value, Mapping | list) and value:
        written = next((form for form in _written(value) if form in text), None)
        if written is not None:
            yield name, written
            return
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in pairs:
            yield from _parts(f"{name}_{key}", part, text, left)


def _written(value: Any) -> Iterator[str]:
    """Yield the usual ways in which an object or a list is put into a prompt."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield from (between.join(value) for between in ("\n", "\n\n", "\n- ", ", ", " "))
    yield str(value)
    for indent in (None, 2, 4):
        for ascii_only in (True, False):
            yield json.dumps(value, indent=indent, ensure_ascii=ascii_only)


def _messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[-1], Mapping)
