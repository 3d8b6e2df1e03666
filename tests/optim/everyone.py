"""All optimizers on one small graph, and a process that trains with each until it kills itself.

`python -m tests.optim.everyone FOLDER CALLS`: CALLS is JSON, name -> the model call that it dies at.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from functools import partial

import lg_textgrad as tg
from lg_textgrad._hashing import digest
from lg_textgrad.optim import FewShot, OutputRules, Strategies, TextualGradientDescent
from tests.optim import router
from tests.optim.test_search_contract import RULES, SEARCHES, Knows, helpful
from tests.parts import Scripted

STEPPERS = {
    "tgd": TextualGradientDescent,
    "tgd_whole": partial(TextualGradientDescent, edits="whole", momentum=3),
    "tgd_beam": partial(TextualGradientDescent, beam=3, momentum=3),
    "fewshot": lambda model: FewShot(),
    "output_rules": lambda model: OutputRules(),
    "strategies": lambda model: Strategies(lines=["Say Kind regards.", *RULES]),
}
ALL = {**STEPPERS, **SEARCHES}
TRAIN, VAL = router.rows(words=["shoe", "tent"]), router.rows(words=["lamp"])
SCHEDULE = tg.Schedule(steps=3, batch_size=3)


def write(request):
    """Reply what is asked for, not the same to every seed."""
    wanted = request.schema["properties"]
    rule = random.Random(digest(request.messages[1]["content"], request.seed)).choice(RULES)
    if "prompt" in wanted:
        return {"prompt": f"You route.\n{rule}\nName the team."}
    if "edits" in wanted and request.seed > 1:
        return {"edits": [{"op": "add", "line": 1, "text": rule, "notes": [1]}]}
    return helpful(request)


def fit(name, *, store=None, budget=None, at_call=lambda: None):
    """Train with one of `ALL`. `at_call` is called before each call of a model."""

    def counted(answer):
        def said(*asked):
            at_call()
            return answer(*asked)

        return said

    graph = router.build(counted)
    trainer = tg.Trainer(
        graph, router.OBJECTIVE, critic=Knows(), optimizer=ALL[name](Scripted(counted(write))),
        schedule=SCHEDULE, budget=budget or tg.Budget(calls=1000), store=store,
    )  # fmt: skip
    return trainer.fit(TRAIN, VAL), graph


def die_at(call):
    """Return what ends this process, with no time for anything, at the `call`th time."""
    made = []

    def at_call():
        made.append(None)
        if len(made) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_call


def main(folder, calls):
    for name, call in json.loads(calls).items():
        child = os.fork()
        if child == 0:
            fit(name, store=f"{folder}/{name}", at_call=die_at(call))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{name} came to its end"


if __name__ == "__main__":
    main(*sys.argv[1:])
