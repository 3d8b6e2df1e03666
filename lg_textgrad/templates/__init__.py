"""Every critic and rewriter prompt, one .md each, and the loader.

A template is text with `{{slots}}`. Slots are filled in one pass, so user text is never formatted
a second time, and all of them must be given.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

from lg_textgrad._hashing import digest
from lg_textgrad.errors import ConfigurationError

_SLOT = re.compile(r"\{\{([a-z_]+)\}\}")


@lru_cache
def source(name: str) -> str:
    """Return the template's text. Raises `ConfigurationError` when there is none of that name."""
    file = resources.files(__package__).joinpath(f"{name}.md")
    if not file.is_file():
        raise ConfigurationError(f"There is no template '{name}'.")
    return file.read_text(encoding="utf-8").strip()


def fill(name: str, **slots: str) -> str:
    """Return the template with every slot filled.

    Raises `ConfigurationError` for a slot that is missing or unknown.
    """
    text = source(name)
    wanted = set(_SLOT.findall(text))
    if wanted != set(slots):
        off = sorted(wanted ^ set(slots))
        raise ConfigurationError(f"The template '{name}' and its slots disagree about {off}.")
    return _SLOT.sub(lambda match: slots[match[1]], text)


def fingerprint(*names: str) -> dict[str, str]:
    """Return name -> hash of the template's text; a changed template makes another run."""
    return {name: digest("template", source(name))[:16] for name in names}


def again(reason: str) -> dict[str, str]:
    """Return the message that asks once more, saying why the last reply was refused.

    The reason may quote the reply, and that may quote a user, so it is fenced.
    """
    return {"role": "user", "content": fill("again", mark=fence(reason), reason=reason)}


def fence(*values: str) -> str:
    """Return a mark to put around data, which the data cannot contain: a hash of all of it."""
    return "data-" + digest("fence", list(values))[:12]
