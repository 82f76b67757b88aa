"""The protobuf messages of the Tinker wire protocol, to and from the engine's types. Pure: bytes in, values out.

The schema is the one that ships inside the ``tinker`` package. It is loaded from its file, because importing the
package itself takes seconds and brings a whole client along; the schema alone takes 30 ms. What a message says and
this server cannot do is refused by its name, with the datum, the field and the shape.
"""

import importlib.util
import itertools
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from doorstep.engine import graph, kinds
from doorstep.engine.api import Image, Loss, ModelInfo, TrainResult, TrainRow
from doorstep.engine.kinds import Field
from doorstep.engine.rows import MAX_TARGETS
from doorstep.errors import EngineError, UsageError
from doorstep.training.provenance import Span, Spans
from doorstep.training.sampling import Result, Sampled
from doorstep.training.wire import Tensor as JsonTensor

MAX_BODY = 1 << 28  # bytes of a message; the SDK sends chunks of 5 MB
IMAGES = ("png", "jpeg")
_SLICE = 4096  # bytes that are unpacked at once; each may have 32 000 times as many in it
_HOLE = 0  # any token: where an image stands, its own embeddings do
_EMPTY = (0, -99999.0)  # a place without a choice, as the SDK knows it
_EXACT = 1 << 24  # integers up to here are themselves as float32


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A ForwardBackwardRequest as the engine takes it.

    ``trailing`` is each row's shape of targets after the first dimension. ``spans`` tell where its tokens are from.
    """

    rows: list[TrainRow]
    loss: Loss
    trailing: list[list[int]]
    spans: list[Spans | None]


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


def parse_forward_backward(body: bytes, encoding: str = "") -> Any:
    """Parse a ForwardBackwardRequest; ``encoding`` is its Content-Encoding."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    message = schema().ForwardBackwardRequest()
    try:
        message.ParseFromString(_decompressed(body, encoding))
    except DecodeError as error:
        raise UsageError(f"forward_backward: the body is no ForwardBackwardRequest ({error})") from None
    return message


def training_batch(message: Any, info: ModelInfo, custom: Callable[[str], str] | None = None) -> Batch:
    """Return a ForwardBackwardRequest for the engine; UsageError names the datum and the field.

    ``custom`` finds the graph of a custom loss by its id.
    """
    loss = _loss(message, custom)
    takes = _takes(loss)
    if not message.data:
        raise UsageError("forward_backward needs at least one datum")
    rows, trailing, targets = [], [], 0
    for index, datum in enumerate(message.data):
        row, shape = _row(f"datum {index}", datum, loss, takes, info)
        targets += len(row.targets)
        if targets > MAX_TARGETS:
            raise UsageError(f"datum {index}: a call takes at most {MAX_TARGETS} targets, and here it has {targets}")
        rows.append(row)
        trailing.append(shape[1:])
    return Batch(rows=rows, loss=loss, trailing=trailing, spans=[_spans(datum) for datum in message.data])


def forward_backward_output(result: TrainResult, metrics: Mapping[str, float], trailing: Sequence[list[int]]) -> bytes:
    """Return a ForwardBackwardOutput; every metric's name must end in ``:`` and a reduction.

    ``trailing`` is that of the batch. A record holds neighbours of one shape.
    """
    output = schema().ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics.update(metrics)
    for shape, group in itertools.groupby(zip(trailing, result.logprobs, strict=True), key=lambda each: each[0]):
        rows = [logprobs for _, logprobs in group]
        record = output.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(rows))
        field = record.fields["logprobs"]
        field.dtype = schema().DTYPE_FLOAT32
        field.trailing_shape.extend(shape)
        field.data = _bytes("f", itertools.chain.from_iterable(rows))
        field.offsets = _bytes("q", itertools.accumulate((4 * len(row) for row in rows), initial=0))
    return bytes(output.SerializeToString())


def sample_response(result: Result, asked: JsonTensor | None = None) -> bytes:
    """Return a SampleResponse. ``asked`` are the targets of the request, whose layout the answer has.

    A prompt position without a log-probability travels as NaN.
    """
    pb = schema()
    response = pb.SampleResponse(prompt_cache_hit_tokens=result.cached)
    for sequence in result.sequences:
        _write_sequence(response.sequences.add(), sequence, result.topk_sample)
    if result.prompt_logprobs is not None:
        values = (math.nan if value is None else value for value in result.prompt_logprobs)
        response.prompt_logprobs = _bytes("f", values)
    if result.topk_prompt is not None:
        _write_topk(response.topk_prompt_logprobs, result.topk_prompt, result.topk)
    if result.targets is not None:
        _write_targets(response.target_prompt_logprobs, result.targets, result.target_width, asked)
    if result.alternatives is not None:
        _write_alternatives(response.prompt_alt_tokens, result.alternatives)
    return bytes(response.SerializeToString())


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "zstd":
        raise UsageError(f"Content-Encoding {encoding!r} is not read here; send zstd, or none")
    import zstandard

    plain, unpacking = bytearray(), zstandard.ZstdDecompressor().decompressobj()
    try:
        for start in range(0, len(body), _SLICE):
            plain += unpacking.decompress(body[start : start + _SLICE])
            if len(plain) > MAX_BODY:
                raise UsageError(f"forward_backward: the body has more than {MAX_BODY} bytes; send fewer datums a call")
    except zstandard.ZstdError as error:
        raise UsageError(f"forward_backward: the body is not zstd ({error})") from None
    if not unpacking.eof:
        raise UsageError("forward_backward: the body, in zstd, was cut off; send it whole")
    return bytes(plain)


def _loss(message: Any, custom: Callable[[str], str] | None) -> Loss:
    config, texts = dict(message.loss_fn_config), {}
    for name, value in message.loss_fn_config_v2.items():
        match value.WhichOneof("value"):
            case "number":
                config[name] = value.number
            case "text":
                texts[name] = value.text
            case _:
                raise UsageError(f"loss_fn_config: {name} has no value")
    if message.loss_fn == "custom":
        if set(texts) != {"loss_id"} or config or custom is None:
            raise UsageError("loss custom takes one setting, loss_id, as create_custom_loss gave it")
        return Loss(name="custom", graph=custom(texts["loss_id"]))
    if texts:
        raise UsageError(f"loss_fn_config: {_listed(texts)} must be a number")
    return Loss(name=message.loss_fn, config=config)


def _takes(loss: Loss) -> dict[str, Field]:
    """Return the inputs that a datum may have: of stable_reinforce others are recorded at sampling."""
    try:
        fields = kinds.fields(loss)
    except EngineError as error:
        raise UsageError(str(error)) from None
    if loss.name == "stable_reinforce":
        return {"advantages": fields["advantages"], "logprobs": Field(1, 0.0)}
    return fields


def _row(where: str, datum: Any, loss: Loss, takes: Mapping[str, Field], info: ModelInfo) -> tuple[TrainRow, list[int]]:
    """Return a row and the shape of its targets."""
    tokens, images = _model_input(where, datum.model_input, info)
    given = dict(datum.loss_fn_inputs)
    needed = {"target_tokens", *kinds.needed(takes)}
    if missing := needed - set(given):
        raise UsageError(f"{where}: {loss.name} needs {_listed(missing)} in loss_fn_inputs")
    unknown = set(given) - needed - set(takes)
    if loss.name == "custom":  # the SDK sends a datum as it is; the loss reads what it names
        given = {name: tensor for name, tensor in given.items() if name not in unknown}
    elif unknown:
        raise UsageError(
            f"{where}: {loss.name} does not take {_listed(unknown)}. It takes {_listed(needed | set(takes))}."
        )
    shape = _shape(f"{where}, target_tokens", given["target_tokens"], len(tokens), loss)
    targets = _values(f"{where}, target_tokens", given.pop("target_tokens"), shape)
    if targets.typecode == "f":
        raise UsageError(f"{where}, target_tokens: token ids are integers; give int64")
    inputs = {name: _input(f"{where}, {name}", tensor, takes[name], shape) for name, tensor in given.items()}
    width = math.prod(shape[1:])
    return TrainRow(tokens=tokens, targets=targets.tolist(), inputs=inputs, width=width, images=images), shape


def _model_input(where: str, chunks: Any, info: ModelInfo) -> tuple[list[int], list[Image]]:
    tokens: array[int] = array("i")
    images = []
    for chunk in chunks:
        match chunk.WhichOneof("chunk"):
            case "encoded_text":
                _extend(f"{where}, model_input", tokens, chunk.encoded_text.tokens)
            case "image" if info.vision:
                images.append(_image(f"{where}, model_input", chunk.image, len(tokens)))
                tokens.extend([_HOLE] * images[-1].tokens)
            case "image":
                raise UsageError(f"{where}: {info.name} takes text, not image chunks")
            case kind:
                raise UsageError(f"{where}: {kind or 'empty'} chunks are not served here; give text or images")
    if not tokens:
        raise UsageError(f"{where}: model_input is empty")
    return tokens.tolist(), images


def _image(where: str, image: Any, at: int) -> Image:
    if image.format not in IMAGES:
        raise UsageError(f"{where}: an image of format {image.format!r} is not read; give {' or '.join(IMAGES)}")
    if image.HasField("override_dimensions"):
        raise UsageError(f"{where}: override_dimensions is not served here; scale the image before")
    if image.expected_tokens < 1:
        raise UsageError(f"{where}: an image needs its expected_tokens, as the targets must be as many")
    return Image(at=at, tokens=image.expected_tokens, data=image.data)


def _shape(where: str, tensor: Any, length: int, loss: Loss) -> list[int]:
    """Return the shape of the targets, one row of them for each token."""
    shape = list(tensor.shape) or [len(tensor.dense) // array(_code(where, tensor.dtype)).itemsize]
    if len(shape) > 2 or min(shape) < 0 or (len(shape) == 2 and shape[1] < 1):
        raise UsageError(f"{where}: shape {shape} is not served; give one target a token, or [tokens, targets]")
    if shape[0] != length:
        raise UsageError(f"{where}: {shape[0]} values for {length} tokens of model_input; they must be as many")
    if len(shape) not in (ranks := _ranks(loss)):
        raise UsageError(
            f"{where}: shape {shape}; loss {loss.name} takes targets of rank {' or '.join(map(str, ranks))}"
        )
    if math.prod(shape) > MAX_TARGETS:
        raise UsageError(f"{where}: shape {shape} has more than the {MAX_TARGETS} targets that a call takes")
    return shape


def _ranks(loss: Loss) -> Sequence[int]:
    """Return of what ranks a loss takes targets: 1 is one a token."""
    if loss.graph is not None:
        return [graph.read(loss.graph).inputs[0].rank]
    return (1, 2) if kinds.KINDS[loss.name].wide else (1,)


def _input(where: str, tensor: Any, field: Field, targets: list[int]) -> list[float]:
    """Read an input in the shape that its rank says, as numbers of float32."""
    shape = [[], targets[:1], targets][field.rank]
    values = _values(where, tensor, shape)
    if values.typecode == "f":
        return values.tolist()
    if any(abs(value) > _EXACT for value in values):
        raise UsageError(f"{where}: an integer above {_EXACT} is not exact as float32, which losses compute in")
    return [float(value) for value in values]


def _values(where: str, tensor: Any, shape: list[int]) -> "array[Any]":
    """Read a tensor that must have a shape, row by row; one without a shape may leave it to its length."""
    given, expected = list(tensor.shape), math.prod(shape)
    if tensor.WhichOneof("encoding") == "sparse_csr":
        if given != shape or len(shape) != 2:
            raise UsageError(f"{where}: shape {given}, in sparse rows; it must be {shape}")
        return _from_csr(where, tensor, *shape)
    values = _numbers(where, tensor.dtype, tensor.dense)
    if (given and given != shape) or len(values) != expected:
        told = f"shape {given}" if given else f"{len(values)} values"
        raise UsageError(f"{where}: {told} with {len(values)} numbers; it must be {shape}, like target_tokens")
    return values


def _from_csr(where: str, tensor: Any, rows: int, width: int) -> "array[Any]":
    """Read compressed sparse rows; what they leave out is zero."""
    csr = tensor.sparse_csr
    listed = _numbers(where, tensor.dtype, csr.values)
    starts, columns = (_numbers(where, schema().DTYPE_INT64, part) for part in (csr.crow_indices, csr.col_indices))
    sound = len(starts) == rows + 1 and starts[0] == 0 and starts[-1] == len(columns) == len(listed)
    if not sound or any(a > b for a, b in itertools.pairwise(starts)):
        raise UsageError(
            f"{where}: shape {[rows, width]} in sparse rows needs {rows + 1} crow_indices, rising from 0 to the "
            f"count of values and columns; there are {len(starts)}, {len(listed)} values and {len(columns)} columns"
        )
    values = array(listed.typecode, bytes(rows * width * listed.itemsize))
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        before = -1
        for at in range(start, end):
            if not before < columns[at] < width:
                raise UsageError(f"{where}: col_indices of row {row} must rise, from 0 to {width - 1} at most")
            before = columns[at]
            values[row * width + before] = listed[at]
    return values


def _numbers(where: str, dtype: int, data: bytes) -> "array[Any]":
    """Read numbers; bfloat16 is the upper half of a float32."""
    values: array[Any] = array(_code(where, dtype))
    _extend(where, values, data)
    return array("f", array("I", (value << 16 for value in values)).tobytes()) if values.typecode == "H" else values


def _code(where: str, dtype: int) -> str:
    pb = schema()
    codes = {pb.DTYPE_FLOAT32: "f", pb.DTYPE_INT64: "q", pb.DTYPE_INT32: "i", pb.DTYPE_BFLOAT16: "H"}
    if dtype not in codes:
        raise UsageError(f"{where}: its dtype is not told; give float32 or int64")
    return codes[dtype]


def _extend(where: str, values: "array[Any]", data: bytes) -> None:
    if len(data) % values.itemsize:
        raise UsageError(f"{where}: {len(data)} bytes are no whole number of {values.itemsize}-byte values")
    values.frombytes(data)


def _spans(datum: Any) -> Spans | None:
    if not datum.model_input_spans and not datum.loss_fn_input_spans:
        return None
    return Spans(_runs(datum.model_input_spans), _runs(datum.loss_fn_input_spans))


def _runs(spans: Any) -> list[Span]:
    found = []
    for span in spans:
        kind = span.WhichOneof("span")
        run = getattr(span, kind or "prompt_tokens")
        found.append(Span(run.sequence_id, run.offset, run.length, kind == "sampled_tokens"))
    return found


def _write_sequence(message: Any, sequence: Sampled, k: int) -> None:
    pb = schema()
    message.stop_reason = pb.STOP_REASON_STOP if sequence.stopped else pb.STOP_REASON_LENGTH
    message.tokens = _bytes("i", sequence.tokens)
    message.logprobs = _bytes("f", sequence.logprobs)
    if k:
        _write_topk(message.topk_sampled_logprobs, sequence.top, k)


def _write_topk(message: Any, rows: Sequence[Sequence[tuple[int, float]]], k: int) -> None:
    ids, logprobs = _columns(rows, k)
    message.token_ids, message.logprobs, message.k, message.length = ids, logprobs, k, len(rows)


def _write_targets(message: Any, values: Sequence[float], width: int, asked: JsonTensor | None) -> None:
    rows = len(values) // width
    message.dtype = schema().DTYPE_FLOAT32
    message.shape.extend([rows, width])
    found = [0.0 if math.isnan(value) else value for value in values]
    if asked is None or asked.sparse_crow_indices is None or asked.sparse_col_indices is None:
        message.dense = _bytes("f", found)
        return
    starts, columns = asked.sparse_crow_indices, asked.sparse_col_indices
    cells = (row * width + columns[at] for row in range(rows) for at in range(starts[row], starts[row + 1]))
    message.sparse_csr.values = _bytes("f", (found[cell] for cell in cells))
    message.sparse_csr.crow_indices = _bytes("q", starts)
    message.sparse_csr.col_indices = _bytes("q", columns)


def _write_alternatives(message: Any, rows: Sequence[Sequence[tuple[int, float]]]) -> None:
    k = max(map(len, rows), default=0)
    ids, logprobs = _columns(rows, k)
    pb = schema()
    for tensor, dtype, data in (
        (message.tokens, pb.DTYPE_INT32, ids),
        (message.logprobs, pb.DTYPE_FLOAT32, logprobs),
    ):
        tensor.dtype, tensor.dense = dtype, data
        tensor.shape.extend([len(rows), k])


def _columns(rows: Sequence[Sequence[tuple[int, float]]], k: int) -> tuple[bytes, bytes]:
    """Return ids and log-probabilities of N times k choices; where a row has fewer, the rest is empty."""
    cells = [cell for row in rows for cell in (*row[:k], *[_EMPTY] * (k - len(row)))]
    return _bytes("i", (token for token, _ in cells)), _bytes("f", (logprob for _, logprob in cells))


def _bytes(code: str, values: Iterable[float]) -> bytes:
    return array(code, values).tobytes()


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
