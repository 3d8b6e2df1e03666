"""What is masked, where: nothing that is stored, shown or sent to a critic has a secret in it."""

from __future__ import annotations

import gc
import json
import traceback
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from enum import Enum
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from lg_textgrad.errors import EvaluatorError, ParameterError, RedactionError
from lg_textgrad.objective import Scored
from lg_textgrad.redaction import _SECRET_VALUE, HIDDEN, Redaction, scrub, secrets_in, without_credentials
from lg_textgrad.store import Store, tables
from tests import desk
from tests.parts import Chat
from tests.servers.openai_server import OpenAIServer
from tests.test_trainer import TRAIN, VAL, clean, make

@pytest.fixture
def server(monkeypatch):
    clean(monkeypatch)
    with OpenAIServer(desk.Script()) as server:
        monkeypatch.setenv("DESK_BASE_URL", server.base_url)
        yield server


QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
PASSWORD = "correct-horse-battery"
ENVIRONMENT = {"DB_PASSWORD": PASSWORD}


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "GH_TOKEN", "my_secret", "DB_PASSWORD", "APIKEY", "AWS_SECRET_ACCESS_KEY"]
)
def test_variables_named_like_secrets_are_secret(name):
    assert secrets_in({name: "abcdefgh1"}) == {name: "abcdefgh1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOME", "/home/somebody"), ("TOKENIZERS_PARALLELISM", "sometimes"), ("MAX_TOKENS", "100000000"),
        ("KEYBOARD", "colemak-dh"), ("SSH_KEY_PATH", "/home/a/.ssh/id"), ("API_KEY", "short"),
    ],
)  # fmt: skip
def test_other_variables_are_settings(name, value):
    assert secrets_in({name: value}) == {}


@pytest.mark.parametrize("value", [f"{PASSWORD}\n", f"  {PASSWORD}\r\n"])
def test_secret_that_was_read_from_a_file_is_found(value):
    assert Redaction(environment={"DB_PASSWORD": value}).text(f"it is {PASSWORD}.") == f"it is {HIDDEN}."


def test_secret_is_found_in_an_address_too():
    secret = "c2VjcmV0/+dGhpcw=="
    redaction = Redaction(environment={"STORAGE_KEY": secret})
    said = f"404 for https://api.example/v1?{urlencode({'code': secret, 'q': 'a b'})}"
    assert redaction.text(said) == f"404 for https://api.example/v1?code={HIDDEN}&q=a+b"
    assert redaction.text(f"https://api.example/{quote(secret)}") == f"https://api.example/{HIDDEN}"


@pytest.mark.parametrize("secret", ['with "quotes" in', "back\\slash\\es", "Schlüssel-größe", "two\nlines"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_secret_is_found_inside_of_json_text(secret, ascii_only):
    redaction = Redaction(environment={"DB_PASSWORD": secret})
    text = json.dumps({"p": secret}, ensure_ascii=ascii_only)
    assert redaction.text(text) == json.dumps({"p": HIDDEN})
    assert redaction.variable_in(text) == "DB_PASSWORD"


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.from_regex(_SECRET_VALUE))
def test_no_kind_of_key_is_passed_over_by_the_quick_look(text):
    masked = Redaction().text(text)
    assert _SECRET_VALUE.sub(HIDDEN, text) == masked != text


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghij0123456789klm", "ghp_abcdefghij0123456789klmnop", "xoxb-1234567890-abcdef",
        "AKIAABCDEFGHIJKLMNOP", "Bearer abcdef0123456789.xyz", "lsv2_pt_0123456789abcdef0123456789",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nab\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQOY\n-----END PGP PRIVATE KEY BLOCK-----",
        "ASIAABCDEFGHIJKLMNOP", "xapp-1-A0123456789-1234567890123-abcdef", f"npm_{'aB3d' * 9}",
        f"tvly-dev-{'aB3d' * 8}", f"whsec_{'aB3d' * 8}", f"nvapi-{'aB3d' * 16}", f"csk-{'aB3d' * 12}",
        f"pplx-{'aB3d' * 12}", f"r8_{'aB3d' * 9}", f"ya29.a0Af{'aB3d' * 20}", f"pypi-Ag{'aB3d' * 20}",
        f"SG.{'aB3d' * 5}ab.{'aB3d' * 10}abc",
    ],
)  # fmt: skip
def test_what_looks_like_a_key_is_masked(secret):
    assert Redaction(environment={}).text(f"before {secret} after") == f"before {HIDDEN} after"
    assert scrub(f"before {secret} after") == f"before {HIDDEN} after"  # in errors, too
    quoted = json.dumps({"log": f"\n{secret}\t", "=": f"\u2028{secret}"})
    assert Redaction(environment={}).text(quoted) == json.dumps({"log": f"\n{HIDDEN}\t", "=": f"\u2028{HIDDEN}"})
    assert Redaction(environment={}).text(f"?q=a%3D{secret}") == f"?q=a%3D{HIDDEN}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter2@db:5432/x", f"postgresql://me:{HIDDEN}@db:5432/x"),
        ("see https://u:p%40ss$@host/v1, redis://:pw1@[::1]", f"see https://u:{HIDDEN}@host/v1, redis://:{HIDDEN}@[::1]"),
        ('{"Authorization": "Basic dXNlcjpodW50ZXIy"}', f'{{"Authorization": "Basic {HIDDEN}"}}'),
        (r'{\"authorization\": \"Token abcdef12\"}', rf'{{\"authorization\": \"Token {HIDDEN}\"}}'),
        (f"aws_secret_access_key = {'aB3/' * 10}", f"aws_secret_access_key = {HIDDEN}"),
        (f"AccountName=x;AccountKey={'aB3/' * 21}ab==;", f"AccountName=x;AccountKey={HIDDEN};"),
        ("GET /v1?q=a&api_key=0123456789&b", f"GET /v1?q=a&api_key={HIDDEN}&b"),
        ("https://hooks.slack.com/services/T0123/B0123/abcdefghijklmnop", f"https://hooks.slack.com/services/{HIDDEN}"),
    ],
)  # fmt: skip
def test_what_is_a_secret_by_what_stands_before_it_is_masked(text, shown):
    redaction = Redaction(environment={})
    assert redaction.text(text) == scrub(text) == shown
    assert redaction.text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "SELECT pk_customer_identification_number FROM t", "the bearer of bad news", "sk-learn pipelines",
        "hf_transfer", "a risk-averse-and-long-hyphenated-adjective", "ghosts",
        "postgresql://{user}:{password}@{host}/x", "https://u:$PASSWORD@host", "ssh://git@host:22/a",
        "https://host:8080/a@b", "at 10:30 mail me@host, see http://host", "task-2024-01-02-of-a-long-list",
        "Authorization is basic knowledge", "?api_key=<YOUR_KEY_HERE>", "page?page_token=abcdef0123456789",
        r"C:\new\task-2024-01-02-of-a-long-list", "npm_config_registry_1_and_more_of_a_long_name",
    ],
)  # fmt: skip
def test_ordinary_words_stay(text):
    assert Redaction(environment={}).text(text) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@QUIET
@given(JSON)
def test_value_without_secrets_is_the_same_object(value):
    redaction = Redaction(environment=ENVIRONMENT)
    assert redaction.value(value) is value
    assert redaction.answer(value) is value


@QUIET
@given(JSON, st.text(), st.text())
def test_no_secret_survives_wherever_it_stands(value, before, after):
    text = before + PASSWORD + after
    planted = {"a": [value, text, {text: (text,)}], "b": value}
    masked = Redaction(environment=ENVIRONMENT).value(planted)
    assert PASSWORD not in repr(masked)
    assert masked["b"] == value
    assert masked["a"][0] == value


def test_longer_secret_leaves_nothing_of_itself_behind():
    redaction = Redaction(environment={"A_KEY": "abcdefgh", "B_KEY": "abcdefgh-and-more"})
    assert redaction.text("x abcdefgh-and-more y abcdefgh") == f"x {HIDDEN} y {HIDDEN}"


def test_hook_sees_each_text_and_number_after_the_secrets_are_masked():
    seen = []

    def hook(value):
        seen.append(value)
        return "[name]" if value == "Bob" else 0 if value == 49 else value

    redaction = Redaction(hook, ENVIRONMENT)
    value = {"who": ["Bob", 49, None, True], "said": f"it is {PASSWORD}"}
    assert redaction.value(value) == {"who": ["[name]", 0, None, True], "said": f"it is {HIDDEN}"}
    assert seen == ["Bob", 49, f"it is {HIDDEN}"]
    assert redaction.answer({"n": 49, "t": "Bob"}) == {"n": 49, "t": "[name]"}


class Tone(Enum):
    LOUD = "secret of Bergen"


@dataclass
class Letter:
    body: str


@pytest.mark.parametrize(
    "make",
    [
        HumanMessage, Letter, lambda text: OrderedDict(a=text), lambda text: [{"a": (text,)}],
        lambda text: defaultdict(list, a=[text]), lambda text: {text}, type("Text", (str,), {}),
        lambda text: Tone.LOUD if "Bergen" in text else 1, lambda text: ValueError(text),
    ],
)  # fmt: skip
def test_values_of_every_type_are_masked_and_left_alone_where_nothing_is(make):
    redaction = Redaction(lambda v: v.replace("Bergen", "[city]") if isinstance(v, str) else v, {})
    quiet = make("nothing to hide")
    assert redaction.value(quiet) is quiet
    masked = redaction.value({"v": make("to Bergen")})["v"]
    assert "Bergen" not in repr(masked)
    assert "[city]" in repr(masked)


def test_example_is_masked_in_its_messages_and_its_metadata():
    redaction = Redaction(environment=ENVIRONMENT)
    example = tg.Example(
        "e", {"messages": [HumanMessage(f"use {PASSWORD}")]}, None, {"note": PASSWORD, "n": 1}
    )
    shown = redaction.example(example)
    assert shown.inputs == {"messages": [{"role": "human", "content": f"use {HIDDEN}"}]}
    assert shown.metadata == {"note": HIDDEN, "n": 1}
    harmless = tg.Example("e", {"messages": [HumanMessage("hi")]}, {"a": 1}, {"n": 1})
    assert redaction.example(harmless) is harmless


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (lambda v: 1 / 0, "raised ZeroDivisionError"),
        (lambda v: None, "returned a NoneType for a text"),
        (lambda v: [v], "returned a list"),
    ],
)
def test_hook_that_fails_lets_nothing_pass(hook, said):
    with pytest.raises(RedactionError, match=said) as caught:
        Redaction(hook, {}).text("something private")
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@host:8080/v1", "https://***@host:8080/v1"),
        ("https://token@host/v1", "https://***@host/v1"),
        ("https://u:p@ss@host/v1?key=k#f", "https://***@host/v1"),
        ("https://host/v1?key=k", "https://***@host/v1"),
        ("https://u:p@[::1]:80/v1/", "https://***@[::1]:80/v1/"),
        ("https://host:8080/v1/", "https://host:8080/v1/"),
        ("localhost", "localhost"),
    ],
)  # fmt: skip
def test_credentials_of_an_address_are_masked(url, shown):
    assert without_credentials(url) == shown
    assert without_credentials(shown) == shown


# In runs.


def test_replay_gets_the_example_as_it_is_which_is_forgotten_with_its_run(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    got = []
    model = Chat(answer=lambda _: "x")

    def node(state):
        got.append(state["q"])
        return {"a": model.invoke("ask").content}

    graph = graph_with(node)
    with tg.use_ledger(tg.Ledger()):
        runs = graph.record([{"inputs": {"q": f"{n} {PASSWORD}"}} for n in range(3)])
        shown = [run.example.inputs["q"] for run in runs]
        assert shown == [f"{n} {HIDDEN}" for n in range(3)]
        other = replace(runs[1], warnings=())  # what scoring does
        again = graph.replay(other, other.executions[0], AIMessage("y"))
    assert again.outputs["a"] == "y"
    assert again.example.inputs == {"q": f"1 {HIDDEN}"}
    assert got[3:] == [f"1 {PASSWORD}"]
    assert graph.example_of(other).inputs == {"q": f"1 {PASSWORD}"}
    assert len(graph._masked) == 4
    del runs, other, again
    gc.collect()
    assert graph._masked == {}


def graph_with(ask):
    built = StateGraph(dict).add_node("n", ask).add_edge(START, "n").compile()
    return tg.TrainableGraph(built)


def test_run_is_masked_in_every_part_and_evaluators_see_what_is_kept(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)

    @tool
    def vault(name: str) -> dict:
        """Open it."""
        return {"name": name, "password": PASSWORD}

    model = Chat(answer=lambda messages: f"said {messages[-1].content}")
    given_to_model = []

    def node(state):
        found = vault.invoke({"name": state["q"]})
        given_to_model.append(found)
        return {"a": model.invoke(found["password"]).content, "raw": PASSWORD}

    graph = graph_with(node)
    with tg.use_ledger(tg.Ledger()):
        [run] = graph.record([{"inputs": {"q": f"open {PASSWORD}"}, "outputs": {"a": PASSWORD}}])
    assert PASSWORD not in repr(run)
    assert run.outputs["a"] == f"said {HIDDEN}"
    assert run.example.outputs == {"a": HIDDEN}
    assert run.executions[0].tool_calls[0].output is not None
    # What the tool answered was masked before the graph had it.
    assert given_to_model == [{"name": f"open {HIDDEN}", "password": HIDDEN}]


def test_answer_of_a_live_tool_reaches_the_graph_as_it_is_and_the_trace_masked(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)

    @tool
    def vault(name: str) -> str:
        """Open it."""
        return PASSWORD

    got = []
    graph = graph_with(lambda s: got.append(vault.invoke({"name": "x"})) or {"a": 1})
    graph.tools = tg.Tools("live")
    with tg.use_ledger(tg.Ledger()):
        [run] = graph.record([{"inputs": {"q": "q"}}])
    assert got == [PASSWORD]
    assert run.executions[0].tool_calls[0].output == HIDDEN


def test_error_of_a_run_is_masked(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)

    def node(state):
        raise ValueError(f"cannot log in with {PASSWORD}")

    [run] = graph_with(node).record([{"inputs": {"q": "q"}}])
    assert run.error == f"ValueError: cannot log in with {HIDDEN}"
    assert PASSWORD not in repr(run)


def test_run_that_is_read_back_is_the_run_that_was_made(monkeypatch, tmp_path):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    model = Chat(answer=lambda messages: f"it is {PASSWORD}")
    graph = graph_with(lambda s: {"a": model.invoke(s["q"]).content})
    rows = [{"inputs": {"q": f"tell {PASSWORD}"}}]
    with tg.Store(tmp_path) as store, tg.use_ledger(tg.Ledger(store)):
        [first], [again] = graph.record(rows), graph.record(rows)
    assert len(model.calls) == 1
    assert again == replace(first, outputs=again.outputs)
    assert again.outputs == first.outputs
    assert again.example == first.example


# In training.


def everything_in(where):
    """Return all that a store holds, unpacked, as one text."""
    found = []
    with Store(where, read_only=True) as store:
        for table in tables.tables.sorted_tables:
            for row in store._rows(tables.sa.select(table)):
                for value in row:
                    found.append(repr(tables.unpack(value) if isinstance(value, bytes) else value))
    return "\n".join(found)


def test_training_lets_no_private_word_into_store_prompts_or_critics_questions(server, tmp_path):
    def hook(value):
        return value.replace("Bergen", "[city]").replace("Oslo", "[city]") if isinstance(value, str) else value

    result = make(server, store=tmp_path, redact=hook).fit(TRAIN, VAL)
    kept = everything_in(tmp_path)
    assert result.best.val == 1
    assert "[city]" in kept
    asked = {"rollout": "", "critic": "", "rewriter": ""}
    for body in server.chats:
        asked[desk.who(body)[0]] += json.dumps(body)
    cities = {c for c in ("Bergen", "Oslo") if c in json.dumps([*TRAIN, *VAL])}
    assert cities
    for city in cities:
        assert city not in kept
        assert city not in asked["critic"] + asked["rewriter"]
        assert city in asked["rollout"]  # the graph has to work with it
    with pytest.raises(tg.errors.RunMismatchError, match="redaction"):
        make(server, store=tmp_path).fit(TRAIN, VAL)


def mask_city(value):
    return value.replace("Bergen", "[city]") if isinstance(value, str) else value


def test_hook_that_cannot_take_the_data_fails_before_anything_is_paid(server, tmp_path):
    def only_texts(value):
        return value.replace("Bergen", "[city]")

    def not_the_last_row(value):
        if value == VAL[-1]["inputs"]["message"]:
            raise ValueError(value)
        return value

    for hook in (only_texts, not_the_last_row):
        with pytest.raises(RedactionError, match="raised .*Error; nothing is stored"):
            make(server, store=tmp_path, redact=hook).fit(TRAIN, VAL)
    assert server.chats == []
    # So the run directory is still free for the mended one.
    assert make(server, store=tmp_path, redact=mask_city).fit(TRAIN, VAL).best.val == 1


def test_hook_that_fails_on_a_reply_is_mended_in_a_fork_that_pays_for_nothing_twice(server, tmp_path):
    def fails(value):
        if len(server.chats) > 20:
            raise ValueError("too much")
        return mask_city(value)

    with pytest.raises(RedactionError, match=r"Mend it and fork .*--fork RUN_DIR.*take_over"):
        make(server, store=tmp_path / "old", redact=fails).fit(TRAIN, VAL)
    with Store(tmp_path / "old", read_only=True) as old:
        paid = sum(usage.calls for usage in old.paid().values())
    assert paid > 0
    server.requests.clear()
    with Store(tmp_path / "old") as old, Store(tmp_path / "new") as new:
        new.take_over(old)
        result = make(server, store=new, redact=mask_city).fit(TRAIN, VAL)
        assert result.best.val == 1
        assert result.spent.usage.cached_calls >= paid


@pytest.mark.parametrize("way", ["take_over", "reuse"])
def test_what_another_run_kept_as_it_was_is_masked_before_it_is_used(server, tmp_path, way):
    make(server, store=tmp_path / "old").fit(TRAIN, VAL)
    assert "Bergen" in everything_in(tmp_path / "old")
    before, options = len(server.chats), {"store": tmp_path / "new", "redact": mask_city}
    with Store(tmp_path / "old", read_only=True) as old:
        if way == "reuse":
            result = make(server, reuse=old, **options).fit(TRAIN, VAL)
        else:
            for _ in range(2):  # as a script does that is started again
                with Store(tmp_path / "new") as new:
                    new.take_over(old)
                result = make(server, **options).fit(TRAIN, VAL)
    assert "Bergen" not in everything_in(tmp_path / "new")
    asked = [json.dumps(body) for body in server.chats[before:] if desk.who(body)[0] != "rollout"]
    assert not any("Bergen" in question for question in asked)
    assert result.best.val == 1
    assert result.spent.usage.cached_calls > 0


async def test_runs_from_elsewhere_reach_the_critic_masked(server, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    example = tg.Example("e", {"message": f"I use {PASSWORD} at Bergen"})
    run = desk.build().record([TRAIN[0]])[0]
    told = tg.run.Feedback("ending", 0.0, f"{desk.ENDING} And not {PASSWORD}, Bergen.")
    scored = Scored(replace(run, example=example), 0.0, [told])
    server.chats.clear()
    model = tg.models.OpenAI("test-model", base_url=server.base_url, api_key="k", max_retries=0)
    learner = tg.optim.FromRuns(tg.optim.TextualGradientDescent(model), [scored], steps=1)
    trainer = tg.Trainer(
        desk.build(), tg.Objective(desk.EVALUATORS), critic=tg.LLMCritic(model), optimizer=learner,
        redact=lambda v: v.replace("Bergen", "[city]") if isinstance(v, str) else v,
    )  # fmt: skip
    await trainer.afit(TRAIN, VAL)
    asked = [json.dumps(b) for b in server.chats if desk.who(b)[0] != "rollout"]
    assert any("And not [API key], [city]" in question for question in asked)
    assert not any(PASSWORD in question or "Bergen" in question for question in asked)
    await model.aclose()


def test_comment_of_an_evaluator_is_masked(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    graph = graph_with(lambda s: {"a": 1})

    def judge(outputs):
        return {"key": "k", "score": 0, "comment": f"log in with {PASSWORD}"}

    with tg.use_ledger(tg.Ledger()):
        loss = tg.Objective([judge])(graph.record([{"inputs": {"q": "q"}}]))
    assert loss.scored[0].feedback[0].comment == f"log in with {HIDDEN}"


@pytest.mark.parametrize("summary", [False, True])
def test_error_of_an_evaluator_is_masked_with_what_led_to_it(monkeypatch, summary):
    monkeypatch.setenv("CRM_TOKEN", PASSWORD)

    def judge(outputs):
        try:
            raise RuntimeError(f"401 for key {PASSWORD}")
        except RuntimeError as error:
            raise ValueError("cannot judge") from error

    runs = graph_with(lambda s: {"a": 1}).record([{"inputs": {"q": "q"}}])
    with pytest.raises(EvaluatorError, match="cannot judge") as caught:
        if summary:
            tg.Objective([lambda outputs: 1], summary=[judge]).summarize(
                tg.Objective([lambda outputs: 1])(runs).scored
            )
        else:
            tg.Objective([judge])(runs)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_traceback_of_an_evaluator_is_shown_where_nothing_in_it_is_secret():
    def judge(outputs):
        raise ValueError("cannot judge")

    runs = graph_with(lambda s: {"a": 1}).record([{"inputs": {"q": "q"}}])
    with pytest.raises(EvaluatorError, match="raised ValueError on") as caught:
        tg.Objective([judge])(runs)
    assert isinstance(caught.value.__cause__, ValueError)


def test_prompt_with_a_secret_in_it_is_refused_before_the_first_call(server, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    graph = desk.build(prompts={"writer": f"You are the desk's writer. Log in with {PASSWORD}."})
    with pytest.raises(ParameterError, match="'writer' contains the value of the .* DB_PASSWORD") as caught:
        make(server, graph).fit(TRAIN, VAL)
    assert PASSWORD not in str(caught.value)
    assert server.chats == []
