"""Prices: what a call cost, in integer micro-dollars, with the basis of the figure.

Hosted calls are priced by the price book of the ``genai-prices`` package as installed; it is never updated over the
network. Our own engine's calls are estimated from CPU time. What cannot be priced is ``None``, never 0.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from doorstep.types import Call

LOCAL = "local"  # the provider name of our own engine
CORE_HOUR_USD = 0.05  # an assumption: a usual on-demand price of one shared cloud core, early 2026; set your own
MICRO = 1_000_000


class Price(NamedTuple):
    """What a call cost. All three are ``None`` when it is not known."""

    microusd: int | None
    basis: str | None  # ``priced`` by a price book, ``estimated`` from own CPU time
    version: str | None


UNKNOWN = Price(None, None, None)


@cache
def price_version() -> str:
    """Return the name and version of the price book, or how to get one."""
    try:
        return f"genai-prices {version('genai-prices')}"
    except PackageNotFoundError:
        return "no price book: pip install 'doorstep[prices]'"


def list_price(
    provider: str, model: str, input_tokens: int, output_tokens: int, *, calls: int = 1, at_us: int | None = None
) -> int | None:
    """Return what tokens cost at list price, micro-dollars; ``None`` for a model that the price book lacks.

    Tokens are totals over ``calls`` calls of average size, since some prices step up with the length of one call.
    """
    if calls < 1:
        raise ValueError("a price is of at least one call")
    one = _list_price_usd(provider, model, Decimal(input_tokens) / calls, Decimal(output_tokens) / calls, at_us)
    return None if one is None else round(one * calls * MICRO)


class CpuMeter:
    """Books the CPU time of our own engine on the calls that it answered.

    ``clock`` gives the CPU seconds used so far. Each call gets what was used since the call before it ended, at most
    its own duration on all ``cores``, so that idle time and training are not booked on it. Calls that overlap share
    roughly; the sum is what counts.
    """

    def __init__(self, clock: Callable[[], float], cores: int) -> None:
        self._clock = clock
        self._cores = cores
        self._booked = clock()

    def __call__(self, call: Call) -> float:
        """Return the CPU seconds booked on a call that just ended."""
        now = self._clock()
        used, self._booked = now - self._booked, now
        return max(0.0, min(used, (call.ended_us - call.started_us) / MICRO * self._cores))


class Pricer:
    """Prices calls as they are recorded; may be called from any thread.

    ``cpu_seconds`` says what a call of our own engine used; without it those calls have no known cost.
    """

    def __init__(
        self, cpu_seconds: Callable[[Call], float | None] | None = None, core_hour_usd: float = CORE_HOUR_USD
    ) -> None:
        self._cpu_seconds = cpu_seconds
        self._core_hour_usd = core_hour_usd
        self._lock = threading.Lock()
        self._carry = 0.0  # micro-dollars not booked yet: small calls cost less than one each

    def price(self, call: Call) -> Price:
        """Return what a call cost."""
        if call.provider == LOCAL:
            return self._own(call)
        if call.input_tokens is None or call.output_tokens is None:
            return UNKNOWN
        amount = list_price(
            call.provider, call.served_model, call.input_tokens, call.output_tokens, at_us=call.started_us
        )
        return UNKNOWN if amount is None else Price(amount, "priced", price_version())

    def _own(self, call: Call) -> Price:
        with self._lock:
            seconds = self._cpu_seconds(call) if self._cpu_seconds else None
            if seconds is None:
                return UNKNOWN
            exact = seconds / 3600 * self._core_hour_usd * MICRO + self._carry
            amount = int(exact)
            self._carry = exact - amount
        return Price(amount, "estimated", f"core-hour ${self._core_hour_usd:g}")


def _list_price_usd(
    provider: str, model: str, input_tokens: Decimal, output_tokens: Decimal, at_us: int | None
) -> Decimal | None:
    try:
        from genai_prices import Usage, calc_price  # 0.15 s for its whole book: only when something is priced
    except ImportError:
        return None

    when = None if at_us is None else datetime.fromtimestamp(at_us / MICRO, UTC)
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    try:
        price = calc_price(usage, model, provider_id=provider, genai_request_timestamp=when)
    except (LookupError, ValueError):  # no such provider or model, or no price for this use of it
        return None
    return Decimal(price.total_price)
