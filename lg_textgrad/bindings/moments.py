"""Dates and times of a run in what it sent: the next run has other ones in their place."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone

from lg_textgrad.bindings.skeleton import Skeleton, tidy

_ZONES = [timezone(timedelta(hours=h)) for h in (-12, 0, 14)]
"""The last to have a day, the first, and one between: everywhere else it is a day of theirs."""
_CLOCK = (
    r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?(?:\s?(?:[ap]m\b|[ap]\.m\.))?"
    r"(?:\s?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?"
)
_MOST_MINUTES = 60
"""Times of day without a date are known for runs that took no longer."""


def with_moments(
    skeleton: Skeleton, texts: Iterable[str], since: datetime, until: datetime
) -> Skeleton:
    """Return the template with the dates and times of its own run as variables, `date` and `time`.

    `texts` were made from it between `since` and `until`, which know their zones. What varied
    within a time (the seconds) becomes part of it.
    """
    fitting = [text for text in texts if skeleton.match(text) is not None]
    if not fitting:
        return skeleton
    text, found = fitting[0], skeleton
    spans, position = found.spans(text) or (), 0
    regions: list[tuple[int, int, str]] = []
    for constant, name, span in zip(skeleton.constants, skeleton.names, spans, strict=False):
        start = position + len(constant)
        position = start + len(span)
        regions.append((start, position, name))
    before = list(regions)
    for start, end, kind in moments(text, since, until):
        if any(a <= start and end <= b for a, b, _ in regions):
            continue
        met = [r for r in regions if r[0] < end and start < r[1]]
        whole = min([start, *(a for a, _, _ in met)]), max([end, *(b for _, b, _ in met)])
        name = _free(kind, regions) if whole == (start, end) else met[0][2]
        regions = sorted([*(r for r in regions if r not in met), (*whole, name)])
    if regions == before:
        return skeleton
    edges = [0, *(edge for a, b, _ in regions for edge in (a, b)), len(text)]
    constants = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    made = tidy(constants, [name for _, _, name in regions])
    return made if all(made.match(one) is not None for one in fitting) else skeleton


def moments(text: str, since: datetime, until: datetime) -> list[tuple[int, int, str]]:
    """Return start, end and kind (`date`, `time`) of each date and time between the two."""
    days = {(at.astimezone(zone)).date() for at in (since, until) for zone in _ZONES}
    found = [
        (m.start(), m.end(), "time" if ":" in m[0] else "date")
        for m in re.finditer(_dates(sorted(days)), text, re.IGNORECASE)
    ]
    clocks = list(_clocks(since, until))
    if clocks:
        either = "|".join(clocks)
        for m in re.finditer(rf"(?<![\w:.])(?:{either})(?![\w:])", text, re.IGNORECASE):
            if all(m.end() <= a or b <= m.start() for a, b, _ in found):
                found.append((m.start(), m.end(), "time"))
    return sorted(found)


def _dates(days: Sequence[date]) -> str:
    """Return what matches the days in the usual ways to write them, with a time of day or not."""
    written = "|".join(form for day in days for form in _forms(day))
    day = f"(?:{written})"
    with_clock = rf"{day}(?:(?:T|,?\s+(?:at\s+)?){_CLOCK})?"
    return rf"(?<!\w)(?:{with_clock}|{_CLOCK},?\s+(?:on\s+)?{day})(?!\w)"


def _forms(day: date) -> Iterator[str]:
    numbers = f"0?{day.month}", f"0?{day.day}"
    for one, other in (numbers, numbers[::-1]):
        yield rf"{one}[-/.]{other}[-/.]{day.year}"
    yield rf"{day.year}[-/.]{numbers[0]}[-/.]{numbers[1]}"
    week = f"{calendar.day_name[day.weekday()]}|{calendar.day_abbr[day.weekday()]}"
    month = f"(?:{calendar.month_name[day.month]}|{calendar.month_abbr[day.month]})"
    number = rf"{numbers[1]}(?:st|nd|rd|th)?"
    called = rf"(?:(?:{week})\.?,?\s+)?"
    yield rf"{called}{month}\.?\s+{number}(?:,?\s+{_CLOCK})?,?\s+{day.year}"
    yield rf"{called}{number}\.?\s+(?:of\s+)?{month}\.?,?\s+{day.year}"


def _clocks(since: datetime, until: datetime) -> Iterator[str]:
    """Yield what matches the minutes between the two, here and in UTC, with seconds or not."""
    count = int((until - since).total_seconds() // 60) + 2
    if count > _MOST_MINUTES:
        return
    for at in dict.fromkeys(
        (since + timedelta(minutes=n)).astimezone(zone).replace(second=0, microsecond=0)
        for n in range(count)
        for zone in (None, UTC)
    ):
        more = r"(?::\d\d(?:[.,]\d+)?)?"
        yield rf"{at:%H:%M}{more}(?:\s?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?"
        half = "p" if at.hour >= 12 else "a"
        yield rf"0?{at.hour % 12 or 12}:{at:%M}{more}\s?(?:{half}m\b|{half}\.m\.)"


def _free(kind: str, regions: Iterable[tuple[int, int, str]]) -> str:
    taken = {name for _, _, name in regions}
    number = 1
    while (name := kind if number == 1 else f"{kind}{number}") in taken:
        number += 1
    return name
