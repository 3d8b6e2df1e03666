"""Prompts that were found in what a graph sends to its models, and are replaced there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from langchain_core.messages import BaseMessage

from lg_textgrad.bindings.base import Held
from lg_textgrad.bindings.boundary import warn
from lg_textgrad.bindings.rewriting import rewriting
from lg_textgrad.bindings.skeleton import Skeleton
from lg_textgrad.errors import DataError
from lg_textgrad.parameter import Parameter, prompts
from lg_textgrad.run import Execution


@dataclass(frozen=True, slots=True)
class FoundPrompt:
    """One prompt as the graph has it."""

    name: str
    """The parameter's name."""
    node: str
    """Path of the node that sends it."""
    skeleton: Skeleton
    how: str
    """For people: `found in the system message`, …"""
    user: bool = False
    """Whether it stands in the first user message and not in a system message."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What discovery has to say about one prompt of one node."""

    node: str
    """Path of the node; empty where a run failed outside of one."""
    parameter: str | None
    """The parameter that the prompt became, or already was; None where it became none."""
    why: str
    """How it was found, or why it is not tunable."""
    text: str = ""
    """The prompt or its template; empty where there is none."""


class Discovered:
    """Holds the prompts that `discover` found, and replaces them at the chat-model boundary.

    A message is replaced where the node and the text are those that were found; with a template,
    the variables are taken out of the text and put into the candidate's. All else stays byte for
    byte. A node that sends something else gets a warning in the run.
    """

    def __init__(self, found: Iterable[FoundPrompt], findings: Iterable[Finding] = ()) -> None:
        self.found = tuple(found)
        self.findings = tuple(findings)
        self._parameters = {
            one.name: Parameter(
                one.name, one.skeleton.text, placeholders=one.skeleton.placeholders
            )
            for one in self.found
        }
        self._at: dict[str, list[FoundPrompt]] = {}
        # The closest fit first: a constant text also matches a template that it was filled from.
        for one in sorted(self.found, key=_looseness):
            self._at.setdefault(one.node, []).append(one)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self._parameters

    def held(self, name: str) -> Held:
        [one] = [one for one in self.found if one.name == name]
        return Held(one.how, (one.node,))

    def inputs(
        self, candidate: Mapping[str, str], inputs: Mapping[str, Any]  # noqa: ARG002
    ) -> Mapping[str, Any]:
        return inputs

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:
        """Return no further arguments. Raises `ParameterError` for a text that loses a variable."""
        for one in self.found:
            text = candidate.get(one.name, one.skeleton.text)
            if text not in (one.skeleton.text, self._parameters[one.name].value):
                self._parameters[one.name].check(text)
        return {}

    @contextmanager
    def scope(self, candidate: Mapping[str, str]) -> Iterator[None]:
        own = {n: t for n, t in candidate.items() if n in self._parameters}
        with prompts(own), rewriting(self):
            yield

    def rewrite(
        self, node: str, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any]]:
        """Return the messages with the prompts in scope in place of those that were found."""
        known = self._at.get(node)
        if not known:
            return messages, options
        sent = list(messages)
        for user in (False, True):
            expected = [one for one in known if one.user is user]
            places = _places(messages, user=user)
            if not expected or not places:
                continue
            used = False

            def replace(text: str, expected: Sequence[FoundPrompt] = expected) -> str:
                nonlocal used
                for one in expected:
                    variables = one.skeleton.match(text)
                    if variables is not None:
                        used = True
                        return self._text(one, text, variables)
                return text

            for place in places:
                sent[place] = changed(sent[place], replace)
            if not used:
                names = ", ".join(f"'{one.name}'" for one in expected)
                warn(
                    f"The node '{node}' sent a {'user' if user else 'system'} message that is not "
                    f"the prompt which was found there ({names}), so it was left as it is; "
                    "discover again with inputs like this one."
                )
        return sent, options

    def sent_by(self, execution: Execution) -> Iterator[tuple[str, str]]:
        """Yield name and text of the prompts that a recorded execution sent as they are."""
        for call in execution.model_calls:
            for user in (False, True):
                wanted = "human" if user else "system"
                said = [m for m in call.messages if m["role"] == wanted][: 1 if user else None]
                known = [one for one in self._at.get(execution.path, ()) if one.user is user]
                for text in (text for message in said for text in texts_of(message["content"])):
                    fits = (one for one in known if one.skeleton.match(text) is not None)
                    yield from ((one.name, one.skeleton.text) for one in islice(fits, 1))

    def _text(self, one: FoundPrompt, text: str, variables: Mapping[str, str]) -> str:
        parameter = self._parameters[one.name]
        if parameter.text() == one.skeleton.text:
            return text
        return str(parameter.message(**variables).content)

    def to_plain(self) -> dict[str, Any]:
        """Return what `from_plain` makes the same binding of, as JSON data."""
        return {
            "found": [asdict(one) for one in self.found],
            "findings": [asdict(one) for one in self.findings],
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Discovered:
        """Return the binding that `to_plain` was asked of, without a run.

        Its parameters have the graph's own texts. Raises `DataError` for data of another kind.
        """
        try:
            found = [
                FoundPrompt(
                    **{
                        **one,
                        "skeleton": Skeleton(
                            tuple(one["skeleton"]["constants"]), tuple(one["skeleton"]["names"])
                        ),
                    }
                )
                for one in data["found"]
            ]
            return cls(found, [Finding(**one) for one in data["findings"]])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The stored prompts of a discovered graph cannot be read ({error}); "
                "discover the graph again."
            ) from error


def _looseness(one: FoundPrompt) -> tuple[int, int, str]:
    return len(one.skeleton.names), -sum(map(len, one.skeleton.constants)), one.name


def _places(messages: Sequence[BaseMessage], *, user: bool) -> list[int]:
    """Return where the system messages stand, or the first user message."""
    wanted = "human" if user else "system"
    found = [place for place, message in enumerate(messages) if message.type == wanted]
    return found[:1] if user else found


def texts_of(content: Any) -> list[str]:
    """Return the texts of a message's content: itself, or those of its text blocks."""
    if isinstance(content, str):
        return [content]
    blocks = [b.get("text") if isinstance(b, Mapping) else b for b in content or ()]
    return [text for text in blocks if isinstance(text, str)]


def changed(message: BaseMessage, replace: Callable[[str], str]) -> BaseMessage:
    """Return the message with its texts replaced; itself where none of them changes.

    Its id, its name, and what else is in its content blocks stay.
    """
    content: Any = message.content
    if isinstance(content, str):
        new: Any = replace(content)
    else:
        new = [
            {**block, "text": replace(block["text"])}
            if isinstance(block, dict) and isinstance(block.get("text"), str)
            else replace(block)
            if isinstance(block, str)
            else block
            for block in content
        ]
    return message if new == content else message.model_copy(update={"content": new})
