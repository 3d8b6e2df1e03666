"""The peers' interpreter: they need older packages than lg_textgrad does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_WANTED = Path(__file__).parent / "quality" / "peers.txt"


def interpreter() -> Path:
    """Return the interpreter of `.venv-peers`, installed when it is not there yet.

    Raises `subprocess.CalledProcessError` when the packages cannot be had.
    """
    home = _ROOT / ".venv-peers"
    python = home / "bin" / "python"
    ready, wanted = home / ".ready", _WANTED.read_text(encoding="utf-8")
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(_WANTED)], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python


def outcome_of(module: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a module of the peers makes of a job, both JSON.

    Raises `RuntimeError` with the end of what it said when it fails.
    """
    done = subprocess.run(
        [str(interpreter()), "-m", module],
        input=json.dumps(job), capture_output=True, text=True, check=False, cwd=_ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-400:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found
