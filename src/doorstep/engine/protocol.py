"""What the engine process and its owner say to each other: length-prefixed msgpack frames, many calls on one socket.

Imports no torch.
"""

import asyncio
from typing import Any

import msgspec

from doorstep.engine.api import (
    AdamParams,
    Finished,
    Image,
    LoraSpec,
    Loss,
    SampleParams,
    ScoreParams,
    Token,
    TrainRow,
)


class Call(msgspec.Struct, tag="call", array_like=True):
    """Do something; ``arguments`` are a tuple as ``ARGUMENTS`` says."""

    id: int
    method: str
    arguments: msgspec.Raw


class Cancel(msgspec.Struct, tag="cancel", array_like=True):
    """Stop a call; it is not answered any more."""

    id: int


class Result(msgspec.Struct, tag="result", array_like=True):
    """A call's result, or the end of its stream."""

    id: int
    value: msgspec.Raw


class Failure(msgspec.Struct, tag="failure", array_like=True):
    """A call's EngineError."""

    id: int
    message: str
    category: str


class Step(msgspec.Struct, tag="step", array_like=True):
    """Some of a sampling stream: the fields of its ``Token``s, then those of its ``Finished``."""

    id: int
    tokens: list[tuple[int, int, float, list[tuple[int, float]]]]
    finished: list[tuple[int, str, int]]


ARGUMENTS: dict[str, Any] = {
    "info": tuple[()],
    "create_adapter": tuple[str, LoraSpec],
    "copy_adapter": tuple[str, str],
    "adapter_size": tuple[str],
    "drop_adapter": tuple[str],
    "forward_backward": tuple[str, list[TrainRow], Loss, bool],
    "optim_step": tuple[str, AdamParams],
    "save": tuple[str, str, bool],
    "load": tuple[str, str, bool],
    "score": tuple[str | None, list[int], ScoreParams, list[Image]],
    "measure": tuple[list[bytes]],
    "sample_steps": tuple[str | None, list[int], SampleParams, int, list[Image]],
    "cpu_seconds": tuple[()],
}


def step(call: int, events: list[Token | Finished]) -> Step:
    """Pack the events of one step."""
    tokens = [(event.index, event.id, event.logprob, event.top) for event in events if isinstance(event, Token)]
    return Step(call, tokens, [_end(event) for event in events if isinstance(event, Finished)])


def _end(event: Finished) -> tuple[int, str, int]:
    return event.index, event.reason, event.cached


def events(packed: Step) -> list[Token | Finished]:
    """Unpack the events of one step; each sample's end follows its last token."""
    return [*(Token(*token) for token in packed.tokens), *(Finished(*end) for end in packed.finished)]


def write(writer: asyncio.StreamWriter, frame: msgspec.Struct) -> None:
    """Send a frame."""
    data = msgspec.msgpack.encode(frame)
    writer.write(len(data).to_bytes(4, "little") + data)


async def read(reader: asyncio.StreamReader) -> bytes:
    """Return the next frame's bytes; IncompleteReadError when the other side is gone."""
    size = int.from_bytes(await reader.readexactly(4), "little")
    return await reader.readexactly(size)
