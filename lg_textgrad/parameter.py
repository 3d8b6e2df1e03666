"""Parameter, Gradient, Edit, and the candidate in scope."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.messages import SystemMessage

from lg_textgrad._hashing import digest
from lg_textgrad.demos import Demo, render_demos, split_demos
from lg_textgrad.errors import ParameterError
from lg_textgrad.run import Candidate

if TYPE_CHECKING:
    from langchain.agents.middleware.types import AgentMiddleware

_PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_.]*)\}(?!\})")

_values: ContextVar[Mapping[str, str] | None] = ContextVar("lg_textgrad_values", default=None)
_on_read: ContextVar[Callable[[str, str], None] | None] = ContextVar(
    "lg_textgrad_on_read", default=None
)


@dataclass(frozen=True, slots=True)
class Gradient:
    """The critic's text for one parameter from one execution."""

    parameter: str
    run_id: str
    execution: str
    """The execution's id, `path#k`."""
    change: str
    """What to change; empty when there is only something to keep."""
    keep: str = ""
    """What must stay as it is; empty when the critic named nothing."""
    evidence: str = ""
    """A span quoted from the execution or from the feedback."""
    weight: float = 1.0
    """In [0, 1]: how much of the loss this execution is to blame for."""
    example_id: str = ""
    score: float | None = None
    """The run's score in [0, 1]; None when it was not scored."""
    is_rule: bool = True
    """Whether `change` can stand in the prompt as it is; False when it tells of this run alone."""

    @property
    def id(self) -> str:
        """Stable and short: the same gradient has the same id in a resumed run."""
        said = digest(self.parameter, self.run_id, self.execution, self.change, self.keep)
        return f"g{said[:10]}"


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to one line of a parameter."""

    parameter: str
    op: Literal["add", "replace", "delete"]
    line: int
    """Counted from 1 in the text before any edit. `add` puts the new line after it; 0 is on top."""
    text: str = ""
    """The new line; empty for `delete`."""
    gradients: tuple[str, ...] = ()
    """Ids of the gradients that it answers."""
    why: str = ""
    """Where it comes from, when not from gradients."""


class Parameter:
    """A named trainable text, by default the system prompt of one node.

    `role` says in the user's words what the node is for. `placeholders` are the template variables
    that every candidate must keep (found in `value` unless given); `locked` are spans that must
    stay word for word; `max_tokens` caps the text (about four characters a token); `forbidden` are
    words that no candidate may bring in. `value` is the instruction, `demos` are worked examples
    that render after it; a candidate's text has both, and `adopt` takes it apart again. Raises
    `ParameterError` without a name, for a `value` that is no string, for a locked span that is
    not in it, and for one text in place of a list of them.
    """

    def __init__(
        self,
        name: str,
        value: str,
        *,
        role: str = "",
        requires_grad: bool = True,
        placeholders: Sequence[str] | None = None,
        locked: Sequence[str] = (),
        forbidden: Sequence[str] = (),
        max_tokens: int | None = None,
        demos: Sequence[Demo] = (),
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ParameterError("A parameter needs a name: Parameter('triage', 'You route ...').")
        if not isinstance(value, str):
            raise ParameterError(
                f"The value of parameter '{name}' must be a string, not {type(value).__name__}.",
                parameter=name,
            )
        for option, texts in (
            ("placeholders", placeholders), ("locked", locked), ("forbidden", forbidden)
        ):  # fmt: skip
            if isinstance(texts, str):  # its letters would be taken for texts, and promise nothing
                raise ParameterError(
                    f"`{option}` of parameter '{name}' is a list, not one text; write "
                    f"{option}=[{texts!r}].",
                    parameter=name,
                )
        self.name = name
        self.value = value
        self.role = role
        self.requires_grad = requires_grad
        self.placeholders = tuple(
            dict.fromkeys(find_placeholders(value) if placeholders is None else placeholders)
        )
        self.locked = tuple(locked)
        self.forbidden = tuple(forbidden)
        self.max_tokens = max_tokens
        self.demos: tuple[Demo, ...] = tuple(demos)
        self.grad: list[Gradient] = []
        self.in_middleware = False
        """Whether `middleware()` was asked for, so that an agent gets the text."""
        for span in self.locked:
            if span not in value:
                raise ParameterError(
                    f"The locked span {span!r} is not in the value of parameter '{name}'.",
                    parameter=name,
                )
        self._in_examples = self._missing_in(split_demos(value)[0]) != self._missing_in(value)
        """Whether a promise stands in worked examples that the user wrote into the value."""

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, {self.value[:40]!r}, grad={len(self.grad)})"

    def text(self) -> str:
        """Return the text in scope, demonstrations included, and note that it was read.

        Inside `prompts(...)` or a recorded run that is the candidate's text, elsewhere the value.
        """
        values = _values.get()
        text = self.full if values is None else values.get(self.name, self.full)
        noted = _on_read.get()
        if noted is not None:
            noted(self.name, text)
        return text

    __str__ = text

    @property
    def full(self) -> str:
        """The value with the demonstrations after it, whatever is in scope."""
        return render_demos(self.value, self.demos)

    def adopt(self, text: str) -> None:
        """Make a candidate's text this parameter's value and demonstrations."""
        if text != self.full:
            self.value, self.demos = self._parts(text)

    def _parts(self, text: str) -> tuple[str, tuple[Demo, ...]]:
        """Return the instruction and the demonstrations of a text.

        What reads like demonstrations, and has what the instruction must keep, is part of it.
        """
        instruction, demos = split_demos(text)
        if self._in_examples and self._missing_in(instruction):
            return text, ()
        return instruction, demos

    def _missing_in(self, instruction: str) -> list[str]:
        """Return the placeholders and locked spans that an instruction does not have."""
        found = find_placeholders(instruction)
        return [
            *(p for p in self.placeholders if p not in found),
            *(span for span in self.locked if span not in instruction),
        ]

    def message(self, **variables: object) -> SystemMessage:
        """Return the text in scope as a SystemMessage, with `{placeholders}` filled in.

        Only the parameter's own placeholders are replaced, and none in its demonstrations, so JSON
        braces are safe. Raises `ParameterError` when a placeholder has no variable.
        """
        instruction, demos = self._parts(self.text())
        instruction = fill(instruction, variables, self.placeholders, self.name)
        return SystemMessage(render_demos(instruction, demos))

    def at(self, text: str) -> Parameter:
        """Return a copy with the same promises, the given text and no gradients."""
        copy = Parameter(
            self.name,
            "",
            role=self.role,
            requires_grad=self.requires_grad,
            placeholders=self.placeholders,
            forbidden=self.forbidden,
            max_tokens=self.max_tokens,
        )
        copy.locked = self.locked
        copy._in_examples = self._in_examples
        copy.adopt(text)
        return copy

    def middleware(self) -> AgentMiddleware[Any, Any, Any]:
        """Return a `create_agent` middleware that makes the text in scope the system prompt.

        Placeholders are filled from the agent's state by key. What else stands in the system
        message stays. Raises `MissingExtraError` without langchain.
        """
        from lg_textgrad.bindings.middleware import middleware_for

        middleware = middleware_for(self)
        self.in_middleware = True
        return middleware

    def check(self, text: str) -> None:
        """Raise `ParameterError` when `text` may not become this parameter's text.

        Placeholders and locked spans count in the instruction, not in the demonstrations.
        """
        instruction, _ = self._parts(text)
        missing = [p for p in self.placeholders if p not in find_placeholders(instruction)]
        if missing:
            raise self._refusal(f"it loses the placeholder {{{missing[0]}}}")
        added = [
            p
            for p in find_placeholders(instruction)
            if p not in self.placeholders and p not in find_placeholders(self.value)
        ]
        if self.placeholders and added:
            raise self._refusal(f"it brings in the placeholder {{{added[0]}}}, which nothing fills")
        for span in self.locked:
            if span not in instruction:
                raise self._refusal(f"it changes the locked span {span!r}")
        for word in self.forbidden:
            if word.lower() in text.lower() and word.lower() not in self.full.lower():
                raise self._refusal(f"it brings in the forbidden text {word!r}")
        if self.max_tokens is not None and count_tokens(text) > self.max_tokens:
            raise self._refusal(
                f"it has about {count_tokens(text)} tokens, "
                f"more than the limit of {self.max_tokens}"
            )
        if not instruction.strip():
            raise self._refusal("it is empty")

    def _refusal(self, why: str) -> ParameterError:
        return ParameterError(
            f"The text proposed for parameter '{self.name}' is refused: {why}.",
            parameter=self.name,
        )


@contextmanager
def prompts(candidate: Mapping[str, str]) -> Iterator[None]:
    """Scope `candidate` to the current context: parameters read inside have its texts.

    Nothing else sees it: other threads, tasks and runs keep theirs, and no parameter changes.
    Scopes nest; the inner one wins. Raises `ParameterError` for a text that is no string.
    """
    for name, text in candidate.items():
        if not isinstance(text, str):
            raise ParameterError(
                f"The text for '{name}' must be a string, not {type(text).__name__}.",
                parameter=str(name),
            )
    token = _values.set({**(_values.get() or {}), **candidate})
    try:
        yield
    finally:
        _values.reset(token)


@contextmanager
def observe_reads(noted: Callable[[str, str], None]) -> Iterator[None]:
    """Call `noted(name, text)` at each read of a parameter in the current context."""
    token = _on_read.set(noted)
    try:
        yield
    finally:
        _on_read.reset(token)


def values_in_scope() -> Mapping[str, str]:
    """Return the texts that `prompts(...)` has put in scope, by parameter name."""
    return dict(_values.get() or {})


def candidate_of(parameters: Mapping[str, Parameter]) -> Candidate:
    """Return the candidate that the parameters' values and demonstrations make."""
    return {name: parameter.full for name, parameter in parameters.items()}


def candidate_hash(candidate: Mapping[str, str]) -> str:
    """Return the sixteen hex digits that identify a candidate everywhere."""
    return digest("candidate", dict(candidate))[:16]


def find_placeholders(text: str) -> tuple[str, ...]:
    """Return the `{names}` in `text`, in order, once each. Doubled braces and JSON don't count."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(text)))


def fill(text: str, variables: Mapping[str, object], names: Sequence[str], where: str) -> str:
    """Return `text` with `{name}` replaced for each of `names`, all at once.

    One pass, so that a value with braces is never formatted a second time.
    """
    missing = [n for n in find_placeholders(text) if n in names and n not in variables]
    if missing:
        raise ParameterError(
            f"The text of '{where}' has the placeholder {{{missing[0]}}} but no value was given; "
            f"call message({missing[0]}=...).",
            parameter=where,
        )
    return _PLACEHOLDER.sub(
        lambda m: str(variables[m[1]]) if m[1] in variables and m[1] in names else m[0], text
    )


def count_tokens(text: str) -> int:
    """Return about how many tokens `text` has: a quarter of its characters, rounded up."""
    return -(-len(text) // 4)


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """Return `text` with the edits applied. Line numbers count in the text as given.

    Additions after one line keep their order; the one line of an empty text makes room for them.
    Raises `ParameterError` for a line that is not
    there, or for two edits that replace or delete one line.
    """
    lines = text.split("\n")
    replaced: dict[int, Edit] = {}
    added: dict[int, list[str]] = {}
    for edit in edits:
        lowest = 0 if edit.op == "add" else 1
        if not lowest <= edit.line <= len(lines):
            raise ParameterError(
                f"An edit of '{edit.parameter}' names line {edit.line}, "
                f"but the text has lines {lowest} to {len(lines)}.",
                parameter=edit.parameter,
            )
        if edit.op == "add":
            added.setdefault(edit.line, []).append(edit.text)
        elif edit.line in replaced:
            raise ParameterError(
                f"Two edits of '{edit.parameter}' change line {edit.line}.",
                parameter=edit.parameter,
            )
        else:
            replaced[edit.line] = edit
    if not text and added and 1 not in replaced:
        lines = []
        added = {0: [new for _, some in sorted(added.items()) for new in some]}
    result = list(added.get(0, ()))
    for number, line in enumerate(lines, start=1):
        change = replaced.get(number)
        if change is None:
            result.append(line)
        elif change.op == "replace":
            result.append(change.text)
        result.extend(added.get(number, ()))
    return "\n".join(result)
