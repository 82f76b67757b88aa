"""Messages of the wire: what the SDK writes is what the engine gets, and what we write is what the SDK reads."""

import math

import numpy as np
import pytest
import tinker
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tinker.proto import request_conv, response_conv
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from doorstep.engine.api import Image, ModelInfo, TrainResult
from doorstep.errors import UsageError
from doorstep.training import codec
from doorstep.training.provenance import Span
from doorstep.training.sampling import Result, Sampled
from doorstep.training.wire import Tensor

INFO = ModelInfo(name="m", folder="", digest="", tokenizer_digest="", parameters=1, vocabulary=9, max_context=10)
SEEING = ModelInfo(
    name="v", folder="", digest="", tokenizer_digest="", parameters=1, vocabulary=9, max_context=10, vision=True
)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.lists(st.lists(floats, min_size=1, max_size=5), min_size=1, max_size=4)


def datum(**inputs):
    length = len(inputs["target_tokens"])
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(list(range(length))), loss_fn_inputs=inputs)


def message(*data, loss="cross_entropy", config=None):
    inner = ForwardBackwardInput(data=list(data), loss_fn=loss, loss_fn_config=config)
    return request_conv.forward_backward_request_to_proto(
        ForwardBackwardRequest(forward_backward_input=inner, model_id="m", seq_id=1)
    )


def batch(*data, info=INFO, custom=None, **settings):
    body = message(*data, **settings).SerializeToString()
    return codec.training_batch(codec.parse_forward_backward(body), info, custom)


@given(rows)
def test_batches_mean_what_the_sdk_wrote(values):
    read = batch(*(datum(target_tokens=list(range(len(row))), weights=row) for row in values))
    assert [row.inputs["weights"] for row in read.rows] == values
    assert [row.targets for row in read.rows] == [row.tokens for row in read.rows]
    assert (read.loss.name, read.loss.config) == ("cross_entropy", {})
    assert (read.trailing, read.spans) == ([[]] * len(values), [None] * len(values))


sparse = st.lists(st.lists(st.sampled_from([0, 0, 0, 1, 7]), min_size=4, max_size=4), min_size=1, max_size=6)


@given(sparse)
def test_sparse_and_dense_targets_are_the_same(cells):
    targets = torch.tensor(cells)
    weights = targets.float() / 8
    kept = batch(datum(target_tokens=targets.numpy(), weights=weights.numpy()))
    assert batch(datum(target_tokens=targets, weights=weights)) == kept
    assert kept.rows[0].targets == targets.flatten().tolist()
    assert kept.rows[0].inputs["weights"] == weights.flatten().tolist()
    assert (kept.rows[0].width, kept.trailing) == (4, [[4]])


def test_a_large_tensor_of_zeros_travels_sparse():
    wide = torch.zeros(3, 50, dtype=torch.long)
    wide[1, 7] = 5
    sent = message(datum(target_tokens=wide))
    assert sent.data[0].loss_fn_inputs["target_tokens"].HasField("sparse_csr")
    assert codec.training_batch(sent, INFO).rows[0].targets[57] == 5


def test_narrow_numbers_are_read():
    sent = message(datum(target_tokens=[1, 2], weights=[1.5, -2.0]))
    pb, inputs = codec.schema(), sent.data[0].loss_fn_inputs
    inputs["target_tokens"].dtype = pb.DTYPE_INT32
    inputs["target_tokens"].dense = np.array([3, 4], np.int32).tobytes()
    inputs["weights"].dtype = pb.DTYPE_BFLOAT16
    inputs["weights"].dense = torch.tensor([1.5, -2.0]).bfloat16().view(torch.int16).numpy().tobytes()
    read = codec.training_batch(sent, INFO).rows[0]
    assert (read.targets, read.inputs["weights"]) == ([3, 4], [1.5, -2.0])


def test_settings_are_numbers_of_the_loss():
    policy = datum(target_tokens=[1], logprobs=[0.0], advantages=[1.0], clip_high_threshold=[2.0])
    read = batch(policy, loss="ppo", config={"clip_low_threshold": 0.5})
    assert read.loss.config == {"clip_low_threshold": 0.5}
    assert read.rows[0].inputs["clip_high_threshold"] == [2.0]


def test_images_hold_places_among_the_tokens():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=2)
    chunks = [tinker.EncodedTextChunk(tokens=[1]), image, tinker.EncodedTextChunk(tokens=[2])]
    seen = tinker.Datum(model_input=tinker.ModelInput(chunks=chunks), loss_fn_inputs={"target_tokens": [5] * 4})
    read = batch(seen, info=SEEING).rows[0]
    assert (read.tokens, read.images) == ([1, 0, 0, 2], [Image(at=1, tokens=2, data=b"png")])
    with pytest.raises(UsageError, match="datum 0: m takes text, not image chunks"):
        batch(seen)


def test_spans_say_where_tokens_are_from():
    given = datum(target_tokens=[5, 6], advantages=[0.0, 1.0]).with_provenance(
        model_input=[tinker.PromptProvenanceSpan(sequence_id="s", length=2)],
        loss_fn_inputs=[
            tinker.PromptProvenanceSpan(sequence_id="s", offset=1, length=1),
            tinker.SampledProvenanceSpan(sequence_id="s", offset=3, length=1),
        ],
    )
    read = batch(given, loss="stable_reinforce", config={"kl_coeff": 0.1})
    assert read.spans[0].tokens == [Span("s", 0, 2, sampled=False)]
    assert read.spans[0].targets == [Span("s", 1, 1, sampled=False), Span("s", 3, 1, sampled=True)]


GRAPH = (
    '{"name":"f","inputs":[{"name":"logprobs","rank":1},{"name":"scale","rank":0}],"graph":{"nodes":['
    '{"op":"placeholder","name":"logprobs","target":"logprobs"},{"op":"placeholder","name":"scale","target":"scale"},'
    '{"op":"call_method","name":"sum_1","target":"sum","args":[{"ref":"logprobs"}]},'
    '{"op":"output","name":"output","target":"output","args":[{"tuple":[{"ref":"sum_1"},{"dict":{}}]}]}]}}'
)
ID = {"loss_id": "x"}


def test_a_custom_loss_is_found_by_its_id():
    scaled = datum(target_tokens=[1, 2], scale=torch.tensor(3.0), weights=[1.0, 1.0])  # weights are not its business
    read = batch(scaled, loss="custom", config={"loss_id": "s:loss:0"}, custom={"s:loss:0": GRAPH}.__getitem__)
    assert (read.loss.name, read.loss.graph) == ("custom", GRAPH)
    assert read.rows[0].inputs == {"scale": [3.0]}


def test_compressed_bodies_are_read_within_a_bound(monkeypatch):
    body = message(datum(target_tokens=[1] * 1000)).SerializeToString()
    packed = zstandard.ZstdCompressor().compress(body)
    assert codec.parse_forward_backward(packed, "zstd") == codec.parse_forward_backward(body)
    monkeypatch.setattr(codec, "MAX_BODY", 100)
    with pytest.raises(UsageError, match="the body has more than 100 bytes"):
        codec.parse_forward_backward(packed, "zstd")


@pytest.mark.parametrize(
    ("body", "encoding", "why"),
    [(b"\xff", "", "no ForwardBackwardRequest"), (b"x", "zstd", "is not zstd"), (b"x", "br", "'br' is not read here")],
)
def test_bodies_that_cannot_be_read(body, encoding, why):
    with pytest.raises(UsageError, match=why):
        codec.parse_forward_backward(body, encoding)


@pytest.mark.parametrize(
    ("inputs", "loss", "why"),
    [
        ({"target_tokens": [1], "logprobs": [0.0]}, "ppo", "datum 1: ppo needs advantages in loss_fn_inputs"),
        (
            {"target_tokens": [1], "advantages": [0.0]},
            "cross_entropy",
            "datum 1: cross_entropy does not take advantages",
        ),
        ({"target_tokens": [1, 2], "weights": [1.0]}, "cross_entropy", r"datum 1, weights: shape \[1\]"),
        (
            {"target_tokens": [[1, 2]], "logprobs": [0.0], "advantages": [0.0]},
            "ppo",
            r"datum 1, target_tokens: shape \[1, 2\]; loss ppo takes targets of rank 1",
        ),
        ({"target_tokens": np.zeros((1, 2, 2), int)}, "cross_entropy", r"shape \[1, 2, 2\] is not served"),
        ({"target_tokens": np.zeros((1, 2_000_000), int)}, "cross_entropy", "more than the 1000000 targets"),
        ({"target_tokens": np.zeros(1, np.float32)}, "cross_entropy", "target_tokens: token ids are integers"),
    ],
)
def test_a_datum_that_cannot_be_read_is_named(inputs, loss, why):
    good = {"target_tokens": [1], "logprobs": [0.0], "advantages": [0.0]} if loss == "ppo" else {"target_tokens": [1]}
    with pytest.raises(UsageError, match=why):
        batch(datum(**good), datum(**inputs), loss=loss)


def test_integers_that_a_custom_loss_would_get_wrong_are_refused():
    scaled = datum(target_tokens=[1, 2], scale=torch.tensor((1 << 24) + 1))
    with pytest.raises(UsageError, match="datum 0, scale: an integer above 16777216 is not exact"):
        batch(scaled, loss="custom", config=ID, custom={"x": GRAPH}.__getitem__)


@pytest.mark.parametrize(
    ("scale", "why"), [(torch.ones(2), r"datum 0, scale: shape \[2\] with 2 numbers"), (None, "custom needs scale")]
)
def test_an_input_of_a_custom_loss_has_the_rank_that_it_declares(scale, why):
    inputs = {} if scale is None else {"scale": scale}
    with pytest.raises(UsageError, match=why):
        batch(datum(target_tokens=[1, 2], **inputs), loss="custom", config=ID, custom={"x": GRAPH}.get)


def test_targets_of_a_custom_loss_have_the_rank_that_it_declares():
    with pytest.raises(UsageError, match="loss custom takes targets of rank 1"):
        batch(datum(target_tokens=[[1]], scale=torch.tensor(1.0)), loss="custom", config=ID, custom={"x": GRAPH}.get)


@pytest.mark.parametrize(
    ("loss", "config", "why"),
    [
        ("dppo", {}, "loss 'dppo' is not served here; there are cross_entropy"),
        ("cross_entropy", {"beta": 0.1}, "loss cross_entropy has no setting beta"),
        ("cross_entropy", {"mode": "fast"}, "loss_fn_config: mode must be a number"),
        ("custom", {"loss_id": 1.0}, "loss custom takes one setting, loss_id"),
    ],
)
def test_a_loss_that_cannot_be_read_is_named(loss, config, why):
    with pytest.raises(UsageError, match=why):
        batch(datum(target_tokens=[1]), loss=loss, config=config)


def csr(crow, col, values, shape=(2, 3)):
    sent = message(datum(target_tokens=[[0, 0, 0], [0, 0, 0]]))
    tensor = sent.data[0].loss_fn_inputs["target_tokens"]
    tensor.shape[:] = shape
    tensor.sparse_csr.crow_indices, tensor.sparse_csr.col_indices, tensor.sparse_csr.values = (
        np.array(part, np.int64).tobytes() for part in (crow, col, values)
    )
    return sent


@pytest.mark.parametrize(
    ("crow", "col", "values", "shape", "why"),
    [
        ([0, 1], [0], [1], (2, 3), "needs 3 crow_indices"),
        ([0, 2, 1], [0, 1], [1, 1], (2, 3), "needs 3 crow_indices"),
        ([0, 1, 2], [0, 3], [1, 1], (2, 3), "col_indices of row 1 must rise"),
        ([0, 2, 2], [1, 1], [1, 1], (2, 3), "col_indices of row 0 must rise"),
        ([0, 1, 1], [0], [1, 2], (2, 3), "2 values and 1 columns"),
        ([0, 0, 0], [], [], (2, 1 << 40), "more than the 1000000 targets"),
        ([0, 0, 0], [], [], (3, 2), "3 values for 2 tokens"),
    ],
)
def test_sparse_rows_that_do_not_hold_together_are_refused(crow, col, values, shape, why):
    with pytest.raises(UsageError, match=why):
        codec.training_batch(csr(crow, col, values, shape), INFO)


packed = st.binary(max_size=24) | st.lists(st.integers(-2, 5), max_size=4).map(
    lambda x: np.array(x, np.int64).tobytes()
)


@given(
    st.lists(packed, min_size=4, max_size=4), st.integers(0, 5), st.lists(st.integers(-1, 3), max_size=3), st.booleans()
)
def test_whatever_a_tensor_holds_is_read_or_refused(parts, dtype, shape, sparse):
    sent = message(datum(target_tokens=[1, 2]))
    tensor = sent.data[0].loss_fn_inputs["target_tokens"]
    tensor.dtype, tensor.shape[:] = dtype, shape
    if sparse:
        csr = tensor.sparse_csr
        csr.values, csr.crow_indices, csr.col_indices = parts[:3]
    else:
        tensor.dense = parts[3]
    try:
        row = codec.training_batch(sent, INFO).rows[0]
    except UsageError:
        return
    assert len(row.targets) == 2 * row.width


def test_bytes_of_half_a_number_are_refused():
    sent = message(datum(target_tokens=[1]))
    sent.data[0].loss_fn_inputs["target_tokens"].dense = b"1234567"
    with pytest.raises(UsageError, match="7 bytes are no whole number of 8-byte values"):
        codec.training_batch(sent, INFO)


def test_too_many_targets_in_a_call_are_refused():
    many = datum(target_tokens=np.zeros((1, 600_000), int))
    with pytest.raises(UsageError, match="datum 1: a call takes at most 1000000 targets"):
        batch(many, many)


@given(rows)
def test_results_are_what_the_sdk_reads(values):
    result = TrainResult(logprobs=values, metrics={})
    body = codec.forward_backward_output(result, {"loss:sum": 1.5}, [[]] * len(values))
    read = response_conv.deserialize_forward_backward_output(body)
    assert [output["logprobs"].tolist() for output in read.loss_fn_outputs] == values
    assert read.metrics == {"loss:sum": 1.5}


def test_results_of_several_shapes_keep_their_order():
    result = TrainResult(logprobs=[[1.0, 2.0], [3.0], [4.0, 5.0, 6.0, 7.0], [8.0]], metrics={})
    body = codec.forward_backward_output(result, {}, [[], [1], [2], []])
    read = [
        output["logprobs"].tolist()
        for output in response_conv.deserialize_forward_backward_output(body).loss_fn_outputs
    ]
    assert read == [[1.0, 2.0], [[3.0]], [[4.0, 5.0], [6.0, 7.0]], [8.0]]


@given(st.lists(st.lists(floats, max_size=5), max_size=3), st.lists(st.none() | floats, min_size=1, max_size=4))
def test_samples_are_what_the_sdk_reads(values, scores):
    made = [Sampled(tokens=list(range(len(row))), logprobs=row, stopped=bool(row)) for row in values]
    body = codec.sample_response(Result(sequences=made, prompt_logprobs=scores, cached=3))
    read = response_conv.deserialize_sample_response(body)
    assert [list(sequence.logprobs or []) for sequence in read.sequences] == values
    assert [sequence.stop_reason for sequence in read.sequences] == ["stop" if row else "length" for row in values]
    assert np.array_equal(read.prompt_logprobs_np, np.array(scores, np.float32), equal_nan=True)
    assert read.prompt_cache_hit_tokens == 3


def test_likeliest_choices_are_what_the_sdk_reads():
    top = [[(4, -0.5), (2, -1.0)], [(1, -0.25)]]
    sequence = Sampled(tokens=[4, 1], logprobs=[-0.5, -0.25], stopped=True, top=top)
    made = Result(sequences=[sequence], topk_sample=2, topk_prompt=[[], *top], topk=2)
    read = response_conv.deserialize_sample_response(codec.sample_response(made))
    assert read.topk_prompt_logprobs == [None, *top]
    assert read.sequences[0].topk_logprobs == top


TARGETS = Result(sequences=[], targets=[-1.0, math.nan, math.nan, -2.0], target_width=2)


def test_targets_are_answered_in_the_layout_of_the_request():
    dense = response_conv.deserialize_sample_response(codec.sample_response(TARGETS)).target_prompt_logprobs
    assert dense.tolist() == [[-1.0, 0.0], [0.0, -2.0]]
    asked = Tensor(data=[7, 8], shape=[2, 2], sparse_crow_indices=[0, 1, 2], sparse_col_indices=[0, 1])
    read = response_conv.deserialize_sample_response(codec.sample_response(TARGETS, asked)).target_prompt_logprobs
    assert (read.sparse_crow_indices, read.sparse_col_indices) == ([0, 1, 2], [0, 1])
    assert read.tolist() == dense.tolist()


def test_alternatives_are_one_row_for_each_prompt_token_but_the_first():
    made = Result(sequences=[], alternatives=[[(1, -0.5), (2, -1.5)], [(3, -2.5), (3, -2.5)]])
    read = response_conv.deserialize_sample_response(codec.sample_response(made)).prompt_alt_tokens
    assert read.tokens.tolist() == [[1, 2], [3, 3]]
    assert read.logprobs.tolist() == [[-0.5, -1.5], [-2.5, -2.5]]
