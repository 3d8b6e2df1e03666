"""Each example graph that declares no prompts is tuned as its README says, by one command."""

from __future__ import annotations

import json
import re

import pytest

from graphs.research import graph as research
from graphs.supervisor import graph as supervisor
from lg_textgrad import cli
from tests.desk import fitted, rewrite, schema_of
from tests.graphs import test_research, test_supervisor
from tests.graphs.parts import ROOT, system_prompt
from tests.servers.openai_server import OpenAIServer

RULES = {
    "research": "An answer must begin with the words 'Holm archive:'.",
    "supervisor": "An answer must end with the words 'Fair winds!'.",
}


def obeying(name, rule, graph):
    """Answer as `graph` does where the prompt has the rule, without its form where it hasn't."""
    form = re.search(r"'(.+?)'", rule)[1]

    def handler(body):
        schema = schema_of(body)["properties"] if "response_format" in body else {}
        content = "\n".join(m["content"] for m in body["messages"])
        if "general_rule" in schema:
            known = f"words '{form}'" in content
            return json.dumps(fitted({"general_rule": rule if known else "", "weight": 0.9}, schema_of(body)))
        if "edits" in schema:
            return json.dumps(rewrite(content))
        said = graph(body)
        final = not schema and "read entries" not in content
        return said if not final or rule in system_prompt(body) else said.replace(form, "Well")

    return handler


@pytest.mark.parametrize(
    ("name", "script", "module", "form", "calls_a_run"),
    [
        ("research", test_research.scripted, research, "Holm archive:", 4),
        ("supervisor", test_supervisor.scripted, supervisor, "Fair winds!", 3),
    ],
    ids=["research", "supervisor"],
)
def test_the_documented_command_finds_and_tunes_the_prompts(
    name, script, module, form, calls_a_run, tmp_path, monkeypatch, capsys
):
    readme = (ROOT / "graphs" / name / "README.md").read_text(encoding="utf-8")
    command = f"optimize graphs/{name}/optimize.toml"
    assert f"    lg-textgrad {command}\n" in readme
    for variable in ("MODEL", "BASE_URL", "API_KEY"):
        monkeypatch.delenv(f"{name.upper()}_{variable}", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.chdir(ROOT)
    with OpenAIServer(obeying(name, RULES[name], script), models=None) as server:
        monkeypatch.setenv("LG_TEXTGRAD_LOCAL_URL", server.base_url)
        module.model.cache_clear()
        code = cli.main(
            [*command.split(), "--model", "m", "--base-url", server.base_url, "--json"]
            + ["--out", str(tmp_path / "run")]
        )
        module.model.cache_clear()
    said = capsys.readouterr()
    assert code == 0, said.err
    document = json.loads(said.out)
    assert f"Discovery found the prompts {', '.join(document['parameters'])}" in said.err
    most, baseline = map(int, re.search(r"about (\d+) calls, (\d+) of", " ".join(said.err.split())).groups())
    assert baseline == calls_a_run * 8  # what discovery saw a run take, not one call a prompt
    assert name == "research" or document["spent"]["calls"] <= most
    for split in ("val", "test"):
        assert document["best"][split] > document["baseline"][split]
    assert any(form in p["after"] and form not in p["before"] for p in document["parameters"].values())
