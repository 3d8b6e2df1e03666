"""One run that is killed (SIGKILL) at random moments and resumed each time.

    python -m evals.benchmarks.kills [--kills 30] [--seed N] [--where DIRECTORY_OR_URL]

The desk of `tests/desk.py` is trained against a server on loopback that answers each request in
the same way, once without a kill and once with them. Told is how often the server was asked for
what the run had already kept (never, is the promise), how many calls were under way at the kills
and so asked again, and whether scores and prompts are those of the run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import lg_textgrad as tg

ROOT = Path(__file__).parents[2]
ROWS = {"train": 6, "val": 8, "test": 4}
SAME = ("baseline", "best", "parameters", "steps", "accepted", "rejected", "stopped_by")
LIMIT = 4
KINDS = ("rollout", "critic", "rewriter")


def project(desk: Any, folder: Path) -> None:
    desk.project(folder, base_url=None, steps=3, max_concurrency=LIMIT)
    first = 0
    for name, count in ROWS.items():
        desk.write_jsonl(folder / f"{name}.jsonl", desk.rows(count, first))
        first += count


def kept(where: str) -> set[tuple[str, ...]]:
    """Return the messages of every request whose reply the run has."""
    with tg.Store(where, read_only=True) as store:
        found = store.results(KINDS)
    return {tuple(m["content"] for m in result["request"]["messages"]) for result in found}


def session(desk: Any, folder: Path, arguments: list[str], url: str) -> Any:
    environment = {"DESK_BASE_URL": url, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "k"}
    return desk.start(arguments, folder, folder / "log", environment)


def finish(desk: Any, folder: Path, arguments: list[str], url: str) -> dict[str, Any]:
    process = session(desk, folder, [*arguments, "--json"], url)
    process.join()
    text = (folder / "log").read_text(encoding="utf-8")
    if process.exitcode != 0:
        sys.exit(text)
    found: dict[str, Any] = json.loads(text[text.index("\n{") :])
    return found


def measure(folder: Path, kills: int, seed: int, where: str) -> dict[str, Any]:
    desk, servers = import_module("tests.desk"), import_module("tests.servers.openai_server")
    project(desk, folder)
    command = ["optimize", "optimize.toml", "--out"]
    with servers.OpenAIServer(desk.Script()) as server:
        whole = finish(desk, folder, [*command, str(folder / "whole")], server.base_url)
        total = len(server.chats)
    kills = min(kills, total - 13)
    moments = sorted(random.Random(seed).sample(range(5, total - 8), kills))
    at_kill: list[tuple[int, set[tuple[str, ...]]]] = []
    arguments = [*command, where]
    started = time.monotonic()
    with servers.OpenAIServer(desk.Script(latency=(0.0, 0.03))) as server:
        for moment in moments:
            process = session(desk, folder, arguments, server.base_url)
            desk.wait_for(
                lambda m=moment: len(server.chats) >= m or not process.is_alive()  # noqa: B023
            )
            if not process.is_alive():
                sys.exit((folder / "log").read_text(encoding="utf-8"))
            process.kill()
            process.join()
            at_kill.append((len(server.chats), kept(where)))
            arguments = ["resume", where]
        end = finish(desk, folder, arguments, server.base_url)
        sent = [desk.texts_of(body) for body in server.chats]
    paid_twice = {text for at, had in at_kill for text in sent[at:] if text in had}
    lost = [len(had - now) for (_, had), (_, now) in pairwise(at_kill)]
    return {
        "kills": kills,
        "calls": total,
        "asked": len(sent),
        "asked_though_kept": len(paid_twice),
        "kept_and_lost": sum(lost),
        "under_way": len(sent) - total,
        "under_way_at_most": kills * LIMIT,
        "differs": [name for name in SAME if end[name] != whole[name]],
        "spent": (end["spent"]["calls"], whole["spent"]["calls"]),
        "seconds": time.monotonic() - started,
    }


def show(told: Mapping[str, Any]) -> None:
    print("| | |\n|---|---|")
    print(f"| kills | {told['kills']} |")
    print(f"| calls of the run that nobody killed | {told['calls']} |")
    print(f"| requests that the server saw | {told['asked']} |")
    print(f"| asked again although kept | {told['asked_though_kept']} |")
    print(f"| kept at one kill and gone at the next | {told['kept_and_lost']} |")
    most = told["under_way_at_most"]
    print(f"| under way at a kill, so asked again | {told['under_way']} (at most {most}) |")
    print(f"| scores, prompts and decisions that differ | {told['differs'] or 'none'} |")
    print(f"| calls that the runs count | {told['spent'][0]} and {told['spent'][1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, help="of the moments; by default never the same")
    parser.add_argument("--where", help="an unused directory or PostgreSQL URL")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    with tempfile.TemporaryDirectory() as folder:
        told = measure(Path(folder), options.kills, seed, options.where or f"{folder}/killed")
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        show(told)
    good = not (told["asked_though_kept"] or told["kept_and_lost"] or told["differs"])
    print(f"\nseed {seed}: {'nothing paid twice, nothing changed' if good else 'NOT as promised'}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
