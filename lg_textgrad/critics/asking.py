"""Ask a critic's model for a reply that has the form of a schema, once more when it hasn't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad import templates
from lg_textgrad.errors import (
    SYSTEMIC,
    ContextOverflowError,
    CriticError,
    ModelError,
    ModelReplyError,
)
from lg_textgrad.ledger import aask
from lg_textgrad.models.base import ChatModel, ModelRequest

RULE = {"type": "string", "maxLength": 200}
WEIGHT = {"type": "number", "minimum": 0, "maximum": 1}


async def aask_twice(
    model: ChatModel,
    messages: Sequence[Mapping[str, str]],
    schema: Mapping[str, Any],
    max_tokens: int,
) -> Any:
    """Return the reply's data. Raises `ModelReplyError` when the second is malformed too.

    And `CriticError` when this question could not be answered though others can: it is too long,
    or fails on its way each time.
    """
    asked = list(messages)
    request = ModelRequest(asked, schema=schema, max_tokens=max_tokens)
    try:
        return await _aask(model, request, 0)
    except ModelReplyError as error:
        again = templates.again(str(error))
    request = ModelRequest([*asked, again], schema=schema, max_tokens=max_tokens)
    return await _aask(model, request, 1)


async def _aask(model: ChatModel, request: ModelRequest, attempt: int) -> Any:
    try:
        return (await aask(model, request, "critic", attempt=attempt)).data
    except ModelReplyError:
        raise
    except ModelError as error:
        sick = error.fault is not None or isinstance(error, ContextOverflowError)
        if isinstance(error, SYSTEMIC) or not sick:
            raise
        raise CriticError(
            f"The critic could not be asked about one execution or run, which is skipped: {error}"
        ) from None


def an_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has all of `properties` and nothing else."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
