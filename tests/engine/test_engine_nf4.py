"""A base in four bits, its adapters beside it, against PEFT on the same base."""

import engine_use
import pytest
import tiny_families as families
import tiny_models
import torch
from engine_use import CROSS_ENTROPY, ROWS, tokens
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from doorstep.engine.api import LoraSpec, ScoreParams
from doorstep.engine.modules.runtime import ModulesRuntime
from doorstep.engine.runtime import Task
from doorstep.engine.steps import optim_step

pytestmark = [
    # PEFT asks a model whether it checkpoints gradients by the name that transformers has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
CPU = torch.device("cpu")
TEXT = tokens(20, seed=1)
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.float32,
    bnb_4bit_use_double_quant=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = families.make("mixtral", hidden_size=64, intermediate_size=128)
    return tiny_models.write(model, tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def runtime(folder):
    return ModulesRuntime(folder, "mixtral", CPU, nf4=True)


def train(runtime, adapter):
    task = Task(adapter, lambda: runtime.merged(adapter), ROWS, CROSS_ENTROPY, False)
    for _ in runtime.train([task]):
        pass
    return task.done.metrics["loss:sum"]


def test_adapters_train_beside_it_and_compute_the_same_in_peft(folder, runtime, tmp_path):
    adapter = runtime.adapter(LoraSpec(rank=4))
    losses = []
    for _ in range(4):
        losses.append(train(runtime, adapter))
        optim_step(adapter, engine_use.RATE)
    assert losses == sorted(losses, reverse=True)
    runtime.save(adapter, tmp_path / "adapter", optimizer=False)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=NF4)
    peft = PeftModel.from_pretrained(base, tmp_path / "adapter").train()  # see Base: on a CPU it computes otherwise
    with torch.no_grad():
        scores = torch.log_softmax(peft(torch.tensor([TEXT])).logits[0, :-1], dim=-1)
    wanted = scores.gather(1, torch.tensor(TEXT[1:])[:, None]).flatten()
    found = runtime.score(runtime.merged(adapter), TEXT, ScoreParams(), ()).logprobs[1:]
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-4, rtol=1e-4)
