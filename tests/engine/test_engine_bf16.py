"""The precision that CUDA gets, on a CPU: both runtimes over a base in bf16, beside the same in fp32."""

import pytest
import torch
from engine_use import RATE, ROWS, run, samples

from doorstep.engine.api import LoraSpec, Loss
from doorstep.engine.modules import base as modules_base
from doorstep.engine.modules.runtime import ModulesRuntime
from doorstep.engine.native import base as native_base
from doorstep.engine.native.runtime import NativeRuntime
from doorstep.engine.steps import optim_step

CPU = torch.device("cpu")
SPECS = [LoraSpec(rank=4, seed=3), LoraSpec(rank=40, seed=4), LoraSpec(rank=0)]


@pytest.fixture(scope="module", params=[NativeRuntime, ModulesRuntime])
def runtimes(request, folder):
    """The runtime as a GPU has it, and as a CPU has it."""
    native, modules = native_base._load, modules_base.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_base, "_load", lambda *given: native(*given).to(torch.bfloat16))
        patch.setattr(modules_base, "load_model", lambda *given: modules(*given).to(torch.bfloat16))
        low = request.param(folder, "random", CPU)
    return low, request.param(folder, "random", CPU)


def learned(runtime, spec, amount=0.02):
    adapter = runtime.adapter(spec)
    adapter.flat.add_(torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(1)), alpha=amount)
    return adapter


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "dro"])
@pytest.mark.parametrize("spec", SPECS)
def test_training_is_near_that_in_fp32(runtimes, spec, loss):
    rows = [*ROWS, *samples(20, [5, 1, 9, 3], 3)]
    low, full = (learned(runtime, spec) for runtime in runtimes)
    found, wanted = (
        run(runtime, each, rows, Loss(name=loss)) for runtime, each in zip(runtimes, (low, full), strict=True)
    )
    for ours, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=0.2)  # half a percent of scores up to 40
    assert low.flat.dtype == low.gradient.dtype == torch.float32
    assert torch.cosine_similarity(low.gradient, full.gradient, dim=0) > 0.995


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_training_goes_on_bit_for_bit(runtimes, spec, tmp_path):
    low, _ = runtimes
    trained = learned(low, spec)
    for _ in range(2):
        run(low, trained)
        optim_step(trained, RATE)
    low.save(trained, tmp_path / "half", optimizer=True)
    loaded = low.load(tmp_path / "half", optimizer=True)
    for each in (trained, loaded):
        run(low, each)
        optim_step(each, RATE)
    assert torch.equal(loaded.flat, trained.flat)
