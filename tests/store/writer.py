"""A process that puts results and says of each that it is stored; the tests stop and kill it.

    python -m tests.store.writer WHERE [CONCURRENCY [COUNT]]
"""

from __future__ import annotations

import asyncio
import random
import sys

import lg_textgrad as tg
from lg_textgrad.run import Usage


def reply(number):
    """Sizes from one line to several pages, the same for the same number."""
    return random.Random(number).randbytes(random.Random(-number).choice((20, 400, 3000, 20_000))).hex()


async def main(where, concurrency=4, count=1_000_000):
    numbers = iter(range(int(count)))
    with tg.Store(where) as store:

        async def work():
            for number in numbers:
                await store.aput_result(f"k{number}", "rollout", {"n": number}, reply(number), Usage(1, 0, 1, 1))
                print(number, flush=True)

        await asyncio.gather(*(work() for _ in range(int(concurrency))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
