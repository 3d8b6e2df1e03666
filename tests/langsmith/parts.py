"""What several tests of LangSmith put there: the desk's rows as a dataset."""

from __future__ import annotations

from uuid import NAMESPACE_URL, uuid5

from langsmith.schemas import ExampleCreate

from tests.desk import rows

REFERENCE = "reference_outputs" if "reference_outputs" in ExampleCreate.model_fields else "outputs"
"""What the SDK calls an example's outputs, which older ones call so."""


def example_id(name):
    return uuid5(NAMESPACE_URL, f"https://tests/{name}")


def desk_dataset(client, name="desk", train=3, val=3, test=2):
    """Make the desk's rows a dataset with three splits, and return it."""
    dataset = client.create_dataset(name)
    first, made = 0, []
    for split, count in (("train", train), ("val", val), ("test", test)):
        for row in rows(count, first):
            made.append(
                {"id": example_id(f"{name}/{row['id']}"), "inputs": row["inputs"],
                 REFERENCE: row["outputs"], "split": split}
            )  # fmt: skip
        first += count
    client.create_examples(dataset_id=dataset.id, examples=made)
    return dataset
