"""What LangGraph itself says was written: a checkpointer that keeps every write as it comes."""

from __future__ import annotations

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Overwrite, Send

from lg_textgrad._hashing import to_plain

# Channels of LangGraph's own: who runs next, interrupts, errors, what was resumed with.
_SIGNALS = ("branch:to:", "join:", "__interrupt__", "__resume__", "__error", "__no_writes__")


class Truth(InMemorySaver):
    """Task id -> what the task wrote in its last attempt, in order, as plain data."""

    def __init__(self):
        super().__init__()
        self.written: dict[str, list] = {}
        self.nodes: dict[str, str] = {}
        self.inputs: set[str] = set()
        """Tasks that only put the input into channels; a graph runs them without a callback."""
        self.sends: dict[str, list[str]] = {}
        self.overwrites: dict[str, set[str]] = {}

    def forget(self):
        for gathered in (self.written, self.inputs, self.sends, self.overwrites):
            gathered.clear()

    def put_writes(self, config, writes, task_id, task_path=""):
        self._note(writes, task_id, task_path)
        super().put_writes(config, writes, task_id, task_path)

    async def aput_writes(self, config, writes, task_id, task_path=""):
        self._note(writes, task_id, task_path)
        InMemorySaver.put_writes(self, config, writes, task_id, task_path)

    def _note(self, writes, task_id, task_path):
        if task_path.endswith("__start__"):
            self.inputs.add(task_id)
        kept, sends, anew = [], [], set()
        for channel, value in writes:
            if isinstance(value, Send):
                sends.append(value.node)
            elif isinstance(value, Overwrite):
                anew.add(channel)
                kept.append((channel, to_plain(value.value)))
            elif channel == "__end__":  # an entrypoint's output, by key as the run's outputs are
                pairs = value.items() if isinstance(value, dict) else [("__root__", value)]
                kept.extend((key, to_plain(part)) for key, part in pairs)
            elif channel != "__previous__" and not channel.startswith(_SIGNALS):
                kept.append((channel, to_plain(value)))
        if kept or sends or not any(c.startswith(_SIGNALS) for c, _ in writes):
            self.written[task_id], self.sends[task_id], self.overwrites[task_id] = kept, sends, anew
            self.nodes[task_id] = task_path.rpartition(", ")[2]
