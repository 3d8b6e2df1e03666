"""Where the words of a proposed line come from: from those who decide what prompts say, or not."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lg_textgrad._hashing import to_plain
from lg_textgrad.critics.showing import in_prompt
from lg_textgrad.guards import strings, visible, words
from lg_textgrad.objective import Scored
from lg_textgrad.symptoms import symptoms_of

_QUOTED = re.compile(r"(?<![\w])['\"“‘«](.{3,80}?)['\"”’»](?!\w)")
_IN_LINE = re.compile(_QUOTED.pattern.replace("{3,80}", "{1,80}"))
_OVER_LINES = re.compile(_QUOTED.pattern, re.DOTALL)
_MOST = 0.6
"""Share of words that may come from one run's texts and from nowhere else."""
_FEW = 4
"""So few words are no copy."""


class Provenance:
    """Knows the words of trusted texts, and those that single runs brought in.

    Trusted are prompts and roles, reference outputs and evaluators' comments: the user wrote them.
    What runs were given, what came back from tools and models, what code wrote and errors said is
    not, nor what a comment repeats of its own run.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted: set[str] = set()
        self._texts: list[str] = []
        self._seen: set[tuple[str, str, str]] = set()
        self._examples: dict[str, set[str]] = {}
        """Word -> the examples in whose runs it was said."""
        for text in trusted:
            self.trust(text)

    def trust(self, text: str) -> None:
        """Take a text that the user wrote, or had written."""
        if text not in self._texts:
            self._texts.append(text)
            self._trusted.update(_stem(w) for w in words(text))

    def see(self, scored: Scored) -> None:
        """Take what one run was given, what it said, and what evaluators said of it.

        To see a run again changes nothing and costs nothing.
        """
        run = scored.run
        key = run.example.id, run.id, scored.text
        if key in self._seen:
            return
        self._seen.add(key)
        # Code hands on what it fetched, and errors repeat what a server replied.
        said = list(strings([run.example.inputs, to_plain(run.outputs), run.error]))
        for execution in run.executions:
            said += strings([execution.error, [value for _, value in execution.writes]])
            for call in execution.model_calls:
                said += strings([m.get("content") for m in call.messages if m["role"] != "system"])
                said += strings([in_prompt(execution, call), call.output, call.error])
            for tool in execution.tool_calls:
                said += strings([tool.inputs, tool.output, tool.error])
            for symptom in symptoms_of(execution):
                self._trusted.update(_stem(w) for w in words(symptom.rule))  # it is ours
        stems = {_stem(w) for text in said for w in words(text)}
        for word in stems:
            self._examples.setdefault(word, set()).add(run.example.id)
        everything = "\n".join(said).lower()
        for feedback in scored.feedback if run.error is None else ():
            own = {_stem(w) for w in words(feedback.comment)}
            self._trusted |= own - stems
            for span in _QUOTED.findall(feedback.comment):
                if span.lower() not in everything and span not in self._texts:
                    self._texts.append(span)

    def objection(self, text: str) -> str | None:
        """Return why lines cannot be the user's, or what follows from it; None where they can.

        A word in capitals, with digits, or in quotation marks is a demand for just that word: it
        must come from a trusted text, unless no run said it either. A line most of whose words were
        said in one run and are in no trusted text is a copy; so are neighbouring lines that are too
        short to tell each by itself.
        """
        for span in _quoted(text):
            known = any(span.lower() in each.lower() for each in self._texts)
            if not known and self._strange(span):
                return f"demands {span!r}, which only a run's own text says"
        split = visible(text).split("\n")
        lines = [[w for w in re.findall(r"\w+", line) if len(w) > 2] for line in split]
        lines = [found for found in lines if found]
        for word in (word for found in lines for word in found):
            odd = word.isupper() or any(c.isdigit() for c in word)
            if odd and self._strange(word):
                return f"demands {word!r}, which only a run's own text says"
        for first in range(len(lines)):
            found: list[str] = []
            for more in lines[first:]:
                found += more
                if len(found) >= _FEW:
                    break
            strange = [w for w in found if self._strange(w)]
            if len(found) >= _FEW and len(strange) > _MOST * len(found):
                return f"repeats what one run said ({' '.join(strange[:6])!r})"
        return None

    def _strange(self, text: str) -> bool:
        """Return whether no trusted text has all of the words, and some were said in few runs."""
        unknown = [w for w in map(_stem, words(text)) if w not in self._trusted]
        return any(len(self._examples.get(w, ())) == 1 for w in unknown)


def _quoted(text: str) -> list[str]:
    """Return what stands in quotation marks, in one line or over the end of one.

    Marks of one line belong together first: what stands between two quotations is none.
    """
    found = [span for line in text.split("\n") for span in _QUOTED.findall(line)]
    rest = "\n".join(_IN_LINE.sub(" ", line) for line in text.split("\n"))
    return found + [" ".join(span.split()) for span in _OVER_LINES.findall(rest)]


def _stem(word: str) -> str:
    """Return a word without the endings that a rule may change."""
    return word if len(word) < 5 else re.sub(r"(?:ies|es|s|ed|ing|y)$", "", word)
