"""A prompt of LangSmith's hub as a parameter's text, and back. Pure.

A prompt is pulled as JSON and never made into objects: a manifest may configure models and more.
Of a chat prompt the text is its system message; everything else in it stays as it is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from string import Formatter
from typing import Any

from lg_textgrad.errors import ParameterError

Manifest = dict[str, Any]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_.]*)\}(?!\})")
"""What a parameter takes for a placeholder."""
_MUSTACHE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_CHAT = ["langchain", "prompts", "chat"]


def text_of(manifest: Mapping[str, Any], name: str) -> str:
    """Return the text of a prompt, with its variables as `{placeholders}`.

    Raises `ParameterError` for a prompt without a system message, and for templates with more in
    them than variables.
    """
    place = _place(manifest, name)
    text = place.holder[place.key]
    if place.format == "f-string":
        return _from_fstring(text, name)
    if place.format == "mustache":
        bare = _MUSTACHE.sub("", text)
        if "{{" in bare or "}}" in bare:
            raise ParameterError(
                f"The prompt '{name}' is a mustache template with more than variables in it; only "
                "{{variables}} can be tuned. Write it anew with these alone."
            )
        return _MUSTACHE.sub(r"{\1}", text)
    if place.format == "plain":
        return str(text)
    raise ParameterError(
        f"The prompt '{name}' is a {place.format} template; f-string and mustache can be tuned."
    )


def variables_of(manifest: Mapping[str, Any], name: str) -> set[str]:
    """Return the names of the variables in a prompt's text; braces that are text are none."""
    place = _place(manifest, name)
    if place.format == "plain":
        return set()
    return _variables(place.holder[place.key], place.format)


def with_text(
    manifest: Mapping[str, Any] | None, text: str, placeholders: Collection[str], name: str
) -> Manifest:
    """Return the prompt with another text; a new chat prompt where there is none yet.

    `placeholders` are the variables in the text; all other braces are text. Raises
    `ParameterError` for a text that the prompt's kind of template cannot hold.
    """
    for placeholder in placeholders:
        if not _NAME.fullmatch(placeholder):
            raise ParameterError(
                f"The prompt '{name}' cannot have the placeholder {{{placeholder}}} on the hub, "
                "where a variable's name has letters, digits and underscores; rename it."
            )
    made = copy.deepcopy(dict(manifest)) if manifest is not None else _new()
    place = _place(made, name)
    if place.format == "mustache":
        if "{{" in text or "}}" in text:
            raise ParameterError(
                f"The text of '{name}' has double braces, which its mustache template on the hub "
                "would take for variables."
            )
        place.holder[place.key] = _VARIABLE.sub(
            lambda m: f"{{{{{m[1]}}}}}" if m[1] in placeholders else m[0], text
        )
    elif place.format == "plain":
        if placeholders:
            raise ParameterError(
                f"The system message of '{name}' on the hub is no template, so it cannot have the "
                f"placeholder {{{next(iter(placeholders))}}}; make it one there."
            )
        place.holder[place.key] = text
    else:
        place.holder[place.key] = _to_fstring(text, placeholders)
    _count_variables(made)
    return made


class _Place:
    """Where the text is in a manifest."""

    def __init__(self, holder: dict[str, Any], key: str, kind: str) -> None:
        self.holder, self.key, self.format = holder, key, kind


def _place(manifest: Mapping[str, Any], name: str) -> _Place:
    kind = _kind(manifest)
    if kind == "RunnableSequence":  # a prompt that was saved with its model
        return _place(manifest["kwargs"]["first"], name)
    kwargs = manifest.get("kwargs") or {}
    if kind == "PromptTemplate":
        return _template(manifest, name)
    for message in kwargs.get("messages") or ():
        if _kind(message) == "SystemMessagePromptTemplate":
            prompt = message["kwargs"]["prompt"]
            if isinstance(prompt, list):
                if len(prompt) != 1:
                    raise ParameterError(
                        f"The system message of the prompt '{name}' has {len(prompt)} parts; only "
                        "one text can be tuned. Join them on the hub."
                    )
                prompt = prompt[0]
            return _template(prompt, name)
        if _kind(message) == "SystemMessage" and isinstance(message["kwargs"]["content"], str):
            return _Place(message["kwargs"], "content", "plain")
    raise ParameterError(
        f"The prompt '{name}' on the hub has no system message; give it one, since that is what is "
        "tuned."
    )


def _template(prompt: Mapping[str, Any], name: str) -> _Place:
    kwargs = prompt.get("kwargs") or {}
    if not isinstance(kwargs.get("template"), str):
        raise ParameterError(f"The prompt '{name}' on the hub has no template that can be read.")
    return _Place(kwargs, "template", str(kwargs.get("template_format") or "f-string"))


def _kind(value: Any) -> str:
    return str((value.get("id") or [""])[-1]) if isinstance(value, Mapping) else ""


def _new() -> Manifest:
    prompt = {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "prompts", "prompt", "PromptTemplate"],
        "kwargs": {"input_variables": [], "template": "", "template_format": "f-string"},
    }
    message = {
        "lc": 1,
        "type": "constructor",
        "id": [*_CHAT, "SystemMessagePromptTemplate"],
        "kwargs": {"prompt": prompt},
    }
    return {
        "lc": 1,
        "type": "constructor",
        "id": [*_CHAT, "ChatPromptTemplate"],
        "kwargs": {"input_variables": [], "messages": [message]},
    }


def _to_fstring(text: str, placeholders: Collection[str]) -> str:
    parts, end = [], 0
    for found in _VARIABLE.finditer(text):
        if found[1] in placeholders:
            parts += [_doubled(text[end : found.start()]), found[0]]
            end = found.end()
    return "".join([*parts, _doubled(text[end:])])


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _from_fstring(template: str, name: str) -> str:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ParameterError(f"The prompt '{name}' is no f-string template: {error}.") from None
    found, fields = [], 0
    for literal, field, spec, conversion in parts:
        found.append(literal)
        if field is not None:
            fields += 1
            if spec or conversion or not _NAME.fullmatch(field):
                raise ParameterError(
                    f"The prompt '{name}' has the field {{{field}}} with more than a name in it; "
                    "only plain variables can be tuned."
                )
            found.append(f"{{{field}}}")
    text = "".join(found)
    if fields and len(_VARIABLE.findall(text)) < fields:
        raise ParameterError(
            f"The prompt '{name}' has a variable inside of braces that are text, which a parameter "
            "cannot tell apart; put a space between them."
        )
    return text


def _count_variables(manifest: Manifest) -> None:
    """Write down anew which variables each template, and the prompt as a whole, has."""
    everything: set[str] = set()
    for holder in _templates(manifest):
        variables = _variables(holder["template"], str(holder.get("template_format")))
        holder["input_variables"] = sorted(variables)
        everything |= variables
    top = manifest
    while _kind(top) == "RunnableSequence":
        top = top["kwargs"]["first"]
    if _kind(top) != "PromptTemplate":
        kwargs = top["kwargs"]
        others = {
            str(message["kwargs"].get("variable_name"))
            for message in kwargs.get("messages") or ()
            if _kind(message) == "MessagesPlaceholder" and not message["kwargs"].get("optional")
        }
        kwargs["input_variables"] = sorted(everything | others)


def _templates(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for one in value:
            yield from _templates(one)
    elif isinstance(value, dict):
        if isinstance(value.get("template"), str):
            yield value
        for one in value.values():
            yield from _templates(one)


def _variables(template: str, kind: str) -> set[str]:
    if kind == "mustache":
        return set(_MUSTACHE.findall(template))
    try:
        return {field for _, field, _, _ in Formatter().parse(template) if field}
    except ValueError:
        return set()
