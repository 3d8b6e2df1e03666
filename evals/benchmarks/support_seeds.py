"""Tune the support desk under several seeds and write down every result, failures included.

    python -m evals.benchmarks.support_seeds --seeds 0 1 2

Each seed is one `lg-textgrad optimize` into a fresh run directory on the embedded model; about a
quarter of an hour each on two cores. The results go into `support_seeds.json` beside this script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CONFIG = "graphs/support/optimize.toml"


def run(seed: int, out: Path, reuse: Path | None) -> dict[str, object]:
    """Run one seed and return its `--json` object, or what went wrong.

    What an earlier seed has paid for (the baseline, the reference) is taken from its run directory.
    """
    started = time.monotonic()
    command = [
        sys.executable, "-m", "lg_textgrad", "optimize", CONFIG,
        "--seed", str(seed), "--out", str(out), "--json",
        *(["--reuse", str(reuse)] if reuse is not None else []),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode != 0:
        return {"seed": seed, "exit": done.returncode}
    result = json.loads(done.stdout)
    return {
        "seed": seed,
        "wall_seconds": round(time.monotonic() - started),
        **{k: result[k] for k in ("baseline", "best", "reference", "steps", "accepted", "spent")},
        "prompts": {n: p["after"] for n, p in result["parameters"].items() if p["changed"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/support-seeds"))
    parser.add_argument("--reuse", type=Path, help="run directory to take paid results from")
    options = parser.parse_args()
    file = HERE / "support_seeds.json"
    results: list[dict[str, object]] = []
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        results.append(run(seed, out, options.reuse))
        options.reuse = options.reuse or out
        file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(json.dumps(results[-1], ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
