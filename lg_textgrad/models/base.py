"""What a model is to lg_textgrad: async, takes messages and may be held to a schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from lg_textgrad.run import Usage

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""


URL_VARIABLE = "LG_TEXTGRAD_LOCAL_URL"
"""Environment variable by which a process tree shares one embedded server: its `base_url`."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One question to a model. Its content is what the result is stored under."""

    messages: Sequence[Message]
    schema: Mapping[str, Any] | None = None
    """A JSON schema that the reply must satisfy; None for free text."""
    max_tokens: int | None = None
    """Cap on the reply in tokens; None leaves it to the server."""
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What came back."""

    text: str
    data: Any = None
    """The parsed reply when a schema was given; None otherwise."""
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None


@runtime_checkable
class ChatModel(Protocol):
    """A chat model. `identity` names everything besides the request that decides the reply."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    async def acall(self, request: ModelRequest) -> ModelReply:
        """Ask once and return the reply. One call, retries of transport faults included.

        With a schema the reply's `data` satisfies it. Raises `ModelReplyError` for an empty, cut
        off or malformed reply, and the other `ModelError`s for what their names say.
        """
        ...


def counted(
    prompt: int | None,
    completion: int | None,
    total: int | None,
    cached: int | None,
    seconds: float = 0.0,
) -> Usage:
    """Return the usage of one call by the tokens that a server counted; each may be missing.

    Google's and xAI's servers count what a model has thought in the total only, and charge for it
    like for the rest of the reply.
    """
    prompt, completion, cached = prompt or 0, completion or 0, cached or 0
    more = (total or 0) - prompt - completion
    # Where cached tokens are counted beside the prompt's, they may be what is more.
    if more > 0 and more != cached and (prompt or completion):
        completion += more
    return Usage(1, 0, prompt, completion, seconds, cached)
