"""What the training service counts, as families of samples for ``/metrics``; the server has them spelt."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doorstep.training.service import Service

Sample = tuple[tuple[tuple[str, str], ...], float]
Family = tuple[str, str, str, list[Sample]]  # name, kind, meaning, samples

_COUNTERS = (
    ("operations", "Operations that came to their end; each optim_step is a step."),
    ("tokens", "Tokens in them."),
    ("seconds", "Time of the engine that they took."),
    ("queued_s", "Time that they waited in their model's order."),
)


def families(service: "Service") -> Iterator[Family]:
    """Yield what has been counted since the start of the process, and what is live and waits now."""
    for field, meaning in _COUNTERS:
        name = f"doorstep_training_{field.replace('queued_s', 'queued_seconds')}_total"
        yield name, "counter", meaning, _by_kind(getattr(service.steps, field))
    yield "doorstep_training_models", "gauge", "Models that are live.", [((), service.live_models())]
    yield "doorstep_training_queue", "gauge", "Operations that wait or run.", _by_kind(service.queued())


def _by_kind(counts: Mapping[str, float]) -> list[Sample]:
    return [((("kind", kind),), value) for kind, value in sorted(counts.items())]
