"""Descriptions of tools and of their arguments, by which models choose, as parameters.

They are found in the tools that a graph offers to its models and replaced there, in each format
that says a tool as data: OpenAI's two, Anthropic's, Bedrock's, a bare JSON schema. The tools that
run stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from lg_textgrad.bindings.base import Held
from lg_textgrad.bindings.bodies import Place, put
from lg_textgrad.bindings.boundary import warn
from lg_textgrad.bindings.discovered import Finding
from lg_textgrad.bindings.rewriting import rewriting
from lg_textgrad.errors import DataError
from lg_textgrad.parameter import Parameter, count_tokens, prompts
from lg_textgrad.run import Execution

# Where a format keeps the tool itself, and under which name the schema of its arguments.
_WRAPPERS = ("function", "toolSpec")
_LONGEST = 256
"""Tokens; some servers refuse descriptions of more than 1,024 characters."""
_SCHEMAS = (("parameters",), ("input_schema",), ("inputSchema", "json"), ("args_schema",))


@dataclass(frozen=True, slots=True)
class FoundDescription:
    """One description as the graph has it."""

    name: str
    """The parameter's name: `NODE.tools.TOOL`, or `NODE.tools.TOOL.ARGUMENT`."""
    node: str
    """Path of the node that offers the tool."""
    tool: str
    argument: str
    """The argument's name, dotted where it is inside another; empty for the tool itself."""
    text: str


@dataclass(frozen=True, slots=True)
class Offered:
    """One tool as one call of a node offered it."""

    node: str
    tool: Any


class NotesTools:
    """A rewriter that changes nothing and notes which tools are offered."""

    def __init__(self) -> None:
        self.found: list[Offered] = []

    def rewrite(
        self, node: str, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any]]:
        tools = options.get("tools")
        if isinstance(tools, list | tuple):
            self.found.extend(Offered(node, tool) for tool in tools)
        return messages, options


class DiscoveredTools:
    """Holds the descriptions that `discover(..., tools=True)` found, and replaces them.

    A description is replaced where node, tool, argument and text are those that were found. A node
    that offers the tool with another text gets a warning in the run. An execution reads those of
    all tools that it offers.
    """

    def __init__(
        self, found: Iterable[FoundDescription], findings: Iterable[Finding] = ()
    ) -> None:
        self.found = tuple(found)
        self.findings = tuple(findings)
        # Whatever is in braces is part of the text: nothing fills a tool's description.
        self._parameters = {
            one.name: Parameter(
                one.name,
                one.text,
                role=_role(one),
                placeholders=(),
                max_tokens=max(_LONGEST, count_tokens(one.text)),
            )
            for one in self.found
        }
        self._at: dict[tuple[str, str], dict[str, FoundDescription]] = {}
        for one in self.found:
            self._at.setdefault((one.node, one.tool), {})[one.argument] = one
        self._nodes = {one.node for one in self.found}

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self._parameters

    def held(self, name: str) -> Held:
        [one] = [one for one in self.found if one.name == name]
        return Held(_how(one), (one.node,))

    def inputs(
        self, candidate: Mapping[str, str], inputs: Mapping[str, Any]  # noqa: ARG002
    ) -> Mapping[str, Any]:
        return inputs

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:  # noqa: ARG002
        return {}

    @contextmanager
    def scope(self, candidate: Mapping[str, str]) -> Iterator[None]:
        own = {n: t for n, t in candidate.items() if n in self._parameters}
        with prompts(own), rewriting(self):
            yield

    def rewrite(
        self, node: str, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any]]:
        """Return the call with the descriptions in scope in place of those that were found."""
        tools = options.get("tools")
        if node not in self._nodes or not isinstance(tools, list | tuple):
            return messages, options
        return messages, {**options, "tools": [self._described(node, tool) for tool in tools]}

    def _described(self, node: str, tool: Any) -> Any:
        known = self._at.get((node, tool_name(tool) or ""))
        if known is None:
            return tool
        changed = tool
        for argument, place, text in descriptions(tool):
            one = known.get(argument)
            if one is None:
                continue
            if text != one.text:
                warn(
                    f"The node '{node}' offered the tool '{one.tool}' with a description that is "
                    f"not the one which was found there ('{one.name}'), so it was left as it is; "
                    "discover again with inputs like this one."
                )
                continue
            new = self._parameters[one.name].text()
            if new != text:
                changed = put(changed, place, new)
        return changed

    def sent_by(self, execution: Execution) -> Iterator[tuple[str, str]]:
        """Yield name and text of the descriptions that a recorded execution offered as they are."""
        for tool in (tool for call in execution.model_calls for tool in call.tools):
            known = self._at.get((execution.path, tool_name(tool) or ""))
            if known is None:  # it may be no mapping at all then
                continue
            for argument, _, text in descriptions(tool):
                one = known.get(argument)
                if one is not None and one.text == text:
                    yield one.name, text

    def to_plain(self) -> dict[str, Any]:
        """Return what `from_plain` makes the same binding of, as JSON data."""
        return {
            "found": [asdict(one) for one in self.found],
            "findings": [asdict(one) for one in self.findings],
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> DiscoveredTools:
        """Return the binding that `to_plain` was asked of, without a run.

        Its parameters have the graph's own texts. Raises `DataError` for data of another kind.
        """
        try:
            found = [FoundDescription(**one) for one in data["found"]]
            return cls(found, [Finding(**one) for one in data["findings"]])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The stored tools of a discovered graph cannot be read ({error}); "
                "discover the graph again."
            ) from error


def find_tools(
    runs: Sequence[Sequence[Offered]], names: Mapping[str, str], taken: Iterable[str] = ()
) -> tuple[list[FoundDescription], list[Finding]]:
    """Return the descriptions that the runs show, and what there is to say about each tool.

    `names` has the nodes in their order and what to call them; `taken` are names of parameters that
    there are already. Only what a node says in the same words in every call is a parameter.
    """
    found: list[FoundDescription] = []
    findings: list[Finding] = []
    used = set(taken)
    for node, called in names.items():
        offered = [one.tool for run in runs for one in run if one.node == node]
        kinds = sorted({type(t).__name__ for t in offered if not isinstance(t, Mapping)})
        findings.extend(
            Finding(node, None, f"it offers tools as {kind} objects, which cannot be rewritten")
            for kind in kinds
        )
        # By name: which of several calls came first may differ from time to time.
        by_name: dict[str, list[Any]] = {}
        for tool in offered:
            if (says := tool_name(tool)) is not None:
                by_name.setdefault(says, []).append(tool)
        for tool_called in sorted(by_name):
            texts: dict[str, dict[str, None]] = {}
            for tool in by_name[tool_called]:
                for argument, _, text in descriptions(tool):
                    texts.setdefault(argument, {})[text] = None
            if "" not in texts:
                why = f"the tool '{tool_called}' has no description"
                findings.append(Finding(node, None, why))
            for argument, said in texts.items():
                whole = ".".join(part for part in (called, "tools", tool_called, argument) if part)
                if len(said) > 1:
                    why = f"the description of '{whole}' differs from call to call"
                    findings.append(Finding(node, None, why))
                    continue
                number = 1
                while (name := whole if number == 1 else f"{whole} {number}") in used:
                    number += 1
                used.add(name)
                one = FoundDescription(name, node, tool_called, argument, next(iter(said)))
                found.append(one)
                findings.append(Finding(node, name, _how(one), one.text))
    return found, findings


def tool_name(tool: Any) -> str | None:
    """Return a tool's name; None for what is no tool of the graph's own, such as a web search."""
    if not isinstance(tool, Mapping):
        return None
    spec, _ = _spec(tool)
    name = spec.get("name") or (spec.get("title") if "properties" in spec else None)
    return name if isinstance(name, str) and ("description" in spec or _schema(spec)) else None


def descriptions(tool: Mapping[str, Any]) -> Iterator[tuple[str, Place, str]]:
    """Yield argument, place in the tool, and text of each description that is not empty.

    The argument is empty for the tool itself and dotted for what is inside of another.
    """
    spec, at = _spec(tool)
    if _said(spec):
        yield "", (*at, "description"), spec["description"]
    schema = _schema(spec)
    if schema is not None:
        place, root = schema
        yield from _arguments(root, (*at, *place), root, (*at, *place), "", set())


def _spec(tool: Mapping[str, Any]) -> tuple[Mapping[str, Any], Place]:
    for wrapper in _WRAPPERS:
        if isinstance(tool.get(wrapper), Mapping):
            return tool[wrapper], (wrapper,)
    return tool, ()


def _schema(spec: Mapping[str, Any]) -> tuple[Place, Mapping[str, Any]] | None:
    if isinstance(spec.get("properties"), Mapping):
        return (), spec
    for place in _SCHEMAS:
        found: Any = spec
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return place, found
    return None


def _arguments(
    schema: Any, place: Place, root: Mapping[str, Any], top: Place, within: str, seen: set[Place]
) -> Iterator[tuple[str, Place, str]]:
    """Yield the descriptions of the properties of a JSON schema and of what is inside of them.

    A definition that several properties refer to is one place, under the first one's name.
    """
    if not isinstance(schema, Mapping) or place in seen:
        return
    seen.add(place)
    for name, argument in _mapping(schema.get("properties")).items():
        whole, here = f"{within}.{name}" if within else str(name), (*place, "properties", name)
        if _said(argument):
            yield whole, (*here, "description"), argument["description"]
        yield from _arguments(argument, here, root, top, whole, seen)
    refers = str(schema.get("$ref") or "").split("/")
    if len(refers) == 3 and refers[:2] in (["#", "$defs"], ["#", "definitions"]):
        definition = _mapping(root.get(refers[1])).get(refers[2])
        yield from _arguments(definition, (*top, *refers[1:]), root, top, within, seen)
    yield from _arguments(schema.get("items"), (*place, "items"), root, top, within, seen)
    for key in ("anyOf", "oneOf", "allOf"):
        for number, one in enumerate(schema.get(key) or ()):
            yield from _arguments(one, (*place, key, number), root, top, within, seen)


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _said(described: Any) -> bool:
    text = _mapping(described).get("description")
    return isinstance(text, str) and bool(text.strip())


def _how(one: FoundDescription) -> str:
    if one.argument:
        return f"description of the argument '{one.argument}' of the tool '{one.tool}'"
    return f"description of the tool '{one.tool}'"


def _role(one: FoundDescription) -> str:
    if one.argument:
        return f"tells the model what to give as '{one.argument}' when it calls '{one.tool}'"
    return f"tells the model what its tool '{one.tool}' does and when to call it"
