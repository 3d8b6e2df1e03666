"""Every exception that lg_textgrad raises on purpose.

LGTextGradError
├── ConfigurationError            what the user gave cannot work; nothing was paid for
│   ├── GraphError                not a compiled graph, or it could not be loaded
│   ├── ParameterError            a parameter that nothing reads, a name used twice, a broken edit
│   ├── DataError                 a data file or an example that cannot be read
│   ├── MissingExtraError         an optional part is not installed
│   ├── RedactionError            the hook that masks values failed, so nothing goes past it
│   └── RunMismatchError          a run directory that belongs to another configuration
├── ModelError                    a language model could not be asked, or did not answer usably
│   ├── ModelAuthenticationError  the key was refused
│   ├── UnknownModelError         the server does not have that model
│   ├── ModelUnreachableError     nobody answers at that address
│   ├── ModelQuotaError           the account has nothing left to pay the call with
│   ├── ContextOverflowError      the request is longer than the model's context
│   ├── ModelBusyError            rate limits or server errors outlasted every retry
│   │   └── ModelDownError        and so did everybody else's: going on is pointless
│   └── ModelReplyError           the reply is empty, cut off, or not what the schema asks for
├── ToolReplayError               a tool may only be replayed, and there is no recording
├── EvaluatorError                an evaluator raised, or returned something that is no score
├── CriticError                   the critic said nothing usable about one execution
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


class RedactionError(ConfigurationError):
    """The hook that masks values raised, or returned something that cannot stand for them."""


class RunMismatchError(ConfigurationError):
    """The run directory was made with another configuration, graph or data."""


class ModelError(LGTextGradError):
    """A language model could not be asked, or did not answer usably.

    `fault` says what went wrong on the way, when asking again may help: one of `faults.KINDS`.
    `wait` is how many seconds the server asks to wait before that, when it said.
    """

    def __init__(
        self,
        message: str,
        *,
        fault: str | None = None,
        wait: float | None = None,
        **where: str | None,
    ) -> None:
        super().__init__(message, **where)
        self.fault = fault
        self.wait = wait


class ModelAuthenticationError(ModelError):
    """The server refused the API key."""


class UnknownModelError(ModelError):
    """The server does not have the model that was named."""


class ModelUnreachableError(ModelError):
    """Nobody answers at the address."""


class ModelQuotaError(ModelError):
    """The account has no credit left, or reached a limit that waiting does not lift."""


class ContextOverflowError(ModelError):
    """The request does not fit into the model's context."""


class ModelBusyError(ModelError):
    """Rate limits, server errors or timeouts outlasted every retry."""


class ModelDownError(ModelBusyError):
    """All of the last calls to a model failed, whoever made them."""


class ModelReplyError(ModelError):
    """The reply is empty, cut off, or not what the schema asks for.

    `reply` holds its text, `usage` what it cost: a bad reply is paid for like a good one. `kind`
    is `empty`, `refused`, `truncated`, `garbled` (no JSON at all) or `violation` (other JSON);
    `promised` says that the server had taken on to hold the model to the schema.
    """

    def __init__(
        self,
        message: str,
        *,
        reply: str = "",
        usage: Usage | None = None,
        kind: str = "violation",
        promised: bool = False,
    ) -> None:
        super().__init__(message)
        self.reply = reply
        self.usage = usage or Usage(calls=1)
        self.kind = kind
        self.promised = promised


class ToolReplayError(LGTextGradError):
    """A tool may only be answered from a recording, and there is none for its arguments."""


class EvaluatorError(LGTextGradError):
    """An evaluator raised, or returned something that is no score."""


class CriticError(LGTextGradError):
    """The critic could not be asked about one execution, or its replies failed their schema."""


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
    ModelQuotaError,
    ModelDownError,
    BudgetExceededError,
    StoreError,
)
