"""The exit statuses, and which of them an error has."""

from __future__ import annotations

from lg_textgrad.errors import (
    BudgetTooSmallError,
    ConfigurationError,
    EvaluatorError,
    InterruptedRunError,
    LangSmithError,
    LangSmithUnavailableError,
    LGTextGradError,
    ModelAuthenticationError,
    ModelUnreachableError,
    StoreError,
    UnknownModelError,
)

DONE, FAILED, BAD_INPUT, SMALL_BUDGET, RESUMABLE = 0, 1, 2, 3, 4

_BAD_INPUT = (
    ConfigurationError,
    EvaluatorError,
    LangSmithError,
    ModelAuthenticationError,
    ModelUnreachableError,
    UnknownModelError,
    StoreError,
)


def status_of(error: LGTextGradError) -> int:
    """Return the status of a command that ended in `error`."""
    if isinstance(error, BudgetTooSmallError):
        return SMALL_BUDGET
    if isinstance(error, _BAD_INPUT) and not isinstance(error, LangSmithUnavailableError):
        return BAD_INPUT
    return RESUMABLE if isinstance(error, InterruptedRunError) else FAILED
