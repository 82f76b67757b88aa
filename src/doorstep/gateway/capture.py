"""What is kept of one call the moment it ends: raw material, from which the record is made afterwards."""

import msgspec

from doorstep.gateway.chat import Trace


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """One finished call. ``response`` is what the client was sent, or would have been."""

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
