"""The examples of docs/bindings.md run, one after another, and print what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.servers.openai_server import OpenAIServer

PAGE = Path(__file__).parent.parent / "docs" / "bindings.md"


def test_examples_of_the_ways_to_hold_a_prompt_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    said = re.findall(r"^# -> (.*)$", "\n".join(blocks), re.MULTILINE)
    prints = re.findall(r"^print\(", "\n".join(blocks), re.MULTILINE)
    assert len(blocks) >= 9
    assert len(said) == len(prints) >= 9
    with OpenAIServer(lambda body: "It is on its way.", models=None) as server:
        keep = {n: v for n, v in os.environ.items() if not n.startswith(("OPENAI_", "LANGSMITH_"))}
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(blocks)],
            env={
                **keep,
                "OPENAI_API_KEY": "k",
                "OPENAI_BASE_URL": server.base_url,
                "NO_PROXY": "*",
                "PYTHONPATH": str(PAGE.parent.parent),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == said
