"""A text from a model: asked twice at most, and only what nothing speaks against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lg_textgrad import templates
from lg_textgrad._given import check_counts, check_model, check_numbers
from lg_textgrad.errors import ModelReplyError, ParameterError
from lg_textgrad.guards import Quotations, new_lines
from lg_textgrad.ledger import aask
from lg_textgrad.models.base import ChatModel, Message, ModelRequest

MOST_TEXT = 3000  # characters of one instruction

Refusal = Callable[[str], str | None]
"""Why a text cannot be used; None when it can."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Asks `model` for one text, held to a schema."""

    model: ChatModel
    max_tokens: int = 700
    temperature: float = 0.0
    seed: int = 0
    kind: str = "rewriter"
    """What its calls are booked as."""

    def __post_init__(self) -> None:
        check_model(self.model, f"The {self.kind}")
        check_counts(f"the {self.kind}", max_tokens=self.max_tokens)
        least = "of at least 0"
        check_numbers(
            f"the {self.kind}", lambda n: n >= 0, least, temperature=self.temperature
        )

    async def awrite(
        self,
        messages: Sequence[Message],
        refusal: Refusal,
        *,
        key: str = "instruction",
        longest: int = MOST_TEXT,
        seed: int = 0,
    ) -> str:
        """Return a text that `refusal` has nothing against. One call, two when it has.

        Raises `ParameterError` with the reason when the second reply can't be used either.
        """
        schema = {
            "type": "object",
            "properties": {key: {"type": "string", "maxLength": longest}},
            "required": [key],
            "additionalProperties": False,
        }
        reason = ""
        for attempt in range(2):
            asked = list(messages)
            if reason:
                asked.append(templates.again(reason))
            request = ModelRequest(
                asked, schema, self.max_tokens, self.temperature, self.seed + seed + attempt
            )
            try:
                reply = await aask(self.model, request, self.kind, attempt=attempt)
            except ModelReplyError as error:
                reason = str(error)
                continue
            text = str(reply.data[key]).strip()
            unusable = "It is empty." if not text else refusal(text)
            if len(text) >= longest - 1:
                unusable = f"It is cut off at {longest} characters."
            if unusable is None:
                return text
            reason = unusable
        raise ParameterError(reason)


def quoting(seen: Iterable[str], now: str = "") -> Refusal:
    """Return what says which words of `seen` a text quotes, in lines that are not in `now`."""
    quotations = Quotations(seen)

    def refusal(text: str) -> str | None:
        quoted = quotations.find("\n".join(new_lines(text, now)))
        return None if quoted is None else f"It quotes what was said in a run: {quoted!r}."

    return refusal
