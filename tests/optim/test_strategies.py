"""Advice that is proposed line by line."""

from __future__ import annotations

import pytest

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim import Strategies


def test_one_text_in_place_of_lines_is_refused():
    with pytest.raises(ConfigurationError, match="give a list of lines"):
        Strategies(lines="Think first.")
