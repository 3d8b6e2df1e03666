"""Prompts that a graph takes as fields of its `context_schema`.

Fields whose metadata say `langgraph_type: "prompt"` (LangGraph Studio's convention) are parameters
as they are; others are by name. Each run gets a context with the candidate's texts, which notes
under the execution that reads them which fields were read. Like LangGraph's server, it gives a
context where no value was given, with the schema's defaults, and has the values in the run's
`config["configurable"]` too, where nodes of a graph with a `config_schema` look for them.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typing_extensions import ReadOnly, is_typeddict

from lg_textgrad.bindings.base import Held
from lg_textgrad.bindings.discovered import texts_of
from lg_textgrad.bindings.skeleton import anywhere, from_format
from lg_textgrad.copies import anew
from lg_textgrad.errors import DataError, ParameterError
from lg_textgrad.parameter import Parameter, prompts
from lg_textgrad.run import Example, Execution
from lg_textgrad.tracking import ReadTrackingDict

_NOTHING: Any = object()


@dataclass(frozen=True, slots=True)
class ContextField:
    """One field of a context schema."""

    default: Any = _NOTHING
    prompt: bool = False
    """Whether its metadata say that it is one."""
    nodes: tuple[str, ...] = ()
    """The nodes that read it, as far as its metadata say."""
    about: str = ""
    """The field's description."""


@dataclass(frozen=True, slots=True)
class ContextSchema:
    """What a graph's context schema says about its fields."""

    name: str
    fields: Mapping[str, ContextField]
    cls: type | None = None
    """The class that nodes expect; None where they get a dict, or run elsewhere."""
    remote: bool = False
    """Whether the nodes run on a server, which does by itself what is done here for others."""

    @classmethod
    def of(cls, schema: type) -> ContextSchema:
        """Read a dataclass, a Pydantic model or a TypedDict."""
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            found = {
                name: _field(
                    [*info.metadata, info],
                    _NOTHING
                    if info.is_required()
                    else info.get_default(call_default_factory=True, validated_data={}),
                )
                for name, info in schema.model_fields.items()
            }
            return cls(schema.__name__, found, schema)
        hints = _hints(schema)
        if dataclasses.is_dataclass(schema):
            fields = {
                f.name: _field([*_annotations(hints.get(f.name)), f.metadata], _default(f))
                for f in dataclasses.fields(schema)
                if f.init
            }
            return cls(schema.__name__, fields, schema)
        return cls(schema.__name__, {n: _field(_annotations(h)) for n, h in hints.items()})

    @classmethod
    def from_json(cls, schema: Mapping[str, Any]) -> ContextSchema:
        """Read the JSON schema that a LangGraph server gives."""
        found = {
            name: _field([said], said.get("default", _NOTHING))
            for name, said in (schema.get("properties") or {}).items()
        }
        return cls(str(schema.get("title") or "context"), found, remote=True)

    def make(self, values: Mapping[str, Any]) -> Any:
        return dict(values) if self.cls is None else self.cls(**values)


class ContextBinding:
    """Holds the fields of a graph's context that are prompts, and the values of the others.

    `context` has values for the fields, given once; an example's `metadata["context"]` is put over
    them. `prompt_fields` names the fields that are trainable besides those that their metadata
    mark; an element may be a `Parameter` with the field's name, to give it a role or limits. An
    empty one makes none trainable. Raises `ParameterError` for a field that isn't there, or that
    has no text to begin with.
    """

    def __init__(
        self,
        schema: ContextSchema | None,
        context: Any = None,
        prompt_fields: Iterable[str | Parameter] | None = None,
    ) -> None:
        self.schema = schema or ContextSchema("context", {})
        self.asked = schema is not None or context is not None or prompt_fields is not None
        self.values = _values(context)
        named = None if prompt_fields is None else list(prompt_fields)
        self._parameters: dict[str, Parameter] = {}
        for one in named or ():
            if isinstance(one, Parameter):
                self._check(one.name)
                self._parameters[one.name] = one
        wanted = [one for one in named or () if isinstance(one, str)]
        if named is None or named:
            wanted += [name for name, f in self.schema.fields.items() if f.prompt]
        for name in wanted:
            if name not in self._parameters:
                self._check(name)
                self._parameters[name] = self._parameter(name)
        self._make: Callable[[Mapping[str, Any]], Any] = _tracking(self.schema, self._parameters)

    def _check(self, name: str) -> None:
        if self.schema.fields and name not in self.schema.fields:
            has = ", ".join(f"'{n}'" for n in self.schema.fields)
            raise ParameterError(
                f"The context schema {self.schema.name} has no field '{name}'; it has {has}.",
                parameter=name,
            )

    def _parameter(self, name: str) -> Parameter:
        known = self.schema.fields.get(name, ContextField())
        value = self.values.get(name, known.default)
        if value is _NOTHING:
            raise ParameterError(
                f"The field '{name}' of the context schema {self.schema.name} has no default; give "
                f"the text to begin with: context={{'{name}': '...'}}.",
                parameter=name,
            )
        return Parameter(name, value, role=known.about)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self._parameters

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """The given values of fields that are no prompts: they decide what a run does."""
        return {n: v for n, v in self.values.items() if n not in self._parameters} or None

    def at(self, example: Example) -> ContextBinding:
        """Return the binding for one example, whose `metadata["context"]` goes over `context`.

        Raises `DataError` where that is no object, or sets a field that is trainable.
        """
        own = example.metadata.get("context") if self.asked else None
        if own is None:
            return self
        if not isinstance(own, Mapping):
            raise DataError(
                f"The metadata of example {example.named} have a 'context' that is no object; the "
                f"graph takes {self.schema.name}: write {{'field': value}}."
            )
        trained = [n for n in own if n in self._parameters]
        if trained:
            raise DataError(
                f"The context of example {example.named} sets '{trained[0]}', which is a trainable "
                "prompt; leave it out there, or out of the context_prompts."
            )
        bound = object.__new__(ContextBinding)
        bound.__dict__.update(self.__dict__, values={**self.values, **own})
        return bound

    def held(self, name: str) -> Held:
        return Held("context field", self.schema.fields.get(name, ContextField()).nodes)

    def inputs(
        self, candidate: Mapping[str, str], inputs: Mapping[str, Any]  # noqa: ARG002
    ) -> Mapping[str, Any]:
        return inputs

    def scope(self, candidate: Mapping[str, str]) -> AbstractContextManager[None]:
        return prompts({n: t for n, t in candidate.items() if n in self._parameters})

    def invocation(self, candidate: Mapping[str, str]) -> Mapping[str, Any]:
        """Return `context=` with the candidate's texts, and `config=` with the same values.

        Raises `DataError` when the values don't make what the schema asks for.
        """
        texts = {
            name: candidate.get(name, parameter.full)
            for name, parameter in self._parameters.items()
        }
        values = {**self.values, **texts}
        if not values:
            return self._of_defaults()
        try:
            made: dict[str, Any] = {"context": self._make(anew(values))}
            if not self.schema.remote:
                made["config"] = {"configurable": anew(values)}
            return made
        except (TypeError, ValueError) as error:
            why = str(error).replace("\n", " ")
            raise DataError(
                f"The context does not fit {self.schema.name} ({why}); give the fields that it "
                "needs in context={...}, or in each example's metadata under 'context'."
            ) from error

    @property
    def lacking(self) -> str | None:
        """What to say of a graph that gets no context, since its schema has no default for all."""
        given = self.values or self._parameters
        if given or self.schema.cls is None or self._of_defaults():
            return None
        without = [f"'{n}'" for n, f in self.schema.fields.items() if f.default is _NOTHING]
        return (
            f"Its nodes get no context: {self.schema.name} can't be made without "
            f"{', '.join(without) or 'values'}. Give them in each example's metadata, as "
            '{"context": {...}}, or as context={...} of a TrainableGraph.'
        )

    def _of_defaults(self) -> Mapping[str, Any]:
        """Return `context=` as the schema makes it of nothing; nothing where it doesn't."""
        if self.schema.cls is None:
            return {}
        try:
            return {"context": self.schema.make({})}
        except (TypeError, ValueError):  # fields without a default
            return {}

    def readers(
        self, candidate: Mapping[str, str], executions: Sequence[Execution]
    ) -> Iterator[tuple[str, str, str]]:
        """Yield who sent a text that nobody was seen reading: of the configuration, that is."""
        noted = {name for execution in executions for name in execution.prompts}
        for name, parameter in self._parameters.items():
            text = candidate.get(name, parameter.full)
            skeleton = from_format(text)
            if name in noted or skeleton is None or not skeleton.words or self.schema.remote:
                continue
            sent = anywhere(skeleton)
            for execution in executions:
                said = [m["content"] for c in execution.model_calls for m in c.messages]
                texts = (text for content in said for text in texts_of(content))
                if any(sent.spans(text) is not None for text in texts):
                    yield execution.id, name, text


class _NotedReads(set[str]):
    """A set of keys that tells the recorder of each parameter among them."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        super().__init__()
        self._parameters = parameters

    def add(self, key: str) -> None:
        if key in self._parameters:
            self._parameters[key].text()

    def update(self, *others: Iterable[str]) -> None:
        for keys in others:
            for key in keys:
                self.add(key)


def _tracking(
    schema: ContextSchema, parameters: Mapping[str, Parameter]
) -> Callable[[Mapping[str, Any]], Any]:
    """Return what makes a context whose prompt fields are noted when a node reads them.

    `Parameter.text()` does the noting; the value read is the context's own.
    """
    base: Any = schema.cls
    if not parameters:
        return schema.make
    if base is None:
        return lambda values: ReadTrackingDict(values, _NotedReads(parameters))

    def read(self: Any, name: str) -> Any:
        if name in parameters:
            parameters[name].text()
        elif name == "__dict__":  # vars(), model_dump(): the whole is looked at
            for parameter in parameters.values():
                parameter.text()
        return base.__getattribute__(self, name)

    def reduce(self: Any, protocol: Any) -> Any:
        # Copies and pickles are of the schema's own class: this one has no name to be found by.
        _, _, *state = base.__reduce_ex__(self, protocol)
        return (_empty, (base,), *state)

    body = {
        "__getattribute__": read,
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    tracked = types.new_class(base.__name__, (base,), {}, lambda space: space.update(body))
    return lambda values: tracked(**values)


def _empty(cls: Any) -> Any:
    return cls.__new__(cls)


def _values(context: Any) -> dict[str, Any]:
    """Return the fields of a context that was given as a mapping or as an instance."""
    if context is None:
        return {}
    if isinstance(context, Mapping):
        return dict(context)
    if isinstance(context, BaseModel):
        return {n: getattr(context, n) for n in type(context).model_fields}
    if dataclasses.is_dataclass(context) and not isinstance(context, type):
        return {f.name: getattr(context, f.name) for f in dataclasses.fields(context) if f.init}
    raise ParameterError(
        f"The context must be an object with the schema's fields, not {type(context).__name__}; "
        "write context={'user_id': '...'}."
    )


def _field(said: Iterable[Any], default: Any = _NOTHING) -> ContextField:
    """Read the metadata of one field: mappings, and what Pydantic's `Field(...)` makes."""
    found = ContextField(default)
    for part in said:
        about, marks = "", part
        if isinstance(part, FieldInfo):
            about, marks = part.description or "", part.json_schema_extra
            if found.default is _NOTHING and not part.is_required():
                found = replace(found, default=part.get_default())
        elif isinstance(part, Mapping):
            about = str(part.get("description") or "")
            marks = {**part, **_mapping(part.get("json_schema_extra"))}
        marks = _mapping(marks)
        found = replace(
            found,
            prompt=found.prompt or marks.get("langgraph_type") == "prompt",
            nodes=tuple(marks.get("langgraph_nodes") or found.nodes),
            about=about or found.about,
        )
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _default(one: dataclasses.Field[Any]) -> Any:
    if one.default is not dataclasses.MISSING:
        return one.default
    return _NOTHING if one.default_factory is dataclasses.MISSING else one.default_factory()


def _hints(schema: type) -> dict[str, Any]:
    """Return the annotations with their metadata; as written, where a name can't be resolved."""
    try:
        return get_type_hints(schema, include_extras=True)
    except (NameError, TypeError):  # types that were imported for type checkers only
        return dict(getattr(schema, "__annotations__", {}))


def _annotations(hint: Any) -> list[Any]:
    """Return the metadata of `Annotated[str, ...]`, also inside `NotRequired[...]`."""
    while get_origin(hint) in (NotRequired, Required, ReadOnly):
        hint = get_args(hint)[0]
    return list(get_args(hint)[1:]) if get_origin(hint) is Annotated else []


def schema_of(source: Any) -> ContextSchema | None:
    """Return the context schema of what a source runs; None where it has none."""
    graph = getattr(source, "graph", None)
    if graph is None:
        found: ContextSchema | None = getattr(source, "context_schema", None)
        return found
    schema: Any = getattr(graph, "context_schema", None)
    if is_typeddict(schema) or dataclasses.is_dataclass(schema) or hasattr(schema, "model_fields"):
        return ContextSchema.of(schema)
    return None
