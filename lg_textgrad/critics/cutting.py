"""Long values cut around what matters, and quotations held against what was shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+(?:[-'.][^\W_]+)*")
_QUOTED = re.compile(r"(?<!\w)['\"“‘«`](.{2,200}?)['\"”’»`](?!\w)", re.DOTALL)
_RARE = 3
"""A word that stands in a text so often or less says where in it something is."""
_SHORT = 3
"""Words with so few letters say nothing by themselves, unless they have digits."""
_AROUND = (12, 0, 60)
"""Characters kept on either side of what matters: a little of each, then more as room allows."""
_APART = 24
"""A gap smaller than this is no saving: the mark in its place is as long."""

Part = tuple[int, int]


def cut(text: str, limit: int, about: str = "") -> str:
    """Return `text`; of one longer than `limit` characters, both ends and what `about` speaks of.

    What matters are spans that `about` quotes, and words that the two share and that are rare in
    `text`. Without any, the beginning and the end are kept. At most `limit` characters stay, and
    each gap says how many are gone: `[… 120 characters cut …]`.
    """
    if len(text) <= limit:
        return text
    shown, at = [], 0
    for start, end in _kept(text, limit, about):
        if start > at:
            shown.append(f"[… {start - at} characters cut …]")
        shown.append(text[start:end])
        at = end
    if at < len(text):
        shown.append(f"[… {len(text) - at} characters cut …]")
    return " ".join(shown)


def _kept(text: str, limit: int, about: str) -> list[Part]:
    """Return what stays, in order and apart from each other."""
    spots = _spots(text, about)
    if not spots:
        head = limit * 2 // 3
        return _joined([(0, head), (len(text) - (limit - head), len(text))])
    # Both ends say what kind of text it is; a quarter of the room is for them.
    end = limit // 8
    kept = _joined([(0, end), (len(text) - end, len(text))])
    for margin in _AROUND:
        for start, stop in spots:
            wide = max(0, start - margin), min(len(text), stop + margin)
            kept = _with(kept, _whole_words(text, *wide) if margin else wide, limit)
    # What room is left goes to the text that follows each part.
    for number, (start, stop) in enumerate(kept):
        room = (limit - _size(kept)) // (len(kept) - number)
        following = kept[number + 1][0] if number + 1 < len(kept) else len(text)
        kept[number] = start, min(following, stop + room)
    return _joined(kept)


def _with(kept: list[Part], part: Part, limit: int) -> list[Part]:
    """Return `kept` with one more part, as it was where there is no room."""
    for apart in (_APART, 0):
        more = _joined([*kept, part], apart)
        if _size(more) <= limit:
            return more
    return kept


def _spots(text: str, about: str) -> list[Part]:
    """Return where `text` has what `about` speaks of, the most telling first."""
    lower = text.lower()
    if len(lower) != len(text):  # some letters have a longer small form; positions would be off
        lower = text
    found: dict[Part, float] = {}
    for span in dict.fromkeys(m[1].lower() for m in _QUOTED.finditer(about)):
        places = [m.span() for m in re.finditer(re.escape(span), lower)][:_RARE]
        found |= dict.fromkeys(places, 2.0 + len(span))
    wanted = {m[0].lower() for m in _WORD.finditer(about)}
    where: dict[str, list[Part]] = {}
    for match in _WORD.finditer(lower):
        if match[0] in wanted and len(places := where.setdefault(match[0], [])) <= _RARE:
            places.append(match.span())
    for word, places in where.items():
        if len(places) <= _RARE and (len(word) > _SHORT or any(c.isdigit() for c in word)):
            for place in places:
                found.setdefault(place, 1 / len(places))
    return [place for place, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]


def _whole_words(text: str, start: int, end: int) -> Part:
    """Return the part, moved inwards to where words begin and end."""
    if start > 0 and (space := text.find(" ", start, start + 12)) >= 0:
        start = space + 1
    if end < len(text) and (space := text.rfind(" ", max(start, end - 12), end)) >= 0:
        end = space
    return start, end


def _joined(parts: Iterable[Part], apart: int = 0) -> list[Part]:
    """Return the parts in order, those that overlap or are at most `apart` apart as one."""
    joined: list[Part] = []
    for start, end in sorted(parts):
        if joined and start - joined[-1][1] <= apart:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif end > start:
            joined.append((start, end))
    return joined


def _size(parts: Sequence[Part]) -> int:
    return sum(end - start for start, end in parts)


def quoted(span: str, shown: Iterable[str]) -> str | None:
    """Return `span` as it stands in one of the texts; None when it stands in none.

    Case, line breaks, quotation marks around it and an ellipsis at its end don't count.
    """
    bare = span.strip().strip("'\"“”‘’«»`").removesuffix("…").removesuffix("...")
    if not bare.split():
        return None
    pattern = re.compile(r"\s+".join(re.escape(part) for part in bare.split()), re.IGNORECASE)
    for text in shown:
        if (match := pattern.search(text)) is not None:
            return match[0]
    return None
