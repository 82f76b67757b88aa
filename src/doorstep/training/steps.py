"""What a training run did, operation by operation, and the steps seen in it. Appends; decides nothing.

One line per operation in ``steps.jsonl`` beside the run's record, and of sampling in ``sampling.jsonl`` beside the
session's. A step is all that came after the one before it, up to and with its optim_step. Lines are not synced: they
outlive the process but not the machine, and a line that was cut off is passed over.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from doorstep import ids

log = logging.getLogger(__name__)

FORWARD, FORWARD_BACKWARD, OPTIM_STEP, SAMPLE = "forward", "forward_backward", "optim_step", "sample"

_encoder = msgspec.json.Encoder()


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One operation that came to its end. A metric that is not a number is None."""

    kind: str
    at_us: int  # its end
    seconds: float  # in the engine
    queued_s: float = 0.0  # before that, in its model's order
    rows: int = 0
    tokens: int = 0
    metrics: dict[str, float | None] = {}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the optimizer, with the gradients that went into it."""

    step: int
    at_us: int
    loss: float | None = None  # the sum over all tokens since the step before
    rows: int = 0
    tokens: int = 0
    learning_rate: float | None = None
    grad_norm: float | None = None
    forward_backward_s: float = 0.0
    optim_s: float = 0.0
    queued_s: float = 0.0


class StepLog:
    """Notes operations. ``file_of`` gives the file for a run's or a sampler's id; totals are since the start."""

    def __init__(self, file_of: Callable[[str], Path]) -> None:
        self._file_of = file_of
        self.operations: Counter[str] = Counter()  # by kind
        self.tokens: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.queued_s: defaultdict[str, float] = defaultdict(float)
        self.listeners: list[Callable[[str, Operation], None]] = []  # told of each operation, and of what it was

    def note(
        self,
        of: str,
        kind: str,
        *,
        seconds: float,
        queued_s: float = 0.0,
        rows: int = 0,
        tokens: int = 0,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Note an operation that has just come to its end. A disk that takes nothing does not stop the training."""
        self.operations[kind] += 1
        self.tokens[kind] += tokens
        self.seconds[kind] += seconds
        self.queued_s[kind] += queued_s
        done = Operation(
            kind=kind,
            at_us=ids.now_us(),
            seconds=round(seconds, 6),
            queued_s=round(queued_s, 6),
            rows=rows,
            tokens=tokens,
            metrics={name: value if math.isfinite(value) else None for name, value in (metrics or {}).items()},
        )
        for listener in self.listeners:
            listener(of, done)
        try:
            with self._file_of(of).open("ab") as file:
                file.write(_encoder.encode(done) + b"\n")
        except OSError as error:
            log.warning("%s of %s is not in its step log: %s", kind, of, error)


def operations(file: Path, newest: int | None = None) -> list[Operation]:
    """Return the operations of one file, in the order in which they ended; those in its ``newest`` bytes if given."""
    if not file.exists():
        return []
    with file.open("rb") as lines:
        if newest is not None:
            lines.seek(max(0, file.stat().st_size - newest))
        return list(filter(None, map(_read, lines)))


def steps(done: list[Operation]) -> Iterator[Step]:
    """Yield the steps in a run's operations."""
    losses: list[float | None] = []
    rows = tokens = 0
    seconds = queued = 0.0
    for operation in done:
        queued += operation.queued_s
        if operation.kind == FORWARD_BACKWARD:
            losses.append(operation.metrics.get("loss:sum"))
            rows, tokens = rows + operation.rows, tokens + operation.tokens
            seconds += operation.seconds
        elif operation.kind == OPTIM_STEP:
            known = [loss for loss in losses if loss is not None]
            metrics = operation.metrics
            yield Step(
                step=int(metrics.get("step") or 0),
                at_us=operation.at_us,
                loss=sum(known) if losses and len(known) == len(losses) else None,
                rows=rows,
                tokens=tokens,
                learning_rate=metrics.get("learning_rate"),
                grad_norm=metrics.get("grad_norm"),
                forward_backward_s=round(seconds, 6),
                optim_s=operation.seconds,
                queued_s=round(queued, 6),
            )
            losses, rows, tokens, seconds, queued = [], 0, 0, 0.0, 0.0


def trace(tracks: dict[str, list[Operation]]) -> dict[str, Any]:
    """Return operations as a trace that Perfetto and Chrome show; one track for each name."""
    events: list[dict[str, Any]] = []
    for number, (name, done) in enumerate(tracks.items(), 1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}})
        events += [event for operation in done for event in _events(operation, number)]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _events(operation: Operation, track: int) -> Iterator[dict[str, Any]]:
    length = operation.seconds * 1e6
    begin = operation.at_us - length
    arguments = {"rows": operation.rows, "tokens": operation.tokens} | operation.metrics
    yield {"name": operation.kind, "ph": "X", "pid": 1, "tid": track, "ts": begin, "dur": length, "args": arguments}
    if operation.queued_s:
        wait = operation.queued_s * 1e6
        # Waits overlap each other, so they are asynchronous events, which get rows of their own.
        shared = {"name": f"{operation.kind} queued", "cat": "queue", "pid": 1, "tid": track, "id": operation.at_us}
        yield shared | {"ph": "b", "ts": begin - wait}
        yield shared | {"ph": "e", "ts": begin}


def _read(line: bytes) -> Operation | None:
    try:
        return msgspec.json.decode(line, type=Operation)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # cut off by the end of the process
