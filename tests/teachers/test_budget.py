"""The budget is a hard cap, whatever is in flight."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.config import Price
from orca_jax.records import Usage
from orca_jax.teachers.budget import Budget, BudgetSpent

PRICE = Price(prompt=0.03, completion=0.06)
USAGE = st.builds(Usage, st.integers(0, 500), st.integers(0, 500))


def test_cost():
    assert PRICE.cost(Usage(2000, 1000)) == pytest.approx(0.12)
    assert PRICE.times(0.5).cost(Usage(2000, 1000)) == pytest.approx(0.06)


@given(
    st.lists(st.tuples(USAGE, st.floats(0, 1), st.integers(0, 5)), max_size=60),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 20_000),
)
def test_never_exceeded(requests, money, tokens):
    async def run():
        budget, in_flight = Budget(money, tokens), []
        for bound, part, settled in requests:
            for reservation, used in in_flight[:settled]:
                budget.settle(reservation, used, PRICE)
            del in_flight[:settled]
            try:
                reserving = asyncio.wait_for(budget.reserve(bound, PRICE), 0 if in_flight else None)
                reservation = await reserving
            except BudgetSpent:
                assert not in_flight
                break
            except TimeoutError:
                continue
            used = Usage(round(bound.prompt_tokens * part), round(bound.completion_tokens * part))
            in_flight.append((reservation, used))
        for reservation, used in in_flight:
            budget.settle(reservation, used, PRICE)
        assert money is None or budget.money_spent <= money + 1e-9
        assert tokens is None or budget.tokens_spent <= tokens

    asyncio.run(run())


def test_waits_for_what_is_in_flight():
    async def run():
        budget = Budget(tokens=100)
        first = await budget.reserve(Usage(0, 90), PRICE)
        second = asyncio.create_task(budget.reserve(Usage(0, 50), PRICE))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, Usage(0, 20), PRICE)
        await second
        assert budget.tokens_spent == 20

    asyncio.run(run())


def test_stops_when_nothing_is():
    async def run():
        budget = Budget(money=1.0, tokens=100)
        budget.spend(Usage(30, 50), PRICE)
        with pytest.raises(
            BudgetSpent, match=r"1\.00 USD and 100 tokens is spent \(0\.00 USD, 80 tokens; .*21 tokens"
        ):
            await budget.reserve(Usage(0, 21), PRICE)
        budget.settle(await budget.reserve(Usage(0, 20), PRICE), Usage(), PRICE)

    asyncio.run(run())


def test_a_reservation_ends_once():
    async def run():
        budget = Budget(tokens=100)
        reservation = await budget.reserve(Usage(0, 50), PRICE)
        for _ in range(3):
            budget.settle(reservation, Usage(0, 10), PRICE)
        assert budget.tokens_spent == 10

    asyncio.run(run())


@pytest.mark.parametrize("cap", [{"money": -1.0}, {"money": float("nan")}, {"tokens": -5}])
def test_senseless_caps(cap):
    with pytest.raises(ValueError, match="0 or more"):
        Budget(**cap)


def test_what_is_under_way_is_held_even_where_it_does_not_fit():
    budget = Budget(tokens=100)
    held = budget.hold(Usage(0, 150), PRICE)
    assert budget.try_reserve(Usage(0, 1), PRICE) is None  # it waits, for some may be given back
    budget.settle(held, Usage(0, 40), PRICE)
    assert budget.try_reserve(Usage(0, 60), PRICE) is not None
