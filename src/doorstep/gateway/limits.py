"""Limits: what a key and a workflow may ask for and spend, kept by reserving before a call and settling after it.

Every endpoint goes the same way: ``admit`` takes a request, the tokens and the money that the call may come to out of
what is left, all or nothing; ``settle`` puts what it really came to in their place, ``release`` gives them back. So
calls at the same time cannot spend the same money. Everything is in memory, for the calls of one event loop. What the
store says was spent this month is read at the start (``restore``), and for a key that gets limits later as soon as it
calls (``follow``). What has no limits is not counted here and costs nothing.

Requests and tokens flow evenly into a bucket that holds a minute's worth. A call that may need more than the bucket
holds waits for a full one, since an estimate is rough (a picture is many bytes and few tokens). What a call used beyond
its estimate is owed and flows in first. A budget can be exceeded by that much too, by the calls that were under way.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import NamedTuple

from doorstep import ids
from doorstep.config import LimitSettings, WorkflowSettings
from doorstep.errors import LimitReached, StoreError
from doorstep.gateway.keys import UNLIMITED, Allowance, Caller
from doorstep.gateway.models import WORKFLOW
from doorstep.store import Store, queries
from doorstep.store.queries import DAY_US
from doorstep.value.prices import Rates

log = logging.getLogger(__name__)

MINUTE_US = 60_000_000
AGAIN_S = 1.0
BYTES_PER_TOKEN = 4  # a rule of thumb for English
MOST_TOKENS = 1_000_000_000  # of an answer: a request may say anything, also less than nothing
OUTPUT_TOKENS = 4_096  # taken for an answer whose request does not say how long it may get

NO_UNITS: Mapping[str, float] = MappingProxyType({})


class Estimate(NamedTuple):
    """What a call may come to; the money is None when the price is not known."""

    tokens: int
    microusd: int | None


class Most(NamedTuple):
    """What a call may use at most, as prices count it."""

    input_tokens: int
    output_tokens: int
    units: Mapping[str, float]


def estimate(
    body_bytes: int, most_output: int | None, rates: Rates | None, units: Mapping[str, float] = NO_UNITS
) -> Estimate:
    """Return what a call may come to, from the length of its request, of the longest answer, and its other units.

    Where a price is of units that only the answer tells, such as seconds, nothing is reserved; they are settled.
    """
    output = OUTPUT_TOKENS if most_output is None else min(max(0, most_output), MOST_TOKENS)
    most = Most(body_bytes // BYTES_PER_TOKEN + 1, output, units)
    return Estimate(most.input_tokens + output, None if rates is None else max(0, rates.amount(most) or 0))


def asked_workflow(model: str) -> str | None:
    """Return the workflow that a name of a model asks for, if it does."""
    return model.removeprefix(WORKFLOW) if model.startswith(WORKFLOW) else None


class Bucket:
    """So many a minute. Counted in parts of a millionth of a minute's share, so that nothing is rounded."""

    __slots__ = ("_at_us", "_level", "_per_minute", "_size")

    def __init__(self, per_minute: int, now_us: int) -> None:
        self._per_minute = per_minute
        self._size = self._level = per_minute * MINUTE_US
        self._at_us = now_us

    def wait_us(self, amount: int, now_us: int) -> int:
        """Return how long until the amount can be taken; 0 for now."""
        self._level = min(self._size, self._level + max(0, now_us - self._at_us) * self._per_minute)
        self._at_us = now_us
        missing = min(self._size, amount * MINUTE_US) - self._level
        return -(-missing // self._per_minute) if missing > 0 else 0

    def take(self, amount: int) -> int:
        """Take the amount, or all that the bucket can hold; return what was taken."""
        taken = min(amount, self._per_minute)
        self._level -= taken * MINUTE_US
        return taken

    def correct(self, amount: int) -> None:
        """Take more than was taken before, or give back."""
        self._level = min(self._size, self._level - amount * MINUTE_US)


class Purse:
    """The money of one day or month: what is spent and what is reserved, in one sum."""

    __slots__ = ("begins_us", "ends_us", "name", "taken")

    def __init__(self, name: str, begins_us: int, ends_us: int) -> None:
        self.name = name
        self.begins_us = begins_us
        self.ends_us = ends_us
        self.taken = 0

    def book(self, microusd: int, at_us: int) -> None:
        """Add what was spent at that moment, if it lies in this time."""
        if self.begins_us <= at_us < self.ends_us:
            self.taken += microusd


def day_of(at_us: int) -> Purse:
    """Return an empty purse for the day of that moment."""
    begins_us = at_us - at_us % DAY_US
    return Purse("day", begins_us, begins_us + DAY_US)


def month_of(at_us: int) -> Purse:
    """Return an empty purse for the month of that moment."""
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    begins = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    ends = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    return Purse("month", round(begins.timestamp()) * 1_000_000, round(ends.timestamp()) * 1_000_000)


class Account:
    """What one key or one workflow may still ask for and spend. ``label`` is how a person knows it."""

    def __init__(self, label: str, now_us: int) -> None:
        self._label = label
        self._allowance = UNLIMITED
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._day = day_of(now_us)
        self._month = month_of(now_us)

    def allow(self, allowance: Allowance, now_us: int) -> None:
        """Set what it may. Buckets begin anew where their limit is another; what is spent stays."""
        if allowance is self._allowance:
            return
        before, self._allowance = self._allowance, allowance
        if allowance.requests_per_minute != before.requests_per_minute:
            self._requests = _bucket(allowance.requests_per_minute, now_us)
        if allowance.tokens_per_minute != before.tokens_per_minute:
            self._tokens = _bucket(allowance.tokens_per_minute, now_us)

    def check(self, model: str, estimate: Estimate, now_us: int, *, unknown_price: bool) -> None:
        """Raise ``LimitReached`` for a call that it does not cover. Takes nothing."""
        allowance = self._allowance
        if allowance.models and not any(fnmatchcase(model, pattern) for pattern in allowance.models):
            raise LimitReached(
                f"{self._label} may not use '{model}'; it may use {', '.join(allowance.models)}",
                403,
                "model_not_allowed",
            )
        if self._requests is not None:
            self._wait(self._requests.wait_us(1, now_us), f"{allowance.requests_per_minute} requests")
        if self._tokens is not None:
            self._wait(self._tokens.wait_us(estimate.tokens, now_us), f"{allowance.tokens_per_minute} tokens")
        self._turn(now_us)
        self._afford(self._day, allowance.day_microusd, estimate, now_us, unknown_price=unknown_price)
        self._afford(self._month, allowance.month_microusd, estimate, now_us, unknown_price=unknown_price)

    def take(self, estimate: Estimate) -> "Taken":
        """Take what a call may come to. ``check`` has just said that it is there."""
        if self._requests is not None:
            self._requests.take(1)
        tokens = self._tokens.take(estimate.tokens) if self._tokens is not None else 0
        reserved = estimate.microusd or 0
        self._day.taken += reserved
        self._month.taken += reserved
        return Taken(self._tokens, tokens, self._day, self._month)

    def book(self, microusd: int, at_us: int) -> None:
        """Add money that was spent at that moment."""
        self._day.book(microusd, at_us)
        self._month.book(microusd, at_us)

    def _turn(self, now_us: int) -> None:
        """Begin a new purse when the time of one is over; what is under way is settled in the old one."""
        if now_us >= self._day.ends_us:
            self._day = day_of(now_us)
        if now_us >= self._month.ends_us:
            self._month = month_of(now_us)

    def _wait(self, wait_us: int, limit: str) -> None:
        if wait_us:
            raise LimitReached(
                f"{self._label} may make {limit} a minute; try again in {wait_us / 1e6:.1f} s",
                429,
                "rate_limit_exceeded",
                wait_us / 1e6,
            )

    def _afford(self, purse: Purse, limit: int | None, estimate: Estimate, now_us: int, *, unknown_price: bool) -> None:
        if limit is None:
            return
        if estimate.microusd is None and not unknown_price:
            raise LimitReached(
                f"{self._label} has a budget, and what this model costs is not known. Give it a price under "
                '[prices.models."PROVIDER/MODEL"], or let such calls count as nothing: unknown_price = "allow" '
                "under [limits]",
                403,
                "price_unknown",
            )
        needed = estimate.microusd or 0
        if purse.taken + needed > limit:
            left = max(0, limit - purse.taken)
            raise LimitReached(
                f"{self._label} may spend {_usd(limit)} a {purse.name}; {_usd(left)} is left and this call may "
                f"come to {_usd(needed)}. The next {purse.name} begins at "
                f"{datetime.fromtimestamp(purse.ends_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC",
                402,
                "budget_exceeded",
                (purse.ends_us - now_us) / 1e6,
            )


class Taken(NamedTuple):
    """What a call has taken out of one account."""

    bucket: Bucket | None
    tokens: int
    day: Purse
    month: Purse


class Reservation:
    """What an admitted call has taken. The first ``settle`` or ``release`` ends it; what comes after is void."""

    __slots__ = ("_estimate", "_taken")

    def __init__(self, estimate: Estimate, taken: tuple[Taken, ...]) -> None:
        self._estimate = estimate
        self._taken = taken

    def settle(self, tokens: int | None, microusd: int | None) -> None:
        """Put what the call came to in the place of the estimate; for what is not known, the estimate stays."""
        used = self._estimate.tokens if tokens is None else tokens
        spent = (self._estimate.microusd or 0) if microusd is None else microusd
        more = spent - (self._estimate.microusd or 0)
        for bucket, reserved, day, month in self._taken:
            if bucket is not None:
                bucket.correct(used - reserved)
            day.taken += more
            month.taken += more
        self._taken = ()

    def release(self) -> None:
        """Give the tokens and the money back; the request counts."""
        self.settle(0, 0)


NO_RESERVATION = Reservation(Estimate(0, 0), ())  # of a call that nothing limits


class Limits:
    """The accounts of all keys and of the workflows that have limits. ``clock`` gives microseconds, UTC."""

    def __init__(
        self,
        settings: LimitSettings,
        workflows: Mapping[str, WorkflowSettings],
        clock: Callable[[], int] = ids.now_us,
    ) -> None:
        self._unknown_price = settings.unknown_price == "allow"
        self._clock = clock
        self._keys: dict[str, Account] = {}
        self._unread: asyncio.Queue[tuple[str, int, Account]] = asyncio.Queue()  # as new as these keys' limits
        self._workflows: dict[str, Account] = {}
        for name, workflow in workflows.items():
            account = self._workflows[name] = Account(f"workflow {name}", clock())
            account.allow(_allowance(workflow), clock())

    def admit(self, caller: Caller, model: str, workflow: str | None, tokens: int, microusd: int | None) -> Reservation:
        """Reserve what a call may come to, or raise ``LimitReached``. ``model`` is the name that was asked for.

        ``workflow`` is what the call says that it belongs to; a key that belongs to one has the last word.
        ``microusd`` is None when the price is not known.
        """
        if not caller.may_call:
            raise LimitReached(f"key {caller.key_id} is for reading only", 403, "role_not_allowed")
        accounts = []
        now_us = self._clock()
        if caller.key_id:
            account = self._keys.get(caller.key_id) or self._new(caller.key_id, now_us)
            account.allow(caller.allowance, now_us)
            accounts.append(account)
        shared = self._workflows.get(caller.workflow or workflow or "")
        if shared is not None:
            accounts.append(shared)
        estimate = Estimate(tokens, microusd)
        for account in accounts:
            account.check(model, estimate, now_us, unknown_price=self._unknown_price)
        return Reservation(estimate, tuple([account.take(estimate) for account in accounts]))

    def apply_to(self, caller: Caller, workflow: str | None) -> bool:
        """Tell whether anything limits a call; one that nothing limits need not be admitted and is not counted."""
        if caller.allowance != UNLIMITED or not caller.may_call:
            return True
        if (caller.workflow or workflow) in self._workflows:
            return True
        self._keys.pop(caller.key_id, None)  # from now on it would not be right
        return False

    def restore(self, store: Store, workflow_of: Mapping[str, str | None]) -> None:
        """Book what the store says was spent this month. For the start, when the store has all calls of before.

        ``workflow_of`` says which key belongs to which workflow; other calls belong to the one that they asked for.
        """
        now_us = self._clock()
        for row in queries.spent(store, month_of(now_us).begins_us):
            if row.key_id is not None and row.key_id not in self._keys:
                self._keys[row.key_id] = Account(f"key {row.key_id}", now_us)
            workflow = workflow_of.get(row.key_id or "") or asked_workflow(row.requested_model)
            self.book(row.key_id, workflow, row.cost_microusd, row.day * DAY_US)

    def book(self, key_id: str | None, workflow: str | None, microusd: int, at_us: int) -> None:
        """Add what a call cost that was not admitted here: one of before the start."""
        for account in (self._keys.get(key_id or ""), self._workflows.get(workflow or "")):
            if account is not None:
                account.book(microusd, at_us)

    async def follow(self, store: Store) -> None:
        """Book what keys had spent before they got limits, as they get some. Runs until it is cancelled."""
        while True:
            key_id, before_us, account = await self._unread.get()
            begins_us = month_of(before_us).begins_us
            try:
                rows = await asyncio.to_thread(queries.spent, store, begins_us, before_us, key_id)
            except StoreError as error:
                log.warning("what key %s has spent this month cannot be read yet: %s", key_id, error)
                self._unread.put_nowait((key_id, before_us, account))
                await asyncio.sleep(AGAIN_S)
                continue
            for row in rows:
                account.book(row.cost_microusd, row.day * DAY_US)

    def _new(self, key_id: str, now_us: int) -> Account:
        account = self._keys[key_id] = Account(f"key {key_id}", now_us)
        self._unread.put_nowait((key_id, now_us, account))  # calls that begin from now on are counted here
        return account


def _bucket(per_minute: int | None, now_us: int) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now_us)


def _allowance(workflow: WorkflowSettings) -> Allowance:
    return Allowance(
        models=workflow.models,
        requests_per_minute=workflow.requests_per_minute,
        tokens_per_minute=workflow.tokens_per_minute,
        day_microusd=_microusd(workflow.usd_per_day),
        month_microusd=_microusd(workflow.usd_per_month),
    )


def _microusd(usd: float | None) -> int | None:
    return None if usd is None else round(usd * 1e6)


def _usd(microusd: int) -> str:
    return f"${microusd / 1e6:.6f}".rstrip("0").rstrip(".")
