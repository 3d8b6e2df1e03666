"""Textual gradient descent: the rewriter changes single lines, or the whole, each for a reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lg_textgrad import templates
from lg_textgrad._given import check_counts, check_model, check_numbers
from lg_textgrad._sync import task_group
from lg_textgrad.changes import sense
from lg_textgrad.demos import render_demos
from lg_textgrad.errors import (
    SYSTEMIC,
    ConfigurationError,
    ModelError,
    ModelReplyError,
    ParameterError,
)
from lg_textgrad.guards import words
from lg_textgrad.ledger import aask
from lg_textgrad.models.base import ChatModel, ModelRequest
from lg_textgrad.optim.base import Optimizer, Proposal, taken_apart
from lg_textgrad.optim.rewriting import (
    read_whole,
    several,
    share,
    tried,
    whole_schema,
    whole_tokens,
    with_examples,
)
from lg_textgrad.parameter import Edit, Parameter, apply_edits, candidate_of
from lg_textgrad.reduction import Note, Reduced, reduce_gradients

logger = logging.getLogger(__name__)

_MOST_TEXT = 300  # characters of one new line
_BEAM_TEMPERATURE = 0.7


class TextualGradientDescent(Optimizer):
    """Asks `model` for edits of each blamed parameter: `beam` calls per parameter, all at once.

    The rewriter sees the whole prompt with numbered lines, the `max_notes` heaviest gradients and
    the last edits that did not help. Each blamed parameter gets a proposal of its own, the most
    blamed first. With `notes_as_lines` a second one adds the heaviest gradients themselves as new
    lines: that costs no call, and is often better than what a small rewriter makes of them.

    `edits="whole"` has the whole prompt written anew, as TextGrad does; it is told and joined as
    edits of lines all the same. `beam` proposals are made for each parameter: the first answers
    all notes, the others a part of them each. With `momentum`, the rewriter sees so many of the
    last tries with the change of the score that was measured, in place of those that failed.
    `constraints` and `in_context_examples` are told to it as they are.
    After Yuksekgonul et al. 2024 (TextGrad) and Pryzant et al. 2023 (ProTeGi).

    Cost: `beam` calls for each blamed parameter and step, twice as many when replies can't be used.
    Raises `ConfigurationError` for other `edits`, a `beam` below 1, one text in place of a list of
    them, and what is no model.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        parameters: Mapping[str, Parameter] | Iterable[Parameter] = (),
        edits: Literal["lines", "whole"] = "lines",
        beam: int = 1,
        momentum: int = 0,
        constraints: Sequence[str] = (),
        in_context_examples: Sequence[str] = (),
        max_notes: int = 8,
        max_note_tokens: int = 800,
        max_edits: int = 4,
        notes_as_lines: bool = True,
        max_tokens: int = 400,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if edits not in ("lines", "whole"):
            raise ConfigurationError(f"`edits` is 'lines' or 'whole', not {edits!r}.")
        check_counts("TextualGradientDescent", beam=beam, max_tokens=max_tokens)
        check_numbers(
            "TextualGradientDescent", lambda n: n >= 0, "of at least 0", temperature=temperature
        )
        check_counts("TextualGradientDescent", 0, momentum=momentum)
        super().__init__(parameters)
        check_model(model, "TextualGradientDescent")
        self.model = model
        self.edits = edits
        self.beam = beam
        self.momentum = momentum
        self.constraints = several("constraints", constraints)
        self.in_context_examples = several("in_context_examples", in_context_examples)
        self.max_notes = max_notes
        self.max_note_tokens = max_note_tokens
        self.max_edits = max_edits
        self.notes_as_lines = notes_as_lines
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.seed = seed

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "optimizer": "textual_gradient_descent",
            "model": dict(self.model.identity),
            "templates": templates.fingerprint(*self._templates()),
            "edits": self.edits,
            "beam": self.beam,
            "momentum": self.momentum,
            "constraints": list(self.constraints),
            "in_context_examples": list(self.in_context_examples),
            "max_notes": self.max_notes,
            "max_note_tokens": self.max_note_tokens,
            "max_edits": self.max_edits,
            "notes_as_lines": self.notes_as_lines,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def _templates(self) -> list[str]:
        """Return the names of what the model is asked with."""
        system = "rewriter" if self.edits == "lines" else "rewriter_whole"
        more = ["again", *(["rewriter_tried"] if self.momentum else [])]
        more += ["rewriter_examples"] if self.in_context_examples else []
        return [system, f"{system}_case", *more]

    def step_calls(self, prompts: int) -> int:
        return self.beam * prompts

    def step_proposals(self, prompts: int) -> int:
        return (self.beam + self.notes_as_lines) * prompts

    async def aproposals(self) -> list[Proposal]:
        self._need_parameters()
        blamed = [
            taken_apart(p)
            for p in self.parameters.values()
            if p.requires_grad and any(g.change for g in p.grad)
        ]
        blamed.sort(key=lambda p: -sum(g.weight for g in p.grad if g.change))
        async with task_group() as group:
            tasks = [
                [group.create_task(self._edits(p, sample)) for sample in range(self.beam)]
                for p in blamed
            ]
        now = candidate_of(self.parameters)
        proposals: dict[str, Proposal] = {}
        kind = "edits" if self.edits == "lines" else "rewrite"
        for parameter, samples in zip(blamed, tasks, strict=True):
            written = [(kind, task.result()) for task in samples]
            if self.notes_as_lines:
                written.append(("gradients as lines", self._note_lines(parameter)))
            for made, edits in written:
                if edits:
                    text = render_demos(apply_edits(parameter.value, edits), parameter.demos)
                    proposal = Proposal({**now, parameter.name: text}, tuple(edits), made)
                    proposals.setdefault(proposal.hash, proposal)
        return list(proposals.values())

    def _note_lines(self, parameter: Parameter) -> list[Edit]:
        """Return edits that add the heaviest notes as lines, before the last line of the prompt.

        The last line of a prompt mostly says what form the reply must have, so it stays last.
        """
        notes = [n for n in self._reduced(parameter).consistent() if n.weight > 0 and n.is_rule]
        line = max(1, len(parameter.value.split("\n")) - 1)
        edits = [
            Edit(parameter.name, "add", line, note.change, note.ids)
            for note in notes
        ]
        edits = _new_to(parameter, edits)[: self.max_edits]
        return edits if self._usable(parameter, edits) is None else []

    def _usable(self, parameter: Parameter, edits: Sequence[Edit]) -> str | None:
        """Return why the edits cannot be proposed; None when they can."""
        if not edits:
            return "There are no edits that bring a line which is not there already."
        try:
            text = render_demos(apply_edits(parameter.value, edits), parameter.demos)
            parameter.check(text)
        except ParameterError as error:
            return str(error)
        if text == parameter.full:
            return "The edits change nothing."
        if any(a.proposal.candidate.get(parameter.name) == text for a in self.history):
            return "This was tried before and did not help; propose something else."
        return None

    async def _edits(self, parameter: Parameter, sample: int) -> list[Edit]:
        """Return the edits of one parameter that keep its promises; none when there are none."""
        reduced = self._reduced(parameter, sample)
        notes = reduced.notes
        messages = self._messages(parameter, reduced)
        schema, max_tokens = _schema(parameter, len(notes), self.max_edits), self.max_tokens
        if self.edits == "whole":
            schema, max_tokens = whole_schema(), whole_tokens(parameter, self.max_tokens)
        temperature = max(self.temperature, _BEAM_TEMPERATURE) if sample else self.temperature
        reason = ""
        for attempt in range(2):
            asked = [*messages, templates.again(reason)] if reason else messages
            request = ModelRequest(
                asked, schema, max_tokens, temperature, self.seed + 2 * sample + attempt
            )
            try:
                reply = await aask(self.model, request, "rewriter", attempt=attempt)
            except ModelReplyError as error:
                reason = str(error)
                continue
            except ModelError as error:
                if error.fault is None or isinstance(error, SYSTEMIC):
                    raise
                reason = f"The rewriter could not be asked: {error}"
                break  # it was asked often enough
            if self.edits == "whole":
                edits = read_whole(parameter, reply.data, [i for note in notes for i in note.ids])
            else:
                edits = _new_to(parameter, _read(parameter, reply.data, notes))
            unusable = self._usable(parameter, edits)
            if unusable is None:
                return edits
            reason = unusable
        self.refused.append(f"{parameter.name}: {reason}")
        logger.info("No usable edit for '%s': %s", parameter.name, reason)
        return []

    def _reduced(self, parameter: Parameter, sample: int = 0) -> Reduced:
        return reduce_gradients(
            share(parameter.grad, sample, self.beam),
            max_notes=self.max_notes,
            max_tokens=self.max_note_tokens,
        )

    def _messages(self, parameter: Parameter, reduced: Reduced) -> list[dict[str, str]]:
        lines = "\n".join(
            f"{number}: {line}" for number, line in enumerate(parameter.value.split("\n"), start=1)
        )
        shown = "\n".join(
            f"{number}. {note.change}" + (f" (keep: {note.keep})" if note.keep else "")
            for number, note in enumerate(reduced.notes, start=1)
        )
        for one, other in reduced.contradictions:
            shown += f"\nNotes {one + 1} and {other + 1} contradict each other."
        for note in reduced.keeps:
            shown += f"\nKeep: {note.change} (runs: {len(note.gradients)})."
        more = list(self.constraints)
        if parameter.placeholders:
            more.append("Keep " + ", ".join(f"{{{p}}}" for p in parameter.placeholders) + ".")
        more += [f"Keep these words as they are: {span}" for span in parameter.locked]
        more += [
            f"The last proposal was {attempt.reason}"
            for attempt in self.history[-6:]
            if attempt.stage == "review"
            and any(edit.parameter == parameter.name for edit in attempt.proposal.edits)
        ]
        failed = [
            edit.text
            for attempt in self.history[-6:]
            if not attempt.accepted
            for edit in attempt.proposal.edits
            if edit.parameter == parameter.name and edit.text
        ]
        if self.momentum:
            results = tried(self.history, parameter.name, self.momentum)
            if results:
                shown += f"\nTried before, with the change of the score:\n{results}"
                more.append(templates.source("rewriter_tried"))
        elif failed:
            # Inside the fence: these lines were written by a model that had read users' texts.
            shown += "\nTried before without success: " + " | ".join(dict.fromkeys(failed[-4:]))
        system, template, *_ = self._templates()
        prompt = {"lines": lines} if self.edits == "lines" else {"prompt": parameter.value}
        case = templates.fill(
            template,
            role=parameter.role or parameter.name,
            **prompt,
            mark=templates.fence(shown),
            notes=shown,
            more="\n".join(more),
        )
        messages = [
            {"role": "system", "content": templates.source(system)},
            {"role": "user", "content": case},
        ]
        return with_examples(messages, self.in_context_examples)


def _schema(parameter: Parameter, notes: int, max_edits: int) -> dict[str, Any]:
    edit = {
        "op": {"type": "string", "enum": ["add", "replace", "delete"]},
        "line": {"type": "integer", "minimum": 0, "maximum": len(parameter.value.split("\n"))},
        "text": {"type": "string", "maxLength": _MOST_TEXT},
        "notes": {
            "type": "array",
            "maxItems": notes,
            "items": {"type": "integer", "minimum": 1, "maximum": notes},
        },
    }
    return {
        "type": "object",
        "properties": {
            "edits": {
                "type": "array",
                "minItems": 1,
                "maxItems": max_edits,
                "items": {
                    "type": "object",
                    "properties": edit,
                    "required": list(edit),
                    "additionalProperties": False,
                },
            }
        },
        "required": ["edits"],
        "additionalProperties": False,
    }


def _read(parameter: Parameter, data: Mapping[str, Any], notes: Sequence[Note]) -> list[Edit]:
    edits = []
    for found in data["edits"]:
        text = " ".join(found["text"].split())
        if found["op"] != "delete" and (not text or len(text) >= _MOST_TEXT - 1):
            continue  # empty, or cut off at the limit
        answered = [
            gradient
            for n in dict.fromkeys(found["notes"])
            if n <= len(notes)
            for gradient in notes[n - 1].ids
        ]
        edits.append(
            Edit(
                parameter.name,
                found["op"],
                found["line"],
                "" if found["op"] == "delete" else text,
                tuple(dict.fromkeys(answered)),
            )
        )
    return edits


def _new_to(parameter: Parameter, edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits without lines that are there already, whatever their marks and capitals.

    A critic asks again for what a model does not heed, and saying it twice is not saying it better.
    """
    touched = {edit.line for edit in edits if edit.op != "add"}
    lines = enumerate(parameter.value.split("\n"), start=1)
    there = {sense(line) for number, line in lines if number not in touched}
    new = []
    for edit in edits:
        said = sense(edit.text)
        if not words(edit.text) or said not in there:
            there.add(said)
            new.append(edit)
    return new
