"""What may be shown or stored about a server: addresses and parameters without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import SecretBytes, SecretStr

from lg_textgrad._hashing import to_plain
from lg_textgrad.redaction import brief, scrub, secrets_in

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SECRET_NAME = re.compile(
    r"(^|[_-])(api_?)?keys?$|(^|[_-])token$|secret|passw|credential|authorization|bearer|headers?$",
    re.IGNORECASE,
)

__all__ = ["brief", "is_loopback", "normalised_url", "public", "scrub", "secrets_of", "shown_url"]


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of the variables that are named like secrets."""
    return tuple(secrets_in(environment).values())


def public(value: Any, secrets: Sequence[str] = ()) -> Any:
    """Return `value` as plain JSON data, without the secrets and entries that are named so."""
    if isinstance(value, str):
        return scrub(value, secrets)
    if isinstance(value, Mapping):
        return {
            str(name): public(item, secrets)
            for name, item in value.items()
            if not _SECRET_NAME.search(str(name)) and not isinstance(item, SecretStr | SecretBytes)
        }
    if isinstance(value, list | tuple):
        return [
            public(item, secrets) for item in value if not isinstance(item, SecretStr | SecretBytes)
        ]
    return to_plain(value)


def is_loopback(url: str) -> bool:
    """Return whether `url` leads to this machine."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def shown_url(url: str) -> str:
    """Return `url` for people: no user name, password or query, where keys travel too."""
    parts = urlsplit(url)
    return _unsplit(parts, parts.hostname or "", parts.port)


def normalised_url(url: str) -> str:
    """Return the one form of `url` that identifies a server, across restarts too.

    A server on loopback gets whichever port is free, so its port says nothing about it.
    """
    parts = urlsplit(url)
    if is_loopback(url):
        return _unsplit(parts, "localhost", None)
    port = None if parts.port == _DEFAULT_PORTS.get(parts.scheme) else parts.port
    return _unsplit(parts, parts.hostname or "", port)


def _unsplit(parts: SplitResult, host: str, port: int | None) -> str:
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc = f"{netloc}:{port}"
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
