"""Adapters on disk: bit-exact continuation, PEFT as reader, atomic folders, what does not fit."""

import json

import pytest
import tiny_models
import torch
from engine_use import sample, tokens, train, trained
from peft import PeftModel

from doorstep.engine.api import LoraSpec, SampleParams
from doorstep.engine.local import LocalEngine
from doorstep.errors import EngineError

pytestmark = [
    # peft 0.21 reads a property that transformers 5.24 has renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # the adapter changes the head alone, and that is meant
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

FREE = SampleParams(max_tokens=9, seed=1, stop=[])


async def test_a_saved_training_goes_on_bit_for_bit(engine, tmp_path):
    await trained(engine, "a")
    await engine.save("a", str(tmp_path / "half"), optimizer=True)
    await train(engine, "a")
    expected = await engine.save("a", str(tmp_path / "whole"), optimizer=True)
    assert await engine.load("b", str(tmp_path / "half"), optimizer=True) == LoraSpec(rank=4)
    await train(engine, "b")
    assert await engine.save("b", str(tmp_path / "again"), optimizer=True) == expected
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


async def test_without_the_optimizer_training_starts_its_moments_anew(engine, tmp_path):
    await trained(engine, "a")
    saved = await engine.save("a", str(tmp_path / "a"), optimizer=False)
    await engine.load("b", str(tmp_path / "a"), optimizer=False)
    assert (await engine.save("b", str(tmp_path / "b"), optimizer=False)).digest == saved.digest
    await train(engine, "a")
    await train(engine, "b")
    assert (await engine.score("a", [1, 2, 3])).logprobs != (await engine.score("b", [1, 2, 3])).logprobs


async def test_the_size_is_what_lies_on_disk_and_the_optimizer_is_not_in_the_digest(engine, tmp_path):
    await trained(engine, "a")
    bare = await engine.save("a", str(tmp_path / "bare"), optimizer=False)
    full = await engine.save("a", str(tmp_path / "full"), optimizer=True)
    assert bare.digest == full.digest
    assert full.size == sum(file.stat().st_size for file in (tmp_path / "full").iterdir()) > bare.size


@pytest.mark.parametrize(
    "spec",
    [LoraSpec(rank=3, alpha=8), LoraSpec(rank=2, train_unembed=False), LoraSpec(rank=2, train_mlp=False)],
)
async def test_peft_loads_it_and_gives_the_same_logits(engine, model, folder, tmp_path, spec):
    await trained(engine, "a", spec=spec)
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    peft = PeftModel.from_pretrained(type(model).from_pretrained(folder), tmp_path / "a")
    text = tokens(30, 2)
    with torch.no_grad():
        theirs = torch.log_softmax(peft(torch.tensor([text])).logits[0, :-1], -1)
    ours = torch.tensor(((await engine.score("a", text)).logprobs)[1:])
    torch.testing.assert_close(ours, theirs.gather(1, torch.tensor(text[1:])[:, None]).flatten(), rtol=0, atol=5e-5)
    assert (await engine.score("a", text)).logprobs != (await engine.score(None, text)).logprobs


async def test_the_seed_alone_decides_a_fresh_adapter(engine, tmp_path):
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        await engine.create_adapter(name, LoraSpec(rank=2, seed=seed))
        digests.append((await engine.save(name, str(tmp_path / name), optimizer=False)).digest)
    assert digests[0] == digests[1] != digests[2]


async def test_a_fresh_adapter_is_the_base(engine):
    await engine.create_adapter("a", LoraSpec(rank=2))
    assert await sample(engine, "a", [3, 4], FREE) == await sample(engine, None, [3, 4], FREE)


async def test_saving_again_replaces_and_leaves_nothing_else(engine, tmp_path):
    await trained(engine, "a")
    await engine.save("a", str(tmp_path / "saves" / "a"), optimizer=True)
    await train(engine, "a")
    await engine.save("a", str(tmp_path / "saves" / "a"), optimizer=False)
    await engine.load("b", str(tmp_path / "saves" / "a"), optimizer=False)
    assert (await engine.score("b", [1, 2, 3])).logprobs == (await engine.score("a", [1, 2, 3])).logprobs
    assert [folder.name for folder in (tmp_path / "saves").iterdir()] == ["a"]


async def test_an_adapter_of_another_base_is_refused(engine, tmp_path, tmp_path_factory):
    await engine.create_adapter("a", LoraSpec(rank=2))
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    config = tiny_models.qwen3().config
    config.hidden_size = 64
    other_folder = tiny_models.write(type(tiny_models.qwen3())(config), tmp_path_factory.mktemp("other"))
    other = await LocalEngine.start(other_folder, "other")
    with pytest.raises(EngineError, match="made for another base"):
        await other.load("a", str(tmp_path / "a"), optimizer=False)
    await other.close()


async def test_a_folder_without_an_adapter_is_named(engine, tmp_path):
    with pytest.raises(EngineError, match="nothing-here"):
        await engine.load("a", str(tmp_path / "nothing-here"), optimizer=False)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2}))
    with pytest.raises(EngineError, match="holds no adapter that can be read"):
        await engine.load("a", str(tmp_path), optimizer=False)
