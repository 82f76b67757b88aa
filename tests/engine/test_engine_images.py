"""Images among tokens, against what transformers computes from the same images."""

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import engine_use
import pictured
import pytest
import torch
from engine_use import CROSS_ENTROPY, tokens
from msgspec.structs import replace
from peft import PeftModel
from pictured import IMAGE, picture
from PIL import Image as Picture

from doorstep.engine.api import Image, LoraSpec, SampleParams, Token, TrainRow
from doorstep.engine.local import LocalEngine
from doorstep.engine.remote import RemoteEngine
from doorstep.errors import EngineError

TEXT = [token % 80 for token in tokens(12, seed=1)]
FIRST, SECOND = picture(40, 24, seed=1), picture(24, 24, seed=2, kind="JPEG")
GREEDY = SampleParams(max_tokens=6, temperature=0, stop=[])


@pytest.fixture(scope="module", params=["qwen3_vl", "gemma3"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    return pictured.write(family, tmp_path_factory.mktemp(family))


@pytest.fixture
async def engine(folder):
    engine = await LocalEngine.start(folder, "pictured")
    yield engine
    await engine.close()


async def placed(engine) -> tuple[list[int], list[Image]]:
    """Return a text with two images in it."""
    first, second = await engine.measure([FIRST, SECOND])
    text = TEXT[:3] + [0] * first + TEXT[3:6] + [0] * second + TEXT[6:]
    return text, [Image(at=3, tokens=first, data=FIRST), Image(at=6 + first, tokens=second, data=SECOND)]


def as_transformers_has_it(family: str, text: list[int], images: list[Image]) -> dict[str, Any]:
    """Return what a processor would give the model."""
    ids = torch.tensor([text])
    for image in images:
        ids[0, image.at : image.at + image.tokens] = IMAGE
    read = pictured.READERS[family]([Picture.open(BytesIO(image.data)) for image in images], return_tensors="pt")
    kinds = {"qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}[family]
    read.pop("num_crops", None)
    return {"input_ids": ids, kinds: (ids == IMAGE).long(), **read}


async def test_an_image_takes_as_many_tokens_as_its_reader_says(engine, family):
    counts = await engine.measure([FIRST, SECOND])
    patches = pictured.READERS["qwen3_vl"].get_number_of_image_patches
    assert counts == {"qwen3_vl": [patches(24, 40) // 4, patches(24, 24) // 4], "gemma3": [4, 4]}[family]
    assert (await engine.info()).vision


async def test_rows_with_images_have_the_models_log_probabilities(engine, family):
    text, images = await placed(engine)
    model = getattr(pictured, family)()
    with torch.no_grad():
        scores = model(**as_transformers_has_it(family, text, images)).logits[0, :-1]
    wanted = torch.log_softmax(scores, dim=-1).gather(1, torch.tensor(text[1:])[:, None]).flatten()
    row = TrainRow(tokens=text[:-1], targets=text[1:], images=images)
    await engine.create_adapter("a", LoraSpec(rank=2))
    done = await engine.forward_backward("a", [row, engine_use.ROWS[0]], CROSS_ENTROPY)
    torch.testing.assert_close(torch.tensor(done.logprobs[0]), wanted, atol=1e-5, rtol=1e-5)
    scored = await engine.score(None, text, images=images)
    torch.testing.assert_close(torch.tensor(scored.logprobs[1:]), wanted, atol=1e-5, rtol=1e-5)


async def test_a_prompt_with_images_goes_on_as_transformers_generates(engine, family):
    text, images = await placed(engine)
    model = getattr(pictured, family)()
    given = as_transformers_has_it(family, text, images)
    wanted = model.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, len(text) :].tolist()
    events = [event async for event in engine.sample(None, text, GREEDY, images=images)]
    assert [event.id for event in events if isinstance(event, Token)] == wanted


async def test_text_after_an_image_is_as_it_was_before(engine):
    before = await engine_use.sample(engine, None, TEXT, GREEDY)
    text, images = await placed(engine)
    await engine.score(None, text, images=images)
    assert await engine_use.sample(engine, None, TEXT, GREEDY) == before


async def test_the_engine_process_takes_images_too(tmp_path):
    folder = pictured.write("qwen3_vl", tmp_path / "model")
    local = await LocalEngine.start(folder, "pictured")
    remote = await RemoteEngine.start(folder, "pictured", threads=1, log=tmp_path / "engine.log")
    text, images = await placed(remote)
    assert await remote.score(None, text, images=images) == await local.score(None, text, images=images)
    row = TrainRow(tokens=text[:-1], targets=text[1:], images=images)
    await remote.create_adapter("a", LoraSpec(rank=2))
    assert (await remote.forward_backward("a", [row], CROSS_ENTROPY)).metrics["loss:sum"] > 0
    for engine in (local, remote):
        await engine.close()


async def test_training_on_an_image_teaches(engine):
    text, images = await placed(engine)
    row = TrainRow(tokens=text[:-1], targets=text[1:], images=images)
    await engine.create_adapter("a", LoraSpec(rank=4))
    losses = []
    for _ in range(4):
        losses.append((await engine.forward_backward("a", [row], CROSS_ENTROPY)).metrics["loss:sum"])
        await engine.optim_step("a", engine_use.RATE)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # only the head is meant
async def test_an_adapter_changes_the_language_model_alone_and_loads_in_peft(engine, family, tmp_path):
    text, images = await placed(engine)
    await engine_use.trained(engine, "a")
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    peft = PeftModel.from_pretrained(getattr(pictured, family)(), tmp_path / "a")
    assert not any("lora" in name for name, _ in peft.named_parameters() if "vis" in name)
    with torch.no_grad():
        scores = peft(**as_transformers_has_it(family, text, images)).logits[0, :-1]
    wanted = torch.log_softmax(scores, dim=-1).gather(1, torch.tensor(text[1:])[:, None]).flatten()
    scored = await engine.score("a", text, images=images)
    torch.testing.assert_close(torch.tensor(scored.logprobs[1:]), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no PNG, JPEG or WebP"),
        (b"GIF89a of a kind that is not read", "is no PNG, JPEG or WebP"),
        (FIRST[:60], "cannot be read: image file is truncated"),
    ],
    ids=["empty", "other", "truncated"],
)
async def test_a_broken_image_is_named(engine, data, problem):
    with pytest.raises(EngineError, match=f"image 1 {problem}"):
        await engine.measure([FIRST, data])


async def test_a_wrong_count_of_tokens_says_the_right_one(engine):
    text, images = await placed(engine)
    wrong = [Image(at=3, tokens=images[0].tokens - 1, data=FIRST)]
    with pytest.raises(EngineError, match=f"image 0 takes {images[0].tokens} tokens, not {images[0].tokens - 1}"):
        await engine.score(None, text, images=wrong)


async def test_a_row_that_cannot_be_read_fails_its_own_call_only(engine):
    text, images = await placed(engine)
    good = TrainRow(tokens=text[:-1], targets=text[1:], images=images)
    bad = replace(good, images=[replace(images[0], data=FIRST[:60])])
    for name in ("a", "b"):
        await engine.create_adapter(name, LoraSpec(rank=2))
    calls = (engine.forward_backward(name, [row], CROSS_ENTROPY) for name, row in (("a", bad), ("b", good)))
    failed, done = await asyncio.gather(*calls, return_exceptions=True)
    assert str(failed) == "row 0: image 0 cannot be read: image file is truncated"
    assert done.metrics["loss:sum"] > 0


async def test_the_id_of_an_images_parts_is_refused_elsewhere(engine):
    text, images = await placed(engine)
    row = TrainRow(tokens=[IMAGE, *text[1:]], targets=text, images=images)
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match="row 0: the id 90 stands for a part of an image"):
        await engine.forward_backward("a", [row], CROSS_ENTROPY)


@pytest.mark.parametrize("at", [-1, 11])
async def test_an_image_outside_the_tokens_is_refused(engine, at):
    images = [Image(at=at, tokens=4, data=FIRST)]
    with pytest.raises(EngineError, match=rf"image 0 \(at {at}, 4 tokens\) .* within the 12 tokens"):
        await engine.score(None, TEXT, images=images)
