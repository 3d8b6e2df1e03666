"""A judge as openevals makes it, on a model by hand. Loaded by name from the command line."""

from __future__ import annotations

from langchain_core.messages import AIMessage
from openevals.llm import create_llm_as_judge

from tests.parts import Chat


def answer(messages):
    good = "Dear customer." in str(messages[-1].content)
    why = "It greets." if good else "Begin with the words Dear customer."
    return AIMessage("", tool_calls=[{"name": "score", "args": {"reasoning": why, "score": good}, "id": "1"}])


class Structured(Chat):
    def with_structured_output(self, schema, **_):
        return self | (lambda message: message.tool_calls[0]["args"])


polite = create_llm_as_judge(
    prompt="Does this greet? <reply>{outputs}</reply>", judge=Structured(answer=answer), feedback_key="polite"
)


def share_polite(outputs):
    return {"key": "share_polite", "score": sum("Dear" in o["answer"] for o in outputs) / len(outputs)}
