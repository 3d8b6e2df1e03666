"""A dict that notes who looked at what, and is otherwise the dict that it copies."""

from __future__ import annotations

import copy
import json
import pickle
from operator import itemgetter

import pytest

from lg_textgrad.tracking import ReadTrackingDict

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
