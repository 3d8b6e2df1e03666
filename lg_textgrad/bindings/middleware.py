"""A parameter as `create_agent` middleware: `Parameter.middleware()`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import SystemMessage

from lg_textgrad.errors import MissingExtraError, ParameterError
from lg_textgrad.parameter import Parameter, find_placeholders

if TYPE_CHECKING:
    from langchain.agents.middleware.types import AgentMiddleware, ModelRequest


def middleware_for(parameter: Parameter) -> AgentMiddleware[Any, Any, Any]:
    """Return a middleware that puts the text in scope into the agent's system message.

    Where the message has the text that `parameter` has now, as with `create_agent(...,
    system_prompt=parameter.value)`, that part is replaced; else the text is added at its end. So
    what the agent and middleware before this one wrote stays, and several parameters stand in the
    order of the list. Raises `MissingExtraError` without langchain.
    """
    try:
        from langchain.agents.middleware.types import AgentMiddleware
    except ImportError:
        raise MissingExtraError(
            "Parameter.middleware() needs langchain: pip install 'lg-textgrad[langchain]'"
        ) from None

    known = parameter.value  # acceptance changes the value, but not what the agent was made with

    class SystemPrompt(AgentMiddleware[Any, Any, Any]):
        @property
        def name(self) -> str:
            """Tells the middleware of one agent apart; LangChain refuses two of one name."""
            return f"SystemPrompt[{parameter.name}]"

        def wrap_model_call(
            self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]
        ) -> Any:
            return handler(_with_text(request, parameter, known))

        async def awrap_model_call(
            self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
        ) -> Any:
            return await handler(_with_text(request, parameter, known))

    return SystemPrompt()


def _with_text(request: ModelRequest[Any], parameter: Parameter, known: str) -> ModelRequest[Any]:
    message = parameter.message(**_variables(request.state, parameter))
    return request.override(
        system_message=_merged(request.system_message, str(message.content), known)
    )


def _variables(state: Any, parameter: Parameter) -> dict[str, Any]:
    names = parameter.placeholders
    found = {
        name: state[name] if isinstance(state, Mapping) else getattr(state, name)
        for name in names
        if (name in state if isinstance(state, Mapping) else hasattr(state, name))
    }
    missing = [n for n in names if n not in found and n in find_placeholders(parameter.value)]
    if missing:
        raise ParameterError(
            f"The text of '{parameter.name}' has the placeholder {{{missing[0]}}}, but the agent's "
            f"state has no '{missing[0]}'; give create_agent a state_schema with that key, and "
            "the input a value for it.",
            parameter=parameter.name,
        )
    return found


def _merged(message: SystemMessage | None, text: str, known: str) -> SystemMessage:
    """Return `message` with `text` in place of `known`, or after all else; other parts stay."""
    if message is None or not message.content:
        return SystemMessage(text)
    if isinstance(message.content, str):
        if known and known in message.content:
            content: Any = message.content.replace(known, text, 1)
        else:
            content = f"{message.content}\n\n{text}"
        return message.model_copy(update={"content": content})
    blocks = [dict(b) if isinstance(b, dict) else b for b in message.content]
    for number, block in enumerate(blocks):
        said = block.get("text", "") if isinstance(block, dict) else block
        if known and isinstance(said, str) and known in said:
            changed = said.replace(known, text, 1)
            blocks[number] = {**block, "text": changed} if isinstance(block, dict) else changed
            break
    else:
        blocks.append({"type": "text", "text": text})
    return message.model_copy(update={"content": blocks})
