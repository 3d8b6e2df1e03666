"""Examples from dicts and JSONL files, prompts from TOML files."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lg_textgrad._hashing import digest
from lg_textgrad.errors import ConfigurationError, DataError
from lg_textgrad.run import Example

_UTF_8 = "utf-8-sig"
"""Of files that people write: some editors put a byte-order mark at the beginning."""


def example_from(row: Any, where: str, place: str = "") -> Example:
    """Return one row as an Example. `where` names it in errors: `data/train.jsonl, line 17`.

    `place` is kept with a row that has no id of its own.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"In {where}: a row must be an object with 'inputs', not {kind_of(row)}.")
    if not isinstance(row.get("inputs"), Mapping):
        raise DataError(
            f"In {where}: 'inputs' must be an object with the graph's input, "
            f"but {'it is missing' if 'inputs' not in row else 'it is ' + kind_of(row['inputs'])}."
        )
    for name in ("outputs", "metadata"):
        if row.get(name) is not None and not isinstance(row[name], Mapping):
            raise DataError(f"In {where}: '{name}' must be an object, not {kind_of(row[name])}.")
    return Example(
        id=str(row.get("id") or digest(row["inputs"], row.get("outputs"))[:12]),
        inputs=dict(row["inputs"]),
        outputs=None if row.get("outputs") is None else dict(row["outputs"]),
        metadata=dict(row.get("metadata") or {}),
        place="" if row.get("id") else place,
    )


def read_examples(path: str | Path) -> list[Example]:
    """Return the examples of a JSONL file, one object a line; empty lines don't count.

    Raises `DataError` with the file and the line for what is no such row.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding=_UTF_8)
    except FileNotFoundError:
        raise DataError(f"There is no data file '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The data file '{path}' cannot be read: {error}.") from None
    examples: list[Example] = []
    lines: list[int] = []
    # Not splitlines(): JSON strings may have U+2028 and its like in them as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"In {where}: this is not JSON ({error.msg} at column {error.colno}); "
                "each line must be one JSON object."
            ) from None
        examples.append(example_from(row, where, f"{path.name}, line {number}"))
        lines.append(number)
    if not examples:
        raise DataError(f"The data file '{path}' has no examples.")
    return unique(examples, f"'{path}'", [f"line {number}" for number in lines])


def unique(
    examples: Sequence[Example], where: str, places: Sequence[str] | None = None
) -> list[Example]:
    """Return the examples; raise `DataError` when two have the same id.

    `places` says where in `where` each stands; without it, that is its number.
    """
    seen: dict[str, int] = {}
    for number, example in enumerate(examples):
        first = seen.setdefault(example.id, number)
        if first != number:
            one, two = (places[i] if places else f"number {i + 1}" for i in (first, number))
            raise DataError(
                f"In {where}, {one} and {two}: two examples have the id '{example.id}' (rows "
                "without an id take one from what they hold); give each its own id, or remove "
                "the copy."
            )
    return list(examples)


def read_prompts(path: str | Path) -> dict[str, str]:
    """Return parameter -> text of a prompts file, which has a `[prompts]` table of name = "text".

    `lg-textgrad export` writes such files. Raises `ConfigurationError` for a file of another form,
    or one that cannot be read.
    """
    document = read_toml(Path(path), "prompts file")
    prompts = document.get("prompts")
    if not isinstance(prompts, dict) or not all(isinstance(t, str) for t in prompts.values()):
        raise ConfigurationError(
            f"The prompts file '{path}' needs a table [prompts] of name = \"text\"."
        )
    # In a block of lines the break before the closing quotes is layout, not text.
    return {name: text.removesuffix("\n") for name, text in prompts.items()}


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return what a TOML file holds. `what` names its kind in errors, all `ConfigurationError`s."""
    try:
        return tomllib.loads(path.read_text(encoding=_UTF_8))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no {what} '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The {what} '{path}' cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The {what} '{path}' is not valid TOML: {error}.") from None


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterable[list[Example]]:
    """Yield batches forever, each pass in an order of its own that the seed decides."""
    generator = random.Random(seed)
    pool: list[Example] = []
    while True:
        while len(pool) < min(size, len(examples)):
            again = list(examples)
            generator.shuffle(again)
            # What is left of the last pass comes last in this one, so no batch has it twice.
            left = {e.id for e in pool}
            pool.extend(sorted(again, key=lambda e: e.id in left))
        yield pool[:size]
        pool = pool[size:]


def kind_of(value: Any) -> str:
    """Return what a JSON value is, with its article: `a string`, `null`."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
