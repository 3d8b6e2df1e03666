"""Other words in the mouth of one execution: what its model last said, replaced for one run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from lg_textgrad._hashing import canonical, message_to_plain
from lg_textgrad.bindings.patching import path_here
from lg_textgrad.run import Execution, Run


class Correction:
    """Answers the last model call of one execution of `run` with `reply` when it comes again.

    The call is known by where it is made (path and superstep), by what is asked, and by how many
    like it came before: so it is the same one in a run that is the same up to there, whatever the
    order of what goes on beside it. `said` tells whether it came. `shown` masks what is asked, as
    the run is masked.
    """

    def __init__(
        self,
        run: Run,
        execution: Execution,
        reply: AIMessage,
        shown: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        call = execution.model_calls[-1]
        self.reply = reply
        self.said = False
        self._where = execution.path, execution.superstep
        self._asked = canonical(list(call.messages))
        calls = [
            c
            for e in run.executions
            if (e.path, e.superstep) == self._where and e.order <= execution.order
            for c in e.model_calls
            if canonical(list(c.messages)) == self._asked
        ]
        self._before = len(calls) - 1
        self._shown = shown
        self._guard = threading.Lock()

    def answer(self, metadata: Any, messages: Sequence[BaseMessage]) -> AIMessage | None:
        """Return what to say in place of the model; None where the model is to be asked."""
        found = metadata or {}
        where = (
            path_here(found),
            int(found.get("langgraph_step", 0)),
        )
        if where != self._where:
            return None
        if canonical(self._shown([message_to_plain(m) for m in messages])) != self._asked:
            return None
        with self._guard:
            self._before -= 1
            if self._before != -1:
                return None
            self.said = True
        return self.reply
