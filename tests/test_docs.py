"""What the documents show: examples run and print what they say, commands and options exist."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from lg_textgrad.cli import parser
from tests import desk
from tests.servers.openai_server import OpenAIServer

PAGE = Path(__file__).parent.parent / "docs" / "bindings.md"


def printed(parts, server, folder=None):
    """Run the parts as one program whose models are `server`, and return what it prints."""
    keep = {n: v for n, v in os.environ.items() if not n.startswith(("OPENAI_", "LANGSMITH_"))}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        cwd=folder,
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
    return done.stdout


def test_examples_of_the_ways_to_hold_a_prompt_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    said = re.findall(r"^# -> (.*)$", "\n".join(blocks), re.MULTILINE)
    prints = re.findall(r"^print\(", "\n".join(blocks), re.MULTILINE)
    assert len(blocks) >= 9
    assert len(said) == len(prints) >= 9
    with OpenAIServer(lambda body: "It is on its way.", models=None) as server:
        assert printed(blocks, server).splitlines() == said


RULE = "Refunds must go to 'payments'."
AROUND_THE_README = """
import os
from typing import TypedDict
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph

class State(TypedDict, total=False):
    messages: list
    team: str

class builder:                                       # a node that the example has yet to define
    def compile():
        made = StateGraph(State).add_node("triage", triage_node).add_edge(START, "triage")
        return made.compile()

model = ChatOpenAI(model="gpt-4o-mini", max_retries=0)
"""


def routes(body):
    """Play the models of the README: a node that follows the rule, a critic that knows it."""
    if "response_format" not in body:
        return "payments" if RULE in body["messages"][0]["content"] else "delivery"
    if "edits" in desk.schema_of(body)["properties"]:
        return json.dumps(desk.rewrite("\n".join(m["content"] for m in body["messages"])))
    return json.dumps(desk.fitted({"general_rule": RULE, "weight": 0.9}, desk.schema_of(body)))


def test_examples_of_the_readme_run(tmp_path):
    text = (PAGE.parent.parent / "README.md").read_text(encoding="utf-8")
    trained, by_hand = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    asked = iter(f"Where is refund {n} of mine?" for n in range(4))
    for name in ("train", "val"):
        desk.write_jsonl(tmp_path / f"{name}.jsonl", [
            {"inputs": {"messages": [["user", next(asked)]]}, "outputs": {"team": "payments"}}
            for _ in range(2)
        ])  # fmt: skip
    again = "triage.adopt('You route ...')"
    parts = [AROUND_THE_README, trained, "print('---')", again, by_hand, "print(triage.value)"]
    with OpenAIServer(routes, models=None) as server:
        first, second = printed(parts, server, tmp_path).split("---\n")
    assert first.startswith("0.0 -> 1.0 You route ...")
    assert RULE in first
    assert second.startswith("You route ...")
    assert RULE in second


def test_every_extra_is_in_the_readme_with_what_it_installs():
    root = PAGE.parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (root / "README.md").read_text(encoding="utf-8").split("## Install\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| .*: (.+) \|$", text, re.MULTILINE))
    assert told == {
        name: ", ".join(re.match(r"[\w-]+", needed)[0] for needed in found) for name, found in extras.items()
    }


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
