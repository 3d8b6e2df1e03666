"""Prompts from LangSmith's hub and back: commits, tags, promotion and rollback."""

from __future__ import annotations

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.load import dumps
from langchain_core.messages import SystemMessage
from langchain_core.prompts import (
    ChatPromptTemplate,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
    SystemMessagePromptTemplate,
)

import lg_textgrad as tg
from lg_textgrad.errors import ConfigurationError, LangSmithError, ParameterError, RunMismatchError
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.hub import Hub, describe, handle, hub_names
from lg_textgrad.langsmith.manifests import text_of, with_text
from lg_textgrad.langsmith.promotion import (
    begin,
    go_on,
    keep_hub,
    plan_promotion,
    plan_rollback,
    promote,
    push_accepted,
    rollback,
    to_push,
)
from lg_textgrad.store import Store
from tests import desk
from tests.desk import START_PROMPTS
from tests.langsmith.test_experiments import models, surroundings  # noqa: F401 - one is a fixture
from tests.servers.langsmith_server import Fault


def manifest(prompt):
    return json.loads(dumps(prompt))


def revived(made):
    """The prompt as LangChain reads it."""
    from langchain_core.load import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself a beta
        return load(made, allowed_objects="core")


# Texts and templates.

names = st.sampled_from(["city", "team", "user_name"])
pieces = st.text(alphabet="ab {}\n\"'\\%$", max_size=12) | names.map(lambda n: f"{{{n}}}")


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=6).map("".join), st.sets(names), st.sampled_from(["ab", "xy"]))
def test_text_on_the_hub_is_read_back_and_means_the_same_to_langchain(text, placeholders, value):
    made = with_text(None, text, placeholders, "p")
    assert text_of(made, "p") == text
    prompt = revived(made)
    values = {name: value for name in placeholders}
    expected = tg.Parameter("p", "x", placeholders=tuple(placeholders)).at(text).message(**values).content
    assert prompt.invoke(values).to_messages()[0].content == expected
    assert set(prompt.input_variables) <= placeholders


def test_everything_else_in_a_prompt_stays_as_it_is():
    prompt = ChatPromptTemplate([
        ("system", "You serve {shop}."), MessagesPlaceholder("history"), MessagesPlaceholder("more", optional=True),
        ("human", "{question} {{json}}"),
    ])  # fmt: skip
    before = manifest(prompt)
    made = with_text(before, "You serve {shop} in {city}.", ["shop", "city"], "p")
    assert made["kwargs"]["messages"][1:] == before["kwargs"]["messages"][1:]
    assert made["kwargs"]["input_variables"] == ["city", "history", "question", "shop"]
    assert text_of(before, "p") == "You serve {shop}."  # nothing was changed in place
    said = revived(made).invoke({"shop": "S", "city": "C", "question": "Q", "history": []})
    assert [m.content for m in said.to_messages()] == ["You serve S in C.", "Q {json}"]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (PromptTemplate.from_template("Hi {x}, {{y}}"), "Hi {x}, {y}"),
        (ChatPromptTemplate([SystemMessage("Be {kind}.")]), "Be {kind}."),
        (ChatPromptTemplate([("system", "Hi {{x}} and {y}")], template_format="mustache"), "Hi {x} and {y}"),
        (ChatPromptTemplate([SystemMessagePromptTemplate.from_template([{"type": "text", "text": "One {x}"}])]), "One {x}"),
    ],
)
def test_every_kind_of_prompt_that_has_one_text(prompt, text):
    before = manifest(prompt)
    assert text_of(before, "p") == text
    plain = isinstance(getattr(prompt, "messages", [None])[0], SystemMessage)
    after = with_text(before, text + "!", [] if plain else ["x"], "p")
    assert text_of(after, "p") == text + "!"
    assert with_text(after, text, [] if plain else ["x"], "p")["kwargs"].keys() == before["kwargs"].keys()


def test_prompt_that_was_saved_with_its_model():
    prompt = manifest(ChatPromptTemplate([("system", "Be {kind}.")]))
    saved = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "runnable", "RunnableSequence"],
             "kwargs": {"first": prompt, "last": {"lc": 1, "type": "constructor", "id": ["x", "ChatOpenAI"], "kwargs": {}}}}  # fmt: skip
    made = with_text(saved, "Be very {kind}.", ["kind"], "p")
    assert text_of(made, "p") == "Be very {kind}."
    assert made["kwargs"]["last"] == saved["kwargs"]["last"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (ChatPromptTemplate([HumanMessagePromptTemplate.from_template("hi")]), "has no system message"),
        (ChatPromptTemplate([("system", "{{#list}}x{{/list}}")], template_format="mustache"), "more than variables"),
        (PromptTemplate.from_template("{{ x }}", template_format="mustache"), None),
        (ChatPromptTemplate([("system", "{x!r}")]), "with more than a name"),
        (ChatPromptTemplate([("system", "{{{x}}}")]), "inside of braces that are text"),
    ],
)
def test_prompt_that_cannot_be_tuned_says_why(prompt, words):
    if words is None:
        assert text_of(manifest(prompt), "p") == "{x}"
        return
    with pytest.raises(ParameterError, match=words):
        text_of(manifest(prompt), "p")


def test_kinds_of_templates_that_are_not_known():
    odd = manifest(PromptTemplate.from_template("x"))
    odd["kwargs"]["template_format"] = "jinja2"
    with pytest.raises(ParameterError, match="is a jinja2 template"):
        text_of(odd, "p")
    odd["kwargs"] = {}
    with pytest.raises(ParameterError, match="no template that can be read"):
        text_of(odd, "p")
    broken = manifest(PromptTemplate.from_template("x"))
    broken["kwargs"]["template"] = "{"
    with pytest.raises(ParameterError, match="is no f-string template"):
        text_of(broken, "p")
    two = manifest(ChatPromptTemplate([SystemMessagePromptTemplate.from_template(["a", "b"])]))
    with pytest.raises(ParameterError, match="has 2 parts"):
        text_of(two, "p")


@pytest.mark.parametrize(
    ("prompt", "text", "placeholders", "words"),
    [
        (None, "{a.b}", ["a.b"], "cannot have the placeholder {a.b} on the hub"),
        (ChatPromptTemplate([("system", "x")], template_format="mustache"), "{{x}}", [], "double braces"),
        (ChatPromptTemplate([SystemMessage("x")]), "{x}", ["x"], "is no template, so it cannot have"),
    ],
)
def test_text_that_a_template_cannot_hold(prompt, text, placeholders, words):
    with pytest.raises(ParameterError, match=words):
        with_text(None if prompt is None else manifest(prompt), text, placeholders, "p")


# Names.


def test_names_on_the_hub():
    assert hub_names(["triage", "sub/Writer 2"], ["Support"]) == {
        "triage": "support-triage", "sub/Writer 2": "support-sub-writer-2",
    }  # fmt: skip
    assert hub_names(["a", "b"], ["a=my-a"]) == {"a": "my-a"}
    assert handle("9 Lives!") == "lives"
    assert handle("!") == "prompt"


@pytest.mark.parametrize(
    ("hub", "words"),
    [
        (["one", "two"], "one prefix, --hub support"),
        (["one", "a=x"], "one prefix, --hub support"),
        (["c=x"], "no parameter 'c' to take from the hub; the graph has a, b"),
        (["a=My Prompt"], "'My Prompt' is no name of a prompt"),
        (["a=x", "b=x"], "Two parameters would be the prompt 'x'"),
    ],
)
def test_names_that_do_not_fit(hub, words):
    with pytest.raises(ConfigurationError, match=words):
        hub_names(["a", "b"], hub)


# Commits and tags, read back with the real client.


@pytest.fixture
def hub(langsmith):
    return Hub(langsmith)


def put(client, name, text, **more):
    """Commit a text as a person would."""
    client.push_prompt(name, object=ChatPromptTemplate([("system", text)]), **more)


def system(client, name):
    return client.pull_prompt(name, skip_cache=True).messages[0].prompt.template


def test_push_makes_commits_with_a_description_that_the_client_reads_back(client, server, hub):
    assert hub.pull("desk-a") is None
    first = hub.push("desk-a", "One {x} {y}.", ["x"], parent=None, about="The prompt of 'a'.", why="because\n" + "x" * 2000)
    assert system(client, "desk-a") == "One {x} {{y}}."
    assert client.get_prompt("desk-a").description == "The prompt of 'a'."
    second = hub.push("desk-a", "Two {x}.", ["x"], parent=first, about="", why="val: 0.1 -> 0.9")
    told = list(client.list_prompt_commits("desk-a"))
    assert [c.commit_hash for c in told] == [second.hash, first.hash]
    assert told[0].description == "val: 0.1 -> 0.9"
    assert hub.push("desk-a", "Two {x}.", ["x"], parent=second, about="", why="") == second
    assert len(server.repos["desk-a"].commits) == 2


def test_push_over_somebody_elses_commit_is_refused(client, server, hub):
    first = hub.push("desk-a", "One.", [], parent=None, about="", why="")
    put(client, "desk-a", "Theirs.")
    with pytest.raises(ConfigurationError, match=f"moved on since the run started.*started from commit {first.hash[:8]}"):
        hub.push("desk-a", "Ours.", [], parent=first, about="", why="")
    with pytest.raises(ConfigurationError, match="started from before it existed"):
        hub.push("desk-a", "Ours.", [], parent=None, about="", why="")

    def meanwhile(request):
        if str(request) == "POST /commits/-/desk-a":
            server.fault = None
            put(server.other, "desk-a", "In the last moment.")
        return None

    server.other, server.fault = SimpleNamespace(push_prompt=_commit_at_once(server)), meanwhile
    with pytest.raises(ConfigurationError, match="moved on since"):
        hub.push("desk-a", "Ours.", [], parent=hub.pull("desk-a"), about="", why="")


def test_own_commit_whose_answer_was_lost_is_not_somebody_elses(client, server, monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.Retry.get_backoff_time", lambda _: 0)
    lost = set()

    def once(request):
        if request.method == "GET" or request.path in lost:
            return None
        lost.add(request.path)
        return Fault.lost()

    server.fault = once
    with LangSmith(server.url, server.api_key) as patient:  # as the command line's, which asks again
        made = Hub(patient).push("desk-a", "One.", [], parent=None, about="The prompt of 'a'.", why="")
        server.fault = None
        lost.clear()
        server.fault = once
        two = Hub(patient).push("desk-a", "Two.", [], parent=made, about="", why="")
        assert len(lost) == 1
        Hub(patient).tag("desk-a", "eu", two.hash)
        Hub(patient).untag("desk-a", "eu")
        assert len(lost) == 3
    assert [system(client, f"desk-a:{c.commit_hash}") for c in client.list_prompt_commits("desk-a")] == ["Two.", "One."]


def _commit_at_once(server):
    """Somebody else's commit, made on the server's own thread while our request waits."""

    def push(name, object, **_):
        commits = server.repos[name].commits
        commits.append({**commits[-1], "id": "f" * 8, "commit_hash": "f" * 64, "manifest": manifest(object)})

    return push


@pytest.mark.parametrize("key", ["sk-proj-0123456789abcdef", "ghp_0123456789abcdefghij", "AKIAIOSFODNN7EXAMPLE", "hunter2-hunter2"])
def test_text_with_a_key_in_it_is_not_put_on_the_hub(server, hub, monkeypatch, key):
    monkeypatch.setenv("DESK_PASSWORD", "hunter2-hunter2")
    with pytest.raises(ConfigurationError, match="looks like an API key"):
        hub.push("desk-a", f"Use {key}.", [], parent=None, about="", why="")
    assert "desk-a" not in server.repos


def test_words_that_keys_have_in_them_too_are_put_on_the_hub(client, hub):
    text = "Ask the bearer of the ticket for pk_customer_id. Bearer tokens are for engineers."
    hub.push("desk-a", text, [], parent=None, about="", why="")
    assert system(client, "desk-a") == text


@pytest.mark.parametrize("moves", [True, False])
def test_tag_is_made_and_moved(client, server, hub, moves):
    server.moves_tags = moves
    first = hub.push("desk-a", "One.", [], parent=None, about="", why="")
    hub.tag("desk-a", "production", first.hash)
    second = hub.push("desk-a", "Two.", [], parent=first, about="", why="")
    assert system(client, "desk-a:production") == "One."
    hub.tag("desk-a", "production", second.hash)
    assert system(client, "desk-a:production") == "Two."
    hub.untag("desk-a", "production")
    assert hub.pull("desk-a", "production") is None
    with pytest.raises(LangSmithError, match="has no commit 00000000 any more"):
        hub.tag("desk-a", "production", "0" * 64)


# Runs.


def pushed(client, texts=START_PROMPTS):
    """The desk's prompts on the hub, as they are in the code, in production."""
    for name, text in texts.items():
        put(client, f"desk-{name}", text, commit_tags=["production"])


def trained(models, store, graph):
    model = tg.models.OpenAI("test-model", base_url=models.base_url, api_key="k", max_retries=0)
    trainer = tg.Trainer(
        graph, tg.Objective(desk.EVALUATORS), critic=tg.LLMCritic(model),
        optimizer=tg.optim.TextualGradientDescent(model), schedule=tg.Schedule(steps=1, batch_size=3), store=store,
    )  # fmt: skip
    return trainer.fit(desk.rows(3), desk.rows(3, 3))


def test_run_begins_with_the_prompts_of_the_hub(client, hub):
    pushed(client, {"triage": "From the hub for {shop}.\nName only."})
    put(client, "desk-triage", "Newer, for {shop}.")
    graph = desk.build(triage={"placeholders": ["shop"]}, prompts={"triage": "In the code, for {shop}."})
    with Store() as store:
        begun = begin(store, hub, graph, ["desk"], "latest")
        assert begun["prompts"]["triage"]["prompt"] == "desk-triage"
        keep_hub(store, begun)
        assert graph.parameters["triage"].value == "Newer, for {shop}."
        assert graph.parameters["writer"].value == START_PROMPTS["writer"]  # not on the hub yet
        put(client, "desk-triage", "Newest, for {shop}.")
        graph.parameters["triage"].value = "In the code, for {shop}."
        assert go_on(store, graph)
        assert graph.parameters["triage"].value == "Newer, for {shop}."
    with Store() as store:
        assert not go_on(store, graph)
        begin(store, hub, graph, ["triage=desk-triage"], "production")
        assert graph.parameters["triage"].value == "From the hub for {shop}.\nName only."


@pytest.mark.parametrize(
    ("text", "version", "words"),
    [
        ("No variable.", "latest", "does not fit the parameter 'triage': .*loses the placeholder {shop}"),
        ("{shop} {other}", "latest", "brings in the placeholder {other}"),
        ("{shop}", "nope", "has no tag 'nope'"),
    ],
)
def test_prompt_of_the_hub_that_does_not_fit(client, hub, text, version, words):
    put(client, "desk-writer", START_PROMPTS["writer"], commit_tags=["nope"])
    put(client, "desk-triage", text)
    graph = desk.build(prompts={"triage": "In the code, for {shop}."})
    with Store() as store, pytest.raises(ConfigurationError, match=words):
        begin(store, hub, graph, ["desk"], version)
    assert graph.parameters["triage"].value == "In the code, for {shop}."


def test_variable_that_nothing_in_the_graph_fills_is_no_text(client, hub):
    """It would be pushed as text in braces, and production would no longer fill it."""
    put(client, "desk-writer", "Write as {{this}}.")
    graph = desk.build()
    with Store() as store:
        assert begin(store, hub, graph, ["desk"])["prompts"]["writer"]["pulled"] == "Write as {this}."
        put(client, "desk-writer", "Write for {shop}.")
        with pytest.raises(ParameterError, match="'desk-writer' on the hub has the variable {shop}, which nothing in the graph fills"):
            begin(store, hub, graph, ["desk"])


def test_directory_of_a_run_without_the_hub_is_refused(hub):
    with Store() as store:
        store.put_meta("configuration", {"graph": "x"})
        with pytest.raises(RunMismatchError, match="started without --hub"):
            begin(store, hub, desk.build(), ["desk"])
        with pytest.raises(ConfigurationError, match="has no prompts on the hub; start it with --hub"):
            plan_promotion(store, hub, "production")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that began in production and accepted something, with LangSmith gone when it ended."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    with surroundings() as all_, Store(folder) as store:
        pushed(all_.client)
        graph = desk.build()
        keep_hub(store, begin(store, Hub(all_.langsmith), graph, ["desk"], "production"))
        result = trained(all_.models, store, graph)
    return SimpleNamespace(folder=folder, result=result)


@pytest.fixture
def run(client, hub, kept, tmp_path):
    """That run, whose accepted prompts are now on the hub. The same commits have the same hashes."""
    pushed(client)
    shutil.copytree(kept.folder, tmp_path / "run")
    with Store(tmp_path / "run") as store:
        assert to_push(store)
        changed = push_accepted(store, hub, {"val/x": "http://here/experiment"})
        assert not to_push(store)
        yield SimpleNamespace(store=store, result=kept.result, changed=changed)


def test_accepted_prompts_are_pushed_as_candidates_with_scores_and_experiment(client, server, hub, run):
    assert set(run.changed) == {f"desk-{n}" for n, t in run.result.before.items() if run.result.after[n] != t}
    assert 0 < len(run.changed)
    for name, text in run.result.after.items():
        assert system(client, f"desk-{name}:candidate") == text
        assert system(client, f"desk-{name}:production") == START_PROMPTS[name]
    told = next(client.list_prompt_commits(run.changed[0])).description
    assert f"val: {run.result.baseline.val:.3f} -> {run.result.best.val:.3f}" in told
    assert "Experiment: http://here/experiment" in told
    commits = {n: len(r.commits) for n, r in server.repos.items()}
    assert push_accepted(run.store, hub, {}) == run.changed  # what is there is not put there again
    assert {n: len(r.commits) for n, r in server.repos.items()} == commits


def test_promotion_moves_the_tag_and_rollback_takes_it_back(client, hub, run):
    changes = plan_promotion(run.store, hub, "production")
    assert {c.prompt for c in changes} == set(run.changed)
    assert all(c.before == START_PROMPTS[c.parameter] and c.after == run.result.after[c.parameter] for c in changes)
    assert system(client, f"{run.changed[0]}:production") in START_PROMPTS.values()  # a plan changes nothing
    promote(run.store, hub, "production", changes)
    for name, text in run.result.after.items():
        assert system(client, f"desk-{name}:production") == text
    assert plan_promotion(run.store, hub, "production") == []
    back = plan_rollback(run.store, hub, "production")
    assert [(c.before, c.after) for c in back] == [(c.after, c.before) for c in changes]
    rollback(run.store, hub, "production", back)
    for name, text in START_PROMPTS.items():
        assert system(client, f"desk-{name}:production") == text
    with pytest.raises(ConfigurationError, match="has not promoted anything to 'production'"):
        plan_rollback(run.store, hub, "production")
    assert len(plan_promotion(run.store, hub, "production")) == len(changes)


def test_tag_that_was_not_there_is_made_and_taken_away_again(client, hub, run):
    changes = plan_promotion(run.store, hub, "eu")
    assert {c.prompt for c in changes} == {"desk-triage", "desk-writer", "desk-polish"}
    assert all(c.before is None for c in changes)
    promote(run.store, hub, "eu", changes)
    assert system(client, "desk-triage:eu") == run.result.after["triage"]
    rollback(run.store, hub, "eu", plan_rollback(run.store, hub, "eu"))
    assert hub.pull("desk-triage", "eu") is None


def test_promotion_is_refused_when_the_hub_moved_on(client, hub, run):
    put(client, run.changed[0], "Somebody's idea.")
    with pytest.raises(ConfigurationError, match=f"'{run.changed[0]}' on the hub moved on since the run started"):
        plan_promotion(run.store, hub, "production")


@pytest.mark.parametrize("tag", ["production", "eu"])
def test_promotion_is_refused_when_the_tag_was_moved(client, hub, run, tag):
    name = run.changed[0]
    ours = hub.pull(name)
    theirs = hub.push(name, "Somebody's idea.", [], parent=ours, about="", why="")
    hub.tag(name, tag, theirs.hash)
    hub.push(name, ours.text, [], parent=theirs, about="", why="")
    run.store.put_meta("hub", {**run.store.get_meta("hub"), "prompts": {
        **run.store.get_meta("hub")["prompts"],
        name.removeprefix("desk-"): {**run.store.get_meta("hub")["prompts"][name.removeprefix("desk-")], "pushed": hub.pull(name).hash},
    }})  # fmt: skip
    with pytest.raises(ConfigurationError, match=f"'{name}:{tag}' on the hub moved on"):
        plan_promotion(run.store, hub, tag)


def test_tag_of_another_name_that_was_there_before_is_no_surprise(hub, run):
    for name in START_PROMPTS:
        hub.tag(f"desk-{name}", "eu", run.store.get_meta("hub")["prompts"][name]["commit"])
    changes = plan_promotion(run.store, hub, "eu")
    assert {c.prompt for c in changes} == set(run.changed)
    assert all(c.before == START_PROMPTS[c.parameter] for c in changes)


@pytest.mark.parametrize("fault", [Fault.lost(), Fault.answer(503)])
def test_promotion_that_an_outage_cut_off_is_taken_back_as_a_whole(client, server, hub, run, fault):
    changes = plan_promotion(run.store, hub, "production")
    server.fault = lambda r: fault if r.method == "POST" and r.path == f"/repos/-/{changes[-1].prompt}/tags" else None
    with pytest.raises(LangSmithError):
        promote(run.store, hub, "production", changes)
    server.fault = None
    half = plan_rollback(run.store, hub, "production")
    assert len(half) == len(changes) - (fault.kind != "lost")
    promote(run.store, hub, "production", plan_promotion(run.store, hub, "production"))
    rollback(run.store, hub, "production", plan_rollback(run.store, hub, "production"))
    for name, text in START_PROMPTS.items():
        assert system(client, f"desk-{name}:production") == text


def test_rollback_is_refused_when_the_tag_was_moved(client, hub, run):
    promote(run.store, hub, "production", plan_promotion(run.store, hub, "production"))
    name = run.changed[0]
    theirs = hub.push(name, "Somebody's idea.", [], parent=hub.pull(name), about="", why="")
    hub.tag(name, "production", theirs.hash)
    with pytest.raises(ConfigurationError, match=f"is at commit {theirs.hash[:8]} now, not where this run put it"):
        plan_rollback(run.store, hub, "production")


def test_run_that_has_not_ended_is_not_pushed(client, hub):
    pushed(client)
    with Store() as store:
        keep_hub(store, begin(store, hub, desk.build(), ["desk"]))
        assert not to_push(store)
        with pytest.raises(ConfigurationError, match="has not ended; go on with"):
            push_accepted(store, hub, {})


def test_run_that_has_not_ended_promotes_no_draft(client, hub):
    pushed(client)
    put(client, "desk-triage", "A draft.")
    with Store() as store:
        keep_hub(store, begin(store, hub, desk.build(), ["desk"]))
        with pytest.raises(ConfigurationError, match="has not ended; go on with"):
            plan_promotion(store, hub, "production")


def test_run_that_went_on_has_its_newer_texts_pushed_and_promoted(client, hub, run):
    """As after a `resume` with a larger budget: one prompt is better still, another as it was."""
    name, back = (n.removeprefix("desk-") for n in run.changed[:2])
    result = run.store.get_meta("result")
    result["parameters"][name]["after"] += "\nBetter still."
    result["parameters"][back]["after"] = START_PROMPTS[back]
    run.store.put_meta("result", result)
    assert to_push(run.store)
    assert f"desk-{name}" in push_accepted(run.store, hub, {})
    assert not to_push(run.store)
    promote(run.store, hub, "production", plan_promotion(run.store, hub, "production"))
    for tag in ("candidate", "production"):
        for parameter, texts in result["parameters"].items():
            assert system(client, f"desk-{parameter}:{tag}") == texts["after"]


def test_candidate_tag_that_an_outage_kept_back_is_made_up_for(client, server, hub, kept, tmp_path):
    pushed(client)
    shutil.copytree(kept.folder, tmp_path / "run")
    last = list(START_PROMPTS)[-1]
    with Store(tmp_path / "run") as store:
        server.fault = lambda request: Fault.answer(503) if request.path == f"/repos/-/desk-{last}/tags" else None
        with pytest.raises(LangSmithError):
            push_accepted(store, hub, {})
        server.fault = None
        assert to_push(store)
        push_accepted(store, hub, {})
        assert system(client, f"desk-{last}:candidate") == kept.result.after[last]
        # What a later run made of the tag is left to it.
        theirs = hub.pull(f"desk-{last}", "production")
        hub.tag(f"desk-{last}", "candidate", theirs.hash)
        push_accepted(store, hub, {})
        assert hub.pull(f"desk-{last}", "candidate") == theirs


def test_prompts_that_were_not_on_the_hub_are_made_there(client, server, hub, models):
    with Store() as store:
        graph = desk.build()
        keep_hub(store, begin(store, hub, graph, ["fresh"]))
        result = trained(models, store, graph)
        changed = push_accepted(store, hub, {})
        kept = [n for n in result.after if f"fresh-{n}" not in changed]
        assert set(server.repos) == set(changed)
        if kept:
            with pytest.raises(ConfigurationError, match="accepted no change"):
                plan_promotion(store, hub, "production")


def test_push_that_was_cut_off_is_found_again(client, server, hub, kept, tmp_path):
    pushed(client)
    shutil.copytree(kept.folder, tmp_path / "run")
    with Store(tmp_path / "run") as store:
        server.fault = lambda request: Fault.lost() if str(request).startswith("POST /commits") else None
        with pytest.raises(LangSmithError):
            push_accepted(store, hub, {})
        server.fault = None
        push_accepted(store, hub, {})
    assert all(len(r.commits) <= 2 for r in server.repos.values())
    assert all(system(client, f"desk-{n}:candidate") == t for n, t in kept.result.after.items())


def test_drafts_of_other_messages_are_not_promoted_with_the_text(client, hub, kept, tmp_path):
    """A run that began in production, with a draft on top of it that nobody has released."""
    pushed(client)
    name = next(n for n, text in kept.result.after.items() if text != START_PROMPTS[n])
    draft = ChatPromptTemplate([("system", kept.result.after[name]), ("human", "A draft.")])
    client.push_prompt(f"desk-{name}", object=draft)
    shutil.copytree(kept.folder, tmp_path / "run")
    with Store(tmp_path / "run") as store:
        begun = store.get_meta("hub")
        begun["prompts"][name]["latest"] = hub.pull(f"desk-{name}").hash
        store.put_meta("hub", begun)
        push_accepted(store, hub, {})
        promote(store, hub, "production", plan_promotion(store, hub, "production"))
    [message] = client.pull_prompt(f"desk-{name}:production", skip_cache=True).messages
    assert message.prompt.template == kept.result.after[name]


def test_description_of_a_commit():
    scores = {"baseline": {"val": 0.1, "test": None}, "best": {"val": 0.9, "test": None}}
    told = describe(scores, "runs/x", {"val/a": "http://e"})
    assert told == "Tuned by lg_textgrad.\nval: 0.100 -> 0.900\nExperiment: http://e\nRun: runs/x"


