"""Ask a critic's model for a reply that has the form of a schema, once more when it hasn't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lg_textgrad.errors import ModelReplyError
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
    """Return the reply's data. Raises `ModelReplyError` when the second is malformed too."""
    asked = list(messages)
    request = ModelRequest(asked, schema=schema, max_tokens=max_tokens)
    try:
        return (await aask(model, request, "critic")).data
    except ModelReplyError as error:
        again = f"Your last reply was refused: {error} Reply again."
    request = ModelRequest(
        [*asked, {"role": "user", "content": again}], schema=schema, max_tokens=max_tokens
    )
    return (await aask(model, request, "critic", attempt=1)).data


def an_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has all of `properties` and nothing else."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
