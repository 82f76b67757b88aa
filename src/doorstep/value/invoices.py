"""Invoices: a provider's own export of what it charged, compared with the record by day and model, to the cent.

Known are the exports of OpenAI (costs by line item) and Anthropic (costs by token type), as CSV. They name models in
their own way, with a date or with spaces; names are compared without that.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path

import msgspec

from doorstep.errors import BadInput
from doorstep.store import Store
from doorstep.store.queries import DAY_US, daily_costs

EPOCH = date(1970, 1, 1).toordinal()
_CENT, _MICRO = Decimal("0.01"), Decimal(1_000_000)
_DATE = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What was charged for a model on a day, and what the record says of it, US dollars in cents' precision."""

    day: str
    model: str
    invoice_usd: str
    record_usd: str
    calls: int
    unpriced: int  # calls without a known price, missing from the record's sum

    @property
    def same(self) -> bool:
        """Whether they are equal to the cent."""
        return self.invoice_usd == self.record_usd


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice beside the record, over the days of the invoice."""

    provider: str
    lines: list[Line]

    @property
    def same(self) -> bool:
        """Whether all of it is equal to the cent."""
        return all(line.same for line in self.lines)


class _Export(msgspec.Struct, frozen=True):
    """How a provider's export is spelled."""

    provider: str
    day: str
    model: str
    amount: str


EXPORTS = (
    _Export("openai", "start_time_iso", "line_item", "amount_value"),
    _Export("anthropic", "usage_date_utc", "model", "cost_usd"),
)


def reconcile(store: Store, file: Path) -> Reconciliation:
    """Compare an export with the record."""
    export, charged = _read(file)
    days = [day for day, _ in charged]
    rows = daily_costs(store, export.provider, min(days) * DAY_US, (max(days) + 1) * DAY_US)
    recorded: defaultdict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        sums = recorded[row.day, _name(row.served_model)]
        sums[0], sums[1], sums[2] = sums[0] + row.cost_microusd, sums[1] + row.calls, sums[2] + row.unpriced
    keys = sorted(charged.keys() | recorded.keys())
    lines = [_line(key, charged.get(key, Decimal(0)), recorded[key]) for key in keys]
    return Reconciliation(provider=export.provider, lines=lines)


def _line(key: tuple[int, str], charged: Decimal, recorded: list[int]) -> Line:
    day, model = key
    cost, calls, unpriced = recorded
    return Line(
        day=date.fromordinal(EPOCH + day).isoformat(),
        model=model,
        invoice_usd=_cents(charged),
        record_usd=_cents(cost / _MICRO),
        calls=calls,
        unpriced=unpriced,
    )


def _cents(usd: Decimal) -> str:
    return str(usd.quantize(_CENT, ROUND_HALF_EVEN))


def _read(file: Path) -> tuple[_Export, dict[tuple[int, str], Decimal]]:
    """Return whose export a file is, and what it charges by day and model."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            export = _export(file, reader.fieldnames or ())
            charged: defaultdict[tuple[int, str], Decimal] = defaultdict(Decimal)
            for key, amount in _charges(file, export, reader):
                charged[key] += amount
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(str(file), f"cannot be read ({error})") from None
    if not charged:
        raise BadInput(str(file), "holds no charges")
    return export, dict(charged)


def _export(file: Path, columns: Sequence[str]) -> _Export:
    for export in EXPORTS:
        if {export.day, export.model, export.amount} <= set(columns):
            return export
    wanted = " or ".join(f"{one.day}, {one.model} and {one.amount} ({one.provider})" for one in EXPORTS)
    raise BadInput(str(file), f"no export of costs that is known; those have the columns {wanted}")


def _charges(file: Path, export: _Export, rows: "csv.DictReader[str]") -> Iterator[tuple[tuple[int, str], Decimal]]:
    for row in rows:
        try:
            day, amount = date.fromisoformat(row[export.day][:10]), Decimal(row[export.amount] or "0")
        except (InvalidOperation, ValueError, TypeError):
            raise BadInput(f"{file}:{rows.line_num}", "no line of costs: it has no date or no amount") from None
        if amount:
            yield (day.toordinal() - EPOCH, _name(row[export.model])), amount


def _name(model: str) -> str:
    """Return a model's name as it can be compared: ``gpt-5-mini-2025-08-07, input`` is ``gpt-5-mini``."""
    plain = _DATE.sub("", model.partition(",")[0].strip().lower())
    return re.sub(r"[^a-z0-9]+", "-", plain)
