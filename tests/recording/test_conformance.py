"""The conformance matrix: each construct of LangGraph, in each way to build and to run it.

What was written is compared with what a checkpointer was told, who fed whom with edges written by
hand. The outcome is `docs/conformance.md`; `make conformance` writes it anew.
"""

from __future__ import annotations

import pytest

from lg_textgrad.trace import Trace
from tests.recording.conformance.matrix import COLUMNS, ROWS, run_cell
from tests.recording.conformance.render import DOCUMENT, document


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
async def test_construct_is_recorded_exactly(row, column, monkeypatch):
    cell = await run_cell(row, column, monkeypatch)
    run, row = cell.run, row.under(watched=column.drive is not None)
    trace = Trace.of(run)

    assert bool(run.error) == bool(row.raises), run.error
    assert (run.error or "").startswith(row.raises)
    assert executions(run) == row.ids()
    assert {(e.producer, e.consumer, e.channel) for e in trace.edges} == row.expected
    sinks = {key: " ".join(sorted(writers)) for key, writers in trace.sinks.items()}
    assert row.sinks.items() <= sinks.items()

    compare_writes(run, cell.truth, row.unseen.split())
    compare_calls(run, row, cell.texts)
    assert [row.warns in warning for warning in run.warnings] == [True] * bool(row.warns)
    assert all(e.started >= 0 and e.seconds >= 0 for e in run.executions)


def compare_writes(run, truth, unseen):
    """What an execution wrote and sent is what the checkpointer was told of its task."""
    seen = {e.namespace.rpartition(":")[2]: e for e in run.executions}
    for task_id, e in seen.items():
        if task_id in truth.written:
            found = (list(e.writes), e.overwrites)
            assert found == (truth.written[task_id], truth.overwrites[task_id]), e.id
            assert list(e.sends) == ([] if e.id in unseen else truth.sends[task_id]), e.id
        elif e.writes:
            # It handed over to the parent graph: LangGraph writes that in its host's name.
            host = next(h for h in run.executions if h.id == e.parent)
            assert e.writes == host.writes, e.id
    missing = truth.written.keys() - seen.keys() - truth.inputs
    assert {truth.nodes[t] for t in missing if truth.written[t]} == set(unseen) - executions(run)


def executions(run):
    return {e.id for e in run.executions}


def compare_calls(run, row, texts):
    """Model calls are where they were made, with the prompt that they were sent."""
    calls = {e.id: len(e.model_calls) for e in run.executions if e.model_calls}
    assert calls == {e: len(names.split()) for e, names in row.prompts.items()}
    for e in run.executions:
        sent = {texts[name] for name in row.prompts.get(e.id, "").split()}
        assert set(e.prompts.values()) == sent, e.id
        for call in e.model_calls:
            assert call.messages[0]["content"] in sent
            assert call.output is not None


def test_document_is_what_the_matrix_says():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "docs/conformance.md is stale; write it anew with `make conformance`."
    )
