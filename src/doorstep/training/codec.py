"""The protobuf messages of the Tinker wire protocol, to and from the engine's types. Pure: bytes in, values out.

The schema is the one that ships inside the ``tinker`` package. It is loaded from its file, because importing the
package itself takes seconds and brings a whole client along; the schema alone takes 30 ms.
"""

import importlib.util
import itertools
from array import array
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from doorstep.engine.api import Loss, TrainResult, TrainRow
from doorstep.errors import UsageError

_RL = frozenset({"target_tokens", "logprobs", "advantages"})
_CLIP = frozenset({"clip_low_threshold", "clip_high_threshold"})


class _Takes(msgspec.Struct, frozen=True):
    """What a loss takes: inputs that each datum must have, inputs it may have, settings."""

    needed: frozenset[str]
    optional: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()


LOSSES = {
    "cross_entropy": _Takes(frozenset({"target_tokens"}), optional=frozenset({"weights"})),
    "importance_sampling": _Takes(_RL),
    "ppo": _Takes(_RL, settings=_CLIP),
    "cispo": _Takes(_RL, settings=_CLIP),
}


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One sampled sequence; ``stopped`` is False when it ran into its limit of tokens."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@cache
def schema() -> ModuleType:
    """Return the generated protobuf module; UsageError when the tinker package is not installed."""
    package = importlib.util.find_spec("tinker")
    if package is None or not package.submodule_search_locations:
        raise UsageError("The training service needs the wire schema in tinker: pip install 'doorstep[train]'.")
    file = Path(package.submodule_search_locations[0]) / "proto" / "tinker_public_pb2.py"
    spec = importlib.util.spec_from_file_location("doorstep_tinker_schema", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_forward_backward(body: bytes) -> Any:
    """Parse a ForwardBackwardRequest."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    message = schema().ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise UsageError(f"forward_backward: the body is no ForwardBackwardRequest ({error})") from None
    return message


def training_batch(message: Any) -> tuple[list[TrainRow], Loss]:
    """Return the rows and the loss of a ForwardBackwardRequest; UsageError names the datum and the field."""
    takes = LOSSES.get(message.loss_fn)
    if takes is None:
        raise UsageError(f"loss {message.loss_fn!r} is not served here. There are: {', '.join(LOSSES)}.")
    if not message.data:
        raise UsageError("forward_backward needs at least one datum")
    rows = [_row(f"datum {index}", datum, takes, message.loss_fn) for index, datum in enumerate(message.data)]
    return rows, Loss(name=message.loss_fn, config=_config(message, takes))


def forward_backward_output(result: TrainResult, metrics: Mapping[str, float]) -> bytes:
    """Return a ForwardBackwardOutput; every metric's name must end in ``:`` and a reduction."""
    output = schema().ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics.update(metrics)
    record = output.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(result.logprobs))
    field = record.fields["logprobs"]
    field.dtype = schema().DTYPE_FLOAT32
    field.data = array("f", itertools.chain.from_iterable(result.logprobs)).tobytes()
    ends = itertools.accumulate((4 * len(row) for row in result.logprobs), initial=0)
    field.offsets = array("q", ends).tobytes()
    return bytes(output.SerializeToString())


def sample_response(sequences: list[Sampled], prompt_logprobs: list[float | None] | None) -> bytes:
    """Return a SampleResponse; a prompt position without a log-probability travels as NaN."""
    pb = schema()
    response = pb.SampleResponse()
    for sequence in sequences:
        response.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if sequence.stopped else pb.STOP_REASON_LENGTH,
            tokens=array("i", sequence.tokens).tobytes(),
            logprobs=array("f", sequence.logprobs).tobytes(),
        )
    if prompt_logprobs is not None:
        values = (float("nan") if value is None else value for value in prompt_logprobs)
        response.prompt_logprobs = array("f", values).tobytes()
    return bytes(response.SerializeToString())


def _row(where: str, datum: Any, takes: _Takes, loss: str) -> TrainRow:
    tokens = _tokens(where, datum.model_input)
    given = set(datum.loss_fn_inputs)
    if missing := takes.needed - given:
        raise UsageError(f"{where}: {loss} needs {_listed(missing)} in loss_fn_inputs")
    if unknown := given - takes.needed - takes.optional:
        raise UsageError(
            f"{where}: {loss} does not take {_listed(unknown)}. It takes {_listed(takes.needed | takes.optional)}."
        )
    inputs = {name: _values(f"{where}, {name}", tensor, len(tokens)) for name, tensor in datum.loss_fn_inputs.items()}
    targets = inputs.pop("target_tokens")
    if targets.typecode == "f":
        raise UsageError(f"{where}, target_tokens: token ids are integers; give int64")
    numbers = {name: [float(value) for value in values] for name, values in inputs.items()}
    if loss == "cross_entropy":
        numbers.setdefault("weights", [1.0] * len(tokens))
    return TrainRow(tokens=tokens, targets=targets.tolist(), inputs=numbers)


def _tokens(where: str, chunks: Any) -> list[int]:
    tokens: array[int] = array("i")
    for chunk in chunks:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            raise UsageError(f"{where}: the model here takes text, not {kind} chunks")
        _extend(where, tokens, chunk.encoded_text.tokens)
    if not tokens:
        raise UsageError(f"{where}: model_input is empty")
    return tokens.tolist()


def _values(where: str, tensor: Any, length: int) -> "array[Any]":
    """Read a dense tensor with one value per token."""
    pb = schema()
    codes = {pb.DTYPE_FLOAT32: "f", pb.DTYPE_INT64: "q", pb.DTYPE_INT32: "i"}
    if tensor.WhichOneof("encoding") == "sparse_csr" or len(tensor.shape) > 1:
        raise UsageError(f"{where}: shape {list(tensor.shape)} is not served here; give one value per token")
    if tensor.dtype not in codes:
        raise UsageError(f"{where}: dtype {pb.DType.Name(tensor.dtype)} is not served; give float32 or int64")
    values: array[Any] = array(codes[tensor.dtype])
    _extend(where, values, tensor.dense)
    if len(values) != length:
        raise UsageError(f"{where}: {len(values)} values for {length} tokens of model_input; they must be as many")
    return values


def _extend(where: str, values: "array[Any]", data: bytes) -> None:
    if len(data) % values.itemsize:
        raise UsageError(f"{where}: {len(data)} bytes are no whole number of {values.itemsize}-byte values")
    values.frombytes(data)


def _config(message: Any, takes: _Takes) -> dict[str, float]:
    config = dict(message.loss_fn_config)
    for name, value in message.loss_fn_config_v2.items():
        if value.WhichOneof("value") != "number":
            raise UsageError(f"loss_fn_config: {name} must be a number")
        config[name] = value.number
    if unknown := set(config) - takes.settings:
        known = _listed(takes.settings) if takes.settings else "no settings"
        raise UsageError(f"loss_fn_config: {message.loss_fn} does not take {_listed(unknown)}. It takes {known}.")
    return config


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
