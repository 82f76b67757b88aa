"""What is kept of one call the moment it ends: raw material, from which the record is made afterwards."""

import msgspec

from doorstep.gateway.chat import Seen, Trace

DROPPED = "dropped_call"  # gap of a call that was answered but could not be kept: only this much is known of it


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one upstream. ``status`` 0: there was no answer."""

    provider: str
    model: str
    started_us: int
    ended_us: int
    status: int
    error: str | None = None
    key: str | None = None  # which of the provider's keys, as the environment variable's name


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """One finished call. ``response`` is what the client was sent, or would have been.

    Where the provider speaks another dialect than the client, ``upstream_dialect`` names it. ``attempts`` are kept when
    there was more than one, or none that went well.
    """

    call_id: str
    run_id: str | None
    dialect: str
    requested_model: str
    served_model: str
    provider: str
    adapter: str | None
    stream: bool
    started_us: int
    first_us: int | None
    ended_us: int
    status: int
    error: str | None
    request: bytes
    response: bytes
    trace: Trace | None = None
    seen: Seen | None = None
    key_id: str | None = None
    customer: str | None = None  # from the header x-doorstep-customer, for deletion
    upstream_dialect: str | None = None
    upstream_id: str | None = None  # the provider's id of the call, for its invoice and its support
    attempts: list[Attempt] = []
    retry_of: str | None = None
    cached: bool = False  # answered from the exact-match cache: nothing was spent
    units: dict[str, float] = {}  # what the request itself tells of its price, such as characters
    gaps: list[str] = []  # known already, such as ``response_truncated``
