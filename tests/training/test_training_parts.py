"""The service's parts by themselves: order, codec, names and files, with the SDK's own code as the oracle."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from tinker.proto import request_conv, response_conv
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from doorstep.engine.api import LoraSpec, ModelInfo, TrainResult
from doorstep.errors import NotFound, StoreError, UsageError
from doorstep.training import codec, paths, sampling, wire
from doorstep.training.promises import Answer, Lane, Promises
from doorstep.training.registry import Registry, SavedCheckpoint, TrainingRun

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.lists(st.lists(floats, min_size=1, max_size=5), min_size=1, max_size=4)


@given(st.permutations(range(6)), st.lists(st.integers(0, 5)))
def test_a_lane_runs_each_number_once_and_in_order(arrival, repeats):
    done = []

    async def run():
        lane, futures = Lane(), []
        for seq in [*arrival, *repeats]:

            async def work(seq=seq):
                await asyncio.sleep(0)
                done.append(seq)
                return Answer(b"")

            futures.append(asyncio.get_running_loop().create_future())
            lane.submit(seq, futures[-1], work)
        await asyncio.gather(*futures)

    asyncio.run(run())
    assert done == list(range(6))


def test_serving_needs_neither_torch_nor_the_tinker_client():
    code = "import sys, doorstep.training.app, doorstep.training.codec as c; c.schema(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tinker", "torch", "transformers", "numpy"} & set(loaded)


async def test_fetched_answers_make_room_for_newer_ones():
    promises = Promises(keep_bytes=10)
    for name in ("a", "b", "c"):
        promises.open(name).set_result(Answer(b"12345"))
        await promises.wait(name, 1)
    with pytest.raises(NotFound):
        await promises.wait("a", 1)
    assert await promises.wait("c", 1)


async def test_a_bug_in_an_operation_is_our_fault_and_no_hang():
    async def work():
        raise RuntimeError("bug")

    promises = Promises()
    promises.start("x", work)
    assert b'"category":"server"' in (await promises.wait("x", 1)).body


@given(rows)
def test_batches_mean_what_the_sdk_wrote(values):
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(range(len(row)))),
            loss_fn_inputs={"target_tokens": list(range(len(row))), "weights": row},
        )
        for row in values
    ]
    inner = ForwardBackwardInput(data=data, loss_fn="cross_entropy")
    message = request_conv.forward_backward_request_to_proto(
        ForwardBackwardRequest(forward_backward_input=inner, model_id="m", seq_id=1)
    )
    read, loss = codec.training_batch(codec.parse_forward_backward(message.SerializeToString()))
    assert [row.inputs["weights"] for row in read] == values
    assert [row.targets for row in read] == [row.tokens for row in read]
    assert (loss.name, loss.config) == ("cross_entropy", {})


@given(rows)
def test_results_are_what_the_sdk_reads(values):
    body = codec.forward_backward_output(TrainResult(logprobs=values, metrics={}), {"loss:sum": 1.5})
    read = response_conv.deserialize_forward_backward_output(body)
    assert [output["logprobs"].tolist() for output in read.loss_fn_outputs] == values
    assert read.metrics == {"loss:sum": 1.5}


@given(st.lists(st.lists(floats, max_size=5), max_size=3), st.lists(st.none() | floats, min_size=1, max_size=4))
def test_samples_are_what_the_sdk_reads(values, scores):
    made = [codec.Sampled(tokens=list(range(len(row))), logprobs=row, stopped=bool(row)) for row in values]
    read = response_conv.deserialize_sample_response(codec.sample_response(made, scores))
    assert [list(sequence.logprobs or []) for sequence in read.sequences] == values
    assert [sequence.stop_reason for sequence in read.sequences] == ["stop" if row else "length" for row in values]
    assert np.array_equal(read.prompt_logprobs_np, np.array(scores, np.float32), equal_nan=True)


def test_missing_weights_of_cross_entropy_are_ones():
    message = codec.schema().ForwardBackwardRequest(loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.array([1, 2], np.int32).tobytes()
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dense, tensor.dtype = np.array([2, 3], np.int64).tobytes(), codec.schema().DTYPE_INT64
    assert codec.training_batch(message)[0][0].inputs["weights"] == [1.0, 1.0]


@given(st.text(max_size=12))
def test_an_accepted_name_is_one_segment(name):
    try:
        accepted = paths.checked_name(name)
    except UsageError:
        return
    assert not set(accepted) & set("/\\\0:")
    assert not accepted.startswith(".")
    assert paths.parse(f"tinker://s:train:0/weights/{name}").name == name


def test_a_sampling_request_may_leave_the_length_open():
    info = ModelInfo(name="m", folder="", digest="", tokenizer_digest="", parameters=1, vocabulary=9, max_context=10)
    prompt = wire.Prompt(chunks=[wire.Chunk(type="encoded_text", tokens=[1, 2])] * 2)
    request = wire.Sample(
        sampling_session_id="s", seq_id=0, prompt=prompt, sampling_params=wire.SamplingParams(stop=[])
    )
    plan = sampling.plan(request, info)
    assert (plan.prompt, plan.params.max_tokens, plan.params.stop) == ([1, 2, 1, 2], 6, [])


@pytest.mark.parametrize(("stop", "length"), [(["9"], 3), (["zz"], 4), (["01"], 4), (["8 9"], 3)])
async def test_a_stop_string_may_lie_across_tokens(stop, length):
    from scripted_engine import ScriptedEngine

    from doorstep.engine.api import SampleParams

    plan = sampling.Plan(prompt=[6], params=SampleParams(max_tokens=4), n=2, text_stops=stop, scored=None)
    result = await sampling.run(ScriptedEngine(""), None, plan, lambda ids: " ".join(map(str, ids)))
    assert [len(sequence.tokens) for sequence in result.sequences] == [length, length]
    assert all(sequence.stopped == (length < 4) for sequence in result.sequences)


def saved(registry, name):
    path = paths.TinkerPath("s:train:0", paths.Kind.WEIGHTS, name)
    folder = registry.new_folder(path)
    folder.mkdir()
    (folder / "adapter.json").write_text(name)
    registry.put_checkpoint(SavedCheckpoint(path=str(path), folder=folder.name, digest="d", size=1, created_us=1))
    return path


def test_a_registry_reads_back_what_it_wrote(tmp_path):
    registry = Registry(tmp_path)
    run = TrainingRun(run_id="s:train:0", owner="o", base="b", base_digest="d", spec=LoraSpec(rank=2), created_us=1)
    registry.put_run(run)
    path = saved(registry, "one")
    again = Registry(tmp_path)
    assert again.run(run.run_id) == run
    assert again.checkpoint(path) == registry.checkpoint(path)


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path):
    registry = Registry(tmp_path)
    path = saved(registry, "one")
    half = registry.new_folder(path)
    half.mkdir()
    again = Registry(tmp_path)
    assert not half.exists()
    assert (again.folder(again.checkpoint(path)) / "adapter.json").read_text() == "one"


def test_replacing_a_checkpoint_removes_the_old_weights(tmp_path):
    registry = Registry(tmp_path)
    before = registry.folder(registry.checkpoint(saved(registry, "one")))
    after = registry.folder(registry.checkpoint(saved(registry, "one")))
    assert (before.exists(), after.exists()) == (False, True)


def test_a_damaged_record_is_named(tmp_path):
    registry = Registry(tmp_path)
    file = registry.folder(registry.checkpoint(saved(registry, "one"))).with_name("one.json")
    file.write_text("{")
    with pytest.raises(StoreError, match=r"one\.json cannot be read"):
        Registry(tmp_path)
