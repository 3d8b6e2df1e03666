"""The one place where a LangSmith client is made, and where its errors become ours."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from langsmith import Client
from langsmith import utils as ls

from lg_textgrad._sync import in_thread
from lg_textgrad.errors import (
    ConfigurationError,
    LangSmithError,
    LangSmithUnavailableError,
    LGTextGradError,
)
from lg_textgrad.models._redact import brief, scrub, secrets_of, shown_url
from lg_textgrad.redaction import Redaction

T = TypeVar("T")

_LOGGERS = ("langsmith.client", "langsmith.utils")
_quiet: ContextVar[bool] = ContextVar("lg_textgrad_langsmith_quiet", default=False)


class _Quiet(logging.Filter):
    """Keeps back what the SDK logs about our own requests: their failures are raised."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - logging's signature
        return not _quiet.get()


class LangSmith:
    """A connection to LangSmith. Use as a context manager, or call `close()`.

    Address and key are those of the environment (`LANGSMITH_ENDPOINT`, `LANGSMITH_API_KEY`, a
    profile of LangSmith's command line) unless given. Nothing is sent before the first request.
    Without `patient` a request that fails is not repeated. Safe to use from several threads.
    Raises `ConfigurationError` when there is no key for LangSmith's own servers, and for addresses
    in the environment that make no sense.
    """

    def __init__(
        self,
        api_url: str | None = None,
        api_key: str | None = None,
        *,
        patient: bool = True,
    ) -> None:
        self._failures = threading.local()
        more: dict[str, Any] = {}
        if not patient:
            from urllib3.util import Retry

            more["retry_config"] = Retry(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ls.LangSmithMissingAPIKeyWarning)
            try:
                self.client = Client(
                    api_url,
                    api_key=api_key,
                    auto_batch_tracing=False,  # what fails to be sent has to be known here and now
                    omit_traced_runtime_info=True,
                    disable_prompt_cache=True,
                    tracing_sampling_rate=1.0,
                    tracing_error_callback=self._failed,
                    **more,
                )
                host = urlsplit(self.client.api_url).hostname or ""
            except (ls.LangSmithError, ValueError) as error:
                said = brief(scrub(str(error), secrets_of(os.environ)), 300)
                raise ConfigurationError(
                    f"LangSmith's client refuses what the environment says: {said} Correct "
                    "LANGSMITH_ENDPOINT and the variables that it names."
                ) from None
        if not self.client.api_key and host.endswith("langchain.com") and not _profile(self.client):
            raise ConfigurationError(
                "There is no key for LangSmith; set LANGSMITH_API_KEY, or LANGSMITH_ENDPOINT to "
                "the address of a LangSmith of your own."
            )
        self._filters = [(logging.getLogger(name), _Quiet()) for name in _LOGGERS]
        for logger, quiet in self._filters:
            logger.addFilter(quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.client.close(timeout=0)
        for logger, quiet in self._filters:
            logger.removeFilter(quiet)

    @property
    def url(self) -> str:
        """The address, for people."""
        return shown_url(self.client.api_url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be in a body: the key, and the other keys of the environment."""
        own = (self.client.api_key,) if self.client.api_key else ()
        return (*own, *secrets_of(os.environ))

    def call(self, ask: Callable[[Client], T]) -> T:
        """Return what `ask(client)` does.

        Raises `LangSmithUnavailableError` when it may work later, `ConfigurationError` when the
        key is refused, and `LangSmithError` for the rest. What the SDK only logs is raised too.
        """
        self._failures.last = None
        token = _quiet.set(True)
        try:
            with self._explained():
                result = ask(self.client)
                if self._failures.last is not None:
                    raise self._failures.last
                return result
        finally:
            _quiet.reset(token)

    def _failed(self, error: Exception) -> None:
        """Take note of what the SDK would only log; it says so in the thread that asked."""
        self._failures.last = error

    async def acall(self, ask: Callable[[Client], T]) -> T:
        """`call`, without holding the loop."""
        return await in_thread(lambda: self.call(ask))

    def find(self, ask: Callable[[Client], T]) -> T | None:
        """Return what `ask(client)` does; None for what LangSmith doesn't have."""
        try:
            return self.call(ask)
        except LangSmithError as error:
            if isinstance(error.__cause__, ls.LangSmithNotFoundError):
                return None
            raise

    def request(self, method: Any, path: str, *, whole: bool = False, **body: Any) -> Any:
        """Return the JSON answer to one request. `whole`: the path counts from the server's root.

        For endpoints that the SDK has no method for, has it only in another loop, or has announced
        to remove.
        """

        def ask(client: Client) -> Any:
            root = client.api_url.rstrip("/").removesuffix("/v1").removesuffix("/api")
            url = f"{root}{path}" if whole else path
            return client.request_with_retries(method, url, **body).json()

        return self.call(ask)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import requests

        try:
            yield
        except LGTextGradError:
            raise
        except (
            ls.LangSmithConnectionError,
            ls.LangSmithAPIError,
            ls.LangSmithRequestTimeout,
            ls.LangSmithRateLimitError,
            requests.Timeout,
            requests.ConnectionError,
        ) as error:
            raise LangSmithUnavailableError(
                f"LangSmith at {self.url} does not answer, or is too busy "
                f"({type(error).__name__}); try again later."
            ) from error
        except ls.LangSmithAuthError as error:
            raise ConfigurationError(
                f"LangSmith at {self.url} refused the API key; put a valid one into "
                "LANGSMITH_API_KEY."
            ) from error
        except (ls.LangSmithError, requests.RequestException, ValueError) as error:
            if status_of(error) >= 500:
                raise LangSmithUnavailableError(
                    f"LangSmith at {self.url} is out of order (status {status_of(error)}); try "
                    "again later."
                ) from error
            said = brief(scrub(str(error), self.secrets), 300)
            raise LangSmithError(f"LangSmith at {self.url} refused a request: {said}") from error


def _profile(client: Client) -> bool:
    return any(name.lower() == "authorization" for name in client.headers)


def status_of(error: BaseException | None) -> int:
    """Return the HTTP status behind an error; 0 where there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(getattr(response, "status_code", 0))
        error = error.__cause__ or error.__context__
    return 0


def scrubbed(value: Any, secrets: Sequence[str]) -> Any:
    """Return JSON data with every secret, and what looks like one, struck out of its strings."""
    return _scrubbed(Redaction(None, {}).without_secrets(value), secrets)


def _scrubbed(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return scrub(value, secrets)
    if isinstance(value, dict):
        return {scrub(str(k), secrets): _scrubbed(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(v, secrets) for v in value]
    return value


def has_secret(text: str, secrets: Sequence[str]) -> bool:
    """Return whether a secret is in the text, or a key.

    Stricter than `scrubbed`, which may strike out a word too many: a prompt may speak of a bearer.
    """
    named = any(len(secret) > 3 and secret in text for secret in secrets)
    return named or Redaction(None, {}).text(text) != text
