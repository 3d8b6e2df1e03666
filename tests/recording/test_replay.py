"""A server's event stream told to the recorder, where the graphs of test_remote.py don't go."""

from __future__ import annotations

import pytest

from lg_textgrad.recording.replay import executions_of, outputs_of, revived, slim



def event(kind, run, parent="", ns="n:1", **data):
    ids = {"run_id": f"{run:0>32}", "parent_ids": [f"{parent:0>32}"] if parent else []}
    metadata = {"langgraph_checkpoint_ns": ns, "langgraph_step": 1}
    said = {"event": kind, "name": "n", "metadata": metadata, "data": data, **ids}
    return slim("events", said, 0.0)


def test_model_call_without_an_end_is_told_in_a_warning():
    parts = [
        event("on_chain_start", "1", input={"q": "x"}),
        event("on_chat_model_start", "2", "1", input={"messages": [[]]}),
        event("on_chain_end", "1", output={"a": "y"}),
    ]
    [execution], _, [warning] = executions_of(parts, {}, {}, {})
    assert execution.model_calls[0].error == "Error: the server does not say which"
    assert warning.startswith("A model call of the node 'n' failed or was cut off")


def test_tools_error_and_second_attempt():
    parts = [
        event("on_chain_start", "1", input={"q": "x"}),
        event("on_tool_start", "2", "1", input={"word": "x"}),
        event("on_tool_error", "2", "1", error={"error": "KeyError", "message": "'x'"}),
        event("on_chain_start", "3", input={"q": "x"}),
        event("on_chain_end", "3", output={"a": "y"}),
    ]
    [execution], _, _ = executions_of(parts, {}, {}, {})
    assert execution.tool_calls[0].error == "KeyError: 'x'"
    assert (execution.writes, execution.error) == ((("a", "y"),), None)


def calling(run, node, role, content):
    ns = f"{node}:{run}"
    call = {"type": role, "content": content, "additional_kwargs": {}, "response_metadata": {}}
    reply = {**call, "type": "ai", "content": "ok"}
    return [
        event("on_chain_start", run, ns=ns, input={}),
        event("on_chat_model_start", f"{run}0", run, ns=ns, input={"messages": [[call]]}),
        event("on_chat_model_end", f"{run}0", run, ns=ns, output=reply),
    ]


@pytest.mark.parametrize(
    ("text", "nodes", "expected"),
    [
        ("Be kind.", ["b"], {"b"}),  # the metadata know best
        ("Be kind.", ["gone"], {"a"}),
        ("Be kind.", [], {"a"}),  # what a later node is told of it is no read
        ("Serve {team} (fast).", [], {"c"}),
        ("Plain.", [], {"b"}),
        ("Nowhere.", [], set()),
        ("", [], set()),
    ],
)
def test_who_read_a_prompt_is_told_by_the_best_evidence(text, nodes, expected):
    parts = [
        *calling("1", "a", "system", "Rules: Be kind."),
        *calling("2", "b", "human", "Plain. It was told: Be kind."),
        *calling("3", "c", "system", [{"type": "text", "text": "Serve sales\nand law (fast)."}]),
    ]
    executions, _, _ = executions_of(parts, {}, {"p": text}, {"p": nodes})
    assert {e.path for e in executions if e.prompts} == expected


def test_what_only_looks_like_a_message_stays_as_it_is():
    odd = {"type": "tool", "content": "x", "additional_kwargs": {}, "response_metadata": {}}
    assert revived([odd]) == [odd]  # a tool's message says which call it answers


def test_run_without_values_has_no_output():
    assert outputs_of([]) is None


def test_parts_that_say_nothing_new_are_not_kept():
    assert slim("metadata", {"run_id": "1"}, 0.0) is None
    assert slim("debug", {"type": "task"}, 0.0) is None
    assert event("on_chain_stream", "1") is None
    assert "input" not in event("on_chain_end", "1", input={}, output={})["data"]["data"]


def test_command_with_sends_leads_to_the_tasks_that_they_made():
    send = {"node": "w", "args": {"q": "x"}}
    command = {"graph": None, "update": [["a", 1]], "resume": None, "goto": [send, "m"]}
    start = event("on_chain_start", "2", ns="w:2", input={"q": "x"})
    start["data"]["metadata"].update(langgraph_triggers=["__pregel_push"], langgraph_step=2)
    parts = [
        event("on_chain_start", "1", input={}),
        event("on_chain_end", "1", output=command),
        start,
    ]
    (first, second), _, _ = executions_of(parts, {}, {}, {})
    assert (first.writes, first.goto, first.sends) == ((("a", 1),), ("m",), ("w",))
    assert second.sent_by == "n#0"
