"""The peers' interpreter: they need older packages than lg_textgrad does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WANTED = Path(__file__).parent / "quality" / "peers.txt"


def interpreter() -> Path:
    """Return the interpreter of `.venv-peers`, installed when it is not there yet.

    Raises `subprocess.CalledProcessError` when the packages cannot be had.
    """
    home = Path(__file__).parents[2] / ".venv-peers"
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(_WANTED)], check=True)
        (home / ".ready").touch()
    return python
