"""The sessions of one run, and runs that take over from another."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from lg_textgrad.errors import ConfigurationError
from lg_textgrad.loading import Config
from lg_textgrad.store import FILE_NAME, Salvaged, Store, is_url, without_password


def resumable(run_dir: str) -> bool:
    """Whether there may be a run to go on with."""
    return is_url(run_dir) or (Path(run_dir) / FILE_NAME).is_file()


def settings_of(run_dir: str) -> Config:
    """Return the configuration that the run was started with.

    Raises `ConfigurationError` when there is none to go on with, `StoreError` where no run is.
    """
    with Store(run_dir, read_only=True) as store:
        kept, begun = store.get_meta("command"), store.get_meta("configuration") is not None
        where = store.where
    if not begun and kept is None:  # else its calls before the first run are kept
        raise ConfigurationError(
            f"There is nothing to go on with in '{where}': its run stopped before the first call, "
            "or what says how it was made was lost with damage. Start it with `lg-textgrad "
            "optimize`, into the same --out: what is there is not paid for again."
        )
    if kept is None:
        raise ConfigurationError(
            f"The run in '{where}' was not started by `lg-textgrad optimize`; call the same "
            "Trainer.fit again to go on."
        )
    known = {f.name for f in fields(Config)}
    return Config(**{name: value for name, value in kept.items() if name in known})


def fork(old: str, new: str) -> int:
    """Copy what the old run paid for into the new one, before it starts; return how many replies.

    Interrupted, it is done again. Raises `ConfigurationError` when the new run has begun without.
    """
    shown = without_password(old), without_password(new)
    if shown[0] == shown[1] or (not is_url(new) and Path(new).absolute() == Path(old).absolute()):
        raise ConfigurationError("A run cannot be forked into itself; give another --out.")
    with Store(old, read_only=True) as source, Store(new) as target:
        if target.get_meta("forked_from") == source.where:
            return 0
        if target.get_meta("configuration") is not None:
            raise ConfigurationError(
                f"There is a run in '{target.where}' already; give the fork an --out of its own."
            )
        taken = target.take_over(source)
        target.put_meta("forked_from", source.where)
    return taken


def salvage(run_dir: str) -> Salvaged:
    """Save the good part of a damaged run directory."""
    return Store.salvage(run_dir)
