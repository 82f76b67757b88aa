"""``/metrics``: what is counted, in the text format 0.0.4 of Prometheus. It tells of money, so it takes a key."""

import asyncio
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep import __version__
from doorstep.gateway.cache import Cache
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.door import NO_KEY
from doorstep.gateway.gateway import Gateway
from doorstep.gateway.histogram import Histogram
from doorstep.gateway.metrics import Family, Labels, Metrics, Sample
from doorstep.gateway.recorder import Recorder
from doorstep.gateway.traffic import Traffic
from doorstep.gateway.traffic.circuit import State
from doorstep.gateway.usage import Meter

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STARTED = time.time()
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")

_NAMES = ("dialect", "provider", "model")


def routes(gateway: Gateway, meter: Meter, others: Callable[[], Iterable[Family]] = tuple) -> list[Route]:
    """Return the route to put at the root; ``others`` gives what other parts count."""

    async def page(request: Request) -> Response:
        if gateway.keys.who(dict(request.headers.raw)) is None:
            return Response(openai_chat.error(401, NO_KEY), 401, media_type="application/json")
        await asyncio.to_thread(meter.read)
        written = text(gateway.metrics, meter, gateway.recorder, gateway.traffic, gateway.cache, others())
        return Response(written, media_type=MEDIA_TYPE)

    return [Route("/metrics", page, methods=["GET"])]


def text(
    metrics: Metrics,
    meter: Meter,
    recorder: Recorder,
    traffic: Traffic,
    cache: Cache,
    others: Iterable[Family] = (),
) -> bytes:
    """Return the page."""
    lines = [
        *_calls(metrics),
        *_tries(metrics),
        *_used(meter),
        *_traffic(traffic),
        *_recorder(recorder),
        *_family("doorstep_cache_bytes", "gauge", "Bytes of the answers that are kept.", [((), cache.bytes)]),
        *[line for family in others for line in _family(*family)],
        *_process(),
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _calls(metrics: Metrics) -> Iterator[str]:
    series = {_labels(label): one for label, one in metrics.series.items()}
    statuses = [
        ((*label, ("status", str(status))), count)
        for label, one in series.items()
        for status, count in one.statuses.items()
    ]
    yield from _family("doorstep_calls_total", "counter", "Calls that ended, by the status shown.", statuses)
    broken = [(label, one.broken) for label, one in series.items()]
    yield from _family("doorstep_calls_broken_total", "counter", "Calls that failed after their first byte.", broken)
    cached = [(label, one.cached) for label, one in series.items()]
    yield from _family("doorstep_cache_hits_total", "counter", "Calls answered from the gateway's own cache.", cached)
    seconds = {label: one.seconds for label, one in series.items()}
    yield from _histograms("doorstep_call_seconds", "From the request to the end of the answer.", seconds)
    first = {label: one.first_byte for label, one in series.items()}
    yield from _histograms("doorstep_first_byte_seconds", "From the request to the answer's first byte.", first)


def _tries(metrics: Metrics) -> Iterator[str]:
    failed = [((("provider", name), ("status", str(status))), n) for (name, status), n in metrics.failed.items()]
    yield from _family("doorstep_tries_failed_total", "counter", "Tries that failed; status 0: no answer.", failed)
    retries = [((("provider", name),), n) for name, n in metrics.retries.items()]
    yield from _family("doorstep_retries_total", "counter", "Tries of the same model again.", retries)
    moves = [((("provider", one), ("to", other)), n) for (one, other), n in metrics.fallbacks.items()]
    yield from _family("doorstep_fallbacks_total", "counter", "Tries of another model after a failure.", moves)
    limited = [((("code", code),), n) for code, n in metrics.limited.items()]
    yield from _family("doorstep_calls_limited_total", "counter", "Calls that a limit or budget refused.", limited)


def _used(meter: Meter) -> Iterator[str]:
    used = {_labels(label): one for label, one in meter.used.items()}
    tokens = {(*label, ("type", "input")): one.input for label, one in used.items()}
    tokens |= {(*label, ("type", "output")): one.output for label, one in used.items()}
    yield from _histograms("doorstep_tokens", "Tokens of a call, once it is in the store.", tokens)
    parts = [
        ((*label, ("part", part)), getattr(one, f"{part}_tokens"))
        for label, one in used.items()
        for part in ("cached", "cache_write", "reasoning")
    ]
    yield from _family("doorstep_tokens_part_total", "counter", "Tokens among them that are priced apart.", parts)
    cost = [(label, one.cost_microusd / 1_000_000) for label, one in used.items()]
    yield from _family("doorstep_cost_usd_total", "counter", "What the calls in the store cost.", cost)
    unpriced = [(label, one.unpriced) for label, one in used.items()]
    yield from _family("doorstep_calls_unpriced_total", "counter", "Calls whose price is not known.", unpriced)


def _traffic(traffic: Traffic) -> Iterator[str]:
    states = [
        ((("provider", one.provider), ("model", one.model), ("state", state)), int(one.state is state))
        for one in traffic.shown()
        for state in State
    ]
    yield from _family("doorstep_circuit_state", "gauge", "1 for the state of a model that failed lately.", states)
    resting = [
        ((("provider", provider), ("key", one.key), ("model", one.model)), one.seconds)
        for provider, keys in traffic.resting().items()
        for one in keys
    ]
    yield from _family("doorstep_key_resting_seconds", "gauge", "For how long a provider's key is not used.", resting)


def _recorder(recorder: Recorder) -> Iterator[str]:
    for name, kind, meaning, value in (
        ("doorstep_calls_dropped_total", "counter", "Calls answered but not recorded.", recorder.dropped),
        ("doorstep_calls_refused_total", "counter", "Calls that the store refused.", recorder.refused),
        ("doorstep_recorder_backlog_bytes", "gauge", "Bytes not in the store yet.", recorder.backlog),
        ("doorstep_recorder_away_seconds", "gauge", "Time since the store takes nothing.", recorder.away_s),
    ):
        yield from _family(name, kind, meaning, [((), value)])


def _process() -> Iterator[str]:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    build = ("version", __version__), ("python", platform.python_version())
    yield from _family("doorstep_build_info", "gauge", "What runs.", [(build, 1)])
    for name, kind, meaning, value in (
        ("process_cpu_seconds_total", "counter", "CPU time of this process.", spent.ru_utime + spent.ru_stime),
        ("process_resident_memory_bytes", "gauge", "Memory of this process.", _resident(spent.ru_maxrss)),
        ("process_start_time_seconds", "gauge", "When this process began.", STARTED),
    ):
        yield from _family(name, kind, meaning, [((), value)])


def _resident(most: int) -> int:
    """Return the memory that is held now; where the system does not tell, the ``most`` that ever was."""
    if _STATM.exists():
        return int(_STATM.read_text("ascii").split()[1]) * _PAGE
    return most if sys.platform == "darwin" else most * 1024


# The format


def _labels(values: tuple[str, str, str]) -> Labels:
    return tuple(zip(_NAMES, values, strict=True))


def _family(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield _line(name, labels, value)


def _histograms(name: str, meaning: str, histograms: Mapping[Labels, Histogram]) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} histogram"
    for labels, histogram in histograms.items():
        total = 0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            total += count
            yield _line(f"{name}_bucket", (*labels, ("le", bound)), total)
        yield _line(f"{name}_sum", labels, histogram.sum)
        yield _line(f"{name}_count", labels, total)


def _line(name: str, labels: Labels, value: float) -> str:
    if not labels:
        return f"{name} {value}"
    inside = ",".join([f'{key}="{_escaped(text)}"' for key, text in labels])
    return f"{name}{{{inside}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
