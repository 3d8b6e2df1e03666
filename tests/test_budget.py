"""One budget over everything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import lg_textgrad as tg
from lg_textgrad.budget import Account
from lg_textgrad.errors import BudgetExceededError, ConfigurationError
from lg_textgrad.run import Usage
from lg_textgrad.traffic import Route


def test_calls_are_reserved_before_they_start():
    account = Account(tg.Budget(calls=2))
    account.reserve()
    account.reserve()
    with pytest.raises(BudgetExceededError, match="budget of 2 calls is used up; raise budget_calls") as caught:
        account.reserve()
    assert caught.value.limit == "calls"
    account.release()
    account.reserve()
    account.settle(Usage(1, 0, 5, 6), "critic")
    account.settle(Usage(1, 0, 1, 1), "rollout")
    with pytest.raises(BudgetExceededError):
        account.reserve()
    assert account.spent == Usage(2, 0, 6, 7)
    assert account.by_kind == {"critic": Usage(1, 0, 5, 6), "rollout": Usage(1, 0, 1, 1)}


def test_tokens_are_reserved_as_the_mean_so_far():
    account = Account(tg.Budget(tokens=100))
    account.reserve()  # nothing is known yet
    account.settle(Usage(1, 0, 30, 10), "critic")
    account.reserve()  # 40 spent, 40 to come
    with pytest.raises(BudgetExceededError, match="100 tokens"):
        account.reserve()  # 40 spent, 80 to come
    account.settle(Usage(1, 0, 5, 5), "critic")
    account.reserve()


def test_seconds_are_counted_by_the_clock_that_was_given_and_go_on_from_before():
    now = [100.0]
    account = Account(tg.Budget(seconds=10), elapsed=4, clock=lambda: now[0])
    assert account.elapsed == 4
    account.reserve()
    now[0] += 6
    with pytest.raises(BudgetExceededError, match="10 seconds"):
        account.reserve()


def test_time_of_a_store_is_due_to_be_noted_once_a_second_and_no_other():
    now = [0.0]
    account = Account(tg.Budget(), elapsed=4, clock=lambda: now[0], noted=True)
    due = []
    for seconds in (0.0, 0.5, 1.0, 1.9, 5.0):
        now[0] = seconds
        due.append(account.due())
    assert due == [4, None, 5, None, 9]
    assert Account(tg.Budget(), elapsed=4).due() is None


def test_stored_answers_need_no_budget():
    account = Account(tg.Budget(calls=1, tokens=1))
    for _ in range(5):
        account.note(Usage(cached_calls=1), "rollout")
    account.reserve()
    assert account.spent == Usage(cached_calls=5)


def test_what_an_earlier_session_spent_counts():
    with pytest.raises(BudgetExceededError):
        Account(tg.Budget(calls=3), spent=Usage(3)).reserve()


def test_no_caps_no_end():
    account = Account(tg.Budget())
    for _ in range(1000):
        account.reserve()


def test_threads_never_exceed_the_cap():
    account = Account(tg.Budget(calls=50))

    def one(_):
        try:
            account.reserve()
        except BudgetExceededError:
            return 0
        account.settle(Usage(1), "rollout")
        return 1

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(300))) == account.spent.calls == 50


@pytest.mark.parametrize("cap", [{"calls": "500"}, {"usd": True}, {"seconds": [1]}])
def test_cap_must_be_a_number(cap):
    with pytest.raises(ConfigurationError, match=f"budget's {next(iter(cap))} must be a number, not"):
        tg.Budget(**cap)


@pytest.mark.parametrize("cap", [{"calls": 0}, {"tokens": -1}, {"seconds": 0.0}, {"usd": float("nan")}])
def test_cap_must_be_positive(cap):
    with pytest.raises(ConfigurationError, match=f"budget's {next(iter(cap))} must be positive"):
        tg.Budget(**cap)


@pytest.mark.parametrize(
    ("caps", "spent", "said"),
    [
        ({"calls": 1}, Usage(calls=1), "budget of 1 call is used up; raise budget_calls"),
        ({"tokens": 1_500_000}, Usage(calls=1, prompt_tokens=1_500_000), "budget of 1,500,000 tokens is used up"),
        ({"usd": 0.00001}, Usage(calls=1, usd=1.0), r"budget of \$0.00001 is used up"),
        ({"usd": 5}, Usage(calls=1, usd=9.0), r"budget of \$5 is used up"),
    ],
)
def test_cap_that_is_used_up_is_told_in_whole_figures(caps, spent, said):
    account = Account(tg.Budget(**caps, prices={"m": (1.0, 1.0)}))
    account.note(spent, "rollout")
    with pytest.raises(BudgetExceededError, match=said):
        account.reserve(Route("m", "http://10.0.0.1:8000/v1"))
