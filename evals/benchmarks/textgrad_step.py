"""TextGrad's training step on the chain, in the peers' environment; prints its seconds as JSON.

    python -m evals.benchmarks.textgrad_step BASE_URL NODES SAMPLES

Nothing of lg_textgrad is imported here. The evaluator costs no call, as ours does not.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai

from evals.benchmarks.script import MODEL, WORDS, prompt, rule


def main() -> None:
    """Run one step to warm up, of one sample, and measure the second."""
    base_url, nodes, samples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    import textgrad as tg
    from textgrad.autograd.string_based_ops import StringBasedFunction
    from textgrad.engine.base import EngineLM

    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)

    class Engine(EngineLM):  # type: ignore[misc]
        model_string = MODEL
        system_prompt = "You are a helpful assistant."

        def generate(self, content: str, system_prompt: str | None = None, **_: Any) -> str:
            asked = [
                {"role": "system", "content": system_prompt or self.system_prompt},
                {"role": "user", "content": content},
            ]
            reply = client.chat.completions.create(
                model=MODEL,
                messages=asked,  # type: ignore[arg-type]
                temperature=0,
            )
            return reply.choices[0].message.content or ""

        def __call__(self, content: str, system_prompt: str | None = None, **more: Any) -> str:
            return self.generate(content, system_prompt, **more)

    engine = Engine()
    tg.set_backward_engine(engine, override=True)

    def judged(prediction: Any) -> str:
        missing = [k for k in range(nodes) if WORDS[k] not in prediction.value]
        return f"The score is {1 - len(missing) / nodes}. " + " ".join(map(rule, missing))

    def step(texts: list[str]) -> None:
        prompts = [
            tg.Variable(prompt(k), requires_grad=True, role_description=f"prompt of step {k}")
            for k in range(nodes)
        ]
        chain = [tg.BlackboxLLM(engine, system) for system in prompts]
        loss = StringBasedFunction(judged, function_purpose="Scores the text, says what it lacks.")
        optimizer = tg.TextualGradientDescent(parameters=prompts, engine=engine)
        optimizer.zero_grad()
        losses = []
        for text in texts:
            value = tg.Variable(text, requires_grad=False, role_description="the message")
            for node in chain:
                value = node(value)
            losses.append(loss(inputs={"prediction": value}))
        tg.sum(losses).backward()
        optimizer.step()

    step(["This is the message to warm up with."])
    started = time.perf_counter()
    step([f"This is message number {n}." for n in range(samples)])
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
