"""Find what the user names: `MODULE:GRAPH`, `MODULE:FUNCTION`, prompt files, `optimize.toml`."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from langgraph.pregel import Pregel

from lg_textgrad.bindings.tool_modes import Tools
from lg_textgrad.budget import Budget
from lg_textgrad.data import read_toml
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.locating import load_graph_object, load_object
from lg_textgrad.parameter import Parameter
from lg_textgrad.reachable import reachable_parameters
from lg_textgrad.redaction import HIDDEN_USER, Redact, without_credentials
from lg_textgrad.store import is_url, without_password
from lg_textgrad.traffic import Patience


def load_graph(spec: str) -> TrainableGraph:
    """Return the graph that `MODULE:GRAPH`, or a `langgraph.json`, names.

    The `Parameter` objects in the graph's module, and those that its nodes can reach, are its
    parameters. Raises `GraphError` for what is not there or not compiled.
    """
    found, module = load_graph_object(spec)
    if isinstance(found, TrainableGraph):
        return found
    parameters = {id(v): v for v in vars(module).values() if isinstance(v, Parameter)}
    if isinstance(found, Pregel):
        parameters |= {id(p): p for p in reachable_parameters(found)}
    return TrainableGraph(found, parameters.values())


def load_redact(spec: str | None) -> Redact | None:
    """Return the redaction hook that a configuration names; None where it names none."""
    if spec is None:
        return None
    hook, _ = load_object(spec, "redaction hook")
    if not callable(hook):
        raise ConfigurationError(f"The redaction hook '{spec}' cannot be called.")
    found: Redact = hook
    return found


def load_evaluators(specs: list[str]) -> list[Any]:
    """Return the evaluators: each spec names a function, or a list of functions."""
    found: list[Any] = []
    for spec in specs:
        value, _ = load_object(spec, "evaluator")
        found.extend(value if isinstance(value, list | tuple) else [value])
    return found


def write_prompts(path: str | Path, prompts: Mapping[str, str], comment: str = "") -> None:
    """Write a file that `read_prompts` and a person can read."""
    lines = [as_comment(comment), "", "[prompts]"]
    for name, text in prompts.items():
        body = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"').replace("\r", "\\r")
        body = "".join(c if c >= " " or c in "\n\t" else f"\\u{ord(c):04x}" for c in body)
        body = body.replace("\x7f", "\\u007f")
        bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
        # A JSON string is a TOML string too, but for this one character.
        key = name if bare else json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f'{key} = """\n{body}\n"""')
    write_text(path, "\n".join(lines).lstrip("\n") + "\n")


def as_comment(text: str) -> str:
    """Return the text as a comment of a TOML file, which may not have control characters."""
    lines = ["".join(c if c.isprintable() else " " for c in ln) for ln in text.splitlines()]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def write_text(path: str | Path, text: str) -> None:
    """Write a file. Raises `ConfigurationError` when it cannot be written."""
    try:
        # Line ends as they are: Windows would make two characters of each.
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigurationError(f"The file '{path}' cannot be written: {error}.") from None


CONFIG_TEMPLATE = """\
# What `lg-textgrad optimize {file}` needs. Paths count from this file's folder.

graph = {graph}            # the parameters that it has: {names}
{discover}
# discover_rows = 3        # rows of train that the graph runs on for that
# discover_tools = true    # descriptions of tools and of their arguments, too
train = "train.jsonl"      # one {{"inputs": ..., "outputs": ...}} a line
val = "val.jsonl"          # decides what is kept
# test = "test.jsonl"      # scored before and after, decides nothing
evaluator = ["my_app.evaluators:correct"]   # functions as LangSmith's evaluate takes them

model = "gpt-4o-mini"      # critic and rewriter; "local" is the embedded model
# base_url = "https://..." # any server that speaks OpenAI's API
# api_key_env = "OPENAI_API_KEY"
# rewriter_model = "..."   # a stronger model for the rewriter alone

steps = 4
batch_size = 6
seed = 0
max_concurrency = 8
# call_timeout = 600.0     # seconds for one attempt of a model call
# retries = 9              # further attempts after a server's faults
# executor = "ray"         # rollouts on a Ray cluster
# budget_calls = 500       # one cap over the graph, evaluators, critic and rewriter
# budget_tokens = 1000000
# budget_seconds = 3600
# budget_usd = 5.0         # prices are genai-prices'; give others with
# prices = {{"my-model" = [0.5, 1.5]}}       # dollars per million tokens in and out
# tools = "replay-else-live"   # or live, record, replay; a table for some of them
# redact = "my_app.privacy:mask"   # sees every text before it is stored or sent to the critic
# min_gain = 0.0           # how much better a candidate must be on val
# acceptance = "significant"       # and unlikely to be so by chance

# dataset = "support"      # a LangSmith dataset in place of the files above
# langsmith = true         # report to LangSmith; nothing is sent without it

# The prompts that were found, as they are now:
{prompts}
"""
"""What `init` writes; the settings are those of `Config`."""


def config_text(name: str, spec: str, graph: TrainableGraph, *, discover: bool) -> str:
    """Return the configuration that `init` writes to the file `name`."""
    names = " ".join(", ".join(graph.parameters).split())
    found = "\n\n".join(f"{n}\n{p.value}" for n, p in graph.parameters.items())
    later = "found when it runs" if discover else "none yet"
    asked = "discover = true" if discover else "# discover = true"
    return CONFIG_TEMPLATE.format(
        file=name,
        graph=json.dumps(spec),
        names=names or later,
        discover=f"{asked:24}   # find the prompts by running the graph, as it is",
        prompts=as_comment(found or later),
    )


_ONLY_WITH = {
    "dataset_splits": "dataset", "dataset_version": "dataset", "hub_version": "hub",
    "approve_wait": "approve",
    **dict.fromkeys(
        ("since", "until", "trace_filter", "feedback", "feedback_range", "queue", "trace_limit"),
        "traces",
    ),
}  # fmt: skip
"""Setting -> the one without which nobody would look at it."""


@dataclass
class Config:
    """What `optimize` and `evaluate` need; the flags and `optimize.toml` have the same names."""

    graph: str = ""
    train: str = ""
    val: str = ""
    test: str | None = None
    evaluator: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    model: str = "local"
    """Critic and rewriter; `local` is the embedded model. The graph brings its own."""
    rewriter_model: str | None = None
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    brief_critic: bool = False
    """Ask the critic for the rule and the weight only: for small models."""
    critic: str = "node"
    """`node`, `trace`, `auto`, `proven` or `self_rewarding`: how blame is given."""
    critic_options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "tgd"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    steps: int = 4
    batch_size: int = 6
    seed: int = 0
    budget_calls: int | None = None
    budget_tokens: int | None = None
    budget_seconds: float | None = None
    budget_usd: float | None = None
    prices: dict[str, Any] = field(default_factory=dict)
    """Model -> dollars per million tokens: [in, out], or [in, out, cached in]."""
    price: list[str] = field(default_factory=list)
    """The same as `MODEL=IN,OUT`, over `prices`."""
    tools: str | dict[str, Any] = ""
    """A mode for all tools, or a table like `Tools`; empty leaves it to the graph."""
    tool: list[str] = field(default_factory=list)
    """`NAME=MODE` for one tool, over `tools`."""
    redact: str | None = None
    """`MODULE:FN`: sees every text before it is stored, shown or sent to the critic."""
    max_concurrency: int = 8
    call_timeout: float = 600.0
    """Seconds that one attempt of one model call may take, the graph's own calls included."""
    retries: int = 9
    """Further attempts of a call that failed on its way."""
    executor: str = "local"
    """Where runs of the graph are made: in this process (`local`), or `ray`, or `ray:ADDRESS`."""
    executor_options: dict[str, Any] = field(default_factory=dict)
    train_rows: int | None = None
    """Use only so many rows of the file, from the top; None takes all."""
    val_rows: int | None = None
    test_rows: int | None = None
    reference: str | None = None
    """A prompts file to score beside the result."""
    reuse: str | None = None
    """Another run's directory: model results that it paid for are not paid for again."""
    min_gain: float = 0.0
    acceptance: str = "better"
    """`better`, `significant`, `sequential`, `guarded` or `priced`: what is kept."""
    acceptance_options: dict[str, Any] = field(default_factory=dict)
    summary_evaluator: list[str] = field(default_factory=list)
    """Evaluators that look at all runs of a scoring at once; reported, without a say."""
    dataset: str | None = None
    """A LangSmith dataset by name or id, for the parts that no file is given for."""
    dataset_splits: str | None = None
    """`train=a+b,val=c`, or shares like `60/20/20`; None takes the splits' usual names."""
    dataset_version: str | None = None
    langsmith: bool = False
    """Report the run to LangSmith: experiments, feedback, the optimizer's calls."""
    langsmith_project: str | None = None
    hub: list[str] = field(default_factory=list)
    """Prompts from LangSmith's hub and back: one prefix, or `PARAMETER=PROMPT`s."""
    hub_version: str | None = None
    traces: str | None = None
    """A LangSmith project: learn from its traces and their feedback."""
    since: str | None = None
    until: str | None = None
    trace_filter: str | None = None
    feedback: list[str] = field(default_factory=list)
    feedback_range: list[str] = field(default_factory=list)
    queue: str | None = None
    trace_limit: int | None = None
    approve: str | None = None
    """`terminal`, or an annotation queue: a person's word before each acceptance."""
    approve_wait: float | None = None
    discover: bool | None = None
    """Find prompts by running the graph; None does so where it declares none."""
    discover_rows: int = 3
    """So many rows of `train` are run for that."""
    discover_tools: bool = False
    """Find descriptions of tools and of their arguments, too."""
    out: str = ""

    def kept(self) -> dict[str, Any]:
        """Return the settings as a run keeps them: without passwords in addresses."""
        paths = {"out": without_password(self.out)}
        if self.reuse is not None:
            paths["reuse"] = without_password(self.reuse)
        if self.base_url is not None:
            paths["base_url"] = without_credentials(self.base_url)
        return {**asdict(self), **paths}

    def check(self, *, needs: tuple[str, ...] = ("graph", "train", "val", "evaluator")) -> None:
        """Raise `ConfigurationError` for what is missing or makes no sense."""
        elsewhere = {"train", "val", "test"} if self.dataset else set()
        elsewhere |= {"train"} if self.traces else set()
        for name in needs:
            if name not in elsewhere and not getattr(self, name):
                raise ConfigurationError(
                    f"'{name}' is missing; give --{name.replace('_', '-')} or set it in the "
                    "configuration file."
                )
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_rows") and value is not None and value < 1:
                raise ConfigurationError(f"'{f.name}' must be at least 1, not {value}.")
        if self.base_url and f"//{HIDDEN_USER}@" in self.base_url:
            raise ConfigurationError(
                f"The base_url '{self.base_url}' had a user, password or query, which a run "
                "doesn't keep; give the whole address again, with --base-url."
            )
        if self.base_url and {self.model, self.rewriter_model or "local"} == {"local"}:
            raise ConfigurationError(
                f"The base_url '{without_credentials(self.base_url)}' would not be used: the model "
                "is 'local', the embedded one, which has no server of yours. Name the server's "
                "model with --model, or leave the base_url out."
            )
        if not self.call_timeout > 0:
            raise ConfigurationError(
                f"'call_timeout' must be more than 0 seconds, not {self.call_timeout}."
            )
        if self.retries < 0:
            raise ConfigurationError(f"'retries' must be 0 or more, not {self.retries}.")

    def check_together(self) -> None:
        """Raise `ConfigurationError` for a setting that nobody would look at without another one.

        Only where the settings are given: a run that was begun with such a one goes on.
        """
        for name, other in _ONLY_WITH.items():
            if getattr(self, name) and not getattr(self, other):
                raise ConfigurationError(
                    f"'{name}' would have no effect without '{other}'; give that too, with "
                    f"--{other.replace('_', '-')}, or leave '{name}' out."
                )

    @property
    def budget(self) -> Budget:
        """What may be spent. Raises `ConfigurationError` for what is no price."""
        prices = dict(self.prices)
        for given in self.price:
            model, _, rates = given.rpartition("=")
            try:
                prices[model] = [float(rate) for rate in rates.split(",")]
            except ValueError:
                model = ""
            if not model:
                raise ConfigurationError(
                    f"'{given}' is no price; write MODEL=IN,OUT, in dollars per million tokens."
                )
        return Budget(
            self.budget_calls, self.budget_tokens, self.budget_seconds, self.budget_usd, prices
        )

    def tools_of(self, own: Tools) -> Tools:
        """Return what tools do; `own` is what the graph itself says, for what is not set here."""
        chosen = Tools.of(self.tools) if self.tools else own
        modes = dict(chosen.modes)
        for given in self.tool:
            name, _, mode = given.rpartition("=")
            if not name:
                raise ConfigurationError(f"'{given}' is no tool's mode; write NAME=MODE.")
            modes[name] = mode
        return replace(chosen, modes=modes)

    @property
    def patience(self) -> Patience:
        return Patience(attempts=self.retries + 1, timeout=self.call_timeout)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", lambda v: isinstance(v, str)),
    "int": ("a whole number", lambda v: type(v) is int),
    "float": ("a number", lambda v: type(v) in (int, float)),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "list[str]": (
        "a list of strings",
        lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
    ),
    "dict[str, Any]": ("a table", lambda v: isinstance(v, dict)),
    "str | dict[str, Any]": ("a string or a table", lambda v: isinstance(v, str | dict)),
    "dict[str, float]": (
        "a table of numbers",
        lambda v: isinstance(v, dict) and all(type(x) in (int, float) for x in v.values()),
    ),
}


def _check_kinds(document: Mapping[str, Any], path: Path) -> None:
    for f in fields(Config):
        kind, fits = _KINDS[str(f.type).removesuffix(" | None")]
        if f.name in document and not fits(document[f.name]):
            raise ConfigurationError(
                f"In the configuration file '{path}': '{f.name}' must be {kind}, "
                f"not {document[f.name]!r}."
            )


def read_config(path: str | Path) -> Config:
    """Return the configuration in a TOML file. Paths in it count from the file's folder.

    So do those of `FILE.py:NAME` and `FILE.json:NAME`, where that file is there; else they count
    from the working directory. Raises `ConfigurationError`.
    """
    path = Path(path)
    document = read_toml(path, "configuration file")
    known = {f.name for f in fields(Config)}
    for name in document:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            all_of_them = f"there are {', '.join(sorted(known))}"
            others = f"the nearest is '{near[0]}'" if near else all_of_them
            raise ConfigurationError(
                f"The configuration file '{path}' has an unknown setting '{name}'; {others}."
            )
    for f in fields(Config):
        if f.type == "list[str]" and isinstance(document.get(f.name), str):
            document[f.name] = [document[f.name]]
    _check_kinds(document, path)
    config = Config(**document)
    for name in ("train", "val", "test", "reference", "reuse", "out"):
        value = getattr(config, name)
        if value and not is_url(value):
            setattr(config, name, os.path.relpath(path.parent / value))
    for name in ("graph", "evaluator", "summary_evaluator", "optimizer", "redact"):
        named = getattr(config, name)
        if isinstance(named, str):
            setattr(config, name, _beside(named, path.parent))
        elif named is not None:
            setattr(config, name, [_beside(spec, path.parent) for spec in named])
    return config


def _beside(spec: str, folder: Path) -> str:
    """Return `FILE:NAME` with the file that is in `folder`; others as they are."""
    place, _, name = spec.rpartition(":")
    if not place.endswith((".py", ".json")) or not (folder / place).is_file():
        return spec
    return f"{os.path.relpath(folder / place)}:{name}"
