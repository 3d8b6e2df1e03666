"""What may be shown, stored or sent on: values without secrets.

What models and tools answer is masked before anyone has it, the graph included. So a run that is
repeated from the store goes the way that it went first, and nothing that was masked once comes up
again in a prompt, a trace or an export.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from lg_textgrad._hashing import to_plain
from lg_textgrad.errors import RedactionError
from lg_textgrad.run import Example, Execution, Run

Redact = Callable[[Any], Any]
"""A hook: takes a text or a number and returns what may be known of it."""

HIDDEN = "[API key]"
"""What stands in the place of a secret."""

HIDDEN_USER = "***"
"""What stands before the host where an address had credentials."""

_SECRET_TEXT = re.compile(r"\bBearer\s+\S+|\b(?:sk|pk|lsv2|gsk|xai)[-_][\w*.-]{6,}", re.IGNORECASE)

# In a graph's own values a key has to look like one: `pk_customer_id` and the bearer of bad news
# are part of the work.
_DIGIT = r"(?=[\w.~+/-]*\d)"
# Where a key may begin: also after what JSON or an address writes as a code, such as a line's end.
_EDGE = r"(?:\b|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))"
_UNDERLINED = (
    "lsv2", "hf", "github_pat", "ghp", "gho", "ghu", "ghs", "ghr", "dckr_pat", "dop_v1", "shpat",
    "whsec",
)  # fmt: skip
_HYPHENED = ("xai", "glpat", "nvapi", "pplx", "pypi", "tvly")
_SECRET_VALUE = re.compile(
    rf"{_EDGE}(?:[Bb]earer\s+{_DIGIT}[\w.~+/-]{{16,}}=*"
    rf"|(?:[gc]?sk[-_]|[pr]k[-_]|(?:{'|'.join(_UNDERLINED)})_|(?:{'|'.join(_HYPHENED)})-)"
    rf"{_DIGIT}[\w-]{{20,}}"
    rf"|(?:npm|r8)_{_DIGIT}[A-Za-z0-9]{{30,}}|ya29\.{_DIGIT}[\w.-]{{20,}}"
    r"|SG\.[\w-]{16,}\.[\w-]{32,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}"
    r"|A[KS]IA[0-9A-Z]{16}\b|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_BEGINNINGS = (
    "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", *(f"{name}_" for name in _UNDERLINED),
    *(f"{name}-" for name in _HYPHENED), "earer", "npm_", "r8_", "ya29.", "SG.", "xox", "xapp",
    "AKIA", "ASIA", "AIza", "eyJ", "PRIVATE KEY",
)  # fmt: skip
"""One of these is in every such secret: looking for them is what most texts cost."""

# What is a secret only by what stands before it, which stays: `[` and the like begin a blank that
# somebody is to fill in, or what was masked already.
_SECRET_PART = re.compile(
    r"(://[^\s/:@\"'<>]*:)(?![\[{$<*])[^\s/@\"'<>]{3,}(?=@[\w\[])"
    r"|((?i:authorization)\\?[\"']?\s*[:=]\s*\\?[\"']?(?i:basic|token|apikey)\s+)[\w.~+/=-]{8,}"
    r"|((?:secret_access_key|SECRET_ACCESS_KEY|ecretAccessKey)\W{1,6})[\w+/]{40}"
    r"|((?:Account|SharedAccess)Key=)[\w+/=]{20,}"
    r"|([?&](?:api[_-]?key|apiKey|access_token|client_secret)=)(?![\[{$<*])[^\s&#\"'<>]{8,}"
    r"|(hooks\.slack\.com/(?:services|workflows|triggers)/)[\w/]{20,}"
)
_BEFORE = (
    "uthorization", "UTHORIZATION", "ccess_key", "CCESS_KEY", "ccessKey", "Key=", "key=", "oken=",
    "ecret=", "hooks.slack.com",
)  # fmt: skip


def _without_keys(text: str) -> str:
    """Return a text without what looks like a key, or is one by what stands before it."""
    if any(beginning in text for beginning in _BEGINNINGS):
        text = _SECRET_VALUE.sub(HIDDEN, text)
    if ("@" in text and "://" in text) or any(before in text for before in _BEFORE):
        text = _SECRET_PART.sub(_part_hidden, text)
    return text


def _part_hidden(found: re.Match[str]) -> str:
    return f"{found[found.lastindex or 0]}{HIDDEN}"


_SECRET_VARIABLE = re.compile(
    r"KEY(?!BOARD|MAP)|TOKEN(?!IZ)|SECRET|PASSW|CREDENTIAL|AUTHORIZATION|BEARER|HEADERS?$",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"_(FILE|PATH|DIR|URL|URI|HOST|NAME|ENV|VAR|SOCK|CONTROL)$", re.IGNORECASE)
_SHORTEST = 8  # fewer characters are a setting, not a secret
_MOST_CLEAN = 1_000_000
"""Characters of clean texts that are remembered."""
_PLACE = 32
"""Characters that remembering a text takes on top of its own."""


def _forms(secret: str) -> tuple[str, ...]:
    """Return a secret as it is, and as it stands in the text of JSON data and in addresses."""
    quoted = (json.dumps(secret, ensure_ascii=whole)[1:-1] for whole in (True, False))
    encoded = (quote(secret, safe=kept, errors="replace") for kept in ("", "/"))
    return tuple(dict.fromkeys((secret, *quoted, *encoded)))


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without the secrets, and without anything that looks like an API key."""
    return _SECRET_TEXT.sub(HIDDEN, _without_keys(_without(text, _longest_first(secrets))))


def _longest_first(secrets: Iterable[str]) -> list[str]:
    # A secret that contains another one must not leave its rest behind. Nobody guards a key of
    # three letters, and replacing those would garble every sentence.
    return sorted((s for s in secrets if len(s) > 3), key=len, reverse=True)


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def without_credentials(url: str) -> str:
    """Return a server's address with `***` for its user, password and query; others as they are."""
    parts = urlsplit(url)
    if "@" not in parts.netloc and not parts.query:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, f"{HIDDEN_USER}@{host}", parts.path, "", ""))


def brief(text: str, limit: int = 500) -> str:
    """Return `text` on one line of at most `limit` characters. Scrub first: half a key is one."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def secrets_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Return name -> value of the variables that are named like keys, tokens and passwords.

    Without blanks around it: a value that was read from a file ends in a newline that nobody sends.
    """
    return {
        name: value
        for name, value in ((name, value.strip()) for name, value in environment.items())
        if _SECRET_VARIABLE.search(name)
        and not _NO_SECRET.search(name)
        and len(value) >= _SHORTEST
        and not value.isdigit()
    }


class Redaction:
    """Masks values: secrets of the environment, what looks like a key, and what `hook` says.

    `hook` is called with each text of what models and tools answer, and with each text and number
    of examples and traces, after the secrets are masked. What it returns is what is stored, shown,
    given to evaluators and sent to critics. Prompts are not asked about. `environment` is the
    process' own by default.
    """

    def __init__(
        self, hook: Redact | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.hook = hook
        self._named = secrets_in(os.environ if environment is None else environment)
        self._secrets = tuple(
            _longest_first(form for value in set(self._named.values()) for form in _forms(value))
        )
        # Texts that have nothing secret in them: roles, names and prompts come again and again.
        self._clean: set[str] = set()
        self.as_they_are: AbstractSet[str] = self._clean if hook is None else frozenset()
        """Texts that nothing is done to, and keys of mappings."""
        self._room = _MOST_CLEAN
        self._bare = self if hook is None else Redaction(None, self._named)

    def try_out(self, examples: Iterable[Example]) -> None:
        """Raise `RedactionError` for a hook that fails on a number or on what is in the examples.

        Before a run begins: later its hook cannot be another one, and a reply would be lost.
        """
        self.number(1)
        for example in examples:
            self.example(example)

    def variable_in(self, text: str) -> str | None:
        """Return the name of a variable whose secret the text has in it."""
        return next(
            (n for n, value in self._named.items() if any(form in text for form in _forms(value))),
            None,
        )

    def text(self, text: str) -> str:
        """Return a text without secrets, and as the hook would have it."""
        masked = self._masked(text)
        if self.hook is None:
            return masked
        found = self._asked(masked)
        if not isinstance(found, str):
            raise _failed(
                f"returned a {type(found).__name__} for a text; it must return a text for a text"
            )
        return found

    def answer(self, value: Any) -> Any:
        """Return the JSON data of a reply, its texts masked; the same object where none is.

        Numbers are left as they are: they belong to the form of a reply.
        """
        return _Walk(self, numbers=False).value(value)

    def value(self, value: Any) -> Any:
        """Return JSON data, texts and numbers masked; the same object where nothing is."""
        return _Walk(self).value(value)

    def without_secrets(self, value: Any) -> Any:
        """Return JSON data without secrets, the hook not asked."""
        return _Walk(self._bare, numbers=False).value(value)

    def example(self, example: Example) -> Example:
        """Return an example as evaluators and critics may know it; the graph gets it as it is."""
        walk = _Walk(self)
        inputs, outputs = walk.mapping(example.inputs), example.outputs
        if outputs is not None:
            outputs = walk.mapping(outputs)
        metadata = walk.mapping(example.metadata)
        same = inputs is example.inputs and outputs is example.outputs
        if same and metadata is example.metadata:
            return example
        return replace(example, inputs=inputs, outputs=outputs, metadata=metadata)

    def run(self, run: Run) -> Run:
        """Return a run as everybody may know it; its example is `example`'s to mask."""
        walk = _Walk(self)
        plain = _plain(run.outputs)
        outputs = walk.value(plain)
        return replace(
            run,
            # Evaluators get live objects wherever there is nothing to mask in them.
            outputs=run.outputs if outputs is plain else outputs,
            executions=tuple(_execution(e, walk) for e in run.executions),
            error=walk.value(run.error),
            warnings=tuple(map(walk.value, run.warnings)),
        )

    def _masked(self, text: str) -> str:
        if text in self._clean:
            return text
        masked = text if len(text) < _SHORTEST else _without_keys(_without(text, self._secrets))
        if masked != text:
            return masked
        self._room -= len(text) + _PLACE
        if self._room < 0:  # begin again: what comes often is soon known again
            self._clean.clear()
            self._room = _MOST_CLEAN
        self._clean.add(text)
        return text

    def number(self, number: float) -> Any:
        """Return a number as the hook would have it."""
        return number if self.hook is None else self._asked(number)

    def name(self, name: Any) -> Any:
        """Return a key of a mapping without secrets."""
        return self._masked(name) if type(name) is str else name

    def _asked(self, value: Any) -> Any:
        assert self.hook is not None, "asked only where there is one"
        try:
            found = self.hook(value)
        except Exception as error:
            # Without the exception's words: they may be what had to be masked.
            raise _failed(
                f"raised {type(error).__name__}; nothing is stored, shown or sent without it"
            ) from None
        if found is not None and not isinstance(found, str | int | float):
            raise _failed(
                f"returned a {type(found).__name__}; it must return a text for a text, and a "
                "number, a text or None for a number"
            )
        return found


def _failed(what: str) -> RedactionError:
    """Return the error for a hook that `what`: its code is part of the run, so no `resume`."""
    return RedactionError(
        f"The redaction hook {what}. Mend it and fork the run, which keeps what was paid for: "
        "`lg-textgrad optimize --fork RUN_DIR --out NEW`, in Python "
        "Store(new).take_over(Store(old)). A run that had not begun is started again."
    )


class _Walk:
    """Goes through values; what several of them share is looked at once."""

    def __init__(self, redaction: Redaction, *, numbers: bool = True) -> None:
        self._redaction = redaction
        self._as_they_are = redaction.as_they_are
        self._numbers = numbers
        self._known: dict[int, tuple[Any, Any]] = {}

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return value if value in self._as_they_are else self._redaction.text(value)
        if kind is int or kind is float:
            return self._redaction.number(value) if self._numbers else value
        if value is None or kind is bool:
            return value
        found = self._known.get(id(value))
        if found is not None:
            return found[1]
        if kind is dict:
            masked = self._mapping(value)
        elif kind is list or kind is tuple:
            masked = self._sequence(value)
        else:
            masked = self._unusual(value)
        self._known[id(value)] = value, masked  # held, so that its id stays its own
        return masked

    def mapping(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a mapping masked; the same object where nothing in it is."""
        given = dict(value)
        masked: dict[str, Any] = self.value(given)
        return value if masked is given else masked

    def _unusual(self, value: Any) -> Any:
        """Return a message, or whatever else is no JSON data, as it is, or masked as such data."""
        plain = _plain(value)
        # Subclasses of text and numbers stay what they are on the way to JSON data.
        for kind in (str, int, float):
            if isinstance(plain, kind) and type(plain) is not bool:
                plain = kind(plain)
        masked = self.value(plain)
        return value if masked is plain else masked

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        # Most are texts that were seen before, and a call for each is what a reply would cost.
        name, known, again = self._redaction.name, self._as_they_are, {}
        same = True
        for key, part in value.items():
            shown = key if key in known else name(key)
            masked = part if type(part) is str and part in known else self.value(part)
            same = same and shown is key and masked is part
            again[shown] = masked
        return value if same else again

    def _sequence(self, value: Any) -> Any:
        items = [self.value(part) for part in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return items if type(value) is list else tuple(items)


def _plain(outputs: Any) -> Any:
    """Return outputs as JSON data; of a value that cannot be shown, the name of its type."""
    try:
        return to_plain(outputs)
    except Exception:  # a repr of the user's that raises; the recording has a warning of it
        if type(outputs) is not dict:
            return f"<{type(outputs).__name__}>"
        return {str(key): _plain(value) for key, value in outputs.items()}


def _execution(execution: Execution, walk: _Walk) -> Execution:
    """Return an execution without what nobody may know; prompts are not a run's own words."""
    value = walk.value
    return replace(
        execution,
        inputs=value(execution.inputs),
        writes=tuple((channel, value(written)) for channel, written in execution.writes),
        model_calls=tuple(
            replace(
                call,
                messages=value(call.messages),
                output=value(call.output),
                error=value(call.error),
            )
            for call in execution.model_calls
        ),
        tool_calls=tuple(
            replace(
                call,
                inputs=value(call.inputs),
                output=value(call.output),
                error=value(call.error),
            )
            for call in execution.tool_calls
        ),
        error=value(execution.error),
        interrupts=value(execution.interrupts),
    )
