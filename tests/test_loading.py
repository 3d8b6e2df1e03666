"""What the user names is found, and what is wrong with it is said."""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.data import read_prompts
from lg_textgrad.errors import ConfigurationError, GraphError, ParameterError
from lg_textgrad.loading import (
    _KINDS,
    Config,
    as_comment,
    load_evaluators,
    load_graph,
    load_object,
    read_config,
    write_prompts,
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(name, text):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(name)
        importlib.invalidate_caches()

    yield write
    for name in list(sys.modules):
        if name in written or any(w.startswith(f"{name}.") for w in written):
            del sys.modules[name]


GRAPH = """
import lg_textgrad as tg
from langgraph.graph import START, StateGraph

first = tg.Parameter("first", "One.")
alias = first
second = tg.Parameter("second", "Two.")
builder = StateGraph(dict).add_node("n", lambda s: s).add_edge(START, "n")
graph = builder.compile()
declared = tg.TrainableGraph(graph, [second])
"""


def test_compiled_graph_gets_the_parameters_of_its_module(module):
    module("loading_a", GRAPH)
    assert list(load_graph("loading_a:graph").parameters) == ["first", "second"]


def test_trainable_graph_is_taken_as_it_is(module):
    module("loading_b", GRAPH)
    found = load_graph("loading_b:declared")
    assert found is load_object("loading_b:declared", "graph")[0]
    assert list(found.parameters) == ["second"]


def test_module_in_a_package_is_found_from_the_working_folder(module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    module("loading_pkg.agent", GRAPH)
    assert list(load_graph("loading_pkg.agent:graph").parameters) == ["first", "second"]


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("loading_c:builder", GraphError, r"call \.compile\(\) on it first"),
        ("loading_c:first", GraphError, "A Parameter is not a compiled LangGraph graph"),
        ("loading_c:missing", GraphError, "The module 'loading_c' has no 'missing'; check"),
        ("loading_c", GraphError, "write MODULE:NAME, as in my_app.agent:graph"),
        (":graph", GraphError, "write MODULE:NAME"),
        ("nowhere:graph", GraphError, "There is no module 'nowhere'.*install it"),
        ("loading_c.sub:graph", GraphError, "There is no module 'loading_c.sub'"),
        ("no.where:graph", GraphError, "There is no module 'no.where'"),
        (".relative:graph", GraphError, "neither a Python module nor a file"),
    ],
)
def test_graph_that_is_not_there_is_told(module, spec, error, said):
    module("loading_c", GRAPH)
    with pytest.raises(error, match=said):
        load_graph(spec)


def test_two_parameters_of_one_name_are_refused(module):
    module("loading_d", GRAPH + "\nother = tg.Parameter('first', 'Again.')\n")
    with pytest.raises(ParameterError, match="Two parameters are named 'first'"):
        load_graph("loading_d:graph")


def test_missing_dependency_is_told_from_a_missing_module(module):
    module("loading_e", "import surely_not_installed\n")
    with pytest.raises(GraphError, match="loading_e imports 'surely_not_installed'.*not installed"):
        load_graph("loading_e:graph")
    with pytest.raises(ConfigurationError, match="imports 'surely_not_installed'") as caught:
        load_evaluators(["loading_e:check"])
    assert not isinstance(caught.value, GraphError)


def test_our_own_error_at_import_comes_through(module):
    module("loading_f", "import lg_textgrad as tg\nparameter = tg.Parameter('', 'x')\n")
    with pytest.raises(ParameterError, match="needs a name"):
        load_graph("loading_f:graph")


def test_evaluators_may_be_functions_and_lists(module):
    module("loading_g", "def a(): ...\ndef b(): ...\nALL = (a, b)\nONE = [b]\n")
    found = load_evaluators(["loading_g:a", "loading_g:ALL", "loading_g:ONE"])
    assert [f.__name__ for f in found] == ["a", "a", "b", "b"]


# Prompt files.

names = st.text(min_size=1).filter(str.strip)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.dictionaries(names, st.text()), comment=st.text())
@example(prompts={"a": 'ends in "quotes"""""'}, comment="")
@example(prompts={"a": "\n\nstarts and ends\n\n"}, comment="# \x00 \x85 \r")
@example(prompts={"a b": "\r\n\\r \\u0000 \x00 \x7f {braces}", '"q"\n': "", "ä": "ü\u2028"}, comment="")
@example(prompts={"-": "\\", "1.5": '"""', "x\x7fy": "\ud7ff\ue000"}, comment="two\nlines")
def test_prompts_that_are_written_are_read_back(tmp_path, prompts, comment):
    path = tmp_path / "prompts.toml"
    write_prompts(path, prompts, comment)
    assert read_prompts(path) == prompts
    assert list(read_prompts(path)) == list(prompts)


def test_written_prompts_are_pleasant_to_review(tmp_path):
    path = tmp_path / "p.toml"
    write_prompts(path, {"triage": "You route.\nOne word."}, "From here.\n\nTo there.")
    assert path.read_text() == (
        '# From here.\n#\n# To there.\n\n[prompts]\ntriage = """\nYou route.\nOne word.\n"""\n'
    )


def test_prompts_written_by_a_person_are_read(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("[prompts]\na = 'One.'\nb = \"\"\"\nTwo.\nLines.\n\"\"\"\nc = \"\"\"Three.\"\"\"\n")
    assert read_prompts(path) == {"a": "One.", "b": "Two.\nLines.", "c": "Three."}
    with tg.prompts(tg.read_prompts(path)):
        assert str(tg.Parameter("b", "x")) == "Two.\nLines."


@pytest.mark.parametrize("text", ["", "prompts = 3", "[prompts]\na = 1", "[prompts.a]\nb = 'c'"])
def test_prompts_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"needs a table \[prompts\]"):
        read_prompts(path)


def test_unreadable_files_are_told(tmp_path):
    with pytest.raises(ConfigurationError, match="There is no prompts file"):
        read_prompts(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_prompts(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe4'")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_config(tmp_path / "latin.toml")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_prompts(tmp_path / "no" / "p.toml", {})


@given(st.text())
def test_any_text_can_be_a_comment(text):
    assert tomllib.loads(as_comment(text)) == {}


# optimize.toml.


def test_paths_count_from_the_configuration_s_folder(tmp_path, monkeypatch):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "o.toml").write_text(
        'train = "data/t.jsonl"\nval = "/data/v.jsonl"\nreference = "../r.toml"\nevaluator = "a:b"\n'
        'out = "runs/x"\nreuse = "../old"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = read_config("app/o.toml")
    assert config.train == os.path.join("app", "data", "t.jsonl")
    assert os.path.abspath(config.val) == os.path.abspath("/data/v.jsonl")
    assert config.reference == "r.toml"
    assert (config.out, config.reuse) == (os.path.join("app", "runs", "x"), "old")
    assert config.test is None
    assert config.evaluator == ["a:b"]


def test_files_of_python_count_from_the_configuration_s_folder_else_from_here(tmp_path, monkeypatch):
    for file in ("app/agent.py", "app/langgraph.json", "app/sub/judges.py", "here.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("def team(): ...\n")
    (tmp_path / "app" / "o.toml").write_text(
        'graph = "agent.py:graph"\nevaluator = ["sub/judges.py:team", "here.py:team", "a.b:c"]\n'
        'summary_evaluator = "./sub/judges.py:team"\nredact = "../here.py:mask"\noptimizer = "gepa"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = read_config("app/o.toml")
    judges = os.path.join("app", "sub", "judges.py")
    assert config.graph == f"{os.path.join('app', 'agent.py')}:graph"
    assert config.evaluator == [f"{judges}:team", "here.py:team", "a.b:c"]
    assert config.summary_evaluator == [f"{judges}:team"]
    assert (config.redact, config.optimizer) == ("here.py:mask", "gepa")
    assert [f.__name__ for f in load_evaluators(config.evaluator[:2])] == ["team", "team"]
    (tmp_path / "app" / "o.toml").write_text('graph = "langgraph.json:agent"\n')
    assert read_config("app/o.toml").graph == f"{os.path.join('app', 'langgraph.json')}:agent"
    (tmp_path / "here.json").write_text("{}")
    (tmp_path / "app" / "o.toml").write_text(f'graph = "here.json:agent"\nredact = "{tmp_path}/app/agent.py:f"\n')
    config = read_config("app/o.toml")
    assert config.graph == "here.json:agent"
    assert os.path.abspath(config.redact.rpartition(":")[0]) == str(tmp_path / "app" / "agent.py")


def test_every_setting_has_a_kind_that_is_checked():
    for f in fields(Config):
        _, fits = _KINDS[str(f.type).removesuffix(" | None")]
        default = getattr(Config(), f.name)
        assert default is None or fits(default)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("steps = 1.5", "'steps' must be a whole number, not 1.5"),
        ("steps = true", "'steps' must be a whole number, not True"),
        ('min_gain = "x"', "'min_gain' must be a number"),
        ("graph = 3", "'graph' must be a string"),
        ("brief_critic = 'yes'", "'brief_critic' must be true or false"),
        ("evaluator = 3", "'evaluator' must be a list of strings"),
        ("evaluator = ['a', 3]", "'evaluator' must be a list of strings"),
        ("[weights]\na = 'x'", "'weights' must be a table of numbers"),
        ("test = []", "'test' must be a string"),
        ("name_of_it = 'x'", "unknown setting 'name_of_it'; there are acceptance, "),
        ("evaluators = ['a']", r"unknown setting 'evaluators'; the nearest is 'evaluator'"),
        ("steps = ", "is not valid TOML: Invalid value"),
    ],
)
def test_wrong_setting_is_named(tmp_path, line, said):
    (tmp_path / "o.toml").write_text(line)
    with pytest.raises(ConfigurationError, match=said):
        read_config(tmp_path / "o.toml")


def test_whole_numbers_are_numbers(tmp_path):
    (tmp_path / "o.toml").write_text("min_gain = 0\nbudget_seconds = 60\n[weights]\na = 2\n")
    config = read_config(tmp_path / "o.toml")
    assert (config.min_gain, config.budget_seconds, config.weights) == (0, 60, {"a": 2})


def test_address_of_a_server_that_nobody_would_ask_is_refused():
    given = {"graph": "g:g", "train": "t", "val": "v", "evaluator": ["e:e"], "base_url": "http://h/v1"}
    for local in ({}, {"rewriter_model": "local"}):
        with pytest.raises(ConfigurationError, match=r"'http://h/v1' would not be used.* --model"):
            Config(**given, **local).check()
    Config(**given, model="theirs").check()
    Config(**given, rewriter_model="theirs").check()  # the critic alone is the embedded one


def test_missing_settings_are_named_with_their_flags():
    with pytest.raises(ConfigurationError, match="'val' is missing; give --val or set it"):
        Config(graph="a:b", train="t").check()
    with pytest.raises(ConfigurationError, match="'test' is missing"):
        Config(graph="a:b").check(needs=("graph", "test"))
    with pytest.raises(ConfigurationError, match="'val_rows' must be at least 1, not 0"):
        Config(val_rows=0).check(needs=())
