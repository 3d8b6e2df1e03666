"""What may be shown, stored or sent on: texts without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SECRET_TEXT = re.compile(r"\bBearer\s+\S+|\b(?:sk|pk|lsv2|gsk|xai)[-_][\w*.-]{6,}", re.IGNORECASE)
_HIDDEN = "[API key]"


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without the secrets, and without anything that looks like an API key."""
    # The longest first: a secret that contains another one must not leave its rest behind.
    for secret in sorted(secrets, key=len, reverse=True):
        # Nobody guards a key of three letters, and replacing those would garble every sentence.
        if len(secret) > 3:
            text = text.replace(secret, _HIDDEN)
    return _SECRET_TEXT.sub(_HIDDEN, text)


def brief(text: str, limit: int = 500) -> str:
    """Return `text` on one line of at most `limit` characters. Scrub first: half a key is one."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
