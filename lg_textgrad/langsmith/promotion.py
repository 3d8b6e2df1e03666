"""From the hub into a run, and from the run back to the hub: candidate, production, and back again.

What a run began with is kept in its store, so that nothing is promoted over what somebody else did
in the meantime, and a promotion can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg_textgrad.errors import ConfigurationError, ParameterError, RunMismatchError
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.langsmith.hub import Commit, Hub, describe, hub_names, moved_on
from lg_textgrad.langsmith.manifests import variables_of
from lg_textgrad.parameter import find_placeholders
from lg_textgrad.store import Store

CANDIDATE = "candidate"
"""The tag of what a run has accepted, until a person promotes it."""
_META = "hub"
_WATCHED = ("production", "staging")
"""Tags whose place at the start is noted; of others only what was committed later is a surprise."""


@dataclass(frozen=True, slots=True)
class Change:
    """One prompt's step from one commit to another, not yet made."""

    parameter: str
    prompt: str
    before: str | None
    """The text that the tag points at; None where there is no such tag."""
    after: str | None
    """The text that it will point at; None where the tag goes away."""
    commit_before: str | None
    commit_after: str | None


def begin(
    store: Store, hub: Hub, graph: TrainableGraph, where: Iterable[str], version: str = "latest"
) -> dict[str, Any]:
    """Put the hub's prompts into the graph's parameters; return which commits they are.

    `where` is a prefix or `PARAMETER=PROMPT`s, `version` a tag or `latest`. A prompt that isn't on
    the hub yet keeps the text that the graph has. What is returned is for `keep_hub`, once the run
    has begun. Raises `ParameterError` for a text that doesn't fit the parameter, and
    `ConfigurationError` where none of them is there and a tag was asked for.
    """
    if store.get_meta("configuration") is not None:
        raise RunMismatchError(
            f"The run in '{store.where}' was started without --hub; leave it out to go on, or "
            "start a new run with another --out."
        )
    rows: dict[str, Any] = {}
    for parameter, prompt in hub_names(graph.parameters, where).items():
        latest = hub.pull(prompt)
        at = latest if version == "latest" else hub.pull(prompt, version) if latest else None
        if latest is not None and at is None:
            raise ConfigurationError(
                f"The prompt '{prompt}' on the hub has no tag '{version}'; give a tag that it has, "
                "or begin from the latest commit."
            )
        text = None if at is None else at.text
        if at is not None:
            _check(graph, parameter, at)
        rows[parameter] = {
            "prompt": prompt,
            "pulled": text,
            "commit": _hash(at),
            "latest": _hash(latest),
            "tags": {tag: _hash(hub.pull(prompt, tag) if latest else None) for tag in _WATCHED},
            "placeholders": list(graph.parameters[parameter].placeholders),
            "pushed": None,
            "pushed_text": None,
            "tagged": None,
        }
    if rows and version != "latest" and all(row["commit"] is None for row in rows.values()):
        raise ConfigurationError(
            f"There is no prompt {_listed(rows)} on the hub, so no run can begin from the tag "
            f"'{version}'; correct --hub, or leave --hub-version out to make new ones."
        )
    for parameter, row in rows.items():  # only now, when all of them fit
        if row["pulled"] is not None:
            graph.parameters[parameter].adopt(row["pulled"])
    return {"version": version, "prompts": rows, "promoted": {}}


def said_of(begun: Mapping[str, Any]) -> str:
    """Return, for people, which prompts a run takes from the hub, and which are not there."""
    rows = begun["prompts"].values()
    taken = [f"{row['prompt']} at {row['commit'][:8]}" for row in rows if row["commit"]]
    missing = [row["prompt"] for row in rows if row["commit"] is None]
    parts = [f"from the hub: {', '.join(taken)}"] if taken else []
    parts += [f"not on the hub, so as the graph has them: {', '.join(missing)}"] if missing else []
    return "; ".join(parts)


def _listed(rows: Mapping[str, Any]) -> str:
    return " or ".join(f"'{row['prompt']}'" for row in rows.values())


def go_on(store: Store, graph: TrainableGraph) -> bool:
    """Put the prompts that the run began with into the graph again; False for a run without any."""
    kept = store.get_meta(_META)
    if kept is None:
        return False
    for parameter, row in kept["prompts"].items():
        if row["pulled"] is not None and parameter in graph.parameters:
            graph.parameters[parameter].adopt(row["pulled"])
    return True


def keep_hub(store: Store, begun: Mapping[str, Any]) -> None:
    """Keep what `begin` returned; what is kept already stays."""
    if store.get_meta(_META) is None:
        store.put_meta(_META, dict(begun))


def _check(graph: TrainableGraph, parameter: str, commit: Commit) -> None:
    found, prompt, text = graph.parameters[parameter], commit.name, commit.text
    try:
        found.check(text)
    except ParameterError as error:
        raise ParameterError(
            f"The prompt '{prompt}' on the hub does not fit the parameter '{parameter}': {error}",
            parameter=parameter,
        ) from None
    odd = [p for p in find_placeholders(text) if p not in found.placeholders]
    if not found.placeholders:  # its braces are text, which a variable of the hub's is not
        odd = sorted(variables_of(commit.manifest, prompt))
    if odd:
        raise ParameterError(
            f"The prompt '{prompt}' on the hub has the variable {{{odd[0]}}}, which nothing in the "
            f"graph fills for the parameter '{parameter}'.",
            parameter=parameter,
        )


def push_accepted(store: Store, hub: Hub, links: Mapping[str, str]) -> list[str]:
    """Commit what the run has accepted and tag it `candidate`. Returns the prompts that changed.

    What is there already is not committed again. Raises `ConfigurationError` when a prompt moved
    on since the run started.
    """
    kept = _kept(store)
    result = _result(store)
    about = describe(result, str(store.where or "in memory"), links)
    for parameter, row in kept["prompts"].items():  # all of them or none: they belong together
        text = result["parameters"][parameter]["after"]
        if _waits(row, text):
            latest, parent = hub.pull(row["prompt"]), row["pushed"] or row["latest"]
            if _hash(latest) != parent and (latest is None or latest.text != text):
                raise moved_on(row["prompt"], latest, _commit(hub, row["prompt"], parent))
    pushed = []
    for parameter, row in kept["prompts"].items():
        text = result["parameters"][parameter]["after"]
        if _waits(row, text):
            parent = _commit(hub, row["prompt"], row["pushed"] or row["latest"])
            # A tag may be older than the latest commit, whose other parts nobody has released.
            base = _commit(hub, row["prompt"], row["commit"])
            made = hub.push(
                row["prompt"], text, row["placeholders"], parent=parent, base=base,
                about=f"The prompt of '{parameter}'.", why=about,
            )  # fmt: skip
            row |= {"pushed": made.hash, "pushed_text": text}
            store.put_meta(_META, kept)
        target = _target(row, text)
        if target is not None and row.get("tagged") != target:
            at = hub.pull(row["prompt"], CANDIDATE)
            if at is None or at.hash != target:
                hub.tag(row["prompt"], CANDIDATE, target)
            row["tagged"] = target
            store.put_meta(_META, kept)
        if text != row["pulled"]:
            pushed.append(row["prompt"])
    return pushed


def _waits(row: Mapping[str, Any], text: str) -> bool:
    """Return whether an accepted text is not on the hub. A run that went on may have a newer."""
    return text != row["pulled"] and (row["pushed"] is None or row.get("pushed_text", text) != text)


def _target(row: Mapping[str, Any], text: str) -> str | None:
    """Return the commit that has the run's text; None where there is none."""
    found: str | None = row["commit"] if text == row["pulled"] else row["pushed"]
    return found


def plan_promotion(store: Store, hub: Hub, tag: str) -> list[Change]:
    """Return what moving `tag` to the accepted prompts would change; nothing is changed yet.

    Raises `ConfigurationError` when a prompt, or what the tag points at, moved on since the run
    started, when the run's prompts are not on the hub, and when it has not ended.
    """
    kept, result = _kept(store), _result(store)
    changes = []
    for parameter, row in kept["prompts"].items():
        target = _target(row, result["parameters"][parameter]["after"])
        if target is None:
            raise ConfigurationError(
                f"The prompt '{row['prompt']}' is not on the hub: the run accepted no change of "
                f"'{parameter}', and it was not there before."
            )
        latest = hub.pull(row["prompt"])
        if latest is None or latest.hash not in (row["latest"], row["pushed"]):
            raise moved_on(row["prompt"], latest, _commit(hub, row["prompt"], row["latest"]))
        at = hub.pull(row["prompt"], tag)
        ours = kept["promoted"].get(tag, {}).get(parameter)
        expected = [row["pushed"], ours and ours["to"]]
        if tag in row["tags"]:
            then = row["tags"][tag]
            expected.append(then)
        else:
            then = row["latest"]
            expected += [None, *hub.until(row["prompt"], row["latest"])]
        if _hash(at) not in expected:
            raise moved_on(f"{row['prompt']}:{tag}", at, _commit(hub, row["prompt"], then))
        if at is None or at.hash != target:
            after = _need(hub, row["prompt"], target)
            changes.append(
                Change(
                    parameter, row["prompt"], at.text if at else None, after.text,
                    at.hash if at else None, target,
                )
            )  # fmt: skip
    return changes


def promote(store: Store, hub: Hub, tag: str, changes: Sequence[Change]) -> None:
    """Make the changes, and note them so that they can be taken back.

    Raises `ConfigurationError` when they are no longer what `plan_promotion` says.
    """
    _still(changes, plan_promotion(store, hub, tag))
    kept = _kept(store)
    for change in changes:
        assert change.commit_after is not None, "a promotion leads to a commit"
        # Noted first: a tag that is moved by a request whose answer gets lost can be taken back.
        noted = {"from": change.commit_before, "to": change.commit_after}
        kept["promoted"].setdefault(tag, {})[change.parameter] = noted
        store.put_meta(_META, kept)
        hub.tag(change.prompt, tag, change.commit_after)


def plan_rollback(store: Store, hub: Hub, tag: str) -> list[Change]:
    """Return what taking back this run's promotion would change; nothing is changed yet.

    Raises `ConfigurationError` when the run promoted nothing, and when the tag has been moved
    since.
    """
    kept = _kept(store)
    promoted = kept["promoted"].get(tag)
    if not promoted:
        raise ConfigurationError(f"This run has not promoted anything to '{tag}'.")
    changes = []
    for parameter, noted in promoted.items():
        prompt = kept["prompts"][parameter]["prompt"]
        at = hub.pull(prompt, tag)
        if _hash(at) == noted["from"]:
            continue  # an outage came before it was moved
        if at is None or at.hash != noted["to"]:
            raise ConfigurationError(
                f"The tag '{tag}' of the prompt '{prompt}' is "
                f"{'at commit ' + at.hash[:8] if at else 'gone'} now, not where this run put it; "
                "somebody has moved it since, so there is nothing to take back."
            )
        back = _commit(hub, prompt, noted["from"])
        changes.append(
            Change(
                parameter, prompt, at.text, back.text if back else None, at.hash, noted["from"]
            )
        )
    return changes


def rollback(store: Store, hub: Hub, tag: str, changes: Sequence[Change]) -> None:
    """Put the tag back to where it was before the promotion.

    Raises `ConfigurationError` when the changes are no longer what `plan_rollback` says.
    """
    _still(changes, plan_rollback(store, hub, tag))
    kept = _kept(store)
    for change in changes:
        if change.commit_after is None:
            hub.untag(change.prompt, tag)
        else:
            hub.tag(change.prompt, tag, change.commit_after)
        del kept["promoted"][tag][change.parameter]
        store.put_meta(_META, kept)


def _still(shown: Sequence[Change], now: Sequence[Change]) -> None:
    """Raise `ConfigurationError` where the hub changed after somebody was shown what would."""
    if list(shown) != list(now):
        raise ConfigurationError(
            "The prompts on the hub changed after the differences were shown, so nothing was "
            "moved; run the command again and look at them as they are now."
        )


def has_hub(store: Store) -> bool:
    """Return whether the run's prompts are from the hub."""
    return store.get_meta(_META) is not None


def to_push(store: Store) -> bool:
    """Return whether the run accepted something that is not on the hub, and tagged, yet."""
    kept, result = store.get_meta(_META), store.get_meta("result")
    if kept is None or result is None:
        return False
    texts = {name: row["after"] for name, row in result["parameters"].items()}
    return any(
        _waits(row, texts[name]) or row.get("tagged") != _target(row, texts[name])
        for name, row in kept["prompts"].items()
    )


def _hash(commit: Commit | None) -> str | None:
    return None if commit is None else commit.hash


def _kept(store: Store) -> dict[str, Any]:
    kept: dict[str, Any] | None = store.get_meta(_META)
    if kept is None:
        raise ConfigurationError(
            f"The run in '{store.where}' has no prompts on the hub; start it with --hub."
        )
    return kept


def _result(store: Store) -> dict[str, Any]:
    result: dict[str, Any] | None = store.get_meta("result")
    if result is None:
        raise ConfigurationError(
            f"The run in '{store.where}' has not ended; go on with `lg-textgrad resume` first."
        )
    return result


def _commit(hub: Hub, prompt: str, commit: str | None) -> Commit | None:
    return None if commit is None else _need(hub, prompt, commit)


def _need(hub: Hub, prompt: str, commit: str) -> Commit:
    found = hub.pull(prompt, commit)
    if found is None:
        raise ConfigurationError(
            f"The prompt '{prompt}' on the hub has no commit {commit[:8]} any more."
        )
    return found
