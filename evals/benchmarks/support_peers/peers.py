"""One run of a peer on the support desk, in the peers' environment.

    python -m evals.benchmarks.support_peers.peers < job.json > outcome.json

Each peer gets the same rows, caps, evaluators and comments, and the desk written as it wants it:
for TextGrad a graph of its variables, for GEPA an adapter with a component a node, for DSPy a
module with a predictor a node.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evals.benchmarks.quality.peers import (
    REWRITE,
    Counter,
    SpentError,
    engine_of,
    lm_of,
    reflector_of,
    stepped,
)
from evals.benchmarks.support_peers.desk import CAPS, Served, score, serve
from graphs.support.books import entry, reference_in, request, sent_back, team_in

Prompts = Mapping[str, str]
Row = Mapping[str, Any]
Serve = Callable[[Row], tuple[str, str]]
"""Returns the team and the answer for a row."""


def served(model: Counter, prompts: Prompts, row: Row) -> Served:
    """Return what the desk makes of a row under `prompts`."""

    def ask(node: str, text: str) -> str:
        asked = [{"role": "system", "content": prompts[node]}, {"role": "user", "content": text}]
        return model.ask(asked, CAPS[node])

    return serve(ask, row["inputs"]["message"])


def mean(rows: list[Row], answers: Serve) -> float:
    """Return the mean score on `rows`, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(answers, rows))
    scores = [score(*said, row["outputs"])[0] for said, row in zip(replies, rows, strict=True)]
    return sum(scores) / len(scores)


def under(model: Counter, prompts: Prompts) -> Serve:
    """Return the desk under `prompts`."""

    def answers(row: Row) -> tuple[str, str]:
        done = served(model, prompts, row)
        return done.team, done.answer

    return answers


def textgrad(job: Mapping[str, Any], model: Counter) -> tuple[Serve, Prompts]:
    """TextGrad: all four prompts in one optimizer, a step back when validation gets worse."""
    import textgrad as tg
    from textgrad.autograd.string_based_ops import StringBasedFunction

    engine = engine_of(model)
    tg.set_backward_engine(engine(REWRITE), override=True)
    prompts = {
        node: tg.Variable(
            text, requires_grad=True,
            role_description=f"system prompt of the step that {job['roles'][node]}",
        )
        for node, text in job["prompts"].items()
    }  # fmt: skip
    step = {node: tg.BlackboxLLM(engine(CAPS[node]), p) for node, p in prompts.items()}
    optimizer = tg.TextualGradientDescent(
        parameters=list(prompts.values()), engine=engine(REWRITE)
    )

    def code(purpose: str, function: Callable[..., str], **inputs: Any) -> Any:
        def called(**variables: Any) -> str:
            return function(*(v.value for v in variables.values()))

        return StringBasedFunction(called, function_purpose=purpose)(inputs=inputs)

    def loss_of(row: Row) -> Any:
        message = tg.Variable(
            row["inputs"]["message"], requires_grad=False, role_description="customer's message"
        )
        team = code("Reads the team.", team_in, reply=step["triage"](message))
        found = code(
            "Looks up what was chosen.",
            lambda reply: entry(reference_in(reply)),
            reply=step["specialist"](message),
        )
        about = {"message": message, "team": team, "found": found}
        told = "Puts together what the writer is asked."
        answer = step["writer"](code(told, request, **about))
        verdict = step["checker"](answer)
        if sent_back(verdict.value):
            answer = step["writer"](code(told, request, **about, answer=answer, verdict=verdict))

        def judged(team: str, answer: str) -> str:
            points, comment = score(team, answer, row["outputs"])
            return f"The score is {points:.2f} of 1. {comment}"

        return code("Scores team and answer, says what is wrong.", judged, team=team, answer=answer)

    val = job["val"]
    best: dict[str, str] = dict(job["prompts"])
    dice = random.Random(job["seed"])
    with contextlib.suppress(SpentError):
        best_score = mean(val, under(model, best))
        model.found(best_score)
        while True:
            optimizer.zero_grad()
            tg.sum([loss_of(row) for row in dice.sample(job["train"], 3)]).backward()
            points = -1.0
            if stepped(optimizer):
                now = {node: p.value for node, p in prompts.items()}
                points = mean(val, under(model, now))
                model.found(points)
            if points > best_score:
                best, best_score = now, points
            else:
                for node, variable in prompts.items():
                    variable.set_value(best[node])
    return under(model, best), best


def gepa(job: Mapping[str, Any], model: Counter) -> tuple[Serve, Prompts]:
    """GEPA: a component a node, each shown its own inputs and outputs and the whole's comments."""
    import gepa as package
    from gepa.core.adapter import EvaluationBatch

    class Adapter:
        propose_new_texts = None

        def evaluate(
            self, batch: list[Row], candidate: dict[str, str], capture_traces: bool = False
        ) -> Any:
            with ThreadPoolExecutor(4) as pool:
                done = list(pool.map(lambda row: served(model, candidate, row), batch))
            judged = [
                score(d.team, d.answer, row["outputs"]) for d, row in zip(done, batch, strict=True)
            ]
            if len(batch) == len(job["val"]):
                model.found(sum(points for points, _ in judged) / len(judged))
            return EvaluationBatch(
                outputs=[d.answer for d in done],
                scores=[points for points, _ in judged],
                trajectories=list(zip(done, judged, strict=True)) if capture_traces else None,
            )

        def make_reflective_dataset(
            self, candidate: dict[str, str], evaluated: Any, components: list[str]
        ) -> dict[str, list[dict[str, str]]]:
            del candidate
            return {
                component: [
                    {
                        "Inputs": asked,
                        "Generated Outputs": reply,
                        "Feedback": comment or "The final answer is right.",
                    }
                    for done, (_, comment) in evaluated.trajectories
                    for node, asked, reply in done.steps
                    if node == component
                ]
                for component in components
            }

    most = 6  # calls of one row: the writer and the checker twice
    result = package.optimize(
        seed_candidate=dict(job["prompts"]),
        trainset=job["train"],
        valset=job["val"],
        adapter=Adapter(),
        reflection_lm=reflector_of(model),
        # A step is at most two minibatches of three, a reflection, and validation.
        stop_callbacks=lambda _: model.left < most * (6 + len(job["val"])) + 1,
        seed=job["seed"],
    )
    best = result.best_candidate
    return under(model, best), best


def mipro(job: Mapping[str, Any], model: Counter) -> tuple[Serve, Prompts]:
    """MIPROv2 on a DSPy module with a predictor a node, four demonstrations each at most."""
    import dspy

    lm = lm_of(model)
    dspy.configure(lm=lm(max(CAPS.values()), 0.0))
    markers = 24  # tokens that DSPy's own form takes around a reply

    class Desk(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for node, prompt in job["prompts"].items():
                setattr(self, node, dspy.Predict(dspy.Signature("request -> reply", prompt)))
                getattr(self, node).set_lm(lm(CAPS[node] + markers, 0.0))

        def forward(self, message: str) -> Any:
            def ask(node: str, text: str) -> str:
                return str(getattr(self, node)(request=text).reply)

            done = serve(ask, message)
            return dspy.Prediction(team=done.team, answer=done.answer)

    def example(row: Row) -> Any:
        message = row["inputs"]["message"]
        return dspy.Example(message=message, expected=row["outputs"]).with_inputs("message")

    def metric(gold: Any, said: Any, *_: Any) -> float:
        return score(said.team, said.answer, gold.expected)[0]

    row_calls = 5
    minibatch = 4
    # Bootstrapping and proposing take about 100 calls, each trial a minibatch.
    count = max(3, (model.left - 100 - 2 * row_calls * len(job["val"])) // (row_calls * minibatch))
    optimizer = dspy.MIPROv2(
        metric=metric, prompt_model=lm(REWRITE, 0.7), auto=None, num_candidates=3,
        max_bootstrapped_demos=4, max_labeled_demos=0, num_threads=4, seed=job["seed"],
    )  # fmt: skip
    program = Desk()
    with contextlib.suppress(SpentError):
        program = optimizer.compile(
            program,
            trainset=[example(r) for r in job["train"]],
            valset=[example(r) for r in job["val"]],
            num_trials=count,
            minibatch=True,
            minibatch_size=minibatch,
            minibatch_full_eval_steps=count,
        )
    trials = getattr(program, "trial_logs", {}).values()
    for points in (t["full_eval_score"] for t in trials if "full_eval_score" in t):
        model.found(points / 100)

    def answers(row: Row) -> tuple[str, str]:
        try:
            said = program(message=row["inputs"]["message"])
        except Exception:  # a reply outside of DSPy's format is a wrong one
            return "", ""
        return str(said.team), str(said.answer)

    shown = {
        node: f"{predictor.signature.instructions}\n({len(predictor.demos)} demonstrations)"
        for node, predictor in ((n, getattr(program, n)) for n in job["prompts"])
    }
    return answers, shown


PEERS = {"textgrad": textgrad, "gepa": gepa, "mipro": mipro}


def main() -> None:
    """Read a job from standard input, write its outcome to standard output."""
    job = json.load(sys.stdin)
    model = Counter(job["base_url"], job["model"], job["calls"])
    said, sys.stdout = sys.stdout, sys.stderr  # the peers print
    answers, prompts = PEERS[job["peer"]](job, model)
    model.counting = False
    outcome = {
        "test": mean(job["test"], answers), "prompts": dict(prompts), "calls": model.calls,
        "tokens": model.tokens, "way": model.way,
    }  # fmt: skip
    said.write(json.dumps(outcome, ensure_ascii=False))


if __name__ == "__main__":
    main()
