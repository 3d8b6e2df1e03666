"""Several optimizers race on validation rows, and what helps is joined."""

from __future__ import annotations

import pytest

import lg_textgrad as tg
from lg_textgrad.data import batches
from lg_textgrad.errors import ConfigurationError
from lg_textgrad.optim import FewShot, Optimizer, OutputRules, Portfolio, Proposal, Strategies
from lg_textgrad.parameter import apply_edits, candidate_of
from tests.optim.router import OBJECTIVE, TEAMS, build, examples, right_team, rows


class Lines(Optimizer):
    """Proposes each of its lines for each parameter that it names."""

    needs_gradients = False

    def __init__(self, **lines):
        super().__init__()
        self.lines = lines

    @property
    def fingerprint(self):
        return {"optimizer": "lines", "lines": self.lines}

    async def aproposals(self):
        now = candidate_of(self.parameters)
        found = []
        for name, lines in self.lines.items():
            for line in lines:
                edit = tg.Edit(name, "add", 1, line)
                text = apply_edits(self.parameters[name].value, [edit])
                found.append(Proposal({**now, name: text}, (edit,), "line"))
        return found


TOPICS = Lines(
    triage=["parcel goes to delivery", "broken goes to repairs", "The sky is blue."],
    answer=["Say Kind regards.", "Say Goodbye."],
)
TRAIN, VAL = rows(words=["shoe", "tent"]), rows(words=["lamp", "rope", "boot", "map"])


def fit(members, *, budget=None, **options):
    events = []
    trainer = tg.Trainer(
        build(), OBJECTIVE, critic=None, optimizer=Portfolio(members=members, **options), budget=budget,
        on_event=lambda kind, data: events.append((kind, data)),
    )  # fmt: skip
    return trainer.fit(TRAIN, VAL), trainer, events


def tried(events, purpose):
    return [d["scored"].run for k, d in events if k == "run" and d["purpose"] == purpose]


def test_lines_of_several_parameters_that_help_are_joined_into_one_candidate():
    result, _, events = fit([TOPICS], rounds=1, heat=4)
    assert result.after["triage"] == "You route.\nparcel goes to delivery\nbroken goes to repairs\nName the team."
    assert result.after["answer"] == "You answer.\nSay Kind regards."
    [decision] = [d for k, d in events if k == "decision"]
    assert decision["accepted"]
    assert len(decision["proposal"].edits) == 3


def test_what_does_not_help_is_out_after_the_first_heat():
    _, trainer, events = fit([TOPICS], rounds=1, heat=4)
    blue = [run for run in tried(events, "race") if "sky" in run.executions[0].prompts["triage"]]
    assert len(blue) == 4
    lost = [a for a in trainer.optimizer.history if a.stage == "race"]
    assert {a.proposal.edits[0].text for a in lost} == {"The sky is blue.", "Say Goodbye."}


def test_winner_pays_only_for_validation_rows_that_it_has_not_run():
    _, trainer, events = fit([Lines(answer=["Say Kind regards."])], rounds=1, heat=4)
    raced = {run.id for run in tried(events, "race")}
    gated = [run for run in tried(events, "val")]
    assert len(gated) == len(VAL)
    assert len([run for run in gated if run.id in raced]) >= 4


def test_rounds_go_on_from_what_was_accepted():
    result, _, _ = fit([OutputRules(), FewShot(sizes=[4]), Strategies(), TOPICS], rounds=2, heat=4, batch_size=4)
    assert result.best.val == 1.0
    assert result.stopped_by == "full_marks"


class Learns(Lines):
    """Proposes its lines once it has seen a run below full marks, refuses one each time."""

    def see(self, scored):
        self.seen = any(s.score < 1 for s in scored)
        self.refused.append(f"{len(scored)} runs, {self.seen}")

    async def aproposals(self):
        return await super().aproposals() if self.seen else []


def test_batch_with_full_marks_does_not_end_the_search():
    knows_one = Learns(triage=TOPICS.lines["triage"])
    batch = next(batches(examples(TRAIN), 1, 0))[0]  # the first; the prompt knows where it goes
    topic = batch.id.split("-")[0]
    graph = build()
    graph.parameters["triage"].value += f"\n{topic} goes to {TEAMS[topic]}"
    search = Portfolio(members=[knows_one], rounds=4, batch_size=1)
    trainer = tg.Trainer(graph, tg.Objective([right_team]), critic=None, optimizer=search)
    result = trainer.fit(TRAIN, VAL)
    assert search.refused[0] == "1 runs, False"
    assert result.best.val > result.baseline.val


def test_refusals_of_members_are_all_told_and_none_of_an_earlier_training():
    graph = build()
    graph.parameters["triage"].forbidden = ("The sky",)
    search = Portfolio(members=[Learns(triage=["The sky is blue."])], rounds=3, batch_size=4)
    trainer = tg.Trainer(graph, OBJECTIVE, critic=None, optimizer=search)
    for _ in range(2):
        trainer.fit(TRAIN, VAL)
        assert [why for why in search.refused if "runs" in why] == ["4 runs, True"] * 3


def test_same_seed_same_result():
    one, two = (fit([FewShot(sizes=[4]), TOPICS], rounds=2, heat=4, seed=3)[0] for _ in range(2))
    assert one.after == two.after
    assert one.lineage == two.lineage


def test_race_is_made_smaller_where_the_budget_has_not_that_much_left():
    spent = 2 * len(VAL) + 2 * 8
    result, _, events = fit([TOPICS], rounds=1, heat=4, budget=tg.Budget(calls=spent + 30))
    assert len({run.candidate for run in tried(events, "race")}) == 2  # the incumbent and one line
    result, _, events = fit([TOPICS], rounds=3, heat=4, budget=tg.Budget(calls=spent))
    assert tried(events, "race") == []
    assert result.stopped_by == "steps"


@pytest.mark.parametrize("options", [{}, {"members": [], "heat": 0}, {"members": [], "keep": 1.0}])
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigurationError, match="Portfolio (needs|must be)"):
        Portfolio(**options)
