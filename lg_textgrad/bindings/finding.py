"""Find the prompts in what recorded executions sent to their models. Pure: nothing is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lg_textgrad.bindings.discovered import Finding, FoundPrompt, texts_of
from lg_textgrad.bindings.moments import with_moments
from lg_textgrad.bindings.skeleton import (
    Skeleton,
    align,
    anywhere,
    from_format,
    from_mustache,
    from_placeholders,
    shown_in,
)
from lg_textgrad.parameter import Parameter
from lg_textgrad.run import Execution

_ENOUGH = 2
"""Words in one stretch that make the constant part of a template worth calling a prompt."""
_ALIKE = 0.5
"""Share of words in common that makes two texts the same template."""
_RUN = 3
"""Words in one stretch that do so for texts which don't come a second time."""


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template that ran in a node, as LangChain's callbacks showed it."""

    node: str
    role: str
    """`system`, `human`, or empty where it makes a bare text."""
    skeleton: Skeleton


@dataclass(frozen=True, slots=True)
class _Sent:
    """One text that one execution sent."""

    text: str
    run: int
    execution: str
    state: Mapping[str, str]
    data: bool
    """Whether the node was given the text as it is: then it is nobody's prompt."""


def find_prompts(
    runs: Sequence[Sequence[Execution]],
    templates: Iterable[Template] = (),
    declared: Mapping[str, Parameter] | None = None,
    top: str | None = None,
    ran: tuple[datetime, datetime] | None = None,
    agents: Mapping[tuple[str, str], str] | None = None,
) -> tuple[list[FoundPrompt], list[Finding]]:
    """Return the prompts that the runs show and what there is to say about each node.

    `declared` are parameters that the nodes read themselves: their texts are not found again. `top`
    is the name of the graph, for an agent that is all of it. `ran` is when the runs began and
    ended: dates and times between in a prompt are variables, though all runs had the same.
    `agents` says of node and system message which agent it was: those that the same code of a node
    calls have one path.
    """
    declared = declared or {}
    templates = sorted(set(templates), key=lambda t: -sum(map(len, t.skeleton.constants)))
    nodes = list(dict.fromkeys(e.path for run in runs for e in run if e.model_calls))
    names = names_of(nodes, top)
    found: list[FoundPrompt] = []
    findings: list[Finding] = []
    taken = set(declared)
    for node in nodes:
        here = [(n, e) for n, run in enumerate(runs) for e in run if e.path == node]
        system, covered = _uncovered(_sent(here, "system"), here, declared)
        findings.extend(
            Finding(node, name, "read by the node itself", declared[name].value)
            for name in covered
        )
        prompts = [
            (agent, *one)
            for agent, said in _by_agent(system, node, agents or {}).items()
            for one in _prompts(said, [t for t in templates if t.role != "human"], node)
        ]
        user = not system and not covered
        if user:
            first, covered = _uncovered(_sent(here, "human"), here, declared)
            said = [s for s in first if not s.data]
            prompts = [
                ("", skeleton, "found in the user message", worth)
                for skeleton, _, worth in _prompts(
                    said, [t for t in templates if t.role != "system"], node
                )
                if worth and (skeleton.names or len({s.run for s in said}) > 1)
            ]
            if not prompts and not covered:
                why = "it sends no system message, and no user message with a constant part"
                findings.append(Finding(node, None, why))
        texts = [one.text for one in _sent(here, "human" if user else "system")]
        for agent, made, kind, worth in prompts:
            if not worth:
                why = "the system message differs from run to run and has no constant part"
                findings.append(Finding(node, None, why, made.text))
                continue
            skeleton = with_moments(made, texts, *ran) if ran is not None else made
            how = f"{kind}, with variables" if skeleton.names and not made.names else kind
            own = f"{node.rpartition('/')[0]}/{agent}".lstrip("/") if agent else names[node]
            name = _free(own, taken)
            taken.add(name)
            found.append(FoundPrompt(name, node, skeleton, how, user))
            findings.append(Finding(node, name, how, skeleton.text))
    return found, findings


def _by_agent(
    sent: Sequence[_Sent], node: str, agents: Mapping[tuple[str, str], str]
) -> dict[str, list[_Sent]]:
    """Return the texts by the agent that sent them; all under "" where it was always the same."""
    groups: dict[str, list[_Sent]] = {}
    for one in sent:
        groups.setdefault(agents.get((node, one.text), ""), []).append(one)
    return groups if len(groups) > 1 else {"": list(sent)}


def _sent(here: Sequence[tuple[int, Execution]], role: str) -> list[_Sent]:
    found = []
    for run, execution in here:
        given = set(_strings(execution.inputs))
        for call in execution.model_calls:
            messages = [m for m in call.messages if m["role"] == role]
            for message in messages[:1] if role == "human" else messages:
                for text in texts_of(message["content"]):
                    if text.strip():
                        data = text.strip() in given
                        state = shown_in(text, execution.inputs)
                        found.append(_Sent(text, run, execution.id, state, data))
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _uncovered(
    sent: Sequence[_Sent],
    here: Sequence[tuple[int, Execution]],
    declared: Mapping[str, Parameter],
) -> tuple[list[_Sent], list[str]]:
    """Return the texts without those that the node got from a parameter, and the parameters."""
    read: dict[tuple[int, str], dict[str, Skeleton]] = {}
    for run, execution in here:
        read[run, execution.id] = {
            name: anywhere(from_placeholders(text, declared[name].placeholders))
            for name, text in execution.prompts.items()
            if name in declared and text
        }
    left, covered = [], dict[str, None]()
    for one in sent:
        by = [n for n, s in read[one.run, one.execution].items() if s.match(one.text) is not None]
        covered.update(dict.fromkeys(by))
        if not by:
            left.append(one)
    return left, list(covered)


def _prompts(
    sent: Sequence[_Sent], templates: Sequence[Template], node: str
) -> Iterator[tuple[Skeleton, str, bool]]:
    """Yield the skeletons in the order in which they first appear, and whether each is a prompt."""
    groups: dict[Skeleton | int, list[_Sent]] = {}
    rest = []
    order = {text: n for n, text in enumerate(dict.fromkeys(s.text for s in sent))}
    for one in sent:
        made = [
            t
            for t in templates
            if t.skeleton.longest >= _ENOUGH and t.skeleton.match(one.text) is not None
        ]
        made.sort(key=lambda t: t.node != node)
        if made:
            groups.setdefault(made[0].skeleton, []).append(one)
        else:
            rest.append(one)
    groups.update(enumerate(_groups(rest)))
    for key in sorted(groups, key=lambda k: min(order[s.text] for s in groups[k])):
        if isinstance(key, Skeleton):
            yield key, "found in the system message, a prompt template", True
        else:
            skeleton = align((s.text, s.state) for s in groups[key])
            kind = ", with variables" if skeleton.names else ""
            worth = skeleton.longest >= _ENOUGH or not skeleton.names
            yield skeleton, f"found in the system message{kind}", worth


def _groups(sent: Sequence[_Sent]) -> list[list[_Sent]]:
    """Return the texts in groups, each made from one template."""
    by_execution: dict[tuple[int, str], list[_Sent]] = {}
    for one in sent:
        seen = by_execution.setdefault((one.run, one.execution), [])
        if all(one.text != other.text for other in seen):
            seen.append(one)
    times = Counter(one.text for seen in by_execution.values() for one in seen)
    # What every execution sends is constant, whatever else is like it.
    always = [t for t, n in times.items() if n == len(by_execution) > 1]
    rest = [[one for one in seen if one.text not in always] for seen in by_execution.values()]
    grouped = [[one for one in sent if one.text == text] for text in always]
    same_length = len({len(seen) for seen in rest}) == 1
    columns = [list(column) for column in zip(*rest, strict=True)] if same_length else [
        [one for seen in rest for one in seen]
    ]
    varying: list[list[_Sent]] = []
    for column in columns:
        own: list[list[_Sent]] = []
        for one in column:
            for group in own:
                if _alike(one, group[0], times):
                    group.append(one)
                    break
            else:
                own.append([one])
        varying.extend(own)
    return grouped + _merged(varying)


def _alike(one: _Sent, other: _Sent, times: Mapping[str, int]) -> bool:
    if one.text == other.text:
        return True
    skeleton = align([(one.text, one.state), (other.text, other.state)])
    if all(_from_state(skeleton, sent) for sent in (one, other)):
        return True
    total = len(re.findall(r"\w+", one.text)) + len(re.findall(r"\w+", other.text))
    if 2 * skeleton.words >= _ALIKE * total:
        return True
    return times[one.text] == times[other.text] == 1 and skeleton.longest >= _RUN


def _from_state(skeleton: Skeleton, sent: _Sent) -> bool:
    """Return whether all that varies in the text is what the node was given."""
    variables = skeleton.match(sent.text)
    return bool(variables) and all(sent.state.get(n) == v for n, v in (variables or {}).items())


def _merged(groups: Sequence[list[_Sent]]) -> list[list[_Sent]]:
    """Join the groups whose texts one template could have made: a node that calls in a loop."""
    joined: list[list[_Sent]] = []
    for group in groups:
        for other in joined:
            made = align((s.text, s.state) for s in other)
            own = align((s.text, s.state) for s in group)
            if all(made.match(s.text) is not None for s in group) or all(
                own.match(s.text) is not None for s in other
            ):
                other.extend(group)
                break
        else:
            joined.append(list(group))
    return joined


def names_of(nodes: Sequence[str], top: str | None) -> dict[str, str]:
    """Return a readable name for each node: an agent's own, not that of the node inside it."""
    short = {}
    for node in nodes:
        *outer, last = node.split("/")
        agent = "/".join(outer) or (top or "")
        short[node] = agent if agent and last in ("model", "agent") else node
    return {n: s if list(short.values()).count(s) == 1 else n for n, s in short.items()}


def _free(name: str, taken: set[str]) -> str:
    number = 1
    while (new := name if number == 1 else f"{name} {number}") in taken:
        number += 1
    return new


def templates_in(serialized: Any, node: str) -> list[Template]:
    """Return the templates in the serialized form of a LangChain prompt."""
    return list(_templates(serialized, node, ""))


def _templates(part: Any, node: str, role: str) -> Iterator[Template]:
    if isinstance(part, list):
        for inner in part:
            yield from _templates(inner, node, role)
    if not isinstance(part, Mapping):
        return
    kind = str((part.get("id") or [""])[-1])
    role = {"SystemMessagePromptTemplate": "system", "HumanMessagePromptTemplate": "human"}.get(
        kind, role
    )
    given = part.get("kwargs") or {}
    text, syntax = given.get("template"), given.get("template_format", "f-string")
    read = {"f-string": from_format, "mustache": from_mustache}.get(syntax)
    if isinstance(text, str) and read is not None:
        skeleton = read(text)
        if skeleton is not None:
            yield Template(node, role, skeleton)
    for inner in (given.get("messages"), given.get("prompt")):
        yield from _templates(inner, node, role)
