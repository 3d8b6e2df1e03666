"""A dict that notes who looked at what, and is otherwise the dict that it copies."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

import pytest
import yaml
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from lg_textgrad.tracking import ReadTrackingDict, fields_of, start_tracking, tracking

VALUES = {"a": 1, "b": 2}


def reads(look):
    d = ReadTrackingDict(VALUES)
    look(d)
    return d.keys_read


@pytest.mark.parametrize(
    "look",
    [
        lambda d: d["a"],
        lambda d: d.get("a"),
        lambda d: "a" in d,
        lambda d: d.pop("a"),
        lambda d: d.setdefault("a", 3),
        lambda d: itemgetter("a")(d),
        lambda d: "%(a)s" % d,
        lambda d: "{0[a]}".format(d),
        lambda d: copy.copy(d)["a"],
    ],
)
def test_looking_at_one_key(look):
    assert reads(look) == {"a"}


def _match(d):
    match d:
        case {"a": 1}:
            pass


def test_match_statement():
    assert reads(_match) == {"a"}


@pytest.mark.parametrize(
    "look",
    [
        dict,
        list,
        repr,
        str,
        json.dumps,
        copy.deepcopy,
        pickle.dumps,
        lambda d: {**d},
        lambda d: (lambda **k: k)(**d),
        lambda d: d.copy(),
        lambda d: d.items(),
        lambda d: d.values(),
        lambda d: d.keys(),
        lambda d: d | {},
        lambda d: {} | d,
        lambda d: {}.update(d),
        lambda d: d == {},
        lambda d: d != {},
        lambda d: list(reversed(d)),
        lambda d: [k for k in d],
        lambda d: d.popitem(),
        lambda d: "{a}{b}".format(**d),
        yaml.dump,
        yaml.safe_dump,
    ],
)
def test_looking_at_the_whole_counts_as_every_key(look):
    assert reads(look) == {"a", "b"}


@pytest.mark.parametrize("look", [len, bool, lambda d: d.update(a=3), lambda d: d.__setitem__("b", 1)])
def test_not_looking(look):
    assert reads(look) == set()


def test_a_key_that_is_not_there_was_looked_for():
    assert reads(lambda d: d.get("zz", 0)) == {"zz"}
    with pytest.raises(KeyError):
        reads(lambda d: d["zz"])


def test_behaves_as_the_dict_that_it_copies():
    d = ReadTrackingDict(VALUES)
    assert (dict(d), {**d}, d | {"c": 3}, {"c": 3} | d) == (
        VALUES, VALUES, {**VALUES, "c": 3}, {"c": 3, **VALUES},
    )  # fmt: skip
    assert json.loads(json.dumps(d)) == d == VALUES
    assert yaml.dump(d) == yaml.safe_dump(d) == yaml.safe_dump(VALUES)
    assert type(pickle.loads(pickle.dumps(d))) is dict
    assert isinstance(d, dict)


def test_copies_share_the_sheet_until_the_next_start():
    shared = ReadTrackingDict(VALUES)
    first = copy.copy(shared)
    first["a"]
    assert shared.keys_read == {"a"}
    second = copy.copy(shared)
    second.start()
    second["b"]
    assert (first.keys_read, second.keys_read) == ({"a"}, {"b"})


# States that are objects.


class Model(BaseModel):
    model_config = ConfigDict(validate_assignment=True)
    a: int = 1
    b: list = Field(default_factory=list)
    _own: int = PrivateAttr(default=7)

    @property
    def double(self):
        return self.a * 2


@dataclass
class Data:
    a: int = 1
    b: list = field(default_factory=list)

    @property
    def double(self):
        return self.a * 2


@dataclass(frozen=True, slots=True)
class Frozen:
    a: int = 1
    b: list = field(default_factory=list)

    @property
    def double(self):
        return self.a * 2


KINDS = [Model, Data, Frozen]
GIVEN = {"a": 1, "b": [2]}


def sheet_of(kind, look):
    state = tracking(kind(**GIVEN))
    sheet = start_tracking(state)
    look(state)
    return sheet


def _match_object(s):
    match s:
        case object(a=1):
            pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "look",
    [lambda s: s.a, lambda s: s.double, lambda s: getattr(s, "a", 0), attrgetter("a"), _match_object],
)
def test_looking_at_one_field(kind, look):
    assert sheet_of(kind, look) == {"a"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("look", [repr, lambda s: s == s.__class__(**GIVEN), copy.deepcopy, pickle.dumps])
def test_looking_at_the_whole_object(kind, look):
    assert sheet_of(kind, look) == {"a", "b"}


@pytest.mark.parametrize("look", [Model.model_dump, Model.model_dump_json, dict, list, vars])
def test_looking_at_the_whole_model(look):
    assert sheet_of(Model, look) == {"a", "b"}


@pytest.mark.parametrize("look", [dataclasses.asdict, dataclasses.astuple, dataclasses.replace])
def test_looking_at_the_whole_dataclass(look):
    assert sheet_of(Data, look) == sheet_of(Frozen, look) == {"a", "b"}


@pytest.mark.parametrize("kind", KINDS)
def test_not_looking_at_an_object(kind):
    assert sheet_of(kind, lambda s: (isinstance(s, kind), s.__class__, bool(s), fields_of(s))) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_behaves_as_an_instance_of_its_class(kind):
    state: Any = tracking(kind(**GIVEN))
    assert isinstance(state, kind)
    assert state.__class__ is kind
    assert (state == kind(**GIVEN), kind(**GIVEN) == state, repr(state)) == (
        True, True, repr(kind(**GIVEN)),
    )  # fmt: skip
    assert fields_of(state) == GIVEN
    for made in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert type(made) is kind
        assert made == state
        assert made.b is not state.b


def test_model_keeps_its_private_values_and_validation():
    state: Any = tracking(Model(**GIVEN))
    assert (state._own, copy.copy(state)._own, pickle.loads(pickle.dumps(state))._own) == (7, 7, 7)
    state.a = 5
    assert (state.a, state.model_copy(update={"a": 6}).a) == (5, 6)
    with pytest.raises(ValidationError, match="1 validation error for Model"):
        state.a = "no number"


@pytest.mark.parametrize("kind", KINDS)
def test_object_in_a_checkpoint_is_of_its_own_class(kind):
    serde = JsonPlusSerializer(allowed_msgpack_modules=[(__name__, kind.__name__)])
    made = serde.loads_typed(serde.dumps_typed(tracking(kind(**GIVEN))))
    assert type(made) is kind
    assert made == kind(**GIVEN)


def test_copies_of_an_object_share_the_sheet_until_the_next_start():
    shared: Any = tracking(Data(**GIVEN))
    sheet = start_tracking(shared)
    first = copy.copy(shared)
    first.a
    assert sheet == {"a"}
    second = start_tracking(copy.copy(shared))
    assert second == set()


def test_class_that_refuses_to_be_derived_from_is_used_as_it_is():
    @dataclass
    class Alone:
        a: int = 1

        def __init_subclass__(cls, **kwargs):
            raise TypeError("final")

    state = tracking(Alone(2))
    assert (type(state), state.a, start_tracking(state)) == (Alone, 2, None)
