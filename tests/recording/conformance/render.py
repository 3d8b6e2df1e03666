"""The matrix as a document: `make conformance` writes it.

The cells say what the rows claim, and tests/recording/test_conformance.py holds them to it.
"""

from __future__ import annotations

from pathlib import Path


from tests.recording.conformance.matrix import COLUMNS, ROWS

DOCUMENT = Path(__file__).parents[3] / "docs" / "conformance.md"

HEAD = """\
# Conformance

What a recorded run of each construct of LangGraph is compared with, in each way to build and to run
the graph: every write, `Send` and `Overwrite` with what a checkpointer was told; every edge with
those that a person wrote by hand; every model call with where it was made and the prompt that it
was sent. `tests/recording/test_conformance.py` does it, and fails when this page is not what it
found; `make conformance` writes the page.

- **sync, async**: whether nodes are plain or async functions, run by `graph.record(...)`;
- **declared, discovered**: whether prompts are `Parameter`s in the nodes, or found by `tg.discover`
  in a graph that knows nothing of them; each with a candidate other than what the nodes have;
- **invoke … abatch**: the user's own runs, under `tg.watch(graph)`.

✓ is exact: nothing is missing and nothing is too much. A number is a limit, told below.
"""

NOTES = """\
## What holds everywhere

- An edge is narrowed by the node's input schema and by the keys of its state that it really read,
  of dicts, Pydantic models and dataclasses. Conditional edges read for the node that they hang on.
- Looking at the whole state (`dict(state)`, `{**state}`, printing it) reads every key. So does handing
  it on as a whole, to a graph for instance.
- A reducer channel comes from every writer since the last `Overwrite`. With `add_messages`, those
  whose messages were all removed or replaced don't count. What a reducer makes of values (a sum, a
  maximum) is not looked into.
- What a node's code hands to tasks and graphs, and what it returns, is traced by identity, strings
  and numbers by what they are: two results that are equal can't be told apart, and both count. So do
  all results that had come back by then, where a value was computed from something that is none of
  them.
- What only decided how a node's code went on (`if check(x): ...`) is an edge to the node, not to what
  it started after that.
- Code inside a node that calls a model and hands the answer to a graph or task: the edge leads to
  what fed the node, since an execution can't come before and after another.
"""


def document() -> str:
    limits: dict[str, int] = {}

    def cell(limit: str) -> str:
        return str(limits.setdefault(limit, len(limits) + 1)) if limit else "✓"

    names = [column.name for column in COLUMNS]
    lines = [
        HEAD,
        "| construct | " + " | ".join(names) + " |",
        "|---|" + ":-:|" * len(names),
        *(
            f"| {row.title} | "
            + " | ".join(
                cell(row.under(watched=column.drive is not None).limit) for column in COLUMNS
            )
            + " |"
            for row in ROWS
        ),
        "",
        "## Limits",
        "",
        *(f"{number}. {limit}" for limit, number in limits.items()),
        "",
        NOTES,
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
