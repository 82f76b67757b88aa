"""The service's parts by themselves: order, names, samples."""

import asyncio
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine

from doorstep.engine.api import Image, ModelInfo, SampleParams
from doorstep.errors import NotFound, UsageError
from doorstep.training import paths, sampling, wire
from doorstep.training.journal import Journal
from doorstep.training.promises import Answer, Lane, Promises


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
            lane.submit(seq, futures[-1].set_result, work)
        await asyncio.gather(*futures)

    asyncio.run(run())
    assert done == list(range(6))


def test_serving_needs_neither_torch_nor_the_tinker_client():
    code = "import sys, doorstep.training.app, doorstep.training.codec as c; c.schema(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tinker", "torch", "transformers", "numpy"} & set(loaded)


async def test_fetched_answers_make_room_for_newer_ones(tmp_path):
    promises = Promises(Journal(tmp_path / "journal"), keep_bytes=10)
    for name in ("a", "b", "c"):
        promises.open(name, "me", "optim_step")(Answer(b"12345"))
        await promises.wait(name, "me", 1)
        promises.fetched(name)
    with pytest.raises(NotFound):
        await promises.wait("a", "me", 1)
    assert await promises.wait("c", "me", 1)


async def test_a_bug_in_an_operation_is_our_fault_and_no_hang(tmp_path):
    async def work():
        raise RuntimeError("bug")

    promises = Promises(Journal(tmp_path / "journal"))
    promises.start("x", "me", "optim_step", work)
    assert b'"category":"server"' in (await promises.wait("x", "me", 1)).body


@given(st.text(max_size=12))
def test_an_accepted_name_is_one_segment(name):
    try:
        accepted = paths.checked_name(name)
    except UsageError:
        return
    assert not set(accepted) & set("/\\\0:")
    assert not accepted.startswith(".")
    assert paths.parse(f"tinker://s:train:0/weights/{name}").name == name


async def test_a_sampling_request_may_leave_the_length_open():
    info = ModelInfo(name="m", folder="", digest="", tokenizer_digest="", parameters=1, vocabulary=9, max_context=10)
    prompt = wire.Prompt(chunks=[wire.Chunk(type="encoded_text", tokens=[1, 2])] * 2)
    request = wire.Sample(
        sampling_session_id="s", seq_id=0, prompt=prompt, sampling_params=wire.SamplingParams(stop=[])
    )
    plan = await sampling.plan(request, info, ScriptedEngine(""))
    assert (plan.prompt, plan.params.max_tokens, plan.params.stop) == ([1, 2, 1, 2], 6, [])
    assert plan.params.tempered


class SeeingEngine(ScriptedEngine):
    async def measure(self, images):
        return [len(image) for image in images]


async def test_an_image_stands_among_the_tokens_of_a_prompt():
    engine = SeeingEngine("")
    info = msgspec.structs.replace(await engine.info(), vision=True)
    text = wire.Chunk(type="encoded_text", tokens=[1, 2])
    image = wire.Chunk(type="image", data=b"png", format="png", expected_tokens=3)
    fields = {"sampling_session_id": "s", "seq_id": 0, "sampling_params": wire.SamplingParams()}
    request = wire.Sample(prompt=wire.Prompt(chunks=[text, image, text]), **fields)
    plan = await sampling.plan(request, info, engine)
    assert (len(plan.prompt), plan.images) == (7, [Image(at=2, tokens=3, data=b"png")])
    wrong = wire.Prompt(chunks=[msgspec.structs.replace(image, expected_tokens=4)])
    with pytest.raises(UsageError, match="the image in chunk 0 takes 3 tokens, not 4"):
        await sampling.plan(wire.Sample(prompt=wrong, **fields), info, engine)


@pytest.mark.parametrize(("stop", "length"), [(["9"], 3), (["zz"], 4), (["01"], 4), (["8 9"], 3)])
async def test_a_stop_string_may_lie_across_tokens(stop, length):
    plan = sampling.Plan(prompt=[6], params=SampleParams(max_tokens=4), n=2, text_stops=stop)
    result = await sampling.run(ScriptedEngine(""), None, plan, lambda ids: " ".join(map(str, ids)))
    assert [len(sequence.tokens) for sequence in result.sequences] == [length, length]
    assert all(sequence.stopped == (length < 4) for sequence in result.sequences)
