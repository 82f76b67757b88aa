"""Rank 0 on any family: the model's own parameters in training, against plain torch, and on disk."""

import re

import pytest
import tiny_families as families
import tiny_models
import torch
from engine_use import CROSS_ENTROPY, RATE, ROWS, tokens
from transformers import AutoModelForCausalLM

from doorstep.engine.api import LoraSpec, ScoreParams
from doorstep.engine.modules.runtime import ModulesRuntime
from doorstep.engine.runtime import Task
from doorstep.engine.steps import optim_step
from doorstep.errors import EngineError

CPU = torch.device("cpu")
TEXT = tokens(20, seed=1)
WHOLE = LoraSpec(rank=0)


@pytest.fixture(scope="module", params=["gemma3_text", "gpt_oss", "qwen3_moe", "phi3"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return tiny_models.write(families.make(family), tmp_path_factory.mktemp(family))


@pytest.fixture
def runtime(family, folder):
    return ModulesRuntime(folder, family, CPU)


def train(runtime, trained, steps: int) -> None:
    for _ in range(steps):
        task = Task(trained, lambda: runtime.merged(trained), ROWS, CROSS_ENTROPY, False)
        for _ in runtime.train([task]):
            pass
        optim_step(trained, RATE)


def log_p(model) -> torch.Tensor:
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([TEXT])).logits[0, :-1], dim=-1)
    return scores.gather(1, torch.tensor(TEXT[1:])[:, None]).flatten()


def scored(runtime, trained) -> torch.Tensor:
    return torch.tensor(runtime.score(runtime.merged(trained), TEXT, ScoreParams(), ()).logprobs[1:])


def by_torch(family: str, part: str, steps: int):
    """Train the parameters of such names with plain torch; return the model."""
    model = families.make(family)
    chosen = [tensor for name, tensor in model.named_parameters() if re.search(part, name)]
    optimizer = torch.optim.AdamW(
        chosen, lr=RATE.learning_rate, betas=(RATE.beta1, RATE.beta2), eps=RATE.eps, weight_decay=0
    )
    for _ in range(steps):
        for row in ROWS:
            scores = torch.log_softmax(model(torch.tensor([row.tokens])).logits[0], dim=-1)
            lp = scores.gather(1, torch.tensor(row.targets)[:, None]).flatten()
            (-lp @ torch.tensor(row.inputs["weights"])).backward()
        optimizer.step()
        model.zero_grad()
    return model


@pytest.mark.parametrize(
    ("spec", "part"),
    [(WHOLE, ""), (LoraSpec(rank=0, train_mlp=False, train_unembed=False), r"self_attn\..*proj\.weight")],
)
def test_steps_are_those_of_torch(family, runtime, spec, part):
    trained = runtime.adapter(spec)
    train(runtime, trained, steps=1)
    wanted = log_p(by_torch(family, part, steps=1))
    torch.testing.assert_close(scored(runtime, trained), wanted, atol=2e-3, rtol=1e-3)


def test_a_saved_model_is_one_of_transformers_and_goes_on_bit_for_bit(runtime, tmp_path):
    trained = runtime.adapter(WHOLE)
    train(runtime, trained, steps=2)
    runtime.save(trained, tmp_path / "saved", optimizer=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    torch.testing.assert_close(log_p(model), scored(runtime, trained), atol=1e-5, rtol=1e-5)
    loaded = runtime.load(tmp_path / "saved", optimizer=True)
    for each in (trained, loaded):
        train(runtime, each, steps=1)
    assert torch.equal(trained.flat, loaded.flat)


def test_a_head_trained_alone_is_no_longer_tied(runtime, tmp_path):
    trained = runtime.adapter(LoraSpec(rank=0, train_attn=False, train_mlp=False))
    train(runtime, trained, steps=2)
    runtime.save(trained, tmp_path / "saved", optimizer=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    torch.testing.assert_close(log_p(model), scored(runtime, trained), atol=1e-5, rtol=1e-5)


def test_a_copy_stays_as_it_is(runtime):
    trained = runtime.adapter(WHOLE)
    train(runtime, trained, steps=1)
    copied, before = trained.copy(), scored(runtime, trained)
    train(runtime, trained, steps=1)
    assert torch.equal(scored(runtime, copied), before)
    assert not torch.equal(scored(runtime, trained), before)


def test_a_model_of_another_base_is_refused(family, runtime, tmp_path):
    runtime.save(runtime.adapter(WHOLE), tmp_path / "saved", optimizer=False)
    other = tiny_models.write(families.make(family, vocab_size=64), tmp_path / "other")
    with pytest.raises(EngineError, match="was made from another base than other"):
        ModulesRuntime(other, "other", CPU).load(tmp_path / "saved", optimizer=False)
