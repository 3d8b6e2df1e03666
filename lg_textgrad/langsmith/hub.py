"""LangSmith's prompt hub: named prompts with commits, and tags that point at one of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from langsmith import Client
from langsmith.utils import LangSmithConflictError

from lg_textgrad.errors import ConfigurationError, LangSmithError
from lg_textgrad.langsmith.connection import LangSmith, has_secret, scrubbed
from lg_textgrad.langsmith.manifests import Manifest, text_of, with_text

_LONGEST_DESCRIPTION = 1000


@dataclass(frozen=True, slots=True)
class Commit:
    """One version of a prompt."""

    name: str
    hash: str
    manifest: Manifest

    @property
    def text(self) -> str:
        """The text that is tuned. Raises `ParameterError` where the prompt has none."""
        return text_of(self.manifest, self.name)


class Hub:
    """The prompts of one LangSmith workspace."""

    def __init__(self, langsmith: LangSmith) -> None:
        self.langsmith = langsmith

    def pull(self, name: str, version: str = "latest") -> Commit | None:
        """Return a prompt at a tag, a commit's hash, or `latest`; None for what is not there."""
        found = self.langsmith.find(
            lambda c: c.pull_prompt_commit(f"{name}:{version}", skip_cache=True)
        )
        return None if found is None else Commit(name, found.commit_hash, found.manifest)

    def push(
        self,
        name: str,
        text: str,
        placeholders: Collection[str],
        *,
        parent: Commit | None,
        base: Commit | None = None,
        about: str,
        why: str,
    ) -> Commit:
        """Commit a text on top of `parent` and return the commit; the prompt is made if need be.

        What else is in the prompt is that of `base`, by default the latest commit's. Nothing is
        committed where the latest commit is like that already. `about` describes the prompt, `why`
        the commit. Raises `ConfigurationError` when `parent` is not the latest.
        """
        latest = self.pull(name)
        base = base or latest
        manifest = with_text(base.manifest if base else None, text, placeholders, name)
        if (
            latest is not None
            and latest.text == text
            and with_text(latest.manifest, text, placeholders, name) == manifest
        ):
            return latest
        if (latest and latest.hash) != (parent and parent.hash):
            raise moved_on(name, latest, parent)
        if has_secret(text, self.langsmith.secrets):
            raise ConfigurationError(
                f"The text of '{name}' has something in it that looks like an API key, so it is "
                "not put on the hub; take it out of the prompt."
            )
        told = scrubbed(why, self.langsmith.secrets)[:_LONGEST_DESCRIPTION]

        # The SDK asks again where an answer was lost, and then meets what it has made itself.

        def ask(client: Client) -> None:
            if latest is None and client.get_prompt(name) is None:
                with suppress(LangSmithConflictError):
                    client.create_prompt(name, description=about)
            client.create_commit(
                name,
                manifest,
                parent_commit_hash=latest.hash if latest else None,
                description=told,
            )

        try:
            self.langsmith.call(ask)
        except LangSmithError as error:
            if not isinstance(error.__cause__, LangSmithConflictError):
                raise
        made = self.pull(name)
        if made is None or made.text != text:
            raise moved_on(name, made, parent)
        return made

    def tag(self, name: str, tag: str, commit: str) -> None:
        """Make a tag point at the commit with this hash, wherever it pointed before."""
        found = self.langsmith.call(
            lambda c: [e for e in c.list_prompt_commits(name) if e.commit_hash == commit]
        )
        if not found:
            raise LangSmithError(f"The prompt '{name}' has no commit {commit[:8]} any more.")
        body = {"tag_name": tag, "commit_id": str(found[0].id)}
        try:
            self.langsmith.request("POST", f"/repos/-/{name}/tags", json=body)
        except LangSmithError as error:
            if not isinstance(error.__cause__, LangSmithConflictError):
                raise
            moved = {"commit_id": body["commit_id"]}
            self.langsmith.request("PATCH", f"/repos/-/{name}/tags/{tag}", json=moved)

    def until(self, name: str, commit: str | None) -> list[str]:
        """Return the hashes of the commits up to this one, the youngest first."""
        found = self.langsmith.find(lambda c: list(c.list_prompt_commits(name))) or []
        hashes = [str(entry.commit_hash) for entry in found]
        return hashes[hashes.index(commit) :] if commit in hashes else []

    def untag(self, name: str, tag: str) -> None:
        """Take a tag away, if it is there."""
        self.langsmith.find(
            lambda c: c.request_with_retries("DELETE", f"/repos/-/{name}/tags/{tag}")
        )


def moved_on(name: str, now: Commit | None, then: Commit | None) -> ConfigurationError:
    """Return the error for a prompt that somebody else changed meanwhile."""
    is_now = f"at commit {now.hash[:8]}" if now else "gone"
    was = f"commit {then.hash[:8]}" if then else "before it existed"
    return ConfigurationError(
        f"The prompt '{name}' on the hub moved on since the run started: it is {is_now} now, and "
        f"the run started from {was}. Look at what changed there, and start a new run from it."
    )


def hub_names(parameters: Iterable[str], hub: Iterable[str]) -> dict[str, str]:
    """Return parameter -> name of its prompt on the hub.

    `hub` is one prefix, `support`, for prompts like `support-triage`, or `PARAMETER=PROMPT` for
    each parameter that is there. Raises `ConfigurationError` for names that don't fit.
    """
    given = [text.strip() for text in hub]
    known = list(parameters)
    pairs = [text.partition("=") for text in given if "=" in text]
    prefixes = [text for text in given if "=" not in text]
    if len(prefixes) > 1 or (prefixes and pairs):
        raise ConfigurationError(
            "Say where the prompts are with one prefix, --hub support, or with one "
            "--hub PARAMETER=PROMPT for each parameter."
        )
    if prefixes:
        names = {p: handle(f"{prefixes[0]}-{p}") for p in known}
    else:
        names = {p.strip(): n.strip() for p, _, n in pairs}
        unknown = [p for p in names if p not in known]
        if unknown:
            raise ConfigurationError(
                f"There is no parameter '{unknown[0]}' to take from the hub; the graph has "
                f"{', '.join(known) or 'none'}."
            )
    for name in names.values():
        if name != handle(name):
            raise ConfigurationError(
                f"'{name}' is no name of a prompt on the hub: it has small letters, digits, - and "
                "_, and begins with a letter."
            )
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise ConfigurationError(f"Two parameters would be the prompt '{twice[0]}' on the hub.")
    return names


def handle(text: str) -> str:
    """Return `text` as the hub takes names: `sub/Writer` becomes `sub-writer`."""
    plain = re.sub(r"[^a-z0-9_]+", "-", text.lower())
    return re.sub(r"^[^a-z]+|-+$", "", plain) or "prompt"


def describe(scores: Mapping[str, Any], run_dir: str, links: Mapping[str, str]) -> str:
    """Return what a commit says of itself: scores before and after, and the experiment."""
    lines = ["Tuned by lg_textgrad."]
    for split in ("val", "test"):
        before, after = scores["baseline"].get(split), scores["best"].get(split)
        if before is not None and after is not None:
            lines.append(f"{split}: {before:.3f} -> {after:.3f}")
    lines += [f"Experiment: {url}" for url in links.values()]
    lines.append(f"Run: {run_dir}")
    return "\n".join(lines)
