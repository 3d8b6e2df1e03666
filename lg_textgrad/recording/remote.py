"""Run a graph on a LangGraph server and record it from the server's event stream.

Candidates travel as `context=`. The stream's events are given to the recorder that live runs use,
so executions, model calls and edges come out the same, but for what the stream doesn't carry:

- which state keys a node read: every key counts, so edges are wider;
- reducers: a channel counts as accumulating once a step's value isn't what was written in it;
- `Overwrite`: its cut is not seen, so edges are wider;
- which node raised a `Command(graph=Command.PARENT)`, when several of one subgraph were running;
- tools offered to a model, and why a model call failed (the node's error stands for it);
- messages of exceptions that are not Python's or LangGraph's own: the server keeps them back;
- reads of a prompt: what its metadata name counts, else whose model got the text in a message;
- the nodes' code: a changed one has the same fingerprint, unless you give another `revision`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

from lg_textgrad._hashing import digest, to_plain
from lg_textgrad._sync import run_sync
from lg_textgrad.bindings.base import Binding, Declared
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.bindings.context import ContextSchema
from lg_textgrad.errors import (
    SYSTEMIC,
    ConfigurationError,
    GraphError,
    LGTextGradError,
    ModelAuthenticationError,
    ModelBusyError,
    ModelUnreachableError,
    ParameterError,
    UnknownModelError,
)
from lg_textgrad.ledger import Paid
from lg_textgrad.recording.base import Recorded
from lg_textgrad.recording.replay import executions_of, outputs_of, slim, usage_of
from lg_textgrad.redaction import without_credentials
from lg_textgrad.run import Candidate, Example

# Seconds to wait before asking a busy server again.
_PAUSES = (1.0, 4.0, 15.0)

# What a gateway says whose patience ended before the server's work did.
_OUT_OF_TIME = frozenset({504, 524})

# Headers that every client sends by itself.
_USUAL = frozenset({"accept", "accept-encoding", "connection", "user-agent", "x-api-key"})


class RemoteSource:
    """A graph on a LangGraph server: `TrainableGraph(RemoteSource(url, "agent"))`.

    `assistant` is an assistant's id or a graph's name. Its prompts are the fields of its context
    schema that are marked as prompts, or named in `context_prompts`. `api_key` and `headers` go to
    the server; without a key langgraph_sdk takes the one that the environment has for LangGraph or
    LangSmith. `revision` tells deployments apart whose graph looks the same.

    Raises `ConfigurationError` for an address of another kind, and when it is first used,
    `ModelUnreachableError`, `ModelAuthenticationError` and `GraphError` (no such assistant).
    """

    def __init__(
        self,
        url: str,
        assistant: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        revision: str = "",
    ) -> None:
        self.url = url.rstrip("/")
        self._at = without_credentials(self.url)
        if not self.url.lower().startswith(("http://", "https://")):
            raise ConfigurationError(
                "The address of a LangGraph server begins with http:// or https://, and "
                f"'{self._at}' does not; write it as http://HOST:PORT."
            )
        self.assistant = assistant
        self.revision = revision
        self._options: dict[str, Any] = {"headers": dict(headers or {})}
        if api_key is not None:
            self._options["api_key"] = api_key
        self._description: _Description | None = None

    @classmethod
    def of(cls, graph: Any) -> RemoteSource:
        """Return the source for a `langgraph.pregel.remote.RemoteGraph`."""
        client = graph.client or graph.sync_client
        http = client.http.client
        headers = {n: v for n, v in http.headers.items() if n not in _USUAL}
        source = cls(str(http.base_url), graph.assistant_id, headers=headers)
        source._options["api_key"] = http.headers.get("x-api-key")
        return source

    @property
    def fingerprint(self) -> str:
        """A hash of the assistant's version, settings and graph as the server draws it."""
        return self._described().fingerprint

    @property
    def context_schema(self) -> ContextSchema | None:
        """What the server says about the graph's context; None where it has none."""
        return self._described().context

    async def arun(
        self,
        example: Example,
        candidate: Candidate,
        bindings: Sequence[Binding],
        scope: BoundaryScope,
    ) -> Recorded:
        """Run the graph once on the server; a run that is in the store is not run again.

        One call of the budget is reserved before, and the run's model calls are settled after, so
        runs in flight may take the account over its cap. Raises `ModelBusyError` when the server
        stays busy: nothing is stored then, so that a resumed run asks again.
        """
        if self._description is None:
            self._description = await self._adescribe()
        described = self._description
        inputs: Mapping[str, Any] = example.inputs
        context: Any = None
        for binding in bindings:
            if isinstance(binding, Declared) and binding.parameters:
                name = next(iter(binding.parameters))
                raise ParameterError(
                    f"The declared parameter '{name}' cannot reach a graph on a server; make it a "
                    "field of the graph's context_schema, and name it in context_prompts.",
                    parameter=name,
                )
            inputs = binding.inputs(candidate, inputs)
            context = binding.invocation(candidate).get("context", context)
        asked = {
            "assistant": described.assistant_id,
            "input": to_plain(inputs),
            "context": to_plain(context),
        }

        async def call() -> Paid:
            parts = await self._patiently(described.assistant_id, inputs, asked["context"])
            return parts, usage_of(parts)

        key = f"{digest('remote', described.fingerprint, asked)}.{scope.sample}"
        try:
            parts, usage = await scope.ledger.apay(key, scope.kind, asked, call)
        except SYSTEMIC as error:
            scope.failure = scope.failure or error
            raise
        scope.add(usage)
        texts = {n: candidate[n] for b in bindings for n in b.parameters if n in candidate}
        readers = {n: b.held(n).nodes for b in bindings for n in b.parameters}
        executions, accumulating, warnings = executions_of(
            parts, described.routers, texts, readers
        )
        failure = next((p["data"] for p in parts if p["event"] == "error"), None)
        return Recorded(
            outputs=None if failure else outputs_of(parts),
            executions=executions,
            error=None if failure is None else said(failure),
            warnings=warnings,
            accumulating=accumulating,
        )

    async def _patiently(self, assistant_id: str, inputs: Any, context: Any) -> list[Any]:
        """Stream a run; ask again while the server says that it is busy.

        What ran out of time is not sent again: it may have run, and would be paid twice.
        """
        for seconds in _PAUSES:
            try:
                return await self._stream(assistant_id, inputs, context)
            except ModelBusyError as error:
                status = getattr(error.__cause__, "status_code", None)
                if status is None or status in _OUT_OF_TIME:
                    raise
                await asyncio.sleep(seconds)
        return await self._stream(assistant_id, inputs, context)

    async def _stream(self, assistant_id: str, inputs: Any, context: Any) -> list[Any]:
        parts: list[Any] = []
        begun: set[str] = set()
        broken = False
        started = time.monotonic()
        async with self._connected() as client, self._explained():
            stream = client.runs.stream(
                None,
                assistant_id,
                input=inputs,
                context=context,
                stream_mode=["events", "debug", "values"],
                stream_subgraphs=True,
                on_disconnect="cancel",
            )
            try:
                async for part in stream:
                    if part.event == "debug" and part.data.get("type") == "task":
                        begun.add(part.data["payload"]["id"])
                    kept = slim(part.event, part.data, time.monotonic() - started)
                    if kept is not None:
                        parts.append(kept)
            except json.JSONDecodeError:  # half of an event
                broken = True
        for part in parts:
            if part["event"] == "error" and (failure := self._permanent(part["data"])):
                raise failure
        if broken or not parts or _cut(begun, parts):
            raise ModelBusyError(
                f"The stream of the LangGraph server at {self._at} ended before the run did, so "
                "nothing of it was kept; look into the server's log, and resume."
            )
        return parts

    def _permanent(self, error: Any) -> LGTextGradError | None:
        """Return the error to stop with where every further run would fail the same way.

        The server tells the type of the exception that its graph raised, as the SDKs name it.
        """
        kind = error.get("error") if isinstance(error, Mapping) else None
        if kind in ("AuthenticationError", "PermissionDeniedError"):
            return ModelAuthenticationError(
                f"A model's server refused the API key of the graph '{self.assistant}'; set the "
                f"key in the environment of the LangGraph server at {self._at} and run again."
            )
        if kind == "NotFoundError":
            return UnknownModelError(
                f"The graph '{self.assistant}' asks for a model that its server does not have; "
                "correct the model's name in the graph and deploy it again."
            )
        if kind in ("APIConnectionError", "ConnectError"):
            return ModelUnreachableError(
                f"The graph '{self.assistant}' at {self._at} cannot reach a model's server; start "
                "that server, or correct the address in the graph, and run again."
            )
        return None

    def _described(self) -> _Description:
        if self._description is None:
            self._description = run_sync(self._adescribe())
        return self._description

    async def _adescribe(self) -> _Description:
        async with self._connected() as client, self._explained():
            assistant = await self._find(client)
            schemas, graph = await asyncio.gather(
                client.assistants.get_schemas(assistant["assistant_id"]),
                client.assistants.get_graph(assistant["assistant_id"], xray=True),
            )
            return _Description(assistant, schemas.get("context_schema"), graph, self.revision)

    async def _find(self, client: Any) -> Mapping[str, Any]:
        try:
            UUID(self.assistant)
        except ValueError:
            found = await client.assistants.search(graph_id=self.assistant, limit=100)
            own = [a for a in found if (a.get("metadata") or {}).get("created_by") == "system"]
            if found:
                chosen: Mapping[str, Any] = (own or found)[0]
                return chosen
            known = sorted({a["graph_id"] for a in await client.assistants.search(limit=100)})
            raise GraphError(
                f"The LangGraph server at {self._at} has no assistant '{self.assistant}'; it has "
                f"{', '.join(repr(n) for n in known) or 'none'}."
            ) from None
        named: Mapping[str, Any] = await client.assistants.get(self.assistant)
        return named

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """A client for this event loop; connections are not shared between loops."""
        from langgraph_sdk import get_client

        async with get_client(url=self.url, **self._options) as client:
            client.http.client.event_hooks["response"].append(_not_joined_again)
            yield client

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        """Say in this library's errors what langgraph_sdk and httpx raise."""
        import httpx

        try:
            yield
        except LGTextGradError:
            raise
        except httpx.TimeoutException as error:
            raise ModelBusyError(
                f"The LangGraph server at {self._at} did not answer in time; wait and resume."
            ) from error
        except httpx.ConnectError as error:
            raise ModelUnreachableError(
                f"Nobody answers at {self._at} ({type(error).__name__}); start the LangGraph "
                "server there, or correct the address, and run again."
            ) from error
        except httpx.TransportError as error:
            raise ModelUnreachableError(
                f"The connection to {self._at} broke off ({type(error).__name__}); see whether a "
                "LangGraph server runs there, and run again."
            ) from error
        except json.JSONDecodeError as error:  # orjson's is one too
            raise self._other(f"it answers with what is no JSON ({error})") from error
        except Exception as error:  # langgraph_sdk's errors have a status and differ by version
            status = getattr(error, "status_code", None)
            if status is None:
                raise
            if status in (401, 403):
                raise ModelAuthenticationError(
                    f"The LangGraph server at {self._at} refused the API key; give "
                    "RemoteSource(..., api_key=...) a valid one."
                ) from error
            if status == 404:
                raise GraphError(
                    f"The LangGraph server at {self._at} has no assistant '{self.assistant}' "
                    f"({error})."
                ) from error
            if status in (405, 501):
                raise self._other(f"status {status}: {error}") from error
            if status == 429 or status >= 500:
                raise ModelBusyError(
                    f"The LangGraph server at {self._at} is too busy or broken (status {status}: "
                    f"{error}); wait and resume."
                ) from error
            raise ConfigurationError(
                f"The LangGraph server at {self._at} refused the request (status {status}: "
                f"{error}); check the inputs and the context."
            ) from error

    def _other(self, detail: str) -> ConfigurationError:
        return ConfigurationError(
            f"What answers at {self._at} is no LangGraph server: {detail}; correct the address."
        )


class _Description:
    """What a server says about an assistant, once."""

    def __init__(
        self, assistant: Mapping[str, Any], context: Any, graph: Any, revision: str
    ) -> None:
        self.assistant_id = str(assistant["assistant_id"])
        own = {n: assistant.get(n) for n in ("graph_id", "version", "config", "context")}
        self.fingerprint = digest("remote graph", own, context, graph, revision)[:16]
        self.context: ContextSchema | None = None
        if context:
            schema = ContextSchema.from_json(context)
            # An assistant may have values of its own; the server puts a run's over them.
            values = assistant.get("context") or {}
            fields = {
                n: replace(f, default=values[n]) if n in values else f
                for n, f in schema.fields.items()
            }
            self.context = replace(schema, fields=fields)
        self.routers: dict[str, set[str]] = {}
        for edge in graph.get("edges", ()):
            if edge.get("conditional"):
                source = str(edge["source"]).replace(":", "/")
                target = str(edge["target"]).split(":")[-1]
                self.routers.setdefault(source, set()).add(target)


async def _not_joined_again(response: Any) -> None:
    """Hide where a stream could be joined again, which langgraph_sdk tries for a minute.

    What comes meanwhile would be missing in the trace, so a stream that breaks is no run.
    """
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        response.headers.pop("location", None)


def _cut(begun: set[str], parts: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a task of the graph itself was left without its result in a run without error.

    A server or proxy that is shut down ends its stream just as it ends that of a whole run.
    """
    ended = {part["data"]["id"] for part in parts if part["event"] == "debug"}
    return not begun <= ended and all(part["event"] != "error" for part in parts)


def said(error: Any) -> str:
    """Return `Type: message` for the error of a stream."""
    if isinstance(error, Mapping):
        return f"{error.get('error', 'Error')}: {error.get('message', '')}"
    return str(error)

