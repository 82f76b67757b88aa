"""Prices: what a call cost, in integer micro-dollars, with the basis and the version of the figure.

A hosted model's rates come from ``[prices.models]`` of the settings, else from the price book of the ``genai-prices``
package as installed (never updated over the network), else from our own small table of media. Our own engine's calls
are estimated from the CPU time that they took. What cannot be priced is ``None``, never 0.

Rounding: amounts are exact until they are written; then each call of a model gets the whole micro-dollars of what it
cost plus what was left of the calls before it. So a sum of calls is right to a micro-dollar, however small they are.
"""

import tomllib
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from doorstep import ids
from doorstep.config import ModelPrice, PriceSettings
from doorstep.types import Call

LOCAL = "local"  # the provider name of our own engine
MICRO = 1_000_000
MEDIA = Path(__file__).with_name("media_prices.toml")
SETTINGS = "doorstep.toml"
MOST_FOUND = 1000  # models whose place in the price book is remembered
ABORTED = 499  # the client went away: the provider may have charged for what it had done

# Parts of the tokens that have a rate of their own where the model has one; the rest is at the plain rate.
_PARTS_IN = {
    "cached": "cached_tokens",
    "cache_write": "cache_write_tokens",
    "input_audio": "input_audio_tokens",
    "input_image": "input_image_tokens",
}
_PARTS_OUT = {
    "reasoning": "reasoning_tokens",
    "output_audio": "output_audio_tokens",
    "output_image": "output_image_tokens",
}
_SUFFICIENT = {"input", "output", "requests"}  # rates of what every call has: the others ask for their units

# Keys of the price book, what we call them, and how many one price is of.
_BOOK = {
    "input_mtok": ("input", MICRO),
    "output_mtok": ("output", MICRO),
    "cache_read_mtok": ("cached", MICRO),
    "cache_write_mtok": ("cache_write", MICRO),
    "output_reasoning_mtok": ("reasoning", MICRO),
    "input_audio_mtok": ("input_audio", MICRO),
    "output_audio_mtok": ("output_audio", MICRO),
    "input_image_mtok": ("input_image", MICRO),
    "output_image_mtok": ("output_image", MICRO),
    "input_mchars": ("characters", MICRO),
    "audio_hours": ("seconds", 3600),
    "input_audio_hours": ("seconds", 3600),
    "requests_kcount": ("requests", 1000),
}
_PER_MILLION = {name for name, per in _BOOK.values() if per == MICRO}


class Counts(Protocol):
    """What is priced: the usage of an answer, or a call of the record."""

    @property
    def input_tokens(self) -> int | Decimal | None: ...  # noqa: D102
    @property
    def output_tokens(self) -> int | Decimal | None: ...  # noqa: D102
    @property
    def units(self) -> Mapping[str, float]: ...  # noqa: D102


class Price(NamedTuple):
    """What a call cost. All three are ``None`` when it is not known."""

    microusd: int | None
    basis: str | None  # ``priced`` by rates, ``estimated`` from own CPU time, ``free``
    version: str | None


UNKNOWN = Price(None, None, None)
FREE = Price(0, "free", None)  # answered from our own cache, or with an error by the provider


class Step(msgspec.Struct, frozen=True):
    """Rates of calls with more input tokens than ``above``; they hold for all of the call's tokens."""

    above: int
    rates: Mapping[str, Decimal]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs: micro-dollars for one token, image, second, …; exact. The last step that applies counts."""

    version: str
    steps: list[Step]

    @property
    def input(self) -> float:
        """Micro-dollars of an ordinary input token of a short call."""
        return float(self.steps[0].rates.get("input", 0))

    @property
    def output(self) -> float:
        """Micro-dollars of an ordinary output token of a short call."""
        return float(self.steps[0].rates.get("output", 0))

    def cost(self, counts: Counts) -> Decimal | None:
        """Return what a call cost, micro-dollars; ``None`` when a count that is priced is not known or contradicts."""
        given = counts.input_tokens or 0
        rates = next(step.rates for step in reversed(self.steps) if given > step.above)
        units = [rate * _exact(count) for name, count in counts.units.items() if (rate := _rate(rates, name))]
        said = _tokens(rates, "input", counts.input_tokens, counts, _PARTS_IN)
        answered = _tokens(rates, "output", counts.output_tokens, counts, _PARTS_OUT)
        if units and counts.input_tokens is None and counts.output_tokens is None:
            said = answered = Decimal(0)  # counted in units and not in tokens, as a transcription by the second
        if said is None or answered is None or not (units or rates.keys() & _SUFFICIENT):
            return None
        return sum(units, said + answered + rates.get("requests", 0))

    def amount(self, counts: Counts) -> int | None:
        """Return what a call cost in whole micro-dollars, for budgets; the record's sums are exact."""
        exact = self.cost(counts)
        return None if exact is None else int(exact.to_integral_value(ROUND_HALF_EVEN))


class PriceBook:
    """The rates of all models under some settings."""

    def __init__(self, settings: PriceSettings) -> None:
        self._own = {
            name.lower(): _of_settings(price, f"{SETTINGS} {ids.digest(msgspec.to_builtins(price))[:8]}")
            for name, price in settings.models.items()
        }
        self._compiled: dict[int, Rates] = {}  # by the book's own object, of which there is one per model and period
        self._found: dict[tuple[str, str], Any] = {}  # the book's models

    def rates(self, provider: str, model: str, at_us: int | None = None) -> Rates | None:
        """Return what a model costs, or did at a moment; ``None`` when that is not known.

        Our own engine's tokens cost nothing by themselves: what a call came to is known from its CPU time.
        """
        if provider == LOCAL:
            return NOTHING
        name = f"{provider}/{model}".lower()
        return self._own.get(name) or self._listed(provider, model, at_us) or _media().get(name)

    def _listed(self, provider: str, model: str, at_us: int | None) -> Rates | None:
        key = provider, model
        if key not in self._found:
            if len(self._found) >= MOST_FOUND:  # a client can name any model
                self._found.clear()
            self._found[key] = _find(provider, model)
        if (found := self._found[key]) is None:
            return None
        when = datetime.now(UTC) if at_us is None else datetime.fromtimestamp(at_us / MICRO, UTC)
        prices = found.get_prices(when)
        if (rates := self._compiled.get(id(prices))) is None:
            rates = self._compiled[id(prices)] = _compile(prices)
        return rates if rates.steps[0].rates else None


class Pricer:
    """Prices calls as they are recorded, one after the other."""

    def __init__(self, settings: PriceSettings) -> None:
        self._book = PriceBook(settings)
        self._cpu_second = Decimal(str(settings.core_hour_usd)) * MICRO / 3600
        self._cpu_version = f"core-hour ${settings.core_hour_usd:g}"
        self._carry: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)  # what is less than a micro-dollar

    def price(self, call: Call, cpu_seconds: float | None = None) -> Price:
        """Return what a call cost. ``cpu_seconds`` is what our own engine took for it."""
        if call.cached:
            return FREE
        if call.provider == LOCAL and cpu_seconds is not None:
            return Price(self._whole(call, self._cpu_second * _exact(cpu_seconds)), "estimated", self._cpu_version)
        if call.status_code >= 400 and call.status_code != ABORTED and call.output_tokens is None:
            return FREE
        rates = None if call.provider == LOCAL else self._book.rates(call.provider, call.served_model, call.started_us)
        exact = None if rates is None else rates.cost(call)
        if rates is None or exact is None:
            return UNKNOWN
        return Price(self._whole(call, exact), "priced", rates.version)

    def _whole(self, call: Call, exact: Decimal) -> int:
        key = call.provider, call.served_model
        exact += self._carry[key]
        amount = int(exact)
        self._carry[key] = exact - amount
        return amount


class _Average(msgspec.Struct):
    """A call of average size."""

    input_tokens: Decimal
    output_tokens: Decimal
    units: dict[str, float] = {}


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
    rates = _listed().rates(provider, model, at_us)
    average = _Average(input_tokens=Decimal(input_tokens) / calls, output_tokens=Decimal(output_tokens) / calls)
    one = None if rates is None else rates.cost(average)
    return None if one is None else round(one * calls)


@cache
def _listed() -> PriceBook:
    return PriceBook(PriceSettings())


def _tokens(
    rates: Mapping[str, Decimal], plain: str, total: int | Decimal | None, counts: Counts, parts: Mapping[str, str]
) -> Decimal | None:
    """Return what the tokens of one direction cost; ``None`` when they are priced and not known."""
    if total is None:
        return None if plain in rates else Decimal(0)
    rest, amount = total, Decimal(0)
    for name, field in parts.items():
        if name in rates and (count := getattr(counts, field, None) or counts.units.get(field)):
            rest -= int(count)
            amount += rates[name] * int(count)
    return None if rest < 0 else amount + rates.get(plain, 0) * rest


def _rate(rates: Mapping[str, Decimal], unit: str) -> Decimal | None:
    """Return the rate of a unit; seconds of a video, ``seconds_720p``, may have one for their resolution."""
    return rates.get(unit) or (rates.get("seconds") if unit.startswith("seconds_") else None)


def _exact(number: float) -> Decimal:
    return Decimal(str(number))


# Where rates come from


def _find(provider: str, model: str) -> Any:
    """Return the price book's model, or ``None``."""
    try:
        from genai_prices.data_snapshot import get_snapshot  # 0.15 s for its whole book: only when something is priced
    except ImportError:
        return None
    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1]
    except (LookupError, ValueError):  # no such provider or model
        return None


def _compile(prices: Any) -> Rates:
    """Return the price book's prices of one period as rates."""
    listed = {key: price for key in _BOOK if (price := getattr(prices, key)) is not None}
    starts = {tier.start for price in listed.values() for tier in getattr(price, "tiers", ())}
    steps = [
        Step(above, {_BOOK[key][0]: _at(price, above) * MICRO / _BOOK[key][1] for key, price in listed.items()})
        for above in sorted({-1, *starts})
    ]
    return Rates(version=price_version(), steps=steps)


def _at(price: Any, above: int) -> Decimal:
    """Return the price that holds for calls with more input tokens than ``above``."""
    tiers = getattr(price, "tiers", None)
    if tiers is None:
        return Decimal(price)
    return Decimal(next((tier.price for tier in reversed(tiers) if above >= tier.start), price.base))


@cache
def _media() -> dict[str, Rates]:
    table = tomllib.loads(MEDIA.read_text("utf-8"))
    prices = msgspec.convert(table["models"], dict[str, ModelPrice])
    return {name: _of_settings(price, f"doorstep-media {table['version']}") for name, price in prices.items()}


def _of_settings(price: ModelPrice, name: str) -> Rates:
    said = {field: value for field in price.__struct_fields__ if isinstance(value := getattr(price, field), float)}
    rates = {field: _exact(value) * (1 if field in _PER_MILLION else MICRO) for field, value in said.items()}
    return Rates(version=name, steps=[Step(-1, rates)])


NOTHING = Rates(version="own engine", steps=[Step(-1, {"input": Decimal(0), "output": Decimal(0)})])
