"""Whether one model of one provider is worth asking: a breaker that opens on failures and tries again by itself.

Closed: calls go through. Open, after some failures in a row or a bad rate of them: none does, so that callers wait for
nothing and the upstream can recover. Then half open: one call is the probe; it closes the circuit or opens it again for
twice as long.
"""

from enum import StrEnum

import msgspec

FAILURES = 5  # in a row
RATE = 0.5  # of at least LEAST calls within WINDOW_S
LEAST = 20
WINDOW_S = 30.0
OPEN_S = 5.0
MOST_OPEN_S = 60.0
MOST_CIRCUITS = 1000  # kept; a client can name any model


class State(StrEnum):
    """What a circuit does with a call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A circuit as ``/metrics`` and the console show it; ``seconds`` until its next probe."""

    provider: str
    model: str
    state: State
    failures: int
    seconds: float
    why: str


class Circuit:
    """The circuit of one model. It exists from the first failure until all is well again."""

    def __init__(self, now: float) -> None:
        self.state = State.CLOSED
        self.streak = 0  # failures in a row
        self.why = ""
        self._window = now
        self._good = self._bad = 0  # since the window began
        self._open_s = OPEN_S
        self._until = 0.0

    def closed_for(self, now: float) -> float:
        """Return for how many seconds no call is let through."""
        return 0.0 if self.state is State.CLOSED else max(0.0, self._until - now)

    def let_through(self, now: float) -> None:
        """Note that a call goes out. It is the probe of an open circuit; one that is never heard of blocks nobody."""
        if self.state is not State.CLOSED:
            self.state = State.HALF_OPEN
            self._until = now + self._open_s

    def failed(self, now: float, why: str) -> None:
        """Count a failure."""
        self._roll(now)
        self.why = why
        self.streak += 1
        self._bad += 1
        if self.state is State.HALF_OPEN:
            self._open_s = min(MOST_OPEN_S, 2 * self._open_s)
            self._open(now)
        elif self.state is State.CLOSED and (self.streak >= FAILURES or self._is_bad()):
            self._open(now)

    def succeeded(self, now: float) -> bool:
        """Count a success; True when nothing is held against the model any more."""
        if self.state is State.OPEN:  # of a call that went out before it opened
            return False
        if self.state is State.HALF_OPEN:
            return True
        self._roll(now)
        self.streak = 0
        self._good += 1
        return self._bad == 0

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._until = now + self._open_s

    def _is_bad(self) -> bool:
        calls = self._good + self._bad
        return calls >= LEAST and self._bad >= RATE * calls

    def _roll(self, now: float) -> None:
        if now - self._window >= WINDOW_S:
            self._window, self._good, self._bad = now, 0, 0


class Circuits:
    """The circuits of all models that have failed lately."""

    def __init__(self) -> None:
        self._circuits: dict[tuple[str, str], Circuit] = {}

    def find(self, provider: str, model: str) -> Circuit | None:
        """Return a model's circuit; None where nothing is held against it."""
        return self._circuits.get((provider, model)) if self._circuits else None

    def failed(self, provider: str, model: str, now: float, why: str) -> None:
        """Count a failure."""
        circuit = self._circuits.get((provider, model))
        if circuit is None:
            if len(self._circuits) >= MOST_CIRCUITS:
                del self._circuits[next(iter(self._circuits))]
            circuit = self._circuits[provider, model] = Circuit(now)
        circuit.failed(now, why)

    def succeeded(self, provider: str, model: str, now: float) -> None:
        """Count a success."""
        circuit = self.find(provider, model)
        if circuit is not None and circuit.succeeded(now):
            del self._circuits[provider, model]

    def shown(self, now: float) -> list[Shown]:
        """Return what there is, for ``/metrics`` and the console."""
        return [
            Shown(
                provider=provider,
                model=model,
                state=circuit.state,
                failures=circuit.streak,
                seconds=circuit.closed_for(now),
                why=circuit.why,
            )
            for (provider, model), circuit in self._circuits.items()
        ]
