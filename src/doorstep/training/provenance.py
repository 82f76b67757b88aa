"""What was sampled for training with ``stable_reinforce``: tokens and log-probabilities by sequence id, for a day.

A datum names by spans which sampled sequence each of its tokens is from, so that the loss has the log-probabilities
as they were at sampling, not as a client passes them on. They are kept in memory, within a bound of bytes; each use
makes a sequence's day begin anew.
"""

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from doorstep.engine.api import TrainRow
from doorstep.errors import UsageError

KEEP_S = 24 * 3600
KEEP_BYTES = 256 << 20
_OVERHEAD = 400  # bytes that a sequence takes besides its numbers


class Span(msgspec.Struct, frozen=True):
    """A run of tokens: ``length`` of a sequence's from ``offset`` on, sampled ones or those of its prompt."""

    sequence_id: str
    offset: int
    length: int
    sampled: bool


class Spans(msgspec.Struct, frozen=True):
    """Where the tokens of a datum and its targets are from, run by run."""

    tokens: list[Span]
    targets: list[Span]


class _Sequence(msgspec.Struct, frozen=True):
    """A sampled sequence and how long its prompt was."""

    tokens: "array[int]"
    logprobs: "array[float]"
    prompt: int
    until: float

    @property
    def size(self) -> int:
        return 8 * len(self.tokens) + _OVERHEAD


class Provenance:
    """The sequences of all sessions; each sees its own alone."""

    def __init__(self, keep_bytes: int = KEEP_BYTES, now: Callable[[], float] = time.monotonic) -> None:
        self._keep_bytes = keep_bytes
        self._now = now
        self._bytes = 0
        self._sequences: OrderedDict[tuple[str, str], _Sequence] = OrderedDict()  # least recently used first

    def record(
        self,
        session: str,
        sequence_id: str,
        prompt: Sequence[int],
        tokens: Sequence[int],
        logprobs: Sequence[float],
    ) -> None:
        """Keep a sequence that was sampled after a prompt."""
        until = self._now() + KEEP_S
        self._put((session, sequence_id), _Sequence(array("i", tokens), array("f", logprobs), len(prompt), until))
        while self._sequences and (self._bytes > self._keep_bytes or self._oldest().until < self._now()):
            self._drop(next(iter(self._sequences)))

    def completed(self, session: str, rows: Sequence[TrainRow], spans: Sequence[Spans | None]) -> list[TrainRow]:
        """Return the rows with ``logprobs`` as recorded and ``sampled``, 1 where they were; UsageError if not."""
        return [self._row(f"datum {index}", session, *each) for index, each in enumerate(zip(rows, spans, strict=True))]

    def _row(self, where: str, session: str, row: TrainRow, spans: Spans | None) -> TrainRow:
        if spans is None or not spans.targets:
            raise UsageError(
                f"{where}: stable_reinforce needs to know where each token is from; give it Datum.with_provenance, "
                "from a sampling client made with record_stability_info=True"
            )
        self._logprobs(f"{where}, model_input_spans", session, spans.tokens, row.tokens)
        logprobs = self._logprobs(f"{where}, loss_fn_input_spans", session, spans.targets, row.targets)
        advantages = row.inputs.get("advantages", [])
        for at, (advantage, logprob) in enumerate(zip(advantages, logprobs, strict=False)):
            if advantage and logprob is None:
                raise UsageError(f"{where}, advantages: position {at} is not zero, but its target was not sampled")
        recorded = {
            "logprobs": [0.0 if logprob is None else logprob for logprob in logprobs],
            "sampled": [float(logprob is not None) for logprob in logprobs],
        }
        return msgspec.structs.replace(row, inputs=row.inputs | recorded)

    def _logprobs(self, where: str, session: str, spans: Sequence[Span], tokens: list[int]) -> list[float | None]:
        """Return what was recorded of ``tokens``, None where they were not sampled."""
        logprobs: list[float | None] = []
        for span in spans:
            sequence = self._sequence(where, session, span.sequence_id)
            at, end = len(logprobs), span.offset + span.length
            there = len(sequence.tokens) if span.sampled else sequence.prompt
            if span.offset < 0 or span.length < 0 or end > there:
                kind = "sampled" if span.sampled else "prompt"
                raise UsageError(f"{where}: {span.sequence_id} has {there} {kind} tokens, not {span.offset} to {end}")
            if not span.sampled:
                logprobs += [None] * span.length
                continue
            if sequence.tokens[span.offset : end].tolist() != tokens[at : at + span.length]:
                raise UsageError(f"{where}: the tokens from {at} on are not those sampled as {span.sequence_id}")
            logprobs += sequence.logprobs[span.offset : end]
        if len(logprobs) != len(tokens):
            raise UsageError(f"{where}: the spans cover {len(logprobs)} positions; there are {len(tokens)}")
        return logprobs

    def _sequence(self, where: str, session: str, sequence_id: str) -> _Sequence:
        key = session, sequence_id
        found = self._sequences.get(key)
        if found is None or found.until < self._now():
            raise UsageError(
                f"{where}: {sequence_id} is not known. Sequences are kept for one day since their last use, while the "
                "server runs, in the session that sampled them with record_stability_info=True; sample again."
            )
        self._put(key, msgspec.structs.replace(found, until=self._now() + KEEP_S))
        return found

    def _oldest(self) -> _Sequence:
        return next(iter(self._sequences.values()))

    def _put(self, key: tuple[str, str], sequence: _Sequence) -> None:
        if key in self._sequences:
            self._drop(key)
        self._sequences[key] = sequence
        self._bytes += sequence.size

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes -= self._sequences.pop(key).size
