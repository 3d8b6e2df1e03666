"""The package keeps the order, and the house rules, that CONTRIBUTING.md describes."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lg_textgrad"

# A module imports only from layers above its own. A folder is one layer.
LAYERS = (
    "_version",
    "run",
    "errors",  # an error carries what was spent, so it knows run.Usage
    "_given",
    "_hashing",
    "_heap",
    "_straight",
    "_sync",
    "limiter",
    "redaction",
    "faults",
    "traffic",
    "prices",
    "demos",
    "parameter",
    "budget",
    "store",
    "models",
    "underway",
    "ledger",  # pays for model calls: budget, store and models together
    "templates",
    "guards",
    "asking",
    "planted",
    "data",
    "tracking",
    "copies",
    "bindings",
    "recording",
    "graph",
    "discovery",
    "locating",
    "executors",
    "watching",
    "trace",
    "evaluators",
    "objective",
    "symptoms",
    "critics",
    "variables",
    "refining",
    "backward",
    "reduction",
    "changes",
    "optim",
    "significance",
    "acceptance",
    "approval",
    "selection",
    "pareto",
    "provenance",
    "bench",
    "screening",
    "differences",
    "planning",
    "result",
    "noticing",
    "trainer",
    "langsmith",
    "__init__",
    "reachable",
    "loading",
    "opening",
    "drawing",
    "inspecting",
    "assembly",
    "sessions",
    "explaining",
    "reporting",
    "_render",
    "cli",
    "__main__",
)

# (layer, layer below it, how) -> why that is allowed all the same.
AGAINST_THE_ORDER = {
    ("objective", "backward", "lazy"): "loss.backward(critic) is PyTorch's spelling",
    ("objective", "critics", "typing"): "the annotation of that critic",
    ("models", "bindings", "lazy"): "models.wrap_openai() is where people look for it",
    ("parameter", "bindings", "lazy"): "parameter.middleware() is where people look for it",
}

# An SDK is imported in a file or folder of its name, and here.
SDKS: Mapping[str, tuple[str, ...]] = {
    "gepa": (),
    "genai_prices": ("prices",),
    "langchain_openai": (),
    "langsmith": ("recording/isolation",),  # only switches its tracing off
    "openai": ("models/openai_errors",),
    "optuna": ("optim/mipro",),
    "ray": (),
    "xllamacpp": ("models/local_child",),
}

OUTSIDE = ("evals", "graphs", "tests")
LONGEST = 500
# Module -> its own limit, for what is one piece and would not read better as two.
LONGER = {"ledger": 520, "trainer": 570}


@dataclass(frozen=True)
class Module:
    name: str
    """Path within the package, without `.py`: `models/openai`; `models/__init__` for the folder."""
    tree: ast.Module
    lines: int

    @property
    def layer(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Import:
    module: Module
    target: str
    """A module's name, or the dotted name of what is not ours: `openai.types`."""
    ours: bool
    how: str
    """`top`, `lazy` inside a function, `typing` under TYPE_CHECKING."""
    line: int

    @property
    def place(self) -> str:
        return f"{self.module.name}.py:{self.line}"


@functools.cache
def read(package: Path) -> list[Module]:
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(package).with_suffix("").as_posix()
        found.append(Module(name, ast.parse(text), len(text.splitlines())))
    return found


def imports(modules: list[Module]) -> Iterator[Import]:
    names = {m.name for m in modules}
    for module in modules:
        for node, how in _statements(module.tree, "top"):
            for dotted in _imported(node, module):
                first, *rest = dotted.split(".")
                ours = first == "lg_textgrad"
                target = _within(rest, names) if ours else dotted
                yield Import(module, target, ours, how, node.lineno)


def _statements(node: ast.AST, how: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        inner = how
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, how
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and how == "top":
            inner = "lazy"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), how)
            continue
        yield from _statements(child, inner)


def _imported(node: ast.Import | ast.ImportFrom, module: Module) -> list[str]:
    """Return the dotted names that could be modules: `from a import b` gives `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        folder = ["lg_textgrad", *module.name.split("/")][: -node.level]
        base = ".".join([*folder, base]).rstrip(".")
    return [f"{base}.{alias.name}" for alias in node.names]


def _within(rest: list[str], names: set[str]) -> str:
    """Return the module that `lg_textgrad.<rest>` is, or is in; else the package itself."""
    while rest:
        for name in ("/".join(rest), "/".join([*rest, "__init__"])):
            if name in names:
                return name
        rest = rest[:-1]
    return "__init__"


def misdirected(package: Path) -> list[str]:
    """Return the imports that go against the order of the layers, and exceptions without a use."""
    modules = read(package)
    wrong = [
        f"{m.name}.py is in no layer; give it its place in LAYERS"
        for m in modules
        if m.layer not in LAYERS
    ]
    used = set()
    for found in imports(modules):
        above, here = found.target.split("/")[0], found.module.layer
        if not found.ours or {above, here} - set(LAYERS) or above == here:
            continue
        if LAYERS.index(above) < LAYERS.index(here):
            continue
        used.add((here, above, found.how))
        if (here, above, found.how) not in AGAINST_THE_ORDER:
            wrong.append(f"{found.place} imports {found.target}, which stands below it")
    if package == PACKAGE:
        unused = AGAINST_THE_ORDER.keys() - used
        wrong += [f"the exception {exception} is no longer needed" for exception in sorted(unused)]
    return wrong


def circular(package: Path) -> list[str]:
    """Return the first circle of imports, if there is one; also one inside a folder."""
    modules = read(package)
    needs: dict[str, set[str]] = {m.name: set() for m in modules}
    for found in imports(modules):
        exception = (found.module.layer, found.target.split("/")[0], found.how)
        if found.ours and found.how != "typing" and exception not in AGAINST_THE_ORDER:
            needs[found.module.name].add(found.target)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return [f"these import each other: {' <- '.join(error.args[1])}"]
    return []


def misplaced_sdks(package: Path) -> list[str]:
    """Return the imports of an SDK outside its own module, and of our own examples."""
    wrong = []
    for found in imports(read(package)):
        first = found.target.split(".")[0]
        if found.ours:
            continue
        own = first in found.module.name.split("/") or found.module.name in SDKS.get(first, ())
        if first in SDKS and not own:
            wrong.append(f"{found.place} imports {first}, which has a module of its own")
        if first in OUTSIDE:
            wrong.append(f"{found.place} imports {first}, which is outside the package")
    return wrong


def printing(package: Path) -> list[str]:
    """Return the calls of `print` outside the command line."""
    return [
        f"{module.name}.py:{node.lineno} prints"
        for module in read(package)
        if module.layer != "cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "builtins.print")
    ]


def not_packages(package: Path) -> list[str]:
    """Return the folders that wheels and `importlib.resources` would not see as packages."""
    folders = {path.parent for path in package.rglob("*") if path.suffix in (".py", ".md")}
    return [
        f"{folder.relative_to(package.parent).as_posix()} has no __init__.py"
        for folder in sorted(folders)
        if not (folder / "__init__.py").is_file()
    ]


def too_long(package: Path) -> list[str]:
    """Return the modules that nobody reads in one sitting, and limits without a use."""
    wrong = []
    for module in read(package):
        limit = LONGER.get(module.name, LONGEST)
        if module.lines > limit:
            wrong.append(f"{module.name}.py has {module.lines} lines, more than {limit}")
        if module.lines <= LONGEST < limit:
            wrong.append(f"{module.name}.py no longer needs a limit of its own")
    return wrong


RULES = [misdirected, circular, misplaced_sdks, printing, not_packages, too_long]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(PACKAGE) == []


def plant(folder: Path, files: Mapping[str, str]) -> Path:
    package = folder / "lg_textgrad"
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


VIOLATIONS = [
    (misdirected, {"run.py": "from lg_textgrad.trainer import T\n", "trainer.py": "T = 1\n"}),
    (misdirected, {"run.py": "from lg_textgrad import trainer\n", "trainer.py": ""}),
    (misdirected, {"run.py": "import lg_textgrad.trainer\n", "trainer.py": ""}),
    (misdirected, {"run.py": "from .trainer import T\n", "trainer.py": "T = 1\n"}),
    (misdirected, {"run.py": "import lg_textgrad as tg\n"}),
    (misdirected, {"run.py": "def f():\n    import lg_textgrad.cli\n", "cli.py": ""}),
    (
        misdirected,
        {
            "models/__init__.py": "",
            "models/base.py": "from ..critics.base import C\n",
            "critics/__init__.py": "",
            "critics/base.py": "C = 1\n",
        },
    ),
    (
        misdirected,
        {"objective.py": "from lg_textgrad.backward import abackward\n", "backward.py": ""},
    ),
    (
        misdirected,
        {
            "run.py": (
                "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from lg_textgrad.store import Store\n"
            ),
            "store.py": "",
        },
    ),
    (misdirected, {"novelty.py": ""}),
    (
        circular,
        {
            "optim/__init__.py": "",
            "optim/a.py": "from lg_textgrad.optim import b\n",
            "optim/b.py": "from lg_textgrad.optim.a import x\n",
        },
    ),
    (misplaced_sdks, {"trainer.py": "from openai.types import chat\n"}),
    (misplaced_sdks, {"trainer.py": "def f():\n    import langsmith\n"}),
    (misplaced_sdks, {"recording/__init__.py": "from langsmith.run_helpers import t\n"}),
    (misplaced_sdks, {"trainer.py": "import evals.evaluators.support\n"}),
    (misplaced_sdks, {"trainer.py": "from graphs import support\n"}),
    (printing, {"trainer.py": "def f():\n    print('done')\n"}),
    (not_packages, {"templates/critic.md": "Be kind.\n"}),
    (not_packages, {"optim/tgd.py": ""}),
    (too_long, {"trainer.py": "\n" * 700}),
    (too_long, {"trainer.py": "x = 1\n"}),
]


@pytest.mark.parametrize(("rule", "files"), VIOLATIONS)
def test_planted_violation_is_found(
    rule: Callable[[Path], list[str]], files: Mapping[str, str], tmp_path: Path
) -> None:
    assert len(rule(plant(tmp_path, files))) == 1


def test_what_the_rules_allow_is_not_reported(tmp_path: Path) -> None:
    package = plant(
        tmp_path,
        {
            "__init__.py": "from lg_textgrad.objective import o\n",
            "run.py": "import trace\nfrom dataclasses import dataclass\n",
            "trace.py": "from lg_textgrad import run\n",
            "objective.py": (
                "from typing import TYPE_CHECKING\n"
                "from lg_textgrad import run\n"
                "if TYPE_CHECKING:\n"
                "    from lg_textgrad.critics.base import C\n"
                "def o():\n"
                "    from lg_textgrad.backward import b\n"
            ),
            "critics/__init__.py": "from lg_textgrad.critics.base import C\n",
            "critics/base.py": "from lg_textgrad.objective import o\n",
            "backward.py": "from lg_textgrad.critics.base import C\n",
            "models/__init__.py": "",
            "models/openai.py": "import openai\n",
            "trainer.py": "\n" * (LONGEST + 1),
            "recording/__init__.py": "",
            "recording/isolation.py": "from langsmith.run_helpers import tracing_context\n",
            "cli/__init__.py": "print('hello')\n",
        },
    )
    assert [wrong for rule in RULES for wrong in rule(package)] == []
