"""Dollars: from the list, or as given; an unknown price is said, and a cap in dollars holds."""

from __future__ import annotations

import genai_prices
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lg_textgrad as tg
from lg_textgrad.budget import Account
from lg_textgrad.errors import BudgetExceededError, ConfigurationError
from lg_textgrad.prices import Prices
from lg_textgrad.run import Usage
from lg_textgrad.traffic import EMBEDDED, Route

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
MINI = Route("gpt-4o-mini", "https://api.openai.com/v1")
OWN = Route("own", "http://10.0.0.1:8000/v1")


@QUIET
@given(st.integers(0, 500_000), st.integers(0, 500_000), st.integers(1, 50_000))
def test_listed_price_is_what_the_list_itself_works_out(fresh, cached, out):
    usage = Usage(1, prompt_tokens=fresh + cached, completion_tokens=out, cached_tokens=cached)
    priced = Prices().of(usage, MINI)
    tokens = genai_prices.Usage(
        input_tokens=fresh + cached, cache_read_tokens=cached, output_tokens=out
    )
    expected = genai_prices.calc_price(tokens, "gpt-4o-mini", provider_id="openai").total_price
    assert priced.usd == pytest.approx(float(expected), abs=1e-9)
    assert priced.dollars == priced.usd
    assert priced.unpriced == 0


@pytest.mark.parametrize(
    "route",
    [
        OWN, Route("gpt-4o-mini", "http://10.0.0.1:8000/v1"), Route("no-such-model", MINI.server),
        Route("deepseek-r1", "ChatOllama"), None,
    ],
    ids=str,
)
def test_unknown_price_is_said_and_not_guessed(route):
    prices = Prices()
    usage = prices.of(Usage(1, prompt_tokens=10), route)
    assert (usage.usd, usage.unpriced, usage.dollars) == (0, 1, None)
    assert (usage + Usage(1, usd=3.0)).dollars is None
    assert prices.unknown == (() if route is None else (route.model,))
    if route is not None:
        assert prices.said(route) == "price unknown"


def test_class_that_asks_its_provider_has_the_providers_price():
    tokens = genai_prices.Usage(input_tokens=1_000_000)
    expected = genai_prices.calc_price(tokens, "gemini-2.5-flash", provider_id="google").total_price
    route = Route("gemini-2.5-flash", "ChatGoogleGenerativeAI")
    assert Prices().of(Usage(1, prompt_tokens=1_000_000), route).usd == float(expected) > 0


def test_call_whose_tokens_nobody_counted_has_no_known_price():
    prices = Prices({"own": (1, 1), "gift": (0, 0)})
    assert prices.of(Usage(1), OWN) == Usage(1, unpriced=1)
    assert prices.of(Usage(1), Route("gift", OWN.server)).dollars == 0
    assert prices.of(Usage(cached_calls=1), MINI).dollars == 0
    assert prices.unknown == ("own",)


def test_counts_that_cannot_be_lower_nothing_that_was_spent():
    prices = Prices({"own": (10, 10, 1)})
    apart = prices.of(Usage(1, prompt_tokens=10, completion_tokens=1, cached_tokens=1000), OWN)
    assert (apart.prompt_tokens, apart.cached_tokens) == (1010, 1000)
    assert apart.usd == pytest.approx((10 * 10 + 1000 * 1 + 1 * 10) / 1e6)
    unknown = prices.of(Usage(1, prompt_tokens=-1, completion_tokens=-1, cached_tokens=-1), OWN)
    assert unknown == Usage(1, unpriced=1)


@pytest.mark.parametrize("budget", [{"usd": 0.001}, {"tokens": 10}], ids=str)
def test_cap_holds_where_the_server_counts_no_tokens(budget):
    ledger = tg.Ledger(account=Account(tg.Budget(**budget, prices={"own": (1, 1)})))
    assert ledger.pay("first", "rollout", {}, lambda: ("said", Usage(1)), OWN)[0] == "said"
    with pytest.raises(ConfigurationError, match="does not say how many tokens a reply took"):
        ledger.pay("second", "rollout", {}, lambda: ("said", Usage(1)), OWN)
    # What was paid for is kept, and other models are asked on.
    assert ledger.pay("first", "rollout", {}, lambda: pytest.fail("asked again"), OWN)[0] == "said"
    ledger.pay("other", "critic", {}, lambda: ("said", Usage(1, prompt_tokens=1)), MINI)
    assert ledger.account.spent.calls == 2


def test_free_model_that_counts_no_tokens_keeps_to_a_cap_in_dollars():
    ledger = tg.Ledger(account=Account(tg.Budget(usd=1.0, prices={"own": (0, 0)})))
    for key in "ab":
        ledger.pay(key, "rollout", {}, lambda: ("said", Usage(1)), OWN)
    assert ledger.account.spent.dollars == 0


def test_given_price_goes_before_the_list():
    prices = Prices({"own": (2, 6), "gpt-4o-mini": (1, 1, 0.5)})
    assert prices.of(Usage(1, prompt_tokens=500_000, completion_tokens=250_000), OWN).usd == 2.5
    assert prices.of(Usage(1, prompt_tokens=1_000_000, cached_tokens=1_000_000), MINI).usd == 0.5
    assert prices.said(OWN) == "$2 in, $6 out per million tokens"
    assert prices.unknown == ()


def test_embedded_model_is_free():
    prices = Prices()
    route = Route("the embedded model", EMBEDDED)
    assert prices.of(Usage(1, prompt_tokens=10**9), route).dollars == 0
    assert prices.said(route) == "free"


@pytest.mark.parametrize("rates", [(1,), (1, 2, 3, 4), (-1, 2), ("a", 1), 3, (True, 1)])
def test_what_is_no_price_is_refused(rates):
    with pytest.raises(ConfigurationError, match="price of 'm' must be two numbers"):
        Prices({"m": rates})


def test_dollars_are_reserved_before_a_call_and_settled_after_it():
    account = Account(tg.Budget(usd=1.0, prices={"own": (1, 1)}))
    account.reserve(OWN)  # nothing is known yet
    account.settle(account.prices.of(Usage(1, prompt_tokens=400_000), OWN), "rollout")
    account.reserve(OWN)  # 0.40 spent, 0.40 to come
    with pytest.raises(BudgetExceededError, match=r"budget of \$1 is used up; raise budget_usd") as caught:
        account.reserve(OWN)
    assert caught.value.limit == "usd"
    account.settle(account.prices.of(Usage(1, prompt_tokens=100_000), OWN), "rollout")
    account.reserve(OWN)  # 0.50 and a mean of 0.25
    assert account.spent.usd == pytest.approx(0.5)


@QUIET
@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=40), st.integers(1, 6))
def test_cap_in_dollars_is_exceeded_by_no_more_than_the_calls_in_flight(costs, at_once):
    account, flying, most = Account(tg.Budget(usd=1.0, prices={"own": (1, 1)})), [], 0
    try:
        for cost in costs:
            account.reserve(OWN)
            flying.append(cost)
            if len(flying) == at_once:
                cost = flying.pop(0)
                account.settle(account.prices.of(Usage(1, prompt_tokens=cost), OWN), "rollout")
    except BudgetExceededError:
        pass
    before = account.spent.usd
    assert before <= 1.0 + at_once * max(costs) / 1e6
    for cost in flying:
        most = max(most, cost)
        account.settle(account.prices.of(Usage(1, prompt_tokens=cost), OWN), "rollout")
    assert account.spent.usd <= 1.0 + at_once * max(costs) / 1e6


def test_cap_in_dollars_refuses_a_model_without_a_price():
    account = Account(tg.Budget(usd=1.0))
    with pytest.raises(ConfigurationError, match=r'price of own at .* is not known.*"own" = \[in, out\]'):
        account.reserve(OWN)
    with pytest.raises(ConfigurationError, match="only afterwards"):
        account.reserve(None)
    account.reserve(MINI)
    assert account.spent == Usage()


def test_store_keeps_what_each_result_cost(tmp_path):
    paid = Usage(1, prompt_tokens=9, completion_tokens=3, cached_tokens=2, usd=0.25)
    with tg.Store(tmp_path) as store:
        store.put_result("a", "critic", {}, "r", paid, model=OWN)
        store.put_result("b", "critic", {}, "r", Usage(1, prompt_tokens=1, unpriced=1))
    with tg.Store(tmp_path) as store:
        assert store.get_result("a") == ("r", paid)
        assert store.paid() == {
            "critic": Usage(2, 0, 10, 3, cached_tokens=2, usd=0.25, unpriced=1)
        }


def test_store_names_the_models_that_it_has_paid_without_a_known_price(tmp_path):
    with tg.Store(tmp_path) as store:
        store.put_result("a", "critic", {}, "r", Usage(1, prompt_tokens=1, usd=0.25), model=MINI)
        store.put_result("b", "critic", {}, "r", Usage(1, prompt_tokens=1, unpriced=1), model=OWN)
        store.put_result("c", "rollout", {}, "r", Usage(1, prompt_tokens=1, unpriced=1))
        assert store.unpriced() == (OWN.model,)
