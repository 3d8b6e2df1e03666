"""Credit that is measured: put right what one execution wrote, and see what the score does."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage

from lg_textgrad import templates
from lg_textgrad._given import check_counts, check_critic, check_kind, check_model
from lg_textgrad._hashing import to_plain
from lg_textgrad._sync import all_at_once
from lg_textgrad.critics.asking import aask_twice, an_object
from lg_textgrad.critics.base import (
    Blame,
    Critic,
    CriticRequest,
    Critique,
    RunRequest,
    most_calls,
    tell,
)
from lg_textgrad.critics.cutting import cut
from lg_textgrad.critics.showing import message_text, shown_values
from lg_textgrad.errors import ConfigurationError, CriticError, ModelReplyError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.models.base import ChatModel
from lg_textgrad.objective import Objective
from lg_textgrad.parameter import Edit, Gradient
from lg_textgrad.run import Execution, ModelCall

logger = logging.getLogger(__name__)

_INSTRUCTIONS = ("correction", "correction_assumed")
"""What a correction is asked for with: first the step may have been right, then it was not."""
_TEMPLATES = (*_INSTRUCTIONS, "correction_case", "again")
_ENOUGH = 0.95
"""A correction that wins back this share of the loss has found the fault."""
_MOST_SHOWN = 80
"""Characters of a reply that stand in a gradient."""
_MOST_LENGTH = 1000
"""Characters of a text whose length the schema limits."""


class ProvenCredit:
    """Wraps `critic` and replaces its weights by measured ones.

    For each suspect, in order of execution, the model writes the reply that it should have given.
    `graph` runs again with that reply in its place, and `objective` scores what comes out: the
    share of the loss that this wins back is the weight. What a correction further up wins back as
    well is not this execution's to answer for. Cost for each suspect: a call for the correction,
    and those of the nodes that then get something else to read; what comes before is answered from
    the ledger. Once the loss is won back, what comes later is not tried. An execution that is
    proven to be at fault and that `critic` had not blamed is shown to it once more, with the reply
    that would have been right. A suspect whose reply the model stands by is not tried, unless
    nothing else wins the loss back; then the model is told to assume a fault, a call more.

    `most` suspects are tried at most, those that `critic` blames first. An execution without a chat
    model's reply cannot be tried. Where nothing is proven the critic's own weights count for
    `unproven` of their size; where something is, what was tried in vain has none, and those that
    were not tried have at most half of the heaviest. Raises `ConfigurationError` without a model,
    for `most` below 1, and for a graph that does not run in this process.
    """

    def __init__(
        self,
        critic: Critic,
        graph: TrainableGraph,
        objective: Objective,
        *,
        model: ChatModel | None = None,
        most: int = 8,
        unproven: float = 0.25,
        max_value_chars: int = 1500,
        max_tokens: int = 600,
    ) -> None:
        check_critic(critic, "ProvenCredit")
        hint = "make one: tg.TrainableGraph(graph, parameters)"
        check_kind(graph, TrainableGraph, "ProvenCredit", hint)
        found = model if model is not None else getattr(critic, "model", None)
        if found is None:
            raise ConfigurationError(
                f"ProvenCredit needs a model that writes corrections, and a "
                f"{type(critic).__name__} has none; pass it: ProvenCredit(..., model=llm)."
            )
        check_model(found, "ProvenCredit")
        if graph.graph is None:
            raise ConfigurationError(
                "Credit is proven by running the graph again in this process, and this graph runs "
                "elsewhere; use its critic without ProvenCredit."
            )
        check_counts("ProvenCredit", most=most)
        self.critic = critic
        self.graph = graph
        self.objective = objective
        self.model: ChatModel = found
        self.most = most
        self.unproven = unproven
        self.max_value_chars = max_value_chars
        self.max_tokens = max_tokens
        self.malformed = 0
        """Corrections that failed their schema twice, so that nothing was tried."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        inner = getattr(self.critic, "fingerprint", type(self.critic).__name__)
        return {
            "critic": "proven",
            "of": to_plain(inner),
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*_TEMPLATES),
            "most": self.most,
            "unproven": self.unproven,
            "max_value_chars": self.max_value_chars,
            "max_tokens": self.max_tokens,
        }

    def most_calls(self, nodes: int) -> int:
        """Return the calls of the critic inside, of corrections, explanations and reruns."""
        tried = min(nodes, self.most)
        # What is put right first has the most that follows it.
        reruns = sum(nodes - 1 - n for n in range(tried))
        return most_calls(self.critic, nodes) + 3 * tried + reruns

    def reset(self) -> None:
        """Tell a critic that learns that a run begins or goes on."""
        tell(self.critic, "reset")

    def observe(self, edits: Iterable[Edit], gain: float) -> None:
        """Tell a critic that learns what a proposal gained."""
        tell(self.critic, "observe", edits, gain)

    async def acriticize(self, request: CriticRequest) -> Critique:
        return await self.critic.acriticize(request)

    async def acriticize_run(self, request: RunRequest) -> Sequence[Gradient] | None:
        judge = getattr(self.critic, "acriticize_run", None)
        found: Sequence[Gradient] | None = None if judge is None else await judge(request)
        return found

    async def aweigh(
        self, request: RunRequest, gradients: Sequence[Gradient]
    ) -> Sequence[Gradient]:
        """Return the gradients with measured weights, and new ones where the critic saw none."""
        gains, replies = await self._try(request, gradients)
        weights: dict[str, float] = {}
        for execution, gain in gains.items():
            before = request.trace.reached_from([execution]) - {execution}
            upstream = max((gains.get(e, 0.0) for e in before), default=0.0)
            weights[execution] = max(0.0, gain - upstream)
        known = {g.execution for g in gradients if g.change}
        missed = [e for e, w in weights.items() if w >= request.threshold and e not in known]
        told = await all_at_once(
            self._aexplain(request, request.trace.executions[e], replies[e]) for e in missed
        )
        found = [*gradients, *(g for gradients in told for g in gradients)]
        left = self.unproven * (1 - min(1.0, sum(weights.values())))
        most = max(weights.values(), default=0.0)
        proven = most >= request.threshold
        weighed = []
        for g in found:
            if g.execution in weights and (proven or weights[g.execution]):
                weight = weights[g.execution]
            else:
                # A guess never outweighs what was measured.
                weight = min(left * g.weight, most / 2) if proven else left * g.weight
            weighed.append(replace(g, weight=round(weight, 6)))
        return [g for g in weighed if g.weight > 0]

    async def _try(
        self, request: RunRequest, gradients: Sequence[Gradient]
    ) -> tuple[dict[str, float], dict[str, AIMessage]]:
        """Return what corrections won back and what they were, by execution, as they were tried.

        The critic may stand by what a suspect wrote. Where nothing else wins the loss back, it is
        asked again for those, told that they are at fault.
        """
        suspects = self._suspects(request, gradients)
        gains: dict[str, float] = {}
        replies: dict[str, AIMessage] = {}
        for instruction in _INSTRUCTIONS:
            stood_by = []
            for execution in suspects:
                try:
                    reply = await self._acorrect(request, execution, instruction)
                except (ModelReplyError, CriticError) as error:
                    self.malformed += isinstance(error, ModelReplyError)
                    logger.warning("There is no correction for %s: %s", execution.id, error)
                    continue
                if reply is None:
                    stood_by.append(execution)
                    continue
                replies[execution.id] = reply
                gains[execution.id] = await self._again(request, execution, reply)
                if gains[execution.id] >= _ENOUGH:
                    return gains, replies
            suspects = stood_by
        return gains, replies

    def _suspects(
        self, request: RunRequest, gradients: Sequence[Gradient]
    ) -> list[Execution]:
        """Return whom to try, in order of execution; of too many those that are blamed first."""
        blamed: dict[str, float] = {}
        for gradient in gradients:
            blamed[gradient.execution] = max(blamed.get(gradient.execution, 0.0), gradient.weight)
        can = [e for e in request.suspects if not e.discarded and _form(e) is not None]
        heaviest = sorted(can, key=lambda e: -blamed.get(e.id, 0.0))[: self.most]
        return [e for e in can if e in heaviest]

    async def _again(self, request: RunRequest, execution: Execution, reply: AIMessage) -> float:
        """Return the share of the loss that `reply` wins back."""
        run, score = request.scored.run, request.scored.score
        replayed = await self.graph.areplay(run, execution, reply)
        if replayed is None:
            logger.warning(
                "Run %s did not come to %s when it ran again, so its credit is not proven.",
                run.id,
                execution.id,
            )
            return 0.0
        after = (await self.objective.acall([replayed])).score
        return min(1.0, max(0.0, (after - score) / (1 - score)))

    async def _aexplain(
        self, request: RunRequest, execution: Execution, reply: AIMessage
    ) -> list[Gradient]:
        """Return what the critic says of an execution that it missed, told the right reply.

        Where it has no rule to say, the two replies are what there is to know.
        """
        parameters = request.scored.run.parameters
        own = {n: parameters[n] for n in execution.prompts if n in request.trainable}
        right = message_text({"content": reply.content, "tool_calls": reply.tool_calls})
        told = Blame(f"This step should have written: {right}", 1.0, "proof")
        blames = [b for blames in request.blames.values() for b in blames]
        try:
            critique = await self.critic.acriticize(
                CriticRequest(request.scored, execution, own, [], [*blames, told])
            )
        except CriticError as error:
            logger.warning("%s", error)
            critique = Critique()
        wrote = cut(shown_values(execution)[1], _MOST_SHOWN)
        return [g for g in critique.gradients if g.change] or [
            Gradient(
                parameter=name,
                run_id=request.scored.run.id,
                execution=execution.id,
                change=f"It wrote '{wrote}'; right is '{cut(right, _MOST_SHOWN)}'.",
                is_rule=False,
                evidence=cut("; ".join(dict.fromkeys(b.text for b in blames)), 300),
                example_id=request.scored.run.example.id,
                score=request.scored.score,
            )
            for name in own
        ]

    async def _acorrect(
        self, request: RunRequest, execution: Execution, instruction: str
    ) -> AIMessage | None:
        """Return what the execution should have replied; None where that is what it did reply.

        Raises `ModelReplyError` and `CriticError` where the critic cannot say.
        """
        form = _form(execution)
        assert form is not None, "suspects have a reply that can be put right"
        blames = [b.text for blames in request.blames.values() for b in blames]
        everything = "\n".join(dict.fromkeys(blames))
        given, wrote = (
            cut(value, self.max_value_chars, everything) for value in shown_values(execution)
        )
        complaint = cut(everything, self.max_value_chars)
        parameters = [
            request.scored.run.parameters[n] for n in execution.prompts if n in request.trainable
        ]
        case = templates.fill(
            "correction_case",
            node=execution.path,
            role="; ".join(p.role for p in parameters if p.role) or "a step of the program",
            prompt="\n\n".join(execution.prompts.values()),
            mark=templates.fence(given, wrote, complaint),
            inputs=given,
            output=wrote,
            complaint=complaint,
            more=form.wish,
        )
        messages = [
            {"role": "system", "content": templates.source(instruction)},
            {"role": "user", "content": case},
        ]
        schema = {**an_object({"output": form.schema}), **form.definitions}
        data = await aask_twice(self.model, messages, schema, self.max_tokens)
        return form.reply(data["output"])


@dataclass(frozen=True, slots=True)
class _Form:
    """What form a reply has, so that another one can take its place."""

    said: Any
    """What the model replied, in the schema's form."""
    schema: Mapping[str, Any]
    kind: str = "text"
    tool: Mapping[str, Any] | None = None
    """The one tool that the reply calls."""

    @property
    def wish(self) -> str:
        return f"Write the arguments of its call of {self.tool['name']}." if self.tool else ""

    @property
    def definitions(self) -> dict[str, Any]:
        """What `schema` refers to by `#/$defs/...`, for the top of the schema that it goes into."""
        return {"$defs": self.schema["$defs"]} if "$defs" in self.schema else {}

    def reply(self, output: Any) -> AIMessage | None:
        """Return the message that says `output`; None where that is what was said."""
        if _squeezed(output) == _squeezed(self.said):
            return None
        done = {"finish_reason": "stop"}
        if self.tool is not None:
            call = {"name": self.tool["name"], "args": output, "id": self.tool.get("id") or "call"}
            return AIMessage("", tool_calls=[call], response_metadata=done)
        text = output if self.kind == "text" else json.dumps(output, ensure_ascii=False)
        return AIMessage(text, response_metadata=done)


def _form(execution: Execution) -> _Form | None:
    """Return the form of an execution's last reply; None where none can take its place."""
    if not execution.model_calls:
        return None
    call = execution.model_calls[-1]
    output = call.output or {}
    tools = output.get("tool_calls") or ()
    if tools:
        schema = _arguments(call, tools[0]["name"])
        if len(tools) > 1 or schema is None:
            return None
        return _Form(tools[0]["args"], schema, "tool", tools[0])
    said = output.get("content", "")
    if call.format:
        try:
            return _Form(json.loads(said), call.format, "json")
        except (TypeError, ValueError):
            return _Form(said, call.format, "json")
    return _Form(said, _text_like(said)) if isinstance(said, str) else None


def _text_like(said: str) -> dict[str, Any]:
    """Return the schema of a text of that kind: of a short one, no model has to write a long one.

    Servers make a grammar of the limit, which has to stay small.
    """
    most = 2 * len(said) + 120
    return {"type": "string", **({"maxLength": most} if most <= _MOST_LENGTH else {})}


def _arguments(call: ModelCall, name: str) -> Mapping[str, Any] | None:
    """Return the schema of a tool's arguments, as the model was told it."""
    for tool in call.tools:
        told = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if told.get("name") == name:
            found = told.get("parameters") or told.get("input_schema")
            return found if isinstance(found, Mapping) else None
    return None


def _squeezed(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value
