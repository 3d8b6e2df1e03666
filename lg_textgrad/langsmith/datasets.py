"""LangSmith datasets as examples: one version, its splits as train, val and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from langsmith import Client

from lg_textgrad._hashing import digest, to_plain
from lg_textgrad.errors import ConfigurationError, DataError
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.run import Example

PARTS = ("train", "val", "test")
_USUAL = {"train": ("train", "training"), "val": ("val", "validation", "dev"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One version of a dataset."""

    id: str
    name: str
    as_of: str
    """The version's time, which reads the same examples whatever happens to the dataset."""
    examples: Sequence[Example]
    """In the order of their making. `metadata["dataset_split"]` lists the splits of each."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of all splits that an example is in."""
        return tuple(sorted({s for e in self.examples for s in splits_of(e)}))

    def named(self) -> dict[str, str]:
        """Return what it takes to find this version again."""
        return {"id": self.id, "name": self.name, "as_of": self.as_of}


def splits_of(example: Example) -> tuple[str, ...]:
    """Return the splits of the dataset that the example is in."""
    return tuple(example.metadata.get("dataset_split") or ())


def read_dataset(langsmith: LangSmith, name: str, version: str | None = None) -> Dataset:
    """Return a dataset by its name or id, as it is now or was at `version`.

    `version` is a tag, or else a time in ISO form. Raises `DataError` for a dataset or a version
    that is not there, and for one without examples; `LangSmithError` when LangSmith can't be asked.
    """

    def find(client: Client) -> Any:
        by_id = _is_uuid(name)
        return client.read_dataset(**{"dataset_id" if by_id else "dataset_name": name})

    found = langsmith.find(find)
    if found is None:
        raise DataError(
            f"LangSmith at {langsmith.url} has no dataset '{name}'; give the name or the id of one "
            "that is in the workspace of the API key."
        )
    tag, time = version or "latest", _time(version)
    at = langsmith.find(lambda c: c.read_dataset_version(dataset_id=found.id, tag=tag))
    if at is None and time is not None:  # last, since a tag may look like a time: 20260131
        at = langsmith.find(lambda c: c.read_dataset_version(dataset_id=found.id, as_of=time))
    if at is None:
        raise DataError(
            f"The dataset '{found.name}' has no version '{version}'; give a tag that it has, or a "
            "time after it was made, such as 2026-01-31T00:00:00Z."
        )
    rows = langsmith.call(lambda c: list(c.list_examples(dataset_id=found.id, as_of=at.as_of)))
    rows.sort(key=lambda row: (row.created_at, str(row.id)))
    if not rows:
        raise DataError(f"The dataset '{found.name}' has no examples at {at.as_of.isoformat()}.")
    examples = [
        Example(
            id=str(row.id),
            inputs=to_plain(row.inputs or {}),
            outputs=None if row.outputs is None else to_plain(row.outputs),
            metadata=to_plain(row.metadata or {}),
        )
        for row in rows
    ]
    return Dataset(str(found.id), found.name, at.as_of.isoformat(), examples)


def divide(dataset: Dataset, spec: str | None = None) -> dict[str, list[Example]]:
    """Return `train`, `val` and `test`; a part that nobody asked for is empty.

    `spec` names the splits, `train=easy+hard,val=held-out`, or gives shares in percent,
    `60/20/20`: which example is where then hangs on its id alone, so that it stays there when the
    dataset grows. Without it splits count by their usual names. Raises `ConfigurationError` for a
    spec that doesn't fit, and for an example that is in two parts.
    """
    if spec and set(spec) <= set("0123456789/. "):
        return _by_share(dataset, spec)
    named = _named(dataset, spec) if spec else _usual(dataset)
    parts: dict[str, list[Example]] = {part: [] for part in PARTS}
    for example in dataset.examples:
        inside = [p for p in PARTS if set(named.get(p, ())) & set(splits_of(example))]
        if len(inside) > 1:
            raise ConfigurationError(
                f"The example '{example.id}' of the dataset '{dataset.name}' is in "
                f"{inside[0]} and in {inside[1]}; take it out of one of the splits."
            )
        for part in inside:
            parts[part].append(example)
    return parts


def _named(dataset: Dataset, spec: str) -> dict[str, tuple[str, ...]]:
    named: dict[str, tuple[str, ...]] = {}
    for piece in spec.split(","):
        part, equals, names = (text.strip() for text in piece.partition("="))
        if part not in PARTS or not equals or not names or part in named:
            raise ConfigurationError(
                f"The splits '{spec}' make no sense at '{piece.strip()}'; write them like "
                "train=easy+hard,val=held-out or as shares like 60/20/20."
            )
        named[part] = tuple(name.strip() for name in names.split("+"))
    unknown = [n for names in named.values() for n in names if n not in dataset.splits]
    if unknown:
        raise _no_split(dataset, f"has no split '{unknown[0]}'")
    return named


def _usual(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    named = {
        part: tuple(n for n in names if n in dataset.splits) for part, names in _USUAL.items()
    }
    if not named["train"] or not named["val"]:
        missing = "train" if not named["train"] else "val"
        raise _no_split(dataset, f"has no split that is called '{missing}'")
    return named


def _no_split(dataset: Dataset, what: str) -> ConfigurationError:
    has = ", ".join(f"'{name}'" for name in dataset.splits) or "none"
    return ConfigurationError(
        f"The dataset '{dataset.name}' {what}; it has {has}. Say which is which, for instance with "
        "--dataset-splits train=base,val=held-out, or divide it: --dataset-splits 60/20/20."
    )


def _by_share(dataset: Dataset, spec: str) -> dict[str, list[Example]]:
    try:
        shares = [float(share) for share in spec.split("/")]
    except ValueError:
        shares = []
    if not 2 <= len(shares) <= 3 or any(s <= 0 for s in shares) or abs(sum(shares) - 100) > 1e-6:
        raise ConfigurationError(
            f"The shares '{spec}' make no sense; give two or three that add up to 100, for train, "
            "val and test: 60/20/20."
        )
    parts: dict[str, list[Example]] = {part: [] for part in PARTS}
    for example in dataset.examples:
        place = int(digest("share", example.id)[:8], 16) / 2**32 * 100
        for part, share in zip(PARTS, shares, strict=False):
            if place < share or part == PARTS[len(shares) - 1]:
                parts[part].append(example)
                break
            place -= share
    for part in PARTS[: len(shares)]:
        if not parts[part]:
            raise ConfigurationError(
                f"No example of the dataset '{dataset.name}' ({len(dataset.examples)} in all) "
                f"falls into {part}; give it a larger share, or name splits."
            )
    return parts


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _time(text: str | None) -> datetime | None:
    """Return the time that `text` is; None for a tag."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
