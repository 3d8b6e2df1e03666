"""The public face: complete names, and an import that does nothing else."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import lg_textgrad as tg
from lg_textgrad import errors

ROOT = Path(__file__).parent.parent


def test_all_is_complete_and_sorted():
    public = {
        n
        for n, v in vars(tg).items()
        if not n.startswith("_") and not isinstance(v, ModuleType) and n != "annotations"
    }
    assert public <= set(tg.__all__)
    assert all(hasattr(tg, n) for n in tg.__all__)
    assert list(tg.__all__) == sorted(tg.__all__)


@pytest.mark.parametrize("name", ["optim", "models", "critics"])
def test_all_of_each_folder_is_there(name):
    module = __import__(f"lg_textgrad.{name}", fromlist=["x"])
    assert all(hasattr(module, n) for n in module.__all__)


def test_every_error_is_in_the_tree_that_the_docstring_draws():
    defined = {
        n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.LGTextGradError)
    }
    drawn = {line.strip("│├└─ ").split(" ")[0] for line in errors.__doc__.splitlines() if "Error" in line}
    assert defined == drawn
    assert all(issubclass(getattr(errors, n), tg.LGTextGradError) for n in defined)


SCRIPT = """
import json, os, sys
seen = []
def audit(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append(f"open {args[0]}")
    elif event in ("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen",
                   "os.mkdir", "os.rename", "os.remove", "sqlite3.connect", "os.putenv"):
        seen.append(f"{event} {args}")
import asyncio, logging, ssl, threading, warnings
import langgraph.graph, langgraph.prebuilt, langsmith, sqlalchemy, pydantic, filelock   # not ours to answer for
handlers, level = list(logging.root.handlers), logging.root.level
hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook, list(warnings.filters))
env = dict(os.environ)
sys.addaudithook(audit)
import lg_textgrad
assert hooks == (sys.excepthook, sys.unraisablehook, threading.excepthook, list(warnings.filters))
print(json.dumps({
    "seen": seen,
    "handlers": [str(h) for h in logging.root.handlers if h not in handlers]
        + [str(h) for n in logging.root.manager.loggerDict if n.startswith("lg_textgrad")
           for h in logging.getLogger(n).handlers],
    "level": logging.root.level == level,
    "threads": threading.active_count(),
    "env": dict(os.environ) == env,
    "sdks": [m for m in ("openai", "langchain_openai", "xllamacpp", "openevals", "langchain", "optuna", "gepa") if m in sys.modules],
}))
"""


def test_importing_has_no_side_effects(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error::DeprecationWarning:lg_textgrad", "-c", SCRIPT],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told == {"seen": [], "handlers": [], "level": True, "threads": 1, "env": True, "sdks": []}
    assert list(home.iterdir()) == []
    assert list(tmp_path.iterdir()) == [home]


def raised_by_constructor(kind):
    """Return the names of the errors that a class' own `__init__` or `__post_init__` raises."""
    [written] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    made = [n for n in written.body if getattr(n, "name", "") in ("__init__", "__post_init__")]
    raised = [n.exc for m in made for n in ast.walk(m) if isinstance(n, ast.Raise)]
    return {ast.unparse(e.func) for e in raised if isinstance(e, ast.Call)} & vars(errors).keys()


PUBLIC = [getattr(place, name) for place in (tg, tg.optim, tg.models, tg.executors) for name in place.__all__]


@pytest.mark.parametrize("kind", [k for k in PUBLIC if isinstance(k, type)], ids=lambda k: k.__name__)
def test_errors_of_a_constructor_are_in_the_docstring(kind):
    missing = {name for name in raised_by_constructor(kind) if f"`{name}`" not in (kind.__doc__ or "")}
    assert missing == set()
