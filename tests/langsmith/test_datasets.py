"""LangSmith datasets as examples."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from lg_textgrad.errors import ConfigurationError, DataError, LangSmithUnavailableError
from lg_textgrad.langsmith.connection import LangSmith
from lg_textgrad.langsmith.datasets import divide, read_dataset, splits_of
from tests.langsmith.parts import desk_dataset, example_id
from tests.servers.langsmith_server import Fault


@pytest.mark.parametrize("by", ["name", "id"])
def test_dataset_by_name_and_by_id(client, langsmith, by):
    made = desk_dataset(client)
    dataset = read_dataset(langsmith, str(getattr(made, by)))
    assert (dataset.id, dataset.name, len(dataset.examples)) == (str(made.id), "desk", 8)
    first = dataset.examples[0]
    assert first.id == str(example_id("desk/e0"))
    assert first.inputs["message"].startswith("Where is my parcel")
    assert first.outputs["team"] == "delivery"
    assert splits_of(first) == ("train",)
    assert dataset.splits == ("test", "train", "val")


def test_more_examples_than_one_answer_has(client, langsmith, server):
    desk_dataset(client, train=205, val=30, test=20)
    dataset = read_dataset(langsmith, "desk")
    assert len({e.id for e in dataset.examples}) == 255
    assert len(server.seen("GET /examples")) == 3


def test_version_reads_the_same_whatever_happens_to_the_dataset(client, langsmith):
    made = desk_dataset(client)
    then = read_dataset(langsmith, "desk")
    client.update_dataset_tag(
        dataset_id=made.id, as_of=client.read_dataset_version(dataset_id=made.id, tag="latest").as_of, tag="v1"
    )
    client.update_example(example_id("desk/e0"), inputs={"message": "changed"})
    client.delete_example(example_id("desk/e1"))
    now = read_dataset(langsmith, "desk")
    assert (len(now.examples), now.examples[0].inputs) == (7, {"message": "changed"})
    assert now.as_of != then.as_of
    for version in ("v1", then.as_of):
        assert read_dataset(langsmith, "desk", version) == then


@pytest.mark.parametrize("tag", ["20260131", "2026-01-31", "2999-12-31"])
def test_tag_that_looks_like_a_time_is_a_tag(client, langsmith, tag):
    made = desk_dataset(client)
    then = read_dataset(langsmith, "desk")
    client.update_dataset_tag(dataset_id=made.id, as_of=datetime.fromisoformat(then.as_of), tag=tag)
    client.delete_example(example_id("desk/e1"))
    assert read_dataset(langsmith, "desk", tag) == then


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("nope", None, "has no dataset 'nope'"),
        (str(example_id("x")), None, "has no dataset"),
        ("desk", "v9", "has no version 'v9'; give a tag that it has, or a time"),
        ("desk", "1999-01-01", "has no version '1999-01-01'"),
        ("empty", None, "The dataset 'empty' has no examples at"),
    ],
)
def test_what_is_not_there_is_named(client, langsmith, name, version, words):
    desk_dataset(client)
    client.create_dataset("empty")
    with pytest.raises(DataError, match=words):
        read_dataset(langsmith, name, version)


def ids(parts):
    return {part: {e.id for e in examples} for part, examples in parts.items()}


def test_splits_count_by_their_usual_names_or_by_those_that_are_said(client, langsmith):
    desk_dataset(client)
    dataset = read_dataset(langsmith, "desk")
    usual = divide(dataset)
    assert {part: len(examples) for part, examples in usual.items()} == {"train": 3, "val": 3, "test": 2}
    other = divide(dataset, "train = train+test, val = val")
    assert ids(other)["train"] == ids(usual)["train"] | ids(usual)["test"]
    assert other["test"] == []


def test_shares_keep_every_example_where_it_is_when_the_dataset_grows(client, langsmith):
    made = desk_dataset(client, train=40, val=0, test=0)
    before = divide(read_dataset(langsmith, "desk"), "60/20/20")
    assert sum(map(len, before.values())) == 40
    assert len(before["train"]) > len(before["test"]) > 0
    client.create_examples(dataset_id=made.id, examples=[{"inputs": {"message": str(i)}} for i in range(40)])
    after = divide(read_dataset(langsmith, "desk"), "60/20/20")
    assert all(ids(before)[part] <= ids(after)[part] for part in before)
    assert ids(divide(read_dataset(langsmith, "desk"), "60/40"))["test"] == set()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("train=train", None),
        ("train=easy,val=val", "has no split 'easy'; it has 'test', 'train', 'val'. Say which"),
        ("train", "make no sense at 'train'; write them like"),
        ("a=train,val=val", "make no sense at 'a=train'"),
        ("train=train,train=val", "make no sense at 'train=val'"),
        ("train=train+val,val=val", "is in train and in val; take it out of one"),
        ("60/60", "The shares '60/60' make no sense"),
        ("100", "The shares '100' make no sense"),
        ("6.0.0/40", "make no sense"),
        ("0/100", "make no sense"),
        ("99.99/0.01", r"\(8 in all\) falls into val; give it a larger share"),
    ],
)
def test_splits_that_make_no_sense(client, langsmith, spec, words):
    desk_dataset(client)
    dataset = read_dataset(langsmith, "desk")
    if words is None:
        assert ids(divide(dataset, spec))["val"] == set()
        return
    with pytest.raises(ConfigurationError, match=words):
        divide(dataset, spec)


def test_dataset_without_splits_of_the_usual_names(client, langsmith):
    made = client.create_dataset("plain")
    client.create_examples(dataset_id=made.id, examples=[{"inputs": {"message": "x"}}])
    with pytest.raises(ConfigurationError, match="has no split that is called 'train'; it has 'base'"):
        divide(read_dataset(langsmith, "plain"))


# The connection itself.


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.down(), "does not answer, or is too busy"),
        (Fault.answer(500), "does not answer, or is too busy"),
        (Fault.answer(429), "does not answer, or is too busy"),
        (Fault.answer(503), "is out of order"),
    ],
)
def test_outage_is_told_apart_from_refusal(server, langsmith, fault, words):
    server.fault = fault
    with pytest.raises(LangSmithUnavailableError, match=words):
        read_dataset(langsmith, "desk")


def test_refused_key_is_bad_configuration_and_is_not_repeated(server):
    with LangSmith(server.url, "lsv2_pt_wrong_0123456789", patient=False) as langsmith:
        with pytest.raises(ConfigurationError, match="refused the API key") as caught:
            read_dataset(langsmith, "desk")
    assert "lsv2_pt_wrong" not in str(caught.value)


def test_no_key_for_langsmiths_own_servers(monkeypatch, tmp_path):
    for name in ("LANGSMITH_API_KEY", "LANGCHAIN_API_KEY", "LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANGSMITH_CONFIG_FILE", str(tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="set LANGSMITH_API_KEY"):
        LangSmith()


def test_connection_takes_address_and_key_of_the_environment(server, client, monkeypatch):
    desk_dataset(client)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", server.url)
    monkeypatch.setenv("LANGSMITH_API_KEY", server.api_key)
    with LangSmith() as langsmith:
        assert read_dataset(langsmith, "desk").name == "desk"
        assert re.match(r"http://127.0.0.1:\d+$", langsmith.url)
        assert server.api_key in langsmith.secrets
