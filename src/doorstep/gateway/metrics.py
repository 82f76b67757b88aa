"""Counts of the gateway's calls, and their spelling for Prometheus."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from doorstep.gateway.recorder import Recorder


class Metrics:
    """Counted since the start of the process."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._broken: Counter[str] = Counter()

    def count(self, provider: str, status: int, seconds: float, *, broken: bool) -> None:
        """Count a call; ``broken`` when it failed after its first byte."""
        self._calls[provider, status] += 1
        self._seconds[provider] += seconds
        self._broken[provider] += broken

    def text(self, recorder: Recorder) -> str:
        """Return the exposition format, version 0.0.4."""
        calls = {f'provider="{name}",status="{status}"': count for (name, status), count in self._calls.items()}
        seconds = {f'provider="{name}"': value for name, value in self._seconds.items()}
        broken = {f'provider="{name}"': value for name, value in self._broken.items()}
        families: list[tuple[str, str, str, Mapping[str, float]]] = [
            ("doorstep_calls_total", "counter", "Model calls by provider and HTTP status.", calls),
            ("doorstep_call_seconds_total", "counter", "Time that calls took, summed.", seconds),
            ("doorstep_calls_broken_total", "counter", "Calls that failed after their first byte.", broken),
            ("doorstep_calls_dropped_total", "counter", "Calls answered but not recorded.", {"": recorder.dropped}),
            ("doorstep_calls_refused_total", "counter", "Calls that the store refused.", {"": recorder.refused}),
            ("doorstep_calls_unpriced_total", "counter", "Calls whose price is not known.", {"": recorder.unpriced}),
            ("doorstep_recorder_away_seconds", "gauge", "Time since the store takes nothing.", {"": recorder.away_s}),
            ("doorstep_recorder_backlog_bytes", "gauge", "Bytes not in the store yet.", {"": recorder.backlog}),
        ]
        return "".join(_family(*family) for family in families)


def _family(name: str, kind: str, meaning: str, samples: Mapping[str, float]) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in samples.items()]
    return "\n".join(lines) + "\n"
