"""How sure a paired comparison is. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product

_EXACT = 14
"""So many differences that are not zero are tried with every choice of signs."""


def mcnemar(won: int, lost: int) -> float:
    """Return the one-sided p-value of `won` against `lost` among pairs that differ.

    The chance of at least `won` heads in `won + lost` tosses of a fair coin. After McNemar 1947,
    exact.
    """
    total = won + lost
    return float(math.fsum(math.comb(total, k) for k in range(won, total + 1)) / 2.0**total)


def paired(differences: Sequence[float], *, seed: int = 0, draws: int = 4000) -> float:
    """Return the one-sided p-value of a mean difference above zero.

    How often the mean is as large when each difference has its sign by chance: exactly for few
    differences, else over `draws` choices, the one seen included, so the same every time and in
    any order of the differences. For differences of one size it is McNemar's test. After Fisher
    1935.
    """
    sizes = sorted(abs(d) for d in differences if d)
    seen = math.fsum(differences)
    if not sizes:
        return 1.0
    slack = 1e-12 * math.fsum(sizes)
    if len(sizes) <= _EXACT:
        signs = product((1.0, -1.0), repeat=len(sizes))
        sums = [math.fsum(s * d for s, d in zip(choice, sizes, strict=True)) for choice in signs]
        return sum(total >= seen - slack for total in sums) / len(sums)
    dice = random.Random(f"paired/{seed}")
    hits = 1
    for _ in range(draws - 1):
        bits = dice.getrandbits(len(sizes))
        total = math.fsum(d if bits >> n & 1 else -d for n, d in enumerate(sizes))
        hits += total >= seen - slack
    return hits / draws


def bootstrap_interval(
    differences: Sequence[float], *, level: float = 0.9, seed: int = 0, draws: int = 4000
) -> tuple[float, float]:
    """Return a percentile interval of the mean difference, paired bootstrap.

    After Efron and Tibshirani 1993.
    """
    if not differences:
        return -1.0, 1.0
    dice, count = random.Random(f"bootstrap/{seed}"), len(differences)
    means = sorted(math.fsum(dice.choices(differences, k=count)) / count for _ in range(draws))
    cut = (1 - level) / 2
    return means[int(cut * draws)], means[min(draws - 1, int((1 - cut) * draws))]


def wealth(differences: Sequence[float], floor: float = 0.0) -> float:
    """Return the evidence that the mean difference is above `floor`, valid at any time.

    What a gambler has who bets on it, example by example, with stakes that follow from what was
    seen before: for a mean at or below `floor` it reaches 1/a with a chance of at most a, however
    often one looks. Differences are in [-1, 1]. After Waudby-Smith and Ramdas 2024.
    """
    money, seen, squares = 1.0, 0.0, 1.0
    for count, difference in enumerate(differences, start=1):
        mean, spread = seen / count, squares / count
        stake = min(max(mean - floor, 0.0) / spread, 0.5 / (1 + abs(floor)))
        stake = max(stake, 0.1 / (1 + abs(floor)))
        money *= 1 + stake * (difference - floor)
        seen += difference
        squares += (difference - floor) ** 2
    return money
