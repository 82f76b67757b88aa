"""The gateway as a whole: the parts that every call works with."""

from collections.abc import Callable

import msgspec

from doorstep.gateway import door
from doorstep.gateway.cache import Cache
from doorstep.gateway.capture import Capture
from doorstep.gateway.chat import Usage
from doorstep.gateway.coalesce import Retries
from doorstep.gateway.dialects import table
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.keys import Caller, Keys
from doorstep.gateway.limits import NO_RESERVATION, Limits, Reservation, estimate
from doorstep.gateway.metrics import Metrics
from doorstep.gateway.models import WORKFLOW, Models, Plan
from doorstep.gateway.recorder import Recorder
from doorstep.gateway.traffic import Traffic
from doorstep.value.prices import ABORTED, Rates

RatesOf = Callable[[str, str], Rates | None]


class Gateway:
    """What every address of the gateway works with. ``rates`` gives the prices of a provider's model."""

    def __init__(
        self,
        *,
        models: Models,
        recorder: Recorder,
        keys: Keys,
        limits: Limits,
        cache: Cache,
        rates: RatesOf,
    ) -> None:
        self.models = models
        self.recorder = recorder
        self.keys = keys
        self.cache = cache
        self.traffic = Traffic()
        self.retries = Retries()
        self.metrics = Metrics()
        self.address = door.address_of
        self._limits = limits
        self._rates = rates

    def admit(self, caller: Caller, plan: Plan, head: Head, size: int) -> Reservation:
        """Reserve what a call may come to on the dearest of its targets; ``LimitReached`` when it may not be."""
        workflow = head.model.removeprefix(WORKFLOW) if head.model.startswith(WORKFLOW) else None
        if not self._limits.apply_to(caller, workflow):
            return NO_RESERVATION
        most = [
            estimate(size, head.most_output, self._rates(target.provider.name, target.model), head.units)
            for target in (*plan.targets, *plan.fallback)
        ]
        tokens = max(one.tokens for one in most)
        prices = [one.microusd for one in most if one.microusd is not None]
        money = max(prices) if len(prices) == len(most) else None
        return self._limits.admit(caller, head.model, workflow, tokens, money)

    def keep(self, capture: Capture, reservation: Reservation | None) -> None:
        """Record a call that has ended, and settle what was reserved for it.

        An answer that was broken off, by whomever, may have cost all that was reserved.
        """
        self.recorder.put(capture)
        if reservation is None or reservation is NO_RESERVATION:
            return
        left_midway = capture.status == ABORTED and capture.first_us is not None
        if capture.cached or (capture.status >= 400 and not left_midway):
            reservation.release()
            return
        usage = self._usage(capture)
        if usage is None:
            reservation.settle(None, None)
            return
        rates = self._rates(capture.provider, capture.served_model)
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        reservation.settle(tokens or None, None if rates is None else rates.amount(usage))

    @staticmethod
    def _usage(capture: Capture) -> Usage | None:
        """Return what a call used, as far as it is known without the record; None for an answer that is not whole."""
        reading = table.DIALECTS[capture.dialect].understand(capture.response)
        usage = reading.usage
        if capture.trace is not None:
            usage = Usage(
                input_tokens=len(capture.trace.prompt),
                output_tokens=sum(len(sample.ids) for sample in capture.trace.samples),
            )
        elif usage.output_tokens is None and capture.seen is not None:
            usage = capture.seen.usage
        elif not reading.complete:
            return None
        return msgspec.structs.replace(usage, units={**capture.units, **usage.units})
