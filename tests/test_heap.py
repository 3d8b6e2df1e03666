"""The garbage collector during a run."""

from __future__ import annotations

import gc
import weakref

import pytest

import lg_textgrad as tg


class Knot:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.self = self


@pytest.fixture(autouse=True)
def untouched_heap():
    assert gc.isenabled()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()


def test_run_spares_the_collector_what_was_there_before_and_only_while_it_lasts():
    old = Knot()
    with tg.use_ledger(tg.Ledger()):
        assert not any(known is old for known in gc.get_objects())
        with tg.use_ledger(tg.Ledger()):
            pass
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()
    assert any(known is old for known in gc.get_objects())


def test_garbage_of_a_run_is_freed_in_it_and_older_garbage_after_it():
    old = Knot()
    gone = weakref.ref(old)
    with tg.use_ledger(tg.Ledger()):
        new = Knot()
        new_gone = weakref.ref(new)
        del old, new
        gc.collect()
        assert new_gone() is None
    gc.collect()
    assert gone() is None


def test_heap_that_somebody_else_settled_stays_so():
    gc.freeze()
    settled = gc.get_freeze_count()
    with tg.use_ledger(tg.Ledger()):
        pass
    # Some may have been freed by their counts, also by threads that other tests have left.
    assert gc.get_freeze_count() > 0.99 * settled


def test_collector_that_is_off_is_left_alone():
    gc.disable()
    with tg.use_ledger(tg.Ledger()):
        assert not gc.get_freeze_count()
        assert not gc.isenabled()


def test_heap_is_as_it_was_after_an_error():
    with pytest.raises(KeyError), tg.use_ledger(tg.Ledger()):
        raise KeyError
    assert not gc.get_freeze_count()
