"""What the documents show: examples run and print what they say, commands and options exist."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from lg_textgrad.cli import parser
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


def test_every_command_in_the_documents_has_the_options_that_it_is_shown_with():
    root = PAGE.parent.parent
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted(root.glob("graphs/*/README.md"))]
    options = dict(of_commands("", parser()))
    shown, unknown = set(), []
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, rest in re.findall(r"(?:`|^ *)lg-textgrad ((?:local )?[a-z]+)\b([^`\n]*)", text, re.MULTILINE):
            shown.add(command)
            given = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest.partition("#")[0])
            unknown += [(page.name, command, o) for o in given if o not in options.get(command, ())]
            unknown += [] if command in options else [(page.name, command, "")]
    assert unknown == []
    assert {"optimize", "resume", "promote", "rollback", "sync", "diff"} <= shown


def of_commands(name, of):
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child, below in action.choices.items():
                yield from of_commands(f"{name} {child}".strip(), below)
    yield name, {option for action in of._actions for option in action.option_strings}
