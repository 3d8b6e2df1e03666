"""One run of a peer on a task, in an environment of its own: TextGrad, MIPROv2 of DSPy, or GEPA.

    python -m evals.benchmarks.quality.peers < job.json > outcome.json

Nothing of lg_textgrad is imported: the peers need older packages than it does. Every model call
is counted here and `calls` is the most that optimizing makes; the final rows are not counted.
Each peer gets the same rows, cap on replies, metric and, where it can use it, the metric's comment.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from evals.benchmarks.quality.tasks import TASKS, Task

REWRITE = 700
"""Tokens that a peer's own calls (criticism, rewriting, proposing) may have."""


class SpentError(RuntimeError):
    """The calls are used up."""


class Counter:
    """The model, every call of it counted."""

    def __init__(self, base_url: str, model: str, calls: int) -> None:
        import openai

        self.client = openai.OpenAI(base_url=base_url, api_key="none", timeout=900, max_retries=2)
        self.model = model
        self.left = calls
        self.calls = 0
        self.tokens = 0
        self.counting = True
        self.way: list[tuple[int, float]] = []
        self._guard = threading.Lock()

    def take(self) -> None:
        """Count one call. Raises `SpentError` when there are none left."""
        with self._guard:
            if self.counting:
                if self.left <= 0:
                    raise SpentError
                self.left -= 1
                self.calls += 1

    def ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int, heat: float = 0.0) -> str:
        """Return the model's reply."""
        self.take()
        reply = self.client.chat.completions.create(
            model=self.model,
            messages=list(messages),  # type: ignore[arg-type]
            max_tokens=max_tokens,
            temperature=heat,
        )
        if self.counting and reply.usage is not None:
            self.tokens += reply.usage.total_tokens
        return reply.choices[0].message.content or ""

    def found(self, score: float, calls: int | None = None) -> None:
        """Note a validation score, where it is the best so far, with the calls made by then."""
        if not self.way or score > self.way[-1][1]:
            self.way.append((self.calls if calls is None else calls, score))

    def reply(self, task: Task, prompt: str, row: Mapping[str, Any]) -> str:
        """Return the model's reply to one row under `prompt`."""
        asked = [
            {"role": "system", "content": prompt},
            {"role": "user", "content": row["inputs"][task.key]},
        ]
        return self.ask(asked, task.max_tokens)


def mean_score(
    rows: Sequence[Mapping[str, Any]], task: Task, answer: Callable[[Mapping[str, Any]], str]
) -> float:
    """Return the mean score of what `answer` says to the rows, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(answer, rows))
    scores = [task.score(r, row["outputs"])[0] for r, row in zip(replies, rows, strict=True)]
    return sum(scores) / len(scores)


Answer = Callable[[Mapping[str, Any]], str]


def engine_of(model: Counter) -> Callable[[int], Any]:
    """Return what makes TextGrad an engine of `model`, by the most tokens of a reply."""
    from textgrad.engine.base import EngineLM

    class Engine(EngineLM):  # type: ignore[misc]
        def __init__(self, max_tokens: int) -> None:
            self.max_tokens = max_tokens
            self.model_string = model.model
            self.system_prompt = "You are a helpful assistant."

        def generate(self, content: str, system_prompt: str | None = None, **_: Any) -> str:
            system = system_prompt or self.system_prompt
            asked = [{"role": "system", "content": system}, {"role": "user", "content": content}]
            return model.ask(asked, self.max_tokens)

        def __call__(self, content: str, system_prompt: str | None = None, **more: Any) -> str:
            return self.generate(content, system_prompt, **more)

    return Engine


def lm_of(model: Counter) -> Callable[[int, float], Any]:
    """Return what makes DSPy an LM of `model`, by a reply's most tokens and the temperature."""
    import dspy

    class Counted(dspy.LM):  # type: ignore[misc]
        def forward(self, *arguments: Any, **options: Any) -> Any:
            model.take()
            response = super().forward(*arguments, **options)
            if model.counting:
                model.tokens += response.usage.total_tokens
            return response

    def lm(max_tokens: int, heat: float) -> Any:
        return Counted(
            f"openai/{model.model}",
            api_base=str(model.client.base_url),
            api_key="none",
            temperature=heat,
            max_tokens=max_tokens,
            cache=False,
            num_retries=2,
        )

    return lm


def reflector_of(model: Counter) -> Callable[[Any], str]:
    """Return what GEPA asks to reflect."""

    def reflect(asked: Any) -> str:
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        return model.ask(messages, REWRITE, 0.7)

    return reflect


def stepped(optimizer: Any) -> bool:
    """Make TextGrad's step; False where its model's reply had not the form that it wants."""
    try:
        optimizer.step()
    except IndexError:
        return False
    return True


def textgrad(task: Task, job: Mapping[str, Any], model: Counter) -> tuple[Answer, str]:
    """TextGrad's prompt optimization: batches of three, a step back when validation gets worse."""
    import random

    import textgrad as tg
    from textgrad.autograd.string_based_ops import StringBasedFunction

    engine = engine_of(model)
    tg.set_backward_engine(engine(REWRITE), override=True)
    prompt = tg.Variable(
        task.prompt,
        requires_grad=True,
        role_description="system prompt to the language model that " + task.role,
    )
    student = tg.BlackboxLLM(engine(task.max_tokens), prompt)
    optimizer = tg.TextualGradientDescent(parameters=[prompt], engine=engine(REWRITE))

    def judged(prediction: Any, ground_truth: Any) -> str:
        score, comment = task.score(prediction.value, json.loads(ground_truth.value))
        return f"The score is {score:.2f} of 1. {comment}"

    loss = StringBasedFunction(judged, function_purpose="Scores the reply and says what is wrong.")
    val = job["val"]
    best, best_score = task.prompt, -1.0
    dice = random.Random(job["seed"])
    try:
        best_score = mean_score(val, task, lambda row: model.reply(task, best, row))
        model.found(best_score)
        while True:
            rows = dice.sample(job["train"], 3)
            optimizer.zero_grad()
            losses = []
            for row in rows:
                asked = tg.Variable(
                    row["inputs"][task.key], requires_grad=False, role_description="the message"
                )
                expected = tg.Variable(
                    json.dumps(row["outputs"]), requires_grad=False, role_description="the answer"
                )
                reply = student(asked)
                losses.append(loss(inputs={"prediction": reply, "ground_truth": expected}))
            tg.sum(losses).backward()
            if not stepped(optimizer):
                prompt.set_value(best)
                continue
            now = prompt.value
            score = mean_score(val, task, partial(model.reply, task, now))
            model.found(score)
            if score > best_score:
                best, best_score = now, score
            else:
                prompt.set_value(best)
    except SpentError:
        pass
    return lambda row: model.reply(task, best, row), best


def gepa(task: Task, job: Mapping[str, Any], model: Counter) -> tuple[Answer, str]:
    """GEPA with its own loop and Pareto selection, our metric's comments as its feedback."""
    import gepa as package
    from gepa.core.adapter import EvaluationBatch

    class Adapter:
        propose_new_texts = None

        def evaluate(
            self, batch: list[Any], candidate: dict[str, str], capture_traces: bool = False
        ) -> Any:
            with ThreadPoolExecutor(4) as pool:
                replies = list(
                    pool.map(lambda row: model.reply(task, candidate["prompt"], row), batch)
                )
            judged = [task.score(r, row["outputs"]) for r, row in zip(replies, batch, strict=True)]
            if len(batch) == len(job["val"]):
                model.found(sum(score for score, _ in judged) / len(judged))
            return EvaluationBatch(
                outputs=replies,
                scores=[score for score, _ in judged],
                trajectories=list(zip(batch, replies, judged, strict=True))
                if capture_traces
                else None,
            )

        def make_reflective_dataset(
            self, candidate: dict[str, str], evaluated: Any, components: list[str]
        ) -> dict[str, list[dict[str, str]]]:
            del candidate
            records = [
                {
                    "Inputs": row["inputs"][task.key],
                    "Generated Outputs": reply,
                    "Feedback": comment or "This is right.",
                }
                for row, reply, (_, comment) in evaluated.trajectories
            ]
            return dict.fromkeys(components, records)

    result = package.optimize(
        seed_candidate={"prompt": task.prompt},
        trainset=job["train"],
        valset=job["val"],
        adapter=Adapter(),
        reflection_lm=reflector_of(model),
        # A step is at most two minibatches of three, a reflection, and validation.
        stop_callbacks=lambda _: model.left < 7 + len(job["val"]),
        seed=job["seed"],
    )
    best = result.best_candidate["prompt"]
    return lambda row: model.reply(task, best, row), best


def mipro(task: Task, job: Mapping[str, Any], model: Counter) -> tuple[Answer, str]:
    """MIPROv2 with eight demonstrations at most, trials until the calls are used up."""
    import dspy

    lm = lm_of(model)
    dspy.configure(lm=lm(task.max_tokens, 0.0))
    signature = dspy.Signature("question -> reply", task.prompt)
    program = dspy.Predict(signature)

    def example(row: Mapping[str, Any]) -> Any:
        expected = row["outputs"]
        sole = next(iter(expected.values()))
        # What a labelled demonstration shows: JSON where the task's reply is JSON.
        reply = json.dumps(expected) if task.name == "snips_slots" else str(sole)
        return dspy.Example(
            question=row["inputs"][task.key], reply=reply, expected=expected
        ).with_inputs("question")

    def metric(gold: Any, said: Any, *_: Any) -> float:
        return task.score(str(said.reply), gold.expected)[0]

    candidates = 6
    minibatch = 10
    # Bootstrapping and proposing take about 60 calls, each trial a minibatch.
    count = max(4, (model.left - 60 - 3 * len(job["val"])) // minibatch)
    optimizer = dspy.MIPROv2(
        metric=metric, prompt_model=lm(REWRITE, 0.7), auto=None, num_candidates=candidates,
        max_bootstrapped_demos=8, max_labeled_demos=8, num_threads=4, seed=job["seed"],
    )  # fmt: skip
    with contextlib.suppress(SpentError):
        program = optimizer.compile(
            program,
            trainset=[example(r) for r in job["train"]],
            valset=[example(r) for r in job["val"]],
            num_trials=count,
            minibatch=True,
            minibatch_size=minibatch,
            minibatch_full_eval_steps=max(2, count // 2),
        )

    # MIPROv2 counts its evaluations only; what came before them is the difference to all calls.
    trials = list(getattr(program, "trial_logs", {}).values())
    evaluated = max((t["total_eval_calls_so_far"] for t in trials if t), default=0)
    for trial in trials:
        if "full_eval_score" in trial:
            before = evaluated - trial["total_eval_calls_so_far"]
            model.found(trial["full_eval_score"] / 100, model.calls - before)

    def answer(row: Mapping[str, Any]) -> str:
        try:
            return str(program(question=row["inputs"][task.key]).reply)
        except Exception:  # a reply outside of DSPy's format is a wrong one
            return ""

    shown = program.signature.instructions + f"\n({len(program.demos)} demonstrations)"
    return answer, shown


PEERS = {"textgrad": textgrad, "gepa": gepa, "mipro": mipro}


def main() -> None:
    """Read a job from standard input, write its outcome to standard output."""
    job = json.load(sys.stdin)
    task = TASKS[job["task"]]
    model = Counter(job["base_url"], job["model"], job["calls"])
    said, sys.stdout = sys.stdout, sys.stderr  # the peers print
    answer, prompt = PEERS[job["peer"]](task, job, model)
    model.counting = False
    test = mean_score(job["test"], task, answer)
    outcome = {
        "test": test, "prompt": prompt, "calls": model.calls, "tokens": model.tokens,
        "way": model.way,
    }  # fmt: skip
    said.write(json.dumps(outcome, ensure_ascii=False))


if __name__ == "__main__":
    main()
