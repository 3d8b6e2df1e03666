"""Every exception that lg_textgrad raises on purpose.

LGTextGradError
├── ConfigurationError            what the user gave cannot work; nothing was paid for
│   ├── GraphError                not a compiled graph, or it could not be loaded
│   ├── ParameterError            a parameter that nothing reads, a name used twice, a broken edit
│   ├── DataError                 a data file or an example that cannot be read
│   ├── MissingExtraError         an optional part is not installed
│   └── RunMismatchError          a run directory that belongs to another configuration
├── ModelError                    a language model could not be asked, or did not answer usably
│   ├── ModelAuthenticationError  the key was refused
│   ├── UnknownModelError         the server does not have that model
│   ├── ModelUnreachableError     nobody answers at that address
│   ├── ContextOverflowError      the request is longer than the model's context
│   ├── ModelBusyError            rate limits or server errors outlasted every retry
│   └── ModelReplyError           the reply is empty, cut off, or not what the schema asks for
├── EvaluatorError                an evaluator raised, or returned something that is no score
├── CriticError                   the critic's replies failed their schema
├── BudgetExceededError           the next call would go over the budget
│   └── BudgetTooSmallError       the budget does not even cover the baseline
├── LangSmithError                LangSmith refused what it was asked
│   └── LangSmithUnavailableError nobody answers there, or it is busy or broken
├── StoreError                    the run directory or database cannot be read or written
│   └── CorruptStoreError         what was stored there is damaged
└── InterruptedRunError           stopped by the user; the run directory can be resumed
"""

from __future__ import annotations

from lg_textgrad.run import Usage


class LGTextGradError(Exception):
    """Base of all. `run_id`, `node` and `parameter` say where, when that is known."""

    def __init__(
        self,
        message: str,
        *,
        run_id: str | None = None,
        node: str | None = None,
        parameter: str | None = None,
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.node = node
        self.parameter = parameter


class ConfigurationError(LGTextGradError):
    """What the user gave cannot work as it is."""


class GraphError(ConfigurationError):
    """The graph is not a compiled LangGraph graph, or could not be loaded."""


class ParameterError(ConfigurationError):
    """A parameter cannot be used, or an edit breaks what it promises."""


class DataError(ConfigurationError):
    """A data file or an example cannot be read."""


class MissingExtraError(ConfigurationError):
    """An optional part is not installed; the message has the command that installs it."""


class RunMismatchError(ConfigurationError):
    """The run directory was made with another configuration, graph or data."""


class ModelError(LGTextGradError):
    """A language model could not be asked, or did not answer usably."""


class ModelAuthenticationError(ModelError):
    """The server refused the API key."""


class UnknownModelError(ModelError):
    """The server does not have the model that was named."""


class ModelUnreachableError(ModelError):
    """Nobody answers at the address."""


class ContextOverflowError(ModelError):
    """The request does not fit into the model's context."""


class ModelBusyError(ModelError):
    """Rate limits, server errors or timeouts outlasted every retry."""


class ModelReplyError(ModelError):
    """The reply is empty, cut off, or not what the schema asks for.

    `reply` holds its text, `usage` what it cost: a bad reply is paid for like a good one.
    """

    def __init__(
        self, message: str, *, reply: str = "", usage: Usage | None = None, **where: str | None
    ) -> None:
        super().__init__(message, **where)
        self.reply = reply
        self.usage = usage or Usage(calls=1)


class EvaluatorError(LGTextGradError):
    """An evaluator raised, or returned something that is no score."""


class CriticError(LGTextGradError):
    """The critic's replies failed their schema."""


class BudgetExceededError(LGTextGradError):
    """The next call would go over the budget. `limit` names the cap that was reached."""

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class BudgetTooSmallError(BudgetExceededError):
    """The budget does not even cover the baseline."""


class LangSmithError(LGTextGradError):
    """LangSmith refused what it was asked."""


class LangSmithUnavailableError(LangSmithError):
    """Nobody answers at LangSmith's address, or it is busy or broken; later it may work."""


class StoreError(LGTextGradError):
    """The run directory or database cannot be read or written."""


class CorruptStoreError(StoreError):
    """What was stored is damaged. The good part can be saved: `Store.salvage`."""


class InterruptedRunError(LGTextGradError):
    """Stopped by the user. Everything that was paid for is in the run directory."""


#: Errors that make every further call pointless: the run stops at once instead of spending on.
SYSTEMIC: tuple[type[LGTextGradError], ...] = (
    ConfigurationError,
    ModelAuthenticationError,
    UnknownModelError,
    ModelUnreachableError,
    BudgetExceededError,
    StoreError,
)
