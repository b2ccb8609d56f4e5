"""A hard cap on money and tokens: what a request can cost at most is reserved before it is sent."""

from __future__ import annotations

import dataclasses

from orca_jax.config import Price
from orca_jax.records import Usage
from orca_jax.teachers.endpoint import AskingStopped
from orca_jax.teachers.waiting import Signal


class BudgetSpent(AskingStopped):
    """The next request could exceed the budget."""

    exit_status = 3  # of the program that it ends


@dataclasses.dataclass(slots=True)
class Reservation:
    """What one request may cost; `Budget.settle` ends it."""

    money: float
    tokens: int
    open: bool = True


class Budget:
    """Money (US dollars) and tokens that may be spent, None for no cap; shared by all that spend of it.

    `money_spent` and `tokens_spent` count what was used, `spend` adds what earlier runs used.
    """

    def __init__(self, money: float | None = None, tokens: int | None = None):
        if (money is not None and not money >= 0) or (tokens is not None and tokens < 0):
            raise ValueError(
                f"a budget of {money} USD and {tokens} tokens; give 0 or more, or None for no cap"
            )
        self.money, self.tokens = money, tokens
        self.money_spent, self.tokens_spent = 0.0, 0
        self._money_reserved, self._tokens_reserved, self._reservations = 0.0, 0, 0
        self._changed = Signal()

    def spend(self, usage: Usage, price: Price) -> None:
        """Counts what was used without a reservation."""
        self.money_spent += price.cost(usage)
        self.tokens_spent += usage.total

    async def reserve(self, bound: Usage, price: Price) -> Reservation:
        """Reserves what a request can cost; waits while requests in flight may give back enough.

        Raises:
          BudgetSpent: it does not fit, and nothing is in flight.
        """
        while (reservation := self.try_reserve(bound, price)) is None:
            await self._changed.wait()
        return reservation

    def try_reserve(self, bound: Usage, price: Price) -> Reservation | None:
        """Like `reserve`, but returns None where that waits."""
        wanted = Reservation(price.cost(bound), bound.total)
        if not self._fits(wanted):
            if not self._reservations:
                raise BudgetSpent(self._spent_message(wanted))
            return None
        return self._take(wanted)

    def hold(self, bound: Usage, price: Price) -> Reservation:
        """Reserves for what is under way already, whether it fits or not."""
        return self._take(Reservation(price.cost(bound), bound.total))

    def settle(self, reservation: Reservation, usage: Usage, price: Price) -> None:
        """Ends a reservation and counts what was used instead. Only the first call counts."""
        if not reservation.open:
            return
        reservation.open = False
        self._reservations -= 1
        self._tokens_reserved -= reservation.tokens
        # Sums of floats drift; with nothing reserved the sum is known.
        self._money_reserved = self._money_reserved - reservation.money if self._reservations else 0.0
        self.spend(usage, price)
        self._changed.notify()

    def _take(self, wanted: Reservation) -> Reservation:
        self._money_reserved += wanted.money
        self._tokens_reserved += wanted.tokens
        self._reservations += 1
        return wanted

    def _fits(self, wanted: Reservation) -> bool:
        money = self.money_spent + self._money_reserved + wanted.money
        tokens = self.tokens_spent + self._tokens_reserved + wanted.tokens
        return (self.money is None or money <= self.money) and (self.tokens is None or tokens <= self.tokens)

    def _spent_message(self, wanted: Reservation) -> str:
        caps = [f"{self.money:.2f} USD"] if self.money is not None else []
        caps += [f"{self.tokens} tokens"] if self.tokens is not None else []
        return (
            f"the budget of {' and '.join(caps)} is spent ({self.money_spent:.2f} USD, "
            f"{self.tokens_spent} tokens; the next request can cost {wanted.money:.4f} USD, "
            f"{wanted.tokens} tokens): raise it to go on"
        )
