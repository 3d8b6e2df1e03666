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
    ready, wanted = home / ".ready", _WANTED.read_text(encoding="utf-8")
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(_WANTED)], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python
