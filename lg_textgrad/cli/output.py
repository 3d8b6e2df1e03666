"""Standard output belongs to the command: what it was asked for, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t\r"}
"""Control characters -> what stands for them: ESC begins commands to the terminal."""
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HARMLESS = _PICTURES | dict.fromkeys((*range(0x7F, 0xA0), *_TURNING), "\ufffd")


class Screen(Console):
    """Prints for people. What a run, a model or an error said moves no cursor and hides nothing."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(_HARMLESS), **options)


@contextmanager
def own_output() -> Iterator[TextIO]:
    """Yield standard output; what the user's graph prints meanwhile goes to standard error."""
    own = sys.stdout
    with redirect_stdout(sys.stderr):
        yield own


def write(options: Namespace, text: str) -> None:
    """Write a text to standard output, and none of it once nobody reads on, as after `| head`."""
    try:
        options.output.write(text)
        options.output.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), options.output.fileno())


def write_json(options: Namespace, document: Any, *, indent: int | None = 2) -> None:
    """Write JSON data, for machines."""
    write(options, json.dumps(document, ensure_ascii=False, indent=indent) + "\n")


def console(options: Namespace) -> Console:
    """Return what prints on standard output, for people."""
    return Screen(file=options.output)
