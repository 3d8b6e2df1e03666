"""Draw the score of each method against the calls that it had made, as `curves.svg` beside this.

    python -m evals.benchmarks.quality.plot [results.json]

A line is one run's best validation score, call by call; its marker at the end is what that run's
prompt scored on fresh rows. Drawn by matplotlib, which is in `.venv-peers`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from evals.benchmarks.peers_environment import interpreter
from evals.benchmarks.quality.results import Result, by_task

HERE = Path(__file__).parent
_NAMES = {
    "portfolio": "lg_textgrad (Portfolio)", "tgd": "lg_textgrad (TextualGradientDescent)",
    "textgrad": "TextGrad", "gepa": "GEPA", "mipro": "MIPROv2",
}  # fmt: skip
_COLOURS = {
    "portfolio": "#d62728", "tgd": "#ff7f0e", "textgrad": "#1f77b4", "gepa": "#2ca02c",
    "mipro": "#9467bd",
}  # fmt: skip


def draw(results: Sequence[Result], to: Path) -> None:
    """Draw one panel a task and number of validation rows, where a way is known."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lg_textgrad"  # the same picture for the same results
    from matplotlib import pyplot as plt

    tasks = {
        about: own for about, own in by_task(results).items() if any(r.get("way") for r in own)
    }
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, sharey=True
    )
    for panel, ((task, val), all_of_it) in zip(panels[0], tasks.items(), strict=True):
        own = [r for r in all_of_it if "test" in r]
        seeds = [r["test"] for r in own if r["method"] == "seed"]
        if seeds:
            mean = sum(seeds) / len(seeds)
            panel.axhline(mean, color="grey", linestyle=":", label="seed prompt, fresh rows")
        for method, name in _NAMES.items():
            for n, run in enumerate(r for r in own if r["method"] == method and r.get("way")):
                calls, scores = zip(*run["way"], strict=True)
                line = [*calls, run["calls"]], [*scores, scores[-1]]
                panel.step(*line, where="post", color=_COLOURS[method], linewidth=1)
                panel.plot(
                    run["calls"], run["test"], "o", color=_COLOURS[method],
                    label=None if n else name,
                )  # fmt: skip
        panel.set_title(f"{task}\n{val} validation rows", fontsize=9)
        panel.set_xlabel("model calls")
    panels[0][0].set_ylabel("score: best on validation (lines),\nfresh rows (dots)")
    handles = {
        label: handle
        for panel in panels[0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False, fontsize=8
    )
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(to, metadata={"Date": None})


def main() -> int:
    """Draw, or have the peers' interpreter do it."""
    if find_spec("matplotlib") is None:
        command = [str(interpreter()), "-m", "evals.benchmarks.quality.plot", *sys.argv[1:]]
        return subprocess.run(command, check=False, cwd=HERE.parents[2]).returncode
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results.json"
    draw(json.loads(results.read_text(encoding="utf-8")), HERE / "curves.svg")
    print(HERE / "curves.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
