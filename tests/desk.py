"""A small desk that can be trained for real: a graph, evaluators, and a server that plays the models.

    triage -> writer -> polish

Each node asks a `ChatOpenAI` at `DESK_BASE_URL`. `Script` answers for the nodes (a node is better
when its prompt has the right rules), for the critic (the rule that is missing) and for the rewriter
(each note becomes a line). All of it is a function of the request, so runs repeat exactly.
"""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TypedDict

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph

import lg_textgrad as tg
from tests.servers.openai_server import Reply

PARCELS = "Messages about parcels belong to delivery."
BROKEN = "Messages about broken things belong to repairs."
GREETING = "Begin with the words Dear customer."
ENDING = "End with the words Kind regards."
RULES = {"triage": (PARCELS, BROKEN), "writer": (GREETING,), "polish": (ENDING,)}

START_PROMPTS = {
    "triage": "You are the desk's triage.\nReply with the team's name only.",
    "writer": "You are the desk's writer.\nKeep it short.",
    "polish": "You are the desk's polisher.\nReply with the text only.",
}
CITIES = (
    "Bergen", "Oslo", "Turin", "Lyon", "Porto", "Ghent", "Basel", "Graz", "Malmo", "Vigo", "Leeds",
    "Cork", "Riga", "Tartu", "Split", "Varna", "Brno", "Pecs", "Lodz", "Kiel",
)  # fmt: skip
TOPICS = {
    "parcel": ("delivery", "Where is my parcel to {city} that left last Tuesday already"),
    "broken": ("repairs", "The stove for our tour to {city} arrived here in a broken state"),
    "bill": ("payments", "Please send me the bill for my last visit to {city} once more"),
}


class Desk(TypedDict, total=False):
    message: str
    team: str
    draft: str
    answer: str


@functools.cache
def chat(base_url, key, model):
    # Clients of its own: langchain-openai would share one with every other test's event loop.
    return ChatOpenAI(
        model=model,
        base_url=base_url,
        api_key=key,
        max_retries=0,
        http_async_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )


async def ask(parameter, text):
    model = chat(
        os.environ["DESK_BASE_URL"],
        os.environ.get("DESK_KEY", "k"),
        os.environ.get("DESK_MODEL", "test-model"),
    )
    reply = await model.ainvoke([parameter.message(shop="Fernhill"), HumanMessage(text)])
    return str(reply.content)


def build(trainable=("triage", "writer", "polish"), *, prompts=None, extra=(), **options):
    """Return a fresh graph. `options` are given to the parameters of their names."""
    p = {
        name: tg.Parameter(
            name,
            (prompts or {}).get(name, text),
            role=f"the {name} step",
            requires_grad=name in trainable,
            **options.get(name, {}),
        )
        for name, text in START_PROMPTS.items()
    }

    async def triage(state):
        return {"team": await ask(p["triage"], state["message"])}

    async def writer(state):
        return {"draft": await ask(p["writer"], f"{state['message']}\nTeam: {state['team']}")}

    async def polish(state):
        return {"answer": await ask(p["polish"], state["draft"])}

    builder = StateGraph(Desk)
    builder.add_node("triage", triage).add_node("writer", writer).add_node("polish", polish)
    builder.add_edge(START, "triage").add_edge("triage", "writer").add_edge("writer", "polish")
    return tg.TrainableGraph(builder.compile(), [*p.values(), *extra])


RAN = []
"""For a graph that is imported by name: where its executions are noted."""


def build_plain(ran=None, **declared):
    """Return the same desk as a graph that knows nothing of lg_textgrad.

    Each execution appends its node's name to `ran`. `declared` are Parameters for some nodes.
    """
    ran = [] if ran is None else ran

    async def said(name, text):
        ran.append(name)
        model = chat(os.environ["DESK_BASE_URL"], "k", "test-model")
        system = declared[name].message() if name in declared else SystemMessage(START_PROMPTS[name])
        reply = await model.ainvoke([system, HumanMessage(text)])
        return str(reply.content)

    async def triage(state):
        return {"team": await said("triage", state["message"])}

    async def writer(state):
        return {"draft": await said("writer", f"{state['message']}\nTeam: {state['team']}")}

    async def polish(state):
        return {"answer": await said("polish", state["draft"])}

    builder = StateGraph(Desk).add_sequence([triage, writer, polish]).add_edge(START, "triage")
    return builder.compile()


def team(outputs, reference_outputs):
    ok = outputs["team"] == reference_outputs["team"]
    return {"key": "team", "score": ok, "comment": "" if ok else reference_outputs["rule"]}


def greeting(outputs):
    ok = outputs["answer"].startswith("Dear customer.")
    return {"key": "greeting", "score": ok, "comment": "" if ok else GREETING}


def ending(outputs):
    ok = outputs["answer"].endswith("Kind regards.")
    return {"key": "ending", "score": ok, "comment": "" if ok else ENDING}


EVALUATORS = [team, greeting, ending]


def rows(count, first=0, topics=("parcel", "broken", "bill"), prefix="e"):
    """Return examples; each message is its own. Those from `first` on share none with others."""
    found = []
    for i in range(first, first + count):
        topic = topics[i % len(topics)]
        expected, text = TOPICS[topic]
        rule = {"parcel": PARCELS, "broken": BROKEN, "bill": "Bills are for payments."}[topic]
        city = CITIES[i % len(CITIES)] + ("" if i < len(CITIES) else f" {CITIES[i // len(CITIES)]}")
        found.append(
            {
                "id": f"{prefix}{i}",
                "inputs": {"message": text.format(city=city)},
                "outputs": {"team": expected, "rule": rule},
            }
        )
    return found


def write_jsonl(path, examples):
    Path(path).write_text("".join(json.dumps(e) + "\n" for e in examples))


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def project(folder, *, module="desk_app", made="build()", **settings):
    """Write what a user has: a module with a graph, data, and the configuration."""
    (folder / f"{module}.py").write_text(
        f"from tests.desk import EVALUATORS, build, build_plain, team\n\ngraph = {made}\n"
    )
    first = 0
    for name, count in (("train", 3), ("val", 3), ("test", 2)):
        write_jsonl(folder / f"{name}.jsonl", rows(count, first))
        first += count
    given = {
        "graph": f"{module}:graph", "train": "train.jsonl", "val": "val.jsonl",
        "test": "test.jsonl", "evaluator": [f"{module}:EVALUATORS"], "model": "test-model",
        "steps": 2, "batch_size": 3, **settings,
    }  # fmt: skip
    text = "".join(f"{k} = {toml(v)}\n" for k, v in given.items() if v is not None)
    (folder / "optimize.toml").write_text(text)
    return folder / "optimize.toml"


class Script:
    """The server's handler. Put a function in place of `node`, `critic` or `rewriter` to misbehave.

    `node(name, prompt, text)` returns the reply, or None for the usual one; `critic(name, content)`
    and `rewriter(name, content)` likewise. `latency` draws a random pause before each reply.
    """

    def __init__(self, latency=None, seed=0):
        self.node = self.critic = self.rewriter = lambda *_: None
        self.latency = latency
        self.random = random.Random(seed)
        self.answered = 0

    async def __call__(self, body):
        if self.latency:
            await asyncio.sleep(self.random.uniform(*self.latency))
        if (said := written(body)) is not None:
            self.answered += 1
            return Reply(json.dumps(said))
        kind, name = who(body)
        content = "\n".join(m["content"] for m in body["messages"])
        if kind == "rollout":
            prompt, text = (m["content"] for m in body["messages"])
            said = self.node(name, prompt, text)
            said = said if said is not None else play(name, prompt, text)
        elif kind == "critic":
            said = self.critic(name, content)
            said = said if said is not None else judge(name, content)
            said = fitted(said, schema_of(body)) if isinstance(said, dict) else said
        else:
            said = self.rewriter(name, content)
            said = said if said is not None else rewrite(content)
        self.answered += 1
        return Reply(said) if isinstance(said, str) else said


def schema_of(body):
    return body["response_format"]["json_schema"]["schema"]


WHOLE_TEXTS = {"instruction", "prompt", "summary", "request"}


def written(body):
    """Return the texts that a searching optimizer asks for; None when it asks for anything else."""
    wanted = schema_of(body)["properties"].keys() if "response_format" in body else set()
    if not wanted or wanted - WHOLE_TEXTS:
        return None
    about = re.findall(r"the (triage|writer|polish) step", body["messages"][1]["content"])
    name = about[-1] if about else "triage"
    return dict.fromkeys(wanted, f"You are the desk's {name}.\n{RULES[name][0]}\nReply briefly.")


def who(body):
    """Return what kind of call this is, and which node it is or is about."""
    texts = [m["content"] for m in body["messages"]]
    if "response_format" not in body:
        kind, where = "rollout", texts[0]
    else:
        kind = "rewriter" if "edits" in schema_of(body)["properties"] else "critic"
        where = texts[1]
    found = re.search(r"(?i)the desk's (triage|writer|polish)|the (triage|writer|polish) step", where)
    return kind, found[1] or found[2]


def play(name, prompt, text):
    if name == "triage":
        if "parcel" in text:
            return "delivery" if PARCELS in prompt else "payments"
        if "broken" in text:
            return "repairs" if BROKEN in prompt else "payments"
        return "payments"
    if name == "writer":
        city = text.split(" to ")[1].split()[0]
        hello = "Dear customer." if GREETING in prompt else "Hello."
        return f"{hello} We at {text.split('Team: ')[1]} look into {city}."
    return f"{text} Kind regards." if ENDING in prompt else text


def judge(name, content):
    """The first rule of this step that the complaint names."""
    complaint = content.split("Complaint:")[-1]
    rule = next((rule for rule in RULES[name] if rule in complaint), "")
    return {"general_rule": rule, "weight": 0.9 if rule else 0.0, "blame": GREETING in complaint}


def fitted(verdict, schema):
    """Return the verdict in the schema's form. `blame` hands a complaint on to the writer."""
    usual = {"general_rule": "", "keep": "", "evidence": "", "weight": 0.0, "upstream": []}
    data = {k: verdict.get(k, usual[k]) for k in schema["required"]}
    if verdict.get("blame") and "upstream" in data:
        steps = schema["properties"]["upstream"]["items"]["properties"]["step"]["enum"]
        if "writer#0" in steps:
            data["upstream"] = [{"step": "writer#0", "complaint": GREETING, "weight": 0.8}]
    return data


def rewrite(content):
    lines = re.findall(r"^\d+: ", content, re.M)
    notes = re.findall(r"^(\d+)\. (.+)$", content, re.M)
    at = max(1, len(lines) - 1)
    return {
        "edits": [
            {"op": "add", "line": at, "text": note, "notes": [int(n)]} for n, note in notes[:4]
        ]
    }


def kinds(server):
    """Return how often each (kind of call, node) was asked."""
    return Counter(who(body) for body in server.chats)


def texts_of(body):
    return tuple(m["content"] for m in body["messages"])


def repeats(server):
    """Return the requests that came more than once."""
    seen = Counter(json.dumps(body, sort_keys=True) for body in server.chats)
    return {body: n for body, n in seen.items() if n > 1}


def command_line(arguments, folder, log, environment):
    """Run the command line in this process, for good: the target of `start`."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(environment)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from lg_textgrad.cli import main

    sys.exit(main(arguments))


@functools.cache
def _processes():
    """Processes of their own that can be killed, without each importing everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.desk", "lg_textgrad.cli", "lg_textgrad.models.openai"])
    return context


def start(arguments, folder, log, environment):
    """Start `lg-textgrad ...` in another process, in `folder`, with its output in `log`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)  # where the preloaded modules are
    try:
        process = _processes().Process(
            target=command_line, args=(list(arguments), folder, log, environment), daemon=True
        )
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process


def wait_for(condition, seconds=300.0):
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
