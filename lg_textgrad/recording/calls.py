"""The calls of models and tools that a recorder hears of, each in the execution that made it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config

from lg_textgrad.recording.doubts import hidden
from lg_textgrad.recording.formats import reply_format
from lg_textgrad.recording.tasks import Frame, Root, Task
from lg_textgrad.run import ModelCall, ToolCall, Usage, node_path

NAMESPACE = "langgraph_checkpoint_ns"


class CallRecorder(BaseCallbackHandler):
    """Keeps the calls of models and tools. Whoever derives from it says what an execution is."""

    run_inline = True  # keeps the order of events, and the context of the node, in async runs

    def __init__(self) -> None:
        self.roots: list[Root] = []
        self._guard = threading.RLock()
        self._frames: dict[UUID, Frame] = {}
        self._tasks: dict[str, Task] = {}
        self._calls: dict[UUID, tuple[Task, float, ModelCall]] = {}
        self._tools: dict[UUID, tuple[Task, ToolCall]] = {}
        self._seconds: dict[UUID, float] = {}

    def _plain(self, value: Any, task: Task) -> Any:
        try:
            return task.root.plainer.of(value)
        except Exception as error:  # a repr or a property of the user's that raises
            task.root.notes.add(
                f"A value in the node '{task.path}' could not be recorded "
                f"({type(error).__name__}: {error}); the trace has its type's name."
            )
            return f"<{type(value).__name__}>"

    # Model calls.

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        found = metadata or {}
        asked = kwargs.get("invocation_params") or {}
        name = asked.get("model") or asked.get("model_name") or found.get("ls_model_name")
        with self._guard:
            task = self._inside(run_id, parent_run_id, found)
            if task is None:
                return
            call = ModelCall(
                model=str(name or (kwargs.get("name") or "unknown")),
                messages=tuple(self._plain(messages[0], task)),
                output=None,
                tools=tuple(self._plain(asked.get("tools") or (), task)),
                format=reply_format(asked),
            )
            self._calls[run_id] = (task, time.monotonic(), call)
            task.model_calls[run_id] = call

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A model that completes texts is recorded as one that is sent a user's message."""
        said: list[Mapping[str, Any]] = [{"role": "human", "content": p} for p in prompts]
        found = metadata or {}
        with self._guard:
            task = self._inside(run_id, parent_run_id, found)
            if task is None:
                return
            name = found.get("ls_model_name") or kwargs.get("name") or "unknown"
            call = ModelCall(model=str(name), messages=tuple(said), output=None)
            self._calls[run_id] = (task, time.monotonic(), call)
            task.model_calls[run_id] = call

    def _inside(
        self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any]
    ) -> Task | None:
        """Return the execution that something other than a chain runs in, and note its frame."""
        parent = self._frames.get(parent_run_id) if parent_run_id else None
        task = parent.task if parent else self._tasks.get(metadata.get(NAMESPACE, ""))
        if parent is not None:
            self._frames[run_id] = Frame(parent.namespace, task, parent.root)
        elif task is not None:
            self._frames[run_id] = Frame(task.namespace, task, task.root)
        return task

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id not in self._calls:
                return
            task, started, call = self._calls.pop(run_id)
            generation = response.generations[0][0]
            output: Mapping[str, Any] = {"role": "ai", "content": generation.text}
            took = self._seconds.pop(run_id, None)
            usage = Usage(calls=1, seconds=time.monotonic() - started if took is None else took)
            reason = (generation.generation_info or {}).get("finish_reason")
            if isinstance(generation, ChatGeneration):
                message = generation.message
                output = self._plain(message, task)
                reason = reason or message.response_metadata.get("finish_reason")
                counted = getattr(message, "usage_metadata", None) or {}
                usage = replace(
                    usage,
                    prompt_tokens=counted.get("input_tokens", 0),
                    completion_tokens=counted.get("output_tokens", 0),
                )
            task.model_calls[run_id] = replace(
                call, output=output, usage=usage, finish_reason=reason
            )

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._calls:
                task, _started, call = self._calls.pop(run_id)
                task.model_calls[run_id] = replace(call, error=f"{type(error).__name__}: {error}")

    def timed(self, run_id: UUID | None, seconds: float) -> None:
        """Note how long a call took when it was made, which may have been in another run.

        Between its callbacks it also waited for its turn, or was only looked up.
        """
        with self._guard:
            if run_id in self._calls:
                self._seconds[run_id] = seconds

    # Tool calls.

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        with self._guard:
            task = self._inside(run_id, parent_run_id, metadata or {})
            if task is None:
                return
            given = self._plain(input_str if inputs is None else inputs, task)
            call = ToolCall((serialized or {}).get("name", "tool"), given)
            self._tools[run_id] = (task, call)
            task.tool_calls[run_id] = call

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._tools:
                task, call = self._tools.pop(run_id)
                task.tool_calls[run_id] = replace(call, output=self._plain(output, task))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        with self._guard:
            if run_id in self._tools:
                task, call = self._tools.pop(run_id)
                task.tool_calls[run_id] = replace(call, error=f"{type(error).__name__}: {error}")

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        with self._guard:
            self._inside(run_id, parent_run_id, metadata or {})

    # What callbacks don't tell.

    def witness(self, run_id: UUID | None) -> None:
        """Note a model call of the current context if its callbacks did not come here."""
        with self._guard:
            if run_id in self._calls:
                return
            namespace = namespace_here()
            task = self._tasks.get(namespace)
            if task is not None and any(task is other for other, _, _ in self._calls.values()):
                return  # a model that asks another one inside of its own call
            text = hidden(node_path(namespace) if task is None else task.path)
            for root in self._open() if task is None else [task.root]:
                root.notes.add(text)

    def _open(self) -> list[Root]:
        return [root for root in self.roots if not root.ended]


def namespace_here() -> str:
    """Return the checkpoint namespace of the node that runs in the current context."""
    config = var_child_runnable_config.get() or {}
    return str(
        (config.get("metadata") or {}).get(NAMESPACE)
        or (config.get("configurable") or {}).get("checkpoint_ns", "")
    )
