"""A store of a million results: how large it is, how fast it opens, answers and takes more.

    python -m evals.benchmarks.store_scale [--results 1000000] [--where DIRECTORY_OR_URL]

Results look like a prompt of some hundred words and a reply of a few lines. Writing is measured one
after the other and 16 at once, as runs write; a standstill is time in which the event loop could do
nothing else meanwhile. Times of lookups are medians: on a busy machine single ones say more about
the other work. The figures of the last line are those that are promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lg_textgrad as tg
from lg_textgrad.run import Usage

WORDS = [f"{a}{b}" for a in ("order", "re", "cust", "bill") for b in ("fund", "omer", "ly", "ing")]
PROMPT = "You are the desk's writer. Keep it short, be kind, name the team, promise nothing. " * 8
USAGE = Usage(1, 0, 420, 60, 1.5)


def key(number: int) -> str:
    return f"{number:064x}"


def request(number: int) -> dict[str, Any]:
    dice = random.Random(number)
    text = " ".join(dice.choices(WORDS, k=120))
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]
    return {"model": {"model": "m"}, "messages": messages, "temperature": 0.0, "seed": number}


def reply(number: int) -> dict[str, Any]:
    text = " ".join(random.Random(-number).choices(WORDS, k=50))
    return {"text": text, "data": None, "finish_reason": "stop"}


async def write(store: tg.Store, first: int, count: int, at_once: int) -> float:
    """Return the seconds for `count` results, `at_once` of them under way at any time."""
    numbers = iter(range(first, first + count))

    async def worker() -> None:
        for n in numbers:
            await store.aput_result(key(n), "rollout", request(n), reply(n), USAGE)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return time.perf_counter() - started


async def lag_while(work: Any) -> tuple[float, float]:
    """Return what the work returns, and the longest time for which the loop stood still, in ms."""
    longest, going = 0.0, True

    async def watch() -> None:
        nonlocal longest
        while going:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    done = await work
    going = False
    await watching
    return done, longest * 1000


def lookups(store: tg.Store, keys: list[str]) -> tuple[list[float], float]:
    """Return the milliseconds of each lookup, and those that the processor worked on average."""
    found, busy = [], time.process_time()
    for name in keys:
        started = time.perf_counter()
        store.get_result(name)
        found.append((time.perf_counter() - started) * 1000)
    return found, (time.process_time() - busy) / len(keys) * 1000


def measure(where: str, results: int) -> dict[str, float]:
    dice = random.Random(0)
    told: dict[str, float] = {"results": results}
    with tg.Store(where) as store:
        there = store.paid()
        if not there:
            told["filling_s"] = asyncio.run(write(store, 0, results, 2000))
        else:
            results = there["rollout"].calls
            told["results"] = results
    if (path := Path(where) / "run.sqlite").is_file():
        told["bytes_each"] = path.stat().st_size / results
        plain = [len(json.dumps([request(n), reply(n)])) for n in range(200)]
        told["bytes_as_json"] = statistics.fmean(plain)
    started = time.perf_counter()
    store = tg.Store(where)
    told["open_s"] = time.perf_counter() - started
    with store:
        started = time.perf_counter()
        paid = store.paid()
        told["paid_s"] = time.perf_counter() - started
        assert paid["rollout"].calls == results
        for name, keys in (
            ("hit", [key(dice.randrange(results)) for _ in range(5000)]),
            ("miss", [key(results + dice.randrange(10**9)) for _ in range(5000)]),
        ):
            times, told[f"{name}_busy_ms"] = lookups(store, keys)
            told[f"{name}_ms"] = statistics.median(times)
            told[f"{name}_p99_ms"] = statistics.quantiles(times, n=100)[98]
        for at_once, count in ((1, 300), (16, 3000)):
            seconds, lag = asyncio.run(lag_while(write(store, results, count, at_once)))
            results += count
            told[f"writes_s_{at_once}"] = count / seconds
            told[f"lag_ms_{at_once}"] = lag
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=int, default=1_000_000)
    parser.add_argument("--where", help="a directory or PostgreSQL URL; filled if need be")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = measure(options.where or f"{folder}/run", options.results)
    if options.json:
        print(json.dumps(told, indent=2))
        return
    print(f"| results | {told['results']:,} |\n|---|---|")
    if "bytes_each" in told:
        as_json = f"(as JSON alone: {told['bytes_as_json']:,.0f})"
        print(f"| bytes each | {told['bytes_each']:,.0f} {as_json} |")
    if "filling_s" in told:
        print(f"| filled, each second | {told['results'] / told['filling_s']:,.0f} |")
    print(f"| opening | {told['open_s']:.3f} s |")
    print(f"| adding up what was paid | {told['paid_s']:.3f} s |")
    for name, word in (("hit", "found"), ("miss", "not there")):
        of = f"99 %: {told[f'{name}_p99_ms']:.3f}, processor: {told[f'{name}_busy_ms']:.3f}"
        print(f"| lookup, {word} | {told[f'{name}_ms']:.3f} ms ({of}) |")
    gain = told["writes_s_16"] / told["writes_s_1"]
    print(f"| durable writes a second, one by one | {told['writes_s_1']:,.0f} |")
    at_once = f"{told['writes_s_16']:,.0f} ({gain:.1f} times)"
    print(f"| durable writes a second, 16 at once | {at_once} |")
    print(f"| longest standstill of the event loop | {told['lag_ms_16']:.1f} ms |")
    good = told["open_s"] < 1 and told["hit_ms"] < 1 and told["miss_ms"] < 1
    print(f"\nopens in under 1 s and answers in under 1 ms: {'yes' if good else 'no'}")


if __name__ == "__main__":
    main()
