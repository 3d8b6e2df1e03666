"""The parser of a command line: what is wrong with one is told by itself, in one sentence."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from lg_textgrad.cli.status import BAD_INPUT


class Line(argparse.ArgumentParser):
    """A parser whose errors stand alone.

    The usage of `optimize` has fifty options, above which nobody finds the one that is wrong.
    """

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(BAD_INPUT, f"Error: {message}{end} See: {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # A command's own parser says it, since that one has the options that were meant.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._of_unknown(unknown))
        return found, unknown

    def _of_unknown(self, unknown: list[str]) -> str:
        options = [given.split("=")[0] for given in unknown if given.startswith("-")]
        if not options:
            return f"there is no place for {unknown[0]!r}"
        near = difflib.get_close_matches(options[0], self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"there is no option {options[0]!r}{hint}"
