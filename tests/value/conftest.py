"""Calls of hosted models as the record has them, priced."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import msgspec
import pytest

from doorstep.config import PriceSettings
from doorstep.store import Store
from doorstep.types import Call
from doorstep.value.prices import Pricer

MONDAY_US = 1_791_158_400_000_000  # 2026-10-05
DAY_US = 86_400_000_000
NO_PRICES = PriceSettings()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    with Store.open(where) as opened:
        yield opened


@pytest.fixture
def bought(store: Store) -> Callable[..., list[Call]]:
    """Put priced calls into the store."""
    numbers = count()

    def buy(model: str, calls: int = 1, day: int = 0, prices: PriceSettings = NO_PRICES, **usage: Any) -> list[Call]:
        provider, _, name = model.partition("/")
        pricer, made = Pricer(prices), []
        for _ in range(calls):
            number = next(numbers)
            at_us = MONDAY_US + day * DAY_US + number
            values = {"input_tokens": 1000, "output_tokens": 100, "run_id": "run_1"} | usage
            call = Call(
                call_id=f"call_{number:05}", dialect="openai.chat", requested_model=model, served_model=name,
                provider=provider, started_us=at_us, ended_us=at_us + 1, **values,
            )  # fmt: skip
            price = pricer.price(call)
            made.append(
                msgspec.structs.replace(
                    call, cost_microusd=price.microusd, cost_basis=price.basis, price_version=price.version
                )
            )
        store.add(*made)
        return made

    return buy
