"""Real training on the embedded model: the smallest run that proves it."""

from pathlib import Path

import pytest

import lg_textgrad as tg

DATA = Path(__file__).parents[1] / "graphs" / "support" / "data"


@pytest.mark.model
def test_training_the_support_desks_writer_on_the_embedded_model_lifts_the_validation_score(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("SUPPORT_BASE_URL", raising=False)
    from evals.evaluators import support
    from graphs.support.graph import graph

    for name, parameter in graph.parameters.items():
        monkeypatch.setattr(parameter, "requires_grad", name == "writer")
        monkeypatch.setattr(parameter, "value", parameter.value)
    with tg.models.Local() as model:
        trainer = tg.Trainer(
            graph,
            tg.Objective(support.ALL),
            critic=tg.LLMCritic(model, brief=True),
            optimizer=tg.optim.TextualGradientDescent(model),
            schedule=tg.Schedule(steps=1, batch_size=3),
            store=tmp_path / "run",
            max_concurrency=1,  # so that the model's batches, and with them its words, stay the same
        )
        result = trainer.fit(
            tg.read_examples(DATA / "train.jsonl")[:3], tg.read_examples(DATA / "val.jsonl")[:6]
        )
    assert result.accepted == 1
    assert result.best.val > result.baseline.val + 0.1
    assert graph.parameters["writer"].value == result.after["writer"] != result.before["writer"]
    with tg.Store(tmp_path / "run", read_only=True) as store:
        gradients = store.gradients()
        edits = store.candidates()[result.lineage[-1]]["edits"]
    assert edits
    assert all(g in gradients for edit in edits for g in edit.gradients)
