"""Tenants: what each may hold and has used. Knows no wire; who a tenant is decides the server.

Usage is kept by tenant and day (UTC) in ``usage.jsonl``, one line per booking, summed up into few lines when it is read
at the start. A line is not synced: it outlives the process, and one that was cut off is passed over.
"""

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from doorstep.config import TrainingSettings
from doorstep.errors import LimitReached
from doorstep.training.registry import Registry

log = logging.getLogger(__name__)

TRAINED, SCORED, SAMPLED = "trained", "scored", "sampled"  # kinds of tokens
MOST_LINES = 100_000  # after which they are summed up
FORBIDDEN = 403  # the SDK gives up on it at once and shows the reason; on 402 and 429 it would wait

_encoder = msgspec.json.Encoder()


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant used of one kind on one day."""

    day: str
    tenant: str
    kind: str
    tokens: int
    seconds: float  # of the engine

    def plus(self, tokens: int, seconds: float) -> "Used":
        """Return it with more."""
        return msgspec.structs.replace(self, tokens=self.tokens + tokens, seconds=self.seconds + seconds)


class Usage:
    """Sums by day, tenant and kind; ``book`` writes each addition to the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sums = read(file)
        self._lines = 0

    def compact(self) -> None:
        """Write the sums in place of the lines that they came from. Only the process that owns the folder may."""
        aside = self._file.with_name(f"{self._file.name}.new")
        self._lines = 0
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as out:
                out.writelines(_encoder.encode(used) + b"\n" for used in self._sums.values())
                out.flush()
                os.fsync(out.fileno())
            aside.replace(self._file)
        except OSError as error:
            log.warning("%s keeps its lines, which cannot be summed up: %s", self._file, error)

    def book(self, tenant: str, kind: str, tokens: int, seconds: float) -> None:
        """Add what an operation took."""
        added = Used(day=_today(), tenant=tenant, kind=kind, tokens=tokens, seconds=seconds)
        _add(self._sums, added)
        try:
            with self._file.open("ab") as file:
                file.write(_encoder.encode(added) + b"\n")
            self._lines += 1
            if self._lines >= MOST_LINES:
                self.compact()
        except OSError as error:
            log.warning("usage of tenant %s is not written down: %s", tenant, error)

    def of(self, tenant: str | None) -> list[Used]:
        """Return what a tenant (None: each) used, by day."""
        found = [used for used in list(self._sums.values()) if tenant in (None, used.tenant)]
        return sorted(found, key=lambda used: (used.day, used.tenant, used.kind))

    def tokens_today(self, tenant: str) -> int:
        """Return a tenant's tokens of this day, of all kinds."""
        keys = [(_today(), tenant, kind) for kind in (TRAINED, SCORED, SAMPLED)]
        return sum(self._sums[key].tokens for key in keys if key in self._sums)


class Quotas:
    """Refuses what is beyond a tenant's limits, and books what was done."""

    def __init__(self, limits: TrainingSettings, usage: Usage, registry: Registry) -> None:
        self.limits = limits
        self.usage = usage
        self._registry = registry

    def admit_model(self, tenant: str, live: int) -> None:
        """Raise LimitReached when a tenant with ``live`` models may not have one more."""
        most = self.limits.max_models
        if most and live >= most:
            raise LimitReached(
                f"tenant {tenant} has {live} models here, and {most} are allowed at once. Close a ServiceClient that "
                "is not needed any more, which frees its models.",
                FORBIDDEN,
                "training_models",
            )

    def admit_tokens(self, tenant: str, tokens: int) -> None:
        """Raise LimitReached when so many tokens more are beyond the tenant's day."""
        most = self.limits.max_tokens_per_day
        if most and (used := self.usage.tokens_today(tenant)) + tokens > most:
            raise LimitReached(
                f"{tokens} tokens more are beyond your {most} a day; {used} are used. Go on after 00:00 UTC.",
                FORBIDDEN,
                "training_tokens",
                _seconds_of_day_left(),
            )

    def admit_checkpoint(self, tenant: str) -> None:
        """Raise LimitReached when a tenant's checkpoints fill what they may."""
        most = self.limits.max_checkpoint_bytes
        if most and (held := self._registry.bytes_of(tenant)) >= most:
            raise LimitReached(
                f"your checkpoints take {held} bytes, and {most} are allowed. Delete some, or give them a ttl_seconds.",
                FORBIDDEN,
                "training_bytes",
            )

    def book(self, tenant: str, kind: str, tokens: int, seconds: float) -> None:
        """Add what an operation took; ``kind`` is trained, scored or sampled."""
        self.usage.book(tenant, kind, tokens, seconds)


def read(file: Path) -> dict[tuple[str, str, str], Used]:
    """Return the sums of a file of usage."""
    sums: dict[tuple[str, str, str], Used] = {}
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            _add(sums, msgspec.json.decode(line, type=Used))
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.warning("%s: a line cannot be read and is left out: %r", file, line[:80])
    return sums


def _add(sums: dict[tuple[str, str, str], Used], added: Used) -> None:
    key = (added.day, added.tenant, added.kind)
    before = sums.get(key)
    sums[key] = added if before is None else before.plus(added.tokens, added.seconds)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _seconds_of_day_left() -> float:
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight - now).total_seconds()
